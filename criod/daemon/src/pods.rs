//! A pod sandbox's life.
//!
//! ```text
//! RunPodSandbox     record ─▶ files, namespaces ─▶ CNI ADD ─▶ host ports ─▶ (infra process) ─▶ READY
//!   fails at any step: everything is undone; what cannot be is REMOVING and tried again for ever
//! StopPodSandbox    containers killed ─▶ infra gone ─▶ CNI DEL ─▶ namespaces gone ─▶ NOTREADY
//! RemovePodSandbox  stopped ─▶ containers removed ─▶ cgroup, files, record gone
//! ```
//! Every step back may be repeated. Unknown pods are stopped and removed already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api_cri::v1::{NamespaceMode, PodSandboxConfig, Protocol, RunPodSandboxRequest};
use failpoint::step;
use namespace::{Kind as NsKind, Pinned};
use tracing::{debug, info, warn};

use crate::confine::PodLabels;
use crate::error::{Error, Kind, Result};
use crate::node::{Node, Pod, PodKey, Save, blocking, lock, new_id, on_disk, pod_key};
use crate::record::{self, ContainerState, PodRecord, PodState};
use crate::{files, pod_cgroup, spec};

/// The most bytes of labels and annotations of one pod or container; Kubernetes allows a quarter.
const MAX_NOTES: usize = 1 << 20;

/// Every list repeats them.
pub(crate) fn bounded(
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> Result<()> {
    for (field, all) in [("labels", labels), ("annotations", annotations)] {
        if all.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > MAX_NOTES {
            return Err(Error::invalid(format!("config.{field}: more than {MAX_NOTES} bytes")));
        }
    }
    Ok(())
}

fn check(config: &PodSandboxConfig) -> Result<()> {
    let meta =
        config.metadata.as_ref().ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    for (field, value) in [("name", &meta.name), ("namespace", &meta.namespace), ("uid", &meta.uid)]
    {
        if value.is_empty() {
            return Err(Error::invalid(format!("config.metadata.{field} is empty")));
        }
        // Plugins are told them in a list that has no way to quote.
        if value.contains(|c: char| c.is_control() || c == ';') {
            let text =
                format!("config.metadata.{field} {value:?} has a character that no name has");
            return Err(Error::invalid(text));
        }
    }
    bounded(&config.labels, &config.annotations)?;
    for port in &config.port_mappings {
        for (field, value) in
            [("host_port", port.host_port), ("container_port", port.container_port)]
        {
            if !(0..=65535).contains(&value) {
                return Err(Error::invalid(format!("port_mappings: {field} {value} is no port")));
            }
        }
        if Protocol::try_from(port.protocol).is_err() {
            let text = format!("port_mappings: protocol {} is unknown", port.protocol);
            return Err(Error::invalid(text));
        }
        if !port.host_ip.is_empty() && port.host_ip.parse::<std::net::IpAddr>().is_err() {
            let text = format!("port_mappings: host_ip {:?} is no address", port.host_ip);
            return Err(Error::invalid(text));
        }
    }
    // It is written into files line by line.
    if config.hostname.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Error::invalid(format!("hostname {:?} is none", config.hostname)));
    }
    if config.hostname.len() > 64 {
        return Err(Error::invalid(format!("hostname {:?} is longer than 64", config.hostname)));
    }
    if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
        return Err(Error::invalid("config.log_directory is not absolute"));
    }
    let linux = config.linux.clone().unwrap_or_default();
    if linux.cgroup_parent.ends_with(".slice") {
        return Err(Error::invalid(format!(
            "cgroup_parent {:?} is a systemd slice, but the cgroup manager is cgroupfs",
            linux.cgroup_parent
        )));
    }
    if linux.cgroup_parent.contains(char::is_control) {
        let text = format!("cgroup_parent {:?} is no path of a cgroup", linux.cgroup_parent);
        return Err(Error::invalid(text));
    }
    if linux.cgroup_parent.split('/').any(|part| part == "..") {
        return Err(Error::invalid("cgroup_parent climbs out of its root"));
    }
    let options = linux.security_context.and_then(|s| s.namespace_options).unwrap_or_default();
    for (name, mode, allowed) in [
        ("network", options.network, &[NamespaceMode::Pod, NamespaceMode::Node][..]),
        ("ipc", options.ipc, &[NamespaceMode::Pod, NamespaceMode::Node]),
        ("pid", options.pid, &[NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Node]),
    ] {
        if !allowed.contains(&spec::mode(mode)?) {
            return Err(Error::invalid(format!("namespace_options.{name}: not for a pod sandbox")));
        }
    }
    if !options.target_id.is_empty() {
        return Err(Error::invalid("namespace_options.target_id: not for a pod sandbox"));
    }
    Ok(())
}

