//! What confines a container beside its namespaces: seccomp, AppArmor, SELinux, capabilities, a
//! read-only root, and paths that are hidden or read-only.
//!
//! A profile can be asked for in two or three ways; the newer counts:
//! ```text
//! seccomp    seccomp     ─▶ seccomp_profile_path  "runtime/default", "localhost//path"
//! AppArmor   apparmor    ─▶ apparmor_profile      "runtime/default", "localhost/name"
//!                        ─▶ the pod's annotation container.apparmor.security.beta.…/<container>
//! ```
//! A pod's context is that of the process which holds its pid namespace, where it has one; it is
//! checked also where it has none.

use api_cri::v1::{
    Capability, ContainerConfig, LinuxContainerSecurityContext, NamespaceMode, PodSandboxConfig,
    SecurityProfile, security_profile::ProfileType,
};
use criod_config::{Config, RuntimeHandler};
use oci::{MountInput, MountKind};

use super::{Request, mode, user};
use crate::confine::{self, Confine};
use crate::error::{Error, Result, chain};
use crate::record::PodRecord;

/// What the kubelet of older releases asked for AppArmor with, on the pod.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Annotations by which volumes whose top folder has the label are not walked through.
const TRUST_TOP: [&str; 2] =
    ["io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", "try-skip-volume-selinux-label.crio.io"];
/// A container that SELinux does not confine.
const SUPER_PRIVILEGED: &str = "spc_t";
/// What is writable where all roots are read-only, and its mode.
const WRITABLE: [(&str, &str); 3] =
    [("/run", "mode=0755"), ("/tmp", "mode=1777"), ("/var/tmp", "mode=1777")];

/// A profile that is asked for, and the field that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked<'a> {
    pub(crate) field: &'static str,
    pub(crate) profile: Profile<'a>,
}

/// A profile that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile<'a> {
    /// Nothing is said.
    Unset,
    Default,
    Unconfined,
    /// The name of one that is loaded, or the path of its file.
    Localhost(&'a str),
}

impl<'a> Asked<'a> {
    fn by_field(field: &'static str, asked: &'a SecurityProfile) -> Result<Asked<'a>> {
        let reference = asked.localhost_ref.as_str();
        let bad = |why: String| Err(Error::invalid(format!("{field}: {why}")));
        let profile = match ProfileType::try_from(asked.profile_type) {
            Ok(ProfileType::Localhost) => {
                let name = reference.strip_prefix("localhost/").unwrap_or(reference);
                if name.is_empty() {
                    return bad("profile_type is Localhost, but localhost_ref is empty".into());
                }
                Profile::Localhost(name)
            }
            Ok(_) if !reference.is_empty() => {
                return bad(format!("localhost_ref {reference:?} needs the type Localhost"));
            }
            Ok(ProfileType::RuntimeDefault) => Profile::Default,
            Ok(ProfileType::Unconfined) => Profile::Unconfined,
            Err(_) => return bad(format!("unknown profile_type {}", asked.profile_type)),
        };
        Ok(Asked { field, profile })
    }

    fn by_text(field: &'static str, text: &'a str) -> Result<Asked<'a>> {
        let profile = match text {
            "" => Profile::Unset,
            "runtime/default" | "docker/default" => Profile::Default,
            "unconfined" => Profile::Unconfined,
            text => match text.strip_prefix("localhost/") {
                Some(name) if !name.is_empty() => Profile::Localhost(name),
                _ => return Err(Error::invalid(format!("{field}: {text:?} is no profile"))),
            },
        };
        Ok(Asked { field, profile })
    }

    #[expect(deprecated, reason = "clients of older releases send the old field alone")]
    fn seccomp(security: &'a LinuxContainerSecurityContext) -> Result<Asked<'a>> {
        match &security.seccomp {
            Some(profile) => Asked::by_field("seccomp", profile),
            None => Asked::by_text("seccomp_profile_path", &security.seccomp_profile_path),
        }
    }

    #[expect(deprecated, reason = "clients of older releases send the old field alone")]
    fn apparmor(
        security: &'a LinuxContainerSecurityContext,
        annotation: Option<&'a String>,
    ) -> Result<Asked<'a>> {
        match (&security.apparmor, annotation) {
            (Some(profile), _) => Asked::by_field("apparmor", profile),
            (None, Some(text)) if security.apparmor_profile.is_empty() => {
                Asked::by_text("annotation container.apparmor.security.beta.kubernetes.io", text)
            }
            _ => Asked::by_text("apparmor_profile", &security.apparmor_profile),
        }
    }
}

