//! The way down: stop, exit, the last output, delete.
//!
//! ```text
//!  Stop ─▶ signal ──deadline──▶ SIGKILL, again and again ─▶ init ends
//!                                                             │ status noted, then reaped
//!          DRAINING ◀────────────────────────────────────────┘
//!             │ last output is in the spool (at most 1 s), then in the log (at most 5 s)
//!             ▼
//!          EXITED ──Delete──▶ `runtime delete`, the cgroup is empty ─▶ DELETED, the monitor ends
//! ```
//! Stopping is no phase: it is a deadline beside it. Until the deadline init has had its signal;
//! from then on it gets SIGKILL until it is gone. A later Stop can only bring the deadline nearer.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use api_monitor::monitor::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use protobuf::MessageField;

use crate::cgroup;
use crate::life::Job;
use crate::logger::Command;
use crate::monitor::Monitor;
use crate::rpc::{Code, Refusal, Waiter};
use crate::runtime::{self, Stdio3};

/// How long what init left in its pipes is waited for.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a log that cannot be written holds up the news of init's end.
const FLUSH: Duration = Duration::from_secs(5);
/// Between two SIGKILLs: first, then ever longer up to the second.
const KILL_FIRST: Duration = Duration::from_millis(100);
const KILL_LAST: Duration = Duration::from_secs(5);
/// How often, and how far apart, what is left in the cgroup after `runtime delete` is killed.
const LEFTOVER_ROUNDS: u32 = 50;
const LEFTOVER_PAUSE: Duration = Duration::from_millis(5);
/// How long a container that was started just now may take to heed a signal, and how often it is
/// looked whether it does.
const YOUNG: Duration = Duration::from_secs(5);
const HEED_PAUSE: Duration = Duration::from_millis(20);
/// The exit code of a container that could not be started, as other runtimes have it.
pub(crate) const START_FAILED: i32 = 128;
/// What is said of a log that could not be written in time, until it is written.
const LATE_LOG: &str = "the log was still being written when the end was told";

impl Monitor {
    // --- stop

    /// Begins to stop, or brings the deadline nearer.
    pub(crate) fn stop(&mut self, signal: i32, timeout: Duration) -> Result<(), Refusal> {
        if self.state.now.exit.is_some() {
            return Ok(());
        }
        match self.phase() {
            Phase::PHASE_RUNNING | Phase::PHASE_STARTING => {}
            // Init waits to be started and would not heed a signal.
            Phase::PHASE_CREATED => {
                self.kill_now();
                return Ok(());
            }
            Phase::PHASE_NEW | Phase::PHASE_CREATING => {
                let text = format!("container {} is being created", self.config.id);
                return Err(Refusal::new(Code::FailedPrecondition, text));
            }
            _ => return Ok(()),
        }
        let deadline = sys::clock::deadline(timeout);
        let first = self.state.now.stopping.is_none();
        if first {
            self.state.now.stopping = MessageField::some(Stopping {
                deadline,
                boot_id: sys::clock::boot_id().unwrap_or_default(),
                signal,
                ..Stopping::new()
            });
        } else if let Some(stopping) = self.state.now.stopping.as_mut() {
            stopping.deadline = stopping.deadline.min(deadline);
        }
        self.save();
        if timeout.is_zero() {
            self.kill_now();
            return Ok(());
        }
        if first {
            self.send_stop_signal();
        }
        let due = self.state.now.stopping.as_ref().map(|s| s.deadline);
        self.timers.kill = self.timers.kill.into_iter().chain(due).min();
        Ok(())
    }

    /// Sends the signal that asks init to end, and notes that it is out; or does so later, where it
    /// would be lost.
    pub(crate) fn send_stop_signal(&mut self) {
        let Some(signal) = self.state.now.stopping.as_ref().map(|s| s.signal) else { return };
        if self.state.now.exit.is_some() {
            return;
        }
        if self.would_be_lost(signal) {
            self.timers.heed = Some(sys::clock::deadline(HEED_PAUSE));
            return;
        }
        self.signal(signal);
        if let Some(stopping) = self.state.now.stopping.as_mut() {
            stopping.sent = true;
        }
        self.save();
    }

    /// The kernel drops a signal for the first process of a pid namespace that has no handler for
    /// it, and one that was started just now may be about to have one.
    fn would_be_lost(&self, signal: i32) -> bool {
        let age = sys::clock::realtime().saturating_sub(self.state.now.started_at);
        let young = u64::try_from(age).is_ok_and(|age| Duration::from_nanos(age) < YOUNG);
        let pid = self.state.now.pid;
        // What the runtime's own program in its place has handlers for says nothing.
        let runtime =
            || self.before_start.is_some() && sys::proc::program(pid) == self.before_start;
        young
            && !self.config.shared_pid
            && self.config.direct_signal
            && signal != Signal::SIGKILL as i32
            && (runtime() || sys::proc::catches(pid, signal) == Some(false))
    }

