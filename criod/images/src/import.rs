//! Images from this machine, without a registry: an OCI layout in a folder, or the archives that
//! `skopeo` and `docker save` write.
//!
//! ```text
//! oci-layout, index.json, blobs/    an OCI layout (folder or tar): digests as in a pull
//! manifest.json, <config>, <layer>  a Docker archive (tar): it names no digests but the diff ids in
//!                                   the config, so a manifest is made up from what was unpacked
//! ```
//!
//! The layers go the same way as those of a pull, and the record is published the same way.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use registry::image::{MAX_DEPTH, MAX_LAYERS, media, select};
use registry::{Descriptor, Document, ImageConfig, Reference};
use serde::Deserialize;
use storage::{Compression, Digest, LayerMeta};
use tokio_util::sync::CancellationToken;

use crate::archive::{Files, blob, problem};
use crate::error::Error;
use crate::images::{ImageId, Images};
use crate::layers::{Common, From, Job};
use crate::progress;
use crate::pull::{Documents, chain_of, diff_ids, job};

/// The annotation with an image's name in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What was read before any layer is unpacked.
struct Plan {
    name: Reference,
    jobs: Vec<Arc<Job>>,
    config: Vec<u8>,
    parsed: ImageConfig,
    chain: Vec<Digest>,
    /// The manifest and the digest that the name stands for; none in a Docker archive.
    manifest: Option<(Vec<u8>, registry::Digest)>,
}

/// One image of a Docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Images {
    /// Takes an image from an OCI layout, or from an archive of `docker save` or of an OCI layout,
    /// and calls it `name`. Of several images in there it is the one of that name, or of its end.
    ///
    /// # Errors
    /// See [`Error::kind`]; what was written is gone again.
    pub async fn import(&self, path: &Path, name: &str) -> Result<ImageId, Error> {
        let reference = Reference::parse(name)
            .map_err(|source| Error::Name { name: name.to_owned(), source })?
            .with_default_tag()
            .without_redundant_tag();
        let (path, platform) = (path.to_owned(), self.0.options.platform.clone());
        let wanted = name.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let files = Arc::new(Files::open(&path)?);
            if files.has("index.json") {
                layout(&files, reference, &wanted, &platform)
            } else if files.has("manifest.json") {
                docker(&files, reference, &wanted)
            } else {
                Err(problem(&path, "neither an OCI layout nor a Docker archive"))
            }
        });
        let plan = read.await.unwrap_or_else(|_| Err(Error::Died { image: name.to_owned() }))?;
        let image = plan.name.to_string();
        let (sources, cancel) = (Vec::new(), CancellationToken::new());
        let common = Common { image: image.clone(), sources, cancel };
        let jobs = plan.jobs.clone();
        let id = self.bring_all(common, jobs, |metas| Ok(plan.documents(metas))).await?;
        tracing::info!(image, id, "image imported");
        Ok(id)
    }

    /// The same as [`Images::import`]: for an OCI layout in a folder.
    pub async fn import_layout(&self, folder: &Path, name: &str) -> Result<ImageId, Error> {
        self.import(folder, name).await
    }
}

impl Plan {
    fn documents(self, metas: &[Arc<LayerMeta>]) -> Documents {
        let (manifest, top) = self.manifest.unwrap_or_else(|| {
            let manifest = made_up(&self.config, metas);
            let digest = registry::Digest::of(&manifest);
            (manifest, digest)
        });
        let mut names = BTreeSet::new();
        if self.name.digest().is_none() {
            names.insert(self.name.to_string());
        }
        Documents {
            manifest,
            config: self.config,
            parsed: self.parsed,
            chain: self.chain,
            names,
            digests: BTreeSet::from([self.name.with_digest(top).to_string()]),
        }
    }
}

/// Whether something called `given` is what `wanted` asks for: the same, its end, or its tag.
fn is_called(given: &str, wanted: &str) -> bool {
    given == wanted
        || wanted.strip_suffix(given).is_some_and(|rest| rest.ends_with(['/', ':']))
        || Reference::parse(given).ok().map(Reference::with_default_tag)
            == Reference::parse(wanted).ok().map(Reference::with_default_tag)
}

