//! The store as a whole: opening, locking, and what keeps a layer alive.
//!
//! Locks, in the order in which they may be taken:
//!
//! ```text
//! Images::changes   one change of the image index at a time; held over its disk writes
//! Inner::state      layers, holds and pins; held over a rename at most, never over a sync
//! Images::snapshot  the published index; held for an Arc's clone
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use failpoint::step;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::check::Checks;
use crate::durable::{self, TMP_PREFIX};
use crate::error::{Error, Result};
use crate::images::{Changes, Images, Loaded};
use crate::layers::{self, LayerMeta};
use crate::tree::{self, Usage};
use crate::{Digest, content};

/// How to open a store.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// The machine's boot id. With it, layers of earlier boots are looked at before they are used.
    pub boot_id: Option<String>,
    /// Do not use the kernel's `lowerdir+` even where it is there, but a classic `mount(2)`.
    pub classic_mount: bool,
}

/// A store of images and layers; clones share it.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) content: PathBuf,
    pub(crate) overlay: PathBuf,
    pub(crate) options: Options,
    pub(crate) state: Mutex<State>,
    pub(crate) images: Images,
    /// Locked as long as it is open.
    lock: File,
}

/// Layers, and what needs them.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) layers: BTreeMap<Digest, Arc<LayerMeta>>,
    pub(crate) usage: Usage,
    holds: HashMap<String, Vec<Digest>>,
    pins: HashMap<Digest, usize>,
    pub(crate) checks: Checks,
}

impl State {
    pub(crate) fn insert(&mut self, meta: Arc<LayerMeta>) {
        self.usage.bytes += meta.disk_bytes;
        self.usage.inodes += meta.inodes;
        if let Some(old) = self.layers.insert(meta.chain_id.clone(), meta) {
            self.usage.bytes -= old.disk_bytes;
            self.usage.inodes -= old.inodes;
        }
    }

    pub(crate) fn forget(&mut self, chain_id: &Digest) {
        self.checks.forget(chain_id);
        if let Some(old) = self.layers.remove(chain_id) {
            self.usage.bytes -= old.disk_bytes;
            self.usage.inodes -= old.inodes;
        }
    }

    /// Everything that holders and pins keep alive.
    fn kept(&self) -> HashSet<&Digest> {
        self.holds.values().flatten().chain(self.pins.keys()).collect()
    }
}

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// How many layers.
    pub layers: u64,
    /// How many manifests and configs.
    pub content: u64,
    /// The layers' bytes and inodes on disk.
    pub usage: Usage,
}

impl Store {
    /// Opens the store below `root`, making it if it is not there.
    ///
    /// What was under way when the last process ended is removed. A record that cannot be read is
    /// renamed to `*.damaged`, which the first opening after a boot deletes; an image whose layers or
    /// content are not all there is left out of the index, and what is there of it stays (pulling it
    /// again completes it). Nothing that was published and is whole is deleted.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process, or another `Store` of this one, has it open.
    pub fn open(root: &Path, options: Options) -> Result<Self> {
        let root = std::path::absolute(root).map_err(|e| Error::io("resolve", root, e))?;
        durable::make_folder(&root)?;
        let lock = lock(&root)?;
        let content = root.join("content").join("sha256");
        let overlay = root.join("layers").join("overlay");
        let images = root.join("images");
        for folder in [&content, &overlay, &images] {
            durable::make_folder(folder)?;
            remove_stale(folder, |name| name.starts_with(TMP_PREFIX))?;
            // What was renamed when the last process ended counts from here on.
            durable::sync_folder(folder)?;
        }
        let checks = Checks::begin(&root, options.boot_id.as_deref())?;
        if checks.booted {
            remove_stale(&overlay, durable::is_aside)?;
            remove_stale(&images, durable::is_aside)?;
        }
        let mut state = State { checks, ..State::default() };
        for meta in layers::load(&overlay)? {
            state.checks.found(&meta.chain_id);
            state.insert(Arc::new(meta));
        }
        let whole = |digest: &Digest| content::read(&content, digest).is_ok_and(|b| b.is_some());
        let loaded = Loaded::read(&images)?;
        let images = Images::new(images, loaded, |image| {
            image.layers.iter().all(|layer| state.layers.contains_key(layer))
                && [&image.id, &image.manifest].into_iter().all(whole)
        });
        let state = Mutex::new(state);
        let inner = Inner { root, content, overlay, options, state, images, lock };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Lets another process open the store, before this one ends. Nothing of the store may be used after
    /// that, nor be under way.
    pub fn let_go(&self) {
        // It fails for a descriptor that is no file's; this is one's.
        let _ = rustix::fs::flock(&self.inner.lock, FlockOperation::Unlock);
    }

    /// The folder the store lies in.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The folder with the layers; the file system that images use is the one it is on.
    pub fn layers_folder(&self) -> &Path {
        &self.inner.overlay
    }

    /// The image index.
    pub fn images(&self) -> ImagesOf<'_> {
        ImagesOf { store: self }
    }

