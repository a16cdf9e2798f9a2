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

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use crate::containers::{note_end, refresh};
use crate::error::{Error, Result};
use crate::monitor::last_state;
use crate::node::{Node, lock};
use crate::record::{self, ContainerRecord, ContainerState, PodRecord, PodState};

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
            && state.phase.enum_value() == Ok(api_monitor::monitor::Phase::PHASE_EXITED)
        {
            note_end(&container, &state);
            container.ended.send_replace(true);
        }
    }
    info!(pods = node.all_pods().len(), containers = node.all_containers().len(), "records loaded");
    Ok(())
}

/// Output of commands whose callers went with the criod before.
fn forget_output(run: &Path) {
    for name in entries(run) {
        if name.starts_with("exec-") && (name.ends_with(".stdout") || name.ends_with(".stderr")) {
            let _ = fs::remove_file(run.join(name));
        }
    }
}

/// The layers of a container stay as long as it does.
fn hold(node: &Node, record: &ContainerRecord) {
    let layers: Vec<storage::Digest> =
        record.layers.iter().filter_map(|l| l.parse().ok()).collect();
    if let Err(e) = node.store.hold(&record.id, &layers) {
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
                tokio::spawn(Arc::clone(node).watch(container));
            }
            ContainerState::Creating => {
                container.record.note(|r| r.state = ContainerState::Removing);
            }
            ContainerState::Exited | ContainerState::Removing => {}
        }
    }
    for pod in node.all_pods() {
        let record = pod.record.get();
        if record.state == PodState::Creating {
            end_plugins(&pod.id);
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

/// Kills CNI plugins that a criod before us left at work for a pod: what they would still do comes
/// after what undoes it.
fn end_plugins(pod: &str) {
    let variable = format!("CNI_CONTAINERID={pod}");
    for pid in sys::proc::with_environment(&variable) {
        warn!(pod, pid, "a CNI plugin of the criod before is ended");
        sys::proc::kill_tree(pid);
    }
}

/// Takes away what is left over, again and again until it is gone.
async fn reconcile(node: Arc<Node>) {
    let mut pause = FIRST;
    orphans(&node).await;
    loop {
        let mut left = 0;
        for container in node.all_containers() {
            container.record.catch_up();
            let record = container.record.get();
            // One that is being removed right now holds its `op`.
            if record.state == ContainerState::Removing && container.op.try_lock().is_ok() {
                left += 1;
                if let Err(e) = node.remove_this(&container).await {
                    warn!(container = container.id, "still not gone: {}", e.chain());
                }
            }
        }
        for pod in node.all_pods() {
            pod.record.catch_up();
            let record = pod.record.get();
            if record.state == PodState::Removing && pod.op.try_lock().is_ok() {
                left += 1;
                if let Err(e) = node.take_pod_away(&pod).await {
                    warn!(pod = pod.id, "still not gone: {}", e.chain());
                }
            }
        }
        pause = if left == 0 { FIRST } else { (pause * 2).min(LONGEST) };
        tokio::time::sleep(pause).await;
    }
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
            if let Err(e) = fs::remove_dir_all(&dir).map_err(Error::file("remove", &dir)) {
                warn!("{}", e.chain());
            }
        }
    }
    for id in node.keeper.held().await.unwrap_or_default() {
        if node.container(&id).is_err()
            && !node.paths.container(&id).exists()
            && let Err(e) = node.keeper.forget(&id).await
        {
            warn!("{}", e.chain());
        }
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}
