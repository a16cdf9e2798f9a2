//! Sessions whose streams others carry: the socket `stream.sock`.
//!
//! ```text
//!          EXEC, ATTACH            GO
//! connects ────────────▶ prepared ────▶ modules `command`, `attach`: OK + streams ──▶ EXIT code
//!    │ too late, too many   │               │
//!    ▼                      ▼               ▼ cannot be
//!  closed                 closed          ERR text
//! ```
//! The connection is made by criod, which asks for what the session is to be, and hands it over to
//! the one that carries the streams, which says when to begin. All are messages of
//! `sys::seqpacket`:
//!
//! | to the monitor                   | with it         | what                                     |
//! |----------------------------------|-----------------|------------------------------------------|
//! | `EXEC tty stdin stdout stderr`   | OCI process     | the streams that are wanted, each 0 or 1 |
//! | `ATTACH stdin stdout stderr`     |                 | the same                                 |
//! | `GO`, `GO rows columns`          |                 | begin, with a terminal of this size      |
//!
//! | from the monitor                 | with it         | what                                     |
//! |----------------------------------|-----------------|------------------------------------------|
//! | `OK name…`                       | one for each    | `stdin`, `stdout`, `stderr`; or `tty`    |
//! | `ERR text`                       |                 | it could not begin                       |
//! | `EXIT code`                      |                 | it is over; 128 + the signal             |
//!
//! After `ERR` and `EXIT` the connection is closed. Descriptors that are handed over do not block.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use api_monitor::monitor::handover::{self, session};
use nix::sys::signal::Signal;
use sys::seqpacket::Conn;
use sys::tty::Size;

use crate::attach::{Client, MAX_LINGERING};
use crate::command::Command;
use crate::handover::{Giving, maybe};
use crate::life::Job;
use crate::monitor::Monitor;
use crate::poller::{Poller, Token};

/// Connections that have not begun, at a time. For one more the oldest goes.
const MAX_PREPARED: usize = 64;
/// How long a connection may take to begin.
const PREPARED: Duration = Duration::from_secs(300);
/// The longest text that is sent, in bytes.
const MAX_TEXT: usize = 8 << 10;

#[derive(Default)]
pub(crate) struct Sessions {
    listener: Option<OwnedFd>,
    /// By age.
    pub(crate) all: Vec<Session>,
    /// The terminal is watched for room, for a client has typed more than it took.
    pub(crate) room_watched: bool,
}

pub(crate) struct Session {
    pub(crate) key: u32,
    /// `None`: the one who carries the streams has gone.
    pub(crate) conn: Option<Conn>,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    /// Not begun; closed at `until`, in nanoseconds of boot time.
    Prepared {
        asked: Option<Asked>,
        until: i64,
    },
    Command(Command),
    Client(Client),
}

/// What a session is to be.
pub(crate) enum Asked {
    Attach(Wanted),
    Exec { tty: bool, wanted: Wanted, process: OwnedFd },
}

/// The streams that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// Descriptors and what they are called.
pub(crate) type Named = Vec<(&'static str, OwnedFd)>;

impl Session {
    /// The session as it is handed over.
    pub(crate) fn give<'a>(&'a self, fds: &mut Giving<'a>) -> handover::Session {
        let socket = fds.maybe(self.conn.as_ref());
        let kind = match &self.kind {
            Kind::Prepared { asked, until } => session::Kind::Prepared(handover::Prepared {
                until: *until,
                asked: asked.as_ref().map(|a| a.give(fds)).into(),
                ..handover::Prepared::new()
            }),
            Kind::Command(command) => session::Kind::Command(command.give(fds)),
            Kind::Client(client) => session::Kind::Client(client.give(fds)),
        };
        handover::Session { number: self.key, socket, kind: Some(kind), ..handover::Session::new() }
    }
}

impl Asked {
    fn give<'a>(&'a self, fds: &mut Giving<'a>) -> handover::Asked {
        let (wanted, tty, process) = match self {
            Asked::Attach(wanted) => (wanted, false, 0),
            Asked::Exec { tty, wanted, process } => (wanted, *tty, fds.fd(process)),
        };
        let Wanted { stdin, stdout, stderr } = *wanted;
        handover::Asked { stdin, stdout, stderr, tty, process, ..handover::Asked::new() }
    }

    fn take(given: &handover::Asked) -> io::Result<Asked> {
        let handover::Asked { stdin, stdout, stderr, tty, .. } = *given;
        let wanted = Wanted { stdin, stdout, stderr };
        Ok(match maybe(given.process)? {
            Some(process) => Asked::Exec { tty, wanted, process },
            None => Asked::Attach(wanted),
        })
    }
}

impl Sessions {
    pub(crate) fn listener(&self) -> Option<&OwnedFd> {
        self.listener.as_ref()
    }

