//! The keeper's client: hands it spare descriptors, and asks it for them after a takeover.
//!
//! Each call waits for its answer, at most [`PATIENCE`]. A keeper that does not answer is as good
//! as dead: the connection is dropped and made again later, and then all spares are handed over
//! anew ([`Keeper::reconnect`]).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use sys::seqpacket::Conn;

use crate::poller::{Poller, Token};

const PATIENCE: Duration = Duration::from_secs(2);
/// Between attempts to reach a keeper that is not there.
pub(crate) const RETRY: Duration = Duration::from_millis(200);

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

pub(crate) struct Keeper {
    path: PathBuf,
    id: String,
    conn: Option<Conn>,
}

impl Keeper {
    pub(crate) fn new(path: PathBuf, id: String) -> Keeper {
        Keeper { path, id, conn: None }
    }

    pub(crate) fn connected(&self) -> bool {
        self.conn.is_some()
    }

    /// Connects, where there is no connection. True: there is a new one.
    pub(crate) fn reconnect(&mut self, poller: &Poller) -> bool {
        if self.conn.is_some() {
            return false;
        }
        let Ok(conn) = Conn::connect(&self.path, PATIENCE) else { return false };
        if poller.add(&conn, Token::Keeper).is_err() {
            return false;
        }
        self.conn = Some(conn);
        true
    }

    /// The keeper hung up, or is silent.
    pub(crate) fn disconnect(&mut self) {
        self.conn = None;
    }

    fn call(
        &mut self,
        fields: &[&str],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<sys::seqpacket::Message> {
        let conn = self.conn.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let answer = conn.call(fields, fds);
        if let Err(e) = &answer
            && e.kind() != io::ErrorKind::Other
        {
            // Not an ERR answer: the connection itself is in trouble.
            self.conn = None;
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
        let answer = self.call(&["REAP", &pid.to_string()], &[])?;
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
