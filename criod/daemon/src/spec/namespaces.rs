//! Which namespaces a container is in: its own, its pod's (pinned), another container's, the node's.

use std::path::PathBuf;

use api_cri::v1::{ContainerConfig, LinuxContainerSecurityContext, NamespaceMode};
use namespace::Kind as NsKind;
use oci::Ns;

use super::userns::mappings;
use super::{Request, security};
use crate::error::{Error, Result};
use crate::record::PodRecord;

/// A mode of a namespace; an unknown number is the caller's mistake.
pub(crate) fn mode(number: i32) -> Result<NamespaceMode> {
    NamespaceMode::try_from(number)
        .map_err(|_| Error::invalid(format!("namespace_options: unknown mode {number}")))
}

/// The namespace options of a pod.
pub(crate) fn pod_modes(pod: &PodRecord) -> api_cri::v1::NamespaceOption {
    let linux = pod.config.0.linux.as_ref();
    linux
        .and_then(|l| l.security_context.as_ref())
        .and_then(|s| s.namespace_options.clone())
        .unwrap_or_default()
}

/// Whether the pod is on the node's network.
pub(crate) fn host_network(pod: &PodRecord) -> bool {
    pod_modes(pod).network == NamespaceMode::Node as i32
}

/// Whether the pod asks for one pid namespace for all its containers. One that says nothing of
/// namespaces does not.
pub(crate) fn wants_shared_pid(pod: &PodRecord) -> bool {
    let linux = pod.config.0.linux.as_ref();
    let options = linux.and_then(|l| l.security_context.as_ref()?.namespace_options.as_ref());
    options.is_some_and(|o| o.pid == NamespaceMode::Pod as i32)
}

/// Whether the container shares its pid namespace with others.
pub(crate) fn shares_pid(config: &ContainerConfig, pod: &PodRecord) -> bool {
    let pid = security(config).namespace_options.unwrap_or_default().pid;
    match NamespaceMode::try_from(pid) {
        Ok(NamespaceMode::Container) => false,
        Ok(NamespaceMode::Pod) => pod.infra_pid > 0,
        _ => true,
    }
}

/// The container whose pid namespace is to be joined.
pub(crate) fn target(config: &ContainerConfig) -> Option<String> {
    let options = security(config).namespace_options?;
    (options.pid == NamespaceMode::Target as i32).then_some(options.target_id)
}

impl Request<'_> {
    pub(super) fn namespaces(
        &self,
        security: &LinuxContainerSecurityContext,
    ) -> Result<oci::Namespaces> {
        let asked = security.namespace_options.clone().unwrap_or_default();
        let users = self.users(&asked)?;
        let (uid_mappings, gid_mappings) = mappings(users);
        // A pin that is missing is never taken for the host's namespace.
        let modes = pod_modes(self.pod);
        let pinned = |kind: NsKind, host: bool| match (host, self.pinned.get(kind)) {
            (true, _) => Ok(Ns::Host),
            (false, Some(pin)) if namespace::is_namespace(pin) => Ok(Ns::Path(pin.to_owned())),
            (false, _) => Err(Error::precondition(format!(
                "the {} namespace of pod sandbox {} is gone",
                kind.name(),
                self.pod.id
            ))),
        };
        // POD is the pod's, whatever that has.
        for (field, asked, of_pod) in
            [("network", asked.network, modes.network), ("ipc", asked.ipc, modes.ipc)]
        {
            match mode(asked)? {
                NamespaceMode::Pod => {}
                NamespaceMode::Node if of_pod == NamespaceMode::Node as i32 => {}
                other => {
                    let name = other.as_str_name();
                    let text =
                        format!("namespace_options.{field}: {name} is not the pod sandbox's");
                    return Err(Error::invalid(text));
                }
            }
        }
        if !asked.target_id.is_empty() && asked.pid != NamespaceMode::Target as i32 {
            return Err(Error::invalid("namespace_options.target_id: only with the pid TARGET"));
        }
        let host_network = host_network(self.pod);
        let pid = match mode(asked.pid)? {
            NamespaceMode::Container => Ns::New,
            NamespaceMode::Node => Ns::Host,
            NamespaceMode::Pod if wants_shared_pid(self.pod) => {
                if self.pod.infra_pid == 0 || !namespace::is_namespace(self.pid_pin) {
                    return Err(Error::precondition(format!(
                        "the pid namespace of pod sandbox {} is gone",
                        self.pod.id
                    )));
                }
                Ns::Path(self.pid_pin.to_owned())
            }
            NamespaceMode::Pod => Ns::New,
            NamespaceMode::Target => {
                let pid = self
                    .target_pid
                    .ok_or_else(|| Error::precondition("the target container is not running"))?;
                Ns::Path(PathBuf::from(format!("/proc/{pid}/ns/pid")))
            }
        };
        Ok(oci::Namespaces {
            network: pinned(NsKind::Net, host_network)?,
            ipc: pinned(NsKind::Ipc, modes.ipc == NamespaceMode::Node as i32)?,
            uts: pinned(NsKind::Uts, host_network)?,
            pid,
            // A privileged one is to see the node's cgroups.
            cgroup: match self.hierarchy.is_v2() && !security.privileged {
                true => Ns::New,
                false => Ns::Host,
            },
            user: pinned(NsKind::User, users.is_none())?,
            uid_mappings,
            gid_mappings,
            ..oci::Namespaces::default()
        })
    }
}