impl Node {
    /// Runs a pod sandbox and returns its id. A repeated call gets the same one.
    pub(crate) async fn run_pod(self: &Arc<Self>, request: RunPodSandboxRequest) -> Result<String> {
        let config = request.config.ok_or_else(|| Error::invalid("config is missing"))?;
        check(&config)?;
        pod_cgroup::check(&config, self.able())?;
        let Some((_, handler)) = self.config.handler(&request.runtime_handler) else {
            let text = format!("no runtime handler {:?} is configured", request.runtime_handler);
            return Err(Error::not_found_text(text));
        };
        self.check_users(&config, handler)?;
        on_disk(|| spec::check_pod(&config, &self.config, handler, &self.confine))?;
        let time = self.new_time();
        let mut record = PodRecord::new(new_id()?, config, time, &self.boot_id);
        record.handler = request.runtime_handler;
        let key = pod_key(&record);
        let (node, own) = (Arc::clone(self), key.clone());
        let begin = move || async move { node.run_named(own, record).await };
        self.creates.join(&format!("pod {key:?}"), begin).await
    }

    async fn run_named(self: Arc<Self>, key: PodKey, record: PodRecord) -> Result<String> {
        if let Some(pod) = self.pod_named(&key) {
            return match pod.record.get().state {
                PodState::Ready => Ok(pod.id.clone()),
                _ => Err(Kind::Exists(format!(
                    "pod sandbox {key} exists already as {} and is not ready",
                    pod.id
                ))
                .into()),
            };
        }
        let mut record = record;
        record.attached = !spec::host_network(&record);
        if record.attached {
            self.network.usable()?;
        }
        let pod = self.add_labelled(record)?;
        // The one durable entry, before anything that outlives a reboot.
        if let Err(e) = pod.record.update(Save::Durable, |_| ()) {
            self.forget_pod(&pod.id);
            // Its folder may have been made, with nothing in it that counts.
            let dir = pod.record.dir().clone();
            // no step: nothing is on record, and a start removes what is empty.
            let _ = on_disk(|| std::fs::remove_dir_all(dir));
            return Err(e);
        }
        match self.build_pod(&pod).await {
            Ok(()) => {
                if let Err(e) = pod.record.update(Save::Now, |r| r.state = PodState::Ready) {
                    self.undo_pod(&pod).await;
                    return Err(e);
                }
                self.tell_pod(&pod);
                info!(pod = pod.id, name = %key, "pod sandbox ready");
                Ok(pod.id.clone())
            }
            Err(e) => {
                debug!(pod = pod.id, "undoing: {}", e.chain());
                self.undo_pod(&pod).await;
                Err(e)
            }
        }
    }

    /// Adds a pod with SELinux labels of its own, where the node has SELinux.
    fn add_labelled(&self, mut record: PodRecord) -> Result<Arc<Pod>> {
        let _one = lock(&self.confine.choosing);
        let levels: BTreeSet<String> = self
            .all_pods()
            .iter()
            .filter_map(|p| p.record.get().selinux.as_ref().and_then(PodLabels::level))
            .collect();
        if let Some((_, handler)) = self.config.handler(&record.handler) {
            let config = &record.config.0;
            record.selinux = self.confine.pod_labels(config, handler, |l| levels.contains(l))?;
        }
        Ok(self.add_pod(record))
    }

