//! Pods and containers whose records cannot be read, as far as they are known from elsewhere.
//!
//! ```text
//! container:  the record's readable values ▶ first.json ▶ the monitor's configuration and bundle ▶ cgroups
//! pod:        the record's readable values ▶ first.json ▶ labels of its containers ▶ CNI's cache
//! ```
//! What stands further left counts more. What is not known is left empty; where the container stands
//! is not known at all, so it is UNKNOWN, which clients take for "may run": they stop and remove it.
//! Changes of it are in memory alone, so the damaged record stays as it is until it is removed.

use std::fs;
use std::path::Path;

use api_cri::v1::{
    ContainerConfig, ContainerMetadata, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
};
use api_monitor::monitor::Config as MonitorConfig;
use protobuf::Message;
use serde_json::Value;

use crate::monitor::last_state;
use crate::node::Node;
use crate::record::{ContainerRecord, ContainerState, Damaged, PodRecord, PodState};

/// What runtimes are told of a container, beside its own annotations.
const POD: &str = "io.kubernetes.cri-o.SandboxID";
const NAME: &str = "io.kubernetes.cri-o.ContainerName";
/// Labels that the kubelet gives containers.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";

/// A container; its pod may be one of `pods`, whose records cannot be read either.
pub(super) fn container(node: &Node, damaged: &Damaged, pods: &[Damaged]) -> ContainerRecord {
    let run = node.paths.container_run(&damaged.id);
    let mut record = damaged.mend(of_run(&damaged.id, &run, damaged.created_at, &node.boot_id));
    // It has the pod's id.
    record.infra |= node.pod(&record.id).is_ok_and(|p| p.id == record.id)
        || pods.iter().any(|p| p.id == record.id);
    if record.infra && record.pod.is_empty() {
        record.pod.clone_from(&record.id);
    }
    if record.cgroup.is_empty()
        && let Some(group) = node.hierarchy.named(&format!("crio-{}", record.id)).first()
    {
        record.cgroup = group.name().to_owned();
    }
    record.state = ContainerState::Unknown;
    record.reason = "ContainerStatusUnknown".into();
    record.message = damaged.problem.chain();
    record.updating = None;
    if let Some(state) = last_state(&run) {
        record.pid = state.pid;
        record.started_at = state.started_at;
    }
    record
}

/// What lies in the folder of the monitor, if anything does.
fn of_run(id: &str, run: &Path, created_at: i64, boot_id: &str) -> ContainerRecord {
    let text = fs::read(run.join("bundle/config.json")).unwrap_or_default();
    let bundle: Value = serde_json::from_slice(&text).unwrap_or_default();
    let annotations: std::collections::BTreeMap<String, String> =
        serde_json::from_value(bundle["annotations"].clone()).unwrap_or_default();
    let said = |name: &str| annotations.get(name).cloned().unwrap_or_default();
    let monitor = fs::read(run.join("config")).unwrap_or_default();
    let monitor = MonitorConfig::parse_from_bytes(&monitor).unwrap_or_default();
    let (pod, name) = (said(POD), said(NAME));
    let own = annotations.into_iter().filter(|(k, _)| !k.starts_with("io.kubernetes.cri-o."));
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name, attempt: 0 }),
        annotations: own.collect(),
        tty: monitor.terminal,
        stdin: monitor.stdin,
        stdin_once: monitor.stdin_once,
        ..ContainerConfig::default()
    };
    let mut record = ContainerRecord::new(id.to_owned(), &pod, config, created_at, boot_id);
    record.log_path = monitor.log_path.into();
    record.cgroup = match bundle["linux"]["cgroupsPath"].as_str() {
        Some(path) if path.starts_with('/') => path.to_owned(),
        _ => String::new(),
    };
    record
}

/// A pod. Containers are known already.
pub(super) fn pod(node: &Node, damaged: &Damaged, cached: &[cni::Cached]) -> PodRecord {
    let id = &damaged.id;
    let mut base =
        PodRecord::new(id.clone(), of_containers(node, id), damaged.created_at, &node.boot_id);
    // Detaching what is not attached does no harm.
    base.attached = true;
    let mut record = damaged.mend(base);
    record.state = PodState::NotReady;
    (record.stopping, record.limiting, record.infra_pid) = (false, false, 0);
    record.attached &= !crate::spec::host_network(&record);
    if let Some(cached) = cached.iter().find(|c| c.container_id == *id) {
        record.attached = true;
        let got = node.network.cached_addresses(cached, &record.config.0);
        if record.ips.is_empty() {
            record.ips = got.ips;
        }
        if record.host_ports.is_empty() {
            record.host_ports = got.host_ports;
        }
    }
    record
}

/// What a pod's containers tell of it.
fn of_containers(node: &Node, id: &str) -> PodSandboxConfig {
    let mut config = PodSandboxConfig::default();
    for container in node.containers_of(id) {
        let record = container.record.get();
        let label = |name: &str| record.config.0.labels.get(name).cloned().unwrap_or_default();
        if config.metadata.is_none() && !label(POD_NAME).is_empty() {
            config.metadata = Some(PodSandboxMetadata {
                name: label(POD_NAME),
                namespace: label(POD_NAMESPACE),
                uid: label(POD_UID),
                attempt: 0,
            });
            let kept = [POD_NAME, POD_NAMESPACE, POD_UID];
            config.labels = kept.map(|name| (name.to_owned(), label(name))).into();
        }
        if config.linux.is_none()
            && let Some((parent, _)) = record.cgroup.rsplit_once('/')
        {
            let cgroup_parent = if parent.is_empty() { "/" } else { parent }.to_owned();
            config.linux = Some(LinuxPodSandboxConfig { cgroup_parent, ..Default::default() });
        }
    }
    config
}
