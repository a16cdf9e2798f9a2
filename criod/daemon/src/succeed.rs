//! A reload: one criod after another, without a call that fails for it but those that cannot go on.
//!
//! ```text
//!   old                                      successor
//!   SIGHUP ── starts it ───────────────────▶ (launch) ──forks──▶ reads the configuration, checks it
//!   serves on                                                         │
//!        ◀───────── CHECKED pid version root runroot ─────────────────┤   or FAILED text, or its end:
//!   accepts no more; answers every call but ExecSync (Unavailable)    │   then old serves on, and says why
//!   ends all its work; unlocks store and runroot                      │
//!   MAINPID=… to the service manager                                  │   old gone before GO: it ends, too
//!        ── GO name + the listening socket ──────────────────────────▶│
//!   relays ExecSync calls                                        locks, loads, serves, READY=1
//!        ── AGAIN, for a SIGHUP that came here ──────────────────────▶ a reload of its own
//!   ends with the last of them
//! ```
//! One process checks and serves, so that what has been checked is what serves. It is no child of the old
//! one, whose parent thus notices its end: the one that the old one starts is its parent, and ends at
//! once. What is run is the program that lies now where the old one's lay, with the same arguments.
//!
//! Whoever is killed: of the two exactly one goes on, or the service manager starts a third.
//!
//! | killed                  | before `GO`                            | after it                       |
//! |-------------------------|----------------------------------------|--------------------------------|
//! | old                     | the successor ends (its socket closes); the manager starts one | its ExecSync calls are cut |
//! | successor, not checked  | old says so and serves on              |                                |
//! | successor, checked      | old has let go: it ends with an error; the manager starts one  | the manager starts one |
//!
//! A second SIGHUP before `CHECKED` kills the successor, which may have read files that have changed since,
//! and starts another; so does silence for [`PATIENCE`], without another. SIGTERM before `GO` ends both; after it, the one that gets it.
//!
//! What old may not leave behind is output that it still has to read: it holds `relays.lock` shared as long
//! as it relays, and whoever starts meanwhile removes no output of commands until that is free.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use criod_config::Config;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use sys::seqpacket::{self, Conn, Message};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tracing::info;

use crate::error::{Error, Result};

/// Tells a criod that it is to succeed another, on its standard input.
const VARIABLE: &str = "CRIOD_SUCCEEDS";
/// To start the one that does, and end.
const LAUNCH: &str = "launch";
/// To check, and wait to be needed.
const CHECK: &str = "check";
/// What the service manager has told the old one alone.
const OF_ONE: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];
/// How long a successor may take to check.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was run to make this criod.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    args: Vec<OsString>,
}

impl Program {
    /// To be asked at the start: later the file may have been replaced.
    pub(crate) fn own() -> io::Result<Program> {
        let mut args = std::env::args_os();
        let first = args.next().map(PathBuf::from).filter(|p| p.is_absolute());
        let path = first.map_or_else(std::env::current_exe, Ok)?;
        Ok(Program { path, args: args.collect() })
    }

    fn command(&self, step: &str, stdin: Stdio) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.args).env(VARIABLE, step).stdin(stdin);
        for variable in OF_ONE {
            command.env_remove(variable);
        }
        command
    }
}

/// A connection whose messages are waited for. tokio's type is made for another kind of socket, but
/// all that is asked of it is when there is something to read.
#[derive(Debug)]
struct Line(UnixStream);

impl Line {
    fn new(socket: OwnedFd) -> io::Result<Line> {
        let socket = StdUnixStream::from(socket);
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket).map(Line)
    }

    async fn recv(&self) -> io::Result<Option<Message>> {
        self.0.async_io(Interest::READABLE, || seqpacket::recv(self.0.as_fd())).await
    }

    fn send(&self, fields: &[&str], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        seqpacket::send(self.0.as_fd(), fields, fds)
    }
}

/// A successor, as the old one has it. It is killed when this is dropped before [`Candidate::go`].
#[derive(Debug)]
pub(crate) struct Candidate {
    line: Line,
    pid: i32,
    /// The one that starts it, and leads the process group that both are in. Not waited for until this is
    /// decided, so that the group's number is nobody else's.
    launcher: Option<Child>,
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Some(mut launcher) = self.launcher.take() {
            let group = i32::try_from(launcher.id()).map(Pid::from_raw);
            // It fails where nobody is left.
            // no step: one that was not given the socket ends with this process.
            let _ = group.map(|group| killpg(group, Signal::SIGKILL));
            let _ = launcher.wait();
        }
    }
}

