//! Limits of a group, in the words of version 1, translated where the node has version 2.
//!
//! | limit            | version 1                      | version 2                          |
//! |------------------|--------------------------------|------------------------------------|
//! | CPU shares       | `cpu.shares` 2…262144          | `cpu.weight` 1…10000               |
//! | CPU quota/period | `cpu.cfs_quota_us`/`_period_us`| `cpu.max`                          |
//! | memory           | `memory.limit_in_bytes`        | `memory.max`                       |
//! | memory and swap  | `memory.memsw.limit_in_bytes`  | `memory.swap.max`, without memory  |
//! | soft limit       | `memory.soft_limit_in_bytes`   | `memory.low`                       |
//! | processes        | `pids.max`                     | `pids.max`                         |

use crate::error::{Error, Result};
use crate::files::{Buffer, write};
use crate::group::Cgroup;
use crate::parse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a group may use. `None` leaves a limit as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight, 2 to 262144; 0 counts as `None`.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per period; negative is unlimited, 0 counts as `None`.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds; 0 counts as `None`.
    pub cpu_period: Option<u64>,
    /// CPUs, `0-3,7`; empty counts as `None`.
    pub cpuset_cpus: Option<String>,
    /// NUMA nodes; empty counts as `None`.
    pub cpuset_mems: Option<String>,
    /// Bytes; negative is unlimited, 0 counts as `None`.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together; negative is unlimited, 0 counts as `None`.
    pub memory_swap: Option<i64>,
    /// Soft limit in bytes; negative is unlimited (version 1) or none (version 2), 0 counts as
    /// `None`.
    pub memory_reservation: Option<i64>,
    /// Processes and threads; negative is unlimited, 0 counts as `None`.
    pub pids_limit: Option<i64>,
    /// Page size (`2MB`) to bytes.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Version 2 files and what to write into them, after all others.
    pub unified: BTreeMap<String, String>,
}

/// `cpu.weight` for `cpu.shares`: 2 is 1, 262144 is 10000, linear in between.
#[must_use]
pub fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

impl Cgroup {
    /// Sets limits.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the group is not there, [`Error::NoController`] if the node has
    /// not what a limit needs, [`Error::UnifiedName`], [`Error::Write`]. Limits before the one
    /// that failed are set.
    pub fn set(&self, resources: &Resources) -> Result<()> {
        if let Some(name) = resources.unified.keys().find(|name| !is_file_name(name)) {
            return Err(Error::UnifiedName { name: name.clone() });
        }
        self.set_cpuset(resources)?;
        self.set_cpu(resources)?;
        self.set_memory(resources)?;
        if let Some(limit) = resources.pids_limit.filter(|v| *v != 0) {
            self.put("limit of processes", "pids", "pids.max", &max_if_negative(limit))?;
        }
        for (size, limit) in &resources.hugepage_limits {
            if !is_file_name(&format!("hugetlb.{size}")) {
                return Err(Error::UnifiedName { name: size.clone() });
            }
            self.set_hugetlb(size, &limit.to_string())?;
        }
        if !resources.unified.is_empty() && !self.hierarchy.is_v2() {
            let what = "a version 2 file";
            return Err(Error::NoController { what, controller: "version 2" });
        }
        for (name, value) in &resources.unified {
            self.put("a version 2 file", "unified", name, value)?;
        }
        Ok(())
    }

    /// Writes a file of a controller.
    fn put(
        &self,
        what: &'static str,
        controller: &'static str,
        file: &str,
        value: &str,
    ) -> Result<()> {
        let folder = self.folder_of(what, controller)?;
        match write(&folder.join(file), value) {
            Err(Error::NotFound { path }) if folder.is_dir() => {
                tracing::debug!(path = %path.display(), "no such file");
                Err(Error::NoController { what, controller })
            }
            done => done,
        }
    }

    fn folder_of(&self, what: &'static str, controller: &'static str) -> Result<PathBuf> {
        self.path_of(controller).ok_or(Error::NoController { what, controller })
    }

    fn set_cpuset(&self, r: &Resources) -> Result<()> {
        if let Some(mems) = r.cpuset_mems.as_deref().filter(|m| !m.is_empty()) {
            self.put("set of memory nodes", "cpuset", "cpuset.mems", mems)?;
        }
        if let Some(cpus) = r.cpuset_cpus.as_deref().filter(|c| !c.is_empty()) {
            self.put("set of CPUs", "cpuset", "cpuset.cpus", cpus)?;
        }
        Ok(())
    }

    fn set_cpu(&self, r: &Resources) -> Result<()> {
        let shares = r.cpu_shares.filter(|v| *v != 0);
        let quota = r.cpu_quota.filter(|v| *v != 0).map(|v| v.max(-1));
        let period = r.cpu_period.filter(|v| *v != 0);
        if self.hierarchy.is_v2() {
            if let Some(shares) = shares {
                let weight = weight_of_shares(shares).to_string();
                self.put("CPU shares", "cpu", "cpu.weight", &weight)?;
            }
            if quota.is_some() || period.is_some() {
                let value = self.cpu_max(quota, period)?;
                self.put("CPU quota", "cpu", "cpu.max", &value)?;
            }
            return Ok(());
        }
        if let Some(shares) = shares {
            self.put("CPU shares", "cpu", "cpu.shares", &shares.to_string())?;
        }
        let put_period =
            |period: u64| self.put("CPU period", "cpu", "cpu.cfs_period_us", &period.to_string());
        // With the old quota the new period can be more than the group above allows; then the
        // quota has to come first.
        let early = period.map(put_period);
        if let (Some(Err(_)), None) = (&early, quota) {
            return early.unwrap_or(Ok(()));
        }
        if let Some(quota) = quota {
            self.put("CPU quota", "cpu", "cpu.cfs_quota_us", &quota.to_string())?;
        }
        match (early, period) {
            (Some(Err(_)), Some(period)) => put_period(period),
            _ => Ok(()),
        }
    }

