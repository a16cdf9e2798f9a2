//! The client's side of a port-forward, over SPDY.
//!
//! ```text
//!  open(port) ─▶ SYN_STREAM error, FIN error, SYN_STREAM data ─▶ Ready ─▶ data both ways
//!     ─▶ Closed (FIN), Failed (a text on the error stream), Reset
//! ```

use super::{Error, Id, SPDY_PROTOCOL, streams::LIMITS};
use crate::http::Response;
use crate::inbox::Notice;
use crate::link::{Link, Step};
use crate::remote::{ClientError, upgrade, version};
use crate::spdy::{Event, Headers, Status};
use std::collections::HashMap;
use std::ops::Range;

/// Most bytes of an error stream that are kept.
const TEXT_LIMIT: usize = 4 * 1024;

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientEvent<'a> {
    /// The server has accepted the connection's streams; it may still fail to connect.
    Ready {
        /// Which connection.
        id: Id,
    },
    /// Bytes from the pod: take what you can, then [`Client::consumed`].
    Data {
        /// Which connection.
        id: Id,
        /// Never empty.
        bytes: &'a [u8],
    },
    /// The pod sends nothing more, and all that it sent has been consumed.
    Closed {
        /// Which connection.
        id: Id,
    },
    /// The server could not connect, or the connection broke. The id is forgotten.
    Failed {
        /// Which connection.
        id: Id,
        /// Why, for people.
        text: String,
    },
    /// The server has ended the connection. The id is forgotten.
    Reset {
        /// Which connection.
        id: Id,
    },
    /// The server has closed the session. Comes once, last; every id is forgotten.
    Gone,
}

enum Told {
    Ready(Id),
    Received(Id, Range<usize>),
    Kept(Id),
    Closed(Id),
    Failed(Id, String),
    Reset(Id),
    Gone,
}

#[derive(Debug)]
struct Pair {
    error: u32,
    data: u32,
    text: Vec<u8>,
    /// The server has finished the error stream.
    error_ended: bool,
    data_reset: bool,
    local_closed: bool,
    remote_closed: bool,
}

/// The client's side of a port-forward. Driven like [`super::Session`].
#[derive(Debug)]
pub struct Client {
    link: Link<Id>,
    pairs: HashMap<Id, Pair>,
    streams: HashMap<u32, Id>,
    next: u64,
}

impl Client {
    /// The bytes of the request: `host` for the Host line, `target` the path and query of the URL.
    pub fn request(host: &str, target: &str) -> Vec<u8> {
        upgrade(host, target, &[SPDY_PROTOCOL])
    }

    /// What follows a response.
    pub fn new(response: &Response) -> Result<Client, ClientError> {
        version(response, &[SPDY_PROTOCOL])?;
        Ok(Client {
            link: Link::new(LIMITS),
            pairs: HashMap::new(),
            streams: HashMap::new(),
            next: 0,
        })
    }

