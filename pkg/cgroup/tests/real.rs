//! Groups on this node, under names that nobody else has.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use cgroup::{Cgroup, Error, Hierarchy, Mode, Resources, StatsReader};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A group that is killed and removed with its folder above when dropped.
struct Group(Cgroup);

impl Group {
    fn new() -> Self {
        Self::below(&Hierarchy::detect().unwrap())
    }

    /// In the version 2 hierarchy, as on a node that has no other. On a hybrid node it is one
    /// without controllers, so that there are processes and CPU time, and nothing to limit.
    fn v2() -> Self {
        let detected = Hierarchy::detect().unwrap();
        let mount = detected.beside().or_else(|| detected.mounts().first()).unwrap();
        let at = mount.mountpoint.display();
        let mountinfo = format!("30 24 0:26 / {at} rw - cgroup2 cgroup2 rw");
        let hierarchy = Hierarchy::parse(&mountinfo, "0::/").unwrap();
        assert_eq!(hierarchy.mode(), Mode::V2);
        Self::below(&hierarchy)
    }

    fn below(hierarchy: &Hierarchy) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("/criod-test-cgroup-{}-{n}", std::process::id());
        Self(Cgroup::at(hierarchy, &name).unwrap())
    }

    /// The weight against others, as the node has it.
    fn shares(&self) -> String {
        let name = if self.0.path_of("cpu").unwrap().join("cpu.shares").exists() {
            "cpu.shares"
        } else {
            "cpu.weight"
        };
        self.file("cpu", name)
    }

    /// The text of a file in the hierarchy of a controller.
    fn file(&self, controller: &str, name: &str) -> String {
        let path = self.0.path_of(controller).unwrap().join(name);
        fs::read_to_string(path).unwrap().trim().to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.remove();
    }
}

/// A process that is killed and reaped when dropped.
struct Process(Child);

impl Process {
    fn sh(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something is so, and fails if it never becomes so.
fn eventually(mut is_so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("it never happened");
}

#[test]
fn life_of_a_group() {
    let group = Group::new();
    let cgroup = &group.0;
    assert!(!cgroup.exists());
    cgroup.create().unwrap();
    cgroup.create().unwrap();
    assert!(cgroup.exists());
    assert!(cgroup.paths().iter().all(|p| p.is_dir()));
    assert_eq!(cgroup.procs().unwrap(), []);

    let process = Process::sh("exec sleep 1000");
    let child = cgroup.child("below/deeper").unwrap();
    child.create().unwrap();
    child.add_process(process.pid()).unwrap();
    assert_eq!(child.procs().unwrap(), [process.pid()]);
    assert_eq!(cgroup.procs().unwrap(), [process.pid()], "those below count");
    assert!(matches!(cgroup.remove(), Err(Error::Remove { .. })), "it has a process");

    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
    cgroup.remove().unwrap();
    cgroup.kill().unwrap();
}

#[test]
fn groups_are_removed_as_far_up_as_they_are_unused() {
    let group = Group::new();
    let top = &group.0;
    let (a, b) = (top.child("x/a").unwrap(), top.child("x/b").unwrap());
    assert_eq!(a.first_missing().as_ref(), Some(top));
    a.create().unwrap();
    assert_eq!((a.first_missing(), b.first_missing().as_ref()), (None, Some(&b)));
    b.create().unwrap();
    let mut process = Process::sh("exec sleep 1000");
    b.add_process(process.pid()).unwrap();
    a.remove_unused(top).unwrap();
    assert!(!a.exists() && b.exists());
    b.remove_unused(top).unwrap();
    assert!(b.exists(), "it has a process");
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    eventually(|| b.procs().unwrap().is_empty());
    b.remove_unused(&b).unwrap();
    assert!(!b.exists() && top.exists());
    b.remove_unused(top).unwrap();
    assert!(!top.exists());
}

#[test]
fn limits_are_set_all_or_none() {
    let group = Group::new();
    group.0.create().unwrap();
    let first = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        memory_limit: Some(64 << 20),
        memory_swap: Some(96 << 20),
        ..Default::default()
    };
    group.0.set(&first).unwrap();
    let (before, shares) = (group.0.stats().unwrap(), group.shares());
    for bad in [
        Resources { pids_limit: Some(i64::MAX), ..first.clone() },
        Resources { hugepage_limits: [("3MB".into(), 1)].into(), ..first.clone() },
    ] {
        let more = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(-1),
            memory_limit: Some(128 << 20),
            memory_swap: Some(-1),
            ..bad
        };
        group.0.set(&more).unwrap_err();
        let after = group.0.stats().unwrap();
        assert_eq!(after.memory.unwrap().limit, before.memory.unwrap().limit);
        assert_eq!(after.swap.unwrap().limit, before.swap.unwrap().limit);
        assert_eq!(group.shares(), shares);
    }
    // Also where there was no limit before.
    let fresh = Group::new();
    fresh.0.create().unwrap();
    let bad = Resources { pids_limit: Some(i64::MAX), ..first };
    fresh.0.set(&bad).unwrap_err();
    let stats = fresh.0.stats().unwrap();
    assert_eq!((stats.memory.unwrap().limit, stats.swap.unwrap().limit), (None, None));
}

