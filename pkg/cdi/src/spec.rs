//! What a file says, and whether all of it makes sense. [`Edits`] and what is in it are both the
//! file's form and what a caller gets.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::{name, node::Node, version, yaml};

/// The greatest file that is read, in bytes.
pub(crate) const LARGEST: u64 = 1 << 20;

/// A file, as the specification has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct File {
    #[serde(rename = "cdiVersion")]
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) devices: Vec<Device>,
    #[serde(rename = "containerEdits")]
    pub(crate) edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(rename = "containerEdits")]
    pub(crate) edits: Edits,
}

/// What is to be changed in a container for its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Nodes to make.
    pub device_nodes: Vec<DeviceNode>,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// Programs to run in the course of the container's life.
    pub hooks: Vec<Hook>,
    /// Cache and memory bandwidth. Of several the last one holds.
    pub intel_rdt: Option<IntelRdt>,
    /// Groups of the container's process; 0 is to be ignored.
    pub additional_gids: Vec<u32>,
    /// Network interfaces to move into the container.
    pub net_devices: Vec<NetDevice>,
}

/// A device node. What is not said is what the node at `host_path` has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    /// Where it goes in the container.
    pub path: String,
    /// Where it is on the node; empty is the same as `path`.
    pub host_path: String,
    /// `b`, `c`, `u`, `p` or empty.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number; 0 is not said.
    pub major: i64,
    /// Minor number, which counts where `major` does.
    pub minor: i64,
    /// Permissions, as in `stat`.
    pub file_mode: Option<u32>,
    /// Of `r`, `w`, `m`; empty is all, `none` is none.
    pub permissions: String,
    /// Owner in the container; not said is the user that the container runs as.
    pub uid: Option<u32>,
    /// Group, likewise.
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mount {
    /// What is mounted.
    pub host_path: String,
    /// Where it goes in the container.
    pub container_path: String,
    /// Options of mount(8).
    pub options: Vec<String>,
    /// A file system's name; empty and `none` are a bind mount.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A program that the runtime runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hook {
    /// When: `createRuntime`, `poststop`, … of the runtime specification.
    pub hook_name: String,
    /// The program.
    pub path: String,
    /// Its arguments, the zeroth first.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// How many seconds it may take.
    pub timeout: Option<i64>,
}

/// A class of cache and memory bandwidth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IntelRdt {
    /// The class.
    #[serde(rename = "closID")]
    pub clos_id: String,
    /// The schema of the third cache.
    #[serde(rename = "l3CacheSchema")]
    pub l3_cache_schema: String,
    /// The schema of memory bandwidth.
    pub mem_bw_schema: String,
    /// Lines of the file `schemata`.
    pub schemata: Option<Vec<String>>,
    /// Whether there is to be a group for monitoring.
    pub enable_monitoring: bool,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetDevice {
    /// Its name on the node.
    pub host_interface_name: String,
    /// Its name in the container.
    pub name: String,
}

/// The hooks of the runtime specification. `prestart` is that of its first version, which vendors
/// still use.
pub(crate) const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

impl File {
    /// Reads and checks a file's bytes.
    pub(crate) fn parse(bytes: &[u8], json: bool) -> Result<File, String> {
        let node: Node = if json {
            serde_json::from_slice(bytes).map_err(|e| e.to_string())?
        } else {
            yaml::read(std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?)?
        };
        let file: File = node.value_as().map_err(|e| e.to_string())?;
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        version::check(self)?;
        name::kind_of(&self.kind).map_err(|e| format!("kind {:?}: {e}", self.kind))?;
        self.edits.check().map_err(|e| format!("containerEdits: {e}"))?;
        if self.devices.is_empty() {
            return Err("it describes no device".into());
        }
        let mut names = BTreeSet::new();
        for Device { name, edits, .. } in &self.devices {
            let at = |e: &str| format!("device {name:?}: {e}");
            name::check_device(name).map_err(at)?;
            if !names.insert(name) {
                return Err(at("it is described twice"));
            }
            if *edits == Edits::default() {
                return Err(at("it has no containerEdits"));
            }
            edits.check().map_err(|e| at(&e))?;
        }
        Ok(())
    }
}

impl Edits {
    /// Adds what another says after this.
    pub(crate) fn append(&mut self, other: &Edits) {
        self.env.extend_from_slice(&other.env);
        self.device_nodes.extend_from_slice(&other.device_nodes);
        self.mounts.extend_from_slice(&other.mounts);
        self.hooks.extend_from_slice(&other.hooks);
        if other.intel_rdt.is_some() {
            self.intel_rdt.clone_from(&other.intel_rdt);
        }
        self.additional_gids.extend_from_slice(&other.additional_gids);
        self.net_devices.extend_from_slice(&other.net_devices);
    }

    fn check(&self) -> Result<(), String> {
        check_env(&self.env)?;
        for node in &self.device_nodes {
            let at = |e: &str| Err(format!("device node {:?}: {e}", node.path));
            absolute("a device node's path", &node.path)?;
            if !node.host_path.is_empty() {
                absolute("a device node's hostPath", &node.host_path)?;
            }
            if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
                return at(&format!("unknown type {:?}", node.kind));
            }
            if node.permissions != "none" && !node.permissions.chars().all(|c| "rwm".contains(c)) {
                return at(&format!("unknown permissions {:?}", node.permissions));
            }
            if node.major < 0 || node.minor < 0 {
                return at("a number below zero");
            }
        }
        for mount in &self.mounts {
            absolute("a mount's containerPath", &mount.container_path)?;
            if mount.host_path.is_empty() {
                return Err(format!("mount {:?}: hostPath is empty", mount.container_path));
            }
        }
        for hook in &self.hooks {
            let Hook { hook_name, path, env, timeout, .. } = hook;
            if !HOOKS.contains(&hook_name.as_str()) {
                return Err(format!("unknown hook {hook_name:?}"));
            }
            absolute("a hook's path", path)?;
            check_env(env).map_err(|e| format!("hook {path:?}: {e}"))?;
            if timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(format!("hook {path:?}: the timeout must be above zero"));
            }
        }
        if let Some(IntelRdt { clos_id, .. }) = &self.intel_rdt {
            // It is a folder's name; `/` is the class of everything.
            let name = clos_id.len() < 4096
                && ![".", ".."].contains(&clos_id.as_str())
                && !clos_id.contains(['/', '\n']);
            if !name && clos_id != "/" {
                return Err(format!("intelRdt: {clos_id:?} is no class"));
            }
        }
        self.check_net_devices()
    }

    fn check_net_devices(&self) -> Result<(), String> {
        let (mut outside, mut inside) = (BTreeSet::new(), BTreeSet::new());
        for NetDevice { host_interface_name: host, name } in &self.net_devices {
            if host.is_empty() || name.is_empty() {
                return Err("netDevices: a name is empty".into());
            }
            if !outside.insert(host) || !inside.insert(name) {
                return Err(format!("netDevices: {host:?} or {name:?} comes twice"));
            }
        }
        Ok(())
    }
}

fn absolute(what: &str, path: &str) -> Result<(), String> {
    if path.starts_with('/') { Ok(()) } else { Err(format!("{what} {path:?} is not absolute")) }
}

fn check_env(env: &[String]) -> Result<(), String> {
    match env.iter().find(|line| line.find('=').is_none_or(|at| at == 0)) {
        Some(line) => Err(format!("{line:?} is no variable of an environment")),
        None => Ok(()),
    }
}
