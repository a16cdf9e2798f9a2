//! The keeper's loop: one thread, one epoll, requests answered in the order they come.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use sys::seqpacket::{self, Conn, Message};

use crate::exits::{Exit, Exits};
use crate::upgrade::{self, Upgrade};

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) socket: PathBuf,
    /// Folders of the cgroup to join, one per hierarchy.
    pub(crate) cgroups: Vec<PathBuf>,
    /// Descriptor of what this process hands over that has been another program until now.
    pub(crate) handover: Option<RawFd>,
}

impl Options {
    /// `Ok(None)`: everything was said already.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Options::default();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--socket" => options.socket = value()?.into(),
                "--cgroup" => options.cgroups.push(value()?.into()),
                "--handover" => {
                    let number = value()?;
                    let number = number.parse().map_err(|_| format!("{number:?} is no number"))?;
                    options.handover = Some(number);
                }
                // What would be handed over comes as stdin.
                "--check-state" => return upgrade::check().map(|()| None),
                "--version" => {
                    println!("criod-keeper {}", env!("CARGO_PKG_VERSION"));
                    return Ok(None);
                }
                _ => return Err(format!("unknown argument {arg:?}")),
            }
        }
        if options.socket.as_os_str().is_empty() {
            return Err("--socket PATH is needed".into());
        }
        Ok(Some(options))
    }
}

/// Between two looks at whose socket stands at our path, while nothing else happens, in milliseconds.
const LOOK: u16 = 30_000;

pub(crate) const LISTENER: u64 = 0;
pub(crate) const SIGNALS: u64 = 1;
const FIRST_CONN: u64 = 2;
/// Ids in one answer to LIST.
const PAGE: usize = 100;

pub(crate) struct Keeper {
    epoll: Epoll,
    pub(crate) options: Options,
    /// The file of our listening socket.
    pub(crate) place: Option<(u64, u64)>,
    pub(crate) listener: OwnedFd,
    signals: SignalFd,
    pub(crate) conns: BTreeMap<u64, Conn>,
    pub(crate) next_conn: u64,
    pub(crate) spares: BTreeMap<String, BTreeMap<String, OwnedFd>>,
    /// Processes whose end is to be remembered, and whose they are.
    pub(crate) watched: HashMap<i32, String>,
    pub(crate) exits: Exits,
    /// The limit of open files that our children are to go back to.
    pub(crate) soft_files: Option<u64>,
    /// A program that this one is to become.
    pub(crate) upgrade: Option<Upgrade>,
}

/// What a keeper begins with.
pub(crate) struct Parts {
    pub(crate) listener: OwnedFd,
    pub(crate) place: Option<(u64, u64)>,
    pub(crate) exits: Exits,
    pub(crate) soft_files: Option<u64>,
}

pub(crate) type Answer = Result<(Vec<String>, Vec<OwnedFd>), String>;

fn ok() -> Answer {
    Ok((Vec::new(), Vec::new()))
}

impl Keeper {
    pub(crate) fn new(options: &Options) -> io::Result<Keeper> {
        for dir in &options.cgroups {
            if let Err(e) = fs::write(dir.join("cgroup.procs"), "0") {
                eprintln!("criod-keeper: {}: {e}", dir.display());
            }
        }
        let soft_files = raise_files();
        let exits = Exits::open(&exits_file(options))?;
        let listener = seqpacket::listen_at(&options.socket)?;
        let place = place(&options.socket);
        Keeper::make(options, Parts { listener, place, exits, soft_files })
    }

    pub(crate) fn make(options: &Options, parts: Parts) -> io::Result<Keeper> {
        let Parts { listener, place, exits, soft_files } = parts;
        nix::sys::prctl::set_child_subreaper(true)?;
        // It fails where we lead a session already, as under systemd.
        let _ = nix::unistd::setsid();
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
        Ok(Keeper {
            epoll,
            place,
            options: options.clone(),
            listener,
            signals,
            conns: BTreeMap::new(),
            next_conn: FIRST_CONN,
            spares: BTreeMap::new(),
            watched: HashMap::new(),
            exits,
            soft_files,
            upgrade: None,
        })
    }