    fn signal(&mut self, signal: i32) {
        match (&self.init, self.config.direct_signal) {
            (Some(init), true) => {
                // ESRCH: it has ended, and that is on its way to us.
                let _ = sys::pidfd::send_signal(init.as_fd(), signal);
            }
            _ => {
                let id = self.config.id.clone();
                let number = signal.to_string();
                // `kill ID SIGNAL`: the id stands before the signal.
                if let Err(e) = self.run_kill(&id, &number) {
                    eprintln!("criod-monitor: {id}: runtime kill: {e}");
                }
            }
        }
    }

    fn run_kill(&mut self, id: &str, signal: &str) -> io::Result<()> {
        let mut config = self.config.clone();
        config.id = signal.to_owned();
        let log = self.dir.join("kill.log");
        let pid = runtime::spawn(&config, &log, &["kill", id], Stdio3::default())?;
        self.add_job(pid, Job::Kill);
        Ok(())
    }

    /// SIGKILL, and again after a while until init is gone.
    pub(crate) fn kill_now(&mut self) {
        if self.state.now.exit.is_some() {
            return;
        }
        if let Some(status) = self.unreapable() {
            self.note_exit(status, sys::clock::realtime(), false);
            return self.init_ended();
        }
        if let Some(init) = &self.init {
            let _ = sys::pidfd::send_signal(init.as_fd(), Signal::SIGKILL as i32);
        }
        if !self.config.direct_signal && !self.runs(Job::Kill) {
            self.signal(Signal::SIGKILL as i32);
        }
        // The first SIGKILL gets a moment; what outlives it may be frozen, or share a pid
        // namespace.
        if self.config.shared_pid || !self.timers.patience.is_zero() {
            cgroup::kill_all(&self.config.cgroups);
        }
        self.timers.patience = (self.timers.patience * 2).clamp(KILL_FIRST, KILL_LAST);
        self.timers.kill = Some(sys::clock::deadline(self.timers.patience));
    }

