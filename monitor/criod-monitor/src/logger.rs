//! The log thread: takes what is in the spools, makes records of it, appends them to the log file.
//!
//! ```text
//! spool ─pread─▶ records ─append─▶ log, then `progress` ← { file, its length, spool offsets }
//! ```
//! `progress` (module `progress`) always names a state in which whole records are in the log. A
//! successor cuts the log back to the length that stands there and makes the rest again.
//!
//! A log that cannot be written (full disk, I/O error) is cut back to whole records and tried
//! again; meanwhile the spools, then the pipes fill, and the container waits. Nothing is dropped.
//!
//! **Rotation.** The kubelet renames the log and asks for the path to be opened again. If it never
//! sees our answer it renames the old file back over the new one; then our file has no name any
//! more, and what is in it is appended to the file that has ([`Worker::find_name_again`]). Where
//! the log, or its folder, was removed, it begins anew as soon as it can be; until then what is
//! written goes to the file without a name, so that the container need not wait.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crilog::{MAX_LINE, Stamp, Stream};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::output::Spool;
use crate::progress::{Move, Progress};

/// Bytes read from a spool at a time; more than a line's limit, so that each round gets on.
const READ: usize = 8 * MAX_LINE;
/// Bytes of records written at a time. As much as this the allocator gives back at once.
const ROOM: usize = 512 << 10;
/// As few as it is tried with on a disk that is almost full: a whole record of each stream.
const ROOM_LEAST: usize = 2 * (MAX_LINE + crilog::OVERHEAD);
/// Between attempts to write to a log that cannot be written.
const RETRY: Duration = Duration::from_millis(500);
/// Rounds of writing before commands have their turn.
const ROUNDS: u32 = 8;
/// Between looks for a place for a log that has lost its name.
const LOOK: Duration = Duration::from_secs(1);
/// Spool that has been consumed is given back in pieces of at least this size.
const PUNCH: u64 = 64 << 10;

/// What the main thread asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Open the log for the first time (or nothing, where there is no path).
    Open,
    /// Go on with a predecessor's file.
    Resume(Option<OwnedFd>),
    /// Open the path anew.
    Reopen,
    /// What was opened last is in the keeper's hands, as far as it can be.
    Kept,
    /// Write all up to these offsets of stdout and stderr, closing a last line without newline.
    Flush([u64; 2]),
    /// Stand still between two records, when all else is done, until the next command.
    Pause,
    /// Do not, or go on.
    Go,
}

/// What the thread knows beyond the file `progress`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stand {
    /// Records may be made.
    pub(crate) open: bool,
    pub(crate) flush: Option<[u64; 2]>,
    pub(crate) ours_alone: bool,
}

/// What has been done.
#[derive(Debug)]
pub(crate) enum Done {
    /// The log is open; a duplicate for the keeper.
    Opened(Result<Option<OwnedFd>, String>),
    Reopened(Result<Option<OwnedFd>, String>),
    Flushed,
    /// It stands still, unless it has been sent something since: then it says so again.
    Paused,
}

#[derive(Default)]
struct Inbox {
    commands: VecDeque<Command>,
    data: bool,
    /// The thread stands still, and only a command wakes it.
    standing: Option<Stand>,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    done: Mutex<Vec<Done>>,
    event: EventFd,
}

/// The main thread's side.
pub(crate) struct Logger {
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Neither thread leaves the data half changed, and a panic ends the process.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Logger {
    /// Starts the thread. It does nothing until it is told to open or resume, or goes on from where
    /// the same process stood still as another program, with this log.
    pub(crate) fn start(
        path: &str,
        dir: &Path,
        sync: bool,
        spools: [Arc<Spool>; 2],
        stood: Option<(Stand, Option<File>)>,
    ) -> io::Result<Logger> {
        let (stand, log) = stood.unwrap_or_default();
        let progress = Progress::open(&dir.join("progress"))?;
        for (spool, at) in spools.iter().zip(progress.now.spools) {
            // Beyond the spool's end only where the spool was lost.
            let end = spool.written.load(Ordering::Relaxed);
            spool.consumed.store(at.min(end), Ordering::Release);
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            done: Mutex::default(),
            event: EventFd::from_flags(flags)?,
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            path: (!path.is_empty()).then(|| PathBuf::from(path)),
            sync,
            // A predecessor may have left some: what is a hole already costs nothing.
            punched: [0; 2],
            spools,
            progress,
            log,
            open: stand.open,
            flush: stand.flush,
            ours_alone: stand.ours_alone,
            pause: false,
            room: ROOM,
            replaced: None,
            look: None,
            complaint: None,
        };
        std::thread::Builder::new()
            .name("log".into())
            .stack_size(32 << 10)
            .spawn(move || worker.run())?;
        Ok(Logger { shared })
    }

    pub(crate) fn event(&self) -> impl AsFd + '_ {
        self.shared.event.as_fd()
    }

