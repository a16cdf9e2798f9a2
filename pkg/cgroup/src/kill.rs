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
use crate::group::{Cgroup, for_each_below};
use failpoint::step;
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
        if frozen {
            self.thaw()?;
        }
        killed
    }

    /// Thaws the group and those below it, of which one may have been frozen (paused) by itself.
    fn thaw(&self) -> Result<()> {
        let (name, value) = freezer_file(self.hierarchy.is_v2(), false);
        let Some(folder) = self.path_of("freezer") else { return Ok(()) };
        for_each_below(&folder, &mut |folder| match write(&folder.join(name), value) {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        })
    }

    fn kill_process(&self, pid: i32) -> Result<()> {
        match step!("cgroup: kill process", kill(Pid::from_raw(pid), Signal::SIGKILL)) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(Error::Kill { path: self.some_folder(), pid, source }),
        }
    }

    /// Freezes the group, and tells whether that could be asked for at all. Half frozen is good
    /// enough: the rounds go on.
    fn freeze(&self) -> bool {
        let Some(folder) = self.path_of("freezer") else { return false };
        let (name, value) = freezer_file(self.hierarchy.is_v2(), true);
        if write(&folder.join(name), value).is_err() {
            return false;
        }
        let mut buffer = Buffer::default();
        for _ in 0..FREEZE_TRIES {
            // "FREEZING" until all stand still; reading is what makes version 1 look again.
            // Version 2 answers "1" at once, and kills what is frozen or not alike.
            match buffer.read(&folder, name) {
                Ok(Some(state)) if state.trim() != value => {}
                _ => break,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn some_folder(&self) -> PathBuf {
        self.paths().into_iter().next().unwrap_or_else(|| Path::new(self.name()).to_owned())
    }
}

/// The file that freezes or thaws, and what to write into it.
const fn freezer_file(v2: bool, freeze: bool) -> (&'static str, &'static str) {
    match (v2, freeze) {
        (true, true) => ("cgroup.freeze", "1"),
        (true, false) => ("cgroup.freeze", "0"),
        (false, true) => ("freezer.state", "FROZEN"),
        (false, false) => ("freezer.state", "THAWED"),
    }
}
