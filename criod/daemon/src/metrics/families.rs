//! The table of families: names, helps and labels are cAdvisor's, which dashboards go by.

use api_cri::v1::{LinuxContainerResources, MetricType};
use cgroup::{CpuStats, DeviceIo, MemoryStats, Pressure, PressureStats};
use namespace::Counters;

use super::read::{Disk, Processes, Reading};
use super::{Family, Group, Source, Values};

const NS: u64 = 1_000_000_000;

const fn family(
    group: Group,
    kind: MetricType,
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    source: fn(&Reading) -> Values,
) -> Family {
    Family { group, kind, name, help, labels, source: Source::Container(source) }
}

const fn counter(
    group: Group,
    name: &'static str,
    help: &'static str,
    source: fn(&Reading) -> Values,
) -> Family {
    family(group, MetricType::Counter, name, help, &[], source)
}

const fn gauge(
    group: Group,
    name: &'static str,
    help: &'static str,
    source: fn(&Reading) -> Values,
) -> Family {
    family(group, MetricType::Gauge, name, help, &[], source)
}

const fn interface(name: &'static str, help: &'static str, get: fn(&Counters) -> u64) -> Family {
    Family {
        group: Group::Network,
        kind: MetricType::Counter,
        name,
        help,
        labels: &["interface"],
        source: Source::Interface(get),
    }
}

fn one(value: u64) -> Values {
    vec![(Vec::new(), value)]
}

fn some(value: Option<u64>) -> Values {
    value.map(one).unwrap_or_default()
}

fn cpu(r: &Reading, get: fn(&CpuStats) -> u64) -> Values {
    some(r.group.cpu.as_ref().map(get))
}

fn memory(r: &Reading, get: fn(&MemoryStats) -> u64) -> Values {
    some(r.group.memory.as_ref().map(get))
}

fn disk(r: &Reading, get: fn(&Disk) -> u64) -> Values {
    some(r.disk.as_ref().map(get))
}

fn processes(r: &Reading, get: fn(&Processes) -> u64) -> Values {
    some(r.processes.as_ref().map(get))
}

/// Microseconds, told in seconds.
fn waited(stats: Option<PressureStats>, of: fn(&PressureStats) -> Pressure) -> Values {
    some(stats.map(|s| of(&s).total_us / 1_000_000))
}

/// The name of a device, which cAdvisor gives where it knows it.
fn device(r: &Reading, io: &DeviceIo) -> String {
    match r.devices.get(&(io.major, io.minor)) {
        Some(name) => format!("/dev/{name}"),
        None => format!("{}:{}", io.major, io.minor),
    }
}

fn io(r: &Reading, get: fn(&DeviceIo) -> u64) -> Values {
    let devices = r.group.io.iter().flat_map(|io| &io.devices);
    devices.map(|io| (vec![device(r, io)], get(io))).collect()
}

fn blkio(r: &Reading) -> Values {
    let mut values = Vec::new();
    for io in r.group.io.iter().flat_map(|io| &io.devices) {
        for (operation, value) in [("Read", io.read_bytes), ("Write", io.write_bytes)] {
            let labels =
                [device(r, io), io.major.to_string(), io.minor.to_string(), operation.to_owned()];
            values.push((labels.into(), value));
        }
    }
    values
}

/// Both scopes have the same number: a container's group has none below it, but what it makes
/// itself.
fn failures(r: &Reading) -> Values {
    let Some(m) = &r.group.memory else { return Vec::new() };
    let mut values = Vec::new();
    for (kind, value) in [("pgfault", m.page_faults), ("pgmajfault", m.major_page_faults)] {
        for scope in ["container", "hierarchy"] {
            values.push((vec![kind.to_owned(), scope.to_owned()], value));
        }
    }
    values
}

/// Of what was asked for; no limit is 0.
fn spec(r: &Reading, get: fn(&LinuxContainerResources) -> i64) -> Values {
    let linux = r.record.config.0.linux.as_ref();
    let asked = linux.and_then(|l| l.resources.as_ref()).map_or(0, get);
    one(u64::try_from(asked).ok().filter(|v| *v < 1 << 62).unwrap_or(0))
}

fn seconds(ns: i64) -> u64 {
    u64::try_from(ns).unwrap_or(0) / NS
}

