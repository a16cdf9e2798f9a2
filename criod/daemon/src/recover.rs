//! What a start finds, and what is taken up again.
//!
//! ```text
//! records ─▶ all loaded ─▶ (only now) the socket is served
//!    pods        Creating, Removing ─▶ undone in the background     Ready, stopping ─▶ stop goes on
//!    containers  Creating, Removing ─▶ undone                       Created, Running ─▶ watched again
//!    another boot: containers EXITED, pods NOTREADY, until the client removes them; those that were
//!                  Creating, too: that they came to be need not have reached the disk
//!    unreadable:   containers UNKNOWN, pods NOTREADY, likewise ([`unknown`])
//! ```
//! Loading only reads, several files at a time. What was left half done is the business of
//! [`crate::reconcile`].

mod unknown;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use api_monitor::monitor::{Phase, StateResponse};
use failpoint::step;
use tracing::{error, info, warn};

use crate::error::Result;
use crate::life::{note_end, refresh};
use crate::monitor::last_state;
use crate::node::{Node, lock, on_disk};
use crate::reconcile;
use crate::record::{self, ContainerRecord, ContainerState, Damaged, PodRecord, PodState};

/// What a container that was lost with its boot ended with.
const LOST: i32 = 255;

/// Loads every record. Nothing is served before this is done.
pub(crate) async fn load(node: &Arc<Node>) -> Result<()> {
    on_disk(|| load_now(node))
}

fn load_now(node: &Arc<Node>) -> Result<()> {
    let began = Instant::now();
    let (pods, bad_pods) = record::load_all::<PodRecord>(&node.paths.pods(), &node.boot_id)?;
    let (containers, bad_containers) =
        record::load_all::<ContainerRecord>(&node.paths.containers(), &node.boot_id)?;
    for record in pods {
        add_pod(node, record);
    }
    // What monitors wrote down last, read before it is asked for one by one.
    let live = |r: &ContainerRecord| {
        matches!(r.state, ContainerState::Created | ContainerState::Running)
            && r.boot_id == node.boot_id
    };
    let states = record::in_parallel(&containers, |r| {
        let run = node.paths.container_run(&r.id);
        live(r).then(|| {
            forget_output(node, &run);
            last_state(&run)
        })
    });
    for (record, state) in containers.into_iter().zip(states) {
        add_container(node, record, state.flatten());
    }
    add_unreadable(node, &bad_pods, &bad_containers);
    for pod in node.all_pods() {
        let shared = pod.record.get().infra_pid > 0;
        let infra = node.container(&pod.id).map(|c| c.record.get().state);
        if shared && !matches!(infra, Ok(ContainerState::Running)) {
            node.infra_ended(&pod);
        }
    }
    node.nothing_to_tell();
    let millis = began.elapsed().as_millis();
    let (pods, containers) = (node.all_pods().len(), node.all_containers().len());
    info!(pods, containers, millis, "records loaded");
    Ok(())
}

fn add_pod(node: &Node, record: PodRecord) {
    node.last_time.fetch_max(record.created_at, Ordering::SeqCst);
    let other_boot = record.boot_id != node.boot_id;
    let pod = node.add_pod(record);
    if other_boot {
        pod.record.note(|r| {
            // What came after Creating may have been lost with the power, and the pod been used.
            if matches!(r.state, PodState::Creating | PodState::Ready) {
                r.state = PodState::NotReady;
            }
            r.infra_pid = 0;
        });
    }
}

fn add_container(node: &Node, record: ContainerRecord, state: Option<StateResponse>) {
    node.last_time.fetch_max(record.created_at, Ordering::SeqCst);
    hold(node, &record);
    let other_boot = record.boot_id != node.boot_id;
    let live = match record.state {
        ContainerState::Created | ContainerState::Running => true,
        // Likewise: it may even have run to its end.
        ContainerState::Creating => other_boot,
        ContainerState::Exited | ContainerState::Removing | ContainerState::Unknown => false,
    };
    let container = node.add_container(record);
    if !live {
        return;
    }
    if other_boot {
        container.record.note(ended_with_its_boot);
        container.ended.send_replace(true);
        return;
    }
    let Some(state) = state else { return };
    refresh(&container, &state);
    if matches!(
        state.phase.enum_value(),
        Ok(Phase::PHASE_EXITED | Phase::PHASE_FAILED | Phase::PHASE_DELETED)
    ) {
        note_end(&container, &state);
        container.ended.send_replace(true);
    }
}

