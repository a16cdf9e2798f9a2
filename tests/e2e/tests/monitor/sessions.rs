//! Commands whose streams others carry: the stream socket, exec with pipes and with a terminal.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options, members};
use nix::poll::{PollFd, PollFlags, poll};
use sys::seqpacket::Conn;
use sys::tty::Size;

use super::runtimes::{Fake, crun};
use super::*;

/// What was handed over, by name.
pub(super) type Streams = BTreeMap<String, File>;

/// A connection to the monitor's stream socket.
pub(super) fn connect(c: &Container<'_>) -> Conn {
    Conn::connect(&c.dir.join("stream.sock"), Duration::from_secs(20)).unwrap()
}

/// A file in memory, as criod hands the process over.
pub(super) fn memfd(bytes: &[u8]) -> OwnedFd {
    sys::replace::memory_file("process", bytes).unwrap().into()
}

fn process(tty: bool, args: &[&str]) -> OwnedFd {
    let process = serde_json::json!({
        "terminal": tty, "args": args, "cwd": "/", "env": ["PATH=/bin", "TERM=xterm"],
        "user": { "uid": 0, "gid": 0 },
    });
    memfd(process.to_string().as_bytes())
}

/// A connection that is ready to run a command with these of stdin, stdout and stderr.
pub(super) fn prepare(c: &Container<'_>, wanted: [&str; 3], args: &[&str]) -> Conn {
    let conn = connect(c);
    let words = ["EXEC", "0", wanted[0], wanted[1], wanted[2]];
    conn.send(&words, &[process(false, args).as_fd()]).unwrap();
    conn
}

pub(super) fn prepare_tty(c: &Container<'_>, args: &[&str]) -> Conn {
    let conn = connect(c);
    conn.send(&["EXEC", "1", "1", "1", "1"], &[process(true, args).as_fd()]).unwrap();
    conn
}

/// Begins; what is handed over, or why nothing is.
pub(super) fn go(conn: &Conn, words: &[&str]) -> Result<Streams, String> {
    conn.send(words, &[]).unwrap();
    let answer = conn.recv().unwrap().unwrap();
    match answer.fields[0].as_str() {
        "OK" => {
            assert_eq!(answer.fields.len() - 1, answer.fds.len());
            Ok(answer
                .fields
                .into_iter()
                .skip(1)
                .zip(answer.fds.into_iter().map(File::from))
                .collect())
        }
        "ERR" => {
            assert!(conn.recv().unwrap().is_none(), "it is closed then");
            Err(answer.fields[1].clone())
        }
        other => panic!("{other}"),
    }
}

/// A command with all three streams.
pub(super) fn exec(c: &Container<'_>, args: &[&str]) -> (Conn, Streams) {
    let conn = prepare(c, ["1", "1", "1"], args);
    let streams = go(&conn, &["GO"]).unwrap();
    (conn, streams)
}

/// The exit code; `None`: the monitor has hung up without one.
pub(super) fn exit(conn: &Conn) -> Option<i32> {
    match conn.recv() {
        Ok(Some(message)) => {
            assert_eq!(message.fields[0], "EXIT");
            assert!(conn.recv().unwrap().is_none(), "it is closed then");
            Some(message.fields[1].parse().unwrap())
        }
        Ok(None) => None,
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => None,
        Err(e) => panic!("{e}"),
    }
}

/// Waits for a descriptor that does not block.
fn ready(file: &File, flags: PollFlags) {
    let mut fds = [PollFd::new(file.as_fd(), flags)];
    assert_eq!(poll(&mut fds, 20_000u16).unwrap(), 1, "nothing within twenty seconds");
}

/// Reads something; nothing: it is at its end.
pub(super) fn read(file: &mut File) -> Vec<u8> {
    let mut bytes = vec![0; 65536];
    loop {
        match file.read(&mut bytes) {
            Ok(n) => {
                bytes.truncate(n);
                return bytes;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready(file, PollFlags::POLLIN),
            // A terminal that nobody has open.
            Err(e) if e.raw_os_error() == Some(nix::libc::EIO) => return Vec::new(),
            Err(e) => panic!("{e}"),
        }
    }
}

pub(super) fn read_all(file: &mut File) -> String {
    let mut all = Vec::new();
    loop {
        match read(file) {
            some if some.is_empty() => return String::from_utf8_lossy(&all).into_owned(),
            some => all.extend(some),
        }
    }
}

/// Reads until this text has come.
pub(super) fn read_until(file: &mut File, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let some = read(file);
        assert!(!some.is_empty(), "it ended after {all:?}");
        all += &String::from_utf8_lossy(&some);
    }
    all
}

