//! What is mounted into a container: the pod's files, /dev/shm, and what the request names.

use std::fs;
use std::path::{Path, PathBuf};

use api_cri::v1::{Mount, MountPropagation, NamespaceMode};
use oci::{MountInput, MountKind, Propagation};

use super::paths::{check_propagation, clean};
use super::{Request, mode, pod_modes};
use crate::error::{Error, Result};
use crate::files;

impl Request<'_> {
    pub(super) fn mounts(&self) -> Result<Vec<MountInput>> {
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
                mount.readonly = self.readonly_root();
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
        self.relabel(mount.selinux_relabel, &source, at)?;
        Ok(MountInput {
            readonly: mount.readonly,
            propagation,
            options: mount.mount_options.clone(),
            ..bind(&source, &clean(at))
        })
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