/// All families.
pub(super) static FAMILIES: &[Family] = &[
    gauge(
        Group::Always,
        "container_last_seen",
        "Last time a container was seen by the exporter",
        |r| one(seconds(r.now)),
    ),
    // Processor.
    counter(
        Group::Cpu,
        "container_cpu_user_seconds_total",
        "Cumulative user cpu time consumed in seconds.",
        |r| cpu(r, |c| c.user_ns / NS),
    ),
    counter(
        Group::Cpu,
        "container_cpu_system_seconds_total",
        "Cumulative system cpu time consumed in seconds.",
        |r| cpu(r, |c| c.system_ns / NS),
    ),
    family(
        Group::Cpu,
        MetricType::Counter,
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed in seconds.",
        &["cpu"],
        |r| r.group.cpu.iter().map(|c| (vec!["total".to_owned()], c.usage_ns / NS)).collect(),
    ),
    counter(
        Group::Cpu,
        "container_cpu_cfs_periods_total",
        "Number of elapsed enforcement period intervals.",
        |r| cpu(r, |c| c.periods),
    ),
    counter(
        Group::Cpu,
        "container_cpu_cfs_throttled_periods_total",
        "Number of throttled period intervals.",
        |r| cpu(r, |c| c.throttled_periods),
    ),
    counter(
        Group::Cpu,
        "container_cpu_cfs_throttled_seconds_total",
        "Total time duration the container has been throttled.",
        |r| cpu(r, |c| c.throttled_ns / NS),
    ),
    // The disk of the writable layer.
    gauge(Group::Disk, "container_fs_inodes_free", "Number of available Inodes", |r| {
        disk(r, |d| d.inodes_free)
    }),
    gauge(Group::Disk, "container_fs_inodes_total", "Number of Inodes", |r| disk(r, |d| d.inodes)),
    gauge(
        Group::Disk,
        "container_fs_limit_bytes",
        "Number of bytes that can be consumed by the container on this filesystem.",
        |r| disk(r, |d| d.bytes),
    ),
    gauge(
        Group::Disk,
        "container_fs_usage_bytes",
        "Number of bytes that are consumed by the container on this filesystem.",
        |r| some(r.layer.map(|l| l.usage.bytes)),
    ),
    // Block devices.
    family(
        Group::DiskIo,
        MetricType::Counter,
        "container_fs_reads_bytes_total",
        "Cumulative count of bytes read",
        &["device"],
        |r| io(r, |d| d.read_bytes),
    ),
    family(
        Group::DiskIo,
        MetricType::Counter,
        "container_fs_reads_total",
        "Cumulative count of reads completed",
        &["device"],
        |r| io(r, |d| d.read_ops),
    ),
    family(
        Group::DiskIo,
        MetricType::Counter,
        "container_fs_writes_bytes_total",
        "Cumulative count of bytes written",
        &["device"],
        |r| io(r, |d| d.write_bytes),
    ),
    family(
        Group::DiskIo,
        MetricType::Counter,
        "container_fs_writes_total",
        "Cumulative count of writes completed",
        &["device"],
        |r| io(r, |d| d.write_ops),
    ),
    family(
        Group::DiskIo,
        MetricType::Counter,
        "container_blkio_device_usage_total",
        "Blkio Device bytes usage",
        &["device", "major", "minor", "operation"],
        blkio,
    ),
    // Huge pages.
    family(
        Group::Hugetlb,
        MetricType::Gauge,
        "container_hugetlb_usage_bytes",
        "Current hugepage usage in bytes",
        &["pagesize"],
        |r| r.group.hugetlb.iter().map(|(size, h)| (vec![size.clone()], h.usage)).collect(),
    ),
    family(
        Group::Hugetlb,
        MetricType::Gauge,
        "container_hugetlb_max_usage_bytes",
        "Maximum hugepage usage recorded in bytes",
        &["pagesize"],
        |r| {
            let sizes = r.group.hugetlb.iter();
            sizes.filter_map(|(size, h)| Some((vec![size.clone()], h.max_usage?))).collect()
        },
    ),
    // Memory.
    gauge(Group::Memory, "container_memory_cache", "Number of bytes of page cache memory.", |r| {
        memory(r, |m| m.cache)
    }),
    gauge(Group::Memory, "container_memory_rss", "Size of RSS in bytes.", |r| memory(r, |m| m.rss)),
    gauge(
        Group::Memory,
        "container_memory_kernel_usage",
        "Size of kernel memory allocated in bytes.",
        |r| memory(r, |m| m.kernel.unwrap_or(0)),
    ),
    gauge(
        Group::Memory,
        "container_memory_mapped_file",
        "Size of memory mapped files in bytes.",
        |r| memory(r, |m| m.mapped_file),
    ),
    gauge(Group::Memory, "container_memory_swap", "Container swap usage in bytes.", |r| {
        // What cannot be swapped is not.
        some(r.group.memory.as_ref().map(|_| r.group.swap.map_or(0, |s| s.usage)))
    }),
    counter(Group::Memory, "container_memory_failcnt", "Number of memory usage hits limits", |r| {
        memory(r, |m| m.fail_count)
    }),
    gauge(
        Group::Memory,
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |r| memory(r, |m| m.usage),
    ),
    gauge(
        Group::Memory,
        "container_memory_max_usage_bytes",
        "Maximum memory usage recorded in bytes",
        |r| memory(r, |m| m.max_usage.unwrap_or(0)),
    ),
    gauge(
        Group::Memory,
        "container_memory_working_set_bytes",
        "Current working set in bytes.",
        |r| memory(r, |m| m.working_set),
    ),
    family(
        Group::Memory,
        MetricType::Counter,
        "container_memory_failures_total",
        "Cumulative count of memory allocation failures.",
        &["failure_type", "scope"],
        failures,
    ),
    // The pod's interfaces.
    interface("container_network_receive_bytes_total", "Cumulative count of bytes received", |c| {
        c.rx_bytes
    }),
    interface(
        "container_network_receive_packets_total",
        "Cumulative count of packets received",
        |c| c.rx_packets,
    ),
    interface(
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving",
        |c| c.rx_dropped,
    ),
    interface(
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |c| c.rx_errors,
    ),
    interface(
        "container_network_transmit_bytes_total",
        "Cumulative count of bytes transmitted",
        |c| c.tx_bytes,
    ),
    interface(
        "container_network_transmit_packets_total",
        "Cumulative count of packets transmitted",
        |c| c.tx_packets,
    ),
    interface(
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting",
        |c| c.tx_dropped,
    ),
    interface(
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |c| c.tx_errors,
    ),
    counter(
        Group::Oom,
        "container_oom_events_total",
        "Count of out of memory events observed for the container",
        |r| some(r.oom_kills),
    ),
    // Waiting: all tasks, some task.
    counter(
        Group::Pressure,
        "container_pressure_cpu_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        |r| waited(r.group.cpu_pressure, |p| p.full),
    ),
    counter(
        Group::Pressure,
        "container_pressure_cpu_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to CPU congestion.",
        |r| waited(r.group.cpu_pressure, |p| p.some),
    ),
    counter(
        Group::Pressure,
        "container_pressure_memory_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        |r| waited(r.group.memory_pressure, |p| p.full),
    ),
    counter(
        Group::Pressure,
        "container_pressure_memory_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to memory congestion.",
        |r| waited(r.group.memory_pressure, |p| p.some),
    ),
    counter(
        Group::Pressure,
        "container_pressure_io_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        |r| waited(r.group.io_pressure, |p| p.full),
    ),
    counter(
        Group::Pressure,
        "container_pressure_io_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to IO congestion.",
        |r| waited(r.group.io_pressure, |p| p.some),
    ),
    // Processes.
    gauge(
        Group::Process,
        "container_file_descriptors",
        "Number of open file descriptors for the container.",
        |r| processes(r, |p| p.descriptors),
    ),
    gauge(
        Group::Process,
        "container_processes",
        "Number of processes running inside the container.",
        |r| processes(r, |p| p.count),
    ),
    gauge(Group::Process, "container_sockets", "Number of open sockets for the container.", |r| {
        processes(r, |p| p.sockets)
    }),
    gauge(
        Group::Process,
        "container_threads",
        "Number of threads running inside the container",
        |r| some(r.group.pids.map(|p| p.current)),
    ),
    gauge(
        Group::Process,
        "container_threads_max",
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        |r| some(r.group.pids.map(|p| p.limit.unwrap_or(0))),
    ),
    family(
        Group::Process,
        MetricType::Gauge,
        "container_ulimits_soft",
        "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
        &["ulimit"],
        |r| {
            let limit = r.processes.as_ref().and_then(|p| p.max_open_files);
            limit.map(|limit| (vec!["max_open_files".to_owned()], limit)).into_iter().collect()
        },
    ),
    // What was asked for.
    gauge(Group::Spec, "container_spec_cpu_period", "CPU period of the container.", |r| {
        spec(r, |s| s.cpu_period)
    }),
    gauge(Group::Spec, "container_spec_cpu_quota", "CPU quota of the container.", |r| {
        spec(r, |s| s.cpu_quota)
    }),
    gauge(Group::Spec, "container_spec_cpu_shares", "CPU share of the container.", |r| {
        spec(r, |s| s.cpu_shares)
    }),
    gauge(
        Group::Spec,
        "container_spec_memory_limit_bytes",
        "Memory limit for the container.",
        |r| spec(r, |s| s.memory_limit_in_bytes),
    ),
    gauge(
        Group::Spec,
        "container_spec_memory_reservation_limit_bytes",
        "Memory reservation limit for the container.",
        |r| spec(r, |s| s.unified.get("memory.min").and_then(|v| v.parse().ok()).unwrap_or(0)),
    ),
    gauge(
        Group::Spec,
        "container_spec_memory_swap_limit_bytes",
        "Memory swap limit for the container.",
        |r| spec(r, |s| s.memory_swap_limit_in_bytes),
    ),
    gauge(
        Group::Spec,
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds.",
        |r| one(seconds(r.record.created_at)),
    ),
];
