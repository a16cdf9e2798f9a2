//! The configuration of criod: CRI-O's keys, from CRI-O's places.
//!
//! ```text
//!   built-in defaults of this machine         Machine::defaults
//!      v
//!   /etc/crio/crio.conf          -c           missing: skipped, unless it was named
//!      v
//!   /etc/crio/crio.conf.d/**     -d           every regular file, in lexical order
//!      v
//!   CONTAINER_<FLAG>                          empty variables say nothing
//!      v
//!   --flag
//!      v
//!   checks across keys, handlers found        -> Config, warnings, where each value came from
//! ```
//! What is higher replaces the whole value; only `storage_option` adds up between files. Handlers
//! and workloads replace those of the same name and leave the others.
//!
//! [`load`] is for the daemon. [`read`] stops before the last step and is for `criod config`, which
//! must also work where no runtime is installed; [`to_toml`] writes what it prints.
//!
//! To add a key, add one entry to the table in `config.rs` (or `handler.rs`), then write
//! `conf/crio.conf` anew: `CRIOD_WRITE_CONF=1 cargo test -p criod-config`.

mod check;
mod config;
mod error;
mod file;
mod flags;
mod handler;
mod key;
mod load;
mod machine;
mod setting;
mod show;
mod types;

pub use check::POD_METRICS;
pub use config::Config;
pub use error::{Error, Origin, Warning};
pub use flags::flags;
pub use handler::{RuntimeHandler, Workload, WorkloadResources};
pub use load::{Loaded, Sources, from_text, load, read};
pub use machine::{DEFAULT_PATH, Machine};
pub use setting::Additive;
pub use show::{default_toml, to_toml};
pub use types::{
    ByteSize, Capability, CgroupManager, CheckpointRestore, DeviceSpec, EnvVar, ImageVolumes,
    LogFormat, LogLevel, MessageSize, RuntimeType, ShortNameMode, Sysctl, TextPort, TlsVersion,
    Ulimit,
};

/// The file that is read when `-c` names none.
pub const DEFAULT_FILE: &str = "/etc/crio/crio.conf";
/// The folder that is read when `-d` names none.
pub const DEFAULT_DIR: &str = "/etc/crio/crio.conf.d";
