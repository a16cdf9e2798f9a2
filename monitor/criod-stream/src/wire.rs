//! The client's connection: TCP, and TLS on it where criod asked for it.
//!
//! ```text
//!            read                          write
//!   socket ───▶ [records ▶ rustls] ───▶ caller ───▶ [rustls ▶ records] ───▶ socket
//!               └─ at most 32 KiB ┘                 └─ at most 64 KiB ─┘
//! ```
//! Without TLS nothing lies in between.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ServerConfig, ServerConnection};

use crate::poller::Ready;

/// Bytes of records that are taken from the socket in one call.
const RECORDS: usize = 32 * 1024;
/// Bytes of records that may wait for the socket.
const WAITING: usize = 64 * 1024;
/// After how long without a byte, and how often, the kernel asks whether the client still lives.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The connection.
pub(crate) struct Wire {
    socket: TcpStream,
    tls: Option<Box<Tls>>,
    pub(crate) ready: Ready,
}

struct Tls {
    conn: ServerConnection,
    /// Read from the socket, not yet given to rustls: `held[from..]`.
    held: Vec<u8>,
    from: usize,
}

fn tls_error(e: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

impl Wire {
    /// Takes over the socket, which must do no blocking from now on.
    pub(crate) fn new(socket: OwnedFd, tls: Option<Arc<ServerConfig>>) -> io::Result<Wire> {
        sys::pipe::set_nonblocking(socket.as_fd())?;
        // No error is fatal: without them things are slower, or noticed later.
        let _ = setsockopt(&socket, sockopt::TcpNoDelay, &true);
        let _ = setsockopt(&socket, sockopt::KeepAlive, &true);
        let seconds = KEEPALIVE.as_secs() as u32;
        let _ = setsockopt(&socket, sockopt::TcpKeepIdle, &seconds);
        let _ = setsockopt(&socket, sockopt::TcpKeepInterval, &seconds);
        // No TCP_USER_TIMEOUT: it would cut off whoever lives and does not read, too, for an answered
        // probe of a closed window does not count as progress.
        let tls = match tls {
            None => None,
            Some(config) => {
                let mut conn = ServerConnection::new(config).map_err(tls_error)?;
                conn.set_buffer_limit(Some(WAITING));
                Some(Box::new(Tls { conn, held: Vec::new(), from: 0 }))
            }
        };
        let ready = Ready { read: true, write: true, ..Ready::default() };
        Ok(Wire { socket: TcpStream::from(socket), tls, ready })
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        receive(&mut self.socket, &mut self.ready, into)
    }

    /// Reads what the client sent. 0: it has ended its side. WouldBlock: nothing is there.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.receive(into) };
        loop {
            match tls.conn.reader().read(into) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // The end without its announcement: whatever was said before it counts.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if tls.from == tls.held.len() {
                tls.held.resize(RECORDS, 0);
                tls.from = 0;
                let got = receive(&mut self.socket, &mut self.ready, &mut tls.held);
                tls.held.truncate(*got.as_ref().unwrap_or(&0));
                if got? == 0 {
                    tls.conn.read_tls(&mut io::empty())?;
                    continue;
                }
            }
            let mut rest = &tls.held[tls.from..];
            tls.conn.read_tls(&mut rest)?;
            tls.from = tls.held.len() - rest.len();
            let done = tls.conn.process_new_packets();
            // Whatever it has to say to that, an alert included.
            send_records(&mut self.socket, &mut self.ready, &mut tls.conn)?;
            done.map_err(tls_error)?;
        }
    }

    /// Writes as much as fits; WouldBlock when that is nothing.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return send(&mut self.socket, &mut self.ready, |s| s.write(bytes));
        };
        // What waits goes first: room that it leaves is told by no event.
        send_records(&mut self.socket, &mut self.ready, &mut tls.conn)?;
        let taken = tls.conn.writer().write(bytes)?;
        send_records(&mut self.socket, &mut self.ready, &mut tls.conn)?;
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Goes on with what waits for the socket; true when nothing does.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        send_records(&mut self.socket, &mut self.ready, &mut tls.conn)?;
        Ok(!tls.conn.wants_write())
    }

    /// Announces the end of what we say; [`Wire::flush`] goes on with it, and then
    /// [`Wire::end`] ends.
    pub(crate) fn close_notify(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.conn.send_close_notify();
        }
    }

    /// Closes our side of the connection.
    pub(crate) fn end(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// To be watched.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn receive(socket: &mut TcpStream, ready: &mut Ready, into: &mut [u8]) -> io::Result<usize> {
    if !ready.read {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let got = socket.read(into);
    if matches!(&got, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
        ready.read = false;
    }
    got
}

fn send(
    socket: &mut TcpStream,
    ready: &mut Ready,
    call: impl FnOnce(&mut TcpStream) -> io::Result<usize>,
) -> io::Result<usize> {
    if !ready.write {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let sent = call(socket);
    if matches!(&sent, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
        ready.write = false;
    }
    sent
}

/// Sends the records that wait, as far as the socket takes them.
fn send_records(
    socket: &mut TcpStream,
    ready: &mut Ready,
    conn: &mut ServerConnection,
) -> io::Result<()> {
    while conn.wants_write() {
        match send(socket, ready, |s| conn.write_tls(s)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
