//! The table of all keys, and with it the struct that the daemon holds.
//!
//! One entry is one key of crio.conf: its help, field, type and default, then what is irregular
//! about it (see [`crate::key`]). The groups of CRI-O's file are flat here: no two keys share a
//! name. Tables that repeat (runtime handlers, workloads) are in [`crate::handler`].
//!
//! Defaults are those of CRI-O except where criod's design differs: its own folders, no pause
//! image, no monitor beside its own, a limit on stalled pulls.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::handler::{RuntimeHandler, Workload};
use crate::key::keyed;
use crate::setting::Additive;
use crate::types::*;

fn capabilities() -> Vec<Capability> {
    [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "KILL",
    ]
    .into_iter()
    .filter_map(Capability::new)
    .collect()
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|s| (*s).to_owned()).collect()
}

fn path(p: &str) -> Option<PathBuf> {
    Some(PathBuf::from(p))
}

const COLLECTORS: [&str; 18] = [
    "containers_events_dropped_total",
    "containers_oom_count_total",
    "containers_oom_total",
    "containers_seccomp_notifier_count_total",
    "containers_stopped_monitor_count",
    "default_runtime",
    "image_layer_reuse_total",
    "image_pulls_bytes_total",
    "image_pulls_failure_total",
    "image_pulls_layer_size",
    "image_pulls_skipped_bytes_total",
    "image_pulls_success_total",
    "operations_errors_total",
    "operations_latency_seconds",
    "operations_latency_seconds_total",
    "operations_total",
    "processes_defunct",
    "resources_stalled_at_stage",
];

