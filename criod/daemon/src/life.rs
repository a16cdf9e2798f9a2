//! What happens to a container once it is created: start, end, stop, remove.
//!
//! ```text
//! StartContainer   `runtime start` ─▶ RUNNING        exit: the monitor's news (`watch`) ─▶ EXITED
//! StopContainer    the monitor's deadline; answers when the record says EXITED
//! RemoveContainer  killed ─▶ `runtime delete`, monitor ends ─▶ unmounted, cgroup, files, record gone
//! ```
//! Log files stay: they are the kubelet's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api_monitor::monitor::{Phase, StateResponse};
use failpoint::step;
use storage::ContainerMount;
use tracing::{info, warn};

use crate::error::{Error, Kind, Result};
use crate::monitor::{last_state, seal};
use crate::node::{Container, Node, Pod, Save, blocking};
use crate::record::{self, ContainerRecord, ContainerState, PodState};

/// How long a container may take to end after its SIGKILL before the caller is told why it does not.
const KILLED: Duration = Duration::from_secs(10);
/// How long the runtime may take to delete one that has ended; the monitor gives up sooner.
const DELETE: Duration = Duration::from_secs(60);
/// How long a container that could not be started has to end.
const START_FAILED: Duration = Duration::from_secs(10);
/// How long a start may go on after the container's end.
const LATE_ANSWER: Duration = Duration::from_secs(5);

impl Node {
    /// Waits for the container's end and puts it on record.
    pub(crate) async fn watch(self: Arc<Self>, container: Arc<Container>) {
        let state = match container.monitor.wait().await {
            Ok(state) => state,
            // It has been removed, or somebody took the monitor's folder away.
            Err(_) => return self.lost(&container).await,
        };
        note_end(&container, &state);
        let record = container.record.get();
        if record.state == ContainerState::Exited {
            info!(container = container.id, code = record.exit_code, "container exited");
            if record.infra
                && let Ok(pod) = self.pod(&record.pod)
            {
                self.infra_ended(&pod);
            }
        }
        self.tell(&container);
        container.ended.send_replace(true);
        // The result is made durable in the background.
        let saved = blocking(move || {
            container.record.update(Save::Durable, |_| ()).map(|_| container.id.clone())
        });
        if let Err(e) = saved.await {
            warn!("{}", e.chain());
        }
    }

    /// Ends a container whose monitor's folder is gone, so that nothing can be known of it.
    async fn lost(&self, container: &Arc<Container>) {
        let record = container.record.get();
        match record.state {
            ContainerState::Created | ContainerState::Running | ContainerState::Unknown => {}
            _ => return,
        }
        warn!(container = container.id, "the folder of its monitor is gone; it is killed");
        if let Err(e) = self.kill_group(&record).await {
            warn!(container = container.id, "{}", e.chain());
        }
        let ended = container.record.update(Save::Soon, |r| {
            r.state = ContainerState::Exited;
            r.exit_code = 137;
            r.finished_at = sys::clock::realtime();
            r.reason = "ContainerStatusUnknown".into();
            r.message = "the folder of its monitor was removed".into();
        });
        if let Err(e) = ended {
            warn!(container = container.id, "{}", e.chain());
        }
        if record.infra
            && let Ok(pod) = self.pod(&record.pod)
        {
            self.infra_ended(&pod);
        }
        self.tell(container);
        container.ended.send_replace(true);
    }

    /// Kills whatever is in a container's cgroup.
    async fn kill_group(&self, record: &ContainerRecord) -> Result<()> {
        if record.cgroup.is_empty() {
            // Of one that is unknown: it had none when it was looked for.
            return Ok(());
        }
        let group = self.cgroup(&record.cgroup)?;
        blocking(move || {
            let name = group.name().to_owned();
            group.kill().map_err(|source| Kind::Cgroup { name, source }.into())
        })
        .await
    }

