//! One connection after its handshake.
//!
//! ```text
//!  Head ─▶ Data (pieces as they come) ─▶ Head …
//!    ├──▶ ping ─▶ pong;  pong: nothing
//!    └──▶ close ─▶ close in answer, Event::Closed, all that follows is thrown away
//! ```

use super::{BACKLOG_LIMIT, CLOSE_NORMAL, CLOSE_PROTOCOL, CONTROL_LIMIT, FRAME_DATA, OUTPUT_LIMIT};
use crate::Error;
use crate::buffer::{Input, Output};
use std::ops::Range;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The longest head of a frame, in bytes.
pub(crate) const HEAD: usize = 14;

/// Which side of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Receives masked frames, sends them plain.
    Server,
    /// Receives plain frames, sends them masked with keys made of `seed` (section 5.3 wants it to be
    /// unpredictable: take it from the system's random numbers).
    Client {
        /// Any number.
        seed: u64,
    },
}

/// What kind of message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// Bytes.
    Binary,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message: [`Connection::bytes`] until input is received again. It may be empty
    /// where a message begins or ends.
    Data {
        /// Where it lies.
        range: Range<usize>,
        /// It begins a message.
        first: bool,
        /// It ends the message.
        last: bool,
    },
    /// The peer has closed, with this code if it named one. Nothing comes any more.
    Closed {
        /// Section 7.4.
        code: Option<u16>,
    },
}

#[derive(Debug, Clone, Copy)]
enum Parse {
    Head,
    Data { left: u64, key: Option<[u8; 4]>, fin: bool, first: bool },
}

/// Either side of a connection.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    input: Input,
    output: Output,
    parse: Parse,
    /// Between the frames of a message.
    within: bool,
    close_sent: bool,
    close_received: bool,
    failed: bool,
}

impl Connection {
    /// Nothing received or sent yet.
    pub fn new(role: Role) -> Connection {
        Connection {
            role,
            input: Input::new(),
            output: Output::default(),
            parse: Parse::Head,
            within: false,
            close_sent: false,
            close_received: false,
            failed: false,
        }
    }

    /// Where to put received bytes. Empty while no frame is parsed.
    pub fn space(&mut self) -> &mut [u8] {
        if self.blocked() { &mut [] } else { self.input.space() }
    }