/// Refuses capabilities that nobody knows, naming the field.
pub(super) fn capabilities(asked: &Capability) -> Result<()> {
    for (field, names) in [
        ("add_capabilities", &asked.add_capabilities),
        ("drop_capabilities", &asked.drop_capabilities),
        ("add_ambient_capabilities", &asked.add_ambient_capabilities),
    ] {
        let all = |n: &str| n.eq_ignore_ascii_case("ALL") || n.eq_ignore_ascii_case("CAP_ALL");
        if let Some(name) = names.iter().find(|n| !all(n) && oci::caps::number(n).is_none()) {
            return Err(Error::invalid(format!("capabilities.{field}: unknown {name:?}")));
        }
    }
    Ok(())
}

/// The security context of the process that holds a pod's pid namespace: the pod's, and nothing
/// that it does not need.
#[expect(deprecated, reason = "clients of older releases send the old field alone")]
pub(crate) fn of_pod(config: &PodSandboxConfig) -> LinuxContainerSecurityContext {
    let asked = confine::sandbox(config);
    // A group alone is the user's who is not named.
    let root = asked.run_as_group.and(Some(api_cri::v1::Int64Value { value: 0 }));
    LinuxContainerSecurityContext {
        namespace_options: Some(api_cri::v1::NamespaceOption {
            pid: NamespaceMode::Container as i32,
            ..asked.namespace_options.unwrap_or_default()
        }),
        selinux_options: asked.selinux_options,
        run_as_user: asked.run_as_user.or(root),
        run_as_group: asked.run_as_group,
        supplemental_groups: asked.supplemental_groups,
        supplemental_groups_policy: asked.supplemental_groups_policy,
        readonly_rootfs: true,
        seccomp: asked.seccomp,
        seccomp_profile_path: asked.seccomp_profile_path,
        apparmor: asked.apparmor,
        no_new_privs: true,
        capabilities: Some(Capability {
            drop_capabilities: vec!["ALL".into()],
            ..Capability::default()
        }),
        masked_paths: oci::DEFAULT_MASKED_PATHS.map(String::from).to_vec(),
        readonly_paths: oci::DEFAULT_READONLY_PATHS.map(String::from).to_vec(),
        ..LinuxContainerSecurityContext::default()
    }
}

/// Checks a pod's security context, whether a process comes to have it or not.
pub(crate) fn check_pod(
    config: &PodSandboxConfig,
    node: &Config,
    handler: &RuntimeHandler,
    confine: &Confine,
) -> Result<()> {
    let security = of_pod(config);
    user::wanted(&security)?;
    confine.seccomp(&Asked::seccomp(&security)?, false, node, handler)?;
    let apparmor = Asked::apparmor(&security, None)?;
    if apparmor.profile != Profile::Unset {
        confine.apparmor(&apparmor, false, node)?;
    }
    let linux = config.linux.clone().unwrap_or_default();
    let modes = security.namespace_options.unwrap_or_default();
    for (name, value) in &linux.sysctls {
        sysctl(name, value, mode(modes.network)?, mode(modes.ipc)?)?;
    }
    Ok(())
}

/// Checks a sysctl that a pod asks for.
fn sysctl(name: &str, value: &str, network: NamespaceMode, ipc: NamespaceMode) -> Result<()> {
    use namespace::Kind::{Ipc, Net, Uts};
    let bad = |why: &str| Err(Error::invalid(format!("linux.sysctls: {why}")));
    let kind = match namespace::kind_of_sysctl(name) {
        Ok(kind) => kind,
        Err(e) => return bad(&e.to_string()),
    };
    if let Err(e) = namespace::check_sysctl(name, value) {
        return bad(&e.to_string());
    }
    let node = |option: &str| {
        bad(&format!("{name} would change the node's: namespace_options.{option} is NODE"))
    };
    match kind {
        None => bad(&format!("{name} belongs to no namespace: it would change the whole node")),
        Some(Uts) if name.ends_with("hostname") => bad(&format!("{name} is what hostname is for")),
        Some(Net | Uts) if network == NamespaceMode::Node => node("network"),
        Some(Ipc) if ipc == NamespaceMode::Node => node("ipc"),
        Some(_) => Ok(()),
    }
}

