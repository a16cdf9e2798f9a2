//! The numbers of a group.
//!
//! Both versions are brought to one meaning, which is version 2's: all counts include the groups
//! below. What the node does not count is `None`, never 0.
//!
//! Each number costs a file, so that the reader is told by [`Parts`] which are wanted.
//!
//! | part      | version 1                                | version 2                             |
//! |-----------|------------------------------------------|---------------------------------------|
//! | cpu       | `cpuacct.usage`                          | `cpu.stat`                            |
//! | memory    | usage, limit, `memory.stat`, memsw limit | current, max, `memory.stat`, swap     |
//! | pressure  | the version 2 mount of a hybrid node     | `cpu`, `memory`, `io` `.pressure`     |
//! | pids, io, hugetlb | as named                         | as named                              |

use crate::error::Result;
use crate::files::Buffer;
use crate::group::Cgroup;
use crate::parse::{self, DeviceIo, Pressure, flat_all};
use std::collections::BTreeMap;
use std::path::Path;

/// Which numbers are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    /// [`Stats::cpu`].
    pub cpu: bool,
    /// [`Stats::memory`] and [`Stats::swap`].
    pub memory: bool,
    /// [`Stats::pids`].
    pub pids: bool,
    /// [`Stats::io`].
    pub io: bool,
    /// The three pressures.
    pub pressure: bool,
    /// [`Stats::hugetlb`].
    pub hugetlb: bool,
    /// What has files of its own beside the main one: user, system and throttled time of the
    /// processors; the highest usage, failures and kernel's share of memory.
    pub detail: bool,
}

impl Parts {
    /// All of them.
    pub const ALL: Parts = Parts {
        cpu: true,
        memory: true,
        pids: true,
        io: true,
        pressure: true,
        hugetlb: true,
        detail: true,
    };
}

/// All numbers of a group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Time of the processors.
    pub cpu: Option<CpuStats>,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Swap.
    pub swap: Option<SwapStats>,
    /// Processes and threads.
    pub pids: Option<PidsStats>,
    /// Block devices.
    pub io: Option<IoStats>,
    /// Huge pages, by their size as the kernel writes it (`2MB`).
    pub hugetlb: BTreeMap<String, HugetlbStats>,
    /// Waiting for a processor. Version 2 and hybrid nodes only, as are the next two, and only
    /// where the kernel counts it.
    pub cpu_pressure: Option<PressureStats>,
    /// Waiting for memory.
    pub memory_pressure: Option<PressureStats>,
    /// Waiting for block devices.
    pub io_pressure: Option<PressureStats>,
}

/// Time of the processors, in nanoseconds since the group was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// All.
    pub usage_ns: u64,
    /// In programs.
    pub user_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
    /// Periods of the quota.
    pub periods: u64,
    /// Of those, the ones in which the quota ran out.
    pub throttled_periods: u64,
    /// How long processes stood still for it.
    pub throttled_ns: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// All that is charged, caches included.
    pub usage: u64,
    /// The group's own limit, if it has one.
    pub limit: Option<u64>,
    /// `usage` without file caches that nobody has looked at lately: what eviction goes by.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// File caches.
    pub cache: u64,
    /// Mapped files.
    pub mapped_file: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Those that had to read.
    pub major_page_faults: u64,
    /// The highest `usage` that there was.
    pub max_usage: Option<u64>,
    /// How often the limit was hit (version 1: failed charges; version 2: `memory.events` `max`).
    pub fail_count: u64,
    /// Memory of the kernel.
    pub kernel: Option<u64>,
}

/// Swap, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwapStats {
    /// In use.
    pub usage: u64,
    /// The limit of swap alone, if there is one.
    pub limit: Option<u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be.
    pub limit: Option<u64>,
}

/// Block devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Each device that the group has used.
    pub devices: Vec<DeviceIo>,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HugetlbStats {
    /// In use.
    pub usage: u64,
    /// The highest `usage` that there was; version 1 only.
    pub max_usage: Option<u64>,
}

/// Pressure stall information.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PressureStats {
    /// Some task waited.
    pub some: Pressure,
    /// All tasks waited.
    pub full: Pressure,
}

/// Reads the numbers of one group after another into one buffer.
#[derive(Debug, Default)]
pub struct StatsReader {
    buffer: Buffer,
}

impl Cgroup {
    /// The numbers of the group; of many groups, better by [`StatsReader`].
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], [`crate::Error::Read`].
    pub fn stats(&self) -> Result<Stats> {
        StatsReader::default().read(self)
    }
}

impl StatsReader {
    /// All numbers of a group.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] if the group is not there, [`crate::Error::Read`].
    pub fn read(&mut self, group: &Cgroup) -> Result<Stats> {
        self.read_parts(group, Parts::ALL)
    }

