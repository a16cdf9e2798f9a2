//! What a criod may have left behind, and how a test takes everything away whatever happened.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Criod, Process};

/// Processes that live and whose command line has `text` in it: pid and command line.
pub fn processes(text: &str) -> Vec<(i32, String)> {
    let own = std::process::id().cast_signed();
    let alive = pids().into_iter().filter(|pid| *pid != own && lives(*pid));
    alive
        .filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(text).then_some((pid, line))
        })
        .collect()
}

/// Processes that live in a cgroup whose name has `text` in it.
pub fn cgroup_members(text: &str) -> Vec<(i32, String)> {
    let alive = pids().into_iter().filter(|pid| lives(*pid));
    alive
        .filter_map(|pid| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            groups.contains(text).then(|| (pid, name.trim().to_owned()))
        })
        .collect()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

fn lives(pid: i32) -> bool {
    sys::proc::stat(pid).is_some_and(|s| s.state != b'Z')
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Folders of the cgroup of this name on all hierarchies.
fn cgroups(tag: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let mut bases: Vec<PathBuf> = names(top).iter().map(|n| top.join(n)).collect();
    bases.push(top.to_owned());
    bases.into_iter().map(|b| b.join(tag)).filter(|p| p.is_dir()).collect()
}

/// All folders below `dir`, the deepest first.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for name in names(dir) {
        let path = dir.join(name);
        if path.is_dir() {
            all.extend(below(&path));
            all.push(path);
        }
    }
    all
}

/// Streams that criod keeps ready for connections to come.
const IDLE_STREAMS: usize = 2;

impl Criod {
    /// Mount points below the folder, but a root of the test's own.
    fn mounts(&self) -> Vec<String> {
        let dir = self.dir.to_string_lossy().into_owned();
        // A test may have a mount namespace for its thread alone.
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(str::to_owned);
        let own = self.options.small_root.is_some() || self.options.own_root;
        let own = own.then(|| format!("{dir}/root"));
        points.filter(|p| p.starts_with(&dir) && Some(p) != own.as_ref()).collect()
    }

    /// What is there although no pod is.
    fn left(&self) -> Vec<String> {
        let mut left = self.mounts();
        for name in ["run/ns", "run/pods", "run/containers", "root/pods", "root/containers"] {
            left.extend(names(&self.dir.join(name)).iter().map(|n| format!("{name}/{n}")));
        }
        for name in ["root/cni/results", "run/runtime", "run/crun"] {
            left.extend(names(&self.dir.join(name)).iter().map(|n| format!("{name}/{n}")));
        }
        let leases = self.dir.join("leases/e2e");
        let lease = |n: &&String| n.parse::<std::net::IpAddr>().is_ok();
        left.extend(names(&leases).iter().filter(lease).map(|n| format!("lease {n}")));
        let layers = names(&self.dir.join("root/layers/overlay"));
        left.extend(layers.iter().filter(|n| n.starts_with("tmp")).map(|n| format!("layers/{n}")));
        for group in cgroups(&self.tag) {
            let of_ours = |p: &PathBuf| p.to_string_lossy().contains("/crio-");
            left.extend(below(&group).into_iter().filter(of_ours).map(|p| p.display().to_string()));
        }
        let dir = self.dir.to_string_lossy().into_owned();
        let own = self.process.as_ref().map(Process::pid);
        let keeper = self.keeper_pid();
        let expected = |(pid, line): &(i32, String)| {
            Some(*pid) == own || Some(*pid) == keeper || line.contains("docker-registry")
        };
        let found = processes(&dir);
        let is_stream = |(_, line): &&(i32, String)| line.contains("/criod-stream");
        for found in found.iter().filter(|p| !expected(p) && !is_stream(p)) {
            left.push(format!("process {} {}", found.0, found.1));
        }
        // Those that are kept ready serve nobody.
        let streams: Vec<_> = found.iter().filter(is_stream).collect();
        if streams.len() > IDLE_STREAMS {
            left.push(format!("streams {streams:?}"));
        }
        for found in cgroup_members(&self.tag) {
            left.push(format!("process {} {} in a cgroup of ours", found.0, found.1));
        }
        let links = self.net.output("ip", &["-o", "link"]).unwrap_or_default();
        left.extend(links.lines().filter(|l| l.contains("veth")).map(str::to_owned));
        let rules = self.net.output("nft", &["list", "tables"]).unwrap_or_default();
        left.extend(rules.lines().filter(|l| l.ends_with(" criod")).map(str::to_owned));
        if let Some(held) = self.held() {
            left.extend(held.into_iter().map(|id| format!("descriptors of {id} at the keeper")));
        }
        left
    }

