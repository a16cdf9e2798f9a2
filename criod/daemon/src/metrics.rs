//! The metrics of pods and containers (KEP-2371), as the kubelet's /metrics/cadvisor shows them.
//!
//! ```text
//! included_pod_metrics ─▶ groups ─▶ FAMILIES ─┬─ descriptors (ListMetricDescriptors)
//!                                             └─ read and filled in (ListPodSandboxMetrics)
//! ```
//! One table says of each family its name, help, labels and where its values come from, so that
//! values and descriptors cannot differ. Names are cAdvisor's, groups and labels CRI-O's. Values are
//! whole numbers (of seconds, too), as the CRI has no others. They are read when they are asked for,
//! which a time stamp of 0 says.

mod families;
mod read;

use std::sync::Arc;

use api_cri::v1::{
    ContainerMetrics, Metric, MetricDescriptor, MetricType, PodSandboxMetrics, UInt64Value,
};
use namespace::Counters;

use crate::error::Result;
use crate::node::{Container, Node, Pod};
use crate::record::PodRecord;
use crate::stats::PodReader;
use families::FAMILIES;
use read::Reading;

/// What `included_pod_metrics` names. (The configuration knows the same names.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// What is there in any case.
    Always,
    Cpu,
    Disk,
    DiskIo,
    Hugetlb,
    Memory,
    Network,
    Oom,
    Pressure,
    Process,
    Spec,
}

impl Group {
    fn name(self) -> &'static str {
        match self {
            Group::Always => "",
            Group::Cpu => "cpu",
            Group::Disk => "disk",
            Group::DiskIo => "diskIO",
            Group::Hugetlb => "hugetlb",
            Group::Memory => "memory",
            Group::Network => "network",
            Group::Oom => "oom",
            Group::Pressure => "pressure",
            Group::Process => "process",
            Group::Spec => "spec",
        }
    }

    /// Whether the configuration asks for it.
    fn wanted(self, included: &[String]) -> bool {
        self == Group::Always || included.iter().any(|i| i == "all" || i == self.name())
    }
}

/// The values of one family for one container or interface, each with the labels of its own.
type Values = Vec<(Vec<String>, u64)>;

/// Where a family's values come from.
enum Source {
    Container(fn(&Reading) -> Values),
    /// Of each interface of the pod, with its name as the label.
    Interface(fn(&Counters) -> u64),
}

/// A family of metrics.
struct Family {
    group: Group,
    kind: MetricType,
    name: &'static str,
    help: &'static str,
    /// Beside [`LABELS`].
    labels: &'static [&'static str],
    source: Source,
}

/// The labels of every metric.
const LABELS: [&str; 5] = ["id", "image", "namespace", "pod", "container"];
/// What stands for a container in a pod's own metrics.
const POD: &str = "POD";

fn wanted(included: &[String]) -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().filter(move |f| f.group.wanted(included))
}

/// The descriptors of the families that the configuration asks for.
pub(crate) fn descriptors(included: &[String]) -> Vec<MetricDescriptor> {
    let descriptor = |f: &Family| MetricDescriptor {
        name: f.name.to_owned(),
        help: f.help.to_owned(),
        label_keys: LABELS.iter().chain(f.labels).map(|l| (*l).to_owned()).collect(),
    };
    wanted(included).map(descriptor).collect()
}

fn metric(family: &Family, base: &[String; 5], labels: Vec<String>, value: u64) -> Metric {
    Metric {
        name: family.name.to_owned(),
        timestamp: 0,
        metric_type: family.kind as i32,
        label_values: base.iter().cloned().chain(labels).collect(),
        value: Some(UInt64Value { value }),
    }
}

fn base(id: &str, image: &str, pod: &PodRecord, container: &str) -> [String; 5] {
    let meta = pod.config.0.metadata.clone().unwrap_or_default();
    [id.to_owned(), image.to_owned(), meta.namespace, meta.name, container.to_owned()]
}

