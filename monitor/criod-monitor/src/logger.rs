//! The log thread: takes what is in the spools, makes records of it, appends them to the log file.
//!
//! ```text
//! spool ─pread─▶ records ─append─▶ log, then `progress` ← { file, its length, spool offsets }
//! ```
//! `progress` always names a state in which whole records are in the log. A successor cuts the log
//! back to the length that stands there and makes the rest again. It is one write of 48 bytes into
//! a page of tmpfs, which no SIGKILL can divide.
//!
//! A log that cannot be written (full disk, I/O error) is cut back to whole records and tried
//! again; meanwhile the spools, then the pipes fill, and the container waits. Nothing is dropped.
//!
//! **Rotation.** The kubelet renames the log and asks for the path to be opened again. If it never
//! sees our answer it renames the old file back over the new one; then our file has no name any
//! more, and what is in it is appended to the file that has.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crilog::{MAX_LINE, Stamp, Stream};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::output::Spool;

/// Bytes read from a spool at a time; more than a line's limit, so that each round gets on.
const READ: usize = 2 * MAX_LINE;
/// Bytes of records written at a time.
const ROOM: usize = 64 << 10;
/// Between attempts to write to a log that cannot be written.
const RETRY: Duration = Duration::from_millis(500);
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
    /// Write all up to these offsets of stdout and stderr, closing a last line without newline.
    Flush([u64; 2]),
}

/// What has been done.
#[derive(Debug)]
pub(crate) enum Done {
    /// The log is open; a duplicate for the keeper.
    Opened(Result<Option<OwnedFd>, String>),
    Reopened(Result<Option<OwnedFd>, String>),
    Flushed,
}

#[derive(Default)]
struct Inbox {
    commands: VecDeque<Command>,
    data: bool,
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
    /// Starts the thread. It does nothing until it is told to open or resume.
    pub(crate) fn start(
        path: &str,
        dir: &Path,
        sync: bool,
        spools: [Arc<Spool>; 2],
    ) -> io::Result<Logger> {
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
            punched: spools.each_ref().map(|s| s.consumed.load(Ordering::Relaxed)),
            spools,
            progress,
            log: None,
            open: false,
            flush: None,
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

    /// What has been done since the last time.
    pub(crate) fn done(&self) -> Vec<Done> {
        let _ = self.shared.event.read();
        std::mem::take(&mut *lock(&self.shared.done))
    }
}

/// The record of how far the log has come.
struct Progress {
    file: File,
    now: Mark,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Mark {
    dev: u64,
    ino: u64,
    log: u64,
    spools: [u64; 2],
}

const MARK: usize = 48;
const VERSION: u64 = 1;

impl Mark {
    fn encode(&self) -> [u8; MARK] {
        let words = [VERSION, self.dev, self.ino, self.log, self.spools[0], self.spools[1]];
        let mut bytes = [0; MARK];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; MARK]) -> Option<Mark> {
        let mut words = bytes
            .chunks_exact(8)
            .map(|c| c.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte)));
        (words.next()? == VERSION).then_some(())?;
        Some(Mark {
            dev: words.next()?,
            ino: words.next()?,
            log: words.next()?,
            spools: [words.next()?, words.next()?],
        })
    }
}

impl Progress {
    fn open(path: &Path) -> io::Result<Progress> {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        let mut bytes = [0; MARK];
        let now = match file.read_exact(&mut bytes) {
            Ok(()) => Mark::decode(&bytes).unwrap_or_default(),
            Err(_) => Mark::default(),
        };
        Ok(Progress { file, now })
    }

    fn save(&self) -> io::Result<()> {
        self.file.write_all_at(&self.now.encode(), 0)
    }
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
}

impl Worker {
    fn run(mut self) {
        loop {
            let wait = match self.write_all() {
                Ok(()) => None,
                Err(e) => {
                    eprintln!("criod-monitor: {}: {e}", self.name());
                    Some(RETRY)
                }
            };
            for command in self.next(wait) {
                self.obey(command);
            }
        }
    }

    fn name(&self) -> String {
        self.path.as_deref().unwrap_or(Path::new("no log")).display().to_string()
    }

