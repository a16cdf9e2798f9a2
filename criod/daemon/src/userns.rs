//! Pods with a user namespace of their own: whether they can be had, and what lies on disk for them.
//!
//! ```text
//! <root>                      0711   ┐ the runtime's init is the pod's root by the time that it
//! <root>/containers           0711   │ looks for its container's root: it needs the way there,
//! <root>/containers/<id>      0710   ┘ with the group of the pod's root
//!        everything else      0700
//! ```
//! The layers' owners on disk are never changed: the root is mounted with other ones
//! ([`storage::Owners`]), and what a container writes has the ids that the node sees.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;

use api_cri::v1::PodSandboxConfig;
use criod_config::RuntimeHandler;
use failpoint::step;
use storage::Owners;

use crate::error::{Error, Result};
use crate::node::{Node, Paths};
use crate::record::PodRecord;
use crate::spec;

/// Closes what lies below root to all but root, and opens the way to the folders of containers.
pub(crate) fn protect(paths: &Paths) -> Result<()> {
    let containers = paths.containers();
    for entry in fs::read_dir(&paths.root).map_err(Error::file("read", &paths.root))? {
        let path = entry.map_err(Error::file("read", &paths.root))?.path();
        if path.is_dir() && path != containers {
            mode(&path, 0o700)?;
        }
    }
    for entry in fs::read_dir(&containers).map_err(Error::file("read", &containers))? {
        let path = entry.map_err(Error::file("read", &containers))?.path();
        let open = path.metadata().is_ok_and(|m| m.mode() & 0o007 != 0);
        if open {
            mode(&path, 0o700)?;
        }
    }
    mode(&containers, 0o711)?;
    mode(&paths.root, 0o711)
}

/// Changes a folder's mode.
pub(crate) fn mode(path: &Path, mode: u32) -> Result<()> {
    step!("folder: set mode", fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(Error::file("protect", path))
}

impl Node {
    /// Checks that the runtime and the kernel can give the pod the user namespace it asks for.
    pub(crate) fn check_users(
        &self,
        config: &PodSandboxConfig,
        handler: &RuntimeHandler,
    ) -> Result<()> {
        let options = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = options.and_then(|s| s.namespace_options.clone()).unwrap_or_default();
        if spec::check_users(&options, &self.config)?.is_none() {
            return Ok(());
        }
        if !self.features(handler).user_namespaces {
            return Err(Error::unsupported(format!(
                "namespace_options.userns_options: {} or the kernel cannot give a pod its own",
                handler.runtime_path
            )));
        }
        // Those below are criod's own.
        match self.paths.root.ancestors().skip(1).find(|dir| closed(dir)) {
            Some(dir) => Err(Error::precondition(format!(
                "namespace_options.userns_options: {} is closed to other users, and root file \
                 systems lie below it: chmod o+x",
                dir.display()
            ))),
            None => Ok(()),
        }
    }

    /// Whose the layers of the pod's containers are to look.
    pub(crate) fn owners(&self, pod: &PodRecord) -> Option<Owners> {
        let users = spec::pod_users(pod)?;
        let namespace = self.paths.namespaces(&pod.id).join(namespace::Kind::User.name());
        Some(Owners { namespace, uids: users.uids, gids: users.gids })
    }

    /// Lets the pod's root through to a container's root file system.
    pub(crate) fn open_way(&self, pod: &PodRecord, id: &str) -> Result<()> {
        let Some((_, gid)) = spec::pod_users(pod).and_then(|users| users.root()) else {
            return Ok(());
        };
        let dir = self.paths.container(id);
        step!("container: give folder", chown(&dir, None, Some(gid)))
            .map_err(Error::file("change the group of", &dir))?;
        mode(&dir, 0o710)
    }
}

/// Gives a tree of criod's own making to a pod's root, by uid and gid of the node.
pub(crate) fn give(path: &Path, root: (u32, u32)) -> Result<()> {
    step!("default mounts: give", lchown(path, Some(root.0), Some(root.1)))
        .map_err(Error::file("change the owner of", path))?;
    if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        for entry in fs::read_dir(path).map_err(Error::file("read", path))? {
            give(&entry.map_err(Error::file("read", path))?.path(), root)?;
        }
    }
    Ok(())
}

/// Whether a stranger cannot pass through a folder.
fn closed(dir: &Path) -> bool {
    dir.metadata().is_ok_and(|m| m.mode() & 0o001 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_way_to_containers_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { root: dir.path().join("root"), run: dir.path().join("run") };
        for name in ["layers", "containers/old", "containers/users"] {
            fs::create_dir_all(paths.root.join(name)).unwrap();
        }
        mode(&paths.containers().join("users"), 0o710).unwrap();
        protect(&paths).unwrap();
        protect(&paths).unwrap();
        for (name, wanted) in [
            ("", 0o711),
            ("layers", 0o700),
            ("containers", 0o711),
            ("containers/old", 0o700),
            ("containers/users", 0o710),
        ] {
            let found = paths.root.join(name).metadata().unwrap().mode() & 0o777;
            assert_eq!(found, wanted, "{name}");
        }
        assert!(!closed(&paths.root));
        assert!(closed(&paths.root.join("layers")));
    }
}
