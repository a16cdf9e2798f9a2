//! Commands in the container whose streams others carry.
//!
//! ```text
//! GO ─▶ `runtime exec --detach` ──ok──▶ OK + streams ──ends──▶ EXIT code
//!          │ fails        │ container ends            │ hang-up
//!          ▼              ▼                           ▼
//!         ERR       it is killed: ERR      nobody is told, but it is reaped; a runtime that is
//!                                          still at work has 5 s left
//! ```
//! The pipes, or the terminal's master, are handed over, and none is kept here: no byte of them
//! passes the monitor, and when the one at the other end goes, the kernel closes the command's
//! stdin, or hangs its terminal up. With the container's init every command ends. Files and their
//! names are those of module `exec`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use api_monitor::monitor::handover;
use nix::sys::signal::Signal;
use sys::seqpacket::Conn;
use sys::tty::Size;

use crate::exec::exit_code;
use crate::handover::{Giving, maybe, take, wrong};
use crate::life::{Job, console_for_runtime};
use crate::monitor::Monitor;
use crate::poller::{Poller, Token};
use crate::runtime::Stdio3;
use crate::session::{Kind, Named, Session, Wanted, hand_over};

/// The longest process object, in bytes.
const MAX_PROCESS: u64 = 4 << 20;
/// What the streams of a command are called.
const NAMES: [&str; 4] = ["stdin", "stdout", "stderr", "tty"];

/// A command in the container.
pub(crate) struct Command {
    /// 0 until the runtime has started it.
    pub(crate) pid: i32,
    tty: bool,
    size: Option<Size>,
    console: Console,
    /// What is handed over when it has been started.
    ours: Named,
}

/// Where the terminal of a command that is being started comes from.
enum Console {
    None,
    Listens(OwnedFd),
    Sends(Conn),
}

impl Command {
    pub(crate) fn give<'a>(&'a self, fds: &mut Giving<'a>) -> handover::Command {
        let (console_listener, console_sender) = match &self.console {
            Console::None => (0, 0),
            Console::Listens(listener) => (fds.fd(listener), 0),
            Console::Sends(conn) => (0, fds.fd(conn)),
        };
        let named = |(name, fd): &'a (&'static str, OwnedFd)| handover::Named {
            name: (*name).to_owned(),
            fd: fds.fd(fd),
            ..handover::Named::new()
        };
        handover::Command {
            ours: self.ours.iter().map(named).collect(),
            pid: self.pid,
            tty: self.tty,
            size: self.size.map_or_else(Vec::new, |s| vec![s.rows.into(), s.columns.into()]),
            console_listener,
            console_sender,
            ..handover::Command::new()
        }
    }

    pub(crate) fn take(
        given: &handover::Command,
        key: u32,
        poller: &Poller,
    ) -> io::Result<Command> {
        let console = match (maybe(given.console_listener)?, maybe(given.console_sender)?) {
            (Some(listener), _) => Console::Listens(listener),
            (_, Some(conn)) => Console::Sends(conn.into()),
            _ => Console::None,
        };
        match &console {
            Console::Listens(listener) => poller.add(listener, Token::SessionConsole(key))?,
            Console::Sends(conn) => poller.add(conn, Token::SessionConsole(key))?,
            Console::None => {}
        }
        let name = |name: &str| NAMES.iter().find(|n| **n == name).copied();
        let ours = given.ours.iter().map(|named| {
            let name = name(&named.name).ok_or_else(|| wrong(format!("stream {}", named.name)))?;
            Ok((name, take(named.fd)?))
        });
        let cells = |n: &u32| u16::try_from(*n).unwrap_or(u16::MAX);
        let size = match &given.size[..] {
            [rows, columns] => Some(Size { rows: cells(rows), columns: cells(columns) }),
            _ => None,
        };
        let ours = ours.collect::<io::Result<_>>()?;
        Ok(Command { pid: given.pid, tty: given.tty, size, console, ours })
    }
}

impl Monitor {
    pub(crate) fn begin_command(
        &mut self,
        key: u32,
        tty: bool,
        wanted: Wanted,
        process: OwnedFd,
        size: Option<Size>,
    ) -> Result<Command, String> {
        self.may_exec(self.sessions.commands()).map_err(|refusal| refusal.message)?;
        self.try_command(key, tty, wanted, process, size).map_err(|e| {
            self.remove_exec_files(key, &["process", "pid", "log", "console", "run"]);
            format!("exec: {e}")
        })
    }

    fn try_command(
        &mut self,
        key: u32,
        tty: bool,
        wanted: Wanted,
        process: OwnedFd,
        size: Option<Size>,
    ) -> io::Result<Command> {
        let mut process = read_process(process.into())?;
        let mut command = Command { pid: 0, tty, size, console: Console::None, ours: Vec::new() };
        let mut stdio = Stdio3::default();
        self.note_exec(key)?;
        if tty {
            if let Some(size) = size {
                process = with_size(process, size);
            }
            let console = self.exec_file(key, "console");
            let listener = self.listen_for_console(&console, Token::SessionConsole(key))?;
            command.console = Console::Listens(listener);
            let console = console_for_runtime(&console, &self.config.bundle);
            self.run_exec(key, &process, &["--tty", "--console-socket", &console], stdio)?;
            return Ok(command);
        }
        if wanted.stdin {
            let (read, write) = sys::pipe::to_container()?;
            stdio.stdin = Some(read);
            command.ours.push(("stdin", write));
        }
        for (name, wanted, end) in [
            ("stdout", wanted.stdout, &mut stdio.stdout),
            ("stderr", wanted.stderr, &mut stdio.stderr),
        ] {
            if wanted {
                let (read, write) = sys::pipe::for_container()?;
                *end = Some(write);
                command.ours.push((name, read));
            }
        }
        self.run_exec(key, &process, &[], stdio)?;
        Ok(command)
    }