/// The labels of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    /// Of its processes; empty leaves it to the policy, which then confines nothing.
    pub(crate) process: String,
    /// Of its root and what is mounted for it alone.
    pub(crate) mount: String,
    /// Of volumes that are to get one.
    pub(crate) volumes: String,
}

impl Labels {
    /// The labels of a container; none where the pod has none, as without SELinux.
    pub(crate) fn of(
        config: &ContainerConfig,
        pod: &PodRecord,
        args: &[String],
        node: &Config,
        handler: &RuntimeHandler,
        confine: &Confine,
    ) -> Result<Labels> {
        let (Some(selinux), Some(of_pod)) = (&confine.selinux, &pod.selinux) else {
            return Ok(Labels::default());
        };
        let security = super::security(config);
        let level = of_pod.level().unwrap_or_default();
        let sandbox = confine::sandbox(&pod.config.0);
        let below = confine::selinux_options(sandbox.selinux_options.as_ref());
        let options = confine::selinux_options(security.selinux_options.as_ref()).over(below);
        let kind = confine::kind_of(handler, args);
        let made = confine::labels(selinux, kind, &options, &level)?;
        let mut labels =
            Labels { process: made.process, volumes: made.mount.clone(), mount: made.mount };
        let modes = security.namespace_options.unwrap_or_default();
        let of_node = |m: i32| m == NamespaceMode::Node as i32;
        // Who sees the node's processes or memory would be of no use with a label of the pod's.
        let open = of_node(modes.pid) || of_node(super::pod_modes(pod).ipc);
        if open {
            labels.mount.clear();
        }
        let exempt = node.hostnetwork_disable_selinux && super::host_network(pod);
        if open || security.privileged || exempt {
            labels.process.clear();
        }
        if options.typ == SUPER_PRIVILEGED {
            labels.volumes.clear();
        }
        Ok(labels)
    }
}

/// Labels what is made for a container, and is no file system of its own.
pub(crate) fn label_root(root: &std::path::Path, labels: &Labels) -> Result<()> {
    if labels.mount.is_empty() {
        return Ok(());
    }
    security::selinux::relabel(root, &labels.mount, false)
        .map_err(|e| Error::precondition(chain(&e)))
}

