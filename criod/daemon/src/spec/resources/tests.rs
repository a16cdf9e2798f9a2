//! What is refused, how patches are merged, and what the runtime and the cgroup get.

use proptest::prelude::*;

use super::*;

const V1: Able = Able::all(false);
const V2: Able = Able::all(true);
const BARE: Able = Able { v2: false, swap: false, hugetlb: false };

fn unified(pairs: &[(&str, &str)]) -> LinuxContainerResources {
    let unified = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    LinuxContainerResources { unified, ..Default::default() }
}

fn memory(limit: i64, sum: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: limit,
        memory_swap_limit_in_bytes: sum,
        ..Default::default()
    }
}

fn page(size: &str, limit: u64) -> HugepageLimit {
    HugepageLimit { page_size: size.into(), limit }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let r = LinuxContainerResources::default;
    let refused = |asked: LinuxContainerResources, field: &str| {
        let text = check("of.", &asked, V1).unwrap_err().chain();
        assert!(text.starts_with(&format!("of.{field}: ")), "{text}");
    };
    for period in [-1, 1, 999, 1_000_001, i64::MAX] {
        refused(LinuxContainerResources { cpu_period: period, ..r() }, "cpu_period");
    }
    for quota in [i64::MIN, -2, 1, 999] {
        refused(LinuxContainerResources { cpu_quota: quota, ..r() }, "cpu_quota");
    }
    for shares in [-1, 1, 262_145, i64::MAX] {
        refused(LinuxContainerResources { cpu_shares: shares, ..r() }, "cpu_shares");
    }
    for score in [-1001, 1001, i64::MIN] {
        refused(LinuxContainerResources { oom_score_adj: score, ..r() }, "oom_score_adj");
    }
    for set in [",", "0,", "3-1", "a", "-1", "0-", "0 1", "99999999999", "0\n", "1-2-3"] {
        refused(LinuxContainerResources { cpuset_cpus: set.into(), ..r() }, "cpuset_cpus");
        refused(LinuxContainerResources { cpuset_mems: set.into(), ..r() }, "cpuset_mems");
    }
    refused(memory(-2, 0), "memory_limit_in_bytes");
    for (limit, sum) in [(0, -2), (0, 5), (-1, 5), (10, 9)] {
        refused(memory(limit, sum), "memory_swap_limit_in_bytes");
    }
    for size in ["", "2", "MB", "+2MB", "-2MB", "2MiB", "3MB", "99999999999GB", "2MB/..", "../2MB"]
    {
        let asked = LinuxContainerResources { hugepage_limits: vec![page(size, 0)], ..r() };
        refused(asked, "hugepage_limits");
    }
    refused(unified(&[("memory.high", "max")]), "unified");
    for name in ["cgroup.kill", "../memory.high", "memory", ""] {
        check("", &unified(&[(name, "1")]), V2).unwrap_err();
    }
}

#[test]
fn what_makes_sense_is_not() {
    let all = LinuxContainerResources {
        cpu_period: 1000,
        cpu_quota: -1,
        cpu_shares: 262_144,
        oom_score_adj: -1000,
        cpuset_cpus: "0-3,7".into(),
        cpuset_mems: "0".into(),
        ..memory(10, -1)
    };
    for able in [V1, V2, BARE] {
        check("", &all, able).unwrap();
        check("", &LinuxContainerResources::default(), able).unwrap();
        check("", &memory(-1, -1), able).unwrap();
        check("", &memory(10, 10), able).unwrap();
    }
    check("", &unified(&[("memory.high", "max")]), V2).unwrap();
    check_least(0, 100).unwrap();
    check_least(-1, 100).unwrap();
    check_least(100, 100).unwrap();
    check_least(99, 100).unwrap_err();
}

#[test]
fn swap_is_what_is_asked_for_or_none() {
    let sum = |limit, sum, able| limits(&memory(limit, sum), able).memory_swap;
    for able in [V1, V2] {
        assert_eq!(sum(0, 0, able), None);
        assert_eq!(sum(10, 0, able), Some(10));
        assert_eq!(sum(10, 15, able), Some(15));
        assert_eq!(sum(10, -1, able), Some(-1));
        assert_eq!(sum(-1, 0, able), Some(-1));
    }
    assert_eq!((sum(10, 0, BARE), sum(10, 15, BARE), sum(0, -1, BARE)), (None, None, None));
    // What the kubelet says of swap on version 2 wins.
    let kubelet = LinuxContainerResources {
        memory_limit_in_bytes: 10,
        ..unified(&[("memory.swap.max", "0")])
    };
    assert_eq!(limits(&kubelet, V2).memory_swap, None);
}

#[test]
fn huge_pages_need_their_controller() {
    let asked =
        LinuxContainerResources { hugepage_limits: vec![page("2MB", 5)], ..Default::default() };
    assert_eq!(limits(&asked, V1).hugepage_limits, [("2MB".to_owned(), 5)].into());
    assert!(limits(&asked, BARE).hugepage_limits.is_empty());
}

