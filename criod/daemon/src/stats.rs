//! Statistics of containers and pods, read from their cgroups when they are asked for.
//!
//! ```text
//! a call ─▶ records (snapshots) ─▶ cgroup files, /proc/net/dev ─▶ answer
//!                                  └ with what the background knows: rates, layers
//! ```
//! Nothing waits for an operation, nor for a walk. What the node does not count is absent, not zero.
//! Formulas are cAdvisor's: working set is usage without inactive file caches, available is the limit
//! without the working set. Many are read by as many threads as there are processors.

mod layers;
mod pods;
mod rates;

use std::sync::Arc;
use std::time::Instant;

use api_cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    MemoryUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};
use cgroup::{Cgroup, Parts, PressureStats, StatsReader};
use tokio::sync::Notify;

use crate::error::{Kind, Result};
use crate::node::{Container, Node, blocking};
use crate::record::{ContainerRecord, ContainerState, PodState};
pub(crate) use layers::{Figure, Layer, measure_new};
pub(crate) use pods::PodReader;
use rates::{Rates, Reading};

/// What the background knows.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    rates: Rates,
    /// Containers have come or ended.
    news: Notify,
}

/// Keeps rates and layers up to date, for as long as criod lives.
pub(crate) async fn run(node: Arc<Node>) {
    tokio::spawn(layers::run(Arc::clone(&node)));
    loop {
        let own = Arc::clone(&node);
        let _ = blocking(move || {
            own.sample();
            Ok(())
        })
        .await;
        tokio::time::sleep(rates::PERIOD).await;
    }
}

/// The parts that the CRI's statistics have.
const PARTS: Parts = Parts {
    cpu: true,
    memory: true,
    pids: false,
    io: false,
    pressure: true,
    hugetlb: false,
    detail: false,
};
/// For a rate.
const CPU: Parts = Parts {
    cpu: true,
    memory: false,
    pids: false,
    io: false,
    pressure: false,
    hugetlb: false,
    detail: false,
};
/// How many containers or pods are worth a thread.
const WORTH: usize = 8;

/// Works through `all` with several threads, keeping the order.
pub(crate) async fn in_parallel<T: Send + 'static, R: Send + 'static>(
    mut all: Vec<T>,
    work: impl Fn(Vec<T>) -> Vec<R> + Clone + Send + 'static,
) -> Result<Vec<R>> {
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = all.len().div_ceil(WORTH).clamp(1, most);
    let share = all.len().div_ceil(threads).max(1);
    let mut tasks = Vec::new();
    while !all.is_empty() {
        let rest = all.split_off(share.min(all.len()));
        let (chunk, work) = (std::mem::replace(&mut all, rest), work.clone());
        tasks.push(blocking(move || Ok(work(chunk))));
    }
    let mut done = Vec::new();
    for chunk in futures_util::future::join_all(tasks).await {
        done.extend(chunk?);
    }
    Ok(done)
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

/// The kernel counts microseconds, the CRI nanoseconds.
fn psi(stats: Option<PressureStats>) -> Option<PsiStats> {
    let data = |p: cgroup::Pressure| PsiData {
        total: p.total_us.saturating_mul(1000),
        avg10: p.avg10,
        avg60: p.avg60,
        avg300: p.avg300,
    };
    stats.map(|s| PsiStats { full: Some(data(s.full)), some: Some(data(s.some)) })
}

fn cpu(read: &cgroup::Stats, timestamp: i64, rate: Option<u64>) -> Option<CpuUsage> {
    read.cpu.map(|cpu| CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(cpu.usage_ns),
        usage_nano_cores: rate.and_then(value),
        psi: psi(read.cpu_pressure),
    })
}

fn memory(read: &cgroup::Stats, timestamp: i64) -> Option<MemoryUsage> {
    read.memory.map(|memory| MemoryUsage {
        timestamp,
        working_set_bytes: value(memory.working_set),
        available_bytes: memory
            .limit
            .and_then(|limit| value(limit.saturating_sub(memory.working_set))),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: psi(read.memory_pressure),
    })
}

fn swap(read: &cgroup::Stats, timestamp: i64) -> Option<SwapUsage> {
    read.swap.map(|swap| SwapUsage {
        timestamp,
        swap_available_bytes: swap.limit.and_then(|l| value(l.saturating_sub(swap.usage))),
        swap_usage_bytes: value(swap.usage),
    })
}

/// The CRI's has nothing but the pressure.
fn io(read: &cgroup::Stats, timestamp: i64) -> Option<IoUsage> {
    read.io_pressure.map(|_| IoUsage { timestamp, psi: psi(read.io_pressure) })
}

impl Node {
    /// A container has been started, or has ended: from here on its rate is known, or its layer has
    /// what it wrote last.
    pub(crate) fn stats_news(&self, record: &ContainerRecord) {
        if record.state == ContainerState::Running {
            let mut reader = StatsReader::default();
            self.sample_one(&mut reader, &record.id, &record.cgroup);
            let name = pods::rate_name(&record.pod);
            if !self.stats.rates.knows(&name)
                && let Ok(pod) = self.pod(&record.pod)
                && let Some(group) = pods::group_of(&pod.record.get())
            {
                self.sample_one(&mut reader, &name, &group);
            }
        }
        self.stats.news.notify_one();
    }