pub(super) fn write_all(file: &mut File, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready(file, PollFlags::POLLOUT),
            Err(e) => panic!("{e}"),
        }
    }
}

/// Files of commands in the monitor's folder, other than output that was handed out.
pub(super) fn files(c: &Container<'_>) -> Vec<String> {
    let all = fs::read_dir(&c.dir).unwrap().flatten();
    let mut names: Vec<_> = all.map(|e| e.file_name().into_string().unwrap()).collect();
    let handed = |n: &String| n.ends_with(".stdout") || n.ends_with(".stderr");
    names.retain(|n| n.starts_with("exec-") && !handed(n));
    names
}

pub(super) fn descriptors(c: &Container<'_>) -> usize {
    fs::read_dir(format!("/proc/{}/fd", c.monitor)).unwrap().count()
}

/// How many the monitor has open when nothing is under way: no call, that is, whose connection is
/// just being closed.
pub(super) fn idle_descriptors(c: &Container<'_>) -> usize {
    let mut before = (0, descriptors(c));
    eventually("the monitor is idle", || {
        let now = descriptors(c);
        before = if now == before.1 { (before.0 + 1, now) } else { (0, now) };
        (before.0 == 10).then_some(now)
    })
}

pub(super) fn idle_again(c: &Container<'_>, before: usize) {
    // Fewer where a connection, which its client closes in the background, was still open before.
    eventually("no descriptor is left", || (descriptors(c) <= before).then_some(()));
}

pub(super) const SLEEP: [&str; 3] = ["/bin/busybox", "sleep", "1000"];

#[tokio::test]
async fn streams_are_apart_and_only_those_that_are_wanted() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let before = idle_descriptors(&c);
    let script = "cat; echo err >&2; exit 7";
    let (conn, mut streams) = exec(&c, &["/bin/sh", "-c", script]);
    assert_eq!(streams.keys().collect::<Vec<_>>(), ["stderr", "stdin", "stdout"]);
    let mut stdin = streams.remove("stdin").unwrap();
    write_all(&mut stdin, b"hello\n");
    assert_eq!(read_until(streams.get_mut("stdout").unwrap(), "\n"), "hello\n");
    // Half closed: what comes the other way goes on.
    write_all(&mut stdin, b"bye\n");
    drop(stdin);
    assert_eq!(read_all(streams.get_mut("stdout").unwrap()), "bye\n");
    assert_eq!(read_all(streams.get_mut("stderr").unwrap()), "err\n");
    assert_eq!(exit(&conn), Some(7));

    let fd = "for f in 0 1 2; do readlink /proc/self/fd/$f; done >&";
    let conn = prepare(&c, ["0", "1", "0"], &["/bin/sh", "-c", &format!("{fd}1")]);
    let mut streams = go(&conn, &["GO"]).unwrap();
    assert_eq!(streams.len(), 1);
    let said = read_all(streams.get_mut("stdout").unwrap());
    assert_eq!(exit(&conn), Some(0));
    let said: Vec<_> = said.lines().collect();
    assert!(said[0] == "/dev/null" && said[1].starts_with("pipe:"), "{said:?}");
    let conn = prepare(&c, ["0", "0", "0"], &["/bin/sh", "-c", "kill -9 $$"]);
    assert!(go(&conn, &["GO", "24", "80"]).unwrap().is_empty());
    assert_eq!(exit(&conn), Some(137));
    assert!(files(&c).is_empty(), "{:?}", files(&c));
    idle_again(&c, before);
    delete(&c).await;
}

#[tokio::test]
async fn a_lot_goes_both_ways_at_once() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let (conn, mut streams) = exec(&c, &["/bin/busybox", "cat"]);
    let mut stdin = streams.remove("stdin").unwrap();
    let mut stdout = streams.remove("stdout").unwrap();
    let sent: Vec<u8> = (0..64u32 << 18).flat_map(u32::to_le_bytes).collect();
    let got = std::thread::scope(|s| {
        let all = &sent;
        s.spawn(move || write_all(&mut stdin, all));
        let mut got = Vec::new();
        loop {
            match read(&mut stdout) {
                some if some.is_empty() => return got,
                some => got.extend(some),
            }
        }
    });
    assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
    assert_eq!(exit(&conn), Some(0));
    delete(&c).await;
}