    /// `cpu.max`: a lone period keeps the quota that there is.
    fn cpu_max(&self, quota: Option<i64>, period: Option<u64>) -> Result<String> {
        let quota = match quota {
            Some(quota) => max_if_negative(quota),
            None => {
                let folder = self.folder_of("CPU period", "cpu")?;
                let mut buffer = Buffer::default();
                let now = buffer.read(&folder, "cpu.max")?.unwrap_or("max");
                now.split_whitespace().next().unwrap_or("max").to_owned()
            }
        };
        Ok(match period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        })
    }

    fn set_memory(&self, r: &Resources) -> Result<()> {
        let limit = r.memory_limit.filter(|v| *v != 0);
        let swap = r.memory_swap.filter(|v| *v != 0);
        let soft = r.memory_reservation.filter(|v| *v != 0);
        if self.hierarchy.is_v2() {
            if let Some(swap) = swap {
                // Without a limit for memory there is nothing to take away from the sum.
                let value = match limit {
                    _ if swap < 0 => "max".to_owned(),
                    Some(limit) if limit > 0 => swap.saturating_sub(limit).max(0).to_string(),
                    _ => swap.to_string(),
                };
                self.put("limit of swap", "memory", "memory.swap.max", &value)?;
            }
            if let Some(limit) = limit {
                self.put("limit of memory", "memory", "memory.max", &max_if_negative(limit))?;
            }
            if let Some(soft) = soft {
                let low = soft.max(0).to_string();
                self.put("soft limit of memory", "memory", "memory.low", &low)?;
            }
            return Ok(());
        }
        let put_limit = |limit: i64| {
            let value = limit.max(-1).to_string();
            self.put("limit of memory", "memory", "memory.limit_in_bytes", &value)
        };
        let put_swap = |swap: i64| {
            let value = swap.max(-1).to_string();
            self.put("limit of swap", "memory", "memory.memsw.limit_in_bytes", &value)
        };
        match (limit, swap) {
            // The sum may never be below its part: which comes first depends on the direction.
            (Some(limit), Some(swap)) if swap < 0 || self.sum_grows(swap)? => {
                put_swap(swap)?;
                put_limit(limit)?;
            }
            (Some(limit), Some(swap)) => {
                put_limit(limit)?;
                put_swap(swap)?;
            }
            (Some(limit), None) => put_limit(limit)?,
            (None, Some(swap)) => put_swap(swap)?,
            (None, None) => {}
        }
        if let Some(soft) = soft {
            let (what, file) = ("soft limit of memory", "memory.soft_limit_in_bytes");
            self.put(what, "memory", file, &soft.max(-1).to_string())?;
        }
        Ok(())
    }

    fn sum_grows(&self, swap: i64) -> Result<bool> {
        let folder = self.folder_of("limit of swap", "memory")?;
        let mut buffer = Buffer::default();
        let now = buffer.read(&folder, "memory.memsw.limit_in_bytes")?.and_then(parse::limit);
        Ok(now.is_some_and(|now| u64::try_from(swap).is_ok_and(|swap| swap > now)))
    }

    fn set_hugetlb(&self, size: &str, limit: &str) -> Result<()> {
        let (what, controller) = ("limit of huge pages", "hugetlb");
        let suffix = if self.hierarchy.is_v2() { "max" } else { "limit_in_bytes" };
        self.put(what, controller, &format!("hugetlb.{size}.{suffix}"), limit)?;
        // Reservations are counted since 5.7.
        let folder = self.folder_of(what, controller)?;
        match write(&folder.join(format!("hugetlb.{size}.rsvd.{suffix}")), limit) {
            Err(e) if e.is_not_found() => Ok(()),
            done => done,
        }
    }
}

/// Whether a name is that of a controller's file, and reaches nothing else.
fn is_file_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    Path::new(name).file_name().is_some_and(|n| n == name)
        && name.split_once('.').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty())
        && name.chars().all(plain)
}

fn max_if_negative(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn weights() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)]
        {
            assert_eq!(weight_of_shares(shares), weight);
        }
    }

    #[test]
    fn names_of_files() {
        for good in ["memory.high", "cpu.max.burst", "hugetlb.2MB.max", "io.bfq.weight"] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in
            ["", ".", "..", "memory", ".max", "a/b.c", "../x.y", "a.", "a.b/..", "a.b\0", "a.b c"]
        {
            assert!(!is_file_name(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn weights_keep_their_order(a in 0u64..300_000, b in 0u64..300_000) {
            let (wa, wb) = (weight_of_shares(a), weight_of_shares(b));
            prop_assert!((1..=10_000).contains(&wa));
            prop_assert!(a > b || wa <= wb);
        }
    }
}
