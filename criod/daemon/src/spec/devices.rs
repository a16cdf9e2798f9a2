//! Which devices of the node a container finds.
//!
//! ```text
//! additional_devices (configuration) ─▶ the pod's annotation ─▶ all of the node's, if privileged
//!   ─▶ the request's.     Of two at one path in the container the later one stays.
//! ```

use std::path::Path;

use api_cri::v1::{Device, Int64Value};
use criod_config::DeviceSpec;
use oci::{DeviceInput, SpecInput};

use super::annotations::{DEVICES, allowed};
use super::userns::pod_users;
use super::{Request, security};
use crate::error::{Error, Result};

impl Request<'_> {
    pub(super) fn add_devices(&self, privileged: bool, input: &mut SpecInput) -> Result<()> {
        if self.infra {
            return Ok(());
        }
        for device in &self.node.additional_devices {
            let added = self.of_node(device, input);
            added.map_err(|e| Error::precondition(format!("additional_devices: {}", e.chain())))?;
        }
        let annotations = &self.pod.config.0.annotations;
        if let Some((name, text)) = allowed(annotations, self.handler, &DEVICES) {
            self.by_annotation(text, input)
                .map_err(|e| Error::invalid(format!("annotation {name}: {}", e.chain())))?;
        }
        if privileged && !self.handler.privileged_without_host_devices {
            let all = oci::host_devices(Path::new("/dev")).map_err(|e| self.spec_error(e))?;
            add(input, all);
        }
        self.config.devices.iter().try_for_each(|device| self.asked_for(device, input))
    }

    fn by_annotation(&self, text: &str, input: &mut SpecInput) -> Result<()> {
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let device: DeviceSpec = word.parse().map_err(|e: String| Error::invalid(e))?;
            if !self.node.allowed_devices.iter().any(|allowed| allowed.host == device.host) {
                let host = &device.host;
                return Err(Error::invalid(format!("{host} is not in allowed_devices")));
            }
            self.of_node(&device, input)?;
        }
        Ok(())
    }

    fn of_node(&self, device: &DeviceSpec, input: &mut SpecInput) -> Result<()> {
        let found =
            oci::device(Path::new(&device.host), Path::new(&device.inside), &device.permissions);
        add(input, vec![found.map_err(|e| self.spec_error(e))?]);
        Ok(())
    }

    fn asked_for(&self, asked: &Device, input: &mut SpecInput) -> Result<()> {
        let refuse =
            |why: &str| Err(Error::invalid(format!("device {:?}: {why}", asked.host_path)));
        let absolute = |p: &str| p.starts_with('/') && !p.contains('\0');
        if !absolute(&asked.host_path) {
            return refuse("host_path is not absolute");
        }
        let host = Path::new(&asked.host_path);
        let inside = match asked.container_path.as_str() {
            "" => host,
            path if absolute(path) => Path::new(path),
            _ => return refuse("container_path is not absolute"),
        };
        // There runtimes show the node's own file, which they look for at the container's path.
        if inside != host && pod_users(self.pod).is_some() {
            return refuse("container_path must be host_path in a pod with a user namespace");
        }
        let access = match asked.permissions.as_str() {
            "" => "rwm",
            some if permissions(some) => some,
            other => return refuse(&format!("permissions {other:?} are not some of r, w and m")),
        };
        // A folder stands for the devices in it.
        let found = if host.is_dir() {
            oci::devices_below(host, inside, access)
        } else {
            oci::device(host, inside, access).map(|d| vec![d])
        };
        let mut found = found.map_err(|e| self.spec_error(e))?;
        if self.node.device_ownership_from_security_context {
            self.give(&mut found);
        }
        add(input, found);
        Ok(())
    }

    /// Devices of the request belong to whom the container runs as, where it says a number other
    /// than root's.
    fn give(&self, devices: &mut [DeviceInput]) {
        let security = security(self.config);
        let id = |value: Option<&Int64Value>| {
            value.and_then(|v| u32::try_from(v.value).ok()).filter(|id| *id > 0)
        };
        let (uid, gid) = (id(security.run_as_user.as_ref()), id(security.run_as_group.as_ref()));
        for device in devices {
            device.uid = uid.unwrap_or(device.uid);
            device.gid = gid.unwrap_or(device.gid);
        }
    }
}

/// Some of `r`, `w` and `m`, each at most once.
fn permissions(text: &str) -> bool {
    let each = |c: char| text.matches(c).count() <= 1;
    text.chars().all(|c| "rwm".contains(c)) && "rwm".chars().all(each)
}

fn add(input: &mut SpecInput, devices: Vec<DeviceInput>) {
    input.devices.retain(|old| !devices.iter().any(|new| new.path == old.path));
    input.devices.extend(devices);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_some_of_three() {
        for good in ["r", "w", "m", "rw", "mrw", "rwm"] {
            assert!(permissions(good), "{good}");
        }
        for bad in ["x", "rr", "rwmr", "r w", "R", "rw\n"] {
            assert!(!permissions(bad), "{bad}");
        }
    }
}
