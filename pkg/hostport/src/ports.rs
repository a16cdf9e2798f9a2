//! The list of all mappings, and the backend that makes the kernel follow it.

use std::collections::BTreeMap;

use tokio::sync::Mutex;

use crate::Result;
use crate::mapping::{Mapping, Table};

/// The tool that writes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// nftables.
    Nft,
    /// iptables and, for IPv6, ip6tables.
    Iptables,
}

impl Backend {
    /// The backend that works on this machine, nftables before iptables.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NoBackend`], with the reasons.
    pub async fn detect() -> Result<Backend> {
        unimplemented!()
    }
}

/// The host ports of all pods.
#[derive(Debug)]
pub struct HostPorts {
    backend: Backend,
    table: Mutex<Table>,
}

impl HostPorts {
    /// Starts with the mappings of the pods that exist, which replace what is in the kernel.
    pub async fn open(backend: Backend, _all: BTreeMap<String, Vec<Mapping>>) -> Result<HostPorts> {
        Ok(HostPorts { backend, table: Mutex::new(Table::new()) })
    }

    /// Which backend is used.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Adds a pod's mappings, or replaces them.
    pub async fn add(&self, _pod_id: &str, _mappings: &[Mapping]) -> Result<()> {
        let _table = self.table.lock().await;
        unimplemented!()
    }

    /// Removes a pod's mappings; none is no error.
    pub async fn remove(&self, _pod_id: &str) -> Result<()> {
        unimplemented!()
    }

    /// Replaces the mappings of all pods.
    pub async fn reconcile(&self, _all: BTreeMap<String, Vec<Mapping>>) -> Result<()> {
        unimplemented!()
    }
}