    /// A pod whose own process has ended is no longer whole.
    pub(crate) fn infra_ended(&self, pod: &Arc<Pod>) {
        let lost = pod.record.update(Save::Soon, |r| {
            if r.state == PodState::Ready {
                r.state = PodState::NotReady;
            }
            r.infra_pid = 0;
        });
        if let Err(e) = lost {
            warn!("{}", e.chain());
        }
        self.tell_pod(pod);
    }

    /// Starts a created container.
    pub(crate) async fn start(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let (node, key) = (Arc::clone(self), format!("start {}", container.id));
        self.changes.join(&key, move || async move { node.start_this(&container).await }).await
    }

    pub(crate) async fn start_this(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let _op = container.op.lock().await;
        let record = container.record.get();
        match record.state {
            ContainerState::Created => {}
            // Its answer was lost: it has been started.
            ContainerState::Running => return Ok(()),
            ContainerState::Exited if record.started_at > 0 => return Ok(()),
            _ => {
                let text = format!("container {} is not in the state CREATED", container.id);
                return Err(Error::precondition(text));
            }
        }
        let started = tokio::select! {
            biased;
            answer = container.monitor.start() => answer,
            () = ended_for_good(container) => {
                let text = format!("container {} has ended before it was started", container.id);
                Err(Error::precondition(text))
            }
        };
        match started {
            Ok(started_at) => {
                container.record.update(Save::Soon, |r| {
                    r.started_at = match r.finished_at {
                        0 => started_at,
                        finished => started_at.min(finished),
                    };
                    if r.state == ContainerState::Created {
                        r.state = ContainerState::Running;
                    }
                })?;
                self.tell(container);
                Ok(())
            }
            Err(e) => {
                let state = last_state(&self.paths.container_run(&container.id));
                if state.is_some_and(|s| s.phase.enum_value() == Ok(Phase::PHASE_CREATED)) {
                    // Its log could not be opened: nothing has begun, and it may be tried again.
                    return Err(said_by_runtime(e));
                }
                // The monitor ends what is left; the record shows why, as EXITED.
                let mut ended = container.ended.subscribe();
                let end = ended.wait_for(|e| *e);
                if tokio::time::timeout(START_FAILED, end).await.is_err() {
                    warn!(container = container.id, "could not be started and has not ended");
                }
                Err(said_by_runtime(e))
            }
        }
    }

    /// Stops a container; answers when its record says that it has ended. Unknown ones have.
    pub(crate) async fn stop(self: &Arc<Self>, id: &str, timeout: i64) -> Result<()> {
        let container = match self.container(id) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        let seconds = u64::try_from(timeout).unwrap_or(0);
        self.stop_this(&container, Duration::from_secs(seconds)).await
    }

    /// Nothing is held while it waits; a later stop can bring the deadline nearer.
    pub(crate) async fn stop_this(
        self: &Arc<Self>,
        container: &Arc<Container>,
        timeout: Duration,
    ) -> Result<()> {
        let record = container.record.get();
        match record.state {
            ContainerState::Created | ContainerState::Running => {}
            ContainerState::Creating if !record.infra => {
                let text = format!("container {} is being created", container.id);
                return Err(Error::precondition(text));
            }
            ContainerState::Unknown => return self.stop_unknown(container, timeout).await,
            _ => return Ok(()),
        }
        if let Err(e) = container.monitor.stop(record.stop_signal, timeout).await {
            if container.monitor.exists() {
                return Err(e);
            }
            self.lost(container).await;
        }
        // The sender lives as long as the container.
        let mut ended = container.ended.subscribe();
        let end = ended.wait_for(|ended| *ended);
        let late = tokio::time::timeout(timeout.saturating_add(KILLED), end).await.is_err();
        if late { Err(self.does_not_end(container).await) } else { Ok(()) }
    }

