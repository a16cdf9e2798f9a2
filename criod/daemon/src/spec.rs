//! From a request of the CRI to what [`oci::build`] takes.
//!
//! What a request asks for and criod cannot give is refused here with an error that names the
//! field; nothing is dropped in silence.

mod paths;
mod signal;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use api_cri::v1::{
    ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    MountPropagation, NamespaceMode, SupplementalGroupsPolicy, security_profile::ProfileType,
};
use criod_config::{Config, RuntimeHandler};
use namespace::{Kind as NsKind, Pinned};
use oci::users::{GroupsPolicy, ResolvedUser, UserRequest};
use oci::{MountInput, MountKind, Ns, Propagation, SeccompInput, SpecInput};
use registry::image::ContainerDefaults;

use self::paths::{check_propagation, clean};
pub(crate) use self::signal::stop_signal;
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::record::PodRecord;

/// No passwd or group file of an image is read beyond this size, in bytes.
const MAX_USER_FILE: u64 = 16 << 20;

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

fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
}

/// The command line: the request's, completed from the image.
pub(crate) fn args(config: &ContainerConfig, image: &ContainerDefaults) -> Result<Vec<String>> {
    let mut args = config.command.clone();
    if args.is_empty() {
        args.clone_from(&image.entrypoint);
        args.extend(if config.args.is_empty() { image.cmd.clone() } else { config.args.clone() });
    } else {
        args.extend(config.args.iter().cloned());
    }
    if args.is_empty() {
        return Err(Error::invalid("no command: neither the request nor the image names one"));
    }
    Ok(args)
}