fn layout(
    files: &Arc<Files>,
    name: Reference,
    wanted: &str,
    platform: &registry::Platform,
) -> Result<Plan, Error> {
    let image = name.to_string();
    let document = |source| Error::Document { image: image.clone(), source: Box::new(source) };
    let index = files.read("index.json")?;
    let Document::Index(index) =
        Document::parse(&index, Some(media::OCI_INDEX)).map_err(document)?
    else {
        return Err(problem(files.path(), "index.json is not an index"));
    };
    let called = |entry: &&Descriptor| {
        entry.annotations.get(REF_NAME).is_some_and(|given| is_called(given, wanted))
    };
    let mut next = match (index.manifests.iter().find(called), index.manifests.as_slice()) {
        (Some(entry), _) | (None, [entry]) => entry.clone(),
        (None, entries) if entries.iter().any(|e| e.annotations.contains_key(REF_NAME)) => {
            return Err(problem(files.path(), format!("none of its images is called {wanted}")));
        }
        (None, _) => select(&index, platform).map_err(document)?.clone(),
    };
    let top = next.digest.clone();
    let mut depth = 0;
    let (bytes, manifest) = loop {
        let bytes = files.document(&next)?;
        match Document::parse(&bytes, Some(&next.media_type)).map_err(document)? {
            Document::Image(manifest) => break (bytes, manifest),
            Document::Index(_) if depth >= MAX_DEPTH => {
                return Err(document(registry::ImageError::TooDeep));
            }
            Document::Index(index) => {
                next = select(&index, platform).map_err(document)?.clone();
                depth += 1;
            }
        }
    };
    if !manifest.is_container_image() {
        let media_type = manifest.config.media_type.clone();
        return Err(document(registry::ImageError::NotAnImage { media_type }));
    }
    let config = files.document(&manifest.config)?;
    let parsed = ImageConfig::parse(&config).map_err(document)?;
    let chain = chain_of(&image, &parsed, manifest.layers.len())?;
    let mut jobs = Vec::new();
    let mut parent = None;
    let diff_ids = diff_ids(&image, &parsed)?;
    for ((layer, diff_id), chain_id) in manifest.layers.iter().zip(diff_ids).zip(&chain) {
        let (place, at) = (files.clone(), blob(&layer.digest));
        let from = From::Here(Box::new(move || Ok(place.reader(&at)?.0)));
        let job = job(&image, from, layer, diff_id, chain_id, parent)?;
        if job.compressed.is_none() {
            let problem = format!("layer {} is not of SHA-256", layer.digest);
            return Err(Error::invalid(&image, problem));
        }
        jobs.push(Arc::new(job));
        parent = Some(chain_id.clone());
    }
    Ok(Plan { name, jobs, config, parsed, chain, manifest: Some((bytes, top)) })
}

fn docker(files: &Arc<Files>, name: Reference, wanted: &str) -> Result<Plan, Error> {
    let image = name.to_string();
    let at = files.path();
    let saved: Vec<Saved> = serde_json::from_slice(&files.read("manifest.json")?)
        .map_err(|error| problem(at, format!("manifest.json: {error}")))?;
    let called =
        |saved: &&Saved| saved.repo_tags.iter().flatten().any(|given| is_called(given, wanted));
    let saved = match (saved.iter().find(called), saved.as_slice()) {
        (Some(saved), _) | (None, [saved]) => saved,
        _ => return Err(problem(at, format!("none of its images is called {wanted}"))),
    };
    let layers = saved.layers.as_deref().unwrap_or_default();
    if layers.len() > MAX_LAYERS {
        return Err(problem(at, "too many layers"));
    }
    let config = files.read(&saved.config)?;
    let parsed = ImageConfig::parse(&config)
        .map_err(|source| Error::Document { image: image.clone(), source: Box::new(source) })?;
    let chain = chain_of(&image, &parsed, layers.len())?;
    let mut jobs = Vec::new();
    let mut parent = None;
    let diff_ids = diff_ids(&image, &parsed)?;
    for ((layer, diff_id), chain_id) in layers.iter().zip(diff_ids).zip(&chain) {
        let read = |source| Error::ReadLocal { path: at.join(layer), source };
        let (mut reader, size) = files.reader(layer).map_err(read)?;
        let mut magic = Vec::new();
        reader.by_ref().take(4).read_to_end(&mut magic).map_err(read)?;
        let (place, file) = (files.clone(), layer.clone());
        jobs.push(Arc::new(Job {
            from: From::Here(Box::new(move || Ok(place.reader(&file)?.0))),
            label: layer.clone(),
            compression: compression(&magic),
            compressed: None,
            progress: progress::Layer::new(diff_id.to_string(), size),
            diff_id,
            chain_id: chain_id.clone(),
            parent,
        }));
        parent = Some(chain_id.clone());
    }
    Ok(Plan { name, jobs, config, parsed, chain, manifest: None })
}

/// By the first bytes (RFC 1952, RFC 8878).
fn compression(magic: &[u8]) -> Compression {
    match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The manifest of an image that came without one.
fn made_up(config: &[u8], metas: &[Arc<LayerMeta>]) -> Vec<u8> {
    let layer = |meta: &Arc<LayerMeta>| {
        let packed = if meta.compressed == meta.diff_id { "" } else { "+gzip" };
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{packed}"),
            "digest": meta.compressed, "size": meta.compressed_size,
        })
    };
    let layers: Vec<_> = metas.iter().map(layer).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": {
            "mediaType": media::OCI_CONFIG,
            "digest": Digest::of(config), "size": config.len(),
        },
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_layouts() {
        for (given, wanted, same) in [
            ("q.io/a:1", "q.io/a:1", true),
            ("a:1", "q.io/a:1", true),
            ("1", "q.io/a:1", true),
            ("q.io/a", "q.io/a:latest", true),
            ("docker.io/library/a:1", "a:1", true),
            ("b:1", "q.io/ab:1", false),
            ("2", "q.io/a:12", false),
            ("q.io/a:1", "a:1", false),
            ("q.io/b:1", "q.io/a:1", false),
        ] {
            assert_eq!(is_called(given, wanted), same, "{given} {wanted}");
        }
    }

    #[test]
    fn packing_by_the_first_bytes() {
        assert_eq!(compression(&[0x1f, 0x8b, 8, 0]), Compression::Gzip);
        assert_eq!(compression(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        for plain in [&b"file"[..], b"", b"\x1f"] {
            assert_eq!(compression(plain), Compression::None);
        }
    }
}
