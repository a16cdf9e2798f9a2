//! The container's phases.
//!
//! ```text
//!          Create            done          Start           done
//!   NEW ──────────▶ CREATING ────▶ CREATED ─────▶ STARTING ────▶ RUNNING
//!                      │ fails        │ init ends     │ init ends    │ init ends: status noted,
//!                      ▼              ▼               ▼              ▼        then reaped
//!                   FAILED         DRAINING ◀──────────────────── DRAINING
//!                                     │ last output is in the spool (at most 1 s), then in the
//!                                     ▼ log (at most 5 s)
//!                                  EXITED ──Delete──▶ DELETED, and the monitor ends
//! ```
//! Stopping is no phase: it is a deadline beside it. Until the deadline init has had its signal;
//! from then on it gets SIGKILL again and again until it is gone. A later Stop can only bring the
//! deadline nearer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use api_monitor::monitor::*;
use nix::sys::signal::Signal;
use protobuf::{EnumOrUnknown, MessageField};

use crate::cgroup;
use crate::logger::Command;
use crate::monitor::Monitor;
use crate::output::Tty;
use crate::poller::Token;
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
/// The exit code of a container that could not be started, as other runtimes have it.
const START_FAILED: i32 = 128;

/// A runtime call under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    Create,
    Start,
    Kill,
    Delete,
    /// `delete --force` after a create that failed.
    Cleanup,
    /// `delete --force` after a create that a predecessor began; then it may begin again.
    Restart,
    /// `state`, to learn whether a predecessor's start had been.
    Query,
    Exec(u32),
}

/// Calls that wait for the container.
#[derive(Default)]
pub(crate) struct Waiters {
    pub(crate) create: Vec<Waiter>,
    pub(crate) start: Vec<Waiter>,
    pub(crate) wait: Vec<Waiter>,
    pub(crate) reopen: Vec<Waiter>,
    pub(crate) delete: Vec<Waiter>,
}

/// Deadlines in nanoseconds of boot time.
#[derive(Default)]
pub(crate) struct Timers {
    pub(crate) keeper: Option<i64>,
    pub(crate) spool: Option<i64>,
    pub(crate) tty: Option<i64>,
    pub(crate) create: Option<i64>,
    pub(crate) kill: Option<i64>,
    pub(crate) drain: Option<i64>,
    pub(crate) flush: Option<i64>,
    /// How long until the next SIGKILL.
    pub(crate) patience: Duration,
}

impl Monitor {
    pub(crate) fn phase(&self) -> Phase {
        self.state.now.phase.enum_value_or_default()
    }

    pub(crate) fn set_phase(&mut self, phase: Phase) {
        self.state.now.phase = EnumOrUnknown::new(phase);
        self.save();
    }

    fn runtime_log(&self) -> PathBuf {
        self.dir.join("runtime.log")
    }

    /// Starts a runtime call whose end comes to [`Monitor::job_done`].
    pub(crate) fn run_job(&mut self, job: Job, verb: &[&str], stdio: Stdio3) -> io::Result<()> {
        let log = match job {
            Job::Exec(n) => self.dir.join(format!("exec-{n}.log")),
            Job::Kill => self.dir.join("kill.log"),
            _ => self.runtime_log(),
        };
        let pid = runtime::spawn(&self.config, &log, verb, stdio)?;
        self.jobs.push((pid, job));
        Ok(())
    }

    pub(crate) fn job_done(&mut self, job: Job, status: i32) {
        match job {
            Job::Create => self.create_done(status),
            Job::Start => self.start_done(status),
            Job::Kill => {}
            Job::Delete => self.delete_done(status),
            Job::Cleanup => self.cleaned_up(),
            Job::Restart => {
                self.state.now = StateResponse {
                    version: self.state.now.version.clone(),
                    monitor_pid: self.state.now.monitor_pid,
                    ..StateResponse::new()
                };
                self.save();
                if !self.waiters.create.is_empty() {
                    self.begin_create();
                }
            }
            Job::Query => self.queried(status),
            Job::Exec(n) => self.exec_started(n, status),
        }
    }

    // --- create

    pub(crate) fn create(&mut self, waiter: Waiter) {
        match self.phase() {
            Phase::PHASE_NEW => {
                self.waiters.create.push(waiter);
                self.begin_create();
            }
            Phase::PHASE_CREATING => self.waiters.create.push(waiter),
            Phase::PHASE_FAILED => {
                let text = self.state.now.error.clone();
                self.answer(waiter, Err(Refusal::new(Code::Unknown, text)));
            }
            _ => {
                let pid = self.state.now.pid;
                self.answer(waiter, Ok(&CreateResponse { pid, ..CreateResponse::new() }));
            }
        }
    }

