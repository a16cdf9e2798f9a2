//! The numbers of a group.
//!
//! Both versions are brought to one meaning, which is version 2's: all counts include the groups
//! below. What the node does not count is `None`, never 0.

use crate::error::Result;
use crate::files::Buffer;
use crate::group::Cgroup;
use crate::parse::{self, Pressure, flat_all};
use std::path::Path;

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
    /// Waiting for a processor (version 2 only, as are the next two).
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

/// Block devices, all together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
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
    /// The numbers of a group.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] if the group is not there, [`crate::Error::Read`].
    pub fn read(&mut self, group: &Cgroup) -> Result<Stats> {
        let stats = if group.hierarchy.is_v2() { self.v2(group)? } else { self.v1(group)? };
        if stats.cpu.is_none() && stats.memory.is_none() && !group.exists() {
            return Err(group.not_found());
        }
        Ok(stats)
    }

    fn get<T>(
        &mut self,
        folder: &Path,
        file: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        Ok(self.buffer.read(folder, file)?.and_then(parse))
    }

    fn v2(&mut self, group: &Cgroup) -> Result<Stats> {
        let Some(folder) = group.paths().into_iter().next() else {
            return Err(group.not_found());
        };
        let f = folder.as_path();
        let memory = self.memory_v2(f)?;
        let swap = self.get(f, "memory.swap.current", parse::single)?;
        let swap_limit = self.get(f, "memory.swap.max", parse::limit)?;
        let pids = self.get(f, "pids.current", parse::single)?;
        let pids_limit = self.get(f, "pids.max", parse::limit)?;
        Ok(Stats {
            cpu: self.get(f, "cpu.stat", cpu_v2)?,
            memory,
            swap: swap.map(|usage| SwapStats { usage, limit: swap_limit }),
            pids: pids.map(|current| PidsStats { current, limit: pids_limit }),
            io: self.get(f, "io.stat", |text| Some(io_v2(text)))?,
            cpu_pressure: self.get(f, "cpu.pressure", pressure)?,
            memory_pressure: self.get(f, "memory.pressure", pressure)?,
            io_pressure: self.get(f, "io.pressure", pressure)?,
        })
    }

    fn memory_v2(&mut self, f: &Path) -> Result<Option<MemoryStats>> {
        let Some(usage) = self.get(f, "memory.current", parse::single)? else {
            return Ok(None);
        };
        let limit = self.get(f, "memory.max", parse::limit)?;
        let max_usage = self.get(f, "memory.peak", parse::single)?;
        let fails = self.get(f, "memory.events", |text| parse::flat(text, "max"))?;
        let stat = self.get(f, "memory.stat", |text| Some(memory_v2(text, usage)))?;
        Ok(stat.map(|stat| MemoryStats {
            limit,
            max_usage,
            fail_count: fails.unwrap_or(0),
            ..stat
        }))
    }

    fn v1(&mut self, group: &Cgroup) -> Result<Stats> {
        let mut stats = Stats { cpu: self.cpu_v1(group)?, ..Stats::default() };
        if let Some(f) = group.path_of("memory") {
            (stats.memory, stats.swap) = self.memory_v1(&f)?;
        }
        if let Some(f) = group.path_of("pids") {
            let limit = self.get(&f, "pids.max", parse::limit)?;
            let current = self.get(&f, "pids.current", parse::single)?;
            stats.pids = current.map(|current| PidsStats { current, limit });
        }
        if let Some(f) = group.path_of("blkio") {
            let io = |text: &str| Some(parse::io_v1(text));
            let bytes = self.get(&f, "blkio.throttle.io_service_bytes_recursive", io)?;
            let ops = self.get(&f, "blkio.throttle.io_serviced_recursive", io)?;
            stats.io = bytes.zip(ops).map(|(bytes, ops)| IoStats {
                read_bytes: bytes.read,
                write_bytes: bytes.write,
                read_ops: ops.read,
                write_ops: ops.write,
            });
        }
        Ok(stats)
    }

    fn cpu_v1(&mut self, group: &Cgroup) -> Result<Option<CpuStats>> {
        let Some(f) = group.path_of("cpuacct") else { return Ok(None) };
        let Some(usage_ns) = self.get(&f, "cpuacct.usage", parse::single)? else {
            return Ok(None);
        };
        let user_ns = self.get(&f, "cpuacct.usage_user", parse::single)?.unwrap_or(0);
        let system_ns = self.get(&f, "cpuacct.usage_sys", parse::single)?.unwrap_or(0);
        let throttled = match group.path_of("cpu") {
            Some(f) => self.get(&f, "cpu.stat", |text| {
                Some(flat_all(text, ["nr_periods", "nr_throttled", "throttled_time"]))
            })?,
            None => None,
        };
        let [periods, throttled_periods, throttled_ns] =
            throttled.unwrap_or_default().map(|v| v.unwrap_or(0));
        Ok(Some(CpuStats {
            usage_ns,
            user_ns,
            system_ns,
            periods,
            throttled_periods,
            throttled_ns,
        }))
    }

    fn memory_v1(&mut self, f: &Path) -> Result<(Option<MemoryStats>, Option<SwapStats>)> {
        let Some(usage) = self.get(f, "memory.usage_in_bytes", parse::single)? else {
            return Ok((None, None));
        };
        let limit = self.get(f, "memory.limit_in_bytes", parse::limit)?;
        let max_usage = self.get(f, "memory.max_usage_in_bytes", parse::single)?;
        let fail_count = self.get(f, "memory.failcnt", parse::single)?.unwrap_or(0);
        let kernel = self.get(f, "memory.kmem.usage_in_bytes", parse::single)?;
        let sum_limit = self.get(f, "memory.memsw.limit_in_bytes", |text| {
            // That the file is there means that swap is counted.
            Some(parse::limit(text))
        })?;
        let stat = self.get(f, "memory.stat", |text| Some(memory_v1(text, usage)))?;
        let Some((stat, swap)) = stat else { return Ok((None, None)) };
        let memory = MemoryStats { limit, max_usage, fail_count, kernel, ..stat };
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

fn io_v2(text: &str) -> IoStats {
    let (bytes, ops) = parse::io_v2(text);
    IoStats {
        read_bytes: bytes.read,
        write_bytes: bytes.write,
        read_ops: ops.read,
        write_ops: ops.write,
    }
}

fn pressure(text: &str) -> Option<PressureStats> {
    parse::pressure(text).map(|(some, full)| PressureStats { some, full })
}
