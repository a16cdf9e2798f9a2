//! From a request of the CRI to what [`oci::build`] takes.
//!
//! What a request asks for and criod cannot give is refused here with an error that names the
//! field; nothing is dropped in silence.

mod annotations;
mod cdi;
mod command;
mod devices;
#[cfg(test)]
mod golden;
mod hooks;
mod mounts;
mod namespaces;
mod paths;
pub(crate) mod resources;
mod rlimits;
mod security;
mod signal;
mod user;
mod userns;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use api_cri::v1::{ContainerConfig, LinuxContainerSecurityContext};
use criod_config::{Config, RuntimeHandler};
use namespace::Pinned;
use oci::SpecInput;
use oci::users::ResolvedUser;
use registry::image::ContainerDefaults;

pub(crate) use self::annotations::shm_size;
pub(crate) use self::command::{args, hostname};
pub(crate) use self::namespaces::{
    host_network, mode, pod_modes, shares_pid, target, wants_shared_pid,
};
pub(crate) use self::paths::clean;
use self::paths::paths;
use self::security::capabilities;
pub(crate) use self::security::{Asked, Labels, Profile, check_pod, label_root, of_pod};
pub(crate) use self::signal::stop_signal;
pub(crate) use self::user::{name_user, user};
pub(crate) use self::userns::{check_users, mount_users, pod_root, pod_users};
use crate::confine::Confine;
use crate::error::{Error, Kind, Result};
use crate::features::Features;
use crate::record::PodRecord;

/// What a container's spec is made from.
pub(crate) struct Request<'a> {
    pub(crate) id: &'a str,
    pub(crate) config: &'a ContainerConfig,
    pub(crate) pod: &'a PodRecord,
    /// The pod's folder below runroot.
    pub(crate) pod_dir: &'a Path,
    pub(crate) pinned: &'a Pinned,
    /// Where the pod's shared pid namespace is pinned.
    pub(crate) pid_pin: &'a Path,
    pub(crate) image: &'a ContainerDefaults,
    pub(crate) rootfs: &'a Path,
    pub(crate) node: &'a Config,
    pub(crate) cdi: &'a ::cdi::Registry,
    pub(crate) features: Arc<Features>,
    pub(crate) handler: &'a RuntimeHandler,
    pub(crate) host: oci::Host,
    pub(crate) confine: &'a Confine,
    /// Empty ones without SELinux.
    pub(crate) labels: &'a Labels,
    pub(crate) hierarchy: &'a cgroup::Hierarchy,
    /// What the node can limit.
    pub(crate) able: resources::Able,
    pub(crate) cgroup: &'a str,
    /// Pid of the process whose pid namespace a TARGET container joins.
    pub(crate) target_pid: Option<i32>,
    /// The folder of the container's record.
    pub(crate) dir: &'a Path,
    /// The container's folder below runroot.
    pub(crate) run: &'a Path,
    /// It is the pod's own process.
    pub(crate) infra: bool,
    /// Where its image volumes are mounted.
    pub(crate) volumes: &'a crate::volumes::Sources,
}

fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
}

impl Request<'_> {
    /// The whole spec.
    pub(crate) fn build(&self, user: &ResolvedUser) -> Result<SpecInput> {
        let security = security(self.config);
        let privileged = security.privileged;
        let pod_security =
            self.pod.config.0.linux.as_ref().and_then(|l| l.security_context.clone());
        if privileged && !pod_security.is_some_and(|s| s.privileged) {
            return Err(Error::invalid("a privileged container needs a privileged pod sandbox"));
        }
        let mut input = SpecInput {
            rootfs: self.rootfs.to_owned(),
            readonly_rootfs: self.readonly_root(),
            mounts: self.mounts(user)?,
            namespaces: self.namespaces(&security)?,
            cgroups_path: self.cgroup.to_owned(),
            resources: self.resources()?,
            privileged,
            masked_paths: paths(self.config, "masked_paths", |s| &s.masked_paths)?,
            readonly_paths: paths(self.config, "readonly_paths", |s| &s.readonly_paths)?,
            seccomp: self.seccomp(&security)?,
            mount_label: Some(self.labels.mount.clone()),
            annotations: self.annotations(),
            host: self.host,
            ..SpecInput::default()
        };
        if input.namespaces.cgroup == oci::Ns::Host {
            input.cgroup_options = self.hierarchy.v2_flags().to_vec();
        }
        input.devices_as_unprivileged = self.handler.privileged_without_host_devices;
        self.add_devices(privileged, &mut input)?;
        input.mounts.extend(self.writable_folders(&input.mounts));
        capabilities(&security.capabilities.clone().unwrap_or_default())?;
        input.process = self.process(&security, user)?;
        input.process.apparmor_profile = self.apparmor(&security)?;
        input.process.selinux_label = Some(self.labels.process.clone());
        self.add_cdi_devices(&mut input)?;
        self.add_hooks(&mut input)?;
        Ok(input)
    }

    fn resources(&self) -> Result<oci::Resources> {
        let asked = resources::asked(self.config);
        let able = self.able;
        resources::check("", &asked, able)?;
        resources::check_least(asked.memory_limit_in_bytes, self.handler.min_memory())?;
        Ok(oci::Resources {
            // The CRI has no field for it.
            pids_limit: Some(self.node.pids_limit).filter(|limit| *limit > 0),
            ..resources::limits(&asked, able)
        })
    }

    fn spec_error(&self, source: oci::Error) -> Error {
        Kind::Spec { id: self.id.to_owned(), source }.into()
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let pod = &self.pod.config.0;
        let meta = pod.metadata.clone().unwrap_or_default();
        let name = self.config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        let mut all = self.config.annotations.clone();
        // Hooks and node agents of CRI-O's world look for these.
        let own = [
            ("io.container.manager", "criod".to_owned()),
            ("io.kubernetes.cri-o.ContainerType", "container".to_owned()),
            ("io.kubernetes.cri-o.ContainerID", self.id.to_owned()),
            ("io.kubernetes.cri-o.ContainerName", name),
            ("io.kubernetes.cri-o.SandboxID", self.pod.id.clone()),
            ("io.kubernetes.cri-o.SandboxName", meta.name),
            ("io.kubernetes.cri-o.Namespace", meta.namespace),
        ];
        all.extend(own.into_iter().map(|(k, v)| (k.to_owned(), v)));
        all
    }
}
