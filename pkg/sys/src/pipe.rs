//! Pipes between a container and its monitor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::stat::{Mode, fchmod};

/// The bytes that wait in a pipe, socket or terminal.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut n: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the pointer, which lives through the call.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut n) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(n.max(0) as u64) }
}

/// A pipe whose ends a container may open again through /proc/self/fd under any user id.
///
/// Mode 0666, for in a user namespace the owner stays another one and `echo >/dev/stdout` would
/// fail. Returns (read end, write end), both close-on-exec; the read end does not block.
pub fn for_container() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    fchmod(read.as_fd(), Mode::from_bits_truncate(0o666))?;
    set_nonblocking(read.as_fd())?;
    Ok((read, write))
}

/// A pipe for a container's stdin: as [`for_container`], but it is the write end that does not
/// block, for programs do not expect that of their stdin.
pub fn to_container() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    fchmod(read.as_fd(), Mode::from_bits_truncate(0o666))?;
    set_nonblocking(write.as_fd())?;
    Ok((read, write))
}

/// The inode number, which both ends of a pipe share and no other pipe of this boot has.
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(fd)?.st_ino)
}

/// Sets O_NONBLOCK on the open file description, for everybody who shares it.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn counts_what_waits() {
        let (r, w) = for_container().unwrap();
        let mut w = std::fs::File::from(w);
        assert_eq!(w.metadata().unwrap().permissions().mode() & 0o777, 0o666);
        w.write_all(b"hello").unwrap();
        assert_eq!(readable(r.as_fd()).unwrap(), 5);
        let (other, to) = to_container().unwrap();
        assert_eq!(inode(r.as_fd()).unwrap(), inode(w.as_fd()).unwrap());
        assert_ne!(inode(r.as_fd()).unwrap(), inode(other.as_fd()).unwrap());
        let mut to = std::fs::File::from(to);
        while to.write(&[0; 4096]).is_ok() {}
    }
}
