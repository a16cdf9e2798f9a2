//! Clients that are attached to the container's own streams.
//!
//! ```text
//!                    ┌───────▶ spool ─▶ log                        (module `output`)
//! container ─▶ pipe ─┤ copy
//!                    └───────▶ pipe of 256 KiB for each client ─▶ the one who carries its streams
//!
//! client ─▶ the container's stdin itself, or with a terminal: pipe ─splice─▶ master
//! ```
//! A client sees what comes from the moment that it begins on (`GO`). Its bytes are copied from the
//! spool's file when they have been put there, before the logger knows of them: it gives the spool's
//! pages back. What a client's pipe has no room for waits in memory, at most [`LATE`] bytes for all
//! clients of a stream together; one for whom there is no more room is told `SLOW text` and cut off,
//! and nobody else notices. When the container has ended, and what it left has been passed on, `EXIT code` is sent.
//!
//! What may come from it:
//!
//! | message             | what                                                                   |
//! |---------------------|------------------------------------------------------------------------|
//! | `SIZE rows columns` | the terminal's new size                                                |
//! | `EOF`               | the client has closed its stdin for good                               |
//!
//! With `stdin_once` the first client that asks for stdin is the only one that gets it, and its EOF
//! or its end closes the container's stdin for good, also by a successor of the monitor, which
//! has lost all clients: `stdin_taken` is written down first. Terminals are not closed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use api_monitor::monitor::{Phase, handover};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{pipe2, write};
use sys::tty::Size;

use crate::handover::{Giving, maybe, take};
use crate::monitor::Monitor;
use crate::output::{CHUNK, Moved};
use crate::poller::{Poller, Token};
use crate::session::{Kind, Named, Session, Wanted};

/// Clients at a time.
const MAX_CLIENTS: usize = 64;
/// Of those that have left, how many may still have typed what the terminal has no room for.
pub(crate) const MAX_LINGERING: usize = 8;
/// How much may wait for a client to take it, in bytes. The kernel lets all pipes of a user, that
/// is, of every container's root, have 64 MiB together before new ones get less than they should
/// (`pipe-user-pages-soft`); the one who carries the streams has more room of its own.
const CLIENT_ROOM: i32 = 256 << 10;
/// How much may wait in memory for the clients of one stream together, in bytes: what a container can
/// write while a client that does read waits for a processor.
const LATE: usize = 4 << 20;
/// What is reserved for copying. As much as this the allocator gives back at once; only the first
/// [`CHUNK`] bytes are ever touched.
const BUFFER: usize = 4 * CHUNK;
/// How often a client's pipe is emptied before others have their turn.
const TURNS: usize = 8;

/// Those who get a copy of one stream's output.
#[derive(Default)]
pub(crate) struct Taps {
    pipes: Vec<Tap>,
    /// There only while somebody is.
    buffer: Vec<u8>,
    /// Those who were cut off.
    slow: Vec<u32>,
    /// The stream has ended: whoever has all of it is done.
    over: bool,
}

struct Tap {
    /// The number of the session.
    key: u32,
    /// The write end of the client's pipe.
    pipe: OwnedFd,
    /// What the pipe has had no room for, in front of all that comes; it is watched meanwhile.
    late: Vec<u8>,
}

impl Tap {
    /// Passes on what waits. False: nobody takes it any more.
    fn flush(&mut self) -> bool {
        let mut sent = 0;
        let open = loop {
            if sent == self.late.len() {
                break true;
            }
            match write(&self.pipe, &self.late[sent..]) {
                Ok(n) => sent += n,
                Err(Errno::EINTR) => {}
                Err(e) => break e == Errno::EAGAIN,
            }
        };
        self.late.drain(..sent);
        if self.late.is_empty() {
            self.late = Vec::new();
        }
        open
    }
}

impl Taps {
    pub(crate) fn add(&mut self, key: u32, pipe: OwnedFd) {
        if self.buffer.is_empty() {
            self.buffer = Vec::with_capacity(BUFFER);
            self.buffer.resize(CHUNK, 0);
        }
        self.pipes.push(Tap { key, pipe, late: Vec::new() });
    }

    pub(crate) fn remove(&mut self, key: u32) {
        self.pipes.retain(|tap| tap.key != key);
        self.shrink();
    }

    /// The stream has ended: pipes close when all that waits has been passed on.
    pub(crate) fn is_empty(&self) -> bool {
        self.pipes.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.over = true;
        self.pipes.retain(|tap| !tap.late.is_empty());
        self.shrink();
    }

    fn shrink(&mut self) {
        if self.pipes.is_empty() {
            self.buffer = Vec::new();
        }
    }