impl Candidate {
    /// Starts one.
    pub(crate) fn start(program: &Program) -> Result<Candidate> {
        let failed = || Error::file("run", &program.path);
        let (ours, theirs) = Conn::pair().map_err(failed())?;
        let line = Line::new(ours.into()).map_err(failed())?;
        let mut command = program.command(LAUNCH, OwnedFd::from(theirs).into());
        // no step: it does nothing before it is given the socket.
        let launcher = command.process_group(0).spawn().map_err(failed())?;
        Ok(Candidate { line, pid: 0, launcher: Some(launcher) })
    }

    /// Waits until this one, where there is one, can serve with a configuration that may follow this.
    pub(crate) async fn checked(candidate: &mut Option<Candidate>, now: &Config) -> Result<()> {
        let Some(candidate) = candidate else { return std::future::pending().await };
        let said = tokio::time::timeout(PATIENCE, candidate.line.recv()).await;
        let message = said
            .map_err(|_| Error::precondition("the successor does not say whether it can serve"))?
            .map_err(Error::system("hear from the successor"))?;
        let fields = message.map(|m| m.fields).unwrap_or_default();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        match fields[..] {
            ["CHECKED", pid, version, root, runroot] => {
                for (key, is, wanted) in
                    [("root", &now.root, root), ("runroot", &now.runroot, runroot)]
                {
                    if is.to_string_lossy() != wanted {
                        return Err(Error::precondition(format!(
                            "{key} cannot change from {} to {wanted} while criod runs",
                            is.display()
                        )));
                    }
                }
                let bad = |_| Error::precondition(format!("the successor's pid is {pid:?}"));
                candidate.pid = pid.parse().map_err(bad)?;
                info!(pid, version, "reload: the successor can serve");
                Ok(())
            }
            ["FAILED", text] => Err(Error::precondition(text)),
            _ => Err(Error::precondition("the successor has ended before it could serve")),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Has it serve, on the socket whose file has this name.
    pub(crate) fn go(&mut self, name: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.line.send(&["GO", name], &[socket])?;
        if let Some(mut launcher) = self.launcher.take() {
            // It has ended long since.
            let _ = launcher.wait();
        }
        Ok(())
    }

    /// Hands a SIGHUP on.
    pub(crate) fn again(&self) {
        // One that has gone needs none.
        let _ = self.line.send(&["AGAIN"], &[]);
    }
}

/// The old one, as its successor has it.
#[derive(Debug)]
pub(crate) struct Heir(OwnedFd);

/// What a criod is by the environment it was started with.
#[derive(Debug)]
pub(crate) enum Start {
    /// Nobody's successor.
    First,
    Successor(Heir),
    /// Its work is done.
    Launched,
}

impl Heir {
    /// What this process is to do; for a successor standard input is the old one's socket.
    pub(crate) fn find(program: &Program) -> io::Result<Start> {
        match std::env::var(VARIABLE).as_deref() {
            Ok(LAUNCH) => {
                // no step: as above.
                program.command(CHECK, Stdio::inherit()).spawn()?;
                Ok(Start::Launched)
            }
            Ok(CHECK) => {
                let socket = io::stdin().as_fd().try_clone_to_owned()?;
                // Nobody whom this process starts is to keep the connection open.
                nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
                Ok(Start::Successor(Heir(socket)))
            }
            _ => Ok(Start::First),
        }
    }

    /// Says why it cannot serve.
    pub(crate) fn refuse(&self, text: &str) {
        let text: String = text.chars().filter(|c| *c != '\0').take(3000).collect();
        // It sees the end of this process in any case.
        let _ = seqpacket::send(self.0.as_fd(), &["FAILED", &text], &[]);
    }

    /// Says that it can serve, and waits to be needed. Gives the listening socket and its name; `None`:
    /// it is not needed.
    pub(crate) async fn wait(&self, config: &Config) -> Result<Option<(String, OwnedFd)>> {
        let failed = || Error::system("speak to the criod before");
        let (root, runroot) = (config.root.to_string_lossy(), config.runroot.to_string_lossy());
        let pid = std::process::id().to_string();
        let checked = ["CHECKED", &pid, env!("CARGO_PKG_VERSION"), &root, &runroot];
        let line = self.line().map_err(failed())?;
        line.send(&checked, &[]).map_err(failed())?;
        let Some(mut message) = line.recv().await.map_err(failed())? else { return Ok(None) };
        let name = message.fields.get(1).cloned();
        Ok(name.zip(message.fds.pop()))
    }

    /// Waits until the old one, where there is one, hands a SIGHUP on.
    pub(crate) async fn again(heir: &mut Option<Heir>) -> bool {
        let Some(before) = heir else { return std::future::pending().await };
        let said = match before.line() {
            Ok(line) => line.recv().await,
            Err(e) => Err(e),
        };
        let again = matches!(said, Ok(Some(m)) if m.fields == ["AGAIN"]);
        if !again {
            *heir = None;
        }
        again
    }

    fn line(&self) -> io::Result<Line> {
        Line::new(self.0.try_clone()?)
    }
}
