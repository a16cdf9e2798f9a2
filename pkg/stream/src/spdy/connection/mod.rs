//! One connection: frames in, frames out, and the state of every stream.
//!
//! ```text
//!            SYN_STREAM in                    SYN_STREAM out
//!                 │                                 │
//!            Event::Opened ─ reply() ─┐   Event::Replied (SYN_REPLY in)
//!                 │                   ▼             ▼
//!              reset()             open ── close() / FIN in ──▶ half closed ──▶ forgotten
//!                                     └──── reset() / RST_STREAM in ─────────▶ forgotten
//! ```

mod send;

use super::header::{Packer, Unpacker};
use super::{BACKLOG_LIMIT, CONTROL_LIMIT, Headers, INITIAL_WINDOW, MAX_WINDOW};
use crate::Error;
use crate::buffer::{Input, Output};
use std::collections::HashMap;
use std::ops::Range;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;

const SETTINGS_MAX_CONCURRENT_STREAMS: u32 = 4;
const SETTINGS_INITIAL_WINDOW_SIZE: u32 = 7;

/// Why a stream is reset (section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It broke a rule.
    Protocol = 1,
    /// It is not wanted.
    Refused = 3,
    /// It is not needed any more.
    Cancel = 5,
    /// Something failed.
    Internal = 6,
    /// Its window grew beyond what is possible.
    FlowControl = 7,
}

/// What a connection may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams of the peer that are open at once; further ones are refused.
    pub streams: u32,
    /// Window that each stream is given, in bytes.
    pub stream_window: u32,
    /// Window that all streams together are given, in bytes; more than
    /// [`INITIAL_WINDOW`], or a peer that is like this side does not see that there is one.
    pub session_window: u32,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream: [`Connection::reply`] or [`Connection::reset`].
    Opened {
        /// Its number.
        stream: u32,
        /// What it is for.
        headers: Headers,
    },
    /// The peer has accepted a stream that was opened here.
    Replied {
        /// Its number.
        stream: u32,
    },
    /// Data, never empty: [`Connection::bytes`] until input is received again.
    Data {
        /// The stream's number.
        stream: u32,
        /// Where they lie.
        range: Range<usize>,
    },
    /// The peer sends nothing more on the stream.
    Finished {
        /// Its number.
        stream: u32,
    },
    /// The peer has ended the stream. It is forgotten.
    Reset {
        /// Its number.
        stream: u32,
    },
    /// The peer opens no further streams, and accepts none.
    GoAway,
}

#[derive(Debug)]
struct Stream {
    /// What may still be sent by the peer's window; below 0 where it was not bound to it.
    window: i64,
    /// What was consumed and not granted again yet.
    credit: u32,
    replied: bool,
    local_closed: bool,
    remote_closed: bool,
}

#[derive(Debug, Clone, Copy)]
enum Parse {
    /// At the start of a frame.
    Head,
    /// Within a data frame.
    Data { stream: u32, left: usize, fin: bool },
    /// Within a frame of an unknown type.
    Skip { left: usize },
}

/// Either side of a connection.
#[derive(Debug)]
pub struct Connection {
    server: bool,
    limits: Limits,
    input: Input,
    output: Output,
    parse: Parse,
    unpacker: Unpacker,
    packer: Packer,
    streams: HashMap<u32, Stream>,
    /// Streams of the peer among them.
    theirs: u32,
    /// The highest stream number of the peer.
    last: u32,
    /// The next stream number of this side.
    next: u32,
    /// What the peer accepts of this side's streams at once.
    peer_limit: u32,
    window: i64,
    window_binds: bool,
    stream_window: i64,
    stream_windows_bind: bool,
    credit: u32,
    /// Nothing is granted: a server that has accepted a stream without having spoken of windows.
    ungranting: bool,
    /// Follows the event that was returned last.
    after: Option<Event>,
    greeted: bool,
    /// Going away: the peer, this side.
    they_go: bool,
    we_go: bool,
    failed: bool,
}

impl Connection {
    /// The server's or the client's side, nothing received or sent yet.
    pub fn new(server: bool, limits: Limits) -> Connection {
        let mut connection = Connection {
            server,
            limits,
            input: Input::new(),
            output: Output::default(),
            parse: Parse::Head,
            unpacker: Unpacker::new(),
            packer: Packer::new(),
            streams: HashMap::new(),
            theirs: 0,
            last: 0,
            next: if server { 2 } else { 1 },
            peer_limit: u32::MAX,
            window: INITIAL_WINDOW.into(),
            window_binds: false,
            stream_window: INITIAL_WINDOW.into(),
            stream_windows_bind: false,
            credit: 0,
            ungranting: false,
            after: None,
            greeted: false,
            they_go: false,
            we_go: false,
            failed: false,
        };
        if !server {
            connection.greet();
        }
        connection
    }

