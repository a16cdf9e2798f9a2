//! The verbs: a network's plugins run in order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Attachment, CniResult, NetworkList, Result};

/// How long one run of one plugin may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// ADD; 5 minutes unless told otherwise.
    pub add: Duration,
    /// DEL; 1 minute.
    pub del: Duration,
    /// CHECK; 1 minute.
    pub check: Duration,
    /// STATUS; 10 seconds.
    pub status: Duration,
    /// GC; 1 minute.
    pub gc: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            add: Duration::from_secs(300),
            del: Duration::from_secs(60),
            check: Duration::from_secs(60),
            status: Duration::from_secs(10),
            gc: Duration::from_secs(60),
        }
    }
}

/// An attachment that GC must keep.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ValidAttachment {
    /// The container's id.
    pub container_id: String,
    /// The interface's name.
    pub ifname: String,
}

/// An attachment that the cache knows of.
#[derive(Debug, Clone, PartialEq)]
pub struct Cached {
    /// The network's name.
    pub network: String,
    /// The container's id.
    pub container_id: String,
    /// The interface's name.
    pub ifname: String,
    /// The network namespace at the time of ADD.
    pub netns: PathBuf,
    /// The result; `None` for an ADD that has not ended or has failed.
    pub result: Option<CniResult>,
}

/// The installed plugins and the cache of what they attached.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// The folders of the plugins' programs, in the order of search.
    pub plugin_dirs: Vec<PathBuf>,
    /// The folder of the cache; its entries are in `results` below it.
    pub cache_dir: PathBuf,
    /// The limits.
    pub timeouts: Timeouts,
}

impl Plugins {
    /// With the default timeouts.
    pub fn new(plugin_dirs: Vec<PathBuf>, cache_dir: &Path) -> Plugins {
        Plugins { plugin_dirs, cache_dir: cache_dir.to_owned(), timeouts: Timeouts::default() }
    }

    /// Attaches a container to a network.
    pub async fn add(&self, _list: &NetworkList, _attachment: &Attachment) -> Result<CniResult> {
        unimplemented!()
    }

    /// Detaches a container.
    pub async fn del(&self, _list: Option<&NetworkList>, _attachment: &Attachment) -> Result<()> {
        unimplemented!()
    }

    /// Asks whether an attachment is as ADD left it.
    pub async fn check(&self, _list: &NetworkList, _attachment: &Attachment) -> Result<()> {
        unimplemented!()
    }

    /// Asks whether the network can serve an ADD.
    pub async fn status(&self, _list: &NetworkList) -> Result<()> {
        unimplemented!()
    }

    /// Removes what belongs to attachments other than `valid`.
    pub async fn gc(&self, _list: &NetworkList, _valid: &[ValidAttachment]) -> Result<()> {
        unimplemented!()
    }

    /// What the cache knows of.
    pub fn cached(&self) -> Result<Vec<Cached>> {
        unimplemented!()
    }
}
