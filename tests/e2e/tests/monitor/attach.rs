//! Clients that are attached to a container's own streams.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options};
use sys::seqpacket::Conn;

use super::sessions::*;
use super::*;

/// An attached client with these of stdin, stdout and stderr.
pub(super) fn attach(
    c: &Container<'_>,
    wanted: [&str; 3],
    words: &[&str],
) -> Result<(Conn, Streams), String> {
    let conn = connect(c);
    conn.send(&["ATTACH", wanted[0], wanted[1], wanted[2]], &[]).unwrap();
    let streams = go(&conn, words)?;
    Ok((conn, streams))
}

pub(super) fn client(c: &Container<'_>) -> (Conn, Streams) {
    attach(c, ["1", "1", "1"], &["GO"]).unwrap()
}

pub(super) fn with_stdin<'a>(
    keeper: &'a Keeper,
    script: &str,
    terminal: bool,
    once: bool,
) -> Container<'a> {
    let options = Options { terminal, ..Options::default() };
    Container::with(keeper, script, &options, |config| {
        config.stdin = true;
        config.stdin_once = once;
    })
}

fn names(streams: &Streams) -> Vec<&str> {
    streams.keys().map(String::as_str).collect()
}

/// Takes a stream out.
fn take(streams: &mut Streams, name: &str) -> File {
    streams.remove(name).unwrap()
}

/// Of a hundred kilobytes each: more than waits for a client in its pipe and in memory.
const ROUNDS: usize = 60;

#[tokio::test]
async fn a_stuck_client_is_cut_off_and_nobody_else_notices() {
    let keeper = Keeper::default();
    let script = "echo early; while read word; do test $word = quit && exit 3; \
                  i=0; while [ $i -lt 2000 ]; do i=$((i+1)); \
                  echo $word $i 0123456789012345678901234567890123456789; done; \
                  echo err $word >&2; echo end $word; done; exit 9";
    let c = with_stdin(&keeper, script, false, false);
    start(&c).await;
    says(&c, "early");
    let idle = idle_descriptors(&c);
    let (first, mut one) = client(&c);
    let (second, mut two) = attach(&c, ["0", "1", "0"], &["GO"]).unwrap();
    let (stuck, _held) = attach(&c, ["0", "1", "1"], &["GO"]).unwrap();
    // One that has closed what it asked for is not slow, but sees nothing.
    let (deaf, _) = attach(&c, ["0", "1", "1"], &["GO"]).unwrap();
    assert_eq!((names(&one), names(&two)), (vec!["stderr", "stdin", "stdout"], vec!["stdout"]));
    let mut stdin = take(&mut one, "stdin");
    let (mut out, mut err) = (take(&mut one, "stdout"), take(&mut one, "stderr"));
    let mut other = take(&mut two, "stdout");
    let mut told = String::new();
    // Each round waits for those who read, so that nobody but the stuck one can be slow.
    for n in 0..ROUNDS {
        write_all(&mut stdin, format!("{n}\n").as_bytes());
        let end = format!("end {n}\n");
        let round = read_until(&mut out, &end);
        assert_eq!(read_until(&mut other, &end), round);
        told += &round;
    }
    let said = stuck.recv().unwrap().unwrap().fields;
    assert_eq!(said[0], "SLOW");
    assert!(said[1].contains("not taken"), "{said:?}");
    assert!(stuck.recv().unwrap().is_none());
    // An EOF closes nothing here, nor does the end of a client.
    first.send(&["EOF"], &[]).unwrap();
    first.send(&["SIZE", "1", "2"], &[]).unwrap();
    first.send(&["LATER", "WORD"], &[]).unwrap();
    drop(stdin);
    let (third, mut three) = client(&c);
    write_all(&mut take(&mut three, "stdin"), b"quit\n");
    assert_eq!((read_all(&mut out), read_all(&mut other)), (String::new(), String::new()));
    for conn in [&first, &second, &third, &deaf] {
        assert_eq!(exit(conn), Some(3));
    }
    let errors: String = (0..ROUNDS).map(|n| format!("err {n}\n")).collect();
    assert_eq!(read_all(&mut err), errors);
    assert_eq!(code(&wait(&c).await), (3, 0, false));
    let mut logged = c.texts("stdout");
    assert_eq!(logged.remove(0), "early");
    assert_eq!(logged, told.lines().collect::<Vec<_>>());
    assert_eq!(told.lines().count(), ROUNDS * 2001);
    // Its output, stderr and init are gone, too.
    eventually("no descriptor is left", || (descriptors(&c) < idle).then_some(()));
    delete(&c).await;
}

