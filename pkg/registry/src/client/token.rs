//! Getting in: from a registry's challenge and one's credentials to an `Authorization` header.
//!
//! ```text
//!   request ──> 401 WWW-Authenticate: Basic  ──────────────────────────> Basic user:password
//!               401 WWW-Authenticate: Bearer realm,service,scope
//!                     ├─ name and password, or nothing ─ GET realm ───┐
//!                     ├─ identity token ─ POST realm (refresh_token) ─┴─> Bearer token (cached)
//!                     └─ registry token ────────────────────────────────> sent from the beginning
//!   request ──> 401 error="insufficient_scope": the same with the scopes of both challenges
//! ```
//!
//! Tokens are cached per (host, repository, credentials): one pod's token is never used for
//! another's pull (Docker registry token authentication; OAuth2, RFC 6749, section 6).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode, Uri};
use serde::Deserialize;

use super::error::ClientError;
use super::http::{Call, Connections, shown};
use super::read_limited;
use crate::auth::challenge::{self, Challenge};
use crate::auth::{Credentials, Secret};
use crate::conf::Endpoint;

/// A token answer is small.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// By the protocol a token lives at least a minute.
const MIN_LIFE: Duration = Duration::from_secs(60);
const MAX_LIFE: Duration = Duration::from_secs(3600);
/// The cache is swept when it has grown to this.
const SWEEP_AT: usize = 256;

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    host: String,
    repository: String,
    fingerprint: String,
}

impl Key {
    pub(super) fn new(endpoint: &Endpoint, credentials: &Credentials) -> Key {
        Key {
            host: endpoint.host.clone(),
            repository: endpoint.repository.clone(),
            fingerprint: credentials.fingerprint(),
        }
    }
}

#[derive(Clone)]
struct Entry {
    header: HeaderValue,
    scopes: Vec<String>,
    until: Instant,
}

/// What gets one in, as far as known.
#[derive(Default)]
pub(super) struct Tokens {
    entries: Mutex<HashMap<Key, Entry>>,
}

impl Tokens {
    /// The header for a first try, if one is known.
    pub(super) fn known(&self, key: &Key, credentials: &Credentials) -> Option<HeaderValue> {
        if let Credentials::RegistryToken(token) = credentials {
            return bearer(token.reveal());
        }
        let entries = self.lock();
        entries.get(key).filter(|e| e.until > Instant::now()).map(|e| e.header.clone())
    }

    fn scopes(&self, key: &Key) -> Vec<String> {
        self.lock().get(key).map(|e| e.scopes.clone()).unwrap_or_default()
    }

    fn store(&self, key: &Key, header: HeaderValue, scopes: Vec<String>, life: Duration) {
        let now = Instant::now();
        let mut entries = self.lock();
        if entries.len() >= SWEEP_AT {
            entries.retain(|_, entry| entry.until > now);
        }
        entries.insert(key.clone(), Entry { header, scopes, until: now + life });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        // The map is whole after every operation on it.
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Answers the challenges of a refusal with a header to try again with; `None` when there is
    /// nothing (more) to show.
    pub(super) async fn answer(
        &self,
        connections: &Connections,
        endpoint: &Endpoint,
        credentials: &Credentials,
        headers: &HeaderMap,
    ) -> Result<Option<HeaderValue>, ClientError> {
        let key = Key::new(endpoint, credentials);
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        if let Credentials::RegistryToken(_) = credentials {
            return Ok(None);
        }
        if let Some(challenge) = challenges
            .iter()
            .find(|c| c.scheme == "bearer" && c.param("realm").is_some_and(|r| !r.is_empty()))
        {
            let mut scopes = match challenge.param("scope") {
                Some(scope) if !scope.trim().is_empty() => {
                    scope.split_whitespace().map(str::to_owned).collect()
                }
                _ => vec![format!("repository:{}:pull", endpoint.repository)],
            };
            if challenge.param("error") == Some("insufficient_scope") {
                let held = self.scopes(&key);
                scopes.extend(held.into_iter().filter(|s| !s.is_empty()));
            }
            scopes.sort();
            scopes.dedup();
            let fetch = Fetch { connections, endpoint, credentials, challenge, scopes: &scopes };
            let (token, life) = fetch.run().await?;
            let Some(header) = bearer(token.reveal()) else {
                return Err(fetch.error("the token cannot be sent in a header"));
            };
            self.store(&key, header.clone(), scopes, life);
            return Ok(Some(header));
        }
        if challenges.iter().any(|c| c.scheme == "basic") {
            let Credentials::Basic { username, password } = credentials else { return Ok(None) };
            let header = basic(username, password);
            self.store(&key, header.clone(), Vec::new(), MAX_LIFE);
            return Ok(Some(header));
        }
        Ok(None)
    }
}

struct Fetch<'a> {
    connections: &'a Connections,
    endpoint: &'a Endpoint,
    credentials: &'a Credentials,
    challenge: &'a Challenge,
    scopes: &'a [String],
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

impl Fetch<'_> {
    fn realm(&self) -> &str {
        self.challenge.param("realm").unwrap_or_default()
    }

