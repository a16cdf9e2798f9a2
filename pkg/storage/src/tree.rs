//! Deleting and measuring trees whose names somebody else chose.
//!
//! No symlink is followed and no mount is entered. Trees may be deeper than there are file
//! descriptors: deletion holds at most [`DEEPEST`] of them, and moves what lies deeper to the top
//! of the tree that is being deleted, where it is found again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use failpoint::step;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::check::Extent;
use crate::error::{Error, Result};

/// How many directories deletion keeps open at once.
const DEEPEST: usize = 64;
/// How often a directory is read again if it is not empty after all was deleted in it.
const ROUNDS: u32 = 1000;

/// How much is remembered while a tree is measured: bytes of folders' paths, and inodes.
const MOST_PENDING: usize = 64 << 20;
const MOST_LINKED: usize = 1 << 20;

/// One directory, as seen from the one above it.
const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What a tree takes on its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the blocks.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Deletes a file or a directory with all that is in it. Nothing to do if it is not there.
///
/// # Errors
/// [`Error::MountInside`] if something is mounted on it or in it: what is mounted stays untouched,
/// but what was found before it is gone.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "no file name");
        return Err(Error::io("remove", path, source));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::io("open", parent, e)),
    };
    remove_at(&parent, name.as_bytes()).map_err(|e| match e {
        Errno::XDEV | Errno::BUSY => Error::MountInside { path: path.to_owned() },
        e => Error::io("remove", path, e),
    })
}

struct Frame {
    dir: OwnedFd,
    entries: Dir,
    name: Vec<u8>,
    rounds: u32,
}

impl Frame {
    fn open(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut tries = 0;
        let dir = loop {
            match rustix::fs::openat2(parent.as_fd(), name, flags, Mode::empty(), BELOW) {
                Err(Errno::AGAIN) if tries < 64 => tries += 1,
                other => break other?,
            }
        };
        let entries = Dir::read_from(&dir)?;
        Ok(Self { dir, entries, name: name.to_owned(), rounds: 0 })
    }
}

/// Deletes `name` in an open directory. EXDEV or EBUSY if something is mounted there.
pub(crate) fn remove_at(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    // no step: it is one of the callers.
    match rustix::fs::unlinkat(parent.as_fd(), name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR, POSIX EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let mut stack = vec![Frame::open(parent.as_fd(), name)?];
    let mut moved = 0u64;
    while let Some(depth) = stack.len().checked_sub(1) {
        let entry = stack[depth].entries.read();
        if let Some(entry) = entry {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let dir = &stack[depth].dir;
            if entry.file_type() != FileType::Directory {
                match step!("tree: remove file", rustix::fs::unlinkat(dir, name, AtFlags::empty()))
                {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    // It has become one, or the file system does not tell types.
                    Err(Errno::ISDIR) => {}
                    Err(e) => return Err(e),
                }
            }
            if depth + 1 < DEEPEST {
                let frame = Frame::open(dir, name)?;
                stack.push(frame);
            } else {
                // Proves that nothing is mounted there.
                drop(Frame::open(dir, name)?);
                move_up(dir, name, &stack[0].dir, &mut moved)?;
            }
            continue;
        }
        let above = match depth.checked_sub(1) {
            Some(above) => stack[above].dir.as_fd(),
            None => parent.as_fd(),
        };
        let own = stack[depth].name.as_slice();
        let removed =
            step!("tree: remove folder", rustix::fs::unlinkat(above, own, AtFlags::REMOVEDIR));
        match removed {
            Ok(()) | Err(Errno::NOENT) => {
                stack.pop();
            }
            // Something was moved here, or the file system hid an entry while others went.
            Err(Errno::NOTEMPTY | Errno::EXIST) if stack[depth].rounds < ROUNDS => {
                let frame = &mut stack[depth];
                frame.rounds += 1;
                frame.entries = Dir::read_from(&frame.dir)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Moves a directory to the top of the tree, under a name that is free.
fn move_up(dir: &OwnedFd, name: &[u8], top: &OwnedFd, moved: &mut u64) -> rustix::io::Result<()> {
    loop {
        *moved += 1;
        let free = format!(".deep-{moved}");
        // no step: a removal that is begun again does the same.
        match rustix::fs::renameat(dir, name, top, free.as_str()) {
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            other => return other,
        }
    }
}

/// What a tree takes on its disk, by looking at everything in it. A file with several names counts
/// once; what is mounted inside does not count. Nothing there: zero.
///
/// What it remembers meanwhile is bounded: of a tree whose folders' names take more than 64 MiB it may
/// tell less than there is, and of one with more than a million files with several names more.
pub fn usage(path: &Path) -> Result<Usage> {
    usage_of(path, &mut |_| ())
}

/// [`usage`], which tells of each folder, relative to `path`, before it looks into it.
pub fn usage_of(path: &Path, folder_found: &mut dyn FnMut(&Path)) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = std::collections::HashSet::new();
    walk(path, folder_found, &mut |stat| {
        if stat.st_nlink < 2
            || FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            || linked.len() >= MOST_LINKED
            || linked.insert(stat.st_ino)
        {
            // Blocks of 512 bytes, whatever the file system.
            usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            usage.inodes += 1;
        }
    })?;
    Ok(usage)
}

/// Names and bytes in a tree, the names of a file with several each counted.
pub(crate) fn extent(path: &Path) -> Result<Extent> {
    let mut extent = Extent::default();
    walk(path, &mut |_| (), &mut |stat| {
        extent.names += 1;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            extent.bytes += u64::try_from(stat.st_size).unwrap_or(0);
        }
    })?;
    Ok(extent)
}

/// Looks at `path` and at everything in it.
fn walk(
    path: &Path,
    folder_found: &mut dyn FnMut(&Path),
    found: &mut dyn FnMut(&Stat),
) -> Result<()> {
    let fail = |e: Errno| Error::io("measure", path, e);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(fail(e)),
    };
    found(&rustix::fs::fstat(&root).map_err(fail)?);
    let mut left = vec![PathBuf::from(".")];
    let mut pending = 0;
    while let Some(folder) = left.pop() {
        pending -= folder.as_os_str().len().min(pending);
        folder_found(&folder);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat2(&root, &folder, flags, Mode::empty(), BELOW) {
            Ok(dir) => dir,
            // Gone or replaced meanwhile, mounted over, or deeper than a path can say.
            Err(
                Errno::NOENT
                | Errno::NOTDIR
                | Errno::LOOP
                | Errno::XDEV
                | Errno::NAMETOOLONG
                | Errno::AGAIN,
            ) => continue,
            Err(e) => return Err(fail(e)),
        };
        for entry in Dir::read_from(&dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(fail(e)),
            };
            found(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                && pending < MOST_PENDING
            {
                let below = folder.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
                pending += below.as_os_str().len();
                left.push(below);
            }
        }
    }
    Ok(())
}
