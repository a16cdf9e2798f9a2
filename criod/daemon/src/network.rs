//! A pod's network: CNI by the plugins, host ports by portmap or by our own rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api_cri::v1::{PodSandboxConfig, Protocol};
use cni::{Attachment, Bandwidth, Capabilities, Dns, NetworkList, Plugins};
use hostport::{Backend, HostPorts, Mapping};
use tracing::{debug, warn};

use crate::error::{Error, Kind, Result};
use crate::node::lock;
use crate::record::{HostPort, PodRecord};

/// The interface that a pod's address is on.
const INTERFACE: &str = "eth0";

/// How long a plugin that a criod before us left at work may take to end by itself.
const SETTLE: Duration = Duration::from_secs(10);

/// The configuration, or why there is none, and the state of its folder when it was read.
type Loaded = (cni::Fingerprint, Result<Arc<NetworkList>, String>);

/// The node's pod network.
pub(crate) struct Network {
    dir: PathBuf,
    default: String,
    plugins: Plugins,
    loaded: Mutex<Option<Loaded>>,
    host_ports: tokio::sync::OnceCell<HostPorts>,
    /// Of the pods that lived when criod began.
    begun_with: Mutex<BTreeMap<String, Vec<Mapping>>>,
    /// Pods for which plugins of the criod before may still be at work.
    unsettled: Mutex<BTreeSet<String>>,
    serve_host_ports: bool,
    /// Read while a pod is attached, written while the plugins collect what is not.
    attaching: tokio::sync::RwLock<()>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// What a pod got.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) host_ports: Vec<HostPort>,
}

fn protocol(number: i32) -> &'static str {
    match Protocol::try_from(number) {
        Ok(Protocol::Udp) => "udp",
        Ok(Protocol::Sctp) => "sctp",
        _ => "tcp",
    }
}

impl Network {
    pub(crate) fn new(config: &criod_config::Config, cache: &Path) -> Network {
        let mut dirs = config.plugin_dirs.clone();
        dirs.extend(config.plugin_dir.clone());
        let plugins = Plugins::new(dirs, cache);
        plugins.sweep();
        Network {
            dir: config.network_dir.clone(),
            default: config.cni_default_network.clone(),
            plugins,
            loaded: Mutex::new(None),
            host_ports: tokio::sync::OnceCell::new(),
            begun_with: Mutex::default(),
            unsettled: Mutex::default(),
            serve_host_ports: !config.disable_hostport_mapping,
            attaching: tokio::sync::RwLock::default(),
        }
    }

    /// The network configuration, read again when its folder has changed; else why there is none.
    pub(crate) fn list(&self) -> Result<Arc<NetworkList>, String> {
        let now = cni::Config::fingerprint(&self.dir);
        let mut loaded = lock(&self.loaded);
        if let Some((then, list)) = &*loaded
            && *then == now
        {
            return list.clone();
        }
        let name = (!self.default.is_empty()).then_some(self.default.as_str());
        let list = cni::Config::load(&self.dir, name).map(Arc::new).map_err(|e| e.to_string());
        *loaded = Some((now, list.clone()));
        list
    }

    /// Fails where no pod could be attached: without a configuration, or without a plugin that it
    /// names. Nothing has been begun then, so there is nothing to undo.
    pub(crate) fn usable(&self) -> Result<()> {
        let list =
            self.list().map_err(|e| Error::precondition(format!("network not ready: {e}")))?;
        for plugin in &list.plugins {
            let there = |dir: &PathBuf| dir.join(&plugin.kind).is_file();
            if !self.plugins.plugin_dirs.iter().any(there) {
                return Err(Error::precondition(format!(
                    "network not ready: the CNI plugin {:?} of {} is in none of {:?}",
                    plugin.kind,
                    list.path.display(),
                    self.plugins.plugin_dirs
                )));
            }
        }
        Ok(())
    }

    /// Attaches a pod. On failure the plugins have been asked to undo it.
    pub(crate) async fn attach(
        &self,
        id: &str,
        config: &PodSandboxConfig,
        netns: &Path,
    ) -> Result<Attached> {
        let list =
            self.list().map_err(|e| Error::precondition(format!("network not ready: {e}")))?;
        let _attaching = self.attaching.read().await;
        let mut attachment = attachment(id, config, Some(netns));
        let portmap = list.declares("portMappings");
        if !portmap || !self.serve_host_ports {
            attachment.capabilities.port_mappings.clear();
        }
        let result = self.plugins.add(&list, &attachment).await.map_err(|source| {
            Error::from(Kind::Network { pod: id.to_owned(), action: "add", source })
        })?;
        Ok(self.attached(&result.pod_addresses(INTERFACE), config, portmap))
    }