#[tokio::test]
async fn a_thousand_short_ones_leave_nothing() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let before = idle_descriptors(&c);
    std::thread::scope(|s| {
        for part in 0..4 {
            let c = &c;
            s.spawn(move || {
                for n in 0..250 {
                    let code = (n + part) % 256;
                    // It may well have ended before the runtime has.
                    let (conn, mut streams) = exec(c, &["/bin/sh", "-c", &format!("exit {code}")]);
                    if n % 3 == 0 {
                        assert_eq!(read_all(streams.get_mut("stdout").unwrap()), "");
                    }
                    assert_eq!(exit(&conn), Some(code));
                }
            });
        }
    });
    idle_again(&c, before);
    assert!(files(&c).is_empty(), "{:?}", files(&c));
    eventually("only init is left", || (members(&c.id).len() == 1).then_some(()));
    delete(&c).await;
}

#[tokio::test]
async fn what_cannot_begin_says_why() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    let c = Container::new(&keeper, "sleep 1000", &fake.options());
    assert_eq!(phase(&state(&c).await), Phase::PHASE_NEW);
    let refused = |args: &[&str]| go(&prepare(&c, ["1", "1", "1"], args), &["GO"]).unwrap_err();
    assert!(refused(&["/bin/true"]).contains("not running"));
    create(&c).await.unwrap();
    assert!(refused(&["/bin/true"]).contains("not running"));
    start(&c).await;
    let before = idle_descriptors(&c);
    let text = refused(&["/bin/nope"]);
    assert!(text.contains("/bin/nope") && text.contains("no such file"), "{text}");
    let conn = prepare_tty(&c, &["/bin/nope"]);
    let text = go(&conn, &["GO"]).unwrap_err();
    assert!(text.contains("/bin/nope") && text.contains("no such file"), "{text}");
    // No object, nothing, too much, and no file.
    let large = memfd(b"");
    File::from(large.try_clone().unwrap()).set_len(5 << 20).unwrap();
    let (pipe, _end) = nix::unistd::pipe().unwrap();
    for (file, word) in
        [(memfd(b"[1]"), "exec"), (memfd(b""), "exec"), (large, "too long"), (pipe, "no file")]
    {
        let conn = connect(&c);
        conn.send(&["EXEC", "0", "0", "0", "0"], &[file.as_fd()]).unwrap();
        let text = go(&conn, &["GO"]).unwrap_err();
        assert!(text.contains(word), "{text}");
    }
    fs::rename(&fake.path, fake.path.with_extension("away")).unwrap();
    let text = refused(&["/bin/true"]);
    assert!(text.contains("fake-runtime") && text.contains("No such file"), "{text}");
    fs::rename(fake.path.with_extension("away"), &fake.path).unwrap();
    // A terminal is promised, but the process wants none.
    let conn = connect(&c);
    conn.send(&["EXEC", "1", "1", "1", "1"], &[process(false, &SLEEP).as_fd()]).unwrap();
    assert!(go(&conn, &["GO"]).is_err());
    eventually("only init is left", || (members(&c.id).len() == 1).then_some(()));
    idle_again(&c, before);
    assert!(files(&c).is_empty(), "{:?}", files(&c));
    assert_eq!(sh(&c, "exit 3", 0).await.exit_code, 3);
    // One that is being killed takes no more.
    fake.hang("kill");
    stop(&c, 0).await;
    wait(&c).await;
    assert!(refused(&["/bin/true"]).contains("not running"));
    delete(&c).await;
}

