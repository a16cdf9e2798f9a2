//! The directories: what they hold now, read again when they have changed.
//!
//! ```text
//!  current() ─► stat of each directory and file ─┬─ as before ─► the same Specs
//!                                                └─ changed ───► files read, devices gathered
//! ```
//! A file that was changed less than [`SETTLED`] before it was looked at may be changed once more
//! without a trace in its times; then the next call reads again, whatever it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Problem, Result};
use crate::name;
use crate::spec::{Edits, File, LARGEST};

/// The greatest step in which a file system counts time.
const SETTLED: Duration = Duration::from_secs(2);
/// How many files of a directory are read: the first by name.
const MOST_FILES: usize = 4096;
/// How many bytes all files may have.
const MOST_BYTES: u64 = 64 << 20;
/// How many devices a container may ask for.
const MOST_DEVICES: usize = 1024;

/// The directories of a node, later ones before earlier ones.
#[derive(Debug)]
pub struct Registry {
    dirs: Vec<PathBuf>,
    last: Mutex<Option<(Seen, Arc<Specs>)>>,
}

/// All that is described in the directories.
#[derive(Debug, Default)]
pub struct Specs {
    files: Vec<(PathBuf, File)>,
    devices: BTreeMap<String, Found>,
    /// `vendor/class` of every file.
    kinds: BTreeSet<String>,
    problems: Vec<Problem>,
}

/// Where the device of a name is.
#[derive(Debug)]
struct Found {
    /// Index of the directory.
    dir: usize,
    /// Indices of file and device.
    at: (usize, usize),
    /// Another file of that directory that describes it.
    other: Option<usize>,
}

/// What tells whether a directory or file is the same as before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    /// Device, inode, size, and the time of the last change in nanoseconds.
    identity: (u64, u64, u64, i128),
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Nothing in it is so new that it may change without a trace.
    settled: bool,
    /// For each directory.
    files: Vec<std::result::Result<Vec<Stamp>, Problem>>,
}

impl Registry {
    /// Over these directories, of which none has to exist.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Registry {
        Registry { dirs, last: Mutex::default() }
    }

    /// What they hold now. `report` is called when it has been read again and there are problems
    /// that were not there before.
    pub fn current(&self, report: impl FnOnce(&[Problem])) -> Arc<Specs> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = Seen::now(&self.dirs, SystemTime::now());
        if let Some((before, specs)) = &*last
            && *before == seen
            && seen.settled
        {
            return Arc::clone(specs);
        }
        let specs = Arc::new(Specs::read(&seen));
        let known = last.as_ref().map_or(&[][..], |(_, before)| &before.problems);
        if !specs.problems.is_empty() && known != specs.problems {
            report(&specs.problems);
        }
        *last = Some((seen, Arc::clone(&specs)));
        specs
    }
}

impl Specs {
    fn read(seen: &Seen) -> Specs {
        let mut specs = Specs::default();
        let mut left = MOST_BYTES;
        for (dir, files) in seen.files.iter().enumerate() {
            let files = match files {
                Ok(files) => files,
                Err(problem) => {
                    specs.problems.push(problem.clone());
                    continue;
                }
            };
            for Stamp { path, .. } in files.iter().take(MOST_FILES) {
                match read_file(path, &mut left) {
                    Ok(Some(file)) => specs.add(dir, path, file),
                    // Gone since the directory was read.
                    Ok(None) => {}
                    Err(text) => specs.problem(path, text),
                }
            }
            if let Some(Stamp { path, .. }) = files.get(MOST_FILES) {
                let text = format!("it and what comes after it are more than {MOST_FILES} files");
                specs.problem(path, text);
            }
        }
        let ambiguous: Vec<_> = specs
            .devices
            .iter()
            .filter_map(|(name, found)| Some((name.clone(), found.at.0, found.other?)))
            .collect();
        for (name, first, second) in ambiguous {
            let (first, second) = (&specs.files[first].0, specs.files[second].0.clone());
            let text = format!("it describes {name:?}, and so does {first:?}: neither is used");
            specs.problem(&second, text);
        }
        specs
    }

    fn problem(&mut self, path: &Path, text: String) {
        self.problems.push(Problem { path: path.to_owned(), text });
    }

