//! Commands run in the container and waited for (ExecSync).
//!
//! ```text
//! ExecSync ─▶ `runtime exec --detach` ──ok──▶ runs ──ends──▶ last output taken ──▶ answer
//!                    │ fails                   │ deadline
//!                    ▼                         ▼
//!                 refusal            its whole process tree is killed ──▶ answer: timed out
//! ```
//! Output is spliced into files, so that it costs the monitor no memory; beyond the limit it is
//! read and dropped, so that the command is not held up. The files are the caller's; they are
//! removed here only when nobody waits for the answer any more.
//!
//! While a command runs there is a file `exec-N.run` with its pid and start time. Commands whose
//! monitor died have lost those who waited for them: a successor kills them and removes the files.
//! N begins with the monitor's pid, so that it meets no file of a predecessor's answer.
//!
//! Commands whose streams others carry (module `session`) are started and noted in the same way.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use api_monitor::monitor::{ExecSyncRequest, ExecSyncResponse, Phase, handover};
use nix::errno::Errno;

use crate::handover::{self as given, Giving, maybe, take};
use crate::life::Job;
use crate::monitor::Monitor;
use crate::output::{CHUNK, drain_into};
use crate::poller::{Poller, Token};
use crate::pull::{HELD, Pool, Pull};
use crate::rpc::{Code, Refusal, Waiter};
use crate::runtime::{self, Stdio3};

/// Stdout and stderr together, where the caller says nothing: below the 16 MiB that gRPC clients
/// take in one message.
const MAX_OUTPUT: u64 = 15 << 20;
/// Commands at a time, those whose streams others carry counted apart: shells that are left open
/// must not keep a probe from running. Each takes a handful of descriptors.
const MAX_RUNNING: usize = 64;
/// What there may be of a command in the monitor's folder; the one that tells of the others last.
const FILES: [&str; 7] = ["process", "pid", "log", "console", "stdout", "stderr", "run"];

pub(crate) struct Execs {
    running: BTreeMap<u32, Exec>,
    next: u32,
    sink: Sink,
}

impl Execs {
    pub(crate) fn new(pool: Pool) -> Execs {
        Execs { running: BTreeMap::new(), next: 0, sink: Sink { pool, null: None } }
    }

    /// A number that no command, and no session, of this monitor has had.
    pub(crate) fn number(&mut self) -> u32 {
        let n = self.next;
        self.next = n.wrapping_add(1);
        n
    }

    pub(crate) fn next_deadline(&self) -> Option<i64> {
        self.running.values().filter_map(|e| e.deadline).min()
    }

    /// The number that comes next.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// A thread of this process waits for a command's pipe, and may do so for ever.
    pub(crate) fn any_held(&self) -> bool {
        self.running.values().any(|e| e.out.pull.is_held() || e.err.pull.is_held())
    }

    /// The commands as they are handed over.
    pub(crate) fn give<'a>(&'a self, fds: &mut Giving<'a>) -> Vec<handover::Exec> {
        let give = |(n, exec): (&u32, &'a Exec)| handover::Exec {
            number: *n,
            call: given::call(exec.waiter),
            pid: exec.pid,
            status: exec.status,
            deadline: exec.deadline,
            halves: vec![exec.out.give(fds), exec.err.give(fds)],
            room: exec.room,
            truncated: exec.truncated,
            ..handover::Exec::new()
        };
        self.running.iter().map(give).collect()
    }
}

struct Exec {
    waiter: Waiter,
    /// The process in the container; 0 until the runtime has started it.
    pid: i32,
    status: Option<i32>,
    deadline: Option<i64>,
    out: Half,
    err: Half,
    /// Bytes that may still be kept.
    room: u64,
    truncated: bool,
}

/// One stream of a command.
struct Half {
    pipe: Option<Arc<OwnedFd>>,
    pull: Pull,
    watched: bool,
    /// What is late goes into the file.
    keeps: bool,
    file: Arc<File>,
    path: PathBuf,
    offset: i64,
}

impl Half {
    fn new(path: PathBuf, pipe: OwnedFd) -> io::Result<Half> {
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        let (pipe, file) = (Some(Arc::new(pipe)), Arc::new(file));
        Ok(Half { pipe, pull: Pull::default(), watched: true, keeps: false, file, path, offset: 0 })
    }

