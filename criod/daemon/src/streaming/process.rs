//! The processes that serve connections, one each: forked ahead, given a connection, counted until
//! they end.
//!
//! ```text
//!           FORK (keeper)            CONN + the accepted socket         TAKEN
//!   (none) ──────────────▶ idle ───────────────────────────▶ waiting ─────────▶ busy ──EOF──▶ gone
//!                          SPARE of them                     WAITING at most;
//!                                                            then the oldest is killed
//! ```
//! criod's end of a control socket is held by the keeper as well, so that neither criod's death nor its
//! restart is seen by a stream: a question waits in the socket, and a successor asks with PING where
//! each stream stands.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sys::seqpacket::{self, Conn, Message};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use crate::error::{Error, Result};
use crate::keeper::{Keeper, Repeat};
use crate::node::{lock, new_id, on_disk};

/// Idle ones that are kept ready, besides the one that waits for the next connection.
pub(super) const SPARE: usize = 1;
/// Connections that have shown no token yet.
const WAITING: usize = 64;
/// What they say is kept up to this size, in bytes.
const LOG_MAX: u64 = 1 << 20;
/// Attempts at a fork.
const FORKS: u32 = 2;
/// Between two warnings of the same.
const PAUSE: Duration = Duration::from_secs(60);
/// Streams are held at the keeper under this and their number.
const PREFIX: &str = "stream-";
/// Digits of a stream's number.
const DIGITS: usize = 16;

/// How to start one.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) program: PathBuf,
    /// An empty folder, their root.
    pub(crate) empty: PathBuf,
    pub(crate) log: PathBuf,
    /// Folders of their cgroup, one per hierarchy.
    pub(crate) cgroups: Vec<PathBuf>,
}

/// One process.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) number: String,
    /// A SOCK_SEQPACKET socket. tokio's type for it is made for another kind, but all that is asked
    /// of it is when there is something to read.
    control: UnixStream,
    /// Its pidfd.
    process: Option<OwnedFd>,
    /// Its place among those that may be open.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    ended: AtomicBool,
}

impl Stream {
    fn new(number: String, control: OwnedFd, process: Option<OwnedFd>) -> io::Result<Arc<Stream>> {
        let control = std::os::unix::net::UnixStream::from(control);
        control.set_nonblocking(true)?;
        let control = UnixStream::from_std(control)?;
        Ok(Arc::new(Stream {
            number,
            control,
            process,
            place: Mutex::default(),
            ended: AtomicBool::new(false),
        }))
    }

    /// What it says next; `None`: it has ended.
    pub(crate) async fn recv(&self) -> io::Result<Option<Message>> {
        self.control.async_io(Interest::READABLE, || seqpacket::recv(self.control.as_fd())).await
    }

    /// Says something. It reads all it is told at once, so there is always room, or it is stuck.
    pub(crate) fn send(&self, fields: &[&str], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        seqpacket::send(self.control.as_fd(), fields, fds)
    }

    /// Ends it, whatever it is doing.
    pub(crate) fn kill(&self) {
        if let Some(process) = &self.process {
            let _ = sys::pidfd::send_signal(process.as_fd(), nix::libc::SIGKILL);
        }
    }

    /// It has a connection, and so a place, from here on.
    pub(crate) fn place(&self, place: Option<OwnedSemaphorePermit>) {
        *lock(&self.place) = place;
    }

    /// Gives one that a criod before has given a connection to a place, where there is any.
    pub(crate) fn place_late(&self, places: &Arc<Semaphore>) {
        let mut place = lock(&self.place);
        if place.is_none() {
            *place = Arc::clone(places).try_acquire_owned().ok();
        }
    }

