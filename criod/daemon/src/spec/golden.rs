//! The specs of representative pods, byte for byte: what changes in them is seen in review.
//!
//! ```text
//! pods.rs: a request as the kubelet sends it ─▶ Request ─▶ SpecInput ─▶ oci::build ─▶ tests/golden/*.json
//! ```
//! To take over an intended change, run the tests with `GOLDEN=write` in the environment and look at
//! the difference. What a spec has of the machine is replaced ([`Place::steady`]): the temporary
//! folder, the node's name, its devices, and what its kernel lets criod set. A seccomp filter that
//! another file has already is there by that file's name.

mod pods;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api_cri::v1::{ContainerConfig, PodSandboxConfig};
use criod_config::{Config, RuntimeHandler};
use namespace::Pinned;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use oci::{Arch, CapSet, Host, SpecInput};
use registry::image::ContainerDefaults;
use serde_json::Value;
use tempfile::TempDir;

use super::{Labels, Request};
use crate::confine::Confine;
use crate::features::Features;
use crate::record::PodRecord;

/// The controllers of a node with version 1.
const V1: &str = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
    31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
    32 25 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
    33 25 0:29 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb\n\
    34 25 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
    35 25 0:31 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n";
const V1_OWN: &str =
    "7:pids:/\n6:hugetlb:/\n5:cpuset:/\n4:memory:/\n3:cpu,cpuacct:/\n2:devices:/\n";
/// A node with version 2.
const V2: &str =
    "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
const V2_OWN: &str = "0::/\n";

/// The id of every container here.
const ID: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

/// One pod of the list.
struct Case {
    /// The file's name, without its ending.
    name: &'static str,
    pod: PodSandboxConfig,
    container: ContainerConfig,
    image: ContainerDefaults,
    node: Config,
    handler: RuntimeHandler,
    v2: bool,
    /// The pid of another container's first process.
    target: Option<i32>,
    /// Where the images of its volumes are mounted.
    volumes: crate::volumes::Sources,
}

