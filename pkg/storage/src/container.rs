//! A container's root file system: the image's layers, read-only, under a layer of its own.
//!
//! ```text
//! <dir>/diff     what the container writes
//!       work     the kernel's own
//!       merged   the mount point
//!       lower    empty; for images without layers, and read-only mounts of a single one
//!       owners   the folder of all layers as a user namespace sees it; for a moment only
//! ```
//!
//! With [`Owners`] the layers are shown to overlay with the owners that a user namespace has
//! (Linux 5.19); on disk they stay as they are, and `upper` has the namespace's ids.
//!
//! Mounted with the kernel's mount API where it can take layers one by one (`lowerdir+`, Linux
//! 6.8), so that neither the number of layers nor the length of their paths is limited by a page.
//! Otherwise with a classic `mount(2)`, where each layer is named by a short path of an open file.

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use failpoint::step;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use sys::userns::Range;

use crate::error::{Error, Result};
use crate::layers::RootAttributes;
use crate::rootfs::proc_path;
use crate::{Digest, Store, tree};

/// The kernel's number for overlay file systems.
const OVERLAY_MAGIC: u64 = 0x794c_7630;
/// The longest value that the mount API takes.
const LONGEST_VALUE: usize = 255;
/// Where the layers are seen with other owners while they are mounted.
const OWNERS: &str = "owners";
/// How many mounts on top of each other are taken down.
const STACKED: usize = 16;

/// The folder of what the container writes. cAdvisor measures the one of this name, as
/// containers/storage has it.
const UPPER: &str = "diff";

/// How to mount a container's root file system.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// Without a layer of its own: nothing can be written.
    pub readonly: bool,
    /// More options: `nodev`, `nosuid`, `noexec`, `noatime` for the mount, all else for overlay
    /// (`volatile`, `context=…`), as one option each.
    pub extra: Vec<String>,
    /// Whose the layers' files are; `None` is as on disk.
    pub owners: Option<Owners>,
}

/// A user namespace whose ids a root file system's owners are.
#[derive(Debug, Clone)]
pub struct Owners {
    /// A file that is the namespace, as `/proc/<pid>/ns/user` or a mount of it.
    pub namespace: PathBuf,
    /// Its user ids.
    pub uids: Range,
    /// Its group ids.
    pub gids: Range,
}

/// A container's root file system in a folder of the caller.
#[derive(Debug, Clone)]
pub struct ContainerMount {
    dir: PathBuf,
    /// Highest first, as overlay wants them.
    lower: Vec<PathBuf>,
    /// The folder that all layers are in.
    layers: PathBuf,
    root: RootAttributes,
    options: MountOptions,
    classic: bool,
}

impl Store {
    /// A root file system from layers (chain ids, lowest first) in the caller's folder `dir`, which
    /// must be on a file system that overlay can write to. Does nothing to the disk yet.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`] if a layer is not there, [`Error::Owner`] if the image's root folder
    /// belongs to somebody whom [`MountOptions::owners`] does not know.
    pub fn container_mount(
        &self,
        dir: &Path,
        chain_ids: &[Digest],
        options: MountOptions,
    ) -> Result<ContainerMount> {
        self.check_layers(chain_ids)?;
        let dir = std::path::absolute(dir).map_err(|e| Error::io("resolve", dir, e))?;
        let mut root = None;
        let mut lower = Vec::with_capacity(chain_ids.len().max(1));
        for chain_id in chain_ids.iter().rev() {
            let layer = self
                .layer(chain_id)
                .ok_or_else(|| Error::UnknownLayer { chain_id: chain_id.clone() })?;
            root = root.or(layer.root);
            lower.push(self.diff(chain_id));
            if layer.root_opaque {
                // Overlay does not look at the mark on a root.
                break;
            }
        }
        // One layer is not an overlay unless there is an upper one.
        if lower.len() < if options.readonly { 2 } else { 1 } {
            lower.push(dir.join("lower"));
        }
        if options.readonly && lower.len() < 2 {
            lower.push(dir.join(UPPER));
        }
        let root = root.unwrap_or(RootAttributes { mode: 0o755, uid: 0, gid: 0 });
        let root = match &options.owners {
            Some(owners) => RootAttributes {
                uid: owners.uids.outside_of(root.uid).ok_or(Error::Owner { id: root.uid })?,
                gid: owners.gids.outside_of(root.gid).ok_or(Error::Owner { id: root.gid })?,
                ..root
            },
            None => root,
        };
        let classic = self.inner.options.classic_mount;
        let layers = self.inner.overlay.clone();
        Ok(ContainerMount { dir, lower, layers, root, options, classic })
    }
}

