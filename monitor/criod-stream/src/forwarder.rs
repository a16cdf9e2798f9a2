//! A port-forward: between the client's session and sockets in the pod.
//!
//! ```text
//!   Opened ─▶ waiting ── a place is free: DIAL ──▶ dialling ── OK + socket ──▶ open
//!                │ Reset                              │ ERR: fail                │ both sides closed,
//!                ▼                                    ▼                          ▼ or broken
//!              forgotten ◀───────────────────────────────────────────────────────┘
//! ```
//! Each connection is pumped when something happened to it and put back at the end of the queue
//! while there is more, so that none starves the others. One for which the session has no room
//! is `stalled` until bytes have gone out or come in.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use stream::forward::{Event, Id, Session};
use sys::seqpacket::{Conn, Message};

use crate::link::{LINGER, Link};
use crate::poller::Ready;
use crate::sandbox::FILES;
use crate::say::say;
use crate::serve::{self, FORWARDED, Fatal, PEER, Place, WIRE};

/// Descriptors for everything but forwarded connections.
const RESERVE: usize = 64;
/// Connections that are pumped between two looks at what else has happened.
const TURNS: usize = 64;
/// What the pod says is read while less than this waits for the socket, in bytes.
const TOGETHER: usize = 64 * 1024;
/// How often half-made connections are looked for.
const SWEEP: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Forwarded {
    port: u16,
    /// Once dialled.
    socket: Option<OwnedFd>,
    ready: Ready,
    /// It has a place, and is dialled or open.
    placed: bool,
    /// The client sends nothing more.
    client_closed: bool,
    /// That was passed on.
    shut: bool,
    /// The pod sends nothing more.
    pod_closed: bool,
    /// The pod takes nothing more: what comes for it is thrown away.
    deaf: bool,
    queued: bool,
    stalled: bool,
}

/// The client is gone.
struct Gone(Option<String>);

struct Forwarder {
    place: Place,
    link: Link<Session>,
    /// The dialer, while it lives.
    dialer: Option<Conn>,
    dialer_ready: Ready,
    all: HashMap<u64, Forwarded>,
    /// How many may have a place, and how many have.
    places: usize,
    placed: usize,
    /// Without a place, in their order.
    waiting: VecDeque<u64>,
    queue: VecDeque<u64>,
    stalled: Vec<u64>,
    /// The session was told to finish.
    finishing: bool,
    limit: Option<Instant>,
    /// Half-made connections are looked for then, while any may be there.
    sweep: Option<Instant>,
    sweeps: u8,
}

/// Serves the connections to the end of the session.
pub(crate) fn run(
    place: Place,
    link: Link<Session>,
    most: usize,
    dialer: Conn,
) -> Result<(), Fatal> {
    let begun = sys::pipe::set_nonblocking(dialer.as_fd());
    begun.and_then(|()| place.poller.add(&dialer, PEER)).map_err(|e| format!("dialer: {e}"))?;
    let mut forwarder = Forwarder {
        place,
        link,
        dialer: Some(dialer),
        dialer_ready: Ready { read: true, write: true, ..Ready::default() },
        all: HashMap::new(),
        places: most.clamp(1, FILES as usize - RESERVE),
        placed: 0,
        waiting: VecDeque::new(),
        queue: VecDeque::new(),
        stalled: Vec::new(),
        finishing: false,
        limit: None,
        sweep: None,
        sweeps: 0,
    };
    match forwarder.serve() {
        Ok(()) => {
            serve::close(&mut forwarder.place, forwarder.link.into_wire());
            Ok(())
        }
        Err(Gone(None)) => Ok(()),
        Err(Gone(Some(text))) => Err(text),
    }
}

/// What kubectl shows after "an error occurred forwarding".
fn failure(port: u16, text: &str) -> String {
    format!(
        "error forwarding port {port}: failed to connect to localhost:{port} in the pod: {text}"
    )
}

impl Forwarder {
    fn serve(&mut self) -> Result<(), Gone> {
        loop {
            let moved = self.pass()?;
            if self.link.done() {
                return Ok(());
            }
            let now = Instant::now();
            self.swept(now);
            let idle = self.link.last + self.place.idle;
            let end = self.limit.map_or(idle, |limit| limit.min(idle));
            if now >= end {
                self.late()?;
                continue;
            }
            let until = if moved { now } else { self.sweep.map_or(end, |at| at.min(end)) };
            self.place.wait(Some(until)).map_err(|e| Gone(Some(format!("epoll: {e}"))))?;
            for i in 0..self.place.events.len() {
                let (key, flags) = self.place.events[i];
                match key {
                    WIRE => self.link.ready().take(flags),
                    PEER => self.dialer_ready.take(flags),
                    key => {
                        let key = key.wrapping_sub(FORWARDED);
                        if let Some(it) = self.all.get_mut(&key) {
                            it.ready.take(flags);
                            self.enqueue(key);
                        }
                    }
                }
            }
            self.place.attend();
        }
    }