    /// Some numbers of a group.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] if the group is not there, [`crate::Error::Read`].
    pub fn read_parts(&mut self, group: &Cgroup, parts: Parts) -> Result<Stats> {
        let mut stats =
            if group.hierarchy.is_v2() { self.v2(group, parts)? } else { self.v1(group, parts)? };
        if stats.cpu.is_none() && stats.memory.is_none() && !group.exists() {
            return Err(group.not_found());
        }
        let pressures = match group.hierarchy.is_v2() {
            true => group.hierarchy.mounts().first(),
            false => group.hierarchy.beside(),
        };
        if parts.pressure
            && let Some(mount) = pressures
        {
            let f = group.folder(mount);
            stats.cpu_pressure = self.get(&f, "cpu.pressure", pressure)?;
            stats.memory_pressure = self.get(&f, "memory.pressure", pressure)?;
            stats.io_pressure = self.get(&f, "io.pressure", pressure)?;
        }
        Ok(stats)
    }

    fn get<T>(
        &mut self,
        folder: &Path,
        file: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        Ok(self.buffer.read_whole(folder, file)?.and_then(parse))
    }

    fn v2(&mut self, group: &Cgroup, parts: Parts) -> Result<Stats> {
        let Some(mount) = group.hierarchy.mounts().first() else {
            return Err(group.not_found());
        };
        let f = &group.folder(mount);
        let mut stats = Stats::default();
        if parts.cpu {
            stats.cpu = self.get(f, "cpu.stat", cpu_v2)?;
        }
        if parts.memory {
            stats.memory = self.memory_v2(f, parts.detail)?;
            let swap = self.get(f, "memory.swap.current", parse::single)?;
            if let Some(usage) = swap {
                let limit = self.get(f, "memory.swap.max", parse::limit)?;
                stats.swap = Some(SwapStats { usage, limit });
            }
        }
        if parts.pids {
            stats.pids = self.pids(f)?;
        }
        if parts.io {
            stats.io = self.get(f, "io.stat", |t| Some(IoStats { devices: parse::io_v2(t) }))?;
        }
        if parts.hugetlb {
            stats.hugetlb = self.hugetlb(f, ".current", None)?;
        }
        Ok(stats)
    }

    fn memory_v2(&mut self, f: &Path, detail: bool) -> Result<Option<MemoryStats>> {
        let Some(usage) = self.get(f, "memory.current", parse::single)? else {
            return Ok(None);
        };
        let limit = self.get(f, "memory.max", parse::limit)?;
        let Some(mut stat) = self.get(f, "memory.stat", |text| Some(memory_v2(text, usage)))?
        else {
            return Ok(None);
        };
        stat.limit = limit;
        if detail {
            stat.max_usage = self.get(f, "memory.peak", parse::single)?;
            let fails = self.get(f, "memory.events", |text| parse::flat(text, "max"))?;
            stat.fail_count = fails.unwrap_or(0);
        }
        Ok(Some(stat))
    }

    fn pids(&mut self, f: &Path) -> Result<Option<PidsStats>> {
        let Some(current) = self.get(f, "pids.current", parse::single)? else { return Ok(None) };
        let limit = self.get(f, "pids.max", parse::limit)?;
        Ok(Some(PidsStats { current, limit }))
    }

