//! What can go wrong with a control group, by operation, with the file that it went wrong on.

use std::path::PathBuf;

/// Why an operation on a control group failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The group, or the file of it that is needed, is not there (any more).
    #[error("control group {path:?} does not exist")]
    NotFound {
        /// The folder or file.
        path: PathBuf,
    },
    /// The name of a group is not absolute, climbs, or names the root.
    #[error("{path:?} cannot be the name of a control group: {problem}")]
    Name {
        /// The name as given.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// `/proc/self/mountinfo` or `/proc/self/cgroup` could not be read.
    #[error("reading {path:?}")]
    Detect {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No control group file system is mounted.
    #[error("no control group file system is mounted")]
    NoHierarchy,
    /// A folder could not be made.
    #[error("making control group {path:?}")]
    Create {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A folder could not be removed, after all tries.
    #[error("removing control group {path:?}")]
    Remove {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("reading {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("writing {value:?} to {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// More is in use than a limit would allow, and could not be reclaimed.
    #[error("cannot set {path:?} to {limit} bytes: {usage} bytes are in use")]
    InUse {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
        /// What is in use, in bytes.
        usage: u64,
    },
    /// A limit was asked for whose controller this node does not have.
    #[error("{what} needs the {controller} controller, which is not available")]
    NoController {
        /// The limit.
        what: &'static str,
        /// The controller.
        controller: &'static str,
    },
    /// The name of a version 2 file in `unified` is none, or not that of a limit.
    #[error("{name:?} is not the name of a limit's file")]
    UnifiedName {
        /// The name as given.
        name: String,
    },
    /// A signal could not be sent.
    #[error("killing process {pid} of control group {path:?}")]
    Kill {
        /// The group.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: nix::errno::Errno,
    },
    /// Processes are left although all were killed, as often as was allowed.
    #[error("{left} processes of control group {path:?} are still there after {rounds} rounds")]
    StillAlive {
        /// The group.
        path: PathBuf,
        /// How many.
        left: usize,
        /// How often they were killed.
        rounds: u32,
    },
}

impl Error {
    /// Whether the group is gone.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// What everything in this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