#[tokio::test]
async fn stdin_that_is_closed_once() {
    let keeper = Keeper::default();
    let script = "cat; echo closed; exit 4";
    for how in ["EOF", "hang-up", "death", "death after EOF"] {
        let mut c = with_stdin(&keeper, script, false, true);
        start(&c).await;
        let (watcher, mut watched) = attach(&c, ["0", "1", "1"], &["GO"]).unwrap();
        let (first, mut streams) = client(&c);
        // There is one that it belongs to.
        let (second, others) = client(&c);
        assert_eq!(names(&others), ["stderr", "stdout"]);
        second.send(&["EOF"], &[]).unwrap();
        drop(second);
        let mut out = take(&mut watched, "stdout");
        write_all(streams.get_mut("stdin").unwrap(), b"hello\n");
        assert_eq!(read_until(&mut out, "\n"), "hello\n");
        match how {
            "EOF" => {
                drop(take(&mut streams, "stdin"));
                first.send(&["EOF"], &[]).unwrap();
                assert_eq!(read_all(take(&mut streams, "stdout").by_ref()), "hello\nclosed\n");
                assert_eq!(exit(&first), Some(4));
            }
            "hang-up" => drop((first, streams)),
            "death" => {
                c.kill_monitor();
                assert_eq!(exit(&first), None);
                drop((first, streams));
                c.fork();
            }
            _ => {
                // A command holds the pipe's other end no longer than the container does.
                first.send(&["EOF"], &[]).unwrap();
                eventually("the keeper has let go", || {
                    let held = keeper.connect().call(&["GET", &c.id], &[]).unwrap().fields;
                    (!held.contains(&"stdin".into())).then_some(())
                });
                c.kill_monitor();
                c.fork();
                state(&c).await;
                assert_eq!(names(&client(&c).1), ["stderr", "stdout"]);
                drop((first, streams));
            }
        }
        if !how.starts_with("death") {
            assert_eq!(read_all(&mut out), "closed\n");
            assert_eq!(exit(&watcher), Some(4));
        }
        assert_eq!(code(&wait(&c).await), (4, 0, false), "{how}");
        assert_eq!(c.texts("stdout"), ["hello", "closed"], "{how}");
        delete(&c).await;
    }
}

#[tokio::test]
async fn a_keeper_that_was_stuck_hears_of_the_closed_stdin() {
    let keeper = Keeper::default();
    let c = with_stdin(&keeper, "cat; exit 4", false, true);
    start(&c).await;
    let (first, streams) = client(&c);
    let pid = keeper.pid();
    assert!(pid > 1);
    sys::proc::signal(pid, nix::sys::signal::Signal::SIGSTOP);
    drop((first, streams));
    eventually("it is written down", || {
        let state = std::fs::read(c.dir.join("state")).unwrap();
        let state = <StateResponse as protobuf::Message>::parse_from_bytes(&state).unwrap();
        (state.stdin_taken && state.pipes[2] == 0).then_some(())
    });
    sys::proc::signal(pid, nix::sys::signal::Signal::SIGCONT);
    assert_eq!(code(&wait(&c).await), (4, 0, false));
    delete(&c).await;
}