/// What of a node a spec is made from. One folder of it is a mount that passes mounts on.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { dir };
        for folder in
            ["pod/shm", "ns", "root/etc", "volumes/data", "volumes/shared", "volumes/config", "cdi"]
        {
            fs::create_dir_all(place.path(folder)).unwrap();
        }
        for file in ["pod/resolv.conf", "pod/hosts", "pod/hostname", "volumes/hosts", "volumes/log"]
        {
            fs::write(place.path(file), "").unwrap();
        }
        for (kind, file) in
            [("net", "network"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"), ("user", "user")]
        {
            // Its pin is named as namespace::Kind has it.
            let name = if file == "network" { "net" } else { file };
            symlink(format!("/proc/self/ns/{kind}"), place.path("ns").join(name)).unwrap();
        }
        fs::write(
            place.path("root/etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/:\n",
        )
        .unwrap();
        fs::write(place.path("root/etc/group"), "root:x:0:\nweb:x:1000:\nlogs:x:1500:web\n")
            .unwrap();
        fs::write(place.path("cdi/vendor.yaml"), pods::CDI).unwrap();
        mount(
            Some("golden"),
            &place.path("volumes/shared"),
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let none = None::<&str>;
        mount(none, &place.path("volumes/shared"), none, MsFlags::MS_SHARED, none).unwrap();
        place
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn input(&self, case: &Case) -> SpecInput {
        let mut pod = PodRecord::new("feed0000".repeat(8), case.pod.clone(), 0, "");
        pod.infra_pid = 1;
        let (mounts, own) = if case.v2 { (V2, V2_OWN) } else { (V1, V1_OWN) };
        let user = super::user(&case.container, &case.image, &self.path("root")).unwrap();
        let request = Request {
            id: ID,
            config: &case.container,
            pod: &pod,
            pod_dir: &self.path("pod"),
            pinned: &Pinned::existing(&self.path("ns")),
            pid_pin: &self.path("ns/pid"),
            image: &case.image,
            rootfs: &self.path("root"),
            node: &case.node,
            cdi: &cdi::Registry::new(vec![self.path("cdi")]),
            features: Arc::new(Features::ALL),
            handler: &case.handler,
            host: Host {
                arch: Arch::X86_64,
                kernel: (6, 12),
                grantable: CapSet::all(),
                x32: false,
            },
            hierarchy: &cgroup::Hierarchy::parse(mounts, own).unwrap(),
            able: super::resources::Able::all(case.v2),
            cgroup: &format!("/kubepods/pod1/crio-{ID}"),
            confine: &Confine::without_modules(&self.path("")),
            labels: &Labels::default(),
            target_pid: case.target,
            dir: &self.path("record"),
            run: &self.path("run"),
            infra: false,
            volumes: &case.volumes,
        };
        let mut input = request.build(&user).unwrap();
        // Every node has these two.
        let known = ["/dev/null", "/dev/full"];
        if case
            .pod
            .linux
            .as_ref()
            .is_some_and(|l| l.security_context.as_ref().is_some_and(|s| s.privileged))
        {
            input.devices.retain(|d| known.iter().any(|k| d.path == Path::new(k)));
        }
        let resources = case.container.linux.as_ref().and_then(|l| l.resources.as_ref());
        input.process.oom_score_adj = resources.map(|r| i32::try_from(r.oom_score_adj).unwrap());
        input
    }

    /// The text that stands for a spec on any machine.
    fn steady(&self, spec: &[u8]) -> String {
        let spec: Value = serde_json::from_slice(spec).unwrap();
        let node = nix::unistd::gethostname().unwrap().into_string().unwrap();
        format!("{}\n", lines(&spec, 0, 0))
            .replace(&*self.dir.path().to_string_lossy(), "/place")
            .replace(&format!("\"HOSTNAME={node}\""), "\"HOSTNAME=(the node's)\"")
    }
}

/// JSON with a line for whatever fits into one.
fn lines(value: &Value, indent: usize, before: usize) -> String {
    let flat = match value {
        Value::Array(list) => {
            let parts: Vec<_> = list.iter().map(|v| lines(v, 0, 0)).collect();
            format!("[{}]", parts.join(", "))
        }
        Value::Object(map) => {
            let parts: Vec<_> =
                map.iter().map(|(k, v)| format!("{k:?}: {}", lines(v, 0, 0))).collect();
            format!("{{{}}}", parts.join(", "))
        }
        other => other.to_string(),
    };
    if indent + before + flat.len() < 100 && !flat.contains('\n') {
        return flat;
    }
    let deeper = indent + 2;
    if let Value::Array(list) = value
        && list.iter().all(Value::is_string)
    {
        return filled(list, indent);
    }
    let (open, close, parts): (_, _, Vec<String>) = match value {
        Value::Array(list) => ('[', ']', list.iter().map(|v| lines(v, deeper, 0)).collect()),
        Value::Object(map) => {
            let field =
                |(k, v): (&String, &Value)| format!("{k:?}: {}", lines(v, deeper, k.len() + 4));
            ('{', '}', map.iter().map(field).collect())
        }
        _ => return flat,
    };
    let (at, end) = (" ".repeat(deeper), " ".repeat(indent));
    format!("{open}\n{at}{}\n{end}{close}", parts.join(&format!(",\n{at}")))
}

/// A list of texts, with as many on a line as fit.
fn filled(list: &[Value], indent: usize) -> String {
    let (at, end) = (" ".repeat(indent + 2), " ".repeat(indent));
    let mut text = String::from("[");
    let mut width = usize::MAX;
    for (n, word) in list.iter().map(Value::to_string).enumerate() {
        let comma = if n + 1 < list.len() { "," } else { "" };
        if width.saturating_add(word.len() + 2) > 100 {
            text.push_str(&format!("\n{at}{word}{comma}"));
            width = at.len() + word.len() + 1;
        } else {
            text.push_str(&format!(" {word}{comma}"));
            width += word.len() + 2;
        }
    }
    format!("{text}\n{end}]")
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing is mounted where making the place failed.
        let _ = umount2(&self.path("volumes/shared"), MntFlags::MNT_DETACH);
    }
}

#[test]
fn the_specs_of_representative_pods() {
    let place = Place::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let write = std::env::var_os("GOLDEN").is_some_and(|v| v == "write");
    let mut filters: BTreeMap<String, &str> = BTreeMap::new();
    let mut wrong = Vec::new();
    let cases = pods::all(&place);
    for case in &cases {
        let input = place.input(case);
        let spec = oci::build(&input).unwrap();
        assert!(
            oci::build(&place.input(case)).unwrap() == spec,
            "{} differs from itself",
            case.name
        );
        let mut value: Value = serde_json::from_slice(&spec).unwrap();
        if let Some(filter) = value["linux"].get_mut("seccomp") {
            match filters.get(&filter.to_string()) {
                Some(name) => *filter = format!("as in {name}.json").into(),
                None => {
                    filters.insert(filter.to_string(), case.name);
                }
            }
        }
        let got = place.steady(&serde_json::to_vec(&value).unwrap());
        let file = folder.join(format!("{}.json", case.name));
        if write {
            fs::write(&file, &got).unwrap();
        }
        let want = fs::read_to_string(&file).unwrap_or_default();
        if let Some((n, (got, want))) =
            got.lines().zip(want.lines()).enumerate().find(|(_, (got, want))| got != want)
        {
            wrong.push(format!("{}.json:{}: {got:?}, not {want:?}", case.name, n + 1));
        } else if got != want {
            wrong.push(format!("{}.json: longer or shorter", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing lies there that no case stands for.
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let mut names: Vec<_> = cases.iter().map(|c| format!("{}.json", c.name)).collect();
    names.sort();
    assert_eq!(files, names);
}