#[test]
fn a_limit_below_what_is_in_use_is_refused() {
    let group = Group::new();
    group.0.create().unwrap();
    let limit = |bytes| Resources {
        memory_limit: Some(bytes),
        memory_swap: Some(bytes),
        ..Default::default()
    };
    group.0.set(&limit(64 << 20)).unwrap();
    // Its buffer is full, and nobody takes more than the first byte of it.
    let script = "read go; exec dd if=/dev/zero bs=32M count=1 2>/dev/null";
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = Process(command.spawn().unwrap());
    group.0.add_process(process.pid()).unwrap();
    drop(process.0.stdin.take());
    let mut byte = [0];
    std::io::Read::read_exact(process.0.stdout.as_mut().unwrap(), &mut byte).unwrap();
    let error = group.0.set(&limit(16 << 20)).unwrap_err();
    assert!(
        matches!(error, Error::InUse { limit: 16_777_216, usage, .. } if usage > 32 << 20),
        "{error:?}"
    );
    assert_eq!(group.0.stats().unwrap().memory.unwrap().limit, Some(64 << 20));
    assert!(process.0.try_wait().unwrap().is_none(), "it lives");
    group.0.set(&limit(48 << 20)).unwrap();
}

#[test]
fn one_that_is_not_there() {
    let group = Group::new();
    let cgroup = &group.0;
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    let process = Process::sh("exec sleep 1000");
    for error in [
        cgroup.stats().unwrap_err(),
        cgroup.procs().unwrap_err(),
        cgroup.oom_kills().unwrap_err(),
        cgroup.add_process(process.pid()).unwrap_err(),
        cgroup.set(&Resources { pids_limit: Some(5), ..Default::default() }).unwrap_err(),
    ] {
        assert!(error.is_not_found(), "{error:?}");
    }
}

#[test]
fn names_that_are_refused() {
    let hierarchy = Hierarchy::detect().unwrap();
    for name in ["", "a", "/", "//", "/./", "/a/../..", "/..", "/a\0"] {
        assert!(matches!(Cgroup::at(&hierarchy, name), Err(Error::Name { .. })), "{name:?}");
    }
    assert_eq!(Cgroup::at(&hierarchy, "/a//b/./c/").unwrap().name(), "/a/b/c");
}

#[test]
fn a_new_cpuset_takes_processes() {
    let group = Group::new();
    let deep = group.0.child("a/b").unwrap();
    deep.create().unwrap();
    if let Some(path) = deep.path_of("cpuset") {
        let cpus = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
        // Version 2 passes the CPUs of the group above on by itself.
        let (own, effective) = (cpus("cpuset.cpus"), cpus("cpuset.cpus.effective"));
        assert!(!own.trim().is_empty() || !effective.trim().is_empty());
    }
    let process = Process::sh("exec sleep 1000");
    deep.add_process(process.pid()).unwrap();
}

