//! HTTP/1.1 heads: the request that asks for an upgrade, the response to it, and both for a client.
//!
//! ```text
//!   GET /exec/TOKEN HTTP/1.1          HTTP/1.1 101 Switching Protocols
//!   Connection: Upgrade        ──▶    Connection: Upgrade
//!   Upgrade: SPDY/3.1                 Upgrade: SPDY/3.1
//! ```
//! Only heads: no body is expected of a request that is upgraded, nor of the response that does so.

use std::fmt::Write;

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
    /// Every value of `name` (case does not matter) that is text.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
            .filter_map(|(_, v)| std::str::from_utf8(v).ok())
    }

    /// The first value of `name` that is text.
    pub fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// The members of a list that may be cut by commas and spread over several lines (RFC 9110,
    /// section 5.6.1), without empty ones.
    pub fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.all(name).flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty())
    }

    /// Whether the list `name` has the member `token` (case does not matter).
    pub fn has(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|v| v.eq_ignore_ascii_case(token))
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
        let mut lines = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
        let mut head = httparse::Request::new(&mut lines);
        let Some(length) = complete(head.parse(limited(bytes)), bytes.len())? else {
            return Ok(None);
        };
        let (path, query) = target(head.path.unwrap_or_default())?;
        let method = head.method.unwrap_or_default().to_owned();
        Ok(Some((Request { method, path, query, headers: headers(head.headers) }, length)))
    }

    /// Whether an upgrade to WebSocket is asked for.
    pub fn is_websocket(&self) -> bool {
        self.headers.has("upgrade", "websocket") && self.headers.has("connection", "upgrade")
    }

    /// Whether an upgrade to SPDY/3.1 is asked for.
    pub fn is_spdy(&self) -> bool {
        self.headers.has("upgrade", "SPDY/3.1") && self.headers.has("connection", "upgrade")
    }

    /// The bytes of a request for an upgrade, for a client: `lines` are more header lines. Texts
    /// with line ends in them are the caller's mistake: they are cut there.
    pub fn write(method: &str, target: &str, host: &str, lines: &[(&str, &str)]) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", line(method), line(target));
        for (name, value) in [("Host", host)].iter().chain(lines) {
            // Writing to a String does not fail.
            let _ = write!(head, "{}: {}\r\n", line(name), line(value));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// The head of a response, for a client.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// The header lines.
    pub headers: Headers,
}

impl Response {
    /// Parses the head at the start of `bytes`: the response and the head's length, or `None` while
    /// it is not complete.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Response, usize)>, Error> {
        let mut lines = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
        let mut head = httparse::Response::new(&mut lines);
        let Some(length) = complete(head.parse(limited(bytes)), bytes.len())? else {
            return Ok(None);
        };
        let status = head.code.unwrap_or_default();
        Ok(Some((Response { status, headers: headers(head.headers) }, length)))
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
        let body = format!("{}\n", self.text);
        let length = body.len().to_string();
        let mut lines = vec![
            ("Content-Type", "text/plain; charset=utf-8"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Length", &length),
            ("Connection", "close"),
        ];
        lines.extend(self.headers.iter().map(|(name, value)| (*name, value.as_str())));
        let mut response = head(self.status, &lines);
        response.extend_from_slice(body.as_bytes());
        response
    }
}

