//! Monitors and the keeper as programs: which build each runs, and their upgrade in place.
//!
//! ```text
//! start of criod ─▶ keeper, then each monitor: runs another build than is installed?
//!                       │ yes                                          │ no
//!                       ▼ asked to become it (module `monitor`)        ▼ done
//!             agrees: same pid, new build     refuses: it goes on, said once; again after a pause
//! ```
//! A build is told by its contents: two of one version differ, and the same one installed anew does
//! not. A running process is asked nothing: /proc has its program, though its name may be another's
//! by now. One after the other, so that a build that is bad is met by one container alone: one that
//! crashes when it has taken over ends the round.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::error::{Error, Kind, Result};
use crate::monitor::last_state;
use crate::node::{Container, Node, lock, on_disk};
use crate::record::ContainerState;

/// After a round in which something was refused: first, then ever longer up to the last.
const PAUSE_FIRST: Duration = Duration::from_secs(10);
const PAUSE_LAST: Duration = Duration::from_secs(3600);
/// How many digits of its hash name a build.
const DIGITS: usize = 12;

/// One of the processes that outlive criod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    /// `monitor` or `keeper`.
    kind: &'static str,
    /// The container's id; empty: the keeper.
    id: String,
    name: String,
    pod: String,
    /// 0: it is dead, and will be replaced.
    pid: i32,
    version: String,
    /// The start of the hash of its program's contents.
    build: String,
    program: String,
    /// Another build is installed.
    outdated: bool,
    /// Kilobytes that are its alone, and its share of all.
    private_kb: u64,
    pss_kb: u64,
}

/// What is to be upgraded.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// Containers, by their ids or the starts of them, and `keeper`.
    #[serde(default)]
    ids: Vec<String>,
    /// All that are outdated.
    #[serde(default)]
    all: bool,
}

/// What came of one.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// The container's id, or `keeper`.
    id: String,
    /// `upgraded`, `current`, or `failed`.
    result: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

/// The hashes of programs that have been read, by what tells a file's contents.
#[derive(Debug, Default)]
pub(crate) struct Builds(Mutex<HashMap<Contents, String>>);

/// Device, inode, time of the last change in two parts, length.
type Contents = (u64, u64, i64, i64, u64);

impl Builds {
    /// The build that a program's file holds; the file may have no name any more.
    fn of(&self, path: &Path) -> std::io::Result<String> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let key = (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.len());
        if let Some(known) = lock(&self.0).get(&key) {
            return Ok(known.clone());
        }
        let digest = storage::Digest::of(&sys::replace::read_all(&file)?);
        let build: String = digest.hex().chars().take(DIGITS).collect();
        let mut known = lock(&self.0);
        // Programs of the past are not asked for again.
        if known.len() > 64 {
            known.clear();
        }
        known.insert(key, build.clone());
        Ok(build)
    }
}

/// Memory of a process in kB: private, proportional.
fn memory(pid: i32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let of = |key: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    (of("Private_Clean:") + of("Private_Dirty:"), of("Pss:"))
}

fn exe(pid: i32) -> PathBuf {
    format!("/proc/{pid}/exe").into()
}

impl Node {
    /// What the running process of this pid is.
    fn process(&self, kind: &'static str, pid: i32, installed: &Path, version: String) -> Process {
        let exe = exe(pid);
        let build = if pid > 0 { self.builds.of(&exe).unwrap_or_default() } else { String::new() };
        let program = std::fs::read_link(&exe).unwrap_or_default().to_string_lossy().into_owned();
        let (private_kb, pss_kb) = if pid > 0 { memory(pid) } else { (0, 0) };
        let other = |installed: String| installed != build;
        let outdated = !build.is_empty() && self.builds.of(installed).is_ok_and(other);
        let (id, name, pod) = Default::default();
        Process { kind, id, name, pod, pid, version, build, program, outdated, private_kb, pss_kb }
    }

    fn monitor_process(&self, container: &Container) -> Option<Process> {
        let record = container.record.get();
        if record.state == ContainerState::Removing || !container.monitor.exists() {
            return None;
        }
        let state = last_state(&self.paths.container_run(&container.id)).unwrap_or_default();
        let pid = if container.monitor.lives() { state.monitor_pid } else { 0 };
        let meta = record.config.0.metadata.clone().unwrap_or_default();
        Some(Process {
            id: container.id.clone(),
            name: meta.name,
            pod: record.pod.clone(),
            ..self.process("monitor", pid, &self.monitor_program, state.version)
        })
    }