    /// Goes on with a socket that was handed over.
    pub(crate) fn listen_on(&mut self, listener: OwnedFd, poller: &Poller) -> io::Result<()> {
        poller.add(&listener, Token::Sessions)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Goes on with a session that was handed over.
    pub(crate) fn take_over(
        &mut self,
        given: handover::Session,
        poller: &Poller,
    ) -> io::Result<()> {
        let key = given.number;
        let conn = maybe(given.socket)?.map(Conn::from);
        if let Some(conn) = &conn {
            poller.add(conn, Token::Session(key))?;
        }
        let kind = match given.kind {
            Some(session::Kind::Prepared(p)) => Kind::Prepared {
                asked: p.asked.as_ref().map(Asked::take).transpose()?,
                until: p.until,
            },
            Some(session::Kind::Command(c)) => Kind::Command(Command::take(&c, key, poller)?),
            Some(session::Kind::Client(c)) => Kind::Client(Client::take(&c, key, poller)?),
            None => return Err(crate::handover::wrong("a session of an unknown kind")),
            Some(_) => return Err(crate::handover::wrong("a session of an unknown kind")),
        };
        self.all.push(Session { key, conn, kind });
        Ok(())
    }

    /// Watches for connections again, or no longer.
    pub(crate) fn listen(&self, poller: &Poller, on: bool) {
        if let Some(listener) = &self.listener {
            poller.set_readable(listener, Token::Sessions, on);
        }
    }

    pub(crate) fn find(&mut self, key: u32) -> Option<&mut Session> {
        self.all.iter_mut().find(|s| s.key == key)
    }

    pub(crate) fn take(&mut self, key: u32) -> Option<Session> {
        let at = self.all.iter().position(|s| s.key == key)?;
        Some(self.all.remove(at))
    }

    fn prepared(&self) -> impl Iterator<Item = (u32, i64)> {
        self.all.iter().filter_map(|s| match s.kind {
            Kind::Prepared { until, .. } => Some((s.key, until)),
            _ => None,
        })
    }

    /// Closes the oldest connection that has not begun. False: there is none.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.prepared().next();
        oldest.is_some_and(|(key, _)| self.take(key).is_some())
    }

    pub(crate) fn next_deadline(&self) -> Option<i64> {
        self.prepared().map(|(_, until)| until).min()
    }

    /// Commands that are being started or whose streams are still carried.
    pub(crate) fn commands(&self) -> usize {
        let counts =
            |s: &&Session| matches!(&s.kind, Kind::Command(c) if c.pid == 0 || s.conn.is_some());
        self.all.iter().filter(counts).count()
    }

    /// Clients that are there.
    pub(crate) fn attached(&self) -> usize {
        let is = |s: &&Session| matches!(s.kind, Kind::Client(_)) && s.conn.is_some();
        self.all.iter().filter(is).count()
    }

    /// Those who are attached, or have left something behind that they have typed.
    pub(crate) fn client_keys(&self, which: impl Fn(&Client) -> bool) -> Vec<u32> {
        let is = |s: &&Session| matches!(&s.kind, Kind::Client(c) if which(c));
        self.all.iter().filter(is).map(|s| s.key).collect()
    }

    pub(crate) fn command(&mut self, key: u32) -> Option<&mut Command> {
        match self.find(key) {
            Some(Session { kind: Kind::Command(command), .. }) => Some(command),
            _ => None,
        }
    }

    pub(crate) fn client(&mut self, key: u32) -> Option<&mut Client> {
        match self.find(key) {
            Some(Session { kind: Kind::Client(client), .. }) => Some(client),
            _ => None,
        }
    }

    /// Says the last word to a client that is attached.
    pub(crate) fn end_client(&mut self, key: u32, word: &str, text: &str) -> Option<Client> {
        self.client(key)?;
        let session = self.take(key)?;
        if let Some(conn) = session.conn {
            let _ = say(&conn, word, text);
            hang_up(&conn);
        }
        match session.kind {
            Kind::Client(client) => Some(client),
            _ => None,
        }
    }

    /// Forgets clients that have gone and of whom nothing is left, and the oldest of the others
    /// that have gone, where they are too many.
    pub(crate) fn sweep(&mut self) {
        let gone = |s: &&Session| s.conn.is_none();
        let lingers = |s: &&Session| matches!(&s.kind, Kind::Client(c) if c.lingers());
        let lingering = self.all.iter().filter(gone).filter(lingers).count();
        let mut surplus = lingering.saturating_sub(MAX_LINGERING);
        self.all.retain(|s| match &s.kind {
            Kind::Client(client) if s.conn.is_none() => {
                let oldest = client.lingers() && surplus > 0;
                surplus -= usize::from(oldest);
                client.lingers() && !oldest
            }
            _ => true,
        });
    }

