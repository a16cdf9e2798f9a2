//! One layer: from where it is to the store, in one pass, and only once at a time.
//!
//! ```text
//!   in the store? ──yes──────────────────────────────────────────────> exists
//!        │ no
//!   another pull has it in hand? ──yes──> wait for its end, look again
//!        │ no: ours
//!   source 1: connect, first bytes ─> slot ─> ┌ pump ──(channel of 16)──> reader ┐─> commit ─> done
//!        │ unreachable, damaged               └ task                      thread ┘
//!   source 2 …
//! ```
//!
//! A slot is taken when bytes are there, not before: who waits for a registry takes none. The reader
//! ends well only when the pump said so; a pump that is gone is an error, never an end of file.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use registry::client::BlobOptions;
use registry::{Algorithm, BlobStream, ClientError, Credentials, Descriptor, Endpoint};
use storage::{CommitLayer, Compression, Digest, LayerMeta};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::images::Images;
use crate::progress::{self, State};

/// How many pieces of a layer wait for its thread.
const PIECES: usize = 16;

/// How many times its compressed size a layer may unpack to. gzip makes at most 1032 of one; layers
/// of programs make 2 to 5, disk images of mostly zeros a few dozen.
const MAX_RATIO: u64 = 250;

/// What a layer may always unpack to, in bytes, however small it came.
const ALWAYS_FITS: u64 = 1 << 30;

/// Opens a layer that lies on this machine.
pub(crate) type Open = dyn Fn() -> io::Result<Box<dyn Read + Send>> + Send + Sync;

/// Where a layer's bytes come from.
pub(crate) enum From {
    Registry(Descriptor),
    Here(Box<Open>),
}

/// A layer to be brought into the store.
pub(crate) struct Job {
    pub(crate) from: From,
    /// What it is called in errors.
    pub(crate) label: String,
    pub(crate) compression: Compression,
    /// The digest of its bytes as they come; none if it is not said or checked otherwise.
    pub(crate) compressed: Option<Digest>,
    pub(crate) diff_id: Digest,
    pub(crate) chain_id: Digest,
    pub(crate) parent: Option<Digest>,
    pub(crate) progress: Arc<progress::Layer>,
}

/// What the layers of one pull have in common.
pub(crate) struct Common {
    /// The image's full name.
    pub(crate) image: String,
    /// Where to fetch from, in the order to try.
    pub(crate) sources: Vec<(Endpoint, Credentials)>,
    /// Set when another layer failed.
    pub(crate) cancel: CancellationToken,
}

impl Common {
    fn given_up(&self) -> Error {
        Error::GivenUp { image: self.image.clone() }
    }

    fn failed(&self, endpoint: &Endpoint, job: &Job, error: ClientError) -> Error {
        Error::FetchLayer {
            image: self.image.clone(),
            registry: endpoint.to_string(),
            layer: job.label.clone(),
            source: Box::new(error),
        }
    }
}

/// The layers that somebody has in hand, by chain id.
#[derive(Default)]
pub(crate) struct Unpacking(Mutex<HashMap<Digest, InHand>>);

struct InHand {
    /// Ends when the layer is there, or will not be.
    ended: watch::Receiver<()>,
    progress: Arc<progress::Layer>,
}

enum Turn {
    /// It is ours until the guard is dropped.
    Ours(Guard),
    /// Another has it: wait for the sender's end.
    Theirs(watch::Receiver<()>, Arc<progress::Layer>),
}

struct Guard {
    all: Arc<Unpacking>,
    chain_id: Digest,
    _ended: watch::Sender<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.chain_id);
    }
}

impl Unpacking {
    fn turn(self: &Arc<Self>, job: &Job) -> Turn {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(theirs) = all.get(&job.chain_id) {
            return Turn::Theirs(theirs.ended.clone(), theirs.progress.clone());
        }
        let (sender, ended) = watch::channel(());
        let progress = job.progress.clone();
        all.insert(job.chain_id.clone(), InHand { ended, progress });
        Turn::Ours(Guard { all: self.clone(), chain_id: job.chain_id.clone(), _ended: sender })
    }
}

