//! From an idle process to an upgraded connection.
//!
//! ```text
//!            CONN               head complete             answer
//!   idle ───────────▶ reading ────────────────▶ asking ───────────▶ upgraded ─▶ remote, forward
//!    │ criod gone        │ wrong, too slow         │ no, too late      │ not agreed upon
//!    ▼                   ▼                         ▼                   ▼
//!   end                 refusal, and the end ◀─────────────────────────┘
//! ```
//! No more than a head is read before the answer; what else the client sends waits in the kernel.

use std::io;
use std::time::{Duration, Instant};

use stream::http::{HEAD_LIMIT, Refusal, Request};
use stream::{forward, remote};
use sys::seqpacket::Conn;

use crate::control::{Answer, Control, Job, Said};
use crate::link::{LINGER, Link};
use crate::poller::{Event, Poller};
use crate::sandbox::{self, Role};
use crate::say::say;
use crate::wire::Wire;
use crate::{forwarder, tls, tunnel};

/// How long criod may take to answer, its death and rebirth included.
const ANSWER: Duration = Duration::from_secs(120);
/// Longest token.
const TOKEN_LIMIT: usize = 128;

/// Keys in the epoll set.
pub(crate) const CONTROL: u64 = 0;
pub(crate) const WIRE: u64 = 1;
/// The monitor or the dialer.
pub(crate) const PEER: u64 = 2;
pub(crate) const STDIN: u64 = 3;
pub(crate) const STDOUT: u64 = 4;
pub(crate) const STDERR: u64 = 5;
/// Forwarded connections, from here on.
pub(crate) const FORWARDED: u64 = 16;

/// What every phase needs.
pub(crate) struct Place {
    pub(crate) poller: Poller,
    pub(crate) control: Control,
    /// What the last wait brought; the control socket's are taken out.
    pub(crate) events: Vec<Event>,
    /// How long a connection may be silent.
    pub(crate) idle: Duration,
}

impl Place {
    /// Waits for events, at most until `deadline`.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.poller.wait(deadline, &mut self.events)?;
        let ready = &mut self.control.ready;
        self.events.retain(|(key, flags)| {
            if *key == CONTROL {
                ready.take(*flags);
            }
            *key != CONTROL
        });
        Ok(())
    }

    /// Answers criod where nothing is expected of it any more.
    pub(crate) fn attend(&mut self) {
        while self.control.next().is_some() {}
    }
}

/// Why a process ends with an error: one line for the log.
pub(crate) type Fatal = String;

fn fatal(what: &'static str) -> impl Fn(io::Error) -> Fatal {
    move |e| format!("{what}: {e}")
}

/// Locks the process up, waits for a connection and serves it to its end.
pub(crate) fn run(conn: Conn) -> Result<(), Fatal> {
    let poller = Poller::new().map_err(fatal("epoll"))?;
    let control = Control::new(conn).map_err(fatal("control socket"))?;
    poller.add(&control, CONTROL).map_err(fatal("epoll"))?;
    sandbox::lock(Role::Stream).map_err(|e| e.to_string())?;
    let mut place = Place { poller, control, events: Vec::new(), idle: Duration::ZERO };
    let job = loop {
        match place.control.next() {
            Some(Said::Serve(job)) => break job,
            Some(Said::Answer(_)) => {}
            None if place.control.open => place.wait(None).map_err(fatal("epoll"))?,
            None => return Ok(()),
        }
    };
    let Job { socket, idle, patience, forwarded, tls } = job;
    place.idle = idle;
    let tls = tls.map(tls::server).transpose().map_err(|e| format!("TLS: {e}"))?;
    let mut wire = Wire::new(socket, tls).map_err(fatal("connection"))?;
    place.poller.add(wire.fd(), WIRE).map_err(fatal("connection"))?;
    match upgrade(&mut place, &mut wire, patience) {
        Ok(Upgraded { head, early, answer }) => {
            begin(place, wire, forwarded, &head, &early, answer)
        }
        Err(Ended::Refused(refusal)) => {
            refuse(&mut place, wire, &refusal);
            Ok(())
        }
        Err(Ended::Gone(text)) => Err(text),
    }
}

/// A request and what its token stands for.
struct Upgraded {
    head: Request,
    /// Bytes that came after the head.
    early: Vec<u8>,
    answer: Answer,
}

/// How a connection ends before its upgrade.
enum Ended {
    Refused(Refusal),
    /// There is nobody to tell.
    Gone(Fatal),
}

fn refused(status: u16, text: &str) -> Ended {
    Ended::Refused(Refusal::new(status, text))
}

fn gone(what: &'static str) -> impl Fn(io::Error) -> Ended {
    move |e| Ended::Gone(fatal(what)(e))
}

fn upgrade(place: &mut Place, wire: &mut Wire, patience: Duration) -> Result<Upgraded, Ended> {
    let (head, early) = read_head(place, wire, Instant::now() + patience)?;
    let (kind, token) = route(&head)?;
    place.control.ask(kind, token);
    let answer = await_answer(place, wire, Instant::now() + ANSWER)?;
    place.control.busy();
    Ok(Upgraded { head, early, answer })
}

/// Waits, and takes in what concerns the connection.
fn wait(place: &mut Place, wire: &mut Wire, deadline: Instant) -> Result<(), Ended> {
    place.wait(Some(deadline)).map_err(gone("epoll"))?;
    for (key, flags) in &place.events {
        if *key == WIRE {
            wire.ready.take(*flags);
        }
    }
    Ok(())
}

