//! Manifests and indexes, read from the raw bytes a registry sent.
//!
//! ```text
//!   bytes ── Document::parse ──┬─ Index ── select(platform) ──> Descriptor ──> fetch, parse again
//!                              └─ Image ── config, layers ──> layer_compression()
//! ```
//!
//! What a document *is* follows from its own bytes (`mediaType`, else its shape), with the
//! registry's Content-Type only as a help when they do not say: the digest pins the bytes, not the
//! header. A document that could be read as both an index and a manifest is refused (OCI image
//! specification, manifest.md and image-index.md; CVE-2021-41190). Docker's schema 1 is refused.

mod config;
mod platform;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use config::nullable;
pub use config::{ContainerDefaults, History, ImageConfig, RootFs};
pub use platform::Platform;

/// The media types this crate knows.
pub mod media {
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// What a manifest request accepts.
    pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
        application/vnd.oci.image.manifest.v1+json, \
        application/vnd.docker.distribution.manifest.list.v2+json, \
        application/vnd.docker.distribution.manifest.v2+json";
}

/// The most layers an image may have.
pub const MAX_LAYERS: usize = 512;
/// The most entries an index may have.
pub const MAX_INDEX: usize = 4096;
/// The most indexes on the way to a manifest.
pub const MAX_DEPTH: usize = 3;
/// The most bytes of a manifest, an index or a configuration.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Why an image's documents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not the JSON of a manifest or an index.
    #[error("reading the manifest")]
    Manifest {
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// Not the JSON of a configuration.
    #[error("reading the image configuration")]
    Config {
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// Docker's schema 1, given up by everyone.
    #[error("the image has a Docker schema 1 manifest, which is not supported; push it anew")]
    Schema1,
    /// Both an index and a manifest.
    #[error("the manifest is ambiguous: it has both {one:?} and {other:?}")]
    Ambiguous {
        /// One member.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Neither an index nor a manifest.
    #[error("unsupported manifest type {media_type:?}")]
    MediaType {
        /// What it says it is.
        media_type: String,
    },
    /// A manifest whose configuration is not that of a container image.
    #[error("not a container image: its configuration is {media_type:?}")]
    NotAnImage {
        /// The configuration's type.
        media_type: String,
    },
    /// More layers than allowed.
    #[error("the image has {count} layers, more than {MAX_LAYERS}")]
    TooManyLayers {
        /// How many.
        count: usize,
    },
    /// More index entries than allowed.
    #[error("the image index has {count} entries, more than {MAX_INDEX}")]
    TooManyEntries {
        /// How many.
        count: usize,
    },
    /// Index within index within index.
    #[error("image indexes are nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// A configuration larger than allowed.
    #[error("{what} has {size} bytes, more than {MAX_DOCUMENT}")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its size by its descriptor, bytes.
        size: u64,
    },
    /// The index has nothing for this machine.
    #[error("no image for platform {wanted}; there is: {}", .available.join(", "))]
    NoPlatform {
        /// This machine's.
        wanted: Platform,
        /// What the index has.
        available: Vec<String>,
    },
    /// A layer of a form that cannot be unpacked.
    #[error("layer {digest} has the unsupported type {media_type:?}")]
    LayerType {
        /// Which layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// A layer that is to be fetched from somewhere else.
    #[error(
        "layer {digest} ({media_type:?}) is to be fetched from another place, which is not supported"
    )]
    ForeignLayer {
        /// Which layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// `rootfs.type` is not `layers`.
    #[error("unsupported root file system type {kind:?}")]
    RootFsType {
        /// What it is.
        kind: String,
    },
    /// Manifest and configuration disagree.
    #[error("the manifest has {layers} layers, the configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
}

/// A pointer to content (OCI image specification, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default, deserialize_with = "nullable")]
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size, bytes.
    pub size: u64,
    /// Other places to get it from.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// In an index: the machine it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Remarks.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How a layer's tar archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Descriptor {
    /// How this layer is packed, by its type. An error for what cannot be unpacked, and for layers
    /// that live elsewhere (`urls`).
    pub fn layer_compression(&self) -> Result<Compression, ImageError> {
        if !self.urls.is_empty() {
            return Err(ImageError::ForeignLayer {
                digest: self.digest.clone(),
                media_type: self.media_type.clone(),
            });
        }
        match self.media_type.as_str() {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Compression::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
            other => Err(ImageError::LayerType {
                digest: self.digest.clone(),
                media_type: other.to_owned(),
            }),
        }
    }
}

