//! From a reference to everything but the layers' bytes.
//!
//! ```text
//!   reference ─> sources: mirror 1, mirror 2, registry ─ the first that has all of:
//!        manifest ─ an index? select this platform, fetch, again (at most 3 times) ─┐
//!        configuration, verified <── image manifest, its layers checked <───────────┘
//! ```
//!
//! Which error counts when all sources fail: that of the last, which is the registry itself.

use bytes::Bytes;

use crate::auth::Keyring;
use crate::client::{Client, ClientError, ErrorKind, Manifest};
use crate::conf::{Endpoint, LookupError, Registries};
use crate::digest::Digest;
use crate::image::{
    Descriptor, Document, ImageConfig, ImageError, ImageManifest, MAX_DEPTH, MAX_DOCUMENT,
    Platform, select,
};
use crate::reference::Reference;

/// Why one source has no usable image.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The image's documents cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl SourceError {
    /// What the error means to the one who asked.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SourceError::Client(error) => error.kind(),
            SourceError::Image(_) => ErrorKind::Other,
        }
    }
}

/// Why an image cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The configuration gives no place to fetch it from.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Every source failed.
    #[error("pulling {reference}: {}", list(attempts))]
    AllFailed {
        /// What was asked for.
        reference: Box<Reference>,
        /// Each source's error, in the order tried.
        attempts: Vec<(Endpoint, SourceError)>,
    },
}

impl PullError {
    /// What the error means to the one who asked.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PullError::Lookup(_) => ErrorKind::Other,
            PullError::AllFailed { attempts, .. } => {
                attempts.last().map_or(ErrorKind::Other, |(_, error)| error.kind())
            }
        }
    }
}

/// A manifest found, before its configuration and layers are looked at. Of artifacts this is all
/// there is to know.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Where it was found: its blobs are there too.
    pub endpoint: Endpoint,
    /// The digest the name stands for: of the index, or of the manifest when there is none.
    pub top_digest: Digest,
    /// The manifest's digest.
    pub manifest_digest: Digest,
    /// The manifest's bytes.
    pub manifest_bytes: Bytes,
    /// The manifest, read.
    pub manifest: ImageManifest,
}

/// An image found and checked, except for the layers' bytes.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Where it was found: its layers are there too.
    pub endpoint: Endpoint,
    /// The digest the name stands for: of the index, or of the manifest when there is none.
    pub top_digest: Digest,
    /// The manifest's digest.
    pub manifest_digest: Digest,
    /// The manifest's bytes.
    pub manifest_bytes: Bytes,
    /// The manifest, read.
    pub manifest: ImageManifest,
    /// The configuration's digest, which is the image's id.
    pub config_digest: Digest,
    /// The configuration's bytes.
    pub config_bytes: Bytes,
    /// The configuration, read.
    pub config: ImageConfig,
    /// The layers, lowest first; each has a known compression.
    pub layers: Vec<Descriptor>,
}

/// Finds the manifest of `reference` for `platform`, trying each source in order.
pub async fn resolve(
    client: &Client,
    registries: &Registries,
    reference: &Reference,
    keyring: &Keyring,
    platform: &Platform,
) -> Result<Resolved, PullError> {
    let mut attempts = Vec::new();
    for endpoint in registries.sources(reference)? {
        match resolve_at(client, &endpoint, reference, keyring, platform).await {
            Ok(resolved) => return Ok(resolved),
            Err(error) => attempts.push((endpoint, error)),
        }
    }
    Err(PullError::AllFailed { reference: Box::new(reference.clone()), attempts })
}

/// Fetches manifest and configuration of `reference` for `platform`, trying each source in order.
pub async fn fetch_image(
    client: &Client,
    registries: &Registries,
    reference: &Reference,
    keyring: &Keyring,
    platform: &Platform,
) -> Result<Fetched, PullError> {
    let mut attempts = Vec::new();
    for endpoint in registries.sources(reference)? {
        match fetch_at(client, &endpoint, reference, keyring, platform).await {
            Ok(fetched) => return Ok(fetched),
            Err(error) => {
                tracing::debug!(%endpoint, %error, "source failed");
                attempts.push((endpoint, error));
            }
        }
    }
    Err(PullError::AllFailed { reference: Box::new(reference.clone()), attempts })
}

async fn resolve_at(
    client: &Client,
    endpoint: &Endpoint,
    reference: &Reference,
    keyring: &Keyring,
    platform: &Platform,
) -> Result<Resolved, SourceError> {
    let credentials = keyring.for_endpoint(endpoint);
    let mut target = reference.target();
    let mut top: Option<Digest> = None;
    for _ in 0..=MAX_DEPTH {
        let found: Manifest = client.manifest(endpoint, &target, &credentials).await?;
        let top_digest = top.get_or_insert_with(|| found.digest.clone()).clone();
        match found.document()? {
            Document::Index(index) => target = select(&index, platform)?.digest.to_string(),
            Document::Image(manifest) => {
                return Ok(Resolved {
                    endpoint: endpoint.clone(),
                    top_digest,
                    manifest_digest: found.digest,
                    manifest_bytes: found.bytes,
                    manifest: *manifest,
                });
            }
        }
    }
    Err(ImageError::TooDeep.into())
}

async fn fetch_at(
    client: &Client,
    endpoint: &Endpoint,
    reference: &Reference,
    keyring: &Keyring,
    platform: &Platform,
) -> Result<Fetched, SourceError> {
    let found = resolve_at(client, endpoint, reference, keyring, platform).await?;
    let manifest = found.manifest;
    if !manifest.is_container_image() {
        let media_type = manifest.config.media_type;
        return Err(ImageError::NotAnImage { media_type }.into());
    }
    for layer in &manifest.layers {
        layer.layer_compression()?;
    }
    let size = manifest.config.size;
    if size > MAX_DOCUMENT {
        return Err(ImageError::TooLarge { what: "the image configuration", size }.into());
    }
    let credentials = keyring.for_endpoint(endpoint);
    let stream = client.blob(endpoint, &manifest.config, &credentials).await?;
    let config_bytes = stream.bytes(MAX_DOCUMENT).await?;
    let config = ImageConfig::parse(&config_bytes)?;
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers != diff_ids {
        return Err(ImageError::LayerCount { layers, diff_ids }.into());
    }
    Ok(Fetched {
        endpoint: found.endpoint,
        top_digest: found.top_digest,
        manifest_digest: found.manifest_digest,
        manifest_bytes: found.manifest_bytes,
        config_digest: manifest.config.digest.clone(),
        config_bytes,
        config,
        layers: manifest.layers.clone(),
        manifest,
    })
}

/// The attempts in one line, causes included: they have no common `source`.
fn list(attempts: &[(Endpoint, SourceError)]) -> String {
    let one = |(endpoint, error): &(Endpoint, SourceError)| {
        let mut text = format!("{endpoint}: {error}");
        let mut next = std::error::Error::source(error);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    };
    attempts.iter().map(one).collect::<Vec<_>>().join("; ")
}
