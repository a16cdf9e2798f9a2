//! Port-forward as the kubelet, the API server, kubectl and crictl speak it.
//!
//! * SPDY/3.1 with `portforward.k8s.io`: two streams, error and data, for each connection, joined by
//!   their `requestID`; the client names the port.
//! * WebSocket with `v4.channel.k8s.io`, `v4.base64.channel.k8s.io` or no subprotocol: two channels
//!   for each port of the request, one connection each, opened at once.
//! * WebSocket with `SPDY/3.1+portforward.k8s.io` (proposed, and asked for by early clients, as
//!   `v2.portforward.k8s.io`): the bytes of the SPDY connection as binary messages.

pub use crate::Error;
use crate::http::{Refusal, Request};

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
    /// The client has given the connection up: close the pod's socket. The id is forgotten.
    Reset {
        /// Which connection.
        id: Id,
    },
    /// The client has closed the session. Comes once, last; every id is forgotten.
    Gone,
}

/// A request whose upgrade is agreed upon.
#[derive(Debug)]
pub struct Accepted {}

impl Accepted {
    /// Chooses transport and version for `request`. `ports` are those of the CRI request; where the
    /// client must name them in advance and there are none, the query's `port` values are taken.
    pub fn negotiate(request: &Request, ports: &[u16]) -> Result<Accepted, Refusal> {
        let _ = (request, ports);
        Ok(Accepted {})
    }

    /// The bytes of the `101` response: the first to be written to the socket.
    pub fn response(&self) -> Vec<u8> {
        Vec::new()
    }

    /// What follows the response.
    pub fn session(self) -> Session {
        Session {}
    }
}

/// The server's side of a port-forward. How to drive it: see the crate's documentation. Calls with
/// the id of a connection that has ended do nothing.
///
/// A connection has ended, and its id is forgotten, after [`Event::Reset`], after
/// [`fail`](Self::fail), and when both sides were closed ([`Event::Closed`] and
/// [`close`](Self::close)).
#[derive(Debug)]
pub struct Session {}

impl Session {
    /// Where to read the socket's next bytes to; empty while no input is wanted.
    pub fn space(&mut self) -> &mut [u8] {
        &mut []
    }

    /// `n` bytes of [`space`](Self::space) were filled.
    pub fn filled(&mut self, n: usize) {
        let _ = n;
    }

    /// Copies bytes in instead: how many were taken (all that come with an HTTP head always are).
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    /// Whether [`space`](Self::space) is not empty.
    pub fn wants_input(&self) -> bool {
        true
    }

    /// The socket has ended: [`Event::Gone`] follows what was received before.
    pub fn eof(&mut self) {}

    /// The next event, `None` when there is none for now.
    pub fn event(&mut self) -> Result<Option<Event<'_>>, Error> {
        Ok(None)
    }

    /// `n` bytes of the last `Data` for `id`, or of its [`pending`](Self::pending), were taken.
    pub fn consumed(&mut self, id: Id, n: usize) {
        let _ = (id, n);
    }

    /// Bytes that came for `id` and were not consumed: the first contiguous piece of them.
    pub fn pending(&self, id: Id) -> &[u8] {
        let _ = id;
        &[]
    }

    /// How many bytes may be sent on `id` now.
    pub fn room(&self, id: Id) -> usize {
        let _ = id;
        0
    }

    /// Where to read the next bytes for `id` to: within the output buffer, so that they are not
    /// copied again. At most `room` bytes. Nothing is sent before
    /// [`send_filled`](Self::send_filled), which must be the next call.
    pub fn send_space(&mut self, id: Id) -> &mut [u8] {
        let _ = id;
        &mut []
    }

    /// `n` bytes of the last [`send_space`](Self::send_space) were filled: sends them.
    pub fn send_filled(&mut self, id: Id, n: usize) {
        let _ = (id, n);
    }

    /// Sends the start of `bytes` on `id`: how many were taken.
    pub fn send(&mut self, id: Id, bytes: &[u8]) -> usize {
        let _ = (id, bytes);
        0
    }

    /// The pod sends nothing more.
    pub fn close(&mut self, id: Id) {
        let _ = id;
    }

    /// The connection could not be made, or broke: tells `text` on its error stream and ends both
    /// directions; the id is forgotten. (kubectl ends its whole session when it reads a text here:
    /// for a connection that the pod reset use [`reset`](Self::reset).)
    pub fn fail(&mut self, id: Id, text: &str) {
        let _ = (id, text);
    }

    /// Ends both directions without a text; the id is forgotten.
    pub fn reset(&mut self, id: Id) {
        let _ = id;
    }

    /// Forgets half-made connections (one stream of the two) that were there at the last call
    /// already. Call it every 30 s.
    pub fn sweep(&mut self) {}

    /// Ends every connection and the session.
    pub fn finish(&mut self) {}

    /// Bytes for the socket.
    pub fn output(&self) -> &[u8] {
        &[]
    }

    /// `n` bytes of [`output`](Self::output) were written.
    pub fn sent(&mut self, n: usize) {
        let _ = n;
    }

    /// Everything has been said and sent: see [`crate::remote::Session::done`]. Over WebSocket
    /// channels this also comes when every port's connection has ended.
    pub fn done(&self) -> bool {
        false
    }
}