    fn give<'a>(&'a self, fds: &mut Giving<'a>) -> handover::Half {
        let (pipe, file) = (fds.maybe(self.pipe.as_deref()), fds.fd(&*self.file));
        handover::Half { pipe, file, offset: self.offset, ..handover::Half::new() }
    }

    fn take(
        given: &handover::Half,
        path: PathBuf,
        poller: &Poller,
        token: Token,
    ) -> io::Result<Half> {
        let pipe = maybe(given.pipe)?.map(Arc::new);
        pipe.as_ref().map_or(Ok(()), |pipe| poller.add(pipe, token))?;
        let (pull, file) = (Pull::default(), Arc::new(take(given.file)?.into()));
        Ok(Half { pipe, pull, watched: true, keeps: false, file, path, offset: given.offset })
    }

    /// Watches its pipe, but not one that is held: what is in that cannot be had.
    fn watch(&mut self, token: Token, poller: &Poller) {
        let held = self.pull.is_held();
        if let Some(pipe) = &self.pipe
            && held == self.watched
        {
            self.watched = !held && poller.add(pipe, token).is_ok();
            if held {
                poller.remove(pipe);
            }
        }
    }

    /// Takes what is there, and no more than a pipe holds.
    fn pump(&mut self, room: &mut u64, truncated: &mut bool, sink: &mut Sink) {
        let Some(pipe) = self.pipe.clone() else { return };
        let mut left = CHUNK;
        while left > 0 {
            let keep = left.min(usize::try_from(*room).unwrap_or(usize::MAX));
            if !self.pull.is_held() {
                self.keeps = keep > 0;
            }
            let want = if keep > 0 { keep } else { left };
            let (pipe, offset) = (Arc::clone(&pipe), (keep > 0).then_some(self.offset));
            let file = if keep > 0 { Some(Arc::clone(&self.file)) } else { sink.null() };
            let Some(file) = file else { return };
            let work = move || drain_into(pipe.as_fd(), file.as_fd(), offset, want);
            match self.pull.run(&sink.pool, work) {
                Ok(0) => {
                    self.pipe = None;
                    return;
                }
                Ok(n) => {
                    if self.keeps {
                        self.offset += i64::try_from(n).unwrap_or(0);
                        *room = room.saturating_sub(n as u64);
                    } else {
                        *truncated = true;
                    }
                    if n < want {
                        return;
                    }
                    left = left.saturating_sub(n);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | HELD) => return,
                // The file cannot take it: the rest is dropped, and said to be.
                Err(_) if self.keeps => *room = 0,
                Err(_) => return,
            }
        }
    }
}

/// Who takes what commands write, and where what is beyond the limit goes.
pub(crate) struct Sink {
    pool: Pool,
    null: Option<Arc<File>>,
}

impl Sink {
    fn null(&mut self) -> Option<Arc<File>> {
        if self.null.is_none() {
            self.null = OpenOptions::new().write(true).open("/dev/null").ok().map(Arc::new);
        }
        self.null.clone()
    }
}

impl Exec {
    fn pump(&mut self, sink: &mut Sink) {
        self.out.pump(&mut self.room, &mut self.truncated, sink);
        self.err.pump(&mut self.room, &mut self.truncated, sink);
    }

    fn forget(&mut self, poller: &Poller) {
        for half in [&mut self.out, &mut self.err] {
            if let Some(pipe) = half.pipe.take() {
                poller.remove(&pipe);
            }
        }
    }
}

/// The exit code that a wait status stands for, or 128 + the signal.
pub(crate) fn exit_code(status: i32) -> i32 {
    match status & 0x7f {
        0 => status >> 8 & 0xff,
        signal => 128 + signal,
    }
}

impl Monitor {
    /// Begins a command; the answer comes when it has ended.
    pub(crate) fn exec(&mut self, waiter: Waiter, asked: ExecSyncRequest) -> Result<(), Refusal> {
        self.may_exec(self.execs.running.len())?;
        let n = self.execs.number();
        self.begin_exec(n, waiter, &asked).map_err(|e| {
            self.remove_exec_files(n, &FILES);
            Refusal::new(Code::Internal, format!("exec: {e}"))
        })
    }

    /// Goes on with commands that were handed over.
    pub(crate) fn take_execs(&mut self, given: Vec<handover::Exec>, next: u32) -> io::Result<()> {
        self.execs.next = next;
        for exec in given {
            let n = exec.number;
            let [out, err] = &exec.halves[..] else {
                return Err(given::wrong("a command without its two streams"));
            };
            let path = |kind| self.exec_file(n, kind);
            let out = Half::take(out, path("stdout"), &self.poller, Token::ExecStdout(n))?;
            let err = Half::take(err, path("stderr"), &self.poller, Token::ExecStderr(n))?;
            let exec = Exec {
                waiter: given::waiter(&exec.call),
                pid: exec.pid,
                status: exec.status,
                deadline: exec.deadline,
                out,
                err,
                room: exec.room,
                truncated: exec.truncated,
            };
            self.execs.running.insert(n, exec);
        }
        Ok(())
    }

