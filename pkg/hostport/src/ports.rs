//! The list of all mappings, and the backend that makes the kernel follow it.
//!
//! ```text
//!   add, remove, reconcile -> new list -> whole table into the kernel -> list kept
//!                                              | failed: the old list stays, as does the
//!                                              v kernel's table
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use failpoint::step;
use tokio::sync::Mutex;
use tracing::debug;

use crate::command;
use crate::mapping::{self, Mapping, Protocol, Table};
use crate::{Error, Result, iptables, localnet, nft};

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
    /// [`Error::NoBackend`], with the reasons.
    pub async fn detect() -> Result<Backend> {
        let Err(nft) = nft::probe().await else { return Ok(Backend::Nft) };
        debug!(error = %nft, "nftables cannot be used for host ports");
        match iptables::probe().await {
            Ok(()) => Ok(Backend::Iptables),
            Err(iptables) => {
                Err(Error::NoBackend { nft: Box::new(nft), iptables: Box::new(iptables) })
            }
        }
    }

    async fn apply(self, table: &Table) -> Result<()> {
        match self {
            Backend::Nft => nft::apply(table).await,
            Backend::Iptables => iptables::apply(table).await,
        }
    }
}

/// The host ports of all pods, in the network namespace of this process.
#[derive(Debug)]
pub struct HostPorts {
    backend: Backend,
    /// What the kernel has. Held across the tool's run: changes come one after the other.
    table: Mutex<Table>,
}

impl HostPorts {
    /// Starts with the mappings of the pods that exist, which replace what is in the kernel.
    ///
    /// # Errors
    ///
    /// As [`HostPorts::reconcile`].
    pub async fn open(backend: Backend, all: BTreeMap<String, Vec<Mapping>>) -> Result<HostPorts> {
        let ports = HostPorts { backend, table: Mutex::new(Table::new()) };
        ports.reconcile(all).await?;
        Ok(ports)
    }

    /// Which backend is used.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Adds a pod's mappings, or replaces those that it had. May be repeated; each time, the
    /// whole table is written, so a table that somebody has deleted comes back.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if another pod has one of the ports; [`Error::PodId`],
    /// [`Error::Mapping`]; those of the tools. Nothing has changed then.
    pub async fn add(&self, pod_id: &str, mappings: &[Mapping]) -> Result<()> {
        let mut table = self.table.lock().await;
        let admitted = mapping::admit(&table, pod_id, mappings)?;
        if admitted.is_empty() && !table.contains_key(pod_id) {
            return Ok(());
        }
        let mut wanted = table.clone();
        if admitted.is_empty() {
            wanted.remove(pod_id);
        } else {
            wanted.insert(pod_id.to_owned(), admitted);
        }
        self.change(&mut table, wanted).await
    }

    /// Removes a pod's mappings; that it has none is no error.
    ///
    /// # Errors
    ///
    /// Those of the tools. The mappings are still there then, and still listed.
    pub async fn remove(&self, pod_id: &str) -> Result<()> {
        let mut table = self.table.lock().await;
        if !table.contains_key(pod_id) {
            return Ok(());
        }
        let mut wanted = table.clone();
        wanted.remove(pod_id);
        self.change(&mut table, wanted).await
    }

    /// Replaces the mappings of all pods.
    ///
    /// # Errors
    ///
    /// As [`HostPorts::add`].
    pub async fn reconcile(&self, all: BTreeMap<String, Vec<Mapping>>) -> Result<()> {
        let mut table = self.table.lock().await;
        let mut wanted = Table::new();
        for (pod, mappings) in &all {
            let admitted = mapping::admit(&wanted, pod, mappings)?;
            if !admitted.is_empty() {
                wanted.insert(pod.clone(), admitted);
            }
        }
        self.change(&mut table, wanted).await
    }

    /// Makes the kernel follow `wanted`, and then `table`.
    async fn change(&self, table: &mut Table, wanted: Table) -> Result<()> {
        step!("host ports: apply", self.backend.apply(&wanted).await)?;
        localnet::allow(&wanted);
        let before = std::mem::replace(table, wanted);
        forget_flows(&before, table).await;
        Ok(())
    }
}

/// Has the kernel forget the UDP flows of mappings that came or went: a sender that does not
/// pause would else be led to where its first packet went for as long as it sends.
async fn forget_flows(before: &Table, after: &Table) {
    const CONNTRACK: &str = "conntrack";
    let udp = |table: &Table| -> BTreeSet<Mapping> {
        let all = table.values().flatten();
        all.filter(|mapping| mapping.protocol == Protocol::Udp).cloned().collect()
    };
    let changed: BTreeSet<(u16, bool)> = udp(before)
        .symmetric_difference(&udp(after))
        .map(|mapping| (mapping.host_port, mapping.pod_ip.is_ipv4()))
        .collect();
    for (port, v4) in changed {
        let port = port.to_string();
        let family = if v4 { "ipv4" } else { "ipv6" };
        let args = ["-D", "-f", family, "-p", "udp", "--orig-port-dst", &port];
        match command::run(CONNTRACK, &args, "").await {
            Ok(_) => {}
            Err(Error::Run { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                debug!("no conntrack program: old UDP flows stay until they are quiet");
                return;
            }
            // It also fails if there was no such flow.
            Err(error) => debug!(%error, port, "no UDP flows were deleted"),
        }
    }
}
