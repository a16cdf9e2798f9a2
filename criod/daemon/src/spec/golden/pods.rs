//! The pods, as the kubelet asks for them: [`pod`] and [`container`] are what it says of each, and a
//! case is what differs.

use api_cri::v1::security_profile::ProfileType;
use api_cri::v1::*;

use super::{Case, Config, ContainerDefaults, Place, RuntimeHandler};

/// A vendor's device.
pub(super) const CDI: &str = "\
cdiVersion: 0.7.0
kind: vendor.com/card
devices:
- name: card0
  containerEdits:
    env: [CARD=0]
    deviceNodes: [{path: /dev/card0, type: c, major: 240, minor: 1, fileMode: 0o660, permissions: rw}]
    mounts: [{hostPath: /etc, containerPath: /vendor, options: [ro, nosuid, nodev, bind]}]
    hooks: [{hookName: createContainer, path: /usr/bin/vendor-hook, args: [vendor-hook, ldcache]}]
    additionalGids: [44]
";

/// What the kubelet asks to hide and to protect, from its defaults.
fn proc_paths() -> (Vec<String>, Vec<String>) {
    let masked = [
        "/proc/asound",
        "/proc/acpi",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ];
    let readonly = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    (masked.map(String::from).to_vec(), readonly.map(String::from).to_vec())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref: path.into() })
}

/// Namespaces as in most pods: all of the pod's own but that of process ids.
fn modes() -> NamespaceOption {
    NamespaceOption {
        pid: NamespaceMode::Container as i32,
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Node as i32,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web-0".into(),
            uid: "6f1c".into(),
            namespace: "shop".into(),
            attempt: 0,
        }),
        hostname: "web-0".into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/pod1".into(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(modes()),
                seccomp: profile(ProfileType::RuntimeDefault, ""),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn mount(host: &str, container: &str) -> Mount {
    Mount { host_path: host.into(), container_path: container.into(), ..Default::default() }
}

/// A BestEffort container, with what the kubelet mounts into each.
fn container(place: &Place) -> ContainerConfig {
    let (masked_paths, readonly_paths) = proc_paths();
    let volume = |name: &str| place.path("volumes").join(name).to_string_lossy().into_owned();
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(ImageSpec { image: "registry/test/busybox:1".into(), ..Default::default() }),
        envs: vec![KeyValue {
            key: "KUBERNETES_PORT".into(),
            value: b"tcp://10.0.0.1:443".to_vec(),
        }],
        mounts: vec![
            Mount {
                readonly: true,
                ..mount(&volume("config"), "/var/run/secrets/kubernetes.io/serviceaccount")
            },
            mount(&volume("hosts"), "/etc/hosts"),
            mount(&volume("log"), "/dev/termination-log"),
        ],
        annotations: [("io.kubernetes.container.hash".into(), "8ae1".into())].into(),
        log_path: "main/0.log".into(),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_shares: 2,
                oom_score_adj: 1000,
                hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(modes()),
                masked_paths,
                readonly_paths,
                seccomp: profile(ProfileType::RuntimeDefault, ""),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn image() -> ContainerDefaults {
    ContainerDefaults {
        env: words(&["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"]),
        cmd: words(&["sh"]),
        ..Default::default()
    }
}

/// A container's security context.
fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn pod_security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.as_mut().unwrap().resources.as_mut().unwrap()
}

/// The kubelet asks for the pod's ids on every mount.
fn own_users(c: &mut Case) {
    let map = vec![IdMapping { container_id: 0, host_id: 1_048_576, length: 65_536 }];
    for mount in &mut c.container.mounts {
        (mount.uid_mappings, mount.gid_mappings) = (map.clone(), map.clone());
    }
    with_modes(c, |m| {
        let mode = NamespaceMode::Pod as i32;
        m.userns_options = Some(UserNamespace { mode, uids: map.clone(), gids: map.clone() });
    });
}

/// Namespace options of the pod and, the same, of its container.
fn with_modes(case: &mut Case, change: impl Fn(&mut NamespaceOption)) {
    change(pod_security(&mut case.pod).namespace_options.as_mut().unwrap());
    change(security(&mut case.container).namespace_options.as_mut().unwrap());
}