fn of_pod(reader: &mut PodReader, pod: &Pod, included: &[String]) -> PodSandboxMetrics {
    let record = pod.record.get();
    let own = base(&pod.id, "", &record, POD);
    let mut metrics = Vec::new();
    for counters in reader.network(&pod.id) {
        for family in wanted(included) {
            if let Source::Interface(get) = &family.source {
                metrics.push(metric(family, &own, vec![counters.name.clone()], get(counters)));
            }
        }
    }
    let mut container_metrics = Vec::new();
    for container in reader.running(&pod.id) {
        if !container.record.get().infra
            && let Some(metrics) = of_container(reader, &container, &record, included)
        {
            let container_id = container.id.clone();
            container_metrics.push(ContainerMetrics { container_id, metrics });
        }
    }
    PodSandboxMetrics { pod_sandbox_id: pod.id.clone(), metrics, container_metrics }
}

/// `None` for one that has just ended.
fn of_container(
    reader: &mut PodReader,
    container: &Container,
    pod: &PodRecord,
    included: &[String],
) -> Option<Vec<Metric>> {
    let reading = Reading::of(reader, container, |group| group.wanted(included))?;
    let config = &reading.record.config.0;
    let name = config.metadata.as_ref().map_or("", |m| m.name.as_str());
    let image = config.image.as_ref().map_or("", |i| match i.user_specified_image.as_str() {
        "" => i.image.as_str(),
        name => name,
    });
    let own = base(&container.id, image, pod, name);
    let mut metrics = Vec::new();
    for family in wanted(included) {
        if let Source::Container(get) = &family.source {
            let values = get(&reading).into_iter();
            metrics.extend(values.map(|(labels, value)| metric(family, &own, labels, value)));
        }
    }
    Some(metrics)
}

impl Node {
    /// The metrics of these pods and of the containers that run in them.
    pub(crate) async fn pods_metrics(
        self: &Arc<Self>,
        pods: Vec<Arc<Pod>>,
    ) -> Result<Vec<PodSandboxMetrics>> {
        let included = Arc::new(self.config.included_pod_metrics.clone());
        self.read_pods(pods, move |reader, pod| Some(of_pod(reader, pod, &included))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<String> {
        vec!["all".to_owned()]
    }

    #[test]
    fn groups_are_those_of_the_configuration() {
        let groups = [
            Group::Cpu,
            Group::Disk,
            Group::DiskIo,
            Group::Hugetlb,
            Group::Memory,
            Group::Network,
            Group::Oom,
            Group::Pressure,
            Group::Process,
            Group::Spec,
        ];
        let mut names: Vec<_> = groups.map(Group::name).into();
        names.push("all");
        assert_eq!(names, criod_config::POD_METRICS);
        assert_eq!(descriptors(&[]).len(), 1);
        assert_eq!(descriptors(&["oom".into()]).len(), 2);
        assert_eq!(descriptors(&all()).len(), FAMILIES.len());
    }

    #[test]
    fn names_are_there_once_and_labels_fit() {
        let descriptors = descriptors(&all());
        let mut names: Vec<_> = descriptors.iter().map(|d| d.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FAMILIES.len());
        assert!(descriptors.iter().all(|d| !d.help.is_empty() && d.label_keys.len() >= 5));
        let reading = read::full();
        for family in FAMILIES {
            match &family.source {
                Source::Container(get) => {
                    let values = get(&reading);
                    assert!(!values.is_empty(), "{}", family.name);
                    assert!(values.iter().all(|(l, _)| l.len() == family.labels.len()));
                }
                Source::Interface(get) => {
                    assert_eq!(family.labels, ["interface"]);
                    get(&Counters::default());
                }
            }
        }
    }

    #[test]
    fn what_was_not_read_has_no_value() {
        let reading = Reading::bare(read::full().record);
        for family in FAMILIES {
            if let Source::Container(get) = &family.source
                && !matches!(family.group, Group::Always | Group::Spec)
            {
                assert!(get(&reading).is_empty(), "{}", family.name);
            }
        }
    }
}
