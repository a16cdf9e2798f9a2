//! Whole sessions: this crate's client over SPDY, a WebSocket client made by hand, hostile ones.

mod any;

use super::*;
use crate::http::Response;
use crate::spdy::{Connection, Headers, Limits};
use crate::websocket::{self, CLOSE_NORMAL, Kind, Role};

const ALL: Wants = Wants { tty: false, stdin: true, stdout: true, stderr: true };
const TTY: Wants = Wants { tty: true, stdin: true, stdout: true, stderr: false };

fn spdy_request(versions: &[&str]) -> Request {
    let lines: Vec<_> = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")]
        .into_iter()
        .chain(versions.iter().map(|v| (VERSION, *v)))
        .collect();
    Request::parse(&Request::write("POST", "/exec/t", "h", &lines)).unwrap().unwrap().0
}

fn websocket_request(protocols: &str) -> Request {
    let mut lines = vec![
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    if !protocols.is_empty() {
        lines.push(("Sec-WebSocket-Protocol", protocols));
    }
    Request::parse(&Request::write("GET", "/exec/t", "h", &lines)).unwrap().unwrap().0
}

/// A server and this crate's client, upgraded with `versions`.
fn spdy_pair(versions: &[&str], wants: Wants) -> (Session, Client) {
    let accepted = Accepted::negotiate(&spdy_request(versions), wants).unwrap();
    let (response, _) = Response::parse(&accepted.response()).unwrap().unwrap();
    let client = Client::new(&response, wants).unwrap();
    (accepted.session(), client)
}

fn websocket_session(protocol: &str, wants: Wants) -> (Session, websocket::Connection) {
    let accepted = Accepted::negotiate(&websocket_request(protocol), wants).unwrap();
    let (response, _) = Response::parse(&accepted.response()).unwrap().unwrap();
    assert_eq!(response.headers.get("sec-websocket-protocol").unwrap_or_default(), protocol);
    (accepted.session(), websocket::Connection::new(Role::Client { seed: 3 }))
}

/// Moves bytes both ways until nothing moves; `seen` are the events of both sides as text, data
/// consumed at once.
fn run(session: &mut Session, client: &mut Client, cut: usize) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let bytes = session.output().to_vec();
        session.sent(bytes.len());
        for piece in bytes.chunks(cut) {
            assert_eq!(client.receive(piece), piece.len());
            loop {
                let (channel, n) = match client.event().unwrap() {
                    None => break,
                    Some(ClientEvent::Data { channel, bytes }) => {
                        seen.push(format!("{channel:?} {}", String::from_utf8_lossy(bytes)));
                        (channel, bytes.len())
                    }
                    Some(event) => {
                        seen.push(format!("client {event:?}"));
                        continue;
                    }
                };
                client.consumed(channel, n);
            }
        }
        let bytes = client.output().to_vec();
        client.sent(bytes.len());
        for piece in bytes.chunks(cut) {
            assert_eq!(session.receive(piece), piece.len());
            seen.extend(events(session));
        }
        if session.output().is_empty() && client.output().is_empty() {
            return seen;
        }
    }
}

/// The events of a session as text, data consumed at once.
fn events(session: &mut Session) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let (channel, n) = match session.event() {
            Ok(None) => return seen,
            Ok(Some(Event::Data { channel, bytes })) => {
                seen.push(format!("{channel:?} {}", String::from_utf8_lossy(bytes)));
                (channel, bytes.len())
            }
            Ok(Some(event)) => {
                seen.push(format!("{event:?}"));
                continue;
            }
            Err(error) => {
                seen.push(error.to_string());
                continue;
            }
        };
        session.consumed(channel, n);
    }
}

/// The messages that a session sends to a client of WebSocket, and the code of its close frame.
fn messages(
    session: &mut Session,
    client: &mut websocket::Connection,
) -> (Vec<String>, Option<u16>) {
    let (mut found, mut code) = (Vec::new(), None);
    let bytes = session.output().to_vec();
    session.sent(bytes.len());
    assert_eq!(client.receive(&bytes), bytes.len());
    while let Some(event) = client.poll().unwrap() {
        match event {
            websocket::Event::Data { range, first, .. } => {
                if first {
                    found.push(Vec::new());
                }
                found.last_mut().unwrap().extend_from_slice(client.bytes(range));
            }
            websocket::Event::Closed { code: c } => code = c,
        }
    }
    let text = |m: &Vec<u8>| m.iter().map(|b| char::from(*b)).collect();
    (found.iter().map(text).collect(), code)
}

