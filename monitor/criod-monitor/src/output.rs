//! The container's output, from the pipe (or terminal) to the spool.
//!
//! ```text
//! container ─▶ pipe ────────splice────────▶ spool file ─▶ logger
//! container ─▶ terminal ─splice─▶ pipe ──────┘
//! ```
//! splice moves bytes inside the kernel, so that at any instant each byte is in the pipe or in the
//! spool, and a SIGKILL loses none. Another thread does it (module `pull`). The spool only grows at its end; what the logger has taken is
//! given back to the file system by punching holes, so offsets never change their meaning. When
//! [`SPOOL_MAX`] bytes wait for the logger the pipe is left alone, and the container waits, as it
//! would for a slow log.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use api_monitor::monitor::handover;
use crilog::Stream;
use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};

use crate::attach::Taps;
use crate::handover::{Giving, maybe};
use crate::poller::{Poller, Token};
use crate::pull::{HELD, Pool, Pull};

/// How much may wait for the logger, for each stream, in bytes.
pub(crate) const SPOOL_MAX: u64 = 1 << 20;
/// How much is moved by one call.
pub(crate) const CHUNK: usize = 64 << 10;
/// How often a pipe is emptied before others have their turn.
const TURNS: usize = 8;

/// Output on its way to the log; shared by the two threads.
pub(crate) struct Spool {
    pub(crate) file: File,
    /// Bytes ever put in: the file's length.
    pub(crate) written: AtomicU64,
    /// Bytes that are in the log.
    pub(crate) consumed: AtomicU64,
    /// The main thread waits for the logger to take something.
    pub(crate) full: AtomicBool,
}

impl Spool {
    pub(crate) fn open(path: &Path) -> io::Result<Arc<Spool>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        let written = AtomicU64::new(file.metadata()?.len());
        Ok(Arc::new(Spool {
            file,
            written,
            consumed: AtomicU64::new(0),
            full: AtomicBool::new(false),
        }))
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.written.load(Ordering::Acquire).saturating_sub(self.consumed.load(Ordering::Acquire))
    }
}

/// What came of moving bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// The pipe is empty for now.
    Empty,
    /// There may be more; others have their turn.
    More,
    /// The spool is full, or its file system is: no more until the logger has taken some.
    Full,
    /// The container holds the pipe's lock: no more until it lets go.
    Held,
    /// Every writer has closed.
    End,
}

/// One stream of a container.
pub(crate) struct Source {
    pub(crate) token: Token,
    pub(crate) spool: Arc<Spool>,
    pub(crate) pipe: Option<Arc<OwnedFd>>,
    pool: Pool,
    pull: Pull,
    /// What is being taken goes to others, too.
    shared: bool,
    /// Who else gets what comes.
    pub(crate) taps: Taps,
    watched: bool,
    /// How far the spool must come before init's output is complete; `None` while init lives.
    target: Option<u64>,
}

impl Source {
    pub(crate) fn new(stream: Stream, dir: &Path, pool: &Pool) -> io::Result<Source> {
        let (name, token) = match stream {
            Stream::Stdout => ("stdout.spool", Token::Stdout),
            Stream::Stderr => ("stderr.spool", Token::Stderr),
        };
        let spool = Spool::open(&dir.join(name))?;
        Ok(Source {
            token,
            spool,
            pipe: None,
            pool: pool.clone(),
            pull: Pull::default(),
            shared: false,
            taps: Taps::default(),
            watched: false,
            target: None,
        })
    }

    /// Takes the read end of the stream.
    pub(crate) fn attach(&mut self, pipe: OwnedFd, poller: &Poller) -> io::Result<()> {
        sys::pipe::set_nonblocking(pipe.as_fd())?;
        poller.add(&pipe, self.token)?;
        self.watched = true;
        self.pipe = Some(Arc::new(pipe));
        Ok(())
    }

