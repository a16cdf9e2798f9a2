//! A SPDY connection as it is, or within WebSocket messages.
//!
//! ```text
//!  plain    socket ◀────────────────▶ SPDY
//!  tunnel   socket ◀──▶ WebSocket ◀──▶ SPDY      payload of all messages, one after the other
//! ```
//! client-go tunnels like this ("SPDY/3.1+portforward.k8s.io"); where messages begin means nothing.

use crate::Error;
use crate::spdy;
use crate::websocket::{self, CLOSE_NORMAL, Kind, Role};
use std::ops::Range;

/// The connection and what carries it.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) spdy: spdy::Connection,
    tunnel: Option<Tunnel>,
}

#[derive(Debug)]
struct Tunnel {
    socket: websocket::Connection,
    /// A piece that SPDY has not taken yet.
    left: Range<usize>,
    /// The client has closed it.
    closed: bool,
    /// To be closed once everything of SPDY is in it.
    closing: bool,
}

impl Carrier {
    pub(super) fn new(tunnelled: bool, limits: spdy::Limits) -> Carrier {
        Carrier {
            spdy: spdy::Connection::new(true, limits),
            tunnel: tunnelled.then(|| Tunnel {
                socket: websocket::Connection::new(Role::Server),
                left: 0..0,
                closed: false,
                closing: false,
            }),
        }
    }

    pub(super) fn space(&mut self) -> &mut [u8] {
        match &mut self.tunnel {
            None => self.spdy.space(),
            // Reading would move the piece.
            Some(tunnel) if !tunnel.left.is_empty() => &mut [],
            Some(tunnel) => tunnel.socket.space(),
        }
    }

    pub(super) fn filled(&mut self, n: usize) {
        match &mut self.tunnel {
            None => self.spdy.filled(n),
            Some(tunnel) => tunnel.socket.filled(n),
        }
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        match &mut self.tunnel {
            None => self.spdy.receive(bytes),
            Some(tunnel) if !tunnel.left.is_empty() => 0,
            Some(tunnel) => tunnel.socket.receive(bytes),
        }
    }

    pub(super) fn blocked(&self) -> bool {
        self.spdy.blocked()
            || self.tunnel.as_ref().is_some_and(|t| t.socket.blocked() || !t.left.is_empty())
    }

    /// The client has closed the tunnel.
    pub(super) fn closed(&self) -> bool {
        self.tunnel.as_ref().is_some_and(|t| t.closed)
    }

    pub(super) fn poll(&mut self) -> Result<Option<spdy::Event>, Error> {
        loop {
            if let Some(event) = self.spdy.poll().inspect_err(|_| {
                if let Some(tunnel) = &mut self.tunnel {
                    tunnel.closing = true;
                }
            })? {
                return Ok(Some(event));
            }
            let Some(tunnel) = &mut self.tunnel else { return Ok(None) };
            if self.spdy.blocked() {
                return Ok(None);
            }
            if tunnel.left.is_empty() {
                match tunnel.socket.poll()? {
                    None => return Ok(None),
                    Some(websocket::Event::Data { range, .. }) => tunnel.left = range,
                    Some(websocket::Event::Closed { .. }) => tunnel.closed = true,
                }
            }
            tunnel.left.start += self.spdy.receive(tunnel.socket.bytes(tunnel.left.clone()));
        }
    }

    /// Nothing more will be said by SPDY.
    pub(super) fn go_away(&mut self) {
        self.spdy.go_away();
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.closing = true;
        }
    }

    pub(super) fn output(&mut self) -> &[u8] {
        let Some(tunnel) = &mut self.tunnel else { return self.spdy.output() };
        let bytes = self.spdy.output();
        if !bytes.is_empty() && tunnel.socket.room() > 0 {
            tunnel.socket.send(Kind::Binary, &[bytes]);
            let n = bytes.len();
            self.spdy.sent(n);
        }
        if tunnel.closing && self.spdy.output().is_empty() {
            tunnel.socket.close(CLOSE_NORMAL);
        }
        tunnel.socket.output()
    }

    pub(super) fn sent(&mut self, n: usize) {
        match &mut self.tunnel {
            None => self.spdy.sent(n),
            Some(tunnel) => tunnel.socket.sent(n),
        }
    }
}
