//! Port-forward over SPDY: a real dialer in a network namespace that the test made, and a client
//! that opens many connections.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc;

use common::client::Spdy;
use common::{PATIENCE, Stream, noise, peers, recv};
use nix::sched::{CloneFlags, unshare};
use sys::seqpacket::Conn;

/// A network namespace with a server that does with each connection what `with` says. It ends with
/// the test.
struct Pod {
    namespace: File,
    port: u16,
    /// Where nobody listens.
    closed: u16,
}

impl Pod {
    fn new(address: &str, with: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> Pod {
        let address: SocketAddr = address.parse().unwrap();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let closed = TcpListener::bind(address).unwrap().local_addr().unwrap().port();
            let namespace = File::open("/proc/thread-self/ns/net").unwrap();
            tell.send(Pod { namespace, port, closed }).unwrap();
            for tcp in listener.incoming() {
                let (tcp, with) = (tcp.unwrap(), with.clone());
                std::thread::spawn(move || with(tcp));
            }
        });
        told.recv().unwrap()
    }

    fn echo() -> Pod {
        Pod::new("127.0.0.1:0", |mut tcp| {
            let mut chunk = [0; 65536];
            while let Ok(n) = tcp.read(&mut chunk) {
                if n == 0 || tcp.write_all(&chunk[..n]).is_err() {
                    break;
                }
            }
        })
    }

    fn dialer(&self) -> Stream {
        let dialer = Stream::with(&["--dial"]);
        dialer.say(&["ENTER"], &[self.namespace.as_fd()]);
        assert_eq!(dialer.hear(), ["OK"]);
        dialer
    }
}

struct Session {
    client: Spdy,
    stream: Stream,
    next: u32,
}

impl Session {
    fn begin(dialer: &Conn) -> Session {
        Session::limited(dialer, "1000")
    }

    fn limited(dialer: &Conn, most: &str) -> Session {
        let stream = Stream::idle();
        let tcp = stream.connect(&["CONN", "14400000", "10000", most], &[]);
        let client = std::thread::spawn(move || {
            Spdy::plain(tcp, "/portforward/TOKEN", "portforward.k8s.io")
        });
        let ask = ["ASK", "portforward", "TOKEN"];
        stream.answer(&ask, &["FORWARD"], &[dialer.as_fd()]);
        Session { client: client.join().unwrap(), stream, next: 0 }
    }

    /// A connection: its error and its data stream.
    fn open(&mut self, port: u16) -> (u32, u32) {
        let (port, id) = (port.to_string(), self.next.to_string());
        self.next += 1;
        let mut streams = ["error", "data"].map(|kind| {
            self.client.open(&[("streamtype", kind), ("port", &port), ("requestID", &id)])
        });
        // As kubectl does.
        self.client.conn.close(streams[0]);
        let before = self.client.replied;
        self.client.until("replies", |c| c.replied >= before + 2);
        streams.sort_unstable();
        (streams[0], streams[1])
    }

    fn finished(&mut self, stream: u32) {
        self.client.until("its end", |c| c.finished.contains(&stream) || c.reset.contains(&stream));
    }
}

#[test]
fn a_connection_goes_both_ways_and_its_halves_close_one_by_one() {
    // Reads to the end first, then answers: without half-close it would wait for ever.
    let pod = Pod::new("127.0.0.1:0", |mut tcp| {
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).unwrap();
        all.reverse();
        tcp.write_all(&all).unwrap();
    });
    let dialer = pod.dialer();
    let mut s = Session::begin(&dialer.control);
    let bytes = noise(3 << 20);
    let (error, data) = s.open(pod.port);
    s.client.send(data, &bytes);
    s.client.close(data);
    s.finished(data);
    assert!(s.client.on(data).iter().rev().eq(bytes.iter()));
    s.finished(error);
    assert_eq!(s.client.text(error), "");
}

#[test]
fn the_pod_may_close_first_and_still_listen() {
    let (tell, told) = mpsc::channel();
    let pod = Pod::new("127.0.0.1:0", move |mut tcp| {
        tcp.write_all(b"bye").unwrap();
        tcp.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        tcp.read_to_string(&mut rest).unwrap();
        tell.send(rest).unwrap();
    });
    let dialer = pod.dialer();
    let mut s = Session::begin(&dialer.control);
    let (_, data) = s.open(pod.port);
    s.finished(data);
    assert_eq!(s.client.text(data), "bye");
    s.client.send(data, b"one more thing");
    s.client.close(data);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "one more thing");
}

#[test]
fn ipv6_is_tried_after_ipv4() {
    let pod = Pod::new("[::1]:0", |mut tcp| {
        let from = tcp.peer_addr().unwrap().ip();
        assert_eq!(from, Ipv6Addr::LOCALHOST);
        tcp.write_all(b"six").unwrap();
    });
    let dialer = pod.dialer();
    let mut s = Session::begin(&dialer.control);
    let (_, data) = s.open(pod.port);
    s.finished(data);
    assert_eq!(s.client.text(data), "six");
}