    /// The bytes and inodes that all layers take, from what was counted when they were unpacked.
    pub fn layers_usage(&self) -> Usage {
        self.state().usage
    }

    /// What is known of a layer, if it is there.
    pub fn layer(&self, chain_id: &Digest) -> Option<Arc<LayerMeta>> {
        self.state().layers.get(chain_id).cloned()
    }

    /// Whether a layer is there.
    pub fn has_layer(&self, chain_id: &Digest) -> bool {
        self.state().layers.contains_key(chain_id)
    }

    /// Declares that `holder` (a container, say) needs these layers, in place of what it needed
    /// before. Kept in memory only: the caller declares its holders again after opening the store.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`] if one of them is not there; then nothing changes.
    pub fn hold(&self, holder: &str, chain_ids: &[Digest]) -> Result<()> {
        let mut state = self.state();
        if let Some(missing) = chain_ids.iter().find(|id| !state.layers.contains_key(*id)) {
            return Err(Error::UnknownLayer { chain_id: missing.clone() });
        }
        state.holds.insert(holder.to_owned(), chain_ids.to_vec());
        Ok(())
    }

    /// Ends what [`Store::hold`] declared; the layers go with the next collection.
    pub fn release(&self, holder: &str) {
        self.state().holds.remove(holder);
    }

    /// Keeps layers (by chain id) and content (by digest) from being collected, whether they are
    /// there already or not, until the guard is dropped. For a pull under way.
    pub fn pin(&self, digests: impl IntoIterator<Item = Digest>) -> Pin {
        let pin = Pin { store: self.clone(), digests: Mutex::default() };
        for digest in digests {
            pin.add(digest);
        }
        pin
    }

    /// Removes every layer and all content that no image, holder or pin needs. Nothing if there were
    /// images' records that could not be read: until the next boot, or [`ImagesOf::forget_incomplete`],
    /// anything may be a part of one that is pulled again.
    pub fn gc(&self) -> Result<Collected> {
        let changes = self.inner.images.changes();
        if changes.damaged() {
            return Ok(Collected::default());
        }
        let (collected, trees) = self.unlink_unneeded(&changes, None)?;
        drop(changes);
        self.remove_trees(trees)?;
        Ok(collected)
    }

