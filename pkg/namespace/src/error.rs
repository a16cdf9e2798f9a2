//! What can go wrong with a namespace, one variant for each operation.

use std::io;
use std::path::PathBuf;

/// A failed operation on a namespace or its pin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory of the pins could not be made. It must not exist before.
    #[error("cannot make the directory {path} for pinned namespaces")]
    MakeDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file that a namespace is mounted onto could not be made.
    #[error("cannot make the file {path} to pin a namespace on")]
    MakeFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused new namespaces.
    #[error("cannot make new namespaces for {path}")]
    Unshare {
        /// The directory of the pins.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused the maps of a user namespace.
    #[error("cannot map ids into the user namespace for {path}")]
    Map {
        /// The directory of the pins.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bind mount failed.
    #[error("cannot pin a namespace on {path}")]
    Mount {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pin could not be unmounted.
    #[error("cannot unmount the pinned namespace {path}")]
    Unmount {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pin's file or directory could not be removed.
    #[error("cannot remove {path}")]
    Remove {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The hostname could not be set.
    #[error("cannot set the hostname {hostname:?}")]
    Hostname {
        /// The hostname.
        hostname: String,
        /// Why.
        source: io::Error,
    },
    /// The sysctl's name is malformed or climbs out of `/proc/sys`.
    #[error("{name:?} is not the name of a sysctl")]
    SysctlName {
        /// The name as given.
        name: String,
    },
    /// The sysctl belongs to no namespace that was asked for; setting it would change the host.
    #[error("the sysctl {name:?} does not belong to a namespace of this pod's own")]
    SysctlNotNamespaced {
        /// The name as given.
        name: String,
    },
    /// A sysctl's value that is more than one line of text.
    #[error("{value:?} is no value of the sysctl {name}")]
    SysctlValue {
        /// The name as given.
        name: String,
        /// The value.
        value: String,
    },
    /// The kernel refused the sysctl's value, or does not know the sysctl.
    #[error("cannot set the sysctl {name} to {value:?}")]
    Sysctl {
        /// The name as given.
        name: String,
        /// The value.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// The loopback interface could not be brought up.
    #[error("cannot bring up the loopback interface for {path}")]
    Loopback {
        /// The directory of the pins.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("cannot enter the namespace {path}")]
    Enter {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel gave no thread, or the work inside the namespace panicked.
    #[error("cannot run a thread for the namespace {path}")]
    Thread {
        /// The pin or the directory of the pins.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The interfaces of a namespace could not be listed.
    #[error("cannot read the interfaces of the network namespace {path}")]
    Interfaces {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
