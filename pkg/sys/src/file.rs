//! Files, where the C library of static programs lacks a call.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Exchanges two files of one file system: at any instant both names are there.
///
/// Fails where one is missing, and on file systems that cannot.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let one = CString::new(one.as_os_str().as_bytes())?;
    let other = CString::new(other.as_os_str().as_bytes())?;
    // SAFETY: both pointers are to strings that end in NUL and live through the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "1").unwrap();
        assert_eq!(exchange(&a, &b).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&b, "2").unwrap();
        exchange(&a, &b).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), b"2");
        assert_eq!(std::fs::read(&b).unwrap(), b"1");
        assert!(exchange(Path::new("a\0"), &b).is_err());
    }
}