    fn swept(&mut self, now: Instant) {
        if self.sweep.is_some_and(|at| at <= now) {
            self.link.session.sweep();
            self.sweeps -= 1;
            self.sweep = (self.sweeps > 0).then(|| now + SWEEP);
        }
    }

    /// A deadline has passed.
    fn late(&mut self) -> Result<(), Gone> {
        if self.finishing {
            return Err(Gone(None));
        }
        say!("nothing was sent for {} s", self.place.idle.as_secs());
        self.finish();
        self.link.session.finish();
        self.link.last = Instant::now();
        Ok(())
    }

    /// Ends every connection; the client gets what is on its way already.
    fn finish(&mut self) {
        self.all = HashMap::new();
        self.waiting = VecDeque::new();
        self.queue = VecDeque::new();
        self.stalled = Vec::new();
        self.dialer = None;
        self.finishing = true;
        self.limit = Some(Instant::now() + LINGER);
    }

    /// Moves what can be moved, once; true where that was something.
    fn pass(&mut self) -> Result<bool, Gone> {
        let mut moved = self.hear();
        let came = self.link.input().map_err(|_| Gone(None))?;
        if came && self.sweep.is_none() {
            self.sweep = Some(Instant::now() + SWEEP);
        }
        if came {
            self.sweeps = 2;
        }
        moved |= came | self.events()?;
        self.dial();
        for _ in 0..TURNS {
            let Some(key) = self.queue.pop_front() else { break };
            moved |= self.turn(key);
        }
        let went = self.link.output().map_err(|_| Gone(None))?;
        if came || went {
            for key in std::mem::take(&mut self.stalled) {
                if let Some(it) = self.all.get_mut(&key) {
                    it.stalled = false;
                    self.enqueue(key);
                }
            }
        }
        Ok(moved | went | !self.queue.is_empty())
    }

    fn enqueue(&mut self, key: u64) {
        if let Some(it) = self.all.get_mut(&key)
            && !it.queued
        {
            it.queued = true;
            self.queue.push_back(key);
        }
    }

    fn remove(&mut self, key: u64) {
        if self.all.remove(&key).is_some_and(|it| it.placed) {
            self.placed -= 1;
        }
    }