/// Hands a client's messages to a session: its events.
fn tell(session: &mut Session, client: &mut websocket::Connection, all: &[&[u8]]) -> Vec<String> {
    for message in all {
        client.send(Kind::Binary, &[message]);
    }
    let bytes = client.output().to_vec();
    client.sent(bytes.len());
    assert_eq!(session.receive(&bytes), bytes.len());
    events(session)
}

#[test]
fn a_command_runs_over_spdy_with_every_version() {
    for (version, status) in SPDY_PROTOCOLS.iter().zip([
        "client Outcome(Exit(3))",
        "client Outcome(Failure(\"command terminated with non-zero exit code: 3\"))",
        "client Outcome(Failure(\"command terminated with non-zero exit code: 3\"))",
        "client Outcome(Success)",
    ]) {
        for cut in [1, 13, 100_000] {
            let (mut session, mut client) = spdy_pair(&["v9", version], ALL);
            assert!(!session.complete());
            assert_eq!(run(&mut session, &mut client, cut), ["Ready", "client Ready"]);
            client.send(b"in");
            client.close();
            let seen = run(&mut session, &mut client, 100_000);
            assert_eq!(seen, ["Stdin in", "Closed { channel: Stdin }"]);
            assert_eq!(session.send(Channel::Stdin, b"x"), 0);
            session.send(Channel::Stdout, b"out");
            session.send_space(Channel::Stderr)[..3].copy_from_slice(b"err");
            session.send_filled(Channel::Stderr, 3);
            session.finish(Outcome::Exit(3));
            session.finish(Outcome::Success);
            assert!(!session.done());
            let seen = run(&mut session, &mut client, 100_000);
            assert_eq!(
                seen,
                [
                    "Stdout out",
                    "Stderr err",
                    "client Closed { channel: Stdout }",
                    "client Closed { channel: Stderr }",
                    status,
                    "client Closed { channel: Stdin }",
                ]
            );
            assert!(session.done());
            client.eof();
            assert_eq!(client.event(), Ok(Some(ClientEvent::Gone)));
            assert_eq!(client.event(), Ok(None));
        }
    }
}

#[test]
fn sizes_of_a_terminal_arrive_with_v3_and_later() {
    let (mut session, mut client) = spdy_pair(&["v4.channel.k8s.io"], TTY);
    assert_eq!(run(&mut session, &mut client, 999), ["Ready", "client Ready"]);
    client.resize(80, 24);
    client.resize(100, 30);
    let seen = run(&mut session, &mut client, 999);
    assert_eq!(seen, ["Resize { width: 80, height: 24 }", "Resize { width: 100, height: 30 }"]);
    let (mut session, mut client) = spdy_pair(&["v2.channel.k8s.io"], TTY);
    assert_eq!(run(&mut session, &mut client, 999), ["Ready", "client Ready"]);
    client.resize(80, 24);
    assert_eq!(run(&mut session, &mut client, 999), [""; 0]);
}

#[test]
fn what_is_asked_for_wrongly_is_refused() {
    let refused = |request: &Request| Accepted::negotiate(request, ALL).unwrap_err();
    let refusal = refused(&spdy_request(&["v9.channel.k8s.io"]));
    assert_eq!((refusal.status, refusal.headers.len()), (403, 4));
    assert_eq!(refused(&spdy_request(&[])).status, 400);
    assert_eq!(refused(&websocket_request("portforward.k8s.io")).status, 403);
    let plain = Request::parse(b"GET /exec/t HTTP/1.1\r\n\r\n").unwrap().unwrap().0;
    assert_eq!(refused(&plain).status, 400);
    let versions = ["v9.channel.k8s.io", "v2.channel.k8s.io, v4.channel.k8s.io"];
    let accepted = Accepted::negotiate(&spdy_request(&versions), ALL).unwrap();
    let text = String::from_utf8(accepted.response()).unwrap();
    assert!(text.contains("X-Stream-Protocol-Version: v2.channel.k8s.io\r\n"), "{text}");
}

