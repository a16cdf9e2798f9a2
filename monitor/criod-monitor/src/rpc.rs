//! The ttrpc wire, server side, unary calls only.
//!
//! ```text
//! frame    length u32be | stream u32be | type u8 (1 request, 2 response) | flags u8 | message
//! Request  1 service: string, 2 method: string, 3 payload: bytes, 4 timeout_nano: int64, 5 metadata
//! Response 1 status: { 1 code: int32, 2 message: string }, 2 payload: bytes
//! ```
//! Answers may come in any order and much later: a [`Waiter`] names the call that waits. One whose
//! connection has gone is forgotten. Written by hand, for a server on an async runtime doubles the
//! memory of a process of which there are hundreds.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use api_monitor::monitor::handover::Connection;
use protobuf::rt::WireType;
use protobuf::{CodedInputStream, CodedOutputStream};

use crate::handover::{Giving, take};
use crate::poller::{Poller, Token};

const HEADER: usize = 10;
/// The longest message that ttrpc allows.
const MAX_MESSAGE: usize = 4 << 20;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// Connections at a time. For one more the one goes that has been idle longest.
const MAX_CONNS: usize = 128;
/// Answers that wait for a client to read them, in bytes; one that lets more pile up is cut off.
const MAX_OUTPUT: usize = 8 << 20;

/// Status codes of gRPC, as far as a monitor answers with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
}

/// A call that was refused.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

/// A message that can be sent as an answer.
pub(crate) trait Answer {
    fn bytes(&self) -> protobuf::Result<Vec<u8>>;
}

impl<M: protobuf::Message> Answer for M {
    fn bytes(&self) -> protobuf::Result<Vec<u8>> {
        self.write_to_bytes()
    }
}

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiter {
    pub(crate) conn: u32,
    pub(crate) stream: u32,
}

/// A call that has come in.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) waiter: Waiter,
    pub(crate) service: String,
    pub(crate) method: String,
    pub(crate) payload: Vec<u8>,
}

struct Conn {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Calls that have not been answered.
    pending: u32,
    /// When it was last heard of, in events of the whole process.
    heard: u64,
}

pub(crate) struct Rpc {
    listener: UnixListener,
    conns: BTreeMap<u32, Conn>,
    next: u32,
    events: u64,
}

impl Rpc {
    pub(crate) fn new(listener: UnixListener, poller: &Poller) -> io::Result<Rpc> {
        listener.set_nonblocking(true)?;
        poller.add(&listener, Token::Listener)?;
        Ok(Rpc { listener, conns: BTreeMap::new(), next: 0, events: 0 })
    }

    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The number of the next connection.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// The connections as they are handed over.
    pub(crate) fn give<'a>(&'a self, fds: &mut Giving<'a>) -> Vec<Connection> {
        let give = |(key, conn): (&u32, &'a Conn)| Connection {
            number: *key,
            socket: fds.fd(&conn.stream),
            input: conn.input.clone(),
            output: conn.output.clone(),
            pending: conn.pending,
            heard: conn.heard,
            ..Connection::new()
        };
        self.conns.iter().map(give).collect()
    }

    /// Goes on with connections that were handed over.
    pub(crate) fn take(
        &mut self,
        given: Vec<Connection>,
        next: u32,
        poller: &Poller,
    ) -> io::Result<()> {
        self.next = next;
        for Connection { number, socket, input, output, pending, heard, .. } in given {
            let stream = UnixStream::from(take(socket)?);
            let token = Token::Conn(number);
            poller.add(&stream, token)?;
            poller.set_writable(&stream, token, !output.is_empty())?;
            self.events = self.events.max(heard);
            self.conns.insert(number, Conn { stream, input, output, pending, heard });
        }
        Ok(())
    }

    /// Watches for connections again, or no longer.
    pub(crate) fn listen(&self, poller: &Poller, on: bool) {
        poller.set_readable(&self.listener, Token::Listener, on);
    }

    /// Takes the connections that wait. False: there is no descriptor for one.
    pub(crate) fn accept(&mut self, poller: &Poller) -> bool {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                // Out of descriptors: somebody has to make room.
                Err(_) if self.drop_idlest() => continue,
                Err(_) => return false,
            };
            if self.conns.len() >= MAX_CONNS && !self.drop_idlest() {
                continue;
            }
            let key = self.next;
            self.next = self.next.wrapping_add(1);
            let added =
                stream.set_nonblocking(true).and_then(|()| poller.add(&stream, Token::Conn(key)));
            if added.is_ok() {
                let (input, output) = (Vec::new(), Vec::new());
                self.events += 1;
                let conn = Conn { stream, input, output, pending: 0, heard: self.events };
                self.conns.insert(key, conn);
            }
        }
    }

    /// Closes the connection that waits for nothing and has been silent longest. False: all wait.
    fn drop_idlest(&mut self) -> bool {
        let idle = self.conns.iter().filter(|(_, c)| c.pending == 0 && c.output.is_empty());
        let idlest = idle.min_by_key(|(_, c)| c.heard).map(|(key, _)| *key);
        idlest.is_some_and(|key| self.conns.remove(&key).is_some())
    }

    /// Moves what can be moved on a connection and returns the calls that came in.
    pub(crate) fn serve(&mut self, key: u32, poller: &Poller) -> Vec<Request> {
        let mut requests = Vec::new();
        self.events += 1;
        let alive = match self.conns.get_mut(&key) {
            Some(conn) => {
                conn.heard = self.events;
                let alive = conn.read(key, &mut requests) && conn.write(key, poller);
                conn.pending += u32::try_from(requests.len()).unwrap_or(0);
                alive
            }
            None => return requests,
        };
        if !alive {
            self.conns.remove(&key);
        }
        requests
    }

    /// Answers a call.
    pub(crate) fn reply(
        &mut self,
        waiter: Waiter,
        answer: Result<&dyn Answer, Refusal>,
        poller: &Poller,
    ) {
        let Some(conn) = self.conns.get_mut(&waiter.conn) else { return };
        conn.pending = conn.pending.saturating_sub(1);
        let body =
            answer.and_then(|m| m.bytes().map_err(|e| Refusal::new(Code::Internal, e.to_string())));
        let Ok(message) = encode_response(body) else { return };
        let length = u32::try_from(message.len()).unwrap_or(0);
        conn.output.extend_from_slice(&length.to_be_bytes());
        conn.output.extend_from_slice(&waiter.stream.to_be_bytes());
        conn.output.extend_from_slice(&[RESPONSE, 0]);
        conn.output.extend_from_slice(&message);
        if !conn.write(waiter.conn, poller) || conn.output.len() > MAX_OUTPUT {
            self.conns.remove(&waiter.conn);
        }
    }

    /// Nothing waits to be sent.
    pub(crate) fn flushed(&self) -> bool {
        self.conns.values().all(|c| c.output.is_empty())
    }

    /// Whether the connection of a call is still there.
    pub(crate) fn waits(&self, waiter: Waiter) -> bool {
        self.conns.contains_key(&waiter.conn)
    }
}

