//! An exec or attach: between the client's session and the command's ends.
//!
//! ```text
//!   opening ── all streams there: GO ──▶ starting ── OK, ERR ──▶ running
//!      │ 30 s                                                      │ EXIT, and all output read
//!      ▼                                                           │ monitor gone, too slow, idle
//!   finishing ◀────────────────────────────────────────────────────┘
//!      │ all said and sent, or no longer taken          client gone, at any time: the end
//!      ▼
//!     end
//! ```
//! Exec: output is read only while the session has room for it, so a slow client slows the command
//! and nobody else. Attach: output is always read, for the monitor waits for nobody; a client
//! for whom too much has piled up is cut off.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use stream::remote::{Channel, Event, Outcome, Session, Wants};
use sys::seqpacket::{Conn, Message};
use sys::tty::Size;

use crate::ends::{Ends, Got};
use crate::link::{LINGER, Link};
use crate::poller::Ready;
use crate::say::say;
use crate::serve::{self, Fatal, PEER, Place, WIRE};

/// How long a client may take to open its streams.
const STREAMS: Duration = Duration::from_secs(30);
/// How long one that is cut off has to take what waits for it.
const CUT: Duration = Duration::from_secs(30);
/// The most bytes of output that wait for the client of an attach.
const BACKLOG: usize = 4 * 1024 * 1024;
/// Bytes that are read ahead in one call.
const CHUNK: usize = 64 * 1024;
/// Output is read while less than this waits for the socket.
const TOGETHER: usize = 64 * 1024;
/// Passes between two looks at what else has happened.
const PASSES: usize = 16;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Exec,
    Attach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Starting,
    Running,
    Finishing,
}

/// The client is gone: nobody is to be told anything.
struct Gone(Option<String>);

struct Tunnel {
    place: Place,
    link: Link<Session>,
    kind: Kind,
    wants: Wants,
    /// The monitor, until it has no more to say.
    peer: Option<Conn>,
    peer_ready: Ready,
    phase: Phase,
    ends: Ends,
    /// The size that is still to be passed on.
    size: Option<Size>,
    stdin_closed: bool,
    /// In which order the outputs are read.
    order: [Channel; 2],
    /// Output of an attach that waits: of stdout, of stderr.
    backlog: [VecDeque<u8>; 2],
    /// How it has ended, once it has.
    outcome: Option<Outcome>,
    /// When to give up opening or finishing.
    limit: Option<Instant>,
}

/// Serves the streams to their end.
pub(crate) fn run(
    place: Place,
    link: Link<Session>,
    kind: Kind,
    wants: Wants,
    peer: Conn,
) -> Result<(), Fatal> {
    let begun = sys::pipe::set_nonblocking(std::os::fd::AsFd::as_fd(&peer));
    begun.and_then(|()| place.poller.add(&peer, PEER)).map_err(|e| format!("monitor: {e}"))?;
    let mut tunnel = Tunnel {
        place,
        link,
        kind,
        wants,
        peer: Some(peer),
        peer_ready: Ready { read: true, write: true, ..Ready::default() },
        phase: Phase::Opening,
        ends: Ends::default(),
        size: None,
        stdin_closed: false,
        order: [Channel::Stdout, Channel::Stderr],
        backlog: Default::default(),
        outcome: None,
        limit: Some(Instant::now() + STREAMS),
    };
    match tunnel.serve() {
        Ok(()) => {
            serve::close(&mut tunnel.place, tunnel.link.into_wire());
            Ok(())
        }
        Err(Gone(None)) => Ok(()),
        Err(Gone(Some(text))) => Err(text),
    }
}

fn slot(channel: Channel) -> usize {
    usize::from(channel == Channel::Stderr)
}

impl Tunnel {
    fn serve(&mut self) -> Result<(), Gone> {
        loop {
            let mut moved = true;
            for _ in 0..PASSES {
                moved = self.pass()?;
                if !moved {
                    break;
                }
            }
            if self.phase == Phase::Finishing && self.link.done() {
                return Ok(());
            }
            let now = Instant::now();
            let idle = self.link.last + self.place.idle;
            let deadline = self.limit.map_or(idle, |limit| limit.min(idle));
            if now >= deadline {
                self.late()?;
                continue;
            }
            let until = if moved { now } else { deadline };
            self.place.wait(Some(until)).map_err(|e| Gone(Some(format!("epoll: {e}"))))?;
            for (key, flags) in &self.place.events {
                match *key {
                    WIRE => self.link.ready().take(*flags),
                    PEER => self.peer_ready.take(*flags),
                    key => self.ends.event(key, *flags),
                }
            }
            self.place.attend();
        }
    }