    /// The sizes are those of the files that are there.
    fn hugetlb(
        &mut self,
        f: &Path,
        usage: &str,
        max_usage: Option<&str>,
    ) -> Result<BTreeMap<String, HugetlbStats>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(f).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(size) = name.to_str().and_then(|n| n.strip_prefix("hugetlb.")) else {
                continue;
            };
            // `rsvd` are reservations, not use.
            let Some(size) = size.strip_suffix(usage).filter(|s| !s.contains('.')) else {
                continue;
            };
            let file = |what: &str| format!("hugetlb.{size}{what}");
            let Some(usage) = self.get(f, &file(usage), parse::single)? else { continue };
            let max_usage = match max_usage {
                Some(what) => self.get(f, &file(what), parse::single)?,
                None => None,
            };
            found.insert(size.to_owned(), HugetlbStats { usage, max_usage });
        }
        Ok(found)
    }

    fn v1(&mut self, group: &Cgroup, parts: Parts) -> Result<Stats> {
        let mut stats = Stats::default();
        if parts.cpu {
            stats.cpu = self.cpu_v1(group, parts.detail)?;
        }
        if parts.memory
            && let Some(f) = group.path_of("memory")
        {
            (stats.memory, stats.swap) = self.memory_v1(&f, parts.detail)?;
        }
        if parts.pids
            && let Some(f) = group.path_of("pids")
        {
            stats.pids = self.pids(&f)?;
        }
        if parts.io
            && let Some(f) = group.path_of("blkio")
        {
            let whole = |text: &str| Some(text.to_owned());
            let bytes = self.get(&f, "blkio.throttle.io_service_bytes_recursive", whole)?;
            let ops = self.get(&f, "blkio.throttle.io_serviced_recursive", whole)?;
            stats.io =
                bytes.zip(ops).map(|(bytes, ops)| IoStats { devices: parse::io_v1(&bytes, &ops) });
        }
        if parts.hugetlb
            && let Some(f) = group.path_of("hugetlb")
        {
            stats.hugetlb = self.hugetlb(&f, ".usage_in_bytes", Some(".max_usage_in_bytes"))?;
        }
        Ok(stats)
    }

    fn cpu_v1(&mut self, group: &Cgroup, detail: bool) -> Result<Option<CpuStats>> {
        let Some(f) = group.path_of("cpuacct") else { return Ok(None) };
        let Some(usage_ns) = self.get(&f, "cpuacct.usage", parse::single)? else {
            return Ok(None);
        };
        let mut stats = CpuStats { usage_ns, ..CpuStats::default() };
        if detail {
            stats.user_ns = self.get(&f, "cpuacct.usage_user", parse::single)?.unwrap_or(0);
            stats.system_ns = self.get(&f, "cpuacct.usage_sys", parse::single)?.unwrap_or(0);
            if let Some(f) = group.path_of("cpu") {
                let keys = ["nr_periods", "nr_throttled", "throttled_time"];
                let throttled = self.get(&f, "cpu.stat", |text| Some(flat_all(text, keys)))?;
                [stats.periods, stats.throttled_periods, stats.throttled_ns] =
                    throttled.unwrap_or_default().map(|v| v.unwrap_or(0));
            }
        }
        Ok(Some(stats))
    }

    fn memory_v1(
        &mut self,
        f: &Path,
        detail: bool,
    ) -> Result<(Option<MemoryStats>, Option<SwapStats>)> {
        let Some(usage) = self.get(f, "memory.usage_in_bytes", parse::single)? else {
            return Ok((None, None));
        };
        let limit = self.get(f, "memory.limit_in_bytes", parse::limit)?;
        let sum_limit = self.get(f, "memory.memsw.limit_in_bytes", |text| {
            // That the file is there means that swap is counted.
            Some(parse::limit(text))
        })?;
        let stat = self.get(f, "memory.stat", |text| Some(memory_v1(text, usage)))?;
        let Some((mut memory, swap)) = stat else { return Ok((None, None)) };
        memory.limit = limit;
        if detail {
            memory.max_usage = self.get(f, "memory.max_usage_in_bytes", parse::single)?;
            memory.fail_count = self.get(f, "memory.failcnt", parse::single)?.unwrap_or(0);
            memory.kernel = self.get(f, "memory.kmem.usage_in_bytes", parse::single)?;
        }
        let swap = sum_limit.map(|sum| SwapStats {
            usage: swap,
            limit: sum.map(|sum| sum.saturating_sub(limit.unwrap_or(0))),
        });
        Ok((Some(memory), swap))
    }
}

fn cpu_v2(text: &str) -> Option<CpuStats> {
    let keys =
        ["usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"];
    let [usage, user, system, periods, throttled_periods, throttled] = flat_all(text, keys);
    let ns = |us: Option<u64>| us.unwrap_or(0).saturating_mul(1000);
    Some(CpuStats {
        usage_ns: usage?.saturating_mul(1000),
        user_ns: ns(user),
        system_ns: ns(system),
        periods: periods.unwrap_or(0),
        throttled_periods: throttled_periods.unwrap_or(0),
        throttled_ns: ns(throttled),
    })
}

fn memory_v2(text: &str, usage: u64) -> MemoryStats {
    let keys = ["inactive_file", "anon", "file", "file_mapped", "pgfault", "pgmajfault", "kernel"];
    let values = flat_all(text, keys);
    let [inactive_file, rss, cache, mapped_file, page_faults, major_page_faults, _] =
        values.map(|v| v.unwrap_or(0));
    MemoryStats {
        usage,
        working_set: usage.saturating_sub(inactive_file),
        rss,
        cache,
        mapped_file,
        page_faults,
        major_page_faults,
        kernel: values[6],
        ..MemoryStats::default()
    }
}

/// And the swap in use.
fn memory_v1(text: &str, usage: u64) -> (MemoryStats, u64) {
    let keys = [
        "total_inactive_file",
        "total_rss",
        "total_cache",
        "total_mapped_file",
        "total_pgfault",
        "total_pgmajfault",
        "total_swap",
    ];
    let [inactive_file, rss, cache, mapped_file, page_faults, major_page_faults, swap] =
        flat_all(text, keys).map(|v| v.unwrap_or(0));
    let stats = MemoryStats {
        usage,
        working_set: usage.saturating_sub(inactive_file),
        rss,
        cache,
        mapped_file,
        page_faults,
        major_page_faults,
        ..MemoryStats::default()
    };
    (stats, swap)
}

fn pressure(text: &str) -> Option<PressureStats> {
    parse::pressure(text).map(|(some, full)| PressureStats { some, full })
}