#[tokio::test]
async fn more_than_the_limit_are_refused_until_one_goes() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let mut running: Vec<_> = (0..64).map(|_| exec(&c, &SLEEP)).collect();
    let conn = prepare(&c, ["0", "0", "0"], &["/bin/true"]);
    let text = go(&conn, &["GO"]).unwrap_err();
    assert!(text.contains("64 commands"), "{text}");
    // Those that are waited for are counted apart.
    assert_eq!(sh(&c, "exit 3", 0).await.exit_code, 3);
    // One whose stream has gone does not count, though it runs on.
    drop(running.pop());
    let conn = eventually("there is room", || {
        let conn = prepare(&c, ["0", "0", "0"], &["/bin/busybox", "true"]);
        go(&conn, &["GO"]).ok().map(|_| conn)
    });
    assert_eq!(exit(&conn), Some(0));
    assert_eq!(members(&c.id).len(), 65);
    delete(&c).await;
    for (conn, _) in &running {
        assert_eq!(exit(conn), Some(137));
    }
}

#[tokio::test]
async fn one_that_is_left_alone_runs_on_and_is_reaped() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let before = idle_descriptors(&c);
    // Its stdin closes: that tells it.
    let (conn, streams) = exec(&c, &["/bin/sh", "-c", "cat; echo closed > /tmp/told; sleep 0.2"]);
    drop((conn, streams));
    let told = c.dir.join("bundle/rootfs/tmp/told");
    eventually("it is told", || told.exists().then_some(()));
    eventually("it is reaped", || files(&c).is_empty().then_some(()));
    // One that does not heed it goes on.
    let (conn, streams) = exec(&c, &SLEEP);
    drop((conn, streams));
    // One that the client did not wait for at all.
    let conn = prepare(&c, ["1", "1", "1"], &["/bin/busybox", "cat"]);
    conn.send(&["GO"], &[]).unwrap();
    drop(conn);
    eventually("only the sleeper is left", || (members(&c.id).len() == 2).then_some(()));
    eventually("its file, too", || (files(&c).len() == 1).then_some(()));
    idle_again(&c, before);
    delete(&c).await;
}

#[tokio::test]
async fn a_terminal_has_its_size_and_hangs_up() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let before = idle_descriptors(&c);
    let script = "trap 'stty size' WINCH; stty size; stty -echo; echo ready; \
                  while :; do read line; test \"$line\" = quit && exit 5; done";
    let conn = prepare_tty(&c, &["/bin/sh", "-c", script]);
    let mut streams = go(&conn, &["GO", "33", "77"]).unwrap();
    assert_eq!(streams.keys().collect::<Vec<_>>(), ["tty"]);
    let mut tty = streams.remove("tty").unwrap();
    assert!(read_until(&mut tty, "ready\r\n").starts_with("33 77\r\n"));
    // The monitor has no part in it any more.
    idle_again(&c, before + 1);
    sys::tty::resize(&tty, Size { rows: 40, columns: 100 }).unwrap();
    write_all(&mut tty, b"x\n");
    read_until(&mut tty, "40 100\r\n");
    write_all(&mut tty, b"quit\n");
    assert_eq!(read_all(&mut tty), "");
    assert_eq!(exit(&conn), Some(5));

    // Without a size.
    let conn = prepare_tty(&c, &["/bin/busybox", "true"]);
    let mut streams = go(&conn, &["GO"]).unwrap();
    assert_eq!(read_all(streams.get_mut("tty").unwrap()), "");
    assert_eq!(exit(&conn), Some(0));

    let script = "trap 'echo hup > /tmp/hup; exit 1' HUP; echo ready; while :; do sleep 0.05; done";
    let conn = prepare_tty(&c, &["/bin/sh", "-c", script]);
    let mut streams = go(&conn, &["GO", "1", "1"]).unwrap();
    read_until(streams.get_mut("tty").unwrap(), "ready");
    drop((conn, streams));
    let hup = c.dir.join("bundle/rootfs/tmp/hup");
    eventually("it is hung up", || hup.exists().then_some(()));
    // One whose client is gone before the terminal is there.
    let conn = prepare_tty(&c, &SLEEP);
    conn.send(&["GO"], &[]).unwrap();
    drop(conn);
    eventually("nothing is left", || {
        (files(&c).is_empty() && members(&c.id).len() == 1).then_some(())
    });
    idle_again(&c, before);
    delete(&c).await;
}

