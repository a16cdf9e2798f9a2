//! Image volumes: the files of an image, read-only, in a container of another.
//!
//! ```text
//! request ─▶ image found (it must be here) ─▶ on record, layers held ─▶ overlay of its layers
//!   <run>/containers/<id>/volumes/<n>/merged ─▶ sub path resolved inside ─▶ source of a bind mount
//! removal, or the criod after one that died ─▶ unmounted, before anything of the folder is removed
//! ```
//! The record comes first, so no mount is without one. An overlay without an upper layer cannot be
//! written to, whatever is done to the mount. An image is mounted once for each container,
//! and once more where the pod's user namespace is to own its files (`uid_mappings`).

mod declared;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api_cri::v1::{ContainerConfig, Mount, MountPropagation};
use failpoint::step;
use storage::{ContainerMount, MountOptions, Owners};

pub(crate) use self::declared::{Declared, declare};
use crate::error::{Error, Kind, Result};
use crate::node::Node;
use crate::record::{ContainerRecord, ImageVolume, PodRecord};
use crate::spec;

/// Where image volumes lie, by the number of the request's mount.
pub(crate) type Sources = BTreeMap<usize, PathBuf>;

/// The image that a mount names, if it is one of an image.
pub(crate) fn image_of(mount: &Mount) -> Option<&str> {
    mount.image.as_ref().map(|i| i.image.as_str()).filter(|i| !i.is_empty())
}

fn folder(run: &Path) -> PathBuf {
    run.join("volumes")
}

impl Node {
    /// Finds the images of a request's image volumes.
    pub(crate) fn image_volumes(&self, config: &ContainerConfig) -> Result<Vec<ImageVolume>> {
        let mut all = Vec::new();
        for (number, mount) in config.mounts.iter().enumerate() {
            let Some(image) = image_of(mount) else { continue };
            let found = check(mount).and_then(|()| {
                self.images.for_container(image).map_err(|e| {
                    Kind::Image { image: image.to_owned(), source: std::sync::Arc::new(e) }.into()
                })
            });
            let found = found.map_err(failed(mount))?;
            all.push(ImageVolume {
                mount: number,
                image_id: found.id,
                layers: found.layers.iter().map(ToString::to_string).collect(),
            });
        }
        Ok(all)
    }

    /// Mounts a container's image volumes with this SELinux label, if it has one. Their layers are
    /// held already.
    pub(crate) fn mount_volumes(
        &self,
        pod: &PodRecord,
        record: &ContainerRecord,
        label: &str,
    ) -> Result<Sources> {
        let mut sources = Sources::new();
        let mut mounted: BTreeMap<(&str, bool), PathBuf> = BTreeMap::new();
        let folder = folder(&self.paths.container_run(&record.id));
        for volume in &record.volumes {
            let Some(mount) = record.config.0.mounts.get(volume.mount) else { continue };
            let owners = match spec::mount_users(pod, mount)? {
                Some(_) => self.owners(pod),
                None => None,
            };
            let key = (volume.image_id.as_str(), owners.is_some());
            let root = match mounted.get(&key) {
                Some(root) => root.clone(),
                None => {
                    let dir = folder.join(volume.mount.to_string());
                    let options = options(owners, label);
                    let root = self.mount_volume(volume, options, &dir).map_err(failed(mount))?;
                    mounted.insert(key, root.clone());
                    root
                }
            };
            let source = sub_path(&root, &mount.image_sub_path).map_err(failed(mount))?;
            sources.insert(volume.mount, source);
        }
        Ok(sources)
    }

    fn mount_volume(
        &self,
        volume: &ImageVolume,
        options: MountOptions,
        dir: &Path,
    ) -> Result<PathBuf> {
        step!("image volume: make folder", std::fs::create_dir_all(dir))
            .map_err(Error::file("create", dir))?;
        let failed = |action| {
            let id = volume.image_id.clone();
            move |source| Error::from(Kind::Storage { id, action, source })
        };
        let layers: Vec<storage::Digest> =
            volume.layers.iter().filter_map(|l| l.parse().ok()).collect();
        let mount = self.store.container_mount(dir, &layers, options);
        mount.and_then(|m| m.mount()).map_err(failed("mount its layers"))
    }
}

