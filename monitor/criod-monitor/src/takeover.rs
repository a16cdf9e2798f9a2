//! A successor: what it finds, and how it goes on.
//!
//! | phase in `state`   | what is done                                                          |
//! |--------------------|-----------------------------------------------------------------------|
//! | NEW, FAILED        | nothing                                                               |
//! | CREATING           | the runtime call is killed, `delete --force`, and NEW again           |
//! | CREATED            | spares from the keeper                                                |
//! | STARTING           | spares; `runtime state` says whether to start again                   |
//! | RUNNING            | spares; the log is cut back to whole records and goes on              |
//! | DRAINING           | spares; draining begins again                                         |
//! | EXITED             | spares, for what lingering processes still write                      |
//!
//! Init is the keeper's child now. Its end comes by its pidfd, its exit status from the keeper; if
//! the keeper died, too, from the kernel (PIDFD_GET_INFO, 6.15 and later); else it is unknown, and
//! the state says so. Without the keeper's spares the pipes are opened again through /proc.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use api_monitor::monitor::Phase;

use crate::cgroup;
use crate::keeper::End;
use crate::life::{Job, kill};
use crate::logger::Command;
use crate::monitor::Monitor;
use crate::output::{Tty, reopen};
use crate::poller::Token;
use crate::runtime::Stdio3;

/// How often, and how far apart, a killed runtime call is looked for.
const RUNTIME_ROUNDS: u32 = 100;
const RUNTIME_PAUSE: Duration = Duration::from_millis(5);

impl Monitor {
    pub(crate) fn take_over(&mut self) {
        let phase = self.phase();
        match phase {
            Phase::PHASE_NEW | Phase::PHASE_FAILED | Phase::PHASE_DELETED => return,
            Phase::PHASE_CREATING => return self.create_anew(),
            _ => {}
        }
        let log = self.take_spares();
        if self.state.now.started_at != 0 || phase == Phase::PHASE_STARTING {
            self.logger.send(Command::Resume(log));
        }
        self.save();
        if self.state.now.exit.is_none() {
            self.adopt_init();
        }
        let ended = self.state.now.exit.is_some();
        match phase {
            Phase::PHASE_STARTING => self.query(),
            Phase::PHASE_EXITED => {}
            _ if ended => self.begin_drain(),
            _ => {}
        }
        if let Some(stopping) = self.state.now.stopping.clone().into_option()
            && !ended
        {
            // A deadline of another boot is of no container of this one.
            self.timers.kill = Some(stopping.deadline);
        }
    }

    /// A predecessor died while the runtime created: that is undone, and may begin again.
    fn create_anew(&mut self) {
        // Found by the pid file's path, for the predecessor may not have lived to note the pid.
        let pid_file = self.dir.join("pid").to_string_lossy().into_owned();
        self.end_runtime(&pid_file);
        cgroup::kill_all(&self.config.cgroups);
        if let Err(e) = self.run_job(Job::Restart, &["delete", "--force"], Stdio3::default()) {
            eprintln!("criod-monitor: {}: runtime delete: {e}", self.config.id);
        }
    }

    /// Kills the runtime call that has `argument` on its command line, and waits for its end.
    fn end_runtime(&self, argument: &str) {
        let mut pids: Vec<i32> =
            sys::proc::with_argument(argument).into_iter().flat_map(sys::proc::tree).collect();
        pids.iter().for_each(|pid| kill(*pid));
        for _ in 0..RUNTIME_ROUNDS {
            pids.retain(|pid| sys::proc::stat(*pid).is_some_and(|s| s.state != b'Z'));
            if pids.is_empty() {
                return;
            }
            std::thread::sleep(RUNTIME_PAUSE);
        }
    }

