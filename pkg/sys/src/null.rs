//! A null device that nobody else has.
//!
//! ```text
//! fsopen(tmpfs) ─▶ fsmount: mounted nowhere ─▶ mknod(1:3) ─▶ open; the mount goes with the last of it
//! ```
//! For the standard streams of processes that are not trusted: an OCI runtime may give these to the
//! container's user, who may then change the mode and the times of the file. The node's /dev/null
//! must not be that file. To its reader and writer this one is the same, needs nobody at its other
//! end, and its device number is the one by which runtimes know a null device. Linux 5.2.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fchmod, makedev, mkdirat, mknodat};

/// The longest security label that is copied, in bytes.
const LABEL_MAX: usize = 512;
const LABEL: &CStr = c"security.selinux";

/// Makes a null device of mode 0666 and opens it for reading and writing, close-on-exec.
///
/// # Errors
/// What the kernel says, so EPERM without CAP_SYS_ADMIN or CAP_MKNOD of the first user namespace.
pub fn private() -> io::Result<OwnedFd> {
    // SAFETY: the name ends in NUL.
    let context =
        owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    let rc = unsafe {
        let (fd, create) = (context.as_raw_fd(), libc::FSCONFIG_CMD_CREATE);
        libc::syscall(libc::SYS_fsconfig, fd, create, none, none, 0)
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers.
    let mount = owned(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0)
    })?;
    // A path by which those who ask /proc what they have know it.
    mkdirat(&mount, c"dev", Mode::S_IRWXU)?;
    let (name, mode) = (c"dev/null", Mode::from_bits_truncate(0o666));
    mknodat(&mount, name, SFlag::S_IFCHR, mode, makedev(1, 3))?;
    let null = openat(&mount, name, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    // The umask has had its way with it.
    fchmod(&null, mode)?;
    copy_label(null.as_fd());
    Ok(null)
}

/// Gives it the label that the node's has, where the kernel has labels: containers may use that.
/// Where it cannot be, the kernel puts a null device of its own in the place of one that it denies.
fn copy_label(null: BorrowedFd<'_>) {
    let Ok(node) = File::open("/dev/null") else { return };
    let mut label = [0u8; LABEL_MAX];
    // SAFETY: the name ends in NUL, and the buffer has the size that is named.
    let n = unsafe {
        let to = label.as_mut_ptr().cast();
        libc::fgetxattr(node.as_raw_fd(), LABEL.as_ptr(), to, label.len())
    };
    let Some(label) = usize::try_from(n).ok().and_then(|n| label.get(..n)) else { return };
    // SAFETY: as above.
    unsafe {
        let from = label.as_ptr().cast();
        libc::fsetxattr(null.as_raw_fd(), LABEL.as_ptr(), from, label.len(), 0);
    }
}

/// Takes the descriptor that a system call has returned.
fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        // SAFETY: the kernel has just given this descriptor, and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_is_one_as_the_nodes_and_is_nobody_elses() {
        let node = std::fs::metadata("/dev/null").unwrap();
        let (one, other) = (File::from(private().unwrap()), File::from(private().unwrap()));
        let meta = one.metadata().unwrap();
        assert_eq!((meta.rdev(), meta.mode()), (node.rdev(), libc::S_IFCHR | 0o666));
        // It can be opened again, though its mount has no place.
        let path = format!("/proc/self/fd/{}", one.as_raw_fd());
        assert_eq!(std::fs::read_link(&path).unwrap().to_str(), Some("/dev/null"));
        let mut again = File::options().read(true).write(true).open(path).unwrap();
        assert_eq!(again.write(&[0; 4096]).unwrap(), 4096);
        assert_eq!(again.read(&mut [0; 1]).unwrap(), 0);
        fchmod(&again, Mode::empty()).unwrap();
        assert_eq!(one.metadata().unwrap().mode() & 0o777, 0);
        assert_eq!(other.metadata().unwrap().mode() & 0o777, 0o666);
        assert_eq!(std::fs::metadata("/dev/null").unwrap().mode(), node.mode());
    }
}
