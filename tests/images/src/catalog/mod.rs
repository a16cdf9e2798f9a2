//! The images, and how each is put together. See `list` of the program for what each is for.
//!
//! ```text
//! ordinary.rs   what works: packing kinds, manifests kinds, users, config, many layers
//! hostile.rs    what must be refused, or must stay inside its root
//! ```
//! Repositories lie under `test/`, and a few under the names that short names and mirrors lead to
//! (`library/busybox`).

mod hostile;
mod ordinary;

use serde_json::{Value, json};

use crate::store::{Catalog, Descriptor, Image, Layer, Packing, Spoil, media};
use crate::tarball::{Entry, archive};
use crate::{Error, Result, read};

pub use hostile::{BOMB_DIFF_ID, BOMB_SIZE, ESCAPES, bomb};

/// Debian's static busybox, of package busybox-static.
const BUSYBOX: &str = "/bin/busybox";
/// When every image was made, as its config says.
const CREATED: &str = "2023-11-14T22:13:20Z";

/// Builds the images of these names; all of them when none is named.
pub fn build(only: &[&str]) -> Result<Catalog> {
    let mut all = Builder::new()?;
    ordinary::add(&mut all)?;
    hostile::add(&mut all, only.is_empty() || only.iter().any(|n| n.contains("bomb")))?;
    let mut catalog = all.catalog;
    if only.is_empty() {
        return Ok(catalog);
    }
    for name in only {
        catalog.find(name)?;
    }
    catalog.images.retain(|i| i.names.iter().any(|n| only.contains(&n.as_str())));
    let used: std::collections::BTreeSet<&str> = catalog
        .images
        .iter()
        .flat_map(|i| i.manifests.iter().chain(&i.blobs))
        .map(|d| d.digest.as_str())
        .collect();
    catalog.blobs.retain(|digest, _| used.contains(digest.as_str()));
    Ok(catalog)
}

/// How a manifest is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Oci,
    Docker,
}

struct Builder {
    catalog: Catalog,
    /// The layer that most images begin with.
    base: Layer,
}

impl Builder {
    fn new() -> Result<Self> {
        let mut catalog = Catalog::default();
        let base = catalog.layer(&archive(&busybox_root()?), Packing::Gzip)?;
        Ok(Self { catalog, base })
    }

    /// A gzip layer of these entries.
    fn gzip(&mut self, entries: &[Entry]) -> Result<Layer> {
        self.catalog.layer(&archive(entries), Packing::Gzip)
    }

    fn config(&mut self, arch: &str, diff_ids: &[&str], config: &Value, form: Form) -> Descriptor {
        let history: Vec<Value> = diff_ids
            .iter()
            .enumerate()
            .map(|(n, _)| json!({"created": CREATED, "created_by": format!("layer {n}")}))
            .collect();
        let document = json!({
            "architecture": arch, "os": "linux", "created": CREATED, "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
        });
        let kind = if form == Form::Docker { media::DOCKER_CONFIG } else { media::CONFIG };
        self.catalog.document(kind, &document)
    }

    fn manifest(&mut self, config: &Descriptor, layers: &[Descriptor], form: Form) -> Descriptor {
        let kind = if form == Form::Docker { media::DOCKER_MANIFEST } else { media::MANIFEST };
        let layers: Vec<Value> = layers.iter().map(Descriptor::json).collect();
        let document = json!({
            "schemaVersion": 2, "mediaType": kind, "config": config.json(), "layers": layers,
        });
        self.catalog.document(kind, &document)
    }

    /// Builds and adds an image of one manifest.
    fn image(
        &mut self,
        names: &[&str],
        about: &'static str,
        layers: &[Layer],
        config: &Value,
        form: Form,
    ) -> &mut Image {
        let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = self.config("amd64", &diff_ids, config, form);
        let mut blobs: Vec<Descriptor> = layers.iter().map(|l| l.blob.clone()).collect();
        if form == Form::Docker {
            for blob in &mut blobs {
                blob.media_type = media::DOCKER_LAYER.into();
            }
        }
        self.assemble(names, about, config, blobs, form)
    }

