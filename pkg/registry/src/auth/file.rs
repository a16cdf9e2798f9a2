//! The credentials file all container tools share (containers-auth.json(5)).
//!
//! ```json
//! { "auths": { "quay.io": {"auth": "…"}, "quay.io/team": {…}, "quay.io/team/app": {…} } }
//! ```
//!
//! The most specific key wins. Docker's old keys (`https://index.docker.io/v1/`) are understood for
//! whole registries. Credential helpers are not run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Credentials, CredentialsError, Secret};

/// Why a credentials file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// Cannot be read.
    #[error("reading credentials file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not JSON of the right shape. The parser's text is left out, as it may quote the file.
    #[error("credentials file {} is malformed at line {line}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An entry is unusable.
    #[error("credentials file {}: entry {key:?}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// Why.
        #[source]
        source: CredentialsError,
    },
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    auths: Option<BTreeMap<String, RawEntry>>,
}

#[derive(Deserialize, Default)]
struct RawEntry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
    #[serde(default)]
    registrytoken: Option<String>,
}

/// A credentials file, read.
#[derive(Debug, Clone, Default)]
pub struct AuthFile {
    entries: BTreeMap<String, Credentials>,
}

impl AuthFile {
    /// Reads a file. One that does not exist is an error.
    pub fn load(path: &Path) -> Result<AuthFile, AuthFileError> {
        let bytes = std::fs::read(path)
            .map_err(|source| AuthFileError::Read { path: path.to_owned(), source })?;
        AuthFile::parse(path, &bytes)
    }

    /// Reads the content of a file; `path` is for the errors.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<AuthFile, AuthFileError> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(AuthFile::default());
        }
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|e| AuthFileError::Parse { path: path.to_owned(), line: e.line() })?;
        let mut entries = BTreeMap::new();
        for (key, raw) in raw.auths.unwrap_or_default() {
            let credentials = entry(&raw).map_err(|source| AuthFileError::Entry {
                path: path.to_owned(),
                key: key.clone(),
                source,
            })?;
            if !credentials.is_anonymous() {
                let normal = normal_key(&key);
                // A plain key is more exact than one that had to be normalised.
                if normal == key || !entries.contains_key(&normal) {
                    entries.insert(normal, credentials);
                }
            }
        }
        Ok(AuthFile { entries })
    }

    /// The credentials for `repository` at `host`: of the longest key, if any.
    pub fn lookup(&self, host: &str, repository: &str) -> Option<Credentials> {
        let host = normal_host(host);
        let mut key = format!("{host}/{repository}");
        loop {
            if let Some(found) = self.entries.get(&key) {
                return Some(found.clone());
            }
            key.truncate(key.rfind('/')?);
        }
    }
}

fn entry(raw: &RawEntry) -> Result<Credentials, CredentialsError> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    // Beside an identity token the auth field only holds a stand-in for the name.
    let identity = text(&raw.identitytoken);
    if !identity.is_empty() {
        return Ok(Credentials::IdentityToken(Secret::new(identity)));
    }
    let auth = text(&raw.auth);
    let (username, password) = (text(&raw.username), text(&raw.password));
    Credentials::from_cri(&username, &password, &auth, "", &text(&raw.registrytoken))
}

fn normal_host(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

fn normal_key(key: &str) -> String {
    let url = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let trimmed = url.unwrap_or(key).trim_end_matches('/');
    let (host, path) = trimmed.split_once('/').unwrap_or((trimmed, ""));
    let legacy = path == "v1" || path == "v2";
    match (normal_host(host), path) {
        // A URL stands for the whole registry.
        (host, _) if url.is_some() || legacy => host.to_owned(),
        (host, "") => host.to_owned(),
        (host, path) => format!("{host}/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AuthFile, AuthFileError> {
        AuthFile::parse(Path::new("auth.json"), text.as_bytes())
    }

    fn user(file: &AuthFile, host: &str, repository: &str) -> Option<String> {
        match file.lookup(host, repository)? {
            Credentials::Basic { username, .. } => Some(username),
            other => Some(format!("{other:?}")),
        }
    }

    #[test]
    fn most_specific_wins() {
        // a:p, b:p, c:p, d:p
        let file = parse(
            r#"{"auths":{"q.io":{"auth":"YTpw"},"q.io/ns":{"auth":"Yjpw"},"q.io/ns/app":{"auth":"Yzpw"},
                "https://index.docker.io/v1/":{"auth":"ZDpw"},"empty.io":{},
                "id.io":{"auth":"eDo=","identitytoken":"tok"}},"credHelpers":{"x":"y"}}"#,
        )
        .unwrap();
        assert_eq!(user(&file, "q.io", "other/app").as_deref(), Some("a"));
        assert_eq!(user(&file, "q.io", "nsx/app").as_deref(), Some("a"));
        assert_eq!(user(&file, "q.io", "ns/other").as_deref(), Some("b"));
        assert_eq!(user(&file, "q.io", "ns/app").as_deref(), Some("c"));
        assert_eq!(user(&file, "q.io", "ns/app/sub").as_deref(), Some("c"));
        assert_eq!(user(&file, "q.io:443", "ns/app"), None);
        assert_eq!(user(&file, "docker.io", "library/nginx").as_deref(), Some("d"));
        assert_eq!(user(&file, "empty.io", "a"), None);
        assert_eq!(user(&file, "id.io", "a").as_deref(), Some("IdentityToken([hidden])"));
    }

    #[test]
    fn a_plain_key_beats_a_url() {
        for text in [
            r#"{"auths":{"docker.io":{"auth":"YTpw"},"https://index.docker.io/v1/":{"auth":"Yjpw"}}}"#,
            r#"{"auths":{"https://q.io":{"auth":"Yjpw"},"docker.io":{"auth":"YTpw"}}}"#,
        ] {
            assert_eq!(user(&parse(text).unwrap(), "docker.io", "x/y").as_deref(), Some("a"));
        }
    }

    #[test]
    fn errors_quote_nothing() {
        let error = parse("{\"auths\":{\"q.io\":\n{\"auth\": hunter2}}}").unwrap_err();
        assert_eq!(error.to_string(), "credentials file auth.json is malformed at line 2");
        let error = parse(r#"{"auths":{"q.io":{"auth":"hunter2!"}}}"#).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hunter2"));
        assert!(parse("").unwrap().lookup("q.io", "a").is_none());
        assert!(parse(r#"{"auths":null}"#).unwrap().lookup("q.io", "a").is_none());
    }
}