    fn add(&mut self, dir: usize, path: &Path, file: File) {
        let index = self.files.len();
        for (n, device) in file.devices.iter().enumerate() {
            let name = format!("{}={}", file.kind, device.name);
            match self.devices.get_mut(&name) {
                Some(found) if found.dir == dir => {
                    found.other.get_or_insert(index);
                }
                _ => {
                    self.devices.insert(name, Found { dir, at: (index, n), other: None });
                }
            }
        }
        self.kinds.insert(file.kind.clone());
        self.files.push((path.to_owned(), file));
    }

    /// What was left out, and why.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// What these devices mean for a container, each once: for each of them, in order, what its file
    /// says of all its devices (once), and what it says of this one.
    ///
    /// # Errors
    /// [`Error`] names the device that cannot be had.
    pub fn edits<S: AsRef<str>>(&self, names: &[S]) -> Result<Edits> {
        let mut once: Vec<&str> = Vec::new();
        for name in names.iter().map(AsRef::as_ref) {
            if !once.contains(&name) {
                once.push(name);
            }
            if once.len() > MOST_DEVICES {
                return Err(Error::Many { count: names.len(), most: MOST_DEVICES });
            }
        }
        let mut edits = Edits::default();
        let mut used = BTreeSet::new();
        for name in once {
            let parts = name::parse(name)?;
            let Some(found) = self.devices.get(name) else {
                return Err(self.unknown(name, &format!("{}/{}", parts.vendor, parts.class)));
            };
            if let Some(other) = found.other {
                let path = |index: usize| self.files[index].0.clone();
                let (first, second) = (path(found.at.0), path(other));
                return Err(Error::Ambiguous { name: name.to_owned(), first, second });
            }
            let file = &self.files[found.at.0].1;
            if used.insert(found.at.0) {
                edits.append(&file.edits);
            }
            edits.append(&file.devices[found.at.1].edits);
        }
        Ok(edits)
    }

    fn unknown(&self, name: &str, kind: &str) -> Error {
        let mut why = if self.kinds.contains(kind) {
            format!("no file of {kind:?} describes it")
        } else {
            format!("there is no file of {kind:?}")
        };
        if let Some(problem) = self.problems.first() {
            let more = match self.problems.len() {
                1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            why = format!("{why} (not used: {problem}{more})");
        }
        Error::Unknown { name: name.to_owned(), why }
    }
}

impl Seen {
    fn now(dirs: &[PathBuf], now: SystemTime) -> Seen {
        let limit = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let limit = i128::try_from(limit.saturating_sub(SETTLED).as_nanos()).unwrap_or(0);
        let files: Vec<_> = dirs.iter().map(|dir| stamps(dir)).collect();
        let mut all = files.iter().filter_map(|f| f.as_ref().ok()).flatten();
        Seen { settled: all.all(|s| s.identity.3 < limit), files }
    }
}

/// The specs in a directory, sorted by name.
fn stamps(dir: &Path) -> std::result::Result<Vec<Stamp>, Problem> {
    let failed = |e: io::Error| Problem { path: dir.to_owned(), text: e.to_string() };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut stamps = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if !path.extension().is_some_and(|e| e == "json" || e == "yaml") {
            continue;
        }
        // Gone, or a link to nothing: reading says so, if it is to be said.
        let identity = fs::metadata(&path).map_or((0, 0, 0, 0), |m| {
            let time = i128::from(m.ctime()) * 1_000_000_000 + i128::from(m.ctime_nsec());
            (m.dev(), m.ino(), m.len(), time)
        });
        stamps.push(Stamp { path, identity });
    }
    stamps.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(stamps)
}

/// `None` if it is a folder, or there no more.
fn read_file(path: &Path, left: &mut u64) -> std::result::Result<Option<File>, String> {
    // A pipe of that name must not hold up whoever opens it.
    let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            return Ok(None);
        }
        opened => opened.map_err(|e| e.to_string())?,
    };
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if meta.is_dir() {
        return Ok(None);
    }
    if !meta.is_file() {
        return Err("it is no file".into());
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if length > LARGEST {
        return Err(format!("it has more than {LARGEST} bytes"));
    }
    *left = left
        .checked_sub(length)
        .ok_or_else(|| format!("with those before it, it has more than {MOST_BYTES} bytes"))?;
    File::parse(&bytes, path.extension().is_some_and(|e| e == "json")).map(Some)
}
