//! Open directories of a layer being unpacked.
//!
//! A parent is resolved from the root once and then found here; the kernel never walks a long path
//! for each entry. Creating something in a directory changes its time, so each open directory knows
//! the time it should have, and gets it back when it leaves the cache:
//!
//! ```text
//! open (fstat: its time) -> used, changed -> used, changed -> evicted: futimens(its time)
//! ```
//!
//! So the times of all directories are right at the end, and no list of them is needed, which a
//! layer could make as long as it likes.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::EntryProblem;
use crate::rootfs::open_in_root;

/// How many directories are open at most.
const OPEN: usize = 48;
/// The mode of a parent that has no entry of its own.
const IMPLICIT_MODE: Mode = Mode::from_bits_retain(0o755);
/// What says that a directory hides the one below it.
const OPAQUE: &str = "trusted.overlay.opaque";

type Problem<T> = std::result::Result<T, EntryProblem>;

pub(crate) fn os(op: &'static str) -> impl FnOnce(Errno) -> EntryProblem {
    move |e| EntryProblem::Os { op, source: e.into() }
}

/// An open directory.
pub(crate) struct OpenDir {
    pub(crate) fd: OwnedFd,
    inode: u64,
    /// The time it should have.
    mtime: Cell<Timespec>,
    changed: Cell<bool>,
}

impl OpenDir {
    /// Something was made or removed in it.
    pub(crate) fn touch(&self) {
        self.changed.set(true);
    }

    /// An entry says which time it should have.
    pub(crate) fn set_time(&self, mtime: Timespec) {
        self.mtime.set(mtime);
        self.changed.set(true);
    }

    fn settle(&self) -> Problem<()> {
        if self.changed.replace(false) {
            rustix::fs::futimens(&self.fd, &times(self.mtime.get())).map_err(os("set the time"))?;
        }
        Ok(())
    }
}

pub(crate) fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

/// What stands for "deleted" in an overlay's upper layers: a character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Marks a directory as hiding the one below it.
pub(crate) fn set_opaque(dir: &OwnedFd) -> Problem<()> {
    rustix::fs::fsetxattr(dir, OPAQUE, b"y", rustix::fs::XattrFlags::empty())
        .map_err(os("mark as opaque"))
}

/// Opens a directory for changing, by its name in an open one.
pub(crate) fn open_dir(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

struct Slot {
    dir: Rc<OpenDir>,
    /// Paths that lead to it.
    paths: Vec<Box<[u8]>>,
    used: u64,
}

/// The cache.
pub(crate) struct Dirs {
    root: OwnedFd,
    slots: Vec<Slot>,
    clock: u64,
    /// Directories made because an entry needed them.
    pub(crate) made: u64,
}

impl Dirs {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root, slots: Vec::with_capacity(OPEN), clock: 0, made: 0 }
    }

    /// A directory that must be there. `path` has no `.`, `..` or double slashes.
    pub(crate) fn get(&mut self, path: &[u8]) -> Problem<Option<Rc<OpenDir>>> {
        if let Some(dir) = self.cached(path) {
            return Ok(Some(dir));
        }
        match open_in_root(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => self.insert(path, fd).map(Some),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(os("open a parent")(e)),
        }
    }

    /// A directory, made with its parents if it is not there. New ones get the time `mtime`.
    pub(crate) fn get_or_make(&mut self, path: &[u8], mtime: Timespec) -> Problem<Rc<OpenDir>> {
        if let Some(dir) = self.get(path)? {
            return Ok(dir);
        }
        let mut at = match self.get(b"")? {
            Some(root) => root,
            None => return Err(EntryProblem::ParentNotDirectory),
        };
        let mut end = 0;
        while end < path.len() {
            let begin = if end == 0 { 0 } else { end + 1 };
            end = path[begin..].iter().position(|b| *b == b'/').map_or(path.len(), |n| begin + n);
            at = match self.get(&path[..end])? {
                Some(next) => next,
                None => self.make(&at, &path[..end], &path[begin..end], mtime)?,
            };
        }
        Ok(at)
    }

    fn make(
        &mut self,
        parent: &Rc<OpenDir>,
        path: &[u8],
        name: &[u8],
        mtime: Timespec,
    ) -> Problem<Rc<OpenDir>> {
        let hides = match rustix::fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => false,
            Ok(stat) if is_whiteout(&stat) => {
                parent.touch();
                rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty())
                    .map_err(os("remove a whiteout"))?;
                true
            }
            // A file, or a symlink to a file or to nowhere.
            Ok(_) => return Err(EntryProblem::ParentNotDirectory),
            Err(e) => return Err(os("look up a parent")(e)),
        };
        parent.touch();
        rustix::fs::mkdirat(&parent.fd, name, IMPLICIT_MODE).map_err(os("create a parent"))?;
        let fd = open_dir(&parent.fd, name).map_err(os("open a parent"))?;
        // What a setgid parent or the umask did to it.
        rustix::fs::fchown(&fd, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))
            .map_err(os("change the owner of a parent"))?;
        rustix::fs::fchmod(&fd, IMPLICIT_MODE).map_err(os("change the mode of a parent"))?;
        if hides {
            set_opaque(&fd)?;
        }
        self.made += 1;
        let dir = self.insert(path, fd)?;
        dir.set_time(mtime);
        Ok(dir)
    }

    /// Takes an open directory into the cache.
    pub(crate) fn insert(&mut self, path: &[u8], fd: OwnedFd) -> Problem<Rc<OpenDir>> {
        self.clock += 1;
        let stat = rustix::fs::fstat(&fd).map_err(os("look at a parent"))?;
        // Another path may have led to the same one (through a symlink); its time must not be lost.
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.dir.inode == stat.st_ino) {
            slot.used = self.clock;
            if !slot.paths.iter().any(|known| **known == *path) {
                // A layer could have any number of paths to one directory.
                slot.paths.truncate(OPEN);
                slot.paths.push(path.into());
            }
            return Ok(slot.dir.clone());
        }
        if self.slots.len() == OPEN
            && let Some((oldest, _)) =
                self.slots.iter().enumerate().min_by_key(|(_, slot)| slot.used)
        {
            self.slots.swap_remove(oldest).dir.settle()?;
        }
        let mtime = Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ };
        let dir = Rc::new(OpenDir {
            fd,
            inode: stat.st_ino,
            mtime: Cell::new(mtime),
            changed: Cell::new(false),
        });
        let slot = Slot { dir: dir.clone(), paths: vec![path.into()], used: self.clock };
        self.slots.push(slot);
        Ok(dir)
    }

    /// Forgets all paths: something that they may lead through is gone.
    pub(crate) fn clear(&mut self) -> Problem<()> {
        for slot in self.slots.drain(..) {
            slot.dir.settle()?;
        }
        Ok(())
    }

    fn cached(&mut self, path: &[u8]) -> Option<Rc<OpenDir>> {
        self.clock += 1;
        let clock = self.clock;
        let slot =
            self.slots.iter_mut().find(|slot| slot.paths.iter().any(|known| **known == *path))?;
        slot.used = clock;
        Some(slot.dir.clone())
    }
}
