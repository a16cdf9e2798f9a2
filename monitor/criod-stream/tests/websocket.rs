//! The same over WebSocket, as far as it concerns the process; and what follows an upgrade but is no
//! protocol at all.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use common::client::{Session, request};
use common::{Stream, drain, noise, peers, recv};

/// Asks for an upgrade meanwhile.
fn upgrade(mut tcp: TcpStream, path: &str, protocol: &str) -> JoinHandle<(TcpStream, Vec<u8>)> {
    let (path, protocol) = (path.to_owned(), protocol.to_owned());
    std::thread::spawn(move || {
        let lines = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", &protocol),
        ];
        let (response, early) = request(&mut tcp, "GET", &path, &lines);
        assert_eq!(response.status, 101);
        assert_eq!(response.headers.get("Sec-WebSocket-Protocol"), Some(&*protocol));
        (tcp, early)
    })
}

/// A short binary message for a channel, as clients have to send it: masked.
fn message(channel: u8, bytes: &[u8]) -> Vec<u8> {
    let mask = [7, 0, 255, 128];
    assert!(bytes.len() < 125);
    let mut frame = vec![0x82, 0x80 | (bytes.len() + 1) as u8];
    frame.extend(mask);
    let payload = std::iter::once(&channel).chain(bytes);
    frame.extend(payload.zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    frame
}

/// The next message: its channel and the rest. `None`: the server has closed.
fn next(from: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    from.read_exact(&mut head).unwrap();
    let length = match head[1] {
        127 => {
            let mut long = [0; 8];
            from.read_exact(&mut long).unwrap();
            u64::from_be_bytes(long) as usize
        }
        126 => {
            let mut long = [0; 2];
            from.read_exact(&mut long).unwrap();
            u16::from_be_bytes(long).into()
        }
        short => short.into(),
    };
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).unwrap();
    match head[0] & 0xf {
        2 if payload.is_empty() => next(from),
        2 => Some((payload.remove(0), payload)),
        8 => None,
        _ => next(from),
    }
}

/// All messages until the server closes, by channel.
fn rest(from: &mut impl Read) -> [Vec<u8>; 4] {
    let mut all: [Vec<u8>; 4] = Default::default();
    while let Some((channel, bytes)) = next(from) {
        all[usize::from(channel)].extend(bytes);
    }
    all
}

#[test]
fn an_exec_with_its_stdin_closed_and_its_exit_code() {
    let stream = Stream::idle();
    let client = upgrade(stream.plain(), "/exec/TOKEN?x=y", "v5.channel.k8s.io");
    let (monitor, handed) = peers();
    stream.answer(&["ASK", "exec", "TOKEN"], &["EXEC", "0", "1", "1", "1"], &[handed.as_fd()]);
    drop(handed);
    assert_eq!(recv(&monitor).fields, ["GO"]);
    let (mut tcp, early) = client.join().unwrap();
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let ((stdin, to), (out, stdout), (err, stderr)) = (pipe(), pipe(), pipe());
    let fds = [to.as_fd(), out.as_fd(), err.as_fd()];
    monitor.send(&["OK", "stdin", "stdout", "stderr"], &fds).unwrap();
    drop((to, out, err));
    let mut command = Command::new("sh")
        .args(["-c", "cat; echo err >&2"])
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr))
        .spawn()
        .unwrap();
    tcp.write_all(&message(0, b"hello ")).unwrap();
    tcp.write_all(&message(0, b"there")).unwrap();
    tcp.write_all(&message(255, &[0])).unwrap();
    command.wait().unwrap();
    monitor.send(&["EXIT", "4"], &[]).unwrap();
    let [_, out, err, status] = rest(&mut early.chain(&mut tcp));
    assert_eq!(out, b"hello there");
    assert_eq!(err, b"err\n");
    let status = String::from_utf8(status).unwrap();
    assert!(status.contains("NonZeroExitCode") && status.contains("\"4\""), "{status}");
    drop(tcp);
    let mut stream = stream;
    assert!(stream.wait().success());
}

#[test]
fn a_port_forward_of_the_ports_that_were_asked_for() {
    let stream = Stream::idle();
    let client = upgrade(stream.plain(), "/portforward/TOKEN", "v4.channel.k8s.io");
    let (dialer, handed) = peers();
    let answer = ["FORWARD", "8080", "8081"];
    stream.answer(&["ASK", "portforward", "TOKEN"], &answer, &[handed.as_fd()]);
    drop(handed);
    let (mut tcp, early) = client.join().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut pods = Vec::new();
    for _ in 0..2 {
        let dial = recv(&dialer).fields;
        assert_eq!(dial[0], "DIAL");
        if dial[2] == "8081" {
            dialer.send(&["ERR", &dial[1], "connect: connection refused"], &[]).unwrap();
            continue;
        }
        assert_eq!(dial[2], "8080");
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        dialer.send(&["OK", &dial[1]], &[near.as_fd()]).unwrap();
        pods.push(listener.accept().unwrap().0);
    }
    let mut pod = pods.pop().unwrap();
    tcp.write_all(&message(0, b"request")).unwrap();
    let mut got = [0; 7];
    pod.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"request");
    pod.write_all(b"response").unwrap();
    pod.shutdown(Shutdown::Write).unwrap();
    let [data, error, _, refused] = rest(&mut early.chain(&mut tcp));
    assert_eq!(data, [&8080_u16.to_le_bytes()[..], b"response"].concat());
    assert_eq!(error, 8080_u16.to_le_bytes());
    assert_eq!(refused[..2], 8081_u16.to_le_bytes());
    assert!(String::from_utf8_lossy(&refused).contains("connection refused"));
}

#[test]
fn noise_after_an_upgrade_ends_that_session_alone() {
    for protocol in ["v5.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let mut stream = Stream::idle();
        let client = upgrade(stream.plain(), "/exec/TOKEN", protocol);
        let (monitor, handed) = peers();
        let answer = ["EXEC", "0", "1", "1", "1"];
        stream.answer(&["ASK", "exec", "TOKEN"], &answer, &[handed.as_fd()]);
        drop(handed);
        assert_eq!(recv(&monitor).fields, ["GO"]);
        let (mut tcp, _) = client.join().unwrap();
        let _ = tcp.write_all(&noise(100_000));
        // It is told why, and the command's ends are closed.
        assert!(monitor.recv().unwrap().is_none());
        drain(&mut tcp);
        drop(tcp);
        assert!(stream.wait().code().is_some());
    }
}

#[test]
fn noise_within_spdy_ends_that_session_alone() {
    for start in [&[][..], &[0x80, 3, 0, 1], &[0x80, 3, 0, 4, 0, 0, 0, 1], &[0, 0, 0, 9]] {
        let s = Session::begin("exec", "0111");
        let pipes: [OwnedFd; 3] = s.pipes(["stdin", "stdout", "stderr"]);
        let Session { mut client, monitor, mut stream } = s;
        client.spdy.raw(&[start, &noise(300_000)].concat());
        assert!(monitor.recv().unwrap().is_none());
        drop(client);
        assert!(stream.wait().code().is_some());
        drop(pipes);
    }
}
