//! The cache: what was attached, with which configuration and with what result.
//!
//! One file for each attachment, `<cache dir>/results/<network>-<container>-<ifname>`, in the
//! form that libcni calls `cniCacheV1`. An entry without `result` tells of an ADD that has not
//! ended, or of one that failed and whose DEL failed too.
//!
//! Written to a temporary file and renamed, so that a reader finds a whole entry or none. Not
//! synced: the attachment's owner has a durable record of it, and DEL can do without an entry.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use failpoint::step;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Attachment, Error, NetworkList, Result};

/// The value of `kind`.
const KIND: &str = "cniCacheV1";

/// One entry, as it is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    kind: String,
    pub(crate) container_id: String,
    /// The list's JSON in base64, as Go writes bytes.
    config: String,
    pub(crate) if_name: String,
    pub(crate) network_name: String,
    #[serde(default)]
    pub(crate) netns: String,
    #[serde(default)]
    pub(crate) cni_args: Option<Vec<(String, String)>>,
    #[serde(default)]
    pub(crate) capability_args: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Value>,
}

impl Entry {
    pub(crate) fn new(
        list: &NetworkList,
        attachment: &Attachment,
        capabilities: &Map<String, Value>,
    ) -> Entry {
        Entry {
            kind: KIND.to_owned(),
            container_id: attachment.container_id.clone(),
            config: STANDARD.encode(list.to_json().to_string()),
            if_name: attachment.ifname.clone(),
            network_name: list.name.clone(),
            netns: attachment
                .netns
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            cni_args: Some(attachment.args.clone()),
            capability_args: Some(capabilities.clone()),
            result: None,
        }
    }

    /// The configuration that ADD used.
    pub(crate) fn list(&self) -> std::result::Result<NetworkList, String> {
        let bytes = STANDARD.decode(&self.config).map_err(|error| error.to_string())?;
        let object: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        // No path: an entry of another runtime may not be self-contained, but the folder beside
        // the cache is not the one it was read from.
        NetworkList::from_list(object, Path::new("")).map_err(|error| error.to_string())
    }
}

/// How the names of unfinished entries begin.
const TEMPORARY: &str = ".tmp-";

/// The folder of the entries.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn new(cache_dir: &Path) -> Cache {
        Cache { dir: cache_dir.join("results") }
    }

    pub(crate) fn path(&self, network: &str, container: &str, ifname: &str) -> PathBuf {
        self.dir.join(format!("{network}-{container}-{ifname}"))
    }

    /// Removes what a process that died while it wrote left behind. For a single user of the cache.
    pub(crate) fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                let _ = step!("cni cache: remove one cut short", fs::remove_file(entry.path()));
            }
        }
    }

    pub(crate) fn write(&self, entry: &Entry) -> Result<()> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let path = self.path(&entry.network_name, &entry.container_id, &entry.if_name);
        let failed = |source| Error::Cache { action: "write", path: path.clone(), source };
        let bytes = serde_json::to_vec(entry)
            .map_err(|source| Error::Encode { what: "a cache entry", source })?;
        step!("cni cache: make folder", fs::create_dir_all(&self.dir)).map_err(failed)?;
        // A dot, so that it is never taken for an entry.
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!("{TEMPORARY}{}-{count}", std::process::id()));
        let written = step!(
            "cni cache: write",
            fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)
                .and_then(|mut file| file.write_all(&bytes))
        )
        .and_then(|()| step!("cni cache: rename", fs::rename(&temporary, &path)));
        if written.is_err() {
            // no step: a start removes it, too.
            let _ = fs::remove_file(&temporary);
        }
        written.map_err(failed)
    }

    pub(crate) fn remove(&self, network: &str, container: &str, ifname: &str) -> Result<()> {
        let path = self.path(network, container, ifname);
        match step!("cni cache: remove", fs::remove_file(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::Cache { action: "remove", path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// One entry; `None` if there is none or it is damaged.
    pub(crate) fn read(&self, network: &str, container: &str, ifname: &str) -> Option<Entry> {
        self.read_file(&self.path(network, container, ifname))
    }

    fn read_file(&self, path: &Path) -> Option<Entry> {
        let entry: Entry = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok()?,
            Err(_) => return None,
        };
        (entry.kind == KIND).then_some(entry)
    }

    /// All entries that can be read.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        self.select("")
    }

    /// The entries of one attachment, of whatever network.
    pub(crate) fn of(&self, container: &str, ifname: &str) -> Result<Vec<Entry>> {
        let mut entries = self.select(&format!("-{container}-{ifname}"))?;
        // Names may contain the separator.
        entries.retain(|entry| entry.container_id == container && entry.if_name == ifname);
        Ok(entries)
    }

    /// The entries whose file's name ends with `suffix`.
    fn select(&self, suffix: &str) -> Result<Vec<Entry>> {
        let failed = |source| Error::Cache { action: "read", path: self.dir.clone(), source };
        let folder = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in folder {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            if !name.starts_with(b".") && name.ends_with(suffix.as_bytes()) {
                found.extend(self.read_file(&entry.path()));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_finished_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        fs::create_dir_all(&cache.dir).unwrap();
        fs::write(cache.dir.join(".tmp-1-0"), "half").unwrap();
        fs::write(cache.dir.join("net-id-eth0"), "whole").unwrap();
        cache.sweep();
        assert!(!cache.dir.join(".tmp-1-0").exists());
        assert!(cache.dir.join("net-id-eth0").exists());
    }
}
