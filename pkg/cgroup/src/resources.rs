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
//!
//! All or nothing: before a file is written its text is read, and when a later one cannot be
//! written those before it get theirs back.
//!
//! A memory limit below what is in use makes version 1 reclaim, and refuse if that is not enough.
//! Version 2 takes any limit and kills, so there the same is done by hand before it is written.

use crate::error::{Error, Result};
use crate::files::{Buffer, write};
use crate::group::Cgroup;
use crate::parse;
use nix::libc;
use std::cell::RefCell;
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
    /// Version 2 files and what to write into them, after all others. Those of `cgroup.*` are no
    /// limits and are refused.
    pub unified: BTreeMap<String, String>,
}

/// `cpu.weight` for `cpu.shares`: 2 is 1, 262144 is 10000, linear in between.
#[must_use]
pub fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

impl Cgroup {
    /// Sets limits: all of them, or none.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the group is not there, [`Error::NoController`] if the node has
    /// not what a limit needs, [`Error::UnifiedName`], [`Error::InUse`], [`Error::Write`].
    pub fn set(&self, resources: &Resources) -> Result<()> {
        let names = resources.unified.keys().map(String::as_str);
        if let Some(name) = names.into_iter().find(|name| !is_limit(name)) {
            return Err(Error::UnifiedName { name: name.to_owned() });
        }
        if let Some(size) =
            resources.hugepage_limits.keys().find(|size| !is_file_name(&format!("hugetlb.{size}")))
        {
            return Err(Error::UnifiedName { name: size.clone() });
        }
        if !resources.unified.is_empty() && !self.hierarchy.is_v2() {
            let what = "a version 2 file";
            return Err(Error::NoController { what, controller: "version 2" });
        }
        let change = Change { group: self, before: RefCell::default() };
        change.make(resources).inspect_err(|_| change.undo())
    }
}

/// A change of limits under way.
struct Change<'a> {
    group: &'a Cgroup,
    /// Files that have been written and what was in them, in this order.
    before: RefCell<Vec<(PathBuf, String)>>,
}

