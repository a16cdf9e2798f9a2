//! What machine an image is for, in Go's names (`GOOS`/`GOARCH`), as image indexes use them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A platform: of this machine, or of one entry of an index.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `GOOS`: `linux`.
    #[serde(default)]
    pub os: String,
    /// `GOARCH`: `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`, … where the architecture has variants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// A platform by its Go names.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
        }
    }

    /// The platform this program was built for.
    pub fn host() -> Platform {
        let little = cfg!(target_endian = "little");
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if little => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            "mips64" if little => ("mips64le", None),
            other => (other, None),
        };
        Platform::new("linux", architecture, variant)
    }

    /// The variants an image for this platform may have, the best first.
    pub(crate) fn variants(&self) -> Vec<Option<&str>> {
        const ARM: [&str; 4] = ["v8", "v7", "v6", "v5"];
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm", Some(own)) => match ARM.iter().position(|v| *v == own) {
                Some(at) => ARM[at..].iter().map(|v| Some(*v)).chain([None]).collect(),
                None => vec![Some(own), None],
            },
            ("arm", None) => vec![Some("v7"), None, Some("v6"), Some("v5")],
            ("arm64", None | Some("v8")) => vec![Some("v8"), None],
            ("amd64", None | Some("v1")) => vec![None, Some("v1")],
            (_, Some(own)) => vec![Some(own), None],
            (_, None) => vec![None],
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}
