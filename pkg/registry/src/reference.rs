//! Image references: `domain/path[:tag][@digest]`, read and completed the way every Docker
//! command line has taught people to write them.
//!
//! ```text
//!   text            domain        path            tag
//!   nginx           docker.io     library/nginx   -        (unqualified)
//!   me/app:1        docker.io     me/app          1        (unqualified)
//!   localhost/app   localhost     app             -
//!   reg:5000/a/b    reg:5000      a/b             -
//! ```
//!
//! The first component is a host when it holds a `.` or a `:`, is `localhost`, or has an upper-case
//! letter (a path never has one). The tag is *not* filled in with `latest` when read; see
//! [`Reference::with_default_tag`].

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The registry an unqualified name belongs to when nothing else is configured.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag meant when neither tag nor digest is given.
pub const DEFAULT_TAG: &str = "latest";
/// The longest `domain/path`, in bytes.
pub const MAX_NAME: usize = 255;
/// The longest tag, in bytes.
pub const MAX_TAG: usize = 128;

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the image name is empty")]
    Empty,
    /// The name is 64 hex digits, which would be taken for an image id.
    #[error("image name {0:?} looks like an image id")]
    LooksLikeId(String),
    /// The host part is malformed.
    #[error("image name {name:?} has an invalid registry host {domain:?}")]
    Domain {
        /// The whole text.
        name: String,
        /// The offending part.
        domain: String,
    },
    /// A path component is malformed.
    #[error("image name {name:?} has an invalid repository path {path:?}")]
    Path {
        /// The whole text.
        name: String,
        /// The offending part.
        path: String,
    },
    /// The path has upper-case letters.
    #[error("image name {0:?}: the repository must be lower case")]
    UpperCase(String),
    /// `domain/path` is too long.
    #[error("image name {0:?} is longer than 255 characters")]
    TooLong(String),
    /// The tag is malformed or too long.
    #[error("image name {name:?} has an invalid tag {tag:?}")]
    Tag {
        /// The whole text.
        name: String,
        /// The offending part.
        tag: String,
    },
    /// The digest is malformed.
    #[error("image name {name:?} has an invalid digest")]
    Digest {
        /// The whole text.
        name: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
}

/// A fully qualified image reference. Every value is well-formed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads `text`; an unqualified name is completed with `docker.io` (and `library/`).
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse_short(text).map(|(reference, _)| reference)
    }

    /// Reads `text` as [`Reference::parse`] does, and says whether it named no registry itself.
    pub fn parse_short(text: &str) -> Result<(Reference, bool), ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::LooksLikeId(text.into()));
        }
        let (domain, rest, short) = match text.split_once('/') {
            Some((first, rest)) if is_domain(first) => (first, rest, false),
            _ => (DEFAULT_DOMAIN, text, true),
        };
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|source| ReferenceError::Digest { name: text.into(), source })?;
                (rest, Some(digest))
            }
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !valid_tag(tag)
        {
            return Err(ReferenceError::Tag { name: text.into(), tag: tag.into() });
        }
        if !valid_domain(domain) {
            return Err(ReferenceError::Domain { name: text.into(), domain: domain.into() });
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase(text.into()));
        }
        if !path.split('/').all(valid_component) {
            return Err(ReferenceError::Path { name: text.into(), path: path.into() });
        }
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(ReferenceError::TooLong(text.into()));
        }
        let reference =
            Reference { domain: domain.into(), path, tag: tag.map(str::to_owned), digest };
        Ok((reference, short))
    }

    /// The registry, `host[:port]`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one is given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one is given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `domain/path`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same reference with the tag `latest` where it has neither tag nor digest.
    pub fn with_default_tag(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.into());
        }
        self
    }

    /// The same repository, named by `digest` and no tag.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference {
            domain: self.domain.clone(),
            path: self.path.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// The same reference without its tag, when a digest says it better.
    pub fn without_redundant_tag(mut self) -> Reference {
        if self.digest.is_some() {
            self.tag = None;
        }
        self
    }

    /// What to ask the registry for: the digest when there is one, else the tag, else `latest`.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.into(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether the first component of a name is a registry host rather than part of the path.
