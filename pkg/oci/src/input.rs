//! What a spec is made from: plain values, without a wire's types, that say what a container is
//! to be. Whoever speaks to a client turns its words into these; [`crate::build`] turns these
//! into bytes.
//!
//! ```text
//! client's request ─► SpecInput ──build()────► config.json for `runtime create`
//!                        └ ProcessInput ─process()─► process.json for `runtime exec`
//! ```
//!
//! Everything has a default, and the defaults are an unprivileged container: namespaces of its
//! own, the default capabilities, masked paths, no devices. Only `seccomp` and `host` want a
//! decision: see there.

use crate::caps::CapSet;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// All that a container's `config.json` depends on.
#[derive(Debug, Clone, Default)]
pub struct SpecInput {
    /// The first process, with its user, limits, capabilities and labels.
    pub process: ProcessInput,
    /// The root file system: absolute, or relative to the bundle. Empty means `rootfs`.
    pub rootfs: PathBuf,
    /// Whether the root file system is read-only.
    pub readonly_rootfs: bool,
    /// The host name to set. Must be empty or absent with the host's UTS namespace.
    pub hostname: Option<String>,
    /// Mounts beside the default ones. One at the destination of a default mount replaces it; of
    /// two at the same destination the later one stays.
    pub mounts: Vec<MountInput>,
    /// Whether `/sys/fs/cgroup` is writable although the container is not privileged (an init
    /// system inside wants it).
    pub writable_cgroup: bool,
    /// Further options of `/sys/fs/cgroup`. On cgroup v2 with the host's cgroup namespace: what the
    /// host has it mounted with, as mounting it once more sets that for all.
    pub cgroup_options: Vec<String>,
    /// The namespaces.
    pub namespaces: Namespaces,
    /// `linux.cgroupsPath`: `/a/b` for cgroupfs, `slice:prefix:name` for systemd. Empty leaves
    /// it to the runtime.
    pub cgroups_path: String,
    /// Limits on what the container may use.
    pub resources: Resources,
    /// Whether the container is privileged: all grantable capabilities, the right to use any device,
    /// `/sys` and cgroups writable, nothing masked. Seccomp and labels
    /// are the caller's decision.
    pub privileged: bool,
    /// Whether a privileged container may use no more devices than any other.
    pub devices_as_unprivileged: bool,
    /// Paths to hide. `None` is the default list; an empty list hides nothing; any other list is
    /// added to the default one. Without effect for a privileged container.
    pub masked_paths: Option<Vec<String>>,
    /// Paths to make read-only, with the rules of [`SpecInput::masked_paths`].
    pub readonly_paths: Option<Vec<String>>,
    /// Which system calls the container may make.
    pub seccomp: SeccompInput,
    /// `linux.mountLabel`: the SELinux label of the container's files.
    pub mount_label: Option<String>,
    /// Kernel parameters, with dots. Checked against [`SpecInput::namespaces`].
    pub sysctls: BTreeMap<String, String>,
    /// Annotations of the spec, as the runtime and its hooks see them.
    pub annotations: BTreeMap<String, String>,
    /// Device nodes to make, beside those that a runtime makes anyway. Each is also allowed in
    /// the device cgroup, with the access it names.
    pub devices: Vec<DeviceInput>,
    /// Hooks, in the form of the runtime specification's `hooks` object.
    pub hooks: Option<serde_json::Value>,
    /// The class of cache and memory bandwidth, where one is used.
    pub intel_rdt: Option<IntelRdt>,
    /// Network interfaces of the host that are moved into the container: name outside to name
    /// inside. The network namespace must not be the host's.
    pub net_devices: BTreeMap<String, String>,
    /// What is known about the node.
    pub host: Host,
}

/// A process in a container: its first one, or one that `exec` adds.
#[derive(Debug, Clone, Default)]
pub struct ProcessInput {
    /// The program and its arguments; must not be empty.
    pub args: Vec<String>,
    /// The environment in order. Where a name comes twice, the later value takes the place of
    /// the earlier one.
    pub env: Vec<(String, String)>,
    /// The working directory; empty means `/`.
    pub cwd: String,
    /// Whether a terminal is attached.
    pub terminal: bool,
    /// The terminal's size (columns, rows), where known.
    pub console_size: Option<(u64, u64)>,
    /// Who runs it.
    pub user: UserInput,
    /// What it may do.
    pub capabilities: Capabilities,
    /// Whether it gets every grantable capability, whatever `capabilities` says. [`crate::build`]
    /// also sets it from [`SpecInput::privileged`].
    pub privileged: bool,
    /// Whether execve may never raise privileges.
    pub no_new_privileges: bool,
    /// Resource limits, `RLIMIT_NOFILE` or `nofile`. Of two with one name the later one stays.
    pub rlimits: Vec<Rlimit>,
    /// The AppArmor profile, already loaded.
    pub apparmor_profile: Option<String>,
    /// The SELinux label of the process.
    pub selinux_label: Option<String>,
    /// What the OOM killer adds to the score, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// CPUs that `exec` starts on (`process.execCPUAffinity.initial`), e.g. `0-3`.
    pub exec_cpu_affinity: Option<String>,
    /// What is known about the node; [`crate::build`] sets it from [`SpecInput::host`].
    pub host: Host,
}