impl ContainerMount {
    /// A root file system that may be mounted already, to be unmounted or removed; its layers need
    /// not be known.
    pub fn existing(dir: &Path) -> Self {
        let root = RootAttributes { mode: 0o755, uid: 0, gid: 0 };
        let (lower, layers, options) = (Vec::new(), PathBuf::new(), MountOptions::default());
        Self { dir: dir.to_owned(), lower, layers, root, options, classic: false }
    }

    /// The mount point.
    pub fn merged(&self) -> PathBuf {
        self.dir.join("merged")
    }

    /// What the container wrote.
    pub fn upper(&self) -> PathBuf {
        self.dir.join(UPPER)
    }

    /// Mounts it, making the folders that are not there. Nothing to do if it is mounted. The answer
    /// is the mount point.
    ///
    /// # Errors
    /// [`Error::Mount`], with what the kernel says of the reason.
    pub fn mount(&self) -> Result<PathBuf> {
        let merged = self.merged();
        self.folders()?;
        match mounted(&merged)? {
            Mounted::Overlay => return Ok(merged),
            Mounted::Other => return Err(Error::MountInside { path: merged }),
            Mounted::Nothing => {}
        }
        let shown = self.options.owners.as_ref().map(|o| self.show(o)).transpose()?;
        let lower: Vec<PathBuf> = match &shown {
            Some(shown) => self.lower.iter().map(|path| self.shown(&shown.0, path)).collect(),
            None => self.lower.clone(),
        };
        step!("root: mount", self.mount_overlay(&merged, &lower))?;
        // Overlay has its own copies of the layers' mounts.
        shown.map_or(Ok(()), Shown::end)?;
        Ok(merged)
    }

    fn mount_overlay(&self, merged: &Path, lower: &[PathBuf]) -> Result<()> {
        let refused = match self.classic {
            true => None,
            false => match self.mount_by_parts(merged, lower)? {
                ByParts::Mounted => return Ok(()),
                ByParts::Unknown => None,
                ByParts::Refused(error) => Some(error),
            },
        };
        // The first error says more.
        self.mount_classic(merged, lower).map_err(|error| refused.unwrap_or(error))
    }

    /// Mounts the folder of the layers with other owners.
    fn show(&self, owners: &Owners) -> Result<Shown> {
        let at = self.dir.join(OWNERS);
        let fail = |step: &str, e: std::io::Error| Error::Mount {
            path: at.clone(),
            detail: format!("cannot {step}"),
            source: e,
        };
        // One that is there is of a mount that was cut short.
        Shown(at.clone()).end()?;
        step!("root: make folder of layers", fs::create_dir(&at))
            .map_err(|e| Error::io("create", &at, e))?;
        let shown = Shown(at.clone());
        let namespace = fs::File::open(&owners.namespace)
            .map_err(|e| Error::io("open", &owners.namespace, e))?;
        let what = format!("show {} with the owners of a user namespace", self.layers.display());
        let mount =
            sys::mount::idmapped(&self.layers, namespace.as_fd()).map_err(|e| fail(&what, e))?;
        let point = open_path(&at).map_err(|e| fail("open the mount point", e.into()))?;
        step!("root: show layers", place(&mount, &point))
            .map_err(|e| fail("put the layers in their place", e.into()))?;
        Ok(shown)
    }

    /// Where a layer is seen below `at`; folders of this root's own stay where they are.
    fn shown(&self, at: &Path, path: &Path) -> PathBuf {
        path.strip_prefix(&self.layers).map_or_else(|_| path.to_owned(), |rest| at.join(rest))
    }

    /// Unmounts it; if it is busy, it goes away when the last user does. Nothing to do if it is not
    /// mounted.
    pub fn unmount(&self) -> Result<()> {
        let merged = self.merged();
        let fail = |e: Errno| Error::Unmount { path: merged.clone(), source: e.into() };
        for _ in 0..STACKED {
            if mounted(&merged)? == Mounted::Nothing {
                return Ok(());
            }
            let plain = UnmountFlags::NOFOLLOW;
            let mut unmounted = step!("root: unmount", rustix::mount::unmount(&merged, plain));
            if unmounted == Err(Errno::BUSY) {
                let lazily = plain | UnmountFlags::DETACH;
                // no step: it is as if the one above had not been refused.
                unmounted = rustix::mount::unmount(&merged, lazily);
            }
            match unmounted {
                // Somebody else was faster.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(e) => return Err(fail(e)),
            }
        }
        match mounted(&merged)? {
            Mounted::Nothing => Ok(()),
            _ => Err(fail(Errno::BUSY)),
        }
    }