/// What ran when the machine went down runs no more.
fn ended_with_its_boot(r: &mut ContainerRecord) {
    r.state = ContainerState::Exited;
    r.exit_code = LOST;
    r.finished_at = r.finished_at.max(r.started_at).max(r.created_at);
    r.reason = "ContainerStatusUnknown".into();
    r.message = "the node was booted".into();
}

/// Pods and containers whose records cannot be read, as far as they are known from elsewhere.
fn add_unreadable(node: &Arc<Node>, pods: &[Damaged], containers: &[Damaged]) {
    for damaged in pods.iter().chain(containers) {
        let problem = damaged.problem.chain();
        error!(id = damaged.id, "unreadable, put aside until its removal is asked for: {problem}");
    }
    // Containers first: a pod may be known by them.
    for damaged in containers {
        let mut record = unknown::container(node, damaged, pods);
        node.last_time.fetch_max(record.created_at, Ordering::SeqCst);
        hold(node, &record);
        if record.boot_id != node.boot_id {
            ended_with_its_boot(&mut record);
        }
        node.put_container(record, Some(damaged.problem.chain()));
    }
    let cached = match pods {
        [] => Vec::new(),
        _ => node.network.cached().unwrap_or_else(|e| {
            warn!("{}", e.chain());
            Vec::new()
        }),
    };
    for damaged in pods {
        let record = unknown::pod(node, damaged, &cached);
        node.last_time.fetch_max(record.created_at, Ordering::SeqCst);
        node.put_pod(record, Some(damaged.problem.chain()));
    }
}

/// Output of commands whose callers went with the criod before, unless that still relays some.
fn forget_output(node: &Node, run: &Path) {
    let mut later = lock(&node.output_of_before);
    for name in reconcile::entries(run) {
        if name.starts_with("exec-") && (name.ends_with(".stdout") || name.ends_with(".stderr")) {
            match &mut *later {
                Some(later) => later.push(run.join(name)),
                None => {
                    let _ = step!("recover: remove output", fs::remove_file(run.join(name)));
                }
            }
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
    let began = Instant::now();
    let attached: Vec<_> = node
        .all_pods()
        .iter()
        .map(|p| p.record.get())
        // Those of pods that are to be undone go, so that a repeated call has the ports at once.
        .filter(|r| matches!(r.state, PodState::Ready | PodState::NotReady))
        .filter(|r| r.attached && r.boot_id == node.boot_id)
        .collect();
    node.network.begin_with(&attached);
    let mut watched = Vec::new();
    for container in node.all_containers() {
        let record = container.record.get();
        match record.state {
            ContainerState::Created | ContainerState::Running => {
                tokio::spawn(Arc::clone(node).watch(Arc::clone(&container)));
                if record.updating.is_some() {
                    tokio::spawn(Arc::clone(node).finish_update(Arc::clone(&container)));
                }
                watched.push(container);
            }
            ContainerState::Creating => {
                container.record.note(|r| r.state = ContainerState::Removing);
            }
            ContainerState::Exited | ContainerState::Removing | ContainerState::Unknown => {}
        }
    }
    for pod in node.all_pods() {
        let record = pod.record.get();
        if record.limiting {
            on_disk(|| node.limit_pod_again(&pod));
        }
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
    say_when_watched(watched, began);
    tokio::spawn(reconcile::run(Arc::clone(node)));
}

/// Logs when every container that lives has its monitor's ear again.
fn say_when_watched(all: Vec<Arc<crate::node::Container>>, began: Instant) {
    let (count, left) = (all.len(), Arc::new(AtomicUsize::new(all.len())));
    for container in all {
        let left = Arc::clone(&left);
        tokio::spawn(async move {
            container.monitor.reached().await;
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                let millis = began.elapsed().as_millis();
                info!(containers = count, millis, "all are watched again");
            }
        });
    }
}