    /// Why a container lives on although it was killed, as far as can be told.
    async fn does_not_end(&self, container: &Container) -> Error {
        let group = self.cgroup(&container.record.get().cgroup);
        let stuck = blocking(move || {
            let pids = group?.procs().unwrap_or_default();
            let stuck = |pid: &i32| sys::proc::stat(*pid).is_some_and(|s| s.state == b'D');
            Ok(pids.into_iter().filter(stuck).map(|p| p.to_string()).collect::<Vec<_>>())
        });
        let stuck = stuck.await.unwrap_or_default();
        let why = if stuck.is_empty() {
            "it was killed and has not ended yet".to_owned()
        } else {
            format!("in uninterruptible sleep, which no signal ends: {}", stuck.join(", "))
        };
        Kind::Undying { id: container.id.clone(), why }.into()
    }

    /// Stops a container whose record cannot be read: its monitor knows all that is needed. What the
    /// monitor then says of its end is known for certain.
    async fn stop_unknown(
        self: &Arc<Self>,
        container: &Arc<Container>,
        timeout: Duration,
    ) -> Result<()> {
        let signal = match container.record.get().stop_signal {
            0 => nix::libc::SIGTERM,
            signal => signal,
        };
        let stopped = match container.monitor.stop(signal, timeout).await {
            Ok(()) => container.monitor.wait().await,
            Err(e) => Err(e),
        };
        match stopped {
            Ok(state) => {
                note_end(container, &state);
                self.tell(container);
                container.ended.send_replace(true);
            }
            Err(e) => {
                warn!(container = container.id, "its monitor cannot stop it: {}", e.chain());
                self.lost(container).await;
            }
        }
        Ok(())
    }

    /// Removes a container, killing it first. Unknown ones are removed.
    pub(crate) async fn remove(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = match self.container(id) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        if container.record.get().state == ContainerState::Creating {
            let text = format!("container {} is being created", container.id);
            return Err(Error::precondition(text));
        }
        let (node, key) = (Arc::clone(self), format!("remove {}", container.id));
        self.changes.join(&key, move || async move { node.remove_this(&container).await }).await
    }

    /// All steps back, from wherever the container stands. May be repeated.
    pub(crate) async fn remove_this(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let _op = container.op.lock().await;
        let damaged = container.record.problem().is_some();
        // One that is being created is ended by the deletion.
        if container.record.get().state != ContainerState::Creating && !damaged {
            self.stop_this(container, Duration::ZERO).await?;
        }
        let deleted = match tokio::time::timeout(DELETE, container.monitor.delete()).await {
            Ok(deleted) => deleted.map_err(said_by_runtime),
            Err(_) => Err(self.does_not_end(container).await),
        };
        match deleted {
            // What its monitor needs may be as damaged as its record: what is left to do needs none.
            Err(e) if damaged => {
                warn!(container = container.id, "its monitor cannot delete it: {}", e.chain());
            }
            deleted => deleted?,
        }
        container.ended.send_replace(true);
        // Before anything is gone: a restart must go on from here, not find half a container.
        container.record.update(Save::Soon, |r| r.state = ContainerState::Removing)?;
        if !self.paths.container_run(&container.id).join("config").exists() {
            step!("container: forget descriptors", self.keeper.forget(&container.id).await)?;
        }
        let node = Arc::clone(self);
        let own = Arc::clone(container);
        blocking(move || node.clear_away(&own)).await?;
        self.forget_container(&container.id);
        self.tell(container);
        info!(container = container.id, "container removed");
        Ok(())
    }

