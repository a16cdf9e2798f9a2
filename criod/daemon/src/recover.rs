//! What a start finds, and what is taken up again.
//!
//! ```text
//! records ─▶ all loaded ─▶ (only now) the socket is served
//!    pods        Creating, Removing ─▶ undone in the background     Ready, stopping ─▶ stop goes on
//!    containers  Creating, Removing ─▶ undone                       Created, Running ─▶ watched again
//!    another boot: containers EXITED, pods NOTREADY, until the kubelet removes them
//! unreadable  ─▶ put aside, said, never deleted; the rest is served
//! ```
//! Loading only reads. What was left half done is retried for ever ([`reconcile`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_monitor::monitor::Phase;
use failpoint::step;
use tracing::{error, info, warn};

use crate::error::{Error, Result};
use crate::life::{note_end, refresh};
use crate::monitor::last_state;
use crate::node::{Node, lock};
use crate::record::{self, ContainerRecord, ContainerState, PodRecord, PodState};
use crate::streaming;

/// Between rounds of taking away what is left over: first, and at most.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Loads every record. Nothing is served before this is done.
pub(crate) async fn load(node: &Arc<Node>) -> Result<()> {
    let (pods, bad_pods) = record::load_all::<PodRecord>(&node.paths.pods())?;
    let (containers, bad_containers) =
        record::load_all::<ContainerRecord>(&node.paths.containers())?;
    *lock(&node.unreadable) = bad_containers.iter().map(|(id, _)| id.clone()).collect();
    for (id, e) in bad_pods.iter().chain(&bad_containers) {
        error!(id, "a record cannot be read and is left alone: {}", e.chain());
    }
    for record in pods {
        node.last_time.fetch_max(record.created_at, std::sync::atomic::Ordering::SeqCst);
        let other_boot = record.boot_id != node.boot_id;
        let pod = node.add_pod(record);
        if other_boot {
            pod.record.note(|r| {
                if r.state == PodState::Ready {
                    r.state = PodState::NotReady;
                }
                r.infra_pid = 0;
            });
        }
    }
    for record in containers {
        node.last_time.fetch_max(record.created_at, std::sync::atomic::Ordering::SeqCst);
        hold(node, &record);
        let other_boot = record.boot_id != node.boot_id;
        let container = node.add_container(record);
        let state = container.record.get().state;
        let live = matches!(state, ContainerState::Created | ContainerState::Running);
        if !live {
            continue;
        }
        if other_boot {
            container.record.note(|r| {
                r.state = ContainerState::Exited;
                r.exit_code = 255;
                r.finished_at = r.finished_at.max(r.started_at).max(r.created_at);
                r.reason = "ContainerStatusUnknown".into();
                r.message = "the node was booted".into();
            });
            container.ended.send_replace(true);
            continue;
        }
        let run = node.paths.container_run(&container.id);
        forget_output(&run);
        refresh(&container, &run);
        if let Some(state) = last_state(&run)
            && matches!(
                state.phase.enum_value(),
                Ok(Phase::PHASE_EXITED | Phase::PHASE_FAILED | Phase::PHASE_DELETED)
            )
        {
            note_end(&container, &state);
            container.ended.send_replace(true);
        }
    }
    for pod in node.all_pods() {
        let shared = pod.record.get().infra_pid > 0;
        let infra = node.container(&pod.id).map(|c| c.record.get().state);
        if shared && !matches!(infra, Ok(ContainerState::Running)) {
            node.infra_ended(&pod);
        }
    }
    node.nothing_to_tell();
    info!(pods = node.all_pods().len(), containers = node.all_containers().len(), "records loaded");
    Ok(())
}

/// Output of commands whose callers went with the criod before.
fn forget_output(run: &Path) {
    for name in entries(run) {
        if name.starts_with("exec-") && (name.ends_with(".stdout") || name.ends_with(".stderr")) {
            let _ = step!("recover: remove output", fs::remove_file(run.join(name)));
        }
    }
}

/// The layers of a container stay as long as it does.
fn hold(node: &Node, record: &ContainerRecord) {
    if let Err(e) = node.store.hold(&record.id, &record.all_layers()) {
        warn!(container = record.id, "its layers: {e}");
    }
}