    /// Gives the place back.
    fn unplace(&self) -> Option<OwnedSemaphorePermit> {
        lock(&self.place).take()
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Pool {
    options: Options,
    keeper: Keeper,
    idle: Mutex<Vec<Arc<Stream>>>,
    waiting: Mutex<VecDeque<Arc<Stream>>>,
    refill: tokio::sync::Mutex<()>,
    /// When it was last said that there are too many, and how many were closed since.
    crowded: Mutex<(Option<Instant>, u64)>,
}

impl Pool {
    pub(crate) fn new(options: Options, keeper: Keeper) -> Pool {
        let (idle, waiting, refill, crowded) = Default::default();
        Pool { options, keeper, idle, waiting, refill, crowded }
    }

    /// Whether what the keeper holds under this id is one of ours.
    pub(crate) fn is_ours(id: &str) -> bool {
        id.starts_with(PREFIX)
    }

    /// Those of a criod before; each has been asked where it stands.
    pub(crate) async fn found(&self) -> Result<Vec<Arc<Stream>>> {
        let mut found = Vec::new();
        for id in self.keeper.held().await? {
            let Some(number) = id.strip_prefix(PREFIX) else { continue };
            match self.take_up(&id, number).await {
                Ok(stream) => found.extend(stream),
                Err(e) => warn!("{id}: {}", e.chain()),
            }
        }
        Ok(found)
    }

    async fn take_up(&self, id: &str, number: &str) -> Result<Option<Arc<Stream>>> {
        let (mut control, mut process) = (None, None);
        for (name, fd) in self.keeper.get(id).await? {
            match name.as_str() {
                "control" => control = Some(fd),
                "process" => process = Some(fd),
                _ => {}
            }
        }
        // Without its control socket nobody can reach it; and only we would have let go of that.
        let Some(control) = control else {
            self.keeper.release(id).await?;
            return Ok(None);
        };
        for (name, fd) in [("process", process.as_ref()), ("control", Some(&control))] {
            if let Some(fd) = fd {
                let again = fd.try_clone().map_err(Error::system("take up a stream"))?;
                self.keeper.hold(id, name, again).await?;
            }
        }
        let stream = Stream::new(number.to_owned(), control, process)
            .map_err(Error::system("take up a stream"))?;
        // One that has ended says so by EOF.
        let _ = stream.send(&["PING"], &[]);
        Ok(Some(stream))
    }

    /// Forks a program of the streams' own, with one end of a new control socket as its stdin;
    /// returns the other end.
    pub(crate) async fn fork(&self, id: &str, dial: bool) -> Result<(OwnedFd, OwnedFd)> {
        let mut failed = None;
        for _ in 0..FORKS {
            match self.fork_once(id, dial).await {
                Ok(forked) => return Ok(forked),
                Err(e) => failed = Some(e),
            }
        }
        Err(failed.unwrap_or_else(|| Error::precondition("no stream was forked")))
    }

    /// With a socket of its own each time: one that was forked and not heard of sees it close.
    async fn fork_once(&self, id: &str, dial: bool) -> Result<(OwnedFd, OwnedFd)> {
        let Options { program, empty, log, cgroups } = &self.options;
        let (ours, theirs) = Conn::pair().map_err(Error::system("make a control socket"))?;
        let stderr = on_disk(|| {
            let file = OpenOptions::new().create(true).append(true).open(log)?;
            if file.metadata()?.len() > LOG_MAX {
                file.set_len(0)?;
            }
            Ok(file)
        });
        let stderr = stderr.map_err(Error::file("open", log))?;
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut command = vec![text(program)];
        command.extend(dial.then(|| "--dial".to_owned()));
        command.extend(cgroups.iter().flat_map(|dir| ["--cgroup".to_owned(), text(dir)]));
        command.extend(["--root".to_owned(), text(empty)]);
        let (theirs, stderr) = (theirs.into(), stderr.into());
        let (_, process) = self.keeper.fork(id, command, theirs, stderr, Repeat::Never).await?;
        Ok((ours.into(), process))
    }

    /// Forks a stream. Whoever gets it attends to it.
    pub(crate) async fn begin(&self) -> Result<Arc<Stream>> {
        let mut number = new_id()?;
        number.truncate(DIGITS);
        let id = format!("{PREFIX}{number}");
        let begun = self.begin_as(&id, number).await;
        if begun.is_err() {
            // What is held of it would keep it alive.
            let _ = self.keeper.release(&id).await;
        }
        begun
    }

    async fn begin_as(&self, id: &str, number: String) -> Result<Arc<Stream>> {
        let failed = |e| Error::system("hold a stream")(e);
        let (control, process) = self.fork(id, false).await?;
        // In this order: one whose control socket is held can be ended, too; any other sees its
        // control socket close with criod.
        for (name, fd) in [("process", &process), ("control", &control)] {
            let again = fd.try_clone().map_err(failed)?;
            self.keeper.hold(id, name, again).await?;
        }
        Stream::new(number, control, Some(process)).map_err(failed)
    }

    /// An idle one, if there is any.
    pub(crate) fn take(&self) -> Option<Arc<Stream>> {
        lock(&self.idle).pop()
    }

    /// Forks one more, unless there are enough idle ones. It is attended to by the caller.
    pub(crate) async fn more(&self) -> Result<Option<Arc<Stream>>> {
        let _one_at_a_time = self.refill.lock().await;
        if lock(&self.idle).len() >= SPARE {
            return Ok(None);
        }
        let stream = self.begin().await?;
        self.park(Arc::clone(&stream));
        Ok(Some(stream))
    }

    /// It has no connection.
    pub(crate) fn park(&self, stream: Arc<Stream>) {
        let mut idle = lock(&self.idle);
        if !stream.ended.load(Ordering::SeqCst) {
            idle.push(stream);
        }
    }

    /// Gives it a connection, which has shown no token yet; where too many have not, the oldest
    /// ends. An error gives the place back: the stream has ended.
    pub(crate) fn give(
        &self,
        stream: &Arc<Stream>,
        place: OwnedSemaphorePermit,
        fields: &[&str],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Option<OwnedSemaphorePermit>> {
        stream.place(Some(place));
        let crowded = {
            let mut waiting = lock(&self.waiting);
            waiting.push_back(Arc::clone(stream));
            if waiting.len() > WAITING { waiting.pop_front() } else { None }
        };
        if let Some(oldest) = crowded {
            oldest.kill();
            self.say_crowded();
        }
        let sent = stream.send(fields, fds);
        // It is marked before it is taken from the lists, so that one of the two sees the other.
        if sent.is_err() || stream.ended.load(Ordering::SeqCst) {
            self.proven(stream);
            return Err(stream.unplace());
        }
        Ok(())
    }

    /// Says that connections are closed for want of room, now and then: whoever causes it can do so
    /// as often as he likes.
    fn say_crowded(&self) {
        let mut said = lock(&self.crowded);
        said.1 += 1;
        if said.0.is_none_or(|last| last.elapsed() > PAUSE) {
            let closed = std::mem::take(&mut said.1);
            said.0 = Some(Instant::now());
            warn!(
                closed,
                "more than {WAITING} streaming connections show no token: the oldest are closed"
            );
        }
    }

    /// It has shown one.
    pub(crate) fn proven(&self, stream: &Arc<Stream>) {
        lock(&self.waiting).retain(|s| !Arc::ptr_eq(s, stream));
    }

    /// It has ended.
    pub(crate) async fn gone(&self, stream: &Arc<Stream>) {
        stream.ended.store(true, Ordering::SeqCst);
        self.proven(stream);
        lock(&self.idle).retain(|s| !Arc::ptr_eq(s, stream));
        drop(stream.unplace());
        if let Err(e) = self.keeper.release(&format!("{PREFIX}{}", stream.number)).await {
            warn!("stream {}: {}", stream.number, e.chain());
        }
    }
}
