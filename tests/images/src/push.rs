//! Pushes the catalogue to a registry (distribution specification 1.1, plain HTTP).
//!
//! ```text
//! HEAD blob ─ 200 ─> done          then each manifest, deepest first, by digest,
//!      └─ 404 ─> POST uploads ─> PUT <location>&digest=…     and the last one by each tag
//! ```
//! A spoiled image is pushed whole, then its blob's file is changed or removed in the registry's
//! storage folder (layout of docker-registry 2: `docker/registry/v2/blobs/sha256/<ab>/<hex>/data`).

use std::path::{Path, PathBuf};

use crate::http::Client;
use crate::store::{Catalog, Descriptor, Image, Spoil};
use crate::{Error, Result, read, write};

/// Where to push.
#[derive(Debug, Clone)]
pub struct Target {
    /// Host and port.
    pub address: String,
    /// The registry's storage folder, needed for spoiled images.
    pub storage: Option<PathBuf>,
    /// `name:password`, where the registry asks for it.
    pub user: Option<String>,
}

/// Pushes all images of the catalogue.
pub fn push(catalog: &Catalog, target: &Target) -> Result<()> {
    let client = Client { address: target.address.clone(), user: target.user.clone() };
    for image in &catalog.images {
        if !image.spoil.is_empty() && target.storage.is_none() {
            return Err(Error::NoStorage { image: image.names[0].clone() });
        }
        let mut repositories: Vec<&str> = Vec::new();
        for name in &image.names {
            let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
            if !repositories.contains(&repository) {
                push_content(&client, catalog, image, repository)?;
                repositories.push(repository);
            }
            put_manifest(&client, catalog, repository, tag, &image.root)?;
        }
    }
    for image in &catalog.images {
        if let Some(storage) = &target.storage {
            spoil(image, storage)?;
        }
    }
    Ok(())
}

fn push_content(client: &Client, catalog: &Catalog, image: &Image, repository: &str) -> Result<()> {
    for blob in &image.blobs {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest);
        if client.send("HEAD", &path, "", b"")?.status == 200 {
            continue;
        }
        let path = format!("/v2/{repository}/blobs/uploads/");
        let begun = client.send("POST", &path, "", b"")?;
        let location = match (begun.status, begun.header("location")) {
            (202, Some(location)) => location,
            _ => return Err(begun.error("POST", &path)),
        };
        // The location may name the host; the path behind it is what counts.
        let location = location
            .split_once("://")
            .and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]))
            .unwrap_or(location);
        let joint = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{joint}digest={}", blob.digest);
        let data = catalog.blobs.get(&blob.digest).map(Vec::as_slice).unwrap_or_default();
        let answer = client.send("PUT", &path, "application/octet-stream", data)?;
        if answer.status != 201 {
            return Err(answer.error("PUT", &path));
        }
    }
    for manifest in &image.manifests {
        put_manifest(client, catalog, repository, &manifest.digest, manifest)?;
    }
    Ok(())
}

fn put_manifest(
    client: &Client,
    catalog: &Catalog,
    repository: &str,
    reference: &str,
    manifest: &Descriptor,
) -> Result<()> {
    let path = format!("/v2/{repository}/manifests/{reference}");
    let data = catalog.blobs.get(&manifest.digest).map(Vec::as_slice).unwrap_or_default();
    let answer = client.send("PUT", &path, &manifest.media_type, data)?;
    if answer.status != 201 {
        return Err(answer.error("PUT", &path));
    }
    Ok(())
}

fn spoil(image: &Image, storage: &Path) -> Result<()> {
    let file = |digest: &str| {
        let hex = digest.trim_start_matches("sha256:");
        storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    };
    for spoil in &image.spoil {
        match spoil {
            Spoil::Change(digest) => {
                let path = file(digest);
                let mut data = read(&path)?;
                let middle = data.len() / 2;
                data[middle] ^= 0x20;
                write(path, &data)?;
            }
            Spoil::Remove(digest) => {
                let path = file(digest);
                std::fs::remove_file(&path).map_err(|source| Error::Write { path, source })?;
            }
        }
    }
    Ok(())
}
