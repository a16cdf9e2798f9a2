//! What can go wrong with a security module, one variant for each operation.

use std::io;
use std::path::PathBuf;

/// A failed operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel's list of loaded AppArmor profiles could not be read.
    #[error("cannot read the loaded AppArmor profiles from {path}")]
    Profiles {
        /// The kernel's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `apparmor_parser` could not be run.
    #[error("cannot run {program} for the AppArmor profile {profile:?}")]
    Parser {
        /// The program.
        program: PathBuf,
        /// The profile's name.
        profile: String,
        /// Why.
        source: io::Error,
    },
    /// `apparmor_parser` ran and refused.
    #[error("{program} refuses the AppArmor profile {profile:?}: {said}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// The profile's name.
        profile: String,
        /// What it wrote.
        said: String,
    },
    /// There is no `apparmor_parser`.
    #[error("the AppArmor profile {profile:?} is not loaded, and there is no apparmor_parser")]
    NoParser {
        /// The profile's name.
        profile: String,
    },
    /// A file of the SELinux policy could not be read.
    #[error("cannot read {path}")]
    Policy {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The SELinux policy's file of containers' contexts lacks a line, or holds a bad one.
    #[error("{path}: {problem}")]
    Contexts {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A text that is no SELinux context: `user:role:type` or `user:role:type:level`.
    #[error("{0:?} is not an SELinux context")]
    Context(String),
    /// A part of a label that holds what would end it.
    #[error("SELinux {part} {value:?} is none")]
    Part {
        /// `user`, `role`, `type` or `level`.
        part: &'static str,
        /// The value as given.
        value: String,
    },
    /// The loaded policy does not know the label.
    #[error("the SELinux policy does not know the label {label:?}")]
    Unknown {
        /// The label.
        label: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Every pair of categories is some pod's.
    #[error("all SELinux categories are in use")]
    NoCategories,
    /// A path whose label is the system's.
    #[error("{path} belongs to the system: its SELinux label is not changed")]
    Protected {
        /// The path.
        path: PathBuf,
    },
    /// A file could not be given another label.
    #[error("cannot set the SELinux label of {path}")]
    Relabel {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What everything in this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
