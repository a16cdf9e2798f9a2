//! The records of pods and containers: what a restart needs to know, one file each.
//!
//! ```text
//! <root>/pods/<id>/record.json         <root>/containers/<id>/record.json
//!                  first.json                             first.json
//! ```
//! A record is written durably (fsync of file and folder) once, before the first side effect that
//! outlives a reboot; later steps replace it by rename alone, which a SIGKILL cannot undo. Requests
//! stand in it byte for byte as they came (protobuf in base64), so that nothing of them is lost.
//!
//! `first.json` is another name of the record as it was first: it holds what the client asked for,
//! and no later write can damage it. It serves only where the record cannot be read: in the same boot
//! for what is shown ([`Damaged`]), after another in its place. A power loss can spoil a later step (on
//! XFS a file that took another's place without an fsync may be empty), and what ran is over anyway.
//! A removal takes it away before anything else, and the record last:
//!
//! | record | first | the folder is                                              |
//! |--------|-------|------------------------------------------------------------|
//! | there  | any   | a pod's or container's                                     |
//! | –      | there | one whose record has been lost: unreadable                 |
//! | –      | –     | what a removal, or a creation before its record, has left  |

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use api_cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use failpoint::step;
use prost::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

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
    /// An update has been put on record and may not have come into the cgroup. Records of releases
    /// that do not say it may be of such ones.
    #[serde(default = "yes")]
    pub(crate) limiting: bool,
}

fn yes() -> bool {
    true
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
            limiting: false,
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
    /// Its record cannot be read. Never on disk.
    #[serde(skip)]
    Unknown,
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
const FIRST: &str = "first.json";
const NEW: &str = "record.new";

/// Hexadecimal digits of an id.
const DIGITS: usize = 64;
/// Threads that read records at a start: most of the time is the disk's.
const READERS: usize = 8;
/// The longest record, in bytes: a request has at most 16 MiB.
const LONGEST: u64 = 64 << 20;

/// Whether a name is one that criod gives to a pod or container.
pub(crate) fn is_id(name: &str) -> bool {
    name.len() == DIGITS && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Writes a record into its folder; `durable`, which also makes the folder, before anything that
/// outlives a reboot.
pub(crate) fn save<T: Serialize>(dir: &Path, record: &T, durable: bool) -> Result<()> {
    let path = dir.join(NAME);
    let temp = dir.join(NEW);
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
            keep_first(&path, &dir.join(FIRST));
            step!("record: sync folder", File::open(dir)?.sync_all())?;
            if let Some(parent) = dir.parent() {
                step!("record: sync folder above", File::open(parent)?.sync_all())?;
            }
        }
        Ok(())
    };
    write().map_err(Error::file("write", &path))
}

/// Gives the record that has just been written a second name, unless an earlier one has it. Nothing
/// depends on it but what is shown of a record that is damaged.
fn keep_first(record: &Path, first: &Path) {
    match step!("record: keep first", fs::hard_link(record, first)) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            tracing::debug!(path = %first.display(), "no second name for a record: {e}");
        }
        _ => {}
    }
}

/// Removes a record's folder with all that is in it: the record itself last, so that what a removal
/// leaves that is cut short is still known for what it is.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let gone = |removed: io::Result<()>| match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    // It does not go into what is mounted.
    let tree = |path: &Path| {
        let id = || dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed =
            |source| Error::from(Kind::Storage { id: id(), action: "remove its folder", source });
        storage::remove_tree(path).map_err(failed)
    };
    if fs::symlink_metadata(dir).is_ok_and(|m| !m.is_dir()) {
        return tree(dir);
    }
    step!("record: remove first", tree(&dir.join(FIRST)))?;
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::file("read", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::file("read", dir))?;
        if entry.file_name() != NAME {
            step!("record: remove what is beside it", tree(&entry.path()))?;
        }
    }
    step!("record: remove", tree(&dir.join(NAME)))?;
    gone(step!("record: remove folder", fs::remove_dir(dir))).map_err(Error::file("remove", dir))
}

/// Whether a folder has a record, whatever can be read of it.
pub(crate) fn exists(dir: &Path) -> bool {
    // What cannot be asked may be there.
    let there = |name| !matches!(fs::symlink_metadata(dir.join(name)), Err(e) if e.kind() == ErrorKind::NotFound);
    there(NAME) || there(FIRST)
}

/// A record that cannot be read, and what can be read of it.
#[derive(Debug)]
pub(crate) struct Damaged {
    /// The name of its folder.
    pub(crate) id: String,
    pub(crate) problem: Error,
    /// When it was made, at the latest: nanoseconds since the Unix epoch.
    pub(crate) created_at: i64,
    /// Single values of the record as it was first, and over these of the damaged one.
    values: Map<String, Value>,
    damaged: Map<String, Value>,
}

