//! What confines containers on this node: which security modules the kernel has, and the profiles
//! that the configuration names.
//!
//! ```text
//! start ─▶ kernel asked ─▶ our AppArmor profile loaded, in the background
//! pod   ─▶ SELinux: a level that no other pod has, in the pod's record for as long as it is
//! container asks for the default ─▶ AppArmor: our profile, loaded again should somebody have
//!                                   removed it; or the configuration's, which must be loaded
//! ```
//! Profiles of seccomp that the configuration names are read for each container: a change holds
//! for the next one, and one that is broken refuses containers, not the start.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};

use api_cri::v1::{LinuxSandboxSecurityContext, PodSandboxConfig};
use criod_config::{Config, RuntimeHandler, RuntimeType};
use oci::SeccompInput;
use security::apparmor::AppArmor;
use security::selinux::{Context, Kind, Labels, Options, SeLinux, free_level};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::error::{Error, Result, chain};
use crate::node::{lock, random};
use crate::spec::{Asked, Profile};

/// The name under which CRI-O has a profile of its own, too.
const DEFAULT_PROFILE: &str = "crio-default";
/// In the place of a profile's name: none.
const UNCONFINED: &str = "unconfined";
/// Where distributions have apparmor_parser.
const PARSERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];
/// No profile of seccomp is larger, in bytes.
const MOST_SECCOMP: u64 = 1 << 20;

/// The security modules of the node.
#[derive(Debug)]
pub(crate) struct Confine {
    /// Whether the kernel filters system calls.
    seccomp: bool,
    apparmor: Option<AppArmor>,
    /// The text of our AppArmor profile as it was loaded last; in runroot, as a reboot unloads it.
    loaded: PathBuf,
    /// Held while our AppArmor profile is loaded.
    loading: Mutex<()>,
    pub(crate) selinux: Option<SeLinux>,
    /// Held while a pod's level is chosen and put on record.
    pub(crate) choosing: Mutex<()>,
}

/// The SELinux labels of a pod, in its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodLabels {
    /// Of its processes.
    pub(crate) process: String,
    /// Of its files and volumes.
    pub(crate) mount: String,
}

impl PodLabels {
    /// The level: what keeps it apart from other pods.
    pub(crate) fn level(&self) -> Option<String> {
        self.process.parse::<Context>().ok()?.level
    }
}

impl Confine {
    /// That of a node with neither AppArmor nor SELinux.
    #[cfg(test)]
    pub(crate) fn without_modules(run: &Path) -> Confine {
        Confine {
            seccomp: true,
            apparmor: None,
            loaded: run.join("apparmor"),
            loading: Mutex::default(),
            selinux: None,
            choosing: Mutex::default(),
        }
    }

    /// Asks the kernel.
    pub(crate) fn detect(config: &Config, run: &Path) -> Result<Confine> {
        let sys = Path::new("/sys");
        let selinux = match config.selinux {
            false => None,
            true => SeLinux::detect(sys, Path::new("/etc"), Path::new("/usr"))
                .map_err(|e| Error::precondition(format!("selinux: {}", chain(&e))))?,
        };
        if config.selinux && selinux.is_none() {
            warn!("selinux is set, but the kernel has no SELinux policy: pods get no labels");
        }
        Ok(Confine {
            seccomp: oci::seccomp::supported(Path::new("/proc")),
            apparmor: AppArmor::detect(sys, &PARSERS.map(PathBuf::from)),
            loaded: run.join("apparmor-profile"),
            loading: Mutex::default(),
            selinux,
            choosing: Mutex::default(),
        })
    }

    /// Says what of the configuration will not do, and loads our AppArmor profile where containers
    /// are to have it. Takes a while.
    pub(crate) fn prepare(&self, config: &Config) {
        let handlers = config.runtimes.values().filter_map(|h| h.seccomp_profile.as_ref());
        let named = [&config.seccomp_profile, &config.privileged_seccomp_profile];
        for path in named.into_iter().flatten().chain(handlers) {
            if let Err(e) = self.read_seccomp("seccomp_profile", path) {
                error!("containers that need it will be refused: {}", e.chain());
            }
        }
        if let Err(e) = self.default_apparmor(config) {
            error!("containers that need it will be refused: {}", e.chain());
        }
    }

