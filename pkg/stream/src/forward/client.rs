//! The client's side of a port-forward, over SPDY.
//!
//! ```text
//!  open(port) ─▶ SYN_STREAM error, FIN error, SYN_STREAM data ─▶ Ready ─▶ data both ways
//!     ─▶ Closed (FIN), Failed (a text on the error stream), Reset
//! ```

use super::{Error, Id, SPDY_PROTOCOL, streams::LIMITS};
use crate::http::Response;
use crate::inbox::{Arrived, Inboxes, Notice};
use crate::remote::{ClientError, upgrade, version};
use crate::spdy::{Connection, Event, Headers, Status};
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
    connection: Connection,
    pairs: HashMap<Id, Pair>,
    streams: HashMap<u32, Id>,
    next: u64,
    inbox: Inboxes<Id>,
    eof: bool,
    gone: bool,
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
            connection: Connection::new(false, LIMITS),
            pairs: HashMap::new(),
            streams: HashMap::new(),
            next: 0,
            inbox: Inboxes::new(),
            eof: false,
            gone: false,
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
        let error = self.connection.open(&headers("error"))?;
        let Some(data) = self.connection.open(&headers("data")) else {
            self.connection.reset(error, Status::Cancel);
            return None;
        };
        self.next += 1;
        self.connection.close(error);
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
        self.inbox.open(id, false);
        Some(id)
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
            Told::Ready(id) => ClientEvent::Ready { id },
            Told::Received(id, range) => {
                ClientEvent::Data { id, bytes: self.connection.bytes(range) }
            }
            Told::Kept(id) => ClientEvent::Data { id, bytes: self.inbox.pending(id) },
            Told::Closed(id) => ClientEvent::Closed { id },
            Told::Failed(id, text) => ClientEvent::Failed { id, text },
            Told::Reset(id) => ClientEvent::Reset { id },
            Told::Gone => ClientEvent::Gone,
        }))
    }

    fn next(&mut self) -> Result<Option<Told>, Error> {
        while !self.gone {
            match self.inbox.next() {
                Some(Notice::Data(id)) => return Ok(Some(Told::Kept(id))),
                Some(Notice::Closed(id)) => {
                    if let Some(pair) = self.pairs.get_mut(&id) {
                        pair.remote_closed = true;
                    }
                    self.end_if_both(id);
                    return Ok(Some(Told::Closed(id)));
                }
                None => {}
            }
            let Some(event) = self.connection.poll()? else {
                if self.eof {
                    break;
                }
                return Ok(None);
            };
            if let Some(told) = self.told(event) {
                return Ok(Some(told));
            }
        }
        Ok((!std::mem::replace(&mut self.gone, true)).then_some(Told::Gone))
    }

    fn told(&mut self, event: Event) -> Option<Told> {
        let stream = match event {
            Event::Opened { stream, .. } => {
                self.connection.reset(stream, Status::Refused);
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
                self.connection.credit(stream, range.len());
            }
            return None;
        };
        let of_data = pair.data == stream;
        match event {
            Event::Replied { .. } if of_data => Some(Told::Ready(id)),
            Event::Data { range, .. } if of_data => match self.inbox.arrived(id, range.clone()) {
                Arrived::Tell => Some(Told::Received(id, range)),
                Arrived::Keep => {
                    self.inbox.keep(id, self.connection.bytes(range));
                    None
                }
                Arrived::Drop => {
                    self.connection.credit(stream, range.len());
                    None
                }
            },
            Event::Data { range, .. } => {
                let bytes = self.connection.bytes(range.clone());
                let n = bytes.len().min(TEXT_LIMIT - pair.text.len());
                pair.text.extend_from_slice(&bytes[..n]);
                self.connection.credit(stream, range.len());
                None
            }
            Event::Finished { .. } if of_data => {
                self.inbox.close(id);
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
            self.connection.reset(stream, Status::Cancel);
        }
        let lost = self.inbox.remove(id);
        self.connection.credit(pair.data, lost);
    }

    /// `n` bytes of the last `Data` for `id`, or of its [`pending`](Self::pending), were taken.
    pub fn consumed(&mut self, id: Id, n: usize) {
        let n = self.inbox.consumed(id, n);
        if n > 0
            && let Some(pair) = self.pairs.get(&id)
        {
            self.connection.credit(pair.data, n);
        }
    }

    /// Bytes that came for `id` and were not consumed: the first contiguous piece of them.
    pub fn pending(&self, id: Id) -> &[u8] {
        self.inbox.pending(id)
    }

    fn way(&self, id: Id) -> Option<u32> {
        self.pairs.get(&id).map(|pair| pair.data)
    }

    /// How many bytes may be sent on `id` now.
    pub fn room(&self, id: Id) -> usize {
        self.way(id).map_or(0, |stream| self.connection.room(stream))
    }

    /// Where to read the next bytes for `id` to; [`send_filled`](Self::send_filled) must be next.
    pub fn send_space(&mut self, id: Id) -> &mut [u8] {
        match self.way(id) {
            Some(stream) => self.connection.send_space(stream),
            None => &mut [],
        }
    }

    /// `n` bytes of the last [`send_space`](Self::send_space) were filled: sends them.
    pub fn send_filled(&mut self, id: Id, n: usize) {
        if let Some(stream) = self.way(id) {
            self.connection.send_filled(stream, n);
        }
    }

    /// Sends the start of `bytes` on `id`: how many were taken.
    pub fn send(&mut self, id: Id, bytes: &[u8]) -> usize {
        self.way(id).map_or(0, |stream| self.connection.send(stream, bytes))
    }

    /// Nothing more will be sent on `id`.
    pub fn close(&mut self, id: Id) {
        if let Some(pair) = self.pairs.get_mut(&id) {
            pair.local_closed = true;
            self.connection.close(pair.data);
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
