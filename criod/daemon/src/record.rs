//! The records of pods and containers: what a restart needs to know, one file each.
//!
//! ```text
//! <root>/pods/<id>/record.json         <root>/containers/<id>/record.json
//! ```
//! A record is written durably (fsync of file and folder) once, before the first side effect that
//! outlives a reboot; later steps replace it by rename alone, which a SIGKILL cannot undo. Requests
//! stand in it byte for byte as they came (protobuf in base64), so that nothing of them is lost.

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use api_cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use failpoint::step;
use prost::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Kind, Result};

/// A protobuf message inside a record.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wire<M>(pub(crate) M);

impl<M: Message> Serialize for Wire<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0.encode_to_vec()))
    }
}

impl<'de, M: Message + Default> Deserialize<'de> for Wire<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice()).map(Wire).map_err(D::Error::custom)
    }
}

/// Where a pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PodState {
    /// RunPodSandbox is under way, or was when criod died: not listed, and undone at a restart.
    Creating,
    Ready,
    /// Stopped, or no longer whole.
    NotReady,
    /// What is left of it is being taken away; not listed.
    Removing,
}

/// A pod sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) id: String,
    pub(crate) config: Wire<PodSandboxConfig>,
    /// The handler as it was asked for; empty is the default one.
    pub(crate) handler: String,
    pub(crate) state: PodState,
    /// Nanoseconds since the Unix epoch.
    pub(crate) created_at: i64,
    pub(crate) boot_id: String,
    #[serde(default)]
    pub(crate) ips: Vec<IpAddr>,
    /// CNI ADD was begun, and DEL has not been done.
    #[serde(default)]
    pub(crate) attached: bool,
    /// Host ports that criod's own rules serve, as (protocol, host ip, host port, container port).
    #[serde(default)]
    pub(crate) host_ports: Vec<HostPort>,
    /// Pid of the process that holds the pod's pid namespace; 0: there is none.
    #[serde(default)]
    pub(crate) infra_pid: i32,
    /// A stop has been asked for and is to be finished.
    #[serde(default)]
    pub(crate) stopping: bool,
    /// The SELinux labels, where the node has SELinux.
    #[serde(default)]
    pub(crate) selinux: Option<crate::confine::PodLabels>,
    /// The highest cgroup that was made for this pod's, or for an earlier one's of the same name;
    /// empty: it was there.
    #[serde(default)]
    pub(crate) cgroup_top: String,
    /// The pod's cgroup was made for this pod, so its limits are criod's.
    #[serde(default)]
    pub(crate) cgroup_own: bool,
}

impl PodRecord {
    /// A pod that is being created; nothing is known of it but what was asked for.
    pub(crate) fn new(
        id: String,
        config: PodSandboxConfig,
        created_at: i64,
        boot_id: &str,
    ) -> Self {
        Self {
            id,
            config: Wire(config),
            handler: String::new(),
            state: PodState::Creating,
            created_at,
            boot_id: boot_id.to_owned(),
            ips: Vec::new(),
            attached: false,
            host_ports: Vec::new(),
            infra_pid: 0,
            stopping: false,
            selinux: None,
            cgroup_top: String::new(),
            cgroup_own: false,
        }
    }
}

/// A host port that no CNI plugin serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub(crate) protocol: String,
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
    pub(crate) pod_ip: IpAddr,
    pub(crate) prefix: u8,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ContainerState {
    /// CreateContainer is under way, or was when criod died: not listed, and undone at a restart.
    Creating,
    Created,
    Running,
    Exited,
    /// What is left of it is being taken away; not listed.
    Removing,
}

/// A container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) pod: String,
    pub(crate) config: Wire<ContainerConfig>,
    pub(crate) state: ContainerState,
    pub(crate) created_at: i64,
    pub(crate) boot_id: String,
    pub(crate) image_id: String,
    pub(crate) image_ref: String,
    /// The image's layers, lowest first.
    pub(crate) layers: Vec<String>,
    pub(crate) log_path: PathBuf,
    pub(crate) cgroup: String,
    #[serde(default)]
    pub(crate) started_at: i64,
    #[serde(default)]
    pub(crate) finished_at: i64,
    #[serde(default)]
    pub(crate) exit_code: i32,
    #[serde(default)]
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) pid: i32,
    /// The signal that asks it to end.
    pub(crate) stop_signal: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    #[serde(default)]
    pub(crate) groups: Vec<u32>,
    /// It is the pod's own process and is not listed.
    #[serde(default)]
    pub(crate) infra: bool,
    /// Images whose files are mounted into it.
    #[serde(default)]
    pub(crate) volumes: Vec<ImageVolume>,
    /// An update is under way: these resources are to take the place of those in `config`.
    #[serde(default)]
    pub(crate) updating: Option<Wire<LinuxContainerResources>>,
}

