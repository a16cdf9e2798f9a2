//! Becoming another program in place: same process, same children, same descriptors.
//!
//! ```text
//! open ─▶ spawn it as a child that checks ─▶ memory_file with what it needs ─▶ replace ─▶ inherited
//!           (the same open file)                                               old       new
//! ```
//! What the process keeps is what it names: all other descriptors are close-on-exec, as everything
//! is that std, nix and this crate open.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{AtFlags, FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Opens a program for [`spawn`] and [`replace`]. Fails for what is no file, or empty.
pub fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Nobody's FIFO is waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a program"));
    }
    Ok(file)
}

/// A file in memory with these bytes, read from its start.
pub fn memory_file(name: &str, bytes: &[u8]) -> io::Result<File> {
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    file.write_all_at(bytes, 0)?;
    Ok(file)
}

/// All of a file from its start, wherever its offset stands.
pub fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Starts an open program as a child that calls itself `name`. It has no descriptors but these.
///
/// A script cannot be started so: its interpreter would find nothing to read.
pub fn spawn(
    program: &File,
    name: &OsStr,
    args: &[&OsStr],
    stdin: File,
    stderr: File,
) -> io::Result<Child> {
    Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(name)
        .args(args)
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
}

/// Becomes an open program, which gets the descriptors `keep` beside stdin, stdout and stderr, and
/// the environment of this process. The signals that are blocked stay so.
///
/// Returns only where that fails; then everything is as it was. No other thread may be in a system
/// call that cannot be interrupted, or the call waits for it.
pub fn replace(program: &File, args: &[OsString], keep: &[BorrowedFd<'_>]) -> io::Error {
    let set = |on: bool| {
        let flags = if on { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
        keep.iter().try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop))
    };
    let run = || -> io::Result<()> {
        let text = |s: &OsStr| CString::new(s.as_bytes());
        let args = args.iter().map(|a| text(a)).collect::<Result<Vec<_>, _>>()?;
        let pairs = std::env::vars_os().map(|(mut key, value)| {
            key.push("=");
            key.push(value);
            key
        });
        let env = pairs.map(|p| text(&p)).collect::<Result<Vec<_>, _>>()?;
        let _ = io::stderr().flush();
        set(false)?;
        nix::unistd::execveat(program, c"", &args, &env, AtFlags::AT_EMPTY_PATH)?;
        Ok(())
    };
    let failed = run().err().unwrap_or_else(|| io::Error::from(io::ErrorKind::Other));
    let _ = set(true);
    failed
}

/// Takes a descriptor that the program before this one has left open for it; once.
///
/// Anything that this program has opened itself is close-on-exec and is refused.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number}"));
    if number < 3 {
        return Err(wrong());
    }
    // SAFETY: only flags of the descriptor are read; it is not used where there is none.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return Err(wrong());
    }
    // SAFETY: it is open and not close-on-exec, so it came through execve: nothing in this program
    // opens such descriptors or has taken this one, for taking makes it close-on-exec.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const ACT: &str = "SYS_REPLACE_ACT";

    /// Not a test of its own: run by the one below in a process that is its own.
    #[test]
    fn victim() {
        match std::env::var(ACT).as_deref() {
            Ok("replace") => {
                let file = memory_file("handed over", b"what it needs").unwrap();
                let lost = File::open("/dev/null").unwrap();
                let numbers = format!("{} {}", file.as_raw_fd(), lost.as_raw_fd());
                // SAFETY: the harness runs this test alone, in one thread.
                unsafe { std::env::set_var(ACT, numbers) };
                let nothing = memory_file("no program", b"x").unwrap();
                let error = replace(&nothing, &[], &[file.as_fd()]);
                assert_eq!(error.raw_os_error(), Some(libc::ENOEXEC));
                assert!(inherited(file.as_raw_fd()).is_err(), "it is close-on-exec again");
                let own = open(&std::env::current_exe().unwrap()).unwrap();
                let args: Vec<OsString> = std::env::args_os().collect();
                panic!("{}", replace(&own, &args, &[file.as_fd()]));
            }
            Ok(numbers) => {
                let mut numbers = numbers.split(' ').map(|n| n.parse().unwrap());
                let (kept, lost) = (numbers.next().unwrap(), numbers.next().unwrap());
                let mut text = String::new();
                let mut file = File::from(inherited(kept).unwrap());
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "what it needs");
                assert!(inherited(kept).is_err() && inherited(lost).is_err());
                assert!(inherited(1).is_err() && inherited(-1).is_err());
                std::process::exit(77);
            }
            Err(_) => {}
        }
    }

    #[test]
    fn what_is_named_and_nothing_else_goes_over() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "replace::tests::victim", "--test-threads=1", "--nocapture"])
            .env(ACT, "replace")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(77), "{:?}: {said}", output.status);
    }

    #[test]
    fn an_open_program_runs_though_its_name_is_another_by_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        assert!(open(&path).is_err() && open(dir.path()).is_err());
        std::fs::copy("/bin/cat", &path).unwrap();
        let program = open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let said = memory_file("said", b"").unwrap();
        let stdin = || memory_file("stdin", b"text").unwrap();
        let name = OsStr::new("some name");
        let args = [OsStr::new("-"), OsStr::new("/none")];
        let mut child = spawn(&program, name, &args, stdin(), said.try_clone().unwrap()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        let said = String::from_utf8(read_all(&said).unwrap()).unwrap();
        assert!(said.contains("some name") && said.contains("/none"), "{said}");
        let text = memory_file("no program", b"hello").unwrap();
        assert!(spawn(&text, name, &[], stdin(), stdin()).is_err());
    }
}
