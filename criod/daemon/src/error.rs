//! What can go wrong, and — in one place — which gRPC code says so.
//!
//! A message names the operation and the thing; what lies below is its source and is appended once,
//! when the error leaves through [`Error::status`] or is logged.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tonic::{Code, Status};

/// The result of an operation.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation. Cheap to clone, for several callers may wait for one operation.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Error(Arc<Kind>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error("{what} {id:?} not found")]
    NotFound { what: &'static str, id: String },
    #[error("{0}")]
    Missing(String),
    #[error("{what} {id:?} is ambiguous")]
    Ambiguous { what: &'static str, id: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    Exhausted(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("command {command:?} timed out after {seconds} s")]
    ExecTimeout { command: String, seconds: i64 },
    #[error("{action} {path:?}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{action}")]
    System { action: String, source: io::Error },
    #[error("keeper: {action}")]
    Keeper { action: &'static str, source: io::Error },
    #[error("container {id}: monitor: {action}")]
    Monitor { id: String, action: &'static str, source: ttrpc::Error },
    #[error("container {id} does not end: {why}")]
    Undying { id: String, why: String },
    /// The runtime refused; its own words.
    #[error("{0}")]
    Runtime(String),
    #[error("network of pod {pod}: {action}")]
    Network { pod: String, action: &'static str, source: cni::Error },
    #[error("host ports of pod {pod}")]
    HostPorts { pod: String, source: hostport::Error },
    #[error("namespaces of pod {pod}")]
    Namespaces { pod: String, source: namespace::Error },
    #[error("storage of {id}: {action}")]
    Storage { id: String, action: &'static str, source: storage::Error },
    #[error("image {image:?}")]
    Image { image: String, source: Arc<criod_images::Error> },
    /// The kubelet knows it by its first word.
    #[error("ImageVolumeMountFailed: mount {at:?}")]
    ImageVolume { at: String, source: Error },
    #[error("hooks of container {id}")]
    Hooks { id: String, source: hooks::Error },
    #[error("spec of container {id}")]
    Spec { id: String, source: oci::Error },
    #[error("cgroup {name}")]
    Cgroup { name: String, source: cgroup::Error },
    #[error("record {path:?}: {problem}")]
    Record { path: PathBuf, problem: String },
    #[error("operation ended by a panic")]
    Panicked,
    #[error("criod is being restarted; the operation goes on, repeat the call")]
    Restarting,
    #[error("criod is being restarted; the result of the command is lost")]
    ResultLost,
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Error(Arc::new(kind))
    }
}

/// The message of an error with all its sources; what one says and its source again stands once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let said = e.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = e.source();
    }
    text
}

impl Error {
    pub(crate) fn kind(&self) -> &Kind {
        &self.0
    }

    pub(crate) fn not_found(what: &'static str, id: &str) -> Error {
        Kind::NotFound { what, id: id.to_owned() }.into()
    }

    /// Something that configuration lacks.
    pub(crate) fn not_found_text(text: impl Into<String>) -> Error {
        Kind::Missing(text.into()).into()
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Error {
        Kind::Invalid(text.into()).into()
    }

    pub(crate) fn precondition(text: impl Into<String>) -> Error {
        Kind::Precondition(text.into()).into()
    }

    pub(crate) fn unsupported(text: impl Into<String>) -> Error {
        Kind::Unsupported(text.into()).into()
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Kind::File { action, path, source }.into()
    }

    pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Kind::System { action, source }.into()
    }

    /// What a monitor said when it refused, without the wire's words around it.
    pub(crate) fn monitor_refusal(&self) -> Option<String> {
        match &*self.0 {
            Kind::Monitor { source: ttrpc::Error::RpcStatus(status), .. } => {
                Some(status.message.clone())
            }
            _ => None,
        }
    }

    /// Whether a monitor refused because its release does not have the call.
    pub(crate) fn monitor_lacks(&self) -> bool {
        match &*self.0 {
            Kind::Monitor { source: ttrpc::Error::RpcStatus(status), .. } => {
                status.code.value() == 12
            }
            _ => false,
        }
    }

    /// What went wrong with a cgroup.
    pub(crate) fn cgroup(&self) -> Option<&cgroup::Error> {
        match &*self.0 {
            Kind::Cgroup { source, .. } => Some(source),
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(*self.0, Kind::NotFound { .. })
    }

    /// The message with all its sources.
    pub(crate) fn chain(&self) -> String {
        chain(&*self.0)
    }

    fn code(&self) -> Code {
        match &*self.0 {
            Kind::NotFound { .. } | Kind::Missing(_) => Code::NotFound,
            Kind::Ambiguous { .. } | Kind::Invalid(_) => Code::InvalidArgument,
            Kind::Spec { .. } => Code::InvalidArgument,
            Kind::Namespaces { source, .. } if of_sysctl(source) => Code::InvalidArgument,
            Kind::Hooks { .. } | Kind::Precondition(_) => Code::FailedPrecondition,
            Kind::Exists(_) => Code::AlreadyExists,
            Kind::Exhausted(_) => Code::ResourceExhausted,
            Kind::Unsupported(_) => Code::Unimplemented,
            Kind::ExecTimeout { .. } | Kind::Undying { .. } => Code::DeadlineExceeded,
            Kind::Storage { source, .. } if source.is_no_space() => Code::ResourceExhausted,
            Kind::File { source, .. } | Kind::System { source, .. }
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                Code::ResourceExhausted
            }
            Kind::Keeper { .. } | Kind::Restarting | Kind::ResultLost => Code::Unavailable,
            Kind::Monitor { source: ttrpc::Error::RpcStatus(status), .. } => {
                match status.code.value() {
                    9 => Code::FailedPrecondition,
                    3 => Code::InvalidArgument,
                    _ => Code::Unknown,
                }
            }
            Kind::Monitor { .. } => Code::Unavailable,
            Kind::Runtime(_) | Kind::Network { .. } | Kind::HostPorts { .. } => Code::Unknown,
            Kind::Image { source, .. } => criod_images::status_of(source).code(),
            Kind::ImageVolume { source, .. } => source.code(),
            Kind::File { .. }
            | Kind::System { .. }
            | Kind::Namespaces { .. }
            | Kind::Storage { .. }
            | Kind::Cgroup { .. }
            | Kind::Record { .. }
            | Kind::Panicked => Code::Internal,
        }
    }

    /// What the caller of a gRPC call gets.
    pub(crate) fn status(&self) -> Status {
        if let Kind::Image { source, .. } = &*self.0 {
            return criod_images::status_of(source);
        }
        Status::new(self.code(), self.chain())
    }
}

/// Whether it is the sysctl that was asked for, or its value, that cannot be.
fn of_sysctl(error: &namespace::Error) -> bool {
    use namespace::Error::{Sysctl, SysctlName, SysctlNotNamespaced, SysctlValue};
    matches!(
        error,
        Sysctl { .. } | SysctlName { .. } | SysctlNotNamespaced { .. } | SysctlValue { .. }
    )
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        error.status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_told_once() {
        let e = Error::file("read", "/x")(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(e.status().message(), "read \"/x\": entity not found");
        assert_eq!(e.status().code(), Code::Internal);
        assert_eq!(Error::not_found("pod", "a").status().code(), Code::NotFound);
        let full = Error::file("write", "/x")(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.status().code(), Code::ResourceExhausted);
    }
}
