//! What is mounted into a container: the pod's files, /dev/shm, and what the request names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use api_cri::v1::{Mount, MountPropagation, NamespaceMode};
use failpoint::step;
use oci::users::ResolvedUser;
use oci::{MountInput, MountKind, Propagation};

use super::paths::{Spread, clean};
use super::security::label_root;
use super::userns::on_node;
use super::{Request, mode, pod_modes, pod_users};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::volumes::{self, Declared};

/// What a request may ask of a mount beside its flags.
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

impl Request<'_> {
    /// Of two at the same place the later one stays: what the request names comes last.
    pub(super) fn mounts(&self, user: &ResolvedUser) -> Result<Vec<MountInput>> {
        let mut mounts = Vec::new();
        for (name, destination) in files::FILES {
            let source = self.pod_dir.join(name);
            if source.exists() {
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
        if !self.infra {
            let mut own = files::default_mounts(self.node, self.run)?;
            if let Some(root) = pod_users(self.pod).and_then(|users| users.root()) {
                for copy in &own {
                    crate::userns::give(Path::new(&copy.source), root)?;
                }
            }
            let (uid, gid) = on_node(self.pod, user.uid, user.gid)?;
            user.groups.iter().try_for_each(|g| on_node(self.pod, user.uid, *g).map(drop))?;
            own.extend(volumes::declare(&Declared {
                id: self.id,
                mode: self.node.image_volumes,
                paths: &self.image.volumes,
                rootfs: self.rootfs,
                dir: self.dir,
                uid,
                gid,
            })?);
            for mount in &own {
                label_root(Path::new(&mount.source), self.labels)?;
            }
            mounts.extend(own);
        }
        for (number, mount) in self.config.mounts.iter().enumerate() {
            mounts.push(self.mount(number, mount)?);
        }
        Ok(mounts)
    }

    fn mount(&self, number: usize, mount: &Mount) -> Result<MountInput> {
        let at = &mount.container_path;
        let refuse = |why: &str| Err(Error::invalid(format!("mount {at:?}: {why}")));
        if at.is_empty() {
            return refuse("container_path is empty");
        }
        if at.contains('\0') || mount.host_path.contains('\0') {
            return refuse("a path holds a NUL byte");
        }
        if clean(at) == "/" {
            return refuse("nothing can be mounted over the root of a container");
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
        }
        let mut options = mount.mount_options.clone();
        if let Some(other) = options.iter().find(|o| !OPTIONS.contains(&o.as_str())) {
            return refuse(&format!("mount_options: {other:?} is not one of {OPTIONS:?}"));
        }
        if let Some(source) = self.volumes.get(&number) {
            options.push("nodev".to_owned());
            return Ok(MountInput { readonly: true, options, ..bind(source, &clean(at)) });
        }
        if !mount.image_sub_path.is_empty() {
            return refuse("image_sub_path is set, but no image");
        }
        if mount.recursive_read_only && !self.features.rro {
            let text =
                "recursive_read_only: the kernel (Linux 5.12) or the runtime has no such mounts";
            return Err(Error::unsupported(format!("mount {at:?}: {text}")));
        }
        if mount.host_path.is_empty() {
            return refuse("host_path is empty");
        }
        if !mount.host_path.starts_with('/') {
            return refuse("host_path is not absolute");
        }
        let source = self.source(at, &mount.host_path)?;
        let propagation = match (propagation, mount.recursive_read_only) {
            (Propagation::Private, true) => propagation,
            (Propagation::Private, false) => self.unless_ours(&source)?,
            _ => match Spread::of(&source).and_then(|s| s.check(propagation)) {
                Ok(()) => propagation,
                Err(why) => return refuse(&format!("{}: {why}", source.display())),
            },
        };
        self.relabel(mount.selinux_relabel, &source, at)?;
        let (uid_mappings, gid_mappings) = self.mount_users(mount)?;
        Ok(MountInput {
            uid_mappings,
            gid_mappings,
            readonly: mount.readonly,
            recursive_readonly: mount.recursive_read_only,
            propagation,
            options,
            ..bind(&source, &clean(at))
        })
    }

    /// The propagation of a private mount. One that holds the folders of criod itself would keep
    /// the roots and namespaces of containers alive that are long gone: it sees them go, where the
    /// node's mounts can be passed on.
    fn unless_ours(&self, source: &Path) -> Result<Propagation> {
        let ours = [&self.node.root, &self.node.runroot];
        if ours.into_iter().any(|dir| dir.starts_with(source))
            && let Ok(spread) = Spread::of(source)
            && spread.check(Propagation::HostToContainer).is_ok()
        {
            return Ok(Propagation::HostToContainer);
        }
        Ok(Propagation::Private)
    }

    /// Where a path of the request lies on the node, links resolved; a folder where nothing is.
    fn source(&self, at: &str, host_path: &str) -> Result<PathBuf> {
        let prefix = Path::new(&self.node.bind_mount_prefix);
        let path = match prefix.as_os_str().is_empty() {
            true => PathBuf::from(host_path),
            false => prefix.join(host_path.trim_start_matches('/')),
        };
        let said = |e: io::Error| {
            Error::precondition(format!("mount {at:?}: host_path {}: {e}", path.display()))
        };
        let source = match self.resolve(host_path) {
            Ok(source) => source,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let rejected = &self.node.absent_mount_sources_to_reject;
                let (own, whole) = (clean(host_path), clean(&path.to_string_lossy()));
                if rejected.iter().any(|r| clean(r) == own || clean(r) == whole) {
                    return Err(Error::precondition(format!(
                        "mount {at:?}: host_path {} does not exist and is in \
                         absent_mount_sources_to_reject",
                        path.display()
                    )));
                }
                self.make(host_path)?;
                self.resolve(host_path).map_err(said)?
            }
            Err(e) => return Err(said(e)),
        };
        if source.to_str().is_none() {
            return Err(said(io::Error::other("leads to a path that is not UTF-8")));
        }
        Ok(source)
    }

    fn resolve(&self, host_path: &str) -> io::Result<PathBuf> {
        match self.node.bind_mount_prefix.as_str() {
            "" => fs::canonicalize(host_path),
            prefix => storage::resolve_in_root(Path::new(prefix), host_path).map_err(|e| match e {
                storage::Error::InRoot { source, .. } => source,
                other => io::Error::other(other.to_string()),
            }),
        }
    }

    fn make(&self, host_path: &str) -> Result<()> {
        match self.node.bind_mount_prefix.as_str() {
            "" => step!("container: make host path", fs::create_dir_all(host_path))
                .map_err(Error::file("create", host_path)),
            prefix => storage::ensure_dir_in_root(Path::new(prefix), host_path, 0o755, 0, 0)
                .map(drop)
                .map_err(|source| {
                    let action = "create a folder to mount";
                    Kind::Storage { id: self.id.to_owned(), action, source }.into()
                }),
        }
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
