//! As much of an HTTP/1.1 client as pushing to a registry on loopback takes: one request a
//! connection, plain text, answers with a length or up to the end of the connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;

use crate::{Error, Result};

/// Who is asked, and as whom.
pub(crate) struct Client {
    /// Host and port.
    pub(crate) address: String,
    /// `name:password`, sent as basic authorization.
    pub(crate) user: Option<String>,
}

/// An answer.
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    /// A header's value, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The answer as an error.
    pub(crate) fn error(&self, method: &'static str, path: &str) -> Error {
        let body = String::from_utf8_lossy(&self.body).chars().take(300).collect();
        Error::Answer { method, path: path.into(), status: self.status, body }
    }
}

impl Client {
    /// Sends one request and reads its answer whole.
    pub(crate) fn send(
        &self,
        method: &'static str,
        path: &str,
        media_type: &str,
        body: &[u8],
    ) -> Result<Answer> {
        let failed = |source| Error::Connect { address: self.address.clone(), source };
        let mut stream = TcpStream::connect(&self.address).map_err(failed)?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(failed)?;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        if !media_type.is_empty() {
            head.push_str(&format!("Content-Type: {media_type}\r\n"));
        }
        if let Some(user) = &self.user {
            let value = base64::engine::general_purpose::STANDARD.encode(user);
            head.push_str(&format!("Authorization: Basic {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).map_err(failed)?;
        stream.write_all(body).map_err(failed)?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).map_err(failed)?;
        let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(all.len());
        let head = String::from_utf8_lossy(&all[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let body = all.get(end + 4..).unwrap_or_default().to_vec();
        Ok(Answer { status, head, body })
    }
}
