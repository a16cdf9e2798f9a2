//! The tables that repeat: runtime handlers and workloads.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use crate::key::keyed;
use crate::setting::{Kind, Problem, Setting, expected};
use crate::types::*;

keyed! {
    /// One way of running containers, `[crio.runtime.runtimes.NAME]`.
    pub struct RuntimeHandler {
        [""]
        /// The runtime's program; empty is the handler's name, looked for in PATH.
        runtime_path: String = String::new();
        /// How it is driven: oci, vm or pod.
        runtime_type: RuntimeType = RuntimeType::Oci;
        /// The folder of the runtime's own state; empty is one below runroot.
        runtime_root: Option<PathBuf> = None;
        /// Whether path, type, root and configuration are those of the default handler.
        inherit_default_runtime: bool = false;
        /// The runtime's configuration file, for the type vm.
        runtime_config_path: Option<PathBuf> = None => accepted();
        /// Whether privileged containers are not given the host's devices.
        privileged_without_host_devices: bool = false;
        /// Annotations that pods of this handler may set; a prefix is enough.
        allowed_annotations: Vec<String> = Vec::new();
        /// The program that watches a container. criod has its own.
        monitor_path: String = String::new() => accepted();
        /// The cgroup of that program: a slice, or "pod" for the pod's own.
        monitor_cgroup: String = "system.slice".to_owned() => accepted();
        /// The environment of that program.
        monitor_env: Vec<EnvVar> = Vec::new() => accepted();
        /// The cgroup of probes: "container" for the container's own.
        monitor_exec_cgroup: String = String::new() => accepted();
        /// Memory limits of containers below this are refused.
        /// Empty is 500KiB for crun and 12MiB for others.
        container_min_memory: Option<ByteSize> = None;
        /// Programs for other platforms, by "os/arch".
        platform_runtime_paths: BTreeMap<String, String> = BTreeMap::new() => accepted();
        /// Whether images are pulled inside the virtual machine.
        runtime_pull_image: bool = false => accepted();
        /// Whether logs are left to the kernel to write out when a container ends.
        no_sync_log: bool = false => accepted();
        /// Annotations of every pod of this handler.
        default_annotations: BTreeMap<String, String> = BTreeMap::new() => accepted();
        /// Whether the monitor serves WebSockets itself, for the type pod.
        stream_websockets: bool = false => accepted();
        /// CPUs of executed commands: "first" is the first of the container's.
        exec_cpu_affinity: String = String::new() => accepted();
        /// The seccomp profile of this handler's containers that ask for the default.
        seccomp_profile: Option<PathBuf> = None;
        /// Seconds that the runtime has to create a container; at least 30.
        container_create_timeout: i64 = 240;
    }
}

impl RuntimeHandler {
    /// A handler for the program at `path`, as it is where nobody configures it: its pods may ask
    /// for the devices of `allowed_devices`.
    pub fn at(path: &str) -> Self {
        let allowed_annotations =
            ["devices.crio.io", "io.kubernetes.cri-o.Devices"].map(str::to_owned).to_vec();
        RuntimeHandler { runtime_path: path.to_owned(), allowed_annotations, ..Default::default() }
    }

    /// The least memory limit in bytes that a container may have.
    pub fn min_memory(&self) -> u64 {
        let program = self.runtime_path.rsplit('/').next().unwrap_or_default();
        match self.container_min_memory {
            Some(size) => size.0,
            None if program == "crun" => 500 * 1024,
            None => 12 * 1024 * 1024,
        }
    }
}

keyed! {
    /// A kind of pod with resources of its own, `[crio.runtime.workloads.NAME]`.
    pub struct Workload {
        [""]
        /// The annotation by which a pod is one of them.
        activation_annotation: String = String::new() => accepted();
        /// What annotations with a container's resources begin with.
        annotation_prefix: String = String::new() => accepted();
        /// Annotations that such pods may set.
        allowed_annotations: Vec<String> = Vec::new() => accepted();
        /// Resources of their containers: cpushares, cpuset, cpuquota, cpuperiod, cpulimit.
        resources: WorkloadResources = WorkloadResources::default() => accepted();
    }
}

/// Resources of a workload's containers; zero and empty say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkloadResources {
    /// Weight against others.
    pub cpushares: u64,
    /// CPUs, as "0-3,7".
    pub cpuset: String,
    /// Microseconds in each period.
    pub cpuquota: i64,
    /// Microseconds.
    pub cpuperiod: u64,
    /// Thousandths of a CPU.
    pub cpulimit: i64,
}

impl Setting for WorkloadResources {
    const KIND: Kind = Kind::Table;

    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(expected("a table", value));
        };
        let mut all = WorkloadResources::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "cpushares" => all.cpushares = Setting::read(value)?,
                "cpuset" => all.cpuset = Setting::read(value)?,
                "cpuquota" => all.cpuquota = Setting::read(value)?,
                "cpuperiod" => all.cpuperiod = Setting::read(value)?,
                "cpulimit" => all.cpulimit = Setting::read(value)?,
                other => {
                    return Err(Problem {
                        span: key.span(),
                        text: format!("there is no resource {}", crate::setting::quoted(other)),
                    });
                }
            }
        }
        Ok(all)
    }

    fn parse(_: &[String]) -> Result<Self, String> {
        Err("resources have no flag".to_owned())
    }

    fn render(&self) -> String {
        let mut items = Vec::new();
        let mut item = |name: &str, text: String, set: bool| {
            if set {
                items.push(format!("{name} = {text}"));
            }
        };
        item("cpushares", self.cpushares.render(), self.cpushares != 0);
        item("cpuset", self.cpuset.render(), !self.cpuset.is_empty());
        item("cpuquota", self.cpuquota.render(), self.cpuquota != 0);
        item("cpuperiod", self.cpuperiod.render(), self.cpuperiod != 0);
        item("cpulimit", self.cpulimit.render(), self.cpulimit != 0);
        if items.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", items.join(", ")) }
    }
}