    /// Whether a command may begin now, where so many of its kind run.
    pub(crate) fn may_exec(&self, running: usize) -> Result<(), Refusal> {
        // From the first SIGKILL on nothing new may begin.
        let killing = !self.timers.patience.is_zero();
        if self.phase() != Phase::PHASE_RUNNING || self.state.now.exit.is_some() || killing {
            let text = format!("container {} is not running", self.config.id);
            return Err(Refusal::new(Code::FailedPrecondition, text));
        }
        if running >= MAX_RUNNING {
            let text =
                format!("{MAX_RUNNING} commands run in container {} already", self.config.id);
            return Err(Refusal::new(Code::ResourceExhausted, text));
        }
        Ok(())
    }

    pub(crate) fn exec_file(&self, n: u32, kind: &str) -> PathBuf {
        self.dir.join(format!("exec-{}-{n}.{kind}", self.state.now.monitor_pid))
    }

    pub(crate) fn remove_exec_files(&self, n: u32, kinds: &[&str]) {
        for kind in kinds {
            let _ = fs::remove_file(self.exec_file(n, kind));
        }
    }

    fn begin_exec(&mut self, n: u32, waiter: Waiter, asked: &ExecSyncRequest) -> io::Result<()> {
        self.note_exec(n)?;
        let (out, out_end) = sys::pipe::for_container()?;
        let (err, err_end) = sys::pipe::for_container()?;
        let out = Half::new(self.exec_file(n, "stdout"), out)?;
        let err = Half::new(self.exec_file(n, "stderr"), err)?;
        for (half, token) in [(&out, Token::ExecStdout(n)), (&err, Token::ExecStderr(n))] {
            if let Some(pipe) = &half.pipe {
                self.poller.add(pipe, token)?;
            }
        }
        let stdio = Stdio3 { stdin: None, stdout: Some(out_end), stderr: Some(err_end) };
        self.run_exec(n, &asked.process, &[], stdio)?;
        let limit = std::time::Duration::from_millis(asked.timeout_ms);
        let exec = Exec {
            waiter,
            pid: 0,
            status: None,
            deadline: (!limit.is_zero()).then(|| sys::clock::deadline(limit)),
            out,
            err,
            room: if asked.max_output == 0 { MAX_OUTPUT } else { asked.max_output },
            truncated: false,
        };
        self.execs.running.insert(n, exec);
        Ok(())
    }

    /// Notes that there is a command, before anything else of it is there: by this file a successor
    /// finds the others.
    pub(crate) fn note_exec(&self, n: u32) -> io::Result<()> {
        fs::write(self.exec_file(n, "run"), "")
    }

    /// Has the runtime start a command; its end comes to [`Monitor::exec_started`].
    pub(crate) fn run_exec(
        &mut self,
        n: u32,
        process: &[u8],
        more: &[&str],
        stdio: Stdio3,
    ) -> io::Result<()> {
        let file = self.exec_file(n, "process");
        let pid_file = self.exec_file(n, "pid");
        fs::write(&file, process)?;
        let _ = fs::remove_file(&pid_file);
        let file = file.to_string_lossy().into_owned();
        let pid_file = pid_file.to_string_lossy().into_owned();
        let mut verb = vec!["exec", "--detach", "--process", &file, "--pid-file", &pid_file];
        verb.extend(more);
        self.run_job(Job::Exec(n), &verb, stdio)
    }

    /// The runtime has started the command, or failed to.
    pub(crate) fn exec_started(&mut self, n: u32, status: i32) {
        let log = self.exec_file(n, "log");
        let pid = if status == 0 {
            runtime::pid_from(&self.exec_file(n, "pid")).map_err(|e| format!("pid file: {e}"))
        } else {
            Err(runtime::failure(&self.config, "exec", status, &log))
        };
        let streamed = self.sessions.has(n);
        if let Ok(pid) = pid
            && let Some(stat) = sys::proc::stat(pid)
            && (streamed || self.execs.running.contains_key(&n))
        {
            let _ = fs::write(self.exec_file(n, "run"), format!("{pid} {}", stat.start_time));
        }
        self.remove_exec_files(n, &["process", "pid", "log", "console"]);
        let stray = pid.as_ref().ok().and_then(|pid| {
            let at = self.strays.iter().position(|(p, _)| p == pid)?;
            Some(self.strays.swap_remove(at).1)
        });
        if streamed {
            return self.session_started(n, pid, stray);
        }
        let Some(exec) = self.execs.running.get_mut(&n) else {
            // It timed out while the runtime was at work.
            if let Ok(pid) = pid {
                sys::proc::kill_tree(pid);
            }
            return;
        };
        match pid {
            Ok(pid) => {
                exec.pid = pid;
                exec.status = stray;
                if stray.is_some() {
                    self.finish_exec(n, false);
                }
            }
            Err(text) => {
                let waiter = exec.waiter;
                if let Some(mut exec) = self.execs.running.remove(&n) {
                    exec.forget(&self.poller);
                }
                self.remove_exec_files(n, &["run", "stdout", "stderr"]);
                self.answer(waiter, Err(Refusal::new(Code::Unknown, text)));
            }
        }
    }

