//! That the process is locked up before it hears anything, and what it costs while it waits.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::os::fd::AsRawFd;

use common::{PATIENCE, Stream, peers};

fn assert_locked_up(stream: &Stream) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(stream.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(stream.status("NoNewPrivs"), "1");
    assert_eq!(stream.status("Seccomp"), "2");
    assert_eq!(stream.status("Threads"), "1");
    let proc = format!("/proc/{}", stream.pid());
    let root = std::fs::read_link(format!("{proc}/root")).unwrap();
    assert_eq!(root, stream.root.path().canonicalize().unwrap());
    assert_eq!(std::fs::read_link(format!("{proc}/cwd")).unwrap(), root);
    assert_eq!(limit(stream, "Max core file size"), ["0", "0"]);
    assert_eq!(limit(stream, "Max file size"), ["8388608", "8388608"]);
}

/// Soft and hard.
fn limit(stream: &Stream, name: &str) -> Vec<String> {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", stream.pid())).unwrap();
    let line = limits.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.split_whitespace().take(2).map(str::to_owned).collect()
}

#[test]
fn an_idle_one_is_locked_up_and_small() {
    let mut stream = Stream::idle();
    stream.settle();
    assert_locked_up(&stream);
    assert_eq!(limit(&stream, "Max open files"), ["2048", "2048"]);
    // As always on a node, idle ones share what they have read of the program.
    let spare = Stream::idle();
    spare.settle();
    let private = stream.private_memory();
    assert!(private <= 512 << 10, "{private}");
    assert!(stream.is_alive());
    assert_eq!(stream.log(), "");
}

#[test]
fn a_dialer_is_locked_up_before_it_says_so() {
    let mut stream = Stream::with(&["--dial"]);
    stream.say(&["ENTER"], &[]);
    assert_eq!(stream.hear(), ["OK"]);
    assert_locked_up(&stream);
    let Stream { control, .. } = &mut stream;
    // All of criod's ends have gone.
    let (_, other) = peers();
    *control = other;
    assert!(stream.wait().success());
}

#[test]
fn what_it_was_started_with_by_chance_is_closed() {
    // Inherited by whatever is executed now.
    let (end, _other) = nix::unistd::pipe().unwrap();
    let pipe = std::fs::read_link(format!("/proc/self/fd/{}", end.as_raw_fd())).unwrap();
    for args in [&[][..], &["--dial"]] {
        let stream = Stream::with(args);
        match args {
            [] => stream.settle(),
            _ => {
                stream.say(&["ENTER"], &[]);
                assert_eq!(stream.hear(), ["OK"]);
            }
        }
        let open = std::fs::read_dir(format!("/proc/{}/fd", stream.pid())).unwrap();
        let open: Vec<_> = open.map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap()).collect();
        assert!(open.len() > 3 && !open.contains(&pipe), "{args:?}: {open:?}");
    }
}

#[test]
fn a_log_that_takes_no_more_ends_nothing() {
    let mut stream = Stream::idle();
    stream.settle();
    stream.fill_log(8 << 20);
    stream.say(&["NONSENSE"], &[]);
    stream.settle();
    assert_eq!(stream.log(), "");
    stream.fill_log(0);
    stream.say(&["NONSENSE"], &[]);
    stream.settle();
    assert!(stream.log().contains("NONSENSE"), "{}", stream.log());
    assert!(stream.is_alive());
}

#[test]
fn it_joins_the_cgroups_before_that() {
    let dir = tempfile::tempdir().unwrap();
    let folders = [dir.path().join("a"), dir.path().join("b")];
    folders.iter().for_each(|f| std::fs::create_dir(f).unwrap());
    let folder = |n: usize| folders[n].to_str().unwrap();
    let stream = Stream::with(&["--cgroup", folder(0), "--cgroup", "/none", "--cgroup", folder(1)]);
    stream.settle();
    for folder in &folders {
        assert_eq!(std::fs::read(folder.join("cgroup.procs")).unwrap(), b"0");
    }
    assert!(stream.log().contains("/none"), "{}", stream.log());
}

#[test]
fn without_an_empty_folder_it_does_not_start() {
    for args in [&[][..], &["--root"], &["--root", "/does/not/exist"], &["--nonsense"]] {
        let status = std::process::Command::new(common::program())
            .args(args)
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success(), "{args:?}");
    }
}

#[test]
fn an_idle_one_ends_with_everybody_who_could_need_it() {
    let mut stream = Stream::idle();
    stream.settle();
    let spare = nix::unistd::dup(&stream.control).unwrap();
    let (_, other) = peers();
    stream.control = other;
    // The keeper's duplicate keeps it alive, and a new criod asks through it.
    assert!(stream.is_alive());
    stream.control = spare.into();
    stream.control.patient(PATIENCE).unwrap();
    stream.settle();
    let (_, other) = peers();
    stream.control = other;
    assert!(stream.wait().success());
}
