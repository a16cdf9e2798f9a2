//! The loop: waits for events and calls whom they concern.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_monitor::monitor::*;
use crilog::Stream;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use protobuf::Message;

use crate::exec::Execs;
use crate::handover::{maybe, stand, take};
use crate::keeper::Keeper;
use crate::life::{Running, Timers, Waiters};
use crate::logger::{Command, Done, Logger, Stand};
use crate::output::{Moved, Source, Tty};
use crate::poller::{Poller, Token};
use crate::pull::Pool;
use crate::rpc::{Answer, Code, Refusal, Request, Rpc, Waiter};
use crate::session::Sessions;
use crate::state::{self, State};
use crate::update::Updates;
use crate::upgrade::Upgrade;

/// Between looks at a terminal that nobody has open.
const TTY_RETRY: Duration = Duration::from_millis(100);
/// Between attempts to take connections where there is no descriptor for one.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// Between attempts to move output into a spool whose file system is full.
const SPOOL_RETRY: Duration = Duration::from_millis(500);

pub(crate) struct Monitor {
    pub(crate) dir: PathBuf,
    pub(crate) config: Config,
    pub(crate) state: State,
    pub(crate) poller: Poller,
    pub(crate) rpc: Rpc,
    pub(crate) keeper: Keeper,
    pub(crate) logger: Logger,
    pub(crate) pool: Pool,
    pub(crate) sources: [Source; 2],
    pub(crate) tty: Option<Tty>,
    /// Write end of the output pipe, until the terminal is there.
    pub(crate) tty_pipe: Option<OwnedFd>,
    /// Write end of the container's stdin.
    pub(crate) stdin: Option<OwnedFd>,
    /// Where the runtime sends the terminal to, while it creates.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) init: Option<OwnedFd>,
    /// A duplicate of the log's descriptor, for the keeper.
    pub(crate) log: Option<OwnedFd>,
    /// Runtime processes under way.
    pub(crate) jobs: Vec<Running>,
    /// Ends of children nobody has asked for yet; kept while a runtime call is under way.
    pub(crate) strays: Vec<(i32, i32)>,
    pub(crate) execs: Execs,
    pub(crate) sessions: Sessions,
    pub(crate) updates: Updates,
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) waiters: Waiters,
    pub(crate) timers: Timers,
    /// The program that init is until it becomes the container's.
    pub(crate) before_start: Option<(u64, u64)>,
    /// Rounds left of killing what outlived `runtime delete`.
    pub(crate) leftovers: u32,
    /// Rounds left of asking how an init ended that is not our child.
    pub(crate) init_rounds: u32,
    /// Rounds left of waiting for a predecessor's `runtime start`.
    pub(crate) query_rounds: u32,
    pub(crate) taking_over: bool,
    /// The container is deleted: end when the last answer is out.
    pub(crate) ending: bool,
    signals: SignalFd,
    timer: TimerFd,
    armed: Option<i64>,
    pub(crate) lock: Flock<File>,
}

impl Monitor {
    /// Sets everything up; `None` when another monitor of this folder lives.
    pub(crate) fn new(dir: PathBuf) -> io::Result<Option<Monitor>> {
        let Some(lock) = state::lock(&dir)? else { return Ok(None) };
        let state = State::load(&dir)?;
        let mut monitor = Monitor::make(dir, lock, state, None, None)?;
        monitor.listen_for_sessions();
        monitor.keeper.connect(&monitor.poller);
        monitor.take_over();
        Ok(Some(monitor))
    }

    /// One that goes on in the same process: everything but what [`Monitor::take`] takes.
    pub(crate) fn handed_over(dir: PathBuf, given: &mut Handover) -> io::Result<Monitor> {
        let lock = Flock::lock(File::from(take(given.lock)?), FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| e)?;
        let state = State::handed_over(&dir, given.state.take().unwrap_or_default());
        let listener = UnixListener::from(take(given.listener)?);
        let log = maybe(given.log)?;
        let file = log.as_ref().map(OwnedFd::try_clone).transpose()?.map(File::from);
        let stood = Some((stand(&given.log_thread), file));
        let mut monitor = Monitor::make(dir, lock, state, Some(listener), stood)?;
        monitor.log = log;
        if let Some(listener) = maybe(given.session_listener)? {
            monitor.sessions.listen_on(listener, &monitor.poller)?;
        }
        if let Some(conn) = maybe(given.keeper)? {
            monitor.keeper.take(conn.into(), &monitor.poller)?;
        }
        Ok(monitor)
    }

