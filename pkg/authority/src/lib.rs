//! Lets gRPC clients in that send a unix socket's path as `:authority`.
//!
//! Over a unix socket there is no host to name, and clients fill in what they have: kubelets and
//! grpc-java the socket's path (`%2Frun%2Fcrio.sock`, `/run/crio/crio.sock`), some nothing at all
//! (an empty value). The HTTP/2 server takes none of these for an authority and answers
//! `RST_STREAM PROTOCOL_ERROR`. [`accept`] stands between such a client and the server:
//!
//! ```text
//!            accept                     first header block            until the end
//! bytes ──┬─ no preface ─────────────────────────────────────────────► as they are (HTTP/1)
//!         └─ preface ──── watched ──┬─ authority valid or absent ────► as they are
//!                                   └─ authority not valid ──────────► header blocks rewritten
//! ```
//!
//! * `accept` itself waits for the preface only. A client may be silent after it for as long as it
//!   likes, and may not speak at all before the server has sent its settings, so the header block
//!   is looked for while the server reads.
//! * What passes "as they are" costs nothing: reads go to the socket.
//! * A header block that is rewritten is decoded with the client's HPACK table and handed on as
//!   literals that enter no table, `localhost` in the place of an authority that is not valid.
//!   Every other frame passes as it is, and nothing that the server sends is touched.
//! * A client whose first header block is broken is left to the server to refuse. One that breaks
//!   the protocol after rewriting has begun gets its connection closed: a read gives
//!   `InvalidData`.
//!
//! The server's `SETTINGS_HEADER_TABLE_SIZE` needs no looking at. What it allows binds the
//! client's encoder, and the encoder announces in the header blocks each size that it takes
//! (RFC 7541 §4.2), which the decoder follows up to [`MAX_TABLE_SIZE`]. The server must allow no
//! more than that; its default is 4096.

mod hpack;
mod inbound;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

pub use hpack::MAX_TABLE_SIZE;
use inbound::{Inbound, Step};

/// How long [`accept`] waits for a client to say whether it speaks HTTP/1 or HTTP/2.
pub const FIRST_BYTES: Duration = Duration::from_secs(10);

/// What an HTTP/2 client says first (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a connection was not accepted. It is to be dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The first bytes could not be read.
    #[error("cannot read the first bytes of a connection")]
    Read(#[source] io::Error),
    /// The client hung up before it said anything, as a probe for a listening socket does.
    #[error("a connection was closed before anything came over it")]
    Closed,
    /// The client did not say enough in time.
    #[error("a client did not begin to speak HTTP within {0:?}")]
    Silent(Duration),
}

/// Tells HTTP/2 from HTTP/1 by the first bytes of a connection, at most 24, and gives the
/// connection as the server is to have it, those bytes included.
///
/// Waits for those bytes no longer than [`FIRST_BYTES`]; call it in the connection's own task.
///
/// # Errors
///
/// All of [`Error`].
pub async fn accept<IO: AsyncRead + Unpin>(io: IO) -> Result<Sniffed<IO>, Error> {
    accept_within(io, FIRST_BYTES).await
}

/// [`accept`] with another limit for the wait.
///
/// # Errors
///
/// All of [`Error`].
pub async fn accept_within<IO: AsyncRead + Unpin>(
    mut io: IO,
    limit: Duration,
) -> Result<Sniffed<IO>, Error> {
    let mut first = [0; PREFACE.len()];
    let read = async {
        let mut filled = 0;
        while filled < first.len() && first[..filled] == PREFACE[..filled] {
            match io.read(&mut first[filled..]).await? {
                0 => break,
                n => filled += n,
            }
        }
        io::Result::Ok(filled)
    };
    let filled = match tokio::time::timeout(limit, read).await {
        Err(_) => return Err(Error::Silent(limit)),
        Ok(Err(e)) => return Err(Error::Read(e)),
        Ok(Ok(0)) => return Err(Error::Closed),
        Ok(Ok(filled)) => filled,
    };
    let first = &first[..filled];
    let http2 = first == PREFACE;
    Ok(Sniffed {
        io,
        http2,
        ready: first.to_vec(),
        taken: 0,
        inbound: http2.then(|| Box::new(Inbound::new())),
    })
}

/// A connection whose inbound direction gives the server nothing that it refuses for its authority
/// alone. Made by [`accept`].
#[derive(Debug)]
pub struct Sniffed<IO> {
    io: IO,
    http2: bool,
    /// What the server reads next, from `taken` on.
    ready: Vec<u8>,
    taken: usize,
    /// Present while what comes must be looked at.
    inbound: Option<Box<Inbound>>,
}

impl<IO> Sniffed<IO> {
    /// The client did not begin with HTTP/2's preface; it speaks HTTP/1 or nonsense.
    pub fn is_http1(&self) -> bool {
        !self.http2
    }

    /// The client's header blocks are being rewritten.
    pub fn is_rewriting(&self) -> bool {
        self.inbound.as_ref().is_some_and(|inbound| inbound.is_rewriting())
    }

    /// The connection as it was accepted, for its credentials and the like.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Sniffed<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.taken < this.ready.len() {
                let n = buf.remaining().min(this.ready.len() - this.taken);
                buf.put_slice(&this.ready[this.taken..this.taken + n]);
                this.taken += n;
                if this.taken == this.ready.len() {
                    this.taken = 0;
                    this.ready.clear();
                    // What one burst needed is not kept for the life of the connection.
                    this.ready.shrink_to(if this.inbound.is_some() { inbound::CHUNK } else { 0 });
                }
                return Poll::Ready(Ok(()));
            }
            let Some(inbound) = &mut this.inbound else {
                return Pin::new(&mut this.io).poll_read(cx, buf);
            };
            match inbound.run(&mut this.ready) {
                Err(broken) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, broken)));
                }
                Ok(Step::Plain) => this.inbound = None,
                Ok(Step::More) if this.ready.is_empty() => {
                    let mut chunk = [0; inbound::CHUNK];
                    let mut chunk = ReadBuf::new(&mut chunk);
                    ready!(Pin::new(&mut this.io).poll_read(cx, &mut chunk))?;
                    if chunk.filled().is_empty() {
                        inbound.end(&mut this.ready);
                        this.inbound = None;
                        if this.ready.is_empty() {
                            return Poll::Ready(Ok(()));
                        }
                    } else {
                        inbound.feed(chunk.filled());
                    }
                }
                Ok(Step::More | Step::Enough) => {}
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Sniffed<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
