//! Layers: how one comes into being, and what is known of it.
//!
//! See the crate's documentation for the states. Several layers can be unpacked at once, each in a
//! folder of its own. Unpacking syncs nothing; committing syncs the file system once.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use failpoint::step;
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::check::Extent;
use crate::durable::{self, TMP_PREFIX};
use crate::error::{Error, Result};
use crate::stream::{Compression, Limits};
use crate::{Digest, Store, tree, unpack};

/// The name of a layer's files in its folder.
pub(crate) const DIFF: &str = "diff";
/// The name of a layer's record in its folder.
const META: &str = "meta.json";

/// Owner and mode of the root of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootAttributes {
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What is known of a layer that is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMeta {
    /// What the layer is called in the store.
    pub chain_id: Digest,
    /// The chain id of the layer below; none for the lowest.
    pub parent: Option<Digest>,
    /// The digest of its uncompressed archive.
    pub diff_id: Digest,
    /// The digest of what was received.
    pub compressed: Digest,
    /// The bytes of what was received.
    pub compressed_size: u64,
    /// The bytes in its files.
    pub size: u64,
    /// About what it takes on the disk, in bytes.
    pub disk_bytes: u64,
    /// The inodes that it takes.
    pub inodes: u64,
    /// Owner and mode of the root, if the layer says them.
    pub root: Option<RootAttributes>,
    /// The layer hides all that is below it.
    #[serde(default)]
    pub root_opaque: bool,
    /// What it is compared with; none in layers of older releases.
    #[serde(default)]
    pub extent: Option<Extent>,
    /// When it was committed.
    pub created: SystemTime,
}

/// What a layer must be to be committed; see [`Unpacked::commit`].
#[derive(Debug, Clone)]
pub struct CommitLayer<'a> {
    /// What to call it.
    pub chain_id: &'a Digest,
    /// The chain id of the layer below; none for the lowest.
    pub parent: Option<&'a Digest>,
    /// The diff id that the image's config gives.
    pub diff_id: &'a Digest,
    /// The digest that the image's manifest gives; not compared if there is none.
    pub compressed: Option<&'a Digest>,
}

/// A folder under way; removed with all that is in it unless it was published.
#[derive(Debug)]
struct Tmp {
    path: PathBuf,
    armed: bool,
}

impl Drop for Tmp {
    fn drop(&mut self) {
        if self.armed
            && let Err(e) = tree::remove_tree(&self.path)
        {
            durable::note_left(&self.path);
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove");
        }
    }
}

/// A layer about to be unpacked.
pub struct LayerWriter {
    store: Store,
    tmp: Tmp,
}

/// A layer that is unpacked, but not yet in the store. Dropping it removes it.
pub struct Unpacked {
    store: Store,
    tmp: Tmp,
    /// The digest of the uncompressed archive.
    pub diff_id: Digest,
    /// The digest of what was read.
    pub compressed: Digest,
    /// The bytes of what was read.
    pub compressed_size: u64,
    /// The bytes in its files.
    pub size: u64,
    /// About what it takes on the disk, in bytes.
    pub disk_bytes: u64,
    /// The inodes that it takes.
    pub inodes: u64,
    /// How many entries its archive has.
    pub entries: u64,
    /// Extended attributes that the file system does not keep, and that were left out.
    pub skipped_xattrs: u64,
    /// Owner and mode of the root, if the archive says them.
    pub root: Option<RootAttributes>,
    /// The layer hides all that is below it.
    pub root_opaque: bool,
}

impl Store {
    /// Begins a layer.
    pub fn begin_layer(&self) -> Result<LayerWriter> {
        let path = durable::tmp_path(&self.inner.overlay);
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        step!("layer: make folder", builder.create(&path))
            .map_err(|e| Error::io("create", &path, e))?;
        let tmp = Tmp { path, armed: true };
        let diff = tmp.path.join(DIFF);
        let mode = fs::Permissions::from_mode(0o755);
        step!("layer: make root", fs::create_dir(&diff))
            .and_then(|()| step!("layer: set mode of root", fs::set_permissions(&diff, mode)))
            .map_err(|e| Error::io("create", &diff, e))?;
        Ok(LayerWriter { store: self.clone(), tmp })
    }

    /// The folder with a layer's files.
    pub(crate) fn diff(&self, chain_id: &Digest) -> PathBuf {
        self.inner.overlay.join(chain_id.hex()).join(DIFF)
    }
}

