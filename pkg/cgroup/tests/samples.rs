//! Files as nodes have them, in a folder that is taken for a mounted hierarchy: what the node
//! that runs the tests may not have itself.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use cgroup::{Cgroup, Error, Hierarchy, HugetlbStats, Parts, Resources, StatsReader};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const GROUP: &str = "kubepods/pod1/crio-x";

/// A version 2 hierarchy with these files in the group.
fn v2(files: &[(&str, &str)]) -> (TempDir, Cgroup) {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join(GROUP), files);
    let mountinfo = format!("30 24 0:26 / {} rw - cgroup2 cgroup2 rw", dir.path().display());
    let hierarchy = Hierarchy::parse(&mountinfo, "0::/init").unwrap();
    let group = Cgroup::at(&hierarchy, GROUP.replace("kubepods", "/kubepods").as_str()).unwrap();
    (dir, group)
}

fn put(folder: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(folder).unwrap();
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
}

const MEMORY_STAT: &str = "anon 43515904
file 2203119616
kernel 9871360
kernel_stack 1048576
sock 4096
shmem 0
file_mapped 48787456
file_dirty 573440
inactive_anon 43302912
active_anon 94208
inactive_file 1088913408
active_file 1114206208
unevictable 0
pgfault 29798353
pgmajfault 4032
";

#[test]
fn numbers_of_version_2() {
    let (_dir, group) = v2(&[
        ("memory.current", "2499878912\n"),
        ("memory.max", "max\n"),
        ("memory.peak", "2599878912\n"),
        ("memory.stat", MEMORY_STAT),
        ("memory.events", "low 0\nhigh 1\nmax 17\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("memory.swap.current", "8192\n"),
        ("memory.swap.max", "1048576\n"),
        (
            "cpu.stat",
            "usage_usec 824692919\nuser_usec 676977960\nsystem_usec 147714959\nnr_periods 10\n\
             nr_throttled 4\nthrottled_usec 5\nnr_bursts 0\nburst_usec 0\n",
        ),
        (
            "cpu.pressure",
            "some avg10=0.00 avg60=2.20 avg300=13.61 total=184749483\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
        ("pids.current", "12\n"),
        ("pids.max", "100\n"),
        ("io.stat", "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n8:16 \n"),
        ("io.pressure", ""),
        ("hugetlb.2MB.current", "4194304\n"),
        ("hugetlb.2MB.rsvd.current", "8388608\n"),
        ("hugetlb.2MB.max", "max\n"),
    ]);
    let stats = group.stats().unwrap();
    let cpu = stats.cpu.unwrap();
    assert_eq!(
        (cpu.usage_ns, cpu.user_ns, cpu.system_ns),
        (824_692_919_000, 676_977_960_000, 147_714_959_000)
    );
    assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled_ns), (10, 4, 5000));
    let memory = stats.memory.unwrap();
    assert_eq!(memory.working_set, 2_499_878_912 - 1_088_913_408);
    assert_eq!((memory.rss, memory.cache, memory.limit), (43_515_904, 2_203_119_616, None));
    assert_eq!((memory.page_faults, memory.major_page_faults), (29_798_353, 4032));
    assert_eq!((memory.kernel, memory.max_usage), (Some(9_871_360), Some(2_599_878_912)));
    assert_eq!(memory.fail_count, 17);
    let swap = stats.swap.unwrap();
    assert_eq!((swap.usage, swap.limit), (8192, Some(1 << 20)));
    let pids = stats.pids.unwrap();
    assert_eq!((pids.current, pids.limit), (12, Some(100)));
    let io = stats.io.unwrap();
    assert_eq!(io.devices.len(), 1);
    assert_eq!((io.devices[0].major, io.devices[0].read_bytes), (8, 4096));
    let huge = HugetlbStats { usage: 4 << 20, max_usage: None };
    assert_eq!(stats.hugetlb, [("2MB".to_owned(), huge)].into());
    assert_eq!(stats.cpu_pressure.unwrap().some.avg300, 13.61);
    assert_eq!((stats.io_pressure, stats.memory_pressure), (None, None));
    assert_eq!(group.oom_kills().unwrap(), 2);
}

