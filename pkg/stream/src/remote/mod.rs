//! Exec and attach as the kubelet, the API server, kubectl and crictl speak them.
//!
//! SPDY/3.1 with `X-Stream-Protocol-Version` `v4.channel.k8s.io` … `channel.k8s.io`, or WebSocket
//! with `v5.channel.k8s.io`, `v4.channel.k8s.io`, `channel.k8s.io`, `v4.base64.channel.k8s.io`,
//! `base64.channel.k8s.io` or no subprotocol.
//!
//! ```text
//!  Accepted::negotiate ─▶ response ─▶ Session: … Ready … Data/Closed/Resize … finish ─▶ done
//! ```

use crate::http::{Refusal, Request};

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
    /// The terminal's new size. Only the last of several that came together is told.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// The peer takes nothing more on this channel (it reset the stream): what is sent is discarded.
    Deaf {
        /// Which stream.
        channel: Channel,
    },
    /// The peer has closed the session (close frame, GOAWAY with no stream left, or the end that
    /// was told by [`Session::eof`]). Comes once, last. Before [`Session::finish`]: the client went
    /// away.
    Gone,
}

/// Why a session ended by force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer broke a rule.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
}

/// A request whose upgrade is agreed upon.
#[derive(Debug)]
pub struct Accepted {
    wants: Wants,
}

impl Accepted {
    /// Chooses transport and version for `request`.
    pub fn negotiate(request: &Request, wants: Wants) -> Result<Accepted, Refusal> {
        let _ = request;
        Ok(Accepted { wants })
    }

    /// The bytes of the `101` response: the first to be written to the socket.
    pub fn response(&self) -> Vec<u8> {
        Vec::new()
    }

    /// What follows the response.
    pub fn session(self) -> Session {
        Session { wants: self.wants }
    }
}

/// The server's side of an exec or attach. How to drive it: see the crate's documentation.
#[derive(Debug)]
pub struct Session {
    wants: Wants,
}

impl Session {
    /// Where to read the socket's next bytes to; empty while no input is wanted (the peer sends
    /// faster than its data are consumed, or does not read what is sent to it).
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

    /// The next event, `None` when there is none for now. After an error: nothing comes any more.
    pub fn event(&mut self) -> Result<Option<Event<'_>>, Error> {
        let _ = self.wants;
        Ok(None)
    }

    /// Every stream that [`Wants`] names is there ([`Event::Ready`] has come or will come next). The
    /// caller ends the session if this takes longer than 30 s.
    pub fn complete(&self) -> bool {
        true
    }

    /// `n` bytes of the last `Data` for `channel`, or of its [`pending`](Self::pending), were taken.
    pub fn consumed(&mut self, channel: Channel, n: usize) {
        let _ = (channel, n);
    }

    /// Bytes that came for `channel` and were not consumed: the first contiguous piece of them.
    pub fn pending(&self, channel: Channel) -> &[u8] {
        let _ = channel;
        &[]
    }

    /// Discards what is pending and what will come for `channel` (its destination is closed), and
    /// gives the window back. A `Closed` still comes.
    pub fn discard(&mut self, channel: Channel) {
        let _ = channel;
    }

    /// How many bytes may be sent on `channel` now; 0 for one that was not asked for or is closed.
    pub fn room(&self, channel: Channel) -> usize {
        let _ = channel;
        0
    }

    /// Where to read the next bytes for `channel` to: within the output buffer, so that they are not
    /// copied again. At most `room` bytes, empty when that is 0. Nothing is sent before
    /// [`send_filled`](Self::send_filled), which must be the next call.
    pub fn send_space(&mut self, channel: Channel) -> &mut [u8] {
        let _ = channel;
        &mut []
    }

    /// `n` bytes of the last [`send_space`](Self::send_space) were filled: sends them.
    pub fn send_filled(&mut self, channel: Channel, n: usize) {
        let _ = (channel, n);
    }

    /// Sends the start of `bytes` on `channel`: how many were taken.
    pub fn send(&mut self, channel: Channel, bytes: &[u8]) -> usize {
        let _ = (channel, bytes);
        0
    }

    /// Nothing more will be sent on `channel` (WebSocket has no sign for it: the client learns it
    /// at [`finish`](Self::finish)).
    pub fn close(&mut self, channel: Channel) {
        let _ = channel;
    }

    /// Tells the outcome on the error channel and closes everything in the order that client-go
    /// needs. Bytes sent before still go out first. Call it once, when all output has been given
    /// to `send`.
    pub fn finish(&mut self, outcome: Outcome) {
        let _ = outcome;
    }

    /// Bytes for the socket.
    pub fn output(&self) -> &[u8] {
        &[]
    }

    /// `n` bytes of [`output`](Self::output) were written.
    pub fn sent(&mut self, n: usize) {
        let _ = n;
    }

    /// [`finish`](Self::finish) was called (or the session failed) and all bytes were sent: shut the
    /// socket's sending side down, then read and throw away until its end (some seconds at most)
    /// before it is closed. A close with unread input would make the kernel reset the connection
    /// and the client lose what it has not read.
    pub fn done(&self) -> bool {
        false
    }
}