    /// Waits for commands or data, or for the time of another attempt.
    fn next(&self, wait: Option<Duration>) -> VecDeque<Command> {
        let mut inbox = lock(&self.shared.inbox);
        while inbox.commands.is_empty() && !inbox.data {
            let wake = &self.shared.wake;
            match wait {
                None => inbox = wake.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    let woken = wake.wait_timeout(inbox, time);
                    inbox = woken.unwrap_or_else(PoisonError::into_inner).0;
                    break;
                }
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
                let opened = self.open_path();
                self.open = opened.is_ok();
                self.tell(Some(Done::Opened(opened)));
            }
            Command::Resume(file) => {
                let opened = self.resume(file);
                self.open = true;
                self.tell(Some(Done::Opened(opened)));
            }
            Command::Reopen => {
                let opened = self.open_path();
                self.tell(Some(Done::Reopened(opened)));
            }
            Command::Flush(targets) => self.flush = Some(targets),
        }
    }

    /// Opens the path and makes it the log; the old file stays the log where that fails.
    fn open_path(&mut self) -> Result<Option<OwnedFd>, String> {
        let Some(path) = &self.path else { return Ok(None) };
        let told = |e: io::Error| format!("{}: {e}", path.display());
        let file = open_log(path).map_err(told)?;
        let meta = file.metadata().map_err(told)?;
        let spare = file.try_clone().map_err(told)?;
        if let Some(old) = self.log.take()
            && self.sync
        {
            let _ = old.sync_data();
        }
        self.progress.now.dev = meta.dev();
        self.progress.now.ino = meta.ino();
        self.progress.now.log = meta.len();
        self.progress.save().map_err(told)?;
        self.log = Some(file);
        Ok(Some(spare.into()))
    }

    /// Goes on with the file that `progress` names: the one that the keeper held, or the path's.
    fn resume(&mut self, held: Option<OwnedFd>) -> Result<Option<OwnedFd>, String> {
        let Some(path) = &self.path else { return Ok(None) };
        let mark = self.progress.now;
        let ours =
            |file: &File| file.metadata().is_ok_and(|m| m.dev() == mark.dev && m.ino() == mark.ino);
        let found = held
            .map(File::from)
            .filter(&ours)
            .or_else(|| OpenOptions::new().read(true).append(true).open(path).ok().filter(ours));
        let Some(file) = found else { return self.open_path() };
        let told = |e: io::Error| format!("{}: {e}", self.name());
        if file.metadata().map_err(told)?.len() > mark.log {
            file.set_len(mark.log).map_err(told)?;
        }
        let spare = file.try_clone().map_err(told)?;
        self.log = Some(file);
        Ok(Some(spare.into()))
    }

    /// Writes until the spools hold no whole record.
    fn write_all(&mut self) -> io::Result<()> {
        // Touched only while there is something to do; given back before the thread sleeps.
        let mut input = Vec::new();
        let mut records = Vec::new();
        if !self.open && self.flush.is_none() {
            return Ok(());
        }
        while self.write_some(&mut input, &mut records)? {}
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
        }
        Ok(())
    }

    fn reached(&self, targets: [u64; 2]) -> bool {
        self.spools.iter().zip(targets).all(|(s, t)| s.consumed.load(Ordering::Relaxed) >= t)
    }

    /// One round; false: there was nothing to write.
    fn write_some(&mut self, input: &mut Vec<u8>, records: &mut Vec<u8>) -> io::Result<bool> {
        records.clear();
        let mut mark = self.progress.now;
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
            let taken = if self.path.is_some() {
                // Half of the room is each stream's, so that a flood on one leaves the other alone.
                let room = records.len() + ROOM / 2;
                crilog::format(stream, &stamp, input, last, room, records)
            } else {
                len
            };
            mark.spools[n] = at + taken as u64;
        }
        if mark.spools == self.progress.now.spools {
            return Ok(false);
        }
        self.append(records, &mut mark)?;
        self.progress.now = mark;
        self.progress.save()?;
        let mut waited = false;
        for n in 0..self.spools.len() {
            self.spools[n].consumed.store(mark.spools[n], Ordering::SeqCst);
            waited |= self.spools[n].full.swap(false, Ordering::SeqCst);
            self.punch(n);
        }
        if waited {
            self.tell(None);
        }
        Ok(true)
    }

    /// Appends whole records to the log, or leaves it as it was.
    fn append(&mut self, records: &[u8], mark: &mut Mark) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let Some(log) = &self.log else { return Ok(()) };
        let before = log.metadata()?;
        if before.nlink() == 0 {
            self.find_name_again()?;
            mark.dev = self.progress.now.dev;
            mark.ino = self.progress.now.ino;
            return self.append(records, mark);
        }
        let mut writer = log;
        if let Err(e) = writer.write_all(records) {
            log.set_len(before.len())?;
            return Err(e);
        }
        mark.log = before.len() + records.len() as u64;
        Ok(())
    }

    /// Our file has lost its name. If another file bears it now, that one was renamed over ours:
    /// what we wrote goes to its end. If none does, the log was removed and begins anew.
    fn find_name_again(&mut self) -> io::Result<()> {
        let Some(path) = self.path.clone() else { return Ok(()) };
        let orphan = self.log.take();
        let existed = path.exists();
        if let Err(e) = self.open_path() {
            self.log = orphan;
            return Err(io::Error::other(e));
        }
        let (Some(mut orphan), Some(log), true) = (orphan, &self.log, existed) else {
            return Ok(());
        };
        let before = log.metadata()?.len();
        orphan.seek(SeekFrom::Start(0))?;
        let mut target = log;
        if let Err(e) = io::copy(&mut orphan, &mut target) {
            log.set_len(before)?;
            self.log = Some(orphan);
            return Err(e);
        }
        self.progress.now.log = log.metadata()?.len();
        let spare = log.try_clone().ok().map(OwnedFd::from);
        self.progress.save()?;
        self.tell(Some(Done::Opened(Ok(spare))));
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
fn open_log(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
    debug_assert!(file.as_raw_fd() > 2);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        dir: tempfile::TempDir,
        spools: [Arc<Spool>; 2],
        logger: Logger,
    }

    fn rig_in(dir: tempfile::TempDir) -> Rig {
        let spools =
            ["stdout.spool", "stderr.spool"].map(|n| Spool::open(&dir.path().join(n)).unwrap());
        let log = dir.path().join("0.log");
        let logger =
            Logger::start(log.to_str().unwrap(), dir.path(), true, spools.clone()).unwrap();
        Rig { dir, spools, logger }
    }

    impl Rig {
        fn put(&self, n: usize, bytes: &[u8]) {
            let at = self.spools[n].written.load(Ordering::Relaxed);
            self.spools[n].file.write_all_at(bytes, at).unwrap();
            self.spools[n].written.store(at + bytes.len() as u64, Ordering::Release);
            self.logger.notify();
        }

        fn wait(&self) -> Done {
            loop {
                let mut fds = [nix::poll::PollFd::new(
                    self.logger.shared.event.as_fd(),
                    nix::poll::PollFlags::POLLIN,
                )];
                assert_eq!(
                    nix::poll::poll(&mut fds, 10_000u16).unwrap(),
                    1,
                    "the logger is silent"
                );
                if let Some(done) = self.logger.done().pop() {
                    return done;
                }
            }
        }

        fn flush(&self) {
            let ends = self.spools.each_ref().map(|s| s.written.load(Ordering::Relaxed));
            self.logger.send(Command::Flush(ends));
            assert!(matches!(self.wait(), Done::Flushed));
        }

        fn texts(&self, name: &str) -> Vec<String> {
            let text = std::fs::read_to_string(self.dir.path().join(name)).unwrap();
            text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
        }
    }

    #[test]
    fn rotation_never_divides_a_line_and_the_last_one_is_closed() {
        let rig = rig_in(tempfile::tempdir().unwrap());
        rig.logger.send(Command::Open);
        assert!(matches!(rig.wait(), Done::Opened(Ok(Some(_)))));
        rig.put(0, b"one\ntw");
        rig.put(1, b"err\n");
        while rig.spools.iter().any(|s| s.consumed.load(Ordering::Relaxed) < 4) {
            std::thread::yield_now();
        }
        let path = rig.dir.path();
        std::fs::rename(path.join("0.log"), path.join("0.log.old")).unwrap();
        rig.logger.send(Command::Reopen);
        assert!(matches!(rig.wait(), Done::Reopened(Ok(Some(_)))));
        rig.put(0, b"o\nthree");
        rig.flush();
        let mut old = rig.texts("0.log.old");
        old.sort();
        assert_eq!(old, ["stderr F err", "stdout F one"]);
        assert_eq!(rig.texts("0.log"), ["stdout F two", "stdout F three"]);
    }

    #[test]
    fn a_file_renamed_over_ours_gets_what_ours_held() {
        let rig = rig_in(tempfile::tempdir().unwrap());
        let path = rig.dir.path();
        rig.logger.send(Command::Open);
        rig.wait();
        rig.put(0, b"before\n");
        rig.flush();
        std::fs::rename(path.join("0.log"), path.join("0.log.old")).unwrap();
        rig.logger.send(Command::Reopen);
        rig.wait();
        rig.put(0, b"between\n");
        rig.flush();
        // The kubelet saw no answer, and puts the old file back.
        std::fs::rename(path.join("0.log.old"), path.join("0.log")).unwrap();
        rig.put(0, b"after\n");
        let ends = rig.spools.each_ref().map(|s| s.written.load(Ordering::Relaxed));
        rig.logger.send(Command::Flush(ends));
        while !matches!(rig.wait(), Done::Flushed) {}
        assert_eq!(rig.texts("0.log"), ["stdout F before", "stdout F between", "stdout F after"]);
    }

    #[test]
    fn a_successor_cuts_back_to_whole_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let rig = rig_in(dir);
        rig.logger.send(Command::Open);
        rig.wait();
        rig.put(0, b"one\n");
        rig.flush();
        // As if killed between the log and the mark: a record, and half of one, too much.
        let mut log = OpenOptions::new().append(true).open(path.join("0.log")).unwrap();
        log.write_all(b"2026-11-24T00:00:00Z stdout F two\n2026-11").unwrap();
        rig.spools[0].file.write_all_at(b"two\n", 4).unwrap();
        let rig = rig_in(rig.dir);
        rig.logger.send(Command::Resume(None));
        rig.wait();
        rig.put(0, b"three\n");
        rig.flush();
        assert_eq!(rig.texts("0.log"), ["stdout F one", "stdout F two", "stdout F three"]);
    }

    #[test]
    fn marks_round_trip() {
        let mark = Mark { dev: 1, ino: u64::MAX, log: 3, spools: [4, 5] };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        assert_eq!(Mark::decode(&[0; MARK]), None);
    }
}
