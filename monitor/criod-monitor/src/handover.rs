//! What a monitor hands over to the program that it becomes: all that is in its memory and must not
//! be lost, as a message in a memory file, and descriptors, which keep their numbers.
//!
//! ```text
//! old: Monitor ─give─▶ Handover + list of descriptors ─execve─▶ take ─▶ Monitor :new
//! ```
//! What is not handed over is made anew: the epoll set, the timer, the log thread (it stands still
//! between two records meanwhile). Signals that come meanwhile stay pending, children that end
//! stay zombies.
//!
//! [`FORMAT`] grows when something is added that a successor must not pass over; what may be passed
//! over only grows the message. One that says more than this program knows is refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use api_monitor::monitor::handover::{self, Call, Ended, RuntimeCall, Timers, Verb};
use api_monitor::monitor::{Handover, Phase, StateResponse};
use protobuf::{EnumOrUnknown, Message, MessageField};

use crate::life::{self, Job, Running, Waiters};
use crate::logger::Stand;
use crate::monitor::Monitor;
use crate::progress;
use crate::rpc::Waiter;
use crate::state;

/// Which format this program writes, and the last one that it reads.
pub(crate) const FORMAT: u32 = 1;

/// Descriptors on their way to a successor.
#[derive(Default)]
pub(crate) struct Giving<'a>(pub(crate) Vec<BorrowedFd<'a>>);

impl<'a> Giving<'a> {
    /// The number by which the successor knows it.
    pub(crate) fn fd(&mut self, fd: &'a impl AsFd) -> i32 {
        let fd = fd.as_fd();
        self.0.push(fd);
        fd.as_raw_fd()
    }

    /// 0: there is none.
    pub(crate) fn maybe(&mut self, fd: Option<&'a impl AsFd>) -> i32 {
        fd.map_or(0, |fd| self.fd(fd))
    }
}

/// Takes a descriptor that there must be.
pub(crate) fn take(number: i32) -> io::Result<OwnedFd> {
    sys::replace::inherited(number)
}

/// Takes one that there may be.
pub(crate) fn maybe(number: i32) -> io::Result<Option<OwnedFd>> {
    if number == 0 { Ok(None) } else { take(number).map(Some) }
}