impl LayerWriter {
    /// Reads a layer to its end and unpacks it, in one pass.
    ///
    /// `reader` is read on a second thread, which also decompresses; this one hashes and writes. It
    /// returns when both are done, so a reader should not wait for ever.
    ///
    /// # Errors
    /// [`Error::Source`] if the reader fails, [`Error::Decompress`] and [`Error::Archive`] for a
    /// damaged layer, [`Error::Entry`] for an entry that is refused, [`Error::LayerTooLarge`],
    /// [`Error::TooManyEntries`] and [`Error::TrailingData`] at the limits, [`Error::NoSpace`] if
    /// the disk is full. What was written is removed.
    pub fn unpack(
        self,
        reader: impl Read + Send,
        compression: Compression,
        limits: &Limits,
    ) -> Result<Unpacked> {
        let diff = self.tmp.path.join(DIFF);
        let done = step!("layer: unpack", unpack::unpack(&diff, reader, compression, limits))?;
        Ok(Unpacked {
            store: self.store,
            tmp: self.tmp,
            diff_id: done.stream.diff_id,
            compressed: done.stream.compressed,
            compressed_size: done.stream.compressed_size,
            size: done.written.bytes,
            disk_bytes: done.written.disk_bytes,
            inodes: done.written.inodes,
            entries: done.written.entries,
            skipped_xattrs: done.written.skipped_xattrs,
            root: done.written.root,
            root_opaque: done.written.root_opaque,
        })
    }
}

impl Unpacked {
    /// Publishes the layer durably. If a layer of that chain id is there already, this one is
    /// dropped and that one is the answer.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] if the layer is not what it should be.
    pub fn commit(mut self, layer: &CommitLayer<'_>) -> Result<Arc<LayerMeta>> {
        let same = |what, expected: &Digest, actual: &Digest| {
            if expected == actual {
                Ok(())
            } else {
                let (expected, actual) = (expected.clone(), actual.clone());
                Err(Error::DigestMismatch { what, expected, actual })
            }
        };
        if let Some(compressed) = layer.compressed {
            same("compressed layer", compressed, &self.compressed)?;
        }
        same("diff id", layer.diff_id, &self.diff_id)?;
        let overlay = self.store.inner.overlay.clone();
        if let Some(there) = self.store.layer(layer.chain_id) {
            durable::sync_folder(&overlay)?;
            return Ok(there);
        }
        let meta = LayerMeta {
            chain_id: layer.chain_id.clone(),
            parent: layer.parent.cloned(),
            diff_id: self.diff_id.clone(),
            compressed: self.compressed.clone(),
            compressed_size: self.compressed_size,
            size: self.size,
            disk_bytes: self.disk_bytes,
            inodes: self.inodes,
            root: self.root,
            root_opaque: self.root_opaque,
            extent: Some(tree::extent(&self.tmp.path.join(DIFF))?),
            created: SystemTime::now(),
        };
        let path = self.tmp.path.join(META);
        let bytes = serde_json::to_vec(&meta)
            .map_err(|source| Error::Record { path: path.clone(), source })?;
        step!("layer: write record", fs::write(&path, bytes))
            .map_err(|e| Error::io("write", &path, e))?;
        // Once for the whole layer: a sync of each file costs far more.
        step!(
            "layer: sync",
            File::open(&self.tmp.path)
                .and_then(|folder| rustix::fs::syncfs(&folder).map_err(Into::into))
        )
        .map_err(|e| Error::io("sync", &self.tmp.path, e))?;
        let meta = self.publish(meta)?;
        durable::sync_folder(&overlay)?;
        Ok(meta)
    }

    /// Renames the folder to the chain id, unless another was faster.
    fn publish(&mut self, meta: LayerMeta) -> Result<Arc<LayerMeta>> {
        let target = self.store.inner.overlay.join(meta.chain_id.hex());
        let mut state = self.store.state();
        if let Some(there) = state.layers.get(&meta.chain_id) {
            return Ok(there.clone());
        }
        let cwd = rustix::fs::CWD;
        let rename = || {
            // no step: it is one below.
            rustix::fs::renameat_with(cwd, &self.tmp.path, cwd, &target, RenameFlags::NOREPLACE)
        };
        let renamed = match step!("layer: publish", rename()) {
            // The store does not know it, so it is of no use.
            Err(Errno::EXIST) => {
                durable::put_aside(&target, &"a layer that the store does not know");
                rename()
            }
            other => other,
        };
        renamed.map_err(|e| Error::io("publish", &target, e))?;
        self.tmp.armed = false;
        let meta = Arc::new(meta);
        state.insert(meta.clone());
        state.checks.passed(&meta.chain_id);
        Ok(meta)
    }
}

/// Reads the records of all layers; a layer whose record cannot be read is put aside.
pub(crate) fn load(overlay: &Path) -> Result<Vec<LayerMeta>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(overlay).map_err(|e| Error::io("list", overlay, e))? {
        let path = entry.map_err(|e| Error::io("list", overlay, e))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with(TMP_PREFIX) || durable::is_aside(name) || !path.is_dir() {
            continue;
        }
        let meta = match fs::read(path.join(META)) {
            Ok(bytes) => serde_json::from_slice::<LayerMeta>(&bytes),
            Err(e) => {
                durable::put_aside(&path, &e);
                continue;
            }
        };
        match meta {
            Ok(meta) if meta.chain_id.hex() == name && path.join(DIFF).is_dir() => found.push(meta),
            Ok(_) => durable::put_aside(&path, &"the record does not fit the layer"),
            Err(e) => durable::put_aside(&path, &e),
        }
    }
    Ok(found)
}
