//! Exit statuses of watched processes, in memory and in a file beside the socket, so that they
//! outlive the keeper, too.
//!
//! The file's first line is the boot id; each further line is `id pid status time`. It is written
//! before the process is reaped: a keeper that dies in between leaves a zombie, not a gap.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How a watched process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) id: String,
    pub(crate) status: i32,
    /// Nanoseconds since the Unix epoch.
    pub(crate) time: i64,
}

/// The remembered ends, by pid.
#[derive(Debug)]
pub(crate) struct Exits {
    path: PathBuf,
    file: File,
    by_pid: BTreeMap<i32, Exit>,
}

impl Exits {
    /// Opens the file and keeps what is of this boot.
    pub(crate) fn open(path: &Path) -> io::Result<Exits> {
        let boot = sys::clock::boot_id()?;
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut lines = text.lines();
        let mut by_pid = BTreeMap::new();
        if lines.next() == Some(boot.as_str()) {
            by_pid.extend(lines.filter_map(parse));
        }
        let file = rewrite(path, &boot, &by_pid)?;
        Ok(Exits { path: path.to_owned(), file, by_pid })
    }

    /// Goes on with a file that is open, and what is in it or should be.
    pub(crate) fn take(path: &Path, file: File, by_pid: BTreeMap<i32, Exit>) -> Exits {
        Exits { path: path.to_owned(), file, by_pid }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (i32, &Exit)> {
        self.by_pid.iter().map(|(pid, exit)| (*pid, exit))
    }

    pub(crate) fn get(&self, pid: i32) -> Option<&Exit> {
        self.by_pid.get(&pid)
    }

    /// Remembers one. A full file system loses only what a second death would have needed.
    pub(crate) fn add(&mut self, pid: i32, exit: Exit) {
        if let Err(e) = self.file.write_all(line(pid, &exit).as_bytes()) {
            eprintln!("criod-keeper: {}: {e}", self.path.display());
        }
        self.by_pid.insert(pid, exit);
    }

    /// Forgets how a process of this pid ended, unless it was of the container `id`.
    pub(crate) fn forget_pid(&mut self, pid: i32, id: &str) {
        if self.by_pid.get(&pid).is_some_and(|e| e.id != id) {
            self.by_pid.remove(&pid);
        }
    }

    /// Forgets those of a container that is no more.
    pub(crate) fn forget(&mut self, id: &str) {
        let before = self.by_pid.len();
        self.by_pid.retain(|_, e| e.id != id);
        if self.by_pid.len() == before {
            return;
        }
        match sys::clock::boot_id().and_then(|boot| rewrite(&self.path, &boot, &self.by_pid)) {
            Ok(file) => self.file = file,
            Err(e) => eprintln!("criod-keeper: {}: {e}", self.path.display()),
        }
    }
}

fn line(pid: i32, e: &Exit) -> String {
    format!("{} {pid} {} {}\n", e.id, e.status, e.time)
}

fn parse(text: &str) -> Option<(i32, Exit)> {
    let mut words = text.split(' ');
    let id = words.next()?.to_owned();
    let pid = words.next()?.parse().ok()?;
    let status = words.next()?.parse().ok()?;
    let time = words.next()?.parse().ok()?;
    Some((pid, Exit { id, status, time }))
}

fn rewrite(path: &Path, boot: &str, all: &BTreeMap<i32, Exit>) -> io::Result<File> {
    let temp = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&temp)?;
    let mut text = format!("{boot}\n");
    text.extend(all.iter().map(|(pid, e)| line(*pid, e)));
    file.write_all(text.as_bytes())?;
    std::fs::rename(&temp, path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlive_the_keeper_but_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exits");
        let exit = |id: &str| Exit { id: id.into(), status: 256, time: 7 };
        let mut exits = Exits::open(&path).unwrap();
        exits.add(10, exit("a"));
        exits.add(11, exit("b"));
        drop(exits);
        let mut exits = Exits::open(&path).unwrap();
        assert_eq!(exits.get(10), Some(&exit("a")));
        exits.forget("a");
        drop(exits);
        let exits = Exits::open(&path).unwrap();
        assert_eq!((exits.get(10), exits.get(11)), (None, Some(&exit("b"))));
        // A process of another container has had the same pid.
        let mut exits = Exits::open(&path).unwrap();
        exits.forget_pid(11, "b");
        assert!(exits.get(11).is_some());
        exits.forget_pid(11, "c");
        assert_eq!(exits.get(11), None);
        let text = std::fs::read_to_string(&path).unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        std::fs::write(&path, format!("another-boot\n{rest}torn line")).unwrap();
        assert_eq!(Exits::open(&path).unwrap().get(11), None);
    }
}