    /// Goes on with a connection that was handed over.
    pub(crate) fn take_conn(&mut self, key: u64, conn: Conn) -> io::Result<()> {
        self.epoll.add(&conn, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
        self.conns.insert(key, conn);
        Ok(())
    }

    /// Serves until SIGTERM or SIGINT, or until another keeper has its place.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let wait = self.upgrade.as_ref().map_or(LOOK, |u| u.left().min(LOOK));
            let n = match self.epoll.wait(&mut events, EpollTimeout::from(wait)) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            self.expire_upgrade();
            if self.replaced() {
                eprintln!("criod-keeper: another one listens in this one's place");
                return Ok(());
            }
            for event in &events[..n] {
                match event.data() {
                    LISTENER => self.accept(),
                    SIGNALS => {
                        if self.signal() {
                            return Ok(());
                        }
                    }
                    conn => self.serve(conn),
                }
            }
        }
    }

    /// Another socket stands at our path: nobody can reach us any more, as when we were stopped for
    /// so long that criod started another. What we hold is held there by now, and a listening socket
    /// that only we hold would take connections that nobody serves.
    fn replaced(&self) -> bool {
        place(&self.options.socket).is_some_and(|now| Some(now) != self.place)
    }

    fn accept(&mut self) {
        loop {
            let conn = match seqpacket::accept(self.listener.as_fd()) {
                Ok(conn) => conn,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors: the latest goes, for monitors are not those who come in
                // crowds.
                Err(_) => match self.conns.pop_last() {
                    Some(_) => continue,
                    None => return,
                },
            };
            let key = self.next_conn;
            self.next_conn += 1;
            if self.epoll.add(&conn, EpollEvent::new(EpollFlags::EPOLLIN, key)).is_ok() {
                self.conns.insert(key, conn);
            }
        }
    }

    /// True: end.
    fn signal(&mut self) -> bool {
        let mut end = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            end |= [libc_signal(Signal::SIGTERM), libc_signal(Signal::SIGINT)]
                .contains(&info.ssi_signo);
        }
        self.reap();
        end
    }

    /// Takes in every child that has ended. A watched one is written down before it is reaped.
    pub(crate) fn reap(&mut self) {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(status) = waitid(Id::All, peek) {
            let (pid, raw) = match status {
                WaitStatus::Exited(pid, code) => (pid, (code & 0xff) << 8),
                WaitStatus::Signaled(pid, signal, core) => {
                    (pid, signal as i32 | if core { 0x80 } else { 0 })
                }
                _ => return,
            };
            if self.upgrade.as_ref().is_some_and(|u| u.pid() == pid.as_raw()) {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                self.checked(raw);
                continue;
            }
            if let Some(id) = self.watched.remove(&pid.as_raw()) {
                let time = sys::clock::realtime();
                self.exits.add(pid.as_raw(), Exit { id, status: raw, time });
            }
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
    }

    fn serve(&mut self, key: u64) {
        let Some(conn) = self.conns.get(&key) else { return };
        let message = match conn.recv() {
            Ok(Some(message)) => message,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => {
                self.conns.remove(&key);
                return;
            }
        };
        if let [verb, program] = &message.fields[..]
            && verb == "UPGRADE"
        {
            return match self.begin_upgrade(key, program) {
                // The answer comes later.
                Ok(()) => {}
                Err(text) => self.send(key, &Err(text)),
            };
        }
        let answer = self.answer(message);
        self.send(key, &answer);
    }

    pub(crate) fn send(&mut self, key: u64, answer: &Answer) {
        let Some(conn) = self.conns.get(&key) else { return };
        let sent = match answer {
            Ok((words, fds)) => {
                let mut fields = vec!["OK"];
                fields.extend(words.iter().map(String::as_str));
                conn.send(&fields, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())
            }
            Err(text) => conn.send(&["ERR", text], &[]),
        };
        // One that does not read its answers is cut off, so that it cannot hold up the others.
        if sent.is_err() {
            self.conns.remove(&key);
        }
    }

    fn answer(&mut self, message: Message) -> Answer {
        let Message { fields, mut fds } = message;
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        match fields[..] {
            ["PING"] => Ok((
                vec![env!("CARGO_PKG_VERSION").to_owned(), std::process::id().to_string()],
                Vec::new(),
            )),
            ["FORK", id, program, ref args @ ..] => self.fork(id, program, args, fds),
            ["SPARE", id, name] => {
                let fd = fds.pop().ok_or("SPARE without a descriptor")?;
                let of_id = self.spares.entry(id.to_owned()).or_default();
                if !of_id.contains_key(name) && of_id.len() >= seqpacket::MAX_FDS {
                    return Err(format!("{id} holds {} spares already", of_id.len()));
                }
                of_id.insert(name.to_owned(), fd);
                ok()
            }
            ["DROP", id] => {
                self.spares.remove(id);
                self.watched.retain(|_, of| of != id);
                self.exits.forget(id);
                ok()
            }
            ["DROP", id, name] => {
                if let Some(of_id) = self.spares.get_mut(id) {
                    of_id.remove(name);
                }
                ok()
            }
            ["GET", id] => self.get(id),
            ["WATCH", id, pid] => {
                let pid = pid.parse().map_err(|_| format!("{pid:?} is no pid"))?;
                // Another container's process of the same pid is long gone.
                self.exits.forget_pid(pid, id);
                if self.exits.get(pid).is_none() {
                    self.watched.insert(pid, id.to_owned());
                }
                ok()
            }
            ["REAP", pid] | ["REAP", _, pid] => {
                let pid: i32 = pid.parse().map_err(|_| format!("{pid:?} is no pid"))?;
                self.reap();
                let of = (fields.len() == 3).then(|| fields[1]);
                Ok((self.end_of(pid, of), Vec::new()))
            }
            ["LIST", after] => {
                let from = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
                let ids = self.spares.range::<str, _>(from).map(|(id, _)| id.clone());
                Ok((ids.take(PAGE).collect(), Vec::new()))
            }
            _ => Err(format!("unknown message {:?}", fields.first())),
        }
    }

    fn end_of(&self, pid: i32, of: Option<&str>) -> Vec<String> {
        if let Some(exit) = self.exits.get(pid)
            && of.is_none_or(|id| id == exit.id)
        {
            return vec![exit.status.to_string(), exit.time.to_string()];
        }
        // Ours and alive: waitid finds it. Anyone else's is no concern of ours.
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(Pid::from_raw(pid)), peek) {
            Ok(_) => vec!["running".into()],
            Err(_) => vec!["unknown".into()],
        }
    }

    fn get(&self, id: &str) -> Answer {
        let mut names = Vec::new();
        let mut fds = Vec::new();
        for (name, fd) in self.spares.get(id).into_iter().flatten() {
            fds.push(fd.try_clone().map_err(|e| format!("{id}/{name}: {e}"))?);
            names.push(name.clone());
        }
        Ok((names, fds))
    }

    fn fork(&mut self, id: &str, program: &str, args: &[&str], fds: Vec<OwnedFd>) -> Answer {
        let mut fds = fds.into_iter();
        let mut stdio = || fds.next().map_or_else(Stdio::null, Stdio::from);
        let child = Command::new(program)
            .args(args)
            .stdin(stdio())
            .stderr(stdio())
            .stdout(Stdio::null())
            .current_dir("/")
            // What criod was started with is nobody else's business.
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(self.soft_files.map(|n| (sys::SOFT_FILES, n.to_string())))
            .spawn()
            .map_err(|e| format!("{id}: {program}: {e}"))?;
        let pid = i32::try_from(child.id()).map_err(|e| e.to_string())?;
        // It is still ours to reap, so the pid names it whether it lives or not.
        let pidfd = sys::pidfd::open(pid).map_err(|e| format!("{id}: pidfd of {pid}: {e}"))?;
        Ok((vec![pid.to_string()], vec![pidfd]))
    }
}

/// Where the ends of watched processes are written down.
pub(crate) fn exits_file(options: &Options) -> PathBuf {
    options.socket.with_extension("exits")
}

/// What file stands at a path.
fn place(path: &Path) -> Option<(u64, u64)> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Raises the limit of open files as far as it may be: there are a handful for each container.
/// Returns what it was, where it was lower.
fn raise_files() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok()).then_some(soft)
}

fn libc_signal(signal: Signal) -> u32 {
    signal as u32
}