    /// Passes on what has been put into the spool's file: `len` bytes at `at`, at most [`CHUNK`].
    /// `late` names who waits for room in a client's pipe.
    pub(crate) fn copy(
        &mut self,
        spool: &File,
        at: u64,
        len: usize,
        poller: &Poller,
        late: fn(u32) -> Token,
    ) {
        if self.pipes.is_empty() {
            return;
        }
        let bytes = &mut self.buffer[..len];
        let there = spool.read_exact_at(bytes, at).is_ok();
        let slow = &mut self.slow;
        let mut waiting: usize = self.pipes.iter().map(|tap| tap.late.len()).sum();
        self.pipes.retain_mut(|tap| {
            let watched = !tap.late.is_empty();
            let done = match there {
                true if watched => Ok(0),
                true => write(&tap.pipe, bytes),
                false => Err(Errno::EIO),
            };
            let sent = match done {
                Ok(sent) => sent,
                Err(Errno::EAGAIN) => 0,
                // One that has closed this stream may want the other.
                Err(Errno::EPIPE) => return false,
                Err(_) => {
                    slow.push(tap.key);
                    return false;
                }
            };
            let rest = &bytes[sent..];
            if rest.is_empty() {
                return true;
            }
            waiting += rest.len();
            if waiting > LATE || !(watched || poller.add_writable(&tap.pipe, late(tap.key)).is_ok())
            {
                waiting -= rest.len() + tap.late.len();
                slow.push(tap.key);
                return false;
            }
            tap.late.extend_from_slice(rest);
            true
        });
        self.shrink();
    }

    /// A client's pipe has room again, or has been closed.
    pub(crate) fn flush(&mut self, key: u32, poller: &Poller) {
        let over = self.over;
        self.pipes.retain_mut(|tap| {
            if tap.key != key || tap.late.is_empty() {
                return true;
            }
            let open = tap.flush();
            if open && tap.late.is_empty() {
                poller.remove(&tap.pipe);
            }
            open && !(over && tap.late.is_empty())
        });
        self.shrink();
    }

    /// The copies as they are handed over, and whether the stream has ended.
    pub(crate) fn give<'a>(&'a self, fds: &mut Giving<'a>) -> (Vec<handover::Tap>, bool) {
        let tap = |tap: &'a Tap| handover::Tap {
            session: tap.key,
            pipe: fds.fd(&tap.pipe),
            late: tap.late.clone(),
            ..handover::Tap::new()
        };
        (self.pipes.iter().map(tap).collect(), self.over)
    }

    /// Goes on with copies that were handed over.
    pub(crate) fn take(
        &mut self,
        given: Vec<handover::Tap>,
        over: bool,
        poller: &Poller,
        late: fn(u32) -> Token,
    ) -> io::Result<()> {
        self.over = over;
        for tap in given {
            self.add(tap.session, take(tap.pipe)?);
            if let Some(last) = self.pipes.last_mut().filter(|_| !tap.late.is_empty()) {
                poller.add_writable(&last.pipe, late(tap.session))?;
                last.late = tap.late;
            }
        }
        Ok(())
    }

    /// Those who were cut off since the last time.
    pub(crate) fn slow(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.slow)
    }
}

/// An attached client, apart from its output.
pub(crate) struct Client {
    /// What it types into the terminal.
    input: Option<OwnedFd>,
    /// The terminal has no room for it at the moment.
    waits: bool,
    /// With it goes the container's stdin.
    pub(crate) once: bool,
}

impl Client {
    /// It has gone, but not all that it has typed has come through.
    pub(crate) fn lingers(&self) -> bool {
        self.input.is_some()
    }

    pub(crate) fn give<'a>(&'a self, fds: &mut Giving<'a>) -> handover::Client {
        let Client { input, waits, once } = self;
        let input = fds.maybe(input.as_ref());
        handover::Client { input, waits: *waits, once: *once, ..handover::Client::new() }
    }

    pub(crate) fn take(given: &handover::Client, key: u32, poller: &Poller) -> io::Result<Client> {
        let input = maybe(given.input)?;
        // One that waits for room is not watched, but the terminal is.
        if let Some(input) = input.as_ref().filter(|_| !given.waits) {
            poller.add(input, Token::Input(key))?;
        }
        Ok(Client { input, waits: given.waits, once: given.once })
    }
}

impl Monitor {
    /// Attaches a client; what is handed over to it, or why nothing is.
    pub(crate) fn attach_client(
        &mut self,
        key: u32,
        wanted: Wanted,
        size: Option<Size>,
    ) -> Result<(Client, Named), String> {
        let there = matches!(
            self.phase(),
            Phase::PHASE_CREATED | Phase::PHASE_STARTING | Phase::PHASE_RUNNING
        );
        if !there || self.state.now.exit.is_some() {
            return Err(format!("container {} is not running", self.config.id));
        }
        if self.sessions.attached() >= MAX_CLIENTS {
            return Err(format!(
                "{MAX_CLIENTS} clients are attached to container {} already",
                self.config.id
            ));
        }
        self.resize_terminal(size);
        // What was written before is for the log alone.
        if self.config.terminal {
            self.pump_tty();
        }
        self.pump(0);
        self.pump(1);
        let attached = self.try_attach(key, wanted);
        attached.map_err(|e| {
            self.sources.iter_mut().for_each(|s| s.taps.remove(key));
            format!("attach: {e}")
        })
    }

