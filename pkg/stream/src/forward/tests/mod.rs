//! Whole sessions: this crate's client, tunnelled or not, clients made by hand, hostile ones.

mod any;

use super::*;
use crate::http::Response;
use crate::spdy::{Connection, Headers, Limits};
use crate::websocket::{self, CLOSE_NORMAL, Kind, Role};

fn request(lines: &[(&str, &str)], target: &str) -> Request {
    Request::parse(&Request::write("GET", target, "h", lines)).unwrap().unwrap().0
}

fn spdy_request() -> Request {
    Request::parse(&Client::request("h", "/portforward/t")).unwrap().unwrap().0
}

fn websocket_request(protocol: &str, target: &str) -> Request {
    let mut lines = vec![
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    if !protocol.is_empty() {
        lines.push(("Sec-WebSocket-Protocol", protocol));
    }
    request(&lines, target)
}

/// A client whose bytes go through a tunnel or not.
struct Peer {
    client: Client,
    tunnel: Option<websocket::Connection>,
}

fn pair(protocol: Option<&str>) -> (Session, Peer) {
    let spdy = Accepted::negotiate(&spdy_request(), &[]).unwrap();
    let (response, _) = Response::parse(&spdy.response()).unwrap().unwrap();
    let client = Client::new(&response).unwrap();
    match protocol {
        None => (spdy.session(), Peer { client, tunnel: None }),
        Some(protocol) => {
            let accepted = Accepted::negotiate(&websocket_request(protocol, "/portforward/t"), &[]);
            let tunnel = Some(websocket::Connection::new(Role::Client { seed: 5 }));
            (accepted.unwrap().session(), Peer { client, tunnel })
        }
    }
}

impl Peer {
    fn output(&mut self) -> Vec<u8> {
        let mut bytes = self.client.output().to_vec();
        self.client.sent(bytes.len());
        if let Some(tunnel) = &mut self.tunnel {
            // Cut at odd places: messages mean nothing.
            for piece in bytes.chunks(1000) {
                tunnel.send(Kind::Binary, &[piece]);
            }
            bytes = tunnel.output().to_vec();
            tunnel.sent(bytes.len());
        }
        bytes
    }

    fn receive(&mut self, bytes: &[u8]) {
        let Some(tunnel) = &mut self.tunnel else {
            assert_eq!(self.client.receive(bytes), bytes.len());
            return;
        };
        assert_eq!(tunnel.receive(bytes), bytes.len());
        while let Some(event) = tunnel.poll().unwrap() {
            if let websocket::Event::Data { range, .. } = event {
                assert_eq!(self.client.receive(tunnel.bytes(range.clone())), range.len());
            }
        }
    }
}

/// Events as text; data are consumed at once.
fn events(session: &mut Session) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let (id, n) = match session.event() {
            Ok(None) => return seen,
            Ok(Some(Event::Data { id, bytes })) => {
                seen.push(format!("Data {} {}", id.0, String::from_utf8_lossy(bytes)));
                (id, bytes.len())
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
        session.consumed(id, n);
    }
}

fn client_events(client: &mut Client) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let (id, n) = match client.event().unwrap() {
            None => return seen,
            Some(ClientEvent::Data { id, bytes }) => {
                seen.push(format!("client Data {} {}", id.0, String::from_utf8_lossy(bytes)));
                (id, bytes.len())
            }
            Some(event) => {
                seen.push(format!("client {event:?}"));
                continue;
            }
        };
        client.consumed(id, n);
    }
}

fn run(session: &mut Session, peer: &mut Peer) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let to_client = session.output().to_vec();
        session.sent(to_client.len());
        for piece in to_client.chunks(50_000) {
            peer.receive(piece);
            seen.extend(client_events(&mut peer.client));
        }
        let to_server = peer.output();
        for piece in to_server.chunks(50_000) {
            assert_eq!(session.receive(piece), piece.len());
            seen.extend(events(session));
        }
        if to_client.is_empty() && to_server.is_empty() {
            return seen;
        }
    }
}

fn remembered(session: &Session) -> [usize; 4] {
    match &session.transport {
        Transport::Streams(t) => t.remembered(),
        Transport::Channels(_) => panic!("not over SPDY"),
    }
}

const EVERY: [Option<&str>; 3] =
    [None, Some("SPDY/3.1+portforward.k8s.io"), Some("v2.portforward.k8s.io")];

