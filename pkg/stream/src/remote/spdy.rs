//! The server's side over SPDY: which stream is which, and the order in which they end.
//!
//! ```text
//!  SYN_STREAM streamType=error ─▶ SYN_REPLY ┐
//!  SYN_STREAM streamType=stdin ─▶ SYN_REPLY ├─▶ complete ─▶ data … ─▶ finish:
//!  …                                        ┘   FIN stdout, FIN stderr, status + FIN error,
//!                                               FIN stdin, FIN resize, GOAWAY
//! ```
//! client-go returns when stdout and stderr have ended and the error stream has been read to its end.

use super::{Channel, Error, Outcome, Step, Wants, resize, status};
use crate::spdy::{Connection, Event, Limits, Status};
use std::ops::Range;

/// Streams of one client; it needs five.
const STREAMS: u32 = 16;
/// What a client may send before it is consumed, in bytes.
const WINDOW: u32 = 1 << 20;

/// What is taken at once for a client that does not listen, in bytes.
const DEAF_ROOM: usize = 16 * 1024;

const ERROR: usize = 0;
const STDIN: usize = 1;
const STDOUT: usize = 2;
const STDERR: usize = 3;
const RESIZE: usize = 4;
/// Their names in `streamType`.
pub(super) const NAMES: [&str; 5] = ["error", "stdin", "stdout", "stderr", "resize"];

pub(super) const LIMITS: Limits =
    Limits { streams: STREAMS, stream_window: WINDOW, session_window: WINDOW };

fn slot(channel: Channel) -> usize {
    match channel {
        Channel::Stdin => STDIN,
        Channel::Stdout => STDOUT,
        Channel::Stderr => STDERR,
    }
}

