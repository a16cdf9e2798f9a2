//! The image configuration: what a container of the image runs by default, and the digests of its
//! unpacked layers (OCI image specification, config.md; Docker's form has the same names).
//!
//! Read leniently: `null` stands for "empty" everywhere, unknown members are passed over. The raw
//! bytes, not this struct, are what the image id is the digest of.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::ImageError;
use crate::digest::Digest;

/// The parts of an image's configuration that running it needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// `GOARCH` of the image.
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// The architecture's variant.
    #[serde(default)]
    pub variant: Option<String>,
    /// `GOOS` of the image.
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// When the image was built, RFC 3339, as written.
    #[serde(default)]
    pub created: Option<String>,
    /// Who built it.
    #[serde(default)]
    pub author: Option<String>,
    /// Defaults of a container.
    #[serde(default, deserialize_with = "nullable")]
    pub config: ContainerDefaults,
    /// The unpacked layers.
    #[serde(default, deserialize_with = "nullable")]
    pub rootfs: RootFs,
    /// One entry per build step, oldest first.
    #[serde(default, deserialize_with = "nullable")]
    pub history: Vec<History>,
}

/// What a container of the image gets unless told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerDefaults {
    /// `user`, `uid`, `user:group`, `uid:gid`, or empty.
    #[serde(default, deserialize_with = "nullable")]
    pub user: String,
    /// `NAME=value` each.
    #[serde(default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// What is run before the arguments.
    #[serde(default, deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// The arguments, or the whole command without an entrypoint.
    #[serde(default, deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// The working directory.
    #[serde(default, deserialize_with = "nullable")]
    pub working_dir: String,
    /// Directories the image declares as volumes.
    #[serde(default, deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// The signal that asks the container to end: a name or a number.
    #[serde(default, deserialize_with = "nullable")]
    pub stop_signal: String,
    /// The image's labels.
    #[serde(default, deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// Ports the image declares, `80/tcp` each.
    #[serde(default, deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
}

/// The image's root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    /// The digests of the uncompressed layers, lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<Digest>,
}

/// One build step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct History {
    /// When, RFC 3339, as written.
    #[serde(default)]
    pub created: Option<String>,
    /// The command.
    #[serde(default)]
    pub created_by: Option<String>,
    /// A remark.
    #[serde(default)]
    pub comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(default, deserialize_with = "nullable")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Reads a configuration blob.
    pub fn parse(bytes: &[u8]) -> Result<ImageConfig, ImageError> {
        // An array would be read too, its elements taken for the members in order.
        let parsed = match bytes.trim_ascii_start().first() {
            Some(b'[') => Err(serde::de::Error::custom("an array instead of an object")),
            _ => serde_json::from_slice(bytes),
        };
        let config: ImageConfig = parsed.map_err(|source| ImageError::Config { source })?;
        if !matches!(config.rootfs.kind.as_str(), "" | "layers") {
            return Err(ImageError::RootFsType { kind: config.rootfs.kind });
        }
        Ok(config)
    }
}

/// `null` is the default value.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The keys of an object whose values mean nothing (Go's `map[string]struct{}`).
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map = Option::<BTreeMap<String, serde::de::IgnoredAny>>::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_docker_and_nulls() {
        let config = ImageConfig::parse(
            br#"{"architecture":"amd64","os":"linux","container":"abc","docker_version":"20",
               "config":{"Hostname":"x","User":"65532:65532","Env":["PATH=/bin"],"Cmd":["sh"],
                 "Entrypoint":null,"Volumes":{"/data":{},"/b":null},"ExposedPorts":{"80/tcp":{}},
                 "Labels":null,"StopSignal":"SIGQUIT","OnBuild":null,"WorkingDir":"/w"},
               "history":[{"created_by":"x","empty_layer":true}],
               "rootfs":{"type":"layers","diff_ids":null}}"#,
        )
        .unwrap();
        assert_eq!(config.config.user, "65532:65532");
        assert_eq!(config.config.volumes, ["/b", "/data"]);
        assert_eq!(config.config.exposed_ports, ["80/tcp"]);
        assert!(config.config.entrypoint.is_empty() && config.history[0].empty_layer);
        let empty = ImageConfig::parse(br#"{"config":null,"rootfs":null,"history":null}"#).unwrap();
        assert_eq!(empty, ImageConfig::default());
    }

    #[test]
    fn refuses() {
        for bad in [
            "",
            "[]",
            r#"{"rootfs":{"type":"squash","diff_ids":[]}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":["../x"]}}"#,
            r#"{"config":{"Env":"x"}}"#,
        ] {
            assert!(ImageConfig::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