#[tokio::test]
async fn a_runtime_that_never_sends_the_terminal_holds_nobody_up() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    let c = Container::new(&keeper, "sleep 1000", &fake.options());
    start(&c).await;
    fake.hang("exec");
    let conn = prepare_tty(&c, &SLEEP);
    conn.send(&["GO"], &[]).unwrap();
    meanwhile("it hangs", || !fake.running("exec").is_empty()).await;
    // It has connected and says nothing; another sends what is no terminal.
    let console = files(&c).into_iter().find(|f| f.ends_with(".console")).unwrap();
    let stream = std::os::unix::net::UnixStream::connect(c.dir.join(console)).unwrap();
    assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
    fake.heal("exec");
    assert_eq!(sh(&c, "exit 6", 0).await.exit_code, 6);
    (&stream).write_all(b"no terminal").unwrap();
    assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
    stop(&c, 0).await;
    let refused = conn.recv().unwrap().unwrap().fields;
    assert!(refused[0] == "ERR" && refused[1].contains("not running"), "{refused:?}");
    assert_eq!(code(&wait(&c).await), (137, 9, false));
    eventually("the runtime is gone", || fake.running("exec").is_empty().then_some(()));
    assert!(files(&c).is_empty(), "{:?}", files(&c));
    delete(&c).await;
}

#[tokio::test]
async fn they_end_with_the_container() {
    let keeper = Keeper::default();
    for host_pid in [false, true] {
        let options = Options { host_pid, ..Options::default() };
        let c = Container::new(&keeper, "exec sleep 1000", &options);
        start(&c).await;
        let script = "trap '' TERM HUP; sleep 1000 & sleep 1000; sleep 1000";
        let (piped, streams) = exec(&c, &["/bin/sh", "-c", script]);
        let terminal = prepare_tty(&c, &["/bin/sh", "-c", &format!("echo up; {script}")]);
        let mut with_terminal = go(&terminal, &["GO"]).unwrap();
        read_until(with_terminal.get_mut("tty").unwrap(), "up");
        let (left, left_streams) = exec(&c, &["/bin/sh", "-c", script]);
        drop((left, left_streams));
        stop(&c, 0).await;
        assert_eq!((exit(&piped), exit(&terminal)), (Some(137), Some(137)));
        assert_eq!(code(&wait(&c).await), (137, 9, false));
        eventually("none is left", || members(&c.id).is_empty().then_some(()));
        eventually("nor a file", || files(&c).is_empty().then_some(()));
        drop(streams);
        delete(&c).await;
    }
}

#[tokio::test]
async fn a_dead_monitor_ends_them_and_the_next_one_serves() {
    let keeper = Keeper::default();
    let mut c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    for delay in [0, 20, 50, 300] {
        let prepared = prepare(&c, ["1", "1", "1"], &["/bin/true"]);
        let piped = prepare(&c, ["1", "1", "1"], &["/bin/sh", "-c", "sleep 1000 & sleep 1000"]);
        let terminal = prepare_tty(&c, &SLEEP);
        piped.send(&["GO"], &[]).unwrap();
        terminal.send(&["GO", "24", "80"], &[]).unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        c.kill_monitor();
        for conn in [&piped, &terminal] {
            let mut said = conn.recv();
            if matches!(&said, Ok(Some(message)) if message.fields[0] == "OK") {
                said = conn.recv();
            }
            let reset = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionReset;
            assert!(said.as_ref().map_or_else(reset, Option::is_none), "{delay}: {said:?}");
        }
        assert!(prepared.send(&["GO"], &[]).is_err(), "a successor knows nothing of it");
        c.fork();
        assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
        eventually("only init is left", || (members(&c.id).len() == 1).then_some(()));
        assert!(files(&c).is_empty(), "{delay}: {:?}", files(&c));
        let (conn, mut streams) = exec(&c, &["/bin/sh", "-c", "echo again; exit 2"]);
        assert_eq!(read_all(streams.get_mut("stdout").unwrap()), "again\n");
        assert_eq!(exit(&conn), Some(2));
    }
    delete(&c).await;
}