    /// How init ended, where it has and somebody who traces it keeps the news from its parent.
    fn unreapable(&self) -> Option<i32> {
        let init = self.init.as_ref()?;
        let mut fds = [PollFd::new(init.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO) != Ok(1) {
            return None;
        }
        let now = &self.state.now;
        let there = |s: &sys::proc::Stat| s.state == b'Z' && s.start_time == now.pid_start_time;
        sys::proc::stat(now.pid).filter(there).map(|s| s.exit_code)
    }

    // --- exit

    /// Writes down how init ended; it is still to be reaped.
    pub(crate) fn note_exit(&mut self, status: i32, time: i64, unknown: bool) {
        if self.state.now.exit.is_some() {
            return;
        }
        let signal = status & 0x7f;
        let code = match signal {
            _ if unknown => 255,
            // A container that could not be started has failed, whatever ended its init.
            _ if self.state.now.started_at == 0 && !self.state.now.error.is_empty() => START_FAILED,
            0 => status >> 8 & 0xff,
            signal => 128 + signal,
        };
        self.state.now.exit = MessageField::some(Exit {
            code,
            signal,
            oom: cgroup::oom_kills(&self.config.cgroups) > 0,
            finished_at: time,
            unknown,
            ..Exit::new()
        });
        self.save();
    }

    /// Init is gone, and how it ended is written down.
    pub(crate) fn init_ended(&mut self) {
        self.timers.kill = None;
        self.timers.heed = None;
        self.init = None;
        // There is nothing left whose limits could be changed.
        self.hurry(Job::Update, Duration::ZERO);
        if self.phase() == Phase::PHASE_STARTING {
            // The call that is under way goes on from there.
            self.late(Job::Start);
        } else {
            self.begin_drain();
        }
        self.kill_sessions(false);
    }

    pub(crate) fn begin_drain(&mut self) {
        self.set_phase(Phase::PHASE_DRAINING);
        // It ended while its log was being opened: there is nothing left to start.
        let waiters = std::mem::take(&mut self.waiters.start);
        if !waiters.is_empty() {
            let why = format!("container {} has ended before it was started", self.config.id);
            self.answer_all(waiters, Err(Refusal::new(Code::FailedPrecondition, why)));
        }
        if self.config.shared_pid {
            cgroup::kill_all(&self.config.cgroups);
        }
        self.pump_tty();
        for source in &mut self.sources {
            source.fix_target();
        }
        self.timers.drain = Some(sys::clock::deadline(DRAIN));
        self.pump(0);
        self.pump(1);
        self.check_drained();
    }

    /// Is all that init left in the spools? Then it is to go into the log.
    ///
    /// What a terminal still holds nobody can tell: only its end is the end.
    pub(crate) fn check_drained(&mut self) {
        let complete = self.tty.is_none() && self.sources.iter().all(|s| s.complete());
        if self.timers.drain.is_some() && complete {
            self.begin_flush();
        }
    }

    pub(crate) fn begin_flush(&mut self) {
        self.timers.drain = None;
        self.end_clients();
        self.timers.flush = Some(sys::clock::deadline(FLUSH));
        self.logger.send(Command::Flush(self.sources.each_ref().map(|s| s.end())));
    }

    /// Init has ended and its output is in the log: the news may spread.
    pub(crate) fn exited(&mut self) {
        if self.timers.flush.take().is_none() {
            if self.state.now.lost == LATE_LOG {
                self.state.now.lost.clear();
                self.save();
            }
            return;
        }
        self.set_phase(Phase::PHASE_EXITED);
        self.news();
    }

    /// The log cannot be written in time: that must not hold up the news of init's end.
    pub(crate) fn exited_before_log(&mut self) {
        self.timers.flush = Some(0);
        if self.state.now.lost.is_empty() {
            self.state.now.lost = LATE_LOG.into();
        }
        self.exited();
    }

    /// Tells those who wait for the end.
    pub(crate) fn news(&mut self) {
        let state = self.state.now.clone();
        let waiters = std::mem::take(&mut self.waiters.wait);
        self.answer_all(waiters, Ok(&state));
        if !self.waiters.delete.is_empty() {
            self.begin_delete();
        }
    }

    pub(crate) fn wait(&mut self, waiter: Waiter) {
        match self.phase() {
            Phase::PHASE_EXITED | Phase::PHASE_FAILED | Phase::PHASE_DELETED => {
                let state = self.state.now.clone();
                self.answer(waiter, Ok(&state));
            }
            _ => self.waiters.wait.push(waiter),
        }
    }

    // --- delete

    pub(crate) fn delete(&mut self, waiter: Waiter) {
        self.waiters.delete.push(waiter);
        if self.waiters.delete.len() > 1 {
            return;
        }
        match self.phase() {
            Phase::PHASE_NEW | Phase::PHASE_EXITED | Phase::PHASE_FAILED => self.begin_delete(),
            Phase::PHASE_DELETED => self.deleted(),
            // All go on to `begin_delete` when they are over.
            Phase::PHASE_CREATING if self.runs(Job::Create) => {
                self.state.now.error = "deleted while it was being created".into();
                self.hurry(Job::Create, Duration::ZERO);
            }
            Phase::PHASE_CREATING => {}
            _ => self.kill_now(),
        }
    }

    pub(crate) fn begin_delete(&mut self) {
        if self.runs(Job::Delete) {
            return;
        }
        self.kill_execs();
        self.kill_sessions(true);
        if self.config.shared_pid {
            cgroup::kill_all(&self.config.cgroups);
        }
        if let Err(e) = self.run_job(Job::Delete, &["delete", "--force"], Stdio3::default()) {
            self.delete_failed(e.to_string());
        }
    }

    pub(crate) fn delete_done(&mut self, status: i32) {
        if status != 0 {
            let text = runtime::failure(&self.config, "delete", status, &self.runtime_log());
            // What is not there needs no deleting.
            if !text.contains("does not exist") && !text.contains("No such file") {
                return self.delete_failed(text);
            }
        }
        self.leftovers = LEFTOVER_ROUNDS;
        self.kill_leftovers();
    }

    /// The runtime is done; what outlived it goes the hard way.
    pub(crate) fn kill_leftovers(&mut self) {
        if self.leftovers > 0 && cgroup::kill_all(&self.config.cgroups) {
            self.leftovers -= 1;
            self.timers.leftover = Some(sys::clock::deadline(LEFTOVER_PAUSE));
            return;
        }
        self.deleted();
    }

    fn deleted(&mut self) {
        self.keeper.drop_all();
        self.set_phase(Phase::PHASE_DELETED);
        self.end_sessions();
        let answer = DeleteResponse {
            state: MessageField::some(self.state.now.clone()),
            ..DeleteResponse::new()
        };
        let waiters = std::mem::take(&mut self.waiters.delete);
        self.answer_all(waiters, Ok(&answer));
        self.upgrade_refused("the container has been deleted");
        self.ending = true;
    }

    fn delete_failed(&mut self, text: String) {
        let waiters = std::mem::take(&mut self.waiters.delete);
        self.answer_all(waiters, Err(Refusal::new(Code::Unknown, text)));
    }
}