#[tokio::test]
async fn a_terminal_in_and_out() {
    let keeper = Keeper::default();
    let script = "trap 'stty size' WINCH; stty -echo; echo ready; while :; do read -r line; \
                  case $line in quit) exit 6;; ?*) echo got $line;; esac; done";
    let mut c = with_stdin(&keeper, script, true, true);
    start(&c).await;
    says(&c, "ready\r");
    let idle = idle_descriptors(&c);
    for life in 0..2 {
        let (first, mut one) = attach(&c, ["1", "1", "1"], &["GO", "30", "90"]).unwrap();
        let (second, mut two) = client(&c);
        assert_eq!((names(&one), names(&two)), (vec!["stdin", "stdout"], vec!["stdin", "stdout"]));
        let (mut out, mut other) = (take(&mut one, "stdout"), take(&mut two, "stdout"));
        first.send(&["SIZE", "31", "91"], &[]).unwrap();
        read_until(&mut other, "31 91\r\n");
        read_until(&mut out, "31 91\r\n");
        first.send(&["SIZE", "31"], &[]).unwrap();
        first.send(&["SIZE", "-1", "x"], &[]).unwrap();
        write_all(one.get_mut("stdin").unwrap(), b"one\n");
        read_until(&mut other, "got one\r\n");
        write_all(two.get_mut("stdin").unwrap(), b"two\n");
        read_until(&mut out, "got two\r\n");
        // What was typed before it went arrives, and its end closes nothing.
        write_all(one.get_mut("stdin").unwrap(), format!("last {life}\n").as_bytes());
        first.send(&["EOF"], &[]).unwrap();
        drop((first, one, out));
        read_until(&mut other, &format!("got last {life}\r\n"));
        if life == 0 {
            c.kill_monitor();
            assert_eq!(exit(&second), None);
            c.fork();
            state(&c).await;
        } else {
            write_all(two.get_mut("stdin").unwrap(), b"quit\n");
            assert_eq!(read_all(&mut other), "");
            assert_eq!(exit(&second), Some(6));
        }
    }
    assert_eq!(code(&wait(&c).await), (6, 0, false));
    assert!(descriptors(&c) < idle);
    delete(&c).await;
}

#[tokio::test]
async fn more_is_typed_than_the_terminal_takes() {
    let keeper = Keeper::default();
    let script = "stty raw -echo; echo ready; while ! test -e /tmp/go; do sleep 0.02; done; \
                  head -c 1000000 | md5sum; exit 7";
    let c = with_stdin(&keeper, script, true, false);
    start(&c).await;
    says(&c, "ready");
    let (conn, mut streams) = client(&c);
    let mut stdin = take(&mut streams, "stdin");
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 253) as u8).collect();
    let sum = std::process::Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut sum = sum.unwrap();
    io::Write::write_all(&mut sum.stdin.take().unwrap(), &bytes).unwrap();
    let want = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    // Nobody reads: after a while no more is taken, and the monitor does not turn round and round.
    let mut sent = 0;
    let mut idle = 0;
    while idle < 20 {
        match io::Write::write(&mut stdin, &bytes[sent..]) {
            Ok(n) => (sent, idle) = (sent + n, 0),
            Err(_) => idle += 1,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(sent > 0 && sent < bytes.len(), "{sent}");
    let ticks = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let words: Vec<_> = stat.split_whitespace().map(str::to_owned).collect();
        words[13].parse::<u64>().unwrap() + words[14].parse::<u64>().unwrap()
    };
    let before = ticks(c.monitor);
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks(c.monitor) - before < 25, "it is busy");
    assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
    std::fs::write(c.dir.join("bundle/rootfs/tmp/go"), "").unwrap();
    write_all(&mut stdin, &bytes[sent..]);
    let said = read_all(&mut take(&mut streams, "stdout"));
    assert_eq!(said.trim_end(), want.trim_end());
    assert_eq!(exit(&conn), Some(7));
    delete(&c).await;
}

