//! Statistics of pods.
//!
//! | what                        | from                                                              |
//! |-----------------------------|-------------------------------------------------------------------|
//! | processor, memory, pressure | the cgroup that its containers are in; where that is the root, or |
//! |                             | is gone: the sum of its containers, without pressure              |
//! | processes                   | `pids.current` of the same, which counts threads, as CRI-O's does |
//! | network                     | `/proc/net/dev` in the pinned namespace, without `lo`             |
//! | containers                  | those that run                                                    |
//!
//! `network` is absent for pods in the node's network, and where there is no interface but `lo`: the
//! kubelet takes it for granted that one is the default.

use std::collections::HashMap;
use std::sync::Arc;

use api_cri::v1::{
    ContainerStats, CpuUsage, LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage,
    NetworkUsage, PodSandboxAttributes, PodSandboxStats, ProcessUsage, UInt64Value,
};
use cgroup::{Parts, StatsReader};
use namespace::{Counters, Pinned};

use crate::error::Result;
use crate::node::{Container, Node, Pod};
use crate::pod_cgroup;
use crate::record::{ContainerState, PodRecord};
use crate::stats::{in_parallel, value};

/// The interface that CNI plugins are told to make.
const DEFAULT_INTERFACE: &str = "eth0";

/// The cgroup that stands for a pod, unless that is the root.
pub(super) fn group_of(record: &PodRecord) -> Option<String> {
    Some(pod_cgroup::parent(record)).filter(|name| !name.is_empty())
}

/// The name of a pod's rate: its infra process, a container, has the pod's id.
pub(super) fn rate_name(pod: &str) -> String {
    format!("pod {pod}")
}

/// Pods with what is read of many at once: their containers, and their networks.
pub(crate) struct PodReader {
    node: Arc<Node>,
    reader: StatsReader,
    containers: Arc<HashMap<String, Vec<Arc<Container>>>>,
    networks: HashMap<String, Vec<Counters>>,
}

impl PodReader {
    /// Reads the networks of these pods.
    pub(crate) fn new(
        node: &Arc<Node>,
        pods: &[Arc<Pod>],
        containers: Arc<HashMap<String, Vec<Arc<Container>>>>,
    ) -> PodReader {
        let pins: Vec<_> = pods
            .iter()
            .filter_map(|pod| {
                let pins = Pinned::existing(&node.paths.namespaces(&pod.id));
                Some((pod.id.clone(), pins.net?))
            })
            .collect();
        let paths: Vec<_> = pins.iter().map(|(_, path)| path.as_path()).collect();
        let tables = namespace::interfaces_of_all(&paths).unwrap_or_default();
        let networks = pins
            .iter()
            .zip(tables)
            .filter_map(|((id, _), table)| {
                // One that is being stopped has none any more.
                let mut table = table.ok()?;
                table.retain(|i| i.name != "lo");
                (!table.is_empty()).then(|| (id.clone(), table))
            })
            .collect();
        let node = Arc::clone(node);
        PodReader { node, reader: StatsReader::default(), containers, networks }
    }

    /// A pod's interfaces, without `lo`.
    pub(crate) fn network(&self, pod: &str) -> &[Counters] {
        self.networks.get(pod).map_or(&[], Vec::as_slice)
    }

    /// The containers of a pod that run.
    pub(crate) fn running(&self, pod: &str) -> Vec<Arc<Container>> {
        let mut all = self.containers.get(pod).cloned().unwrap_or_default();
        all.retain(|c| c.record.get().state == ContainerState::Running);
        all
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The reader of cgroups.
    pub(crate) fn groups(&mut self) -> &mut StatsReader {
        &mut self.reader
    }

    fn stats(&mut self, pod: &Pod) -> Result<PodSandboxStats> {
        let record = pod.record.get();
        let node = Arc::clone(&self.node);
        let running = self.running(&pod.id);
        let mut containers = Vec::new();
        let mut infra = None;
        for container in &running {
            let stats = node.container_stats(&mut self.reader, container);
            match container.record.get().infra {
                true => infra = stats.ok(),
                false => containers.extend(stats.ok()),
            }
        }
        let mut linux = LinuxPodSandboxStats::default();
        let timestamp = sys::clock::realtime();
        let parts = Parts { pids: true, ..super::PARTS };
        let group = match group_of(&record) {
            Some(group) => node.read_group(&mut self.reader, &group, parts)?,
            None => None,
        };
        if let Some(read) = group {
            let rate = node.rate(&rate_name(&pod.id), &read);
            linux.cpu = super::cpu(&read, timestamp, rate);
            linux.memory = super::memory(&read, timestamp);
            linux.io = super::io(&read, timestamp);
            linux.process = process(timestamp, read.pids.map(|p| p.current));
        } else {
            let all: Vec<_> = containers.iter().chain(&infra).collect();
            linux.cpu = cpu_of_all(timestamp, &all);
            linux.memory = memory_of_all(timestamp, &all);
            let pids = Parts { pids: true, ..Parts::default() };
            let mut sum = None;
            for container in &running {
                let name = &container.record.get().cgroup;
                let read = node.read_group(&mut self.reader, name, pids)?;
                if let Some(pids) = read.and_then(|r| r.pids) {
                    sum = Some(sum.unwrap_or(0) + pids.current);
                }
            }
            linux.process = process(timestamp, sum);
        }
        linux.network = network(timestamp, self.network(&pod.id));
        linux.containers = containers;
        let config = &record.config.0;
        Ok(PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: record.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            linux: Some(linux),
            windows: None,
        })
    }
}