#[test]
fn a_patch_changes_what_it_names() {
    let old = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        oom_score_adj: 3,
        cpuset_cpus: "0-1".into(),
        hugepage_limits: vec![page("1GB", 1), page("2MB", 2)],
        unified: unified(&[("memory.high", "5"), ("memory.min", "1")]).unified,
        ..memory(64, 96)
    };
    // As the CPU manager sends it.
    let cpus = LinuxContainerResources { cpuset_cpus: "3".into(), ..Default::default() };
    let new = merge(&old, &cpus);
    assert_eq!(new, LinuxContainerResources { cpuset_cpus: "3".into(), ..old.clone() });
    assert_eq!(difference(&old, &new), cpus);
    let changed = change(&cpus, &new, V1);
    assert_eq!(
        changed,
        oci::Resources { cpuset_cpus: Some("3".into()), ..oci::Resources::default() }
    );

    let more = LinuxContainerResources {
        hugepage_limits: vec![page("2MB", 7)],
        unified: unified(&[("memory.high", "max")]).unified,
        ..Default::default()
    };
    let new = merge(&old, &more);
    assert_eq!(new.hugepage_limits, [page("1GB", 1), page("2MB", 7)]);
    assert_eq!(
        (new.unified["memory.high"].as_str(), new.unified["memory.min"].as_str()),
        ("max", "1")
    );
    assert_eq!(difference(&old, &new), more);
}

#[test]
fn a_new_memory_limit_leaves_as_much_swap() {
    let merged = |old: (i64, i64), new: (i64, i64)| {
        let m = merge(&memory(old.0, old.1), &memory(new.0, new.1));
        let c = change(&memory(new.0, new.1), &m, V1);
        ((m.memory_limit_in_bytes, m.memory_swap_limit_in_bytes), (c.memory_limit, c.memory_swap))
    };
    assert_eq!(merged((64, 96), (128, 0)), ((128, 160), (Some(128), Some(160))));
    assert_eq!(merged((64, 64), (32, 0)), ((32, 32), (Some(32), Some(32))));
    assert_eq!(merged((64, 0), (32, 0)), ((32, 0), (Some(32), Some(32))));
    assert_eq!(merged((64, -1), (32, 0)), ((32, -1), (Some(32), Some(-1))));
    assert_eq!(merged((64, 96), (-1, 0)), ((-1, -1), (Some(-1), Some(-1))));
    assert_eq!(merged((0, 0), (32, 0)), ((32, 0), (Some(32), Some(32))));
    // A new sum alone comes with the limit that it holds.
    assert_eq!(merged((64, 96), (0, 70)), ((64, 70), (Some(64), Some(70))));
    assert_eq!(merged((64, 96), (32, 33)), ((32, 33), (Some(32), Some(33))));
    assert_eq!(merged((64, 96), (0, 0)).1, (None, None));
}

#[test]
fn a_pods_limits_are_those_of_its_containers_and_its_overhead() {
    let resources = LinuxContainerResources {
        cpu_period: 200_000,
        cpu_quota: 100_000,
        cpu_shares: 500,
        hugepage_limits: vec![page("2MB", 4)],
        ..memory(64, 96)
    };
    let overhead = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 10_000,
        cpu_shares: 12,
        hugepage_limits: vec![page("2MB", 2)],
        ..memory(10, 10)
    };
    let sum = pod_sum(&resources, &overhead);
    let want = LinuxContainerResources {
        cpu_period: 200_000,
        cpu_quota: 120_000,
        cpu_shares: 512,
        hugepage_limits: vec![page("2MB", 6)],
        ..memory(74, 106)
    };
    assert_eq!(sum, want);
    // Containers without a limit are not limited by the overhead.
    let sum = pod_sum(&LinuxContainerResources::default(), &overhead);
    assert_eq!((sum.memory_limit_in_bytes, sum.cpu_quota, sum.cpu_shares), (0, 0, 12));
    assert_eq!(pod_sum(&resources, &LinuxContainerResources::default()), resources);
}

fn any_resources() -> impl Strategy<Value = LinuxContainerResources> {
    let number = || prop_oneof![Just(0), Just(-1), 1_000i64..300_000];
    let set = prop_oneof![Just(String::new()), Just("0".to_owned()), Just("0-1".to_owned())];
    let swap = prop_oneof![Just(None), Just(Some(-1)), (0i64..300_000).prop_map(Some)];
    (number(), number(), 2i64..5, swap, -1000i64..1000, set).prop_map(
        |(quota, memory, shares, swap, score, cpus)| LinuxContainerResources {
            cpu_quota: quota,
            cpu_shares: shares,
            memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: match swap {
                Some(swap) if memory > 0 && swap >= 0 => memory + swap,
                Some(-1) => -1,
                _ => 0,
            },
            oom_score_adj: score,
            cpuset_cpus: cpus,
            ..Default::default()
        },
    )
}

proptest! {
    #[test]
    fn merging_is_repeatable_and_its_difference_leads_there(old in any_resources(), asked in any_resources()) {
        let new = merge(&old, &asked);
        prop_assume!([&old, &new].iter().all(|r| check("", r, V1).is_ok()));
        prop_assert_eq!(merge(&new, &asked), merge(&old, &asked));
        prop_assert_eq!(merge(&old, &LinuxContainerResources::default()), old.clone());
        let there = merge(&old, &difference(&old, &new));
        prop_assert_eq!(there, new);
    }

    #[test]
    fn no_list_makes_it_fall(text in "[0-9,-]{0,12}") {
        let _ = is_set(&text);
    }
}