    /// Unmounts it and deletes its folders, but not the caller's folder they are in.
    ///
    /// # Errors
    /// [`Error::MountInside`] if something else is mounted in them.
    pub fn remove(&self) -> Result<()> {
        self.unmount()?;
        Shown(self.dir.join(OWNERS)).end()?;
        for name in ["merged", "work", UPPER, "lower"] {
            step!("root: remove folder", tree::remove_tree(&self.dir.join(name)))?;
        }
        Ok(())
    }

    fn folders(&self) -> Result<()> {
        for name in ["work", "merged", "lower", UPPER] {
            let path = self.dir.join(name);
            match step!("root: make folder", fs::create_dir(&path)) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("create", &path, e)),
            }
            // The root of what is mounted has the attributes of upper's root.
            let (mode, owner) = match name {
                UPPER => (self.root.mode, (self.root.uid, self.root.gid)),
                "work" => (0o700, (0, 0)),
                _ => (0o755, (0, 0)),
            };
            let (uid, gid) = (Some(owner.0), Some(owner.1));
            let mode = fs::Permissions::from_mode(mode);
            step!("root: give folder", std::os::unix::fs::chown(&path, uid, gid))
                .and_then(|()| step!("root: set mode", fs::set_permissions(&path, mode)))
                .map_err(|e| Error::io("change the owner of", &path, e))?;
        }
        Ok(())
    }

    /// Overlay's options besides the folders, as key and value. What changes how layers are read
    /// is said always, whatever the kernel's defaults are.
    fn overlay_options(&self) -> Vec<(&str, Option<&str>)> {
        let mut options = vec![
            ("metacopy", Some("off")),
            ("redirect_dir", Some("nofollow")),
            ("index", Some("off")),
        ];
        for extra in &self.options.extra {
            if mount_attribute(extra).is_none() {
                options.push(match extra.split_once('=') {
                    Some((key, value)) => (key, Some(value)),
                    None => (extra.as_str(), None),
                });
            }
        }
        options
    }

    fn attributes(&self) -> impl Iterator<Item = (MountAttrFlags, MountFlags)> {
        let readonly = self.options.readonly.then_some("ro");
        let extra = self.options.extra.iter().map(String::as_str);
        extra.chain(readonly).filter_map(mount_attribute)
    }

    fn mount_by_parts(&self, merged: &Path, lower: &[PathBuf]) -> Result<ByParts> {
        let context = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(context) => context,
            Err(Errno::NOSYS) => return Ok(ByParts::Unknown),
            Err(e) => return Err(fail(merged, "open the file system", None, e)),
        };
        let fail = |step: &str, e| fail(merged, step, Some(&context), e);
        let mut open = Vec::new();
        let mut set = |key: &str, path: &Path| -> std::result::Result<(), Errno> {
            if path.as_os_str().len() <= LONGEST_VALUE {
                return rustix::mount::fsconfig_set_string(&context, key, path);
            }
            let folder = open_path(path)?;
            let short = proc_path(&folder);
            open.push(folder);
            rustix::mount::fsconfig_set_string(&context, key, short)
        };
        for (number, layer) in lower.iter().enumerate() {
            match set("lowerdir+", layer) {
                Ok(()) => {}
                Err(Errno::INVAL) if number == 0 => return Ok(ByParts::Unknown),
                Err(e) => return Err(fail(&format!("add the layer {}", layer.display()), e)),
            }
        }
        if !self.options.readonly {
            for (key, name) in [("upperdir", UPPER), ("workdir", "work")] {
                set(key, &self.dir.join(name)).map_err(|e| fail(&format!("set {key}"), e))?;
            }
        }
        for (key, value) in self.overlay_options() {
            match value {
                // Quotes are for lists of options, and this is not one.
                Some(value) => {
                    rustix::mount::fsconfig_set_string(&context, key, value.trim_matches('"'))
                }
                None => rustix::mount::fsconfig_set_flag(&context, key),
            }
            .map_err(|e| fail(&format!("set {key}"), e))?;
        }
        match rustix::mount::fsconfig_create(&context) {
            Err(e @ Errno::INVAL) => {
                return Ok(ByParts::Refused(fail("create the file system", e)));
            }
            done => done.map_err(|e| fail("create the file system", e))?,
        }
        let attributes = self.attributes().fold(MountAttrFlags::empty(), |all, (one, _)| all | one);
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|e| fail("make the mount", e))?;
        let point = open_path(merged).map_err(|e| fail("open the mount point", e))?;
        place(&mount, &point).map_err(|e| fail("put the mount in its place", e))?;
        Ok(ByParts::Mounted)
    }

    /// For kernels without `lowerdir+`. All options must fit into a page, so folders are named by
    /// the number of an open file: about 200 layers.
    fn mount_classic(&self, merged: &Path, lower: &[PathBuf]) -> Result<()> {
        let fail = |step: &str, e| fail(merged, step, None, e);
        let mut open = Vec::new();
        let mut short = |path: &Path| -> Result<String> {
            let folder =
                open_path(path).map_err(|e| fail(&format!("open {}", path.display()), e))?;
            let short = proc_path(&folder);
            open.push(folder);
            Ok(short)
        };
        let lower = lower.iter().map(|path| short(path)).collect::<Result<Vec<_>>>()?;
        let mut data = format!("lowerdir={}", lower.join(":"));
        if !self.options.readonly {
            let (upper, work) = (short(&self.upper())?, short(&self.dir.join("work"))?);
            data.push_str(&format!(",upperdir={upper},workdir={work}"));
        }
        for (key, value) in self.overlay_options() {
            data.push(',');
            data.push_str(key);
            if let Some(value) = value {
                // A security label may have commas in it.
                let quote = if value.contains(',') && !value.starts_with('"') { "\"" } else { "" };
                data.push_str(&format!("={quote}{value}{quote}"));
            }
        }
        let data = std::ffi::CString::new(data).map_err(|_| fail("set options", Errno::INVAL))?;
        let flags = self.attributes().fold(MountFlags::empty(), |all, (_, one)| all | one);
        // no step: it is one of `mount`.
        rustix::mount::mount("overlay", merged, "overlay", flags, data.as_c_str())
            .map_err(|e| fail("mount", e))
    }
}

