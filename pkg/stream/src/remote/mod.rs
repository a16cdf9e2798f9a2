//! Exec and attach as the kubelet, the API server, kubectl and crictl speak them.
//!
//! SPDY/3.1 with `X-Stream-Protocol-Version` `v4.channel.k8s.io` … `channel.k8s.io`, or WebSocket
//! with `v5.channel.k8s.io`, `v4.channel.k8s.io`, `channel.k8s.io`, `v4.base64.channel.k8s.io`,
//! `base64.channel.k8s.io` or no subprotocol.
//!
//! ```text
//!  Accepted::negotiate ─▶ response ─▶ Session: … Ready … Data/Closed/Resize … finish ─▶ done
//! ```
//!
//! | | streams | end of input | sizes | outcome |
//! |---|---|---|---|---|
//! | SPDY v4 | error, stdin, stdout, stderr, resize, named by `streamType` | FIN | JSON | `metav1.Status` |
//! | SPDY v3 | the same | FIN | JSON | text |
//! | SPDY v2 | the same without resize | FIN | – | text |
//! | SPDY v1 | the same without resize | FIN (its clients never send it) | – | – |
//! | WebSocket v5 | channels 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize | message 255, 0 | JSON | `metav1.Status` |
//! | WebSocket v4 | the same | – | JSON | `metav1.Status` |
//! | WebSocket before, none | the same | – | JSON | text |

mod client;
mod resize;
mod spdy;
mod status;
#[cfg(test)]
mod tests;
mod websocket;

pub use crate::Error;
pub use client::{Client, ClientError, ClientEvent};
pub(crate) use client::{upgrade, version};

use crate::http::{self, Refusal, Request};
use crate::inbox::{Arrived, Inboxes, Notice};
use crate::websocket::Handshake;
use std::ops::Range;

/// Versions over SPDY, the best first.
pub const SPDY_PROTOCOLS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// Subprotocols over WebSocket, the best first.
pub const WEBSOCKET_PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "base64.channel.k8s.io",
];
/// The header line in which a client of SPDY names the versions that it speaks, and the server the
/// one that it chose.
pub(crate) const VERSION: &str = "X-Stream-Protocol-Version";

/// What the request that the token stands for asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wants {
    /// A terminal: a resize stream is expected (v3 and later).
    pub tty: bool,
    /// The client sends input.
    pub stdin: bool,
    /// The client receives standard output.
    pub stdout: bool,
    /// The client receives standard error.
    pub stderr: bool,
}

/// A stream of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// From the client.
    Stdin,
    /// To the client.
    Stdout,
    /// To the client.
    Stderr,
}

/// How a command ended, for the error channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0; an attach whose container has exited, with whatever code.
    Success,
    /// Another exit code.
    Exit(u8),
    /// It could not run, or the session broke: text for people, at most a few KiB are sent.
    Failure(String),
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Every stream that [`Wants`] names is there: begin. Comes once, before all others.
    Ready,
    /// Bytes from the peer, where they were received: take what you can, then
    /// [`Session::consumed`].
    Data {
        /// Which stream.
        channel: Channel,
        /// Never empty.
        bytes: &'a [u8],
    },
    /// The peer sends nothing more on this channel, and all that it sent has been consumed.
    Closed {
        /// Which stream.
        channel: Channel,
    },
    /// The terminal's new size. Of several that came together only the last is told.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// The peer takes nothing more on this channel (it reset the stream). What is sent is still
    /// taken, and thrown away, so that the command does not stop.
    Deaf {
        /// Which stream.
        channel: Channel,
    },
    /// The peer has closed the session (a close frame, no stream left, or the end that was told by
    /// [`Session::eof`]): before [`Session::finish`], the client went away. Comes once, last; what is
    /// pending can still be taken, but no `Closed` follows.
    Gone,
}

