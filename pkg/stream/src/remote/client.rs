//! The client's side of an exec or attach, over SPDY.
//!
//! ```text
//!  request ─▶ Response ─▶ Client::new: SYN_STREAM error, stdin, stdout, stderr, resize
//!          ─▶ Ready ─▶ data … ─▶ Outcome, Closed, Gone
//! ```

use super::spdy::{LIMITS, NAMES, needed};
use super::{Channel, Error, Outcome, SPDY_PROTOCOLS, VERSION, Wants, resize, status};
use crate::http::{Request, Response};
use crate::inbox::Notice;
use crate::link::{Link, Step};
use crate::spdy::{Event, Headers};
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
    link: Link<Channel>,
    json: bool,
    /// Stream numbers in the order of [`NAMES`].
    slots: [Option<u32>; 5],
    status: Vec<u8>,
    outcome_told: bool,
    replies: usize,
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
        let mut link = Link::new(LIMITS);
        let mut slots = [None; 5];
        for ((slot, needed), name) in slots.iter_mut().zip(needed(version, wants)).zip(NAMES) {
            if needed {
                *slot = link.connection.open(&Headers::default().with("streamType", name));
            }
        }
        for (slot, channel) in [(STDOUT, Channel::Stdout), (STDERR, Channel::Stderr)] {
            if slots[slot].is_some() {
                link.inbox.open(channel, false);
            }
        }
        Ok(Client {
            link,
            json: version == SPDY_PROTOCOLS[0],
            slots,
            status: Vec::new(),
            outcome_told: false,
            replies: 0,
        })
    }

    /// Where to read the socket's next bytes to; empty while no input is wanted.
    pub fn space(&mut self) -> &mut [u8] {
        self.link.space()
    }

    /// `n` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, n: usize) {
        self.link.connection.filled(n);
    }

    /// Copies bytes in instead: how many were taken.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        self.link.receive(bytes)
    }

    /// Whether input is wanted now.
    pub fn wants_input(&self) -> bool {
        self.link.wants_input()
    }

    /// The socket has ended: [`ClientEvent::Gone`] follows what was received before.
    pub fn eof(&mut self) {
        self.link.eof();
    }

    /// The next event, `None` when there is none for now.
    pub fn event(&mut self) -> Result<Option<ClientEvent<'_>>, Error> {
        self.link.settle();
        let told = self.next()?;
        Ok(told.map(|told| match told {
            Told::Ready => ClientEvent::Ready,
            Told::Received(channel, range) => {
                ClientEvent::Data { channel, bytes: self.link.connection.bytes(range) }
            }
            Told::Kept(channel) => {
                ClientEvent::Data { channel, bytes: self.link.inbox.pending(channel) }
            }
            Told::Closed(channel) => ClientEvent::Closed { channel },
            Told::Outcome(outcome) => ClientEvent::Outcome(outcome),
            Told::Gone => ClientEvent::Gone,
        }))
    }

    fn next(&mut self) -> Result<Option<Told>, Error> {
        loop {
            let event = match self.link.step()? {
                Step::Notice(Notice::Data(channel)) => return Ok(Some(Told::Kept(channel))),
                Step::Notice(Notice::Closed(channel)) => return Ok(Some(Told::Closed(channel))),
                Step::Event(event) => event,
                Step::Gone => return Ok(Some(Told::Gone)),
                Step::Silent => return Ok(None),
            };
            match event {
                Event::Opened { stream, .. } => {
                    self.link.connection.reset(stream, crate::spdy::Status::Refused);
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
                        if let Some(range) = self.link.arrived(channel, stream, range) {
                            return Ok(Some(Told::Received(channel, range)));
                        }
                    }
                    slot => {
                        if slot == Some(ERROR) {
                            let room = STATUS_LIMIT - self.status.len();
                            let bytes = self.link.connection.bytes(range.clone());
                            self.status.extend_from_slice(&bytes[..bytes.len().min(room)]);
                        }
                        self.link.connection.credit(stream, range.len());
                    }
                },
                Event::Finished { stream } | Event::Reset { stream } => match self.find(stream) {
                    Some(slot @ (STDOUT | STDERR)) => self.link.inbox.close(channel(slot)),
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
    }

    fn find(&self, stream: u32) -> Option<usize> {
        self.slots.iter().position(|s| *s == Some(stream))
    }

    /// `n` bytes of the last `Data` for `channel`, or of its [`pending`](Self::pending), were taken.
    pub fn consumed(&mut self, channel: Channel, n: usize) {
        let n = self.link.inbox.consumed(channel, n);
        let slot = if channel == Channel::Stdout { STDOUT } else { STDERR };
        if n > 0
            && let Some(stream) = self.slots[slot]
        {
            self.link.connection.credit(stream, n);
        }
    }

    /// Bytes that came for `channel` and were not consumed: the first contiguous piece of them.
    pub fn pending(&self, channel: Channel) -> &[u8] {
        self.link.inbox.pending(channel)
    }

    /// How many bytes of input may be sent now.
    pub fn room(&self) -> usize {
        self.slots[STDIN].map_or(0, |stream| self.link.connection.room(stream))
    }

    /// Where to read the next bytes of input to; [`send_filled`](Self::send_filled) must be next.
    pub fn send_space(&mut self) -> &mut [u8] {
        match self.slots[STDIN] {
            Some(stream) => self.link.connection.send_space(stream),
            None => &mut [],
        }
    }

    /// `n` bytes of the last [`send_space`](Self::send_space) were filled: sends them.
    pub fn send_filled(&mut self, n: usize) {
        if let Some(stream) = self.slots[STDIN] {
            self.link.connection.send_filled(stream, n);
        }
    }

    /// Sends the start of `bytes` as input: how many were taken.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        self.slots[STDIN].map_or(0, |stream| self.link.connection.send(stream, bytes))
    }

    /// The input has ended.
    pub fn close(&mut self) {
        if let Some(stream) = self.slots[STDIN] {
            self.link.connection.close(stream);
        }
    }

    /// Tells the terminal's size, after [`ClientEvent::Ready`].
    pub fn resize(&mut self, width: u16, height: u16) {
        if let Some(stream) = self.slots[RESIZE] {
            self.link.connection.send(stream, &resize::write(width, height));
        }
    }

    /// Says that the client leaves.
    pub fn finish(&mut self) {
        self.link.connection.go_away();
    }

    /// Bytes for the socket.
    pub fn output(&mut self) -> &[u8] {
        self.link.connection.output()
    }

    /// `n` bytes of [`output`](Self::output) were written.
    pub fn sent(&mut self, n: usize) {
        self.link.connection.sent(n);
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
