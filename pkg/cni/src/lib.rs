//! The container runtime's side of CNI, the Container Network Interface, specification 1.1.
//!
//! A network is a list of plugins: programs that are started one after the other, with the
//! verb in the environment and the configuration on standard input.
//!
//! ```text
//!   configuration files --Config::load--> NetworkList
//!                                             |
//!   ADD   cache(intent) -> plugin 1 -result-> plugin 2 -result-> ... -> cache(result)
//!   CHECK                  plugin 1, 2, ...      each with the cached result
//!   DEL                    plugin n, ..., 2, 1   each with the cached result -> cache entry gone
//!   STATUS                 plugin 1, 2, ...      can an ADD succeed?
//!   GC                     DEL of cached attachments that are not valid; plugin 1, 2, ...
//! ```
//!
//! The cache entry is written before the first plugin runs. It holds the configuration, so that
//! DEL undoes what ADD did although the files have changed, a plugin has failed half-way, or
//! this process was killed in between. Its format is that of the Go library libcni, so that
//! attachments made by another runtime can be taken over.
//!
//! Modules: `config` (files), `attachment` (what to attach), `result` (what plugins answer, in
//! every version of the specification), `exec` (one run of one plugin), `cache`, `plugins` (the
//! verbs).
//!
//! What this crate does not do: `lo` (the `namespace` crate brings it up), watching the
//! folder of configurations ([`Config::fingerprint`] tells whether it has changed).

mod attachment;
mod cache;
mod config;
mod error;
mod exec;
mod plugins;
mod result;
mod version;

pub use attachment::{Attachment, Bandwidth, Capabilities, Dns, IpRange, PortMapping, Protocol};
pub use config::{Config, Fingerprint, NetworkList, PluginConfig};
pub use error::Error;
pub use plugins::{Cached, Plugins, Timeouts, ValidAttachment};
pub use result::{CniResult, Interface, IpConfig, ResultDns, Route};
pub use version::Version;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;
