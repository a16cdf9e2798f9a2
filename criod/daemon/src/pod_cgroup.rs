//! The cgroups of a pod.
//!
//! ```text
//! <parent>                   the pod's: cgroup_parent, or /crio/pod<id> where the request names none
//!   ├─ crio-<container id>   made by the runtime, gone with the container
//!   └─ crio-<pod id>         of the process that holds the pid namespace; where there is none it
//!                            is empty, and there because cAdvisor knows pods by it
//! ```
//! Whose the parent is decides what is done with it:
//!
//! | the parent                    | limits (resources and overhead)  | end                          |
//! |-------------------------------|----------------------------------|------------------------------|
//! | was there (the kubelet's)     | are its maker's                  | is its maker's               |
//! | was not there                 | set here, and by updates         | with the last pod that is in it |
//! | was made for an earlier pod   | are that pod's                   | with the last pod that is in it |
//!
//! What is made is on record before it is made. What is gone already is a success: the kubelet
//! kills and removes all that is below a pod's cgroup.

use std::sync::{Arc, Mutex};

use api_cri::v1::{LinuxContainerResources, PodSandboxConfig, UpdatePodSandboxResourcesRequest};
use cgroup::Cgroup;

use crate::error::{Error, Kind, Result};
use crate::node::{Node, Pod, Save, blocking, lock};
use crate::record::{PodRecord, PodState};
use crate::spec::resources::{self, Able};

/// Where the cgroups of pods are that name none.
const ABOVE: &str = "/crio";

/// Held by whoever makes or removes a parent, so that none goes while another pod comes into it.
static PARENTS: Mutex<()> = Mutex::new(());

/// The name of the cgroup that a pod's containers are in; empty is the root.
pub(crate) fn parent(pod: &PodRecord) -> String {
    match asked_parent(pod) {
        "" => format!("{ABOVE}/pod{}", pod.id),
        parent => match parent.trim_matches('/') {
            "" => String::new(),
            parent => format!("/{parent}"),
        },
    }
}

fn asked_parent(pod: &PodRecord) -> &str {
    pod.config.0.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str())
}

/// The name of a container's cgroup.
pub(crate) fn cgroup_name(pod: &PodRecord, id: &str) -> String {
    format!("{}/crio-{id}", parent(pod))
}

/// What a pod may use, by its request.
fn limits(config: &PodSandboxConfig, able: Able) -> oci::Resources {
    let linux = config.linux.clone().unwrap_or_default();
    let (of_containers, overhead) = (linux.resources, linux.overhead);
    let sum = resources::pod_sum(&of_containers.unwrap_or_default(), &overhead.unwrap_or_default());
    resources::limits(&sum, able)
}

/// Refuses what a pod's cgroup cannot have.
pub(crate) fn check(config: &PodSandboxConfig, able: Able) -> Result<()> {
    let linux = config.linux.clone().unwrap_or_default();
    for (of, asked) in [("linux.resources.", linux.resources), ("linux.overhead.", linux.overhead)]
    {
        let Some(asked) = asked else { continue };
        resources::check(of, &asked, able)?;
        if asked.oom_score_adj != 0 {
            return Err(Error::invalid(format!("{of}oom_score_adj: a pod has none")));
        }
    }
    Ok(())
}

impl Node {
    pub(crate) fn able(&self) -> Able {
        Able::of(&self.hierarchy)
    }

    /// Makes the pod's cgroups, as far as they are not there. Blocks.
    pub(crate) fn make_pod_cgroups(&self, pod: &Pod, own_process: bool) -> Result<()> {
        let record = pod.record.get();
        let name = parent(&record);
        // Until something of this pod is in it, its parent looks unused.
        let _parents = lock(&PARENTS);
        if !name.is_empty() {
            self.make_parent(pod, &record, &self.cgroup(&name)?)?;
        }
        if own_process {
            return Ok(());
        }
        let group = self.cgroup(&cgroup_name(&record, &pod.id))?;
        group.create().map_err(|source| failed(&group, source))
    }

