//! What a spec takes from the node: its architecture, its kernel, what capabilities it can give.

use crate::caps::{self, CapSet};
use crate::error::Result;
use crate::input::{Arch, Host};
use std::fs;

impl Host {
    /// Asks this node: `/proc/sys/kernel/osrelease`, `/proc/sys/kernel/cap_last_cap`,
    /// `/proc/self/status`.
    ///
    /// # Errors
    /// [`crate::Error::ReadCapabilities`], [`crate::Error::ParseCapabilities`].
    pub fn current() -> Result<Self> {
        let known = CapSet::from_bits((1u64 << (caps::last()?.min(62) + 1)) - 1);
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self {
            arch: Arch::of_build(),
            kernel: parse_release(&release).unwrap_or(Self::default().kernel),
            grantable: caps::grantable()?.intersection(known),
            x32: false,
        })
    }
}

impl Arch {
    /// The architecture this program was compiled for; `X86_64` where profiles know none.
    #[must_use]
    pub fn of_build() -> Self {
        Self::from_docker(match std::env::consts::ARCH {
            "aarch64" => "arm64",
            "s390x" => "s390x",
            "powerpc64" => "ppc64le",
            "riscv64" => "riscv64",
            _ => "amd64",
        })
        .unwrap_or(Self::X86_64)
    }

    /// The name that image indexes and profiles use: `amd64`, `arm64`, …
    #[must_use]
    pub const fn docker(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
            Self::S390x => "s390x",
            Self::Ppc64le => "ppc64le",
            Self::Riscv64 => "riscv64",
        }
    }

    /// From that name.
    #[must_use]
    pub fn from_docker(name: &str) -> Option<Self> {
        [Self::X86_64, Self::Aarch64, Self::S390x, Self::Ppc64le, Self::Riscv64]
            .into_iter()
            .find(|arch| arch.docker() == name)
    }
}

/// Major and minor of a kernel release such as `6.18.0-rc2+deb13`.
pub(crate) fn parse_release(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.trim().split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parse_release("6.18.0-rc2+deb13\n"), Some((6, 18)));
        assert_eq!(parse_release("5.4"), Some((5, 4)));
        for bad in ["", "6", "x.1", "6.", "6.x", "-1.2", "99999999999.1"] {
            assert_eq!(parse_release(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_node() {
        let host = Host::current().unwrap();
        assert!(host.kernel >= (4, 18), "{host:?}");
        assert!(host.grantable.has("CAP_CHOWN"), "{host:?}");
    }
}
