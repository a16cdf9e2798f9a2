//! User namespaces, which no thread of a process can make: only a process of its own gets one.
//!
//! ```text
//! hold(flags) ── clone3(NEWUSER | flags) ──▶ a process that does nothing
//!    │                                          │ reads from a pipe
//!    │ its maps written, its namespaces pinned  │
//!    └─ dropped: the pipe closes ─────────────▶ ends, and is reaped
//! ```
//! If the caller dies meanwhile the pipe closes as well. What of the caller's threads has to be done
//! as a user of such a namespace is done by [`as_user`].

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A process that holds new namespaces until this is dropped.
#[derive(Debug)]
pub struct Holder {
    pid: Pid,
    /// What the process waits on; taken when it is to end.
    waits: Option<OwnedFd>,
}

/// Makes a user namespace, and with it those of `flags` (`CLONE_NEWNET` and the like), which it
/// owns. No id is mapped yet.
///
/// # Errors
/// What `clone3` says: ENOSPC or EUSERS where `user.max_user_namespaces` are there already.
pub fn hold(flags: i32) -> io::Result<Holder> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let flags = (libc::CLONE_NEWUSER | flags).unsigned_abs();
    let args = CloneArgs { flags: u64::from(flags), ..CloneArgs::default() };
    let size = size_of::<CloneArgs>();
    // SAFETY: without CLONE_VM the new process has a copy of everything, as after fork(2), so no
    // memory is shared; it only makes system calls before it exits (see `wait_for_end`). The
    // structure is of the size that is named.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) };
    match pid {
        0 => wait_for_end(read.as_raw_fd()),
        1.. => {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap_or_default());
            Ok(Holder { pid, waits: Some(write) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the process does: nothing that needs memory or a lock, which another thread may have held
/// when this one was copied.
fn wait_for_end(pipe: i32) -> ! {
    let mut byte = 0u8;
    // SAFETY: plain system calls. The descriptors are copies, whose owners are not in this process.
    unsafe {
        // Nothing of the caller's is held open: no socket, no lock, no end of another such pipe.
        libc::dup2(pipe, 0);
        if libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) == 0 {
            while libc::read(0, (&raw mut byte).cast(), 1) < 0
                && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
            {}
        }
        libc::_exit(0)
    }
}

/// `struct clone_args` of linux/sched.h, as far as Linux 5.3 has it.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    /// None: nobody who waits for children of another kind sees it.
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

impl Holder {
    /// The process; its namespaces are in `/proc/<pid>/ns`.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Maps `size` user ids and group ids from `inside` to the `outside` ones, once.
    ///
    /// # Errors
    /// What the kernel says of the map.
    pub fn map(&self, uids: Range, gids: Range) -> io::Result<()> {
        for (name, range) in [("uid_map", uids), ("gid_map", gids)] {
            let line = format!("{} {} {}\n", range.inside, range.outside, range.size);
            // The kernel takes a map in one write, and one alone.
            fs::write(format!("/proc/{}/{name}", self.pid), line)?;
        }
        Ok(())
    }
}

/// A range of ids in a user namespace and outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first id inside.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

impl Range {
    /// What an id inside is outside; `None` if it is none.
    pub fn outside_of(self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.inside).filter(|offset| *offset < self.size)?;
        self.outside.checked_add(offset)
    }
}

/// Does `work` with another effective user id and without capabilities, in this thread alone.
///
/// # Errors
/// What the kernel says of the change, else what `work` says.
pub fn as_user<T>(uid: u32, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // SAFETY: it has no arguments and cannot fail.
    let own = unsafe { libc::geteuid() };
    let _back = Effective(own);
    set_effective(uid)?;
    work()
}

/// Gives the effective user id back.
struct Effective(u32);

impl Drop for Effective {
    fn drop(&mut self) {
        // It is the real or the saved one, so it cannot be refused.
        let _ = set_effective(self.0);
    }
}

/// The C library's function would change it in all threads.
fn set_effective(uid: u32) -> io::Result<()> {
    // SAFETY: the call takes integers and touches no memory of ours.
    let rc = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.waits.take();
        // A child whose end is told to nobody is waited for with __WALL alone.
        while waitpid(self.pid, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Range = Range { inside: 0, outside: 1_000_000, size: 65_536 };

    #[test]
    fn holds_namespaces_until_dropped() {
        let holder = hold(libc::CLONE_NEWUTS).unwrap();
        let of = |name: &str| fs::read_link(format!("/proc/{}/ns/{name}", holder.pid()));
        let own = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(of("user").unwrap(), own("user"));
        assert_ne!(of("uts").unwrap(), own("uts"));
        assert_eq!(of("net").unwrap(), own("net"));
        holder.map(RANGE, Range { outside: 2_000_000, ..RANGE }).unwrap();
        let map = fs::read_to_string(format!("/proc/{}/gid_map", holder.pid())).unwrap();
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "2000000", "65536"]);
        // Once only.
        assert!(holder.map(RANGE, RANGE).is_err());
        let pid = holder.pid();
        drop(holder);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn nothing_of_the_caller_stays_open_in_it() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let others: Vec<_> = (0..4).map(|_| hold(0).unwrap()).collect();
        drop(write);
        // The end of the pipe comes although they live on, as soon as each has closed its copy.
        assert_eq!(nix::unistd::read(&read, &mut [0]).unwrap(), 0);
        drop(others);
    }

    #[test]
    fn another_user_in_one_thread_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = || fs::read(file.path());
        read().unwrap();
        assert_eq!(as_user(70_000, read).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        // That of the process is its first thread's.
        let process = || fs::read_to_string("/proc/self/status");
        let status = as_user(70_000, process).unwrap();
        assert!(status.contains("Uid:\t0\t0\t0\t0\n"), "{status}");
        // The capabilities are back, too.
        read().unwrap();
    }

    #[test]
    fn ids_outside() {
        let range = Range { inside: 10, outside: 100, size: 5 };
        assert_eq!(range.outside_of(10), Some(100));
        assert_eq!(range.outside_of(14), Some(104));
        assert_eq!(range.outside_of(15), None);
        assert_eq!(range.outside_of(9), None);
        assert_eq!(Range { outside: u32::MAX, ..range }.outside_of(12), None);
    }
}
