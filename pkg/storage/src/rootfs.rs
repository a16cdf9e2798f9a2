//! Reading and making things inside a root that a container or an image controls.
//!
//! Every path is resolved by the kernel with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`:
//! `..` stops at the root, an absolute symlink starts again at the root, and links of `/proc` that
//! lead out are refused, whatever a process in the container renames meanwhile.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use failpoint::step;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// How paths inside a root are resolved.
pub(crate) const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// How many symlinks to nowhere are followed; the kernel's own limit for symlinks.
const MOST_LINKS: u32 = 40;

/// `openat2` tells with EAGAIN that a rename or a mount raced with the resolution of `..`.
pub(crate) fn open_in_root(
    root: impl AsFd,
    path: &[u8],
    flags: OFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(
            root.as_fd(),
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            IN_ROOT,
        ) {
            Err(Errno::AGAIN) if tries < 64 => tries += 1,
            other => return other,
        }
    }
}

/// The path by which the kernel finds an open file again.
pub(crate) fn proc_path(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn open_root(root: &Path) -> Result<OwnedFd> {
    rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open", root, e))
}

fn in_root(op: &'static str, root: &Path, path: &str, source: impl Into<io::Error>) -> Error {
    let source = source.into();
    if crate::error::no_space(&source) {
        return Error::NoSpace { op, path: root.join(path.trim_start_matches('/')), source };
    }
    Error::InRoot { op, root: root.to_owned(), path: path.to_owned(), source }
}

/// Reads a regular file inside a root; `None` if it is not there.
///
/// # Errors
/// [`Error::FileTooLarge`] if it holds more than `max_bytes`, [`Error::InRoot`] if it is not a
/// regular file or cannot be read.
pub fn read_in_root(root: &Path, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    let fail = |op, e: io::Error| in_root(op, root, path, e);
    let dir = open_root(root)?;
    // First without opening it for real: opening a device or a fifo has effects.
    let handle = match open_in_root(&dir, path.as_bytes(), OFlags::PATH) {
        Ok(handle) => handle,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(e) => return Err(fail("open", e.into())),
    };
    let kind = rustix::fs::fstat(&handle).map_err(|e| fail("stat", e.into()))?;
    if FileType::from_raw_mode(kind.st_mode) != FileType::RegularFile {
        return Err(fail(
            "read",
            io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"),
        ));
    }
    // The same file, whatever its name stands for by now.
    let file = File::open(proc_path(&handle)).map_err(|e| fail("open", e))?;
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| fail("read", e))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::FileTooLarge {
            root: root.to_owned(),
            path: path.to_owned(),
            limit: max_bytes,
        });
    }
    Ok(Some(bytes))
}

/// Puts a new file in the place of one inside a root, with its owner and mode. The old one stays as
/// it is for whoever else has a name for it; a symlink gives way to the file.
///
/// Not for a root in which something runs.
///
/// # Errors
/// [`Error::InRoot`], also if there is no file to take the place of; [`Error::NoSpace`].
pub fn replace_in_root(root: &Path, path: &str, bytes: &[u8]) -> Result<()> {
    let fail = |op, e: io::Error| in_root(op, root, path, e);
    let dir = open_root(root)?;
    let old = open_in_root(&dir, path.as_bytes(), OFlags::PATH)
        .and_then(rustix::fs::fstat)
        .map_err(|e| fail("look at", e.into()))?;
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = open_in_root(&dir, parent.as_bytes(), OFlags::PATH | OFlags::DIRECTORY)
        .map_err(|e| fail("open the folder of", e.into()))?;
    let new = format!(".{name}.new");
    let write = || -> std::result::Result<(), io::Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let open = || rustix::fs::openat(&parent, new.as_str(), flags, mode);
        let file = match step!("in root: make file", open()) {
            // An attempt before this one ended half way.
            Err(Errno::EXIST) => {
                // no step: nobody replaces twice what belongs to a container that is being made.
                rustix::fs::unlinkat(&parent, new.as_str(), AtFlags::empty())?;
                open()?
            }
            other => other?,
        };
        let mut file = File::from(file);
        step!("in root: write", file.write_all(bytes))?;
        let (uid, gid) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
        step!("in root: give file", rustix::fs::fchown(&file, Some(uid), Some(gid)))?;
        let mode = Mode::from_raw_mode(old.st_mode & 0o7777);
        step!("in root: set mode of file", rustix::fs::fchmod(&file, mode))?;
        Ok(step!("in root: rename", rustix::fs::renameat(&parent, new.as_str(), &parent, name))?)
    };
    write().map_err(|e| {
        // no step: it goes with the root.
        let _ = rustix::fs::unlinkat(&parent, new.as_str(), AtFlags::empty());
        fail("replace", e)
    })
}