impl Images {
    /// Brings one layer into the store, unless it is there or another pull brings it.
    pub(crate) async fn bring(
        self,
        common: Arc<Common>,
        job: Arc<Job>,
    ) -> Result<Arc<LayerMeta>, Error> {
        loop {
            if common.cancel.is_cancelled() {
                return Err(common.given_up());
            }
            let (store, layer) = (self.0.store.clone(), [job.chain_id.clone()]);
            if let Err(error) =
                self.blocking(&common.image, move || store.check_layers(&layer)).await
            {
                tracing::warn!(error = error.full(), "pulled again");
            }
            if let Some(there) = self.0.store.layer(&job.chain_id) {
                job.progress.set(State::Exists);
                return Ok(there);
            }
            match self.0.unpacking.turn(&job) {
                Turn::Ours(_guard) => {
                    // It may have come between the look and the turn.
                    if self.0.store.has_layer(&job.chain_id) {
                        continue;
                    }
                    let done = self.fetch(&common, &job).await;
                    job.progress.set(if done.is_ok() { State::Done } else { State::Waiting });
                    return done;
                }
                Turn::Theirs(mut ended, theirs) => {
                    job.progress.follow(Some(theirs));
                    tokio::select! {
                        // Never a value, only the end.
                        _ = ended.changed() => {}
                        () = common.cancel.cancelled() => {}
                    }
                    job.progress.follow(None);
                }
            }
        }
    }

    async fn fetch(&self, common: &Arc<Common>, job: &Arc<Job>) -> Result<Arc<LayerMeta>, Error> {
        let descriptor = match &job.from {
            From::Here(_) => return self.unpack_local(common, job).await,
            From::Registry(descriptor) => descriptor,
        };
        let mut left = common.sources.len();
        for (endpoint, credentials) in &common.sources {
            left -= 1;
            match self.fetch_from(common, job, descriptor, endpoint, credentials).await {
                Err(error) if left > 0 && is_the_sources(&error) => {
                    tracing::warn!(error = error.full(), "trying the next source");
                }
                done => return done,
            }
        }
        Err(Error::invalid(&common.image, "there is nowhere to fetch its layers from"))
    }

    async fn fetch_from(
        &self,
        common: &Arc<Common>,
        job: &Arc<Job>,
        descriptor: &Descriptor,
        endpoint: &Endpoint,
        credentials: &Credentials,
    ) -> Result<Arc<LayerMeta>, Error> {
        let failed = |error| common.failed(endpoint, job, error);
        let cancelled = || common.cancel.cancelled();
        job.progress.done.store(0, Ordering::Relaxed);
        job.progress.set(State::Downloading);
        let progress = Some(job.progress.done.clone());
        let options = BlobOptions { progress, stall_timeout: None };
        let opening = self.0.client.blob_with(endpoint, descriptor, credentials, options);
        let stream = tokio::select! {
            opened = opening => opened.map_err(failed)?,
            () = cancelled() => return Err(common.given_up()),
        };
        // SHA-256 is computed where the layer is unpacked.
        let mut stream = match descriptor.digest.algorithm() {
            Algorithm::Sha256 => stream,
            Algorithm::Sha512 => stream.verified(),
        };
        let first = tokio::select! {
            first = stream.next() => first.transpose().map_err(failed)?,
            () = cancelled() => return Err(common.given_up()),
        };
        let slot = tokio::select! {
            slot = self.0.slots.clone().acquire_owned() => slot,
            () = cancelled() => return Err(common.given_up()),
        };
        let (sender, receiver) = mpsc::channel(PIECES);
        let reader = Pieces { receiver, piece: Bytes::new(), ended: false };
        let (images, for_thread) = (self.clone(), job.clone());
        let thread = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            images.unpack(&for_thread, reader)
        });
        let pumped = pump(first, stream, sender, &common.cancel).await;
        if matches!(pumped, Pumped::All) {
            job.progress.set(State::Unpacking);
        }
        // In any case its files are gone or published when we return.
        let unpacked = thread.await;
        match (pumped, unpacked) {
            (_, Err(_)) => Err(Error::Died { image: common.image.clone() }),
            (_, Ok(Ok(meta))) => Ok(meta),
            (Pumped::Failed(error), _) => Err(failed(error)),
            (Pumped::Cancelled, Ok(Err(error))) if error.is_source() => Err(common.given_up()),
            (_, Ok(Err(error))) => Err(Error::UnpackLayer {
                image: common.image.clone(),
                registry: endpoint.to_string(),
                layer: job.label.clone(),
                source: Box::new(error),
            }),
        }
    }

    /// A layer that lies on this machine.
    async fn unpack_local(
        &self,
        common: &Arc<Common>,
        job: &Arc<Job>,
    ) -> Result<Arc<LayerMeta>, Error> {
        job.progress.set(State::Downloading);
        let slot = tokio::select! {
            slot = self.0.slots.clone().acquire_owned() => slot,
            () = common.cancel.cancelled() => return Err(common.given_up()),
        };
        let (images, common, job) = (self.clone(), common.clone(), job.clone());
        let image = common.image.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            let From::Here(open) = &job.from else {
                return Err(Error::invalid(&common.image, "a layer of a registry"));
            };
            let error = |source| Error::UnpackLayer {
                image: common.image.clone(),
                registry: "this machine".into(),
                layer: job.label.clone(),
                source: Box::new(source),
            };
            let inner = open().map_err(|source| error(storage::Error::Source { source }))?;
            let (done, cancel) = (job.progress.done.clone(), common.cancel.clone());
            images.unpack(&job, Counted { inner, done, cancel }).map_err(error)
        });
        thread.await.unwrap_or(Err(Error::Died { image }))
    }

    /// The work of the thread.
    fn unpack(&self, job: &Job, reader: impl Read + Send) -> storage::Result<Arc<LayerMeta>> {
        let writer = self.0.store.begin_layer()?;
        let limits = bounded(self.0.options.limits.clone(), job.progress.total);
        let unpacked = writer.unpack(reader, job.compression, &limits)?;
        unpacked.commit(&CommitLayer {
            chain_id: &job.chain_id,
            parent: job.parent.as_ref(),
            diff_id: &job.diff_id,
            compressed: job.compressed.as_ref(),
        })
    }
}

