//! Who one is to a registry: credentials, where they come from, and what a registry asks for.
//!
//! Secrets are kept in [`Secret`], which prints as `[hidden]`.

pub mod challenge;
mod file;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

pub use file::{AuthFile, AuthFileError};

use crate::conf::Endpoint;
use crate::digest::Hasher;

/// A password or token. Never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Why given credentials are unusable. Never holds any part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The `auth` field is not base64.
    #[error("the auth field is not base64")]
    Base64,
    /// The `auth` field has no colon.
    #[error("the auth field does not hold user:password")]
    NoColon,
}

/// What one can show a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// A name and a password.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token, exchanged for access tokens.
    IdentityToken(Secret),
    /// An access token, sent as it is.
    RegistryToken(Secret),
}

impl Credentials {
    /// A name and a password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Credentials {
        Credentials::Basic { username: username.into(), password: Secret::new(password) }
    }

    /// From the fields of CRI's `AuthConfig`, of which any may be empty. The most specific wins:
    /// registry token, identity token, name and password, `auth` (base64 of `user:password`).
    pub fn from_cri(
        username: &str,
        password: &str,
        auth: &str,
        identity_token: &str,
        registry_token: &str,
    ) -> Result<Credentials, CredentialsError> {
        if !registry_token.is_empty() {
            return Ok(Credentials::RegistryToken(Secret::new(registry_token)));
        }
        if !identity_token.is_empty() {
            return Ok(Credentials::IdentityToken(Secret::new(identity_token)));
        }
        if !username.is_empty() || !password.is_empty() {
            return Ok(Credentials::basic(username, password));
        }
        if auth.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        Credentials::from_auth_field(auth)
    }

    /// From base64 of `user:password`.
    pub fn from_auth_field(auth: &str) -> Result<Credentials, CredentialsError> {
        let bytes = STANDARD
            .decode(auth.trim())
            .or_else(|_| STANDARD_NO_PAD.decode(auth.trim()))
            .map_err(|_| CredentialsError::Base64)?;
        let text = String::from_utf8(bytes).map_err(|_| CredentialsError::Base64)?;
        let (username, password) = text.split_once(':').ok_or(CredentialsError::NoColon)?;
        // Some writers pad the password with NULs.
        Ok(Credentials::basic(username, password.trim_matches('\0')))
    }

    /// Whether there is nothing to show.
    pub fn is_anonymous(&self) -> bool {
        *self == Credentials::Anonymous
    }

    /// Tells credentials apart without holding them: what tokens are cached by.
    pub(crate) fn fingerprint(&self) -> String {
        let (kind, one, two) = match self {
            Credentials::Anonymous => return String::new(),
            Credentials::Basic { username, password } => {
                ("b", username.as_str(), password.reveal())
            }
            Credentials::IdentityToken(token) => ("i", token.reveal(), ""),
            Credentials::RegistryToken(token) => ("r", token.reveal(), ""),
        };
        let mut hasher = Hasher::new(crate::digest::Algorithm::Sha256);
        for part in [kind, one, two] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finish().hex().to_owned()
    }
}

/// The credentials of one pull: those given with the request, and files to look others up in.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    given: Option<Credentials>,
    files: Vec<AuthFile>,
}

impl Keyring {
    /// No credentials.
    pub fn anonymous() -> Keyring {
        Keyring::default()
    }

    /// Those given with a request, for all places the image may come from.
    pub fn given(credentials: Credentials) -> Keyring {
        Keyring { given: Some(credentials).filter(|c| !c.is_anonymous()), files: Vec::new() }
    }

    /// The same with one more file to look in, after those there are.
    pub fn with_file(mut self, file: AuthFile) -> Keyring {
        self.files.push(file);
        self
    }

    /// What to show at `endpoint`: the given ones, else the first file's that has an entry.
    pub fn for_endpoint(&self, endpoint: &Endpoint) -> Credentials {
        if let Some(given) = &self.given {
            return given.clone();
        }
        self.files
            .iter()
            .find_map(|file| file.lookup(&endpoint.host, &endpoint.repository))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cri_fields() {
        let from = |u, p, a, i, r| Credentials::from_cri(u, p, a, i, r);
        assert_eq!(from("", "", "", "", ""), Ok(Credentials::Anonymous));
        assert_eq!(from("u", "p", "", "", ""), Ok(Credentials::basic("u", "p")));
        assert_eq!(from("", "", "dTpwOnE=", "", ""), Ok(Credentials::basic("u", "p:q")));
        assert_eq!(from("", "", "dTpwOnE", "", ""), Ok(Credentials::basic("u", "p:q")));
        assert_eq!(from("", "", "!", "", ""), Err(CredentialsError::Base64));
        assert_eq!(from("", "", "dTE=", "", ""), Err(CredentialsError::NoColon));
        assert!(matches!(from("u", "p", "", "i", ""), Ok(Credentials::IdentityToken(_))));
        assert!(matches!(from("u", "p", "", "i", "r"), Ok(Credentials::RegistryToken(_))));
    }

    #[test]
    fn nothing_is_printed() {
        for credentials in [
            Credentials::basic("me", "hunter2"),
            Credentials::IdentityToken(Secret::new("hunter2")),
            Credentials::RegistryToken(Secret::new("hunter2")),
        ] {
            let keyring = Keyring::given(credentials.clone());
            assert!(!format!("{credentials:?} {keyring:#?}").contains("hunter2"));
            assert!(!credentials.fingerprint().contains("hunter2"));
        }
    }

    #[test]
    fn fingerprints_differ() {
        let all = [
            Credentials::basic("ab", "c"),
            Credentials::basic("a", "bc"),
            Credentials::IdentityToken(Secret::new("ab")),
            Credentials::RegistryToken(Secret::new("ab")),
            Credentials::Anonymous,
        ];
        for (i, one) in all.iter().enumerate() {
            for (j, two) in all.iter().enumerate() {
                assert_eq!(one.fingerprint() == two.fingerprint(), i == j);
            }
        }
    }
}