    fn sample_one(&self, reader: &mut StatsReader, name: &str, group: &str) {
        let read =
            Cgroup::at(&self.hierarchy, group).and_then(|group| reader.read_parts(&group, CPU));
        if let Some(cpu) = read.ok().and_then(|read| read.cpu) {
            let reading = Reading { at: Instant::now(), usage: cpu.usage_ns };
            self.stats.rates.keep(name, reading);
        }
    }

    /// Reads the processor time of all that runs, as the base of rates.
    fn sample(&self) {
        let mut reader = StatsReader::default();
        let mut names = std::collections::HashSet::new();
        for container in self.all_containers() {
            let record = container.record.get();
            if record.state == ContainerState::Running {
                self.sample_one(&mut reader, &record.id, &record.cgroup);
                names.insert(record.id.clone());
            }
        }
        for pod in self.all_pods() {
            let record = pod.record.get();
            if record.state == PodState::Ready
                && let Some(group) = pods::group_of(&record)
            {
                let name = pods::rate_name(&record.id);
                self.sample_one(&mut reader, &name, &group);
                names.insert(name);
            }
        }
        self.stats.rates.retain(|name| names.contains(name));
    }

    /// The rate of a group, from a reading of it that was made just now.
    fn rate(&self, name: &str, read: &cgroup::Stats) -> Option<u64> {
        let usage = read.cpu?.usage_ns;
        self.stats.rates.rate(name, Reading { at: Instant::now(), usage })
    }

    /// Reads a container's cgroup; nothing if it has just ended.
    pub(crate) fn read_group(
        &self,
        reader: &mut StatsReader,
        name: &str,
        parts: Parts,
    ) -> Result<Option<cgroup::Stats>> {
        let failed = |source| Kind::Cgroup { name: name.to_owned(), source };
        let group = Cgroup::at(&self.hierarchy, name).map_err(failed)?;
        match reader.read_parts(&group, parts) {
            Err(e) if e.is_not_found() => Ok(None),
            other => Ok(Some(other.map_err(failed)?)),
        }
    }

    /// Statistics of one container: of what has ended only its layer's.
    pub(crate) fn container_stats(
        &self,
        reader: &mut StatsReader,
        container: &Container,
    ) -> Result<ContainerStats> {
        let record = container.record.get();
        let config = &record.config.0;
        let mut stats = ContainerStats {
            attributes: Some(ContainerAttributes {
                id: record.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            writable_layer: self.layer_usage(container),
            ..ContainerStats::default()
        };
        if record.state == ContainerState::Running
            && let Some(read) = self.read_group(reader, &record.cgroup, PARTS)?
        {
            let timestamp = sys::clock::realtime();
            stats.cpu = cpu(&read, timestamp, self.rate(&record.id, &read));
            stats.memory = memory(&read, timestamp);
            stats.swap = swap(&read, timestamp);
            stats.io = io(&read, timestamp);
        }
        Ok(stats)
    }

    /// What was measured last. The mount point is one that outlives the container: the kubelet asks
    /// the disk of it, and one that is gone fails the statistics of all pods.
    fn layer_usage(&self, container: &Container) -> Option<FilesystemUsage> {
        let figure = container.layer.get()?;
        let mountpoint = self.store.root().to_string_lossy().into_owned();
        Some(FilesystemUsage {
            timestamp: figure.at,
            fs_id: Some(FilesystemIdentifier { mountpoint }),
            used_bytes: value(figure.usage.bytes),
            inodes_used: value(figure.usage.inodes),
        })
    }

    /// Statistics of many. One that ends meanwhile is left out, not an error for all.
    pub(crate) async fn containers_stats(
        self: &Arc<Self>,
        all: Vec<Arc<Container>>,
    ) -> Result<Vec<ContainerStats>> {
        let node = Arc::clone(self);
        in_parallel(all, move |chunk| {
            let mut reader = StatsReader::default();
            let one = |c: &Arc<Container>| node.container_stats(&mut reader, c).ok();
            chunk.iter().filter_map(one).collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas() {
        let read = cgroup::Stats {
            cpu: Some(cgroup::CpuStats { usage_ns: 7, ..Default::default() }),
            memory: Some(cgroup::MemoryStats {
                usage: 100,
                working_set: 60,
                limit: Some(50),
                ..Default::default()
            }),
            swap: Some(cgroup::SwapStats { usage: 5, limit: Some(8) }),
            memory_pressure: Some(PressureStats {
                some: cgroup::Pressure { avg10: 1.5, total_us: 3, ..Default::default() },
                full: cgroup::Pressure::default(),
            }),
            ..cgroup::Stats::default()
        };
        let cpu = cpu(&read, 1, None).unwrap();
        assert_eq!((cpu.usage_nano_cores, cpu.psi), (None, None));
        let memory = memory(&read, 1).unwrap();
        // A working set above a limit that was just lowered leaves nothing.
        assert_eq!(memory.available_bytes, value(0));
        let some = memory.psi.unwrap().some.unwrap();
        assert_eq!((some.total, some.avg10), (3000, 1.5));
        assert_eq!(swap(&read, 1).unwrap().swap_available_bytes, value(3));
        assert_eq!(io(&read, 1), None);
    }

    #[tokio::test]
    async fn order_is_kept_in_parallel() {
        for n in [0, 1, 7, 8, 100] {
            let all: Vec<usize> = (0..n).collect();
            let done = in_parallel(all.clone(), |chunk| chunk).await.unwrap();
            assert_eq!(done, all);
        }
    }
}
