//! Blobs and images in memory: what the catalogue builds and what is written or pushed.
//!
//! ```text
//! Image ── root ──> manifest or index ──> manifests ──> config + layers       (all in Catalog.blobs)
//! ```

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Media types of the OCI image specification 1.1 and of Docker's schema 2.
pub mod media {
    #![allow(missing_docs)]
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
}

impl Descriptor {
    /// The descriptor as JSON.
    pub fn json(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// A layer: where its bytes are, and the digest of the archive in it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The compressed blob.
    pub blob: Descriptor,
    /// The digest of the archive (`rootfs.diff_ids` of the config).
    pub diff_id: String,
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// With gzip.
    Gzip,
    /// With zstd.
    Zstd,
}

/// What is done to a blob in the registry's storage after it was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spoil {
    /// The bytes become others of the same number.
    Change(String),
    /// The blob is taken away.
    Remove(String),
}

/// An image under one or more names.
#[derive(Debug, Clone)]
pub struct Image {
    /// `repository:tag`, the first being the one it is known by.
    pub names: Vec<String>,
    /// The manifest or index.
    pub root: Descriptor,
    /// Manifests, deepest first; the last one is `root`.
    pub manifests: Vec<Descriptor>,
    /// Configs and layers.
    pub blobs: Vec<Descriptor>,
    /// What is to be spoiled.
    pub spoil: Vec<Spoil>,
    /// What it is for.
    pub about: &'static str,
}

/// All images with all their blobs.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Content by digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// The images, in the order in which they were made.
    pub images: Vec<Image>,
}

/// `sha256:` and the digest of these bytes.
pub fn digest(data: &[u8]) -> String {
    let mut out = String::from("sha256:");
    for byte in Sha256::digest(data) {
        out.push_str(&format!("{byte:02x}"));
    }
    out
}

impl Catalog {
    /// Keeps a blob.
    pub fn blob(&mut self, media_type: &str, data: Vec<u8>) -> Descriptor {
        let d = Descriptor {
            media_type: media_type.into(),
            digest: digest(&data),
            size: data.len() as u64,
        };
        self.blobs.insert(d.digest.clone(), data);
        d
    }

    /// Keeps a JSON document; its keys are sorted, so that the bytes are always the same.
    pub fn document(&mut self, media_type: &str, value: &Value) -> Descriptor {
        self.blob(media_type, value.to_string().into_bytes())
    }

    /// Packs an archive into a layer.
    pub fn layer(&mut self, archive: &[u8], packing: Packing) -> Result<Layer> {
        let diff_id = digest(archive);
        let (media_type, data) = match packing {
            Packing::Plain => (media::TAR, archive.to_vec()),
            Packing::Gzip => (media::TAR_GZIP, gzip(archive)?),
            Packing::Zstd => {
                let data = zstd::encode_all(archive, 3)
                    .map_err(|source| Error::Compress { method: "zstd", source })?;
                (media::TAR_ZSTD, data)
            }
        };
        Ok(Layer { blob: self.blob(media_type, data), diff_id })
    }

    /// Adds an image; its names begin with the one it is known by.
    pub fn add(&mut self, image: Image) {
        self.images.push(image);
    }

    /// The image with this name.
    pub fn find(&self, name: &str) -> Result<&Image> {
        self.images
            .iter()
            .find(|i| i.names.iter().any(|n| n == name))
            .ok_or_else(|| Error::UnknownImage { name: name.into() })
    }
}

/// Compresses with gzip; no name and no time in the header.
pub fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let fail = |source| Error::Compress { method: "gzip", source };
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    out.write_all(data).map_err(fail)?;
    out.finish().map_err(fail)
}
