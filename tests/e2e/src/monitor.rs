//! A keeper, and monitors with real containers, without criod.
#![allow(clippy::unwrap_used, reason = "what a test cannot set up is a failure of that test")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use api_monitor::monitor::Config;
use api_monitor::service::MonitorClient;
use nix::poll::{PollFd, PollFlags, poll};
use protobuf::Message;
use sys::seqpacket::Conn;

use crate::{eventually, program};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A keeper in a folder of its own. Ends with all its containers when dropped.
pub struct Keeper {
    /// Holds everything.
    pub dir: tempfile::TempDir,
    child: Child,
}

/// Folder of a container's cgroup on a hierarchy of version 1, or on the only one of version 2.
pub fn cgroup_dir(controller: &str, id: &str) -> PathBuf {
    let one = Path::new("/sys/fs/cgroup").join(controller);
    let base = if one.exists() { one } else { "/sys/fs/cgroup".into() };
    base.join(format!("criod-{id}"))
}

/// Processes of a container's cgroup that live.
pub fn members(id: &str) -> Vec<i32> {
    let path = cgroup_dir("pids", id).join("cgroup.procs");
    let text = fs::read_to_string(path).unwrap_or_default();
    let alive = |p: &i32| sys::proc::stat(*p).is_some_and(|s| s.state != b'Z');
    text.lines().filter_map(|l| l.parse().ok()).filter(alive).collect()
}

impl Default for Keeper {
    fn default() -> Self {
        Keeper::on("/run")
    }
}

fn spawn_keeper(dir: &Path) -> Child {
    let child = Command::new(program("criod-keeper"))
        .arg("--socket")
        .arg(dir.join("keeper.sock"))
        .spawn()
        .unwrap();
    eventually("the keeper listens", || {
        let conn = Conn::connect(&dir.join("keeper.sock"), Duration::from_secs(2)).ok()?;
        conn.call(&["PING"], &[]).ok()
    });
    child
}

impl Keeper {
    /// One with everything below a folder of this one.
    pub fn on(folder: &str) -> Keeper {
        let dir = tempfile::Builder::new().prefix("criod-e2e-").tempdir_in(folder).unwrap();
        let child = spawn_keeper(dir.path());
        Keeper { dir, child }
    }

    /// A connection to it.
    pub fn connect(&self) -> Conn {
        Conn::connect(&self.dir.path().join("keeper.sock"), Duration::from_secs(2)).unwrap()
    }

    /// SIGKILL, and a new one.
    pub fn replace(&mut self) {
        self.kill();
        self.child = spawn_keeper(self.dir.path());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A new one in place of one that was killed.
    pub fn restart(&mut self) {
        self.child = spawn_keeper(self.dir.path());
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A container and its monitor. Both are ended when dropped.
pub struct Container<'a> {
    keeper: &'a Keeper,
    /// Its id.
    pub id: String,
    /// The monitor's folder.
    pub dir: PathBuf,
    /// The log file.
    pub log: PathBuf,
    /// Pid of the monitor that was forked last.
    pub monitor: i32,
    pidfd: Option<OwnedFd>,
}

/// A container without its keeper, while that is replaced.
#[derive(Debug)]
pub struct Detached {
    id: String,
    dir: PathBuf,
    log: PathBuf,
    monitor: i32,
    pidfd: Option<OwnedFd>,
}

impl Detached {
    /// The container again.
    pub fn attach<'a>(&mut self, keeper: &'a Keeper) -> Container<'a> {
        Container {
            keeper,
            id: self.id.clone(),
            dir: self.dir.clone(),
            log: self.log.clone(),
            monitor: self.monitor,
            pidfd: self.pidfd.take(),
        }
    }
}

/// What may differ from one test to another.
#[derive(Debug, Clone)]
pub struct Options {
    /// The runtime's binary.
    pub runtime: String,
    /// Has a terminal.
    pub terminal: bool,
    /// Shares the host's pid namespace.
    pub host_pid: bool,
    /// Memory limit in bytes.
    pub memory: Option<i64>,
}

impl Default for Options {
    fn default() -> Self {
        let runtime = "/usr/sbin/runc".into();
        Options { runtime, terminal: false, host_pid: false, memory: None }
    }
}

