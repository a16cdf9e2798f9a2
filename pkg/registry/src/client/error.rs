//! What can go wrong between this machine and a registry.
//!
//! Addresses are shown without their query, which in a redirect is often a signature that grants
//! access. What a registry says in an error is shown shortened and without control characters.

use std::path::PathBuf;
use std::time::Duration;

use crate::digest::Digest;

/// What an error means to the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The registry cannot be reached or does not answer now: trying later may help.
    Unavailable,
    /// The registry has no such image.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// Anything else.
    Other,
}

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Host, repository, tag or digest do not make an address.
    #[error("{url:?} is not a usable address")]
    Address {
        /// What they make.
        url: String,
    },
    /// A certificate directory or file cannot be read.
    #[error("reading certificates in {}", path.display())]
    ReadCertificates {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate or key file is malformed or alone.
    #[error("certificate file {}: {problem}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// TLS cannot be set up.
    #[error("setting up TLS for {host}")]
    Tls {
        /// For which host.
        host: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// No connection, or it broke before an answer.
    #[error("requesting {url}")]
    Request {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// No answer in time.
    #[error("no answer from {url} within {} s", after.as_secs())]
    Timeout {
        /// The address.
        url: String,
        /// How long it was waited.
        after: Duration,
    },
    /// The connection broke within an answer.
    #[error("reading the answer of {url}")]
    Read {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// A transfer that no longer moves.
    #[error("no data from {url} for {} s", after.as_secs())]
    Stalled {
        /// The address.
        url: String,
        /// How long it was waited.
        after: Duration,
    },
    /// 404.
    #[error("{url} does not exist{}", said(message))]
    NotFound {
        /// The address.
        url: String,
        /// What the registry says.
        message: String,
    },
    /// 401 or 403, after credentials were tried where there are any.
    #[error("access to {url} denied{}", said(message))]
    Unauthorized {
        /// The address.
        url: String,
        /// What the registry says.
        message: String,
    },
    /// Any other answer that is no success.
    #[error("{url} answered {status}{}", said(message))]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry says.
        message: String,
    },
    /// The registry wants something unknown to be shown.
    #[error("{url} asks for unsupported authentication: {schemes}")]
    Challenge {
        /// The address.
        url: String,
        /// Which forms it offers.
        schemes: String,
    },
    /// The token server gives no usable token.
    #[error("token server {realm}: {problem}")]
    Token {
        /// Its address.
        realm: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A redirect that is not followed.
    #[error("{url} redirects to {target}: {problem}")]
    Redirect {
        /// Where from.
        url: String,
        /// Where to.
        target: String,
        /// Why not.
        problem: &'static str,
    },
    /// An answer that makes no sense.
    #[error("{url}: {problem}")]
    Protocol {
        /// The address.
        url: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// More bytes than allowed or announced.
    #[error("{url} sends more than {limit} bytes")]
    TooLarge {
        /// The address.
        url: String,
        /// The limit, bytes.
        limit: u64,
    },
    /// Fewer bytes than announced.
    #[error("{url} sends {actual} of {expected} bytes")]
    TooShort {
        /// The address.
        url: String,
        /// How many there should be.
        expected: u64,
        /// How many there were.
        actual: u64,
    },
    /// The content is not what was asked for.
    #[error("content of {url} has digest {actual}, not {expected}")]
    DigestMismatch {
        /// The address.
        url: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
}

impl ClientError {
    /// What the error means to the one who asked.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ClientError::NotFound { .. } => ErrorKind::NotFound,
            ClientError::Unauthorized { .. } | ClientError::Challenge { .. } => {
                ErrorKind::Unauthorized
            }
            ClientError::Timeout { .. } | ClientError::Stalled { .. } => ErrorKind::Unavailable,
            ClientError::Status { status: 429 | 500.., .. } => ErrorKind::Unavailable,
            ClientError::Request { source, .. } if is_tls_error(source) => ErrorKind::Other,
            ClientError::Request { .. } | ClientError::Read { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::Other,
        }
    }

    /// Whether the same request may succeed when sent again at once.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            ClientError::Request { source, .. } => !source.is_connect(),
            ClientError::Read { .. } => true,
            ClientError::Status { status, .. } => matches!(status, 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

impl From<ClientError> for std::io::Error {
    fn from(error: ClientError) -> std::io::Error {
        let kind = match &error {
            ClientError::Timeout { .. } | ClientError::Stalled { .. } => {
                std::io::ErrorKind::TimedOut
            }
            ClientError::NotFound { .. } => std::io::ErrorKind::NotFound,
            ClientError::Unauthorized { .. } => std::io::ErrorKind::PermissionDenied,
            ClientError::TooShort { .. } => std::io::ErrorKind::UnexpectedEof,
            ClientError::DigestMismatch { .. } | ClientError::TooLarge { .. } => {
                std::io::ErrorKind::InvalidData
            }
            _ => std::io::ErrorKind::Other,
        };
        std::io::Error::new(kind, error)
    }
}

/// Whether the two ends do not agree on TLS: a certificate nobody vouches for, no TLS at all. The
/// server is there, and trying later does not help.
fn is_tls_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        // An io::Error is transparent: its source is that of what it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// A remote's text made fit for one line of a log.
pub(super) fn printable(text: &str) -> String {
    let clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}