#[test]
fn connections_are_half_closed_on_either_side() {
    for protocol in EVERY {
        for pod_first in [false, true] {
            let (mut session, mut peer) = pair(protocol);
            let id = peer.client.open(80).unwrap();
            assert_eq!(
                run(&mut session, &mut peer),
                ["Opened { id: Id(0), port: 80 }", "client Ready { id: Id(0) }"]
            );
            peer.client.send(id, b"question");
            assert_eq!(run(&mut session, &mut peer), ["Data 0 question"]);
            if pod_first {
                assert_eq!(session.send(id, b"answer"), 6);
                session.close(id);
                assert_eq!(
                    run(&mut session, &mut peer),
                    ["client Data 0 answer", "client Closed { id: Id(0) }"]
                );
                peer.client.send(id, b"more");
                peer.client.close(id);
                assert_eq!(run(&mut session, &mut peer), ["Data 0 more", "Closed { id: Id(0) }"]);
            } else {
                peer.client.close(id);
                assert_eq!(run(&mut session, &mut peer), ["Closed { id: Id(0) }"]);
                session.send_space(id)[..6].copy_from_slice(b"answer");
                session.send_filled(id, 6);
                session.close(id);
                assert_eq!(
                    run(&mut session, &mut peer),
                    ["client Data 0 answer", "client Closed { id: Id(0) }"]
                );
            }
            assert_eq!(remembered(&session), [0; 4]);
            assert_eq!((session.room(id), session.send(id, b"x")), (0, 0));
            session.finish();
            run(&mut session, &mut peer);
            assert!(session.done());
        }
    }
}

#[test]
fn failures_and_resets_end_a_connection_on_both_sides() {
    for protocol in EVERY {
        let (mut session, mut peer) = pair(protocol);
        let ids: Vec<_> = (0..4).map(|_| peer.client.open(80).unwrap()).collect();
        assert_eq!(run(&mut session, &mut peer).len(), 8);
        session.fail(ids[0], "refused");
        session.reset(ids[1]);
        assert_eq!(
            run(&mut session, &mut peer),
            ["client Failed { id: Id(0), text: \"refused\" }", "client Reset { id: Id(1) }"]
        );
        peer.client.send(ids[2], b"lost");
        peer.client.reset(ids[2]);
        let seen = run(&mut session, &mut peer);
        assert_eq!(seen, ["Data 2 lost", "Reset { id: Id(2) }"]);
        session.fail(ids[2], "too late");
        session.fail(Id(99), "never there");
        assert_eq!(remembered(&session), [1, 0, 2, 2]);
        peer.client.finish();
        let seen = run(&mut session, &mut peer);
        assert_eq!(seen, ["Reset { id: Id(3) }", "Gone"]);
        assert_eq!(remembered(&session), [0; 4]);
        assert_eq!(session.event(), Ok(None));
    }
}

#[test]
fn thousands_of_connections_leave_nothing() {
    for protocol in &EVERY[..2] {
        let (mut session, mut peer) = pair(*protocol);
        for round in 0..300u64 {
            let ids: Vec<_> = (0..10).map(|_| peer.client.open(8080).unwrap()).collect();
            run(&mut session, &mut peer);
            for id in &ids {
                peer.client.send(*id, b"question");
            }
            run(&mut session, &mut peer);
            for (i, id) in ids.iter().enumerate() {
                session.send(*id, b"answer");
                match (i as u64 + round) % 5 {
                    0 => session.fail(*id, "text"),
                    1 => session.reset(*id),
                    2 => peer.client.reset(*id),
                    3 => {
                        peer.client.close(*id);
                        session.close(*id);
                    }
                    _ => {
                        session.close(*id);
                        run(&mut session, &mut peer);
                        // As kubectl: what it has finished with, it resets.
                        peer.client.reset(*id);
                    }
                }
            }
            run(&mut session, &mut peer);
            assert_eq!(remembered(&session), [0; 4]);
            assert_eq!(session.inbox.kept(), 0);
        }
        assert!(peer.client.open(1).is_some_and(|id| id.0 == 3000));
    }
}

fn raw() -> Connection {
    let limits = Limits { streams: 9, stream_window: 1 << 20, session_window: 1 << 20 };
    Connection::new(false, limits)
}

fn headers(kind: &str, port: &str, request: &str) -> Headers {
    let headers = Headers::default().with("streamType", kind).with("port", port);
    if request.is_empty() { headers } else { headers.with("requestID", request) }
}

/// Moves bytes both ways: the session's events.
fn pass(client: &mut Connection, session: &mut Session) -> Vec<String> {
    let out = client.output().to_vec();
    client.sent(out.len());
    let mut seen = Vec::new();
    for piece in out.chunks(60_000) {
        assert_eq!(session.receive(piece), piece.len());
        seen.extend(events(session));
        let back = session.output().to_vec();
        session.sent(back.len());
        client.receive(&back);
        while client.poll().unwrap().is_some() {}
    }
    seen
}

