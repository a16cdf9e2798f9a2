//! A client that writes its frames by hand, since no library sends what is to be tested, and the
//! HTTP/2 server that it speaks to.
#![allow(dead_code)] // Each test program uses its part.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use httlib_hpack::Encoder;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::sync::mpsc;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITY: u8 = 0x20;
pub(crate) const PROTOCOL_ERROR: u32 = 1;

/// Larger than any body here, so that the hand-written client need not count.
const WINDOW: u32 = 32 << 20;

/// The authorities that clients are known to send over a unix socket.
pub(crate) const ODD: [&str; 3] = ["%2Frun%2Fcrio%2Fcrio.sock", "/run/crio/crio.sock", ""];

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A request's fields.
pub(crate) fn request(authority: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/runtime.v1.RuntimeService/Version"),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// A header block, with what can be in the encoder's table.
pub(crate) fn block(encoder: &mut Encoder<'_>, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        let flags = Encoder::WITH_INDEXING
            | Encoder::BEST_FORMAT
            | Encoder::HUFFMAN_NAME
            | Encoder::HUFFMAN_VALUE;
        let field = (name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags);
        encoder.encode(field, &mut block).unwrap();
    }
    block
}

/// What the server saw of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) authority: Option<String>,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

fn pairs(map: &http::HeaderMap) -> Vec<(String, String)> {
    map.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect()
}

/// Answers 200 to whatever comes, and tells what it was.
pub(crate) async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    seen: mpsc::UnboundedSender<Seen>,
) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, bytes::Bytes>(io)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let seen = seen.clone();
        tokio::spawn(async move {
            let (parts, mut stream) = request.into_parts();
            let mut body = Vec::new();
            while let Some(data) = stream.data().await {
                body.extend_from_slice(&data.unwrap());
            }
            let trailers = stream.trailers().await.unwrap();
            let _ = seen.send(Seen {
                authority: parts.uri.authority().map(ToString::to_string),
                path: parts.uri.path().to_owned(),
                headers: pairs(&parts.headers),
                body,
                trailers: trailers.as_ref().map(pairs).unwrap_or_default(),
            });
            let _ = respond.send_response(http::Response::new(()), true);
        });
    }
    Ok(())
}

/// How the server answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Response,
    Reset(u32),
    GoAway(u32),
    Closed,
}

/// The client's end of a connection.
pub(crate) struct Client {
    pub(crate) io: DuplexStream,
    pub(crate) encoder: Encoder<'static>,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    /// Writes one byte at a time, and lets the server look at each.
    pub(crate) slow: bool,
}

impl Client {
    /// Connects through `authority::accept`, or straight to the server, and waits for the
    /// server's settings before anything else, as grpc-go does.
    pub(crate) async fn connect(adapted: bool) -> Self {
        let (near, far) = duplex(64 * 1024);
        let (tell, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            if adapted {
                let io = authority::accept(far).await.unwrap();
                assert!(!io.is_http1());
                let _ = serve(io, tell).await;
            } else {
                let _ = serve(far, tell).await;
            }
        });
        let mut client = Self { io: near, encoder: Encoder::default(), seen, slow: false };
        client.write(PREFACE).await;
        client.write(&frame(SETTINGS, 0, 0, &[])).await;
        let (kind, flags, ..) = client.read().await.unwrap();
        assert_eq!((kind, flags), (SETTINGS, 0));
        client.write(&frame(SETTINGS, ACK, 0, &[])).await;
        client
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        if !self.slow {
            self.io.write_all(bytes).await.unwrap();
            return;
        }
        for byte in bytes {
            self.io.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    }

    /// Writes what the server may not want to read to its end.
    pub(crate) async fn write_if_open(&mut self, bytes: &[u8]) {
        let _ = self.io.write_all(bytes).await;
    }

    /// Sends a request without a body.
    pub(crate) async fn request(&mut self, stream: u32, fields: &[(&str, &str)]) -> usize {
        let block = block(&mut self.encoder, fields);
        self.write(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await;
        block.len()
    }

    async fn read(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.io.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok((head[3], head[4], stream, payload))
    }

    /// Waits for what becomes of a stream.
    pub(crate) async fn answer(&mut self, stream: u32) -> Answer {
        let code = |p: &[u8]| u32::from_be_bytes(*p.first_chunk().unwrap());
        loop {
            match self.read().await {
                Err(_) => return Answer::Closed,
                Ok((HEADERS, _, s, _)) if s == stream => return Answer::Response,
                Ok((RST_STREAM, _, s, p)) if s == stream => return Answer::Reset(code(&p)),
                Ok((GOAWAY, _, _, p)) => return Answer::GoAway(code(&p[4..])),
                Ok(_) => {}
            }
        }
    }
}

/// Input that comes in pieces, with a wait before each, and then ends. Takes no output.
#[derive(Debug)]
pub(crate) struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    waited: bool,
}

impl Pieces {
    pub(crate) fn new(bytes: &[u8], size: usize) -> Self {
        let pieces = bytes.chunks(size.max(1)).map(<[u8]>::to_vec).collect();
        Self { pieces, waited: false }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.waited {
            self.waited = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.waited = false;
        if let Some(mut piece) = self.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}
