//! Killing all that is in a group.
//!
//! ```text
//! version 2    cgroup.kill = 1 (Linux 5.14) ── else ─┐
//! version 1    freezer.state = FROZEN ───────────────┴► SIGKILL every process ─► THAWED
//!                   └──────────── until no process is left, so many rounds at most ────────┘
//! ```
//! Freezing keeps a process that forks faster than it is killed from winning. Without a freezer
//! the rounds must do. A signal to a frozen process of version 1 counts when it thaws.

use crate::error::{Error, Result};
use crate::files::{Buffer, write};
use crate::group::Cgroup;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often [`Cgroup::kill`] tries: with the waits in between, about five seconds.
const ROUNDS: u32 = 110;
/// The wait after the first round; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_micros(500);
const LONGEST_WAIT: Duration = Duration::from_millis(50);
/// How often the freezer is asked whether it is done, at a millisecond each.
const FREEZE_TRIES: u32 = 50;

impl Cgroup {
    /// Kills every process in it and in the groups below it, and waits until they are gone. A
    /// group that is not there, or becomes so, is a success. Blocks, for about five seconds at
    /// most (a process in uninterruptible sleep dies when it wakes up).
    ///
    /// # Errors
    /// [`Error::StillAlive`]; [`Error::Kill`], [`Error::Read`], [`Error::Write`].
    pub fn kill(&self) -> Result<()> {
        self.kill_rounds(ROUNDS)
    }

    /// The same with another number of rounds; one that is 0 only looks.
    ///
    /// # Errors
    /// As [`Cgroup::kill`].
    pub fn kill_rounds(&self, rounds: u32) -> Result<()> {
        let mut wait = FIRST_WAIT;
        for round in 0..=rounds {
            let pids = match self.procs() {
                Ok(pids) if pids.is_empty() => return Ok(()),
                Ok(pids) => pids,
                Err(e) if e.is_not_found() => return Ok(()),
                Err(e) => return Err(e),
            };
            if round == rounds {
                let path = self.some_folder();
                return Err(Error::StillAlive { path, left: pids.len(), rounds });
            }
            self.kill_once()?;
            std::thread::sleep(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        Ok(())
    }

    fn kill_once(&self) -> Result<()> {
        if self.hierarchy.is_v2() {
            match write(&self.some_folder().join("cgroup.kill"), "1") {
                // Not there: an older kernel, or no such group. Not for threaded groups.
                Err(Error::NotFound { .. } | Error::Write { .. }) => {}
                done => return done,
            }
        }
        let frozen = self.freeze();
        // Read again: what was forked until the freezer had them all.
        let killed = match self.procs() {
            Ok(pids) => pids.into_iter().try_for_each(|pid| self.kill_process(pid)),
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e),
        };
        if let Some((file, thaw)) = frozen {
            match write(&file, thaw) {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        killed
    }

    fn kill_process(&self, pid: i32) -> Result<()> {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(Error::Kill { path: self.some_folder(), pid, source }),
        }
    }

    /// Freezes the group if it can be frozen, and tells how to thaw it. Half frozen is good
    /// enough: the rounds go on.
    fn freeze(&self) -> Option<(PathBuf, &'static str)> {
        let folder = self.path_of("freezer")?;
        if self.hierarchy.is_v2() {
            let file = folder.join("cgroup.freeze");
            write(&file, "1").ok()?;
            return Some((file, "0"));
        }
        let file = folder.join("freezer.state");
        write(&file, "FROZEN").ok()?;
        let mut buffer = Buffer::default();
        for _ in 0..FREEZE_TRIES {
            match buffer.read(&folder, "freezer.state") {
                // A group to which a fork was added meanwhile is "FREEZING" until asked again.
                Ok(Some(state)) if state.trim() != "FROZEN" => {}
                _ => break,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Some((file, "THAWED"))
    }

    fn some_folder(&self) -> PathBuf {
        self.paths().into_iter().next().unwrap_or_else(|| Path::new(self.name()).to_owned())
    }
}
