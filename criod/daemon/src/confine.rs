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

use crate::error::{Error, Result};
use crate::node::lock;
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
                .map_err(|e| Error::precondition(format!("selinux: {}", told(&e))))?,
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
            Err(e) if loaded => warn!("the profile that is loaded stays: {}", told(&e)),
            Err(e) => return Err(Error::precondition(told(&e))),
        }
        Ok(Some(DEFAULT_PROFILE.to_owned()))
    }

    fn apparmor_loaded(&self, name: &str) -> Result<bool> {
        let Some(apparmor) = &self.apparmor else { return Ok(false) };
        apparmor.is_loaded(name).map_err(|e| Error::precondition(told(&e)))
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
        let host = oci::Host::current().map_err(|e| Error::precondition(told(&e)))?;
        oci::seccomp::check(&bytes, &host).map_err(|e| bad(told(&e)))?;
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
        let level = free_level(random()?, taken).map_err(|e| Error::precondition(told(&e)))?;
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
    let bad = |e| Error::invalid(format!("selinux_options: {}", told(&e)));
    selinux.labels(kind, options, level).map_err(bad)
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

fn random() -> Result<u64> {
    let mut bytes = [0u8; 8];
    fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(Error::file("read", "/dev/urandom"))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// An error with all its sources, as text.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}