    /// One with nothing of the container's yet.
    fn make(
        dir: PathBuf,
        lock: Flock<File>,
        state: State,
        listening: Option<UnixListener>,
        stood: Option<(Stand, Option<File>)>,
    ) -> io::Result<Monitor> {
        let _ = nix::unistd::setsid();
        restore_files();
        nix::sys::prctl::set_child_subreaper(true)?;
        let mut mask = SigSet::empty();
        let ours = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
        ours.iter().for_each(|s| mask.add(*s));
        mask.thread_block()?;

        let config = state::config(&dir)?;
        let poller = Poller::new()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        poller.add(&signals, Token::Signals)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        poller.add(&timer, Token::Timer)?;
        let rpc = Rpc::new(listening.map_or_else(|| listener(&dir), Ok)?, &poller)?;
        let pool = Pool::new()?;
        poller.add(pool.event(), Token::Pulled)?;
        let sources =
            [Stream::Stdout, Stream::Stderr].map(|stream| Source::new(stream, &dir, &pool));
        let [out, err] = sources;
        let sources = [out?, err?];
        let spools = [sources[0].spool.clone(), sources[1].spool.clone()];
        let logger = Logger::start(&config.log_path, &dir, !config.no_sync_log, spools, stood)?;
        poller.add(logger.event(), Token::Logger)?;
        let keeper = Keeper::new(config.keeper.clone().into(), config.id.clone());
        Ok(Monitor {
            dir,
            config,
            state,
            poller,
            rpc,
            keeper,
            logger,
            sources,
            tty: None,
            tty_pipe: None,
            stdin: None,
            console: None,
            init: None,
            log: None,
            jobs: Vec::new(),
            strays: Vec::new(),
            execs: Execs::new(pool.clone()),
            pool,
            sessions: Sessions::default(),
            updates: Updates::default(),
            upgrade: None,
            waiters: Waiters::default(),
            timers: Timers::default(),
            before_start: None,
            leftovers: 0,
            init_rounds: 0,
            query_rounds: 0,
            taking_over: false,
            ending: false,
            signals,
            timer,
            armed: None,
            lock,
        })
    }