#[test]
fn a_port_where_nobody_listens_is_told_and_the_others_go_on() {
    let pod = Pod::echo();
    let dialer = pod.dialer();
    let mut s = Session::begin(&dialer.control);
    let (_, good) = s.open(pod.port);
    let (error, _) = s.open(pod.closed);
    s.finished(error);
    let text = s.client.text(error);
    let port = pod.closed;
    assert!(text.contains(&format!("127.0.0.1:{port}: connect: connection refused")), "{text}");
    assert!(text.contains(&format!("[::1]:{port}: connect: connection refused")), "{text}");
    s.client.send(good, b"still here");
    s.client.until("the echo", |c| c.on(good) == b"still here");
}

#[test]
fn a_connection_that_breaks_ends_alone() {
    let pod = Pod::new("127.0.0.1:0", |mut tcp| {
        let mut first = [0];
        tcp.read_exact(&mut first).unwrap();
        if &first == b"x" {
            // Unread input makes the kernel reset it.
            tcp.peek(&mut first).unwrap();
            return;
        }
        tcp.write_all(&first).unwrap();
        let _ = tcp.read(&mut first);
    });
    let dialer = pod.dialer();
    let mut s = Session::begin(&dialer.control);
    let (_, good) = s.open(pod.port);
    let (_, bad) = s.open(pod.port);
    s.client.send(bad, b"xx and a lot more");
    s.finished(bad);
    s.client.send(good, b"g");
    s.client.until("the echo", |c| c.on(good) == b"g");
    assert!(s.stream.is_alive());
}