pub(crate) fn is_domain(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// `host[:port]`, the host being dotted labels or a bracketed IPv6 address.
pub(crate) fn valid_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match rest.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if rest.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    let host_ok = host.is_none_or(|host| {
        host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
    });
    let port_ok =
        port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok());
    host_ok && port_ok
}

/// `[a-z0-9]+ ((. | _ | __ | -+) [a-z0-9]+)*`
pub(crate) fn valid_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !word(first) || !word(last) {
        return false;
    }
    // What separates two words is a run of other characters: only these runs are allowed.
    bytes
        .split(|&b| word(b))
        .filter(|run| !run.is_empty())
        .all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|&b| b == b'-'))
}

/// `\w[\w.-]{0,127}`
pub(crate) fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= MAX_TAG
        && bytes.next().is_some_and(word)
        && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn completes_names() {
        for (text, canonical, short) in [
            ("nginx", "docker.io/library/nginx", true),
            ("nginx:1.25", "docker.io/library/nginx:1.25", true),
            ("me/app", "docker.io/me/app", true),
            ("docker.io/nginx", "docker.io/library/nginx", false),
            ("index.docker.io/nginx", "docker.io/library/nginx", false),
            ("localhost/app", "localhost/app", false),
            ("localhost:5000/app:v1", "localhost:5000/app:v1", false),
            ("reg.example.com/a/b/c", "reg.example.com/a/b/c", false),
            ("Reg/app", "Reg/app", false),
            ("[::1]:5000/app", "[::1]:5000/app", false),
            ("a/b__c/d--e_f.g", "docker.io/a/b__c/d--e_f.g", true),
        ] {
            let (reference, was_short) = Reference::parse_short(text).unwrap();
            assert_eq!((reference.to_string().as_str(), was_short), (canonical, short), "{text}");
        }
    }

    #[test]
    fn tag_and_digest() {
        let both = Reference::parse(&format!("q.io/a:b@sha256:{HEX}")).unwrap();
        assert_eq!(both.tag(), Some("b"));
        assert_eq!(both.target(), format!("sha256:{HEX}"));
        assert_eq!(both.clone().with_default_tag(), both);
        assert_eq!(both.without_redundant_tag().to_string(), format!("q.io/a@sha256:{HEX}"));
        let none = Reference::parse("q.io/a").unwrap();
        assert_eq!(none.target(), "latest");
        assert_eq!(none.with_default_tag().to_string(), "q.io/a:latest");
    }

    #[test]
    fn refuses() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_name = format!("q.io/{}", "a".repeat(251));
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "Nginx",
            "q.io/App",
            "a:",
            "a:.b",
            "a:b:c",
            "a@",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a/../b",
            "../etc",
            "q.io/..",
            "a b",
            "é",
            "q.io:port/a",
            "q.io:99999/a",
            "-q.io/a",
            "q..io/a",
            "[::1/a",
            "[zz]/a",
            "a@sha256:12",
            "https://q.io/a",
            HEX,
            &long_tag,
            &long_name,
            "a\n",
            "a:b\n",
            "q.io/a?x",
            "q.io/a#x",
            "u@q.io/a",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Reference::parse(&format!("a:{}", "t".repeat(128))).is_ok());
        assert!(Reference::parse(&format!("q.io/{}", "a".repeat(250))).is_ok());
    }

    proptest! {
        #[test]
        fn never_panics_and_is_idempotent(text in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                let again = Reference::parse(&reference.to_string()).unwrap();
                prop_assert_eq!(again, reference);
            }
        }

        #[test]
        fn well_formed_round_trips(
            domain in "([a-z0-9]{1,8}\\.){1,3}[a-z]{2,4}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        ) {
            prop_assume!(domain != DEFAULT_DOMAIN && domain != "index.docker.io");
            let text = format!(
                "{domain}/{path}{}", tag.as_ref().map(|t| format!(":{t}")).unwrap_or_default());
            let reference = Reference::parse(&text).unwrap();
            prop_assert_eq!(reference.to_string(), text);
            prop_assert_eq!(reference.tag(), tag.as_deref());
        }

        #[test]
        fn what_is_accepted_is_safe_in_a_url_path(text in "[a-zA-Z0-9./:@_%?# -]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert!(!reference.path().contains(['%', '?', '#', ' ', '@', ':']));
                prop_assert!(reference.path().split('/').all(|c| c != ".." && c != "." && !c.is_empty()));
            }
        }
    }
}
