//! Process descriptors: a handle that names one process for ever, never a later one of its pid.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Opens a descriptor of the process `pid`. It becomes readable when the process has ended.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends `signal` to the process. ESRCH when it is gone.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed and means "as kill(2)"; no memory of ours is touched.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct pidfd_info` of linux/pidfd.h, as far as version 1 of it goes (64 bytes).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)` with 64 bytes.
const PIDFD_GET_INFO: u64 = 0xC040_FF0B;

/// The wait status of a process that has ended AND was reaped, whoever reaped it.
///
/// `None` while it runs or is a zombie, and on kernels before 6.15.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request's size (64) is the size of the structure that the pointer names, and it
    // lives through the call.
    let rc = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    (rc == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_status_outlives_the_process() {
        assert_eq!(size_of::<PidfdInfo>(), 64);
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let fd = open(child.id() as i32).unwrap();
        assert_eq!(exit_status(fd.as_fd()), None);
        send_signal(fd.as_fd(), libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(send_signal(fd.as_fd(), 0).is_err());
        // Kernels before 6.15 do not tell.
        if let Some(status) = exit_status(fd.as_fd()) {
            assert_eq!(status, libc::SIGKILL);
        }
    }

    #[test]
    fn there_is_no_descriptor_of_nothing() {
        assert_eq!(open(i32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
