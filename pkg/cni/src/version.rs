//! Versions of the CNI specification, ordered by age.

use std::fmt;
use std::str::FromStr;

/// A version of the CNI specification that this crate can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: one address of each family.
    V010,
    /// 0.2.0: the same with a version in the result.
    V020,
    /// 0.3.0: chains, lists of interfaces and addresses.
    V030,
    /// 0.3.1.
    V031,
    /// 0.4.0: CHECK.
    V040,
    /// 1.0.0: addresses without their family.
    V100,
    /// 1.1.0: STATUS and GC.
    V110,
}

impl Version {
    const ALL: [Version; 7] = [
        Version::V010,
        Version::V020,
        Version::V030,
        Version::V031,
        Version::V040,
        Version::V100,
        Version::V110,
    ];

    /// As the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V010 => "0.1.0",
            Version::V020 => "0.2.0",
            Version::V030 => "0.3.0",
            Version::V031 => "0.3.1",
            Version::V040 => "0.4.0",
            Version::V100 => "1.0.0",
            Version::V110 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Version, UnknownVersion> {
        Version::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| UnknownVersion(text.to_owned()))
    }
}

/// A version that this crate cannot speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown CNI version {0:?}")]
pub struct UnknownVersion(pub String);
