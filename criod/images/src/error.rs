//! What can go wrong with images, and what it means to the one who asked.
//!
//! Each message names the image; where a registry or a layer is to blame, that too. The text of a
//! source is not repeated: [`Error::full`] gives the whole chain in one line.

use std::error::Error as _;
use std::path::PathBuf;

use registry::{ErrorKind, ImageError, LookupError, PullError, ReferenceError};

/// What an error means to the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// There is no such image.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry does not answer now.
    Unavailable,
    /// The image is malformed, not what its digests say, or hostile.
    Invalid,
    /// The disk is full.
    NoSpace,
    /// The configuration forbids the registry.
    Blocked,
    /// The name is malformed or means nothing here.
    BadReference,
    /// A container uses the image.
    InUse,
    /// Something of this machine's: its disk, its configuration.
    Internal,
}

/// An error of the image service.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is malformed.
    #[error("image name {name:?}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        source: ReferenceError,
    },
    /// The name leads to no registry.
    #[error("image {image:?}")]
    Lookup {
        /// The name as given.
        image: String,
        /// Why.
        source: Box<LookupError>,
    },
    /// Neither the name's registry nor any mirror gives the image.
    #[error("pulling image {image}")]
    Fetch {
        /// The full name.
        image: String,
        /// What each of them answered.
        source: Box<PullError>,
    },
    /// None of the images that a short name can mean can be pulled.
    #[error("pulling image {image}: {}", .attempts.iter().map(Error::full).collect::<Vec<_>>().join("; "))]
    Candidates {
        /// The name as given.
        image: String,
        /// One error for each image that it can mean.
        attempts: Vec<Error>,
    },
    /// A layer cannot be fetched.
    #[error("image {image}: fetching layer {layer} from {registry}")]
    FetchLayer {
        /// The full name.
        image: String,
        /// Where from.
        registry: String,
        /// The layer's digest.
        layer: String,
        /// Why.
        source: Box<registry::ClientError>,
    },
    /// A layer cannot be unpacked, or is not what it should be.
    #[error("image {image}: unpacking layer {layer} from {registry}")]
    UnpackLayer {
        /// The full name.
        image: String,
        /// Where from.
        registry: String,
        /// The layer's digest.
        layer: String,
        /// Why.
        source: Box<storage::Error>,
    },
    /// Manifest or config cannot be used.
    #[error("image {image}")]
    Document {
        /// The full name.
        image: String,
        /// Why.
        source: Box<ImageError>,
    },
    /// The image breaks a rule.
    #[error("image {image}: {problem}")]
    Invalid {
        /// The full name.
        image: String,
        /// Which.
        problem: String,
    },
    /// The store failed.
    #[error("image {image}")]
    Store {
        /// The image.
        image: String,
        /// Why.
        source: Box<storage::Error>,
    },
    /// The store failed, whatever the image.
    #[error("image store")]
    Storage {
        /// Why.
        source: Box<storage::Error>,
    },
    /// registries.conf cannot be used.
    #[error("configuration of registries")]
    Registries {
        /// Why.
        source: Box<registry::conf::ConfError>,
    },
    /// A file with credentials cannot be used.
    #[error("credentials for image {image}")]
    AuthFile {
        /// The image.
        image: String,
        /// Why.
        source: Box<registry::auth::AuthFileError>,
    },
    /// The image is not here.
    #[error("image {image:?} not found")]
    NotFound {
        /// The name or id.
        image: String,
    },
    /// A container uses the image.
    #[error("image {image} is in use by container {container}")]
    InUse {
        /// The name or id.
        image: String,
        /// Which.
        container: String,
    },
    /// A local layout or archive cannot be read.
    #[error("cannot read {}", path.display())]
    ReadLocal {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A local layout or archive makes no sense.
    #[error("{}: {problem}", path.display())]
    Local {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Other layers of the image failed, so this one was given up.
    #[error("image {image}: given up")]
    GivenUp {
        /// The image.
        image: String,
    },
    /// The task died.
    #[error("image {image}: the work on it ended without a result")]
    Died {
        /// The image.
        image: String,
    },
}

impl Error {
    /// What the error means to the one who asked.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Name { .. } => Kind::BadReference,
            Error::Lookup { source, .. } => of_lookup(source),
            Error::Fetch { source, .. } => of_pull(source),
            Error::Candidates { attempts, .. } => {
                let kinds: Vec<Kind> = attempts.iter().map(Error::kind).collect();
                // What may pass says more than that the image is not elsewhere.
                let telling = [Kind::NoSpace, Kind::Invalid, Kind::Unavailable, Kind::Unauthorized];
                let found = telling.into_iter().find(|kind| kinds.contains(kind));
                found.or(kinds.last().copied()).unwrap_or(Kind::Internal)
            }
            Error::FetchLayer { source, .. } => of_client(source),
            Error::UnpackLayer { source, .. } => of_layer(source),
            Error::Document { .. } | Error::Invalid { .. } | Error::Local { .. } => Kind::Invalid,
            Error::Store { source, .. } | Error::Storage { source } => of_store(source),
            Error::NotFound { .. } => Kind::NotFound,
            Error::InUse { .. } => Kind::InUse,
            Error::ReadLocal { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Kind::NotFound
            }
            Error::Registries { .. }
            | Error::AuthFile { .. }
            | Error::ReadLocal { .. }
            | Error::GivenUp { .. }
            | Error::Died { .. } => Kind::Internal,
        }
    }

    /// Message and causes in one line.
    pub fn full(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }

    pub(crate) fn store(image: &str, source: storage::Error) -> Error {
        Error::Store { image: image.to_owned(), source: Box::new(source) }
    }

    pub(crate) fn invalid(image: &str, problem: impl Into<String>) -> Error {
        Error::Invalid { image: image.to_owned(), problem: problem.into() }
    }

    /// Whether the same pull, tried again soon, may get further.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self.kind(), Kind::Unavailable)
    }
}