fn read_head(
    place: &mut Place,
    wire: &mut Wire,
    deadline: Instant,
) -> Result<(Request, Vec<u8>), Ended> {
    let mut bytes = Vec::new();
    loop {
        let from = bytes.len();
        bytes.resize(HEAD_LIMIT, 0);
        let got = wire.read(&mut bytes[from..]);
        bytes.truncate(from + *got.as_ref().unwrap_or(&0));
        match got {
            Ok(0) if from == HEAD_LIMIT => return Err(refused(431, "the head is too long")),
            // A probe of the port is no news.
            Ok(0) if from == 0 => return Err(Ended::Gone("the client said nothing".into())),
            Ok(0) => return Err(Ended::Gone("the client left within its request".into())),
            Ok(_) if bytes[from..].contains(&b'\n') => match Request::parse(&bytes) {
                Ok(Some((head, length))) => return Ok((head, bytes.split_off(length))),
                Ok(None) => {}
                Err(e) => return Err(Ended::Refused(e.refusal())),
            },
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                bytes.shrink_to_fit();
                wait(place, wire, deadline)?;
                place.attend();
                wire.flush().map_err(gone("connection"))?;
            }
            Err(e) => return Err(Ended::Gone(format!("connection: {e}"))),
        }
        // Also where there is always something to read.
        if Instant::now() >= deadline {
            return Err(refused(408, "no request came in time"));
        }
    }
}

/// What the path names.
fn route(head: &Request) -> Result<(&'static str, String), Ended> {
    let mut parts = head.path.strip_prefix('/').unwrap_or_default().split('/');
    let (kind, token) = match (parts.next(), parts.next(), parts.next()) {
        (Some("exec"), Some(token), None) => ("exec", token),
        (Some("attach"), Some(token), None) => ("attach", token),
        (Some("portforward"), Some(token), None) => ("portforward", token),
        _ => return Err(refused(404, "no such page")),
    };
    if !matches!(head.method.as_str(), "GET" | "POST") {
        let mut refusal = Refusal::new(405, "only GET and POST");
        refusal.headers.push(("Allow", "GET, POST".into()));
        return Err(Ended::Refused(refusal));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if token.is_empty() || token.len() > TOKEN_LIMIT || !token.bytes().all(plain) {
        return Err(refused(404, "no such page"));
    }
    Ok((kind, token.to_owned()))
}

fn await_answer(place: &mut Place, wire: &mut Wire, deadline: Instant) -> Result<Answer, Ended> {
    loop {
        match place.control.next() {
            Some(Said::Answer(Answer::No(status, text))) => return Err(refused(status, &text)),
            Some(Said::Answer(answer)) => return Ok(answer),
            Some(Said::Serve(_)) => continue,
            None => {}
        }
        if !place.control.open {
            return Err(refused(503, "the container runtime is not there"));
        }
        if wire.ready.ended {
            return Err(Ended::Gone("the client left before its answer".into()));
        }
        if Instant::now() >= deadline {
            return Err(refused(503, "the container runtime did not answer in time"));
        }
        wait(place, wire, deadline)?;
    }
}

/// Agrees on a protocol and serves the streams.
fn begin(
    mut place: Place,
    wire: Wire,
    forwarded: usize,
    head: &Request,
    early: &[u8],
    answer: Answer,
) -> Result<(), Fatal> {
    let refusal = match answer {
        Answer::No(status, text) => Refusal::new(status, text),
        Answer::Exec(wants, peer) => match remote::Accepted::negotiate(head, wants) {
            Ok(accepted) => {
                let link = Link::new(wire, accepted.response(), accepted.session(), early);
                return tunnel::run(place, link, tunnel::Kind::Exec, wants, peer);
            }
            Err(refusal) => refusal,
        },
        Answer::Attach(wants, peer) => match remote::Accepted::negotiate(head, wants) {
            Ok(accepted) => {
                let link = Link::new(wire, accepted.response(), accepted.session(), early);
                return tunnel::run(place, link, tunnel::Kind::Attach, wants, peer);
            }
            Err(refusal) => refusal,
        },
        Answer::Forward(ports, peer) => match forward::Accepted::negotiate(head, &ports) {
            Ok(accepted) => {
                let link = Link::new(wire, accepted.response(), accepted.session(), early);
                return forwarder::run(place, link, forwarded, peer);
            }
            Err(refusal) => refusal,
        },
    };
    refuse(&mut place, wire, &refusal);
    Ok(())
}

/// Answers a request that is not upgraded.
fn refuse(place: &mut Place, mut wire: Wire, refusal: &Refusal) {
    say!("refused: {} {}", refusal.status, refusal.text);
    let response = refusal.response();
    let mut rest = &response[..];
    let deadline = Instant::now() + LINGER;
    while !rest.is_empty() && Instant::now() < deadline {
        match wire.write(rest) {
            Ok(n) => rest = &rest[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if wait(place, &mut wire, deadline).is_err() {
                    return;
                }
                place.attend();
            }
            Err(_) => return,
        }
    }
    close(place, wire);
}

/// Ends a connection so that the client reads all that was sent: a close with unread input would
/// reset it.
pub(crate) fn close(place: &mut Place, mut wire: Wire) {
    let deadline = Instant::now() + LINGER;
    wire.close_notify();
    let mut ended = false;
    let mut waste = vec![0; 16 * 1024];
    while Instant::now() < deadline {
        match wire.flush() {
            Ok(true) if !ended => {
                wire.end();
                ended = true;
            }
            Ok(_) => {}
            Err(_) => return,
        }
        match wire.read(&mut waste) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if wait(place, &mut wire, deadline).is_err() {
                    return;
                }
                place.attend();
            }
            Err(_) => return,
        }
    }
}
