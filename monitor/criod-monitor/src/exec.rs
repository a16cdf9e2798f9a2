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

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use api_monitor::monitor::{ExecSyncRequest, ExecSyncResponse, Phase};
use nix::errno::Errno;

use crate::life::{Job, kill};
use crate::monitor::Monitor;
use crate::output::drain_into;
use crate::poller::{Poller, Token};
use crate::rpc::{Code, Refusal, Waiter};
use crate::runtime::{self, Stdio3};

/// Stdout and stderr together, where the caller says nothing: below the 16 MiB that gRPC clients
/// take in one message.
const MAX_OUTPUT: u64 = 15 << 20;
/// Rounds of killing a tree that goes on forking.
const KILL_ROUNDS: u32 = 20;

#[derive(Default)]
pub(crate) struct Execs {
    running: BTreeMap<u32, Exec>,
    next: u32,
}

impl Execs {
    pub(crate) fn next_deadline(&self) -> Option<i64> {
        self.running.values().filter_map(|e| e.deadline).min()
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
    pipe: Option<OwnedFd>,
    file: File,
    path: PathBuf,
    offset: i64,
}

impl Half {
    fn new(path: PathBuf, pipe: OwnedFd) -> io::Result<Half> {
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        Ok(Half { pipe: Some(pipe), file, path, offset: 0 })
    }

    /// Takes what is there, and no more than was there at the start.
    fn pump(&mut self, room: &mut u64, truncated: &mut bool, null: &File) {
        let Some(pipe) = &self.pipe else { return };
        let mut left = sys::pipe::readable(pipe.as_fd()).unwrap_or(0);
        loop {
            let want = usize::try_from(left.max(1)).unwrap_or(usize::MAX);
            let keep = want.min(usize::try_from(*room).unwrap_or(usize::MAX));
            let moved = if keep > 0 {
                drain_into(pipe.as_fd(), self.file.as_fd(), Some(&mut self.offset), keep)
            } else {
                drain_into(pipe.as_fd(), null.as_fd(), None, want)
            };
            match moved {
                Ok(0) => {
                    self.pipe = None;
                    return;
                }
                Ok(n) => {
                    let n = n as u64;
                    if keep > 0 {
                        *room -= n.min(*room);
                    } else {
                        *truncated = true;
                    }
                    left = left.saturating_sub(n);
                    if left == 0 {
                        return;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // The file cannot take it: the rest is dropped, and said to be.
                Err(_) if keep > 0 => *room = 0,
                Err(_) => return,
            }
        }
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Exec {
    fn pump(&mut self) {
        let Ok(null) = OpenOptions::new().write(true).open("/dev/null") else { return };
        self.out.pump(&mut self.room, &mut self.truncated, &null);
        self.err.pump(&mut self.room, &mut self.truncated, &null);
    }

    fn forget(&mut self, poller: &Poller) {
        for half in [&mut self.out, &mut self.err] {
            if let Some(pipe) = half.pipe.take() {
                poller.remove(&pipe);
            }
        }
    }
}

impl Monitor {
    /// Begins a command; the answer comes when it has ended.
    pub(crate) fn exec(&mut self, waiter: Waiter, asked: ExecSyncRequest) -> Result<(), Refusal> {
        if self.phase() != Phase::PHASE_RUNNING || self.state.now.exit.is_some() {
            let text = format!("container {} is not running", self.config.id);
            return Err(Refusal::new(Code::FailedPrecondition, text));
        }
        let n = self.execs.next;
        self.execs.next = n.wrapping_add(1);
        self.begin_exec(n, waiter, &asked)
            .map_err(|e| Refusal::new(Code::Internal, format!("exec: {e}")))
    }

    fn exec_file(&self, n: u32, kind: &str) -> PathBuf {
        self.dir.join(format!("exec-{n}.{kind}"))
    }

    fn begin_exec(&mut self, n: u32, waiter: Waiter, asked: &ExecSyncRequest) -> io::Result<()> {
        let process = self.exec_file(n, "process");
        let pid_file = self.exec_file(n, "pid");
        fs::write(&process, &asked.process)?;
        let _ = fs::remove_file(&pid_file);
        let (out, out_end) = sys::pipe::for_container()?;
        let (err, err_end) = sys::pipe::for_container()?;
        let out = Half::new(self.exec_file(n, "stdout"), out)?;
        let err = Half::new(self.exec_file(n, "stderr"), err)?;
        for (half, token) in [(&out, Token::ExecStdout(n)), (&err, Token::ExecStderr(n))] {
            if let Some(pipe) = &half.pipe {
                self.poller.add(pipe, token)?;
            }
        }
        let process = process.to_string_lossy().into_owned();
        let pid_file = pid_file.to_string_lossy().into_owned();
        let verb = ["exec", "--detach", "--process", &process, "--pid-file", &pid_file];
        let stdio = Stdio3 { stdin: None, stdout: Some(out_end), stderr: Some(err_end) };
        self.run_job(Job::Exec(n), &verb, stdio)?;
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

    /// The runtime has started the command, or failed to.
    pub(crate) fn exec_started(&mut self, n: u32, status: i32) {
        let log = self.exec_file(n, "log");
        let pid = if status == 0 {
            runtime::pid_from(&self.exec_file(n, "pid")).map_err(|e| format!("pid file: {e}"))
        } else {
            Err(runtime::failure(&self.config, "exec", status, &log))
        };
        for kind in ["process", "pid", "log"] {
            let _ = fs::remove_file(self.exec_file(n, kind));
        }
        let stray = pid.as_ref().ok().and_then(|pid| {
            let at = self.strays.iter().position(|(p, _)| p == pid)?;
            Some(self.strays.swap_remove(at).1)
        });
        let Some(exec) = self.execs.running.get_mut(&n) else {
            // It timed out while the runtime was at work.
            if let Ok(pid) = pid {
                kill_tree(pid);
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
                    exec.out.remove();
                    exec.err.remove();
                }
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
            exec.pump();
        }
    }

    pub(crate) fn expire_execs(&mut self, now: i64) {
        let late = |e: &Exec| e.deadline.is_some_and(|d| d <= now);
        let late: Vec<u32> =
            self.execs.running.iter().filter(|(_, e)| late(e)).map(|(n, _)| *n).collect();
        for n in late {
            let pid = self.execs.running.get(&n).map_or(0, |e| e.pid);
            if pid > 0 {
                kill_tree(pid);
            } else if let Some((pid, _)) = self.jobs.iter().find(|(_, j)| *j == Job::Exec(n)) {
                kill_tree(*pid);
            }
            self.finish_exec(n, true);
        }
    }

    fn finish_exec(&mut self, n: u32, timed_out: bool) {
        let Some(mut exec) = self.execs.running.remove(&n) else { return };
        exec.pump();
        exec.forget(&self.poller);
        if !self.rpc.waits(exec.waiter) {
            exec.out.remove();
            exec.err.remove();
            return;
        }
        let exit_code = match exec.status {
            Some(status) if status & 0x7f == 0 => status >> 8 & 0xff,
            Some(status) => 128 + (status & 0x7f),
            None => -1,
        };
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

/// Kills a process and all that it started, until nothing of it is left.
fn kill_tree(root: i32) {
    for _ in 0..KILL_ROUNDS {
        let tree = sys::proc::tree(root);
        if tree.is_empty() {
            return;
        }
        // Below first, so that nobody is there to start another.
        tree.iter().for_each(|pid| kill(*pid));
    }
}
