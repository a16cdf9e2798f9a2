//! The epoll set and the names of what is in it.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Signals,
    Timer,
    Listener,
    Keeper,
    Logger,
    /// Init has ended, and a predecessor was its parent.
    Init,
    Console,
    Tty,
    Stdout,
    Stderr,
    Conn(u32),
    ExecStdout(u32),
    ExecStderr(u32),
    /// The stream socket.
    Sessions,
    Session(u32),
    SessionConsole(u32),
    /// What a client types into the terminal.
    Input(u32),
    /// An attached client's pipe, which has had no room for all of the output.
    LateStdout(u32),
    LateStderr(u32),
    /// A pipe that the container held has been taken from.
    Pulled,
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, n) = match self {
            Token::Signals => (0, 0),
            Token::Timer => (1, 0),
            Token::Listener => (2, 0),
            Token::Keeper => (3, 0),
            Token::Logger => (4, 0),
            Token::Init => (5, 0),
            Token::Console => (6, 0),
            Token::Tty => (7, 0),
            Token::Stdout => (8, 0),
            Token::Stderr => (9, 0),
            Token::Conn(n) => (10, n),
            Token::ExecStdout(n) => (11, n),
            Token::ExecStderr(n) => (12, n),
            Token::Sessions => (13, 0),
            Token::Session(n) => (14, n),
            Token::SessionConsole(n) => (15, n),
            Token::Input(n) => (16, n),
            Token::LateStdout(n) => (17, n),
            Token::LateStderr(n) => (18, n),
            Token::Pulled => (19, 0),
        };
        kind << 32 | u64::from(n)
    }

    fn unpack(data: u64) -> Option<Token> {
        let n = data as u32;
        Some(match data >> 32 {
            0 => Token::Signals,
            1 => Token::Timer,
            2 => Token::Listener,
            3 => Token::Keeper,
            4 => Token::Logger,
            5 => Token::Init,
            6 => Token::Console,
            7 => Token::Tty,
            8 => Token::Stdout,
            9 => Token::Stderr,
            10 => Token::Conn(n),
            11 => Token::ExecStdout(n),
            12 => Token::ExecStderr(n),
            13 => Token::Sessions,
            14 => Token::Session(n),
            15 => Token::SessionConsole(n),
            16 => Token::Input(n),
            17 => Token::LateStdout(n),
            18 => Token::LateStderr(n),
            19 => Token::Pulled,
            _ => return None,
        })
    }
}

pub(crate) struct Poller(Epoll);

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        Ok(Poller(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches for input (and hang-up).
    pub(crate) fn add(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.pack()))?)
    }

    /// Watches for room to write (and for nobody reading any more).
    pub(crate) fn add_writable(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLOUT, token.pack()))?)
    }

    /// Watches for output as well, or no longer.
    pub(crate) fn set_writable(&self, fd: impl AsFd, token: Token, on: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, on);
        Ok(self.0.modify(fd, &mut EpollEvent::new(flags, token.pack()))?)
    }

    /// Looks away for a while, or watches for input again. Takes no memory, so that it cannot fail
    /// where [`Poller::add`] may.
    pub(crate) fn set_readable(&self, fd: impl AsFd, token: Token, on: bool) {
        let flags = if on { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        let _ = self.0.modify(fd, &mut EpollEvent::new(flags, token.pack()));
    }

    /// Stops watching; nothing happens where it was not watched.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = self.0.delete(fd);
    }

    /// Waits for the next events.
    pub(crate) fn wait(&self) -> io::Result<Vec<Token>> {
        let mut events = [EpollEvent::empty(); 16];
        match self.0.wait(&mut events, EpollTimeout::NONE) {
            Ok(n) => Ok(events[..n].iter().filter_map(|e| Token::unpack(e.data())).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }
}
