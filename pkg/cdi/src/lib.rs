//! The Container Device Interface, versions 0.3.0 to 1.1.0: what a device of a vendor means for a
//! container, from the files that the vendor left on the node.
//!
//! ```text
//!  /etc/cdi/*.json, *.yaml ─┐   Registry::current        Specs::edits
//!  /var/run/cdi/…           ├──► re-read if changed ──► Specs ──► Edits, plain values
//!  vendor.com/class=name ───┴──────────────────────────────┘
//! ```
//! A device of a later directory takes the place of one of the same name in an earlier. Two of one
//! name in the same directory are ambiguous: whoever asks for it gets an error, all other devices are
//! there. A file that cannot be used is a [`Problem`] to report, and no error for devices of others.
//!
//! It changes no container and knows no runtime: [`Edits`] are for the caller to apply.

mod error;
mod name;
mod node;
mod registry;
mod spec;
mod version;
mod yaml;

pub use error::{Error, Problem, Result};
pub use name::{annotated, check_name};
pub use registry::{Registry, Specs};
pub use spec::{DeviceNode, Edits, Hook, IntelRdt, Mount, NetDevice};