/// Takes up what was under way.
pub(crate) async fn resume(node: &Arc<Node>) {
    let ready: Vec<_> = node
        .all_pods()
        .iter()
        .map(|p| p.record.get())
        .filter(|r| r.state == PodState::Ready)
        .collect();
    node.network.begin_with(&ready).await;
    for container in node.all_containers() {
        let record = container.record.get();
        match record.state {
            ContainerState::Created | ContainerState::Running => {
                tokio::spawn(Arc::clone(node).watch(Arc::clone(&container)));
                if record.updating.is_some() {
                    tokio::spawn(Arc::clone(node).finish_update(container));
                }
            }
            ContainerState::Creating => {
                container.record.note(|r| r.state = ContainerState::Removing);
            }
            ContainerState::Exited | ContainerState::Removing => {}
        }
    }
    for pod in node.all_pods() {
        let record = pod.record.get();
        crate::node::on_disk(|| node.limit_pod_again(&pod));
        if record.state == PodState::Creating {
            node.network.unsettled(&pod.id);
            pod.record.note(|r| r.state = PodState::Removing);
        } else if record.stopping && record.state == PodState::Ready {
            let node = Arc::clone(node);
            tokio::spawn(async move {
                if let Err(e) = node.stop_pod(&pod.id).await {
                    warn!(pod = pod.id, "stop: {}", e.chain());
                }
            });
        }
    }
    tokio::spawn(reconcile(Arc::clone(node)));
}

/// Takes away what is left over, again and again until it is gone: each thing by a task of its own,
/// so that one that hangs holds up no other.
async fn reconcile(node: Arc<Node>) {
    orphans(&node).await;
    let mut busy: BTreeMap<String, Leftover> = BTreeMap::new();
    loop {
        for container in node.all_containers() {
            container.record.catch_up();
            if container.record.get().state == ContainerState::Removing {
                let (node, id) = (Arc::clone(&node), container.id.clone());
                let work = async move { node.remove_this(&container).await };
                take_up(&mut busy, format!("container {id}"), work);
            }
        }
        for pod in node.all_pods() {
            pod.record.catch_up();
            if pod.record.get().state == PodState::Removing {
                let (node, id) = (Arc::clone(&node), pod.id.clone());
                let work = async move { node.take_pod_away(&pod).await };
                take_up(&mut busy, format!("pod {id}"), work);
            }
        }
        // What has not been heard of for long is gone.
        let forgotten = |l: &Leftover| l.task.is_finished() && l.next.elapsed() > LONGEST;
        busy.retain(|_, l| !forgotten(l));
        tokio::time::sleep(FIRST).await;
    }
}

/// An attempt to take something away, and when the next one is due should it fail.
struct Leftover {
    task: tokio::task::JoinHandle<()>,
    pause: Duration,
    next: Instant,
}

/// Begins another attempt, unless one is under way or it is too early.
fn take_up(
    busy: &mut BTreeMap<String, Leftover>,
    what: String,
    work: impl Future<Output = Result<()>> + Send + 'static,
) {
    let pause = match busy.get(&what) {
        Some(l) if !l.task.is_finished() || l.next > Instant::now() => return,
        Some(l) => (l.pause * 2).min(LONGEST),
        None => FIRST,
    };
    let name = what.clone();
    let task = tokio::spawn(async move {
        if let Err(e) = work.await {
            warn!("{name}: still not gone: {}", e.chain());
        }
    });
    busy.insert(what, Leftover { task, pause, next: Instant::now() + pause });
}

/// Folders and descriptors of what no record knows: left by a creation that died before its record
/// was written, or by a removal that died after.
async fn orphans(node: &Arc<Node>) {
    let run = &node.paths.run;
    for name in entries(&run.join("ns")) {
        let known = node.pod(&name).is_ok() || node.paths.pod(&name).exists();
        if !known && let Err(e) = namespace::remove(&node.paths.namespaces(&name)) {
            warn!(pod = name, "left over namespaces: {e}");
        }
    }
    for name in entries(&run.join("pods")) {
        let known = node.pod(&name).is_ok() || node.paths.pod(&name).exists();
        if !known && let Err(e) = crate::files::remove(&node.paths.pod_run(&name)) {
            warn!(pod = name, "left over files: {}", e.chain());
        }
    }
    for name in entries(&run.join("containers")) {
        let known = node.container(&name).is_ok() || node.paths.container(&name).exists();
        if !known && !crate::monitor::lives(&node.paths.container_run(&name)) {
            let dir = node.paths.container_run(&name);
            let gone = crate::volumes::unmount(&dir).and_then(|()| {
                step!("recover: remove folder of a monitor", fs::remove_dir_all(&dir))
                    .map_err(Error::file("remove", &dir))
            });
            if let Err(e) = gone {
                warn!("{}", e.chain());
            }
        }
    }
    for id in node.keeper.held().await.unwrap_or_default() {
        if node.container(&id).is_err()
            && !streaming::is_stream(&id)
            && !node.paths.container(&id).exists()
            && let Err(e) = step!("recover: forget descriptors", node.keeper.forget(&id).await)
        {
            warn!("{}", e.chain());
        }
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}