    /// A deadline has passed.
    fn late(&mut self) -> Result<(), Gone> {
        let text = match self.phase {
            Phase::Finishing => return Err(Gone(None)),
            Phase::Opening if self.limit.is_some_and(|limit| limit <= Instant::now()) => {
                format!("the client did not open its streams within {} s", STREAMS.as_secs())
            }
            // What is left of the output is not taken.
            _ if self.limit.is_some_and(|limit| limit <= Instant::now()) => {
                return Err(Gone(None));
            }
            _ => format!("nothing was sent for {} s", self.place.idle.as_secs()),
        };
        say!("{text}");
        self.ends = Ends::default();
        self.backlog = Default::default();
        self.outcome = Some(Outcome::Failure(text));
        self.phase = Phase::Running;
        self.finish();
        self.limit = Some(Instant::now() + LINGER);
        self.link.last = Instant::now();
        Ok(())
    }

    /// Moves what can be moved, once; true where that was something.
    fn pass(&mut self) -> Result<bool, Gone> {
        let mut moved = self.hear();
        // Whoever resets a connection has gone away; that is no news.
        moved |= self.link.input().map_err(|_| Gone(None))?;
        moved |= self.events()?;
        moved |= self.input();
        // Whoever comes first may fill the buffer.
        self.order.reverse();
        for channel in self.order {
            moved |= match self.kind {
                Kind::Exec => self.output(channel),
                Kind::Attach => self.collect(channel),
            };
        }
        self.pass_size();
        self.finish();
        moved |= self.link.output().map_err(|_| Gone(None))?;
        Ok(moved)
    }