    /// The stream as it is handed over.
    pub(crate) fn give<'a>(&'a self, fds: &mut Giving<'a>) -> handover::Stream {
        let (taps, over) = self.taps.give(fds);
        let pipe = fds.maybe(self.pipe.as_deref());
        handover::Stream { pipe, taps, over, target: self.target, ..handover::Stream::new() }
    }

    /// Goes on with a stream that was handed over.
    pub(crate) fn take(&mut self, given: handover::Stream, poller: &Poller) -> io::Result<()> {
        self.target = given.target;
        self.taps.take(given.taps, given.over, poller, self.late())?;
        match maybe(given.pipe)? {
            Some(pipe) => self.attach(pipe, poller),
            None => Ok(()),
        }
    }

    /// A thread of this process waits for its pipe, and may do so for ever.
    pub(crate) fn is_held(&self) -> bool {
        self.pull.is_held()
    }

    /// Who waits for room in a client's pipe.
    fn late(&self) -> fn(u32) -> Token {
        if self.token == Token::Stdout { Token::LateStdout } else { Token::LateStderr }
    }

    /// Moves what there is into the spool.
    pub(crate) fn pump(&mut self, poller: &Poller) -> Moved {
        let moved = self.move_some(poller);
        let watch = matches!(moved, Moved::Empty | Moved::More);
        if let Some(pipe) = &self.pipe
            && watch != self.watched
        {
            if watch {
                self.watched = poller.add(pipe, self.token).is_ok();
            } else {
                poller.remove(pipe);
                self.watched = false;
            }
        }
        if moved == Moved::End {
            self.pipe = None;
            self.taps.clear();
        }
        moved
    }

    fn move_some(&mut self, poller: &Poller) -> Moved {
        let Some(pipe) = self.pipe.clone() else { return Moved::End };
        let late = self.late();
        for _ in 0..TURNS {
            let room = SPOOL_MAX.saturating_sub(self.spool.waiting());
            if room == 0 {
                // Say that we wait first, then look again: the logger may have been quicker.
                self.spool.full.store(true, Ordering::SeqCst);
                if self.spool.waiting() >= SPOOL_MAX {
                    return Moved::Full;
                }
                continue;
            }
            let at = self.spool.written.load(Ordering::Relaxed);
            let Ok(offset) = i64::try_from(at) else { return Moved::Full };
            // Who else gets it gets it before the logger, a pipe's worth at a time.
            if !self.pull.is_held() {
                self.shared = !self.taps.is_empty();
            }
            let shared = self.shared;
            let most = if shared { CHUNK } else { CHUNK * TURNS };
            let len = most.min(usize::try_from(room).unwrap_or(most));
            let (pipe, spool) = (Arc::clone(&pipe), Arc::clone(&self.spool));
            let work = move || move_all(&pipe, &spool, offset, len, !shared);
            match self.pull.run(&self.pool, work) {
                Err(HELD) => return Moved::Held,
                Ok(0) => return Moved::End,
                Ok(n) => {
                    if shared {
                        // As soon as the logger knows of it, it may be gone.
                        self.taps.copy(&self.spool.file, at, n, poller, late);
                        self.spool.written.store(at + n as u64, Ordering::Release);
                    }
                    if n < len {
                        return Moved::Empty;
                    }
                }
                Err(Errno::EAGAIN) => return Moved::Empty,
                Err(Errno::EINTR) => {}
                // Out of space or worse: the bytes stay in the pipe.
                Err(_) => return Moved::Full,
            }
        }
        Moved::More
    }

    /// Init has ended: fixes how much more belongs to it.
    pub(crate) fn fix_target(&mut self) {
        let Some(pipe) = self.pipe.clone() else { return };
        if self.pull.is_held() {
            return;
        }
        let work = move || {
            let pending = sys::pipe::readable(pipe.as_fd()).unwrap_or(0);
            Ok(usize::try_from(pending).unwrap_or(usize::MAX))
        };
        // Nobody can know of one that is held: its end is waited for as long as such an end is.
        let mut asked = Pull::default();
        if let Ok(pending) = asked.run(&self.pool, work) {
            self.target = Some(self.spool.written.load(Ordering::Relaxed) + pending as u64);
        }
    }

    /// Init's output is in the spool.
    pub(crate) fn complete(&self) -> bool {
        self.pipe.is_none()
            || self.target.is_some_and(|t| self.spool.written.load(Ordering::Relaxed) >= t)
    }

    pub(crate) fn end(&self) -> u64 {
        self.spool.written.load(Ordering::Relaxed)
    }
}

/// Moves what a pipe has, and what comes meanwhile, at most `len` bytes; the logger is told of each
/// piece where it may be.
fn move_all(
    pipe: &OwnedFd,
    spool: &Spool,
    mut offset: i64,
    len: usize,
    tell: bool,
) -> Result<usize, Errno> {
    let mut moved = 0;
    while moved < len {
        let (some, flags) = ((len - moved).min(CHUNK), SpliceFFlags::SPLICE_F_NONBLOCK);
        match splice(pipe, None, &spool.file, Some(&mut offset), some, flags) {
            Ok(0) => break,
            Ok(n) => {
                moved += n;
                if tell {
                    spool.written.fetch_add(n as u64, Ordering::Release);
                }
            }
            Err(Errno::EINTR) => {}
            Err(e) if moved == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(moved)
}

/// A terminal's master, and the pipe that its output goes through.
pub(crate) struct Tty {
    pub(crate) master: OwnedFd,
    /// Write end of the pipe whose read end is the container's stdout for us.
    pub(crate) pipe: OwnedFd,
}

impl Tty {
    /// Moves what the terminal has into the pipe.
    ///
    /// `Full` where the pipe is full, `End` where no process has the terminal open — which may be
    /// only for now.
    pub(crate) fn pump(&self) -> Moved {
        for _ in 0..TURNS {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            match splice(&self.master, None, &self.pipe, None, CHUNK, flags) {
                Ok(0) | Err(Errno::EIO) => return Moved::End,
                Ok(_) | Err(Errno::EINTR) => {}
                // Which side it was does not matter: the caller empties the pipe, then tries again.
                Err(Errno::EAGAIN) => return Moved::Empty,
                Err(_) => return Moved::Full,
            }
        }
        Moved::More
    }
}

/// The other end of a pipe that a process of the container has open, found through /proc: the end
/// that reads, or the one that writes. It does not block.
///
/// The last resort of a successor that no keeper could help.
pub(crate) fn reopen(pid: i32, fd: u32, read: bool) -> io::Result<OwnedFd> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let path = format!("/proc/{pid}/fd/{fd}");
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = OpenOptions::new().read(read).write(!read).custom_flags(flags).open(path)?;
    if !file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Ok(file.into())
}

/// Moves from a pipe into a file, at most `room` bytes; returns how many, and 0 where it ended.
pub(crate) fn drain_into(
    pipe: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    mut offset: Option<i64>,
    room: usize,
) -> Result<usize, Errno> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
    splice(pipe, None, file, offset.as_mut(), room.min(CHUNK), flags)
}