    /// The runtime has connected to a command's console socket, or sends the terminal.
    pub(crate) fn take_session_console(&mut self, key: u32) {
        let Monitor { sessions, poller, .. } = self;
        let Some(command) = sessions.command(key) else { return };
        if let Console::Listens(listener) = &command.console {
            // It sends when it has made the terminal: that may take a while, or be never.
            command.console = match sys::seqpacket::accept(listener.as_fd()) {
                Ok(conn) if poller.add(&conn, Token::SessionConsole(key)).is_ok() => {
                    Console::Sends(conn)
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors: the runtime will say that it could not send the terminal.
                _ => Console::None,
            };
            return;
        }
        let Console::Sends(conn) = &command.console else { return };
        match conn.recv_fd() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {}
            Ok(master) => {
                if let Some(size) = command.size {
                    let _ = sys::tty::resize(&master, size);
                }
                if sys::pipe::set_nonblocking(master.as_fd()).is_ok() {
                    command.ours.push(("tty", master));
                }
            }
        }
        command.console = Console::None;
    }

    /// The runtime has started a command, or failed to.
    pub(crate) fn session_started(
        &mut self,
        key: u32,
        pid: Result<i32, String>,
        status: Option<i32>,
    ) {
        // The terminal was sent before, even where we have not come to take it yet.
        self.take_session_console(key);
        self.take_session_console(key);
        let ended = self.state.now.exit.is_some();
        let Some(Session { kind: Kind::Command(command), conn, .. }) = self.sessions.find(key)
        else {
            return;
        };
        command.console = Console::None;
        let ours = std::mem::take(&mut command.ours);
        let pid = match pid {
            Ok(pid) if command.tty && ours.is_empty() => {
                sys::proc::kill_tree(pid);
                Err("the runtime sent no terminal".into())
            }
            // It was killed, for the container has ended.
            Err(_) if ended => Err(format!("container {} is not running", self.config.id)),
            pid => pid,
        };
        match pid {
            Ok(pid) => {
                command.pid = pid;
                if ended {
                    sys::proc::kill_tree(pid);
                }
                if let Some(conn) = conn
                    && hand_over(conn, &ours).is_err()
                {
                    self.session_hung_up(key);
                }
                drop(ours);
                if let Some(status) = status {
                    self.session_ended(pid, status);
                }
            }
            Err(text) => {
                self.remove_exec_files(key, &["run"]);
                self.refuse_session(key, &text);
            }
        }
    }

    /// A child has ended; true: it was the process of a session.
    pub(crate) fn session_ended(&mut self, pid: i32, status: i32) -> bool {
        let is = |s: &&Session| matches!(&s.kind, Kind::Command(c) if c.pid == pid);
        let Some(key) = self.sessions.all.iter().find(is).map(|s| s.key) else { return false };
        self.remove_exec_files(key, &["run"]);
        self.end_session(key, exit_code(status));
        true
    }

    /// Init has ended, or the container is being deleted: no command outlives it.
    pub(crate) fn kill_sessions(&mut self, trees: bool) {
        for session in &self.sessions.all {
            let Kind::Command(command) = &session.kind else { continue };
            if command.pid == 0 {
                let job = self.jobs.iter().find(|r| r.job == Job::Exec(session.key));
                job.into_iter().for_each(|running| sys::proc::kill_tree(running.pid));
            } else if trees || self.config.cgroups.is_empty() {
                sys::proc::kill_tree(command.pid);
            } else {
                // What it has started ends with the container's pid namespace or cgroup. It is our
                // child and not reaped, so the pid is its own.
                sys::proc::signal(command.pid, Signal::SIGKILL);
            }
        }
    }
}

/// Reads an OCI process object from the start of a file, which is a memfd.
fn read_process(file: File) -> io::Result<Vec<u8>> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > MAX_PROCESS {
        return Err(invalid("the process is no file, or too long"));
    }
    let mut bytes = vec![0; usize::try_from(meta.len()).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Puts a terminal's size into a process object.
fn with_size(process: Vec<u8>, size: Size) -> Vec<u8> {
    let Some(open) = process.iter().position(|b| *b == b'{') else { return process };
    let (before, rest) = process.split_at(open + 1);
    // An object of nothing would need no comma; it is no process either.
    let Size { rows, columns } = size;
    let member = format!("\"consoleSize\":{{\"height\":{rows},\"width\":{columns}}},");
    [before, member.as_bytes(), rest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_gets_its_size() {
        let size = Size { rows: 5, columns: 7 };
        let with = with_size(b" {\"args\":[]}".to_vec(), size);
        assert_eq!(with, b" {\"consoleSize\":{\"height\":5,\"width\":7},\"args\":[]}");
        assert_eq!(with_size(b"[]".to_vec(), size), b"[]");
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(read_process(File::from(OwnedFd::from(reader))).is_err());
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAX_PROCESS + 1).unwrap();
        assert!(read_process(file).is_err());
    }
}