#[tokio::test]
async fn attached_before_the_start() {
    let keeper = Keeper::default();
    for terminal in [false, true] {
        let script = "echo first; read line; echo $line; exit 8";
        let mut c = with_stdin(&keeper, script, terminal, false);
        create(&c).await.unwrap();
        if terminal {
            c.kill_monitor();
            c.fork();
            state(&c).await;
        }
        let (conn, mut streams) = attach(&c, ["1", "1", "1"], &["GO", "10", "20"]).unwrap();
        c.client().await.start(ctx(), &StartRequest::new()).await.unwrap();
        let mut out = take(&mut streams, "stdout");
        let mut said = read_until(&mut out, "first");
        write_all(streams.get_mut("stdin").unwrap(), b"line\n");
        said += &read_all(&mut out);
        if terminal {
            assert!(said.starts_with("first\r\n") && said.ends_with("line\r\n"), "{said:?}");
        } else {
            assert_eq!(said, "first\nline\n");
        }
        assert_eq!(exit(&conn), Some(8));
        delete(&c).await;
    }
    // It never starts.
    let c = with_stdin(&keeper, "true", false, false);
    create(&c).await.unwrap();
    let (conn, mut streams) = client(&c);
    delete(&c).await;
    assert_eq!(read_all(&mut take(&mut streams, "stdout")), "");
    assert_eq!(exit(&conn), Some(137));
}

#[tokio::test]
async fn after_the_death_of_the_monitor() {
    let keeper = Keeper::default();
    let script = "while read line; do echo $line; done; exit 9";
    let mut c = with_stdin(&keeper, script, false, false);
    start(&c).await;
    for n in 0..3 {
        let (conn, mut streams) = client(&c);
        let mut stdin = take(&mut streams, "stdin");
        write_all(&mut stdin, format!("a {n}\n").as_bytes());
        read_until(streams.get_mut("stdout").unwrap(), &format!("a {n}\n"));
        c.kill_monitor();
        assert_eq!(exit(&conn), None);
        assert_eq!(read_all(streams.get_mut("stdout").unwrap()), "");
        // The pipe is the container's own, and goes on.
        write_all(&mut stdin, format!("b {n}\n").as_bytes());
        c.fork();
        says(&c, &format!("b {n}"));
    }
    let want: Vec<_> = (0..3).flat_map(|n| [format!("a {n}"), format!("b {n}")]).collect();
    assert_eq!(c.texts("stdout"), want);
    delete(&c).await;
}

#[tokio::test]
async fn what_cannot_be_attached_to_says_why() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    assert_eq!(phase(&state(&c).await), Phase::PHASE_NEW);
    let refused = || attach(&c, ["1", "1", "1"], &["GO"]).unwrap_err();
    assert!(refused().contains("not running"));
    start(&c).await;
    let idle = idle_descriptors(&c);
    let memory = c.anonymous();
    assert_eq!(names(&client(&c).1), ["stderr", "stdout"], "it has no stdin");
    assert!(attach(&c, ["0", "0", "0"], &["GO"]).unwrap().1.is_empty());
    for words in [&["ATTACH", "1", "1"][..], &["ATTACH", "1", "1", "2"], &["ATTACH"]] {
        let conn = connect(&c);
        conn.send(words, &[]).unwrap();
        assert_eq!(conn.recv().unwrap().unwrap().fields, ["ERR", "no such request"]);
    }
    idle_again(&c, idle);
    let crowd: Vec<_> = (0..64).map(|_| client(&c)).collect();
    assert!(refused().contains("64 clients"));
    assert_eq!(sh(&c, "echo out >/proc/1/fd/1; exit 2", 0).await.exit_code, 2);
    for (_, mut streams) in crowd {
        read_until(streams.get_mut("stdout").unwrap(), "out\n");
    }
    idle_again(&c, idle);
    assert!(c.anonymous() <= memory + 48, "{} kB, and {memory} before", c.anonymous());
    stop(&c, 0).await;
    wait(&c).await;
    assert!(refused().contains("not running"));
    delete(&c).await;
}
