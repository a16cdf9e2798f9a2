//! Manifests and configs by digest, byte for byte as they were received.

use std::fs;
use std::path::Path;

use crate::durable;
use crate::error::{Error, Result};
use crate::{Digest, Store};

impl Store {
    /// Stores bytes durably under their digest. Nothing to do if they are there already.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] if it is not their digest.
    pub fn put_content(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        check(digest, bytes)?;
        // What is there but damaged is written again.
        if matches!(self.get_content(digest), Ok(Some(_))) {
            // Whoever wrote it may not have come to this.
            return durable::sync_folder(&self.inner.content);
        }
        durable::write(&self.inner.content, digest.hex(), bytes)
    }

    /// The bytes with a digest, checked; `None` if they are not there.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] if the disk gives other bytes than were stored.
    pub fn get_content(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        read(&self.inner.content, digest)
    }

    /// Removes content; nothing to do if it is not there. Whether an image needs it is for the
    /// caller to know; [`Store::gc`] knows it by itself.
    pub fn remove_content(&self, digest: &Digest) -> Result<()> {
        durable::remove(&self.inner.content, digest.hex())
    }
}

fn check(digest: &Digest, bytes: &[u8]) -> Result<()> {
    let actual = Digest::of(bytes);
    if actual == *digest {
        Ok(())
    } else {
        Err(Error::DigestMismatch { what: "content", expected: digest.clone(), actual })
    }
}

/// Everything there is.
pub(crate) fn list(folder: &Path) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        digests.extend(entry.file_name().to_str().and_then(|hex| Digest::from_hex(hex).ok()));
    }
    Ok(digests)
}

/// See [`Store::get_content`].
pub(crate) fn read(folder: &Path, digest: &Digest) -> Result<Option<Vec<u8>>> {
    let path = folder.join(digest.hex());
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    check(digest, &bytes)?;
    Ok(Some(bytes))
}
