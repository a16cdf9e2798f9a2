//! From a request of the CRI to what [`oci::build`] takes.
//!
//! What a request asks for and criod cannot give is refused here with an error that names the
//! field; nothing is dropped in silence.

mod command;
mod devices;
mod mounts;
mod namespaces;
mod paths;
pub(crate) mod resources;
mod rlimits;
mod security;
mod signal;
mod user;

use std::collections::BTreeMap;
use std::path::Path;

use api_cri::v1::{ContainerConfig, LinuxContainerSecurityContext};
use criod_config::{Config, RuntimeHandler};
use namespace::Pinned;
use oci::SpecInput;
use oci::users::ResolvedUser;
use registry::image::ContainerDefaults;

pub(crate) use self::command::{args, hostname};
pub(crate) use self::namespaces::{
    host_network, mode, pod_modes, shares_pid, target, wants_shared_pid,
};
use self::security::{apparmor, paths, seccomp};
pub(crate) use self::signal::stop_signal;
pub(crate) use self::user::user;
use crate::error::{Error, Kind, Result};
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
    pub(crate) handler: &'a RuntimeHandler,
    pub(crate) host: oci::Host,
    pub(crate) hierarchy: &'a cgroup::Hierarchy,
    pub(crate) cgroup: &'a str,
    /// Pid of the process whose pid namespace a TARGET container joins.
    pub(crate) target_pid: Option<i32>,
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
            readonly_rootfs: security.readonly_rootfs,
            mounts: self.mounts()?,
            namespaces: self.namespaces(&security)?,
            cgroups_path: self.cgroup.to_owned(),
            resources: self.resources()?,
            privileged,
            masked_paths: paths(&security.masked_paths, privileged),
            readonly_paths: paths(&security.readonly_paths, privileged),
            seccomp: seccomp(&security)?,
            annotations: self.annotations(),
            host: self.host,
            ..SpecInput::default()
        };
        if privileged && !self.handler.privileged_without_host_devices {
            input.devices = oci::host_devices(Path::new("/dev")).map_err(|e| self.spec_error(e))?;
        }
        for device in &self.config.devices {
            self.add_devices(device, &mut input)?;
        }
        if !self.config.cdi_devices.is_empty() {
            return Err(Error::unsupported("CDI_devices are not supported yet"));
        }
        apparmor(&security)?;
        input.process = self.process(&security, user)?;
        Ok(input)
    }

    fn resources(&self) -> Result<oci::Resources> {
        let asked = resources::asked(self.config);
        let able = resources::Able::of(self.hierarchy);
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