    /// Says once what this side accepts.
    fn greet(&mut self) {
        if std::mem::replace(&mut self.greeted, true) {
            return;
        }
        let mut settings = [0; 20];
        settings[3] = 2;
        for (at, id, value) in [
            (4, SETTINGS_MAX_CONCURRENT_STREAMS, self.limits.streams),
            (12, SETTINGS_INITIAL_WINDOW_SIZE, self.limits.stream_window.min(MAX_WINDOW)),
        ] {
            settings[at..at + 4].copy_from_slice(&id.to_be_bytes());
            settings[at + 4..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        self.control(SETTINGS, 0, &settings);
        let more = self.limits.session_window.min(MAX_WINDOW).saturating_sub(INITIAL_WINDOW);
        if more > 0 {
            self.pair(WINDOW_UPDATE, 0, more);
        }
    }

    /// Where to put received bytes. Empty while no frame is parsed.
    pub fn space(&mut self) -> &mut [u8] {
        if self.blocked() { &mut [] } else { self.input.space() }
    }

    /// `n` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, n: usize) {
        if n > 0 {
            self.greet();
        }
        self.input.filled(n);
    }

    /// Copies the start of `bytes` in: how many.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        if !bytes.is_empty() {
            self.greet();
        }
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

    /// `n` bytes of data of `stream` (which may be forgotten already) were consumed: grants as many
    /// more.
    pub fn credit(&mut self, stream: u32, n: usize) {
        if self.ungranting {
            return;
        }
        let n = u32::try_from(n).unwrap_or(MAX_WINDOW);
        self.credit = self.credit.saturating_add(n);
        let mut updates = [None, None];
        if self.credit >= self.limits.session_window / 2 {
            updates[0] = Some((0, std::mem::take(&mut self.credit)));
        }
        if let Some(state) = self.streams.get_mut(&stream).filter(|s| !s.remote_closed) {
            state.credit = state.credit.saturating_add(n);
            if state.credit >= self.limits.stream_window / 2 {
                updates[1] = Some((stream, std::mem::take(&mut state.credit)));
            }
        }
        for (stream, n) in updates.into_iter().flatten() {
            self.pair(WINDOW_UPDATE, stream, n.min(MAX_WINDOW));
        }
    }

