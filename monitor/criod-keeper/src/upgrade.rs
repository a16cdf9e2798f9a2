//! Becoming another build in place (`UPGRADE`): same process, same children, same descriptors.
//!
//! ```text
//!             snapshot                exit 0               execve
//! UPGRADE ─▶ `--check-state`, a child ──────▶ hand over ───────────▶ the successor answers
//!               │ refuses, crashes, hangs for 3 s      │ fails
//!               ▼                                      ▼
//!             ERR: this program goes on, and nothing has changed
//! ```
//! While the child is at work requests are answered as ever. What is checked is executed: one open
//! file. A successor that dies is a keeper that has died, which is survived.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use sys::replace::{inherited, memory_file, read_all};

use crate::exits::Exits;
use crate::handover;
use crate::server::{Keeper, Options, Parts, exits_file};

/// How long a program may take to say whether it could go on from here.
const CHECK: Duration = Duration::from_secs(3);
/// How much of what a refusing program says is passed on, in bytes.
const MOST_SAID: usize = 1 << 10;

/// An upgrade under way.
#[derive(Debug)]
pub(crate) struct Upgrade {
    path: String,
    program: File,
    /// What the check says on its stderr.
    said: File,
    pid: i32,
    /// The connection that asked.
    key: u64,
    /// In nanoseconds of boot time; `None`: it has been killed.
    deadline: Option<i64>,
}

impl Upgrade {
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Milliseconds that the check has left.
    pub(crate) fn left(&self) -> u16 {
        let nanos = self.deadline.map_or(i64::MAX, |d| d - sys::clock::boottime());
        u16::try_from(nanos.max(0) / 1_000_000 + 1).unwrap_or(u16::MAX)
    }
}

impl Keeper {
    pub(crate) fn begin_upgrade(&mut self, key: u64, path: &str) -> Result<(), String> {
        if let Some(upgrade) = &self.upgrade {
            return Err(format!("an upgrade to {} is under way", upgrade.path));
        }
        let failed = |e: io::Error| format!("{path}: {e}");
        let program = sys::replace::open(Path::new(path)).map_err(failed)?;
        let snapshot = memory_file("handover", self.give(key).0.as_bytes()).map_err(failed)?;
        let said = memory_file("said", b"").map_err(failed)?;
        let stderr = said.try_clone().map_err(failed)?;
        let args = ["--check-state".as_ref()];
        let child = sys::replace::spawn(&program, path.as_ref(), &args, snapshot, stderr);
        let pid = child.and_then(|c| i32::try_from(c.id()).map_err(io::Error::other));
        let pid = pid.map_err(failed)?;
        let deadline = Some(sys::clock::deadline(CHECK));
        self.upgrade = Some(Upgrade { path: path.into(), program, said, pid, key, deadline });
        Ok(())
    }

    /// Kills a check whose time is up; its end comes as that of any other.
    pub(crate) fn expire_upgrade(&mut self) {
        if let Some(upgrade) = &mut self.upgrade
            && upgrade.deadline.take_if(|d| *d <= sys::clock::boottime()).is_some()
        {
            sys::proc::kill_tree(upgrade.pid);
        }
    }

    /// The check has ended.
    pub(crate) fn checked(&mut self, status: i32) {
        let Some(upgrade) = self.upgrade.take() else { return };
        let said = read_all(&upgrade.said).unwrap_or_default();
        let said = String::from_utf8_lossy(&said[..said.len().min(MOST_SAID)]);
        let why = match (said.trim(), status & 0x7f, status >> 8 & 0xff) {
            (_, 0, 0) => self.become_it(&upgrade).to_string(),
            (_, 9, _) => "it did not say in time whether it can go on from here".into(),
            ("", 0, code) => format!("it will not go on from here: exit status {code}"),
            (said, 0, _) => format!("it will not go on from here: {said}"),
            (_, signal, _) => format!("it was killed by signal {signal} while it was asked"),
        };
        self.send(upgrade.key, &Err(format!("{}: {why}", upgrade.path)));
    }

    /// Returns only where it fails.
    fn become_it(&self, upgrade: &Upgrade) -> io::Error {
        let (text, mut fds) = self.give(upgrade.key);
        let memory = match memory_file("handover", text.as_bytes()) {
            Ok(memory) => memory,
            Err(e) => return e,
        };
        fds.push(memory.as_fd());
        let Options { socket, cgroups, .. } = &self.options;
        let mut args: Vec<OsString> = vec![upgrade.path.clone().into(), "--socket".into()];
        args.push(socket.into());
        args.extend(cgroups.iter().flat_map(|dir| ["--cgroup".into(), dir.into()]));
        args.extend(["--handover".into(), memory.as_raw_fd().to_string().into()]);
        sys::replace::replace(&upgrade.program, &args, &fds)
    }

    /// This process has been another program until now: goes on from where that stood.
    pub(crate) fn resume(options: &Options, number: RawFd) -> io::Result<Keeper> {
        let _ = nix::sys::prctl::set_name(c"criod-keeper");
        let memory = File::from(inherited(number)?);
        let given = handover::read(read_all(&memory)?).map_err(io::Error::other)?;
        let file = File::from(inherited(given.exits_file)?);
        let mut keeper = Keeper::make(
            options,
            Parts {
                listener: inherited(given.listener)?,
                place: given.place,
                exits: Exits::take(&exits_file(options), file, given.exits),
                soft_files: given.soft_files,
            },
        )?;
        keeper.next_conn = given.next_conn;
        for (id, name, fd) in given.spares {
            keeper.spares.entry(id).or_default().insert(name, inherited(fd)?);
        }
        keeper.watched = given.watched.into_iter().collect();
        for (key, fd) in given.conns {
            keeper.take_conn(key, inherited(fd)?.into())?;
        }
        // Those that have ended in between, for the signal of it may have been taken already.
        keeper.reap();
        let version = vec![env!("CARGO_PKG_VERSION").to_owned()];
        keeper.send(given.asked, &Ok((version, Vec::new())));
        Ok(keeper)
    }
}

/// `--check-state`: whether this program could go on from what comes as stdin.
pub(crate) fn check() -> Result<(), String> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let bytes = stdin.and_then(|f| read_all(&f)).map_err(|e| e.to_string())?;
    handover::read(bytes).map(drop)
}
