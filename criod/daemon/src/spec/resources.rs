//! What a container, or a pod, may use: checked, merged with what it had, and in the words of the
//! runtime and of the cgroup.
//!
//! ```text
//!              ┌──────────── update ────────────┐
//! request ─────┤                                ▼
//!              └─▶ check ─▶ limits ─▶ spec    merge with the record ─▶ check ─▶ change ─▶ cgroup
//! ```
//! 0 and empty say nothing: at creation there is no limit, in an update it stays as it is.
//!
//! | asked for                        | is                                                       |
//! |----------------------------------|----------------------------------------------------------|
//! | memory, no sum of memory and swap| no swap: the sum is the memory's limit                    |
//! | a new memory limit, no new sum   | as much swap as before: the sum moves along               |
//! | swap, node does not count it     | not limited, said once                                    |
//! | huge pages, no such controller   | not limited, said once: the kubelet always sends them     |
//! | `unified` on version 1           | refused                                                   |

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Once;

use api_cri::v1::{ContainerConfig, HugepageLimit, LinuxContainerResources};

use crate::error::{Error, Result};

/// What the kernel takes, in microseconds.
const PERIODS: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
const LEAST_QUOTA: i64 = 1_000;
const SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;
/// The period where none is set.
const USUAL_PERIOD: i64 = 100_000;
/// The file of `unified` that says how much swap there may be.
const SWAP_FILE: &str = "memory.swap.max";

/// What a node can limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Able {
    v2: bool,
    swap: bool,
    hugetlb: bool,
}

impl Able {
    pub(crate) fn of(hierarchy: &cgroup::Hierarchy) -> Able {
        Able {
            v2: hierarchy.is_v2(),
            swap: hierarchy.has_swap_limit(),
            hugetlb: hierarchy.has("hugetlb"),
        }
    }

    /// A node that can limit all that its version of cgroups can.
    #[cfg(test)]
    pub(super) const fn all(v2: bool) -> Able {
        Able { v2, swap: true, hugetlb: true }
    }
}

/// What a container's request asks for.
pub(crate) fn asked(config: &ContainerConfig) -> LinuxContainerResources {
    config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default()
}

/// Refuses what makes no sense, or what this node has not; `of` stands before the field's name.
pub(crate) fn check(of: &str, asked: &LinuxContainerResources, able: Able) -> Result<()> {
    let refuse = |field: &str, why: String| Err(Error::invalid(format!("{of}{field}: {why}")));
    let r = asked;
    if r.cpu_period != 0 && !PERIODS.contains(&r.cpu_period) {
        return refuse("cpu_period", format!("{} is not between 1000 and 1000000", r.cpu_period));
    }
    if !matches!(r.cpu_quota, -1 | 0) && r.cpu_quota < LEAST_QUOTA {
        return refuse("cpu_quota", format!("{} is neither -1 nor at least 1000", r.cpu_quota));
    }
    if r.cpu_shares != 0 && !SHARES.contains(&r.cpu_shares) {
        return refuse("cpu_shares", format!("{} is not between 2 and 262144", r.cpu_shares));
    }
    for (field, value) in [
        ("memory_limit_in_bytes", r.memory_limit_in_bytes),
        ("memory_swap_limit_in_bytes", r.memory_swap_limit_in_bytes),
    ] {
        if value < -1 {
            return refuse(field, format!("{value} is neither -1 nor a size"));
        }
    }
    let (memory, sum) = (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes);
    if sum > 0 && memory <= 0 {
        let why = "it is a limit of memory and swap together, and memory has none";
        return refuse("memory_swap_limit_in_bytes", why.into());
    }
    if sum > 0 && sum < memory {
        let why = format!("{sum} is less than memory_limit_in_bytes alone, {memory}");
        return refuse("memory_swap_limit_in_bytes", why);
    }
    if !(-1000..=1000).contains(&r.oom_score_adj) {
        return refuse("oom_score_adj", format!("{} is not within ±1000", r.oom_score_adj));
    }
    for (field, set) in [("cpuset_cpus", &r.cpuset_cpus), ("cpuset_mems", &r.cpuset_mems)] {
        if !set.is_empty() && !is_set(set) {
            return refuse(field, format!("{set:?} is not a list such as \"0-3,7\""));
        }
    }
    let mut sizes = BTreeMap::new();
    for page in &r.hugepage_limits {
        if !has_pages(&page.page_size) {
            let why = format!("this node has no pages of {:?}", page.page_size);
            return refuse("hugepage_limits", why);
        }
        if sizes.insert(&page.page_size, page.limit).is_some_and(|before| before != page.limit) {
            return refuse("hugepage_limits", format!("two limits for {:?}", page.page_size));
        }
    }
    if !r.unified.is_empty() && !able.v2 {
        return refuse("unified", "this node has cgroup version 1".into());
    }
    if let Some(name) = r.unified.keys().find(|name| !cgroup::is_limit(name)) {
        return refuse("unified", format!("{name:?} is not the name of a limit's file"));
    }
    Ok(())
}