    fn try_attach(&mut self, key: u32, wanted: Wanted) -> io::Result<(Client, Named)> {
        let mut client = Client { input: None, waits: false, once: false };
        let mut theirs = Named::new();
        let terminal = self.config.terminal;
        for (n, name, wanted) in
            [(0, "stdout", wanted.stdout), (1, "stderr", wanted.stderr && !terminal)]
        {
            if wanted {
                let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
                // Less room where the kernel grants no more.
                let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(CLIENT_ROOM));
                if self.sources[n].pipe.is_some() {
                    self.sources[n].taps.add(key, write);
                }
                theirs.push((name, read));
            }
        }
        if !wanted.stdin || !self.config.stdin {
            return Ok((client, theirs));
        }
        if terminal {
            let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
            self.poller.add(&read, Token::Input(key))?;
            client.input = Some(read);
            theirs.push(("stdin", write));
        } else if let Some(stdin) = &self.stdin
            && !self.state.now.stdin_taken
        {
            theirs.push(("stdin", stdin.try_clone()?));
            if self.config.stdin_once {
                client.once = true;
                self.state.now.stdin_taken = true;
                self.save();
            }
        }
        Ok((client, theirs))
    }

    fn resize_terminal(&self, size: Option<Size>) {
        if let (Some(size), Some(tty)) = (size, &self.tty) {
            let _ = sys::tty::resize(&tty.master, size);
        }
    }

    /// A client has said something. What a later release may say beyond it is passed over.
    pub(crate) fn client_speaks(&mut self, words: &[&str], once: bool) {
        match *words {
            ["SIZE", rows, columns] => self.resize_terminal(crate::session::size(rows, columns)),
            ["EOF"] if once => self.close_stdin(),
            _ => {}
        }
    }

    /// Closes the container's stdin for good.
    fn close_stdin(&mut self) {
        if self.stdin.take().is_some() {
            self.keeper.drop_spare("stdin");
            self.note_pipes();
            self.save();
        }
    }

    /// A client has gone: it gets no more. What it has typed still goes to the terminal.
    pub(crate) fn client_left(&mut self, key: u32, once: bool) {
        self.sources.iter_mut().for_each(|s| s.taps.remove(key));
        // Now, as far as there is room: it may be too late when many leave.
        self.pump_input(key);
        if once {
            self.close_stdin();
        }
    }

    /// One whose room was used up is told so, and is attached no more.
    pub(crate) fn cut_slow(&mut self, n: usize) {
        for key in self.sources[n].taps.slow() {
            let text = "the output was not taken fast enough";
            if let Some(client) = self.sessions.end_client(key, "SLOW", text) {
                self.client_left(key, client.once);
            }
        }
    }

    /// The container has ended, and its last output has been passed on.
    pub(crate) fn end_clients(&mut self) {
        self.sources.iter_mut().for_each(|s| s.taps.clear());
        let code = self.state.now.exit.as_ref().map_or(255, |e| e.code).to_string();
        for key in self.sessions.client_keys(|_| true) {
            self.sessions.end_client(key, "EXIT", &code);
        }
    }

    // --- what clients type into a terminal

    /// Moves what a client has typed to the terminal, as far as there is room.
    pub(crate) fn pump_input(&mut self, key: u32) {
        let Monitor { sessions, tty, poller, .. } = self;
        let Some(Session { kind: Kind::Client(client), conn, .. }) = sessions.find(key) else {
            return;
        };
        let Some(input) = &client.input else { return };
        let mut moved = tty.as_ref().map_or(Moved::End, |tty| type_into(input, &tty.master));
        if moved == Moved::Empty && conn.is_none() {
            moved = Moved::End;
        }
        match moved {
            Moved::Full if !client.waits => {
                client.waits = true;
                poller.remove(input);
                self.watch_tty();
            }
            Moved::Empty | Moved::More if client.waits => {
                client.waits = poller.add(input, Token::Input(key)).is_err();
            }
            Moved::End => {
                client.input = None;
                client.waits = false;
                sessions.sweep();
            }
            _ => {}
        }
    }

    /// Has somebody typed more than the terminal takes?
    pub(crate) fn typing_waits(&self) -> bool {
        !self.sessions.client_keys(|c| c.waits).is_empty()
    }

    /// The terminal may have room again.
    pub(crate) fn pump_inputs(&mut self) {
        if !self.sessions.room_watched {
            return;
        }
        for key in self.sessions.client_keys(|c| c.waits) {
            self.pump_input(key);
        }
        // Those who waited may also have been forgotten.
        if let Some(tty) = &self.tty
            && !self.typing_waits()
        {
            self.sessions.room_watched = false;
            let _ = self.poller.set_writable(&tty.master, Token::Tty, false);
        }
    }
}

