//! Writing records so that a power loss leaves either the old or the new one.
//!
//! ```text
//! tmp-<n> written -> fsync(tmp) -> rename(tmp, name) -> fsync(folder)
//! ```
//!
//! A record that cannot be read is renamed to `<name>.damaged`, so that it is out of the way but
//! can still be looked at.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use failpoint::step;

/// How names of what is under way begin; opening the store removes them.
pub(crate) const TMP_PREFIX: &str = "tmp-";
/// How names of what was put aside end.
pub(crate) const DAMAGED_SUFFIX: &str = ".damaged";

/// A name in `folder` that nobody else uses. The store is locked, so that this process is the only
/// one that makes them.
pub(crate) fn tmp_path(folder: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("{TMP_PREFIX}{}-{number}", std::process::id()))
}

/// What could not be removed, to be tried again.
static LEFT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Notes what could not be removed and is of no use.
pub(crate) fn note_left(path: &Path) {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
}

/// What has been noted below `root` and is noted no longer.
pub(crate) fn take_left(root: &Path) -> Vec<PathBuf> {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.extract_if(.., |path| path.starts_with(root)).collect()
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    step!("store: sync folder", File::open(folder).and_then(|folder| folder.sync_all()))
        .map_err(|e| Error::io("sync", folder, e))
}

/// Makes a folder with its parents, durably as far as it is new.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folder(parent)?;
    }
    match step!("store: make folder", fs::create_dir(folder)) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => return Ok(()),
        Err(e) => return Err(Error::io("create", folder, e)),
    }
    match folder.parent() {
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

/// Writes `folder/name` durably, in place of what was there.
pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let tmp = tmp_path(folder);
    let path = folder.join(name);
    let write = || {
        let mut file = step!("store: make file", File::create_new(&tmp))?;
        step!("store: write", file.write_all(bytes))?;
        step!("store: sync", file.sync_all())?;
        step!("store: rename", fs::rename(&tmp, &path))
    };
    let written = write();
    if let Err(e) = written {
        // What could not be written is of no use.
        // no step: it is for want of a disk that this comes, and what is left is noted.
        if fs::remove_file(&tmp).is_err() {
            note_left(&tmp);
        }
        return Err(Error::io("write", &path, e));
    }
    sync_folder(folder)
}

/// Removes `folder/name` durably; nothing to do if it is not there.
pub(crate) fn remove(folder: &Path, name: &str) -> Result<()> {
    let path = folder.join(name);
    match step!("store: remove", fs::remove_file(&path)) {
        Ok(()) => sync_folder(folder),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", &path, e)),
    }
}

/// Renames what cannot be read to `<name>.damaged` (or `.damaged.N`, if there is one already).
/// Never fails: what cannot be renamed stays and is passed over.
pub(crate) fn put_aside(path: &Path, why: &dyn std::fmt::Display) {
    for number in 0..1000u32 {
        let mut aside = path.as_os_str().to_owned();
        aside.push(DAMAGED_SUFFIX);
        if number > 0 {
            aside.push(format!(".{number}"));
        }
        let aside = PathBuf::from(aside);
        if aside.symlink_metadata().is_ok() {
            continue;
        }
        // no step: what is damaged is none of an operation's.
        match fs::rename(path, &aside) {
            Ok(()) => {
                tracing::warn!(path = %path.display(), aside = %aside.display(), %why, "put aside");
            }
            Err(e) => tracing::warn!(path = %path.display(), %why, error = %e, "cannot put aside"),
        }
        return;
    }
    tracing::warn!(path = %path.display(), %why, "cannot put aside: too many");
}

/// Whether a name is that of something put aside.
pub(crate) fn is_aside(name: &str) -> bool {
    name.contains(DAMAGED_SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_taken_once_and_by_its_store() {
        let (a, b) = (Path::new("/left/a"), Path::new("/left/b"));
        note_left(&a.join("tmp-1"));
        note_left(&a.join("tmp-1"));
        note_left(&b.join("tmp-1"));
        assert_eq!(take_left(a), [a.join("tmp-1")]);
        assert!(take_left(a).is_empty());
        assert_eq!(take_left(b), [b.join("tmp-1")]);
    }
}