keyed! {
    /// The configuration of criod: every key of crio.conf with a value.
    ///
    /// `Default` is what the built-in defaults are on no machine in particular; the defaults of
    /// this machine come from [`Machine::defaults`](crate::Machine::defaults).
    pub struct Config {
        ["crio"]
        /// Where images, layers and the records of pods and containers are kept.
        root: PathBuf = "/var/lib/criod".into() => short('r');
        /// Where state is kept that a reboot ends: sockets, mounts, spools.
        runroot: PathBuf = "/run/criod".into();
        /// A second, writable folder for images alone.
        imagestore: Option<PathBuf> = None => accepted();
        /// How layers are stored and stacked. Empty is the best that works here: overlay.
        storage_driver: String = String::new() => short('s');
        /// Options of the storage driver. Files add to this list instead of replacing it.
        storage_option: Additive = Additive::default() => flag(&["storage-opt"]).accepted();
        /// Where logs of containers go when the caller names no folder for them.
        log_dir: PathBuf = "/var/log/crio/pods".into();
        /// A file on volatile storage: where it is missing, the machine was booted.
        version_file: Option<PathBuf> = path("/var/run/crio/version") => accepted();
        /// A file on lasting storage: where its version is older, images are wiped.
        version_file_persist: Option<PathBuf> = None => accepted();
        /// A file that stands for an orderly stop. criod needs no such stop.
        clean_shutdown_file: Option<PathBuf> = path("/var/lib/crio/clean.shutdown") => accepted();
        /// Whether to wipe containers after a boot. criod keeps what the kubelet asks for.
        internal_wipe: bool = true => accepted();
        /// Whether to check and repair the storage after a stop that was not orderly.
        internal_repair: bool = true => accepted();

        ["crio.api"]
        /// The unix socket of the CRI and the inspect services.
        listen: PathBuf = "/run/crio/crio.sock".into();
        /// The address on which exec, attach and port-forward are served.
        stream_address: String = "127.0.0.1".to_owned();
        /// The port on which they are served; 0 is any free port.
        stream_port: TextPort = TextPort(0);
        /// Whether they are served over TLS.
        stream_enable_tls: bool = false => env(&["CONTAINER_ENABLE_TLS"]);
        /// The certificate for that, a file in PEM form that is read anew for each connection. The
        /// kubelet checks it against the system's authorities, and the name in it against
        /// stream_address.
        stream_tls_cert: Option<PathBuf> = None => env(&["CONTAINER_TLS_CERT"]);
        /// The certificate's key, likewise.
        stream_tls_key: Option<PathBuf> = None => env(&["CONTAINER_TLS_KEY"]);
        /// Authorities whose certificates a client has to show. The kubelet shows none: with this set
        /// kubectl exec, attach and port-forward are refused, and only crictl and the like get in.
        stream_tls_ca: Option<PathBuf> = None => env(&["CONTAINER_TLS_CA"]);
        /// How long a connection may be idle before it is closed; empty is four hours.
        stream_idle_timeout: Option<Duration> = None => env(&["STREAM_IDLE_TIMEOUT"]);
        /// The lowest version of TLS: VersionTLS12 or VersionTLS13.
        tls_min_version: TlsVersion = TlsVersion::Tls12;
        /// The cipher suites of TLS 1.2 that are allowed; empty allows the safe ones.
        tls_cipher_suites: Vec<String> = Vec::new();
        /// The greatest gRPC message that is sent, in bytes; 0 is the default.
        grpc_max_send_msg_size: MessageSize = MessageSize::DEFAULT;
        /// The greatest gRPC message that is taken, in bytes; 0 is the default.
        grpc_max_recv_msg_size: MessageSize = MessageSize::DEFAULT;

        ["crio.runtime"]
        /// The handler of pods that name none; empty is the first of crun and runc that is found.
        default_runtime: String = String::new();
        /// Limits of the processes in containers, such as "nofile=1024:2048"; -1 is unlimited.
        default_ulimits: Vec<Ulimit> = Vec::new();
        /// Whether the root is changed by a move instead of pivot_root, for a root on a ramdisk.
        no_pivot: bool = false;
        /// The folder of private keys for encrypted images.
        decryption_keys_path: Option<PathBuf> = path("/etc/crio/keys/") => no_env().accepted();
        /// More folders of artifacts, only read, that are looked into first.
        additional_artifact_stores: Vec<PathBuf> = Vec::new() => no_env().accepted();
        /// The program that watches a container. criod has its own.
        conmon: String = String::new() => accepted();
        /// The cgroup of that program.
        conmon_cgroup: String = String::new() => accepted();
        /// The environment of that program.
        conmon_env: Vec<EnvVar> = Vec::new() => accepted();
        /// Environment of every container, below what its image and the caller say.
        default_env: Vec<EnvVar> = Vec::new();
        /// The least GOMAXPROCS that is put into a container's environment; 0 puts none there.
        min_injected_gomaxprocs: i64 = 0
            => env(&["CONTAINER_INJECT_GOMAXPROCS"]).accepted();
        /// Whether pods are kept apart by SELinux labels.
        selinux: bool = false;
        /// The seccomp profile of containers that ask for the default; empty is the built-in one.
        seccomp_profile: Option<PathBuf> = None;
        /// The seccomp profile of privileged containers; empty is none.
        privileged_seccomp_profile: Option<PathBuf> = None;
        /// The AppArmor profile of containers that ask for the default or for none: one that is loaded,
        /// "unconfined", or crio-default, which criod brings and loads.
        apparmor_profile: String = "crio-default".to_owned();
        /// The file that defines classes of block I/O.
        blockio_config_file: Option<PathBuf> = None => no_env().accepted();
        /// Whether that file is read again for every container.
        blockio_reload: bool = false => no_env().accepted();
        /// The file that defines classes of cache and memory bandwidth.
        rdt_config_file: Option<PathBuf> = None => no_env().accepted();
        /// The configuration of irqbalance, where CPUs are kept free of interrupts.
        irqbalance_config_file: Option<PathBuf> = path("/etc/sysconfig/irqbalance")
            => no_env().accepted();
        /// Where its CPU mask is kept for the next start; "disable" keeps it nowhere.
        irqbalance_config_restore_file: String = "/etc/sysconfig/orig_irq_banned_cpus".to_owned()
            => no_env().accepted();
        /// Who makes cgroups: systemd or cgroupfs. The kubelet must use the same.
        /// Without this key it is systemd where that runs the machine, else cgroupfs.
        cgroup_manager: CgroupManager = CgroupManager::Systemd;
        /// The cgroup in which pulls are done: a slice, or "pod" for the pod's own.
        separate_pull_cgroup: String = String::new() => env(&["PULL_IN_A_CGROUP"]).accepted();
        /// Capabilities of containers, before the caller adds and drops some.
        default_capabilities: Vec<Capability> = capabilities();
        /// Whether a container's capabilities are inheritable, too, so that users keep them.
        add_inheritable_capabilities: bool = false;
        /// Kernel parameters of every pod, such as "net.ipv4.ip_unprivileged_port_start=0".
        default_sysctls: Vec<Sysctl> = Vec::new();
        /// Devices that a pod may ask for by annotation.
        allowed_devices: Vec<DeviceSpec> = ["/dev/fuse", "/dev/net/tun"]
            .into_iter()
            .map(|d| DeviceSpec { host: d.into(), inside: d.into(), permissions: "rwm".into() })
            .collect();
        /// Devices of every container, such as "/dev/fuse:/dev/fuse:rwm".
        additional_devices: Vec<DeviceSpec> = Vec::new();
        /// Folders of CDI device descriptions; later ones win.
        cdi_spec_dirs: Vec<PathBuf> = vec!["/etc/cdi".into(), "/var/run/cdi".into()];
        /// Whether devices belong to the user and group that the container runs as.
        device_ownership_from_security_context: bool = false => no_env();
        /// Folders of OCI hooks, oci-hooks(5) of version 1.0.0; later ones win.
        hooks_dir: Vec<PathBuf> = vec!["/usr/share/containers/oci/hooks.d".into()];
        /// Folders and files that every container gets a copy of, "/SRC:/DST".
        default_mounts: Vec<String> = Vec::new();
        /// A file of such lines; empty is /etc/containers/mounts.conf, else the one below /usr/share.
        default_mounts_file: Option<PathBuf> = None;
        /// The most processes in a container; -1 is unlimited. The kubelet's pod limit is better.
        pids_limit: i64 = -1;
        /// The greatest log of a container in bytes; -1 is unlimited. The kubelet rotates logs.
        log_size_max: i64 = -1 => accepted();
        /// Whether output of containers goes to the journal, too.
        log_to_journald: bool = false => flag(&["log-journald"]).accepted();
        /// How much is logged: fatal, panic, error, warn, info, debug or trace.
        log_level: LogLevel = LogLevel::Info => short('l');
        /// A regular expression that logged messages must match.
        log_filter: String = String::new() => accepted();
        /// Where a monitor leaves exit codes. criod keeps them below runroot.
        container_exits_dir: Option<PathBuf> = path("/var/run/crio/exits") => accepted();
        /// Where a monitor leaves its sockets. criod keeps them below runroot.
        container_attach_socket_dir: Option<PathBuf> = path("/var/run/crio") => accepted();
        /// What is put before every mount's source, where the daemon runs in a container.
        bind_mount_prefix: String = String::new();
        /// Whether all containers' root file systems are read-only, with memory at /run, /tmp and /var/tmp.
        read_only: bool = false;
        /// User ids of one user namespace for all containers: refused, as pods ask for their own.
        uid_mappings: String = String::new();
        /// Group ids of it.
        gid_mappings: String = String::new();
        /// The lowest user id of the node that a pod's user namespace may have.
        minimum_mappable_uid: i64 = -1;
        /// The lowest group id of the node that it may have.
        minimum_mappable_gid: i64 = -1;
        /// Seconds that a container has for its own end when the caller names none; at least 30.
        ctr_stop_timeout: i64 = 30 => env(&["CONTAINER_STOP_TIMEOUT"]);
        /// Whether pods that need no process of their own have none.
        drop_infra_ctr: bool = true => accepted();
        /// CPUs of that process and of the runtime's commands.
        infra_ctr_cpuset: String = String::new() => accepted();
        /// CPUs that containers with exclusive ones share.
        shared_cpuset: String = String::new() => accepted();
        /// Below it the namespaces of pods are pinned. criod pins them below runroot.
        namespaces_dir: PathBuf = "/var/run".into() => accepted();
        /// A program that pins namespaces. criod needs none.
        pinns_path: String = String::new() => accepted();
        /// Sources of mounts that are an error where they are missing.
        absent_mount_sources_to_reject: Vec<String> = Vec::new();
        /// Whether checkpoints are possible; container_level_enabled says more.
        enable_criu_support: bool = true => accepted();
        /// Nothing needs it: events of containers are sent to whoever asks for them.
        enable_pod_events: bool = false => env(&["ENABLE_POD_EVENTS"]);
        /// Whether pods in the host's network are exempt from SELinux.
        hostnetwork_disable_selinux: bool = true;
        /// Whether host ports are left to somebody else.
        disable_hostport_mapping: bool = false => env(&["DISABLE_HOSTPORT_MAPPING"]);
        /// The time zone of containers: a name, or "Local" for the node's.
        timezone: String = String::new()
            => alias("tz").env(&["CONTAINER_TIME_ZONE"]);

        ["crio.checkpoint_restore"]
        /// What is possible: none, checkpoint_only or checkpoint_restore.
        container_level_enabled: CheckpointRestore = CheckpointRestore::CheckpointRestore
            => accepted();

        ["crio.image"]
        /// Where a name of an image points that says nothing itself.
        default_transport: String = "docker://".to_owned() => accepted();
        /// The credentials of registries when the caller has none: a file as docker login writes.
        global_auth_file: Option<PathBuf> = None;
        /// The folder of credentials for a namespace's pulls.
        namespaced_auth_dir: Option<PathBuf> = path("/etc/crio/auth") => hidden().accepted();
        /// The image of a pod's own process; empty needs none, criod brings the process along.
        pause_image: String = String::new();
        /// The credentials for that image.
        pause_image_auth_file: Option<PathBuf> = None => accepted();
        /// The command of that image; empty is what the image says.
        pause_command: String = "/pause".to_owned();
        /// Images that the kubelet must not remove: exact, "begin*" or "*within*".
        pinned_images: Vec<String> = Vec::new();
        /// The file that says which images are trusted; empty is /etc/containers/policy.json.
        signature_policy: Option<PathBuf> = None => accepted();
        /// The folder of such files for single namespaces, "<namespace>.json".
        signature_policy_dir: Option<PathBuf> = path("/etc/crio/policies") => accepted();
        /// Registries without TLS. It has no effect: say so in registries.conf.
        insecure_registries: Vec<String> = Vec::new() => flag(&["insecure-registry"]).accepted();
        /// What becomes of volumes that an image declares: mkdir, bind or ignore.
        image_volumes: ImageVolumes = ImageVolumes::Mkdir;
        /// The folder for large files while they are downloaded.
        big_files_temporary_dir: Option<PathBuf> = None => accepted();
        /// Whether registries.conf is read again when it changes.
        auto_reload_registries: bool = false => env(&["AUTO_RELOAD_REGISTRIES"]).accepted();
        /// After that long without a byte a pull is given up; "0s" is never.
        pull_progress_timeout: Duration = Duration::from_secs(60);
        /// Whether OCI artifacts can be mounted.
        oci_artifact_mount_support: bool = true
            => env(&["CONTAINER_OCI_ARTIFACT_SUPPORT"]).accepted();
        /// What becomes of a name that several registries could serve: enforcing or disabled.
        short_name_mode: ShortNameMode = ShortNameMode::Enforcing;

        ["crio.network"]
        /// The name of the CNI network; empty is that of the first file in network_dir.
        cni_default_network: String = String::new();
        /// The folder of CNI configurations.
        network_dir: PathBuf = "/etc/cni/net.d/".into() => flag(&["cni-config-dir"]);
        /// The folders of CNI plugins.
        plugin_dirs: Vec<PathBuf> = vec!["/opt/cni/bin/".into()] => flag(&["cni-plugin-dir"]);
        /// The older form of plugin_dirs: one more folder.
        plugin_dir: Option<PathBuf> = None => no_flag();
        /// How long plugins may be out of order before the node is not ready; "0s" asks none.
        cni_status_grace_period: Duration = Duration::ZERO
            => env(&["CNI_STATUS_GRACE_PERIOD"]).accepted();

        ["crio.metrics"]
        /// Whether metrics are served.
        enable_metrics: bool = false => accepted();
        /// Which metrics, with or without the prefix "container_runtime_crio_".
        metrics_collectors: Vec<String> = strings(&COLLECTORS) => accepted();
        /// The address on which metrics are served.
        metrics_host: String = "127.0.0.1".to_owned() => accepted();
        /// The port on which metrics are served.
        metrics_port: u16 = 9090 => accepted();
        /// A unix socket on which metrics are served.
        metrics_socket: Option<PathBuf> = None => accepted();
        /// The certificate for metrics over TLS.
        metrics_cert: Option<PathBuf> = None => accepted();
        /// The certificate's key.
        metrics_key: Option<PathBuf> = None => accepted();

        ["crio.tracing"]
        /// Whether traces are sent.
        enable_tracing: bool = false => accepted();
        /// Where they are sent, by OTLP over gRPC.
        tracing_endpoint: String = "127.0.0.1:4317".to_owned() => accepted();
        /// How many of a million requests are traced.
        tracing_sampling_rate_per_million: i64 = 0 => accepted();

        ["crio.stats"]
        /// Nothing reads it; it is known so that old files give no warning.
        stats_collection_period: i64 = 0 => accepted();
        /// Seconds between collections of the pods' metrics; 0 collects when asked.
        collection_period: i64 = 0 => env(&["COLLECTION_PERIOD"]).accepted();
        /// Groups of the pods' metrics: cpu, disk, diskIO, hugetlb, memory, network, oom, pressure,
        /// process, spec, or all.
        included_pod_metrics: Vec<String> = Vec::new()
            => env(&["CONTAINER_INCLUDED_POD_METRICS", "CONTAINER_INCLUDED_POD_METRCIS"]);

        ["crio.nri"]
        /// Whether NRI plugins are used.
        enable_nri: bool = true => no_env().accepted();
        /// The folder of NRI plugins that are started.
        nri_plugin_dir: Option<PathBuf> = path("/opt/nri/plugins") => no_env().accepted();
        /// The folder of their configurations.
        nri_plugin_config_dir: Option<PathBuf> = path("/etc/nri/conf.d") => no_env().accepted();
        /// The socket on which plugins register.
        nri_listen: Option<PathBuf> = path("/var/run/nri/nri.sock") => no_env().accepted();
        /// Whether plugins that were not started by the daemon are refused.
        nri_disable_connections: bool = false => no_env().accepted();
        /// How long a plugin has to register.
        nri_plugin_registration_timeout: Duration = Duration::from_secs(5) => no_env().accepted();
        /// How long a plugin has to answer.
        nri_plugin_request_timeout: Duration = Duration::from_secs(2) => no_env().accepted();

        ["crio.nri.default_validator"]
        /// Whether the changes that plugins make are checked by the rules below.
        nri_enable_default_validator: bool = false => no_flag().accepted();
        /// Refuse new OCI hooks.
        nri_validator_reject_oci_hook_adjustment: bool = false => no_flag().accepted();
        /// Refuse changes of the runtime's default seccomp profile.
        nri_validator_reject_runtime_default_seccomp_adjustment: bool = false
            => no_flag().accepted();
        /// Refuse seccomp profiles for containers without one.
        nri_validator_reject_unconfined_seccomp_adjustment: bool = false => no_flag().accepted();
        /// Refuse changes of a seccomp profile that the pod brought.
        nri_validator_reject_custom_seccomp_adjustment: bool = false => no_flag().accepted();
        /// Refuse other namespaces.
        nri_validator_reject_namespace_adjustment: bool = false => no_flag().accepted();
        /// Plugins that must have been asked.
        nri_validator_required_plugins: Vec<String> = Vec::new() => no_flag().accepted();
        /// The annotation by which a pod does without them.
        nri_validator_tolerate_missing_plugins_annotation: String = String::new()
            => no_flag().accepted();

        ["criod"]
        /// The program that watches a container; empty is criod-monitor beside criod, or in
        /// ../libexec/criod.
        monitor_binary: Option<PathBuf> = None;
        /// The program that keeps descriptors across restarts; empty is criod-keeper, found alike.
        keeper_binary: Option<PathBuf> = None;
        /// The socket of that program; empty is keeper.sock in runroot.
        keeper_socket: Option<PathBuf> = None;
        /// Whether running monitors and the keeper become the installed build, in place, when criod
        /// starts and finds that they are another.
        upgrade_monitors: bool = true => no_flag();
        /// The file that says which registries serve which names.
        registries_conf: PathBuf = "/etc/containers/registries.conf".into();
        /// The folder of files that add to it.
        registries_conf_dir: PathBuf = "/etc/containers/registries.conf.d".into();
        /// The file that is logged to; empty is standard error, or the journal under systemd.
        log_file: Option<PathBuf> = None => flag(&["log"]).accepted();
        /// The form of log lines: text or json.
        log_format: LogFormat = LogFormat::Text => accepted();
    }
    also {
        /// The handlers by name, `[crio.runtime.runtimes.NAME]`.
        pub runtimes: BTreeMap<String, RuntimeHandler>,
        /// The workloads by name, `[crio.runtime.workloads.NAME]`.
        pub workloads: BTreeMap<String, Workload>,
    }
}

