//! Digests: the names of everything in the store.
//!
//! A digest is `sha256:` and 64 lower-case hex digits (OCI image specification, descriptor,
//! "Digests"). Nothing else is accepted, so that the part after the colon is safe as a file name.
//!
//! A *diff id* is the digest of a layer's uncompressed archive. A *chain id* names a layer together
//! with all layers below it (OCI image specification, config, "Layer ChainID"):
//!
//! ```text
//! chain(L0)       = diff(L0)
//! chain(L0..Ln)   = sha256(chain(L0..Ln-1) + " " + diff(Ln))
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Error;

/// The one algorithm.
const ALGORITHM: &str = "sha256";

/// A validated sha256 digest; `Display` gives `sha256:<hex>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Box<str>);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::digest(bytes).as_slice())
    }

    /// The digest that a finished hash stands for.
    pub(crate) fn from_hash(hash: &[u8]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(ALGORITHM.len() + 1 + hash.len() * 2);
        text.push_str(ALGORITHM);
        text.push(':');
        for byte in hash {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text.into())
    }

    /// The digest whose hex digits these are.
    pub fn from_hex(hex: &str) -> Result<Self, Error> {
        format!("{ALGORITHM}:{hex}").parse()
    }

    /// The algorithm: `sha256`.
    pub fn algorithm(&self) -> &str {
        ALGORITHM
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        // The constructor proved the prefix.
        &self.0[ALGORITHM.len() + 1..]
    }

    /// The whole text, `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let good = text
            .strip_prefix(ALGORITHM)
            .and_then(|rest| rest.strip_prefix(':'))
            .is_some_and(|hex| {
                hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            });
        if good {
            Ok(Self(text.into()))
        } else {
            Err(Error::InvalidDigest { text: text.chars().take(128).collect() })
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0.into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The chain ids of an image's layers, lowest first, from its diff ids.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        chain.push(match chain.last() {
            None => diff.clone(),
            Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
        });
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_sha256_is_accepted() {
        let hex = "a".repeat(64);
        assert_eq!(format!("sha256:{hex}").parse::<Digest>().unwrap().hex(), hex);
        for bad in [
            String::new(),
            hex.clone(),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}a"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha512:{hex}"),
            format!("sha256:../{}", &hex[3..]),
            format!("sha256-{hex}"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
            assert!(serde_json::from_value::<Digest>(bad.into()).is_err());
        }
    }

    #[test]
    fn digest_of_nothing() {
        assert_eq!(
            Digest::of(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn chain_of_three() {
        let diffs = [Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c")];
        let chain = chain_ids(&diffs);
        assert_eq!(chain[0], diffs[0]);
        assert_eq!(chain[1], Digest::of(format!("{} {}", diffs[0], diffs[1]).as_bytes()));
        assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], diffs[2]).as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }
}