    /// The caller holds [`PARENTS`].
    fn make_parent(&self, pod: &Pod, record: &PodRecord, group: &Cgroup) -> Result<()> {
        // What has been made for other pods, which may be gone before this one.
        let others = self.all_pods().into_iter().map(|p| p.record.get());
        let others: Vec<_> =
            others.filter(|r| r.id != pod.id && !r.cgroup_top.is_empty()).collect();
        let Some(top) = group.first_missing() else {
            if let Some(other) = others.iter().find(|other| parent(other) == group.name()) {
                pod.record.update(Save::Now, |r| r.cgroup_top.clone_from(&other.cgroup_top))?;
            }
            return Ok(());
        };
        let within = |above: &str| {
            group.name().strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
        };
        let above = others.iter().map(|r| r.cgroup_top.as_str()).find(|top| within(top));
        let top = match above {
            Some(above) => above,
            // Where the pods are that name none is all theirs.
            None if asked_parent(record).is_empty() => group.name(),
            None => top.name(),
        };
        pod.record.update(Save::Now, |r| {
            r.cgroup_top = top.to_owned();
            r.cgroup_own = true;
        })?;
        group.create().map_err(|source| failed(group, source))?;
        self.limit_pod(group, record)
    }

    fn limit_pod(&self, group: &Cgroup, record: &PodRecord) -> Result<()> {
        let limits = limits(&record.config.0, self.able());
        let set = group.set(&resources::for_cgroup(limits));
        set.map_err(|source| resources_error(group, source))
    }

    /// Removes all cgroups that are named after a container or pod, wherever they are; whatever is in
    /// them is killed. Blocks.
    pub(crate) fn remove_cgroups_of(&self, id: &str) -> Result<()> {
        for group in self.hierarchy.named(&format!("crio-{id}")) {
            group.kill().and_then(|()| group.remove()).map_err(|source| failed(&group, source))?;
        }
        let group = self.cgroup(&format!("{ABOVE}/pod{id}"))?;
        group.kill().and_then(|()| group.remove()).map_err(|source| failed(&group, source))
    }

    /// Removes the pod's own cgroup; whatever is in it is killed. Blocks.
    pub(crate) fn remove_own_cgroup(&self, record: &PodRecord) -> Result<()> {
        let group = self.cgroup(&cgroup_name(record, &record.id))?;
        group.kill().and_then(|()| group.remove()).map_err(|source| failed(&group, source))
    }

    /// Removes the cgroup that the pod's containers were in, unless another made it or has it, too.
    pub(crate) fn remove_parent(&self, record: &PodRecord) -> Result<()> {
        if record.cgroup_top.is_empty() {
            return Ok(());
        }
        let (group, top) = (self.cgroup(&parent(record))?, self.cgroup(&record.cgroup_top)?);
        let _parents = lock(&PARENTS);
        // Nothing may be in it yet of a pod that is being created; that one has it removed later.
        let shared = self.all_pods().into_iter().any(|other| {
            let other = other.record.get();
            other.id != record.id
                && other.state != PodState::Removing
                && !other.cgroup_top.is_empty()
                && parent(&other) == group.name()
        });
        if shared {
            return Ok(());
        }
        group.remove_unused(&top).map_err(|source| failed(&group, source))
    }

    /// Changes what a pod may use: on record, and in its cgroup where that is criod's.
    pub(crate) async fn update_pod(
        self: &Arc<Self>,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<()> {
        let pod = self.pod(&request.pod_sandbox_id)?;
        let node = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _op = pod.op.lock().await;
            let own = Arc::clone(&pod);
            blocking(move || node.update_this_pod(&own, request)).await
        });
        task.await.unwrap_or_else(|_| Err(Kind::Panicked.into()))
    }

    fn update_this_pod(&self, pod: &Pod, request: UpdatePodSandboxResourcesRequest) -> Result<()> {
        let record = pod.record.get();
        match record.state {
            PodState::Ready if !record.stopping => {}
            PodState::Ready | PodState::NotReady => {
                return Err(Error::precondition(format!("pod sandbox {} is not ready", pod.id)));
            }
            PodState::Creating | PodState::Removing => {
                return Err(Error::not_found("pod sandbox", &pod.id));
            }
        }
        let mut config = record.config.0.clone();
        let linux = config.linux.get_or_insert_default();
        let merge = |old: &mut Option<LinuxContainerResources>, asked| {
            let Some(asked) = asked else { return };
            *old = Some(resources::merge(&old.take().unwrap_or_default(), &asked));
        };
        merge(&mut linux.resources, request.resources);
        merge(&mut linux.overhead, request.overhead);
        check(&config, self.able())?;
        let before = record.config.clone();
        let own = record.cgroup_own;
        let record = pod.record.update(Save::Now, |r| {
            r.config.0 = config;
            r.limiting = own;
        })?;
        if !own {
            return Ok(());
        }
        let done = match self.limit_pod(&self.cgroup(&parent(&record))?, &record) {
            // Somebody has taken it away; it will not come back.
            Err(e) if matches!(e.cgroup(), Some(cgroup::Error::NotFound { .. })) => Ok(()),
            done => done,
        };
        pod.record.update(Save::Soon, |r| {
            r.limiting = false;
            if done.is_err() {
                r.config = before;
            }
        })?;
        done
    }

    /// What an update had put on record when criod died may not have come into the cgroup.
    pub(crate) fn limit_pod_again(&self, pod: &Pod) {
        let record = pod.record.get();
        if !record.limiting || !record.cgroup_own || record.state != PodState::Ready {
            return;
        }
        let done = self.cgroup(&parent(&record)).and_then(|g| self.limit_pod(&g, &record));
        let done = done.and_then(|()| pod.record.update(Save::Soon, |r| r.limiting = false));
        if let Err(e) = done {
            tracing::warn!(pod = pod.id, "its limits: {}", e.chain());
        }
    }
}

