//! Port-forward as the kubelet, the API server, kubectl and crictl speak it.
//!
//! * SPDY/3.1 with `portforward.k8s.io`: two streams, error and data, for each connection, joined by
//!   their `requestID`; the client names the port.
//! * WebSocket with `v4.channel.k8s.io`, `v4.base64.channel.k8s.io` or no subprotocol: two channels
//!   for each port of the request, one connection each, opened at once.
//! * WebSocket with `SPDY/3.1+portforward.k8s.io` (proposed, and asked for by early clients, as
//!   `v2.portforward.k8s.io`): the bytes of the SPDY connection as binary messages.

mod carrier;
mod channels;
mod client;
mod streams;
#[cfg(test)]
mod tests;

pub use crate::Error;
pub use client::{Client, ClientEvent};

use crate::http::{Refusal, Request};
use crate::inbox::{Arrived, Inboxes, Notice};
use crate::remote::{spdy_response, spdy_version};
use crate::websocket::Handshake;
use std::ops::Range;

/// The version over SPDY.
pub const SPDY_PROTOCOL: &str = "portforward.k8s.io";
/// Subprotocols over WebSocket: SPDY tunnelled, then channels.
pub const WEBSOCKET_PROTOCOLS: [&str; 4] = [
    "SPDY/3.1+portforward.k8s.io",
    "v2.portforward.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
];

/// One forwarded connection; never used again within a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u64);

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The client wants a connection to `port` of the pod: dial. `send` may follow once dialled,
    /// `Data` may come at once (take none of it, and it is kept).
    Opened {
        /// The new connection.
        id: Id,
        /// TCP port, never 0.
        port: u16,
    },
    /// Bytes for the pod, where they were received: take what you can, then [`Session::consumed`].
    Data {
        /// Which connection.
        id: Id,
        /// Never empty.
        bytes: &'a [u8],
    },
    /// The client sends nothing more, and all that it sent has been consumed: shut the pod's
    /// socket's sending side down.
    Closed {
        /// Which connection.
        id: Id,
    },
    /// The client has given the connection up (over WebSocket channels, which know no half-closed
    /// connections: also after [`Session::close`]): close the pod's socket. The id is forgotten.
    Reset {
        /// Which connection.
        id: Id,
    },
    /// The client has closed the session. Comes once, last; every id is forgotten.
    Gone,
}

#[derive(Debug)]
enum Agreed {
    Spdy,
    WebSocket(Handshake, Vec<u16>),
}

/// A request whose upgrade is agreed upon.
#[derive(Debug)]
pub struct Accepted {
    agreed: Agreed,
}

impl Accepted {
    /// Chooses transport and version for `request`. `ports` are those of the CRI request; where the
    /// client must name them in advance and there are none, the query's `port` values are taken.
    pub fn negotiate(request: &Request, ports: &[u16]) -> Result<Accepted, Refusal> {
        if !request.is_websocket() {
            spdy_version(request, &[SPDY_PROTOCOL])?;
            return Ok(Accepted { agreed: Agreed::Spdy });
        }
        let handshake = Handshake::negotiate(request, &WEBSOCKET_PROTOCOLS)?;
        let mut ports = ports.to_vec();
        if !tunnelled(&handshake) {
            if ports.is_empty() {
                ports = named(request)?;
            }
            if ports.is_empty() || ports.contains(&0) || ports.len() > channels::PORTS {
                let text = "query parameter \"port\" must name 1 to 100 ports, none of them 0";
                return Err(Refusal::new(400, text));
            }
        }
        Ok(Accepted { agreed: Agreed::WebSocket(handshake, ports) })
    }

    /// The bytes of the `101` response: the first to be written to the socket.
    pub fn response(&self) -> Vec<u8> {
        match &self.agreed {
            Agreed::Spdy => spdy_response(SPDY_PROTOCOL),
            Agreed::WebSocket(handshake, _) => handshake.response(),
        }
    }