    /// The next event. After an error nothing comes any more, and the output ends with a GOAWAY.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        if let Some(event) = self.after.take() {
            return Ok(Some(event));
        }
        while !self.blocked() {
            let event = match self.parse {
                Parse::Head => match self.head() {
                    Ok(Some(event)) => event,
                    Ok(None) => break,
                    Err(rule) => {
                        self.fail();
                        return Err(Error::Spdy(rule));
                    }
                },
                Parse::Skip { left } => {
                    let n = self.input.take(left).len();
                    if left > n {
                        self.parse = Parse::Skip { left: left - n };
                        break;
                    }
                    self.parse = Parse::Head;
                    None
                }
                Parse::Data { stream, left, fin } => {
                    let range = self.input.take(left);
                    let left = left - range.len();
                    self.parse = Parse::Data { stream, left, fin };
                    let known = self.streams.get(&stream).is_some_and(|s| !s.remote_closed);
                    if left == 0 {
                        self.parse = Parse::Head;
                        if fin && known {
                            self.finished(stream);
                        }
                    } else if range.is_empty() {
                        break;
                    }
                    if !known {
                        // It was forgotten while these were on their way.
                        self.credit(stream, range.len());
                        None
                    } else if range.is_empty() {
                        self.after.take()
                    } else {
                        Some(Event::Data { stream, range })
                    }
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Parses what starts a frame: `None` when more bytes are needed, else its event if it has one.
    #[allow(clippy::type_complexity)]
    fn head(&mut self) -> Result<Option<Option<Event>>, &'static str> {
        let rest = self.input.rest();
        let Some((head, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
        let [a, b, c, d, flags, length @ ..] = *head;
        let length =
            usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            let fin = flags & FIN != 0;
            self.known(stream)?;
            self.input.take(8);
            self.parse = Parse::Data { stream, left: length, fin };
            return Ok(Some(None));
        }
        if u16::from_be_bytes([a & 0x7f, b]) != 3 {
            return Err("a frame of another version");
        }
        let kind = u16::from_be_bytes([c, d]);
        if !matches!(kind, SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE) {
            self.input.take(8);
            self.parse = Parse::Skip { left: length };
            return Ok(Some(None));
        }
        if length > CONTROL_LIMIT {
            return Err("a control frame that is too long");
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        // Control frames are small and rare.
        let payload = payload.to_vec();
        self.input.take(8 + length);
        self.control_frame(kind, flags, &payload).map(Some)
    }

    fn control_frame(
        &mut self,
        kind: u16,
        flags: u8,
        payload: &[u8],
    ) -> Result<Option<Event>, &'static str> {
        const CUT: &str = "a control frame that is too short";
        let (first, rest) = payload.split_first_chunk::<4>().ok_or(CUT)?;
        let first = u32::from_be_bytes(*first);
        let stream = first & MAX_WINDOW;
        match kind {
            SYN_STREAM => {
                // Associated stream, priority and slot say nothing here.
                let headers = self.unpacker.unpack(rest.get(6..).ok_or(CUT)?)?;
                self.syn_stream(stream, flags, headers)
            }
            SYN_REPLY | HEADERS => {
                self.unpacker.unpack(rest)?;
                self.known(stream)?;
                self.ungranting = !self.server && !self.window_binds && !self.stream_windows_bind;
                let Some(state) = self.streams.get_mut(&stream) else { return Ok(None) };
                let replied = kind == SYN_REPLY && !std::mem::replace(&mut state.replied, true);
                if flags & FIN != 0 && !state.remote_closed {
                    self.finished(stream);
                }
                Ok(if replied { Some(Event::Replied { stream }) } else { self.after.take() })
            }
            RST_STREAM => {
                if rest.len() != 4 {
                    return Err("a RST_STREAM of wrong length");
                }
                self.known(stream)?;
                Ok(self.forget(stream).then_some(Event::Reset { stream }))
            }
            SETTINGS => self.settings(first, rest).map(|()| None),
            PING => {
                if !rest.is_empty() {
                    return Err("a PING of wrong length");
                }
                // Odd numbers are the client's; an own one that comes back means nothing here.
                if (first % 2 == 1) == self.server {
                    self.control(PING, 0, &first.to_be_bytes());
                }
                Ok(None)
            }
            GOAWAY => {
                if rest.len() != 4 {
                    return Err("a GOAWAY of wrong length");
                }
                let again = std::mem::replace(&mut self.they_go, true);
                Ok((!again).then_some(Event::GoAway))
            }
            _ => {
                let n: [u8; 4] = rest.try_into().map_err(|_| "a WINDOW_UPDATE of wrong length")?;
                self.window_update(stream, u32::from_be_bytes(n) & MAX_WINDOW).map(|()| None)
            }
        }
    }

    fn syn_stream(
        &mut self,
        stream: u32,
        flags: u8,
        headers: Headers,
    ) -> Result<Option<Event>, &'static str> {
        if (stream % 2 == 1) != self.server || stream <= self.last {
            return Err("a SYN_STREAM with a wrong number");
        }
        self.last = stream;
        if self.they_go || self.we_go {
            return Ok(None);
        }
        if self.theirs >= self.limits.streams {
            self.pair(RST_STREAM, stream, Status::Refused as u32);
            return Ok(None);
        }
        self.theirs += 1;
        self.streams.insert(
            stream,
            Stream {
                window: self.stream_window,
                credit: 0,
                replied: false,
                local_closed: flags & UNIDIRECTIONAL != 0,
                remote_closed: false,
            },
        );
        if flags & FIN != 0 {
            self.finished(stream);
        }
        Ok(Some(Event::Opened { stream, headers }))
    }

    fn settings(&mut self, count: u32, mut entries: &[u8]) -> Result<(), &'static str> {
        if usize::try_from(count).ok().and_then(|n| n.checked_mul(8)) != Some(entries.len()) {
            return Err("SETTINGS of wrong length");
        }
        while let Some((entry, rest)) = entries.split_first_chunk::<8>() {
            entries = rest;
            let [_, a, b, c, value @ ..] = *entry;
            let value = u32::from_be_bytes(value);
            match u32::from_be_bytes([0, a, b, c]) {
                SETTINGS_MAX_CONCURRENT_STREAMS => self.peer_limit = value,
                SETTINGS_INITIAL_WINDOW_SIZE => {
                    if value > MAX_WINDOW {
                        return Err("an initial window that is too large");
                    }
                    let change = i64::from(value) - self.stream_window;
                    self.stream_window = value.into();
                    self.stream_windows_bind = true;
                    for state in self.streams.values_mut() {
                        state.window += change;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn window_update(&mut self, stream: u32, n: u32) -> Result<(), &'static str> {
        let most = i64::from(MAX_WINDOW);
        if stream == 0 {
            self.window += i64::from(n);
            self.window_binds = true;
            return if self.window > most { Err("a window that is too large") } else { Ok(()) };
        }
        self.known(stream)?;
        self.stream_windows_bind = true;
        if let Some(state) = self.streams.get_mut(&stream) {
            state.window += i64::from(n);
            if state.window > most {
                return Err("a stream's window that is too large");
            }
        }
        Ok(())
    }

    /// Whether `stream` is one that was opened at some time.
    fn known(&self, stream: u32) -> Result<(), &'static str> {
        let theirs = (stream % 2 == 1) == self.server;
        if stream > 0 && if theirs { stream <= self.last } else { stream < self.next } {
            Ok(())
        } else {
            Err("a frame for a stream that was never opened")
        }
    }

    /// The peer has finished `stream`: the event follows.
    fn finished(&mut self, stream: u32) {
        self.after = Some(Event::Finished { stream });
        if let Some(state) = self.streams.get_mut(&stream) {
            state.remote_closed = true;
            if state.local_closed {
                self.forget(stream);
            }
        }
    }

    fn forget(&mut self, stream: u32) -> bool {
        let known = self.streams.remove(&stream).is_some();
        if known && (stream % 2 == 1) == self.server {
            self.theirs -= 1;
        }
        known
    }
}

#[cfg(test)]
mod tests;
