//! Until the upgrade: what is refused, who is waited for, and for how long.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::os::fd::AsFd;

use common::client::request;
use common::{PATIENCE, Stream, drain, noise, peers};
use stream::http::Response;

const UPGRADE: [(&str, &str); 3] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "SPDY/3.1"),
    ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
];

/// Sends these bytes to a new one; the status of its answer, and that it ends by itself.
fn refused(bytes: &[u8]) -> u16 {
    let mut stream = Stream::idle();
    let mut tcp = stream.plain();
    tcp.write_all(bytes).unwrap();
    let answer = drain(&mut tcp);
    drop(tcp);
    let status = Response::parse(&answer).unwrap().expect("a whole head").0.status;
    stream.wait();
    status
}

#[test]
fn what_is_no_request_for_a_stream_is_refused() {
    for (line, status) in [
        ("GET / HTTP/1.1", 404),
        ("GET /exec HTTP/1.1", 404),
        ("GET /exec/ HTTP/1.1", 404),
        ("GET /exec/a/b HTTP/1.1", 404),
        ("GET /exec/a%20b HTTP/1.1", 404),
        ("GET /exec/a%00b HTTP/1.1", 404),
        ("GET /metrics/TOKEN HTTP/1.1", 404),
        ("PUT /exec/TOKEN HTTP/1.1", 405),
        ("HEAD /exec/TOKEN HTTP/1.1", 405),
        ("GET /exec/TOKEN HTTP/2.0", 400),
        ("nonsense", 400),
        ("\u{16}\u{3}\u{1}\u{2}", 400),
    ] {
        assert_eq!(refused(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()), status, "{line}");
    }
    let long = format!("GET /exec/{} HTTP/1.1\r\n\r\n", "a".repeat(1000));
    assert_eq!(refused(long.as_bytes()), 404);
}