fn of_lookup(error: &LookupError) -> Kind {
    match error {
        LookupError::Blocked { .. } => Kind::Blocked,
        LookupError::Rewrite { .. } => Kind::Internal,
        _ => Kind::BadReference,
    }
}

fn of_pull(error: &PullError) -> Kind {
    use registry::pull::SourceError;
    match error {
        PullError::Lookup(lookup) => of_lookup(lookup),
        PullError::AllFailed { attempts, .. } => match attempts.last() {
            Some((_, SourceError::Image(_))) => Kind::Invalid,
            Some((_, SourceError::Client(client))) => of_client(client),
            None => Kind::Internal,
        },
    }
}

fn of_client(error: &registry::ClientError) -> Kind {
    use registry::ClientError as E;
    match error.kind() {
        ErrorKind::Unavailable => Kind::Unavailable,
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::Unauthorized => Kind::Unauthorized,
        ErrorKind::Other => match error {
            E::DigestMismatch { .. } | E::TooLarge { .. } | E::TooShort { .. } => Kind::Invalid,
            _ => Kind::Internal,
        },
    }
}

fn of_store(error: &storage::Error) -> Kind {
    if error.is_no_space() { Kind::NoSpace } else { Kind::Internal }
}

fn of_layer(error: &storage::Error) -> Kind {
    use storage::{EntryProblem, Error as E};
    match error {
        E::NoSpace { .. } => Kind::NoSpace,
        E::Entry { source: EntryProblem::Os { .. }, .. } => Kind::Internal,
        E::Entry { .. }
        | E::DigestMismatch { .. }
        | E::Decompress { .. }
        | E::Archive { .. }
        | E::LayerTooLarge { .. }
        | E::TooManyEntries { .. }
        | E::TrailingData { .. } => Kind::Invalid,
        _ => Kind::Internal,
    }
}
