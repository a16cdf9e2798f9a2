//! SOCK_SEQPACKET sockets: whole messages of at most [`MAX_MESSAGE`] bytes, in order, each with up
//! to [`MAX_FDS`] descriptors (SCM_RIGHTS).
//!
//! A message is a list of strings, each closed by a NUL byte: the verb, then its arguments.
//! ```text
//! S P A R E 0 <id> 0 <name> 0      + one descriptor
//! ```
//! An address longer than the 107 bytes of `sun_path` goes through /proc/self/fd.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, listen, recvmsg, sendmsg, setsockopt, socket, socketpair,
    sockopt,
};
use nix::sys::time::TimeVal;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// The most descriptors in a message.
pub const MAX_FDS: usize = 8;

/// A message that was received.
#[derive(Debug, Default)]
pub struct Message {
    /// The verb and its arguments.
    pub fields: Vec<String>,
    /// The descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Conn(OwnedFd);

/// A path that fits `sun_path`, and what must stay open while it is used.
///
/// Long paths are reached through a descriptor of their folder.
pub fn short_path(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= 107 {
        return Ok((path.to_owned(), None));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let dir = File::open(dir)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((short, Some(dir)))
}

/// Binds a listening socket at `path`, in place of whatever stood there.
pub fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (short, _dir) = short_path(path)?;
    let fd = new_socket(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(&short)?)?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd)
}

fn new_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

