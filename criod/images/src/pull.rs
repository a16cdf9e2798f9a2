//! A pull, from the name to the image's record.
//!
//! ```text
//!   pull(name, credentials) ── the same under way? ──> wait for its result
//!        │ no: a task
//!   candidates of the name, in order
//!        manifest (and index) ── the image we have by that name? ──> done
//!        config ── layers and diff ids fit ── everything pinned
//!        layers, 6 at once; the first failure ends the others
//!        manifest and config stored, then the record: from here on the image is there
//!   failed: pins dropped, what nobody needs removed (kept a while if trying again may help)
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use registry::{
    Credentials, Descriptor, Fetched, ImageConfig, Keyring, LookupError, Reference, Registries,
};
use storage::{Digest, ImageRecord, LayerMeta, Pin, chain_ids};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind};
use crate::images::{ImageId, Images};
use crate::layers::{Common, From, Job};
use crate::options;
use crate::progress::{self, PullProgress};

/// How long the whole layers of a failed pull are kept, if trying again may help. The kubelet waits
/// at most 5 minutes between two tries.
const KEEP: Duration = Duration::from_secs(600);

type Outcome = Result<ImageId, Arc<Error>>;

/// The pulls under way, and what failed ones left for the next try.
#[derive(Default)]
pub(crate) struct InFlight {
    pulls: Mutex<Pulls>,
}

#[derive(Default)]
struct Pulls {
    next: u64,
    running: Vec<Running>,
    /// By image; the number tells a later one from it.
    kept: HashMap<String, (u64, Pin)>,
}

struct Running {
    number: u64,
    image: String,
    credentials: Credentials,
    progress: Arc<progress::Pull>,
    result: watch::Receiver<Option<Outcome>>,
}

impl InFlight {
    fn pulls(&self) -> MutexGuard<'_, Pulls> {
        // Whole after every operation on it.
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn progress(&self) -> Vec<PullProgress> {
        let pulls = self.pulls();
        let mut all: Vec<_> = pulls.running.iter().map(|r| r.progress.look()).collect();
        all.sort_by(|a, b| a.image.cmp(&b.image));
        all
    }
}

/// Takes a pull off the list, however its task ends.
struct Listed {
    images: Images,
    number: u64,
    result: watch::Sender<Option<Outcome>>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let number = self.number;
        self.images.0.in_flight.pulls().running.retain(|running| running.number != number);
    }
}

impl Listed {
    fn finish(self, outcome: Outcome) {
        let result = self.result.clone();
        // Off the list first: who comes now begins anew.
        drop(self);
        result.send_replace(Some(outcome));
    }
}

/// The documents of an image, whatever they came from.
pub(crate) struct Documents {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) parsed: ImageConfig,
    /// The chain ids, lowest first.
    pub(crate) chain: Vec<Digest>,
    pub(crate) names: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
}