#[test]
fn numbers_of_version_1_include_the_groups_below() {
    let dir = tempfile::tempdir().unwrap();
    let at = |controller: &str| dir.path().join(controller).join(GROUP);
    put(
        &at("memory"),
        &[
            ("memory.usage_in_bytes", "2499878912\n"),
            ("memory.limit_in_bytes", "3221225472\n"),
            ("memory.memsw.limit_in_bytes", "4294967296\n"),
            ("memory.failcnt", "3\n"),
            (
                "memory.stat",
                "cache 0\nrss 0\nswap 0\ninactive_file 0\nhierarchical_memory_limit 3221225472\n\
                 total_cache 2203119616\ntotal_rss 43515904\ntotal_mapped_file 48787456\n\
                 total_swap 8192\ntotal_pgfault 29798353\ntotal_pgmajfault 4032\n\
                 total_inactive_file 1088913408\n",
            ),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
        ],
    );
    put(
        &at("cpu,cpuacct"),
        &[
            ("cpuacct.usage", "834752566738\n"),
            ("cpuacct.usage_user", "676977960022\n"),
            ("cpuacct.usage_sys", "147714959766\n"),
            ("cpu.stat", "nr_periods 10\nnr_throttled 4\nthrottled_time 5000\n"),
        ],
    );
    put(
        &at("blkio"),
        &[
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 4096\n8:0 Write 1\nTotal 4097\n",
            ),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 2\n8:0 Write 1\nTotal 3\n"),
        ],
    );
    put(
        &at("hugetlb"),
        &[
            ("hugetlb.2MB.usage_in_bytes", "0\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "2097152\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "0\n"),
            ("hugetlb.2MB.limit_in_bytes", "9223372036854771712\n"),
        ],
    );
    put(
        &at("unified"),
        &[(
            "memory.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=61\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=61\n",
        )],
    );
    let line = |controllers: &str| {
        let at = dir.path().join(controllers);
        format!("1 1 0:1 / {} rw - cgroup cgroup rw,{controllers}\n", at.display())
    };
    let mountinfo = ["memory", "cpu,cpuacct", "blkio", "hugetlb"].map(line).concat();
    let unified = dir.path().join("unified");
    let mountinfo = format!("{mountinfo}1 1 0:1 / {} rw - cgroup2 cgroup2 rw\n", unified.display());
    let own = "4:hugetlb:/\n3:memory:/\n2:cpu,cpuacct:/\n1:blkio:/\n0::/\n";
    let hierarchy = Hierarchy::parse(&mountinfo, own).unwrap();
    let group = Cgroup::at(&hierarchy, "/kubepods/pod1/crio-x").unwrap();
    let stats = group.stats().unwrap();
    let cpu = stats.cpu.unwrap();
    assert_eq!((cpu.usage_ns, cpu.throttled_ns), (834_752_566_738, 5000));
    let memory = stats.memory.unwrap();
    assert_eq!(memory.working_set, 2_499_878_912 - 1_088_913_408);
    assert_eq!((memory.rss, memory.limit), (43_515_904, Some(3 << 30)));
    assert_eq!((memory.page_faults, memory.fail_count), (29_798_353, 3));
    let swap = stats.swap.unwrap();
    assert_eq!((swap.usage, swap.limit), (8192, Some(1 << 30)));
    let io = stats.io.unwrap().devices[0];
    assert_eq!((io.read_bytes, io.write_ops), (4096, 1));
    let huge = HugetlbStats { usage: 0, max_usage: Some(2 << 20) };
    assert_eq!(stats.hugetlb, [("2MB".to_owned(), huge)].into());
    // The pressures are those of the version 2 mount beside.
    assert_eq!(stats.memory_pressure.unwrap().some.total_us, 61);
    assert_eq!(stats.io_pressure, None);
    assert_eq!(stats.pids, None);
    assert_eq!(group.oom_kills().unwrap(), 4);
}

