//! The image index: which images there are, and by which names.
//!
//! One file for each image, `images/<hex of the image id>.json`, written durably. A name belongs to
//! one image at a time. Moving it writes the new owner's file first and the old owner's second;
//! each file has a generation, and if a power loss comes between the two, the file with the higher
//! generation has the name.
//!
//! Readers take a snapshot and never wait for a change.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::durable;
use crate::error::{Error, Result};
use crate::store::{Collected, ImagesOf};

/// The shortest prefix of an image id that is looked up.
const SHORTEST_PREFIX: usize = 3;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image's id: the digest of its config.
    pub id: Digest,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Its names with tags: `host/path:tag`.
    pub names: BTreeSet<String>,
    /// Its names with digests: `host/path@sha256:…`.
    pub digests: BTreeSet<String>,
    /// The bytes of the files of its layers when unpacked, and of its config.
    pub size: u64,
    /// The chain ids of its layers, lowest first.
    pub layers: Vec<Digest>,
    /// When it was pulled, or last pulled again.
    pub pulled_at: SystemTime,
}

/// How a record stands on the disk.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    /// Grows with each write of any record.
    generation: u64,
    image: ImageRecord,
}

/// All images at one moment.
#[derive(Debug, Default)]
pub struct ImageIndex {
    images: BTreeMap<Digest, Arc<ImageRecord>>,
    by_name: HashMap<String, Digest>,
}

impl ImageIndex {
    /// The images, ordered by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<ImageRecord>> {
        self.images.values()
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// The image with an id.
    pub fn get(&self, id: &Digest) -> Option<&Arc<ImageRecord>> {
        self.images.get(id)
    }

    /// The image that a text stands for: a full name with tag, a full name with digest, an id with
    /// or without `sha256:`, or the beginning of an id (3 digits or more) that fits one image.
    ///
    /// # Errors
    /// [`Error::AmbiguousId`] if it is the beginning of several ids.
    pub fn resolve(&self, text: &str) -> Result<Option<&Arc<ImageRecord>>> {
        if let Some(id) = self.by_name.get(text) {
            return Ok(self.images.get(id));
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let possible = (SHORTEST_PREFIX..=64).contains(&hex.len())
            && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !possible {
            return Ok(None);
        }
        // Ids are ordered: those with the prefix stand next to each other.
        let Ok(lowest) = Digest::from_hex(&format!("{hex:0<64}")) else { return Ok(None) };
        let mut fitting =
            self.images.range(lowest..).take_while(|(id, _)| id.hex().starts_with(hex));
        let first = fitting.next().map(|(_, image)| image);
        if fitting.next().is_some() {
            return Err(Error::AmbiguousId { prefix: text.to_owned() });
        }
        Ok(first)
    }

    fn new(images: BTreeMap<Digest, (u64, Arc<ImageRecord>)>) -> Self {
        let mut by_age: Vec<_> = images.values().collect();
        by_age.sort_by_key(|(generation, _)| *generation);
        let mut by_name = HashMap::new();
        for (_, image) in by_age {
            for name in image.names.iter().chain(&image.digests) {
                by_name.insert(name.clone(), image.id.clone());
            }
        }
        let images = images.into_iter().map(|(id, (_, image))| (id, image)).collect();
        Self { images, by_name }
    }
}

/// The index with its folder.
pub(crate) struct Images {
    folder: PathBuf,
    changes: Mutex<Changes>,
    snapshot: RwLock<Arc<ImageIndex>>,
}

/// What a change needs to know; its lock is what makes changes come one after the other.
pub(crate) struct Changes {
    generation: u64,
    images: BTreeMap<Digest, (u64, Arc<ImageRecord>)>,
    /// Images of which a part is missing or damaged. Their other parts are kept for the next pull.
    incomplete: BTreeMap<Digest, Arc<ImageRecord>>,
    /// There were images of which nothing is known, so that anything may be a part of one.
    damaged: bool,
}

impl Changes {
    /// Whether nothing can be said to be needed by no image.
    pub(crate) fn damaged(&self) -> bool {
        self.damaged
    }

    /// Images that are not listed, because a part of them is missing.
    pub(crate) fn incomplete(&self) -> impl Iterator<Item = &Arc<ImageRecord>> {
        self.incomplete.values()
    }
}

/// What the folder held when it was read.
pub(crate) struct Loaded {
    stored: Vec<Stored>,
    /// There are records that could not be read, now or since the machine was booted.
    damaged: bool,
}

impl Loaded {
    /// Reads all records; what cannot be read is put aside.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut stored = Vec::new();
        let mut damaged = false;
        for entry in fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
            let path = entry.map_err(|e| Error::io("list", folder, e))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if durable::is_aside(name) {
                damaged = true;
                continue;
            }
            let Some(hex) = name.strip_suffix(".json") else { continue };
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(e) => {
                    damaged = true;
                    durable::put_aside(&path, &e);
                    continue;
                }
            };
            let problem = match serde_json::from_slice::<Stored>(&bytes) {
                Ok(record) if record.image.id.hex() == hex => {
                    stored.push(record);
                    continue;
                }
                Ok(_) => "the record is another image's".to_owned(),
                Err(e) => e.to_string(),
            };
            damaged = true;
            durable::put_aside(&path, &problem);
        }
        Ok(Self { stored, damaged })
    }
}

