//! A whole criod below one temporary folder, in a network namespace of its own.
//!
//! ```text
//! <folder>/root, run, criod.sock, logs/     what criod is told to use
//!          cni/, leases/, plugins/          a bridge with host-local; plugins of a test's own
//!          registry/                        docker-registry, its data shared by a test program
//!          criod, crio.conf                 the program, as a link, and its configuration, empty
//!          criod.log                        what criod says
//!
//! start ─▶ calls, kill, restart … ─▶ finish: all pods removed, nothing may be left
//!                                 └▶ drop:   whatever happened, all that was started is ended
//! ```
//! Cgroups of pods are below one that is named as the folder is, so that what is left in them, and
//! whose processes they are, can be told from those of others.

mod activated;
mod cri;
mod failpoints;
mod leaks;
mod logs;
mod net;
mod process;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sys::seqpacket::Conn;

pub use cri::{
    Answer, Cri, EXITED, NOT_READY, READY, RUNNING, UNKNOWN, block, container, image_volume,
};
pub use failpoints::{Hit, Point};
pub use leaks::{cgroup_members, processes};
pub use logs::{lines, numbers};
pub use net::Net;
pub use process::Process;

use crate::{eventually, program};

/// The image that every registry here has.
pub const BUSYBOX: &str = "docker.io/test/busybox:1";

/// What may differ from one test to another.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Images of the catalogue that the registry has beside busybox.
    pub images: Vec<&'static str>,
    /// More arguments of criod; `DIR` is the folder.
    pub args: Vec<&'static str>,
    /// Environment of criod beside the test's own; `DIR` is the folder.
    pub env: Vec<(&'static str, &'static str)>,
    /// With it the root is a tmpfs of this size in KiB.
    pub small_root: Option<u64>,
    /// The root is a mount of the test's own, which it takes away itself.
    pub own_root: bool,
    /// With it there is no network configuration.
    pub no_network: bool,
    /// With it portmap is in the chain.
    pub portmap: bool,
    /// With it criod is this program and not the one under test.
    pub criod: Option<PathBuf>,
    /// With it criod is the one that can be killed at each durable step.
    pub failpoints: bool,
    /// With it runc is the one that tests/setup/install builds, which has user namespaces.
    pub new_runc: bool,
}

/// Data of a registry, once for all tests of a program.
#[derive(Debug)]
struct Data {
    dir: tempfile::TempDir,
    pushed: Mutex<Vec<String>>,
}

fn data() -> Arc<Data> {
    static DATA: Mutex<Weak<Data>> = Mutex::new(Weak::new());
    let mut held = DATA.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(data) = held.upgrade() {
        return data;
    }
    let dir = tempfile::Builder::new().prefix("criod-e2e-data-").tempdir().unwrap();
    let data = Arc::new(Data { dir, pushed: Mutex::default() });
    *held = Arc::downgrade(&data);
    data
}

impl Data {
    fn push(&self, address: &str, storage: &Path, names: &[&str]) {
        let mut pushed = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<&str> =
            names.iter().copied().filter(|n| !pushed.iter().any(|p| p == n)).collect();
        if missing.is_empty() {
            return;
        }
        let catalog = test_images::catalog::build(&missing).unwrap();
        let target = test_images::push::Target {
            address: address.to_owned(),
            storage: Some(storage.to_owned()),
            user: None,
        };
        test_images::push::push(&catalog, &target).unwrap();
        pushed.extend(missing.iter().map(|n| (*n).to_owned()));
    }
}

/// The program that tests/setup/install builds.
pub fn new_runc() -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../setup/runc/path");
    let said = Command::new(script).output().unwrap();
    let path = String::from_utf8(said.stdout).unwrap().trim().to_owned();
    assert!(Path::new(&path).exists(), "no {path}: run make setup");
    path
}

