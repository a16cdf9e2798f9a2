//! Which devices of the node a container finds.

use std::fs;
use std::path::Path;

use oci::SpecInput;

use super::Request;
use crate::error::{Error, Result};

impl Request<'_> {
    pub(super) fn add_devices(
        &self,
        asked: &api_cri::v1::Device,
        input: &mut SpecInput,
    ) -> Result<()> {
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
}