impl Config {
    /// The handler for a pod that asks for `name`; an empty name is the default's.
    pub fn handler(&self, name: &str) -> Option<(&str, &RuntimeHandler)> {
        let name = if name.is_empty() { self.default_runtime.as_str() } else { name };
        self.runtimes.get_key_value(name).map(|(k, v)| (k.as_str(), v))
    }

    /// The keeper's socket: the key, or `keeper.sock` in `runroot`.
    pub fn keeper_socket(&self) -> PathBuf {
        self.keeper_socket.clone().unwrap_or_else(|| self.runroot.join("keeper.sock"))
    }

    /// The monitor's program: the key, or where an installation has it.
    pub fn monitor_binary(&self) -> PathBuf {
        beside(self.monitor_binary.as_ref(), "criod-monitor")
    }

    /// The keeper's program: the key, or where an installation has it.
    pub fn keeper_binary(&self) -> PathBuf {
        beside(self.keeper_binary.as_ref(), "criod-keeper")
    }
}

/// `key`, or `name` beside the running program, or in `../libexec/criod` of it; where neither
/// exists, the latter, so that an error names the place where a package would have put it.
fn beside(key: Option<&PathBuf>, name: &str) -> PathBuf {
    if let Some(path) = key {
        return path.clone();
    }
    let folder = std::env::current_exe().ok().and_then(|exe| exe.parent().map(PathBuf::from));
    let folder = folder.unwrap_or_else(|| PathBuf::from("/usr/bin"));
    let near = folder.join(name);
    if near.is_file() {
        return near;
    }
    folder.parent().unwrap_or(&folder).join("libexec/criod").join(name)
}