impl Images {
    /// Fetches an image, or the parts of it that are missing, and gives its id.
    ///
    /// Joins the same pull if it is under way. The pull goes on if the caller goes away. It must run
    /// within a tokio runtime.
    ///
    /// # Errors
    /// See [`Error::kind`]. What was written is gone again.
    pub async fn pull(&self, image: &str, credentials: Credentials) -> Result<ImageId, Arc<Error>> {
        let mut result = self.join_or_begin(image, credentials);
        match result.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(Arc::new(Error::Died { image: image.to_owned() })),
        }
    }

    fn join_or_begin(
        &self,
        image: &str,
        credentials: Credentials,
    ) -> watch::Receiver<Option<Outcome>> {
        let mut pulls = self.0.in_flight.pulls();
        let same = pulls.running.iter().find(|r| r.image == image && r.credentials == credentials);
        if let Some(same) = same {
            return same.result.clone();
        }
        let number = pulls.next;
        pulls.next += 1;
        let progress = progress::Pull::new(image);
        let (sender, result) = watch::channel(None);
        pulls.running.push(Running {
            number,
            image: image.to_owned(),
            credentials: credentials.clone(),
            progress: progress.clone(),
            result: result.clone(),
        });
        drop(pulls);
        let listed = Listed { images: self.clone(), number, result: sender };
        let (images, image) = (self.clone(), image.to_owned());
        tokio::spawn(async move {
            let outcome = images.pull_name(&image, credentials, &progress).await;
            match &outcome {
                Ok(id) => tracing::info!(image, id, "image pulled"),
                Err(error) => tracing::warn!(error = error.full(), "image not pulled"),
            }
            listed.finish(outcome.map_err(Arc::new));
        });
        result
    }

    async fn pull_name(
        &self,
        image: &str,
        credentials: Credentials,
        progress: &progress::Pull,
    ) -> Result<ImageId, Error> {
        let registries = self.0.conf.get();
        let candidates = registries.candidates(image).map_err(|error| lookup(image, error))?;
        let file = self.0.options.global_auth_file.as_deref();
        let keyring = options::keyring(image, credentials, file)?;
        let mut attempts = Vec::new();
        for reference in &candidates {
            match self.pull_reference(&registries, reference, &keyring, progress).await {
                Ok(id) => return Ok(id),
                Err(error) if error.kind() == Kind::NoSpace => return Err(error),
                Err(error) => attempts.push(error),
            }
        }
        match attempts.pop() {
            Some(only) if attempts.is_empty() => Err(only),
            Some(last) => {
                attempts.push(last);
                Err(Error::Candidates { image: image.to_owned(), attempts })
            }
            None => Err(Error::NotFound { image: image.to_owned() }),
        }
    }

    async fn pull_reference(
        &self,
        registries: &Registries,
        reference: &Reference,
        keyring: &Keyring,
        progress: &progress::Pull,
    ) -> Result<ImageId, Error> {
        let name = reference.to_string();
        if let Some(id) = self.unchanged(registries, reference, keyring).await? {
            return Ok(id);
        }
        let (client, platform) = (&self.0.client, &self.0.options.platform);
        let fetched = registry::fetch_image(client, registries, reference, keyring, platform)
            .await
            .map_err(|e| Error::Fetch { image: name.clone(), source: Box::new(e) })?;
        let chain = chain_of(&name, &fetched.config, fetched.layers.len())?;
        let mut names = BTreeSet::new();
        if reference.digest().is_none() {
            names.insert(name.clone());
        }
        let digests =
            BTreeSet::from([reference.with_digest(fetched.top_digest.clone()).to_string()]);
        let jobs = jobs(&name, &fetched, &chain)?;
        progress.set_layers(jobs.iter().map(|job| job.progress.clone()).collect());
        // The place that has the manifest has the layers; those after it may have them too.
        let all = registries.sources(reference).map_err(|error| lookup(&name, error))?;
        let at = all.iter().position(|source| *source == fetched.endpoint).unwrap_or(all.len());
        let others = all.into_iter().skip(at + 1);
        let sources = std::iter::once(fetched.endpoint.clone())
            .chain(others)
            .map(|endpoint| {
                let credentials = keyring.for_endpoint(&endpoint);
                (endpoint, credentials)
            })
            .collect();
        let common = Common { image: name, sources, cancel: CancellationToken::new() };
        let documents = Documents {
            manifest: fetched.manifest_bytes.to_vec(),
            config: fetched.config_bytes.to_vec(),
            parsed: fetched.config,
            chain,
            names,
            digests,
        };
        self.bring_all(common, jobs, |_| Ok(documents)).await
    }

    /// The image that we have by this name, if it is still what the name stands for.
    async fn unchanged(
        &self,
        registries: &Registries,
        reference: &Reference,
        keyring: &Keyring,
    ) -> Result<Option<ImageId>, Error> {
        let name = reference.to_string();
        let Some((image, Some(_))) = self.find(&name) else { return Ok(None) };
        let (client, platform) = (&self.0.client, &self.0.options.platform);
        let found = registry::pull::resolve(client, registries, reference, keyring, platform)
            .await
            .map_err(|e| Error::Fetch { image: name.clone(), source: Box::new(e) })?;
        if Digest::of(&found.manifest_bytes) != image.manifest {
            return Ok(None);
        }
        // What is damaged is put aside, and pulled with the rest that is missing.
        let (store, layers) = (self.0.store.clone(), image.layers.clone());
        if let Err(error) = self.blocking(&name, move || store.check_layers(&layers)).await {
            tracing::warn!(error = error.full(), "pulled again");
            return Ok(None);
        }
        let id = image.id.to_string();
        let digest = reference.with_digest(found.top_digest).to_string();
        if !image.digests.contains(&digest) {
            // Those it has are kept, so nothing is said here that may have changed meanwhile.
            let mut image = ImageRecord::clone(&image);
            image.names.clear();
            image.digests = BTreeSet::from([digest]);
            let store = self.0.store.clone();
            let added = self.blocking(&name, move || match store.images().add(image) {
                Ok(_) => Ok(true),
                // Removed meanwhile.
                Err(
                    storage::Error::UnknownLayer { .. } | storage::Error::UnknownContent { .. },
                ) => Ok(false),
                Err(error) => Err(error),
            });
            if !added.await? {
                return Ok(None);
            }
        }
        Ok(Some(id))
    }

    /// Brings all layers into the store and publishes the image. `documents` is asked for when all
    /// layers are there.
    pub(crate) async fn bring_all(
        &self,
        common: Common,
        jobs: Vec<Arc<Job>>,
        documents: impl FnOnce(&[Arc<LayerMeta>]) -> Result<Documents, Error>,
    ) -> Result<ImageId, Error> {
        let image = common.image.clone();
        let pin = self.0.store.pin(jobs.iter().map(|job| job.chain_id.clone()));
        let done = self.bring_pinned(common, jobs, documents, &pin).await;
        let gone = match &done {
            Ok((_, replaced)) => {
                drop(pin);
                self.0.in_flight.pulls().kept.remove(&image);
                *replaced
            }
            Err(error) if error.may_pass() => {
                self.keep(&image, pin);
                false
            }
            Err(error) => {
                drop(pin);
                if error.kind() == Kind::NoSpace {
                    self.0.in_flight.pulls().kept.clear();
                    let store = self.0.store.clone();
                    let forget = move || store.images().forget_incomplete();
                    if let Err(error) = self.blocking(&image, forget).await {
                        tracing::warn!(error = error.full(), "incomplete images are kept");
                    }
                }
                true
            }
        };
        if gone && let Err(error) = self.collect_garbage().await {
            tracing::warn!(error = error.full(), "left for the next collection");
        }
        done.map(|(id, _)| id)
    }

    /// The id, and whether it took the place of an image with another manifest.
    async fn bring_pinned(
        &self,
        common: Common,
        jobs: Vec<Arc<Job>>,
        documents: impl FnOnce(&[Arc<LayerMeta>]) -> Result<Documents, Error>,
        pin: &Pin,
    ) -> Result<(ImageId, bool), Error> {
        let common = Arc::new(common);
        let metas = self.bring_layers(&common, jobs).await?;
        let Documents { manifest, config, parsed, chain, names, digests } = documents(&metas)?;
        let record = ImageRecord {
            id: Digest::of(&config),
            manifest: Digest::of(&manifest),
            names,
            digests,
            size: metas.iter().map(|meta| meta.size).sum::<u64>() + config.len() as u64,
            layers: chain,
            pulled_at: SystemTime::now(),
        };
        pin.add(record.id.clone());
        pin.add(record.manifest.clone());
        let id = record.id.clone();
        let store = self.0.store.clone();
        let work = move || {
            store.put_content(&record.manifest, &manifest)?;
            store.put_content(&record.id, &config)?;
            let old = store.images().get(&record.id);
            let replaced = old.is_some_and(|old| old.manifest != record.manifest);
            store.images().add(record)?;
            Ok(replaced)
        };
        let replaced = self.blocking(&common.image, work).await?;
        self.remember(&id, parsed);
        Ok((id.to_string(), replaced))
    }

    /// All layers, in the order of the jobs. After a failure it returns when none is under way.
    async fn bring_layers(
        &self,
        common: &Arc<Common>,
        jobs: Vec<Arc<Job>>,
    ) -> Result<Vec<Arc<LayerMeta>>, Error> {
        let at_once = self.0.options.layers_per_pull.max(1);
        let each = |(number, job): (usize, Arc<Job>)| {
            let work = self.clone().bring(common.clone(), job);
            async move { (number, work.await) }
        };
        let mut running = futures_util::stream::iter(jobs.into_iter().enumerate())
            .map(each)
            .buffer_unordered(at_once);
        let mut metas = Vec::new();
        let mut failure = None;
        while let Some((number, done)) = running.next().await {
            match done {
                Ok(meta) => metas.push((number, meta)),
                Err(error) => {
                    common.cancel.cancel();
                    // What comes after the first is its consequence.
                    failure.get_or_insert(error);
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        metas.sort_by_key(|(number, _)| *number);
        Ok(metas.into_iter().map(|(_, meta)| meta).collect())
    }

    /// Keeps the layers of a failed pull for the next try.
    fn keep(&self, image: &str, pin: Pin) {
        let number = {
            let mut pulls = self.0.in_flight.pulls();
            let number = pulls.next;
            pulls.next += 1;
            // The one before goes when the lock is free again: it asks the store.
            let before = pulls.kept.insert(image.to_owned(), (number, pin));
            drop(pulls);
            drop(before);
            number
        };
        // The store must not stay open for that.
        let inner = Arc::downgrade(&self.0);
        let image = image.to_owned();
        tokio::spawn(async move {
            tokio::time::sleep(KEEP).await;
            let Some(images) = inner.upgrade().map(Images) else { return };
            {
                let mut pulls = images.0.in_flight.pulls();
                if pulls.kept.get(&image).is_none_or(|(kept, _)| *kept != number) {
                    return;
                }
                pulls.kept.remove(&image);
            }
            if let Err(error) = images.collect_garbage().await {
                tracing::warn!(error = error.full(), "left for the next collection");
            }
        });
    }
}

fn lookup(image: &str, error: LookupError) -> Error {
    match error {
        LookupError::Reference(source) => Error::Name { name: image.to_owned(), source },
        other => Error::Lookup { image: image.to_owned(), source: Box::new(other) },
    }
}

/// The chain ids that a config gives, if it has as many layers as the manifest.
pub(crate) fn chain_of(
    image: &str,
    config: &ImageConfig,
    layers: usize,
) -> Result<Vec<Digest>, Error> {
    let diff_ids = diff_ids(image, config)?;
    if diff_ids.len() != layers {
        let problem = format!("{layers} layers, but {} diff ids", diff_ids.len());
        return Err(Error::invalid(image, problem));
    }
    Ok(chain_ids(&diff_ids))
}

pub(crate) fn diff_ids(image: &str, config: &ImageConfig) -> Result<Vec<Digest>, Error> {
    let read = |digest: &registry::Digest| {
        let problem = || format!("diff id {digest} is not of SHA-256");
        digest.to_string().parse().map_err(|_| Error::invalid(image, problem()))
    };
    config.rootfs.diff_ids.iter().map(read).collect()
}

fn jobs(image: &str, fetched: &Fetched, chain: &[Digest]) -> Result<Vec<Arc<Job>>, Error> {
    let diff_ids = diff_ids(image, &fetched.config)?;
    let mut parent = None;
    let mut jobs = Vec::new();
    for ((descriptor, diff_id), chain_id) in fetched.layers.iter().zip(diff_ids).zip(chain) {
        let from = From::Registry(descriptor.clone());
        jobs.push(Arc::new(job(image, from, descriptor, diff_id, chain_id, parent)?));
        parent = Some(chain_id.clone());
    }
    Ok(jobs)
}

/// What is to be done for one layer that a manifest describes.
pub(crate) fn job(
    image: &str,
    from: From,
    descriptor: &Descriptor,
    diff_id: Digest,
    chain_id: &Digest,
    parent: Option<Digest>,
) -> Result<Job, Error> {
    let compression = descriptor
        .layer_compression()
        .map_err(|e| Error::Document { image: image.to_owned(), source: Box::new(e) })?;
    let label = descriptor.digest.to_string();
    Ok(Job {
        from,
        compression: match compression {
            registry::Compression::None => storage::Compression::None,
            registry::Compression::Gzip => storage::Compression::Gzip,
            registry::Compression::Zstd => storage::Compression::Zstd,
        },
        // SHA-512 is checked while the bytes arrive.
        compressed: label.parse().ok(),
        diff_id,
        chain_id: chain_id.clone(),
        parent,
        progress: progress::Layer::new(label.clone(), descriptor.size),
        label,
    })
}