impl<'a> Container<'a> {
    /// Lays a bundle out that runs `script` with busybox, and forks a monitor for it.
    pub fn new(keeper: &'a Keeper, script: &str, options: &Options) -> Container<'a> {
        Container::with(keeper, script, options, |_| {})
    }

    /// The same with another configuration of the monitor.
    pub fn with(
        keeper: &'a Keeper,
        script: &str,
        options: &Options,
        change: impl FnOnce(&mut Config),
    ) -> Container<'a> {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("e2e-{}-{n}", std::process::id());
        let dir = keeper.dir.path().join(&id);
        let bundle = dir.join("bundle");
        for sub in ["bin", "proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(bundle.join("rootfs").join(sub)).unwrap();
        }
        fs::copy("/bin/busybox", bundle.join("rootfs/bin/busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", bundle.join("rootfs/bin/sh")).unwrap();
        let mut namespaces = vec!["mount", "ipc", "uts", "network"];
        if !options.host_pid {
            namespaces.push("pid");
        }
        let namespaces: Vec<_> =
            namespaces.iter().map(|t| serde_json::json!({ "type": t })).collect();
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": options.terminal, "user": { "uid": 0, "gid": 0 },
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "TERM=xterm"], "cwd": "/",
                "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
            },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
            ],
            "linux": {
                "namespaces": namespaces, "cgroupsPath": format!("/criod-{id}"),
                "resources": { "memory": options.memory.map(|m| serde_json::json!({ "limit": m, "swap": m })) },
            },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let log = dir.join("0.log");
        let mut config = Config {
            id: id.clone(),
            bundle: bundle.to_str().unwrap().into(),
            runtime: options.runtime.clone(),
            runtime_args: vec!["--root".into(), dir.join("runtime").to_str().unwrap().into()],
            log_path: log.to_str().unwrap().into(),
            terminal: options.terminal,
            keeper: keeper.dir.path().join("keeper.sock").to_str().unwrap().into(),
            cgroups: ["memory", "pids", "freezer"]
                .map(|c| cgroup_dir(c, &id).to_str().unwrap().to_owned())
                .to_vec(),
            shared_pid: options.host_pid,
            direct_signal: true,
            env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
            ..Config::new()
        };
        change(&mut config);
        let log = config.log_path.clone().into();
        fs::write(dir.join("config"), config.write_to_bytes().unwrap()).unwrap();
        let mut made = Container { keeper, id, dir, log, monitor: 0, pidfd: None };
        made.fork();
        made
    }

    /// Lets go of the keeper.
    pub fn detach(mut self) -> Detached {
        let pidfd = self.pidfd.take();
        let made = Detached {
            id: std::mem::take(&mut self.id),
            dir: self.dir.clone(),
            log: self.log.clone(),
            monitor: self.monitor,
            pidfd,
        };
        std::mem::forget(self);
        made
    }

    /// Has the keeper fork a monitor.
    pub fn fork(&mut self) {
        let sock = self.dir.join("monitor.sock");
        let _ = fs::remove_file(&sock);
        let listener = UnixListener::bind(sock).unwrap();
        let stderr =
            fs::OpenOptions::new().create(true).append(true).open(self.dir.join("stderr")).unwrap();
        let program = program("criod-monitor");
        let fields =
            ["FORK", &self.id, program.to_str().unwrap(), "--dir", self.dir.to_str().unwrap()];
        let mut answer =
            self.keeper.connect().call(&fields, &[listener.as_fd(), stderr.as_fd()]).unwrap();
        self.monitor = answer.fields[0].parse().unwrap();
        self.pidfd = answer.fds.pop();
    }

    /// SIGKILL to the monitor, and waits for its end.
    pub fn kill_monitor(&self) {
        let pidfd = self.pidfd.as_ref().unwrap();
        sys::pidfd::send_signal(pidfd.as_fd(), 9).unwrap();
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, 10_000u16).unwrap(), 1, "the monitor lives on");
    }

    /// Has the monitor ended?
    pub fn monitor_ended(&self) -> bool {
        let pidfd = self.pidfd.as_ref().unwrap();
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, 0u16).unwrap() == 1
    }

    /// Calls the monitor.
    pub async fn client(&self) -> MonitorClient {
        let address = format!("unix://{}", self.dir.join("monitor.sock").display());
        MonitorClient::new(ttrpc::r#async::Client::connect(&address).await.unwrap())
    }

    /// The texts in the log, by stream.
    pub fn texts(&self, stream: &str) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        // Not `lines`, which would take the carriage return of a terminal for its own.
        log.split('\n')
            .filter_map(|l| {
                let mut parts = l.splitn(4, ' ');
                let (_, of, _, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
                (of == stream).then(|| text.to_owned())
            })
            .collect()
    }

    /// Private and proportional memory of the monitor in kB.
    pub fn memory(&self) -> (u64, u64) {
        let of = |key| self.rollup(key);
        (of("Private_Clean:") + of("Private_Dirty:"), of("Pss:"))
    }

    /// What the monitor has written to, in kB: that does not depend on who else runs the program.
    pub fn anonymous(&self) -> u64 {
        self.rollup("Anonymous:")
    }

    fn rollup(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.monitor)).unwrap();
        let line = text.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
            let state = fs::read(self.dir.join("state")).unwrap_or_default();
            let state = api_monitor::monitor::StateResponse::parse_from_bytes(&state);
            eprintln!("monitor of {}: {state:?}\n{said}", self.id);
        }
        if let Some(pidfd) = &self.pidfd {
            let _ = sys::pidfd::send_signal(pidfd.as_fd(), 9);
        }
        // A monitor that the test has lost sight of, and runtimes that hang.
        // Only names that nobody else on this machine can have on a command line.
        let dir = self.keeper.dir.path().join(&self.id);
        if self.id.starts_with("e2e-") && dir.is_dir() {
            for pid in sys::proc::with_argument(dir.to_str().unwrap_or_default()) {
                sys::proc::signal(pid, nix::sys::signal::Signal::SIGKILL);
            }
            for pid in sys::proc::with_argument(&self.id) {
                sys::proc::kill_tree(pid);
            }
        }
        let _ = Command::new("/usr/sbin/runc")
            .arg("--root")
            .arg(self.dir.join("runtime"))
            .args(["delete", "--force", &self.id])
            .output();
        // Another runtime's container is not known to that one.
        if self.id.starts_with("e2e-") {
            for _ in 0..200 {
                for pid in members(&self.id) {
                    sys::proc::signal(pid, nix::sys::signal::Signal::SIGKILL);
                }
                let left = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
                let left = left.map(|d| d.path().join(format!("criod-{}", self.id)));
                if left.filter(|d| fs::remove_dir(d).is_err() && d.exists()).count() == 0 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