/// A response's head.
pub(crate) fn head(status: u16, lines: &[(&str, &str)]) -> Vec<u8> {
    let reason = match status {
        101 => "Switching Protocols",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    };
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    for (name, value) in lines {
        // Writing to a String does not fail.
        let _ = write!(head, "{}: {}\r\n", line(name), line(value));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// `text` up to its first line end: what comes after it must not become a line of its own.
fn line(text: &str) -> &str {
    text.split(['\r', '\n', '\0']).next().unwrap_or_default()
}

/// The part of `bytes` in which a head must end.
fn limited(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(HEAD_LIMIT)]
}

fn complete(
    parsed: Result<httparse::Status<usize>, httparse::Error>,
    given: usize,
) -> Result<Option<usize>, Error> {
    match parsed {
        Ok(httparse::Status::Complete(length)) => Ok(Some(length)),
        Ok(httparse::Status::Partial) if given >= HEAD_LIMIT => Err(Error::TooLong),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(Error::TooManyLines),
        Err(source) => Err(Error::Malformed(source)),
    }
}

fn headers(lines: &[httparse::Header<'_>]) -> Headers {
    Headers(lines.iter().map(|l| (l.name.to_owned(), l.value.to_vec())).collect())
}

/// Path and query of a target in origin form or absolute form (RFC 9112, section 3.2).
fn target(target: &str) -> Result<(String, Vec<(String, String)>), Error> {
    let target = match target.split_once("://") {
        Some((scheme, rest))
            if ["http", "https"].iter().any(|s| s.eq_ignore_ascii_case(scheme)) =>
        {
            match rest.find(['/', '?']) {
                Some(at) => &rest[at..],
                None => "/",
            }
        }
        _ if target.starts_with('/') => target,
        _ => return Err(Error::Target),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = if path.is_empty() { "/".to_owned() } else { unescape(path, false)? };
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((unescape(name, true)?, unescape(value, true)?));
    }
    Ok((path, pairs))
}

/// Decodes `%xx`, and `+` as a blank where `plus` says so.
fn unescape(text: &str, plus: bool) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || {
                    rest.next()
                        .and_then(|b| char::from(b).to_digit(16))
                        // A hexadecimal digit is below 16.
                        .map(|d| d as u8)
                        .ok_or(Error::Target)
                };
                let (high, low) = (digit()?, digit()?);
                bytes.push(high << 4 | low);
            }
            b'+' if plus => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| Error::Target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Option<(Request, usize)>, Error> {
        Request::parse(text.as_bytes())
    }

    #[test]
    fn reads_a_request_in_every_form_of_target() {
        let text = "POST /exec/a%2Fb?port=80&port=8%31&x=a+b HTTP/1.1\r\nHost: h\r\n\
                    X-Stream-Protocol-Version: v4.channel.k8s.io, v3.channel.k8s.io\r\n\
                    x-stream-protocol-version:  v2.channel.k8s.io ,,\r\n\
                    Connection: keep-alive, Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nrest";
        let (request, length) = parse(text).unwrap().unwrap();
        assert_eq!(&text[length..], "rest");
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/exec/a/b"));
        let query: Vec<_> = request.query.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(query, [("port", "80"), ("port", "81"), ("x", "a b")]);
        let list: Vec<_> = request.headers.list("X-STREAM-protocol-version").collect();
        assert_eq!(list, ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"]);
        assert!(request.is_spdy() && !request.is_websocket());

        for (target, path) in [
            ("http://h:1/exec/t", "/exec/t"),
            ("HTTPS://h", "/"),
            ("http://h?a=b", "/"),
            ("/a+b", "/a+b"),
        ] {
            let (request, _) = parse(&format!("GET {target} HTTP/1.1\r\n\r\n")).unwrap().unwrap();
            assert_eq!(request.path, path);
        }
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        for target in ["*", "example.org:443", "/%", "/%4", "/%zz", "/%ff", "ftp://h/"] {
            let refused = parse(&format!("GET {target} HTTP/1.1\r\n\r\n"));
            assert!(matches!(refused, Err(Error::Target)), "{target}");
        }
        assert!(matches!(parse("\u{16}\u{3}\u{1}"), Err(Error::Malformed(_))));
        assert!(matches!(parse("GET / HTTP/2.0\r\n\r\n"), Err(Error::Malformed(_))));
        let many = "a: b\r\n".repeat(HEADERS_LIMIT + 1);
        assert!(matches!(
            parse(&format!("GET / HTTP/1.1\r\n{many}\r\n")),
            Err(Error::TooManyLines)
        ));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_LIMIT));
        assert!(matches!(parse(&long), Err(Error::TooLong)));
        assert!(parse(&long[..HEAD_LIMIT - 1]).unwrap().is_none());
        assert_eq!(Error::TooLong.refusal().status, 431);
        assert_eq!(Error::Target.refusal().status, 400);
    }

    #[test]
    fn a_text_cannot_become_a_header_line() {
        let mut refusal = Refusal::new(403, "no\r\nX: y");
        refusal.headers.push(("A", "b\r\nEvil: yes".to_owned()));
        let bytes = refusal.response();
        let (response, length) = Response::parse(&bytes).unwrap().unwrap();
        assert_eq!(response.status, 403);
        assert!(response.headers.get("evil").is_none());
        assert_eq!(response.headers.get("a"), Some("b"));
        assert_eq!(&bytes[length..], b"no\r\nX: y\n");
        assert_eq!(response.headers.get("content-length"), Some("9"));
        let bytes = Request::write("GET", "/a", "h", &[("B", "c\nD: e")]);
        let (request, _) = Request::parse(&bytes).unwrap().unwrap();
        assert!(request.headers.get("d").is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Request::parse(&bytes);
            let _ = Response::parse(&bytes);
        }

        #[test]
        fn any_target_is_survived(text in "[ -~]{0,64}") {
            let _ = target(&text);
        }

        #[test]
        fn a_cut_request_is_incomplete(cut in 0usize..58) {
            let text = b"GET /exec/token?a=b HTTP/1.1\r\nHost: h\r\nUpgrade: SPDY/3.1\r\n\r\n";
            prop_assert!(Request::parse(&text[..cut]).unwrap().is_none());
        }
    }
}
