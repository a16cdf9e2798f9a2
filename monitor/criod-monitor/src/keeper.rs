//! The keeper's client: hands it spare descriptors, and asks it for them after a takeover.
//!
//! ```text
//!   None ──greet──▶ Greeted ──its PING is answered──▶ Up
//!     ▲                │ hangs up                      │ hangs up, or silent for PATIENCE
//!     └────────────────┴───────────────────────────────┘
//! ```
//! Calls wait for their answer, at most [`PATIENCE`]; but only a keeper that has just answered is
//! called at all. One that is stopped or stuck costs one such wait, then nothing until it answers
//! the greeting that stands in its queue. A new connection gets all spares anew.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use sys::seqpacket::{Conn, Message};

use crate::poller::{Poller, Token};

/// The longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between attempts to reach a keeper that is not there: first, then ever longer up to the second.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// What the keeper knows of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It is the keeper's child, and runs.
    Running,
    /// Its wait status, and when it was reaped.
    Status(i32, i64),
    /// It is not the keeper's.
    Unknown,
}

enum Link {
    None,
    Greeted(Conn),
    Up(Conn),
}

pub(crate) struct Keeper {
    path: PathBuf,
    id: String,
    link: Link,
    retry: Duration,
}

impl Keeper {
    pub(crate) fn new(path: PathBuf, id: String) -> Keeper {
        Keeper { path, id, link: Link::None, retry: RETRY_FIRST }
    }

    /// The connection, where it is up.
    pub(crate) fn link(&self) -> Option<&Conn> {
        match &self.link {
            Link::Up(conn) => Some(conn),
            Link::Greeted(_) | Link::None => None,
        }
    }

    /// Goes on with a connection that was handed over.
    pub(crate) fn take(&mut self, conn: Conn, poller: &Poller) -> io::Result<()> {
        poller.add(&conn, Token::Keeper)?;
        self.up(conn);
        Ok(())
    }

    /// How long until [`Keeper::greet`] should be called; `None`: it is under way or done.
    pub(crate) fn retry(&mut self) -> Option<Duration> {
        let after = self.retry;
        matches!(self.link, Link::None).then(|| {
            self.retry = (after * 2).min(RETRY_LAST);
            after
        })
    }

    /// Connects and waits for the answer. True: there is a new connection.
    pub(crate) fn connect(&mut self, poller: &Poller) -> bool {
        if !matches!(self.link, Link::None) {
            return false;
        }
        let Ok(conn) = Conn::connect(&self.path, PATIENCE) else { return false };
        if conn.call(&["PING"], &[]).is_err() || poller.add(&conn, Token::Keeper).is_err() {
            return false;
        }
        self.up(conn);
        true
    }

    /// Begins to connect; waits for nothing.
    pub(crate) fn greet(&mut self, poller: &Poller) {
        if let Link::None = self.link
            && let Ok(conn) = Conn::greet(&self.path, &["PING"])
            && poller.add(&conn, Token::Keeper).is_ok()
        {
            self.link = Link::Greeted(conn);
        }
    }

    /// The connection is readable. True: the greeting has been answered; all spares are wanted.
    pub(crate) fn readable(&mut self) -> bool {
        match std::mem::replace(&mut self.link, Link::None) {
            Link::Greeted(conn) => {
                let answered = matches!(conn.recv(), Ok(Some(m)) if m.fields.first().is_some_and(|f| f == "OK"));
                if answered && conn.patient(PATIENCE).is_ok() {
                    self.up(conn);
                    return true;
                }
                false
            }
            // A keeper that speaks unasked is hanging up, or answers too late to be understood.
            Link::Up(_) | Link::None => false,
        }
    }

    fn up(&mut self, conn: Conn) {
        self.link = Link::Up(conn);
        self.retry = RETRY_FIRST;
    }

    fn call(&mut self, fields: &[&str], fds: &[BorrowedFd<'_>]) -> io::Result<Message> {
        let Link::Up(conn) = &self.link else { return Err(io::ErrorKind::NotConnected.into()) };
        let answer = conn.call(fields, fds);
        if let Err(e) = &answer
            && e.kind() != io::ErrorKind::Other
        {
            // Not an ERR answer: the connection itself is in trouble.
            self.link = Link::None;
        }
        answer
    }

    /// Has it hold a descriptor. True: it does.
    pub(crate) fn spare(&mut self, name: &str, fd: BorrowedFd<'_>) -> bool {
        let id = self.id.clone();
        self.call(&["SPARE", &id, name], &[fd]).is_ok()
    }

    /// Has it let go of one.
    pub(crate) fn drop_spare(&mut self, name: &str) {
        let id = self.id.clone();
        let _ = self.call(&["DROP", &id, name], &[]);
    }

    /// Has it forget the container.
    pub(crate) fn drop_all(&mut self) {
        let id = self.id.clone();
        let _ = self.call(&["DROP", &id], &[]);
    }

    /// Has it remember how `pid` ends, should the monitor die first.
    pub(crate) fn watch(&mut self, pid: i32) -> bool {
        let id = self.id.clone();
        self.call(&["WATCH", &id, &pid.to_string()], &[]).is_ok()
    }

    /// How `pid` ended.
    pub(crate) fn end_of(&mut self, pid: i32) -> io::Result<End> {
        let id = self.id.clone();
        let answer = self.call(&["REAP", &id, &pid.to_string()], &[])?;
        let words: Vec<&str> = answer.fields.iter().map(String::as_str).collect();
        Ok(match words[..] {
            ["running"] => End::Running,
            [status, time] => match (status.parse(), time.parse()) {
                (Ok(status), Ok(time)) => End::Status(status, time),
                _ => End::Unknown,
            },
            _ => End::Unknown,
        })
    }

    /// The spares that it holds.
    pub(crate) fn spares(&mut self) -> io::Result<Vec<(String, OwnedFd)>> {
        let id = self.id.clone();
        let answer = self.call(&["GET", &id], &[])?;
        Ok(answer.fields.into_iter().zip(answer.fds).collect())
    }
}