    fn attached(
        &self,
        addresses: &[(IpAddr, u8)],
        config: &PodSandboxConfig,
        portmap: bool,
    ) -> Attached {
        let mut attached =
            Attached { ips: addresses.iter().map(|(ip, _)| *ip).collect(), ..Attached::default() };
        if !portmap && self.serve_host_ports {
            attached.host_ports = wanted(config)
                .flat_map(|p| addresses.iter().map(move |(ip, prefix)| (p, *ip, *prefix)))
                .filter_map(|(p, pod_ip, prefix)| {
                    Some(HostPort {
                        protocol: protocol(p.protocol).to_owned(),
                        host_ip: p.host_ip.parse().ok(),
                        host_port: u16::try_from(p.host_port).ok()?,
                        container_port: u16::try_from(p.container_port).ok()?,
                        pod_ip,
                        prefix,
                    })
                })
                .collect();
        }
        attached
    }

    /// Opens the host ports of a pod.
    pub(crate) async fn open_ports(&self, id: &str, ports: &[HostPort]) -> Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        let mappings: Vec<Mapping> = ports.iter().map(mapping).collect();
        let failed = |source| Error::from(Kind::HostPorts { pod: id.to_owned(), source });
        self.ports().await.map_err(failed)?.add(id, &mappings).await.map_err(failed)
    }

    async fn ports(&self) -> hostport::Result<&HostPorts> {
        self.host_ports
            .get_or_try_init(|| async {
                let begun_with = lock(&self.begun_with).clone();
                HostPorts::open(Backend::detect().await?, begun_with).await
            })
            .await
    }

    /// Says which pods lived when criod began, so that their rules stay.
    pub(crate) fn begin_with(&self, pods: &[Arc<PodRecord>]) {
        let all: BTreeMap<_, Vec<_>> = pods
            .iter()
            .filter(|p| !p.host_ports.is_empty())
            .map(|p| (p.id.clone(), p.host_ports.iter().map(mapping).collect()))
            .collect();
        *lock(&self.begun_with) = all;
    }

    /// Makes the host ports in the kernel those of the pods that there are: rules of pods that are
    /// gone go, those that somebody has deleted come back.
    pub(crate) async fn settle_ports(&self) {
        if !self.serve_host_ports {
            return;
        }
        let needed = !lock(&self.begun_with).is_empty();
        match self.ports().await {
            Err(e) if needed => warn!("host ports: {e}"),
            Err(e) => debug!("host ports: {e}"),
            Ok(_) => {}
        }
    }

    /// Attachments that the cache knows of: the pod's id, and what else it tells.
    pub(crate) fn cached(&self) -> Result<Vec<cni::Cached>> {
        self.plugins
            .cached()
            .map_err(|source| Kind::Network { pod: "*".into(), action: "cache", source }.into())
    }

    /// The addresses that a pod got, and its host ports, by the cache.
    pub(crate) fn cached_addresses(
        &self,
        cached: &cni::Cached,
        config: &PodSandboxConfig,
    ) -> Attached {
        let Some(result) = &cached.result else { return Attached::default() };
        let portmap = self.list().is_ok_and(|l| l.declares("portMappings"));
        self.attached(&result.pod_addresses(INTERFACE), config, portmap)
    }

    /// Detaches what no record knows of, with what the cache knows.
    pub(crate) async fn detach_unknown(&self, id: &str, netns: Option<&Path>) -> Result<()> {
        lock(&self.unsettled).insert(id.to_owned());
        self.settle(id).await;
        let attachment = attachment(id, &PodSandboxConfig::default(), netns);
        self.plugins
            .del(None, &attachment)
            .await
            .map_err(|source| Kind::Network { pod: id.to_owned(), action: "delete", source }.into())
    }

    /// Has the plugins remove what they hold for any attachment but those of these pods. Not while one
    /// is being attached, which might not be among them; the answer is whether they were asked.
    pub(crate) async fn collect(&self, pods: impl FnOnce() -> Vec<String>) -> Result<bool> {
        let Ok(_alone) = self.attaching.try_write() else { return Ok(false) };
        let Ok(list) = self.list() else { return Ok(false) };
        // Entries of other runtimes are theirs.
        let cached = self.cached()?.into_iter().map(|c| c.container_id);
        let others = cached.filter(|id| !crate::record::is_id(id));
        let valid: Vec<_> = pods()
            .into_iter()
            .chain(others)
            .map(|container_id| cni::ValidAttachment { container_id, ifname: INTERFACE.into() })
            .collect();
        let done = self.plugins.gc(&list, &valid).await;
        done.map_err(|source| Kind::Network { pod: "*".into(), action: "collect", source })?;
        Ok(true)
    }

    /// From here on plugins that are at work are left to it when nobody waits for them any more.
    pub(crate) fn leave(&self) {
        self.plugins.leave();
    }

    /// Says that the criod before died while it attached this pod.
    pub(crate) fn unsettled(&self, pod: &str) {
        lock(&self.unsettled).insert(pod.to_owned());
    }

    /// Waits for plugins that a criod before us left at work for a pod: what they would still do
    /// comes after what undoes it. They are killed only if they do not end, as one that is killed
    /// half way may leave what no DEL finds (host-local: a lease without its owner's name in it).
    async fn settle(&self, pod: &str) {
        if !lock(&self.unsettled).contains(pod) {
            return;
        }
        let variable = format!("CNI_CONTAINERID={pod}");
        let began = Instant::now();
        loop {
            let left = crate::node::on_disk(|| sys::proc::with_environment(&variable));
            if left.is_empty() {
                break;
            }
            if began.elapsed() > SETTLE {
                for pid in left {
                    warn!(pod, pid, "a CNI plugin of the criod before does not end and is killed");
                    sys::proc::kill_tree(pid);
                }
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        lock(&self.unsettled).remove(pod);
    }

    /// Detaches a pod: its ports, then its interfaces. May be repeated.
    pub(crate) async fn detach(&self, pod: &PodRecord, netns: Option<&Path>) -> Result<()> {
        let id = &pod.id;
        self.settle(id).await;
        if !pod.host_ports.is_empty() {
            let failed = |source| Error::from(Kind::HostPorts { pod: id.clone(), source });
            self.ports().await.map_err(failed)?.remove(id).await.map_err(failed)?;
        }
        let list = self.list().ok();
        let attachment = attachment(id, &pod.config.0, netns);
        match self.plugins.del(list.as_deref(), &attachment).await {
            // No plugin was ever asked to attach it.
            Err(cni::Error::InvalidAttachment { .. }) => Ok(()),
            other => other.map_err(|source| {
                Kind::Network { pod: id.clone(), action: "delete", source }.into()
            }),
        }
    }
}

/// Port mappings that mean something: the kubelet lists every port of a container, also those
/// without a host port.
fn wanted(config: &PodSandboxConfig) -> impl Iterator<Item = &api_cri::v1::PortMapping> {
    config.port_mappings.iter().filter(|p| p.host_port > 0)
}

fn mapping(port: &HostPort) -> Mapping {
    Mapping {
        protocol: match port.protocol.as_str() {
            "udp" => hostport::Protocol::Udp,
            "sctp" => hostport::Protocol::Sctp,
            _ => hostport::Protocol::Tcp,
        },
        host_ip: port.host_ip,
        host_port: port.host_port,
        container_port: port.container_port,
        pod_ip: port.pod_ip,
        prefix: port.prefix,
    }
}

fn attachment(id: &str, config: &PodSandboxConfig, netns: Option<&Path>) -> Attachment {
    let m = config.metadata.clone().unwrap_or_default();
    let mut attachment =
        Attachment::for_pod(id, netns.map(Path::to_owned), &m.namespace, &m.name, &m.uid);
    let port_mappings = wanted(config)
        .filter_map(|p| {
            Some(cni::PortMapping {
                host_port: u16::try_from(p.host_port).ok()?,
                container_port: u16::try_from(p.container_port).ok()?,
                protocol: match Protocol::try_from(p.protocol) {
                    Ok(Protocol::Udp) => cni::Protocol::Udp,
                    Ok(Protocol::Sctp) => cni::Protocol::Sctp,
                    _ => cni::Protocol::Tcp,
                },
                host_ip: p.host_ip.parse().ok(),
            })
        })
        .collect();
    let dns = config.dns_config.clone().unwrap_or_default();
    attachment.capabilities = Capabilities {
        port_mappings,
        bandwidth: bandwidth(config),
        dns: (!dns.servers.is_empty()).then_some(Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        cgroup_path: config
            .linux
            .as_ref()
            .map(|l| l.cgroup_parent.clone())
            .filter(|c| !c.is_empty()),
        pod_annotations: config.annotations.clone(),
        ..Capabilities::default()
    };
    attachment
}

/// The annotations `kubernetes.io/ingress-bandwidth` and `…egress-bandwidth`.
fn bandwidth(config: &PodSandboxConfig) -> Option<Bandwidth> {
    let rate = |name: &str| -> Option<u64> { quantity(config.annotations.get(name)?) };
    let ingress = rate("kubernetes.io/ingress-bandwidth");
    let egress = rate("kubernetes.io/egress-bandwidth");
    if ingress.is_none() && egress.is_none() {
        return None;
    }
    // As other runtimes: no limit on the size of a burst but what a signed int holds.
    let burst = |rate: Option<u64>| rate.map_or(0, |_| u64::from(i32::MAX.unsigned_abs()));
    Some(Bandwidth {
        ingress_rate: ingress.unwrap_or(0),
        ingress_burst: burst(ingress),
        egress_rate: egress.unwrap_or(0),
        egress_burst: burst(egress),
    })
}

/// A Kubernetes quantity without fractions, `10M` or `64Ki`.
fn quantity(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        assert_eq!(quantity("10M"), Some(10_000_000));
        assert_eq!(quantity("2Ki"), Some(2048));
        assert_eq!(quantity("7"), Some(7));
        assert_eq!(quantity("x"), None);
        assert_eq!(quantity("99999999999999999999"), None);
    }

    #[test]
    fn ports_without_a_host_port_mean_nothing() {
        let port = |host_port| api_cri::v1::PortMapping {
            container_port: 80,
            host_port,
            ..Default::default()
        };
        let config =
            PodSandboxConfig { port_mappings: vec![port(0), port(8080)], ..Default::default() };
        assert_eq!(attachment("a", &config, None).capabilities.port_mappings.len(), 1);
    }
}
