//! What can be wrong with a name, with a file, and with what is asked for.

use std::path::PathBuf;

/// What asking for devices returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why devices cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// It is no `vendor/class=device`.
    #[error("{name:?} is no name of a CDI device: {problem}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No file describes it. The specification asks to say which.
    #[error("unknown CDI device {name:?}: {why}")]
    Unknown {
        /// The full name.
        name: String,
        /// What is there instead.
        why: String,
    },
    /// Several files of one directory describe it.
    #[error("CDI device {name:?} is ambiguous: {first:?} and {second:?} both describe it")]
    Ambiguous {
        /// The full name.
        name: String,
        /// A file that does.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// More devices than a container may have.
    #[error("{count} CDI devices are more than {most}")]
    Many {
        /// How many are asked for.
        count: usize,
        /// How many may be.
        most: usize,
    },
}

/// Why a directory, a file or a device in it is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?}: {text}")]
pub struct Problem {
    /// The directory or file.
    pub path: PathBuf,
    /// What is wrong.
    pub text: String,
}