    async fn keeper_process(&self) -> Result<Process> {
        let (version, pid) = self.keeper.about().await?;
        Ok(on_disk(|| self.process("keeper", pid, self.keeper.program(), version)))
    }

    /// The keeper and all monitors.
    pub(crate) async fn processes(&self) -> Result<Vec<Process>> {
        let mut all = vec![self.keeper_process().await?];
        on_disk(|| {
            all.extend(self.all_containers().iter().filter_map(|c| self.monitor_process(c)));
        });
        Ok(all)
    }

    /// Upgrades what is asked for; says of each what came of it.
    pub(crate) async fn upgrade(&self, request: &Request) -> Result<Vec<Outcome>> {
        if request.all != request.ids.is_empty() {
            return Err(Error::invalid("either ids or all must be given"));
        }
        let mut keeper = request.all;
        let mut containers = Vec::new();
        for id in &request.ids {
            match id.as_str() {
                "keeper" => keeper = true,
                id => containers.push(self.container(id)?),
            }
        }
        if request.all {
            containers = self.all_containers();
        }
        let mut outcomes = Vec::new();
        if keeper {
            outcomes.push(outcome("keeper", self.upgrade_keeper().await));
        }
        for container in containers {
            let done = self.upgrade_monitor(&container).await;
            outcomes.push(outcome(&container.id, done));
        }
        Ok(outcomes)
    }

    /// False: it is the installed build already.
    async fn upgrade_keeper(&self) -> Result<bool> {
        if !self.keeper_process().await?.outdated {
            return Ok(false);
        }
        self.keeper.upgrade().await?;
        info!("keeper upgraded to {}", self.keeper.program().display());
        Ok(true)
    }

    async fn upgrade_monitor(&self, container: &Container) -> Result<bool> {
        match on_disk(|| self.monitor_process(container)) {
            Some(process) if process.outdated => {}
            _ => return Ok(false),
        }
        container.monitor.upgrade(&self.monitor_program).await?;
        let program = self.monitor_program.display();
        info!(container = container.id, "monitor upgraded to {program}");
        Ok(true)
    }
}

fn outcome(id: &str, done: Result<bool>) -> Outcome {
    let (result, error) = match done {
        Ok(true) => ("upgraded", String::new()),
        Ok(false) => ("current", String::new()),
        Err(e) => ("failed", e.chain()),
    };
    Outcome { id: id.to_owned(), result, error }
}

/// Upgrades what runs another build than is installed, until nothing does.
pub(crate) async fn run(node: Arc<Node>) {
    if !node.config.upgrade_monitors {
        return;
    }
    let mut pause = PAUSE_FIRST;
    let mut said: HashMap<String, String> = HashMap::new();
    loop {
        let (mut failed, mut unable) = (false, 0);
        match node.upgrade_keeper().await {
            Ok(_) => {}
            Err(e) => {
                failed = true;
                complain(&mut said, "keeper", &e);
            }
        }
        for container in node.all_containers() {
            let Err(e) = node.upgrade_monitor(&container).await else { continue };
            if e.cannot() {
                unable += 1;
                continue;
            }
            // One that has been deleted meanwhile needs none.
            if !on_disk(|| container.monitor.exists()) {
                continue;
            }
            failed = true;
            complain(&mut said, &container.id, &e);
            if e.crashed() {
                break;
            }
        }
        if unable > 0 {
            let text = "are of a release that cannot be upgraded, and end with their containers";
            info!("{unable} monitors {text}");
        }
        if !failed {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_LAST);
    }
}

/// Says once of each what is wrong.
fn complain(said: &mut HashMap<String, String>, id: &str, e: &Error) {
    let text = e.chain();
    if said.get(id) != Some(&text) {
        warn!("not upgraded, and tried again: {id}: {text}");
        said.insert(id.to_owned(), text);
    }
}

impl Error {
    /// The monitor is of a release that knows no upgrade.
    fn cannot(&self) -> bool {
        matches!(self.kind(), Kind::Monitor { source: ttrpc::Error::RpcStatus(status), .. }
            if status.code() == ttrpc::Code::UNIMPLEMENTED)
    }

    /// The monitor did not answer at all: it has become something that does not live.
    fn crashed(&self) -> bool {
        matches!(self.kind(), Kind::Monitor { source, .. }
            if !matches!(source, ttrpc::Error::RpcStatus(_)))
    }
}