    /// Ids of containers that the keeper holds descriptors for.
    pub fn held(&self) -> Option<Vec<String>> {
        let mut all: Vec<String> = Vec::new();
        loop {
            let after = all.last().cloned().unwrap_or_default();
            let page = self.keeper().call(&["LIST", &after], &[]).ok()?.fields;
            if page.is_empty() {
                all.retain(|id| id != "criod" && !id.starts_with("stream-"));
                return Some(all);
            }
            all.extend(page);
        }
    }

    /// Removes every pod that criod lists; panics where something is left in the end.
    pub fn finish(mut self) {
        if self.process.is_none() {
            self.launch();
        }
        self.ready();
        for pod in self.pods() {
            self.stop_pod(&pod.id).unwrap();
            self.remove_pod(&pod.id).unwrap();
        }
        self.clean();
    }

    /// Panics if something is left although no pod is.
    pub fn clean(&self) {
        assert_eq!(self.containers(), Vec::new());
        assert_eq!(self.pods(), Vec::new());
        // What criod takes away in the background may take its time.
        let mut left = Vec::new();
        for _ in 0..150 {
            left = self.left();
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("left behind: {left:#?}");
    }

    /// What a loss of power does: every process is gone, and so is what lies below runroot.
    pub fn power_off(&mut self) {
        self.end_processes();
        self.process = None;
        self.unmount();
        self.remove_cgroups();
        let run = self.dir.join("run");
        fs::remove_dir_all(&run).unwrap();
        fs::create_dir(&run).unwrap();
    }

    /// The same, and what is recorded is of another boot.
    pub fn reboot(&mut self) {
        self.power_off();
        // What is recorded was of another boot.
        for kind in ["root/pods", "root/containers"] {
            for id in names(&self.dir.join(kind)) {
                let path = self.dir.join(kind).join(id).join("record.json");
                let text = fs::read_to_string(&path).unwrap();
                let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
                record["boot_id"] = "00000000-0000-4000-8000-000000000000".into();
                fs::write(&path, record.to_string()).unwrap();
            }
        }
    }

    fn end_processes(&mut self) {
        let term = |pid: i32| {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        };
        if let Some(process) = &mut self.process {
            process.kill9();
        }
        if let Some(pid) = self.keeper_pid() {
            term(pid);
        }
        let dir = self.dir.to_string_lossy().into_owned();
        for _ in 0..100 {
            let mut found = processes(&dir);
            found.retain(|(_, line)| !line.contains("docker-registry"));
            found.extend(cgroup_members(&self.tag));
            if found.is_empty() {
                break;
            }
            found.iter().for_each(|(pid, _)| term(*pid));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn unmount(&self) {
        // Some may lie on others.
        for _ in 0..3 {
            for point in self.mounts().iter().rev() {
                let _ = umount2(point.as_str(), MntFlags::MNT_DETACH);
            }
        }
    }

    fn remove_cgroups(&self) {
        for group in cgroups(&self.tag) {
            for dir in below(&group) {
                let _ = fs::remove_dir(dir);
            }
            let _ = fs::remove_dir(group);
        }
    }
}

impl Drop for Criod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what criod said last:\n{}", self.said());
            if std::env::var_os("CRIOD_E2E_KEEP").is_some() {
                let kept = format!("{}.log", self.folder.path().display());
                let _ = fs::copy(self.dir.join("criod.log"), kept);
            }
        }
        self.end_processes();
        let _ = test_images::registry::stop(&self.dir.join("registry"));
        self.unmount();
        if self.options.small_root.is_some() {
            let _ = umount2(&self.dir.join("root"), MntFlags::MNT_DETACH);
        }
        self.remove_cgroups();
    }
}