    /// Is this the number of a session?
    pub(crate) fn has(&self, key: u32) -> bool {
        self.all.iter().any(|s| s.key == key)
    }
}

impl Monitor {
    /// Opens the stream socket. Without it the container lives on, so a failure is only said.
    pub(crate) fn listen_for_sessions(&mut self) {
        let listener = sys::seqpacket::listen_at(&self.dir.join("stream.sock"))
            .and_then(|l| self.poller.add(&l, Token::Sessions).map(|()| l));
        match listener {
            Ok(listener) => self.sessions.listener = Some(listener),
            Err(e) => eprintln!("criod-monitor: {}: stream.sock: {e}", self.config.id),
        }
    }

    pub(crate) fn accept_sessions(&mut self) {
        loop {
            let Some(listener) = &self.sessions.listener else { return };
            let conn = match sys::seqpacket::accept(listener.as_fd()) {
                Ok(conn) => conn,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors: somebody has to make room.
                Err(_) if self.sessions.drop_oldest() => continue,
                Err(_) => return self.accept_later(),
            };
            if self.sessions.prepared().count() >= MAX_PREPARED {
                self.sessions.drop_oldest();
            }
            let key = self.execs.number();
            if self.poller.add(&conn, Token::Session(key)).is_ok() {
                let kind = Kind::Prepared { asked: None, until: sys::clock::deadline(PREPARED) };
                self.sessions.all.push(Session { key, conn: Some(conn), kind });
            }
        }
    }

    pub(crate) fn expire_sessions(&mut self, now: i64) {
        let late = |(key, until)| (until <= now).then_some(key);
        let late: Vec<u32> = self.sessions.prepared().filter_map(late).collect();
        for key in late {
            self.sessions.take(key);
        }
    }

    /// A connection is readable.
    pub(crate) fn session_speaks(&mut self, key: u32) {
        let Some(session) = self.sessions.find(key) else { return };
        let Some(conn) = &session.conn else { return };
        let message = match conn.recv() {
            Ok(Some(message)) => message,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => return self.session_hung_up(key),
        };
        let words: Vec<&str> = message.fields.iter().map(String::as_str).collect();
        match &mut session.kind {
            Kind::Client(client) => {
                let once = client.once;
                self.client_speaks(&words, once);
            }
            Kind::Prepared { asked: asked @ None, .. } => {
                *asked = request(&words, message.fds);
                if asked.is_none() {
                    self.refuse_session(key, "no such request");
                }
            }
            Kind::Prepared { asked, .. } => match (asked.take(), begin(&words)) {
                (Some(asked), Some(size)) => self.begin_session(key, asked, size),
                _ => self.refuse_session(key, "no such request"),
            },
            // A later release may have more to say.
            Kind::Command(_) => {}
        }
    }

    fn begin_session(&mut self, key: u32, asked: Asked, size: Option<Size>) {
        let begun = match asked {
            Asked::Exec { tty, wanted, process } => self
                .begin_command(key, tty, wanted, process, size)
                .map(|command| (Kind::Command(command), None)),
            Asked::Attach(wanted) => self
                .attach_client(key, wanted, size)
                .map(|(client, theirs)| (Kind::Client(client), Some(theirs))),
        };
        let (kind, theirs) = match begun {
            Ok(begun) => begun,
            Err(text) => return self.refuse_session(key, &text),
        };
        let Some(session) = self.sessions.find(key) else { return };
        session.kind = kind;
        if let (Some(theirs), Some(conn)) = (theirs, &session.conn)
            && hand_over(conn, &theirs).is_err()
        {
            self.session_hung_up(key);
        }
    }

    /// Says why not, and closes.
    pub(crate) fn refuse_session(&mut self, key: u32, text: &str) {
        if let Some(Session { conn: Some(conn), .. }) = self.sessions.take(key) {
            let _ = say(&conn, "ERR", text);
            hang_up(&conn);
        }
    }

    pub(crate) fn session_hung_up(&mut self, key: u32) {
        let Some(session) = self.sessions.find(key) else { return };
        session.conn = None;
        let once = match &session.kind {
            Kind::Prepared { .. } => return drop(self.sessions.take(key)),
            // Nobody is told, but it is reaped. A runtime that hangs must not count for ever.
            Kind::Command(command) if command.pid == 0 => return self.late(Job::Exec(key)),
            Kind::Command(_) => return,
            Kind::Client(client) => client.once,
        };
        self.client_left(key, once);
        self.sessions.sweep();
    }

    /// Says how a command has ended, and closes.
    pub(crate) fn end_session(&mut self, key: u32, code: i32) {
        if let Some(Session { conn: Some(conn), .. }) = self.sessions.take(key) {
            let _ = say(&conn, "EXIT", &code.to_string());
            hang_up(&conn);
        }
    }