    async fn build_pod(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let record = pod.record.get();
        let config = &record.config.0;
        let host_network = spec::host_network(&record);
        let hostname = spec::hostname(&record);
        let dir = self.paths.pod_run(&pod.id);
        let pins = self.paths.namespaces(&pod.id);
        let modes = spec::pod_modes(&record);
        let mut kinds = Vec::new();
        if !host_network {
            kinds.extend([NsKind::Net, NsKind::Uts]);
        }
        if modes.ipc != NamespaceMode::Node as i32 {
            kinds.push(NsKind::Ipc);
        }
        let users = spec::pod_users(&record);
        // The node's defaults hold where the pod has a namespace for them; what the pod itself asks
        // for must have one.
        let own = |name: &str| {
            let network = name.starts_with("net.");
            (network && kinds.contains(&NsKind::Net)) || (!network && kinds.contains(&NsKind::Ipc))
        };
        let defaults = self.config.default_sysctls.iter().filter(|s| own(&s.name));
        let mut sysctls: Vec<(String, String)> =
            defaults.map(|s| (s.name.clone(), s.value.clone())).collect();
        sysctls.extend(config.linux.clone().unwrap_or_default().sysctls);
        let (node, own, process) =
            (Arc::clone(self), Arc::clone(pod), spec::wants_shared_pid(&record));
        blocking(move || node.make_pod_cgroups(&own, process)).await?;
        let pinned = {
            let (dir, hostname, dns) = (dir.clone(), hostname.clone(), config.dns_config.clone());
            let (id, own_ipc) = (pod.id.clone(), kinds.contains(&NsKind::Ipc));
            let shm_size = match self.config.handler(&record.handler) {
                Some((_, handler)) => spec::shm_size(&record, handler)?,
                None => None,
            };
            let label = record.selinux.clone().unwrap_or_default().mount;
            blocking(move || {
                files::prepare(&dir, &hostname, dns.as_ref(), &label)?;
                if own_ipc {
                    files::mount_shm(&dir, shm_size, &label)?;
                }
                let hostname = kinds.contains(&NsKind::Uts).then_some(hostname.as_str());
                let request =
                    namespace::Request { kinds: &kinds, hostname, sysctls: &sysctls, users };
                if kinds.is_empty() && sysctls.is_empty() && users.is_none() {
                    return Ok(Pinned::existing(&pins));
                }
                Pinned::create(&pins, &request)
                    .map_err(|source| Kind::Namespaces { pod: id, source }.into())
            })
            .await?
        };
        let mut ips = Vec::new();
        if let Some(netns) = &pinned.net {
            let attached = self.network.attach(&pod.id, config, netns).await?;
            ips.clone_from(&attached.ips);
            pod.record.update(Save::Now, |r| {
                r.ips = attached.ips;
                r.host_ports = attached.host_ports;
            })?;
            self.network.open_ports(&pod.id, &pod.record.get().host_ports).await?;
        }
        let log_dir = config.log_directory.clone();
        blocking(move || {
            files::hosts(&dir, host_network, &hostname, &ips)?;
            if let Some(root) = users.and_then(|u| u.root()) {
                files::give(&dir, root)?;
            }
            if !log_dir.is_empty() {
                step!("pod: make log folder", std::fs::create_dir_all(&log_dir))
                    .map_err(Error::file("create", &log_dir))?;
            }
            Ok(())
        })
        .await?;
        if spec::wants_shared_pid(&record) {
            let pid = self.start_infra(pod).await?;
            pod.record.update(Save::Now, |r| r.infra_pid = pid)?;
        }
        Ok(())
    }

    /// Takes a pod that never was away again; what fails is tried again later.
    pub(crate) async fn undo_pod(self: &Arc<Self>, pod: &Arc<Pod>) {
        let removing = pod.record.update(Save::Soon, |r| r.state = PodState::Removing);
        if let Err(e) = removing {
            warn!(pod = pod.id, "{}", e.chain());
        }
        if let Err(e) = self.take_pod_away(pod).await {
            warn!(pod = pod.id, "not gone yet, will be tried again: {}", e.chain());
        }
    }

    /// Stops a pod sandbox and all that runs in it. Unknown ones are stopped.
    pub(crate) async fn stop_pod(self: &Arc<Self>, id: &str) -> Result<()> {
        let pod = match self.pod(id) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        let (node, key) = (Arc::clone(self), format!("stop pod {}", pod.id));
        self.changes.join(&key, move || async move { node.stop_this_pod(&pod).await }).await
    }

    async fn stop_this_pod(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let _op = pod.op.lock().await;
        if pod.record.get().state == PodState::Creating {
            return Err(Error::precondition(format!("pod sandbox {} is being created", pod.id)));
        }
        self.quiesce(pod).await?;
        if pod.record.get().state == PodState::Ready {
            pod.record.update(Save::Soon, |r| r.state = PodState::NotReady)?;
            self.tell_pod(pod);
            info!(pod = pod.id, "pod sandbox stopped");
        }
        self.disconnect(pod).await
    }