/// Limits for a layer of `compressed` bytes: what unpacks to far more than real layers do is made
/// to fill the disk.
fn bounded(limits: storage::Limits, compressed: u64) -> storage::Limits {
    let most = compressed.saturating_mul(MAX_RATIO).max(ALWAYS_FITS);
    storage::Limits { max_bytes: limits.max_bytes.min(most), ..limits }
}

/// Whether another source may do better.
fn is_the_sources(error: &Error) -> bool {
    match error {
        Error::FetchLayer { .. } => true,
        Error::UnpackLayer { source, .. } => matches!(
            **source,
            storage::Error::DigestMismatch { what: "compressed layer", .. }
                | storage::Error::Decompress { .. }
        ),
        _ => false,
    }
}

/// A piece of a layer, or its end.
enum Piece {
    Data(Bytes),
    End,
}

enum Pumped {
    /// Everything was handed over.
    All,
    /// The thread wants no more; it knows why.
    Refused,
    Cancelled,
    Failed(ClientError),
}

async fn pump(
    first: Option<Bytes>,
    mut stream: BlobStream,
    sender: mpsc::Sender<Piece>,
    cancel: &CancellationToken,
) -> Pumped {
    let mut next = first.map(Ok);
    loop {
        let piece = match next {
            Some(Ok(bytes)) => Piece::Data(bytes),
            Some(Err(error)) => return Pumped::Failed(error),
            None => Piece::End,
        };
        let end = matches!(piece, Piece::End);
        tokio::select! {
            sent = sender.send(piece) => if sent.is_err() { return Pumped::Refused },
            () = cancel.cancelled() => return Pumped::Cancelled,
        }
        if end {
            return Pumped::All;
        }
        next = tokio::select! {
            next = stream.next() => next,
            () = sender.closed() => return Pumped::Refused,
            () = cancel.cancelled() => return Pumped::Cancelled,
        };
    }
}

/// The thread's end of the channel.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(bytes)) => self.piece = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::other("the transfer was given up")),
            }
        }
        let most = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..most]);
        Ok(most)
    }
}

/// A local layer's reader: counts, and ends when the pull is given up.
struct Counted {
    inner: Box<dyn Read + Send>,
    done: Arc<AtomicU64>,
    cancel: CancellationToken,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("the import was given up"));
        }
        let read = self.inner.read(buffer)?;
        self.done.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
