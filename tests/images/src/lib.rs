//! The project's own test images, and a registry on loopback that serves them.
//!
//! ```text
//! catalog ── builds ──> Catalog (blobs + images) ── layout::write ──> OCI layout in a folder
//!                                                └─ push::push ─────> docker-registry (plain HTTP)
//! registry::serve ──> docker-registry on 127.0.0.1 + registries.conf;   registry::stop ends it
//! ```
//!
//! Every byte comes from this program and from Debian's static busybox, so that the same packages
//! give the same digests on every machine. Among the images are hostile ones; those that a registry
//! would not accept as they are (bytes that do not match their digest, a blob that is gone) are
//! pushed in good order and then spoiled in the registry's own storage.

pub mod catalog;
pub mod elf;
mod http;
pub mod layout;
pub mod push;
pub mod registry;
pub mod store;
pub mod tarball;

use std::path::PathBuf;

/// What can go wrong while images are built, pushed or served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// Data in memory could not be compressed.
    #[error("cannot compress a layer with {method}")]
    Compress {
        /// `gzip` or `zstd`.
        method: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The registry could not be talked to.
    #[error("cannot reach the registry at {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The registry answered with something other than what was asked for.
    #[error("{method} {path}: the registry answered {status}: {body}")]
    Answer {
        /// The HTTP method.
        method: &'static str,
        /// The path asked for.
        path: String,
        /// The HTTP status, 0 when the answer was not HTTP.
        status: u16,
        /// The answer's body, shortened.
        body: String,
    },
    /// A spoiled image was asked for, but the registry's storage is not known.
    #[error("image {image} is spoiled in the registry's storage: name it with --storage")]
    NoStorage {
        /// The image.
        image: String,
    },
    /// The registry did not start.
    #[error("docker-registry did not start; its log says: {log}")]
    NotStarted {
        /// The end of its log.
        log: String,
    },
    /// The process of the registry did not end.
    #[error("docker-registry (process {pid}) did not end")]
    NotStopped {
        /// Its process id.
        pid: i32,
    },
    /// An image that is not in the catalogue was named.
    #[error("there is no image named {name}")]
    UnknownImage {
        /// The name.
        name: String,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Reads a whole file.
pub(crate) fn read(path: impl Into<PathBuf>) -> Result<Vec<u8>> {
    let path = path.into();
    std::fs::read(&path).map_err(|source| Error::Read { path, source })
}

/// Writes a whole file.
pub(crate) fn write(path: impl Into<PathBuf>, data: &[u8]) -> Result<()> {
    let path = path.into();
    std::fs::write(&path, data).map_err(|source| Error::Write { path, source })
}

/// Makes a folder and its parents.
pub(crate) fn make_dir(path: impl Into<PathBuf>) -> Result<()> {
    let path = path.into();
    std::fs::create_dir_all(&path).map_err(|source| Error::Write { path, source })
}
