//! Seccomp: the profile that this crate brings, and profiles from outside, turned into the
//! runtime specification's `linux.seccomp`.
//!
//! ```text
//! Default ─► default.rs: rules in code ──────────┐  choose by architecture, capabilities,
//! Profile ─► profile.rs: parse Docker's JSON ────┴─ kernel version ─► LinuxSeccomp
//! ```

mod default;
mod profile;

use crate::caps::CapSet;
use crate::error::Result;
use crate::input::{Host, SeccompInput};
use oci_spec::runtime::LinuxSeccomp;

/// What a spec's seccomp part is, for a container with these capabilities.
///
/// # Errors
/// The `Seccomp*` variants of [`crate::Error`].
pub fn assemble(input: &SeccompInput, host: &Host, caps: CapSet) -> Result<Option<LinuxSeccomp>> {
    match input {
        SeccompInput::Unconfined => Ok(None),
        SeccompInput::Default => default::profile().select(host, caps).map(Some),
        SeccompInput::Profile(json) => profile::parse(json)?.select(host, caps).map(Some),
    }
}
