//! A blob on its way: a stream of bytes that outlives its connections.
//!
//! ```text
//!   GET blob ─> bytes … cut ─ backoff ─> GET blob, Range: bytes=n- ─> 206 from n: go on
//!                  │                                                  200: skip n bytes, go on
//!                  │                                                  416: the blob is too short
//!                  └─ more than the descriptor's size: error, at once
//! ```
//!
//! It goes on as long as each connection brings something: a number of connections in a row
//! that bring nothing end it, and so does a (large) number of connections in all. A connection that
//! is silent for the stall timeout is an error, so that whoever waits learns of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::{Stream, StreamExt as _};
use http::header::{CONTENT_RANGE, HeaderValue, RANGE};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::error::ClientError;
use super::http::shown;
use super::{Client, Path};
use crate::auth::Credentials;
use crate::conf::Endpoint;
use crate::digest::{Digest, Hasher};
use crate::image::Descriptor;

/// The most connections one blob may need.
const MAX_CONNECTIONS: u32 = 100;

/// What may be said about one transfer.
#[derive(Debug, Clone, Default)]
pub struct BlobOptions {
    /// Counts the bytes as they arrive.
    pub progress: Option<Arc<AtomicU64>>,
    /// How long nothing may arrive; instead of the client's own.
    pub stall_timeout: Option<Duration>,
}

/// The bytes of a blob. Exactly as many as its descriptor says, or an error; *which* bytes is only
/// checked by [`BlobStream::verified`].
pub struct BlobStream {
    size: u64,
    digest: Digest,
    url: String,
    inner: Pin<Box<dyn Stream<Item = Result<Bytes, ClientError>> + Send>>,
}

impl BlobStream {
    /// How many bytes come in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The same bytes, followed by an error if their digest is not the descriptor's. Nothing is to
    /// be believed before the stream has ended well.
    pub fn verified(self) -> BlobStream {
        let BlobStream { size, digest, url, inner } = self;
        let check = Check {
            inner,
            hasher: Some(digest.hasher()),
            digest: digest.clone(),
            url: url.clone(),
        };
        BlobStream { size, digest, url, inner: Box::pin(check) }
    }

    /// All bytes, verified, for a blob of at most `limit` bytes.
    pub async fn bytes(self, limit: u64) -> Result<Bytes, ClientError> {
        if self.size > limit {
            return Err(ClientError::TooLarge { url: self.url, limit });
        }
        // Within the limit, so within what the caller is ready to hold.
        let mut all = Vec::with_capacity(usize::try_from(self.size).unwrap_or_default());
        let mut stream = self.verified();
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes?);
        }
        Ok(all.into())
    }
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream").field("url", &self.url).field("size", &self.size).finish()
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx)
    }
}

struct Check {
    inner: Pin<Box<dyn Stream<Item = Result<Bytes, ClientError>> + Send>>,
    /// Gone once the end was seen.
    hasher: Option<Hasher>,
    digest: Digest,
    url: String,
}

impl Stream for Check {
    type Item = Result<Bytes, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(hasher) = &mut this.hasher else { return Poll::Ready(None) };
        let next = std::task::ready!(this.inner.as_mut().poll_next(cx));
        Poll::Ready(match next {
            Some(Ok(bytes)) => {
                hasher.update(&bytes);
                Some(Ok(bytes))
            }
            Some(Err(error)) => {
                this.hasher = None;
                Some(Err(error))
            }
            None => {
                let actual = this.hasher.take().map(Hasher::finish);
                actual.filter(|actual| *actual != this.digest).map(|actual| {
                    let (url, expected) = (this.url.clone(), this.digest.clone());
                    Err(ClientError::DigestMismatch { url, expected, actual })
                })
            }
        })
    }
}

struct Transfer {
    client: Client,
    endpoint: Endpoint,
    credentials: Credentials,
    digest: Digest,
    url: String,
    size: u64,
    /// Bytes handed on.
    done: u64,
    /// Bytes of the running answer that were had before.
    skip: u64,
    body: Option<Incoming>,
    connections: u32,
    /// Connections in a row that brought nothing.
    fruitless: u32,
    brought: bool,
    progress: Option<Arc<AtomicU64>>,
    stall: Option<Duration>,
}

