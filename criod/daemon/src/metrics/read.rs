//! What is read of a container for its metrics: only what the wanted groups need.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use cgroup::{Cgroup, Parts};

use super::Group;
use crate::node::{Container, Node};
use crate::record::ContainerRecord;
use crate::stats::{Figure, PodReader};

/// The file system that the writable layer is on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

/// A container's processes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Processes {
    pub(super) count: u64,
    pub(super) descriptors: u64,
    pub(super) sockets: u64,
    /// The soft limit of the first one.
    pub(super) max_open_files: Option<u64>,
}

/// Everything about one container.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) record: Arc<ContainerRecord>,
    /// Nanoseconds since the Unix epoch.
    pub(super) now: i64,
    pub(super) group: cgroup::Stats,
    pub(super) oom_kills: Option<u64>,
    pub(super) disk: Option<Disk>,
    pub(super) layer: Option<Figure>,
    /// Names of the devices in `group.io`.
    pub(super) devices: BTreeMap<(u32, u32), String>,
    pub(super) processes: Option<Processes>,
}

impl Reading {
    /// Nothing but what the record says.
    pub(super) fn bare(record: Arc<ContainerRecord>) -> Reading {
        Reading {
            record,
            now: sys::clock::realtime(),
            group: cgroup::Stats::default(),
            oom_kills: None,
            disk: None,
            layer: None,
            devices: BTreeMap::new(),
            processes: None,
        }
    }

    /// Reads what the wanted groups need; nothing of one that has ended.
    pub(super) fn of(
        reader: &mut PodReader,
        container: &Container,
        wanted: impl Fn(Group) -> bool,
    ) -> Option<Reading> {
        let node = Arc::clone(reader.node());
        let mut reading = Reading::bare(container.record.get());
        let name = reading.record.cgroup.clone();
        let parts = Parts {
            cpu: wanted(Group::Cpu),
            memory: wanted(Group::Memory),
            pids: wanted(Group::Process),
            io: wanted(Group::DiskIo),
            pressure: wanted(Group::Pressure),
            hugetlb: wanted(Group::Hugetlb),
            detail: wanted(Group::Cpu) || wanted(Group::Memory),
        };
        reading.group = node.read_group(reader.groups(), &name, parts).ok()??;
        for io in reading.group.io.iter().flat_map(|io| &io.devices) {
            if let Some(name) = device_name(io.major, io.minor) {
                reading.devices.insert((io.major, io.minor), name);
            }
        }
        let group = Cgroup::at(&node.hierarchy, &name).ok()?;
        if wanted(Group::Oom) {
            reading.oom_kills = group.oom_kills().ok();
        }
        if wanted(Group::Disk) {
            reading.disk = disk(&node);
            reading.layer = container.layer.get();
        }
        if wanted(Group::Process) {
            reading.processes = group.procs().ok().map(|pids| processes(&pids));
        }
        Some(reading)
    }
}

fn device_name(major: u32, minor: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(str::to_owned)
}

fn disk(node: &Node) -> Option<Disk> {
    let stat = nix::sys::statvfs::statvfs(node.store.root()).ok()?;
    Some(Disk {
        bytes: stat.blocks().saturating_mul(stat.fragment_size()),
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// Processes that end meanwhile do not count.
fn processes(pids: &[i32]) -> Processes {
    let mut found = Processes { count: pids.len() as u64, ..Processes::default() };
    for pid in pids {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for entry in open {
            found.descriptors += 1;
            let target = fs::read_link(entry.path()).unwrap_or_default();
            found.sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    if let Some(first) = pids.first()
        && let Ok(text) = fs::read_to_string(format!("/proc/{first}/limits"))
    {
        found.max_open_files = soft_limit(&text, "Max open files");
    }
    found
}

/// The soft limit in a line of `/proc/PID/limits`; an unlimited one cannot be told by a number.
fn soft_limit(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
pub(super) fn full() -> Reading {
    use api_cri::v1::ContainerConfig;
    let pressure = Some(cgroup::PressureStats::default());
    let huge = cgroup::HugetlbStats { usage: 1, max_usage: Some(1) };
    let config = ContainerConfig::default();
    let record = ContainerRecord::new("c".into(), "p", config, 5_000_000_000, "b");
    Reading {
        group: cgroup::Stats {
            cpu: Some(cgroup::CpuStats::default()),
            memory: Some(cgroup::MemoryStats::default()),
            swap: Some(cgroup::SwapStats::default()),
            pids: Some(cgroup::PidsStats::default()),
            io: Some(cgroup::IoStats { devices: vec![cgroup::DeviceIo::default()] }),
            hugetlb: [("2MB".to_owned(), huge)].into(),
            cpu_pressure: pressure,
            memory_pressure: pressure,
            io_pressure: pressure,
        },
        oom_kills: Some(1),
        disk: Some(Disk { bytes: 1, inodes: 1, inodes_free: 1 }),
        layer: Some(Figure { usage: storage::Usage::default(), at: 1 }),
        processes: Some(Processes { max_open_files: Some(1024), ..Processes::default() }),
        ..Reading::bare(Arc::new(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_process() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(text, "Max open files"), Some(1024));
        assert_eq!(soft_limit(text, "Max cpu time"), None);
        assert_eq!(soft_limit(text, "Max address space"), None);
    }

    #[test]
    fn sockets_are_told_from_other_files() {
        let before = processes(&[nix::libc::pid_t::from(std::process::id() as i32)]);
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        let after = processes(&[std::process::id() as i32]);
        // Other tests of this process open and close files, too.
        assert!(after.descriptors >= after.sockets && after.sockets >= 2);
        assert!(before.count == 1 && before.max_open_files.is_some());
    }
}
