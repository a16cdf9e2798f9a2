//! What confines a container beside its namespaces and capabilities: seccomp, AppArmor, paths that
//! are hidden or read-only.

use std::fs;

use api_cri::v1::{LinuxContainerSecurityContext, security_profile::ProfileType};
use oci::SeccompInput;

use crate::error::{Error, Result};

/// `None` is the default list. The kubelet sends the list that holds; an empty one from it means a
/// pod whose procMount is Unmasked, but it also means a client that says nothing.
pub(super) fn paths(asked: &[String], privileged: bool) -> Option<Vec<String>> {
    match (asked.is_empty(), privileged) {
        (_, true) => Some(Vec::new()),
        (true, false) => None,
        (false, false) => Some(asked.to_vec()),
    }
}

#[expect(deprecated, reason = "clients of older releases send the old field alone")]
pub(super) fn seccomp(security: &LinuxContainerSecurityContext) -> Result<SeccompInput> {
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
pub(super) fn apparmor(security: &LinuxContainerSecurityContext) -> Result<()> {
    let localhost =
        security.apparmor.as_ref().is_some_and(|p| p.profile_type == ProfileType::Localhost as i32);
    if localhost || security.apparmor_profile.starts_with("localhost/") {
        return Err(Error::unsupported("apparmor: profiles of the node are not supported yet"));
    }
    Ok(())
}