    /// Tries again to remove what could not be removed: what was written halfway, and trees of layers
    /// that are gone.
    ///
    /// # Errors
    /// The first one; everything is tried, and again with the next call.
    pub fn sweep(&self) -> Result<()> {
        self.remove_trees(durable::take_left(&self.inner.root))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is whole before anything can panic.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renames layers that nothing needs out of the way and removes content that nothing needs.
    /// The caller keeps the image index from changing (that is `changes`), and deletes the trees
    /// afterwards.
    ///
    /// With `among`, only these digests are looked at.
    pub(crate) fn unlink_unneeded(
        &self,
        changes: &Changes,
        among: Option<&HashSet<Digest>>,
    ) -> Result<(Collected, Vec<PathBuf>)> {
        let index = self.inner.images.index();
        let mut needed: HashSet<&Digest> = HashSet::new();
        for image in index.iter().chain(changes.incomplete()) {
            needed.extend(image.layers.iter().chain([&image.id, &image.manifest]));
        }
        let content = match among {
            Some(among) => among.iter().cloned().collect(),
            None => content::list(&self.inner.content)?,
        };
        let mut collected = Collected::default();
        let mut trees = Vec::new();
        let mut state = self.state();
        let kept = state.kept();
        let doomed: Vec<Arc<LayerMeta>> = state
            .layers
            .values()
            .filter(|layer| among.is_none_or(|among| among.contains(&layer.chain_id)))
            .filter(|layer| !needed.contains(&layer.chain_id) && !kept.contains(&layer.chain_id))
            .cloned()
            .collect();
        let unneeded: Vec<Digest> = content
            .into_iter()
            .filter(|digest| !needed.contains(digest) && !kept.contains(digest))
            .collect();
        for layer in doomed {
            let from = self.inner.overlay.join(layer.chain_id.hex());
            let to = durable::tmp_path(&self.inner.overlay);
            match step!("layer: move away", fs::rename(&from, &to)) {
                Ok(()) => trees.push(to),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("remove", &from, e)),
            }
            state.forget(&layer.chain_id);
            collected.layers += 1;
            collected.usage.bytes += layer.disk_bytes;
            collected.usage.inodes += layer.inodes;
        }
        // Under the same lock: a pin of a pull that begins now comes before or after all of it.
        for digest in unneeded {
            let path = self.inner.content.join(digest.hex());
            match step!("store: remove content", fs::remove_file(&path)) {
                Ok(()) => collected.content += 1,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("remove", &path, e)),
            }
        }
        Ok((collected, trees))
    }

    /// Deletes trees that were renamed out of the way.
    pub(crate) fn remove_trees(&self, trees: Vec<PathBuf>) -> Result<()> {
        if trees.is_empty() {
            return Ok(());
        }
        durable::sync_folder(&self.inner.overlay)?;
        let mut first = Ok(());
        for path in trees {
            if let Err(e) = step!("layer: remove", tree::remove_tree(&path)) {
                durable::note_left(&path);
                if first.is_ok() {
                    first = Err(e);
                }
            }
        }
        first
    }
}

/// The image index of a store; see [`Store::images`].
#[derive(Clone, Copy)]
pub struct ImagesOf<'a> {
    pub(crate) store: &'a Store,
}

/// Keeps layers and content from being collected; see [`Store::pin`].
pub struct Pin {
    store: Store,
    digests: Mutex<Vec<Digest>>,
}

impl Pin {
    /// Pins one more.
    pub fn add(&self, digest: Digest) {
        *self.store.state().pins.entry(digest.clone()).or_default() += 1;
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).push(digest);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let digests =
            std::mem::take(self.digests.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut state = self.store.state();
        for digest in digests {
            if let Some(count) = state.pins.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(&digest);
                }
            }
        }
    }
}

/// Takes the lock of a store; it ends with the file, and so with the process.
fn lock(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let file = File::options()
        // no step: whether it is there says nothing.
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io("open", &path, e))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Error::Locked { root: root.to_owned() }),
        Err(e) => Err(Error::io("lock", &path, e)),
    }
}

/// Removes what was under way when the last process ended.
fn remove_stale(folder: &Path, is_stale: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        if entry.file_name().to_str().is_some_and(&is_stale)
            && let Err(e) = step!("store: remove one cut short", tree::remove_tree(&entry.path()))
        {
            // It is in nobody's way.
            durable::note_left(&entry.path());
            tracing::warn!(path = %entry.path().display(), error = %e, "cannot remove");
        }
    }
    Ok(())
}
