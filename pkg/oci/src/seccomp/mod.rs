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
use std::fs;
use std::path::Path;

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

/// Checks a profile as [`SeccompInput::Profile`] takes it: all of its rules, also those that count
/// for other containers.
///
/// # Errors
/// The `Seccomp*` variants of [`crate::Error`].
pub fn check(json: &[u8], host: &Host) -> Result<()> {
    profile::parse(json)?.check(host)
}

/// Whether the kernel filters system calls, by what it shows below `proc` (`/proc`).
#[must_use]
pub fn supported(proc: &Path) -> bool {
    let counts = |status: String| status.lines().any(|l| l.starts_with("Seccomp_filters:"));
    proc.join("sys/kernel/seccomp/actions_avail").exists()
        || fs::read_to_string(proc.join("self/status")).is_ok_and(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn support() {
        assert!(supported(Path::new("/proc")));
        let dir = tempfile::tempdir().unwrap();
        assert!(!supported(dir.path()));
        fs::create_dir(dir.path().join("self")).unwrap();
        let status = |text: &str| fs::write(dir.path().join("self/status"), text).unwrap();
        status("Name:\tx\nNoNewPrivs:\t0\n");
        assert!(!supported(dir.path()));
        status("NoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0\n");
        assert!(supported(dir.path()));
    }
}
