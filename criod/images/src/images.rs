//! The images that are here: found by name or id, listed, removed, measured.
//!
//! A text is looked up like this; the first that fits wins:
//!
//! ```text
//! 64 hex digits, with or without "sha256:"   the id
//! a name            itself, with `latest` if it says no more; a short one as the registries'
//!                   configuration completes it, in order, and at last below docker.io
//! repo@sha256:…     what the name stood for when it was pulled, or the platform's manifest
//! 3 digits or more  the beginning of one id
//! ```

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use registry::{Client, ImageConfig, Reference, ShortNameMode};
use storage::{Digest, ImageIndex, ImageRecord, Store};
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::layers::Unpacking;
use crate::options::{Conf, Options, Pinned};
use crate::progress::PullProgress;
use crate::pull::InFlight;
use crate::user;

/// An image's id: `sha256:` and 64 hex digits, the digest of its config.
pub type ImageId = String;

/// What [`Images::collect_garbage`] removed.
pub use storage::Collected;

/// What is known of an image.
#[derive(Debug, Clone)]
pub struct ImageInfo {
    /// Its id.
    pub id: ImageId,
    /// Its names with tags, in order.
    pub repo_tags: Vec<String>,
    /// Its names with digests, in order.
    pub repo_digests: Vec<String>,
    /// The bytes of its unpacked files and its config; never 0.
    pub size: u64,
    /// The user id that its config says (0 if it says nothing); none if it says a name.
    pub uid: Option<i64>,
    /// The user's name that its config says, or empty.
    pub username: String,
    /// Whether the kubelet must leave it alone.
    pub pinned: bool,
    /// Its config, without the history of how it was built.
    pub config: Arc<ImageConfig>,
    /// The chain ids of its layers, lowest first.
    pub layers: Vec<Digest>,
}

/// What a container needs of its image.
#[derive(Debug, Clone)]
pub struct ContainerImage {
    /// The image's id.
    pub id: ImageId,
    /// A name with a digest, or the id if it has none.
    pub image_ref: String,
    /// The name asked for, in full; if an id was asked for, one of the image's names or the id.
    pub name: String,
    /// The chain ids of its layers, lowest first.
    pub layers: Vec<Digest>,
    /// Its config, without the history of how it was built.
    pub config: Arc<ImageConfig>,
}

/// How much the images take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsInfo {
    /// Bytes on the disk.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes: u64,
    /// The folder of the store, which is there as long as the daemon runs.
    pub mountpoint: PathBuf,
}

/// The images of this machine; clones share it.
#[derive(Clone)]
pub struct Images(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) options: Options,
    pub(crate) conf: Conf,
    pub(crate) client: Client,
    pinned: RwLock<Pinned>,
    configs: Mutex<HashMap<Digest, Arc<ImageConfig>>>,
    pub(crate) in_flight: InFlight,
    pub(crate) unpacking: Arc<Unpacking>,
    pub(crate) slots: Arc<Semaphore>,
}

