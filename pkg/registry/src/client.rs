//! The registry protocol: manifests and blobs by HTTP (OCI distribution specification, pull).
//!
//! ```text
//!   get ── scheme ──> known token? ──> send, follow redirects ──┬─ 200 ─> answer
//!    ^        (insecure: HTTPS, else HTTP)                      ├─ 401 ─> token ─┐
//!    ├──────────────────────────────────── at most twice ───────┼────────────────┘
//!    └── wait: Retry-After or backoff ──── a few times ─────────┴─ 429, 5xx, broken connection
//! ```
//!
//! A client keeps connections, tokens and what it learnt about hosts; clones share them. System and
//! per-host certificates are read anew every few minutes.

mod blob;
mod error;
mod http;
mod tls;
mod token;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use ::http::{Response, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;

pub use blob::{BlobOptions, BlobStream};
pub use error::{ClientError, ErrorKind};

use self::http::{Answer, Call, Connections, shown};
use self::token::{Key, Tokens};
use crate::auth::Credentials;
use crate::conf::Endpoint;
use crate::digest::Digest;
use crate::image::{Descriptor, Document, ImageError, MAX_DOCUMENT, media};
use crate::reference::{valid_component, valid_domain, valid_tag};

/// How often an answer of 401 is answered in turn: once for a token, once more for its scope.
const MAX_ANSWERS: u32 = 2;
/// Errors are short.
const MAX_ERROR_BODY: u64 = 64 << 10;
/// How long it is remembered that an insecure host speaks plain HTTP.
const SCHEME_AGE: Duration = Duration::from_secs(300);

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// What it calls itself.
    pub user_agent: String,
    /// Directories with one directory per host that holds its certificates.
    pub certs_dirs: Vec<PathBuf>,
    /// For a TCP connection.
    pub connect_timeout: Duration,
    /// For an answer to begin (connecting and TLS included), and for a small one to be whole.
    pub response_timeout: Duration,
    /// How long nothing may arrive of a blob.
    pub stall_timeout: Option<Duration>,
    /// How often a request that failed for a passing reason is sent again.
    pub retries: u32,
    /// The wait before the first of these; it doubles each time.
    pub backoff: Duration,
    /// The longest wait a registry can ask for (`Retry-After`).
    pub max_retry_after: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            user_agent: concat!("criod/", env!("CARGO_PKG_VERSION")).into(),
            certs_dirs: vec!["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()],
            connect_timeout: Duration::from_secs(30),
            response_timeout: Duration::from_secs(60),
            stall_timeout: Some(Duration::from_secs(60)),
            retries: 3,
            backoff: Duration::from_millis(500),
            max_retry_after: Duration::from_secs(30),
        }
    }
}

/// A manifest or an index, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What the registry says it is (`Content-Type`, without parameters; may be empty).
    pub media_type: String,
    /// The bytes as they came.
    pub bytes: Bytes,
    /// Their digest: the requested one, else SHA-256.
    pub digest: Digest,
}

impl Manifest {
    /// Reads it.
    pub fn document(&self) -> Result<Document, ImageError> {
        Document::parse(&self.bytes, Some(&self.media_type))
    }
}

/// A client of registries. Clones share everything.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    options: ClientOptions,
    connections: Connections,
    tokens: Tokens,
    /// Insecure hosts: whether they speak TLS.
    schemes: Mutex<HashMap<String, (Scheme, Instant)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Https,
    Http,
}

