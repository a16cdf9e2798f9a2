//! The server's side over SPDY, tunnelled or not: two streams for each connection.
//!
//! ```text
//!  SYN_STREAM streamType=error port=80 requestID=7 ─▶ SYN_REPLY ┐
//!  SYN_STREAM streamType=data  port=80 requestID=7 ─▶ SYN_REPLY ┴▶ Opened ─▶ data both ways
//!     ─▶ FIN data both ways, then FIN error           (all went well)
//!     ─▶ text + FIN on error, RST data                (fail)
//!     ─▶ RST data from the client ─▶ FIN error        (the client gave up)
//! ```
//! kubectl finishes its side of the error stream at once and reads it to its end after the data
//! stream has ended.

use super::carrier::Carrier;
use super::{Error, Id, Step};
use crate::spdy::{Event, Headers, Limits, Status};
use std::collections::HashMap;
use std::ops::Range;

/// Streams of one client: a thousand connections.
pub(super) const STREAMS: u32 = 2000;
/// What a client may send on one connection before it is consumed, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
/// What it may send on all together, in bytes.
const SESSION_WINDOW: u32 = 8 << 20;
/// Longest `requestID`, in bytes.
const REQUEST_LIMIT: usize = 256;
/// Most bytes of a failure's text that are sent.
const TEXT_LIMIT: usize = 1024;

pub(super) const LIMITS: Limits =
    Limits { streams: STREAMS, stream_window: STREAM_WINDOW, session_window: SESSION_WINDOW };

#[derive(Debug, Default)]
struct Pair {
    error: Option<u32>,
    data: Option<u32>,
    /// While one of the two is missing.
    request: String,
    /// It was there at the last sweep already.
    old: bool,
    local_closed: bool,
    remote_closed: bool,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) carrier: Carrier,
    pairs: HashMap<Id, Pair>,
    /// Pairs of which one stream is missing.
    waiting: HashMap<String, Id>,
    streams: HashMap<u32, Id>,
    next: u64,
    they_go: bool,
}

impl Server {
    pub(super) fn new(tunnelled: bool) -> Server {
        Server {
            carrier: Carrier::new(tunnelled, LIMITS),
            pairs: HashMap::new(),
            waiting: HashMap::new(),
            streams: HashMap::new(),
            next: 0,
            they_go: false,
        }
    }

    /// A client that heeds its windows never gets there.
    pub(super) fn kept_limit(&self) -> usize {
        SESSION_WINDOW as usize
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.carrier.spdy.bytes(range)
    }

    pub(super) fn step(&mut self) -> Result<Option<Step>, Error> {
        let Some(event) = self.carrier.poll()? else {
            let over = self.carrier.closed() || self.they_go && self.carrier.spdy.streams() == 0;
            return Ok(over.then_some(Step::Gone));
        };
        Ok(Some(match event {
            Event::Opened { stream, headers } => self.opened(stream, &headers),
            Event::Data { stream, range } => match self.data_of(stream) {
                Some(id) => Step::Data(id, range),
                None => {
                    self.carrier.spdy.credit(stream, range.len());
                    Step::Silent
                }
            },
            Event::Finished { stream } => self.data_of(stream).map_or(Step::Silent, Step::Closed),
            Event::Reset { stream } => self.reset_by_client(stream),
            Event::Replied { .. } => Step::Silent,
            Event::GoAway => {
                self.they_go = true;
                Step::Silent
            }
        }))
    }

    fn data_of(&self, stream: u32) -> Option<Id> {
        let id = *self.streams.get(&stream)?;
        self.pairs.get(&id).filter(|pair| pair.data == Some(stream)).map(|_| id)
    }

