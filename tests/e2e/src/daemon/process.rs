//! A criod that runs: one that the test has started, or one that took over from another.
//!
//! Which of several is the one is the kernel's word: it is the one that has the lock on runroot.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, ExitStatus};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Criod, processes};
use crate::eventually;

/// A process that is a criod, or was one.
#[derive(Debug)]
pub enum Process {
    /// The test's own child.
    Child(Child),
    /// Somebody else's: its pid, and a pidfd.
    Other(i32, OwnedFd),
}

impl Process {
    /// The process of this pid; `None` where there is none.
    pub fn other(pid: i32) -> Option<Process> {
        sys::pidfd::open(pid).ok().map(|fd| Process::Other(pid, fd))
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        match self {
            Process::Child(child) => child.id().cast_signed(),
            Process::Other(pid, _) => *pid,
        }
    }

    /// Sends a signal; nothing happens where it has ended.
    pub fn signal(&self, signal: Signal) {
        match self {
            // Its pid is its own until it is waited for, and then this is not called.
            Process::Child(child) => drop(kill(Pid::from_raw(child.id().cast_signed()), signal)),
            Process::Other(_, fd) => drop(sys::pidfd::send_signal(fd.as_fd(), signal as i32)),
        }
    }

    /// Whether it has ended, and how, where that can be known.
    pub fn ended(&mut self) -> Option<Option<ExitStatus>> {
        match self {
            Process::Child(child) => child.try_wait().unwrap().map(Some),
            Process::Other(pid, _) => {
                let gone = sys::proc::stat(*pid).is_none_or(|s| s.state == b'Z');
                gone.then_some(None)
            }
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        eventually("criod ends", || self.ended())
    }

    /// SIGKILL, and its end.
    pub fn kill9(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::SIGKILL);
            self.wait();
        }
    }
}

impl Criod {
    /// Pid of the one that has the lock on runroot.
    pub fn owner(&self) -> Option<i32> {
        let inode = fs::metadata(self.dir.join("run/lock")).ok()?.ino();
        let ours: Vec<i32> = self.criods();
        let locks = fs::read_to_string("/proc/locks").unwrap();
        // 1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF
        let mut held = locks.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let of = fields.get(5)?.rsplit(':').next()?.parse::<u64>().ok()?;
            let pid = fields.get(4)?.parse::<i32>().ok()?;
            (fields[1] == "FLOCK" && of == inode && ours.contains(&pid)).then_some(pid)
        });
        held.next()
    }

    /// Pids of all that are criods of this folder, whatever they are doing.
    pub fn criods(&self) -> Vec<i32> {
        let listen = format!("--listen {}", self.dir.join("criod.sock").display());
        processes(&listen).into_iter().map(|p| p.0).collect()
    }

    /// SIGHUP, and the successor serves. Gives the one before, which may still live.
    pub fn reload(&mut self) -> Process {
        let before = self.process.take().expect("criod runs");
        before.signal(Signal::SIGHUP);
        let taken = || self.owner().filter(|pid| *pid != before.pid()).and_then(Process::other);
        let successor = eventually("a successor takes over", taken);
        self.process = Some(successor);
        self.ready();
        before
    }

    /// Takes whatever criod serves now, after the one before has ended; starts one where none does.
    pub fn settle(&mut self) {
        drop(self.process.take());
        let found = eventually("one criod serves, or none is left", || {
            let (all, owner) = (self.criods(), self.owner());
            match owner {
                Some(pid) if all == [pid] => Some(Process::other(pid)),
                None if all.is_empty() => Some(None),
                _ => None,
            }
        });
        match found {
            Some(process) => self.process = Some(process),
            None => self.launch(),
        }
        self.ready();
    }
}