impl Images {
    pub(crate) fn new(
        folder: PathBuf,
        loaded: Loaded,
        complete: impl Fn(&ImageRecord) -> bool,
    ) -> Self {
        let mut stored = loaded.stored;
        let generation = stored.iter().map(|record| record.generation).max().unwrap_or(0);
        let mut incomplete = BTreeMap::new();
        stored.retain(|record| {
            let complete = complete(&record.image);
            if !complete {
                let image = &record.image;
                tracing::warn!(image = %image.id, names = ?image.names, "incomplete, so not listed");
                incomplete.insert(image.id.clone(), Arc::new(image.clone()));
            }
            complete
        });
        // Newest first: the first that claims a name has it.
        stored.sort_by_key(|record| std::cmp::Reverse(record.generation));
        let mut taken = HashSet::new();
        let mut images = BTreeMap::new();
        for Stored { generation, mut image } in stored {
            image.names.retain(|name| taken.insert(name.clone()));
            images.insert(image.id.clone(), (generation, Arc::new(image)));
        }
        let snapshot = RwLock::new(Arc::new(ImageIndex::new(images.clone())));
        let damaged = loaded.damaged;
        let changes = Mutex::new(Changes { generation, images, incomplete, damaged });
        Self { folder, changes, snapshot }
    }

    /// Takes the images that need a layer out of the index: it is damaged.
    pub(crate) fn set_incomplete(&self, changes: &mut Changes, chain_id: &Digest) {
        let hurt = |(_, image): &(u64, Arc<ImageRecord>)| image.layers.contains(chain_id);
        let hurt: Vec<Digest> =
            changes.images.iter().filter(|(_, i)| hurt(i)).map(|(id, _)| id.clone()).collect();
        for id in hurt {
            if let Some((_, image)) = changes.images.remove(&id) {
                tracing::warn!(image = %id, names = ?image.names, "incomplete, so not listed");
                changes.incomplete.insert(id, image);
            }
        }
        self.publish(changes);
    }

    /// Forgets incomplete images that have lost their last name to another.
    fn outdate(&self, changes: &mut Changes, names: &BTreeSet<String>) -> Result<()> {
        let mut outdated = Vec::new();
        for (id, image) in &mut changes.incomplete {
            if !image.names.is_disjoint(names) {
                Arc::make_mut(image).names.retain(|name| !names.contains(name));
                if image.names.is_empty() {
                    outdated.push(id.clone());
                }
            }
        }
        for id in outdated {
            durable::remove(&self.folder, &file_name(&id))?;
            changes.incomplete.remove(&id);
        }
        Ok(())
    }

    /// Keeps everyone else from changing the index.
    pub(crate) fn changes(&self) -> MutexGuard<'_, Changes> {
        // What is in memory changes only after the disk did, in one step.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index(&self) -> Arc<ImageIndex> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, changes: &Changes) {
        let index = Arc::new(ImageIndex::new(changes.images.clone()));
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = index;
    }

    /// Writes one record durably and takes it into the working copy.
    fn write(&self, changes: &mut Changes, image: ImageRecord) -> Result<()> {
        let generation = changes.generation + 1;
        let name = file_name(&image.id);
        let stored = Stored { generation, image };
        let bytes = serde_json::to_vec(&stored)
            .map_err(|source| Error::Record { path: self.folder.join(&name), source })?;
        // Counted even if the write fails: the rename may have happened.
        changes.generation = generation;
        durable::write(&self.folder, &name, &bytes)?;
        let image = stored.image;
        changes.images.insert(image.id.clone(), (generation, Arc::new(image)));
        Ok(())
    }

    /// Takes names away from all images but `owner`.
    fn take_names(
        &self,
        changes: &mut Changes,
        names: &BTreeSet<String>,
        owner: &Digest,
    ) -> Result<()> {
        let losers: Vec<Arc<ImageRecord>> = changes
            .images
            .values()
            .map(|(_, image)| image)
            .filter(|image| image.id != *owner && !image.names.is_disjoint(names))
            .cloned()
            .collect();
        for loser in losers {
            let mut image = ImageRecord::clone(&loser);
            image.names.retain(|name| !names.contains(name));
            self.write(changes, image)?;
        }
        Ok(())
    }
}

fn file_name(id: &Digest) -> String {
    format!("{}.json", id.hex())
}