/// Refuses a memory limit that the runtime cannot work with.
pub(crate) fn check_least(limit: i64, least: u64) -> Result<()> {
    let least = i64::try_from(least).unwrap_or(i64::MAX);
    if limit > 0 && limit < least {
        return Err(Error::invalid(format!(
            "memory_limit_in_bytes: {limit} is below the least that this runtime can work with, \
             {least}"
        )));
    }
    Ok(())
}

/// Whether a text is a list of numbers and ranges, as the kernel reads them.
fn is_set(text: &str) -> bool {
    let number = |n: &str| n.bytes().all(|b| b.is_ascii_digit()).then(|| n.parse::<u32>().ok())?;
    text.split(',').all(|item| match item.split_once('-') {
        Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
        None => number(item).is_some(),
    })
}

/// Whether the node has huge pages of this size: `2MB`, `1GB`.
fn has_pages(size: &str) -> bool {
    let kib =
        [("KB", 1), ("MB", 1 << 10), ("GB", 1 << 20)].into_iter().find_map(|(unit, factor)| {
            let number =
                size.strip_suffix(unit).filter(|n| n.bytes().all(|b| b.is_ascii_digit()))?;
            number.parse::<u64>().ok()?.checked_mul(factor)
        });
    let folder = |kib| PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB"));
    kib.is_some_and(|kib| folder(kib).is_dir())
}

/// The sum of memory and swap in force, where there is a limit for memory.
fn sum(r: &LinuxContainerResources, able: Able) -> Option<i64> {
    let memory = r.memory_limit_in_bytes;
    let asked = match r.memory_swap_limit_in_bytes {
        0 if memory == 0 || (able.v2 && r.unified.contains_key(SWAP_FILE)) => return None,
        0 => memory,
        sum => sum,
    };
    if !able.swap {
        static SAID: Once = Once::new();
        SAID.call_once(|| tracing::info!("swap is not counted on this node: it is not limited"));
        return None;
    }
    Some(asked)
}

fn pages(r: &LinuxContainerResources, able: Able) -> BTreeMap<String, u64> {
    if !able.hugetlb {
        if r.hugepage_limits.iter().any(|page| page.limit > 0) {
            static SAID: Once = Once::new();
            SAID.call_once(|| tracing::warn!("no hugetlb controller: huge pages are not limited"));
        }
        return BTreeMap::new();
    }
    r.hugepage_limits.iter().map(|page| (page.page_size.clone(), page.limit)).collect()
}

/// What the spec says of them; the limit of processes is not theirs.
pub(crate) fn limits(r: &LinuxContainerResources, able: Able) -> oci::Resources {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    oci::Resources {
        cpu_shares: u64::try_from(r.cpu_shares).ok().filter(|v| *v > 0),
        cpu_quota: Some(r.cpu_quota).filter(|v| *v != 0),
        cpu_period: u64::try_from(r.cpu_period).ok().filter(|v| *v > 0),
        cpuset_cpus: text(&r.cpuset_cpus),
        cpuset_mems: text(&r.cpuset_mems),
        memory_limit: Some(r.memory_limit_in_bytes).filter(|v| *v != 0),
        memory_swap: sum(r, able),
        hugepage_limits: pages(r, able),
        unified: r.unified.clone(),
        ..oci::Resources::default()
    }
}

/// What had been asked for, with what is asked for now.
pub(crate) fn merge(
    old: &LinuxContainerResources,
    asked: &LinuxContainerResources,
) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| if new.is_empty() { old } else { new }.clone();
    let mut pages: BTreeMap<&str, u64> = BTreeMap::new();
    pages.extend(old.hugepage_limits.iter().map(|page| (page.page_size.as_str(), page.limit)));
    pages.extend(asked.hugepage_limits.iter().map(|page| (page.page_size.as_str(), page.limit)));
    let mut unified = old.unified.clone();
    unified.extend(asked.unified.clone());
    let memory = number(old.memory_limit_in_bytes, asked.memory_limit_in_bytes);
    let sum = match (asked.memory_swap_limit_in_bytes, old.memory_swap_limit_in_bytes) {
        (0, sum) if sum > 0 && memory < 0 => -1,
        (0, sum) if sum > 0 => memory.saturating_add(sum - old.memory_limit_in_bytes.max(0)),
        (0, sum) => sum,
        (sum, _) => sum,
    };
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, asked.cpu_period),
        cpu_quota: number(old.cpu_quota, asked.cpu_quota),
        cpu_shares: number(old.cpu_shares, asked.cpu_shares),
        memory_limit_in_bytes: memory,
        oom_score_adj: number(old.oom_score_adj, asked.oom_score_adj),
        cpuset_cpus: text(&old.cpuset_cpus, &asked.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &asked.cpuset_mems),
        hugepage_limits: pages
            .into_iter()
            .map(|(size, limit)| HugepageLimit { page_size: size.to_owned(), limit })
            .collect(),
        unified,
        memory_swap_limit_in_bytes: sum,
    }
}

