//! UpdateContainerResources: a patch of what a container may use.
//!
//! ```text
//! request ─ merged, checked ─▶ record: updating ─▶ cgroup ─▶ OOM scores ─▶ config.json ─▶ record: done
//!                                    │                │ refused: the cgroup is as it was
//!                                    │                └─▶ record: as it was ─▶ the reason
//!                                    └ criod dies ─▶ the next one goes on from here
//! ```
//! criod writes the files of the cgroup itself where the runtime is runc, crun or youki, which keep
//! nothing of it that they would need later: commands, signals and deletion do not look at it. It
//! costs a tenth of a millisecond in place of a process, and is exact where theirs is not (see
//! ARCHITECTURE.md). Of other runtimes the monitor calls `update`, for only they know where the
//! container is; a monitor of an older release cannot, and then it is as with the others.
//!
//! It needs no monitor otherwise, and waits for no stop.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api_cri::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};
use api_monitor::monitor::Config as MonitorConfig;
use cgroup::Cgroup;
use failpoint::step;
use protobuf::Message;
use serde_json::Value;
use tracing::{info, warn};

use crate::error::{Error, Kind, Result};
use crate::life::said_by_runtime;
use crate::node::{Container, Node, Save, blocking};
use crate::pod_cgroup::resources_error;
use crate::record::{ContainerRecord, ContainerState, Wire};
use crate::spec::resources;

impl Node {
    /// Changes what a container may use. A caller that goes away cancels nothing.
    pub(crate) async fn update(
        self: &Arc<Self>,
        request: UpdateContainerResourcesRequest,
    ) -> Result<()> {
        let container = self.container(&request.container_id)?;
        if request.windows.is_some() {
            return Err(Error::invalid("windows: this is Linux"));
        }
        let asked = request.linux.unwrap_or_default();
        let node = Arc::clone(self);
        let task = tokio::spawn(async move { node.update_this(&container, asked).await });
        task.await.unwrap_or_else(|_| Err(Kind::Panicked.into()))
    }

    async fn update_this(
        self: &Arc<Self>,
        container: &Arc<Container>,
        asked: LinuxContainerResources,
    ) -> Result<()> {
        let _op = container.op.lock().await;
        let record = container.record.get();
        may_change(&record)?;
        let old = resources::asked(&record.config.0);
        let new = resources::merge(&old, &asked);
        resources::check("", &new, self.able())?;
        if let Ok(pod) = self.pod(&record.pod)
            && let Some((_, handler)) = self.config.handler(&pod.record.get().handler)
        {
            resources::check_least(asked.memory_limit_in_bytes, handler.min_memory())?;
        }
        if new != old {
            let wanted = Wire(new.clone());
            container.record.update(Save::Now, |r| r.updating = Some(wanted))?;
        }
        let done = self.apply(container, &asked, &new).await;
        let kept = done.as_ref().map_or(old, |()| new);
        container.record.update(Save::Soon, |r| settle(r, kept))?;
        if done.is_ok() {
            info!(container = container.id, "resources updated");
        }
        done
    }

    /// Goes on with an update that a criod before us began.
    pub(crate) async fn finish_update(self: Arc<Self>, container: Arc<Container>) {
        let _op = container.op.lock().await;
        let record = container.record.get();
        let Some(Wire(new)) = record.updating.clone() else { return };
        if may_change(&record).is_err() {
            return;
        }
        let old = resources::asked(&record.config.0);
        let mut kept = &new;
        if let Err(e) = self.apply(&container, &resources::difference(&old, &new), &new).await {
            warn!(container = container.id, "an update that had begun is undone: {}", e.chain());
            kept = &old;
            if let Err(e) = self.apply(&container, &resources::difference(&new, &old), &old).await {
                warn!(container = container.id, "{}", e.chain());
            }
        }
        if let Err(e) = container.record.update(Save::Soon, |r| settle(r, kept.clone())) {
            warn!(container = container.id, "{}", e.chain());
        }
    }