/// Who a process runs as. [`crate::users::resolve`] makes one from names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInput {
    /// User id inside the container.
    pub uid: u32,
    /// Group id inside the container.
    pub gid: u32,
    /// Supplementary groups; written sorted and without doubles.
    pub additional_gids: Vec<u32>,
    /// The file mode mask, where it is not to be the runtime's (0022).
    pub umask: Option<u32>,
}

/// Which capabilities a process gets.
///
/// Named ones are added to and taken from `base`, in this order: `add: ALL` starts from all that
/// can be granted and `drop: ALL` from none (the latter wins), then `add` by name, then `drop` by
/// name.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// What the node gives without being asked.
    pub base: CapSet,
    /// Names to add, with or without `CAP_`, any case; `ALL`.
    pub add: Vec<String>,
    /// Names to take away, likewise.
    pub drop: Vec<String>,
    /// Names to add to every set, the ambient one included, so that a user other than root keeps
    /// them over execve.
    pub add_ambient: Vec<String>,
    /// Whether the inheritable set holds what the permitted set holds.
    pub inheritable: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            base: CapSet::DEFAULT,
            add: Vec::new(),
            drop: Vec::new(),
            add_ambient: Vec::new(),
            inheritable: false,
        }
    }
}

/// A resource limit of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, or `nofile` as in configuration files.
    pub name: String,
    /// The limit in force; `u64::MAX` is unlimited.
    pub soft: u64,
    /// The limit up to which the process may raise it.
    pub hard: u64,
}

/// What a mount is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MountKind {
    /// A file or folder that is already somewhere else.
    #[default]
    Bind,
    /// Memory.
    Tmpfs,
    /// A file system of this name (`proc`, `sysfs`, `mqueue`, `cgroup`, …).
    Other(String),
}

/// Which later mounts are seen across a bind mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// The host's are seen inside.
    HostToContainer,
    /// Both ways. The caller checks that the source lies on a shared mount.
    Bidirectional,
}

/// A mount of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountInput {
    /// Where it goes: absolute.
    pub destination: String,
    /// Where it comes from: absolute for a bind mount.
    pub source: String,
    /// What it is.
    pub kind: MountKind,
    /// Further mount options. `bind` among them makes a bind mount not recursive.
    pub options: Vec<String>,
    /// Propagation of a bind mount; ignored for others.
    pub propagation: Propagation,
    /// Whether it is read-only.
    pub readonly: bool,
    /// Whether what is mounted below it is read-only too (needs `readonly`, a bind mount and
    /// private propagation; Linux 5.12 and a runtime that knows `rro`).
    pub recursive_readonly: bool,
    /// Mappings of an id-mapped mount.
    pub uid_mappings: Vec<IdMapping>,
    /// Mappings of an id-mapped mount.
    pub gid_mappings: Vec<IdMapping>,
}

/// A range of ids inside and outside a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// The first id inside.
    pub container_id: u32,
    /// The first id outside.
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Ns {
    /// The runtime makes one.
    #[default]
    New,
    /// The host's stays.
    Host,
    /// An existing one is joined, by a path such as `/proc/<pid>/ns/net` or a pinned file.
    Path(PathBuf),
}

/// The namespaces of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces {
    /// Network.
    pub network: Ns,
    /// System V IPC and POSIX message queues.
    pub ipc: Ns,
    /// Host name.
    pub uts: Ns,
    /// Process ids.
    pub pid: Ns,
    /// Mounts; anything but `New` makes no sense for a container.
    pub mount: Ns,
    /// Cgroups: `New` where the node has cgroup v2 only, `Host` otherwise.
    pub cgroup: Ns,
    /// Users.
    pub user: Ns,
    /// User ids; written when `user` is not `Host`.
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids, likewise.
    pub gid_mappings: Vec<IdMapping>,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self {
            network: Ns::New,
            ipc: Ns::New,
            uts: Ns::New,
            pid: Ns::New,
            mount: Ns::New,
            cgroup: Ns::Host,
            user: Ns::Host,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
        }
    }
}