#[test]
fn one_that_takes_nothing_holds_up_no_other() {
    let pod = Pod::new("127.0.0.1:0", |mut tcp| {
        let mut first = [0];
        tcp.read_exact(&mut first).unwrap();
        if &first == b"s" {
            std::thread::park();
        }
        tcp.write_all(&first).unwrap();
    });
    let dialer = pod.dialer();
    let mut s = Session::begin(&dialer.control);
    let (_, stuck) = s.open(pod.port);
    s.client.send(stuck, b"s");
    // What its window allows, and no more: a client that keeps to it is what a session needs.
    let bytes = noise(65536);
    let mut quiet = 0;
    while quiet < 100 {
        s.client.conn.send(stuck, &bytes);
        if s.client.pump() {
            quiet = 0;
        } else {
            quiet += 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    let (_, other) = s.open(pod.port);
    s.client.send(other, b"o");
    s.client.until("the echo", |c| c.on(other) == b"o");
    assert!(s.stream.private_memory() < 16 << 20);
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let pod = Pod::echo();
    let dialer = pod.dialer();
    let mut s = Session::begin(&dialer.control);
    let round = |s: &mut Session, n: usize| {
        let open: Vec<_> = (0..n).map(|_| s.open(pod.port)).collect();
        for (_, data) in &open {
            s.client.send(*data, b"ping");
            s.client.close(*data);
        }
        for (error, data) in open {
            s.finished(data);
            s.finished(error);
            assert_eq!(s.client.text(data), "ping");
            assert_eq!(s.client.text(error), "");
        }
        s.client.got.clear();
        s.client.finished.clear();
    };
    round(&mut s, 100);
    let before = (s.stream.descriptors(), dialer.descriptors());
    let memory = s.stream.private_memory();
    for _ in 0..100 {
        round(&mut s, 100);
    }
    // Its sockets are closed as it turns to them.
    s.client.until("all is closed", |_| s.stream.descriptors() <= before.0);
    assert_eq!(dialer.descriptors(), before.1);
    let now = s.stream.private_memory();
    assert!(now < memory + (1 << 20), "{memory} {now}");
}

#[test]
fn streams_that_are_opened_and_left_are_bounded() {
    let pod = Pod::echo();
    let dialer = pod.dialer();
    let mut s = Session::limited(&dialer.control, "20");
    let (port, before) = (pod.port.to_string(), s.stream.descriptors());
    for id in 0..10_000 {
        let id = id.to_string();
        for kind in ["error", "data"] {
            let all = [("streamtype", kind), ("port", &*port), ("requestID", &*id)];
            let headers =
                all.iter().fold(stream::spdy::Headers::default(), |all, (k, v)| all.with(k, *v));
            if s.client.conn.open(&headers).is_none() {
                s.client.pump();
            }
        }
        s.client.pump();
    }
    assert!(s.stream.is_alive());
    assert!(s.stream.descriptors() <= before + 20);
    assert!(s.stream.private_memory() < 16 << 20, "{}", s.stream.private_memory());
}

#[test]
fn those_beyond_the_limit_wait_for_their_turn() {
    let pod = Pod::echo();
    let dialer = pod.dialer();
    let mut s = Session::limited(&dialer.control, "2");
    let open: Vec<_> = (0..5).map(|_| s.open(pod.port)).collect();
    for (_, data) in &open {
        s.client.send(*data, b"now");
    }
    for (i, (error, data)) in open.iter().enumerate() {
        s.client.until("the echo", |c| c.on(*data) == b"now");
        // The places are the first two's until they close.
        assert!(open[i + 1..].iter().skip(1).all(|(_, later)| s.client.on(*later).is_empty()));
        s.client.close(*data);
        s.finished(*error);
    }
}

#[test]
fn silence_ends_the_session_after_its_time() {
    let pod = Pod::echo();
    let dialer = pod.dialer();
    let stream = Stream::idle();
    let tcp = stream.connect(&["CONN", "500", "10000", "1000"], &[]);
    let client =
        std::thread::spawn(move || Spdy::plain(tcp, "/portforward/TOKEN", "portforward.k8s.io"));
    stream.answer(&["ASK", "portforward", "TOKEN"], &["FORWARD"], &[dialer.control.as_fd()]);
    let mut s = Session { client: client.join().unwrap(), stream, next: 0 };
    let (_, data) = s.open(pod.port);
    s.client.send(data, b"x");
    s.client.until("the end", |c| c.ended);
    assert_eq!(s.client.on(data), b"x");
    let Session { client, mut stream, .. } = s;
    drop(client);
    stream.wait();
    assert!(stream.log().contains("nothing was sent for"), "{}", stream.log());
}

#[test]
fn connections_outlive_their_dialer_and_new_ones_are_told() {
    let pod = Pod::echo();
    let dialer = pod.dialer();
    let mut s = Session::begin(&dialer.control);
    let (_, open) = s.open(pod.port);
    s.client.send(open, b"1");
    s.client.until("the echo", |c| c.on(open) == b"1");
    drop(dialer);
    s.client.send(open, b"2");
    s.client.until("the echo", |c| c.on(open) == b"12");
    let (error, _) = s.open(pod.port);
    s.finished(error);
    assert!(s.client.text(error).contains("the dialer has ended"), "{}", s.client.text(error));
}

#[test]
fn what_the_client_gives_up_while_it_is_dialled_is_closed() {
    let (ours, theirs) = peers();
    let mut s = Session::begin(&theirs);
    drop(theirs);
    let (_, data) = s.open(80);
    let dial = recv(&ours).fields;
    assert_eq!((&*dial[0], &*dial[2]), ("DIAL", "80"));
    s.client.conn.reset(data, stream::spdy::Status::Cancel);
    // The next one shows that the reset has been seen.
    let (error, _) = s.open(81);
    let next = recv(&ours).fields;
    let (mut far, near) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.send(&["OK", &dial[1]], &[near.as_fd()]).unwrap();
    drop(near);
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
    // Nonsense of the dialer's is of no consequence, either.
    for fields in [&["OK", "x"][..], &["OK", "99"], &["WHAT"], &["ERR", "99", "text"]] {
        ours.send(fields, &[]).unwrap();
    }
    ours.send(&["ERR", &next[1], "it is dark"], &[]).unwrap();
    s.finished(error);
    assert!(s.client.text(error).contains("it is dark"));
}

#[test]
fn a_dialer_answers_each_request_by_its_id() {
    let pod = Pod::echo();
    let dialer = pod.dialer();
    dialer.say(&["DIAL", "a", "0"], &[]);
    dialer.say(&["DIAL", "b", "70000"], &[]);
    dialer.say(&["WHAT"], &[]);
    let (refused, port) = (pod.closed.to_string(), pod.port.to_string());
    dialer.say(&["DIAL", "c", &refused], &[]);
    dialer.say(&["DIAL", "d", &port], &[]);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let answer = recv(&dialer.control);
        seen.push(format!("{} {}", answer.fields[0], answer.fields[1]));
        assert_eq!(answer.fds.len(), usize::from(answer.fields[0] == "OK"));
        for socket in answer.fds {
            let mut tcp = TcpStream::from(socket);
            tcp.set_nonblocking(false).unwrap();
            tcp.write_all(b"hello").unwrap();
            tcp.read_exact(&mut [0; 5]).unwrap();
        }
    }
    seen.sort();
    assert_eq!(seen, ["ERR a", "ERR b", "ERR c", "OK d"]);
    // Outside nobody listens there, or somebody else.
    assert_ne!(
        std::fs::read_link(format!("/proc/{}/ns/net", dialer.pid())).unwrap(),
        std::fs::read_link("/proc/self/ns/net").unwrap()
    );
}

#[test]
fn a_dialer_that_cannot_enter_says_so_and_ends() {
    let mut dialer = Stream::with(&["--dial"]);
    let file = common::memfd(b"no namespace");
    dialer.say(&["ENTER"], &[file.as_fd()]);
    let answer = dialer.hear();
    assert_eq!(answer[0], "ERR");
    assert!(answer[1].contains("namespace"), "{answer:?}");
    assert!(!dialer.wait().success());
}