    /// Kills what runs in the pod.
    async fn quiesce(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        if !pod.record.get().stopping {
            pod.record.update(Save::Soon, |r| r.stopping = true)?;
        }
        let containers = self.containers_of(&pod.id);
        let (infra, others): (Vec<_>, Vec<_>) =
            containers.into_iter().partition(|c| c.record.get().infra);
        // Those that are being created are ended there and then, and those that are being removed
        // until they are gone: their processes may still use what the pod is about to give back.
        let stops = others.iter().map(|c| async move {
            match c.record.get().state {
                ContainerState::Creating => {
                    // The monitor may not be there yet; the creation looks at the pod again.
                    if let Err(e) = c.monitor.delete().await {
                        debug!(container = c.id, "{}", e.chain());
                    }
                    Ok(())
                }
                ContainerState::Removing => self.remove_this(c).await,
                _ => self.stop_this(c, Duration::ZERO).await,
            }
        });
        for stopped in futures_util::future::join_all(stops).await {
            stopped?;
        }
        for container in &infra {
            self.remove_this(container).await?;
        }
        if !infra.is_empty() {
            pod.record.update(Save::Soon, |r| r.infra_pid = 0)?;
        }
        Ok(())
    }

    /// Gives back what a pod of an earlier boot has left outside of this node's memory: its addresses.
    pub(crate) async fn return_network(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let _op = pod.op.lock().await;
        if pod.record.get().attached { self.disconnect(pod).await } else { Ok(()) }
    }

    /// Gives the network back, then the namespaces.
    async fn disconnect(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let record = pod.record.get();
        let pins = self.paths.namespaces(&pod.id);
        if record.attached {
            let netns = Pinned::existing(&pins).net.filter(|p| namespace::is_namespace(p));
            self.network.detach(&record, netns.as_deref()).await?;
            pod.record.update(Save::Soon, |r| {
                r.attached = false;
                r.host_ports.clear();
            })?;
        }
        let (id, dir) = (pod.id.clone(), self.paths.pod_run(&pod.id));
        let node = Arc::clone(self);
        blocking(move || {
            node.remove_own_cgroup(&record)?;
            namespace::remove(&pins)
                .map_err(|source| Error::from(Kind::Namespaces { pod: id, source }))?;
            files::remove(&dir)
        })
        .await
    }

    /// Removes a pod sandbox, stopping it first. Unknown ones are removed.
    pub(crate) async fn remove_pod(self: &Arc<Self>, id: &str) -> Result<()> {
        let pod = match self.pod(id) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        self.stop_pod(&pod.id).await?;
        let (node, key) = (Arc::clone(self), format!("remove pod {}", pod.id));
        let begin = move || async move {
            // From here on it is gone for clients; what is left is ours to take away.
            pod.record.update(Save::Soon, |r| r.state = PodState::Removing)?;
            let result = node.take_pod_away(&pod).await;
            if result.is_err() {
                let listed = pod.record.update(Save::Soon, |r| r.state = PodState::NotReady);
                result.and(listed.map(|_| ()))
            } else {
                result
            }
        };
        self.changes.join(&key, begin).await
    }

    /// All steps back, from wherever the pod stands. May be repeated.
    pub(crate) async fn take_pod_away(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let _op = pod.op.lock().await;
        self.quiesce(pod).await?;
        for container in self.containers_of(&pod.id) {
            self.remove_this(&container).await?;
        }
        self.disconnect(pod).await?;
        let (node, own) = (Arc::clone(self), Arc::clone(pod));
        blocking(move || node.remove_parent(&own.record.get())).await?;
        let (node, own) = (Arc::clone(self), Arc::clone(pod));
        pod.record.end();
        blocking(move || {
            if own.record.problem().is_some() {
                node.remove_cgroups_of(&own.id)?;
            }
            record::remove(own.record.dir())
        })
        .await?;
        self.forget_pod(&pod.id);
        self.tell_pod_gone(pod);
        info!(pod = pod.id, "pod sandbox removed");
        Ok(())
    }
}