#[test]
fn a_client_checks_the_response() {
    let response = |text: &str| Response::parse(text.as_bytes()).unwrap().unwrap().0;
    let no = response("HTTP/1.1 404 Not Found\r\n\r\n");
    assert!(matches!(Client::new(&no, ALL), Err(ClientError::Refused { status: 404 })));
    let other = response("HTTP/1.1 101 Go\r\nUpgrade: SPDY/3.1\r\n\r\n");
    assert!(matches!(Client::new(&other, ALL), Err(ClientError::Upgraded)));
    let (request, _) = Request::parse(&Client::request("h:1", "/exec/t?a=b")).unwrap().unwrap();
    assert!(request.is_spdy() && request.path == "/exec/t");
    assert_eq!(request.headers.list(VERSION).count(), 4);
}

#[test]
fn a_command_runs_over_websocket_with_every_subprotocol() {
    for protocol in WEBSOCKET_PROTOCOLS.iter().chain(&[""]) {
        let (mut session, mut client) = websocket_session(protocol, TTY);
        let base64 = protocol.contains("base64");
        assert!(session.complete());
        assert_eq!(events(&mut session), ["Ready"]);
        let (hello, _) = messages(&mut session, &mut client);
        assert_eq!(hello, [if base64 { "1" } else { "\u{1}" }]);
        let told: &[&[u8]] = if base64 {
            // "in", {"Width":80,"Height":24}
            &[b"0aW4=", b"4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9", b"9"]
        } else {
            &[b"\0in", b"\x04{\"Width\":80,\"Height\":24}", b"\x09ignored", b"\x01ignored"]
        };
        let mut seen = tell(&mut session, &mut client, told);
        seen.sort();
        assert_eq!(seen, ["Resize { width: 80, height: 24 }", "Stdin in"], "{protocol}");
        let seen = tell(&mut session, &mut client, &[b"\xff\0"]);
        if protocol.starts_with("v5") {
            assert_eq!(seen, ["Closed { channel: Stdin }"]);
        } else if base64 {
            assert_eq!(seen.len(), 1, "a byte that is not base64");
            continue;
        } else {
            assert_eq!(seen, [""; 0], "only v5 can close");
        }
        assert_eq!(session.send(Channel::Stdout, b"out"), 3);
        assert_eq!(session.send(Channel::Stderr, b"not wanted"), 0);
        session.close(Channel::Stdout);
        assert_eq!(session.send(Channel::Stdout, b"late"), 0);
        session.finish(Outcome::Exit(3));
        let (said, code) = messages(&mut session, &mut client);
        assert_eq!(said[0], "\u{1}out");
        assert_eq!(said.len(), 2);
        assert!(said[1].starts_with('\u{3}'));
        assert_eq!(said[1].contains("\"reason\":\"ExitCode\""), protocol.starts_with('v'));
        assert_eq!(code, Some(CLOSE_NORMAL));
        assert!(session.done());
        assert_eq!(tell(&mut session, &mut client, &[]), ["Gone"]);
    }
}

#[test]
fn base64_goes_both_ways() {
    let (mut session, mut client) = websocket_session("v4.base64.channel.k8s.io", ALL);
    events(&mut session);
    messages(&mut session, &mut client);
    let seen = tell(&mut session, &mut client, &[b"0aW4=", b"0", b"0aW4="]);
    assert_eq!(seen.concat(), "Stdin inStdin in");
    session.send(Channel::Stdout, b"out");
    session.send_space(Channel::Stderr)[..3].copy_from_slice(b"err");
    session.send_filled(Channel::Stderr, 3);
    session.finish(Outcome::Success);
    let (said, _) = messages(&mut session, &mut client);
    assert_eq!(said, ["1b3V0", "2ZXJy", "3eyJtZXRhZGF0YSI6e30sInN0YXR1cyI6IlN1Y2Nlc3MifQ=="]);
}