/// What of `new` is not so in `old`.
pub(crate) fn difference(
    old: &LinuxContainerResources,
    new: &LinuxContainerResources,
) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == old { 0 } else { new };
    let text = |old: &String, new: &String| if new == old { String::new() } else { new.clone() };
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(&old.cpuset_cpus, &new.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &new.cpuset_mems),
        hugepage_limits: new
            .hugepage_limits
            .iter()
            .filter(|page| !old.hugepage_limits.contains(page))
            .cloned()
            .collect(),
        unified: new
            .unified
            .iter()
            .filter(|(name, value)| old.unified.get(*name) != Some(value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        memory_swap_limit_in_bytes: number(
            old.memory_swap_limit_in_bytes,
            new.memory_swap_limit_in_bytes,
        ),
    }
}

/// What an update writes: what it asks for, where `merged` is all that holds from then on.
pub(crate) fn change(
    asked: &LinuxContainerResources,
    merged: &LinuxContainerResources,
    able: Able,
) -> oci::Resources {
    let mut change = limits(asked, able);
    // One depends on the other: which is written first, and how much of the sum is swap.
    if change.memory_limit.is_some() || asked.memory_swap_limit_in_bytes != 0 {
        change.memory_limit = Some(merged.memory_limit_in_bytes).filter(|v| *v != 0);
        change.memory_swap = sum(merged, able);
    }
    change
}

/// The same for the cgroup's own files.
pub(crate) fn for_cgroup(r: oci::Resources) -> cgroup::Resources {
    cgroup::Resources {
        cpu_shares: r.cpu_shares,
        cpu_quota: r.cpu_quota,
        cpu_period: r.cpu_period,
        cpuset_cpus: r.cpuset_cpus,
        cpuset_mems: r.cpuset_mems,
        memory_limit: r.memory_limit,
        memory_swap: r.memory_swap,
        memory_reservation: r.memory_reservation,
        pids_limit: r.pids_limit,
        hugepage_limits: r.hugepage_limits,
        unified: r.unified,
    }
}

/// What a pod's cgroup may use: what its containers may, and what the pod takes beside them. What
/// one of them does not limit, the sum does not either.
pub(crate) fn pod_sum(
    resources: &LinuxContainerResources,
    overhead: &LinuxContainerResources,
) -> LinuxContainerResources {
    let (r, o) = (resources, overhead);
    let add = |a: i64, b: i64| if a > 0 { a.saturating_add(b.max(0)) } else { a };
    let period = |r: &LinuxContainerResources| match r.cpu_period {
        0 => USUAL_PERIOD,
        period => period,
    };
    let scaled = i128::from(o.cpu_quota) * i128::from(period(r)) / i128::from(period(o));
    let memory = o.memory_limit_in_bytes;
    let mut sum = merge(o, r);
    sum.cpu_period = r.cpu_period;
    sum.cpu_quota = add(r.cpu_quota, i64::try_from(scaled).unwrap_or(i64::MAX));
    sum.cpu_shares = r.cpu_shares.saturating_add(o.cpu_shares).min(*SHARES.end());
    sum.memory_limit_in_bytes = add(r.memory_limit_in_bytes, memory);
    sum.memory_swap_limit_in_bytes = add(r.memory_swap_limit_in_bytes, memory);
    for page in &mut sum.hugepage_limits {
        let of = |r: &LinuxContainerResources| {
            let found = r.hugepage_limits.iter().find(|p| p.page_size == page.page_size);
            found.map_or(0, |p| p.limit)
        };
        page.limit = of(r).saturating_add(of(o));
    }
    sum
}

/// Without CAP_SYS_RESOURCE a score below our own cannot be set: it is raised to that.
pub(crate) fn oom_score(asked: i64) -> i32 {
    let asked = i32::try_from(asked.clamp(-1000, 1000)).unwrap_or(0);
    static LIMIT: std::sync::OnceLock<Option<i32>> = std::sync::OnceLock::new();
    let limit = LIMIT.get_or_init(|| {
        let may = oci::caps::grantable().is_ok_and(|c| c.has("CAP_SYS_RESOURCE"));
        if may {
            return None;
        }
        let own = fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()?;
        tracing::info!(lowest = own, "no CAP_SYS_RESOURCE: OOM scores below this are raised to it");
        Some(own)
    });
    limit.map_or(asked, |lowest| asked.max(lowest))
}

#[cfg(test)]
mod tests;