    /// `n` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, n: usize) {
        self.input.filled(n);
    }

    /// Copies the start of `bytes` in: how many.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        self.input.receive(bytes)
    }

    /// Nothing is parsed: too much waits to be sent, or the connection failed.
    pub fn blocked(&self) -> bool {
        self.failed || self.output.len() > BACKLOG_LIMIT
    }

    /// The bytes of the last [`Event::Data`].
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.input.get(range)
    }

    /// The next event. After an error nothing comes any more, and the output ends with a close frame.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        while !self.blocked() {
            if self.close_received {
                self.input.take(usize::MAX);
                break;
            }
            let event = match self.parse {
                Parse::Data { left, key, fin, first } => {
                    let range = self.input.take(usize::try_from(left).unwrap_or(usize::MAX));
                    if range.is_empty() && left > 0 {
                        break;
                    }
                    let left = left - range.len() as u64;
                    let key = key.map(|key| {
                        unmask(self.input.get_mut(range.clone()), key);
                        turned(key, range.len())
                    });
                    let last = left == 0 && fin;
                    self.parse = if left > 0 {
                        Parse::Data { left, key, fin, first: false }
                    } else {
                        Parse::Head
                    };
                    (first || last || !range.is_empty()).then_some(Event::Data {
                        range,
                        first,
                        last,
                    })
                }
                Parse::Head => match self.head() {
                    Ok(Some(event)) => event,
                    Ok(None) => break,
                    Err(rule) => return Err(self.fail(rule)),
                },
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// The peer broke a rule: tells it so.
    pub(crate) fn fail(&mut self, rule: &'static str) -> Error {
        self.close(CLOSE_PROTOCOL);
        self.failed = true;
        Error::WebSocket(rule)
    }

    /// Parses a frame's head, and all of a control frame: `None` when more bytes are needed, else its
    /// event if it has one.
    #[allow(clippy::type_complexity)]
    fn head(&mut self) -> Result<Option<Option<Event>>, &'static str> {
        let rest = self.input.rest();
        let Some(([first, second], rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        if first & 0x70 != 0 {
            return Err("reserved bits");
        }
        let masked = second & 0x80 != 0;
        if masked != (self.role == Role::Server) {
            return Err("a mask where there must be none, or none where there must be one");
        }
        let (length, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            length => (u64::from(length), rest),
        };
        let shortest = match length {
            0..126 => second & 0x7f < 126,
            126..65536 => second & 0x7f == 126,
            _ => length >> 63 == 0,
        };
        if !shortest {
            return Err("a length that is not written in its shortest form");
        }
        let (key, rest) = match rest.split_first_chunk::<4>() {
            Some((key, rest)) if masked => (Some(*key), rest),
            None if masked => return Ok(None),
            _ => (None, rest),
        };
        let head = self.input.rest().len() - rest.len();
        if opcode >= CLOSE {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if !fin || length > CONTROL_LIMIT {
                return Err("a control frame that is cut or too long");
            }
            if rest.len() < length {
                return Ok(None);
            }
            self.input.take(head);
            let range = self.input.take(length);
            let payload = self.input.get_mut(range);
            if let Some(key) = key {
                unmask(payload, key);
            }
            let payload = payload.to_vec();
            return self.control(opcode, &payload).map(Some);
        }
        match opcode {
            CONTINUATION if self.within => {}
            TEXT | BINARY if !self.within => {}
            CONTINUATION | TEXT | BINARY => return Err("a message within another"),
            _ => return Err("an unknown kind of frame"),
        }
        self.within = !fin;
        self.input.take(head);
        self.parse = Parse::Data { left: length, key, fin, first: opcode != CONTINUATION };
        Ok(Some(None))
    }

    fn control(&mut self, opcode: u8, payload: &[u8]) -> Result<Option<Event>, &'static str> {
        match opcode {
            PING => {
                if !self.close_sent {
                    self.push(PONG, &[payload]);
                }
                Ok(None)
            }
            PONG => Ok(None),
            CLOSE => {
                let code = match *payload {
                    [] => None,
                    [a, b, ..] => Some(u16::from_be_bytes([a, b])),
                    _ => return Err("a close frame that is cut"),
                };
                self.close_received = true;
                // Codes that nobody may send (section 7.4) are not sent back.
                self.close(match code {
                    None => CLOSE_NORMAL,
                    Some(code @ (1000..=1003 | 1007..=1014 | 3000..=4999)) => code,
                    Some(_) => CLOSE_PROTOCOL,
                });
                Ok(Some(Event::Closed { code }))
            }
            _ => Err("an unknown kind of frame"),
        }
    }

    /// How much payload the next message may have.
    pub fn room(&self) -> usize {
        if self.close_sent {
            return 0;
        }
        OUTPUT_LIMIT.saturating_sub(self.output.len()).min(FRAME_DATA)
    }

    /// Where to put up to `n` bytes of the next message, after a prefix of `prefix` bytes.
    pub(crate) fn reserve(&mut self, prefix: usize, n: usize) -> &mut [u8] {
        self.output.reserve(HEAD + prefix, n)
    }

    /// Sends `prefix` and the `n` bytes that were put into what was reserved as a message. Only a
    /// server does this: a client would have to mask them.
    pub(crate) fn commit(&mut self, kind: Kind, prefix: &[u8], n: usize) {
        let mut head = self.head_of(opcode(kind), prefix.len() + n, None);
        head.extend_from_slice(prefix);
        self.output.commit(&head, n);
    }

    /// Sends the parts together as one message, without regard to [`room`](Self::room).
    pub fn send(&mut self, kind: Kind, parts: &[&[u8]]) {
        if !self.close_sent {
            self.push(opcode(kind), parts);
        }
    }

    /// Sends a ping.
    pub fn ping(&mut self) {
        if !self.close_sent {
            self.push(PING, &[]);
        }
    }

    /// Sends a close frame; nothing is sent after it.
    pub fn close(&mut self, code: u16) {
        if !std::mem::replace(&mut self.close_sent, true) {
            self.push(CLOSE, &[&code.to_be_bytes()]);
        }
    }

    fn push(&mut self, opcode: u8, parts: &[&[u8]]) {
        let length = parts.iter().map(|p| p.len()).sum();
        let key = match &mut self.role {
            Role::Server => None,
            Role::Client { seed } => {
                // splitmix64
                *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (*seed ^ *seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb).to_be_bytes();
                Some([mixed[0], mixed[1], mixed[2], mixed[3]])
            }
        };
        let head = self.head_of(opcode, length, key);
        self.output.push(&head);
        match key {
            None => parts.iter().for_each(|part| self.output.push(part)),
            Some(key) => {
                let mut payload = parts.concat();
                unmask(&mut payload, key);
                self.output.push(&payload);
            }
        }
    }

    fn head_of(&self, opcode: u8, length: usize, key: Option<[u8; 4]>) -> Vec<u8> {
        let mask = if key.is_some() { 0x80 } else { 0 };
        let mut head = Vec::with_capacity(HEAD + 1);
        head.push(0x80 | opcode);
        // Each arm says that the length fits.
        match length {
            0..126 => head.push(mask | length as u8),
            126..65536 => {
                head.push(mask | 126);
                head.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                head.push(mask | 127);
                head.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        head.extend(key.into_iter().flatten());
        head
    }

    /// Whether both sides have closed.
    pub fn closed(&self) -> bool {
        self.close_sent && self.close_received
    }

    /// Bytes for the peer.
    pub fn output(&self) -> &[u8] {
        self.output.get()
    }

    /// `n` bytes of [`output`](Self::output) were sent.
    pub fn sent(&mut self, n: usize) {
        self.output.sent(n);
    }
}

fn opcode(kind: Kind) -> u8 {
    match kind {
        Kind::Text => TEXT,
        Kind::Binary => BINARY,
    }
}

/// The key for what comes `n` bytes later.
fn turned(key: [u8; 4], n: usize) -> [u8; 4] {
    let mut key = key;
    key.rotate_left(n % 4);
    key
}

/// Masks or unmasks `bytes`, 32 at a time (which the compiler turns into vector instructions).
fn unmask(bytes: &mut [u8], key: [u8; 4]) {
    let wide: [u8; 32] = std::array::from_fn(|i| key[i % 4]);
    let mut chunks = bytes.chunks_exact_mut(32);
    for chunk in &mut chunks {
        for (byte, key) in chunk.iter_mut().zip(&wide) {
            *byte ^= key;
        }
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(&wide) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests;