/// Makes a directory inside a root with all its missing parents, and opens it (`O_PATH`).
///
/// What is there stays as it is; what is new gets `mode`, `uid` and `gid`. Symlinks on the way are
/// followed inside the root, also those to what is not there yet.
pub fn ensure_dir_in_root(
    root: &Path,
    path: &str,
    mode: u32,
    uid: u32,
    gid: u32,
) -> Result<OwnedFd> {
    let top = open_root(root)?;
    let fail = |(op, e): (&'static str, Errno)| in_root(op, root, path, e);
    let make = |at: &OwnedFd, part: &[u8]| {
        let mode700 = Mode::from_raw_mode(0o700);
        step!("in root: make folder", rustix::fs::mkdirat(at, part, mode700))
            .map_err(|e| ("create", e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new = rustix::fs::openat(at, part, flags, Mode::empty()).map_err(|e| ("open", e))?;
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        step!("in root: give folder", rustix::fs::fchown(&new, uid, gid))
            .map_err(|e| ("change the owner of", e))?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        step!("in root: set mode of folder", rustix::fs::fchmod(&new, mode))
            .map_err(|e| ("change the mode of", e))
    };
    let open = |path: &[u8]| open_in_root(&top, path, OFlags::PATH | OFlags::DIRECTORY);
    let mut wanted = path.as_bytes().to_vec();
    let mut links = 0;
    'again: loop {
        match open(&wanted) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(|e| fail(("open", e))),
        }
        let mut at = open(b".").map_err(|e| fail(("open", e)))?;
        let mut end = 0;
        while end < wanted.len() {
            let begin = end;
            end += wanted[begin..]
                .iter()
                .skip(1)
                .position(|b| *b == b'/')
                .map_or(wanted.len() - begin, |n| n + 1);
            let part = wanted[begin..end].strip_prefix(b"/").unwrap_or(&wanted[begin..end]);
            if part.is_empty() || part == b"." {
                continue;
            }
            at = match open(&wanted[..end]) {
                Ok(next) => next,
                Err(Errno::NOENT) => match make(&at, part) {
                    // Opened again: the name decides, not what was made under it.
                    Ok(()) => open(&wanted[..end]).map_err(|e| fail(("open", e)))?,
                    // A symlink to what is not there, or somebody else was faster.
                    Err((_, Errno::EXIST)) if links < MOST_LINKS => {
                        links += 1;
                        if let Ok(link) = rustix::fs::readlinkat(&at, part, Vec::new()) {
                            let link = link.as_bytes();
                            let before: &[u8] =
                                if link.starts_with(b"/") { b"" } else { &wanted[..begin] };
                            wanted = [before, b"/", link, &wanted[end..]].concat();
                        }
                        continue 'again;
                    }
                    Err(e) => return Err(fail(e)),
                },
                Err(e) => return Err(fail(("open", e))),
            };
        }
        return Ok(at);
    }
}

/// Where a path inside a root leads, as a path of the host: symlinks are resolved inside the root,
/// and everything on the way must exist.
///
/// The answer is a text, true at the moment of asking: use it only where nothing in the root runs,
/// or use [`open_path_in_root`].
pub fn resolve_in_root(root: &Path, path: &str) -> Result<PathBuf> {
    let handle = open_path_in_root(root, path)?;
    std::fs::read_link(proc_path(&handle)).map_err(|e| in_root("resolve", root, path, e))
}

/// Opens what a path inside a root leads to, with `O_PATH`.
pub fn open_path_in_root(root: &Path, path: &str) -> Result<OwnedFd> {
    let dir = open_root(root)?;
    open_in_root(&dir, path.as_bytes(), OFlags::PATH).map_err(|e| in_root("open", root, path, e))
}