/// What the client and the server have agreed upon.
#[derive(Debug)]
enum Agreed {
    Spdy(&'static str),
    WebSocket(Handshake),
}

/// A request whose upgrade is agreed upon.
#[derive(Debug)]
pub struct Accepted {
    agreed: Agreed,
    wants: Wants,
}

impl Accepted {
    /// Chooses transport and version for `request`.
    pub fn negotiate(request: &Request, wants: Wants) -> Result<Accepted, Refusal> {
        let agreed = if request.is_websocket() {
            Agreed::WebSocket(Handshake::negotiate(request, &WEBSOCKET_PROTOCOLS)?)
        } else {
            Agreed::Spdy(spdy_version(request, &SPDY_PROTOCOLS)?)
        };
        Ok(Accepted { agreed, wants })
    }

    /// The bytes of the `101` response: the first to be written to the socket.
    pub fn response(&self) -> Vec<u8> {
        match &self.agreed {
            Agreed::Spdy(version) => spdy_response(version),
            Agreed::WebSocket(handshake) => handshake.response(),
        }
    }

    /// What follows the response.
    pub fn session(self) -> Session {
        let wants = self.wants;
        let transport = match self.agreed {
            Agreed::Spdy(version) => Transport::Spdy(Box::new(spdy::Server::new(version, wants))),
            Agreed::WebSocket(handshake) => {
                let protocol = handshake.protocol.as_deref().unwrap_or_default();
                Transport::WebSocket(Box::new(websocket::Server::new(protocol, wants)))
            }
        };
        let mut inbox = Inboxes::new();
        if wants.stdin {
            inbox.open(Channel::Stdin, true);
        }
        Session { transport, inbox, ready: false, size: None, eof: false, gone: false, over: false }
    }
}

/// The first version that the client names and that is among `supported`: its choice, as in the Go
/// server.
pub(crate) fn spdy_version<'a>(
    request: &Request,
    supported: &[&'a str],
) -> Result<&'a str, Refusal> {
    if !request.is_spdy() || !matches!(request.method.as_str(), "GET" | "POST") {
        return Err(Refusal::new(
            400,
            "unable to upgrade: neither SPDY/3.1 nor WebSocket is asked for",
        ));
    }
    let asked: Vec<_> = request.headers.list(VERSION).collect();
    if asked.is_empty() {
        return Err(Refusal::new(400, format!("unable to upgrade: {VERSION} names no protocol")));
    }
    let chosen = asked.iter().find_map(|asked| supported.iter().find(|s| *s == asked));
    chosen.copied().ok_or_else(|| {
        let mut refusal = Refusal::new(
            403,
            format!("unable to upgrade: client supports {asked:?}, server accepts {supported:?}"),
        );
        let accepted = |s: &&str| ("X-Accepted-Stream-Protocol-Versions", (*s).to_owned());
        refusal.headers.extend(supported.iter().map(accepted));
        refusal
    })
}

/// The response to an upgrade to SPDY.
pub(crate) fn spdy_response(version: &str) -> Vec<u8> {
    http::head(101, &[(VERSION, version), ("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")])
}

#[derive(Debug)]
enum Transport {
    Spdy(Box<spdy::Server>),
    WebSocket(Box<websocket::Server>),
}

/// What a transport found.
#[derive(Debug)]
enum Step {
    /// Input, where it lies.
    Stdin(Range<usize>),
    /// Input that was decoded.
    Decoded,
    /// Bytes about the terminal's size were read: the last one.
    Size(Option<(u16, u16)>),
    Closed(Channel),
    Deaf(Channel),
    /// Nothing to be told.
    Silent,
    Gone,
}

/// An [`Event`] whose bytes are still to be looked up.
enum Told {
    Ready,
    Received(Range<usize>),
    Kept(Channel),
    Closed(Channel),
    Resize(u16, u16),
    Deaf(Channel),
    Gone,
}

/// The server's side of an exec or attach. How to drive it: see the crate's documentation.
#[derive(Debug)]
pub struct Session {
    transport: Transport,
    inbox: Inboxes<Channel>,
    ready: bool,
    size: Option<(u16, u16)>,
    eof: bool,
    gone: bool,
    /// Finished or failed.
    over: bool,
}