    /// The monitor ends, and with it what is left.
    pub(crate) fn end_sessions(&mut self) {
        let all: Vec<u32> = self.sessions.all.iter().map(|s| s.key).collect();
        for key in all {
            match self.sessions.find(key).map(|s| &s.kind) {
                Some(Kind::Command(_)) => self.end_session(key, 128 + Signal::SIGKILL as i32),
                _ => drop(self.sessions.take(key)),
            }
        }
    }
}

/// What a first message asks for; `None`: nothing that there is.
fn request(words: &[&str], fds: Vec<OwnedFd>) -> Option<Asked> {
    let flag = |word: &str| match word {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    };
    match *words {
        ["ATTACH", stdin, stdout, stderr] => {
            let (stdin, stdout, stderr) = (flag(stdin)?, flag(stdout)?, flag(stderr)?);
            Some(Asked::Attach(Wanted { stdin, stdout, stderr }))
        }
        ["EXEC", tty, stdin, stdout, stderr] => {
            let (stdin, stdout, stderr) = (flag(stdin)?, flag(stdout)?, flag(stderr)?);
            let wanted = Wanted { stdin, stdout, stderr };
            Some(Asked::Exec { tty: flag(tty)?, wanted, process: fds.into_iter().next()? })
        }
        _ => None,
    }
}

/// What begins a session, perhaps with a terminal's size; `None`: this does not.
fn begin(words: &[&str]) -> Option<Option<Size>> {
    match *words {
        ["GO"] => Some(None),
        ["GO", rows, columns] => size(rows, columns).map(Some),
        _ => None,
    }
}

pub(crate) fn size(rows: &str, columns: &str) -> Option<Size> {
    Some(Size { rows: rows.parse().ok()?, columns: columns.parse().ok()? })
}

/// Sends a word and a text.
fn say(conn: &Conn, word: &str, text: &str) -> io::Result<()> {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    conn.send(&[word, &text[..end].replace('\0', " ")], &[])
}

/// Sends descriptors and their names.
pub(crate) fn hand_over(conn: &Conn, fds: &[(&'static str, OwnedFd)]) -> io::Result<()> {
    let mut words = vec!["OK"];
    words.extend(fds.iter().map(|(name, _)| name));
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
    conn.send(&words, &fds)
}

/// Takes no more messages and forgets those that have come, so that closing loses none of ours: a
/// socket that is closed while something waits in it takes back what it has sent.
fn hang_up(conn: &Conn) {
    if let Ok(fd) = conn.as_fd().try_clone_to_owned() {
        let _ = UnixStream::from(fd).shutdown(Shutdown::Read);
        while let Ok(Some(_)) = conn.recv() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let file = || vec![OwnedFd::from(tempfile::tempfile().unwrap())];
        let asked = request(&["EXEC", "0", "1", "0", "1"], file());
        let Some(Asked::Exec { tty: false, wanted, .. }) = asked else { panic!() };
        assert_eq!(wanted, Wanted { stdin: true, stdout: false, stderr: true });
        assert!(request(&["EXEC", "0", "1", "0", "1"], Vec::new()).is_none());
        for words in [
            &["EXEC"][..],
            &["EXEC", "0", "1", "0", "2"],
            &["EXEC", "0", "1", "0", ""],
            &["EXEC", "0", "1", "0", "1", "1"],
            &["GO"],
            &[""],
            &[],
        ] {
            assert!(request(words, file()).is_none(), "{words:?}");
        }
        assert_eq!(begin(&["GO"]), Some(None));
        assert_eq!(begin(&["GO", "2", "3"]), Some(Some(Size { rows: 2, columns: 3 })));
        for words in [&["GO", "2"][..], &["GO", "2", "-3"], &["GO", "2", "65536"], &["STAY"]] {
            assert_eq!(begin(words), None, "{words:?}");
        }
    }

    #[test]
    fn what_is_said_before_hanging_up_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = sys::seqpacket::listen_at(&path).unwrap();
        let client = Conn::connect(&path, Duration::from_secs(5)).unwrap();
        let server = sys::seqpacket::accept(listener.as_fd()).unwrap();
        for _ in 0..5 {
            client.send(&["SIZE", "1", "2"], &[]).unwrap();
        }
        say(&server, "EXIT", &("\0x".to_owned() + &"ö".repeat(MAX_TEXT))).unwrap();
        hang_up(&server);
        drop(server);
        let got = client.recv().unwrap().unwrap().fields;
        assert!(got[0] == "EXIT" && got[1].starts_with(" xö") && got[1].len() <= MAX_TEXT);
        assert!(client.recv().unwrap().is_none());
        assert!(client.send(&["SIZE", "1", "2"], &[]).is_err());
    }
}