    pub(crate) fn send(&self, command: Command) {
        lock(&self.shared.inbox).commands.push_back(command);
        self.shared.wake.notify_one();
    }

    /// There is something new in a spool.
    pub(crate) fn notify(&self) {
        lock(&self.shared.inbox).data = true;
        self.shared.wake.notify_one();
    }

    /// Where the thread stands still, if it does; it will until it is sent something.
    pub(crate) fn stands(&self) -> Option<Stand> {
        let inbox = lock(&self.shared.inbox);
        inbox.standing.filter(|_| inbox.commands.is_empty())
    }

    /// What has been done since the last time.
    pub(crate) fn done(&self) -> Vec<Done> {
        let _ = self.shared.event.read();
        std::mem::take(&mut *lock(&self.shared.done))
    }
}

/// When the thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// There is more to write already.
    Now,
    /// There is new output.
    Data,
    /// A while has passed since an attempt that failed.
    Retry,
}

struct Worker {
    shared: Arc<Shared>,
    path: Option<PathBuf>,
    sync: bool,
    spools: [Arc<Spool>; 2],
    punched: [u64; 2],
    progress: Progress,
    log: Option<File>,
    /// Records may be made: the log is open, or there is none to be.
    open: bool,
    flush: Option<[u64; 2]>,
    /// The log is a file that only we have: if we die before the keeper has it, too, and it loses
    /// its name, what is in it is gone. So nothing is written to it yet.
    ours_alone: bool,
    /// To stand still as soon as nothing else is asked for.
    pause: bool,
    /// How much is written at a time at the moment.
    room: usize,
    /// The file that a new one took the place of; to be synced.
    replaced: Option<File>,
    /// Not to look for a name of the log before.
    look: Option<Instant>,
    /// What was last said of a log that cannot be written.
    complaint: Option<String>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let until = match self.write_rounds() {
                Ok(until) => {
                    self.complaint = None;
                    self.room = ROOM.min(self.room * 2);
                    until
                }
                // What does not fit whole may fit in pieces.
                Err(_) if self.room > ROOM_LEAST => {
                    self.room = ROOM_LEAST.max(self.room / 4);
                    Until::Now
                }
                Err(e) => {
                    self.complain(&e);
                    Until::Retry
                }
            };
            for command in self.next(until) {
                self.obey(command);
            }
            if self.pause {
                self.stand_still();
            }
        }
    }

    /// Waits until something is asked for. Here no record is half written, and nothing is that a
    /// sick file system could hold up.
    fn stand_still(&self) {
        let mut inbox = lock(&self.shared.inbox);
        if !inbox.commands.is_empty() {
            return;
        }
        let Worker { open, flush, ours_alone, .. } = *self;
        inbox.standing = Some(Stand { open, flush, ours_alone });
        self.tell(Some(Done::Paused));
        while inbox.commands.is_empty() {
            inbox = self.shared.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
        inbox.standing = None;
    }

    /// Says once what is wrong, however often it is tried.
    fn complain(&mut self, e: &io::Error) {
        let text = format!("criod-monitor: {}: {e}\n", self.name());
        if self.complaint.as_ref() != Some(&text) {
            let _ = io::stderr().write_all(text.as_bytes());
            self.complaint = Some(text);
        }
    }

    fn name(&self) -> String {
        self.path.as_deref().unwrap_or(Path::new("no log")).display().to_string()
    }

    /// Waits for commands, or until there is something to do.
    fn next(&self, until: Until) -> VecDeque<Command> {
        let mut inbox = lock(&self.shared.inbox);
        loop {
            if !inbox.commands.is_empty() || until == Until::Now {
                break;
            }
            let wake = &self.shared.wake;
            if until == Until::Data {
                if inbox.data {
                    break;
                }
                inbox = wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let woken = wake.wait_timeout(inbox, RETRY).unwrap_or_else(PoisonError::into_inner);
            inbox = woken.0;
            if woken.1.timed_out() {
                break;
            }
        }
        inbox.data = false;
        std::mem::take(&mut inbox.commands)
    }

    fn tell(&self, done: Option<Done>) {
        lock(&self.shared.done).extend(done);
        let _ = self.shared.event.write(1);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Open => {
                let opened = self.open_path(false);
                self.open = opened.is_ok();
                self.opened(opened);
            }
            Command::Resume(file) => {
                let opened = self.resume(file);
                self.open = true;
                self.opened(opened);
            }
            Command::Kept => self.ours_alone = false,
            Command::Reopen => {
                if self.log.as_ref().and_then(|l| l.metadata().ok()).is_some_and(|m| m.nlink() == 0)
                    && let Err(e) = self.find_name_again()
                {
                    self.complain(&e);
                }
                let opened = self.open_path(true);
                self.ours_alone |= matches!(opened, Ok(Some(_)));
                self.tell(Some(Done::Reopened(opened)));
            }
            Command::Flush(targets) => self.flush = Some(targets),
            Command::Pause => self.pause = true,
            Command::Go => self.pause = false,
        }
        if let Some(old) = self.replaced.take()
            && self.sync
        {
            let _ = old.sync_data();
        }
    }

    fn opened(&mut self, opened: Result<Option<OwnedFd>, String>) {
        self.ours_alone |= matches!(opened, Ok(Some(_)));
        self.tell(Some(Done::Opened(opened)));
    }

    /// Opens the path and makes it the log; the old file stays the log where that fails.
    fn open_path(&mut self, rotated: bool) -> Result<Option<OwnedFd>, String> {
        let Some(path) = &self.path else { return Ok(None) };
        let told = |e: io::Error| format!("{}: {e}", path.display());
        let file = open_log(path, true).map_err(told)?;
        let meta = file.metadata().map_err(told)?;
        let spare = file.try_clone().map_err(told)?;
        let length = end_line(&file, meta.len()).map_err(told)?;
        let before = self.progress.now;
        self.progress.now.dev = meta.dev();
        self.progress.now.ino = meta.ino();
        self.progress.now.log = length;
        self.progress.now.moving = None;
        self.progress.now.from = None;
        self.progress.now.rotated = rotated;
        if let Err(e) = self.progress.save() {
            self.progress.now = before;
            return Err(told(e));
        }
        self.replaced = self.log.replace(file);
        self.look = None;
        Ok(Some(spare.into()))
    }

    /// Goes on with the file that `progress` names: the one that the keeper held, or the path's, or
    /// one beside it that was the path's until a rotation.
    fn resume(&mut self, held: Option<OwnedFd>) -> Result<Option<OwnedFd>, String> {
        let Some(path) = &self.path else { return Ok(None) };
        let mark = self.progress.now;
        let is =
            |file: &File, dev, ino| file.metadata().is_ok_and(|m| m.dev() == dev && m.ino() == ino);
        let at_path = open_log(path, false).ok();
        let told = |e: io::Error| format!("{}: {e}", path.display());
        if let Some(to) = mark.moving {
            // What was moved there halfway is moved again.
            let target = open_log(path, false).ok().filter(|f| is(f, to.dev, to.ino));
            let target = target.or_else(|| beside(path, to.ino).filter(|f| is(f, to.dev, to.ino)));
            if let Some(file) = target {
                file.set_len(to.at).map_err(told)?;
            }
        }
        let found = held
            .map(File::from)
            .filter(|f| is(f, mark.dev, mark.ino))
            .or_else(|| at_path.filter(|f| is(f, mark.dev, mark.ino)))
            .or_else(|| beside(path, mark.ino).filter(|f| is(f, mark.dev, mark.ino)));
        let Some(file) = found else { return self.open_path(false) };
        if file.metadata().map_err(told)?.len() > mark.log {
            file.set_len(mark.log).map_err(told)?;
        }
        let spare = file.try_clone().map_err(told)?;
        self.log = Some(file);
        Ok(Some(spare.into()))
    }

    /// Writes what whole records the spools hold, a few rounds of it.
    fn write_rounds(&mut self) -> io::Result<Until> {
        // Touched only while there is something to do; given back before the thread sleeps.
        let mut input = Vec::new();
        let mut records = Vec::new();
        if (!self.open && self.flush.is_none()) || self.ours_alone {
            return Ok(Until::Data);
        }
        for _ in 0..ROUNDS {
            if self.write_some(&mut input, &mut records)? {
                if self.ours_alone {
                    break;
                }
                continue;
            }
            if let Some(targets) = self.flush
                && self.reached(targets)
            {
                self.flush = None;
                self.tell(Some(Done::Flushed));
                if let Some(log) = &self.log
                    && self.sync
                {
                    let _ = log.sync_data();
                }
                // What comes after the end of init's output is written, too.
                continue;
            }
            return Ok(Until::Data);
        }
        Ok(Until::Now)
    }

    fn reached(&self, targets: [u64; 2]) -> bool {
        self.spools.iter().zip(targets).all(|(s, t)| s.consumed.load(Ordering::Relaxed) >= t)
    }

    /// One round; false: there was nothing to write.
    fn write_some(&mut self, input: &mut Vec<u8>, records: &mut Vec<u8>) -> io::Result<bool> {
        records.clear();
        let mut taken = self.progress.now.spools;
        let stamp = Stamp::new(sys::clock::realtime());
        for (n, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            let spool = &self.spools[n];
            let at = spool.consumed.load(Ordering::Relaxed);
            let mut end = spool.written.load(Ordering::Acquire);
            // At the end of init's output a last line is closed, whatever came after it.
            let mut last = false;
            if let Some(targets) = self.flush
                && at < targets[n]
                && end >= targets[n]
            {
                end = targets[n];
                last = end - at <= READ as u64;
            }
            let len = usize::try_from(end.saturating_sub(at)).unwrap_or(READ).min(READ);
            if len == 0 {
                continue;
            }
            input.resize(len, 0);
            spool.file.read_exact_at(input, at)?;
            let done = if self.path.is_some() {
                // Half of the room is each stream's, so that a flood on one leaves the other alone.
                let room = records.len() + self.room / 2;
                crilog::format(stream, &stamp, input, last, room, records)
            } else {
                len
            };
            taken[n] = at + done as u64;
        }
        if taken == self.progress.now.spools {
            return Ok(false);
        }
        self.append(records, taken)?;
        let mut waited = false;
        for (n, at) in taken.into_iter().enumerate() {
            self.spools[n].consumed.store(at, Ordering::SeqCst);
            waited |= self.spools[n].full.swap(false, Ordering::SeqCst);
            self.punch(n);
        }
        if waited {
            self.tell(None);
        }
        Ok(true)
    }

    /// Appends whole records, and notes that the spools are used up to `taken`; or leaves
    /// everything as it was.
    fn append(&mut self, records: &[u8], taken: [u64; 2]) -> io::Result<()> {
        if self.path.is_none() || records.is_empty() {
            self.progress.now.spools = taken;
            return self.progress.save();
        }
        if self.log.is_none() {
            let spare = self.open_path(false).map_err(io::Error::other)?;
            self.opened(Ok(spare));
        }
        let Some(log) = &self.log else { return Ok(()) };
        let mut meta = log.metadata()?;
        if meta.nlink() == 0 && self.look.is_none_or(|t| Instant::now() >= t) {
            self.find_name_again()?;
            meta = self.log.as_ref().map_or(Ok(meta), File::metadata)?;
        }
        let Some(mut log) = self.log.as_ref() else { return Ok(()) };
        let (before, length) = (self.progress.now, meta.len());
        let mut done = log.write_all(records);
        if done.is_ok() {
            self.progress.now.log = length + records.len() as u64;
            self.progress.now.spools = taken;
            done = self.progress.save();
        }
        if done.is_err() {
            self.progress.now = before;
            log.set_len(length)?;
        }
        done
    }

    /// Our file has lost its name.
    ///
    /// If another file bears it now, that one was renamed over ours, and all that we wrote goes to
    /// its end. If none does, the log was removed: what is written from now on begins a new one, as
    /// soon as there can be one — but where a rotation had opened it, it may also be that the old
    /// file was put back and rotated again since, so then all of it does. `progress` says what is being moved where, so that a successor can
    /// cut back what was moved halfway and move it again.
    fn find_name_again(&mut self) -> io::Result<()> {
        let (Some(path), Some(orphan)) = (&self.path, &self.log) else { return Ok(()) };
        let length = orphan.metadata()?.len();
        let target = match open_log(path, false) {
            Ok(file) => {
                self.progress.now.from.get_or_insert(0);
                file
            }
            Err(_) => {
                let from = if self.progress.now.rotated { 0 } else { length };
                self.progress.now.from.get_or_insert(from);
                let Ok(file) = open_log(path, true) else {
                    self.look = Some(Instant::now() + LOOK);
                    return Ok(());
                };
                file
            }
        };
        let from = self.progress.now.from.unwrap_or(0);
        let meta = target.metadata()?;
        let at = end_line(&target, meta.len())?;
        self.progress.now.moving = Some(Move { dev: meta.dev(), ino: meta.ino(), at });
        self.progress.save()?;
        let copied = copy(orphan, &target, from, length);
        let spare = target.try_clone();
        let (Ok(()), Ok(spare)) = (&copied, spare) else {
            target.set_len(at)?;
            return copied;
        };
        let before = self.progress.now;
        self.progress.now.dev = meta.dev();
        self.progress.now.ino = meta.ino();
        self.progress.now.log = at + length.saturating_sub(from);
        self.progress.now.moving = None;
        self.progress.now.from = None;
        self.progress.now.rotated = false;
        if let Err(e) = self.progress.save() {
            self.progress.now = before;
            target.set_len(at)?;
            return Err(e);
        }
        self.log = Some(target);
        self.look = None;
        self.opened(Ok(Some(spare.into())));
        Ok(())
    }

    fn punch(&mut self, n: usize) {
        let upto = self.spools[n].consumed.load(Ordering::Relaxed) & !4095;
        let from = self.punched[n] & !4095;
        if upto.saturating_sub(from) < PUNCH {
            return;
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (Ok(at), Ok(len)) = (i64::try_from(from), i64::try_from(upto - from)) else { return };
        let _ = fallocate(self.spools[n].file.as_fd(), flags, at, len);
        self.punched[n] = upto;
    }
}

/// Opens a log file for appending; 0640, as the kubelet's rotation makes them.
fn open_log(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(create).mode(0o640).open(path)
}

/// A file of this inode number in the folder of `path`.
fn beside(path: &Path, ino: u64) -> Option<File> {
    let entries = std::fs::read_dir(path.parent()?).ok()?.flatten();
    let found = entries.into_iter().find(|e| std::os::unix::fs::DirEntryExt::ino(e) == ino)?;
    open_log(&found.path(), false).ok()
}

/// Closes a last line that somebody left open, and returns the file's length then.
fn end_line(mut file: &File, length: u64) -> io::Result<u64> {
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    if last == [b'\n'] {
        return Ok(length);
    }
    file.write_all(b"\n")?;
    Ok(length + 1)
}

/// Appends the bytes `from..upto` of one file to another.
fn copy(source: &File, mut target: &File, from: u64, upto: u64) -> io::Result<()> {
    let mut buffer = vec![0; 2 * MAX_LINE];
    let mut at = from;
    while at < upto {
        let len = usize::try_from(upto - at).unwrap_or(usize::MAX).min(buffer.len());
        source.read_exact_at(&mut buffer[..len], at)?;
        target.write_all(&buffer[..len])?;
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
#[path = "logger_tests.rs"]
mod tests;