#[test]
fn only_what_is_wanted_is_read() {
    let (_dir, group) = v2(&[
        ("cpu.stat", "usage_usec 5\n"),
        ("memory.current", "9\n"),
        ("memory.stat", "anon 1\n"),
        ("memory.peak", "10\n"),
        ("pids.current", "1\n"),
    ]);
    let mut reader = StatsReader::default();
    let cpu = reader.read_parts(&group, Parts { cpu: true, ..Parts::default() }).unwrap();
    assert_eq!((cpu.cpu.unwrap().usage_ns, cpu.memory, cpu.pids), (5000, None, None));
    let memory = reader.read_parts(&group, Parts { memory: true, ..Parts::default() }).unwrap();
    assert_eq!((memory.cpu, memory.memory.unwrap().max_usage), (None, None));
    assert_eq!(reader.read(&group).unwrap().memory.unwrap().max_usage, Some(10));
}

#[test]
fn limits_of_version_2() {
    let files = [
        "cpu.weight",
        "cpu.max",
        "memory.max",
        "memory.swap.max",
        "memory.low",
        "pids.max",
        "memory.high",
        "cpuset.cpus",
        "hugetlb.2MB.max",
        "hugetlb.2MB.rsvd.max",
    ];
    let (dir, group) = v2(&files.map(|f| (f, "")));
    let read = |name: &str| fs::read_to_string(dir.path().join(GROUP).join(name)).unwrap();
    let resources = Resources {
        cpu_shares: Some(1024),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        cpuset_cpus: Some("0-1".into()),
        memory_limit: Some(100),
        memory_swap: Some(150),
        memory_reservation: Some(80),
        pids_limit: Some(-1),
        hugepage_limits: [("2MB".to_owned(), 4 << 20)].into(),
        unified: [("memory.high".to_owned(), "90".to_owned())].into(),
        ..Default::default()
    };
    group.set(&resources).unwrap();
    for (name, text) in [
        ("cpu.weight", "39"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0-1"),
        ("memory.max", "100"),
        ("memory.swap.max", "50"),
        ("memory.low", "80"),
        ("memory.high", "90"),
        ("pids.max", "max"),
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
    ] {
        assert_eq!(read(name), text, "{name}");
    }
    // A lone period keeps the quota.
    fs::write(dir.path().join(GROUP).join("cpu.max"), "70000 100000\n").unwrap();
    group.set(&Resources { cpu_period: Some(200_000), ..Default::default() }).unwrap();
    assert!(read("cpu.max").starts_with("70000 200000"));
}

#[test]
fn version_2_kills_nobody_for_a_limit() {
    let files = [("memory.max", "max\n"), ("memory.swap.max", "max\n"), ("memory.reclaim", "")];
    let (dir, group) = v2(&files);
    let file = |name: &str| dir.path().join(GROUP).join(name);
    let limit = |bytes: i64| Resources {
        memory_limit: Some(bytes),
        memory_swap: Some(bytes),
        ..Default::default()
    };
    fs::write(file("memory.current"), "4096000\n").unwrap();
    let error = group.set(&limit(1_000_000)).unwrap_err();
    assert!(matches!(error, Error::InUse { limit: 1_000_000, usage: 4_096_000, .. }), "{error:?}");
    let read = |name: &str| fs::read_to_string(file(name)).unwrap();
    assert_eq!(read("memory.reclaim"), "3096000", "as much as is too much");
    assert_eq!(read("memory.max"), "max\n");
    assert!(read("memory.swap.max").starts_with("max"), "it got its text back");
    let unified = [("memory.max".to_owned(), "1000000".to_owned())].into();
    let error = group.set(&Resources { unified, ..Default::default() }).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error:?}");
    group.set(&limit(4_096_000)).unwrap();
    assert!(read("memory.max").starts_with("4096000"));
}

#[test]
fn what_moves_freezes_or_kills_is_no_limit() {
    let (_dir, group) = v2(&[("cgroup.kill", ""), ("cgroup.procs", "")]);
    for name in ["cgroup.kill", "cgroup.procs", "cgroup.freeze", "cgroup.subtree_control"] {
        let unified = [(name.to_owned(), "1".to_owned())].into();
        let error = group.set(&Resources { unified, ..Default::default() }).unwrap_err();
        assert!(matches!(error, Error::UnifiedName { .. }), "{error:?}");
    }
}

#[test]
fn a_controller_that_is_off_is_named() {
    let (_dir, group) = v2(&[("cgroup.procs", "")]);
    let error = group.set(&Resources { pids_limit: Some(5), ..Default::default() }).unwrap_err();
    assert!(matches!(error, Error::NoController { controller: "pids", .. }), "{error:?}");
}
