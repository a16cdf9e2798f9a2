//! Attributes of mounts, and copies of mounts whose files have other owners.
//!
//! ```text
//! open_tree(CLONE) ─▶ a mount of its own, nowhere yet ─▶ mount_setattr(IDMAP, user namespace)
//! ```
//! Linux 5.12. The owner that such a mount shows is the one that the file system has, mapped from
//! the inside of that user namespace to the outside.

use std::ffi::{CString, OsString};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A path of `/proc/self/mountinfo` without its escapes, such as `\040` for a space.
#[must_use]
pub fn unescape(text: &str) -> PathBuf {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 4).filter(|_| byte == b'\\');
        let code = digits
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        out.push(code.unwrap_or(byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(out).into()
}

/// Whether the kernel has `mount_setattr` (Linux 5.12).
pub fn has_attributes() -> bool {
    // Too small a structure is refused before anything else is looked at.
    // SAFETY: the path is a string that ends in NUL; no structure is read where its size is 0.
    let rc = unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, 0usize, 0usize) };
    rc == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// A copy of the mount at `path`, with no name yet, that shows owners as `user_namespace` maps them.
///
/// What is mounted below `path` is not in it.
///
/// # Errors
/// EINVAL where the file system knows no such mounts, and what `open_tree` and `mount_setattr` say.
pub fn idmapped(path: &Path, user_namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path ends in NUL and lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just given this descriptor, and nobody else has it.
    let tree = unsafe { OwnedFd::from_raw_fd(fd) };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: u64::from(user_namespace.as_raw_fd().unsigned_abs()),
    };
    // SAFETY: the structure is of the size that is named and lives through the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_a_mount_table() {
        for (text, path) in
            [(r"/a\040b\134c\", r"/a b\c\"), (r"\999\04", r"\999\04"), (r"/a\134b\9\", r"/a\b\9\")]
        {
            assert_eq!(unescape(text), Path::new(path));
        }
    }

    #[test]
    fn refusals_are_the_kernels() {
        assert!(has_attributes());
        let own = std::fs::File::open("/proc/self/ns/user").unwrap();
        let missing = idmapped(Path::new("/nowhere"), own.as_fd()).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        // The initial one maps nothing.
        let same = idmapped(Path::new("/tmp"), own.as_fd()).unwrap_err();
        assert!(
            same.raw_os_error().is_some_and(|e| e == libc::EPERM || e == libc::EINVAL),
            "{same}"
        );
        let none = std::fs::File::open("/proc/self/ns/net").unwrap();
        assert!(idmapped(Path::new("/tmp"), none.as_fd()).is_err());
    }
}
