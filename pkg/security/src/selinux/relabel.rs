//! Giving all files of a volume a label.
//!
//! ```text
//! top ─▶ its folders ─▶ a queue ─▶ threads: each entry's label read, and set where it differs
//!                                                             last of all: the top's own
//! ```
//! As the top comes last, a top that has the label says that everything below got it once: a walk
//! that was cut short is done again, and may be left out only after one that was not.
//!
//! The volume may belong to a container that runs, and that puts links where folders were. So
//! folders are opened below the top without following any link (openat2), and the labels of
//! entries are set through the open folder, on the link itself if it is one. What vanishes
//! meanwhile needs no label. Two walks of one volume do each other no harm.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// What a label lies in.
const ATTRIBUTE: &str = "security.selinux";
/// More threads than that only wait for the disk together.
const MOST_THREADS: usize = 4;
/// No label is longer, in bytes.
const MOST_LABEL: usize = 4096;

/// What is the system's own; what is below may be a volume.
const PROTECTED: [&str; 34] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/group",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/etc/ssl",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local",
    "/usr/sbin",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Gives `path` and all below it a label. With `trust_top` nothing is done if `path` itself has it.
/// A file system without labels is left as it is.
///
/// # Errors
/// [`Error::Protected`] for a folder of the system, with links resolved; [`Error::Relabel`].
pub fn relabel(path: &Path, label: &str, trust_top: bool) -> Result<()> {
    let fail = |path: &Path, e: io::Error| Error::Relabel { path: path.to_owned(), source: e };
    let path = fs::canonicalize(path).map_err(|e| fail(path, e))?;
    if PROTECTED.iter().any(|p| Path::new(p) == path) {
        return Err(Error::Protected { path });
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| fail(&path, e.into()))?;
    let own = format!("/proc/self/fd/{}", top.as_raw_fd());
    // The number leads to the file itself, and has to be followed.
    if trust_top && has(&own, label, true).unwrap_or(false) {
        return Ok(());
    }
    let kind = rustix::fs::fstat(&top).map_err(|e| fail(&path, e.into()))?.st_mode;
    if FileType::from_raw_mode(kind) == FileType::Directory {
        walk(&top, label).map_err(|(below, e)| fail(&path.join(below), e.into()))?;
    }
    set(&own, label, true).map_err(|e| fail(&path, e.into()))
}

/// Folders that wait, how many are being looked at, and what went wrong.
#[derive(Default)]
struct Queue {
    folders: Vec<PathBuf>,
    busy: usize,
    failed: Option<(PathBuf, Errno)>,
}