impl ImagesOf<'_> {
    /// All images at this moment; cheap, and never waits for the disk.
    pub fn list(&self) -> Arc<ImageIndex> {
        self.images().index()
    }

    /// The image with an id.
    pub fn get(&self, id: &Digest) -> Option<Arc<ImageRecord>> {
        self.list().get(id).cloned()
    }

    /// Images that are not listed, because a part of them is missing or damaged; what is there of
    /// them is kept until they are pulled again, removed or forgotten.
    pub fn incomplete(&self) -> Vec<Arc<ImageRecord>> {
        self.images().changes().incomplete().cloned().collect()
    }

    /// Forgets the incomplete images, and that there were damaged records; [`Store::gc`](crate::Store::gc) removes what is left of them.
    pub fn forget_incomplete(&self) -> Result<()> {
        let images = self.images();
        let mut changes = images.changes();
        changes.damaged = false;
        while let Some(id) = changes.incomplete.keys().next().cloned() {
            durable::remove(&images.folder, &file_name(&id))?;
            changes.incomplete.remove(&id);
        }
        Ok(())
    }

    /// The image that a text stands for; see [`ImageIndex::resolve`].
    pub fn resolve(&self, text: &str) -> Result<Option<Arc<ImageRecord>>> {
        Ok(self.list().resolve(text)?.cloned())
    }

    /// Publishes an image. Its layers and content must be in the store.
    ///
    /// If the image is there already, it keeps the names it had besides those it is given. A name
    /// that another image has moves.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`] or [`Error::UnknownContent`] if a part is not there.
    pub fn add(&self, mut image: ImageRecord) -> Result<Arc<ImageRecord>> {
        let images = self.images();
        let mut changes = images.changes();
        if let Some(missing) = image.layers.iter().find(|layer| !self.store.has_layer(layer)) {
            return Err(Error::UnknownLayer { chain_id: missing.clone() });
        }
        for digest in [&image.id, &image.manifest] {
            if !self.store.inner.content.join(digest.hex()).is_file() {
                return Err(Error::UnknownContent { digest: digest.clone() });
            }
        }
        // Whoever renamed the layers into their places may not have come to this.
        durable::sync_folder(&self.store.inner.overlay)?;
        let names = image.names.clone();
        if let Some(old) = changes.incomplete.remove(&image.id) {
            let free = |name: &&String| !images.index().by_name.contains_key(*name);
            image.names.extend(old.names.iter().filter(free).cloned());
            image.digests.extend(old.digests.iter().filter(free).cloned());
        }
        if let Some((_, old)) = changes.images.get(&image.id) {
            image.names.extend(old.names.iter().cloned());
            image.digests.extend(old.digests.iter().cloned());
        }
        let id = image.id.clone();
        let done = images
            .write(&mut changes, image)
            .and_then(|()| images.take_names(&mut changes, &names, &id))
            .and_then(|()| images.outdate(&mut changes, &names));
        images.publish(&changes);
        done?;
        changes.images.get(&id).map(|(_, image)| image.clone()).ok_or(Error::UnknownImage { id })
    }

    /// Gives an image a name with a tag, taking it from the image that has it.
    pub fn tag(&self, name: &str, id: &Digest) -> Result<()> {
        let images = self.images();
        let mut changes = images.changes();
        let Some((_, image)) = changes.images.get(id) else {
            return Err(Error::UnknownImage { id: id.clone() });
        };
        let names = BTreeSet::from([name.to_owned()]);
        let mut image = ImageRecord::clone(image);
        let new = image.names.insert(name.to_owned());
        let done = if new { images.write(&mut changes, image) } else { Ok(()) }
            .and_then(|()| images.take_names(&mut changes, &names, id));
        images.publish(&changes);
        done
    }

    /// Takes a name with a tag, or one with a digest, from the images that have it. The images stay.
    /// Says whether an image had it.
    pub fn untag(&self, name: &str) -> Result<bool> {
        let images = self.images();
        let mut changes = images.changes();
        let owners: Vec<Arc<ImageRecord>> = changes
            .images
            .values()
            .map(|(_, image)| image)
            .filter(|image| image.names.contains(name) || image.digests.contains(name))
            .cloned()
            .collect();
        let mut done = Ok(());
        for owner in &owners {
            let mut image = ImageRecord::clone(owner);
            image.names.remove(name);
            image.digests.remove(name);
            done = done.and_then(|()| images.write(&mut changes, image));
        }
        images.publish(&changes);
        done.map(|()| !owners.is_empty())
    }

    /// Removes an image with all its names, then those of its layers and content that nothing else
    /// needs. Nothing to do if it is not there.
    ///
    /// If this fails after the record is gone, [`Store::gc`](crate::Store::gc) does the rest.
    pub fn remove(&self, id: &Digest) -> Result<Collected> {
        let images = self.images();
        let mut changes = images.changes();
        let listed = changes.images.get(id).map(|(_, image)| image);
        let Some(image) = listed.or(changes.incomplete.get(id)).cloned() else {
            return Ok(Collected::default());
        };
        durable::remove(&images.folder, &file_name(id))?;
        changes.images.remove(id);
        changes.incomplete.remove(id);
        images.publish(&changes);
        let parts: HashSet<Digest> =
            image.layers.iter().chain([&image.id, &image.manifest]).cloned().collect();
        let (collected, trees) = self.store.unlink_unneeded(&changes, Some(&parts))?;
        drop(changes);
        self.store.remove_trees(trees)?;
        Ok(collected)
    }

    fn images(&self) -> &Images {
        &self.store.inner.images
    }
}