    /// What the dialer says.
    fn hear(&mut self) -> bool {
        let mut heard = false;
        while self.dialer_ready.read
            && let Some(dialer) = &self.dialer
        {
            match dialer.recv() {
                Ok(Some(message)) => self.told(message),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.dialer_ready.read = false;
                    break;
                }
                Ok(None) => self.dialer_gone("the dialer has ended"),
                Err(e) => self.dialer_gone(&format!("dialer: {e}")),
            }
            heard = true;
        }
        heard
    }

    /// No new connections any more; those that are open go on.
    fn dialer_gone(&mut self, text: &str) {
        say!("{text}");
        self.dialer = None;
        let lost: Vec<u64> =
            self.all.iter().filter(|(_, it)| it.socket.is_none()).map(|(key, _)| *key).collect();
        for key in lost {
            self.fail(key, text);
        }
    }

    fn fail(&mut self, key: u64, text: &str) {
        if let Some(it) = self.all.get(&key) {
            self.link.session.fail(Id(key), &failure(it.port, text));
            self.remove(key);
        }
    }

    fn told(&mut self, message: Message) {
        let fields: Vec<&str> = message.fields.iter().map(String::as_str).collect();
        let (key, outcome) = match fields[..] {
            ["OK", id] => (id.parse(), message.fds.into_iter().next().ok_or("no socket")),
            ["ERR", id, text] => (id.parse(), Err(text)),
            _ => {
                say!("the dialer's {:?} was not expected", fields.first());
                return;
            }
        };
        // Where the client has given it up meanwhile, the socket is closed here.
        let Ok(key) = key else { return };
        let Some(it) = self.all.get_mut(&key) else { return };
        match outcome {
            Ok(socket) => {
                if let Err(e) = self.place.poller.add(&socket, FORWARDED + key) {
                    return self.fail(key, &e.to_string());
                }
                it.socket = Some(socket);
                it.ready = Ready { read: true, write: true, ..Ready::default() };
                self.enqueue(key);
            }
            Err(text) => self.fail(key, text),
        }
    }

    /// Has those dialled for which there is a place.
    fn dial(&mut self) {
        while self.placed < self.places
            && let Some(key) = self.waiting.front().copied()
        {
            let Some(it) = self.all.get_mut(&key) else {
                self.waiting.pop_front();
                continue;
            };
            let Some(dialer) = &self.dialer else {
                self.waiting.pop_front();
                self.fail(key, "the dialer has ended");
                continue;
            };
            if !self.dialer_ready.write {
                return;
            }
            match dialer.send(&["DIAL", &key.to_string(), &it.port.to_string()], &[]) {
                Ok(()) => {
                    it.placed = true;
                    self.placed += 1;
                    self.waiting.pop_front();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.dialer_ready.write = false,
                Err(e) => self.dialer_gone(&format!("dialer: {e}")),
            }
        }
    }

    /// What the client says.
    fn events(&mut self) -> Result<bool, Gone> {
        let mut any = false;
        loop {
            match self.link.session.event() {
                Ok(None) => return Ok(any),
                Ok(Some(Event::Opened { id, port })) => {
                    self.all.insert(id.0, Forwarded { port, ..Forwarded::default() });
                    self.waiting.push_back(id.0);
                }
                Ok(Some(Event::Data { id, bytes })) => {
                    let n = match self.all.get_mut(&id.0) {
                        Some(it) => it.write(bytes),
                        None => bytes.len(),
                    };
                    self.link.session.consumed(id, n);
                }
                Ok(Some(Event::Closed { id })) => {
                    if let Some(it) = self.all.get_mut(&id.0) {
                        it.client_closed = true;
                        self.enqueue(id.0);
                    }
                }
                Ok(Some(Event::Reset { id })) => self.remove(id.0),
                Ok(Some(Event::Gone)) => return Err(Gone(None)),
                Err(e) => {
                    // It has told the client already.
                    say!("{e}");
                    self.finish();
                    return Ok(true);
                }
            }
            any = true;
        }
    }

    /// Pumps one connection; true where something was moved.
    fn turn(&mut self, key: u64) -> bool {
        let Some(it) = self.all.get_mut(&key) else { return false };
        it.queued = false;
        let id = Id(key);
        let session = &mut self.link.session;
        let mut moved = false;
        if it.socket.is_none() {
            return false;
        }
        let bytes = session.pending(id);
        if !bytes.is_empty() {
            let n = it.write(bytes);
            session.consumed(id, n);
            moved |= n > 0;
        }
        if it.client_closed && !it.shut {
            it.shut = true;
            it.shutdown();
            moved = true;
        }
        if it.ready.read && !it.pod_closed {
            // While the socket takes no more, to read more would only mean to move it about.
            let full = session.output().len() >= TOGETHER;
            let space = if full { &mut [] } else { session.send_space(id) };
            if space.is_empty() {
                if !it.stalled {
                    it.stalled = true;
                    self.stalled.push(key);
                }
            } else {
                let got = it.read(space);
                session.send_filled(id, *got.as_ref().unwrap_or(&0));
                match got {
                    Ok(0) => {
                        session.close(id);
                        it.pod_closed = true;
                        moved = true;
                    }
                    Ok(_) => moved = true,
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(_) => {
                        session.reset(id);
                        self.remove(key);
                        return true;
                    }
                }
            }
        }
        if it.client_closed && it.pod_closed {
            self.remove(key);
            return true;
        }
        if moved {
            self.enqueue(key);
        }
        moved
    }
}

impl Forwarded {
    /// Writes what the pod takes. What it takes no more is thrown away: whether it has anything
    /// more to say shows when it is read.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(socket) = &self.socket else { return 0 };
        let mut from = 0;
        while self.ready.write && !self.deaf && from < bytes.len() {
            match nix::unistd::write(socket, &bytes[from..]) {
                Ok(n) => from += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.ready.write = false,
                Err(_) => self.deaf = true,
            }
        }
        if self.deaf { bytes.len() } else { from }
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let Some(socket) = &self.socket else { return Err(Errno::EAGAIN) };
        let got = nix::unistd::read(socket, into);
        if got == Err(Errno::EAGAIN) {
            self.ready.read = false;
        }
        got
    }

    fn shutdown(&self) {
        if let Some(socket) = &self.socket {
            // It may have closed already.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
        }
    }
}