    /// The AppArmor profile of containers that ask for the default one; `None` where the kernel has
    /// no AppArmor, or nothing to load a profile with.
    pub(crate) fn default_apparmor(&self, config: &Config) -> Result<Option<String>> {
        let Some(apparmor) = &self.apparmor else { return Ok(None) };
        match config.apparmor_profile.as_str() {
            UNCONFINED => return Ok(Some(UNCONFINED.to_owned())),
            "" | DEFAULT_PROFILE => {}
            own => {
                return match self.apparmor_loaded(own)? {
                    true => Ok(Some(own.to_owned())),
                    false => Err(Error::precondition(format!(
                        "apparmor_profile: the profile {own:?} is not loaded"
                    ))),
                };
            }
        }
        let _one = lock(&self.loading);
        let text = security::apparmor::text(DEFAULT_PROFILE);
        let loaded = self.apparmor_loaded(DEFAULT_PROFILE)?;
        let current = || fs::read_to_string(&self.loaded).is_ok_and(|known| known == text);
        if !loaded && !apparmor.has_parser() {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                warn!("the kernel has AppArmor, but there is no apparmor_parser to load the default profile with: containers run without");
            });
            return Ok(None);
        }
        // One that somebody loaded does until there is a parser for ours.
        if loaded && (!apparmor.has_parser() || current()) {
            return Ok(Some(DEFAULT_PROFILE.to_owned()));
        }
        match apparmor.load(DEFAULT_PROFILE) {
            Ok(()) => {
                info!(profile = DEFAULT_PROFILE, "AppArmor profile loaded");
                fs::write(&self.loaded, text).map_err(Error::file("write", &self.loaded))?;
            }
            Err(e) if loaded => warn!("the profile that is loaded stays: {}", chain(&e)),
            Err(e) => return Err(Error::precondition(chain(&e))),
        }
        Ok(Some(DEFAULT_PROFILE.to_owned()))
    }

    fn apparmor_loaded(&self, name: &str) -> Result<bool> {
        let Some(apparmor) = &self.apparmor else { return Ok(false) };
        apparmor.is_loaded(name).map_err(|e| Error::precondition(chain(&e)))
    }

    /// The AppArmor profile of a container.
    pub(crate) fn apparmor(
        &self,
        asked: &Asked<'_>,
        privileged: bool,
        config: &Config,
    ) -> Result<Option<String>> {
        let field = asked.field;
        match (&asked.profile, &self.apparmor) {
            (Profile::Localhost(name), None) => Err(Error::precondition(format!(
                "{field}: the profile {name:?} is asked for, but the kernel has no AppArmor"
            ))),
            (Profile::Localhost(name), Some(_)) => match self.apparmor_loaded(name)? {
                true => Ok(Some((*name).to_owned())),
                // Ours, which is loaded when it is needed.
                false if *name == DEFAULT_PROFILE => self.default_apparmor(config),
                false => {
                    Err(Error::precondition(format!("{field}: the profile {name:?} is not loaded")))
                }
            },
            (_, None) => Ok(None),
            (Profile::Unconfined, _) => Ok(Some(UNCONFINED.to_owned())),
            (Profile::Unset | Profile::Default, _) if privileged => Ok(None),
            (Profile::Unset | Profile::Default, _) => self.default_apparmor(config),
        }
    }

    /// The system calls that a container may make.
    pub(crate) fn seccomp(
        &self,
        asked: &Asked<'_>,
        privileged: bool,
        config: &Config,
        handler: &RuntimeHandler,
    ) -> Result<SeccompInput> {
        if privileged {
            return match &config.privileged_seccomp_profile {
                Some(path) if self.seccomp => self.read_seccomp("privileged_seccomp_profile", path),
                _ => Ok(SeccompInput::Unconfined),
            };
        }
        match asked.profile {
            Profile::Unset | Profile::Unconfined => Ok(SeccompInput::Unconfined),
            Profile::Default if !self.seccomp => {
                static SAID: Once = Once::new();
                SAID.call_once(|| warn!("the kernel has no seccomp: containers run without"));
                Ok(SeccompInput::Unconfined)
            }
            Profile::Default => {
                match handler.seccomp_profile.as_ref().or(config.seccomp_profile.as_ref()) {
                    None => Ok(SeccompInput::Default),
                    Some(path) => self.read_seccomp("seccomp_profile", path),
                }
            }
            Profile::Localhost(path) if !self.seccomp => Err(Error::precondition(format!(
                "{}: the profile {path:?} is asked for, but the kernel has no seccomp",
                asked.field
            ))),
            Profile::Localhost(path) => self.read_seccomp(asked.field, Path::new(path)),
        }
    }

    /// Reads and checks a profile of seccomp.
    fn read_seccomp(&self, field: &str, path: &Path) -> Result<SeccompInput> {
        let bad = |why: String| {
            Error::invalid(format!("{field}: seccomp profile {}: {why}", path.display()))
        };
        if !path.is_absolute() {
            return Err(bad("is not an absolute path".into()));
        }
        let read = || {
            // Opening anything else may wait, or do something.
            if !fs::metadata(path)?.is_file() {
                return Err(std::io::Error::other("is not a regular file"));
            }
            let mut bytes = Vec::new();
            fs::File::open(path)?.take(MOST_SECCOMP + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|e| bad(e.to_string()))?;
        if bytes.len() as u64 > MOST_SECCOMP {
            return Err(bad(format!("is larger than {MOST_SECCOMP} bytes")));
        }
        let host = oci::Host::current().map_err(|e| Error::precondition(chain(&e)))?;
        oci::seccomp::check(&bytes, &host).map_err(|e| bad(chain(&e)))?;
        Ok(SeccompInput::Profile(bytes))
    }

    /// The SELinux labels of a new pod, whose level nobody in `taken` has.
    pub(crate) fn pod_labels(
        &self,
        config: &PodSandboxConfig,
        handler: &RuntimeHandler,
        taken: impl Fn(&str) -> bool,
    ) -> Result<Option<PodLabels>> {
        let Some(selinux) = &self.selinux else { return Ok(None) };
        let level = free_level(u64::from_ne_bytes(random()?), taken)
            .map_err(|e| Error::precondition(chain(&e)))?;
        let context = sandbox(config);
        let kind = kind_of(handler, &[]);
        let labels = labels(selinux, kind, &options(&context), &level)?;
        Ok(Some(PodLabels { process: labels.process, mount: labels.mount }))
    }
}

