//! The volumes that an image declares (`VOLUME` of a Dockerfile), by the key `image_volumes`.
//!
//! ```text
//! mkdir    a folder in the container's root, if there is none
//! bind     a folder beside the container's record, of the owner and mode that the image has there
//! ignore   nothing
//! ```
//! They go with the container, and a mount of the request at the same place wins. An image does not
//! decide over `/`, `/dev`, `/proc` and `/sys`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use criod_config::ImageVolumes;
use failpoint::step;
use oci::MountInput;
use tracing::warn;

use crate::error::{Error, Kind, Result};

/// What the runtime mounts itself.
const OF_THE_RUNTIME: [&str; 3] = ["/dev", "/proc", "/sys"];

/// An image's declared volumes, and where they go.
#[derive(Debug)]
pub(crate) struct Declared<'a> {
    pub(crate) id: &'a str,
    pub(crate) mode: ImageVolumes,
    /// As the image's config has them.
    pub(crate) paths: &'a [String],
    /// The container's root file system; nothing runs in it yet.
    pub(crate) rootfs: &'a Path,
    /// The folder of the container's record.
    pub(crate) dir: &'a Path,
    /// Owner of folders that are made.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Makes the volumes, and says which are to be mounted.
pub(crate) fn declare(volumes: &Declared<'_>) -> Result<Vec<MountInput>> {
    if volumes.mode == ImageVolumes::Ignore {
        return Ok(Vec::new());
    }
    let mut paths: Vec<String> = volumes.paths.iter().map(|p| crate::spec::clean(p)).collect();
    paths.sort();
    paths.dedup();
    let mut mounts = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        if path == "/" || OF_THE_RUNTIME.iter().any(|p| Path::new(path).starts_with(p)) {
            warn!(container = volumes.id, path, "no place for a volume of an image: left out");
            continue;
        }
        match volumes.mode {
            ImageVolumes::Bind => mounts.push(volumes.bind(number, path)?),
            _ => drop(volumes.make(path)?),
        }
    }
    Ok(mounts)
}

impl Declared<'_> {
    fn storage(&self, source: storage::Error) -> Error {
        let action = "make a volume that its image declares";
        Kind::Storage { id: self.id.to_owned(), action, source }.into()
    }

    fn make(&self, path: &str) -> Result<std::os::fd::OwnedFd> {
        storage::ensure_dir_in_root(self.rootfs, path, 0o755, self.uid, self.gid)
            .map_err(|e| self.storage(e))
    }

    fn bind(&self, number: usize, path: &str) -> Result<MountInput> {
        // Also the place that it is mounted at.
        let place = fs::File::from(self.make(path)?);
        let source = self.dir.join("volumes").join(number.to_string());
        step!("declared volume: make folder", fs::create_dir_all(&source))
            .map_err(Error::file("create", &source))?;
        place
            .metadata()
            .and_then(|m| {
                let mode = fs::Permissions::from_mode(m.mode() & 0o7777);
                step!("declared volume: give", chown(&source, Some(m.uid()), Some(m.gid())))?;
                step!("declared volume: set mode", fs::set_permissions(&source, mode))
            })
            .map_err(Error::file("protect", &source))?;
        Ok(MountInput {
            destination: path.to_owned(),
            source: source.to_string_lossy().into_owned(),
            ..MountInput::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(mode: ImageVolumes, root: &Path, paths: &[&str]) -> Vec<MountInput> {
        let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
        let (rootfs, dir) = (root.join("rootfs"), root.join("record"));
        fs::create_dir_all(&rootfs).unwrap();
        let volumes =
            Declared { id: "c", mode, paths: &paths, rootfs: &rootfs, dir: &dir, uid: 7, gid: 8 };
        declare(&volumes).unwrap()
    }

    #[test]
    fn folders_are_made_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("rootfs/there");
        fs::create_dir_all(&there).unwrap();
        fs::set_permissions(&there, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(made(ImageVolumes::Mkdir, dir.path(), &["/new/data", "/there"]).is_empty());
        let new = fs::metadata(dir.path().join("rootfs/new/data")).unwrap();
        assert_eq!((new.uid(), new.gid(), new.mode() & 0o7777), (7, 8, 0o755));
        assert_eq!(fs::metadata(&there).unwrap().mode() & 0o7777, 0o1777);
    }

    #[test]
    fn bound_ones_have_the_attributes_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("rootfs/there");
        fs::create_dir_all(&there).unwrap();
        fs::set_permissions(&there, fs::Permissions::from_mode(0o1777)).unwrap();
        chown(&there, Some(3), Some(4)).unwrap();
        let mounts = made(ImageVolumes::Bind, dir.path(), &["/there", "new/", "/there/."]);
        let at: Vec<_> = mounts.iter().map(|m| m.destination.as_str()).collect();
        assert_eq!(at, ["/new", "/there"]);
        let of = |n: usize| {
            let m = fs::metadata(&mounts[n].source).unwrap();
            (m.uid(), m.gid(), m.mode() & 0o7777)
        };
        assert_eq!((of(0), of(1)), ((7, 8, 0o755), (3, 4, 0o1777)));
    }

    #[test]
    fn hostile_places() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        fs::create_dir_all(&rootfs).unwrap();
        std::os::unix::fs::symlink("../../outside", rootfs.join("link")).unwrap();
        for mode in [ImageVolumes::Mkdir, ImageVolumes::Bind] {
            let hostile = ["/", "..", "/proc", "/proc/sys/x", "/dev/shm", "/sys", "a/../../proc"];
            assert!(made(mode, dir.path(), &hostile).is_empty());
            assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 1);
        }
        made(ImageVolumes::Mkdir, dir.path(), &["/link/x", "../../y"]);
        assert!(!dir.path().join("outside").exists() && !dir.path().join("y").exists());
        assert!(rootfs.join("outside/x").is_dir() && rootfs.join("y").is_dir());
        assert!(made(ImageVolumes::Ignore, dir.path(), &["/ignored"]).is_empty());
        assert!(!rootfs.join("ignored").exists());
    }
}