    /// Asks for a connection to `port` of the pod. `None`: the server takes no more for now.
    pub fn open(&mut self, port: u16) -> Option<Id> {
        let id = Id(self.next);
        let headers = |kind: &str| {
            Headers::default()
                .with("streamType", kind)
                .with("port", port.to_string())
                .with("requestID", id.0.to_string())
        };
        let error = self.link.connection.open(&headers("error"))?;
        let Some(data) = self.link.connection.open(&headers("data")) else {
            self.link.connection.reset(error, Status::Cancel);
            return None;
        };
        self.next += 1;
        self.link.connection.close(error);
        self.streams.extend([(error, id), (data, id)]);
        self.pairs.insert(
            id,
            Pair {
                error,
                data,
                text: Vec::new(),
                error_ended: false,
                data_reset: false,
                local_closed: false,
                remote_closed: false,
            },
        );
        self.link.inbox.open(id, false);
        Some(id)
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
            Told::Ready(id) => ClientEvent::Ready { id },
            Told::Received(id, range) => {
                ClientEvent::Data { id, bytes: self.link.connection.bytes(range) }
            }
            Told::Kept(id) => ClientEvent::Data { id, bytes: self.link.inbox.pending(id) },
            Told::Closed(id) => ClientEvent::Closed { id },
            Told::Failed(id, text) => ClientEvent::Failed { id, text },
            Told::Reset(id) => ClientEvent::Reset { id },
            Told::Gone => ClientEvent::Gone,
        }))
    }

    fn next(&mut self) -> Result<Option<Told>, Error> {
        loop {
            let told = match self.link.step()? {
                Step::Notice(Notice::Data(id)) => Some(Told::Kept(id)),
                Step::Notice(Notice::Closed(id)) => {
                    if let Some(pair) = self.pairs.get_mut(&id) {
                        pair.remote_closed = true;
                    }
                    self.end_if_both(id);
                    Some(Told::Closed(id))
                }
                Step::Event(event) => self.told(event),
                Step::Gone => Some(Told::Gone),
                Step::Silent => return Ok(None),
            };
            if told.is_some() {
                return Ok(told);
            }
        }
    }

    fn told(&mut self, event: Event) -> Option<Told> {
        let stream = match event {
            Event::Opened { stream, .. } => {
                self.link.connection.reset(stream, Status::Refused);
                return None;
            }
            Event::GoAway => return None,
            Event::Replied { stream }
            | Event::Data { stream, .. }
            | Event::Finished { stream }
            | Event::Reset { stream } => stream,
        };
        let known = self.streams.get(&stream).copied();
        let Some((id, pair)) = known.and_then(|id| Some((id, self.pairs.get_mut(&id)?))) else {
            if let Event::Data { range, .. } = event {
                self.link.connection.credit(stream, range.len());
            }
            return None;
        };
        let of_data = pair.data == stream;
        match event {
            Event::Replied { .. } if of_data => Some(Told::Ready(id)),
            Event::Data { range, .. } if of_data => {
                let range = self.link.arrived(id, stream, range)?;
                Some(Told::Received(id, range))
            }
            Event::Data { range, .. } => {
                let bytes = self.link.connection.bytes(range.clone());
                let n = bytes.len().min(TEXT_LIMIT - pair.text.len());
                pair.text.extend_from_slice(&bytes[..n]);
                self.link.connection.credit(stream, range.len());
                None
            }
            Event::Finished { .. } if of_data => {
                self.link.inbox.close(id);
                None
            }
            Event::Reset { .. } if of_data => {
                pair.data_reset = true;
                // What is wrong may still come on the error stream.
                if pair.error_ended { self.broken(id) } else { None }
            }
            Event::Finished { .. } | Event::Reset { .. } => {
                pair.error_ended = true;
                let failed = pair.data_reset || !pair.text.is_empty();
                if failed { self.broken(id) } else { None }
            }
            _ => None,
        }
    }

    /// The server has ended the connection.
    fn broken(&mut self, id: Id) -> Option<Told> {
        let text = self.pairs.get(&id).map(|p| String::from_utf8_lossy(&p.text).into_owned())?;
        self.end(id);
        Some(if text.is_empty() { Told::Reset(id) } else { Told::Failed(id, text) })
    }

    fn end_if_both(&mut self, id: Id) {
        if self.pairs.get(&id).is_some_and(|p| p.local_closed && p.remote_closed) {
            self.end(id);
        }
    }

    /// Forgets a connection.
    fn end(&mut self, id: Id) {
        let Some(pair) = self.pairs.remove(&id) else { return };
        for stream in [pair.error, pair.data] {
            self.streams.remove(&stream);
            self.link.connection.reset(stream, Status::Cancel);
        }
        let lost = self.link.inbox.remove(id);
        self.link.connection.credit(pair.data, lost);
    }

    /// `n` bytes of the last `Data` for `id`, or of its [`pending`](Self::pending), were taken.
    pub fn consumed(&mut self, id: Id, n: usize) {
        let n = self.link.inbox.consumed(id, n);
        if n > 0
            && let Some(pair) = self.pairs.get(&id)
        {
            self.link.connection.credit(pair.data, n);
        }
    }

    /// Bytes that came for `id` and were not consumed: the first contiguous piece of them.
    pub fn pending(&self, id: Id) -> &[u8] {
        self.link.inbox.pending(id)
    }

    fn way(&self, id: Id) -> Option<u32> {
        self.pairs.get(&id).map(|pair| pair.data)
    }

    /// How many bytes may be sent on `id` now.
    pub fn room(&self, id: Id) -> usize {
        self.way(id).map_or(0, |stream| self.link.connection.room(stream))
    }

    /// Where to read the next bytes for `id` to; [`send_filled`](Self::send_filled) must be next.
    pub fn send_space(&mut self, id: Id) -> &mut [u8] {
        match self.way(id) {
            Some(stream) => self.link.connection.send_space(stream),
            None => &mut [],
        }
    }

    /// `n` bytes of the last [`send_space`](Self::send_space) were filled: sends them.
    pub fn send_filled(&mut self, id: Id, n: usize) {
        if let Some(stream) = self.way(id) {
            self.link.connection.send_filled(stream, n);
        }
    }

    /// Sends the start of `bytes` on `id`: how many were taken.
    pub fn send(&mut self, id: Id, bytes: &[u8]) -> usize {
        self.way(id).map_or(0, |stream| self.link.connection.send(stream, bytes))
    }

    /// Nothing more will be sent on `id`.
    pub fn close(&mut self, id: Id) {
        if let Some(pair) = self.pairs.get_mut(&id) {
            pair.local_closed = true;
            self.link.connection.close(pair.data);
            self.end_if_both(id);
        }
    }

    /// Gives the connection up; the id is forgotten.
    pub fn reset(&mut self, id: Id) {
        self.end(id);
    }

    /// Says that the client leaves.
    pub fn finish(&mut self) {
        let ids: Vec<_> = self.pairs.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end(id));
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