    fn begin_create(&mut self) {
        self.set_phase(Phase::PHASE_CREATING);
        if let Err(e) = self.try_create() {
            self.create_failed(e.to_string());
        }
    }

    fn try_create(&mut self) -> io::Result<()> {
        let mut stdio = Stdio3::default();
        let pid_file = self.dir.join("pid");
        let console = self.dir.join("console.sock");
        let bundle = self.config.bundle.clone();
        let pid_file_arg = pid_file.to_string_lossy().into_owned();
        let console_arg = console.to_string_lossy().into_owned();
        let mut verb = vec!["create", "--bundle", &bundle, "--pid-file", &pid_file_arg];
        // A runtime that was killed may have left either.
        for name in ["pid", ".pid"] {
            match std::fs::remove_file(self.dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        let (out, out_end) = sys::pipe::for_container()?;
        if self.config.terminal {
            let _ = std::fs::remove_file(&console);
            let (short, _folder) = sys::seqpacket::short_path(&console)?;
            let listener = std::os::unix::net::UnixListener::bind(short)?;
            listener.set_nonblocking(true)?;
            self.poller.add(&listener, Token::Console)?;
            self.console = Some(listener.into());
            sys::pipe::set_nonblocking(out_end.as_fd())?;
            self.tty_pipe = Some(out_end);
            verb.extend(["--console-socket", &console_arg]);
        } else {
            let (err, err_end) = sys::pipe::for_container()?;
            stdio.stdout = Some(out_end);
            stdio.stderr = Some(err_end);
            if self.config.stdin {
                let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
                stdio.stdin = Some(read);
                self.stdin = Some(write);
            }
            self.sources[1].attach(err, &self.poller)?;
        }
        self.sources[0].attach(out, &self.poller)?;
        self.run_job(Job::Create, &verb, stdio)?;
        if let Some((pid, _)) = self.jobs.last() {
            self.state.now.runtime_pid = *pid;
        }
        if self.config.create_timeout_ms > 0 {
            let limit = Duration::from_millis(self.config.create_timeout_ms);
            self.timers.create = Some(sys::clock::deadline(limit));
        }
        self.save();
        Ok(())
    }

    /// The runtime has connected to the console socket: takes the terminal from it.
    pub(crate) fn take_console(&mut self) {
        let Some(listener) = &self.console else { return };
        let Ok(conn) = sys::seqpacket::accept(listener.as_fd()) else { return };
        // The runtime sends at once after it has connected; wait for that, but not for ever.
        let mut fds = [nix::poll::PollFd::new(conn.as_fd(), nix::poll::PollFlags::POLLIN)];
        let _ = nix::poll::poll(&mut fds, 1000u16);
        match conn.recv_fd() {
            Ok(master) => {
                if let Err(e) = self.attach_tty(master) {
                    eprintln!("criod-monitor: {}: terminal: {e}", self.config.id);
                }
            }
            Err(e) => eprintln!("criod-monitor: {}: console socket: {e}", self.config.id),
        }
    }

    fn attach_tty(&mut self, master: OwnedFd) -> io::Result<()> {
        let Some(pipe) = self.tty_pipe.take() else { return Ok(()) };
        sys::pipe::set_nonblocking(master.as_fd())?;
        self.poller.add(&master, Token::Tty)?;
        self.tty = Some(Tty { master, pipe });
        self.close_console();
        Ok(())
    }

    fn close_console(&mut self) {
        if let Some(listener) = self.console.take() {
            self.poller.remove(&listener);
            let _ = std::fs::remove_file(self.dir.join("console.sock"));
        }
    }

    fn create_done(&mut self, status: i32) {
        self.timers.create = None;
        self.state.now.runtime_pid = 0;
        if status != 0 {
            let text = runtime::failure(&self.config, "create", status, &self.runtime_log());
            return self.create_failed(text);
        }
        if self.config.terminal && self.tty.is_none() {
            self.take_console();
            if self.tty.is_none() {
                return self.create_failed("the runtime sent no terminal".into());
            }
        }
        let pid = match runtime::pid_from(&self.dir.join("pid")) {
            Ok(pid) => pid,
            Err(e) => return self.create_failed(format!("pid file: {e}")),
        };
        self.state.now.pid = pid;
        self.state.now.created_at = sys::clock::realtime();
        self.state.now.pid_start_time = sys::proc::stat(pid).map_or(0, |s| s.start_time);
        self.init = sys::pidfd::open(pid).ok();
        self.set_phase(Phase::PHASE_CREATED);
        self.hand_spares();
        let waiters = std::mem::take(&mut self.waiters.create);
        self.answer_all(waiters, Ok(&CreateResponse { pid, ..CreateResponse::new() }));
        // It may have ended in the meantime.
        if let Some(at) = self.strays.iter().position(|(p, _)| *p == pid) {
            let (_, status) = self.strays.swap_remove(at);
            self.note_exit(status, sys::clock::realtime(), false);
            self.init_ended();
        }
    }

    pub(crate) fn create_timed_out(&mut self) {
        if let Some((pid, _)) = self.jobs.iter().find(|(_, j)| *j == Job::Create) {
            self.state.now.error =
                format!("runtime create did not end within {} ms", self.config.create_timeout_ms);
            for pid in sys::proc::tree(*pid) {
                kill(pid);
            }
        }
    }

    fn create_failed(&mut self, text: String) {
        // A time-out has said its reason already.
        if self.state.now.error.is_empty() {
            self.state.now.error = text;
        }
        self.close_console();
        self.stdin = None;
        self.tty_pipe = None;
        self.tty = None;
        for source in &mut self.sources {
            if let Some(pipe) = source.pipe.take() {
                self.poller.remove(&pipe);
            }
        }
        let cleanup = self.run_job(Job::Cleanup, &["delete", "--force"], Stdio3::default());
        if cleanup.is_err() {
            self.cleaned_up();
        }
    }

    fn cleaned_up(&mut self) {
        cgroup::kill_all(&self.config.cgroups);
        self.set_phase(Phase::PHASE_FAILED);
        let refusal = Refusal::new(Code::Unknown, self.state.now.error.clone());
        let waiters = std::mem::take(&mut self.waiters.create);
        self.answer_all(waiters, Err(refusal));
        self.news();
    }

    // --- start

    pub(crate) fn start(&mut self, waiter: Waiter) {
        match self.phase() {
            Phase::PHASE_CREATED if self.waiters.start.is_empty() => {
                self.waiters.start.push(waiter);
                // What a successor will need must be out of our hands before init runs.
                if !self.keeper.connected() && self.keeper.reconnect(&self.poller) {
                    self.hand_spares();
                }
                self.logger.send(Command::Open);
            }
            Phase::PHASE_CREATED | Phase::PHASE_STARTING => self.waiters.start.push(waiter),
            _ if self.state.now.started_at != 0 => {
                let started_at = self.state.now.started_at;
                let answer = StartResponse { started_at, ..StartResponse::new() };
                self.answer(waiter, Ok(&answer));
            }
            phase => {
                let why = match self.state.now.error.as_str() {
                    "" => format!("container {} is {phase:?}, not created", self.config.id),
                    error => error.to_owned(),
                };
                self.answer(waiter, Err(Refusal::new(Code::FailedPrecondition, why)));
            }
        }
    }

    pub(crate) fn log_opened(&mut self, result: Result<(), String>) {
        if self.phase() != Phase::PHASE_CREATED || self.waiters.start.is_empty() {
            return;
        }
        if let Err(text) = result {
            let refusal = Refusal::new(Code::Internal, format!("log: {text}"));
            let waiters = std::mem::take(&mut self.waiters.start);
            return self.answer_all(waiters, Err(refusal));
        }
        self.set_phase(Phase::PHASE_STARTING);
        if let Err(e) = self.run_job(Job::Start, &["start"], Stdio3::default()) {
            self.start_failed(e.to_string());
        }
    }

    fn start_done(&mut self, status: i32) {
        if status != 0 {
            let text = runtime::failure(&self.config, "start", status, &self.runtime_log());
            return self.start_failed(text);
        }
        self.started();
    }

    fn started(&mut self) {
        let started_at = sys::clock::realtime();
        self.state.now.started_at = started_at;
        self.set_phase(Phase::PHASE_RUNNING);
        let waiters = std::mem::take(&mut self.waiters.start);
        let answer = StartResponse { started_at, ..StartResponse::new() };
        self.answer_all(waiters, Ok(&answer));
        if self.state.now.exit.is_some() {
            self.begin_drain();
        }
    }

    fn start_failed(&mut self, text: String) {
        self.state.now.error.clone_from(&text);
        self.set_phase(Phase::PHASE_RUNNING);
        let waiters = std::mem::take(&mut self.waiters.start);
        self.answer_all(waiters, Err(Refusal::new(Code::Unknown, text)));
        match self.state.now.exit.as_mut() {
            Some(exit) => {
                exit.code = START_FAILED;
                self.begin_drain();
            }
            None => self.kill_now(),
        }
    }

    /// A successor has asked the runtime whether the start had been.
    fn queried(&mut self, status: i32) {
        let text = std::fs::read_to_string(self.dir.join("query")).unwrap_or_default();
        let _ = std::fs::remove_file(self.dir.join("query"));
        let says = |word: &str| {
            text.split_once("\"status\"").is_some_and(|(_, rest)| {
                rest.trim_start_matches([':', ' ']).starts_with(&format!("\"{word}\""))
            })
        };
        if status == 0 && says("created") {
            self.set_phase(Phase::PHASE_CREATED);
            if !self.waiters.start.is_empty() {
                self.logger.send(Command::Open);
            }
        } else {
            self.started();
        }
    }

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
            self.signal(signal);
        }
        let due = self.state.now.stopping.as_ref().map(|s| s.deadline);
        self.timers.kill = self.timers.kill.into_iter().chain(due).min();
        Ok(())
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
        self.jobs.push((pid, Job::Kill));
        Ok(())
    }