/// An image index or Docker manifest list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its type.
    pub media_type: String,
    /// The entries, in order.
    pub manifests: Vec<Descriptor>,
    /// Remarks.
    pub annotations: BTreeMap<String, String>,
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// Its type.
    pub media_type: String,
    /// For artifacts: of what kind.
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Remarks.
    pub annotations: BTreeMap<String, String>,
}

impl ImageManifest {
    /// Whether the configuration is a container image's, not some other artifact's.
    pub fn is_container_image(&self) -> bool {
        matches!(self.config.media_type.as_str(), media::OCI_CONFIG | media::DOCKER_CONFIG)
    }
}

/// What a manifest request may return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Several images to choose from.
    Index(Index),
    /// One image.
    Image(Box<ImageManifest>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<i64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

/// Just enough to know a schema 1 manifest before its shape fails to parse.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    schema_version: Option<i64>,
}

impl Document {
    /// Reads a manifest or index. `content_type` is what the registry said, used when the document
    /// does not say itself.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, ImageError> {
        let parse = |source| ImageError::Manifest { source };
        let version: Version = serde_json::from_slice(bytes).map_err(parse)?;
        if version.schema_version == Some(1) {
            return Err(ImageError::Schema1);
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(parse)?;
        if raw.fs_layers.is_some() {
            return Err(ImageError::Schema1);
        }
        let said = raw.media_type.as_deref().filter(|t| !t.is_empty()).or_else(|| {
            content_type.map(essence).filter(|t| {
                matches!(
                    *t,
                    media::OCI_INDEX
                        | media::OCI_MANIFEST
                        | media::DOCKER_LIST
                        | media::DOCKER_MANIFEST
                )
            })
        });
        let media_type = match (said, &raw.manifests, &raw.config) {
            (Some(said), ..) => said.to_owned(),
            (None, Some(_), None) => media::OCI_INDEX.to_owned(),
            (None, None, Some(_)) => media::OCI_MANIFEST.to_owned(),
            (None, Some(_), Some(_)) => {
                return Err(ImageError::Ambiguous { one: "manifests", other: "config" });
            }
            (None, None, None) => {
                let media_type = content_type.unwrap_or_default().to_owned();
                return Err(ImageError::MediaType { media_type });
            }
        };
        if raw.schema_version != Some(2) {
            return Err(ImageError::MediaType { media_type });
        }
        if raw.manifests.is_some() && raw.layers.is_some() {
            return Err(ImageError::Ambiguous { one: "manifests", other: "layers" });
        }
        if raw.manifests.is_some() && raw.config.is_some() {
            return Err(ImageError::Ambiguous { one: "manifests", other: "config" });
        }
        match (media_type.as_str(), raw.manifests, raw.config) {
            (media::OCI_INDEX | media::DOCKER_LIST, manifests, None) => {
                let manifests = manifests.unwrap_or_default();
                if manifests.len() > MAX_INDEX {
                    return Err(ImageError::TooManyEntries { count: manifests.len() });
                }
                Ok(Document::Index(Index { media_type, manifests, annotations: raw.annotations }))
            }
            (media::OCI_MANIFEST | media::DOCKER_MANIFEST, None, Some(config)) => {
                let layers = raw.layers.unwrap_or_default();
                if layers.len() > MAX_LAYERS {
                    return Err(ImageError::TooManyLayers { count: layers.len() });
                }
                Ok(Document::Image(Box::new(ImageManifest {
                    media_type,
                    artifact_type: raw.artifact_type,
                    config,
                    layers,
                    annotations: raw.annotations,
                })))
            }
            _ => Err(ImageError::MediaType { media_type }),
        }
    }
}

/// The entry of `index` for `platform`.
///
/// The best variant wins, then the earlier entry (so of two for the same platform the first).
/// An entry that names no platform is taken when nothing else fits. Entries of unknown platforms
/// (attestations) are never taken.
pub fn select<'a>(index: &'a Index, platform: &Platform) -> Result<&'a Descriptor, ImageError> {
    let fits = |entry: &&Descriptor, variant: Option<&str>| {
        entry.platform.as_ref().is_some_and(|p| {
            p.os == platform.os
                && p.architecture == platform.architecture
                && p.variant.as_deref().filter(|v| !v.is_empty()) == variant
        })
    };
    for variant in platform.variants() {
        if let Some(found) = index.manifests.iter().find(|entry| fits(entry, variant)) {
            return Ok(found);
        }
    }
    index.manifests.iter().find(|entry| entry.platform.is_none()).ok_or_else(|| {
        ImageError::NoPlatform {
            wanted: platform.clone(),
            available: index
                .manifests
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .take(32)
                .map(Platform::to_string)
                .collect(),
        }
    })
}

/// A media type without its parameters.
pub(crate) fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests;