    /// Serves until the container is deleted.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            self.arm();
            if self.ending && self.rpc.flushed() {
                return Ok(());
            }
            for token in self.poller.wait()? {
                self.dispatch(token);
            }
        }
    }

    fn dispatch(&mut self, token: Token) {
        match token {
            Token::Signals => {
                // SIGTERM and the like are meant for the container, if at all, and it has had them.
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Token::Timer => {
                let _ = self.timer.wait();
                self.armed = None;
                self.tick();
            }
            Token::Listener => {
                if !self.rpc.accept(&self.poller) {
                    self.accept_later();
                }
            }
            Token::Conn(key) => {
                for request in self.rpc.serve(key, &self.poller) {
                    self.call(request);
                }
            }
            Token::Keeper => {
                if self.keeper.readable() {
                    self.hand_spares();
                }
            }
            Token::Logger => self.logged(),
            Token::Init => self.adopted_init_ended(),
            Token::Console => self.take_console(),
            Token::Tty => self.pump_tty(),
            Token::Pulled => self.pulled(),
            Token::Stdout => self.pump(0),
            Token::Stderr => self.pump(1),
            Token::ExecStdout(n) | Token::ExecStderr(n) => self.pump_exec(n),
            Token::Sessions => self.accept_sessions(),
            Token::Session(key) => self.session_speaks(key),
            Token::SessionConsole(key) => self.take_session_console(key),
            Token::Input(key) => self.pump_input(key),
            Token::LateStdout(key) => self.sources[0].taps.flush(key, &self.poller),
            Token::LateStderr(key) => self.sources[1].taps.flush(key, &self.poller),
        }
    }

    /// There is no descriptor for another connection: they wait, and the sockets are not watched
    /// for a while.
    pub(crate) fn accept_later(&mut self) {
        self.rpc.listen(&self.poller, false);
        self.sessions.listen(&self.poller, false);
        self.timers.accept = Some(sys::clock::deadline(ACCEPT_RETRY));
    }

    fn call(&mut self, request: Request) {
        let Request { waiter, service, method, payload } = request;
        let refused = if service == api_monitor::SERVICE {
            match self.route(waiter, &method, &payload) {
                Ok(()) => return,
                Err(refusal) => refusal,
            }
        } else {
            Refusal::new(Code::Unimplemented, format!("no service {service}"))
        };
        self.answer(waiter, Err(refused));
    }

    /// Starts a call. `Ok`: it has been answered, or will be.
    fn route(&mut self, waiter: Waiter, method: &str, payload: &[u8]) -> Result<(), Refusal> {
        match method {
            "State" => {
                let state = self.state.now.clone();
                self.answer(waiter, Ok(&state));
            }
            "Create" => self.create(waiter),
            "Start" => self.start(waiter),
            "Stop" => {
                let asked = parse::<StopRequest>(payload)?;
                let signal = if asked.signal == 0 { Signal::SIGTERM as i32 } else { asked.signal };
                self.stop(signal, Duration::from_millis(asked.timeout_ms))?;
                self.answer(waiter, Ok(&StopResponse::new()));
            }
            "Wait" => self.wait(waiter),
            "ReopenLog" => {
                if self.waiters.reopen.is_empty() {
                    self.logger.send(Command::Reopen);
                }
                self.waiters.reopen.push(waiter);
            }
            "Update" => self.update(waiter, parse(payload)?)?,
            "ExecSync" => self.exec(waiter, parse(payload)?)?,
            "Delete" => self.delete(waiter),
            "Upgrade" => self.upgrade(waiter, parse(payload)?)?,
            _ => {
                let text = format!("criod-monitor {} has no {method}", env!("CARGO_PKG_VERSION"));
                return Err(Refusal::new(Code::Unimplemented, text));
            }
        }
        Ok(())
    }

    pub(crate) fn answer(&mut self, waiter: Waiter, answer: Result<&dyn Answer, Refusal>) {
        self.rpc.reply(waiter, answer, &self.poller);
    }

    pub(crate) fn answer_all(
        &mut self,
        waiters: Vec<Waiter>,
        answer: Result<&dyn Answer, Refusal>,
    ) {
        for waiter in waiters {
            self.answer(waiter, answer.clone());
        }
    }

    /// Writes the state down. Where that fails there is nothing to do but to say so and go on.
    pub(crate) fn save(&self) {
        if let Err(e) = self.state.save() {
            eprintln!("criod-monitor: {}: state: {e}", self.config.id);
        }
    }

    /// Takes in every child that has ended. Init's end is written down before it is reaped, so
    /// that at any instant it is in the state or still a zombie for the keeper to find.
    pub(crate) fn reap(&mut self) {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(status) = waitid(Id::All, peek) {
            let (pid, raw) = match status {
                WaitStatus::Exited(pid, code) => (pid.as_raw(), (code & 0xff) << 8),
                WaitStatus::Signaled(pid, signal, core) => {
                    (pid.as_raw(), signal as i32 | if core { 0x80 } else { 0 })
                }
                _ => return,
            };
            let init = pid == self.state.now.pid && self.state.now.exit.is_none();
            if init {
                self.note_exit(raw, sys::clock::realtime(), false);
            }
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
            if init {
                self.init_ended();
            } else if let Some(at) = self.jobs.iter().position(|r| r.pid == pid) {
                let done = self.jobs.swap_remove(at);
                self.job_done(done.job, raw);
            } else if !self.exec_ended(pid, raw)
                && !self.session_ended(pid, raw)
                && !self.jobs.is_empty()
            {
                self.strays.push((pid, raw));
            }
            if self.jobs.is_empty() {
                self.strays.clear();
            }
        }
    }

    fn logged(&mut self) {
        let mut stands = false;
        for done in self.logger.done() {
            match done {
                Done::Opened(result) => {
                    let result = self.keep_log(result);
                    self.log_opened(result);
                }
                Done::Reopened(result) => {
                    let answer = self.keep_log(result);
                    let waiters = std::mem::take(&mut self.waiters.reopen);
                    match answer {
                        Ok(()) => self.answer_all(waiters, Ok(&ReopenLogResponse::new())),
                        Err(text) => {
                            self.answer_all(waiters, Err(Refusal::new(Code::Internal, text)));
                        }
                    }
                }
                Done::Flushed => self.exited(),
                Done::Paused => stands = true,
            }
        }
        // It may have made room.
        self.pump(0);
        self.pump(1);
        if stands {
            self.log_stands();
        }
    }

    fn keep_log(&mut self, result: Result<Option<OwnedFd>, String>) -> Result<(), String> {
        self.log = result?;
        if let Some(log) = &self.log
            && !self.ending
        {
            self.keeper.spare("log", log.as_fd());
        }
        self.logger.send(Command::Kept);
        Ok(())
    }

    /// Moves output of one stream on.
    pub(crate) fn pump(&mut self, n: usize) {
        if self.sources[n].pipe.is_none() {
            return;
        }
        let moved = self.pump_source(n);
        match moved {
            Moved::Full => self.timers.spool = Some(sys::clock::deadline(SPOOL_RETRY)),
            Moved::End => {
                if let Some(inode) = self.state.now.pipes.get_mut(n) {
                    *inode = 0;
                    self.save();
                }
                self.keeper.drop_spare(if n == 0 { "stdout" } else { "stderr" });
            }
            Moved::Empty | Moved::More | Moved::Held => {}
        }
        if n == 0 && moved != Moved::Full && self.tty.is_some() && self.timers.tty.is_none() {
            self.watch_tty();
        }
        self.check_drained();
    }

    /// A pipe that was held has been taken from, whichever it was.
    fn pulled(&mut self) {
        self.pool.seen();
        self.pump(0);
        self.pump(1);
        self.pump_execs();
    }

    pub(crate) fn watch_tty(&mut self) {
        if let Some(tty) = &self.tty {
            // Already watched: EEXIST.
            let _ = self.poller.add(&tty.master, Token::Tty);
            if self.typing_waits() {
                self.sessions.room_watched = true;
                let _ = self.poller.set_writable(&tty.master, Token::Tty, true);
            }
        }
    }

    pub(crate) fn pump_tty(&mut self) {
        let Some(tty) = &self.tty else { return };
        let moved = tty.pump();
        if moved == Moved::End {
            self.poller.remove(&tty.master);
            if self.state.now.exit.is_some() {
                // Init has ended and nobody has it open: this is the end of the output.
                self.tty = None;
                self.keeper.drop_spare("tty");
                self.keeper.drop_spare("ttyout");
            } else {
                self.timers.tty = Some(sys::clock::deadline(TTY_RETRY));
            }
        }
        if self.pump_source(0) == Moved::Full {
            if let Some(tty) = &self.tty {
                self.poller.remove(&tty.master);
            }
            self.timers.spool = Some(sys::clock::deadline(SPOOL_RETRY));
        }
        self.pump_inputs();
        self.check_drained();
    }

    fn pump_source(&mut self, n: usize) -> Moved {
        let before = self.sources[n].end();
        let moved = self.sources[n].pump(&self.poller);
        if self.sources[n].end() != before {
            self.logger.notify();
            self.cut_slow(n);
        }
        moved
    }

    /// Everything that the keeper should hold for a successor.
    pub(crate) fn hand_spares(&mut self) -> bool {
        let mut held = true;
        let (keeper, tty) = (&mut self.keeper, &self.tty);
        for (name, fd) in [
            ("stdout", self.sources[0].pipe.as_deref()),
            ("stderr", self.sources[1].pipe.as_deref()),
            ("stdin", self.stdin.as_ref()),
            ("tty", tty.as_ref().map(|t| &t.master)),
            ("ttyout", tty.as_ref().map(|t| &t.pipe)),
            ("init", self.init.as_ref()),
            ("log", self.log.as_ref()),
        ] {
            if let Some(fd) = fd {
                held &= keeper.spare(name, fd.as_fd());
            }
        }
        if self.state.now.stdin_taken && self.stdin.is_none() {
            // It may not have heard of it.
            keeper.drop_spare("stdin");
        }
        let pid = self.state.now.pid;
        if pid > 0 && self.state.now.exit.is_none() {
            held &= keeper.watch(pid);
        }
        held
    }

    /// Does what is due.
    fn tick(&mut self) {
        let now = sys::clock::boottime();
        let due = |timer: &mut Option<i64>| timer.take_if(|t| *t <= now).is_some();
        if due(&mut self.timers.keeper) {
            self.keeper.greet(&self.poller);
        }
        if due(&mut self.timers.spool) {
            self.pump(0);
            self.pump(1);
        }
        if due(&mut self.timers.accept) {
            self.rpc.listen(&self.poller, true);
            self.sessions.listen(&self.poller, true);
        }
        if due(&mut self.timers.tty) {
            self.watch_tty();
        }
        if due(&mut self.timers.init) {
            self.adopted_init_ended();
        }
        if due(&mut self.timers.query) {
            self.query();
        }
        if due(&mut self.timers.leftover) {
            self.kill_leftovers();
        }
        if due(&mut self.timers.heed) {
            self.send_stop_signal();
        }
        if due(&mut self.timers.kill) {
            self.kill_now();
        }
        if due(&mut self.timers.drain) {
            self.begin_flush();
        }
        if due(&mut self.timers.flush) {
            self.exited_before_log();
        }
        if due(&mut self.timers.upgrade) {
            self.upgrade_late();
        }
        self.expire_jobs(now);
        self.expire_execs(now);
        self.expire_sessions(now);
    }

    /// Sets the timer to what is due next.
    fn arm(&mut self) {
        if self.timers.keeper.is_none()
            && let Some(after) = self.keeper.retry()
        {
            self.timers.keeper = Some(sys::clock::deadline(after));
        }
        let t = &self.timers;
        let fixed = [
            t.keeper, t.spool, t.accept, t.tty, t.kill, t.drain, t.flush, t.init, t.query,
            t.leftover, t.heed, t.upgrade,
        ];
        let jobs = self.jobs.iter().filter_map(|r| r.deadline);
        let sessions = self.sessions.next_deadline();
        let execs = self.execs.next_deadline();
        let next = fixed.into_iter().flatten().chain(jobs).chain(execs).chain(sessions).min();
        if next == self.armed {
            return;
        }
        self.armed = next;
        let set = match next {
            Some(at) => {
                let at =
                    TimeSpec::from(Duration::from_nanos(u64::try_from(at.max(1)).unwrap_or(1)));
                self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            }
            None => self.timer.unset(),
        };
        if let Err(e) = set {
            eprintln!("criod-monitor: {}: timer: {e}", self.config.id);
        }
    }
}

/// Goes back to the limit of open files that the keeper had, for the runtime and the container
/// inherit ours.
fn restore_files() {
    let wanted = std::env::var(sys::SOFT_FILES).ok().and_then(|n| n.parse().ok());
    if let Some(soft) = wanted
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
    }
}

fn parse<M: Message>(payload: &[u8]) -> Result<M, Refusal> {
    M::parse_from_bytes(payload).map_err(|e| Refusal::new(Code::InvalidArgument, e.to_string()))
}

/// The listening socket: stdin, where criod has bound one; else `monitor.sock` in the folder.
fn listener(dir: &Path) -> io::Result<UnixListener> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    let inherited = UnixListener::from(stdin);
    if inherited.local_addr().is_ok() {
        return Ok(inherited);
    }
    let path = dir.join("monitor.sock");
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(sys::seqpacket::short_path(&path)?.0)
}
