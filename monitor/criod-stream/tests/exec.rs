//! Exec over SPDY: pipes, terminals, exit codes, half-close, and clients that misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use common::client::{Exec, Session, Spdy};
use common::{PATIENCE, Stream, broken, noise, peers, recv};
use nix::pty::openpty;
use sys::tty::Size;

#[test]
fn both_outputs_arrive_and_the_exit_code() {
    let mut s = Session::begin("exec", "0011");
    let [stdout, stderr] = s.pipes(["stdout", "stderr"]);
    let (mut stdout, mut stderr) = (File::from(stdout), File::from(stderr));
    stdout.write_all(b"out\n").unwrap();
    s.client.expect(s.client.stdout, b"out\n");
    stderr.write_all(b"err\n").unwrap();
    s.client.expect(s.client.stderr, b"err\n");
    stdout.write_all(b"last words").unwrap();
    s.monitor.send(&["EXIT", "3"], &[]).unwrap();
    drop((stdout, stderr));
    let status = s.client.status();
    assert!(status.contains("NonZeroExitCode") && status.contains("\"3\""), "{status}");
    assert_eq!(s.client.spdy.text(s.client.stdout), "out\nlast words");
    assert_eq!(s.client.spdy.text(s.client.stderr), "err\n");
    // Not ours any more: the monitor sees that.
    assert!(s.monitor.recv().unwrap().is_none());
    s.end();
}

#[test]
fn success_is_told_as_success() {
    let mut s = Session::begin("exec", "0010");
    let [stdout] = s.pipes(["stdout"]);
    drop(stdout);
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    let status = s.client.status();
    assert!(status.contains("\"Success\""), "{status}");
    s.end();
}

#[test]
fn what_the_monitor_cannot_do_is_told() {
    let mut s = Session::begin("exec", "0010");
    s.monitor.send(&["ERR", "no such file: /bin/nothing"], &[]).unwrap();
    let status = s.client.status();
    assert!(
        status.contains("no such file: /bin/nothing") && status.contains("Failure"),
        "{status}"
    );
    s.end();
}

#[test]
fn a_monitor_that_dies_ends_the_session_with_an_error() {
    let mut s = Session::begin("exec", "0010");
    let [stdout] = s.pipes(["stdout"]);
    File::from(stdout.try_clone().unwrap()).write_all(b"before").unwrap();
    s.monitor = peers().0;
    let status = s.client.status();
    assert!(status.contains("monitor") && status.contains("Failure"), "{status}");
    assert_eq!(s.client.spdy.text(s.client.stdout), "before");
    s.end();
}

#[test]
fn input_arrives_and_its_end_closes_the_pipe() {
    let mut s = Session::begin("exec", "0111");
    let [stdin, stdout, _stderr] = s.pipes(["stdin", "stdout", "stderr"]);
    s.client.spdy.send(s.client.stdin, b"hello");
    let mut stdin = File::from(stdin);
    let mut got = [0; 5];
    stdin.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    s.client.spdy.send(s.client.stdin, b" and goodbye");
    s.client.spdy.close(s.client.stdin);
    let mut rest = String::new();
    stdin.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, " and goodbye");
    // The other direction goes on.
    File::from(stdout).write_all(b"still here").unwrap();
    s.client.expect(s.client.stdout, b"still here");
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    s.end();
}

#[test]
fn whatever_goes_in_comes_out_byte_for_byte() {
    let mut s = Session::begin("exec", "0110");
    let [stdin, stdout] = s.pipes(["stdin", "stdout"]);
    let mut cat =
        Command::new("cat").stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).spawn().unwrap();
    let bytes = noise(20 * 1024 * 1024);
    s.client.spdy.send(s.client.stdin, &bytes);
    s.client.spdy.close(s.client.stdin);
    s.client.expect(s.client.stdout, &bytes);
    assert!(cat.wait().unwrap().success());
    let spare = Stream::idle();
    spare.settle();
    let private = s.stream.private_memory();
    assert!(private <= 2 << 20, "{private}");
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    s.end();
}

