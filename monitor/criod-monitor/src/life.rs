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
//! Here is the way up; module `end` has the way down. A runtime call that hangs is killed with all
//! that it started when its time is up, and then is one that has failed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_monitor::monitor::*;
use protobuf::EnumOrUnknown;

use crate::cgroup;
use crate::end::START_FAILED;
use crate::logger::Command;
use crate::monitor::Monitor;
use crate::output::Tty;
use crate::poller::Token;
use crate::rpc::{Code, Refusal, Waiter};
use crate::runtime::{self, Stdio3};

/// How long runtime calls may take that should be short.
const SHORT_CALL: Duration = Duration::from_secs(10);
/// How long a program may take to say whether it could go on from here.
const CHECK_CALL: Duration = Duration::from_secs(5);
/// How long `runtime delete` may take.
const DELETE_CALL: Duration = Duration::from_secs(30);
/// How long a call may go on that nobody needs any more.
const LATE_CALL: Duration = Duration::from_secs(5);
/// How long a runtime that has connected to the console socket may take to send the terminal.
const CONSOLE: u16 = 1000;

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
    Update,
    Exec(u32),
    /// A program that the monitor is to become, while it is asked whether it can.
    Check,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    pub(crate) job: Job,
    /// When it is to be killed, in nanoseconds of boot time.
    pub(crate) deadline: Option<i64>,
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
    /// Another look at the sockets whose connections could not be taken.
    pub(crate) accept: Option<i64>,
    pub(crate) tty: Option<i64>,
    pub(crate) kill: Option<i64>,
    /// Another look whether init heeds the signal that is to end it.
    pub(crate) heed: Option<i64>,
    /// Another look at how an init ended that is not our child.
    pub(crate) init: Option<i64>,
    /// Another look whether a predecessor's `runtime start` is over.
    pub(crate) query: Option<i64>,
    /// Another round of killing what is left after `runtime delete`.
    pub(crate) leftover: Option<i64>,
    pub(crate) drain: Option<i64>,
    pub(crate) flush: Option<i64>,
    /// Until when the log thread is to stand still for an upgrade.
    pub(crate) upgrade: Option<i64>,
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

    pub(crate) fn runtime_log(&self) -> PathBuf {
        self.dir.join("runtime.log")
    }

    /// Starts a runtime call whose end comes to [`Monitor::job_done`].
    pub(crate) fn run_job(&mut self, job: Job, verb: &[&str], stdio: Stdio3) -> io::Result<()> {
        let log = match job {
            Job::Exec(n) => self.exec_file(n, "log"),
            Job::Kill => self.dir.join("kill.log"),
            Job::Update => self.dir.join("update.log"),
            _ => self.runtime_log(),
        };
        let stdio = match job {
            Job::Create | Job::Exec(_) => stdio.for_container()?,
            _ => stdio,
        };
        let pid = runtime::spawn(&self.config, &log, verb, stdio)?;
        self.add_job(pid, job);
        Ok(())
    }

    pub(crate) fn add_job(&mut self, pid: i32, job: Job) {
        let limit = match job {
            Job::Create => Duration::from_millis(self.config.create_timeout_ms),
            // Hooks run in it, and it is for the caller to give up.
            Job::Start => Duration::ZERO,
            // The command's own deadline is looked after in `exec`; one whose streams others carry
            // has none as long as they wait.
            Job::Exec(_) => Duration::ZERO,
            Job::Delete => DELETE_CALL,
            Job::Check => CHECK_CALL,
            Job::Kill | Job::Cleanup | Job::Restart | Job::Query | Job::Update => SHORT_CALL,
        };
        let deadline = (!limit.is_zero()).then(|| sys::clock::deadline(limit));
        self.jobs.push(Running { pid, job, deadline });
    }

    /// Is a call of this kind under way?
    pub(crate) fn runs(&self, job: Job) -> bool {
        self.jobs.iter().any(|r| r.job == job)
    }

    /// Gives a call at most this long from now.
    pub(crate) fn hurry(&mut self, job: Job, limit: Duration) {
        let by = sys::clock::deadline(limit);
        for running in self.jobs.iter_mut().filter(|r| r.job == job) {
            running.deadline = Some(running.deadline.map_or(by, |d| d.min(by)));
        }
    }

    /// Kills the calls whose time is up; their ends come as those of any other.
    pub(crate) fn expire_jobs(&mut self, now: i64) {
        for n in 0..self.jobs.len() {
            if self.jobs[n].deadline.take_if(|d| *d <= now).is_none() {
                continue;
            }
            if self.jobs[n].job == Job::Create && self.state.now.error.is_empty() {
                self.state.now.error = format!(
                    "runtime create did not end within {} ms",
                    self.config.create_timeout_ms
                );
            }
            sys::proc::kill_tree(self.jobs[n].pid);
        }
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
                if !self.waiters.delete.is_empty() {
                    self.begin_delete();
                } else if !self.waiters.create.is_empty() {
                    self.begin_create();
                }
            }
            Job::Query => self.queried(status),
            Job::Update => self.update_done(status),
            Job::Exec(n) => self.exec_started(n, status),
            Job::Check => self.checked(status),
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
        let console_arg = console_for_runtime(&console, &bundle);
        let mut verb = vec!["create", "--bundle", &bundle, "--pid-file", &pid_file_arg];
        let more = self.config.create_args.clone();
        verb.extend(more.iter().map(String::as_str));
        // A runtime that was killed may have left either.
        for name in ["pid", ".pid"] {
            match std::fs::remove_file(self.dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        let (out, out_end) = sys::pipe::for_container()?;
        if self.config.terminal {
            self.console = Some(self.listen_for_console(&console, Token::Console)?);
            sys::pipe::set_nonblocking(out_end.as_fd())?;
            self.tty_pipe = Some(out_end);
            verb.extend(["--console-socket", &console_arg]);
        } else {
            let (err, err_end) = sys::pipe::for_container()?;
            stdio.stdout = Some(out_end);
            stdio.stderr = Some(err_end);
            if self.config.stdin {
                let (read, write) = sys::pipe::to_container()?;
                stdio.stdin = Some(read);
                self.stdin = Some(write);
            }
            self.sources[1].attach(err, &self.poller)?;
        }
        self.sources[0].attach(out, &self.poller)?;
        self.note_pipes();
        self.run_job(Job::Create, &verb, stdio)?;
        if let Some(running) = self.jobs.last() {
            self.state.now.runtime_pid = running.pid;
        }
        self.save();
        Ok(())
    }

    /// A socket that a runtime sends a terminal to.
    pub(crate) fn listen_for_console(&self, path: &Path, token: Token) -> io::Result<OwnedFd> {
        let _ = std::fs::remove_file(path);
        let (short, _folder) = sys::seqpacket::short_path(path)?;
        let listener = std::os::unix::net::UnixListener::bind(short)?;
        listener.set_nonblocking(true)?;
        self.poller.add(&listener, token)?;
        Ok(listener.into())
    }

    /// The runtime has connected to the console socket: takes the terminal from it.
    pub(crate) fn take_console(&mut self) {
        let Some(listener) = &self.console else { return };
        let conn = match sys::seqpacket::accept(listener.as_fd()) {
            Ok(conn) => conn,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            // Out of descriptors: the runtime will say that it could not send the terminal.
            Err(_) => return self.close_console(),
        };
        // The runtime sends at once after it has connected; wait for that, but not for ever.
        let mut fds = [nix::poll::PollFd::new(conn.as_fd(), nix::poll::PollFlags::POLLIN)];
        let _ = nix::poll::poll(&mut fds, CONSOLE);
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

    /// Goes on with a terminal, or the socket that it is to come by, that were handed over.
    pub(crate) fn take_tty(
        &mut self,
        master: Option<OwnedFd>,
        pipe: Option<OwnedFd>,
        console: Option<OwnedFd>,
    ) -> io::Result<()> {
        if let Some(console) = &console {
            self.poller.add(console, Token::Console)?;
        }
        self.console = console;
        match (master, pipe) {
            (Some(master), Some(pipe)) => {
                self.poller.add(&master, Token::Tty)?;
                self.tty = Some(Tty { master, pipe });
            }
            (_, pipe) => self.tty_pipe = pipe,
        }
        Ok(())
    }

    fn close_console(&mut self) {
        if let Some(listener) = self.console.take() {
            self.poller.remove(&listener);
            let _ = std::fs::remove_file(self.dir.join("console.sock"));
        }
    }

    fn create_done(&mut self, status: i32) {
        self.state.now.runtime_pid = 0;
        if status != 0 || !self.state.now.error.is_empty() {
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

    /// Notes which pipes are the container's, for a successor without a keeper's help.
    pub(crate) fn note_pipes(&mut self) {
        let ends =
            [self.sources[0].pipe.as_deref(), self.sources[1].pipe.as_deref(), self.stdin.as_ref()];
        let inode =
            |fd: Option<&OwnedFd>| fd.map_or(0, |f| sys::pipe::inode(f.as_fd()).unwrap_or(0));
        // A terminal's output comes through a pipe that the container does not have.
        self.state.now.pipes =
            if self.config.terminal { Vec::new() } else { ends.map(inode).to_vec() };
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
        self.state.now.pipes.clear();
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
                if self.keeper.connect(&self.poller) {
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
        self.before_start = sys::proc::program(self.state.now.pid);
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

    /// Nobody needs this call any more, which has a little time left: init has ended while
    /// `runtime start` is under way, or the one has gone who wanted the streams of a command.
    pub(crate) fn late(&mut self, job: Job) {
        self.hurry(job, LATE_CALL);
    }

    /// A successor has asked the runtime whether the start had been.
    pub(crate) fn queried(&mut self, status: i32) {
        let text = std::fs::read_to_string(self.dir.join("query")).unwrap_or_default();
        let _ = std::fs::remove_file(self.dir.join("query"));
        let says = |word: &str| {
            text.split_once("\"status\"").is_some_and(|(_, rest)| {
                rest.trim_start_matches([':', ' ']).starts_with(&format!("\"{word}\""))
            })
        };
        if status == 0 && says("created") {
            self.set_phase(Phase::PHASE_CREATED);
            if self.state.now.exit.is_some() {
                return self.begin_drain();
            }
            if !self.waiters.start.is_empty() {
                self.logger.send(Command::Open);
            }
        } else {
            self.started();
        }
    }
}

/// The console socket as the runtime is told it: it runs in the bundle, so the way from there is
/// short where the whole path is too long for a socket's address.
pub(crate) fn console_for_runtime(console: &Path, bundle: &str) -> String {
    match (console.parent(), console.file_name(), Path::new(bundle).parent()) {
        (Some(dir), Some(name), Some(above)) if dir == above => {
            Path::new("..").join(name).to_string_lossy().into_owned()
        }
        _ => console.to_string_lossy().into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_near_the_bundle() {
        let console = Path::new("/run/c/id/console.sock");
        assert_eq!(console_for_runtime(console, "/run/c/id/bundle"), "../console.sock");
        assert_eq!(console_for_runtime(console, "/elsewhere/b"), "/run/c/id/console.sock");
    }
}