#[test]
fn killing_wins_against_forking() {
    let group = Group::new();
    group.0.create().unwrap();
    // Waits to be in the group, then starts children faster than they end.
    let script = "read go; while :; do (while :; do sleep 5 & sleep 0.01; done) & sleep 0.02; done";
    let mut process = Process::sh(script);
    group.0.set(&Resources { pids_limit: Some(300), ..Default::default() }).unwrap();
    group.0.add_process(process.pid()).unwrap();
    drop(process.0.stdin.take());
    eventually(|| group.0.procs().unwrap().len() >= 20);
    group.0.kill().unwrap();
    assert_eq!(group.0.procs().unwrap(), []);
    group.0.remove().unwrap();
}

#[test]
fn killing_is_bounded() {
    let group = Group::new();
    group.0.create().unwrap();
    let process = Process::sh("exec sleep 1000");
    group.0.add_process(process.pid()).unwrap();
    let error = group.0.kill_rounds(0).unwrap_err();
    assert!(matches!(error, Error::StillAlive { left: 1, rounds: 0, .. }), "{error:?}");
}

#[test]
fn a_frozen_group_can_be_killed_also_from_above() {
    for group in [Group::new(), Group::v2()] {
        let child = group.0.child("paused").unwrap();
        child.create().unwrap();
        let process = Process::sh("exec sleep 1000");
        child.add_process(process.pid()).unwrap();
        let folder = child.path_of("freezer").unwrap();
        let (file, state) = match folder.join("freezer.state") {
            v1 if v1.exists() => (v1, "FROZEN"),
            _ => (folder.join("cgroup.freeze"), "1"),
        };
        fs::write(file, state).unwrap();
        group.0.kill().unwrap();
        assert_eq!(group.0.procs().unwrap(), []);
    }
}

#[test]
fn limits_are_written_and_read_back() {
    let group = Group::new();
    group.0.create().unwrap();
    let limits = |memory: i64, swap: i64| Resources {
        memory_limit: Some(memory << 20),
        memory_swap: Some(swap << 20),
        ..Default::default()
    };
    let resources = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        pids_limit: Some(77),
        memory_reservation: Some(16 << 20),
        ..limits(64, 96)
    };
    group.0.set(&resources).unwrap();
    let stats = group.0.stats().unwrap();
    assert_eq!(stats.memory.unwrap().limit, Some(64 << 20));
    assert_eq!(stats.swap.unwrap().limit, Some(32 << 20));
    assert_eq!(stats.pids.unwrap().limit, Some(77));
    // Up and down, past one another.
    for (memory, swap) in [(200, 300), (32, 40), (400, 400), (16, 500), (64, 64)] {
        group.0.set(&limits(memory, swap)).unwrap();
        let stats = group.0.stats().unwrap();
        assert_eq!(stats.memory.unwrap().limit, u64::try_from(memory << 20).ok());
        assert_eq!(stats.swap.unwrap().limit, u64::try_from((swap - memory) << 20).ok());
    }
    // Nothing asked for changes nothing.
    group.0.set(&Resources { memory_limit: Some(0), ..Default::default() }).unwrap();
    assert_eq!(group.0.stats().unwrap().memory.unwrap().limit, Some(64 << 20));
    let unlimited = Resources {
        pids_limit: Some(-1),
        memory_swap: Some(-1),
        memory_limit: Some(-1),
        ..Default::default()
    };
    group.0.set(&unlimited).unwrap();
    let stats = group.0.stats().unwrap();
    assert_eq!((stats.memory.unwrap().limit, stats.pids.unwrap().limit), (None, None));
    if group.0.path_of("cpu").unwrap().join("cpu.shares").exists() {
        assert_eq!(group.file("cpu", "cpu.shares"), "512");
        assert_eq!(group.file("cpu", "cpu.cfs_quota_us"), "50000");
    } else {
        assert_eq!(group.file("cpu", "cpu.max"), "50000 100000");
    }
}

#[test]
fn a_quota_and_period_that_fit_only_together() {
    let group = Group::new();
    group.0.create().unwrap();
    let child = group.0.child("below").unwrap();
    child.create().unwrap();
    let cpu = |quota, period| Resources {
        cpu_quota: Some(quota),
        cpu_period: Some(period),
        ..Default::default()
    };
    group.0.set(&cpu(50_000, 100_000)).unwrap();
    child.set(&cpu(50_000, 100_000)).unwrap();
    // With the old quota, the new period alone would be more than the group above allows.
    child.set(&cpu(5_000, 10_000)).unwrap();
    child.set(&cpu(100_000, 200_000)).unwrap();
}