#[tokio::test]
async fn crun_hands_streams_over_as_well() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "exec sleep 1000", &crun(&keeper));
    start(&c).await;
    let before = idle_descriptors(&c);
    let (conn, mut streams) = exec(&c, &["/bin/sh", "-c", "cat; echo err >&2; exit 7"]);
    let mut stdin = streams.remove("stdin").unwrap();
    write_all(&mut stdin, b"hello\n");
    drop(stdin);
    assert_eq!(read_all(streams.get_mut("stdout").unwrap()), "hello\n");
    assert_eq!(read_all(streams.get_mut("stderr").unwrap()), "err\n");
    assert_eq!(exit(&conn), Some(7));
    // It may start the command before the terminal has its size.
    let script = "until test \"$(stty size)\" = '33 77'; do sleep 0.02; done; \
                  echo sized; read line; echo got $line; exit 8";
    let conn = prepare_tty(&c, &["/bin/sh", "-c", script]);
    let mut tty = go(&conn, &["GO", "33", "77"]).unwrap().remove("tty").unwrap();
    read_until(&mut tty, "sized\r\n");
    write_all(&mut tty, b"x\n");
    assert!(read_all(&mut tty).ends_with("got x\r\n"));
    assert_eq!(exit(&conn), Some(8));
    for conn in [prepare(&c, ["0", "1", "1"], &["/bin/nope"]), prepare_tty(&c, &["/bin/nope"])] {
        let text = go(&conn, &["GO"]).unwrap_err();
        assert!(text.contains("/bin/nope"), "{text}");
    }
    let (conn, streams) = exec(&c, &SLEEP);
    idle_again(&c, before + 1);
    assert_eq!(files(&c).len(), 1);
    stop(&c, 0).await;
    assert_eq!(exit(&conn), Some(137));
    drop(streams);
    wait(&c).await;
    delete(&c).await;
}

#[tokio::test]
async fn garbage_and_crowds_hurt_nobody() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let before = idle_descriptors(&c);
    let good = prepare(&c, ["0", "1", "0"], &["/bin/sh", "-c", "echo good"]);
    for words in [
        &["EXEC", "0", "1", "1", "1"][..],
        &["EXEC", "0", "1", "1", "x"],
        &["GO"],
        &["SIZE", "1", "2"],
        &["", ""],
        &["\u{1f980}"],
    ] {
        let conn = connect(&c);
        conn.send(words, &[]).unwrap();
        let answer = conn.recv().unwrap().unwrap().fields;
        assert_eq!(answer, ["ERR", "no such request"], "{words:?}");
        assert!(conn.recv().unwrap().is_none());
    }
    for words in [&["GO", "1"][..], &["GO", "1", "-1"], &["GO", "1", "65536"], &["EOF"]] {
        let conn = prepare(&c, ["0", "0", "0"], &["/bin/true"]);
        assert_eq!(go(&conn, words).unwrap_err(), "no such request");
    }
    // Bytes that are no message, and none at all.
    for bytes in [&b"no end"[..], b"\xff\xfe\0", b"\0", b"", &[b'x'; 100_000]] {
        let conn = connect(&c);
        nix::unistd::write(&conn, bytes).unwrap();
        let gone = conn.recv();
        assert!(gone.is_err() || gone.unwrap().is_none_or(|m| m.fields[0] == "ERR"));
    }
    // Many descriptors that nobody has asked for.
    let conn = connect(&c);
    let file = memfd(b"{}");
    conn.send(&["EXEC", "0", "0", "0", "0"], &[file.as_fd(); 8]).unwrap();
    assert!(go(&conn, &["GO"]).is_err());
    // What a command's carrier should not say.
    let (conn, mut streams) = exec(&c, &["/bin/busybox", "cat"]);
    for _ in 0..50 {
        conn.send(&["SIZE", "1", "2"], &[file.as_fd(); 8]).unwrap();
        conn.send(&["EXEC", "0", "0", "0", "0"], &[file.as_fd()]).unwrap();
    }
    drop(streams.remove("stdin"));
    assert_eq!(exit(&conn), Some(0));
    // Prepared ones wait, and the oldest make room for new ones.
    assert_eq!(read_all(go(&good, &["GO"]).unwrap().get_mut("stdout").unwrap()), "good\n");
    let oldest = prepare(&c, ["0", "0", "0"], &["/bin/true"]);
    let crowd: Vec<_> = (0..200).map(|_| connect(&c)).collect();
    assert!(oldest.recv().map_or(true, |m| m.is_none()), "it had to go");
    assert!(descriptors(&c) <= before + 70, "{} of {before}", descriptors(&c));
    let (conn, _streams) = exec(&c, &["/bin/sh", "-c", "exit 4"]);
    assert_eq!(exit(&conn), Some(4));
    drop(crowd);
    idle_again(&c, before);
    delete(&c).await;
}