pub(super) async fn open(
    client: &Client,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    credentials: &Credentials,
    options: BlobOptions,
) -> Result<BlobStream, ClientError> {
    let mut transfer = Transfer {
        client: client.clone(),
        endpoint: endpoint.clone(),
        credentials: credentials.clone(),
        digest: descriptor.digest.clone(),
        url: format!("{}/blobs/{}", endpoint, descriptor.digest),
        size: descriptor.size,
        done: 0,
        skip: 0,
        body: None,
        connections: 0,
        fruitless: 0,
        brought: false,
        progress: options.progress,
        stall: options.stall_timeout.or(client.options().stall_timeout),
    };
    transfer.connect().await?;
    let (size, digest, url) = (transfer.size, transfer.digest.clone(), transfer.url.clone());
    let inner = futures_util::stream::unfold(Some(transfer), |transfer| async {
        let mut transfer = transfer?;
        match transfer.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(transfer))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(BlobStream { size, digest, url, inner: Box::pin(inner) })
}

impl Transfer {
    /// Asks for the rest of the blob.
    async fn connect(&mut self) -> Result<(), ClientError> {
        self.connections += 1;
        self.brought = false;
        let mut headers = HeaderMap::new();
        if self.done > 0 {
            let range = format!("bytes={}-", self.done);
            if let Ok(range) = HeaderValue::from_str(&range) {
                headers.insert(RANGE, range);
            }
        }
        let path = Path::Blob(&self.digest);
        let request = self.client.get(&self.endpoint, path, headers, &self.credentials);
        let answer = match self.stall {
            Some(after) => tokio::time::timeout(after, request)
                .await
                .map_err(|_| ClientError::Stalled { url: self.url.clone(), after })?,
            None => request.await,
        };
        let answer = match answer {
            Err(ClientError::Status { status: 416, .. }) if self.done > 0 => {
                return Err(self.short());
            }
            answer => answer?,
        };
        self.url = shown(&answer.url);
        self.skip = match answer.response.status() {
            StatusCode::OK => self.done,
            StatusCode::PARTIAL_CONTENT if self.done > 0 => {
                if range_start(answer.response.headers()) != Some(self.done) {
                    return Err(self.protocol("the answer is another range than the one asked for"));
                }
                0
            }
            _ => return Err(self.protocol("the answer is neither the blob nor the rest of it")),
        };
        self.body = Some(answer.response.into_body());
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let error = match self.frame().await {
                Ok(Some(mut bytes)) => {
                    let skipped = self.skip.min(bytes.len() as u64);
                    self.skip -= skipped;
                    // At most the length, which is a usize.
                    bytes.advance(skipped as usize);
                    if bytes.is_empty() {
                        continue;
                    }
                    let len = bytes.len() as u64;
                    if len > self.size - self.done {
                        return Err(ClientError::TooLarge {
                            url: self.url.clone(),
                            limit: self.size,
                        });
                    }
                    self.done += len;
                    self.brought = true;
                    self.fruitless = 0;
                    if let Some(progress) = &self.progress {
                        progress.fetch_add(len, Ordering::Relaxed);
                    }
                    return Ok(Some(bytes));
                }
                Ok(None) if self.done == self.size && self.skip == 0 => return Ok(None),
                // An end without an error can still be a cut connection.
                Ok(None) => self.short(),
                Err(error @ ClientError::Read { .. }) if self.done == self.size => {
                    // Everything is there; that the connection then broke says nothing.
                    tracing::debug!(%error, "connection broke after the last byte");
                    return Ok(None);
                }
                Err(error) => error,
            };
            self.resume(error).await?;
        }
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let Some(body) = &mut self.body else { return Ok(None) };
            let frame = match self.stall {
                Some(after) => tokio::time::timeout(after, body.frame())
                    .await
                    .map_err(|_| ClientError::Stalled { url: self.url.clone(), after })?,
                None => body.frame().await,
            };
            match frame {
                None => return Ok(None),
                Some(Err(source)) => {
                    return Err(ClientError::Read { url: self.url.clone(), source });
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// Connects again after `error`, or gives it back when that is of no use.
    async fn resume(&mut self, mut error: ClientError) -> Result<(), ClientError> {
        self.body = None;
        loop {
            let may_pass =
                matches!(error, ClientError::TooShort { .. } | ClientError::Request { .. })
                    || error.is_transient();
            if !self.brought {
                self.fruitless += 1;
            }
            let options = self.client.options();
            if !may_pass || self.fruitless > options.retries || self.connections >= MAX_CONNECTIONS
            {
                return Err(error);
            }
            let wait = options.backoff * 2u32.saturating_pow(self.fruitless.min(6));
            tracing::debug!(url = %self.url, done = self.done, size = self.size, %error, "resuming");
            tokio::time::sleep(wait).await;
            match self.connect().await {
                Ok(()) => return Ok(()),
                // It said itself that there is no more.
                Err(short @ ClientError::TooShort { .. }) => return Err(short),
                Err(other) => error = other,
            }
        }
    }

    fn short(&self) -> ClientError {
        let (url, expected, actual) = (self.url.clone(), self.size, self.done);
        ClientError::TooShort { url, expected, actual }
    }

    fn protocol(&self, problem: &'static str) -> ClientError {
        ClientError::Protocol { url: self.url.clone(), problem }
    }
}

/// `n` of `Content-Range: bytes n-m/size`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes")?;
    range.trim_start().split('-').next()?.trim().parse().ok()
}