#[test]
fn a_client_that_goes_away_is_told_once() {
    let gone = |session: &mut Session| {
        assert_eq!(events(session).pop().as_deref(), Some("Gone"));
        assert_eq!(session.event(), Ok(None));
    };
    // The connection's end.
    let (mut session, mut client) = spdy_pair(&SPDY_PROTOCOLS, ALL);
    run(&mut session, &mut client, 999);
    session.eof();
    assert!(session.space().is_empty());
    gone(&mut session);
    // client-go: every stream reset, then GOAWAY.
    let (mut session, mut client) = spdy_pair(&SPDY_PROTOCOLS, ALL);
    run(&mut session, &mut client, 999);
    let mut raw = Vec::new();
    for stream in [1u32, 3, 5, 7] {
        raw.extend([0x80, 3, 0, 3, 0, 0, 0, 8]);
        raw.extend(stream.to_be_bytes());
        raw.extend(5u32.to_be_bytes());
    }
    session.receive(&raw);
    let seen = events(&mut session);
    assert_eq!(
        seen,
        ["Closed { channel: Stdin }", "Deaf { channel: Stdout }", "Gone"],
        "the last stream's end is the session's"
    );
    assert_eq!(session.event(), Ok(None));
    // WebSocket: a close frame.
    let (mut session, mut client) = websocket_session("v5.channel.k8s.io", ALL);
    client.close(CLOSE_NORMAL);
    tell(&mut session, &mut client, &[]);
    let (_, code) = messages(&mut session, &mut client);
    assert_eq!(code, Some(CLOSE_NORMAL));
    assert_eq!(session.event(), Ok(None));
}

#[test]
fn output_that_the_client_does_not_want_any_more_is_thrown_away() {
    let (mut session, mut client) = spdy_pair(&SPDY_PROTOCOLS, ALL);
    run(&mut session, &mut client, 999);
    session.receive(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5]);
    assert_eq!(events(&mut session), ["Deaf { channel: Stdout }"]);
    for _ in 0..1000 {
        assert_eq!(session.send(Channel::Stdout, &[0; 1000]), 1000);
        let n = session.send_space(Channel::Stdout).len();
        assert!(n > 0);
        session.send_filled(Channel::Stdout, n);
    }
    assert_eq!(session.send(Channel::Stderr, b"err"), 3);
    assert_eq!(session.output().len(), 11);
    session.close(Channel::Stdout);
    assert_eq!(session.send(Channel::Stdout, b"x"), 0);
}

#[test]
fn input_that_comes_before_all_streams_are_there_waits() {
    let session = Accepted::negotiate(&spdy_request(&SPDY_PROTOCOLS), ALL).unwrap();
    let mut session = session.session();
    let limits = Limits { streams: 9, stream_window: 1 << 20, session_window: 1 << 20 };
    let mut client = Connection::new(false, limits);
    let open = |client: &mut Connection, session: &mut Session, name: &str| {
        let stream = client.open(&Headers::default().with("streamType", name)).unwrap();
        session.receive(client.output());
        client.sent(usize::MAX);
        let seen = events(session);
        client.receive(session.output());
        session.sent(usize::MAX);
        while client.poll().unwrap().is_some() {}
        (stream, seen)
    };
    let (stdin, seen) = open(&mut client, &mut session, "stdin");
    assert_eq!(seen, [""; 0]);
    client.send(stdin, b"early");
    client.close(stdin);
    for name in ["stdout", "nonsense", "stdout", "stderr"] {
        let (stream, seen) = open(&mut client, &mut session, name);
        assert_eq!(seen, [""; 0]);
        let refused = name == "nonsense" || stream > 5 && name == "stdout";
        assert_eq!(client.contains(stream), !refused, "{name}");
    }
    assert!(!session.complete());
    let (_, seen) = open(&mut client, &mut session, "error");
    assert_eq!(seen, ["Ready", "Stdin early", "Closed { channel: Stdin }"]);
}