/// How an image volume is mounted.
fn options(owners: Option<Owners>, label: &str) -> MountOptions {
    let context = security::selinux::mount_option(label);
    let extra = ["nodev".to_owned()].into_iter().chain(context).collect();
    MountOptions { readonly: true, extra, owners }
}

/// What cannot be with an image. Nothing is ever mounted below one, so that read-only is
/// recursively read-only, and there is nothing that the host's mounts could bring along.
fn check(mount: &Mount) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid(why));
    if !mount.host_path.is_empty() {
        return refuse("image and host_path are both set");
    }
    if !mount.readonly {
        return refuse("readonly is not set, but images can only be read");
    }
    if mount.propagation == MountPropagation::PropagationBidirectional as i32 {
        return refuse("propagation: mounts cannot spread out of an image");
    }
    Ok(())
}

/// What a sub path leads to inside an image, without leaving it. The image cannot change.
fn sub_path(root: &Path, path: &str) -> Result<PathBuf> {
    if path.is_empty() {
        return Ok(root.to_owned());
    }
    storage::resolve_in_root(root, path).map_err(|e| {
        let problem = match std::error::Error::source(&e) {
            Some(why) => why.to_string(),
            None => e.to_string(),
        };
        Error::invalid(format!("image_sub_path {path:?} in the image: {problem}"))
    })
}

fn failed(mount: &Mount) -> impl FnOnce(Error) -> Error {
    let at = mount.container_path.clone();
    move |source| Kind::ImageVolume { at, source }.into()
}

/// Unmounts all image volumes below a container's run folder and removes their folders. May be
/// repeated.
pub(crate) fn unmount(run: &Path) -> Result<()> {
    let folder = folder(run);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::file("read", &folder)(e)),
    };
    for entry in entries {
        let dir = entry.map_err(Error::file("read", &folder))?.path();
        let id = dir.to_string_lossy().into_owned();
        let failed = |source| Kind::Storage { id, action: "unmount image volume", source };
        ContainerMount::existing(&dir).remove().map_err(failed)?;
        step!("image volume: remove folder", std::fs::remove_dir(&dir))
            .map_err(Error::file("remove", &dir))?;
    }
    step!("image volume: remove folder of all", std::fs::remove_dir(&folder))
        .map_err(Error::file("remove", &folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_cannot_do() {
        let of = |change: fn(&mut Mount)| {
            let image = api_cri::v1::ImageSpec { image: "i".into(), ..Default::default() };
            let mut mount = Mount { image: Some(image), readonly: true, ..Default::default() };
            change(&mut mount);
            check(&mount).is_ok()
        };
        assert!(of(|_| ()));
        assert!(of(|m| m.recursive_read_only = true));
        assert!(!of(|m| m.readonly = false));
        assert!(!of(|m| m.host_path = "/".into()));
        assert!(!of(|m| m.propagation = MountPropagation::PropagationBidirectional as i32));
    }

    #[test]
    fn sub_paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/file"), "").unwrap();
        for (link, to) in [("abs", "/a"), ("up", "../../../../a"), ("out", "/etc/passwd")] {
            std::os::unix::fs::symlink(to, root.join(link)).unwrap();
        }
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        for (path, leads_to) in [
            ("", Some("")),
            ("a/b", Some("a/b")),
            ("/a//b/.", Some("a/b")),
            ("a/file", Some("a/file")),
            ("abs/b", Some("a/b")),
            ("up/b", Some("a/b")),
            ("../../../a", Some("a")),
            ("out", None),
            ("loop", None),
            ("nowhere", None),
            ("a/file/x", None),
            ("a\0", None),
        ] {
            let found = sub_path(&root, path).ok();
            assert_eq!(found, leads_to.map(|p| root.join(p)), "{path:?}");
        }
        let said = sub_path(&root, "nowhere").unwrap_err().chain();
        assert!(said.contains("\"nowhere\"") && said.contains("No such file"), "{said}");
    }

    #[test]
    fn unmounting_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        unmount(dir.path()).unwrap();
        std::fs::create_dir_all(dir.path().join("volumes/0/merged")).unwrap();
        unmount(dir.path()).unwrap();
        unmount(dir.path()).unwrap();
        assert!(!dir.path().join("volumes").exists());
    }
}
