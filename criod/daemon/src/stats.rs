//! Statistics of containers, read from their cgroups when they are asked for.
//!
//! Nothing is locked but the table of earlier CPU readings, which a rate needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use api_cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    MemoryUsage, SwapUsage, UInt64Value,
};
use cgroup::Cgroup;

use crate::error::{Kind, Result};
use crate::node::{Container, Node, lock};
use crate::record::ContainerState;

/// The CPU time that was read last of each container, and when: (time, usage), both nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct CpuRates(Mutex<HashMap<String, (i64, u64, u64)>>);

/// The shortest time that a rate is taken over, in nanoseconds.
const SHORTEST: i64 = 100_000_000;

impl CpuRates {
    /// Nanoseconds of CPU time per second since the reading before.
    fn rate(&self, id: &str, time: i64, usage: u64) -> Option<u64> {
        let mut known = lock(&self.0);
        let Some((then, before, last)) = known.get(id).copied() else {
            known.insert(id.to_owned(), (time, usage, 0));
            return None;
        };
        let passed = time - then;
        if passed < SHORTEST {
            return Some(last);
        }
        let used = u128::from(usage.saturating_sub(before)) * 1_000_000_000;
        let rate = u64::try_from(used / u128::from(passed.unsigned_abs())).unwrap_or(u64::MAX);
        known.insert(id.to_owned(), (time, usage, rate));
        Some(rate)
    }

    pub(crate) fn forget(&self, id: &str) {
        lock(&self.0).remove(id);
    }
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

impl Node {
    /// Statistics of one container. What its cgroup does not tell is absent, not zero.
    pub(crate) fn stats_of(&self, container: &Arc<Container>) -> Result<ContainerStats> {
        let record = container.record.get();
        let timestamp = sys::clock::realtime();
        let mut stats = ContainerStats {
            attributes: Some(ContainerAttributes {
                id: record.id.clone(),
                metadata: record.config.0.metadata.clone(),
                labels: record.config.0.labels.clone(),
                annotations: record.config.0.annotations.clone(),
            }),
            ..ContainerStats::default()
        };
        let upper = self.paths.rootfs(&record.id).join("upper");
        if let Ok(usage) = storage::usage(&upper) {
            stats.writable_layer = Some(FilesystemUsage {
                timestamp,
                fs_id: Some(FilesystemIdentifier {
                    mountpoint: self.store.root().to_string_lossy().into_owned(),
                }),
                used_bytes: value(usage.bytes),
                inodes_used: value(usage.inodes),
            });
        }
        if record.state != ContainerState::Running {
            return Ok(stats);
        }
        let failed = |source| Kind::Cgroup { name: record.cgroup.clone(), source };
        let group = Cgroup::at(&self.hierarchy, &record.cgroup).map_err(failed)?;
        let read = match group.stats() {
            // It has just ended.
            Err(e) if e.is_not_found() => return Ok(stats),
            other => other.map_err(failed)?,
        };
        stats.cpu = read.cpu.map(|cpu| CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(cpu.usage_ns),
            usage_nano_cores: self
                .cpu
                .rate(&record.id, timestamp, cpu.usage_ns)
                .map(|value| UInt64Value { value }),
            psi: None,
        });
        stats.memory = read.memory.map(|memory| MemoryUsage {
            timestamp,
            working_set_bytes: value(memory.working_set),
            available_bytes: memory
                .limit
                .and_then(|limit| value(limit.saturating_sub(memory.working_set))),
            usage_bytes: value(memory.usage),
            rss_bytes: value(memory.rss),
            page_faults: value(memory.page_faults),
            major_page_faults: value(memory.major_page_faults),
            psi: None,
        });
        stats.swap = read.swap.map(|swap| SwapUsage {
            timestamp,
            swap_available_bytes: swap.limit.and_then(|l| value(l.saturating_sub(swap.usage))),
            swap_usage_bytes: value(swap.usage),
        });
        Ok(stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings_some_time_apart() {
        let rates = CpuRates::default();
        assert_eq!(rates.rate("a", 1_000_000_000, 500), None);
        assert_eq!(rates.rate("a", 1_000_000_001, 900), Some(0));
        assert_eq!(rates.rate("a", 2_000_000_000, 500_000_500), Some(500_000_000));
        rates.forget("a");
        assert_eq!(rates.rate("a", 3_000_000_000, 1), None);
    }
}