#[test]
fn streams_are_joined_by_their_request() {
    let (mut session, _) = pair(None);
    let mut client = raw();
    let data = client.open(&headers("data", "81", "b")).unwrap();
    let error = client.open(&headers("error", "80", "a")).unwrap();
    assert_eq!(pass(&mut client, &mut session), [""; 0]);
    client.send(data, b"early");
    client.open(&headers("error", "81", "b"));
    let seen = pass(&mut client, &mut session);
    assert_eq!(seen, ["Opened { id: Id(0), port: 81 }", "Data 0 early"]);
    // Of the same request again: a second one of its kind is refused, the first stays.
    let again = client.open(&headers("error", "80", "a")).unwrap();
    assert_eq!(pass(&mut client, &mut session), [""; 0]);
    assert!(!client.contains(again) && client.contains(error));
    client.open(&headers("data", "80", "a"));
    assert_eq!(pass(&mut client, &mut session), ["Opened { id: Id(1), port: 80 }"]);
    // Without a request: streams that follow each other.
    client.open(&headers("error", "82", ""));
    client.open(&headers("data", "82", ""));
    assert_eq!(pass(&mut client, &mut session), ["Opened { id: Id(2), port: 82 }"]);
    for wrong in [
        headers("data", "0", "x"),
        headers("data", "65536", "x"),
        headers("data", "", "x"),
        headers("other", "80", "x"),
        Headers::default().with("streamType", "data"),
        headers("data", "80", &"x".repeat(257)),
    ] {
        let stream = client.open(&wrong).unwrap();
        assert_eq!(pass(&mut client, &mut session), [""; 0]);
        assert!(!client.contains(stream));
    }
    assert_eq!(remembered(&session), [3, 0, 6, 6]);
}

#[test]
fn half_made_connections_are_swept() {
    let (mut session, _) = pair(None);
    let mut client = raw();
    let first = client.open(&headers("error", "80", "a")).unwrap();
    pass(&mut client, &mut session);
    session.sweep();
    let second = client.open(&headers("data", "80", "b")).unwrap();
    let third = client.open(&headers("error", "80", "c")).unwrap();
    client.send(second, b"kept");
    client.reset(third, crate::spdy::Status::Cancel);
    pass(&mut client, &mut session);
    assert_eq!(remembered(&session), [2, 2, 2, 2]);
    session.sweep();
    client.receive(session.output());
    session.sent(usize::MAX);
    while client.poll().unwrap().is_some() {}
    assert!(!client.contains(first) && client.contains(second));
    session.sweep();
    assert_eq!(remembered(&session), [0; 4]);
    assert_eq!(session.inbox.kept(), 0);
}

#[test]
fn ten_thousand_opens_are_bounded() {
    let (mut session, _) = pair(None);
    let mut client = raw();
    let mut told = 0;
    for n in 0..5000 {
        for kind in ["error", "data"] {
            client.open(&headers(kind, "80", &n.to_string()));
        }
        let out = client.output().to_vec();
        client.sent(out.len());
        // A client that reads nothing.
        if session.wants_input() {
            session.receive(&out);
            told += events(&mut session).len();
        }
    }
    assert_eq!(told, streams::STREAMS as usize / 2);
    assert_eq!(remembered(&session)[3], streams::STREAMS as usize);
    assert!(session.output().len() <= crate::spdy::BACKLOG_LIMIT + 100);
    for n in 0..1000 {
        session.fail(Id(n), &"long ".repeat(1000));
    }
    assert_eq!(remembered(&session), [0; 4]);
    assert!(session.output().len() < 2 << 20);
}

#[test]
fn one_connection_that_is_stuck_does_not_stop_the_others() {
    let (mut session, mut peer) = pair(None);
    let stuck = peer.client.open(80).unwrap();
    let other = peer.client.open(80).unwrap();
    run(&mut session, &mut peer);
    let mut sent = 0;
    while peer.client.room(stuck) > 0 {
        sent += peer.client.send(stuck, &[0; 60_000]);
        let out = peer.output();
        session.receive(&out);
        while session.event().unwrap().is_some() {}
        peer.receive(session.output());
        session.sent(usize::MAX);
        client_events(&mut peer.client);
    }
    assert_eq!(sent, 256 * 1024);
    peer.client.send(other, b"alive");
    assert_eq!(run(&mut session, &mut peer), ["Data 1 alive"]);
    session.reset(stuck);
    assert_eq!(run(&mut session, &mut peer), ["client Reset { id: Id(0) }"]);
    assert_eq!(session.inbox.kept(), 0);
}

