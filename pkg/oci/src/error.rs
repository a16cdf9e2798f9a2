//! What can be wrong with the input of a spec. Every variant names the value that is wrong.

use std::path::PathBuf;

/// Why a spec, or a part of it, could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process has no arguments, so there is nothing to run.
    #[error("no command: neither the container nor its image names one")]
    NoCommand,
    /// A path that the OCI runtime needs to be absolute is not.
    #[error("{what} {path:?} is not an absolute path")]
    NotAbsolute {
        /// What the path is for.
        what: &'static str,
        /// The path as given.
        path: String,
    },
    /// A string that ends up in a C string holds a NUL byte.
    #[error("{what} {value:?} holds a NUL byte")]
    Nul {
        /// What the string is for.
        what: &'static str,
        /// The string as given.
        value: String,
    },
    /// An environment variable whose name is empty or holds `=`.
    #[error("{name:?} cannot be the name of an environment variable")]
    EnvName {
        /// The name as given.
        name: String,
    },
    /// A capability of which nobody has heard.
    #[error("unknown capability {name:?}")]
    UnknownCapability {
        /// The name as given.
        name: String,
    },
    /// A capability that was asked for by name, and that this node cannot give.
    #[error("capability {name} cannot be granted on this node")]
    CapabilityNotGrantable {
        /// The full name, with `CAP_`.
        name: &'static str,
    },
    /// A kernel file about capabilities could not be read.
    #[error("reading capabilities from {path:?}")]
    ReadCapabilities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A kernel file about capabilities holds something else than expected.
    #[error("{path:?} holds no {field}")]
    ParseCapabilities {
        /// The file.
        path: PathBuf,
        /// The field that is missing or no number.
        field: &'static str,
    },
    /// A resource limit of which nobody has heard.
    #[error("unknown resource limit {name:?}")]
    UnknownRlimit {
        /// The name as given.
        name: String,
    },
    /// A soft limit above the hard one.
    #[error("{name}: soft limit {soft} is above the hard limit {hard}")]
    RlimitOrder {
        /// The name of the limit.
        name: String,
        /// The soft limit.
        soft: u64,
        /// The hard limit.
        hard: u64,
    },
    /// The score that the OOM killer adds is outside -1000 to 1000.
    #[error("oom_score_adj {value} is outside -1000..=1000")]
    OomScore {
        /// The value as given.
        value: i32,
    },
    /// A mount asked for recursive read-only that cannot be.
    #[error("mount {destination:?}: recursive read-only needs {needs}")]
    RecursiveReadonly {
        /// Where the mount goes.
        destination: String,
        /// What is missing.
        needs: &'static str,
    },
    /// A mount's destination climbs out of the root.
    #[error("mount destination {destination:?} holds \"..\"")]
    MountClimbs {
        /// Where the mount goes.
        destination: String,
    },
    /// A bind mount without source.
    #[error("bind mount at {destination:?} has no source")]
    MountSource {
        /// Where the mount goes.
        destination: String,
    },
    /// A user namespace without mappings, or mappings without one.
    #[error("user namespace: {problem}")]
    UserNamespace {
        /// What does not fit.
        problem: &'static str,
    },
    /// A host name while the UTS namespace is the host's.
    #[error("host name {hostname:?} would change the host's own name")]
    HostnameOfHost {
        /// The name as given.
        hostname: String,
    },
    /// A network interface that is to be moved into the namespace that it is in.
    #[error("network interface {name:?} needs a network namespace of the pod's own")]
    NetDeviceOfHost {
        /// The interface's name on the host.
        name: String,
    },
    /// A sysctl that would reach the host, because the namespace it belongs to is the host's.
    #[error("sysctl {name} needs {namespace} namespace of the pod's own")]
    SysctlNamespace {
        /// The sysctl, dots or slashes as given.
        name: String,
        /// The namespace with its article.
        namespace: &'static str,
    },
    /// A sysctl that no namespace confines.
    #[error("sysctl {name} is not confined to a namespace")]
    SysctlGlobal {
        /// The sysctl as given.
        name: String,
    },
    /// A seccomp profile that is no JSON of the expected form.
    #[error("seccomp profile cannot be parsed")]
    SeccompParse {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A seccomp profile that uses a word nobody knows.
    #[error("seccomp profile: unknown {what} {value:?}")]
    SeccompWord {
        /// What the word stands for (action, operator, architecture, …).
        what: &'static str,
        /// The word as given.
        value: String,
    },
    /// A seccomp profile that breaks a rule of its own format.
    #[error("seccomp profile: {problem}")]
    SeccompProfile {
        /// The rule.
        problem: &'static str,
    },
    /// A user or group of an image that its files do not know.
    #[error("the image knows no {what} {name:?}")]
    UnknownName {
        /// `user` or `group`.
        what: &'static str,
        /// The name as given.
        name: String,
    },
    /// A numeric user or group outside what the kernel takes.
    #[error("{what} {value:?} is outside 0..=4294967294")]
    IdRange {
        /// `user` or `group`.
        what: &'static str,
        /// The number as given.
        value: String,
    },
    /// A device folder or node that could not be looked at.
    #[error("looking at device {path:?}")]
    Device {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A path that was expected to be a device and is none.
    #[error("{path:?} is not a device")]
    NotADevice {
        /// The path.
        path: PathBuf,
    },
    /// The OCI crate did not take what was put together.
    #[error("putting the spec together")]
    Spec {
        /// Why.
        #[source]
        source: oci_spec::OciSpecError,
    },
    /// The spec could not be written as JSON.
    #[error("writing the spec as JSON")]
    Json {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl From<oci_spec::OciSpecError> for Error {
    fn from(source: oci_spec::OciSpecError) -> Self {
        Self::Spec { source }
    }
}

/// What everything in this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