fn set_timeouts(fd: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let secs = timeout.as_secs().try_into().unwrap_or(i64::MAX);
    let limit = TimeVal::new(secs, timeout.subsec_micros().into());
    setsockopt(fd, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(fd, sockopt::SendTimeout, &limit)?;
    Ok(())
}

/// Takes a connection from a listening socket; it does not block.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Conn> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: accept4 has just made this descriptor for us, and nobody else owns it.
    Ok(Conn(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Sends one message on a socket of this kind.
pub fn send(socket: BorrowedFd<'_>, fields: &[&str], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(fields.iter().map(|f| f.len() + 1).sum());
    for field in fields {
        if field.contains('\0') {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        bytes.extend_from_slice(field.as_bytes());
        bytes.push(0);
    }
    if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let raw: Vec<RawFd> = fds.iter().map(|f| f.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let iov = [IoSlice::new(&bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &iov, control, flags, None)?;
    Ok(())
}

/// Receives one message from a socket of this kind; `None` when the other end has closed.
pub fn recv(socket: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    let mut bytes = vec![0u8; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut message = Message::default();
    let (len, flags) = {
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &mut iov,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for c in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = c {
                // SAFETY: the kernel has just installed these descriptors in our table for
                // this message; nobody else owns them.
                message.fds.extend(raw.iter().map(|r| unsafe { OwnedFd::from_raw_fd(*r) }));
            }
        }
        (got.bytes, got.flags)
    };
    if len == 0 && message.fds.is_empty() {
        return Ok(None);
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    bytes.truncate(len);
    if bytes.pop() != Some(0) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message does not end in NUL"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "message is not UTF-8"))?;
    message.fields = text.split('\0').map(str::to_owned).collect();
    Ok(Some(message))
}

impl Conn {
    /// Two ends of one connection, close-on-exec; calls on them wait for ever.
    pub fn pair() -> io::Result<(Conn, Conn)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Conn(one), Conn(other)))
    }

    /// Connects to the socket at `path`; calls on it wait at most `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Conn> {
        let (short, _dir) = short_path(path)?;
        let fd = new_socket(SockFlag::SOCK_CLOEXEC)?;
        set_timeouts(&fd, timeout)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&short)?)?;
        Ok(Conn(fd))
    }

    /// Begins to connect without waiting for anything: sends `fields` as the first message, whose
    /// answer is to be received when the connection is readable. Calls on it fail with WouldBlock
    /// until [`Conn::patient`].
    pub fn greet(path: &Path, fields: &[&str]) -> io::Result<Conn> {
        let (short, _dir) = short_path(path)?;
        let fd = new_socket(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        // EAGAIN where the other end takes no more: sockets of this kind connect at once or not.
        connect(fd.as_raw_fd(), &UnixAddr::new(&short)?)?;
        let conn = Conn(fd);
        conn.send(fields, &[])?;
        Ok(conn)
    }

    /// From now on calls wait, at most `timeout`.
    pub fn patient(&self, timeout: Duration) -> io::Result<()> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        set_timeouts(&self.0, timeout)?;
        let flags = OFlag::from_bits_retain(fcntl(&self.0, FcntlArg::F_GETFL)?);
        fcntl(&self.0, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        Ok(())
    }

    /// Sends one message.
    pub fn send(&self, fields: &[&str], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.0.as_fd(), fields, fds)
    }

    /// Receives one message; `None` when the other end has closed.
    pub fn recv(&self) -> io::Result<Option<Message>> {
        recv(self.0.as_fd())
    }

    /// Receives one message of whatever bytes for the descriptor that comes with it, as runtimes send a
    /// terminal over a console socket.
    pub fn recv_fd(&self) -> io::Result<OwnedFd> {
        let mut bytes = [0u8; 4096];
        let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
        let mut fds = Vec::new();
        for c in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = c {
                // SAFETY: the kernel has just installed these descriptors in our table for this
                // message; nobody else owns them.
                fds.extend(raw.iter().map(|r| unsafe { OwnedFd::from_raw_fd(*r) }));
            }
        }
        fds.pop().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    /// Sends a message and waits for the answer. `ERR` answers become errors.
    pub fn call(&self, fields: &[&str], fds: &[BorrowedFd<'_>]) -> io::Result<Message> {
        self.send(fields, fds)?;
        let Some(mut answer) = self.recv()? else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        };
        match answer.fields.first().map(String::as_str) {
            Some("OK") => {
                answer.fields.remove(0);
                Ok(answer)
            }
            _ => Err(io::Error::other(answer.fields.get(1).cloned().unwrap_or_default())),
        }
    }

    /// Pid of the process at the other end when it connected.
    pub fn peer_pid(&self) -> io::Result<i32> {
        Ok(nix::sys::socket::getsockopt(&self.0, sockopt::PeerCredentials)?.pid())
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Conn> for OwnedFd {
    fn from(conn: Conn) -> OwnedFd {
        conn.0
    }
}

impl From<OwnedFd> for Conn {
    fn from(fd: OwnedFd) -> Self {
        Conn(fd)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn messages_keep_their_bounds_and_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("a".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let path = long.join("sock");
        let listener = listen_at(&path).unwrap();
        let client = Conn::connect(&path, Duration::from_secs(5)).unwrap();
        let server = accept(listener.as_fd()).unwrap();
        assert_eq!(server.peer_pid().unwrap(), std::process::id() as i32);

        let (r, w) = nix::unistd::pipe().unwrap();
        client.send(&["SPARE", "id", "", "x y"], &[w.as_fd()]).unwrap();
        client.send(&["PING"], &[]).unwrap();
        drop(w);
        let m = server.recv().unwrap().unwrap();
        assert_eq!(m.fields, ["SPARE", "id", "", "x y"]);
        File::from(m.fds.into_iter().next().unwrap()).write_all(b"!").unwrap();
        let mut got = String::new();
        File::from(r).read_to_string(&mut got).unwrap();
        assert_eq!(got, "!");
        assert_eq!(server.recv().unwrap().unwrap().fields, ["PING"]);
        assert!(client.send(&["a\0b"], &[]).is_err());
        drop(client);
        assert!(server.recv().unwrap().is_none());
    }

    #[test]
    fn a_greeting_waits_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(Conn::greet(&path, &["PING"]).is_err());
        let listener = listen_at(&path).unwrap();
        let client = Conn::greet(&path, &["PING"]).unwrap();
        assert_eq!(client.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let server = accept(listener.as_fd()).unwrap();
        assert_eq!(server.recv().unwrap().unwrap().fields, ["PING"]);
        server.send(&["OK"], &[]).unwrap();
        client.patient(Duration::from_secs(5)).unwrap();
        assert_eq!(client.recv().unwrap().unwrap().fields, ["OK"]);
        // More than the backlog holds: refused at once.
        let many: Vec<_> = (0..6000).map(|_| Conn::greet(&path, &["PING"])).collect();
        assert!(many.iter().any(Result::is_err));
    }

    #[test]
    fn a_silent_peer_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = listen_at(&path).unwrap();
        let client = Conn::connect(&path, Duration::from_millis(20)).unwrap();
        assert_eq!(client.recv().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