    /// Has what is asked for come true; `all` is what holds from then on.
    async fn apply(
        self: &Arc<Self>,
        container: &Arc<Container>,
        asked: &LinuxContainerResources,
        all: &LinuxContainerResources,
    ) -> Result<()> {
        let record = container.record.get();
        let group = self.cgroup(&record.cgroup)?;
        let change = resources::change(asked, all, self.able());
        let limits = resources::limits(all, self.able());
        let score = (asked.oom_score_adj != 0).then(|| resources::oom_score(asked.oom_score_adj));
        let run = self.paths.container_run(&container.id);
        let config = self.paths.bundle(&container.id).join("config.json");
        let id = container.id.clone();
        let (spec, native) = blocking(move || {
            let native = directly(&run)?;
            Ok((NewSpec::write(&id, config, &limits, score)?, native))
        })
        .await?;
        let left = match native {
            true => Some(change),
            false => self.apply_by_runtime(container, change).await?,
        };
        let (id, init) = (container.id.clone(), self.init_process(&container.id));
        blocking(move || {
            if let Some(change) = left {
                match group.set(&resources::for_cgroup(change)) {
                    Err(e) if e.is_not_found() => return Err(not_there(&id)),
                    done => done.map_err(|source| resources_error(&group, source))?,
                }
            }
            if let (Some(score), Some(init)) = (score, init)
                && let Err(e) = set_scores(&group, init, score)
            {
                warn!(container = id, score, "its OOM score cannot be set: {e}");
            }
            spec.keep()
        })
        .await
    }

    /// Has the runtime do it. What is left for us comes back: all, where the monitor is too old.
    async fn apply_by_runtime(
        &self,
        container: &Container,
        change: oci::Resources,
    ) -> Result<Option<oci::Resources>> {
        let failed = |source| Error::from(Kind::Spec { id: container.id.clone(), source });
        let bytes = oci::limits(&change).map_err(failed)?;
        match container.monitor.update(bytes).await {
            Ok(()) => Ok(None),
            Err(e) if e.monitor_lacks() => Ok(Some(change)),
            Err(e) => Err(said_by_runtime(e)),
        }
    }
}

fn may_change(record: &ContainerRecord) -> Result<()> {
    match record.state {
        ContainerState::Creating | ContainerState::Removing => {
            Err(Error::not_found("container", &record.id))
        }
        _ if record.infra => Err(Error::not_found("container", &record.id)),
        ContainerState::Created | ContainerState::Running => Ok(()),
        ContainerState::Exited | ContainerState::Unknown => Err(not_there(&record.id)),
    }
}

fn not_there(id: &str) -> Error {
    Error::precondition(format!("container {id} is neither created nor running"))
}

/// An update is over, and these are the resources.
fn settle(record: &mut ContainerRecord, resources: LinuxContainerResources) {
    record.config.0.linux.get_or_insert_default().resources = Some(resources);
    record.updating = None;
}

/// Whether the container's processes are this node's own, in the cgroup that the spec names.
fn directly(run: &Path) -> Result<bool> {
    let path = run.join("config");
    let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
    let config = MonitorConfig::parse_from_bytes(&bytes)
        .map_err(|e| Kind::Record { path, problem: e.to_string() })?;
    Ok(config.direct_signal)
}

/// A bundle's `config.json` with other resources, beside the one in force until it is kept.
struct NewSpec {
    path: PathBuf,
    kept: bool,
}

impl NewSpec {
    fn write(
        id: &str,
        path: PathBuf,
        limits: &oci::Resources,
        score: Option<i32>,
    ) -> Result<NewSpec> {
        let bad =
            |e: serde_json::Error| Kind::Record { path: path.clone(), problem: e.to_string() };
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let mut spec: Value = serde_json::from_slice(&bytes).map_err(bad)?;
        let failed = |source| Kind::Spec { id: id.to_owned(), source };
        let limits = oci::limits(limits).map_err(failed)?;
        let limits: Value = serde_json::from_slice(&limits).map_err(bad)?;
        put(&mut spec, &limits, score);
        let new = NewSpec { path, kept: false };
        let bytes = serde_json::to_vec(&spec)
            .map_err(|e| Kind::Record { path: new.path.clone(), problem: e.to_string() })?;
        step!("update: write spec", fs::write(new.beside(), bytes))
            .map_err(Error::file("write", new.beside()))?;
        Ok(new)
    }

    fn beside(&self) -> PathBuf {
        self.path.with_extension("json.new")
    }