    /// A child has ended; true: it was a command's process.
    pub(crate) fn exec_ended(&mut self, pid: i32, status: i32) -> bool {
        let Some((n, exec)) = self.execs.running.iter_mut().find(|(_, e)| e.pid == pid) else {
            return false;
        };
        let n = *n;
        exec.status = Some(status);
        self.finish_exec(n, false);
        true
    }

    pub(crate) fn pump_exec(&mut self, n: u32) {
        if let Some(exec) = self.execs.running.get_mut(&n) {
            exec.pump(&mut self.execs.sink);
            exec.out.watch(Token::ExecStdout(n), &self.poller);
            exec.err.watch(Token::ExecStderr(n), &self.poller);
        }
    }

    /// A pipe that was held has been taken from, whichever it was.
    pub(crate) fn pump_execs(&mut self) {
        let all: Vec<u32> = self.execs.running.keys().copied().collect();
        all.into_iter().for_each(|n| self.pump_exec(n));
    }

    pub(crate) fn expire_execs(&mut self, now: i64) {
        let late = |e: &Exec| e.deadline.is_some_and(|d| d <= now);
        let late: Vec<u32> =
            self.execs.running.iter().filter(|(_, e)| late(e)).map(|(n, _)| *n).collect();
        for n in late {
            self.kill_exec(n);
            self.finish_exec(n, true);
        }
    }

    /// Kills a command, or the runtime that is about to start it.
    fn kill_exec(&self, n: u32) {
        let pid = self.execs.running.get(&n).map_or(0, |e| e.pid);
        if pid > 0 {
            sys::proc::kill_tree(pid);
        } else if let Some(running) = self.jobs.iter().find(|r| r.job == Job::Exec(n)) {
            sys::proc::kill_tree(running.pid);
        }
    }

    /// The container is being deleted: no command outlives it.
    pub(crate) fn kill_execs(&mut self) {
        let all: Vec<u32> = self.execs.running.keys().copied().collect();
        for n in all {
            self.kill_exec(n);
            self.finish_exec(n, false);
        }
    }

    /// Ends the commands that a predecessor left behind, and removes their files.
    pub(crate) fn end_orphaned_execs(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(stem) = name.strip_suffix(".run").filter(|s| s.starts_with("exec-")) else {
                continue;
            };
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let known = text.split_once(' ').and_then(|(pid, start)| {
                Some((pid.parse::<i32>().ok()?, start.parse::<u64>().ok()?))
            });
            if let Some((pid, start)) = known
                && sys::proc::stat(pid).is_some_and(|s| s.start_time == start)
            {
                sys::proc::kill_tree(pid);
            }
            // The runtime may still be at work, or the pid not yet noted.
            let pid_file = self.dir.join(format!("{stem}.pid"));
            let runtimes = sys::proc::with_argument(&pid_file.to_string_lossy());
            runtimes.into_iter().for_each(sys::proc::kill_tree);
            if let (None, Ok(pid)) = (known, runtime::pid_from(&pid_file)) {
                sys::proc::kill_tree(pid);
            }
            for kind in FILES {
                let _ = fs::remove_file(self.dir.join(format!("{stem}.{kind}")));
            }
        }
    }

    fn finish_exec(&mut self, n: u32, timed_out: bool) {
        let Some(mut exec) = self.execs.running.remove(&n) else { return };
        exec.pump(&mut self.execs.sink);
        exec.forget(&self.poller);
        if self.execs.running.is_empty() {
            self.execs.sink.null = None;
        }
        if !self.rpc.waits(exec.waiter) {
            self.remove_exec_files(n, &["run", "stdout", "stderr"]);
            return;
        }
        self.remove_exec_files(n, &["run"]);
        let exit_code = exec.status.map_or(-1, exit_code);
        let answer = ExecSyncResponse {
            exit_code,
            timed_out,
            stdout: exec.out.path.to_string_lossy().into_owned(),
            stderr: exec.err.path.to_string_lossy().into_owned(),
            truncated: exec.truncated,
            ..ExecSyncResponse::new()
        };
        self.answer(exec.waiter, Ok(&answer));
    }
}