fn process(timestamp: i64, count: Option<u64>) -> Option<ProcessUsage> {
    count.map(|count| ProcessUsage { timestamp, process_count: value(count) })
}

fn network(timestamp: i64, counters: &[Counters]) -> Option<NetworkUsage> {
    let usage = |c: &Counters| NetworkInterfaceUsage {
        name: c.name.clone(),
        rx_bytes: value(c.rx_bytes),
        rx_errors: value(c.rx_errors),
        tx_bytes: value(c.tx_bytes),
        tx_errors: value(c.tx_errors),
    };
    let named = counters.iter().find(|c| c.name == DEFAULT_INTERFACE);
    let default = named.or(counters.first())?;
    Some(NetworkUsage {
        timestamp,
        default_interface: Some(usage(default)),
        interfaces: counters.iter().map(usage).collect(),
    })
}

/// The sum, absent where any summand is.
fn sum(values: impl Iterator<Item = Option<UInt64Value>>) -> Option<UInt64Value> {
    let values: Option<Vec<u64>> = values.map(|v| v.map(|v| v.value)).collect();
    let values = values.filter(|v| !v.is_empty())?;
    value(values.iter().fold(0, |sum, v| sum.saturating_add(*v)))
}

fn cpu_of_all(timestamp: i64, all: &[&ContainerStats]) -> Option<CpuUsage> {
    let of = |get: fn(&CpuUsage) -> Option<UInt64Value>| {
        sum(all.iter().map(|s| s.cpu.as_ref().and_then(get)))
    };
    Some(CpuUsage {
        timestamp,
        usage_core_nano_seconds: Some(of(|c| c.usage_core_nano_seconds)?),
        usage_nano_cores: of(|c| c.usage_nano_cores),
        psi: None,
    })
}

fn memory_of_all(timestamp: i64, all: &[&ContainerStats]) -> Option<MemoryUsage> {
    let of = |get: fn(&MemoryUsage) -> Option<UInt64Value>| {
        sum(all.iter().map(|s| s.memory.as_ref().and_then(get)))
    };
    Some(MemoryUsage {
        timestamp,
        working_set_bytes: Some(of(|m| m.working_set_bytes)?),
        available_bytes: of(|m| m.available_bytes),
        usage_bytes: of(|m| m.usage_bytes),
        rss_bytes: of(|m| m.rss_bytes),
        page_faults: of(|m| m.page_faults),
        major_page_faults: of(|m| m.major_page_faults),
        psi: None,
    })
}

impl Node {
    /// All containers, by their pod.
    fn by_pod(&self) -> HashMap<String, Vec<Arc<Container>>> {
        let mut all: HashMap<String, Vec<Arc<Container>>> = HashMap::new();
        for container in self.all_containers() {
            all.entry(container.record.get().pod.clone()).or_default().push(container);
        }
        all
    }

    /// Does something with each of these pods, several at a time; what gives nothing is left out.
    pub(crate) async fn read_pods<T: Send + 'static>(
        self: &Arc<Self>,
        pods: Vec<Arc<Pod>>,
        read: impl Fn(&mut PodReader, &Pod) -> Option<T> + Clone + Send + 'static,
    ) -> Result<Vec<T>> {
        let node = Arc::clone(self);
        let containers = Arc::new(self.by_pod());
        in_parallel(pods, move |chunk| {
            let mut reader = PodReader::new(&node, &chunk, Arc::clone(&containers));
            chunk.iter().filter_map(|pod| read(&mut reader, pod)).collect()
        })
        .await
    }

    /// Statistics of many pods; one that goes meanwhile is left out.
    pub(crate) async fn pods_stats(
        self: &Arc<Self>,
        pods: Vec<Arc<Pod>>,
    ) -> Result<Vec<PodSandboxStats>> {
        self.read_pods(pods, |reader, pod| reader.stats(pod).ok()).await
    }

    /// Statistics of one pod.
    pub(crate) async fn pod_stats(self: &Arc<Self>, pod: Arc<Pod>) -> Result<PodSandboxStats> {
        let results = self.read_pods(vec![pod], |reader, pod| Some(reader.stats(pod))).await?;
        results.into_iter().next().unwrap_or_else(|| Err(crate::error::Kind::Panicked.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(name: &str) -> Counters {
        Counters { name: name.into(), rx_bytes: 5, ..Counters::default() }
    }

    #[test]
    fn the_default_interface() {
        assert_eq!(network(1, &[]), None);
        let with = network(1, &[counters("net1"), counters("eth0")]).unwrap();
        assert_eq!(with.default_interface.unwrap().name, "eth0");
        assert_eq!(with.interfaces.len(), 2);
        let without = network(1, &[counters("net1"), counters("net2")]).unwrap();
        assert_eq!(without.default_interface.unwrap().name, "net1");
    }

    #[test]
    fn a_sum_is_known_only_where_all_is() {
        let stats = |usage: u64, rate: Option<u64>| ContainerStats {
            cpu: Some(CpuUsage {
                timestamp: 1,
                usage_core_nano_seconds: value(usage),
                usage_nano_cores: rate.and_then(value),
                psi: None,
            }),
            ..ContainerStats::default()
        };
        let (a, b) = (stats(3, Some(1)), stats(4, None));
        let both = cpu_of_all(1, &[&a, &b]).unwrap();
        assert_eq!(both.usage_core_nano_seconds, value(7));
        assert_eq!(both.usage_nano_cores, None);
        assert_eq!(cpu_of_all(1, &[&a, &a]).unwrap().usage_nano_cores, value(2));
        assert_eq!(cpu_of_all(1, &[]), None);
        assert_eq!(memory_of_all(1, &[&a]), None);
    }
}