    /// What the monitor says.
    fn hear(&mut self) -> bool {
        let mut heard = false;
        while self.peer_ready.read
            && let Some(peer) = &self.peer
        {
            match peer.recv() {
                Ok(Some(message)) => self.told(message),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.peer_ready.read = false;
                    break;
                }
                Ok(None) => self.peer_gone("the container's monitor has gone"),
                Err(e) => self.peer_gone(&format!("the container's monitor: {e}")),
            }
            heard = true;
        }
        heard
    }

    fn peer_gone(&mut self, text: &str) {
        self.peer = None;
        if self.outcome.is_none() {
            say!("{text}");
            self.ended(Outcome::Failure(text.into()));
        }
    }

    fn told(&mut self, message: Message) {
        let fields: Vec<&str> = message.fields.iter().map(String::as_str).collect();
        match fields[..] {
            ["OK", ..] if self.phase == Phase::Starting => {
                match Ends::new(&message.fields[1..], message.fds, &self.place.poller) {
                    Ok(ends) => self.ends = ends,
                    Err(e) => self.peer_gone(&format!("the container's monitor: {e}")),
                }
                self.phase = Phase::Running;
                self.ends.keep(self.wants);
                if self.stdin_closed {
                    self.ends.close_stdin();
                }
            }
            ["ERR", text] => {
                let text = text.to_owned();
                self.phase = Phase::Running;
                self.ended(Outcome::Failure(text));
            }
            ["EXIT", code] => {
                let outcome = match (self.kind, code.parse::<u8>()) {
                    (Kind::Attach, _) | (_, Ok(0)) => Outcome::Success,
                    (_, Ok(code)) => Outcome::Exit(code),
                    (_, Err(_)) => Outcome::Failure(format!("exit code {code:?}")),
                };
                self.ended(outcome);
            }
            ["SLOW", text] => {
                let text = text.to_owned();
                self.cut(text);
            }
            _ => say!("the monitor's {:?} was not expected", fields.first()),
        }
    }

    /// The command has ended, or whoever knows of it.
    fn ended(&mut self, outcome: Outcome) {
        if self.outcome.is_some() {
            return;
        }
        self.outcome = Some(outcome);
        match self.kind {
            Kind::Exec => self.ends.exited(),
            // The monitor closes the output when it has given all of it.
            Kind::Attach => self.ends.close_stdin(),
        }
        self.link.session.discard(Channel::Stdin);
    }

    /// The client of an attach is too slow.
    fn cut(&mut self, text: String) {
        say!("{text}");
        self.ended(Outcome::Failure(text));
        self.limit = Some(Instant::now() + CUT);
    }

    /// What the client says.
    fn events(&mut self) -> Result<bool, Gone> {
        let mut any = false;
        let mut ready = false;
        loop {
            match self.link.session.event() {
                Ok(None) => break,
                Ok(Some(Event::Ready)) => ready = true,
                Ok(Some(Event::Data { channel: Channel::Stdin, bytes })) => {
                    let taken =
                        if self.phase == Phase::Running { self.ends.write(bytes) } else { Ok(0) };
                    match taken {
                        Ok(n) => self.link.session.consumed(Channel::Stdin, n),
                        Err(_) => self.link.session.discard(Channel::Stdin),
                    }
                }
                Ok(Some(Event::Data { channel, bytes })) => {
                    let n = bytes.len();
                    self.link.session.consumed(channel, n);
                }
                Ok(Some(Event::Closed { channel: Channel::Stdin })) => self.close_stdin(),
                Ok(Some(Event::Closed { .. } | Event::Deaf { .. })) => {}
                Ok(Some(Event::Resize { width, height })) => {
                    self.size = Some(Size { rows: height, columns: width });
                }
                Ok(Some(Event::Gone)) => return Err(Gone(None)),
                Err(e) => {
                    // It has told the client already.
                    say!("{e}");
                    self.ends = Ends::default();
                    self.peer = None;
                    self.phase = Phase::Finishing;
                    self.limit = Some(Instant::now() + LINGER);
                    return Ok(true);
                }
            }
            any = true;
        }
        if ready && self.phase == Phase::Opening {
            self.go();
        }
        Ok(any)
    }

    /// The client's streams are there.
    fn go(&mut self) {
        self.phase = Phase::Starting;
        self.limit = None;
        let Some(peer) = &self.peer else { return };
        let sent = match self.size.take() {
            None => peer.send(&["GO"], &[]),
            Some(Size { rows, columns }) => {
                peer.send(&["GO", &rows.to_string(), &columns.to_string()], &[])
            }
        };
        if let Err(e) = sent {
            self.peer_gone(&format!("the container's monitor: {e}"));
        }
    }

    fn close_stdin(&mut self) {
        self.stdin_closed = true;
        self.ends.close_stdin();
        if let (Kind::Attach, Some(peer)) = (self.kind, &self.peer)
            && let Err(e) = peer.send(&["EOF"], &[])
        {
            say!("EOF to the monitor: {e}");
        }
    }

    /// Passes the terminal's size on when that is possible.
    fn pass_size(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        let Some(size) = self.size.take() else { return };
        match (self.kind, &self.peer) {
            (Kind::Exec, _) => self.ends.resize(size),
            (Kind::Attach, Some(peer)) if self.peer_ready.write => {
                let (rows, columns) = (size.rows.to_string(), size.columns.to_string());
                let sent = peer.send(&["SIZE", &rows, &columns], &[]);
                if sent.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
                    self.peer_ready.write = false;
                    self.size = Some(size);
                }
            }
            (Kind::Attach, Some(_)) => self.size = Some(size),
            (Kind::Attach, None) => {}
        }
    }

    /// Input that had to wait.
    fn input(&mut self) -> bool {
        let mut moved = false;
        while self.phase == Phase::Running && self.ends.writable() {
            let bytes = self.link.session.pending(Channel::Stdin);
            if bytes.is_empty() {
                break;
            }
            match self.ends.write(bytes) {
                Ok(n) => self.link.session.consumed(Channel::Stdin, n),
                Err(_) => self.link.session.discard(Channel::Stdin),
            }
            moved = true;
        }
        moved
    }

    /// Output, read straight into the session; true where something was read.
    fn output(&mut self, channel: Channel) -> bool {
        if !self.ends.readable(channel) {
            return false;
        }
        // A terminal whose output nobody wants.
        if self.wants.tty && !self.wants.stdout {
            return matches!(self.ends.read(channel, &mut [0; 4096]), Got::Bytes(_) | Got::End);
        }
        let session = &mut self.link.session;
        let mut read = 0;
        // What comes in small pieces goes out together; and while the socket takes no more, to read
        // more would only mean to move it about. What a client throws away waits for no socket.
        while session.output().len() < TOGETHER && read < TOGETHER {
            let space = session.send_space(channel);
            if space.is_empty() {
                break;
            }
            match self.ends.read(channel, space) {
                Got::Bytes(n) => {
                    session.send_filled(channel, n);
                    read += n;
                }
                Got::Nothing => {
                    session.send_filled(channel, 0);
                    break;
                }
                Got::End => {
                    session.send_filled(channel, 0);
                    session.close(channel);
                    return true;
                }
            }
        }
        read > 0
    }

    /// Output of an attach: into the session where it has room, else into the backlog.
    fn collect(&mut self, channel: Channel) -> bool {
        let waiting = &mut self.backlog[slot(channel)];
        let mut moved = false;
        while !waiting.is_empty() && self.link.session.output().len() < TOGETHER {
            let n = self.link.session.send(channel, waiting.as_slices().0);
            if n == 0 {
                break;
            }
            waiting.drain(..n);
            moved = true;
        }
        if waiting.is_empty() {
            if waiting.capacity() > 0 {
                *waiting = VecDeque::new();
            }
            if self.output(channel) {
                return true;
            }
        }
        if !self.ends.readable(channel) {
            return moved;
        }
        let mut chunk = vec![0; CHUNK];
        let waiting = &mut self.backlog[slot(channel)];
        match self.ends.read(channel, &mut chunk) {
            Got::Bytes(n) => waiting.extend(&chunk[..n]),
            Got::Nothing => return moved,
            Got::End => {}
        }
        if self.backlog.iter().map(VecDeque::len).sum::<usize>() > BACKLOG {
            self.ends = Ends::default();
            self.cut(format!("the client is too slow: {} MiB of output waited", BACKLOG >> 20));
        }
        true
    }

    /// Tells the outcome, once there is one and all output is on its way.
    fn finish(&mut self) {
        let ready = matches!(self.phase, Phase::Starting | Phase::Running)
            && self.ends.silent()
            && self.backlog.iter().all(VecDeque::is_empty);
        if ready && let Some(outcome) = self.outcome.clone() {
            self.link.session.discard(Channel::Stdin);
            self.link.session.finish(outcome);
            self.ends = Ends::default();
            self.peer = None;
            self.phase = Phase::Finishing;
        }
    }
}
