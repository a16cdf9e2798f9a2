//! The dialer: connects within a pod's network namespace on behalf of a port-forward.
//!
//! ```text
//!          ENTER + namespace          DIAL id port
//!   criod ──────────────────▶ dialer ◀──────────────── stream     (criod hands its end over)
//!         ◀────── OK ────────        ─── OK id + fd ──▶
//! ```
//! It has privileges until it is inside, and from then on only sockets. Each DIAL tries 127.0.0.1,
//! then ::1; answers come in the order in which connections are made.
//!
//! A socket whose connect() was still under way when it returned stays "connecting" for the kernel,
//! and after a reset it could be connected anew, to anywhere, with sendto(MSG_FASTOPEN). So
//! connect() is called once more when the connection is there, which also tells how it went.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use sys::seqpacket::{Conn, Message};

use crate::poller::{Event, Poller, Ready};
use crate::sandbox::{self, Role};
use crate::say::say;

/// How long both addresses of a port may take, together.
const LIMIT: Duration = Duration::from_secs(30);
/// The most connections being made at a time; further requests wait in the socket.
const AT_A_TIME: usize = 256;
/// The control socket's key.
const CONTROL: u64 = 0;
/// What a socket is ready for that is no longer connecting.
const DONE: EpollFlags =
    EpollFlags::EPOLLOUT.union(EpollFlags::EPOLLERR).union(EpollFlags::EPOLLHUP);

/// A connection being made.
struct Dial {
    id: String,
    port: u16,
    deadline: Instant,
    socket: OwnedFd,
    /// What the first address said, where the second is being tried.
    first: Option<String>,
}

struct Answer {
    id: String,
    outcome: Result<OwnedFd, String>,
}

struct Dialer {
    control: Conn,
    ready: Ready,
    poller: Poller,
    dials: BTreeMap<u64, Dial>,
    next: u64,
    answers: VecDeque<Answer>,
}

/// Waits for the namespace, enters it, locks itself up and serves until the other end closes.
pub(crate) fn run(control: Conn) -> Result<(), String> {
    let said = |e: io::Error| format!("control socket: {e}");
    let poller = Poller::new().map_err(|e| format!("epoll: {e}"))?;
    let Some(Message { fields, mut fds }) = control.recv().map_err(said)? else { return Ok(()) };
    if fields != ["ENTER"] {
        return Err(format!("not ENTER but {:?}", fields.first()));
    }
    let entered = match fds.pop() {
        Some(namespace) => setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|e| format!("network namespace: {e}")),
        None => Ok(()),
    };
    drop(fds);
    let locked = entered.and_then(|()| sandbox::lock(Role::Dialer).map_err(|e| e.to_string()));
    if let Err(text) = locked {
        let _ = control.send(&["ERR", &text], &[]);
        return Err(text);
    }
    control.send(&["OK"], &[]).map_err(said)?;
    sys::pipe::set_nonblocking(control.as_fd()).map_err(said)?;
    poller.add(&control, CONTROL).map_err(|e| format!("epoll: {e}"))?;
    Dialer::new(control, poller).serve().map_err(said)
}

fn address(port: u16, first: bool) -> SockaddrStorage {
    let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let address: SocketAddr = if first { (v4, port).into() } else { (v6, port).into() };
    address.into()
}

/// A failure's words as users of kubectl know them.
fn reason(port: u16, first: bool, errno: Errno) -> String {
    let (family, address) = if first { ("tcp4", "127.0.0.1") } else { ("tcp6", "[::1]") };
    format!("dial {family} {address}:{port}: connect: {}", errno.desc().to_lowercase())
}

impl Dialer {
    fn new(control: Conn, poller: Poller) -> Dialer {
        Dialer {
            control,
            ready: Ready::default(),
            poller,
            dials: BTreeMap::new(),
            next: CONTROL + 1,
            answers: VecDeque::new(),
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            // Limits are alike, so the oldest ends first.
            let deadline = self.dials.values().map(|d| d.deadline).min();
            self.poller.wait(deadline, &mut events)?;
            for (key, flags) in events.drain(..) {
                if key == CONTROL {
                    self.ready.take(flags);
                } else if flags.intersects(DONE) {
                    self.made(key);
                }
            }
            self.expire();
            loop {
                self.send_answers()?;
                if !self.ready.read || !self.answers.is_empty() || self.dials.len() >= AT_A_TIME {
                    break;
                }
                match self.control.recv() {
                    Ok(Some(message)) => self.request(&message),
                    Ok(None) => return Ok(()),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.ready.read = false,
                    Err(e) => return Err(e),
                }
            }
        }
    }