#[test]
fn a_tunnel_that_is_closed_or_broken_ends_the_session() {
    let (mut session, mut peer) = pair(EVERY[1]);
    peer.client.open(80).unwrap();
    run(&mut session, &mut peer);
    let tunnel = peer.tunnel.as_mut().unwrap();
    tunnel.close(CLOSE_NORMAL);
    session.receive(tunnel.output());
    assert_eq!(events(&mut session), ["Gone"]);
    // SPDY that is broken closes both.
    let (mut session, mut peer) = pair(EVERY[1]);
    let tunnel = peer.tunnel.as_mut().unwrap();
    tunnel.send(Kind::Binary, &[b"GET / HTTP/1.1\r\n"]);
    session.receive(tunnel.output());
    assert_eq!(
        events(&mut session),
        ["the peer broke SPDY: a frame for a stream that was never opened"]
    );
    assert!(!session.done());
    let out = session.output().to_vec();
    session.sent(out.len());
    assert!(session.done());
    tunnel.receive(&out);
    let mut closed = false;
    while let Some(event) = tunnel.poll().unwrap() {
        closed |= matches!(event, websocket::Event::Closed { .. });
    }
    assert!(closed);
}

#[test]
fn what_is_asked_for_wrongly_is_refused() {
    let status = |request: &Request, ports: &[u16]| {
        Accepted::negotiate(request, ports).map_or_else(|r| r.status, |_| 101)
    };
    assert_eq!(status(&request(&[], "/"), &[]), 400);
    assert_eq!(status(&websocket_request("v4.channel.k8s.io", "/p"), &[]), 400);
    assert_eq!(status(&websocket_request("v4.channel.k8s.io", "/p?port=0"), &[]), 400);
    assert_eq!(status(&websocket_request("v4.channel.k8s.io", "/p?port=x"), &[]), 400);
    assert_eq!(status(&websocket_request("v4.channel.k8s.io", "/p?port=1,2&port=3"), &[]), 101);
    assert_eq!(status(&websocket_request("v4.channel.k8s.io", "/p"), &[80; 101]), 400);
    assert_eq!(status(&websocket_request("v5.channel.k8s.io", "/p"), &[80]), 403);
    assert_eq!(status(&websocket_request("", "/p"), &[80]), 101);
    assert_eq!(status(&websocket_request("v2.portforward.k8s.io", "/p"), &[]), 101);
}

/// The messages that a session sends, and the code of its close frame.
fn messages(
    session: &mut Session,
    client: &mut websocket::Connection,
) -> (Vec<Vec<u8>>, Option<u16>) {
    let (mut found, mut code) = (Vec::new(), None);
    let bytes = session.output().to_vec();
    session.sent(bytes.len());
    client.receive(&bytes);
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
    (found, code)
}

#[test]
fn channels_of_two_ports_are_served() {
    for (protocol, base64) in
        [("", false), ("v4.channel.k8s.io", false), ("v4.base64.channel.k8s.io", true)]
    {
        let request = websocket_request(protocol, "/portforward/t?port=81");
        let accepted = Accepted::negotiate(&request, &[0x1234, 80]).unwrap();
        let mut session = accepted.session();
        let mut client = websocket::Connection::new(Role::Client { seed: 2 });
        let (said, _) = messages(&mut session, &mut client);
        let ports = |a: &[u8], b: &[u8]| {
            [0, 1]
                .map(|n| [&[n], a].concat())
                .into_iter()
                .chain([2, 3].map(|n| [&[n], b].concat()))
                .collect::<Vec<_>>()
        };
        if base64 {
            assert_eq!(said, [&b"0NBI="[..], b"1NBI=", b"2UAA=", b"3UAA="]);
        } else {
            assert_eq!(said, ports(&[0x34, 0x12], &[80, 0]));
        }
        assert_eq!(
            events(&mut session),
            ["Opened { id: Id(0), port: 4660 }", "Opened { id: Id(1), port: 80 }"]
        );
        let message: &[u8] = if base64 { b"2aGk=" } else { b"\x02hi" };
        for message in [message, if base64 { b"1aGk=" } else { b"\x01hi" }, b"9", b""] {
            client.send(Kind::Binary, &[message]);
        }
        session.receive(client.output());
        client.sent(usize::MAX);
        assert_eq!(events(&mut session), ["Data 1 hi"]);
        session.send(Id(1), b"yo");
        session.fail(Id(0), "refused");
        assert_eq!(session.send(Id(0), b"late"), 0);
        session.close(Id(1));
        let (said, code) = messages(&mut session, &mut client);
        if base64 {
            assert_eq!(said, [&b"2eW8="[..], b"1cmVmdXNlZA=="]);
        } else {
            assert_eq!(said, [&b"\x02yo"[..], b"\x01refused"]);
        }
        assert_eq!(code, Some(CLOSE_NORMAL));
        assert_eq!(events(&mut session), ["Reset { id: Id(1) }"]);
        assert!(session.done());
    }
}
