//! The command's ends of an exec or attach: pipes, or the master of a terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use stream::remote::{Channel, Wants};
use sys::tty::Size;

use crate::poller::{Poller, Ready};
use crate::serve::{STDERR, STDIN, STDOUT};

/// What a terminal can hold of output that nobody has read, in bytes, and more: the kernel's
/// buffers are 4 KiB and 64 KiB.
const TERMINAL: u64 = 128 * 1024;

struct End {
    fd: OwnedFd,
    ready: Ready,
    /// The command has ended: this much, at most, is still read.
    left: Option<u64>,
}

/// What reading gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// Nothing any more; the end is closed.
    End,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Ends {
    stdin: Option<End>,
    /// Or the terminal, which takes the input as well.
    stdout: Option<End>,
    stderr: Option<End>,
    tty: bool,
}

impl Ends {
    /// Takes over what the monitor gives: names, and a descriptor for each.
    pub(crate) fn new(names: &[String], fds: Vec<OwnedFd>, poller: &Poller) -> io::Result<Ends> {
        let mut ends = Ends::default();
        if names.len() != fds.len() {
            return Err(io::Error::other("descriptors and their names differ in number"));
        }
        for (name, fd) in names.iter().zip(fds) {
            sys::pipe::set_nonblocking(fd.as_fd())?;
            let (key, slot) = match name.as_str() {
                "stdin" => (STDIN, &mut ends.stdin),
                "stdout" => (STDOUT, &mut ends.stdout),
                "stderr" => (STDERR, &mut ends.stderr),
                "tty" => (STDOUT, &mut ends.stdout),
                _ => return Err(io::Error::other(format!("{name:?} is no stream"))),
            };
            // Pipes stay as large as they are: larger ones are no faster, and count against what all
            // of the user's pipes may hold, containers' included.
            ends.tty |= name == "tty";
            poller.add(&fd, key)?;
            let ready = Ready { read: true, write: true, ..Ready::default() };
            *slot = Some(End { fd, ready, left: None });
        }
        Ok(ends)
    }

    /// Closes pipes of what was not asked for: nothing would ever be read from them.
    pub(crate) fn keep(&mut self, wants: Wants) {
        if !self.tty {
            self.stdin = self.stdin.take().filter(|_| wants.stdin);
            self.stdout = self.stdout.take().filter(|_| wants.stdout);
        }
        self.stderr = self.stderr.take().filter(|_| wants.stderr);
    }

    fn slot(&mut self, channel: Channel) -> &mut Option<End> {
        match channel {
            Channel::Stdin if self.tty => &mut self.stdout,
            Channel::Stdin => &mut self.stdin,
            Channel::Stdout => &mut self.stdout,
            Channel::Stderr => &mut self.stderr,
        }
    }

    /// Takes in an event.
    pub(crate) fn event(&mut self, key: u64, flags: nix::sys::epoll::EpollFlags) {
        let slot = match key {
            STDIN => &mut self.stdin,
            STDOUT => &mut self.stdout,
            STDERR => &mut self.stderr,
            _ => return,
        };
        if let Some(end) = slot {
            end.ready.take(flags);
        }
    }

    /// Writes input, as much as fits. An error: it takes none any more, and is closed.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let tty = self.tty;
        let slot = self.slot(Channel::Stdin);
        let Some(end) = slot.as_mut().filter(|end| end.left.is_none()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut from = 0;
        while end.ready.write && from < bytes.len() {
            match nix::unistd::write(&end.fd, &bytes[from..]) {
                Ok(n) => from += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => end.ready.write = false,
                Err(e) => {
                    // A terminal is still read.
                    if !tty {
                        *slot = None;
                    }
                    return Err(e.into());
                }
            }
        }
        Ok(from)
    }

    /// Input may be written.
    pub(crate) fn writable(&mut self) -> bool {
        self.slot(Channel::Stdin).as_ref().is_some_and(|end| end.ready.write)
    }

    /// No more input. A terminal has no such thing.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// A read may give something.
    pub(crate) fn readable(&mut self, channel: Channel) -> bool {
        self.slot(channel).as_ref().is_some_and(|end| end.ready.read)
    }

    /// Reads output.
    pub(crate) fn read(&mut self, channel: Channel, into: &mut [u8]) -> Got {
        let tty = self.tty;
        let slot = self.slot(channel);
        let Some(end) = slot.as_mut() else { return Got::End };
        if !end.ready.read {
            return Got::Nothing;
        }
        let most = end.left.map_or(into.len(), |left| into.len().min(left as usize));
        let nothing_now = match nix::unistd::read(&end.fd, &mut into[..most]) {
            Ok(0) => false,
            Ok(n) => {
                if let Some(left) = &mut end.left {
                    *left -= n as u64;
                    if *left == 0 {
                        *slot = None;
                    }
                }
                return Got::Bytes(n);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            // Nobody has a terminal open; until the command has ended, that may change.
            Err(Errno::EIO) => tty,
            Err(_) => false,
        };
        if nothing_now && end.left.is_none() {
            end.ready.read = false;
            return Got::Nothing;
        }
        *slot = None;
        Got::End
    }

    /// The command has ended: what is there is read, and no more than that.
    pub(crate) fn exited(&mut self) {
        self.stdin = None;
        let tty = self.tty;
        for slot in [&mut self.stdout, &mut self.stderr] {
            let Some(end) = slot else { continue };
            let left = sys::pipe::readable(end.fd.as_fd()).unwrap_or(0);
            if left == 0 && !tty {
                *slot = None;
                continue;
            }
            // What a terminal still carries is moved by the read itself.
            end.left = Some(if tty { TERMINAL } else { left });
            end.ready.read = true;
        }
    }

    /// All output has been read.
    pub(crate) fn silent(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Sets the terminal's size, where it is one.
    pub(crate) fn resize(&self, to: Size) {
        if let (true, Some(end)) = (self.tty, &self.stdout) {
            // Clients may ask for it without end, so a failure is no line in the log.
            let _ = sys::tty::resize(&end.fd, to);
        }
    }
}
