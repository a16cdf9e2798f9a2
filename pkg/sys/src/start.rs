//! What a process does first, so that nothing that it was started with stays its own by chance.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Closes every descriptor but stdin, stdout and stderr.
///
/// To be called before anything else: what the process has opened itself is closed, too, and its
/// owner would go on to use the number.
pub fn close_inherited() -> io::Result<()> {
    match close_range(3) {
        // Before Linux 5.9.
        Err(Errno::ENOSYS) => close_listed(3),
        other => Ok(other?),
    }
}

fn close_range(from: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: the call takes integers and touches no memory of ours. Callers promise that no
    // descriptor from here on has an owner.
    let done = unsafe { libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, 0) };
    Errno::result(done).map(drop)
}

fn close_listed(from: RawFd) -> io::Result<()> {
    let number =
        |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?.filter_map(number).collect();
    for fd in open.into_iter().filter(|fd| *fd >= from) {
        // The folder's own is among them and closed already, hence EBADF.
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Takes the first `count` descriptors after stderr, which a service manager has passed on
/// (sd_listen_fds(3)). They will not be inherited by what this process executes.
///
/// Whatever a process of ours opens itself is closed on exec from its beginning, so what is not has
/// come with the process and has no owner in it. An error (EBADF) where one is not open, or is not such.
pub fn passed(count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut taken = Vec::new();
    for number in (3..).take(count) {
        // SAFETY: asks for a flag and touches no memory.
        let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
        if flags & libc::FD_CLOEXEC != 0 {
            return Err(Errno::EBADF.into());
        }
        // SAFETY: sets that flag, by which it is known to have an owner from here on.
        Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) })?;
        // SAFETY: it is open, and nobody in this process has it, as it has come by exec (see above).
        taken.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(taken)
}

/// A write beyond RLIMIT_FSIZE fails with EFBIG, and does not kill the process.
pub fn survive_file_limit() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is installed that could run at a bad time.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    /// Names what the victim below does.
    const ACT: &str = "SYS_START_ACT";
    const WELL: i32 = 77;

    /// Not a test of its own: run by the others in a process that is theirs.
    #[test]
    fn victim() {
        let Ok(act) = std::env::var(ACT) else { return };
        let numbers = act.split(' ').skip(1).map(|n| n.parse::<RawFd>().unwrap());
        // SAFETY: only asks whether they are open.
        let open = |n: RawFd| unsafe { libc::fcntl(n, libc::F_GETFD) } >= 0;
        let numbers: Vec<RawFd> = numbers.collect();
        assert!(numbers.iter().all(|n| open(*n)));
        match act.split(' ').next().unwrap() {
            "range" => close_range(3).unwrap(),
            "listed" => close_listed(3).unwrap(),
            "all" => close_inherited().unwrap(),
            "passed" => {
                // SAFETY: what was there is replaced; this process does nothing else and ends soon.
                unsafe {
                    libc::dup2(numbers[0], 3);
                    libc::dup2(numbers[0], 4);
                }
                let taken = passed(2).unwrap();
                assert_eq!(taken.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(), [3, 4]);
                for fd in &taken {
                    let flags = fcntl(fd, FcntlArg::F_GETFD).unwrap();
                    assert_eq!(flags, libc::FD_CLOEXEC);
                }
                assert!(passed(1).is_err(), "nobody else can take them");
                std::process::exit(WELL);
            }
            "limit" => {
                survive_file_limit().unwrap();
                let limit = libc::rlimit { rlim_cur: 4, rlim_max: 4 };
                let mut file = tempfile::tempfile().unwrap();
                // SAFETY: the kernel reads one rlimit, which lives until then.
                let set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
                assert_eq!(set, 0);
                assert_eq!(file.write(b"12345678").unwrap(), 4);
                let error = file.write(b"5").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
            }
            _ => panic!("{act:?}"),
        }
        assert!((0..3).all(open) && !numbers.iter().any(|n| open(*n)));
        std::process::exit(WELL);
    }

    fn done(act: &str) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "start::tests::victim", "--test-threads=1", "--nocapture"])
            .env(ACT, act)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(WELL), "{act}: {:?}: {said}", output.status);
    }

    #[test]
    fn nothing_but_the_standard_descriptors_is_left() {
        // Both ends are inherited by whatever is executed; one of them far up.
        let (one, _other) = nix::unistd::pipe().unwrap();
        let far = fcntl(&one, FcntlArg::F_DUPFD(700)).unwrap();
        for by in ["range", "listed", "all"] {
            done(&format!("{by} {} {far}", one.as_raw_fd()));
        }
        // SAFETY: it has just been made here, and nobody else has it.
        unsafe { libc::close(far) };
    }

    #[test]
    fn descriptors_are_passed_on_once() {
        let (one, _other) = nix::unistd::pipe().unwrap();
        done(&format!("passed {}", one.as_raw_fd()));
    }

    #[test]
    fn a_file_that_is_too_long_kills_nobody() {
        done("limit");
    }
}