#[test]
fn a_head_is_bounded() {
    let head = format!("GET /exec/TOKEN HTTP/1.1\r\nA: {}\r\n", "x".repeat(20_000));
    assert_eq!(refused(head.as_bytes()), 431);
    let head = format!("GET /exec/TOKEN HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    assert_eq!(refused(head.as_bytes()), 431);
}

#[test]
fn noise_is_refused_or_ignored_and_kills_nothing() {
    for n in [1, 100, 10_000, 100_000] {
        let mut stream = Stream::idle();
        let mut tcp = stream.connect(&["CONN", "1000", "300", "10"], &[]);
        // It may have hung up before all was said.
        let _ = tcp.write_all(&noise(n));
        drain(&mut tcp);
        drop(tcp);
        // Not by a signal.
        assert!(stream.wait().code().is_some());
    }
}

#[test]
fn whoever_takes_too_long_is_told_so() {
    for so_far in ["", "GET /exec/TOKEN HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = Stream::idle();
        let mut tcp = stream.connect(&["CONN", "14400000", "200", "1000"], &[]);
        tcp.write_all(so_far.as_bytes()).unwrap();
        let answer = drain(&mut tcp);
        assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
        drop(tcp);
        stream.wait();
    }
}

#[test]
fn a_byte_now_and_then_does_not_prolong_that() {
    let mut stream = Stream::idle();
    let tcp = stream.connect(&["CONN", "14400000", "300", "1000"], &[]);
    let mut slow = tcp.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        // Until it is hung up on.
        for byte in b"GET /exec/TOKEN HTTP/1.1\r\n".iter().chain(std::iter::repeat(&b'a')) {
            if slow.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    let answer = drain(&tcp);
    assert!(answer.starts_with(b"HTTP/1.1 408 "));
    drop(tcp);
    writer.join().unwrap();
    stream.wait();
}

#[test]
fn a_client_that_leaves_early_ends_it() {
    for so_far in ["", "GET /exec/TOK"] {
        let mut stream = Stream::idle();
        let mut tcp = stream.plain();
        tcp.write_all(so_far.as_bytes()).unwrap();
        drop(tcp);
        stream.wait();
    }
    let mut stream = Stream::idle();
    let mut tcp = stream.plain();
    tcp.write_all(b"GET /exec/TOKEN HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(stream.hear(), ["ASK", "exec", "TOKEN"]);
    drop(tcp);
    stream.wait();
}

#[test]
fn criods_no_is_the_clients_answer() {
    let mut stream = Stream::idle();
    let mut tcp = stream.plain();
    let client = std::thread::spawn(move || {
        let response = request(&mut tcp, "POST", "/attach/abc-_1", &UPGRADE);
        (response.0.status, [response.1, drain(tcp)].concat())
    });
    let no = ["NO", "404", "no such token"];
    stream.answer(&["ASK", "attach", "abc-_1"], &no, &[]);
    let (status, body) = client.join().unwrap();
    assert_eq!(status, 404);
    assert!(String::from_utf8_lossy(&body).contains("no such token"));
    stream.wait();
}

#[test]
fn a_request_without_an_upgrade_is_refused_once_its_token_is_known() {
    let mut stream = Stream::idle();
    let mut tcp = stream.plain();
    let client = std::thread::spawn(move || request(&mut tcp, "GET", "/exec/TOKEN", &[]).0.status);
    let (monitor, handed) = peers();
    let answer = ["EXEC", "0", "0", "1", "0"];
    stream.answer(&["ASK", "exec", "TOKEN"], &answer, &[handed.as_fd()]);
    drop(handed);
    assert!((400..500).contains(&client.join().unwrap()));
    // Nothing was begun.
    assert!(monitor.recv().unwrap().is_none());
    stream.wait();
}

#[test]
fn the_question_outlives_criod() {
    let mut stream = Stream::idle();
    let mut tcp = stream.plain();
    let client = std::thread::spawn(move || request(&mut tcp, "POST", "/exec/TOKEN", &UPGRADE).0);
    assert_eq!(stream.hear(), ["ASK", "exec", "TOKEN"]);
    // Criod has read the question and dies; the keeper holds its end.
    let spare = nix::unistd::dup(&stream.control).unwrap();
    stream.control = peers().0;
    assert!(stream.is_alive());
    stream.control = spare.into();
    stream.control.patient(PATIENCE).unwrap();
    stream.say(&["PING"], &[]);
    assert_eq!(stream.hear(), ["ASK", "exec", "TOKEN"]);
    stream.say(&["NO", "500", "it broke"], &[]);
    assert_eq!(stream.hear(), ["TAKEN"]);
    assert_eq!(client.join().unwrap().status, 500);
    stream.wait();
}

#[test]
fn where_nobody_can_answer_any_more_the_client_is_told() {
    let mut stream = Stream::idle();
    let mut tcp = stream.plain();
    let client = std::thread::spawn(move || request(&mut tcp, "POST", "/exec/TOKEN", &UPGRADE).0);
    assert_eq!(stream.hear(), ["ASK", "exec", "TOKEN"]);
    stream.control = peers().0;
    assert_eq!(client.join().unwrap().status, 503);
    stream.wait();
}

#[test]
fn messages_that_are_wrong_are_said_and_survived() {
    let stream = Stream::idle();
    stream.say(&["CONN"], &[]);
    stream.say(&["CONN", "1", "2", "3"], &[]);
    stream.say(&["EXEC", "1", "1", "1", "1"], &[]);
    stream.say(&[""], &[]);
    stream.settle();
    let mut tcp = stream.plain();
    tcp.write_all(b"GET /exec/TOKEN HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(stream.hear(), ["ASK", "exec", "TOKEN"]);
    // An answer without its descriptor is none, and another connection is not taken.
    stream.say(&["EXEC", "0", "0", "1", "0"], &[]);
    stream.say(&["EXEC", "0", "0", "1"], &[]);
    stream.say(&["NO", "many", "x"], &[]);
    let mut second = stream.plain();
    let mut nothing = [0];
    assert_eq!(second.read(&mut nothing).unwrap_or(0), 0);
    stream.say(&["PING"], &[]);
    assert_eq!(stream.hear(), ["ASK", "exec", "TOKEN"]);
    assert!(stream.log().contains("\"EXEC\" is not understood"), "{}", stream.log());
}