/// An image that is a volume of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageVolume {
    /// The number of the request's mount.
    pub(crate) mount: usize,
    pub(crate) image_id: String,
    /// The image's layers, lowest first.
    pub(crate) layers: Vec<String>,
}

impl ContainerRecord {
    /// A container that is being created; nothing is known of it but what was asked for.
    pub(crate) fn new(
        id: String,
        pod: &str,
        config: ContainerConfig,
        created_at: i64,
        boot_id: &str,
    ) -> Self {
        Self {
            id,
            pod: pod.to_owned(),
            config: Wire(config),
            state: ContainerState::Creating,
            created_at,
            boot_id: boot_id.to_owned(),
            image_id: String::new(),
            image_ref: String::new(),
            layers: Vec::new(),
            log_path: PathBuf::new(),
            cgroup: String::new(),
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            pid: 0,
            stop_signal: 0,
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            infra: false,
            volumes: Vec::new(),
            updating: None,
        }
    }

    /// The layers of its own image and of its image volumes.
    pub(crate) fn all_layers(&self) -> Vec<storage::Digest> {
        let volumes = self.volumes.iter().flat_map(|v| &v.layers);
        self.layers.iter().chain(volumes).filter_map(|l| l.parse().ok()).collect()
    }
}

const NAME: &str = "record.json";

/// Writes a record into its folder; `durable`, which also makes the folder, before anything that
/// outlives a reboot.
pub(crate) fn save<T: Serialize>(dir: &Path, record: &T, durable: bool) -> Result<()> {
    let path = dir.join(NAME);
    let temp = dir.join("record.new");
    let bytes = serde_json::to_vec(record)
        .map_err(|e| Kind::Record { path: path.clone(), problem: e.to_string() })?;
    let write = || {
        if durable {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            step!("record: make folder", builder.create(dir))?;
        }
        let mut file = step!("record: make file", File::create(&temp))?;
        step!("record: write", file.write_all(&bytes))?;
        if durable {
            step!("record: sync", file.sync_data())?;
        }
        step!("record: rename", fs::rename(&temp, &path))?;
        if durable {
            step!("record: sync folder", File::open(dir)?.sync_all())?;
            if let Some(parent) = dir.parent() {
                step!("record: sync folder above", File::open(parent)?.sync_all())?;
            }
        }
        Ok(())
    };
    write().map_err(Error::file("write", &path))
}

/// Records that could be read, and the ids of those that could not, with the reason.
pub(crate) type Loaded<T> = (Vec<T>, Vec<(String, Error)>);

/// Reads every record below `root`. What cannot be read comes back as its id and the reason.
pub(crate) fn load_all<T: DeserializeOwned>(root: &Path) -> Result<Loaded<T>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((good, bad)),
        Err(e) => return Err(Error::file("read", root)(e)),
    };
    for entry in entries {
        let entry = entry.map_err(Error::file("read", root))?;
        let id = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path().join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            // A folder without a record never had one written whole: nothing happened in it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // Anything else in it is nobody's to delete.
                let new = entry.path().join("record.new");
                let _ = step!("record: remove one cut short", fs::remove_file(new));
                let _ = step!("record: remove empty folder", fs::remove_dir(entry.path()));
                continue;
            }
            Err(e) => {
                bad.push((id, Error::file("read", &path)(e)));
                continue;
            }
        };
        match serde_json::from_slice(&bytes) {
            Ok(record) => good.push(record),
            Err(e) => bad.push((id, Kind::Record { path, problem: e.to_string() }.into())),
        }
    }
    Ok((good, bad))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_a_bad_one_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = PodSandboxConfig { hostname: "h".into(), ..Default::default() };
        let mut record = PodRecord::new("a".into(), config, 5, "b");
        record.ips = vec!["10.0.0.1".parse().unwrap()];
        record.attached = true;
        save(&dir.path().join("a"), &record, true).unwrap();
        save(&dir.path().join("a"), &record, false).unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/record.json"), "{").unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        let (good, bad) = load_all::<PodRecord>(dir.path()).unwrap();
        assert_eq!(good.len(), 1);
        assert_eq!(good[0].config, record.config);
        assert_eq!(bad.len(), 1);
        assert_eq!(bad[0].0, "b");
        assert!(!dir.path().join("empty").exists());
    }
}