    fn keep(mut self) -> Result<()> {
        step!("update: rename spec", fs::rename(self.beside(), &self.path))
            .map_err(Error::file("write", &self.path))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for NewSpec {
    fn drop(&mut self) {
        if !self.kept {
            let _ = step!("update: remove spec", fs::remove_file(self.beside()));
        }
    }
}

/// Puts limits into a spec, and leaves there what is not theirs: devices, processes, block I/O.
fn put(spec: &mut Value, limits: &Value, score: Option<i32>) {
    let resources = &mut spec["linux"]["resources"];
    for key in ["cpu", "memory", "hugepageLimits", "unified"] {
        if let Some(limit) = limits.get(key) {
            resources[key] = limit.clone();
        }
    }
    if let Some(score) = score {
        spec["process"]["oomScoreAdj"] = score.into();
    }
}

/// Gives a new OOM score to init, and to those in the group that have the same as it had; a process
/// that has given itself another keeps it.
fn set_scores(group: &Cgroup, init: i32, score: i32) -> std::io::Result<()> {
    let Some(own) = Score::of(group, init)? else { return Ok(()) };
    own.set(score)?;
    for pid in group.procs().unwrap_or_default() {
        // It may end at any time.
        if let Ok(Some(other)) = Score::of(group, pid)
            && other.value == own.value
        {
            let _ = other.set(score);
        }
    }
    Ok(())
}

/// The OOM score of a process.
struct Score {
    /// The process's folder below /proc: its for ever, and no later one's of the same pid.
    process: File,
    value: i32,
}

impl Score {
    /// `None` if the process is not in the group (any more).
    fn of(group: &Cgroup, pid: i32) -> std::io::Result<Option<Score>> {
        let process = File::open(format!("/proc/{pid}"))?;
        let inside = fs::read_to_string(Self::path(&process, "cgroup"))?;
        if !inside.lines().any(|line| line.contains(group.name())) {
            return Ok(None);
        }
        let value = fs::read_to_string(Self::path(&process, "oom_score_adj"))?;
        let value = value.trim().parse().map_err(std::io::Error::other)?;
        Ok(Some(Score { process, value }))
    }

    fn set(&self, score: i32) -> std::io::Result<()> {
        let path = Self::path(&self.process, "oom_score_adj");
        step!("update: set score", fs::write(path, score.to_string()))
    }

    fn path(process: &File, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{file}", process.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_come_into_a_spec_and_the_rest_of_it_stays() {
        let mut spec = json!({
            "process": { "args": ["a"], "oomScoreAdj": 5 },
            "linux": { "resources": {
                "devices": [1], "pids": { "limit": 3 },
                "cpu": { "shares": 2 }, "memory": { "limit": 7 },
            } },
        });
        let limits =
            json!({ "cpu": { "shares": 9, "cpus": "0" }, "unified": { "memory.high": "1" } });
        put(&mut spec, &limits, None);
        let resources = json!({
            "devices": [1], "pids": { "limit": 3 }, "memory": { "limit": 7 },
            "cpu": { "shares": 9, "cpus": "0" }, "unified": { "memory.high": "1" },
        });
        assert_eq!(spec["linux"]["resources"], resources);
        assert_eq!(spec["process"], json!({ "args": ["a"], "oomScoreAdj": 5 }));
        put(&mut spec, &json!({}), Some(-3));
        assert_eq!(spec["process"]["oomScoreAdj"], -3);
        assert_eq!(spec["linux"]["resources"], resources);
    }

    #[test]
    fn a_new_spec_takes_the_old_ones_place_only_when_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let old = r#"{"linux":{"resources":{}},"process":{}}"#;
        fs::write(&path, old).unwrap();
        let limits = oci::Resources { cpu_shares: Some(9), ..Default::default() };
        let write = || NewSpec::write("x", path.clone(), &limits, Some(1)).unwrap();
        drop(write());
        assert_eq!(fs::read_to_string(&path).unwrap(), old);
        write().keep().unwrap();
        let new = r#"{"linux":{"resources":{"cpu":{"shares":9}}},"process":{"oomScoreAdj":1}}"#;
        assert_eq!(fs::read_to_string(&path).unwrap(), new);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
