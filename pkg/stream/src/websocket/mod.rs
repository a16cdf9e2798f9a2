//! WebSocket (RFC 6455): the opening handshake, frames, control frames, the closing handshake.
//!
//! ```text
//!  FIN│RSV (3)│opcode (4)│MASK│length (7, or 16 or 64 more)│key (32 if masked)│payload
//! ```
//! Messages are handed on piece by piece as their bytes come, so that their size needs no limit and
//! no memory. Extensions are never agreed upon. Whether text is UTF-8 is not looked at: whoever uses
//! it here sends base64.

mod connection;

pub use connection::{Connection, Event, Kind, Role};

use crate::http::{self, Refusal, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// Longest payload of a control frame, in bytes (section 5.5).
pub const CONTROL_LIMIT: usize = 125;
/// Most payload of one frame that is sent, in bytes.
pub const FRAME_DATA: usize = 128 * 1024;
/// Output is accepted while less than this waits to be sent, in bytes.
pub const OUTPUT_LIMIT: usize = 256 * 1024;
/// No further frame is parsed while more than this waits to be sent, in bytes.
pub const BACKLOG_LIMIT: usize = OUTPUT_LIMIT + 64 * 1024;

/// Normal closure (section 7.4.1).
pub const CLOSE_NORMAL: u16 = 1000;
/// The peer broke the protocol.
pub const CLOSE_PROTOCOL: u16 = 1002;

/// An opening handshake that is agreed upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    accept: String,
    /// The subprotocol, if the client asked for any.
    pub protocol: Option<String>,
}

impl Handshake {
    /// Checks the request (section 4.2.1) and chooses the first subprotocol of the client that is
    /// among `supported`. A client that names none gets none.
    pub fn negotiate(request: &Request, supported: &[&str]) -> Result<Handshake, Refusal> {
        if !request.is_websocket() || request.method != "GET" {
            return Err(Refusal::new(400, "unable to upgrade: not a WebSocket handshake"));
        }
        if request.headers.get("sec-websocket-version") != Some("13") {
            let mut refusal = Refusal::new(426, "unable to upgrade: WebSocket version 13 only");
            refusal.headers.push(("Sec-WebSocket-Version", "13".to_owned()));
            return Err(refusal);
        }
        let key = request.headers.get("sec-websocket-key").map(str::trim).unwrap_or_default();
        if !STANDARD.decode(key).is_ok_and(|key| key.len() == 16) {
            return Err(Refusal::new(400, "unable to upgrade: no Sec-WebSocket-Key of 16 bytes"));
        }
        let mut asked = request.headers.list("sec-websocket-protocol").peekable();
        let protocol = match asked.peek() {
            None => None,
            Some(_) => {
                Some(asked.find(|p| supported.contains(p)).map(str::to_owned).ok_or_else(|| {
                    let all: Vec<_> = request.headers.list("sec-websocket-protocol").collect();
                    Refusal::new(
                        403,
                        format!(
                            "unable to upgrade: requested protocols {all:?} are not supported; \
                             supported are {supported:?}"
                        ),
                    )
                })?)
            }
        };
        Ok(Handshake { accept: accept(key), protocol })
    }

    /// The bytes of the response.
    pub fn response(&self) -> Vec<u8> {
        let mut lines = vec![
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", self.accept.as_str()),
        ];
        lines.extend(self.protocol.as_deref().map(|p| ("Sec-WebSocket-Protocol", p)));
        http::head(101, &lines)
    }
}

/// What answers a client's key (section 4.2.2).
fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &str) -> Request {
        let text = format!(
            "GET / HTTP/1.1\r\nUpgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\n{lines}\r\n"
        );
        Request::parse(text.as_bytes()).unwrap().unwrap().0
    }

    const KEY: &str =
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

    #[test]
    fn the_example_of_the_specification_is_answered() {
        let shaken = Handshake::negotiate(&request(KEY), &["a"]).unwrap();
        assert_eq!(shaken.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(shaken.protocol, None);
        let text = String::from_utf8(shaken.response()).unwrap();
        assert!(text.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{text}");
        assert!(!text.contains("Protocol:"), "{text}");
    }

    #[test]
    fn the_first_subprotocol_that_is_supported_is_chosen() {
        let lines = format!("{KEY}Sec-WebSocket-Protocol: x, b\r\nSec-WebSocket-Protocol: a\r\n");
        let shaken = Handshake::negotiate(&request(&lines), &["a", "b"]).unwrap();
        assert_eq!(shaken.protocol.as_deref(), Some("b"));
        let text = String::from_utf8(shaken.response()).unwrap();
        assert!(text.contains("Sec-WebSocket-Protocol: b\r\n"), "{text}");
        assert_eq!(Handshake::negotiate(&request(&lines), &["c"]).unwrap_err().status, 403);
    }

    #[test]
    fn a_wrong_handshake_is_refused() {
        for (lines, status) in [
            ("", 426),
            ("Sec-WebSocket-Version: 8\r\n", 426),
            ("Sec-WebSocket-Version: 13\r\n", 400),
            ("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2hvcnQ=\r\n", 400),
        ] {
            assert_eq!(Handshake::negotiate(&request(lines), &[]).unwrap_err().status, status);
        }
        let mut post = request(KEY);
        post.method = "POST".to_owned();
        assert_eq!(Handshake::negotiate(&post, &[]).unwrap_err().status, 400);
    }
}