    fn opened(&mut self, stream: u32, headers: &Headers) -> Step {
        let port = headers.get("port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0);
        let data = match headers.get("streamType") {
            Some("data") => Some(true),
            Some("error") => Some(false),
            _ => None,
        };
        let (Some(port), Some(data)) = (port, data) else {
            self.carrier.spdy.reset(stream, Status::Refused);
            return Step::Silent;
        };
        let request = match headers.get("requestID") {
            Some(request) if !request.is_empty() => request.to_owned(),
            // Clients before requestID: the data stream comes right after its error stream.
            _ => (if data { stream.saturating_sub(2) } else { stream }).to_string(),
        };
        let id = self.waiting.get(&request).copied();
        let id = id.unwrap_or_else(|| {
            self.next += 1;
            Id(self.next - 1)
        });
        let pair = self.pairs.entry(id).or_default();
        let slot = if data { &mut pair.data } else { &mut pair.error };
        if slot.is_some() || request.len() > REQUEST_LIMIT {
            // Twice the same: the first one counts.
            if pair.data.is_none() && pair.error.is_none() {
                self.pairs.remove(&id);
            }
            self.carrier.spdy.reset(stream, Status::Refused);
            return Step::Silent;
        }
        *slot = Some(stream);
        let complete = pair.data.is_some() && pair.error.is_some();
        self.streams.insert(stream, id);
        self.carrier.spdy.reply(stream);
        if complete {
            pair.request = String::new();
            self.waiting.remove(&request);
            return Step::Opened(id, port);
        }
        pair.request.clone_from(&request);
        self.waiting.insert(request, id);
        Step::Waiting(id)
    }

    fn reset_by_client(&mut self, stream: u32) -> Step {
        let Some(id) = self.streams.remove(&stream) else { return Step::Silent };
        let Some(pair) = self.pairs.get_mut(&id) else { return Step::Silent };
        let complete = pair.data.is_some() && pair.error.is_some();
        if pair.error == Some(stream) && complete {
            // It only means that no text is wanted.
            return Step::Silent;
        }
        self.end(id);
        if complete { Step::Reset(id) } else { Step::Dropped(id) }
    }

    /// The end of both directions has come: the error stream's comes with it.
    fn end(&mut self, id: Id) {
        let Some(pair) = self.pairs.remove(&id) else { return };
        if self.waiting.get(&pair.request) == Some(&id) {
            self.waiting.remove(&pair.request);
        }
        for stream in [pair.error, pair.data].into_iter().flatten() {
            self.streams.remove(&stream);
        }
        let spdy = &mut self.carrier.spdy;
        if let Some(error) = pair.error {
            spdy.close(error);
            // Of a client that does not finish its side: it shall not count for ever.
            spdy.reset(error, Status::Cancel);
        }
        if let Some(data) = pair.data {
            spdy.reset(data, Status::Cancel);
        }
    }

    /// That the client sends nothing more was told: whether the connection has ended.
    pub(super) fn closed_told(&mut self, id: Id) -> bool {
        let Some(pair) = self.pairs.get_mut(&id) else { return true };
        pair.remote_closed = true;
        let both = pair.local_closed;
        if both {
            self.end(id);
        }
        both
    }

    /// `n` bytes were consumed.
    pub(super) fn consumed(&mut self, id: Id, n: usize) {
        if n > 0 {
            // Of one that has ended only the session's window is given back.
            let stream = self.pairs.get(&id).and_then(|pair| pair.data).unwrap_or_default();
            self.carrier.spdy.credit(stream, n);
        }
    }

    fn way(&self, id: Id) -> Option<u32> {
        self.pairs.get(&id).filter(|pair| pair.error.is_some()).and_then(|pair| pair.data)
    }

    pub(super) fn room(&self, id: Id) -> usize {
        self.way(id).map_or(0, |stream| self.carrier.spdy.room(stream))
    }

    pub(super) fn send_space(&mut self, id: Id) -> &mut [u8] {
        match self.way(id) {
            Some(stream) => self.carrier.spdy.send_space(stream),
            None => &mut [],
        }
    }

    pub(super) fn send_filled(&mut self, id: Id, n: usize) {
        if let Some(stream) = self.way(id) {
            self.carrier.spdy.send_filled(stream, n);
        }
    }

    pub(super) fn send(&mut self, id: Id, bytes: &[u8]) -> usize {
        self.way(id).map_or(0, |stream| self.carrier.spdy.send(stream, bytes))
    }

    /// The pod sends nothing more: whether the connection has ended.
    pub(super) fn close(&mut self, id: Id) -> bool {
        let Some(pair) = self.pairs.get_mut(&id) else { return true };
        pair.local_closed = true;
        let both = pair.remote_closed;
        if let Some(stream) = pair.data {
            self.carrier.spdy.close(stream);
        }
        if both {
            self.end(id);
        }
        both
    }

    pub(super) fn fail(&mut self, id: Id, text: Option<&str>) {
        if let Some(error) = self.pairs.get(&id).and_then(|pair| pair.error)
            && let Some(text) = text
        {
            let end = (0..=text.len().min(TEXT_LIMIT)).rfind(|at| text.is_char_boundary(*at));
            self.carrier.spdy.say(error, &text.as_bytes()[..end.unwrap_or_default()]);
        }
        self.end(id);
    }

    /// Forgets pairs that wait for their second stream since before the last call.
    pub(super) fn sweep(&mut self) -> Vec<Id> {
        let mut dropped = Vec::new();
        for id in self.waiting.values() {
            if let Some(pair) = self.pairs.get_mut(id)
                && std::mem::replace(&mut pair.old, true)
            {
                dropped.push(*id);
            }
        }
        for id in &dropped {
            self.fail(*id, Some("timed out waiting for streams"));
        }
        dropped
    }

    pub(super) fn finish(&mut self) {
        let ids: Vec<_> = self.pairs.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end(id));
        self.carrier.go_away();
    }

    /// Connections and streams that are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> [usize; 4] {
        let streams = self.carrier.spdy.streams();
        [self.pairs.len(), self.waiting.len(), self.streams.len(), streams]
    }
}
