//! What a container runs: command line, environment, working folder, host name, limits.

use api_cri::v1::{ContainerConfig, LinuxContainerSecurityContext};
use oci::users::ResolvedUser;
use registry::image::ContainerDefaults;

use super::resources::oom_score;
use super::{Request, host_network};
use crate::error::{Error, Result};
use crate::record::PodRecord;

/// The longest path that a system call takes, in bytes.
const MAX_PATH: usize = 4095;

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

impl Request<'_> {
    pub(super) fn process(
        &self,
        security: &LinuxContainerSecurityContext,
        user: &ResolvedUser,
    ) -> Result<oci::ProcessInput> {
        let asked = security.capabilities.clone().unwrap_or_default();
        let base = self.node.default_capabilities.iter().map(|c| c.full());
        let base = oci::CapSet::from_names(base).map_err(|e| self.spec_error(e))?;
        let cwd = match (self.config.working_dir.as_str(), self.image.working_dir.as_str()) {
            ("", "") => "/",
            ("", image) => image,
            (own, _) => own,
        };
        if cwd.contains('\0') || cwd.len() > MAX_PATH {
            return Err(Error::invalid(format!("working_dir {cwd:?} is no path")));
        }
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
            rlimits: super::rlimits::rlimits(&self.node.default_ulimits),
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