#[test]
fn what_cannot_be_set_is_named() {
    let group = Group::new();
    group.0.create().unwrap();
    let unified = |name: &str| Resources {
        unified: [(name.to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    let error = group.0.set(&unified("../cgroup.procs")).unwrap_err();
    assert!(matches!(error, Error::UnifiedName { .. }), "{error:?}");
    let error = group.0.set(&unified("no.such")).unwrap_err();
    assert!(matches!(error, Error::NoController { .. }), "{error:?}");
    let bad = Resources { cpuset_cpus: Some("9999".into()), ..Default::default() };
    let error = group.0.set(&bad).unwrap_err();
    assert!(matches!(error, Error::Write { .. } | Error::NoController { .. }), "{error:?}");
    let huge = Resources { hugepage_limits: [("../x".into(), 1)].into(), ..Default::default() };
    assert!(matches!(group.0.set(&huge), Err(Error::UnifiedName { .. })));
}

#[test]
fn numbers_of_a_group_that_works() {
    let group = Group::new();
    group.0.create().unwrap();
    let mut process =
        Process::sh("read go; x=0; while [ $x -lt 200000 ]; do x=$((x+1)); done; exec sleep 1000");
    group.0.add_process(process.pid()).unwrap();
    drop(process.0.stdin.take());
    let mut reader = StatsReader::default();
    let mut stats = reader.read(&group.0).unwrap();
    // The kernel sums the counts of the processors up every two seconds.
    eventually(|| {
        stats = reader.read(&group.0).unwrap();
        stats.cpu.unwrap().usage_ns > 20_000_000
            && stats.memory.is_some_and(|m| m.usage > 0 && m.page_faults > 0 && m.rss > 0)
    });
    let memory = stats.memory.unwrap();
    assert!(memory.working_set <= memory.usage);
    assert!(stats.pids.unwrap().current >= 1);
    assert_eq!(group.0.oom_kills().unwrap(), 0);
}

#[test]
fn an_oom_kill_is_counted() {
    let group = Group::new();
    group.0.create().unwrap();
    let limits =
        Resources { memory_limit: Some(8 << 20), memory_swap: Some(8 << 20), ..Default::default() };
    group.0.set(&limits).unwrap();
    // tail keeps a line until it ends, and this one never does.
    let mut process = Process::sh("read go; exec tail -n 1 /dev/zero");
    group.0.add_process(process.pid()).unwrap();
    drop(process.0.stdin.take());
    process.0.wait().unwrap();
    assert!(group.0.oom_kills().unwrap() >= 1);
}

#[test]
fn life_of_a_version_2_group() {
    let group = Group::v2();
    let cgroup = &group.0;
    assert!(cgroup.stats().unwrap_err().is_not_found());
    cgroup.create().unwrap();
    let child = cgroup.child("below").unwrap();
    child.create().unwrap();
    let mut process = Process::sh("read go; while :; do sleep 100 & sleep 0.01; done");
    child.add_process(process.pid()).unwrap();
    drop(process.0.stdin.take());
    eventually(|| cgroup.procs().unwrap().len() >= 5);
    let stats = cgroup.stats().unwrap();
    assert!(stats.cpu.unwrap().usage_ns > 0);
    cgroup.kill().unwrap();
    assert_eq!(cgroup.procs().unwrap(), []);
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
}

#[test]
fn found_by_the_last_part_of_its_name() {
    let group = Group::new();
    let own = format!("crio-{}", group.0.name().trim_matches('/'));
    let hierarchy = Hierarchy::detect().unwrap();
    assert!(hierarchy.named(&own).is_empty());
    let deep = group.0.child(&format!("pod/{own}")).unwrap();
    deep.create().unwrap();
    group.0.child(&format!("pod/x{own}")).unwrap().create().unwrap();
    assert_eq!(hierarchy.named(&own), [deep]);
}