    /// What a container leaves on disk and in the cgroup tree.
    fn clear_away(&self, container: &Container) -> Result<()> {
        let id = &container.id;
        let record = container.record.get();
        self.end_runtime_state(&record)?;
        if container.record.problem().is_some() {
            self.remove_cgroups_of(id)?;
        } else {
            let group = self.cgroup(&record.cgroup)?;
            let failed = |source| Error::from(Kind::Cgroup { name: record.cgroup.clone(), source });
            group.kill().map_err(failed)?;
            group.remove().map_err(failed)?;
        }
        let root = ContainerMount::existing(&self.paths.rootfs(id));
        let gone =
            |action| move |source| Error::from(Kind::Storage { id: id.clone(), action, source });
        root.unmount().map_err(gone("unmount its root"))?;
        root.remove().map_err(gone("remove its root"))?;
        let run = self.paths.container_run(id);
        crate::volumes::unmount(&run)?;
        let sealed = seal(&run);
        if sealed.is_none() && run.exists() {
            let text = format!("container {id}: its monitor does not end");
            return Err(Error::precondition(text));
        }
        container.record.end();
        match step!("container: remove run folder", std::fs::remove_dir_all(&run)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("remove", &run)(e));
            }
            _ => {}
        }
        record::remove(container.record.dir())
    }

    /// Has the runtime forget a container that no monitor could have it forget.
    fn end_runtime_state(&self, record: &ContainerRecord) -> Result<()> {
        let handler = self.pod(&record.pod).map(|p| p.record.get().handler.clone());
        let Some((_, handler)) = self.config.handler(&handler.unwrap_or_default()) else {
            return Ok(());
        };
        self.runtime_delete(&handler.runtime_path, &self.runtime_root(handler), &record.id)
    }

    /// Has a runtime forget a container, if it knows of it.
    pub(crate) fn runtime_delete(&self, program: &str, root: &Path, id: &str) -> Result<()> {
        if !root.join(id).exists() {
            return Ok(());
        }
        let mut command = std::process::Command::new(program);
        command.arg("--root").arg(root).args(["delete", "--force", id]);
        command.stdin(std::process::Stdio::null());
        let done = step!("container: runtime delete", command.output())
            .map_err(Error::file("run", program))?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            return Err(Kind::Runtime(format!("{program} delete: {}", said.trim())).into());
        }
        Ok(())
    }

    /// Has the monitor open the log's path anew.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if container.record.get().state != ContainerState::Running {
            return Err(Error::precondition(format!("container {} is not running", container.id)));
        }
        container.monitor.reopen_log().await
    }
}

/// A refusal of the runtime in its own words, without the way that it came.
pub(crate) fn said_by_runtime(error: Error) -> Error {
    match error.monitor_refusal() {
        Some(text) => Kind::Runtime(text).into(),
        None => error,
    }
}

/// A container has ended, and whoever still waits for what only a living one gives waits in vain.
async fn ended_for_good(container: &Container) {
    let _ = container.ended.subscribe().wait_for(|ended| *ended).await;
    // The answer may have been on its way before the end.
    tokio::time::sleep(LATE_ANSWER).await;
}

/// Puts what the monitor says of the end on record.
pub(crate) fn note_end(container: &Container, state: &StateResponse) {
    let result = container.record.update(Save::Soon, |r| {
        if let Some(exit) = state.exit.as_ref() {
            r.state = match r.state {
                ContainerState::Removing => ContainerState::Removing,
                _ => ContainerState::Exited,
            };
            // The runtime's call may return after what it started has ended.
            r.started_at = state.started_at.min(exit.finished_at);
            r.finished_at = exit.finished_at;
            r.exit_code = exit.code;
            r.message.clone_from(&state.error);
            r.reason = match exit {
                _ if r.started_at == 0 && !state.error.is_empty() => "StartError",
                e if e.unknown => "ContainerStatusUnknown",
                e if e.oom => "OOMKilled",
                e if e.code == 0 => "Completed",
                _ => "Error",
            }
            .to_owned();
            if r.message.is_empty() {
                r.message.clone_from(&state.lost);
            }
        } else if r.state != ContainerState::Removing {
            // It has ended before it had anything that could.
            r.state = ContainerState::Exited;
            r.exit_code = 255;
            r.finished_at = sys::clock::realtime();
            r.reason = "ContainerStatusUnknown".to_owned();
            r.message.clone_from(&state.error);
        }
    });
    if let Err(e) = result {
        warn!(container = container.id, "{}", e.chain());
    }
}

/// What a restart finds of a container that was created or running.
pub(crate) fn refresh(container: &Container, state: &StateResponse) {
    let pid = state.pid;
    container.record.note(|r| {
        r.pid = if pid > 0 { pid } else { r.pid };
        if state.started_at > 0 && r.state == ContainerState::Created {
            r.state = ContainerState::Running;
            r.started_at = state.started_at;
        }
    });
}