impl Images {
    /// The images of a store. Reads the registries' configuration and every image's config.
    ///
    /// Containers must hold their layers ([`Store::hold`]) before anything is pulled or removed: a
    /// pull that fails removes what nobody needs.
    ///
    /// # Errors
    /// [`Error::Registries`] if the configuration cannot be read.
    pub fn new(store: Arc<Store>, options: Options) -> Result<Images, Error> {
        let conf = Conf::new(&options)?;
        let mut client = options.client.clone();
        if let Some(timeout) = options.pull_progress_timeout.filter(|t| !t.is_zero()) {
            client.stall_timeout = Some(timeout);
        }
        let pinned = RwLock::new(Pinned::new(&options.pinned));
        let slots = Arc::new(Semaphore::new(options.layers_at_once.max(1)));
        let images = Images(Arc::new(Inner {
            store: Store::clone(&store),
            conf,
            client: Client::new(client),
            pinned,
            configs: Mutex::default(),
            in_flight: InFlight::default(),
            unpacking: Arc::default(),
            slots,
            options,
        }));
        for image in images.index().iter() {
            if let Err(error) = images.config(image) {
                tracing::warn!(error = error.full(), "unusable image");
            }
        }
        Ok(images)
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Replaces the patterns of [`Options::pinned`].
    pub fn set_pinned(&self, patterns: &[String]) {
        *self.0.pinned.write().unwrap_or_else(PoisonError::into_inner) = Pinned::new(patterns);
    }

    /// The pulls under way, in the order of their names.
    pub fn progress(&self) -> Vec<PullProgress> {
        self.0.in_flight.progress()
    }

    /// All images, or with a filter (a name or an id) the one that it stands for, ordered by id.
    pub fn list(&self, filter: Option<&str>) -> Vec<ImageInfo> {
        match filter.filter(|text| !text.is_empty()) {
            Some(text) => self.status(text).into_iter().collect(),
            None => {
                let index = self.index();
                index.iter().filter_map(|image| self.info_or_say(image)).collect()
            }
        }
    }

    /// The image that a name or an id stands for.
    pub fn status(&self, name_or_id: &str) -> Option<ImageInfo> {
        let (image, _) = self.find(name_or_id)?;
        self.info_or_say(&image)
    }

    /// The config of the image that a name or an id stands for, byte for byte.
    pub fn raw_config(&self, name_or_id: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some((image, _)) = self.find(name_or_id) else { return Ok(None) };
        self.0.store.get_content(&image.id).map_err(|e| Error::store(name_or_id, e))
    }

    /// What a container needs of the image that a name or an id stands for.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Store`] if its config cannot be read.
    pub fn for_container(&self, name_or_id: &str) -> Result<ContainerImage, Error> {
        let not_found = || Error::NotFound { image: name_or_id.to_owned() };
        let (image, found_by) = self.find(name_or_id).ok_or_else(not_found)?;
        let config = self.config(&image)?;
        let id = image.id.to_string();
        let any_name = || image.names.first().or(image.digests.first()).cloned();
        Ok(ContainerImage {
            image_ref: image.digests.first().cloned().unwrap_or_else(|| id.clone()),
            name: found_by.or_else(any_name).unwrap_or_else(|| id.clone()),
            layers: image.layers.clone(),
            config,
            id,
        })
    }

    /// How much all layers take.
    pub fn fs_info(&self) -> FsInfo {
        let usage = self.0.store.layers_usage();
        FsInfo {
            used_bytes: usage.bytes,
            inodes: usage.inodes,
            mountpoint: self.0.store.root().to_owned(),
        }
    }

    /// Removes a name, and the image with its last name; by id, the image with all its names.
    /// Nothing to do if it is not there. Layers that containers hold stay until they are released.
    ///
    /// # Errors
    /// [`Error::InUse`] if the image would go and `in_use` names a container for its id.
    pub async fn remove(
        &self,
        name_or_id: &str,
        in_use: &(dyn Fn(&ImageId) -> Option<String> + Sync),
    ) -> Result<(), Error> {
        let Some((image, found_by)) = self.find(name_or_id) else {
            // It may be what is left of a removal that was cut short.
            return match in_use(&name_or_id.to_owned()) {
                Some(_) => Ok(()),
                None => self.collect_garbage().await.map(|_| ()),
            };
        };
        let mut doomed = Vec::new();
        if let Some(name) = found_by {
            doomed.push(name.clone());
            // What a tag stood for goes with the last tag of its repository.
            let repository = repository(&name);
            let same = |other: &&String| repository_is(other, repository);
            let tags_left = image.names.iter().filter(same).any(|other| *other != name);
            if image.names.contains(&name) && !tags_left {
                doomed.extend(image.digests.iter().filter(same).cloned());
            }
        }
        let all = image.names.len() + image.digests.len();
        let whole = doomed.is_empty() || doomed.len() >= all;
        let id = image.id.to_string();
        if whole && let Some(container) = in_use(&id) {
            return Err(Error::InUse { image: name_or_id.to_owned(), container });
        }
        let images = self.clone();
        let name = name_or_id.to_owned();
        let work = move || {
            let store = &images.0.store;
            if whole {
                store.images().remove(&image.id)?;
                images.configs().remove(&image.id);
                tracing::info!(image = %image.id, name, "image removed");
            } else {
                for name in &doomed {
                    store.images().untag(name)?;
                }
                tracing::info!(image = %image.id, name, "name removed");
            }
            Ok(())
        };
        self.blocking(name_or_id, work).await
    }

    /// Removes layers and content that no image, no container and no pull needs, where every container
    /// holds its layers.
    pub async fn collect_garbage(&self) -> Result<Collected, Error> {
        let images = self.clone();
        let collected = tokio::task::spawn_blocking(move || images.0.store.gc()).await;
        match collected {
            Ok(collected) => collected.map_err(|e| Error::Storage { source: Box::new(e) }),
            Err(_) => Err(Error::Died { image: "*".into() }),
        }
    }

    /// Runs store work on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        image: &str,
        work: impl FnOnce() -> storage::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done.map_err(|error| Error::store(image, error)),
            Err(_) => Err(Error::Died { image: image.to_owned() }),
        }
    }

    /// The image that a text stands for, and the full name by which it was found (none for ids).
    pub(crate) fn find(&self, text: &str) -> Option<(Arc<ImageRecord>, Option<String>)> {
        let index = self.index();
        let by_id = |text: &str| match index.resolve(text) {
            Ok(found) => found.cloned(),
            Err(error) => {
                tracing::debug!(%error, "no image");
                None
            }
        };
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return by_id(text).map(|image| (image, None));
        }
        for reference in self.meanings(text) {
            let name = reference.to_string();
            if let Some(image) = by_name(&index, &name) {
                return Some((image, Some(name)));
            }
            if let Some(image) = by_platform_digest(&index, &reference) {
                return Some((image, None));
            }
        }
        if text.starts_with("sha256:") || hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return by_id(text).map(|image| (image, None));
        }
        None
    }

    /// The full names that a text can mean, the likeliest first.
    fn meanings(&self, text: &str) -> Vec<Reference> {
        // Nothing is fetched: that a name could mean several images is of no harm here.
        let registries =
            (*self.0.conf.get()).clone().with_short_name_mode(ShortNameMode::Permissive);
        let mut all = registries.candidates(text).unwrap_or_default();
        if let Ok((reference, true)) = Reference::parse_short(text) {
            let own = reference.with_default_tag().without_redundant_tag();
            if !all.contains(&own) {
                all.push(own);
            }
        }
        all
    }

    pub(crate) fn index(&self) -> Arc<ImageIndex> {
        self.0.store.images().list()
    }

    fn configs(&self) -> MutexGuard<'_, HashMap<Digest, Arc<ImageConfig>>> {
        // The map is whole after every operation on it.
        self.0.configs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The parsed config of an image, from memory unless it was never read.
    pub(crate) fn config(&self, image: &ImageRecord) -> Result<Arc<ImageConfig>, Error> {
        if let Some(config) = self.configs().get(&image.id) {
            return Ok(config.clone());
        }
        let name = image.id.as_str();
        let bytes = self.0.store.get_content(&image.id).map_err(|e| Error::store(name, e))?;
        let bytes = bytes.ok_or_else(|| {
            Error::store(name, storage::Error::UnknownContent { digest: image.id.clone() })
        })?;
        let config = ImageConfig::parse(&bytes)
            .map_err(|e| Error::Document { image: name.to_owned(), source: Box::new(e) })?;
        Ok(self.remember(&image.id, config))
    }

    /// Keeps a parsed config in memory.
    pub(crate) fn remember(&self, id: &Digest, mut config: ImageConfig) -> Arc<ImageConfig> {
        // The largest part, and of no use to a runtime.
        config.history = Vec::new();
        let config = Arc::new(config);
        self.configs().insert(id.clone(), config.clone());
        config
    }

    fn info_or_say(&self, image: &ImageRecord) -> Option<ImageInfo> {
        match self.info(image) {
            Ok(info) => Some(info),
            Err(error) => {
                tracing::warn!(error = error.full(), "image left out");
                None
            }
        }
    }

    fn info(&self, image: &ImageRecord) -> Result<ImageInfo, Error> {
        let config = self.config(image)?;
        let (uid, username) = user::of_config(&config.config.user);
        let pinned = {
            let pinned = self.0.pinned.read().unwrap_or_else(PoisonError::into_inner);
            image.names.iter().chain(&image.digests).any(|name| pinned.has(name))
        };
        Ok(ImageInfo {
            id: image.id.to_string(),
            repo_tags: image.names.iter().cloned().collect(),
            repo_digests: image.digests.iter().cloned().collect(),
            size: image.size.max(1),
            uid,
            username,
            pinned,
            config,
            layers: image.layers.clone(),
        })
    }
}

/// The image with exactly this name; an id is no name.
fn by_name(index: &ImageIndex, name: &str) -> Option<Arc<ImageRecord>> {
    let found = index.resolve(name).ok()??;
    (found.names.contains(name) || found.digests.contains(name)).then(|| found.clone())
}

/// The image of `reference`'s repository whose own manifest has that digest: an index led to it.
fn by_platform_digest(index: &ImageIndex, reference: &Reference) -> Option<Arc<ImageRecord>> {
    let digest = reference.digest()?.to_string();
    let repository = reference.name();
    index
        .iter()
        .filter(|image| image.manifest.as_str() == digest)
        .find(|image| {
            image.names.iter().chain(&image.digests).any(|name| repository_is(name, &repository))
        })
        .cloned()
}

/// A full name without its tag or digest.
fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or_default();
    match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    }
}

fn repository_is(name: &str, expected: &str) -> bool {
    repository(name) == expected
}
