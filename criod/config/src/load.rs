//! All sources, one over the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use clap::ArgMatches;

use crate::config::Config;
use crate::error::{Error, Origin, Warning};
use crate::machine::Machine;
use crate::{DEFAULT_DIR, DEFAULT_FILE, check, file, flags};

/// The most that is read of one file: a thousand times what anybody writes.
const MOST_BYTES: u64 = 8 << 20;
/// The most folders below one another; a bind mount can make a tree that has no end.
const MOST_DEEP: usize = 32;

/// What was read, and from where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The files that were read, the lowest first.
    pub files: Vec<PathBuf>,
    /// Where each value came from that somebody set, by the key's dotted name.
    pub keys: BTreeMap<String, Origin>,
}

impl Sources {
    /// Where the value of a key came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.keys.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Drops what is known about a table and all that is in it.
    pub(crate) fn forget(&mut self, table: &str) {
        self.keys.retain(|k, _| {
            !k.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
    }
}

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Every key with its value.
    pub config: Config,
    /// What this machine would have had without any source; [`crate::to_toml`] compares with it.
    pub defaults: Config,
    /// To be logged once each.
    pub warnings: Vec<Warning>,
    /// Where the values came from.
    pub sources: Sources,
}

/// Reads the configuration for the daemon: all sources, then the runtimes that must exist.
///
/// `matches` is from a command with [`crate::flags`]; flags that it lacks count as not given. `env`
/// is the environment, which is also asked for PATH.
///
/// # Errors
/// The first mistake, with file and line, or that the default runtime cannot work.
pub fn load(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Error> {
    let mut loaded = read(matches, env)?;
    let machine = Machine::here(env("PATH").as_deref());
    check::runtimes(&machine, &mut loaded)?;
    Ok(loaded)
}

/// Reads the configuration to show it: as [`load`], but no runtime need be installed.
///
/// # Errors
/// The first mistake, with file and line.
pub fn read(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Error> {
    let machine = Machine::here(env("PATH").as_deref());
    let mut loaded = start(&machine);
    let named = |flag: &str, variable: &str| {
        let last = flags::given(matches, flag).and_then(|mut words| words.pop());
        last.or_else(|| env(variable).filter(|v| !v.is_empty()))
    };
    let file = named("config", "CONTAINER_CONFIG");
    let dir = named("config-dir", "CONTAINER_CONFIG_DIR");
    one_file(file.as_deref(), &mut loaded)?;
    all_files(dir.as_deref(), &mut loaded)?;
    flags::apply_env(env, &mut loaded.config, &mut loaded.sources)?;
    flags::apply_flags(matches, &mut loaded.config, &mut loaded.sources, &mut loaded.warnings)?;
    check::values(&mut loaded)?;
    Ok(loaded)
}

/// Reads one text as the only source, over the defaults of `machine`. `path` is for messages.
///
/// # Errors
/// The first mistake, with line.
pub fn from_text(machine: &Machine, path: &Path, text: &str) -> Result<Loaded, Error> {
    let mut loaded = start(machine);
    let Loaded { config, warnings, sources, .. } = &mut loaded;
    file::apply(path, text, config, sources, warnings)?;
    check::values(&mut loaded)?;
    Ok(loaded)
}

fn start(machine: &Machine) -> Loaded {
    let defaults = machine.defaults();
    Loaded { config: defaults.clone(), defaults, warnings: Vec::new(), sources: Sources::default() }
}

fn one_file(named: Option<&str>, loaded: &mut Loaded) -> Result<(), Error> {
    let path = Path::new(named.unwrap_or(DEFAULT_FILE));
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    match apply(path, loaded) {
        Err(Error::Read { source, .. })
            if named.is_none() && source.kind() == ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}

fn all_files(named: Option<&str>, loaded: &mut Loaded) -> Result<(), Error> {
    let path = Path::new(named.unwrap_or(DEFAULT_DIR));
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let mut files = Vec::new();
    match walk(path, 0, &mut files) {
        Err(Error::ReadDir { source, .. }) if source.kind() == ErrorKind::NotFound => {
            if named.is_some() {
                loaded.warnings.push(Warning::NoDir { path: path.to_path_buf() });
            }
            return Ok(());
        }
        other => other?,
    }
    files.iter().try_for_each(|file| apply(file, loaded))
}

/// Regular files and links to such, each folder's entries in the order of their names' bytes.
/// Links to folders are not followed: with the volumes of a pod the same files are reached twice.
fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    if depth > MOST_DEEP {
        return Err(Error::TooDeep { path: folder.to_path_buf(), most: MOST_DEEP });
    }
    let failed = |source| Error::ReadDir { path: folder.to_path_buf(), source };
    let mut entries: Vec<_> =
        fs::read_dir(folder).and_then(Iterator::collect::<Result<_, _>>).map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            walk(&path, depth + 1, files)?;
        } else if kind.is_file() || (kind.is_symlink() && path.is_file()) {
            files.push(path);
        }
    }
    Ok(())
}

fn apply(path: &Path, loaded: &mut Loaded) -> Result<(), Error> {
    let failed = |source| Error::Read { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    let opened = fs::File::open(path).map_err(failed)?;
    opened.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Error::TooLarge { path: path.to_path_buf(), most: MOST_BYTES });
    }
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let good = bytes.iter().take(e.valid_up_to());
        let line = good.filter(|b| **b == b'\n').count() + 1;
        Error::Encoding { path: path.to_path_buf(), line }
    })?;
    let Loaded { config, warnings, sources, .. } = loaded;
    file::apply(path, text, config, sources, warnings)?;
    loaded.sources.files.push(path.to_path_buf());
    Ok(())
}