/// The labels that options ask for; what is wrong with them names the field.
pub(crate) fn labels(
    selinux: &SeLinux,
    kind: Kind,
    options: &Options<'_>,
    level: &str,
) -> Result<Labels> {
    selinux.labels(kind, options, level).map_err(|e| match *options == Options::default() {
        true => Error::precondition(format!("selinux: {}", chain(&e))),
        false => Error::invalid(format!("selinux_options: {}", chain(&e))),
    })
}

/// What SELinux takes a container for.
pub(crate) fn kind_of(handler: &RuntimeHandler, args: &[String]) -> Kind {
    let program = args.first().map_or("", String::as_str);
    let init = ["/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init"].contains(&program)
        || program.rsplit('/').next() == Some("systemd");
    match handler.runtime_type {
        RuntimeType::Vm => Kind::Vm,
        _ if init => Kind::Init,
        _ => Kind::Program,
    }
}

/// The security context of a pod.
pub(crate) fn sandbox(config: &PodSandboxConfig) -> LinuxSandboxSecurityContext {
    config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
}

/// The options of a pod.
fn options(context: &LinuxSandboxSecurityContext) -> Options<'_> {
    selinux_options(context.selinux_options.as_ref())
}

/// Options in the terms of [`security::selinux`].
pub(crate) fn selinux_options(asked: Option<&api_cri::v1::SeLinuxOption>) -> Options<'_> {
    asked.map_or_else(Options::default, |o| Options {
        user: &o.user,
        role: &o.role,
        typ: &o.r#type,
        level: &o.level,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const POLICY: &str = "process = \"system_u:system_r:container_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n\
        init_process = \"system_u:system_r:container_init_t:s0\"\n\
        kvm_process = \"system_u:system_r:container_kvm_t:s0\"\n";

    /// A node that has what files below a folder say.
    pub(crate) struct Node {
        pub(crate) dir: tempfile::TempDir,
        pub(crate) confine: Confine,
    }

    impl Node {
        pub(crate) fn new() -> Node {
            let dir = tempfile::tempdir().unwrap();
            let file = |path: &str, text: &str| {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            };
            file("sys/module/apparmor/parameters/enabled", "Y\n");
            file("sys/kernel/security/apparmor/profiles", "mine (enforce)\n");
            file("sys/fs/selinux/enforce", "1");
            file("sys/fs/selinux/context", "");
            file("etc/selinux/config", "SELINUXTYPE=x\n");
            file("etc/selinux/x/contexts/lxc_contexts", POLICY);
            let at = |p: &str| dir.path().join(p);
            let confine = Confine {
                seccomp: true,
                apparmor: AppArmor::detect(&at("sys"), &[at("bin")]),
                loaded: at("apparmor-profile"),
                loading: Mutex::default(),
                selinux: SeLinux::detect(&at("sys"), &at("etc"), &at("usr")).unwrap(),
                choosing: Mutex::default(),
            };
            Node { dir, confine }
        }

        /// Gives it an apparmor_parser that runs this script.
        fn parser(&mut self, script: &str) {
            use std::os::unix::fs::PermissionsExt;
            let (sys, bin) = (self.dir.path().join("sys"), self.dir.path().join("bin"));
            let program = bin.join("apparmor_parser");
            fs::create_dir_all(&bin).unwrap();
            let profiles = sys.join("kernel/security/apparmor/profiles");
            let text = format!("#!/bin/sh\nPROFILES={}\n{script}\n", profiles.display());
            fs::write(&program, text).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            self.confine.apparmor = AppArmor::detect(&sys, &[bin]);
        }

        fn profiles(&self, text: &str) {
            fs::write(self.dir.path().join("sys/kernel/security/apparmor/profiles"), text).unwrap();
        }
    }

    fn asked(profile: Profile<'_>) -> Asked<'_> {
        Asked { field: "field", profile }
    }

    fn said<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().status().message().to_owned()
    }

    const LOAD: &str =
        "cat > /dev/null; echo load >> $0.log; echo 'crio-default (enforce)' >> $PROFILES";

    #[test]
    fn our_profile_is_loaded_once_and_again_when_it_is_gone() {
        let mut node = Node::new();
        node.parser(LOAD);
        let config = Config::default();
        let ours = || node.confine.default_apparmor(&config).unwrap();
        let loads = || {
            let log = node.dir.path().join("bin/apparmor_parser.log");
            fs::read_to_string(log).unwrap().lines().count()
        };
        assert_eq!(ours().as_deref(), Some("crio-default"));
        assert_eq!(ours().as_deref(), Some("crio-default"));
        assert_eq!(loads(), 1);
        node.profiles("");
        assert_eq!(ours().as_deref(), Some("crio-default"));
        assert_eq!(loads(), 2);
        // Another text than this criod's is replaced.
        fs::write(node.dir.path().join("apparmor-profile"), "of an older criod").unwrap();
        assert_eq!(ours().as_deref(), Some("crio-default"));
        assert_eq!(loads(), 3);
    }

    #[test]
    fn a_profile_that_cannot_be_loaded_refuses_what_needs_it() {
        let mut node = Node::new();
        let config = Config::default();
        // Nothing to load it with: as if there were no AppArmor.
        assert_eq!(node.confine.default_apparmor(&config).unwrap(), None);
        node.parser("echo no such keyword >&2; exit 1");
        assert!(said(node.confine.default_apparmor(&config)).ends_with("no such keyword"));
        // One that is there stays.
        node.profiles("crio-default (enforce)\n");
        assert_eq!(
            node.confine.default_apparmor(&config).unwrap().as_deref(),
            Some("crio-default")
        );
    }

    #[test]
    fn profiles_of_apparmor() {
        let mut node = Node::new();
        node.parser(LOAD);
        let config = Config::default();
        let of = |profile, privileged| node.confine.apparmor(&asked(profile), privileged, &config);
        let name = |profile, privileged| of(profile, privileged).unwrap();
        assert_eq!(name(Profile::Unset, false).as_deref(), Some("crio-default"));
        assert_eq!(name(Profile::Default, false).as_deref(), Some("crio-default"));
        assert_eq!(name(Profile::Default, true), None);
        assert_eq!(name(Profile::Unset, true), None);
        assert_eq!(name(Profile::Unconfined, false).as_deref(), Some("unconfined"));
        assert_eq!(name(Profile::Localhost("mine"), false).as_deref(), Some("mine"));
        assert_eq!(name(Profile::Localhost("mine"), true).as_deref(), Some("mine"));
        assert!(
            said(of(Profile::Localhost("yours"), false))
                .starts_with("field: the profile \"yours\"")
        );
        for (configured, want) in
            [("unconfined", "unconfined"), ("mine", "mine"), ("", "crio-default")]
        {
            let config = Config { apparmor_profile: configured.into(), ..Config::default() };
            let got = node.confine.apparmor(&asked(Profile::Default), false, &config).unwrap();
            assert_eq!(got.as_deref(), Some(want));
        }
        let config = Config { apparmor_profile: "yours".into(), ..Config::default() };
        assert!(said(node.confine.default_apparmor(&config)).starts_with("apparmor_profile: "));
    }

    #[test]
    fn a_kernel_without_apparmor() {
        let mut node = Node::new();
        node.confine.apparmor = None;
        let config = Config { apparmor_profile: "yours".into(), ..Config::default() };
        for profile in [Profile::Unset, Profile::Default, Profile::Unconfined] {
            assert_eq!(node.confine.apparmor(&asked(profile), false, &config).unwrap(), None);
        }
        let local = asked(Profile::Localhost("mine"));
        assert!(said(node.confine.apparmor(&local, false, &config)).contains("no AppArmor"));
    }

    #[test]
    fn profiles_of_seccomp() {
        let node = Node::new();
        let write = |name: &str, action: &str| {
            let path = node.dir.path().join(name);
            fs::write(&path, format!("{{\"defaultAction\": \"{action}\"}}")).unwrap();
            path
        };
        let (one, two) = (write("one", "SCMP_ACT_LOG"), write("two", "SCMP_ACT_ALLOW"));
        let profile = |path: &Path| SeccompInput::Profile(fs::read(path).unwrap());
        let plain = (Config::default(), RuntimeHandler::default());
        let of = |p, privileged, (config, handler): &(Config, RuntimeHandler)| {
            node.confine.seccomp(&asked(p), privileged, config, handler)
        };
        assert_eq!(of(Profile::Unset, false, &plain).unwrap(), SeccompInput::Unconfined);
        assert_eq!(of(Profile::Unconfined, false, &plain).unwrap(), SeccompInput::Unconfined);
        assert_eq!(of(Profile::Default, false, &plain).unwrap(), SeccompInput::Default);
        assert_eq!(of(Profile::Default, true, &plain).unwrap(), SeccompInput::Unconfined);
        let local = Profile::Localhost(one.to_str().unwrap());
        assert_eq!(of(local, false, &plain).unwrap(), profile(&one));
        let mut own = plain.clone();
        own.0.seccomp_profile = Some(one.clone());
        assert_eq!(of(Profile::Default, false, &own).unwrap(), profile(&one));
        assert_eq!(of(Profile::Unconfined, false, &own).unwrap(), SeccompInput::Unconfined);
        own.1.seccomp_profile = Some(two.clone());
        assert_eq!(of(Profile::Default, false, &own).unwrap(), profile(&two));
        own.0.privileged_seccomp_profile = Some(one.clone());
        assert_eq!(of(Profile::Unconfined, true, &own).unwrap(), profile(&one));
        // What is changed holds for the next one, also if it is broken.
        fs::write(&two, "{").unwrap();
        let e = said(of(Profile::Default, false, &own));
        assert!(e.starts_with("seccomp_profile: ") && e.contains(two.to_str().unwrap()), "{e}");
    }

    #[test]
    fn a_kernel_without_seccomp() {
        let mut node = Node::new();
        node.confine.seccomp = false;
        let config = Config {
            seccomp_profile: Some("/nowhere".into()),
            privileged_seccomp_profile: Some("/nowhere".into()),
            ..Config::default()
        };
        let handler = RuntimeHandler::default();
        let of = |p, privileged| node.confine.seccomp(&asked(p), privileged, &config, &handler);
        assert_eq!(of(Profile::Default, false).unwrap(), SeccompInput::Unconfined);
        assert_eq!(of(Profile::Unset, true).unwrap(), SeccompInput::Unconfined);
        assert!(said(of(Profile::Localhost("/p"), false)).contains("no seccomp"));
    }

    #[test]
    fn labels_of_pods() {
        let node = Node::new();
        let of = |config: &PodSandboxConfig, taken: &[String]| {
            let taken = |l: &str| taken.iter().any(|t| t == l);
            node.confine.pod_labels(config, &RuntimeHandler::default(), taken)
        };
        let plain = PodSandboxConfig::default();
        let first = of(&plain, &[]).unwrap().unwrap();
        let level = first.level().unwrap();
        assert_eq!(first.process, format!("system_u:system_r:container_t:{level}"));
        assert_eq!(first.mount, format!("system_u:object_r:container_file_t:{level}"));
        let second = of(&plain, std::slice::from_ref(&level)).unwrap().unwrap();
        assert_ne!(second.level().unwrap(), level);
        let with = |level: &str| {
            let option = api_cri::v1::SeLinuxOption { level: level.into(), ..Default::default() };
            let context =
                LinuxSandboxSecurityContext { selinux_options: Some(option), ..Default::default() };
            PodSandboxConfig {
                linux: Some(api_cri::v1::LinuxPodSandboxConfig {
                    security_context: Some(context),
                    ..Default::default()
                }),
                ..Default::default()
            }
        };
        let own = of(&with("s0:c5,c6"), &[]).unwrap().unwrap();
        assert_eq!(own.level().as_deref(), Some("s0:c5,c6"));
        assert!(said(of(&with("s0 "), &[])).starts_with("selinux_options: "));
        let mut none = Node::new();
        none.confine.selinux = None;
        let handler = RuntimeHandler::default();
        assert_eq!(none.confine.pod_labels(&with("s0 "), &handler, |_| true).unwrap(), None);
    }

    #[test]
    fn kinds() {
        let of = |typ, program: &str| {
            let handler = RuntimeHandler { runtime_type: typ, ..RuntimeHandler::default() };
            kind_of(&handler, &[program.to_owned()])
        };
        for program in ["/sbin/init", "/lib/systemd/systemd", "systemd"] {
            assert_eq!(of(RuntimeType::Oci, program), Kind::Init, "{program}");
        }
        for program in ["", "init", "/usr/bin/systemd-run", "/init"] {
            assert_eq!(of(RuntimeType::Oci, program), Kind::Program, "{program}");
        }
        assert_eq!(of(RuntimeType::Vm, "/sbin/init"), Kind::Vm);
    }
}