impl Damaged {
    /// A record with every value that can be read, in place of those of `base`.
    pub(crate) fn mend<T: Serialize + DeserializeOwned>(&self, base: T) -> T {
        let Ok(Value::Object(mut all)) = serde_json::to_value(&base) else { return base };
        let mut best = base;
        for (key, value) in self.values.iter().chain(&self.damaged) {
            let before = all.insert(key.clone(), value.clone());
            match T::deserialize(Value::Object(all.clone())) {
                Ok(mended) => best = mended,
                Err(_) => {
                    match before {
                        Some(before) => all.insert(key.clone(), before),
                        None => all.remove(key),
                    };
                }
            }
        }
        best
    }
}

/// Records that could be read, and what is known of those that could not.
pub(crate) type Loaded<T> = (Vec<T>, Vec<Damaged>);

/// Something with an id.
pub(crate) trait Record: Serialize + DeserializeOwned + Send {
    fn id(&self) -> &str;
    fn boot_id(&self) -> &str;
}

impl Record for PodRecord {
    fn id(&self) -> &str {
        &self.id
    }

    fn boot_id(&self) -> &str {
        &self.boot_id
    }
}

impl Record for ContainerRecord {
    fn id(&self) -> &str {
        &self.id
    }

    fn boot_id(&self) -> &str {
        &self.boot_id
    }
}

/// Reads every record below `root`, several at a time, in the order of ids.
///
/// # Errors
/// Where the folder itself cannot be read. A record that cannot is no error: it comes back as such.
pub(crate) fn load_all<T: Record>(root: &Path, boot_id: &str) -> Result<Loaded<T>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        Err(e) => return Err(Error::file("read", root)(e)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::file("read", root))?.file_name();
        match name.into_string() {
            Ok(name) if is_id(&name) => ids.push(name),
            other => tracing::debug!(root = %root.display(), ?other, "not a name of ours"),
        }
    }
    ids.sort_unstable();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for one in in_parallel(&ids, |id| load(root, id, boot_id)).into_iter().flatten() {
        match one {
            Ok(record) => good.push(record),
            Err(damaged) => bad.push(*damaged),
        }
    }
    Ok((good, bad))
}

/// Does something with all of them, by a few threads, and gives the answers in their order.
pub(crate) fn in_parallel<A: Sync, B: Send>(all: &[A], work: impl Fn(&A) -> B + Sync) -> Vec<B> {
    let part = all.len().div_ceil(READERS).max(1);
    std::thread::scope(|scope| {
        let begin = |part| {
            let work = &work;
            scope.spawn(move || Iterator::collect::<Vec<B>>(<[A]>::iter(part).map(work)))
        };
        let threads: Vec<_> = all.chunks(part).map(begin).collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// One record; `None` for a folder without any.
fn load<T: Record>(root: &Path, id: &str, boot_id: &str) -> Option<Result<T, Box<Damaged>>> {
    let dir = root.join(id);
    let path = dir.join(NAME);
    // Of a write that was cut short: nobody writes yet.
    let _ = step!("record: remove one cut short", fs::remove_file(dir.join(NEW)));
    let bytes = match read(&path) {
        Ok(bytes) => bytes,
        // It never had one written whole, so that nothing happened in it, or it is all but removed.
        Err(e) if e.kind() == ErrorKind::NotFound && !exists(&dir) => {
            let _ = step!("record: remove empty folder", fs::remove_dir(&dir));
            return None;
        }
        Err(e) => return Some(Err(damaged(&dir, id, Error::file("read", path)(e), &[]))),
    };
    let problem = match serde_json::from_slice::<T>(&bytes) {
        Ok(record) if record.id() == id => return Some(Ok(record)),
        Ok(record) => {
            // None of it is this one's.
            let problem = format!("it is that of {}", record.id());
            return Some(Err(damaged(&dir, id, Kind::Record { path, problem }.into(), &[])));
        }
        Err(e) => e.to_string(),
    };
    let first = read(&dir.join(FIRST)).ok().and_then(|b| serde_json::from_slice::<T>(&b).ok());
    if let Some(first) = first.filter(|r| r.id() == id && r.boot_id() != boot_id) {
        tracing::warn!(id, problem, "spoilt before the boot, so its first record is taken");
        return Some(Ok(first));
    }
    Some(Err(damaged(&dir, id, Kind::Record { path, problem }.into(), &bytes)))
}

/// A file's bytes; what is no file, or longer than any record, is an error.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is not a file"));
    }
    if meta.len() > LONGEST {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "it is too long"));
    }
    fs::read(path)
}

fn damaged(dir: &Path, id: &str, problem: Error, bytes: &[u8]) -> Box<Damaged> {
    let object = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or_default();
    let first = dir.join(FIRST);
    let time = |path: &Path| {
        let since = fs::symlink_metadata(path).ok()?.modified().ok()?;
        i64::try_from(since.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
    };
    let times = [time(&first), time(&dir.join(NAME)), time(dir)];
    let mut all = [read(&first).map(|b| object(&b)).unwrap_or_default(), object(bytes)];
    for values in &mut all {
        // Where it stands is what nobody knows.
        let _: Option<Value> = Map::remove(values, "state");
        values.remove("id");
    }
    let [values, damaged] = all;
    let created_at = times.into_iter().flatten().min().unwrap_or_default();
    Box::new(Damaged { id: id.to_owned(), problem, created_at, values, damaged })
}

#[cfg(test)]
mod tests;
