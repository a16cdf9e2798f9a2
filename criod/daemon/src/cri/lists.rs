//! Lists: which pods and containers a filter means, and answers in parts.
//!
//! A list, its statistics, its metrics and its stream have one filter. All are answered from records
//! as they are now. A stream (`Stream*`) is the list in parts of at most [`PART`] items and [`BYTES`],
//! then its end: no watch.

use std::sync::Arc;

use api_cri::v1::*;
use tonic::codegen::BoxStream;
use tonic::{Response, Status};

use super::convert;
use super::runtime::Runtime;
use crate::node::{Container as Held, Node, Pod};
use crate::record::{ContainerRecord, ContainerState as State, PodRecord, PodState};

/// How many items one message of a stream holds, as CRI-O has it.
const PART: usize = 3000;
/// How many bytes of items one message of a stream holds, but for an item that alone has more.
const BYTES: usize = 2 << 20;

/// Ids of filters may be cut short.
fn id_matches(id: &str, wanted: &str) -> bool {
    wanted.is_empty() || id.starts_with(wanted)
}

/// The items in messages of bounded length.
pub(super) fn in_parts<T: prost::Message, M: Send + 'static>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M,
) -> Result<Response<BoxStream<M>>, Status> {
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (Vec::new(), 0);
    for item in items {
        let length = item.encoded_len();
        if !part.is_empty() && (part.len() == PART || bytes + length > BYTES) {
            parts.push(Ok(message(std::mem::take(&mut part))));
            bytes = 0;
        }
        bytes += length;
        part.push(item);
    }
    if !part.is_empty() {
        parts.push(Ok(message(part)));
    }
    Ok(Response::new(Box::pin(futures_util::stream::iter(parts))))
}

/// The statuses of a pod's containers, in the order of lists.
pub(crate) fn statuses_of(node: &Node, pod: &str) -> Vec<ContainerStatus> {
    let mut containers: Vec<_> = node.containers_of(pod).iter().map(|c| c.record.get()).collect();
    containers.retain(|r| convert::listed(r));
    containers.sort_by_key(|r| std::cmp::Reverse(r.created_at));
    containers.iter().map(|r| convert::container_status(r)).collect()
}

impl Runtime {
    fn containers(
        &self,
        matches: impl Fn(&ContainerRecord) -> bool,
    ) -> Vec<(Arc<Held>, Arc<ContainerRecord>)> {
        let mut all: Vec<_> = self
            .0
            .all_containers()
            .into_iter()
            .map(|c| {
                let record = c.record.get();
                (c, record)
            })
            .filter(|(_, r)| convert::listed(r) && matches(r))
            .collect();
        all.sort_by_key(|(_, r)| std::cmp::Reverse(r.created_at));
        all
    }

    fn pods(&self, matches: impl Fn(&PodRecord) -> bool) -> Vec<(Arc<Pod>, Arc<PodRecord>)> {
        let mut all: Vec<_> = self
            .0
            .all_pods()
            .into_iter()
            .map(|p| {
                let record = p.record.get();
                (p, record)
            })
            .filter(|(_, r)| convert::listed_pod(r) && matches(r))
            .collect();
        all.sort_by_key(|(_, r)| std::cmp::Reverse(r.created_at));
        all
    }

    pub(super) fn list(&self, filter: Option<ContainerFilter>) -> Vec<Container> {
        let filter = filter.unwrap_or_default();
        let all = self.containers(|r| {
            id_matches(&r.id, &filter.id)
                && id_matches(&r.pod, &filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|s| s.state == convert::container_state(r))
                && convert::selected(&r.config.0.labels, &filter.label_selector)
        });
        all.iter().map(|(_, r)| convert::container(r)).collect()
    }

    pub(super) fn list_pods(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let filter = filter.unwrap_or_default();
        let all = self.pods(|r| {
            id_matches(&r.id, &filter.id)
                && filter.state.as_ref().is_none_or(|s| s.state == convert::pod_state(r))
                && convert::selected(&r.config.0.labels, &filter.label_selector)
        });
        all.iter().map(|(_, r)| convert::pod(r)).collect()
    }

    /// Of containers that run.
    pub(super) async fn list_stats(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Result<Vec<ContainerStats>, Status> {
        let filter = filter.unwrap_or_default();
        let all = self.containers(|r| {
            r.state == State::Running
                && id_matches(&r.id, &filter.id)
                && id_matches(&r.pod, &filter.pod_sandbox_id)
                && convert::selected(&r.config.0.labels, &filter.label_selector)
        });
        Ok(self.0.containers_stats(all.into_iter().map(|(c, _)| c).collect()).await?)
    }

    /// Of pods that are ready.
    pub(super) async fn list_pod_stats(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Result<Vec<PodSandboxStats>, Status> {
        let filter = filter.unwrap_or_default();
        let all = self.pods(|r| {
            r.state == PodState::Ready
                && id_matches(&r.id, &filter.id)
                && convert::selected(&r.config.0.labels, &filter.label_selector)
        });
        Ok(self.0.pods_stats(all.into_iter().map(|(p, _)| p).collect()).await?)
    }

    /// Of pods that are ready.
    pub(super) async fn list_metrics(&self) -> Result<Vec<PodSandboxMetrics>, Status> {
        let all = self.pods(|r| r.state == PodState::Ready);
        Ok(self.0.pods_metrics(all.into_iter().map(|(p, _)| p).collect()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    async fn parts(all: &[Container]) -> Vec<Vec<Container>> {
        let stream = in_parts(all.to_vec(), |part| part).unwrap().into_inner();
        stream.map(|part| part.unwrap()).collect().await
    }

    fn named(id: String) -> Container {
        Container { id, ..Container::default() }
    }

    #[tokio::test]
    async fn parts_are_whole_and_in_order() {
        for (items, wanted) in [(0, 0), (1, 1), (PART, 1), (PART + 1, 2), (3 * PART, 3)] {
            let all: Vec<Container> = (0..items).map(|n| named(n.to_string())).collect();
            let got = parts(&all).await;
            assert_eq!(got.len(), wanted);
            assert!(got.iter().all(|part| part.len() <= PART));
            assert_eq!(got.concat(), all);
        }
    }

    #[tokio::test]
    async fn parts_have_so_many_bytes() {
        let sizes = [BYTES / 2, BYTES / 4, BYTES / 2, 2 * BYTES, 1];
        let all: Vec<Container> = sizes.iter().map(|n| named("x".repeat(*n))).collect();
        let got = parts(&all).await;
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1, 1]);
        assert_eq!(got.concat(), all);
    }
}
