//! Becoming another build in place (`Upgrade`): same process, same children, same connections.
//!
//! ```text
//!            snapshot             exit 0           stands still            execve
//! Upgrade ─▶ `--check-state` as ─────────▶ log ──────────────────▶ hand  ────────▶ the successor
//!            a child of ours              thread                    over            answers
//!               │ refuses, crashes,         │ is stuck in a sick       │ fails
//!               ▼ hangs for 5 s             ▼ file system for 5 s      ▼
//!             refusal: this program goes on, and nothing has changed
//! ```
//! What is checked is executed: one open file, whatever happens to its name meanwhile. While it is
//! checked and the log thread comes to a stand everything else goes on. A successor that dies after
//! the execve is a monitor that has died, which is survived (module `takeover`).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use api_monitor::monitor::{UpgradeRequest, UpgradeResponse};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use protobuf::Message;

use crate::handover;
use crate::life::Job;
use crate::logger::{Command, Stand};
use crate::monitor::Monitor;
use crate::output::Source;
use crate::rpc::{Code, Refusal, Waiter};

/// How long the log thread may take to come to a stand.
const STAND: Duration = Duration::from_secs(5);
/// What the process is called in lists, which would have it that of a descriptor.
const NAME: &str = "criod-monitor";
/// How much of what a refusing program says is passed on, in bytes.
const MOST_SAID: usize = 1 << 10;

/// An upgrade under way.
pub(crate) struct Upgrade {
    path: String,
    program: File,
    /// What the check says on its stderr.
    said: File,
    waiters: Vec<Waiter>,
}

impl Monitor {
    pub(crate) fn upgrade(&mut self, waiter: Waiter, asked: UpgradeRequest) -> Result<(), Refusal> {
        let not_now = |text: String| Err(Refusal::new(Code::FailedPrecondition, text));
        if self.ending {
            return not_now(format!("container {} has been deleted", self.config.id));
        }
        if let Some(upgrade) = &mut self.upgrade {
            if upgrade.path != asked.program {
                return not_now(format!("an upgrade to {} is under way", upgrade.path));
            }
            upgrade.waiters.push(waiter);
            return Ok(());
        }
        match self.begin_upgrade(&asked.program) {
            Ok((program, said)) => {
                let (path, waiters) = (asked.program, vec![waiter]);
                self.upgrade = Some(Upgrade { path, program, said, waiters });
                Ok(())
            }
            Err(e) => not_now(format!("{}: {e}", asked.program)),
        }
    }

    /// Has the program look at what it would go on from.
    fn begin_upgrade(&mut self, path: &str) -> io::Result<(File, File)> {
        let program = sys::replace::open(Path::new(path))?;
        self.state.save()?;
        let (snapshot, _) = self.give(Stand::default());
        let snapshot = sys::replace::memory_file("handover", &snapshot.write_to_bytes()?)?;
        let said = sys::replace::memory_file("said", b"")?;
        let args = ["--check-state".as_ref(), self.dir.as_os_str()];
        let stderr = said.try_clone()?;
        let child = sys::replace::spawn(&program, path.as_ref(), &args, snapshot, stderr)?;
        self.add_job(i32::try_from(child.id()).map_err(io::Error::other)?, Job::Check);
        Ok((program, said))
    }

    /// The check has ended.
    pub(crate) fn checked(&mut self, status: i32) {
        let Some(upgrade) = &self.upgrade else { return };
        if status == 0 {
            self.timers.upgrade = Some(sys::clock::deadline(STAND));
            self.logger.send(Command::Pause);
            return;
        }
        let said = sys::replace::read_all(&upgrade.said).unwrap_or_default();
        let said = String::from_utf8_lossy(&said[..said.len().min(MOST_SAID)]);
        let why = match (said.trim(), status & 0x7f) {
            (_, 9) => "it did not say in time whether it can go on from here".into(),
            ("", 0) => format!("it will not go on from here: exit status {}", status >> 8 & 0xff),
            (said, 0) => format!("it will not go on from here: {said}"),
            (_, signal) => format!("it was killed by signal {signal} while it was asked"),
        };
        self.upgrade_refused(&why);
    }

    /// The log thread has not come to a stand in time.
    pub(crate) fn upgrade_late(&mut self) {
        self.logger.send(Command::Go);
        self.upgrade_refused("the log cannot be written at the moment");
    }

    /// The log thread stands still: now, or never.
    pub(crate) fn log_stands(&mut self) {
        // What it has been sent since comes first; then it says so again.
        let Some(stand) = self.logger.stands() else { return };
        self.timers.upgrade = None;
        if self.upgrade.is_some() {
            let why = if self.ending {
                "the container has been deleted".to_owned()
            } else if self.execs.any_held() || self.sources.iter().any(Source::is_held) {
                // What it would take on its way would be in nobody's spool, if it came at all.
                "a process of the container holds one of its pipes".to_owned()
            } else {
                self.become_it(stand).to_string()
            };
            self.upgrade_refused(&why);
        }
        self.logger.send(Command::Go);
    }

    /// Returns only where it fails.
    fn become_it(&self, stand: Stand) -> io::Error {
        let Some(upgrade) = &self.upgrade else { return io::ErrorKind::NotFound.into() };
        let (given, mut fds) = self.give(stand);
        let bytes = given.write_to_bytes().map_err(io::Error::from);
        let memory = match bytes.and_then(|b| sys::replace::memory_file("handover", &b)) {
            Ok(memory) => memory,
            Err(e) => return e,
        };
        fds.0.push(memory.as_fd());
        let args: [OsString; 5] = [
            upgrade.path.clone().into(),
            "--dir".into(),
            self.dir.clone().into(),
            "--handover".into(),
            memory.as_raw_fd().to_string().into(),
        ];
        sys::replace::replace(&upgrade.program, &args, &fds.0)
    }

    pub(crate) fn upgrade_refused(&mut self, why: &str) {
        let Some(upgrade) = self.upgrade.take() else { return };
        self.timers.upgrade = None;
        let refusal = Refusal::new(Code::FailedPrecondition, format!("{}: {why}", upgrade.path));
        self.answer_all(upgrade.waiters, Err(refusal));
    }

    /// Who waits for an upgrade.
    pub(crate) fn upgrading(&self) -> &[Waiter] {
        self.upgrade.as_ref().map_or(&[], |u| &u.waiters)
    }

    /// This process has been another program until now: goes on from where that stood.
    pub(crate) fn resume(dir: std::path::PathBuf, memory: OwnedFd) -> io::Result<Monitor> {
        let _ = nix::sys::prctl::set_name(c"criod-monitor");
        let mut given = handover::read(&File::from(memory))?;
        let mut monitor = Monitor::handed_over(dir, &mut given)?;
        let waiters = monitor.take(given)?;
        monitor.save();
        // What has ended in between, for the signal of it may have been taken already.
        monitor.reap();
        let now = &monitor.state.now;
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let ours = || waitid(Id::Pid(Pid::from_raw(now.pid)), peek) != Err(Errno::ECHILD);
        if now.pid > 0 && now.exit.is_none() && !ours() {
            monitor.adopt_init();
        }
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let answer = UpgradeResponse { version, ..UpgradeResponse::new() };
        monitor.answer_all(waiters, Ok(&answer));
        Ok(monitor)
    }
}

/// `--check-state`: says why not on stderr.
pub(crate) fn check_state(dir: &Path) -> Result<(), String> {
    let memory = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    memory.and_then(|m| handover::check(dir, &m)).map_err(|e| format!("{NAME}: {e}"))
}