impl Change<'_> {
    fn make(&self, resources: &Resources) -> Result<()> {
        self.set_cpuset(resources)?;
        self.set_cpu(resources)?;
        self.set_memory(resources)?;
        if let Some(limit) = resources.pids_limit.filter(|v| *v != 0) {
            self.put("limit of processes", "pids", "pids.max", &max_if_negative(limit))?;
        }
        for (size, limit) in &resources.hugepage_limits {
            self.set_hugetlb(size, &limit.to_string())?;
        }
        for (name, value) in &resources.unified {
            let bytes = value.trim().parse().ok().filter(|_| name == "memory.max");
            if let Some(bytes) = bytes {
                self.make_room(bytes)?;
            }
            self.put("a version 2 file", "unified", name, value)?;
        }
        Ok(())
    }

    /// Gives the files their texts back. There is nobody left to tell where that fails.
    fn undo(&self) {
        for (path, text) in self.before.take().into_iter().rev() {
            // Writing nothing is no write: an empty set is a line of its own.
            let text = if text.is_empty() { "\n" } else { text.as_str() };
            if let Err(error) = write(&path, text) {
                tracing::warn!(path = %path.display(), %error, "a limit could not be set back");
            }
        }
    }

    /// Writes a file, once its text is noted.
    fn write(&self, path: PathBuf, value: &str) -> Result<()> {
        let mut buffer = Buffer::default();
        let before = match (path.parent(), path.file_name().and_then(|n| n.to_str())) {
            (Some(folder), Some(name)) => buffer.read(folder, name)?.map(|t| t.trim().to_owned()),
            _ => None,
        };
        write(&path, value)?;
        if let Some(before) = before {
            self.before.borrow_mut().push((path, before));
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
        match self.write(folder.join(file), value) {
            Err(Error::NotFound { path }) if folder.is_dir() => {
                tracing::debug!(path = %path.display(), "no such file");
                Err(Error::NoController { what, controller })
            }
            done => done,
        }
    }

    fn folder_of(&self, what: &'static str, controller: &'static str) -> Result<PathBuf> {
        self.group.path_of(controller).ok_or(Error::NoController { what, controller })
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
        if self.group.hierarchy.is_v2() {
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
        if self.group.hierarchy.is_v2() {
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
                if let Ok(limit) = u64::try_from(limit) {
                    self.make_room(limit)?;
                }
                self.put("limit of memory", "memory", "memory.max", &max_if_negative(limit))?;
            }
            if let Some(soft) = soft {
                let low = soft.max(0).to_string();
                self.put("soft limit of memory", "memory", "memory.low", &low)?;
            }
            return Ok(());
        }
        let put_limit = |limit: i64| {
            let file = "memory.limit_in_bytes";
            let done = self.put("limit of memory", "memory", file, &limit.max(-1).to_string());
            self.or_in_use(done, limit, "memory.usage_in_bytes")
        };
        let put_swap = |swap: i64| {
            let file = "memory.memsw.limit_in_bytes";
            let done = self.put("limit of swap", "memory", file, &swap.max(-1).to_string());
            self.or_in_use(done, swap, "memory.memsw.usage_in_bytes")
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

    /// Version 1: that a limit was refused because more is in use, in these words.
    fn or_in_use(&self, done: Result<()>, limit: i64, usage: &str) -> Result<()> {
        match (done, u64::try_from(limit)) {
            (Err(Error::Write { path, source, .. }), Ok(limit))
                if source.raw_os_error() == Some(libc::EBUSY) =>
            {
                let folder = path.parent().unwrap_or(&path);
                let usage = Buffer::default().read(folder, usage)?.and_then(parse::single);
                Err(Error::InUse { path, limit, usage: usage.unwrap_or(0) })
            }
            (done, _) => done,
        }
    }

    /// Version 2: reclaims until no more than this is in use, as a limit below that would kill.
    fn make_room(&self, limit: u64) -> Result<()> {
        let folder = self.folder_of("limit of memory", "memory")?;
        let usage = || -> Result<u64> {
            let mut buffer = Buffer::default();
            Ok(buffer.read(&folder, "memory.current")?.and_then(parse::single).unwrap_or(0))
        };
        let before = usage()?;
        if before <= limit {
            return Ok(());
        }
        // EAGAIN: not all of it could be; not there before Linux 5.19.
        if let Err(error) = write(&folder.join("memory.reclaim"), &(before - limit).to_string()) {
            tracing::debug!(folder = %folder.display(), %error, "not reclaimed");
        }
        match usage()? {
            usage if usage > limit => {
                Err(Error::InUse { path: folder.join("memory.max"), limit, usage })
            }
            _ => Ok(()),
        }
    }

    fn sum_grows(&self, swap: i64) -> Result<bool> {
        let folder = self.folder_of("limit of swap", "memory")?;
        let mut buffer = Buffer::default();
        let now = buffer.read(&folder, "memory.memsw.limit_in_bytes")?.and_then(parse::limit);
        Ok(now.is_some_and(|now| u64::try_from(swap).is_ok_and(|swap| swap > now)))
    }

    fn set_hugetlb(&self, size: &str, limit: &str) -> Result<()> {
        let (what, controller) = ("limit of huge pages", "hugetlb");
        let suffix = if self.group.hierarchy.is_v2() { "max" } else { "limit_in_bytes" };
        self.put(what, controller, &format!("hugetlb.{size}.{suffix}"), limit)?;
        // Reservations are counted since 5.7.
        let folder = self.folder_of(what, controller)?;
        match self.write(folder.join(format!("hugetlb.{size}.rsvd.{suffix}")), limit) {
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

/// Whether a version 2 file may be a limit, by its name: it is one file of a controller. Those of
/// `cgroup.*` kill, freeze and move.
#[must_use]
pub fn is_limit(name: &str) -> bool {
    is_file_name(name) && !name.starts_with("cgroup.")
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
        for bad in ["cgroup.kill", "cgroup.procs", "cgroup.freeze", "cgroup.subtree_control"] {
            assert!(!is_limit(bad), "{bad}");
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
