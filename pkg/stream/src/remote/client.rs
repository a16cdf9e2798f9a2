//! The client's side of an exec or attach, over SPDY.
//!
//! ```text
//!  request ─▶ Response ─▶ Client::new: SYN_STREAM error, stdin, stdout, stderr, resize
//!          ─▶ Ready ─▶ data … ─▶ Outcome, Closed, Gone
//! ```

use super::spdy::{LIMITS, NAMES, needed};
use super::{Channel, Error, Outcome, SPDY_PROTOCOLS, VERSION, Wants, resize, status};
use crate::http::{Request, Response};
use crate::inbox::{Arrived, Inboxes, Notice};
use crate::spdy::{Connection, Event, Headers};
use std::ops::Range;

/// Most bytes of the error stream that are kept.
const STATUS_LIMIT: usize = 64 * 1024;

/// Why a server's response is no upgrade.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It refused; its words follow as the response's body.
    #[error("the server answered with status {status} instead of an upgrade")]
    Refused {
        /// HTTP status code.
        status: u16,
    },
    /// It upgraded to something else.
    #[error("the server upgraded to something else than SPDY/3.1 or a version that was offered")]
    Upgraded,
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientEvent<'a> {
    /// The server has accepted every stream.
    Ready,
    /// Output: take what you can, then [`Client::consumed`].
    Data {
        /// Which stream.
        channel: Channel,
        /// Never empty.
        bytes: &'a [u8],
    },
    /// Nothing more comes on this channel. For [`Channel::Stdin`]: nothing more is taken.
    Closed {
        /// Which stream.
        channel: Channel,
    },
    /// How the command ended. Output that was sent before may still be pending.
    Outcome(Outcome),
    /// The server has closed the session. Comes once, last.
    Gone,
}

enum Told {
    Ready,
    Received(Channel, Range<usize>),
    Kept(Channel),
    Closed(Channel),
    Outcome(Outcome),
    Gone,
}

/// The client's side of an exec or attach. Driven like [`super::Session`].
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    json: bool,
    /// Stream numbers in the order of [`NAMES`].
    slots: [Option<u32>; 5],
    inbox: Inboxes<Channel>,
    status: Vec<u8>,
    outcome_told: bool,
    replies: usize,
    eof: bool,
    gone: bool,
}

const ERROR: usize = 0;
const STDIN: usize = 1;
const STDOUT: usize = 2;
const STDERR: usize = 3;
const RESIZE: usize = 4;

impl Client {
    /// The bytes of the request: `host` for the Host line, `target` the path and query of the URL.
    pub fn request(host: &str, target: &str) -> Vec<u8> {
        upgrade(host, target, &SPDY_PROTOCOLS)
    }

    /// What follows a response: opens every stream that `wants` names.
    pub fn new(response: &Response, wants: Wants) -> Result<Client, ClientError> {
        let version = version(response, &SPDY_PROTOCOLS)?;
        let mut connection = Connection::new(false, LIMITS);
        let mut slots = [None; 5];
        for ((slot, needed), name) in slots.iter_mut().zip(needed(version, wants)).zip(NAMES) {
            if needed {
                *slot = connection.open(&Headers::default().with("streamType", name));
            }
        }
        let mut inbox = Inboxes::new();
        for (slot, channel) in [(STDOUT, Channel::Stdout), (STDERR, Channel::Stderr)] {
            if slots[slot].is_some() {
                inbox.open(channel, false);
            }
        }
        Ok(Client {
            connection,
            json: version == SPDY_PROTOCOLS[0],
            slots,
            inbox,
            status: Vec::new(),
            outcome_told: false,
            replies: 0,
            eof: false,
            gone: false,
        })
    }

    /// Where to read the socket's next bytes to; empty while no input is wanted.
    pub fn space(&mut self) -> &mut [u8] {
        self.settle();
        if self.wants_input() { self.connection.space() } else { &mut [] }
    }

