//! Writes the catalogue as an OCI image layout (image specification 1.1, "image-layout").
//!
//! ```text
//! DIR/oci-layout   DIR/index.json   DIR/blobs/sha256/<hex>
//! ```
//! Each image stands in `index.json` under its first name (`org.opencontainers.image.ref.name`).
//! Spoiled images are written whole: only a registry's copy of them is spoiled.

use std::path::Path;

use serde_json::json;

use crate::store::{Catalog, media};
use crate::{Result, make_dir, write};

/// Writes all images into a folder.
pub fn write_layout(catalog: &Catalog, dir: &Path) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    make_dir(&blobs)?;
    for (digest, data) in &catalog.blobs {
        write(blobs.join(digest.trim_start_matches("sha256:")), data)?;
    }
    let mut manifests = Vec::new();
    for image in &catalog.images {
        for name in &image.names {
            let mut entry = image.root.json();
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            manifests.push(entry);
        }
    }
    let index = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": manifests});
    write(dir.join("index.json"), index.to_string().as_bytes())?;
    write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skopeo_reads_the_layout() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = crate::catalog::build(&["test/busybox:1"]).unwrap();
        write_layout(&catalog, dir.path()).unwrap();
        let out = std::process::Command::new("skopeo")
            .args(["inspect", "--raw", "--config"])
            .arg(format!("oci:{}:test/busybox:1", dir.path().display()))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(String::from_utf8_lossy(&out.stdout).contains("\"diff_ids\""));
    }
}