/// What is asked for within a repository.
#[derive(Clone, Copy)]
enum Path<'a> {
    Manifest(&'a str),
    Blob(&'a Digest),
}

/// A failed try, and the wait the registry asks for before the next.
struct Failure {
    error: ClientError,
    retry_after: Option<Duration>,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure { error, retry_after: None }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that knows nothing yet. Proxies are taken from the environment now.
    pub fn new(options: ClientOptions) -> Client {
        let connections = Connections::new(
            &options.user_agent,
            options.certs_dirs.clone(),
            options.connect_timeout,
            options.response_timeout,
        );
        let (tokens, schemes) = (Tokens::default(), Mutex::default());
        Client(Arc::new(Inner { options, connections, tokens, schemes }))
    }

    /// How it behaves.
    pub fn options(&self) -> &ClientOptions {
        &self.0.options
    }

    /// Fetches a manifest or an index by tag or digest. It is checked against the digest asked for
    /// and the one the registry announces.
    pub async fn manifest(
        &self,
        endpoint: &Endpoint,
        target: &str,
        credentials: &Credentials,
    ) -> Result<Manifest, ClientError> {
        let wanted: Option<Digest> = target.parse().ok();
        if wanted.is_none() && !valid_tag(target) {
            return Err(ClientError::Address { url: format!("{endpoint}:{target}") });
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(media::ACCEPT));
        let mut attempt = 0;
        let (bytes, head, url) = loop {
            let answer =
                self.get(endpoint, Path::Manifest(target), headers.clone(), credentials).await?;
            let (url, head) = (answer.url, answer.response.headers().clone());
            let limit = self.0.options.response_timeout;
            match read_limited(answer.response, &url, MAX_DOCUMENT, limit).await {
                Ok(bytes) => break (bytes, head, url),
                Err(error) if error.is_transient() && attempt < self.0.options.retries => {
                    self.pause(attempt, None).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        };
        let announced = head
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.trim().parse::<Digest>().ok());
        for expected in wanted.iter().chain(&announced) {
            let mut hasher = expected.hasher();
            hasher.update(&bytes);
            let actual = hasher.finish();
            if actual != *expected {
                let (url, expected) = (shown(&url), expected.clone());
                return Err(ClientError::DigestMismatch { url, expected, actual });
            }
        }
        let digest = wanted.unwrap_or_else(|| Digest::of(&bytes));
        let media_type = head
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(|text| crate::image::essence(text).to_owned())
            .unwrap_or_default();
        Ok(Manifest { media_type, bytes, digest })
    }

    /// Begins to fetch a blob. See [`BlobStream`] for what is checked.
    pub async fn blob(
        &self,
        endpoint: &Endpoint,
        descriptor: &Descriptor,
        credentials: &Credentials,
    ) -> Result<BlobStream, ClientError> {
        self.blob_with(endpoint, descriptor, credentials, BlobOptions::default()).await
    }

    /// Begins to fetch a blob, with a counter of its bytes or another stall timeout.
    pub async fn blob_with(
        &self,
        endpoint: &Endpoint,
        descriptor: &Descriptor,
        credentials: &Credentials,
        options: BlobOptions,
    ) -> Result<BlobStream, ClientError> {
        blob::open(self, endpoint, descriptor, credentials, options).await
    }

    /// A successful answer to `GET`, or an error.
    async fn get(
        &self,
        endpoint: &Endpoint,
        path: Path<'_>,
        headers: HeaderMap,
        credentials: &Credentials,
    ) -> Result<Answer, ClientError> {
        let mut attempt = 0;
        loop {
            let failed = self.get_once(endpoint, path, &headers, credentials).await;
            let Failure { error, retry_after } = match failed {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if !error.is_transient() || attempt >= self.0.options.retries {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "asking again");
            self.pause(attempt, retry_after).await;
            attempt += 1;
        }
    }

    async fn pause(&self, attempt: u32, retry_after: Option<Duration>) {
        let options = &self.0.options;
        let own = options.backoff * 2u32.saturating_pow(attempt.min(6));
        let wait = retry_after.map_or(own, |asked| asked.min(options.max_retry_after).max(own));
        tokio::time::sleep(wait).await;
    }

    /// One try, authentication included.
    async fn get_once(
        &self,
        endpoint: &Endpoint,
        path: Path<'_>,
        headers: &HeaderMap,
        credentials: &Credentials,
    ) -> Result<Answer, Failure> {
        let scheme = self.scheme(endpoint).await?;
        let url = address(endpoint, path, scheme)?;
        let key = Key::new(endpoint, credentials);
        let mut authorization = self.0.tokens.known(&key, credentials);
        let mut answers = 0;
        loop {
            let mut call = Call::get(url.clone());
            call.headers = headers.clone();
            call.authorization = authorization.clone();
            let sent = self.0.connections.send(call, &endpoint.host, endpoint.insecure).await;
            let answer = match sent {
                Ok(answer) => answer,
                Err(error) => {
                    if !error.is_transient() {
                        self.forget_scheme(endpoint);
                    }
                    return Err(error.into());
                }
            };
            let status = answer.response.status();
            if status.is_success() {
                return Ok(answer);
            }
            // Only the registry itself may ask for credentials, not whom it redirects to.
            let asks = !answer.elsewhere
                && (status == StatusCode::UNAUTHORIZED
                    || (status == StatusCode::FORBIDDEN
                        && insufficient(answer.response.headers())));
            if asks && answers < MAX_ANSWERS {
                answers += 1;
                let headers = answer.response.headers().clone();
                let tokens = &self.0.tokens;
                let header =
                    tokens.answer(&self.0.connections, endpoint, credentials, &headers).await?;
                // The same again would be refused again.
                if let Some(header) = header
                    && authorization.as_ref() != Some(&header)
                {
                    authorization = Some(header);
                    continue;
                }
            }
            let retry_after = retry_after(answer.response.headers());
            return Err(Failure { error: self.failure(answer).await, retry_after });
        }
    }

    /// The error an answer stands for.
    async fn failure(&self, answer: Answer) -> ClientError {
        let status = answer.response.status();
        let url = shown(&answer.url);
        let schemes: Vec<String> = answer
            .response
            .headers()
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(crate::auth::challenge::parse)
            .map(|challenge| challenge.scheme)
            .collect();
        let limit = self.0.options.response_timeout;
        let body = read_limited(answer.response, &answer.url, MAX_ERROR_BODY, limit).await;
        let message = body.map(|body| registry_message(&body)).unwrap_or_default();
        match status {
            StatusCode::NOT_FOUND => ClientError::NotFound { url, message },
            StatusCode::UNAUTHORIZED
                if !schemes.is_empty()
                    && !schemes.iter().any(|s| s == "bearer" || s == "basic") =>
            {
                ClientError::Challenge { url, schemes: schemes.join(", ") }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ClientError::Unauthorized { url, message }
            }
            status => ClientError::Status { url, status: status.as_u16(), message },
        }
    }

    /// What `endpoint` speaks. Anything but HTTPS is only looked for when it is insecure.
    async fn scheme(&self, endpoint: &Endpoint) -> Result<Scheme, ClientError> {
        if !endpoint.insecure {
            return Ok(Scheme::Https);
        }
        if let Some((scheme, since)) = self.schemes().get(&endpoint.host)
            && since.elapsed() < SCHEME_AGE
        {
            return Ok(*scheme);
        }
        let mut first = None;
        for scheme in [Scheme::Https, Scheme::Http] {
            let mut ping = Call::get(base(endpoint, scheme)?);
            // Any answer at all will do.
            ping.follow = false;
            let limit = self.0.options.connect_timeout;
            let sent = self.0.connections.send(ping, &endpoint.host, true);
            let url = format!("{}/v2/", endpoint.host);
            let answer = tokio::time::timeout(limit, sent)
                .await
                .unwrap_or(Err(ClientError::Timeout { url, after: limit }));
            match answer {
                Ok(_) => {
                    self.schemes().insert(endpoint.host.clone(), (scheme, Instant::now()));
                    return Ok(scheme);
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        match first {
            Some(error) => Err(error),
            None => Ok(Scheme::Https),
        }
    }

    fn forget_scheme(&self, endpoint: &Endpoint) {
        self.schemes().remove(&endpoint.host);
    }

    fn schemes(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Scheme, Instant)>> {
        // The map is whole after every operation on it.
        self.0.schemes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn base(endpoint: &Endpoint, scheme: Scheme) -> Result<Uri, ClientError> {
    // Docker Hub's name is not its address.
    let host = match endpoint.host.as_str() {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    let scheme = match scheme {
        Scheme::Https => "https",
        Scheme::Http => "http",
    };
    let text = format!("{scheme}://{host}/v2/");
    // Endpoints can be made by hand: what is no host must not become part of an address.
    let url = if valid_domain(&endpoint.host) { text.parse().ok() } else { None };
    url.ok_or(ClientError::Address { url: text })
}

fn address(endpoint: &Endpoint, path: Path<'_>, scheme: Scheme) -> Result<Uri, ClientError> {
    let base = base(endpoint, scheme)?;
    let repository = &endpoint.repository;
    let text = match path {
        Path::Manifest(target) => format!("{base}{repository}/manifests/{target}"),
        Path::Blob(digest) => format!("{base}{repository}/blobs/{digest}"),
    };
    let sound = repository.split('/').all(valid_component);
    let url = if sound { text.parse().ok() } else { None };
    url.ok_or(ClientError::Address { url: text })
}

fn insufficient(headers: &HeaderMap) -> bool {
    headers
        .get_all("www-authenticate")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(crate::auth::challenge::parse)
        .any(|challenge| challenge.param("error") == Some("insufficient_scope"))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The first message of a registry's error (OCI distribution specification, "Error codes").
fn registry_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(body) else { return String::new() };
    let Some(first) = errors.first() else { return String::new() };
    error::printable(&format!("{} {}", first.code, first.message))
}

/// The whole body, if it is at most `limit` bytes and comes within `time`.
async fn read_limited(
    response: Response<Incoming>,
    url: &Uri,
    limit: u64,
    time: Duration,
) -> Result<Bytes, ClientError> {
    let too_large = || ClientError::TooLarge { url: shown(url), limit };
    let announced = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let body = Limited::new(response.into_body(), most).collect();
    match tokio::time::timeout(time, body).await {
        Err(_) => Err(ClientError::Timeout { url: shown(url), after: time }),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => match error.downcast::<hyper::Error>() {
            Ok(source) => Err(ClientError::Read { url: shown(url), source: *source }),
            Err(_) => Err(ClientError::Protocol { url: shown(url), problem: "unreadable body" }),
        },
    }
}