    fn error(&self, problem: &'static str) -> ClientError {
        let realm = match self.realm().parse::<Uri>() {
            Ok(url) => shown(&url),
            Err(_) => super::error::printable(self.realm().split('?').next().unwrap_or_default()),
        };
        ClientError::Token { realm, problem }
    }

    async fn run(&self) -> Result<(Secret, Duration), ClientError> {
        let call = self.call()?;
        let certs_host = call.url.authority().map(ToString::to_string).unwrap_or_default();
        let answer = self.connections.send(call, &certs_host, self.endpoint.insecure).await?;
        let status = answer.response.status();
        let url = answer.url.clone();
        let limit = self.connections.response_timeout();
        let body = read_limited(answer.response, &url, MAX_TOKEN_ANSWER, limit).await?;
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                // What a token server says here may repeat what it was sent.
                let message = "the token server refuses the credentials".to_owned();
                return Err(ClientError::Unauthorized { url: shown(&url), message });
            }
            status => {
                let (status, message) = (status.as_u16(), String::new());
                return Err(ClientError::Status { url: shown(&url), status, message });
            }
        }
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| self.error("its answer is not the JSON of a token"))?;
        let token = [answer.token, answer.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.is_empty())
            .ok_or_else(|| self.error("its answer has no token"))?;
        let seconds = answer.expires_in.and_then(|v| v.as_f64()).unwrap_or(0.0);
        // Not a float that from_secs_f64 would refuse: it is within the two bounds.
        let seconds = seconds.clamp(MIN_LIFE.as_secs_f64(), MAX_LIFE.as_secs_f64());
        // Some of the life is spent on the way.
        Ok((Secret::new(token), Duration::from_secs_f64(seconds * 0.9)))
    }

    fn call(&self) -> Result<Call, ClientError> {
        let realm: Uri = self.realm().parse().map_err(|_| self.error("malformed address"))?;
        match realm.scheme_str() {
            Some("https") => {}
            Some("http") if self.endpoint.insecure => {}
            Some("http") => {
                return Err(self.error("plain HTTP is only spoken to insecure registries"));
            }
            _ => return Err(self.error("the address is neither HTTP nor HTTPS")),
        }
        if realm.authority().is_none_or(|a| a.host().is_empty() || a.as_str().contains('@')) {
            return Err(self.error("the address has no usable host"));
        }
        let service = self.challenge.param("service").unwrap_or_default();
        let mut query: Vec<(&str, &str)> = Vec::new();
        if !service.is_empty() {
            query.push(("service", service));
        }
        if let Credentials::IdentityToken(token) = self.credentials {
            let scopes = self.scopes.join(" ");
            query.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "criod-registry"),
                ("refresh_token", token.reveal()),
                ("scope", scopes.as_str()),
            ]);
            let mut call = Call::get(realm);
            call.method = Method::POST;
            call.follow = false;
            call.body = Bytes::from(form(&query));
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            call.headers.insert(CONTENT_TYPE, form);
            call.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
            return Ok(call);
        }
        query.extend(self.scopes.iter().map(|scope| ("scope", scope.as_str())));
        let mut authorization = None;
        if let Credentials::Basic { username, password } = self.credentials {
            query.push(("account", username));
            authorization = Some(basic(username, password));
        }
        let glue = if realm.query().is_some() { '&' } else { '?' };
        let url = format!("{realm}{glue}{}", form(&query));
        let mut call = Call::get(url.parse().map_err(|_| self.error("malformed address"))?);
        call.authorization = authorization;
        call.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        Ok(call)
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn basic(username: &str, password: &Secret) -> HeaderValue {
    let text = STANDARD.encode(format!("{username}:{}", password.reveal()));
    // Base64 is always a valid header value.
    let mut header = HeaderValue::from_str(&format!("Basic {text}"))
        .unwrap_or(HeaderValue::from_static("Basic"));
    header.set_sensitive(true);
    header
}

/// `application/x-www-form-urlencoded`, fit for a query too.
fn form(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte));
                }
                other => text.push_str(&format!("%{other:02X}")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(
            form(&[("scope", "repository:a/b:pull,push"), ("x", "ä &=")]),
            "scope=repository%3Aa%2Fb%3Apull%2Cpush&x=%C3%A4%20%26%3D"
        );
    }

    #[test]
    fn headers_hide() {
        let header = basic("me", &Secret::new("hunter2"));
        assert_eq!(format!("{header:?}"), "Sensitive");
        assert!(bearer("a\nb").is_none());
    }
}