pub(crate) fn wrong(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

pub(crate) fn call(waiter: Waiter) -> MessageField<Call> {
    let Waiter { conn, stream } = waiter;
    MessageField::some(Call { connection: conn, stream, ..Call::new() })
}

pub(crate) fn waiter(call: &Call) -> Waiter {
    Waiter { conn: call.connection, stream: call.stream }
}

/// Reads what was handed over; refuses what this program does not know.
pub(crate) fn read(file: &File) -> io::Result<Handover> {
    let handover = Handover::parse_from_bytes(&sys::replace::read_all(file)?)
        .map_err(|e| wrong(format!("what is handed over: {e}")))?;
    if handover.format == 0 || handover.format > FORMAT {
        let format = handover.format;
        return Err(wrong(format!("format {format} is handed over, {FORMAT} is the last known")));
    }
    known(handover.state.as_ref().ok_or_else(|| wrong("no state is handed over"))?)?;
    Ok(handover)
}

fn known(state: &StateResponse) -> io::Result<()> {
    state.phase.enum_value().map(|_: Phase| ()).map_err(|n| wrong(format!("phase {n} is unknown")))
}

/// `--check-state`: whether this program could go on from what stands in the folder, and from what
/// would be handed over.
pub(crate) fn check(dir: &Path, memory: &File) -> io::Result<()> {
    let named = |name: &'static str| move |e: io::Error| wrong(format!("{name}: {e}"));
    state::config(dir).map_err(named("config"))?;
    known(&state::read(dir).map_err(named("state"))?).map_err(named("state"))?;
    progress::check(&dir.join("progress")).map_err(named("progress"))?;
    let handover = read(memory)?;
    // What can be told without the descriptors.
    handover.runtime_calls.iter().try_for_each(|c| running(c).map(drop))?;
    match handover.streams.len() {
        2 => Ok(()),
        n => Err(wrong(format!("{n} streams are handed over"))),
    }
}

fn given_call(running: &Running) -> RuntimeCall {
    let (verb, exec) = match running.job {
        Job::Create => (Verb::VERB_CREATE, 0),
        Job::Start => (Verb::VERB_START, 0),
        Job::Kill => (Verb::VERB_KILL, 0),
        Job::Delete => (Verb::VERB_DELETE, 0),
        Job::Cleanup => (Verb::VERB_CLEANUP, 0),
        Job::Restart => (Verb::VERB_RESTART, 0),
        Job::Query => (Verb::VERB_QUERY, 0),
        Job::Update => (Verb::VERB_UPDATE, 0),
        Job::Exec(n) => (Verb::VERB_EXEC, n),
        // It is over when anything is handed over for good.
        Job::Check => (Verb::VERB_KILL, 0),
    };
    let verb = EnumOrUnknown::new(verb);
    let Running { pid, deadline, .. } = *running;
    RuntimeCall { pid, verb, exec, deadline, ..RuntimeCall::new() }
}

fn running(call: &RuntimeCall) -> io::Result<Running> {
    let job = match call.verb.enum_value() {
        Ok(Verb::VERB_CREATE) => Job::Create,
        Ok(Verb::VERB_START) => Job::Start,
        Ok(Verb::VERB_KILL) => Job::Kill,
        Ok(Verb::VERB_DELETE) => Job::Delete,
        Ok(Verb::VERB_CLEANUP) => Job::Cleanup,
        Ok(Verb::VERB_RESTART) => Job::Restart,
        Ok(Verb::VERB_QUERY) => Job::Query,
        Ok(Verb::VERB_UPDATE) => Job::Update,
        Ok(Verb::VERB_EXEC) => Job::Exec(call.exec),
        Ok(Verb::VERB_NONE) | Err(_) => {
            return Err(wrong(format!("runtime call {:?} is unknown", call.verb)));
        }
    };
    Ok(Running { pid: call.pid, job, deadline: call.deadline })
}

fn given_timers(t: &life::Timers) -> Timers {
    Timers {
        keeper: t.keeper,
        spool: t.spool,
        accept: t.accept,
        tty: t.tty,
        kill: t.kill,
        heed: t.heed,
        init: t.init,
        query: t.query,
        leftover: t.leftover,
        drain: t.drain,
        flush: t.flush,
        patience: u64::try_from(t.patience.as_nanos()).unwrap_or(u64::MAX),
        ..Timers::new()
    }
}

fn timers(t: &Timers) -> life::Timers {
    life::Timers {
        keeper: t.keeper,
        spool: t.spool,
        accept: t.accept,
        tty: t.tty,
        kill: t.kill,
        heed: t.heed,
        init: t.init,
        query: t.query,
        leftover: t.leftover,
        drain: t.drain,
        flush: t.flush,
        upgrade: None,
        patience: std::time::Duration::from_nanos(t.patience),
    }
}

fn given_waiters(w: &Waiters, upgrade: &[Waiter]) -> handover::Waiting {
    let calls = |all: &[Waiter]| all.iter().filter_map(|w| call(*w).into_option()).collect();
    handover::Waiting {
        create: calls(&w.create),
        start: calls(&w.start),
        wait: calls(&w.wait),
        reopen: calls(&w.reopen),
        delete: calls(&w.delete),
        upgrade: calls(upgrade),
        ..handover::Waiting::new()
    }
}

fn waiters(w: &handover::Waiting) -> Waiters {
    let all = |calls: &[Call]| calls.iter().map(waiter).collect();
    Waiters {
        create: all(&w.create),
        start: all(&w.start),
        wait: all(&w.wait),
        reopen: all(&w.reopen),
        delete: all(&w.delete),
    }
}

pub(crate) fn given_stand(stand: Stand) -> handover::LogThread {
    let Stand { open, flush, ours_alone } = stand;
    let flush = flush.map_or_else(Vec::new, Vec::from);
    handover::LogThread { open, flush, ours_alone, ..handover::LogThread::new() }
}

pub(crate) fn stand(thread: &handover::LogThread) -> Stand {
    let flush = thread.flush.as_slice().try_into().ok();
    Stand { open: thread.open, flush, ours_alone: thread.ours_alone }
}

impl Monitor {
    /// All that a successor needs, and the descriptors that it needs with it.
    pub(crate) fn give(&self, stand: Stand) -> (Handover, Giving<'_>) {
        let mut fds = Giving::default();
        let handover = Handover {
            format: FORMAT,
            state: MessageField::some(self.state.now.clone()),
            lock: fds.fd(&*self.lock),
            listener: fds.fd(self.rpc.listener()),
            session_listener: fds.maybe(self.sessions.listener()),
            keeper: fds.maybe(self.keeper.link()),
            log: fds.maybe(self.log.as_ref()),
            stdin: fds.maybe(self.stdin.as_ref()),
            tty: fds.maybe(self.tty.as_ref().map(|t| &t.master)),
            tty_pipe: fds.maybe(self.tty.as_ref().map(|t| &t.pipe).or(self.tty_pipe.as_ref())),
            console: fds.maybe(self.console.as_ref()),
            init: fds.maybe(self.init.as_ref()),
            streams: self.sources.iter().map(|s| s.give(&mut fds)).collect(),
            log_thread: MessageField::some(given_stand(stand)),
            connections: self.rpc.give(&mut fds),
            next_connection: self.rpc.next(),
            waiting: MessageField::some(given_waiters(&self.waiters, self.upgrading())),
            timers: MessageField::some(given_timers(&self.timers)),
            runtime_calls: self.jobs.iter().map(given_call).collect(),
            strays: self
                .strays
                .iter()
                .map(|(pid, status)| Ended { pid: *pid, status: *status, ..Ended::new() })
                .collect(),
            execs: self.execs.give(&mut fds),
            next_number: self.execs.next(),
            sessions: self.sessions.all.iter().map(|s| s.give(&mut fds)).collect(),
            updates: self
                .updates
                .iter()
                .map(|(waiter, resources)| handover::Update {
                    call: call(*waiter),
                    resources: resources.clone(),
                    ..handover::Update::new()
                })
                .collect(),
            before_start: self.before_start.map_or_else(Vec::new, |(dev, ino)| vec![dev, ino]),
            leftovers: self.leftovers,
            init_rounds: self.init_rounds,
            query_rounds: self.query_rounds,
            ..Handover::new()
        };
        (handover, fds)
    }

    /// Takes what was handed over, but what it was made with already; returns who waits to hear of
    /// it.
    pub(crate) fn take(&mut self, given: Handover) -> io::Result<Vec<Waiter>> {
        self.stdin = maybe(given.stdin)?;
        self.take_tty(maybe(given.tty)?, maybe(given.tty_pipe)?, maybe(given.console)?)?;
        self.init = maybe(given.init)?;
        for (source, stream) in self.sources.iter_mut().zip(given.streams) {
            source.take(stream, &self.poller)?;
        }
        self.rpc.take(given.connections, given.next_connection, &self.poller)?;
        let waiting = given.waiting.unwrap_or_default();
        self.waiters = waiters(&waiting);
        self.timers = timers(&given.timers.unwrap_or_default());
        self.jobs = given.runtime_calls.iter().map(running).collect::<io::Result<_>>()?;
        self.strays = given.strays.iter().map(|e| (e.pid, e.status)).collect();
        self.take_execs(given.execs, given.next_number)?;
        for session in given.sessions {
            self.sessions.take_over(session, &self.poller)?;
        }
        self.updates = given.updates.into_iter().map(|u| (waiter(&u.call), u.resources)).collect();
        self.before_start = match given.before_start[..] {
            [dev, ino] => Some((dev, ino)),
            _ => None,
        };
        self.leftovers = given.leftovers;
        self.init_rounds = given.init_rounds;
        self.query_rounds = given.query_rounds;
        Ok(waiting.upgrade.iter().map(waiter).collect())
    }
}