    /// `n` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, n: usize) {
        self.connection.filled(n);
    }

    /// Copies bytes in instead: how many were taken.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        self.settle();
        self.connection.receive(bytes)
    }

    /// Whether input is wanted now.
    pub fn wants_input(&self) -> bool {
        let most = LIMITS.session_window as usize;
        !self.eof && !self.gone && !self.connection.blocked() && self.inbox.kept() <= most
    }

    /// The socket has ended: [`ClientEvent::Gone`] follows what was received before.
    pub fn eof(&mut self) {
        self.eof = true;
    }

    fn settle(&mut self) {
        if let Some(range) = self.inbox.unsettled() {
            self.inbox.settle(self.connection.bytes(range));
        }
    }

    /// The next event, `None` when there is none for now.
    pub fn event(&mut self) -> Result<Option<ClientEvent<'_>>, Error> {
        self.settle();
        let told = match self.next() {
            Ok(told) => told,
            Err(error) => {
                self.gone = true;
                return Err(error);
            }
        };
        Ok(told.map(|told| match told {
            Told::Ready => ClientEvent::Ready,
            Told::Received(channel, range) => {
                ClientEvent::Data { channel, bytes: self.connection.bytes(range) }
            }
            Told::Kept(channel) => {
                ClientEvent::Data { channel, bytes: self.inbox.pending(channel) }
            }
            Told::Closed(channel) => ClientEvent::Closed { channel },
            Told::Outcome(outcome) => ClientEvent::Outcome(outcome),
            Told::Gone => ClientEvent::Gone,
        }))
    }

    fn next(&mut self) -> Result<Option<Told>, Error> {
        while !self.gone {
            match self.inbox.next() {
                Some(Notice::Data(channel)) => return Ok(Some(Told::Kept(channel))),
                Some(Notice::Closed(channel)) => return Ok(Some(Told::Closed(channel))),
                None => {}
            }
            let Some(event) = self.connection.poll()? else {
                if self.eof {
                    break;
                }
                return Ok(None);
            };
            match event {
                Event::Opened { stream, .. } => {
                    self.connection.reset(stream, crate::spdy::Status::Refused);
                }
                Event::Replied { .. } => {
                    self.replies += 1;
                    if self.replies == self.slots.iter().flatten().count() {
                        return Ok(Some(Told::Ready));
                    }
                }
                Event::Data { stream, range } => match self.find(stream) {
                    Some(slot @ (STDOUT | STDERR)) => {
                        let channel = channel(slot);
                        match self.inbox.arrived(channel, range.clone()) {
                            Arrived::Tell => return Ok(Some(Told::Received(channel, range))),
                            Arrived::Keep => self.inbox.keep(channel, self.connection.bytes(range)),
                            Arrived::Drop => self.connection.credit(stream, range.len()),
                        }
                    }
                    slot => {
                        if slot == Some(ERROR) {
                            let room = STATUS_LIMIT - self.status.len();
                            let bytes = self.connection.bytes(range.clone());
                            self.status.extend_from_slice(&bytes[..bytes.len().min(room)]);
                        }
                        self.connection.credit(stream, range.len());
                    }
                },
                Event::Finished { stream } | Event::Reset { stream } => match self.find(stream) {
                    Some(slot @ (STDOUT | STDERR)) => self.inbox.close(channel(slot)),
                    Some(STDIN) => return Ok(Some(Told::Closed(Channel::Stdin))),
                    Some(ERROR) if !std::mem::replace(&mut self.outcome_told, true) => {
                        let outcome = status::read(&self.status, self.json);
                        return Ok(Some(Told::Outcome(outcome)));
                    }
                    _ => {}
                },
                // Every stream's end comes before it.
                Event::GoAway => {}
            }
        }
        Ok((!std::mem::replace(&mut self.gone, true)).then_some(Told::Gone))
    }

    fn find(&self, stream: u32) -> Option<usize> {
        self.slots.iter().position(|s| *s == Some(stream))
    }

    /// `n` bytes of the last `Data` for `channel`, or of its [`pending`](Self::pending), were taken.
    pub fn consumed(&mut self, channel: Channel, n: usize) {
        let n = self.inbox.consumed(channel, n);
        let slot = if channel == Channel::Stdout { STDOUT } else { STDERR };
        if n > 0
            && let Some(stream) = self.slots[slot]
        {
            self.connection.credit(stream, n);
        }
    }

    /// Bytes that came for `channel` and were not consumed: the first contiguous piece of them.
    pub fn pending(&self, channel: Channel) -> &[u8] {
        self.inbox.pending(channel)
    }

    /// How many bytes of input may be sent now.
    pub fn room(&self) -> usize {
        self.slots[STDIN].map_or(0, |stream| self.connection.room(stream))
    }

    /// Where to read the next bytes of input to; [`send_filled`](Self::send_filled) must be next.
    pub fn send_space(&mut self) -> &mut [u8] {
        match self.slots[STDIN] {
            Some(stream) => self.connection.send_space(stream),
            None => &mut [],
        }
    }

    /// `n` bytes of the last [`send_space`](Self::send_space) were filled: sends them.
    pub fn send_filled(&mut self, n: usize) {
        if let Some(stream) = self.slots[STDIN] {
            self.connection.send_filled(stream, n);
        }
    }

    /// Sends the start of `bytes` as input: how many were taken.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        self.slots[STDIN].map_or(0, |stream| self.connection.send(stream, bytes))
    }

    /// The input has ended.
    pub fn close(&mut self) {
        if let Some(stream) = self.slots[STDIN] {
            self.connection.close(stream);
        }
    }

    /// Tells the terminal's size, after [`ClientEvent::Ready`].
    pub fn resize(&mut self, width: u16, height: u16) {
        if let Some(stream) = self.slots[RESIZE] {
            self.connection.send(stream, &resize::write(width, height));
        }
    }

    /// Says that the client leaves.
    pub fn finish(&mut self) {
        self.connection.go_away();
    }

    /// Bytes for the socket.
    pub fn output(&mut self) -> &[u8] {
        self.connection.output()
    }

    /// `n` bytes of [`output`](Self::output) were written.
    pub fn sent(&mut self, n: usize) {
        self.connection.sent(n);
    }
}

fn channel(slot: usize) -> Channel {
    if slot == STDOUT { Channel::Stdout } else { Channel::Stderr }
}

/// A request for an upgrade to SPDY with one of `versions`.
pub(crate) fn upgrade(host: &str, target: &str, versions: &[&str]) -> Vec<u8> {
    let mut lines =
        vec![("Content-Length", "0"), ("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
    lines.extend(versions.iter().map(|version| (VERSION, *version)));
    Request::write("POST", target, host, &lines)
}

/// The version that the server chose.
pub(crate) fn version<'a>(
    response: &Response,
    offered: &[&'a str],
) -> Result<&'a str, ClientError> {
    if response.status != 101 {
        return Err(ClientError::Refused { status: response.status });
    }
    let chosen = response.headers.get(VERSION).map(str::trim).unwrap_or_default();
    if !response.headers.has("upgrade", "SPDY/3.1") {
        return Err(ClientError::Upgraded);
    }
    offered.iter().find(|v| **v == chosen).copied().ok_or(ClientError::Upgraded)
}