/// Moves from a client's pipe to a terminal. `Full`: it has no room, `End`: nothing more comes, or
/// nobody takes it.
fn type_into(input: &OwnedFd, master: &OwnedFd) -> Moved {
    for _ in 0..TURNS {
        match splice(input, None, master, None, CHUNK, SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(0) => return Moved::End,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let some = sys::pipe::readable(input.as_fd()).is_ok_and(|n| n > 0);
                return if some { Moved::Full } else { Moved::Empty };
            }
            Err(_) => return Moved::End,
        }
    }
    Moved::More
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn tap(taps: &mut Taps, key: u32) -> File {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        taps.add(key, write);
        read.into()
    }

    const AT: u64 = 5;

    #[test]
    fn a_full_pipe_costs_its_client_alone() {
        let poller = Poller::new().unwrap();
        let spool = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..CHUNK as u32).map(|n| (n % 251) as u8).collect();
        spool.write_all_at(&bytes, AT).unwrap();
        let mut taps = Taps::default();
        let copy = |taps: &mut Taps, len| taps.copy(&spool, AT, len, &poller, Token::LateStdout);
        copy(&mut taps, CHUNK);
        assert!(taps.buffer.is_empty());
        let (mut taken, stuck, closed) = (tap(&mut taps, 1), tap(&mut taps, 2), tap(&mut taps, 3));
        drop(closed);
        let mut got = vec![0; CHUNK];
        // A pipe holds one such piece by default; the others wait.
        let rounds = 1 + LATE / CHUNK;
        for round in 0..=rounds {
            copy(&mut taps, CHUNK);
            taken.read_exact(&mut got).unwrap();
            assert_eq!(got, bytes);
            // One that was closed is not slow.
            assert_eq!(taps.slow(), if round == rounds { vec![2] } else { vec![] }, "{round}");
        }
        let mut all = Vec::new();
        (&stuck).read_to_end(&mut all).unwrap();
        assert_eq!(all, bytes, "what its pipe had room for, and then its end");
        copy(&mut taps, 3);
        taps.remove(1);
        let mut rest = Vec::new();
        taken.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, &bytes[..3]);
        assert!(taps.buffer.capacity() == 0 && taps.pipes.is_empty());
        // What cannot be read from the spool nobody is to take for all that there was.
        let _reader = tap(&mut taps, 4);
        taps.copy(&spool, AT + CHUNK as u64, 1, &poller, Token::LateStdout);
        assert_eq!(taps.slow(), [4]);
    }

    #[test]
    fn one_that_is_late_gets_everything_in_order_and_then_the_end() {
        let poller = Poller::new().unwrap();
        let spool = tempfile::tempfile().unwrap();
        let all: Vec<u8> = (0..1u32 << 20).flat_map(|n| n.to_le_bytes()).take(LATE).collect();
        spool.write_all_at(&all, 0).unwrap();
        let mut taps = Taps::default();
        let mut reader = tap(&mut taps, 7);
        for (n, piece) in all.chunks(CHUNK).enumerate() {
            let at = (n * CHUNK) as u64;
            taps.copy(&spool, at, piece.len(), &poller, Token::LateStderr);
        }
        assert_eq!(taps.slow(), []);
        taps.clear();
        let (mut got, mut piece) = (Vec::new(), vec![0; 10_000]);
        loop {
            match reader.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => got.extend_from_slice(&piece[..n]),
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                    let ready = poller.wait().unwrap();
                    assert_eq!(ready, [Token::LateStderr(7)]);
                    taps.flush(7, &poller);
                }
            }
        }
        assert!(got == all, "{} of {} bytes", got.len(), all.len());
        assert!(taps.pipes.is_empty() && taps.buffer.capacity() == 0);
    }

    #[test]
    fn one_that_goes_while_it_is_late_is_forgotten() {
        let poller = Poller::new().unwrap();
        let spool = tempfile::tempfile().unwrap();
        spool.write_all_at(&vec![1; CHUNK], 0).unwrap();
        let mut taps = Taps::default();
        let reader = tap(&mut taps, 9);
        for _ in 0..4 {
            taps.copy(&spool, 0, CHUNK, &poller, Token::LateStdout);
        }
        assert!(!taps.pipes[0].late.is_empty());
        drop(reader);
        assert_eq!(poller.wait().unwrap(), [Token::LateStdout(9)]);
        taps.flush(9, &poller);
        assert!(taps.pipes.is_empty() && taps.slow().is_empty());
    }
}