    fn send_answers(&mut self) -> io::Result<()> {
        while self.ready.write
            && let Some(answer) = self.answers.front_mut()
        {
            let sent = match &answer.outcome {
                Ok(socket) => self.control.send(&["OK", &answer.id], &[socket.as_fd()]),
                Err(text) => self.control.send(&["ERR", &answer.id, text], &[]),
            };
            match sent {
                Ok(()) => drop(self.answers.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.ready.write = false,
                // Other processes of this user have too many descriptors on their way.
                Err(e) if errno(&e) == Errno::ETOOMANYREFS && answer.outcome.is_ok() => {
                    answer.outcome = Err(e.to_string());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn request(&mut self, message: &Message) {
        let fields: Vec<&str> = message.fields.iter().map(String::as_str).collect();
        let ["DIAL", id, port] = fields[..] else {
            say!("dialer: not DIAL but {:?}", fields.first());
            return;
        };
        let id = id.to_owned();
        match port.parse() {
            Ok(0) | Err(_) => {
                let outcome = Err(format!("{port:?} is no port"));
                self.answers.push_back(Answer { id, outcome });
            }
            Ok(port) => self.dial(id, port, Instant::now() + LIMIT, None),
        }
    }

    /// Begins with one address; without `first` it is the first.
    fn dial(&mut self, id: String, port: u16, deadline: Instant, first: Option<String>) {
        match self.begin(port, first.is_none()) {
            Ok((socket, key)) => {
                self.dials.insert(key, Dial { id, port, deadline, socket, first });
            }
            Err(e) => self.failed(id, port, deadline, first, e),
        }
    }

    fn begin(&mut self, port: u16, first: bool) -> Result<(OwnedFd, u64), Errno> {
        let family = if first { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Stream, flags, None)?;
        let _ = setsockopt(&socket, sockopt::TcpNoDelay, &true);
        match connect(socket.as_raw_fd(), &address(port, first)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(e) => return Err(e),
        }
        let key = self.next;
        self.next += 1;
        self.poller.add(&socket, key).map_err(|e| errno(&e))?;
        Ok((socket, key))
    }

    fn failed(
        &mut self,
        id: String,
        port: u16,
        deadline: Instant,
        first: Option<String>,
        why: Errno,
    ) {
        match first {
            None => self.dial(id, port, deadline, Some(reason(port, true, why))),
            Some(first) => {
                let text = format!("IPv4: {first} IPv6: {}", reason(port, false, why));
                self.answers.push_back(Answer { id, outcome: Err(text) });
            }
        }
    }

    fn take(&mut self, key: u64) -> Option<Dial> {
        let dial = self.dials.remove(&key)?;
        // The other end of the control socket will hold it: closing ours does not end watching.
        self.poller.remove(&dial.socket);
        Some(dial)
    }

    /// Connecting is over, one way or the other.
    fn made(&mut self, key: u64) {
        let Some(dial) = self.take(key) else { return };
        match connect(dial.socket.as_raw_fd(), &address(dial.port, dial.first.is_none())) {
            // EISCONN: the first call has connected it already.
            Ok(()) | Err(Errno::EISCONN) => {
                self.answers.push_back(Answer { id: dial.id, outcome: Ok(dial.socket) });
            }
            Err(why) => self.failed(dial.id, dial.port, dial.deadline, dial.first, why),
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> =
            self.dials.iter().filter(|(_, d)| d.deadline <= now).map(|(key, _)| *key).collect();
        for key in late {
            if let Some(dial) = self.take(key) {
                // No time is left for another address.
                let first = dial.first.or(Some(reason(dial.port, true, Errno::ETIMEDOUT)));
                self.failed(dial.id, dial.port, dial.deadline, first, Errno::ETIMEDOUT);
            }
        }
    }
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::libc;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::socket::{MsgFlags, sendto};

    use super::*;

    /// What the port's first address gives.
    fn dialled(port: u16) -> OwnedFd {
        let (control, _criod) = Conn::pair().unwrap();
        let mut dialer = Dialer::new(control, Poller::new().unwrap());
        let deadline = Instant::now() + LIMIT;
        dialer.dial("1".into(), port, deadline, None);
        let mut events = Vec::new();
        while dialer.answers.is_empty() {
            dialer.poller.wait(Some(deadline), &mut events).unwrap();
            assert!(Instant::now() < deadline, "no connection came of it");
            for (key, flags) in events.drain(..) {
                if flags.intersects(DONE) {
                    dialer.made(key);
                }
            }
        }
        dialer.answers.pop_front().unwrap().outcome.unwrap()
    }

    #[test]
    fn what_was_dialled_and_reset_connects_to_nothing_else() {
        let pod = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = dialled(pod.local_addr().unwrap().port());
        let (peer, _) = pod.accept().unwrap();
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&peer, sockopt::Linger, &at_once).unwrap();
        drop(peer);
        let mut reset = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        assert_eq!(poll(&mut reset, PollTimeout::from(30_000u16)), Ok(1));

        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let address = SockaddrStorage::from(elsewhere.local_addr().unwrap());
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN) | MsgFlags::MSG_NOSIGNAL;
        // The first call tells of the reset.
        for _ in 0..3 {
            let sent = sendto(socket.as_raw_fd(), b"x", &address, flags);
            assert!(!matches!(sent, Ok(_) | Err(Errno::EINPROGRESS)), "{sent:?}");
        }
        let nobody = elsewhere.accept().unwrap_err();
        assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
    }
}
