//! The epoll set. Everything is watched edge-triggered, once, for both directions: what is ready
//! is remembered beside each descriptor ([`Ready`]) until a call says that it no longer is. So a
//! direction that is held back costs no call, and nothing spins.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What one descriptor is ready for, as far as is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ready {
    /// A read may give something: bytes, the end, or an error.
    pub(crate) read: bool,
    /// A write may take something, or give an error.
    pub(crate) write: bool,
    /// The other end has closed its writing side, or all.
    pub(crate) ended: bool,
    /// Nothing can be written any more: both sides are closed, or it failed.
    pub(crate) gone: bool,
}

impl Ready {
    /// Takes in an event.
    pub(crate) fn take(&mut self, flags: EpollFlags) {
        let gone = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let ended = gone || flags.contains(EpollFlags::EPOLLRDHUP);
        self.read |= ended || flags.contains(EpollFlags::EPOLLIN);
        self.write |= gone || flags.contains(EpollFlags::EPOLLOUT);
        self.ended |= ended;
        self.gone |= gone;
    }
}

/// The set.
pub(crate) struct Poller(Epoll);

/// What happened to whom.
pub(crate) type Event = (u64, EpollFlags);

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        Ok(Poller(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches under the name `key` until the descriptor is closed. What is ready already is
    /// told, too. Whoever holds a duplicate elsewhere has to [`Poller::remove`] before closing.
    pub(crate) fn add(&self, fd: impl AsFd, key: u64) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        Ok(self.0.add(fd, EpollEvent::new(flags, key))?)
    }

    /// Stops watching.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = self.0.delete(fd);
    }

    /// Waits for events, at most until `deadline`; without one, for ever.
    pub(crate) fn wait(&self, deadline: Option<Instant>, into: &mut Vec<Event>) -> io::Result<()> {
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            Some(at) => {
                // Rounded up, so that the deadline has passed when it has.
                let left = at.saturating_duration_since(Instant::now());
                let left = left + Duration::from_micros(999);
                EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
            }
        };
        let mut events = [EpollEvent::empty(); 64];
        into.clear();
        match self.0.wait(&mut events, timeout) {
            Ok(n) => into.extend(events[..n].iter().map(|e| (e.data(), e.events()))),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Takes in events until `done`. Another test's child may hold an end open for a moment.
    fn until(poller: &Poller, ready: &mut Ready, done: impl Fn(&Ready) -> bool) {
        let limit = Instant::now() + Duration::from_secs(30);
        let mut events = Vec::new();
        while !done(ready) {
            assert!(Instant::now() < limit, "{ready:?}");
            poller.wait(Some(limit), &mut events).unwrap();
            for (key, flags) in events.drain(..) {
                assert_eq!(key, 7);
                ready.take(flags);
            }
        }
    }

    #[test]
    fn what_is_ready_is_told_once() {
        let poller = Poller::new().unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let mut ready = Ready::default();
        theirs.write_all(b"x").unwrap();
        poller.add(&ours, 7).unwrap();
        until(&poller, &mut ready, |r| r.read && r.write);
        assert!(!ready.ended && !ready.gone);
        // Not again, though the byte is still there.
        let mut events = Vec::new();
        poller.wait(Some(Instant::now()), &mut events).unwrap();
        assert!(events.is_empty());
        ready = Ready::default();
        ours.read_exact(&mut [0]).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        until(&poller, &mut ready, |r| r.ended);
        assert!(ready.read && !ready.gone);
        drop(theirs);
        until(&poller, &mut ready, |r| r.gone);
        assert!(ready.write);
    }
}