/// A criod and all that is below its folder.
#[derive(Debug)]
pub struct Criod {
    // Dropped last, when nothing is in it any more.
    folder: tempfile::TempDir,
    /// Its folder.
    pub dir: PathBuf,
    /// The name of the cgroup that all its pods are below.
    pub tag: String,
    /// Its network namespace.
    pub net: Net,
    /// Its client.
    pub cri: Cri,
    /// Where its registry listens.
    pub registry: String,
    options: Options,
    process: Option<Process>,
    _data: Arc<Data>,
}

impl std::ops::Deref for Criod {
    type Target = Cri;
    fn deref(&self) -> &Cri {
        &self.cri
    }
}

impl Criod {
    /// Starts one with a registry, waits until it serves and pulls busybox.
    pub fn start(options: Options) -> Criod {
        let mut criod = Criod::prepare(options);
        criod.launch();
        criod.ready();
        criod.pull(BUSYBOX).unwrap();
        criod
    }

    /// Everything but criod itself.
    pub fn prepare(options: Options) -> Criod {
        let folder = tempfile::Builder::new().prefix("criod-e2e-").tempdir().unwrap();
        let dir = folder.path().to_owned();
        // The root of a pod with a user namespace of its own passes through it.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).unwrap();
        let tag = dir.file_name().unwrap().to_str().unwrap().to_owned();
        for name in ["root", "run", "logs", "cni", "plugins", "none", "registry", "failpoints"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        fs::write(dir.join("crio.conf"), "").unwrap();
        let name = if options.failpoints { "criod-failpoints" } else { "criod" };
        let criod = options.criod.clone().unwrap_or_else(|| program(name));
        symlink(criod, dir.join("criod")).unwrap();
        let data = data();
        symlink(data.dir.path(), dir.join("registry/data")).unwrap();
        let mut criod = Criod {
            cri: Cri::new(dir.join("criod.sock"), dir.join("logs"), tag.clone()),
            registry: String::new(),
            folder,
            dir,
            tag,
            net: Net::new(),
            options,
            process: None,
            _data: Arc::clone(&data),
        };
        if let Some(size) = criod.options.small_root {
            let options = format!("size={size}k");
            let root = criod.dir.join("root");
            let options = Some(options.as_str());
            mount(Some("small"), &root, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        }
        let mut names = vec!["test/busybox:1"];
        names.extend(&criod.options.images);
        let dir = criod.dir.join("registry");
        let running = criod.net.run(|| {
            let running = test_images::registry::serve(&dir, 0, false).unwrap();
            data.push(&running.address, &running.storage, &names);
            running
        });
        criod.registry = running.address;
        if !criod.options.no_network {
            criod.network(&bridge(&criod.dir, criod.options.portmap));
        }
        criod
    }

    /// Writes the network configuration.
    pub fn network(&self, text: &str) {
        let new = self.dir.join("new.conflist");
        fs::write(&new, text.replace("DIR", &self.dir.to_string_lossy())).unwrap();
        fs::rename(new, self.dir.join("cni/10-e2e.conflist")).unwrap();
    }

    /// Writes a program of the test's own, a plugin or a runtime; `DIR` is the folder.
    pub fn script(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = path.with_extension("new");
        fs::write(&new, text.replace("DIR", &self.dir.to_string_lossy())).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &path).unwrap();
        path
    }

    /// A criod with these folders, not started.
    pub fn command(&self) -> Command {
        let at = |name: &str| self.dir.join(name);
        let log = OpenOptions::new().create(true).append(true).open(at("criod.log")).unwrap();
        let mut command = Command::new(at("criod"));
        command.args(["--config-dir", "", "--cgroup-manager", "cgroupfs"]);
        command.args(["--default-runtime", "runc", "--log-level", "debug"]);
        for (flag, name) in [
            ("--config", "crio.conf"),
            ("--root", "root"),
            ("--runroot", "run"),
            ("--listen", "criod.sock"),
            ("--log-dir", "logs"),
            ("--cni-config-dir", "cni"),
            ("--registries-conf", "registry/registries.conf"),
            ("--registries-conf-dir", "none"),
        ] {
            command.arg(flag).arg(at(name));
        }
        command.arg("--cni-plugin-dir").arg(format!("{},/usr/lib/cni", at("plugins").display()));
        if self.options.new_runc {
            command.arg("--runtimes").arg(format!("runc:{}:", new_runc()));
        }
        let dir = self.dir.to_string_lossy();
        command.args(self.options.args.iter().map(|a| a.replace("DIR", &dir)));
        command.envs(self.options.env.iter().map(|(k, v)| (k, v.replace("DIR", &dir))));
        if self.options.failpoints {
            command.env("FAILPOINTS", at("failpoints"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.process_group(0);
        command
    }

    /// Starts criod; it does not serve yet when this returns.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let mut command = self.command();
        self.process = Some(Process::Child(self.net.run(|| command.spawn().unwrap())));
    }

    /// Waits until it serves.
    pub fn ready(&mut self) {
        for _ in 0..1000 {
            if self.dir.join("criod.sock").exists() && self.cri.version().is_ok() {
                return;
            }
            let ended = self.process.as_mut().and_then(Process::ended);
            assert!(ended.is_none(), "criod ended: {ended:?}\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("criod does not serve\n{}", self.said());
    }

    /// The end of what criod has logged.
    pub fn said(&self) -> String {
        let text = fs::read_to_string(self.dir.join("criod.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Criod's pid.
    pub fn pid(&self) -> i32 {
        self.process.as_ref().expect("criod runs").pid()
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.take().expect("criod runs").kill9();
    }

    /// SIGTERM, and its end, whoever started it.
    pub fn terminate(&mut self) {
        let mut process = self.process.take().expect("criod runs");
        process.signal(Signal::SIGTERM);
        process.wait();
    }

    /// Sends a signal that asks it to end, and waits for its end.
    pub fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut process = self.process.take().expect("criod runs");
        process.signal(signal);
        process.wait().expect("it was started here")
    }

    /// From the next start on criod is another program.
    pub fn becomes(&mut self, criod: PathBuf) {
        let (link, new) = (self.dir.join("criod"), self.dir.join("criod.new"));
        symlink(criod, &new).unwrap();
        fs::rename(new, link).unwrap();
    }

    /// SIGKILL, then a new one.
    pub fn restart(&mut self) {
        self.kill9();
        self.launch();
        self.ready();
    }

    fn keeper_socket(&self) -> PathBuf {
        self.dir.join("run/keeper.sock")
    }

    /// A connection to its keeper.
    pub fn keeper(&self) -> Conn {
        Conn::connect(&self.keeper_socket(), Duration::from_secs(2)).unwrap()
    }

    /// Pid of its keeper, if there is one.
    pub fn keeper_pid(&self) -> Option<i32> {
        let conn = Conn::connect(&self.keeper_socket(), Duration::from_secs(2)).ok()?;
        conn.call(&["PING"], &[]).ok()?.fields.get(1)?.parse().ok()
    }

    /// Kills the keeper and waits for the next one.
    pub fn replace_keeper(&self) -> i32 {
        let pid = self.keeper_pid().expect("a keeper");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("criod starts another keeper", || self.keeper_pid().filter(|new| *new != pid))
    }

    /// Pid of a container's monitor.
    pub fn monitor_pid(&self, id: &str) -> Option<i32> {
        let dir = self.dir.join("run/containers").join(id).to_string_lossy().into_owned();
        processes(&dir).into_iter().find(|(_, line)| line.contains("criod-monitor")).map(|p| p.0)
    }

    /// Kills a container's monitor and returns its pid.
    pub fn kill_monitor(&self, id: &str) -> i32 {
        let pid = self.monitor_pid(id).expect("a monitor");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        pid
    }
}

/// The configuration of a bridge whose leases lie in `dir`.
pub fn bridge(dir: &Path, portmap: bool) -> String {
    let mut plugins = vec![serde_json::json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "dataDir": dir.join("leases"),
            "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
        },
    })];
    if portmap {
        plugins
            .push(serde_json::json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    chain(&plugins)
}

/// A configuration of these plugins.
pub fn chain(plugins: &[serde_json::Value]) -> String {
    serde_json::json!({"cniVersion": "1.0.0", "name": "e2e", "plugins": plugins}).to_string()
}