impl Request<'_> {
    /// Whether the root is read-only.
    pub(super) fn readonly_root(&self) -> bool {
        super::security(self.config).readonly_rootfs || self.node.read_only
    }

    /// What a container needs to write to where all roots are read-only, unless it brings mounts
    /// of its own there. What the image has there is copied into it.
    pub(super) fn writable_folders(&self, mounts: &[MountInput]) -> Vec<MountInput> {
        if !self.node.read_only {
            return Vec::new();
        }
        let within = |folder: &str, point: &str| {
            point == folder || folder.strip_prefix(point).is_some_and(|r| r.starts_with('/'))
        };
        let free = WRITABLE.iter().filter(|(folder, _)| {
            !mounts.iter().any(|m| within(folder, m.destination.trim_end_matches('/')))
        });
        free.map(|(folder, mode)| MountInput {
            destination: (*folder).to_owned(),
            source: "tmpfs".into(),
            kind: MountKind::Tmpfs,
            options: ["noexec", "nosuid", "nodev", "tmpcopyup", mode].map(String::from).to_vec(),
            ..MountInput::default()
        })
        .collect()
    }

    pub(super) fn seccomp(
        &self,
        security: &LinuxContainerSecurityContext,
    ) -> Result<oci::SeccompInput> {
        let asked = Asked::seccomp(security)?;
        self.confine.seccomp(&asked, security.privileged, self.node, self.handler)
    }

    pub(super) fn apparmor(
        &self,
        security: &LinuxContainerSecurityContext,
    ) -> Result<Option<String>> {
        let name = self.config.metadata.as_ref().map_or("", |m| m.name.as_str());
        let annotations = &self.pod.config.0.annotations;
        let asked =
            Asked::apparmor(security, annotations.get(&format!("{APPARMOR_ANNOTATION}{name}")))?;
        self.confine.apparmor(&asked, security.privileged, self.node)
    }

    /// Gives a volume the container's label, if it asks for that and has one.
    pub(super) fn relabel(&self, asked: bool, source: &std::path::Path, at: &str) -> Result<()> {
        if !asked || self.labels.volumes.is_empty() {
            return Ok(());
        }
        let trust = |name: &&str| self.pod.config.0.annotations.get(*name);
        let trust_top = TRUST_TOP.iter().filter_map(trust).any(|v| v == "true");
        security::selinux::relabel(source, &self.labels.volumes, trust_top).map_err(|e| {
            let text = format!("mount {at:?}: selinux_relabel: {}", chain(&e));
            match e {
                security::Error::Protected { .. } => Error::invalid(text),
                _ => Error::precondition(text),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::paths::paths;

    fn field(kind: i32, reference: &str) -> SecurityProfile {
        SecurityProfile { profile_type: kind, localhost_ref: reference.into() }
    }

    #[test]
    fn profiles_by_field() {
        let of = |kind, reference: &str| {
            let asked = field(kind, reference);
            let asked = Asked::by_field("seccomp", &asked);
            asked.map(|a| format!("{:?}", a.profile)).map_err(|e| e.status().message().to_owned())
        };
        assert_eq!(of(0, "").unwrap(), "Default");
        assert_eq!(of(1, "").unwrap(), "Unconfined");
        assert_eq!(of(2, "/a/b").unwrap(), "Localhost(\"/a/b\")");
        assert_eq!(of(2, "localhost//a/b").unwrap(), "Localhost(\"/a/b\")");
        for (kind, reference) in
            [(2, ""), (2, "localhost/"), (0, "/a"), (1, "/a"), (3, ""), (-1, "")]
        {
            let e = of(kind, reference).unwrap_err();
            assert!(e.starts_with("seccomp: "), "{e}");
        }
    }

    #[test]
    fn profiles_by_text() {
        let of = |text| Asked::by_text("apparmor_profile", text).map(|a| a.profile);
        assert_eq!(of("").unwrap(), Profile::Unset);
        assert_eq!(of("runtime/default").unwrap(), Profile::Default);
        assert_eq!(of("unconfined").unwrap(), Profile::Unconfined);
        assert_eq!(of("localhost/a b").unwrap(), Profile::Localhost("a b"));
        for text in ["localhost/", "default", "Unconfined", " "] {
            let e = of(text).unwrap_err().status().message().to_owned();
            assert!(e.starts_with("apparmor_profile: "), "{e}");
        }
    }

    #[expect(deprecated, reason = "the old fields are what is tried")]
    #[test]
    fn the_newer_way_counts() {
        let text = "localhost/note".to_owned();
        let mut security = LinuxContainerSecurityContext {
            apparmor: Some(field(2, "new")),
            apparmor_profile: "localhost/old".into(),
            seccomp: Some(field(1, "")),
            seccomp_profile_path: "runtime/default".into(),
            ..LinuxContainerSecurityContext::default()
        };
        let apparmor = |s: &LinuxContainerSecurityContext| {
            format!("{:?}", Asked::apparmor(s, Some(&text)).unwrap().profile)
        };
        assert_eq!(apparmor(&security), "Localhost(\"new\")");
        assert_eq!(Asked::seccomp(&security).unwrap().profile, Profile::Unconfined);
        (security.apparmor, security.seccomp) = (None, None);
        assert_eq!(apparmor(&security), "Localhost(\"old\")");
        assert_eq!(Asked::seccomp(&security).unwrap().profile, Profile::Default);
        security.apparmor_profile.clear();
        assert_eq!(apparmor(&security), "Localhost(\"note\")");
    }

    #[test]
    fn capabilities_are_known_ones() {
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let good = Capability {
            add_capabilities: names(&["ALL", "net_raw"]),
            drop_capabilities: names(&["CAP_SYS_ADMIN", "all"]),
            add_ambient_capabilities: names(&["NET_BIND_SERVICE"]),
        };
        capabilities(&good).unwrap();
        let bad = Capability { drop_capabilities: names(&["CHOWN", "NOPE"]), ..good };
        let e = capabilities(&bad).unwrap_err();
        assert_eq!(e.status().message(), "capabilities.drop_capabilities: unknown \"NOPE\"");
    }

    #[test]
    fn sysctls_are_the_pods_own() {
        use NamespaceMode::{Node, Pod};
        let of = |name, value, network, ipc| {
            sysctl(name, value, network, ipc).map_err(|e| e.status().message().to_owned())
        };
        for name in [
            "net.ipv4.ip_forward",
            "net/ipv4/ip_forward",
            "kernel.shmmax",
            "fs.mqueue.msg_max",
            "kernel/msgmax",
            "kernel.sem",
        ] {
            of(name, "1", Pod, Pod).unwrap();
        }
        of("kernel.shmmax", "1", Node, Pod).unwrap();
        of("net.core.somaxconn", "1", Pod, Node).unwrap();
        for (name, value, network, ipc, why) in [
            ("net.core.somaxconn", "1", Node, Pod, "namespace_options.network is NODE"),
            ("net/core/somaxconn", "1", Node, Pod, "namespace_options.network is NODE"),
            ("kernel.domainname", "x", Node, Pod, "namespace_options.network is NODE"),
            ("kernel.sem", "1", Pod, Node, "namespace_options.ipc is NODE"),
            ("fs.mqueue.msg_max", "1", Pod, Node, "namespace_options.ipc is NODE"),
            ("vm.swappiness", "1", Pod, Pod, "belongs to no namespace"),
            ("kernel.core_pattern", "|/x", Pod, Pod, "belongs to no namespace"),
            ("kernel.hostname", "x", Pod, Pod, "is what hostname is for"),
            ("net.x", "1\n2", Pod, Pod, "is no value"),
            ("net/../kernel/panic", "1", Pod, Pod, "is not the name"),
            ("", "1", Pod, Pod, "is not the name"),
        ] {
            let e = of(name, value, network, ipc).unwrap_err();
            assert!(e.starts_with("linux.sysctls: ") && e.contains(why), "{name}: {e}");
        }
    }

    #[test]
    fn a_pods_group_alone_is_roots() {
        let security = |user: Option<i64>, group: Option<i64>| {
            let id = |value| api_cri::v1::Int64Value { value };
            let context = api_cri::v1::LinuxSandboxSecurityContext {
                run_as_user: user.map(id),
                run_as_group: group.map(id),
                ..Default::default()
            };
            let config = PodSandboxConfig {
                linux: Some(api_cri::v1::LinuxPodSandboxConfig {
                    security_context: Some(context),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let made = of_pod(&config);
            (made.run_as_user.map(|v| v.value), made.run_as_group.map(|v| v.value))
        };
        assert_eq!(security(None, None), (None, None));
        assert_eq!(security(None, Some(7)), (Some(0), Some(7)));
        assert_eq!(security(Some(5), Some(7)), (Some(5), Some(7)));
    }

    #[test]
    fn nobody_who_says_nothing_is_unmasked() {
        let list =
            |config: &ContainerConfig| paths(config, "masked_paths", |s| &s.masked_paths).unwrap();
        assert_eq!(list(&ContainerConfig::default()), None);
        let linux = |security| api_cri::v1::LinuxContainerConfig {
            security_context: security,
            ..Default::default()
        };
        let with =
            |security| ContainerConfig { linux: Some(linux(security)), ..Default::default() };
        assert_eq!(list(&with(None)), None);
        assert_eq!(list(&with(Some(LinuxContainerSecurityContext::default()))), Some(vec![]));
    }

    #[test]
    fn labels_of_containers() {
        use api_cri::v1::{
            ContainerMetadata, LinuxContainerConfig, LinuxPodSandboxConfig,
            LinuxSandboxSecurityContext, NamespaceOption, SeLinuxOption,
        };
        let node = confine::tests::Node::new();
        let (config, handler) = (Config::default(), RuntimeHandler::default());
        let pod = |modes: NamespaceOption, typ: &str| {
            let context = LinuxSandboxSecurityContext {
                namespace_options: Some(modes),
                selinux_options: Some(SeLinuxOption { r#type: typ.into(), ..Default::default() }),
                ..Default::default()
            };
            let linux =
                LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
            PodSandboxConfig { linux: Some(linux), ..Default::default() }
        };
        let record = |config: PodSandboxConfig| PodRecord {
            selinux: node.confine.pod_labels(&config, &handler, |l| l != "s0:c1,c2").unwrap(),
            ..PodRecord::new("p".into(), config, 0, "")
        };
        let with = |pod: &PodRecord,
                    config: &Config,
                    program: &str,
                    change: &dyn Fn(&mut LinuxContainerSecurityContext)| {
            let mut security = LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container as i32,
                    ..super::super::pod_modes(pod)
                }),
                ..Default::default()
            };
            change(&mut security);
            let linux =
                LinuxContainerConfig { security_context: Some(security), ..Default::default() };
            let container = ContainerConfig {
                metadata: Some(ContainerMetadata::default()),
                linux: Some(linux),
                ..Default::default()
            };
            let args = [program.to_owned()];
            let labels = Labels::of(&container, pod, &args, config, &handler, &node.confine);
            let labels = labels.unwrap();
            let typ = |l: &str| l.split(':').nth(2).unwrap_or_default().to_owned();
            let level = |l: &str| l.splitn(4, ':').nth(3).unwrap_or_default().to_owned();
            [
                typ(&labels.process),
                level(&labels.process),
                level(&labels.mount),
                level(&labels.volumes),
            ]
        };
        let own = NamespaceOption::default();
        let none = |_: &mut LinuxContainerSecurityContext| ();
        let plain = record(pod(own.clone(), ""));
        let l = "s0:c1,c2";
        assert_eq!(with(&plain, &config, "x", &none), ["container_t", l, l, l]);
        assert_eq!(with(&plain, &config, "/sbin/init", &none), ["container_init_t", l, l, l]);
        // The container's options, then the pod's.
        let of_pod = record(pod(own.clone(), "pod_t"));
        assert_eq!(with(&of_pod, &config, "/sbin/init", &none), ["pod_t", l, l, l]);
        let option = |s: &mut LinuxContainerSecurityContext| {
            s.selinux_options = Some(SeLinuxOption {
                r#type: "own_t".into(),
                level: "s0:c7,c8".into(),
                ..Default::default()
            });
        };
        let other = "s0:c7,c8";
        assert_eq!(with(&of_pod, &config, "x", &option), ["own_t", other, other, other]);
        // Who is not confined, and whose volumes are left alone.
        let privileged = |s: &mut LinuxContainerSecurityContext| s.privileged = true;
        assert_eq!(with(&plain, &config, "x", &privileged), ["", "", l, l]);
        let super_privileged = record(pod(own.clone(), "spc_t"));
        assert_eq!(with(&super_privileged, &config, "x", &none), ["spc_t", l, l, ""]);
        let of_node = NamespaceMode::Node as i32;
        let ipc = record(pod(NamespaceOption { ipc: of_node, ..own.clone() }, ""));
        assert_eq!(with(&ipc, &config, "x", &none), ["", "", "", l]);
        let pid = |s: &mut LinuxContainerSecurityContext| {
            s.namespace_options =
                Some(NamespaceOption { pid: of_node, ..NamespaceOption::default() });
        };
        assert_eq!(with(&plain, &config, "x", &pid), ["", "", "", l]);
        let network = record(pod(NamespaceOption { network: of_node, ..own }, ""));
        assert_eq!(with(&network, &config, "x", &none), ["", "", l, l]);
        let confined = Config { hostnetwork_disable_selinux: false, ..Config::default() };
        assert_eq!(with(&network, &confined, "x", &none), ["container_t", l, l, l]);
        // A pod from before SELinux was turned on has none.
        let before = PodRecord { selinux: None, ..plain };
        assert_eq!(with(&before, &config, "x", &none), ["", "", "", ""]);
    }
}