/// Calls the same on whichever transport there is.
macro_rules! transport {
    ($self:expr, $t:ident => $call:expr) => {
        match &mut $self.transport {
            Transport::Spdy($t) => $call,
            Transport::WebSocket($t) => $call,
        }
    };
    (ref $self:expr, $t:ident => $call:expr) => {
        match &$self.transport {
            Transport::Spdy($t) => $call,
            Transport::WebSocket($t) => $call,
        }
    };
}

impl Session {
    /// Where to read the socket's next bytes to; empty while no input is wanted (the peer sends
    /// faster than its data are consumed, or does not read what is sent to it).
    pub fn space(&mut self) -> &mut [u8] {
        self.settle();
        if !self.wants_input() {
            return &mut [];
        }
        transport!(self, t => t.space())
    }

    /// `n` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, n: usize) {
        transport!(self, t => t.filled(n));
    }

    /// Copies bytes in instead: how many were taken (128 KiB at least before the first event was
    /// asked for, so all that came with an HTTP head).
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        self.settle();
        transport!(self, t => t.receive(bytes))
    }

    /// Whether input is wanted now. It may be again after `consumed` and `sent`.
    pub fn wants_input(&self) -> bool {
        !self.eof
            && !self.gone
            && transport!(ref self, t => !t.blocked() && self.inbox.kept() <= t.kept_limit())
    }

    /// The socket has ended: [`Event::Gone`] follows what was received before.
    pub fn eof(&mut self) {
        self.eof = true;
    }

    /// What was told last and not consumed is kept elsewhere: its place is needed.
    fn settle(&mut self) {
        if let Some(range) = self.inbox.unsettled() {
            self.inbox.settle(transport!(ref self, t => t.bytes(range)));
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
            Told::Ready => Event::Ready,
            Told::Received(range) => Event::Data {
                channel: Channel::Stdin,
                bytes: transport!(ref self, t => t.bytes(range)),
            },
            Told::Kept(channel) => Event::Data { channel, bytes: self.inbox.pending(channel) },
            Told::Closed(channel) => Event::Closed { channel },
            Told::Resize(width, height) => Event::Resize { width, height },
            Told::Deaf(channel) => Event::Deaf { channel },
            Told::Gone => Event::Gone,
        }))
    }

    fn next(&mut self) -> Result<Option<Told>, Error> {
        while !self.gone {
            if !self.over {
                if !self.ready && self.complete() {
                    self.ready = true;
                    self.inbox.release(Channel::Stdin);
                    return Ok(Some(Told::Ready));
                }
                if self.ready
                    && let Some((width, height)) = self.size.take()
                {
                    return Ok(Some(Told::Resize(width, height)));
                }
                match self.inbox.next() {
                    Some(Notice::Data(channel)) => return Ok(Some(Told::Kept(channel))),
                    Some(Notice::Closed(channel)) => return Ok(Some(Told::Closed(channel))),
                    None => {}
                }
            }
            match transport!(self, t => t.step())? {
                None if self.eof => break,
                None => return Ok(None),
                Some(Step::Stdin(range)) => {
                    let arrived = if self.over {
                        Arrived::Drop
                    } else {
                        self.inbox.arrived(Channel::Stdin, range.clone())
                    };
                    match arrived {
                        Arrived::Tell => return Ok(Some(Told::Received(range))),
                        Arrived::Keep => {
                            let bytes = transport!(ref self, t => t.bytes(range));
                            self.inbox.keep(Channel::Stdin, bytes);
                        }
                        Arrived::Drop => transport!(self, t => t.consumed(range.len())),
                    }
                }
                Some(Step::Decoded) => {
                    if let Transport::WebSocket(server) = &self.transport
                        && !self.over
                    {
                        self.inbox.keep(Channel::Stdin, server.decoded());
                    }
                }
                Some(Step::Size(size)) => self.size = size.or(self.size),
                Some(Step::Closed(channel)) => self.inbox.close(channel),
                Some(Step::Deaf(channel)) if !self.over => return Ok(Some(Told::Deaf(channel))),
                Some(Step::Deaf(_) | Step::Silent) => {}
                Some(Step::Gone) => break,
            }
        }
        Ok((!std::mem::replace(&mut self.gone, true)).then_some(Told::Gone))
    }

    /// Every stream that [`Wants`] names is there ([`Event::Ready`] has come or will come next). The
    /// caller ends the session if this takes longer than 30 s.
    pub fn complete(&self) -> bool {
        match &self.transport {
            Transport::Spdy(server) => server.complete(),
            Transport::WebSocket(_) => true,
        }
    }

    /// `n` bytes of the last `Data` for `channel`, or of its [`pending`](Self::pending), were taken.
    pub fn consumed(&mut self, channel: Channel, n: usize) {
        let n = self.inbox.consumed(channel, n);
        transport!(self, t => t.consumed(n));
    }

    /// Bytes that came for `channel` and were not consumed when the next event was asked for: the
    /// first contiguous piece of them.
    pub fn pending(&self, channel: Channel) -> &[u8] {
        self.inbox.pending(channel)
    }

    /// Discards what is pending and what will come for `channel` (its destination is closed), and
    /// gives the window back. A `Closed` still comes.
    pub fn discard(&mut self, channel: Channel) {
        let n = self.inbox.discard(channel);
        transport!(self, t => t.consumed(n));
    }

    /// How many bytes may be sent on `channel` now; 0 for one that was not asked for or is closed.
    pub fn room(&self, channel: Channel) -> usize {
        if self.over { 0 } else { transport!(ref self, t => t.room(channel)) }
    }

    /// Where to read the next bytes for `channel` to: within the output buffer, so that they are not
    /// copied again. At most `room` bytes, empty when that is 0. Nothing is sent before
    /// [`send_filled`](Self::send_filled), which must be the next call.
    pub fn send_space(&mut self, channel: Channel) -> &mut [u8] {
        if self.room(channel) == 0 {
            return &mut [];
        }
        transport!(self, t => t.send_space(channel))
    }

    /// `n` bytes of the last [`send_space`](Self::send_space) were filled: sends them.
    pub fn send_filled(&mut self, channel: Channel, n: usize) {
        if n <= self.room(channel) {
            transport!(self, t => t.send_filled(channel, n));
        }
    }

    /// Sends the start of `bytes` on `channel`: how many were taken.
    pub fn send(&mut self, channel: Channel, bytes: &[u8]) -> usize {
        if self.room(channel) == 0 {
            return 0;
        }
        transport!(self, t => t.send(channel, bytes))
    }

    /// Nothing more will be sent on `channel` (WebSocket has no sign for it: the client learns it
    /// at [`finish`](Self::finish)).
    pub fn close(&mut self, channel: Channel) {
        if !self.over {
            transport!(self, t => t.close(channel));
        }
    }

    /// Tells the outcome on the error channel and closes everything in the order that client-go
    /// needs. Bytes sent before still go out first. Call it once, when all output has been given
    /// to `send`; input that comes later is thrown away, `Gone` is the only event.
    pub fn finish(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.over, true) {
            transport!(self, t => t.finish(&outcome));
            self.inbox.discard(Channel::Stdin);
        }
    }

    /// Bytes for the socket.
    pub fn output(&mut self) -> &[u8] {
        transport!(ref self, t => t.output())
    }

    /// `n` bytes of [`output`](Self::output) were written.
    pub fn sent(&mut self, n: usize) {
        transport!(self, t => t.sent(n));
    }

    /// [`finish`](Self::finish) was called (or the session failed) and all bytes were sent: shut the
    /// socket's sending side down, then read and throw away until its end (some seconds at most)
    /// before it is closed. A close with unread input would make the kernel reset the connection
    /// and the client lose what it has not read.
    pub fn done(&self) -> bool {
        self.over && transport!(ref self, t => t.output().is_empty())
    }
}