    /// What follows the response.
    pub fn session(self) -> Session {
        let transport = match self.agreed {
            Agreed::Spdy => Transport::Streams(Box::new(streams::Server::new(false))),
            Agreed::WebSocket(handshake, _) if tunnelled(&handshake) => {
                Transport::Streams(Box::new(streams::Server::new(true)))
            }
            Agreed::WebSocket(handshake, ports) => {
                let base64 = handshake.protocol.as_deref() == Some(WEBSOCKET_PROTOCOLS[3]);
                Transport::Channels(Box::new(channels::Server::new(base64, ports)))
            }
        };
        Session { transport, inbox: Inboxes::new(), eof: false, gone: false, over: false }
    }
}

/// Whether SPDY is spoken within WebSocket.
fn tunnelled(handshake: &Handshake) -> bool {
    matches!(&handshake.protocol, Some(p) if WEBSOCKET_PROTOCOLS[..2].contains(&p.as_str()))
}

/// The ports of the query: `port=80&port=81,82`.
fn named(request: &Request) -> Result<Vec<u16>, Refusal> {
    let values = request.query.iter().filter(|(name, _)| name == "port");
    values
        .flat_map(|(_, value)| value.split(','))
        .map(|value| {
            value
                .parse()
                .map_err(|_| Refusal::new(400, format!("unable to parse {value:?} as a port")))
        })
        .collect()
}

#[derive(Debug)]
enum Transport {
    Streams(Box<streams::Server>),
    Channels(Box<channels::Server>),
}

/// What a transport found.
#[derive(Debug)]
enum Step {
    /// A connection that is not to be told yet.
    Waiting(Id),
    Opened(Id, u16),
    Data(Id, Range<usize>),
    /// Data that were decoded.
    Decoded(Id),
    Closed(Id),
    Reset(Id),
    /// One that was never told has ended.
    Dropped(Id),
    Silent,
    Gone,
}

/// An [`Event`] whose bytes are still to be looked up.
enum Told {
    Opened(Id, u16),
    Received(Id, Range<usize>),
    Kept(Id),
    Closed(Id),
    Reset(Id),
    Gone,
}

/// The server's side of a port-forward. How to drive it: see the crate's documentation. Calls with
/// the id of a connection that has ended do nothing.
///
/// A connection has ended, and its id is forgotten, after [`Event::Reset`], after
/// [`fail`](Self::fail) and [`reset`](Self::reset), and when both sides were closed
/// ([`Event::Closed`] and [`close`](Self::close)).
#[derive(Debug)]
pub struct Session {
    transport: Transport,
    inbox: Inboxes<Id>,
    eof: bool,
    gone: bool,
    /// Finished or failed.
    over: bool,
}

impl Session {
    /// Where to read the socket's next bytes to; empty while no input is wanted.
    pub fn space(&mut self) -> &mut [u8] {
        self.settle();
        if !self.wants_input() {
            return &mut [];
        }
        match &mut self.transport {
            Transport::Streams(t) => t.carrier.space(),
            Transport::Channels(t) => t.channels.socket_mut().space(),
        }
    }