    /// Adds an image of this config and these layers, whatever they are.
    fn assemble(
        &mut self,
        names: &[&str],
        about: &'static str,
        config: Descriptor,
        mut blobs: Vec<Descriptor>,
        form: Form,
    ) -> &mut Image {
        let root = self.manifest(&config, &blobs, form);
        blobs.push(config);
        self.push(names, about, vec![root], blobs)
    }

    /// Adds an image; the last of the manifests is the one that its names lead to.
    fn push(
        &mut self,
        names: &[&str],
        about: &'static str,
        manifests: Vec<Descriptor>,
        blobs: Vec<Descriptor>,
    ) -> &mut Image {
        let at = self.catalog.images.len();
        let root = manifests[manifests.len() - 1].clone();
        self.catalog.add(Image {
            names: names.iter().map(|n| (*n).to_string()).collect(),
            root,
            manifests,
            blobs,
            spoil: Vec::<Spoil>::new(),
            about,
        });
        &mut self.catalog.images[at]
    }
}

/// A small root: busybox with its applets as hard links, users, the usual folders.
fn busybox_root() -> Result<Vec<Entry>> {
    let list = std::process::Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .map_err(|source| Error::Run { program: BUSYBOX.into(), source })?;
    let mut applets: Vec<String> =
        String::from_utf8_lossy(&list.stdout).split_whitespace().map(str::to_string).collect();
    applets.sort();
    let mut out = vec![
        Entry::dir("bin"),
        Entry::file("bin/busybox", read(BUSYBOX)?).mode(0o755),
        Entry::dir("dev"),
        Entry::dir("etc"),
        Entry::file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\n\
             www-data:x:33:33:www-data:/var/www:/bin/sh\n\
             4000:x:0:0:a number is no name:/:/bin/sh\n\
             nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        ),
        Entry::file(
            "etc/group",
            "root:x:0:\nwww-data:x:33:\nextra:x:50:www-data\nusers:x:100:\n6:x:0:\nnogroup:x:65534:\n",
        ),
        Entry::dir("home"),
        Entry::dir("proc"),
        Entry::dir("root").mode(0o700),
        Entry::dir("run"),
        Entry::dir("sys"),
        Entry::dir("tmp").mode(0o1777),
        Entry::dir("usr"),
        Entry::symlink("usr/bin", "../bin"),
        Entry::dir("var"),
        Entry::dir("var/www").owner(33, 33),
    ];
    for applet in applets.iter().filter(|a| *a != "busybox") {
        out.push(Entry::hardlink(&format!("bin/{applet}"), "bin/busybox"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_input_same_digests() {
        let (a, b) = (build(&[]).unwrap(), build(&[]).unwrap());
        let digests = |c: &Catalog| -> Vec<String> {
            c.images.iter().map(|i| i.root.digest.clone()).collect()
        };
        assert_eq!(digests(&a), digests(&b));
        assert!(a.blobs.keys().eq(b.blobs.keys()));
    }

    #[test]
    fn every_blob_of_every_image_is_there_and_names_are_unique() {
        let catalog = build(&[]).unwrap();
        let mut names = std::collections::BTreeSet::new();
        for image in &catalog.images {
            for d in image.manifests.iter().chain(&image.blobs) {
                assert!(catalog.blobs.contains_key(&d.digest), "{}: {}", image.names[0], d.digest);
            }
            for name in &image.names {
                assert!(names.insert(name.clone()), "{name} twice");
            }
        }
    }

    #[test]
    fn one_image_brings_only_its_own_blobs() {
        let catalog = build(&["test/busybox:1"]).unwrap();
        assert_eq!(catalog.images.len(), 1);
        assert_eq!(catalog.blobs.len(), 3);
        assert!(matches!(build(&["test/none:1"]), Err(Error::UnknownImage { .. })));
    }
}
