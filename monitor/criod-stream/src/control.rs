//! The control socket: what criod says, and what it is told.
//!
//! ```text
//!   criod ── CONN idle_ms token_ms streams [lowest suites] + fds ─▶ stream
//!         ── PING ─▶                      ◀─ IDLE | ASK kind token | BUSY ──
//!                                         ◀─ ASK kind token ──
//!         ── EXEC|ATTACH tty stdin stdout stderr + fd | FORWARD port… + fd | NO status text ─▶
//!                                         ◀─ TAKEN ──
//! ```
//! criod may die at any time; the keeper holds its end open, and the next criod asks with PING
//! where things stand. Only the first answer to ASK counts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use stream::remote::Wants;
use sys::seqpacket::{Conn, Message};

use crate::poller::Ready;
use crate::say::say;
use crate::tls::Files;

/// Where things stand.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stand {
    Idle,
    Asking(&'static str, String),
    Busy,
}

/// What criod says.
pub(crate) enum Said {
    /// Serve this connection.
    Serve(Job),
    /// What the token stands for.
    Answer(Answer),
}

/// A connection to serve.
pub(crate) struct Job {
    pub(crate) socket: OwnedFd,
    /// How long it may be silent.
    pub(crate) idle: Duration,
    /// How long it may take to show a token.
    pub(crate) patience: Duration,
    /// The most connections at a time through a port-forward.
    pub(crate) forwarded: usize,
    pub(crate) tls: Option<Files>,
}

/// What a token stands for.
pub(crate) enum Answer {
    /// A command; the connection is to its container's monitor.
    Exec(Wants, Conn),
    /// The container's own process, likewise.
    Attach(Wants, Conn),
    /// Ports; the connection is to a dialer.
    Forward(Vec<u16>, Conn),
    /// Nothing: the HTTP status and the text for the client.
    No(u16, String),
}

/// The socket.
pub(crate) struct Control {
    conn: Conn,
    pub(crate) ready: Ready,
    stand: Stand,
    /// Criod's end is open.
    pub(crate) open: bool,
}

fn millis(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_millis)
}

fn wants(fields: &[&str]) -> Option<Wants> {
    let [tty, stdin, stdout, stderr] = fields else { return None };
    let flag = |text: &str| match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    };
    Some(Wants {
        tty: flag(tty)?,
        stdin: flag(stdin)?,
        stdout: flag(stdout)?,
        stderr: flag(stderr)?,
    })
}

fn parse(message: Message) -> Option<Said> {
    let fields: Vec<&str> = message.fields.iter().map(String::as_str).collect();
    let mut fds = message.fds.into_iter();
    Some(match fields[..] {
        ["CONN", idle, token, forwarded, ref rest @ ..] => {
            let socket = fds.next()?;
            let tls = match (fds.next(), fds.next()) {
                (None, _) => None,
                (Some(_), None) => return None,
                (Some(certificate), Some(key)) => {
                    let word = |n: usize| rest.get(n).copied().unwrap_or_default().to_owned();
                    let (lowest, suites) = (word(0), word(1));
                    Some(Files { certificate, key, ca: fds.next(), lowest, suites })
                }
            };
            Said::Serve(Job {
                socket,
                idle: millis(idle)?,
                patience: millis(token)?,
                forwarded: forwarded.parse().ok()?,
                tls,
            })
        }
        ["EXEC", ref flags @ ..] => Said::Answer(Answer::Exec(wants(flags)?, fds.next()?.into())),
        ["ATTACH", ref flags @ ..] => {
            Said::Answer(Answer::Attach(wants(flags)?, fds.next()?.into()))
        }
        ["FORWARD", ref ports @ ..] => {
            let ports = ports.iter().map(|p| p.parse()).collect::<Result<_, _>>().ok()?;
            Said::Answer(Answer::Forward(ports, fds.next()?.into()))
        }
        ["NO", status, text] => Said::Answer(Answer::No(status.parse().ok()?, text.to_owned())),
        _ => return None,
    })
}

impl Control {
    pub(crate) fn new(conn: Conn) -> io::Result<Control> {
        sys::pipe::set_nonblocking(conn.as_fd())?;
        let ready = Ready { read: true, write: true, ..Ready::default() };
        Ok(Control { conn, ready, stand: Stand::Idle, open: true })
    }

    fn send(&mut self, fields: &[&str]) {
        // Whoever does not read what it asked for can ask again.
        if let Err(e) = self.conn.send(fields, &[]) {
            say!("{} to criod: {e}", fields[0]);
        }
    }

    fn tell(&mut self) {
        match self.stand.clone() {
            Stand::Idle => self.send(&["IDLE"]),
            Stand::Asking(kind, token) => self.send(&["ASK", kind, &token]),
            Stand::Busy => self.send(&["BUSY"]),
        }
    }

    /// Asks what a token stands for.
    pub(crate) fn ask(&mut self, kind: &'static str, token: String) {
        self.stand = Stand::Asking(kind, token);
        self.tell();
    }

    /// The question, or the need for one, has gone.
    pub(crate) fn busy(&mut self) {
        self.stand = Stand::Busy;
    }

    /// The next thing that matters; PING is answered in passing. What is not awaited now is closed
    /// and forgotten.
    pub(crate) fn next(&mut self) -> Option<Said> {
        while self.open && self.ready.read {
            match self.conn.recv() {
                Ok(None) => self.open = false,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.ready.read = false,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    say!("from criod: {e}");
                }
                Err(e) => {
                    say!("control socket: {e}");
                    self.open = false;
                }
                Ok(Some(message)) if message.fields == ["PING"] => self.tell(),
                Ok(Some(message)) => {
                    let verb = message.fields.first().cloned().unwrap_or_default();
                    match (parse(message), &self.stand) {
                        (None, _) => say!("criod's {verb:?} is not understood"),
                        (Some(said @ Said::Serve(_)), Stand::Idle) => {
                            self.busy();
                            return Some(said);
                        }
                        (Some(said @ Said::Answer(_)), Stand::Asking(..)) => {
                            self.busy();
                            self.send(&["TAKEN"]);
                            return Some(said);
                        }
                        // A second answer: there were two criods.
                        _ => {}
                    }
                }
            }
        }
        None
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.conn.as_fd()
    }
}
