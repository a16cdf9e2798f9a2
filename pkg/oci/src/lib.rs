//! Makes what an OCI runtime reads: `config.json` for a container, the `process` object for an
//! exec. It knows no client's types, starts nothing, and reads the node only where a function
//! says so.
//!
//! ```text
//!  image's /etc/passwd ─ users::resolve ─► UserInput ─┐
//!  request ─ (caller) ───────────────────► SpecInput ─┤ build() ─► config.json
//!  node ─ Host::current, host_devices ────────────────┘
//! ```
//!
//! What it promises:
//! - Same input, same bytes. The specification's crate keeps sets and maps in hash tables;
//!   everything goes through [`canonical`] on its way out.
//! - Defaults are those of an unprivileged container. What widens it is a named field.
//! - An error names the value that is wrong; nothing is dropped quietly, except where the
//!   documentation of the field says so (capabilities of a privileged container).

mod canonical;
pub mod caps;
mod devices;
mod error;
mod host;
mod input;
mod mounts;
mod process;
pub mod seccomp;
mod spec;
pub mod users;

pub use canonical::canonical;
pub use caps::CapSet;
pub use devices::{device, devices_below, host_devices};
pub use error::{Error, Result};
pub use input::*;
pub use mounts::normalise;
pub use process::process;
pub use spec::{DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS, build, limits};
