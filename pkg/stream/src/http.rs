//! HTTP/1.1 heads: the request that asks for an upgrade, the response to it, and both for a client.
//!
//! ```text
//!   GET /exec/TOKEN HTTP/1.1          HTTP/1.1 101 Switching Protocols
//!   Connection: Upgrade        ──▶    Connection: Upgrade
//!   Upgrade: SPDY/3.1                 Upgrade: SPDY/3.1
//! ```
//! Only heads: bodies are never expected of a request that is upgraded.

/// Longest head in bytes, the blank line included.
pub const HEAD_LIMIT: usize = 16 * 1024;
/// Most header lines of a head.
pub const HEADERS_LIMIT: usize = 64;

/// Why a head was not understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Longer than [`HEAD_LIMIT`]: answer 431.
    #[error("the head is longer than {HEAD_LIMIT} bytes")]
    TooLong,
    /// More header lines than [`HEADERS_LIMIT`]: answer 431.
    #[error("the head has more than {HEADERS_LIMIT} lines")]
    TooManyLines,
    /// Not HTTP/1: answer 400.
    #[error("not the head of an HTTP/1 message")]
    Malformed(#[source] httparse::Error),
    /// The target is neither a path nor an absolute URL, or its escapes are broken: answer 400.
    #[error("the request's target is not a path")]
    Target,
}

impl Error {
    /// The response that tells the client.
    pub fn refusal(&self) -> Refusal {
        let status = match self {
            Error::TooLong | Error::TooManyLines => 431,
            Error::Malformed(_) | Error::Target => 400,
        };
        Refusal::new(status, self.to_string())
    }
}

/// Header lines in the order in which they came.
#[derive(Debug, Clone, Default)]
pub struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    /// The first value of `name` (case does not matter) that is text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .and_then(|(_, v)| std::str::from_utf8(v).ok())
    }
}

/// The head of a request.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `POST`, … as it came.
    pub method: String,
    /// The target's path with its escapes decoded: `/exec/TOKEN`.
    pub path: String,
    /// The target's query, decoded, in its order.
    pub query: Vec<(String, String)>,
    /// The header lines.
    pub headers: Headers,
}

impl Request {
    /// Parses the head at the start of `bytes`: the request and the head's length, or `None` while
    /// it is not complete (give more bytes, from the start).
    pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Error> {
        let _ = bytes;
        Ok(None)
    }
}

/// A request that is not upgraded: what the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status code.
    pub status: u16,
    /// Text of the body.
    pub text: String,
    /// More header lines.
    pub headers: Vec<(&'static str, String)>,
}

impl Refusal {
    /// `status` with `text` as body.
    pub fn new(status: u16, text: impl Into<String>) -> Refusal {
        Refusal { status, text: text.into(), headers: Vec::new() }
    }

    /// The response's bytes; the connection is closed after it.
    pub fn response(&self) -> Vec<u8> {
        Vec::new()
    }
}
