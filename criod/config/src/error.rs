//! What can go wrong, what is only warned about, and where a value came from.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A file, and the line in it, from 1.
    File(PathBuf, usize),
    /// An environment variable.
    Env(String),
    /// A flag of the command line, without its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("built-in default"),
            Origin::File(path, line) => write!(f, "{}:{line}", path.display()),
            Origin::Env(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that was named, or that is there, cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder of files cannot be read.
    #[error("cannot read the configuration folder {}", path.display())]
    ReadDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that no configuration can be.
    #[error("{}: larger than {most} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is read at most.
        most: u64,
    },
    /// A folder tree that no configuration can be.
    #[error("{}: more than {most} folders deep", path.display())]
    TooDeep {
        /// The folder that is too deep.
        path: PathBuf,
        /// What is entered at most.
        most: usize,
    },
    /// A file that is not text.
    #[error("{}:{line}: not valid UTF-8", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A file that is not TOML.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A value of the wrong type, or out of its range.
    #[error("{origin}: {key}: {problem}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// The dotted name of the key.
        key: String,
        /// Half a sentence.
        problem: String,
    },
    /// There is no runtime to run a container with.
    #[error(
        "no runtime: neither crun nor runc is in PATH, and crio.runtime.default_runtime names none"
    )]
    NoRuntime,
}

/// What the operator should know, though the daemon can start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A key that does not exist.
    UnknownKey {
        /// The dotted name.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// A key that exists, has a value other than the default, and changes nothing.
    NoEffect {
        /// The dotted name.
        key: String,
        /// Where it stands.
        origin: Origin,
    },
    /// A value that is not what it should be; what was done about it.
    Value {
        /// Where it stands.
        origin: Origin,
        /// The dotted name.
        key: String,
        /// Half a sentence.
        problem: String,
    },
    /// A handler that cannot work. Pods that ask for it are refused.
    HandlerDropped {
        /// Its name.
        name: String,
        /// Where its table stands.
        origin: Origin,
        /// Half a sentence.
        problem: String,
    },
    /// The folder that was named for files is not there.
    NoDir {
        /// The folder.
        path: PathBuf,
    },
    /// A flag that is understood so that old command lines work.
    IgnoredFlag {
        /// Without its dashes.
        flag: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::UnknownKey { key, origin, nearest } => {
                write!(f, "unknown key `{key}` in {origin}")?;
                match nearest {
                    Some(near) => write!(f, "; did you mean `{near}`?"),
                    None => Ok(()),
                }
            }
            Warning::NoEffect { key, origin } => {
                write!(f, "{origin}: key `{key}` is accepted but has no effect yet")
            }
            Warning::Value { origin, key, problem } => write!(f, "{origin}: {key}: {problem}"),
            Warning::HandlerDropped { name, origin, problem } => {
                write!(f, "{origin}: runtime handler `{name}` is left out: {problem}")
            }
            Warning::NoDir { path } => {
                write!(f, "the configuration folder {} does not exist", path.display())
            }
            Warning::IgnoredFlag { flag } => write!(f, "flag --{flag} has no effect"),
        }
    }
}