impl Conn {
    /// False: the connection is over.
    fn read(&mut self, key: u32, requests: &mut Vec<Request>) -> bool {
        let mut buffer = [0u8; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => self.input.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            // What is more than one message needs waits in the socket: its sender is the one to
            // have room for it.
            let wanted = self.input.first_chunk().map_or(0, |l| u32::from_be_bytes(*l) as usize);
            if self.input.len() >= HEADER + wanted.min(MAX_MESSAGE) {
                break;
            }
        }
        while let Some(header) = self.input.first_chunk::<HEADER>() {
            let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let stream = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let kind = header[8];
            if length > MAX_MESSAGE {
                return false;
            }
            if self.input.len() < HEADER + length {
                break;
            }
            // Frames of types that unary calls do not have are passed over.
            if kind == REQUEST {
                let waiter = Waiter { conn: key, stream };
                match decode_request(&self.input[HEADER..HEADER + length], waiter) {
                    Ok(request) => requests.push(request),
                    Err(_) => return false,
                }
            }
            self.input.drain(..HEADER + length);
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        true
    }

    /// False: the connection is over.
    fn write(&mut self, key: u32, poller: &Poller) -> bool {
        let mut sent = 0;
        let blocked = loop {
            if sent == self.output.len() {
                break false;
            }
            match self.stream.write(&self.output[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        };
        self.output.drain(..sent);
        if self.output.is_empty() {
            self.output = Vec::new();
        }
        poller.set_writable(&self.stream, Token::Conn(key), blocked).is_ok()
    }
}

fn decode_request(bytes: &[u8], waiter: Waiter) -> protobuf::Result<Request> {
    let mut request =
        Request { waiter, service: String::new(), method: String::new(), payload: Vec::new() };
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            10 => request.service = input.read_string()?,
            18 => request.method = input.read_string()?,
            26 => request.payload = input.read_bytes()?,
            other => skip(&mut input, other)?,
        }
    }
    Ok(request)
}

fn skip(input: &mut CodedInputStream<'_>, tag: u32) -> protobuf::Result<()> {
    match WireType::new(tag & 7) {
        Some(wire) => input.skip_field(wire),
        None => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
    }
}

fn encode_response(body: Result<Vec<u8>, Refusal>) -> protobuf::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    match body {
        // An empty status is "OK": clients look for one.
        Ok(payload) => {
            out.write_bytes(1, &[])?;
            out.write_bytes(2, &payload)?;
        }
        Err(refusal) => {
            let mut status = Vec::new();
            let mut s = CodedOutputStream::vec(&mut status);
            s.write_int32(1, refusal.code as i32)?;
            s.write_string(2, &refusal.message)?;
            s.flush()?;
            drop(s);
            out.write_bytes(1, &status)?;
        }
    }
    out.flush()?;
    drop(out);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_unknown_fields_is_understood() {
        let mut bytes = Vec::new();
        let mut out = CodedOutputStream::vec(&mut bytes);
        out.write_string(1, "s").unwrap();
        out.write_string(2, "m").unwrap();
        out.write_bytes(3, b"p").unwrap();
        out.write_int64(4, 5).unwrap();
        out.write_string(99, "later").unwrap();
        out.flush().unwrap();
        drop(out);
        let waiter = Waiter { conn: 0, stream: 1 };
        let r = decode_request(&bytes, waiter).unwrap();
        assert_eq!((r.service.as_str(), r.method.as_str(), &r.payload[..]), ("s", "m", &b"p"[..]));
        assert!(decode_request(&bytes[..bytes.len() - 2], waiter).is_err());
        assert!(decode_request(&[0xff; 16], waiter).is_err());
    }
}