#[test]
fn a_command_that_reads_nothing_holds_the_client_back_not_the_process() {
    let mut s = Session::begin("exec", "0110");
    let [stdin, stdout] = s.pipes(["stdin", "stdout"]);
    let bytes = noise(64 * 1024 * 1024);
    let mut from = 0;
    // As much as goes: until nothing has moved for a while.
    let mut quiet = 0;
    while quiet < 200 {
        from += s.client.spdy.conn.send(s.client.stdin, &bytes[from..]);
        if s.client.spdy.pump() {
            quiet = 0;
        } else {
            quiet += 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    assert!(from < bytes.len());
    assert!(s.stream.private_memory() < 8 << 20, "{}", s.stream.private_memory());
    // Output still comes, and the exit.
    File::from(stdout).write_all(b"not reading").unwrap();
    s.client.expect(s.client.stdout, b"not reading");
    drop(stdin);
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    s.end();
}

#[test]
fn a_command_that_closes_its_stdin_goes_on() {
    let mut s = Session::begin("exec", "0110");
    let [stdin, stdout] = s.pipes(["stdin", "stdout"]);
    drop(stdin);
    s.client.spdy.send(s.client.stdin, &noise(4 * 1024 * 1024));
    File::from(stdout).write_all(b"fine").unwrap();
    s.client.expect(s.client.stdout, b"fine");
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    s.end();
}

#[test]
fn a_client_that_reads_nothing_holds_the_command_back() {
    let mut s = Session::begin("exec", "0010");
    let [stdout] = s.pipes(["stdout"]);
    sys::pipe::set_nonblocking(stdout.as_fd()).unwrap();
    let mut stdout = File::from(stdout);
    let chunk = noise(65536);
    let (mut written, mut quiet) = (0_usize, 0);
    while quiet < 200 {
        match stdout.write(&chunk) {
            Ok(n) => {
                written += n;
                quiet = 0;
            }
            Err(_) => {
                quiet += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        assert!(written < 256 << 20);
    }
    assert!(s.stream.private_memory() < 8 << 20, "{}", s.stream.private_memory());
    // It reads at last, and nothing is missing.
    let stdout_stream = s.client.stdout;
    s.client.spdy.until("all output", |c| c.on(stdout_stream).len() == written);
    for (i, piece) in s.client.spdy.on(stdout_stream).chunks(chunk.len()).enumerate() {
        assert!(piece.iter().all(|b| chunk.contains(b)), "{i}");
    }
    drop(stdout);
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    s.end();
}

#[test]
fn what_lives_on_after_the_command_does_not_hold_the_session() {
    let mut s = Session::begin("exec", "0111");
    let [_stdin, stdout, stderr] = s.pipes(["stdin", "stdout", "stderr"]);
    File::from(stdout.try_clone().unwrap()).write_all(b"all there is").unwrap();
    // Both write ends stay open, as with a daemon that was left behind.
    s.monitor.send(&["EXIT", "7"], &[]).unwrap();
    let status = s.client.status();
    assert!(status.contains("\"7\""), "{status}");
    assert_eq!(s.client.spdy.text(s.client.stdout), "all there is");
    drop((stdout, stderr));
    s.end();
}

#[test]
fn one_that_goes_on_writing_does_not_hold_it_either() {
    let mut s = Session::begin("exec", "0010");
    let [stdout] = s.pipes(["stdout"]);
    let mut yes = Command::new("yes").stdout(Stdio::from(stdout)).spawn().unwrap();
    let out = s.client.stdout;
    s.client.spdy.until("output", |c| c.on(out).len() > 1 << 20);
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    // Its pipe is gone.
    assert!(!yes.wait().unwrap().success());
    s.end();
}

#[test]
fn a_client_that_throws_output_away_holds_nobody() {
    let mut s = Session::begin("exec", "0011");
    let [stdout, stderr] = s.pipes(["stdout", "stderr"]);
    let mut yes = Command::new("yes").stdout(Stdio::from(stdout)).spawn().unwrap();
    let out = s.client.stdout;
    s.client.spdy.until("output", |c| c.on(out).len() > 1 << 20);
    s.client.spdy.conn.reset(out, stream::spdy::Status::Cancel);
    s.client.spdy.flush();
    // The other stream, criod and the monitor are still heard.
    File::from(stderr).write_all(b"err").unwrap();
    s.client.expect(s.client.stderr, b"err");
    s.stream.say(&["PING"], &[]);
    assert_eq!(s.stream.hear(), ["BUSY"]);
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    assert!(!yes.wait().unwrap().success());
    s.end();
}

#[test]
fn one_busy_output_does_not_hold_up_the_other() {
    let mut s = Session::begin("exec", "0011");
    let [stdout, stderr] = s.pipes(["stdout", "stderr"]);
    let mut yes =
        [stdout, stderr].map(|pipe| Command::new("yes").stdout(Stdio::from(pipe)).spawn().unwrap());
    let (out, err) = (s.client.stdout, s.client.stderr);
    s.client.spdy.until("both", |c| c.on(out).len() > 1 << 20 && c.on(err).len() > 1 << 20);
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    yes.iter_mut().for_each(|yes| assert!(!yes.wait().unwrap().success()));
    s.end();
}

#[test]
fn pipes_that_nobody_asked_for_are_closed() {
    let mut s = Session::begin("exec", "0010");
    let [stdin, stdout, stderr] = s.pipes(["stdin", "stdout", "stderr"]);
    assert_eq!(File::from(stdin).read(&mut [0]).unwrap(), 0);
    drop(stdout);
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    broken(stderr);
    s.end();
}

#[test]
fn when_the_client_goes_away_everything_is_closed() {
    let s = Session::begin("exec", "0110");
    let [stdin, stdout] = s.pipes(["stdin", "stdout"]);
    let Session { client, monitor, mut stream } = s;
    drop(client);
    let mut rest = Vec::new();
    File::from(stdin).read_to_end(&mut rest).unwrap();
    assert!(monitor.recv().unwrap().is_none());
    assert!(stream.wait().success());
    broken(stdout);
}

#[test]
fn it_notices_that_also_while_stdin_is_blocked() {
    let mut s = Session::begin("exec", "0110");
    let [_stdin, _stdout] = s.pipes(["stdin", "stdout"]);
    let bytes = noise(65536);
    let mut quiet = 0;
    while quiet < 100 {
        s.client.spdy.conn.send(s.client.stdin, &bytes);
        if s.client.spdy.pump() {
            quiet = 0;
        } else {
            quiet += 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    s.end();
}

#[test]
fn a_terminal_is_typed_at_resized_and_hung_up() {
    let mut s = Session::begin("exec", "1110");
    s.client.spdy.send(s.client.resize, b"{\"Width\":132,\"Height\":43}\n");
    let pty = openpty(None, None).unwrap();
    s.monitor.send(&["OK", "tty"], &[pty.master.as_fd()]).unwrap();
    drop(pty.master);
    let slave = pty.slave;
    let size = || sys::tty::size(slave.as_fd()).unwrap();
    s.client.spdy.until("the size", |_| size() == Size { rows: 43, columns: 132 });
    s.client.spdy.send(s.client.resize, b"{\"Width\":80,\"Height\":24}");
    s.client.spdy.until("the next size", |_| size() == Size { rows: 24, columns: 80 });
    s.client.spdy.send(s.client.stdin, b"ls\n");
    let mut line = [0; 3];
    File::from(slave.try_clone().unwrap()).read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ls\n");
    // The echo, and output.
    File::from(slave.try_clone().unwrap()).write_all(b"file\n").unwrap();
    s.client.expect(s.client.stdout, b"ls\r\nfile\r\n");
    // Half-closing stdin is nothing that a terminal knows.
    s.client.spdy.close(s.client.stdin);
    File::from(slave.try_clone().unwrap()).write_all(b"more").unwrap();
    s.client.expect(s.client.stdout, b"ls\r\nfile\r\nmore");
    File::from(slave).write_all(b"!").unwrap();
    s.monitor.send(&["EXIT", "130"], &[]).unwrap();
    let status = s.client.status();
    assert!(status.contains("\"130\""), "{status}");
    assert_eq!(s.client.spdy.text(s.client.stdout), "ls\r\nfile\r\nmore!");
    s.end();
}

#[test]
fn a_terminal_that_somebody_keeps_open_does_not_hold_the_session() {
    let mut s = Session::begin("exec", "1110");
    let pty = openpty(None, None).unwrap();
    s.monitor.send(&["OK", "tty"], &[pty.master.as_fd()]).unwrap();
    drop(pty.master);
    let long = noise(3000).iter().map(|b| b'a' + b % 26).collect::<Vec<_>>();
    File::from(pty.slave.try_clone().unwrap()).write_all(&long).unwrap();
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    assert!(s.client.spdy.on(s.client.stdout) == long);
    drop(pty.slave);
    s.end();
}

#[test]
fn the_first_size_goes_along_with_go_when_it_is_there() {
    let stream = Stream::idle();
    let tcp = stream.plain();
    let client = std::thread::spawn(move || {
        let mut spdy = Spdy::plain(tcp, "/exec/TOKEN", "v4.channel.k8s.io");
        for name in ["error", "stdout"] {
            spdy.open(&[("streamtype", name)]);
        }
        spdy.flush();
        // Accepted and written to before the streams are complete.
        let resize = spdy.open(&[("streamtype", "resize")]);
        spdy.until("a reply", |s| s.replied == 3);
        spdy.send(resize, b"{\"Width\":10,\"Height\":20}");
        spdy.open(&[("streamtype", "stdin")]);
        spdy.until("a reply", |s| s.replied == 4);
        spdy
    });
    let (monitor, handed) = peers();
    stream.answer(&["ASK", "exec", "TOKEN"], &["EXEC", "1", "1", "1", "0"], &[handed.as_fd()]);
    assert_eq!(recv(&monitor).fields, ["GO", "20", "10"]);
    drop(client.join().unwrap());
}

#[test]
fn an_attach_passes_sizes_and_the_end_of_stdin_on() {
    let mut s = Session::begin("attach", "1110");
    let [stdin, stdout] = s.pipes(["stdin", "stdout"]);
    s.client.spdy.send(s.client.resize, b"{\"Width\":132,\"Height\":43}");
    assert_eq!(recv(&s.monitor).fields, ["SIZE", "43", "132"]);
    s.client.spdy.send(s.client.stdin, b"x");
    s.client.spdy.close(s.client.stdin);
    assert_eq!(recv(&s.monitor).fields, ["EOF"]);
    let mut all = Vec::new();
    File::from(stdin).read_to_end(&mut all).unwrap();
    assert_eq!(all, b"x");
    let mut stdout = File::from(stdout);
    stdout.write_all(b"after that").unwrap();
    s.client.expect(s.client.stdout, b"after that");
    // Whatever the container's code: the attach succeeded. Output is read to its end.
    s.monitor.send(&["EXIT", "9"], &[]).unwrap();
    stdout.write_all(b", the end").unwrap();
    drop(stdout);
    assert!(s.client.status().contains("Success"));
    assert_eq!(s.client.spdy.text(s.client.stdout), "after that, the end");
    s.end();
}

#[test]
fn an_attach_reads_ahead_for_a_slow_client_and_cuts_it_off_at_last() {
    let mut s = Session::begin("attach", "0011");
    let [stdout, stderr] = s.pipes(["stdout", "stderr"]);
    let (mut stdout, mut stderr) = (File::from(stdout), File::from(stderr));
    stderr.write_all(b"warning").unwrap();
    let chunk = noise(65536);
    let mut written = 0;
    // A blocking write that never has to wait for long: nobody slows the container.
    while stdout.write_all(&chunk).is_ok() {
        written += chunk.len();
        assert!(written < 1 << 30);
    }
    assert!(written > 4 << 20);
    let status = s.client.status();
    assert!(status.contains("too slow"), "{status}");
    assert!(s.client.spdy.on(s.client.stdout).len() > 4 << 20);
    assert_eq!(s.client.spdy.text(s.client.stderr), "warning");
    s.end();
}

#[test]
fn one_that_catches_up_in_time_loses_nothing() {
    let mut s = Session::begin("attach", "0010");
    let [stdout] = s.pipes(["stdout"]);
    let bytes = noise(3 << 20);
    File::from(stdout).write_all(&bytes).unwrap();
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    assert!(s.client.spdy.on(s.client.stdout) == bytes);
    s.end();
}

#[test]
fn the_monitors_word_that_a_client_is_slow_is_passed_on() {
    let mut s = Session::begin("attach", "0010");
    let [stdout] = s.pipes(["stdout"]);
    File::from(stdout).write_all(b"so far").unwrap();
    s.monitor.send(&["SLOW", "your buffer was full"], &[]).unwrap();
    let status = s.client.status();
    assert!(status.contains("your buffer was full"), "{status}");
    assert_eq!(s.client.spdy.text(s.client.stdout), "so far");
    s.end();
}

#[test]
fn streams_that_are_not_opened_in_time_are_not_waited_for_by_the_monitor() {
    let stream = Stream::idle();
    let tcp = stream.plain();
    let client = std::thread::spawn(move || Spdy::plain(tcp, "/exec/T", "v4.channel.k8s.io"));
    let (monitor, handed) = peers();
    stream.answer(&["ASK", "exec", "T"], &["EXEC", "0", "0", "1", "0"], &[handed.as_fd()]);
    drop(handed);
    let mut client = Exec::open(client.join().unwrap(), &["error"]);
    client.spdy.until("a reply", |s| s.replied == 1);
    // It leaves before all are there: no GO.
    drop(client);
    assert!(monitor.recv().unwrap().is_none());
    let mut stream = stream;
    assert!(stream.wait().success());
}

#[test]
fn silence_ends_the_session_after_its_time() {
    let stream = Stream::idle();
    let tcp = stream.connect(&["CONN", "300", "10000", "1000"], &[]);
    let upgrade = move |path: &str| Spdy::plain(tcp, path, "v4.channel.k8s.io");
    let mut s = Session::over(stream, "exec", "0010", upgrade);
    let [stdout] = s.pipes(["stdout"]);
    let status = s.client.status();
    assert!(status.contains("nothing was sent for"), "{status}");
    broken(stdout);
    s.end();
}

#[test]
fn so_does_a_client_that_opens_no_streams() {
    let stream = Stream::idle();
    let tcp = stream.connect(&["CONN", "300", "10000", "1000"], &[]);
    let client = std::thread::spawn(move || Spdy::plain(tcp, "/exec/T", "v4.channel.k8s.io"));
    let (monitor, handed) = peers();
    stream.answer(&["ASK", "exec", "T"], &["EXEC", "0", "0", "1", "0"], &[handed.as_fd()]);
    drop(handed);
    let mut client = client.join().unwrap();
    client.until("the end", |c| c.ended);
    assert!(monitor.recv().unwrap().is_none());
    drop(client);
    let mut stream = stream;
    stream.wait();
    assert!(stream.log().contains("nothing was sent for"), "{}", stream.log());
}

#[test]
fn criod_may_come_and_go_meanwhile() {
    let mut s = Session::begin("exec", "0110");
    let [stdin, stdout] = s.pipes(["stdin", "stdout"]);
    // The keeper's duplicate.
    let spare = nix::unistd::dup(&s.stream.control).unwrap();
    s.stream.control = peers().0;
    s.client.spdy.send(s.client.stdin, b"1");
    File::from(stdin).read_exact(&mut [0]).unwrap();
    s.stream.control = spare.into();
    s.stream.control.patient(PATIENCE).unwrap();
    s.stream.say(&["PING"], &[]);
    assert_eq!(s.stream.hear(), ["BUSY"]);
    // A late answer, and nonsense: both are of no consequence.
    let (late, handed) = peers();
    s.stream.say(&["EXEC", "0", "1", "1", "1"], &[handed.as_fd()]);
    drop(handed);
    assert!(late.recv().unwrap().is_none());
    s.stream.say(&["WHAT", "?"], &[]);
    // Both criod and keeper may go for good.
    s.stream.control = peers().0;
    File::from(stdout).write_all(b"on and on").unwrap();
    s.client.expect(s.client.stdout, b"on and on");
    s.monitor.send(&["EXIT", "0"], &[]).unwrap();
    assert!(s.client.status().contains("Success"));
    s.end();
}

#[test]
fn an_open_exec_is_small() {
    let mut s = Session::begin("exec", "0111");
    let [_stdin, stdout, _stderr] = s.pipes(["stdin", "stdout", "stderr"]);
    File::from(stdout).write_all(b"prompt").unwrap();
    s.client.expect(s.client.stdout, b"prompt");
    // As always on a node, idle ones share what they have read of the program.
    let spare = Stream::idle();
    spare.settle();
    let private = s.stream.private_memory();
    assert!(private <= 1 << 20, "{private}");
    s.end();
}
