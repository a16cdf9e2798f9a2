//! What can go wrong in the store.
//!
//! One variant for each kind of operation. The text of a source is never part of a message; print
//! the chain. `ENOSPC` and `EDQUOT` become [`Error::NoSpace`] wherever they come from, so that a
//! caller can free space and try again ([`Error::is_no_space`]).

use std::io;
use std::path::{Path, PathBuf};

use crate::Digest;

/// The result of an operation of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text is not a digest of the form `sha256:<64 lower-case hex digits>`.
    #[error("{text:?} is not a sha256 digest")]
    InvalidDigest {
        /// The text.
        text: String,
    },
    /// Another process has the store open.
    #[error("the store {} is in use by another process", root.display())]
    Locked {
        /// The root of the store.
        root: PathBuf,
    },
    /// The disk, or the quota, is full.
    #[error("no space left: {op} {}", path.display())]
    NoSpace {
        /// What was being done.
        op: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An operation on a file or folder of the store failed.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was being done.
        op: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A record could not be turned into JSON.
    #[error("cannot write the record {}", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// What serde says.
        source: serde_json::Error,
    },
    /// Bytes do not have the digest they should have.
    #[error("{what}: expected {expected}, got {actual}")]
    DigestMismatch {
        /// Which digest: "content", "diff id", "compressed layer".
        what: &'static str,
        /// What it should have been.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The reader that a layer was read from failed (the network, most likely).
    #[error("the layer's source failed")]
    Source {
        /// Its error.
        source: io::Error,
    },
    /// A layer cannot be decompressed: truncated or damaged.
    #[error("the layer cannot be decompressed")]
    Decompress {
        /// The decoder's error.
        source: io::Error,
    },
    /// A layer's archive is malformed.
    #[error("malformed archive at byte {offset}: {problem}")]
    Archive {
        /// Where in the uncompressed archive the header stands.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// An entry of a layer was refused, or could not be written.
    #[error("archive entry {name:?}")]
    Entry {
        /// The entry's name, as far as it can be printed.
        name: String,
        /// Why.
        source: EntryProblem,
    },
    /// A layer unpacks to more bytes than allowed.
    #[error("the layer unpacks to more than the limit of {limit} bytes")]
    LayerTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A layer has more entries than allowed.
    #[error("the layer has more than the limit of {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// A layer goes on for too long after the end of its archive.
    #[error("more than {limit} bytes follow the end of the layer's archive")]
    TrailingData {
        /// The limit in bytes.
        limit: u64,
    },
    /// There is no such layer in the store.
    #[error("no layer {chain_id}")]
    UnknownLayer {
        /// The chain id that was asked for.
        chain_id: Digest,
    },
    /// A layer is not what it was when it was written.
    #[error("layer {chain_id} is damaged and was put aside: {problem}; pull its image again")]
    DamagedLayer {
        /// The layer.
        chain_id: Digest,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such content in the store.
    #[error("no content {digest}")]
    UnknownContent {
        /// The digest that was asked for.
        digest: Digest,
    },
    /// There is no such image in the store.
    #[error("no image {id}")]
    UnknownImage {
        /// The id that was asked for.
        id: Digest,
    },
    /// A prefix of an image id fits more than one image.
    #[error("{prefix:?} fits more than one image id")]
    AmbiguousId {
        /// The prefix.
        prefix: String,
    },
    /// An overlay could not be mounted.
    #[error("cannot mount the overlay {}: {detail}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Which step failed, and what the kernel's log for this mount says.
        detail: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An owner of the image's root folder is none of the user namespace that it is mounted for.
    #[error("the image's root folder belongs to id {id}, which the user namespace does not have")]
    Owner {
        /// The user or group id.
        id: u32,
    },
    /// An overlay could not be unmounted.
    #[error("cannot unmount {}", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A tree that should be deleted has something mounted in it; what is mounted was not touched.
    #[error("something is mounted at {}", path.display())]
    MountInside {
        /// Where.
        path: PathBuf,
    },
    /// An operation on a path inside a container's or image's root failed.
    #[error("cannot {op} {path:?} in {}", root.display())]
    InRoot {
        /// What was being done.
        op: &'static str,
        /// The root.
        root: PathBuf,
        /// The path inside the root.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file inside a root is larger than the caller wants to read.
    #[error("{path:?} in {} is larger than {limit} bytes", root.display())]
    FileTooLarge {
        /// The root.
        root: PathBuf,
        /// The path inside the root.
        path: String,
        /// The limit in bytes.
        limit: u64,
    },
}

/// Why an entry of a layer was refused, or could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryProblem {
    /// The name leads out of the layer.
    #[error("the name leads out of the layer")]
    Escapes,
    /// The name of a hard link's target leads out of the layer.
    #[error("the link target {target:?} leads out of the layer")]
    TargetEscapes {
        /// The target.
        target: String,
    },
    /// The name is empty where that makes no sense, or holds a zero byte.
    #[error("not a possible name")]
    BadName,
    /// The name is longer than allowed.
    #[error("the name is longer than {limit} bytes")]
    NameTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// A parent of the entry is there, but is no directory and leads to none.
    #[error("a parent is not a directory")]
    ParentNotDirectory,
    /// The root of the layer is given as something else than a directory.
    #[error("the root of a layer must be a directory")]
    RootNotDirectory,
    /// The target of a hard link is not in the layer.
    #[error("the link target {target:?} is not in the layer")]
    TargetMissing {
        /// The target.
        target: String,
    },
    /// An extended attribute that only the overlay file system may set.
    #[error("the extended attribute {attribute:?} is not for images to set")]
    ForbiddenXattr {
        /// Its name.
        attribute: String,
    },
    /// An extended attribute's name or value is larger than allowed.
    #[error("the extended attribute {attribute:?} is larger than {limit} bytes")]
    XattrTooLarge {
        /// Its name.
        attribute: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// A type of entry that layers cannot hold.
    #[error("unsupported type {kind:#04x}")]
    UnsupportedType {
        /// The type's byte.
        kind: u8,
    },
    /// A user or group id, or a device number, out of range.
    #[error("an id or a device number is out of range")]
    IdOutOfRange,
    /// The kernel refused.
    #[error("cannot {op}")]
    Os {
        /// What was being done.
        op: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Whether an answer of the kernel means that the disk or a quota is full.
pub(crate) fn no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Error {
    /// Whether the disk, or a quota, is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::NoSpace { .. })
    }

    /// Whether the reader that a layer came from failed, so that reading it again may help.
    pub fn is_source(&self) -> bool {
        matches!(self, Error::Source { .. })
    }

    pub(crate) fn io(op: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let path = path.to_owned();
        if no_space(&source) {
            Error::NoSpace { op, path, source }
        } else {
            Error::Io { op, path, source }
        }
    }

    pub(crate) fn entry(name: &[u8], problem: EntryProblem) -> Self {
        let name = printable(name);
        match problem {
            EntryProblem::Os { op, source } if no_space(&source) => {
                Error::NoSpace { op, path: PathBuf::from(name), source }
            }
            source => Error::Entry { name, source },
        }
    }
}

/// A name from outside, cut to what is sensible in a message.
pub(crate) fn printable(name: &[u8]) -> String {
    const LONGEST: usize = 256;
    let text = String::from_utf8_lossy(&name[..name.len().min(LONGEST)]).into_owned();
    if name.len() > LONGEST { format!("{text}…") } else { text }
}