/// What became of a mount by parts.
enum ByParts {
    Mounted,
    /// This kernel has no `lowerdir+`, and says so at once.
    Unknown,
    /// It refused in the end: before Linux 6.5 overlay is given any option and looks at all of them
    /// only then.
    Refused(Error),
}

/// The layers with other owners, mounted until this goes.
struct Shown(PathBuf);

impl Shown {
    fn end(self) -> Result<()> {
        self.take_away()
    }

    /// The folder is only ever unlinked when it is empty: what is mounted there are all layers.
    fn take_away(&self) -> Result<()> {
        let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
        loop {
            match step!("root: hide layers", rustix::mount::unmount(&self.0, flags)) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => break,
                Err(e) => return Err(Error::Unmount { path: self.0.clone(), source: e.into() }),
            }
        }
        match step!("root: remove folder of layers", fs::remove_dir(&self.0)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.0, e))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Err(e) = self.take_away() {
            tracing::warn!("{e}");
        }
    }
}

/// Puts a mount that has no place yet over a folder.
fn place(mount: &OwnedFd, point: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    // no step: it is one of the callers.
    rustix::mount::move_mount(mount, "", point, "", flags)
}

fn open_path(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// An option that is the mount's, not overlay's.
fn mount_attribute(option: &str) -> Option<(MountAttrFlags, MountFlags)> {
    Some(match option {
        "ro" => (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        "nodev" => (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        "nosuid" => (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        "noexec" => (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        "noatime" => (MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        _ => return None,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mounted {
    Nothing,
    Overlay,
    Other,
}

/// What is mounted at a path.
fn mounted(path: &Path) -> Result<Mounted> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = match rustix::fs::statx(CWD, path, flags, StatxFlags::TYPE) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Mounted::Nothing),
        Err(e) => return Err(Error::io("look at", path, e)),
    };
    // Linux 5.8; all that can have `openat2` and newer.
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(Mounted::Nothing);
    }
    let kind = rustix::fs::statfs(path).map_err(|e| Error::io("look at", path, e))?;
    Ok(if kind.f_type as u64 == OVERLAY_MAGIC { Mounted::Overlay } else { Mounted::Other })
}

/// An error with what the kernel wrote into the log of the file system context.
fn fail(path: &Path, step: &str, context: Option<&OwnedFd>, e: Errno) -> Error {
    let mut detail = format!("cannot {step}");
    if let Some(log) = context.and_then(|context| context.try_clone().ok()) {
        let mut log = fs::File::from(log);
        let mut message = [0; 1024];
        // One message each time; nothing left is ENODATA.
        for _ in 0..8 {
            let Ok(read @ 1..) = log.read(&mut message) else { break };
            let text = String::from_utf8_lossy(&message[..read]);
            detail.push_str("; ");
            detail.push_str(text.trim_end());
        }
    }
    Error::Mount { path: path.to_owned(), detail, source: e.into() }
}