    /// `n` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, n: usize) {
        match &mut self.transport {
            Transport::Streams(t) => t.carrier.filled(n),
            Transport::Channels(t) => t.channels.socket_mut().filled(n),
        }
    }

    /// Copies bytes in instead: how many were taken (128 KiB at least before the first event was
    /// asked for, so all that came with an HTTP head).
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        self.settle();
        match &mut self.transport {
            Transport::Streams(t) => t.carrier.receive(bytes),
            Transport::Channels(t) => t.channels.socket_mut().receive(bytes),
        }
    }

    /// Whether input is wanted now. It may be again after `consumed` and `sent`.
    pub fn wants_input(&self) -> bool {
        let kept = self.inbox.kept();
        !self.eof
            && !self.gone
            && match &self.transport {
                Transport::Streams(t) => !t.carrier.blocked() && kept <= t.kept_limit(),
                Transport::Channels(t) => !t.channels.socket().blocked() && kept <= t.kept_limit(),
            }
    }

    /// The socket has ended: [`Event::Gone`] follows what was received before.
    pub fn eof(&mut self) {
        self.eof = true;
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        match &self.transport {
            Transport::Streams(t) => t.bytes(range),
            Transport::Channels(t) => t.bytes(range),
        }
    }

    /// What was told last and not consumed is kept elsewhere: its place is needed.
    fn settle(&mut self) {
        if let Some(range) = self.inbox.unsettled() {
            self.inbox.settle(match &self.transport {
                Transport::Streams(t) => t.bytes(range),
                Transport::Channels(t) => t.bytes(range),
            });
        }
    }

    /// The next event, `None` when there is none for now. After an error: nothing comes any more.
    pub fn event(&mut self) -> Result<Option<Event<'_>>, Error> {
        self.settle();
        let told = match self.next() {
            Ok(told) => told,
            Err(error) => {
                self.over = true;
                self.gone = true;
                return Err(error);
            }
        };
        Ok(told.map(|told| match told {
            Told::Opened(id, port) => Event::Opened { id, port },
            Told::Received(id, range) => Event::Data { id, bytes: self.bytes(range) },
            Told::Kept(id) => Event::Data { id, bytes: self.inbox.pending(id) },
            Told::Closed(id) => Event::Closed { id },
            Told::Reset(id) => Event::Reset { id },
            Told::Gone => Event::Gone,
        }))
    }

    fn next(&mut self) -> Result<Option<Told>, Error> {
        while !self.gone {
            match self.inbox.next() {
                Some(Notice::Data(id)) => return Ok(Some(Told::Kept(id))),
                Some(Notice::Closed(id)) => {
                    if let Transport::Streams(t) = &mut self.transport
                        && t.closed_told(id)
                    {
                        self.inbox.remove(id);
                    }
                    return Ok(Some(Told::Closed(id)));
                }
                None => {}
            }
            let step = match &mut self.transport {
                Transport::Streams(t) => t.step(),
                Transport::Channels(t) => t.step(),
            }?;
            match step {
                None if self.eof => break,
                None => return Ok(None),
                Some(Step::Waiting(id)) => self.inbox.open(id, true),
                Some(Step::Opened(id, port)) if !self.over => {
                    self.inbox.open(id, true);
                    self.inbox.release(id);
                    return Ok(Some(Told::Opened(id, port)));
                }
                Some(Step::Data(id, range)) => match self.inbox.arrived(id, range.clone()) {
                    Arrived::Tell => return Ok(Some(Told::Received(id, range))),
                    Arrived::Keep => self.keep(id, Some(range)),
                    Arrived::Drop => self.give_back(id, range.len()),
                },
                Some(Step::Decoded(id)) => self.keep(id, None),
                Some(Step::Closed(id)) => self.inbox.close(id),
                Some(Step::Reset(id)) => {
                    self.forget(id);
                    return Ok(Some(Told::Reset(id)));
                }
                Some(Step::Dropped(id)) => self.forget(id),
                Some(Step::Opened(..) | Step::Silent) => {}
                Some(Step::Gone) => break,
            }
        }
        Ok((!std::mem::replace(&mut self.gone, true)).then_some(Told::Gone))
    }

    /// Keeps what lies at `range`, or what was decoded.
    fn keep(&mut self, id: Id, range: Option<Range<usize>>) {
        let bytes = match (&self.transport, range) {
            (Transport::Streams(t), Some(range)) => t.bytes(range),
            (Transport::Channels(t), Some(range)) => t.bytes(range),
            (Transport::Channels(t), None) => t.channels.decoded(),
            (Transport::Streams(_), None) => &[],
        };
        self.inbox.keep(id, bytes);
    }

    fn give_back(&mut self, id: Id, n: usize) {
        if let Transport::Streams(t) = &mut self.transport {
            t.consumed(id, n);
        }
    }

    /// The connection has ended.
    fn forget(&mut self, id: Id) {
        let lost = self.inbox.remove(id);
        self.give_back(id, lost);
    }

    /// `n` bytes of the last `Data` for `id`, or of its [`pending`](Self::pending), were taken.
    pub fn consumed(&mut self, id: Id, n: usize) {
        let n = self.inbox.consumed(id, n);
        self.give_back(id, n);
    }

    /// Bytes that came for `id` and were not consumed when the next event was asked for: the first
    /// contiguous piece of them.
    pub fn pending(&self, id: Id) -> &[u8] {
        self.inbox.pending(id)
    }

    /// How many bytes may be sent on `id` now.
    pub fn room(&self, id: Id) -> usize {
        match &self.transport {
            _ if self.over => 0,
            Transport::Streams(t) => t.room(id),
            Transport::Channels(t) => t.room(id),
        }
    }

    /// Where to read the next bytes for `id` to: within the output buffer, so that they are not
    /// copied again. At most `room` bytes. Nothing is sent before
    /// [`send_filled`](Self::send_filled), which must be the next call.
    pub fn send_space(&mut self, id: Id) -> &mut [u8] {
        if self.room(id) == 0 {
            return &mut [];
        }
        match &mut self.transport {
            Transport::Streams(t) => t.send_space(id),
            Transport::Channels(t) => t.send_space(id),
        }
    }

    /// `n` bytes of the last [`send_space`](Self::send_space) were filled: sends them.
    pub fn send_filled(&mut self, id: Id, n: usize) {
        if n <= self.room(id) {
            match &mut self.transport {
                Transport::Streams(t) => t.send_filled(id, n),
                Transport::Channels(t) => t.send_filled(id, n),
            }
        }
    }

    /// Sends the start of `bytes` on `id`: how many were taken.
    pub fn send(&mut self, id: Id, bytes: &[u8]) -> usize {
        match &mut self.transport {
            _ if self.over => 0,
            Transport::Streams(t) => t.send(id, bytes),
            Transport::Channels(t) => t.send(id, bytes),
        }
    }

    /// The pod sends nothing more.
    pub fn close(&mut self, id: Id) {
        let ended = match &mut self.transport {
            Transport::Streams(t) => t.close(id),
            Transport::Channels(t) => {
                t.close(id);
                self.over |= t.over();
                false
            }
        };
        if ended {
            self.forget(id);
        }
    }

    /// The connection could not be made, or broke: tells `text` on its error stream and ends both
    /// directions; the id is forgotten. (kubectl ends its whole session when it reads a text here:
    /// for a connection that the pod reset use [`reset`](Self::reset).)
    pub fn fail(&mut self, id: Id, text: &str) {
        self.end(id, Some(text));
    }

    /// Ends both directions without a text; the id is forgotten.
    pub fn reset(&mut self, id: Id) {
        self.end(id, None);
    }

    fn end(&mut self, id: Id, text: Option<&str>) {
        match &mut self.transport {
            Transport::Streams(t) => t.fail(id, text),
            Transport::Channels(t) => {
                t.fail(id, text);
                self.over |= t.over();
            }
        }
        self.forget(id);
    }

    /// Forgets half-made connections (one stream of the two) that were there at the last call
    /// already. Call it every 30 s.
    pub fn sweep(&mut self) {
        if let Transport::Streams(t) = &mut self.transport {
            for id in t.sweep() {
                self.forget(id);
            }
        }
    }

    /// Ends every connection and the session.
    pub fn finish(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        match &mut self.transport {
            Transport::Streams(t) => t.finish(),
            Transport::Channels(t) => t.finish(),
        }
        self.inbox = Inboxes::new();
    }

    /// Bytes for the socket.
    pub fn output(&mut self) -> &[u8] {
        match &mut self.transport {
            Transport::Streams(t) => t.carrier.output(),
            Transport::Channels(t) => t.channels.socket().output(),
        }
    }

    /// `n` bytes of [`output`](Self::output) were written.
    pub fn sent(&mut self, n: usize) {
        match &mut self.transport {
            Transport::Streams(t) => t.carrier.sent(n),
            Transport::Channels(t) => t.channels.socket_mut().sent(n),
        }
    }

    /// Everything has been said and sent: see [`crate::remote::Session::done`]. Over WebSocket
    /// channels this also comes when every port's connection has ended.
    pub fn done(&mut self) -> bool {
        // What is carried is moved on by asking for it.
        self.over && self.output().is_empty()
    }
}