/// Resolves who the container runs as, from the files in its root.
pub(crate) fn user(
    config: &ContainerConfig,
    image: &ContainerDefaults,
    rootfs: &Path,
) -> Result<ResolvedUser> {
    let security = security(config);
    let number = |field: &str, value: i64| {
        u32::try_from(value).map_err(|_| Error::invalid(format!("{field}: {value} is no id")))
    };
    let asked = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => {
            return Err(Error::invalid("run_as_user and run_as_username are both set"));
        }
        (Some(uid), _) => number("run_as_user", uid.value)?.to_string(),
        (None, "") => image.user.clone(),
        (None, name) => name.to_owned(),
    };
    let gid = match &security.run_as_group {
        Some(_) if security.run_as_user.is_none() && security.run_as_username.is_empty() => {
            return Err(Error::invalid("run_as_group is set, but no user"));
        }
        Some(gid) => Some(number("run_as_group", gid.value)?),
        None => None,
    };
    let supplemental: Vec<u32> = security
        .supplemental_groups
        .iter()
        .map(|g| number("supplemental_groups", *g))
        .collect::<Result<_>>()?;
    let policy = match SupplementalGroupsPolicy::try_from(security.supplemental_groups_policy) {
        Ok(SupplementalGroupsPolicy::Merge) => GroupsPolicy::Merge,
        Ok(SupplementalGroupsPolicy::Strict) => GroupsPolicy::Strict,
        Err(_) => {
            let text = format!(
                "supplemental_groups_policy: unknown value {}",
                security.supplemental_groups_policy
            );
            return Err(Error::invalid(text));
        }
    };
    let read = |path: &str| {
        storage::read_in_root(rootfs, path, MAX_USER_FILE).map(Option::unwrap_or_default).map_err(
            |source| Error::from(Kind::Storage { id: path.to_owned(), action: "read", source }),
        )
    };
    let request = UserRequest { user: &asked, gid, supplemental: &supplemental, policy };
    oci::users::resolve(&request, &read("/etc/passwd")?, &read("/etc/group")?)
        .map_err(|e| Error::invalid(e.to_string()))
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
            resources: resources(self.config, self.handler)?,
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

    fn spec_error(&self, source: oci::Error) -> Error {
        Kind::Spec { id: self.id.to_owned(), source }.into()
    }

    fn process(
        &self,
        security: &LinuxContainerSecurityContext,
        user: &ResolvedUser,
    ) -> Result<oci::ProcessInput> {
        let asked = security.capabilities.clone().unwrap_or_default();
        let base = self.node.default_capabilities.iter().map(|c| c.full());
        let base = oci::CapSet::from_names(base).map_err(|e| self.spec_error(e))?;
        let rlimits = self.node.default_ulimits.iter().map(|u| oci::Rlimit {
            name: u.name.clone(),
            soft: u.soft,
            hard: u.hard,
        });
        let cwd = match (self.config.working_dir.as_str(), self.image.working_dir.as_str()) {
            ("", "") => "/",
            ("", image) => image,
            (own, _) => own,
        };
        let oom = self.config.linux.as_ref().and_then(|l| l.resources.as_ref());
        Ok(oci::ProcessInput {
            args: args(self.config, self.image)?,
            env: self.env()?,
            cwd: cwd.to_owned(),
            terminal: self.config.tty,
            user: user.to_input(),
            capabilities: oci::Capabilities {
                base,
                add: asked.add_capabilities,
                drop: asked.drop_capabilities,
                add_ambient: asked.add_ambient_capabilities,
                inheritable: self.node.add_inheritable_capabilities,
            },
            privileged: security.privileged,
            no_new_privileges: security.no_new_privs,
            rlimits: rlimits.collect(),
            oom_score_adj: oom.map(|r| oom_score(r.oom_score_adj)),
            ..oci::ProcessInput::default()
        })
    }

    /// Lowest first: a path to find programs, the node's, the image's, the host name, the
    /// request's.
    fn env(&self) -> Result<Vec<(String, String)>> {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut env = vec![("PATH".to_owned(), path.to_owned())];
        if self.config.tty {
            env.push(("TERM".into(), "xterm".into()));
        }
        env.push(("HOSTNAME".into(), hostname(self.pod)));
        env.extend(self.node.default_env.iter().map(|e| (e.name.clone(), e.value.clone())));
        let of_image = self.image.env.iter().filter_map(|e| e.split_once('='));
        env.extend(of_image.map(|(k, v)| (k.to_owned(), v.to_owned())));
        for e in &self.config.envs {
            let value = String::from_utf8(e.value.clone()).map_err(|_| {
                Error::invalid(format!("envs: the value of {} is not UTF-8", e.key))
            })?;
            env.push((e.key.clone(), value));
        }
        Ok(env)
    }

    fn namespaces(&self, security: &LinuxContainerSecurityContext) -> Result<oci::Namespaces> {
        let asked = security.namespace_options.clone().unwrap_or_default();
        if asked.userns_options.as_ref().is_some_and(|u| u.mode == NamespaceMode::Pod as i32) {
            return Err(Error::unsupported("user namespaces are not supported yet"));
        }
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
            cgroup: if self.hierarchy.is_v2() { Ns::New } else { Ns::Host },
            ..oci::Namespaces::default()
        })
    }

    fn mounts(&self) -> Result<Vec<MountInput>> {
        let mut mounts = Vec::new();
        let taken: Vec<String> = self
            .config
            .mounts
            .iter()
            .map(|m| oci::normalise(&clean(&m.container_path)).map_err(|e| self.spec_error(e)))
            .collect::<Result<_>>()?;
        for (name, destination) in files::FILES {
            let source = self.pod_dir.join(name);
            if !taken.iter().any(|t| t == destination) && source.exists() {
                let mut mount = bind(&source, destination);
                mount.options = vec!["nosuid".into(), "nodev".into(), "noexec".into()];
                mount.readonly = security(self.config).readonly_rootfs;
                mounts.push(mount);
            }
        }
        let shm = match mode(pod_modes(self.pod).ipc)? {
            NamespaceMode::Node => PathBuf::from("/dev/shm"),
            _ => self.pod_dir.join("shm"),
        };
        mounts.push(bind(&shm, "/dev/shm"));
        for mount in &self.config.mounts {
            mounts.push(self.mount(mount)?);
        }
        Ok(mounts)
    }

    fn mount(&self, mount: &Mount) -> Result<MountInput> {
        let at = &mount.container_path;
        let refuse = |why: &str| Err(Error::invalid(format!("mount {at:?}: {why}")));
        if at.is_empty() {
            return refuse("container_path is empty");
        }
        if mount.image.as_ref().is_some_and(|i| !i.image.is_empty()) {
            let text = format!("mount {at:?}: image volumes are not supported yet");
            return Err(Error::unsupported(text));
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            let text = format!("mount {at:?}: id-mapped mounts are not supported yet");
            return Err(Error::unsupported(text));
        }
        if mount.host_path.is_empty() {
            return refuse("host_path is empty");
        }
        let propagation = match MountPropagation::try_from(mount.propagation) {
            Ok(MountPropagation::PropagationPrivate) => Propagation::Private,
            Ok(MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
            Ok(MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
            Err(_) => return refuse("unknown propagation"),
        };
        if mount.recursive_read_only {
            if !mount.readonly {
                return refuse("recursive_read_only needs readonly");
            }
            if propagation != Propagation::Private {
                return refuse("recursive_read_only needs private propagation");
            }
            let text = format!("mount {at:?}: recursive read-only is not supported yet");
            return Err(Error::unsupported(text));
        }
        let source = Path::new(&mount.host_path);
        if !source.is_absolute() {
            return refuse("host_path is not absolute");
        }
        let source = match fs::canonicalize(source) {
            Ok(real) => real,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(source).map_err(Error::file("create", source))?;
                fs::canonicalize(source).map_err(Error::file("resolve", source))?
            }
            Err(e) => return Err(Error::file("resolve", source)(e)),
        };
        if let Err(why) = check_propagation(&source, propagation) {
            return refuse(&format!("{}: {why}", source.display()));
        }
        Ok(MountInput {
            readonly: mount.readonly,
            propagation,
            options: mount.mount_options.clone(),
            ..bind(&source, &clean(at))
        })
    }

    fn add_devices(&self, asked: &api_cri::v1::Device, input: &mut SpecInput) -> Result<()> {
        let host = Path::new(&asked.host_path);
        let container = match asked.container_path.as_str() {
            "" => host,
            path => Path::new(path),
        };
        let access = if asked.permissions.is_empty() { "rwm" } else { &asked.permissions };
        // A folder stands for the devices in it.
        let mut found = vec![(host.to_owned(), container.to_owned())];
        if host.is_dir() {
            let entries = fs::read_dir(host).map_err(Error::file("read", host))?;
            found = entries
                .flatten()
                .filter(|e| {
                    use std::os::unix::fs::FileTypeExt;
                    e.file_type().is_ok_and(|t| t.is_char_device() || t.is_block_device())
                })
                .map(|e| (e.path(), container.join(e.file_name())))
                .collect();
            found.sort();
        }
        for (host, container) in found {
            let device = oci::device(&host, &container, access).map_err(|e| self.spec_error(e))?;
            input.devices.retain(|d| d.path != device.path);
            input.devices.push(device);
        }
        Ok(())
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

fn bind(source: &Path, destination: &str) -> MountInput {
    MountInput {
        destination: destination.to_owned(),
        source: source.to_string_lossy().into_owned(),
        kind: MountKind::Bind,
        ..MountInput::default()
    }
}

/// `None` is the default list. The kubelet sends the list that holds; an empty one from it means a
/// pod whose procMount is Unmasked, but it also means a client that says nothing.
fn paths(asked: &[String], privileged: bool) -> Option<Vec<String>> {
    match (asked.is_empty(), privileged) {
        (_, true) => Some(Vec::new()),
        (true, false) => None,
        (false, false) => Some(asked.to_vec()),
    }
}

/// The host name of a pod.
pub(crate) fn hostname(pod: &PodRecord) -> String {
    if !pod.config.0.hostname.is_empty() {
        return pod.config.0.hostname.clone();
    }
    if host_network(pod) {
        let node = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok());
        return node.unwrap_or_default();
    }
    pod.id.chars().take(12).collect()
}

/// Without CAP_SYS_RESOURCE a score below our own cannot be set: it is raised to that.
fn oom_score(asked: i64) -> i32 {
    let asked = i32::try_from(asked.clamp(-1000, 1000)).unwrap_or(0);
    static LIMIT: std::sync::OnceLock<Option<i32>> = std::sync::OnceLock::new();
    let limit = LIMIT.get_or_init(|| {
        let may = oci::caps::grantable().is_ok_and(|c| c.has("CAP_SYS_RESOURCE"));
        if may {
            return None;
        }
        let own = fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()?;
        tracing::info!(lowest = own, "no CAP_SYS_RESOURCE: OOM scores below this are raised to it");
        Some(own)
    });
    limit.map_or(asked, |lowest| asked.max(lowest))
}

fn resources(config: &ContainerConfig, handler: &RuntimeHandler) -> Result<oci::Resources> {
    let none = LinuxContainerResources::default();
    let asked = config.linux.as_ref().and_then(|l| l.resources.as_ref()).unwrap_or(&none);
    let least = i64::try_from(handler.min_memory()).unwrap_or(i64::MAX);
    if asked.memory_limit_in_bytes > 0 && asked.memory_limit_in_bytes < least {
        return Err(Error::invalid(format!(
            "memory_limit_in_bytes: {} is below the least that this runtime can work with, {least}",
            asked.memory_limit_in_bytes
        )));
    }
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    Ok(oci::Resources {
        cpu_shares: u64::try_from(asked.cpu_shares).ok().filter(|v| *v > 0),
        cpu_quota: Some(asked.cpu_quota).filter(|v| *v != 0),
        cpu_period: u64::try_from(asked.cpu_period).ok().filter(|v| *v > 0),
        cpuset_cpus: text(&asked.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems),
        memory_limit: Some(asked.memory_limit_in_bytes).filter(|v| *v != 0),
        memory_swap: Some(asked.memory_swap_limit_in_bytes).filter(|v| *v != 0),
        hugepage_limits: asked
            .hugepage_limits
            .iter()
            .map(|h| (h.page_size.clone(), h.limit))
            .collect(),
        unified: asked.unified.clone(),
        ..oci::Resources::default()
    })
}

#[expect(deprecated, reason = "clients of older releases send the old field alone")]
fn seccomp(security: &LinuxContainerSecurityContext) -> Result<SeccompInput> {
    let local = |path: &str| {
        let path = path.strip_prefix("localhost/").unwrap_or(path);
        fs::read(path).map(SeccompInput::Profile).map_err(Error::file("read seccomp profile", path))
    };
    if security.privileged {
        return Ok(SeccompInput::Unconfined);
    }
    let Some(profile) = &security.seccomp else {
        return match security.seccomp_profile_path.as_str() {
            "" | "unconfined" => Ok(SeccompInput::Unconfined),
            "runtime/default" | "docker/default" => Ok(SeccompInput::Default),
            path => local(path),
        };
    };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(SeccompInput::Default),
        Ok(ProfileType::Unconfined) => Ok(SeccompInput::Unconfined),
        Ok(ProfileType::Localhost) => local(&profile.localhost_ref),
        Err(_) => Err(Error::invalid("seccomp: unknown profile type")),
    }
}

/// AppArmor is not there yet: a profile that must hold is refused.
#[expect(deprecated, reason = "clients of older releases send the old field alone")]
fn apparmor(security: &LinuxContainerSecurityContext) -> Result<()> {
    let localhost =
        security.apparmor.as_ref().is_some_and(|p| p.profile_type == ProfileType::Localhost as i32);
    if localhost || security.apparmor_profile.starts_with("localhost/") {
        return Err(Error::unsupported("apparmor: profiles of the node are not supported yet"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_completed_from_the_image() {
        let image = ContainerDefaults {
            entrypoint: vec!["e".into()],
            cmd: vec!["c".into()],
            ..Default::default()
        };
        let with = |command: &[&str], given: &[&str]| {
            let own = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect();
            let config =
                ContainerConfig { command: own(command), args: own(given), ..Default::default() };
            args(&config, &image).unwrap().join(" ")
        };
        assert_eq!(with(&[], &[]), "e c");
        assert_eq!(with(&[], &["a"]), "e a");
        assert_eq!(with(&["x"], &[]), "x");
        assert_eq!(with(&["x"], &["a"]), "x a");
        let none = ContainerDefaults::default();
        assert!(args(&ContainerConfig::default(), &none).is_err());
    }
}
