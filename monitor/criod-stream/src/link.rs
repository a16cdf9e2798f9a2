//! A session on its connection: what both kinds of streams share.
//!
//! ```text
//!   wire ──read──▶ session.space()          session.output() ──write──▶ wire
//! ```

use std::io;
use std::time::{Duration, Instant};

use stream::{forward, remote};

use crate::poller::Ready;
use crate::wire::Wire;

/// How long a client may take, after the last byte for it, to close its side.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// The part of a session that faces the connection.
pub(crate) trait Framed {
    fn space(&mut self) -> &mut [u8];
    fn filled(&mut self, n: usize);
    fn wants_input(&self) -> bool;
    fn receive(&mut self, bytes: &[u8]) -> usize;
    fn eof(&mut self);
    fn output(&mut self) -> &[u8];
    fn sent(&mut self, n: usize);
    fn done(&mut self) -> bool;
}

macro_rules! framed {
    ($session:ty) => {
        impl Framed for $session {
            fn space(&mut self) -> &mut [u8] {
                <$session>::space(self)
            }
            fn filled(&mut self, n: usize) {
                <$session>::filled(self, n);
            }
            fn wants_input(&self) -> bool {
                <$session>::wants_input(self)
            }
            fn receive(&mut self, bytes: &[u8]) -> usize {
                <$session>::receive(self, bytes)
            }
            fn eof(&mut self) {
                <$session>::eof(self);
            }
            fn output(&mut self) -> &[u8] {
                <$session>::output(self)
            }
            fn sent(&mut self, n: usize) {
                <$session>::sent(self, n);
            }
            fn done(&mut self) -> bool {
                <$session>::done(self)
            }
        }
    };
}
framed!(remote::Session);
framed!(forward::Session);

/// A connection that was upgraded.
pub(crate) struct Link<S> {
    wire: Wire,
    pub(crate) session: S,
    /// The response that precedes the session's bytes: what is left of it.
    response: Vec<u8>,
    /// The client's side has ended, and the session knows.
    ended: bool,
    /// When a byte came or went last.
    pub(crate) last: Instant,
}

impl<S: Framed> Link<S> {
    /// `early`: what came with the request's head.
    pub(crate) fn new(wire: Wire, response: Vec<u8>, mut session: S, early: &[u8]) -> Link<S> {
        session.receive(early);
        Link { wire, session, response, ended: false, last: Instant::now() }
    }

    pub(crate) fn ready(&mut self) -> &mut Ready {
        &mut self.wire.ready
    }

    /// Reads once, as the session wants; true where something came of it. An error: the client
    /// is gone, whatever the session holds.
    pub(crate) fn input(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let space = self.session.space();
        if space.is_empty() {
            // It has left, and nothing that it sent is being taken: there is no point in waiting.
            return if self.wire.ready.ended && !self.session.wants_input() {
                Err(io::ErrorKind::ConnectionAborted.into())
            } else {
                Ok(false)
            };
        }
        match self.wire.read(space) {
            Ok(0) => {
                self.ended = true;
                self.session.eof();
            }
            Ok(n) => {
                self.last = Instant::now();
                self.session.filled(n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    /// Writes what the connection takes; true where that was something.
    pub(crate) fn output(&mut self) -> io::Result<bool> {
        let mut moved = false;
        loop {
            let response = !self.response.is_empty();
            let bytes = if response { &self.response[..] } else { self.session.output() };
            if bytes.is_empty() {
                self.wire.flush()?;
                break;
            }
            match self.wire.write(bytes) {
                Ok(n) if response => drop(self.response.drain(..n)),
                Ok(n) => self.session.sent(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
            moved = true;
        }
        if moved {
            self.last = Instant::now();
        }
        Ok(moved)
    }

    /// Everything has been said and sent.
    pub(crate) fn done(&mut self) -> bool {
        self.response.is_empty() && self.session.done()
    }

    /// The connection alone, to be closed.
    pub(crate) fn into_wire(self) -> Wire {
        self.wire
    }
}
