//! The bytes of a connection: what a protocol wants to send, and what it has room for.
//!
//! ```text
//!  output() ─► socket      as much as it takes
//!   space() ◄─ socket      one read for each turn, so that what came is looked at
//! ```

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use stream::{forward, remote};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The client's side of a protocol, as the crate `stream` has them.
pub(crate) trait Protocol {
    /// Where to put received bytes; empty while none are wanted.
    fn space(&mut self) -> &mut [u8];
    /// So many bytes were put there.
    fn filled(&mut self, n: usize);
    /// No more will come.
    fn eof(&mut self);
    /// What is to be sent.
    fn output(&mut self) -> &[u8];
    /// So many bytes of it were sent.
    fn sent(&mut self, n: usize);
}

macro_rules! protocol {
    ($client:ty) => {
        impl Protocol for $client {
            fn space(&mut self) -> &mut [u8] {
                <$client>::space(self)
            }
            fn filled(&mut self, n: usize) {
                <$client>::filled(self, n);
            }
            fn eof(&mut self) {
                <$client>::eof(self);
            }
            fn output(&mut self) -> &[u8] {
                <$client>::output(self)
            }
            fn sent(&mut self, n: usize) {
                <$client>::sent(self, n);
            }
        }
    };
}

protocol!(remote::Client);
protocol!(forward::Client);

/// What a connection is made of: TCP, or TLS over it.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that was upgraded.
pub(crate) struct Wire {
    io: Box<dyn Io>,
    /// What was written may still lie in a buffer of TLS.
    unflushed: bool,
    /// The other side takes nothing more.
    deaf: bool,
    ended: bool,
    lost: Option<io::Error>,
}

impl Wire {
    pub(crate) fn new(io: Box<dyn Io>) -> Wire {
        Wire { io, unflushed: false, deaf: false, ended: false, lost: None }
    }

    /// Moves bytes; ready when some were moved or the connection has ended, which the protocol is
    /// told. May be dropped at any time.
    pub(crate) async fn turn(&mut self, protocol: &mut impl Protocol) {
        poll_fn(|cx| self.poll(cx, protocol)).await;
    }

    /// What the connection is made of.
    #[cfg(test)]
    pub(crate) fn into_io(self) -> Box<dyn Io> {
        self.io
    }

    /// Why the connection has ended, where it was no proper end.
    pub(crate) fn lost(&mut self) -> Option<io::Error> {
        self.lost.take()
    }

    fn poll(&mut self, cx: &mut Context<'_>, protocol: &mut impl Protocol) -> Poll<()> {
        let mut moved = false;
        loop {
            let output = protocol.output();
            if output.is_empty() {
                break;
            }
            if self.deaf {
                let all = output.len();
                protocol.sent(all);
                continue;
            }
            match Pin::new(&mut self.io).poll_write(cx, output) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    protocol.sent(n);
                    self.unflushed = true;
                    moved = true;
                }
                // What it has sent before may still be read.
                Poll::Ready(_) => self.deaf = true,
                Poll::Pending => break,
            }
        }
        if self.unflushed && !self.deaf {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(_)) => self.deaf = true,
                Poll::Pending => {}
            }
        }
        let space = protocol.space();
        if !self.ended && !space.is_empty() {
            let mut buffer = ReadBuf::new(space);
            match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let n = buffer.filled().len();
                    protocol.filled(n);
                    moved = true;
                }
                Poll::Ready(end) => {
                    self.lost = end.err();
                    self.ended = true;
                    protocol.eof();
                    moved = true;
                }
                Poll::Pending => {}
            }
        }
        if moved { Poll::Ready(()) } else { Poll::Pending }
    }
}
