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
//! the keeper died, too, from the kernel (/proc until it is reaped, then PIDFD_GET_INFO, 6.15 and
//! later); else it is unknown, and the state says so. Without the keeper's spares the pipes are opened again through /proc.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use api_monitor::monitor::Phase;

use crate::cgroup;
use crate::keeper::End;
use crate::life::Job;
use crate::logger::Command;
use crate::monitor::Monitor;
use crate::output::{Tty, reopen};
use crate::poller::Token;
use crate::runtime::Stdio3;

/// How often, and how far apart, a killed runtime call is looked for.
const RUNTIME_ROUNDS: u32 = 100;
const RUNTIME_PAUSE: Duration = Duration::from_millis(5);
/// Between looks for a `runtime start` that a predecessor began, and until when it may go on.
const QUERY_PAUSE: Duration = Duration::from_millis(20);
const QUERY_ROUNDS: u32 = 500;
/// Between looks at an init that has ended and that its parent has not reaped.
const INIT_PAUSE: Duration = Duration::from_millis(20);
/// How often the keeper is asked for a status before it counts as unknown.
const INIT_ROUNDS: u32 = 500;
/// What is said where nobody held the other ends.
const NO_SPARES: &str =
    "no spare of the output was held; what was written while no monitor lived may be lost";

impl Monitor {
    pub(crate) fn take_over(&mut self) {
        self.init_rounds = INIT_ROUNDS;
        self.query_rounds = QUERY_ROUNDS;
        self.taking_over = true;
        self.go_on();
        self.taking_over = false;
    }

    fn go_on(&mut self) {
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
        self.note_pipes();
        self.save();
        self.end_orphaned_execs();
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
            if !stopping.sent {
                self.send_stop_signal();
            }
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
        pids.iter().for_each(|pid| sys::proc::kill_tree(*pid));
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
        let mut lost = false;
        for (n, found) in out.into_iter().enumerate() {
            let found = found.or_else(|| {
                let again = self.found_again(n, if n == 0 { 1 } else { 2 }, true);
                lost |= again.is_some() || self.had_pipe(n);
                again
            });
            let attached = found.map(|pipe| self.sources[n].attach(pipe, &self.poller));
            if let Some(Err(e)) = attached {
                self.state.now.lost = format!("output: {e}");
            }
        }
        if self.state.now.stdin_taken {
            // The client that had it is a client no more.
            self.stdin = None;
        } else if self.stdin.is_none() {
            self.stdin = self.found_again(2, 0, false);
        }
        if lost || (self.config.terminal && master.is_none() && self.state.now.exit.is_none()) {
            self.state.now.lost = NO_SPARES.into();
        }
        if let (Some(master), Some(pipe)) = (master, ttyout) {
            let _ = self.poller.add(&master, Token::Tty);
            self.tty = Some(Tty { master, pipe });
        }
        self.hand_spares();
        log
    }

    /// The predecessor had a pipe here whose end had not been seen.
    fn had_pipe(&self, n: usize) -> bool {
        self.state.now.pipes.get(n).is_some_and(|inode| *inode != 0)
    }

    /// The pipe that init has as descriptor `fd`, if it still is ours: the container is the last
    /// who has it open.
    fn found_again(&self, n: usize, fd: u32, read: bool) -> Option<OwnedFd> {
        let inode = *self.state.now.pipes.get(n)?;
        let pid = self.state.now.pid;
        if inode == 0 || !self.is_init(pid) {
            return None;
        }
        let pipe = reopen(pid, fd, read).ok()?;
        (sys::pipe::inode(pipe.as_fd()).ok()? == inode).then_some(pipe)
    }

    /// The process of this pid is the container's init, and lives.
    fn is_init(&self, pid: i32) -> bool {
        pid > 0
            && sys::proc::stat(pid)
                .is_some_and(|s| s.start_time == self.state.now.pid_start_time && s.state != b'Z')
    }

    /// Learns of init's end although another is its parent.
    pub(crate) fn adopt_init(&mut self) {
        let pid = self.state.now.pid;
        let there = |s: sys::proc::Stat| s.start_time == self.state.now.pid_start_time;
        if self.init.is_none() && sys::proc::stat(pid).is_some_and(there) {
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
        if let Some(init) = &self.init {
            // It stays readable; from here on a timer asks.
            self.poller.remove(init);
        }
        let pid = self.state.now.pid;
        let now = sys::clock::realtime();
        let told = self.keeper.end_of(pid);
        let zombie = sys::proc::stat(pid)
            .filter(|s| s.state == b'Z' && s.start_time == self.state.now.pid_start_time);
        // Its parent may take its time to reap it, or never do so; all of its threads have ended,
        // or its pidfd would not be readable.
        let kernel = match &self.init {
            Some(init) => sys::pidfd::exit_status(init.as_fd()).or(zombie.map(|z| z.exit_code)),
            None => None,
        };
        let zombie = zombie.is_some();
        let (status, time, unknown) = match (told, kernel) {
            (Ok(End::Status(status, time)), _) => (status, time, false),
            (_, Some(status)) => (status, now, false),
            // Not reaped yet, or the keeper may know and cannot be asked at the moment.
            (told, _)
                if zombie
                    || matches!(told, Ok(End::Running))
                    || (told.is_err() && self.init_rounds > 0) =>
            {
                self.init_rounds = self.init_rounds.saturating_sub(u32::from(told.is_err()));
                self.timers.init = Some(sys::clock::deadline(INIT_PAUSE));
                return;
            }
            _ => (0, now, true),
        };
        if unknown {
            self.state.now.lost = "nobody saw the exit status".into();
        }
        self.note_exit(status, time, unknown);
        // While taking over, the caller goes on from there.
        if !self.taking_over {
            self.init_ended();
        }
    }

    /// Asks the runtime whether the predecessor's start had been — once that is surely over.
    pub(crate) fn query(&mut self) {
        let of_id = sys::proc::with_argument(&self.config.id);
        let starts: Vec<i32> = if of_id.is_empty() {
            Vec::new()
        } else {
            sys::proc::with_argument("start").into_iter().filter(|p| of_id.contains(p)).collect()
        };
        if !starts.is_empty() {
            self.query_rounds = self.query_rounds.saturating_sub(1);
            if self.query_rounds == 0 {
                starts.into_iter().for_each(sys::proc::kill_tree);
            }
            self.timers.query = Some(sys::clock::deadline(QUERY_PAUSE));
            return;
        }
        let file = std::fs::File::create(self.dir.join("query")).map(OwnedFd::from).ok();
        let stdio = Stdio3 { stdout: file, ..Stdio3::default() };
        if let Err(e) = self.run_job(Job::Query, &["state"], stdio) {
            eprintln!("criod-monitor: {}: runtime state: {e}", self.config.id);
            // It cannot have been started by this runtime either.
            self.queried(1);
        }
    }
}