    /// Takes what the keeper holds; returns the log.
    fn take_spares(&mut self) -> Option<OwnedFd> {
        let mut log = None;
        let (mut master, mut ttyout) = (None, None);
        let mut out = [None, None];
        for (name, fd) in self.keeper.spares().unwrap_or_default() {
            match name.as_str() {
                "stdout" => out[0] = Some(fd),
                "stderr" => out[1] = Some(fd),
                "stdin" => self.stdin = Some(fd),
                "tty" => master = Some(fd),
                "ttyout" => ttyout = Some(fd),
                "init" => self.init = Some(fd),
                "log" => log = Some(fd),
                _ => {}
            }
        }
        let pid = self.state.now.pid;
        for (n, found) in out.into_iter().enumerate() {
            let number = if n == 0 { 1 } else { 2 };
            let pipe = match found {
                Some(fd) => Some(fd),
                // Nobody held a spare: the container itself is the last who has the pipe.
                None if self.is_init(pid) && !self.config.terminal => {
                    self.state.now.lost = "no spare of the output was held; what was written \
                                           while no monitor lived may be lost"
                        .into();
                    reopen(pid, number).ok()
                }
                None => None,
            };
            let attached = pipe.map(|pipe| self.sources[n].attach(pipe, &self.poller));
            if let Some(Err(e)) = attached {
                self.state.now.lost = format!("output: {e}");
            }
        }
        if let (Some(master), Some(pipe)) = (master, ttyout) {
            let _ = self.poller.add(&master, Token::Tty);
            self.tty = Some(Tty { master, pipe });
        }
        self.hand_spares();
        log
    }

    /// The process of this pid is the container's init, and lives.
    fn is_init(&self, pid: i32) -> bool {
        pid > 0
            && sys::proc::stat(pid)
                .is_some_and(|s| s.start_time == self.state.now.pid_start_time && s.state != b'Z')
    }

    /// Learns of init's end although another is its parent.
    fn adopt_init(&mut self) {
        let pid = self.state.now.pid;
        if self.init.is_none() && self.is_init(pid) {
            self.init = sys::pidfd::open(pid).ok();
        }
        let watched = match &self.init {
            Some(init) => self.poller.add(init, Token::Init).is_ok(),
            None => false,
        };
        self.keeper.watch(pid);
        if !watched {
            self.adopted_init_ended();
        }
    }

    /// Init's pidfd is readable, or there is none.
    pub(crate) fn adopted_init_ended(&mut self) {
        if self.state.now.exit.is_some() {
            return;
        }
        let pid = self.state.now.pid;
        let now = sys::clock::realtime();
        let (status, time, unknown) = match self.keeper.end_of(pid) {
            Ok(End::Status(status, time)) => (status, time, false),
            // It may be ours: our own waitpid tells.
            Ok(End::Running) => return,
            // A zombie that its parent has not reaped yet: the kernel tells in a moment.
            _ if sys::proc::stat(pid).is_some_and(|s| {
                s.state == b'Z' && s.start_time == self.state.now.pid_start_time
            }) =>
            {
                std::thread::sleep(Duration::from_millis(20));
                return;
            }
            _ => match self.init.as_ref().and_then(|i| sys::pidfd::exit_status(i.as_fd())) {
                Some(status) => (status, now, false),
                None => (0, now, true),
            },
        };
        if let Some(init) = &self.init {
            self.poller.remove(init);
        }
        if unknown {
            self.state.now.lost = "nobody saw the exit status".into();
        }
        self.note_exit(status, time, unknown);
        // While taking over, the caller goes on from there.
        if self.phase() == Phase::PHASE_RUNNING || self.phase() == Phase::PHASE_CREATED {
            self.init_ended();
        }
    }

    /// Asks the runtime whether the predecessor's start had been — once that is surely over.
    fn query(&mut self) {
        for _ in 0..RUNTIME_ROUNDS {
            let of_id = sys::proc::with_argument(&self.config.id);
            let starts = sys::proc::with_argument("start");
            if !of_id.iter().any(|pid| starts.contains(pid)) {
                break;
            }
            std::thread::sleep(RUNTIME_PAUSE);
        }
        let file = std::fs::File::create(self.dir.join("query")).map(OwnedFd::from).ok();
        let stdio = Stdio3 { stdout: file, ..Stdio3::default() };
        if let Err(e) = self.run_job(Job::Query, &["state"], stdio) {
            eprintln!("criod-monitor: {}: runtime state: {e}", self.config.id);
        }
    }
}