/// Which streams a client must open: by the slots above.
pub(super) fn needed(version: &str, wants: Wants) -> [bool; 5] {
    let resizes = matches!(version, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    [true, wants.stdin, wants.stdout, wants.stderr, wants.tty && resizes]
}

#[derive(Debug)]
pub(super) struct Server {
    connection: Connection,
    /// Of the protocol: 4 tells the outcome as JSON, 1 not at all.
    version: u8,
    needed: [bool; 5],
    /// Stream numbers.
    slots: [Option<u32>; 5],
    sizes: resize::Reader,
    /// Streams for output that the client has reset: what is sent there is thrown away, so that the
    /// command does not stop.
    deaf: [bool; 5],
    scratch: Vec<u8>,
}

impl Server {
    pub(super) fn new(version: &str, wants: Wants) -> Server {
        Server {
            connection: Connection::new(true, LIMITS),
            version: match version {
                "v4.channel.k8s.io" => 4,
                "channel.k8s.io" => 1,
                _ => 3,
            },
            needed: needed(version, wants),
            slots: [None; 5],
            sizes: resize::Reader::default(),
            deaf: [false; 5],
            scratch: Vec::new(),
        }
    }

    pub(super) fn space(&mut self) -> &mut [u8] {
        self.connection.space()
    }

    pub(super) fn filled(&mut self, n: usize) {
        self.connection.filled(n);
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        self.connection.receive(bytes)
    }

    pub(super) fn blocked(&self) -> bool {
        self.connection.blocked()
    }

    /// Input is read while not more than this is kept: a client that heeds its window never gets
    /// there, so that its grants for output are always read.
    pub(super) fn kept_limit(&self) -> usize {
        WINDOW as usize
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.connection.bytes(range)
    }

    pub(super) fn complete(&self) -> bool {
        self.needed.iter().zip(&self.slots).all(|(needed, slot)| !needed || slot.is_some())
    }

    pub(super) fn step(&mut self) -> Result<Option<Step>, Error> {
        let Some(event) = self.connection.poll()? else { return Ok(None) };
        let step = match event {
            Event::Opened { stream, headers } => {
                let name = headers.get("streamType").unwrap_or_default();
                let slot = NAMES.iter().position(|n| *n == name);
                match slot.and_then(|slot| self.slots.get_mut(slot)) {
                    Some(slot @ None) => {
                        *slot = Some(stream);
                        self.connection.reply(stream);
                    }
                    // Twice the same or an unknown one.
                    _ => self.connection.reset(stream, Status::Refused),
                }
                Step::Silent
            }
            Event::Data { stream, range } => match self.find(stream) {
                Some(STDIN) => Step::Stdin(range),
                Some(RESIZE) => {
                    let size = self.sizes.read(self.connection.bytes(range.clone()));
                    self.connection.credit(stream, range.len());
                    Step::Size(size)
                }
                _ => {
                    self.connection.credit(stream, range.len());
                    Step::Silent
                }
            },
            Event::Finished { stream } if self.find(stream) == Some(STDIN) => {
                Step::Closed(Channel::Stdin)
            }
            Event::Finished { .. } | Event::Replied { .. } => Step::Silent,
            // A client that resets every stream has gone, GOAWAY or not.
            Event::Reset { .. } if self.complete() && self.connection.streams() == 0 => Step::Gone,
            Event::Reset { stream } => match self.find(stream) {
                Some(STDIN) => Step::Closed(Channel::Stdin),
                Some(slot @ (STDOUT | STDERR)) if self.needed[slot] => {
                    self.deaf[slot] = true;
                    let out = slot == STDOUT;
                    Step::Deaf(if out { Channel::Stdout } else { Channel::Stderr })
                }
                _ => Step::Silent,
            },
            Event::GoAway if self.connection.streams() == 0 => Step::Gone,
            Event::GoAway => Step::Silent,
        };
        Ok(Some(step))
    }

    fn find(&self, stream: u32) -> Option<usize> {
        self.slots.iter().position(|s| *s == Some(stream))
    }

    /// `n` bytes of input were consumed.
    pub(super) fn consumed(&mut self, n: usize) {
        if n > 0
            && let Some(stream) = self.slots[STDIN]
        {
            self.connection.credit(stream, n);
        }
    }

    /// The stream on which output for `channel` goes.
    fn way(&self, channel: Channel) -> Option<u32> {
        let slot = slot(channel);
        self.slots[slot].filter(|_| slot != STDIN && self.needed[slot])
    }

    fn is_deaf(&self, channel: Channel) -> bool {
        self.deaf[slot(channel)]
    }

    pub(super) fn room(&self, channel: Channel) -> usize {
        if self.is_deaf(channel) {
            return DEAF_ROOM;
        }
        self.way(channel).map_or(0, |stream| self.connection.room(stream))
    }

    pub(super) fn send_space(&mut self, channel: Channel) -> &mut [u8] {
        if self.is_deaf(channel) {
            self.scratch.resize(DEAF_ROOM, 0);
            return &mut self.scratch;
        }
        match self.way(channel) {
            Some(stream) => self.connection.send_space(stream),
            None => &mut [],
        }
    }

    pub(super) fn send_filled(&mut self, channel: Channel, n: usize) {
        if let Some(stream) = self.way(channel) {
            // To a stream that is forgotten nothing is sent.
            self.connection.send_filled(stream, n);
        }
    }

    pub(super) fn send(&mut self, channel: Channel, bytes: &[u8]) -> usize {
        if self.is_deaf(channel) {
            return bytes.len();
        }
        self.way(channel).map_or(0, |stream| self.connection.send(stream, bytes))
    }

    pub(super) fn close(&mut self, channel: Channel) {
        self.deaf[slot(channel)] = false;
        if let Some(stream) = self.slots[slot(channel)] {
            self.connection.close(stream);
        }
    }

    pub(super) fn finish(&mut self, outcome: &Outcome) {
        for slot in [STDOUT, STDERR, ERROR, STDIN, RESIZE] {
            let Some(stream) = self.slots[slot] else { continue };
            // A client of v1 that reads anything there forgets output that it has not read yet; the Go
            // server says nothing to it either.
            if slot == ERROR && self.version > 1 {
                self.connection.say(stream, &status::write(outcome, self.version >= 4));
            }
            self.connection.close(stream);
        }
        self.connection.go_away();
    }

    pub(super) fn output(&self) -> &[u8] {
        self.connection.output()
    }

    pub(super) fn sent(&mut self, n: usize) {
        self.connection.sent(n);
    }
}