fn failed(group: &Cgroup, source: cgroup::Error) -> Error {
    Kind::Cgroup { name: group.name().to_owned(), source }.into()
}

/// The same in words of the request, where the kernel would not have one of its values.
pub(crate) fn resources_error(group: &Cgroup, source: cgroup::Error) -> Error {
    use cgroup::Error::{InUse, NoController, UnifiedName, Write};
    let field = |path: &std::path::Path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = [
            ("cpu.shares", "cpu_shares"),
            ("cpu.weight", "cpu_shares"),
            ("cpu.cfs_period_us", "cpu_period"),
            ("cpu.cfs_quota_us", "cpu_quota"),
            ("cpu.max", "cpu_quota"),
            ("cpuset.cpus", "cpuset_cpus"),
            ("cpuset.mems", "cpuset_mems"),
            ("memory.limit_in_bytes", "memory_limit_in_bytes"),
            ("memory.max", "memory_limit_in_bytes"),
            ("memory.memsw.limit_in_bytes", "memory_swap_limit_in_bytes"),
            ("memory.swap.max", "memory_swap_limit_in_bytes"),
        ];
        match known.iter().find(|(name, _)| *name == file) {
            Some((_, field)) => (*field).to_owned(),
            None if file.starts_with("hugetlb.") => "hugepage_limits".to_owned(),
            None => format!("unified {file:?}"),
        }
    };
    match &source {
        InUse { path, limit, usage } => Error::precondition(format!(
            "{}: cannot decrease memory limit to {limit} bytes: current usage is {usage} bytes",
            field(path)
        )),
        Write { path, value, source } if is_refusal(source) => {
            Error::invalid(format!("{}: the kernel refuses {value:?}: {source}", field(path)))
        }
        NoController { .. } | UnifiedName { .. } => Error::invalid(source.to_string()),
        _ => failed(group, source),
    }
}

/// Whether the kernel means the value, not the file: it makes no sense, or is more than the group
/// above has.
fn is_refusal(error: &std::io::Error) -> bool {
    use nix::libc::{E2BIG, EACCES, EBUSY, EINVAL, ENOSPC, ERANGE};
    matches!(error.raw_os_error(), Some(E2BIG | EACCES | EBUSY | EINVAL | ENOSPC | ERANGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cgroup_parent: &str) -> PodRecord {
        let linux = api_cri::v1::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.into(),
            ..Default::default()
        };
        let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
        let json = serde_json::json!({
            "id": "abc", "config": crate::record::Wire(config), "handler": "", "state": "Ready",
            "created_at": 0, "boot_id": "",
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn names() {
        for (asked, name) in [
            ("", "/crio/podabc/crio-1"),
            ("/", "/crio-1"),
            ("kubepods/pod1", "/kubepods/pod1/crio-1"),
            ("/kubepods/pod1/", "/kubepods/pod1/crio-1"),
        ] {
            assert_eq!(cgroup_name(&pod(asked), "1"), name);
        }
    }
}