#[test]
fn what_is_not_consumed_is_kept_in_order_and_bounded() {
    let (mut session, mut client) = spdy_pair(&SPDY_PROTOCOLS, ALL);
    run(&mut session, &mut client, 999);
    let mut sent = 0u64;
    let mut next = || {
        sent += 1;
        sent.to_be_bytes()
    };
    // A client with windows: its own stop it, and the session goes on reading.
    let (mut told, mut expected) = (0, Vec::new());
    loop {
        let n = client.room() / 8 * 8;
        if n == 0 {
            break;
        }
        let bytes: Vec<u8> = (0..n / 8).flat_map(|_| next()).collect();
        assert_eq!(client.send(&bytes), n);
        expected.extend(bytes);
        let out = client.output().to_vec();
        client.sent(out.len());
        for piece in out.chunks(50_000) {
            assert_eq!(session.receive(piece), piece.len());
            while let Some(event) = session.event().unwrap() {
                assert!(matches!(event, Event::Data { .. }));
                told += 1;
            }
        }
        let back = session.output().to_vec();
        session.sent(back.len());
        client.receive(&back);
        assert_eq!(client.event(), Ok(None));
    }
    assert_eq!(told, 1, "the owner knows that something is pending");
    assert_eq!(expected.len(), 1 << 20);
    assert!(session.wants_input());
    client.close();
    session.receive(client.output());
    assert_eq!(session.event(), Ok(None), "closed comes when all is consumed");
    let mut got = Vec::new();
    while !session.pending(Channel::Stdin).is_empty() {
        let piece = session.pending(Channel::Stdin);
        let n = piece.len().min(7_777);
        got.extend_from_slice(&piece[..n]);
        session.consumed(Channel::Stdin, n);
    }
    assert!(got == expected);
    assert_eq!(events(&mut session), ["Closed { channel: Stdin }"]);
}

#[test]
fn a_client_without_windows_is_stopped_by_not_reading() {
    // As spdystream: every frame at once.
    let (mut session, mut client) = spdy_pair(&SPDY_PROTOCOLS, ALL);
    run(&mut session, &mut client, 999);
    let frame = [&[0, 0, 0, 3, 0, 0, 0x80, 0][..], &[0; 32768]].concat();
    let mut taken = 0;
    for _ in 0..1000 {
        if !session.wants_input() {
            break;
        }
        taken += session.receive(&frame);
        while session.event().unwrap().is_some() {}
    }
    assert!(!session.wants_input() && session.space().is_empty());
    assert!((1 << 20..2 << 20).contains(&taken), "{taken}");
    session.discard(Channel::Stdin);
    assert!(session.wants_input());
    assert_eq!(events(&mut session), [""; 0]);
    // WebSocket has no windows at all.
    let (mut session, mut client) = websocket_session("v4.channel.k8s.io", ALL);
    client.send(Kind::Binary, &[&[0; 60_000]]);
    let frame = client.output().to_vec();
    taken = 0;
    while session.wants_input() {
        taken += session.receive(&frame);
        while session.event().unwrap().is_some() {}
    }
    assert!((256 * 1024..512 * 1024).contains(&taken), "{taken}");
}

#[test]
fn bytes_that_were_told_stay_valid_when_more_is_read() {
    let (mut session, mut client) = websocket_session("v4.channel.k8s.io", ALL);
    events(&mut session);
    client.send(Kind::Binary, &[b"\0first"]);
    client.send(Kind::Binary, &[b"\0second"]);
    session.receive(client.output());
    assert!(matches!(session.event(), Ok(Some(Event::Data { bytes: b"first", .. }))));
    session.consumed(Channel::Stdin, 2);
    session.space().fill(b'!');
    assert_eq!(session.pending(Channel::Stdin), b"rst");
    assert_eq!(session.event(), Ok(None));
    session.consumed(Channel::Stdin, 1);
    let kept: Vec<u8> = session.pending(Channel::Stdin).to_vec();
    assert_eq!(kept, b"stsecond");
    session.consumed(Channel::Stdin, 99);
    assert_eq!(events(&mut session), [""; 0]);
}

#[test]
fn a_header_bomb_ends_the_session_with_a_reason() {
    let (mut session, _) = spdy_pair(&SPDY_PROTOCOLS, ALL);
    let mut zlib = flate2::Compress::new(flate2::Compression::best(), true);
    let mut packed = Vec::with_capacity(64 * 1024);
    zlib.compress_vec(&vec![0; 8 << 20], &mut packed, flate2::FlushCompress::Sync).unwrap();
    let length = (packed.len() + 10) as u32;
    assert!(length < 16 * 1024);
    let [_, a, b, c] = length.to_be_bytes();
    session.receive(&[0x80, 3, 0, 1, 0, a, b, c, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    session.receive(&packed);
    let seen = events(&mut session);
    assert_eq!(seen, ["the peer broke SPDY: a header block that is too large"]);
    assert!(!session.wants_input() && !session.done());
    let output = session.output();
    assert_eq!(output[output.len() - 16..][..4], [0x80, 3, 0, 7], "a GOAWAY");
    session.sent(usize::MAX);
    assert!(session.done());
}