/// Limits. What is `None` or empty is not written, and stays what the parent cgroup has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight, 2 to 262144; 0 counts as `None`.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per period; negative is unlimited, 0 counts as `None`.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds; 0 counts as `None`.
    pub cpu_period: Option<u64>,
    /// CPUs to run on, `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// NUMA nodes to take memory from.
    pub cpuset_mems: Option<String>,
    /// Bytes of memory; negative is unlimited, 0 counts as `None`.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together; negative is unlimited, 0 counts as `None`.
    pub memory_swap: Option<i64>,
    /// Soft limit in bytes.
    pub memory_reservation: Option<i64>,
    /// How many processes and threads; negative is unlimited, 0 counts as `None`.
    pub pids_limit: Option<i64>,
    /// Page size (`2MB`) to bytes.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Files of cgroup v2 and what to write into them.
    pub unified: BTreeMap<String, String>,
    /// Device rules after the default ones, in order.
    pub devices: Vec<DeviceRule>,
    /// The class of block I/O: weight 10 to 1000.
    pub blkio_weight: Option<u16>,
}

/// A class of cache and memory bandwidth, in the terms of resctrl. What is empty is not written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IntelRdt {
    /// The class's name.
    pub class: String,
    /// The schema of the third cache.
    pub l3_cache_schema: String,
    /// The schema of memory bandwidth.
    pub mem_bw_schema: String,
    /// Lines of `schemata` (runtime specification 1.3).
    pub schemata: Vec<String>,
    /// Whether the container gets a monitoring group (runtime specification 1.3).
    pub enable_monitoring: bool,
}

/// Whether a device is of characters, of blocks, a pipe, or any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// `c`
    Char,
    /// `b`
    Block,
    /// `p`; has no numbers, and no rules: it is not for the device cgroup.
    Fifo,
    /// `a`; only in rules.
    All,
}

/// A rule of the device cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// Which kind.
    pub kind: DeviceKind,
    /// Major number; `None` is any.
    pub major: Option<i64>,
    /// Minor number; `None` is any.
    pub minor: Option<i64>,
    /// `r`, `w`, `m`.
    pub access: String,
}

/// A device node in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInput {
    /// Where the node goes in the container.
    pub path: PathBuf,
    /// Which kind; `All` is refused.
    pub kind: DeviceKind,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permissions, e.g. `0o666`.
    pub file_mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `r`, `w`, `m`: what the device cgroup allows; empty makes no rule.
    pub access: String,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SeccompInput {
    /// All of them. Also the default of this type, because a node without seccomp must work: the
    /// caller says [`SeccompInput::Default`] where the kernel has it.
    #[default]
    Unconfined,
    /// The profile that this crate brings.
    Default,
    /// A profile in the JSON form that Docker, Podman and the kubelet use.
    Profile(Vec<u8>),
}

/// A processor architecture that profiles know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// `amd64`, with `x86` beside it, and `x32` if [`Host::x32`].
    X86_64,
    /// `arm64`, with `arm` beside it.
    Aarch64,
    /// `s390x`, with `s390` beside it.
    S390x,
    /// `ppc64le`.
    Ppc64le,
    /// `riscv64`.
    Riscv64,
}

/// What a spec takes from the node it is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The architecture.
    pub arch: Arch,
    /// The kernel's major and minor number.
    pub kernel: (u32, u32),
    /// The capabilities that can be given away: those of the daemon's own bounding set that the
    /// kernel knows. [`Host::current`] reads them.
    pub grantable: CapSet,
    /// Whether programs of the x32 ABI are to run. Without it a profile's `archMap` counts as if
    /// it did not name x32: no call of such a program is let through, which on a kernel without
    /// x32, as distributions build it, could not run anyway; and every start of a container is
    /// milliseconds faster, as libseccomp makes a filter for each ABI. False unless the caller
    /// says otherwise.
    pub x32: bool,
}

impl Default for Host {
    /// The architecture this was compiled for, Linux 5.10, all capabilities, no x32. It asks the
    /// node nothing, so that equal inputs stay equal; a daemon uses [`Host::current`].
    fn default() -> Self {
        Self { arch: Arch::of_build(), kernel: (5, 10), grantable: CapSet::all(), x32: false }
    }
}
