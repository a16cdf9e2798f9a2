//! Whole specs, byte for byte: what changes in them is seen in review.
//!
//! A file in `golden/` is the spec with line breaks. To take over an intended change, run the
//! tests with `GOLDEN=write` in the environment and look at the difference.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use oci::{
    Arch, CapSet, Capabilities, DeviceInput, DeviceKind, Host, IdMapping, MountInput, MountKind,
    Namespaces, Ns, ProcessInput, Propagation, Resources, Rlimit, SeccompInput, SpecInput,
    UserInput, build,
};
use std::path::Path;

fn host() -> Host {
    Host { arch: Arch::X86_64, kernel: (6, 1), grantable: CapSet::all(), x32: false }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|t| (*t).to_owned()).collect()
}

fn pairs<T: FromIterator<(String, String)>>(pairs: &[(&str, &str)]) -> T {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn bind(destination: &str, source: &str) -> MountInput {
    MountInput { destination: destination.into(), source: source.into(), ..Default::default() }
}

/// Everything that a pod's container usually has.
fn ordinary() -> SpecInput {
    SpecInput {
        process: ProcessInput {
            args: strings(&["/bin/server", "--port", "80"]),
            env: pairs(&[("PATH", "/bin"), ("A", "1"), ("HOSTNAME", "pod"), ("A", "2")]),
            cwd: "/srv".into(),
            user: UserInput {
                uid: 1000,
                gid: 3000,
                additional_gids: vec![4000, 3000, 2000],
                umask: None,
            },
            capabilities: Capabilities {
                add: strings(&["NET_RAW", "SYS_TIME"]),
                drop: strings(&["KILL"]),
                ..Default::default()
            },
            no_new_privileges: true,
            rlimits: vec![
                Rlimit { name: "nofile".into(), soft: 1024, hard: 4096 },
                Rlimit { name: "core".into(), soft: 0, hard: 0 },
            ],
            apparmor_profile: Some("crio-default".into()),
            selinux_label: Some("system_u:system_r:container_t:s0:c1,c2".into()),
            oom_score_adj: Some(999),
            ..Default::default()
        },
        rootfs: "/var/lib/x/merged".into(),
        readonly_rootfs: true,
        hostname: Some("pod".into()),
        mounts: vec![
            bind("/dev/termination-log", "/pods/1/log"),
            MountInput { readonly: true, ..bind("/var/run/secrets/token", "/pods/1/token") },
            bind("/dev/shm", "/pods/1/shm"),
            MountInput { propagation: Propagation::HostToContainer, ..bind("/data", "/data") },
            MountInput {
                destination: "/scratch".into(),
                kind: MountKind::Tmpfs,
                options: strings(&["nosuid", "nodev", "size=1m"]),
                ..Default::default()
            },
        ],
        namespaces: Namespaces {
            network: Ns::Path("/run/netns/x".into()),
            ipc: Ns::Path("/run/ipcns/x".into()),
            uts: Ns::Path("/run/utsns/x".into()),
            cgroup: Ns::New,
            ..Default::default()
        },
        cgroups_path: "/kubepods/pod1/crio-x".into(),
        resources: Resources {
            cpu_shares: Some(512),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpuset_cpus: Some("0-1".into()),
            memory_limit: Some(64 << 20),
            memory_swap: Some(64 << 20),
            pids_limit: Some(1024),
            hugepage_limits: [("2MB".to_owned(), 0), ("1GB".to_owned(), 1 << 30)].into(),
            unified: pairs(&[("memory.swap.max", "0"), ("memory.high", "60000000")]),
            ..Default::default()
        },
        mount_label: Some("system_u:object_r:container_file_t:s0:c1,c2".into()),
        seccomp: SeccompInput::Default,
        sysctls: pairs(&[("net.core.somaxconn", "1024"), ("kernel.shm_rmid_forced", "1")]),
        annotations: pairs(&[
            ("z.last", "1"),
            ("io.kubernetes.cri-o.ContainerID", "x"),
            ("a.first", "2"),
        ]),
        devices: vec![DeviceInput {
            path: "/dev/fuse".into(),
            kind: DeviceKind::Char,
            major: 10,
            minor: 229,
            file_mode: 0o666,
            uid: 0,
            gid: 0,
            access: "rwm".into(),
        }],
        masked_paths: Some(strings(&["/proc/asound", "/secret"])),
        host: host(),
        ..Default::default()
    }
}

fn privileged() -> SpecInput {
    SpecInput {
        process: ProcessInput {
            args: strings(&["sh"]),
            terminal: true,
            console_size: Some((80, 24)),
            ..Default::default()
        },
        privileged: true,
        namespaces: Namespaces {
            network: Ns::Host,
            ipc: Ns::Host,
            uts: Ns::Host,
            pid: Ns::Host,
            ..Default::default()
        },
        mounts: vec![MountInput { propagation: Propagation::Bidirectional, ..bind("/host", "/") }],
        host: host(),
        ..Default::default()
    }
}

fn user_namespace() -> SpecInput {
    let mapping = vec![IdMapping { container_id: 0, host_id: 65_536, size: 65_536 }];
    SpecInput {
        process: ProcessInput { args: strings(&["sh"]), ..Default::default() },
        namespaces: Namespaces {
            user: Ns::New,
            uid_mappings: mapping.clone(),
            gid_mappings: mapping.clone(),
            network: Ns::Host,
            ..Default::default()
        },
        mounts: vec![MountInput {
            uid_mappings: mapping.clone(),
            gid_mappings: mapping,
            ..bind("/data", "/data")
        }],
        host: Host { arch: Arch::Aarch64, ..host() },
        ..Default::default()
    }
}

fn check(name: &str, input: &SpecInput) {
    let spec = build(input).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&spec).unwrap();
    let got = format!("{value:#}\n");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&file, &got).unwrap();
    }
    let want = std::fs::read_to_string(&file).unwrap();
    for (n, (got, want)) in got.lines().zip(want.lines()).enumerate() {
        assert_eq!(got, want, "line {} of {name}", n + 1);
    }
    assert_eq!(got.len(), want.len(), "{name}");
    for _ in 0..100 {
        assert!(build(&input.clone()).unwrap() == spec, "{name} differs from itself");
    }
}

#[test]
fn an_ordinary_container() {
    check("ordinary.json", &ordinary());
}

#[test]
fn a_privileged_container() {
    check("privileged.json", &privileged());
}

#[test]
fn a_container_in_a_user_namespace() {
    check("userns.json", &user_namespace());
}

#[test]
fn the_order_of_maps_in_the_input_does_not_matter() {
    let mut other = ordinary();
    other.annotations = other.annotations.into_iter().rev().collect();
    other.process.capabilities.add.reverse();
    other.process.user.additional_gids.reverse();
    other.process.rlimits.reverse();
    assert!(build(&other).unwrap() == build(&ordinary()).unwrap());
}