/// All pods.
pub(super) fn all(place: &Place) -> Vec<Case> {
    let case = |name: &'static str, change: &dyn Fn(&mut Case)| {
        let mut case = Case {
            name,
            pod: pod(),
            container: container(place),
            image: image(),
            node: Config::default(),
            handler: RuntimeHandler::at("/usr/bin/runc"),
            v2: true,
            target: None,
            volumes: Default::default(),
        };
        change(&mut case);
        case
    };
    let volume = |name: &str| place.path("volumes").join(name).to_string_lossy().into_owned();
    vec![
        case("bare", &|_| {}),
        case("bare-v1", &|c| c.v2 = false),
        case("command", &|c| {
            c.image.entrypoint = words(&["/entry"]);
            c.image.working_dir = "/srv".into();
            c.container.command = words(&["/bin/server"]);
            c.container.args = words(&["--port", "80"]);
            c.container.working_dir = "/data".into();
            let env = [("LANG", "de_DE.UTF-8"), ("EMPTY", ""), ("EQUALS", "a=b")];
            c.container.envs.extend(env.map(|(key, value)| KeyValue {
                key: key.into(),
                value: value.as_bytes().to_vec(),
            }));
        }),
        case("terminal", &|c| {
            c.container.tty = true;
            c.container.stdin = true;
            c.container.stdin_once = true;
        }),
        case("user", &|c| {
            let s = security(&mut c.container);
            s.run_as_user = Some(Int64Value { value: 1000 });
            s.run_as_group = Some(Int64Value { value: 3000 });
            s.supplemental_groups = vec![4000, 2000];
        }),
        case("user-strict", &|c| {
            c.image.user = "root".into();
            let s = security(&mut c.container);
            s.run_as_username = "web".into();
            s.supplemental_groups = vec![4000];
            s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict as i32;
        }),
        case("readonly-root", &|c| security(&mut c.container).readonly_rootfs = true),
        case("restricted", &|c| {
            // As the restricted pod security standard wants it.
            let s = security(&mut c.container);
            s.run_as_user = Some(Int64Value { value: 65_534 });
            s.no_new_privs = true;
            s.capabilities = Some(Capability {
                add_capabilities: words(&["NET_BIND_SERVICE"]),
                drop_capabilities: words(&["ALL"]),
                ..Default::default()
            });
        }),
        case("capabilities", &|c| {
            security(&mut c.container).capabilities = Some(Capability {
                add_capabilities: words(&["SYS_ADMIN", "NET_ADMIN"]),
                drop_capabilities: words(&["CHOWN"]),
                ..Default::default()
            });
        }),
        case("privileged-daemonset", &|c| {
            pod_security(&mut c.pod).privileged = true;
            let s = security(&mut c.container);
            s.privileged = true;
            (s.masked_paths, s.readonly_paths) = Default::default();
            s.seccomp = profile(ProfileType::Unconfined, "");
            with_modes(c, |m| {
                let node = NamespaceMode::Node as i32;
                (m.network, m.pid, m.ipc) = (node, node, node);
            });
            c.pod.hostname.clear();
            let propagation = MountPropagation::PropagationBidirectional as i32;
            c.container.mounts.push(Mount { propagation, ..mount(&volume("shared"), "/host") });
        }),
        case("host-network", &|c| {
            c.pod.hostname.clear();
            with_modes(c, |m| m.network = NamespaceMode::Node as i32);
        }),
        case("shared-pid", &|c| with_modes(c, |m| m.pid = NamespaceMode::Pod as i32)),
        case("user-namespace", &own_users),
        case("user-namespace-host-network", &|c| {
            own_users(c);
            c.pod.hostname.clear();
            with_modes(c, |m| m.network = NamespaceMode::Node as i32);
        }),
        case("ephemeral", &|c| {
            c.target = Some(4711);
            c.container.tty = true;
            c.container.stdin = true;
            let options = security(&mut c.container).namespace_options.as_mut().unwrap();
            options.pid = NamespaceMode::Target as i32;
            options.target_id = "beef".into();
        }),
        case("guaranteed-pinned", &guaranteed),
        case("guaranteed-pinned-v1", &|c| {
            guaranteed(c);
            c.v2 = false;
        }),
        case("burstable-swap", &|c| {
            burstable(c);
            resources(&mut c.container).unified = [
                ("memory.high".into(), "241591910".into()),
                ("memory.oom.group".into(), "1".into()),
            ]
            .into();
        }),
        case("burstable-swap-v1", &|c| {
            burstable(c);
            c.v2 = false;
        }),
        case("sysctls", &|c| {
            c.pod.linux.as_mut().unwrap().sysctls =
                [("net.core.somaxconn".into(), "1024".into())].into();
        }),
        case("seccomp-unconfined", &|c| {
            security(&mut c.container).seccomp = profile(ProfileType::Unconfined, "");
        }),
        case("seccomp-localhost", &|c| {
            let path = place.path("profile.json");
            let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
                "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
                "syscalls": [{"names": ["read", "write", "exit"], "action": "SCMP_ACT_ALLOW"}]}"#;
            std::fs::write(&path, text).unwrap();
            security(&mut c.container).seccomp =
                profile(ProfileType::Localhost, &path.to_string_lossy());
        }),
        case("unmasked", &|c| {
            let s = security(&mut c.container);
            (s.masked_paths, s.readonly_paths) = Default::default();
        }),
        case("volumes", &|c| {
            c.container.mounts.extend([
                mount(&volume("data"), "/data"),
                Mount { readonly: true, ..mount(&volume("data"), "/data/deeper/config") },
            ]);
        }),
        case("propagation", &|c| {
            let with = |propagation: MountPropagation, at: &str| Mount {
                propagation: propagation as i32,
                ..mount(&volume("shared"), at)
            };
            c.container.mounts.extend([
                with(MountPropagation::PropagationPrivate, "/private"),
                with(MountPropagation::PropagationHostToContainer, "/slave"),
                with(MountPropagation::PropagationBidirectional, "/shared"),
            ]);
        }),
        case("recursive-readonly", &|c| {
            c.container.mounts.push(Mount {
                readonly: true,
                recursive_read_only: true,
                mount_options: words(&["noexec"]),
                ..mount(&volume("data"), "/data")
            });
        }),
        case("image-volume", &|c| {
            let image = "registry/test/data:1".to_owned();
            let image = Some(ImageSpec { image, ..Default::default() });
            c.volumes.insert(c.container.mounts.len(), place.path("run/volumes/3"));
            c.container.mounts.push(Mount { readonly: true, image, ..mount("", "/models") });
        }),
        case("device", &|c| {
            c.container.devices = vec![
                Device {
                    host_path: "/dev/null".into(),
                    container_path: "/dev/nothing".into(),
                    permissions: "r".into(),
                },
                Device {
                    host_path: "/dev/full".into(),
                    container_path: "/dev/full".into(),
                    permissions: "rwm".into(),
                },
            ];
        }),
        // A sidecar differs from others in when it is started, and its image may say how it is stopped.
        case("sidecar", &|c| {
            c.container.metadata.as_mut().unwrap().name = "proxy".into();
            c.container.stop_signal = Signal::Sigquit as i32;
            let resources = resources(&mut c.container);
            (resources.cpu_shares, resources.oom_score_adj) = (102, 968);
        }),
        case("cdi", &|c| {
            c.container.cdi_devices = vec![CdiDevice { name: "vendor.com/card=card0".into() }];
        }),
    ]
}

/// Two whole CPUs of its own, as the static policies of CPU and memory manager give them.
fn guaranteed(c: &mut Case) {
    *resources(&mut c.container) = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 200_000,
        cpu_shares: 2048,
        memory_limit_in_bytes: 1 << 30,
        oom_score_adj: -997,
        cpuset_cpus: "2-3".into(),
        cpuset_mems: "0".into(),
        ..Default::default()
    };
}

/// Limited memory and swap, and huge pages.
fn burstable(c: &mut Case) {
    *resources(&mut c.container) = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 256,
        memory_limit_in_bytes: 256 << 20,
        memory_swap_limit_in_bytes: 384 << 20,
        oom_score_adj: 968,
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 64 << 20 }],
        ..Default::default()
    };
}