    /// SIGKILL, and again after a while until init is gone.
    pub(crate) fn kill_now(&mut self) {
        if self.state.now.exit.is_some() {
            return;
        }
        if let Some(init) = &self.init {
            let _ = sys::pidfd::send_signal(init.as_fd(), Signal::SIGKILL as i32);
        }
        if !self.config.direct_signal && !self.jobs.iter().any(|(_, j)| *j == Job::Kill) {
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
        self.init = None;
        if self.config.shared_pid {
            cgroup::kill_all(&self.config.cgroups);
        }
        // Otherwise the call that is under way goes on from there.
        if self.phase() != Phase::PHASE_STARTING {
            self.begin_drain();
        }
    }

    pub(crate) fn begin_drain(&mut self) {
        self.set_phase(Phase::PHASE_DRAINING);
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
    pub(crate) fn check_drained(&mut self) {
        if self.timers.drain.is_some() && self.sources.iter().all(|s| s.complete()) {
            self.begin_flush();
        }
    }

    pub(crate) fn begin_flush(&mut self) {
        self.timers.drain = None;
        self.timers.flush = Some(sys::clock::deadline(FLUSH));
        self.logger.send(Command::Flush(self.sources.each_ref().map(|s| s.end())));
    }

    /// Init has ended and its output is in the log: the news may spread.
    pub(crate) fn exited(&mut self) {
        if self.timers.flush.take().is_none() {
            return;
        }
        self.set_phase(Phase::PHASE_EXITED);
        self.news();
    }

    /// Tells those who wait for the end.
    fn news(&mut self) {
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
            // Both go on to `begin_delete` when they are over.
            Phase::PHASE_CREATING => self.create_timed_out(),
            _ => self.kill_now(),
        }
    }

    fn begin_delete(&mut self) {
        if self.jobs.iter().any(|(_, j)| *j == Job::Delete) {
            return;
        }
        if self.config.shared_pid {
            cgroup::kill_all(&self.config.cgroups);
        }
        if let Err(e) = self.run_job(Job::Delete, &["delete", "--force"], Stdio3::default()) {
            self.delete_failed(e.to_string());
        }
    }

    fn delete_done(&mut self, status: i32) {
        if status != 0 {
            let text = runtime::failure(&self.config, "delete", status, &self.runtime_log());
            // What is not there needs no deleting.
            if !text.contains("does not exist") && !text.contains("No such file") {
                return self.delete_failed(text);
            }
        }
        for _ in 0..LEFTOVER_ROUNDS {
            if !cgroup::kill_all(&self.config.cgroups) {
                break;
            }
            std::thread::sleep(LEFTOVER_PAUSE);
        }
        self.keeper.drop_all();
        self.set_phase(Phase::PHASE_DELETED);
        let answer = DeleteResponse {
            state: MessageField::some(self.state.now.clone()),
            ..DeleteResponse::new()
        };
        let waiters = std::mem::take(&mut self.waiters.delete);
        self.answer_all(waiters, Ok(&answer));
        self.ending = true;
    }

    fn delete_failed(&mut self, text: String) {
        let waiters = std::mem::take(&mut self.waiters.delete);
        self.answer_all(waiters, Err(Refusal::new(Code::Unknown, text)));
    }
}

/// SIGKILL to one process, if it is there.
pub(crate) fn kill(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
}