fn walk(top: &OwnedFd, label: &str) -> std::result::Result<(), (PathBuf, Errno)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let queue = Mutex::new(Queue { folders: vec![PathBuf::from(".")], ..Queue::default() });
    let (changed, queue) = (&Condvar::new(), &queue);
    let lock = || -> MutexGuard<'_, Queue> { queue.lock().unwrap_or_else(PoisonError::into_inner) };
    let work = || {
        loop {
            let mut state = lock();
            let folder = loop {
                if state.failed.is_some() || (state.folders.is_empty() && state.busy == 0) {
                    return;
                }
                match state.folders.pop() {
                    Some(folder) => break folder,
                    None => state = changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state.busy += 1;
            drop(state);
            let found = one(top, &folder, label);
            let mut state = lock();
            state.busy -= 1;
            match found {
                Ok(below) => state.folders.extend(below),
                Err(e) => state.failed = Some((folder, e)),
            }
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let failed = lock().failed.take();
    failed.map_or(Ok(()), Err)
}

/// Labels what is in a folder; the folders among it.
fn one(top: &OwnedFd, folder: &Path, label: &str) -> std::result::Result<Vec<PathBuf>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let dir = loop {
        match rustix::fs::openat2(top, folder, flags, Mode::empty(), resolve) {
            Ok(dir) => break dir,
            Err(Errno::AGAIN) => {}
            // It is gone, or something else by now; the walk labelled what it was.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    };
    let below = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mut folders = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let path = Path::new(&below).join(name);
        set(&path, label, false)?;
        // Not every file system says what an entry is.
        let folder_like = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()),
            _ => false,
        };
        if folder_like {
            folders.push(folder.join(name));
        }
    }
    Ok(folders)
}

fn has(
    path: impl rustix::path::Arg,
    label: &str,
    follow: bool,
) -> std::result::Result<bool, Errno> {
    let mut buffer = [0u8; MOST_LABEL];
    let length = match follow {
        true => rustix::fs::getxattr(path, ATTRIBUTE, &mut buffer)?,
        false => rustix::fs::lgetxattr(path, ATTRIBUTE, &mut buffer)?,
    };
    // The kernel gives it with the zero at its end.
    let found = buffer[..length].strip_suffix(b"\0").unwrap_or(&buffer[..length]);
    Ok(found == label.as_bytes())
}

fn set<P: rustix::path::Arg + Copy>(
    path: P,
    label: &str,
    follow: bool,
) -> std::result::Result<(), Errno> {
    if has(path, label, follow).unwrap_or(false) {
        return Ok(());
    }
    let done = match follow {
        true => rustix::fs::setxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()),
        false => rustix::fs::lsetxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()),
    };
    match done {
        // It is gone, or on a file system without labels.
        Err(Errno::NOENT | Errno::NOTSUP) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn label_of(path: &Path) -> Option<String> {
        let mut buffer = [0u8; MOST_LABEL];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).trim_end_matches('\0').to_owned())
    }

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    #[test]
    fn everything_below_gets_it_and_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, beside) = (dir.path().join("volume"), dir.path().join("beside"));
        fs::create_dir_all(beside.join("in")).unwrap();
        fs::write(beside.join("file"), "").unwrap();
        let mut all = vec![volume.clone()];
        for n in 0..7 {
            let folder = volume.join(format!("{n}/a/b/c"));
            fs::create_dir_all(&folder).unwrap();
            for m in 0..20 {
                fs::write(folder.join(m.to_string()), "").unwrap();
                all.push(folder.join(m.to_string()));
            }
            all.extend(folder.ancestors().take(4).map(Path::to_owned));
        }
        symlink(&beside, volume.join("link")).unwrap();
        symlink(beside.join("file"), volume.join("0/link")).unwrap();
        relabel(&volume, LABEL, false).unwrap();
        for path in &all {
            assert_eq!(label_of(path).as_deref(), Some(LABEL), "{}", path.display());
        }
        assert_eq!(label_of(&volume.join("link")).as_deref(), Some(LABEL));
        for path in [&beside, &beside.join("file"), &beside.join("in")] {
            assert_eq!(label_of(path), None, "{}", path.display());
        }
    }

    #[test]
    fn a_file_and_a_link_to_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        symlink(&file, dir.path().join("link")).unwrap();
        relabel(&dir.path().join("link"), LABEL, true).unwrap();
        assert_eq!(label_of(&file).as_deref(), Some(LABEL));
        assert_eq!(label_of(dir.path()), None);
        assert!(matches!(
            relabel(&dir.path().join("none"), LABEL, true),
            Err(Error::Relabel { .. })
        ));
    }

    #[test]
    fn a_trusted_top_that_has_it_ends_the_walk() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        relabel(dir.path(), LABEL, true).unwrap();
        fs::write(&below, "").unwrap();
        relabel(dir.path(), LABEL, true).unwrap();
        assert_eq!(label_of(&below), None);
        relabel(dir.path(), LABEL, false).unwrap();
        assert_eq!(label_of(&below).as_deref(), Some(LABEL));
    }

    #[test]
    fn a_walk_that_fails_leaves_the_top_to_be_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("file"), "").unwrap();
        // A label that no file system takes.
        let long = "x".repeat(1 << 17);
        assert!(matches!(relabel(dir.path(), &long, true), Err(Error::Relabel { .. })));
        assert_eq!(label_of(dir.path()), None);
    }

    #[test]
    fn the_system_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/etc", &link).unwrap();
        for path in
            ["/", "/etc", "/usr/", "/home/.", "/var/lib", "/usr/../root", link.to_str().unwrap()]
        {
            if Path::new(path).exists() {
                assert!(
                    matches!(relabel(Path::new(path), LABEL, false), Err(Error::Protected { .. })),
                    "{path}"
                );
            }
        }
    }

    #[test]
    fn several_walks_at_once_and_changes_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let beside = dir.path().join("beside");
        let volume = dir.path().join("volume");
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("secret"), "").unwrap();
        for n in 0..200 {
            fs::create_dir_all(volume.join(format!("{n}/a"))).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| relabel(&volume, LABEL, false).unwrap());
            }
            // Folders become links to what is outside.
            for n in 0..200 {
                fs::remove_dir_all(volume.join(n.to_string())).unwrap();
                symlink(&beside, volume.join(n.to_string())).unwrap();
            }
        });
        assert_eq!(label_of(&beside.join("secret")), None);
        assert_eq!(label_of(&beside), None);
    }
}
