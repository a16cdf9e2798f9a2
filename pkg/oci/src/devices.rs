//! Device nodes, and the rules of the device cgroup.
//!
//! An unprivileged container starts from "deny all" and gets what every program expects. A
//! privileged one may use all devices; which nodes it finds is the caller's list, for which
//! [`host_devices`] walks `/dev`.

use crate::error::{Error, Result};
use crate::input::{DeviceInput, DeviceKind, DeviceRule, SpecInput};
use nix::sys::stat::{major, minor};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What an unprivileged container may use: making any node (`m`), and null, full, zero, random,
/// urandom, tty, console, ptmx, the ptys.
const ALLOWED: [(DeviceKind, Option<i64>, Option<i64>, &str); 11] = [
    (DeviceKind::Char, None, None, "m"),
    (DeviceKind::Block, None, None, "m"),
    (DeviceKind::Char, Some(1), Some(3), "rwm"),
    (DeviceKind::Char, Some(1), Some(5), "rwm"),
    (DeviceKind::Char, Some(1), Some(7), "rwm"),
    (DeviceKind::Char, Some(1), Some(8), "rwm"),
    (DeviceKind::Char, Some(1), Some(9), "rwm"),
    (DeviceKind::Char, Some(5), Some(0), "rwm"),
    (DeviceKind::Char, Some(5), Some(1), "rwm"),
    (DeviceKind::Char, Some(5), Some(2), "rwm"),
    (DeviceKind::Char, Some(136), None, "rwm"),
];

/// Folders and files of `/dev` that are never handed to a privileged container: what the runtime
/// makes itself, and what other container managers leave there.
const SKIPPED: [&str; 11] = [
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".lxc",
    ".lxd-mounts",
    ".udev",
    "console",
    "core",
    "net/.lxc",
    "initctl",
];

/// How deep below `/dev` nodes are looked for.
const MAX_DEPTH: usize = 8;

/// The rules of a spec, in the order in which the runtime applies them.
pub(crate) fn rules(input: &SpecInput) -> Vec<LinuxDeviceCgroup> {
    let mut rules = Vec::new();
    if input.privileged && !input.devices_as_unprivileged {
        rules.push(rule(true, DeviceKind::All, None, None, "rwm"));
    } else {
        rules.push(rule(false, DeviceKind::All, None, None, "rwm"));
        for (kind, major, minor, access) in ALLOWED {
            rules.push(rule(true, kind, major, minor, access));
        }
        for device in input.devices.iter().filter(|d| ruled(d)) {
            let (major, minor) = (Some(device.major), Some(device.minor));
            rules.push(rule(true, device.kind, major, minor, &device.access));
        }
    }
    for DeviceRule { allow, kind, major, minor, access } in &input.resources.devices {
        rules.push(rule(*allow, *kind, *major, *minor, access));
    }
    rules
}

/// Whether a node is one for the device cgroup to let through.
fn ruled(device: &DeviceInput) -> bool {
    device.kind != DeviceKind::Fifo && !device.access.is_empty()
}

fn rule(
    allow: bool,
    kind: DeviceKind,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(typ(kind)))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

const fn typ(kind: DeviceKind) -> LinuxDeviceType {
    match kind {
        DeviceKind::Char => LinuxDeviceType::C,
        DeviceKind::Block => LinuxDeviceType::B,
        DeviceKind::Fifo => LinuxDeviceType::P,
        DeviceKind::All => LinuxDeviceType::A,
    }
}

/// The nodes of a spec: of two at one path the later one.
pub(crate) fn nodes(input: &SpecInput) -> Result<Option<Vec<LinuxDevice>>> {
    let mut nodes: Vec<LinuxDevice> = Vec::with_capacity(input.devices.len());
    for device in &input.devices {
        if !device.path.is_absolute() {
            let path = device.path.to_string_lossy().into_owned();
            return Err(Error::NotAbsolute { what: "device", path });
        }
        if device.kind == DeviceKind::All {
            return Err(Error::NotADevice { path: device.path.clone() });
        }
        nodes.retain(|earlier| *earlier.path() != device.path);
        let mut node = LinuxDevice::default();
        node.set_path(device.path.clone())
            .set_typ(typ(device.kind))
            .set_major(device.major)
            .set_minor(device.minor)
            .set_file_mode(Some(device.file_mode))
            .set_uid(Some(device.uid))
            .set_gid(Some(device.gid));
        nodes.push(node);
    }
    Ok(Some(nodes).filter(|n| !n.is_empty()))
}

/// One device of the node, with the owner and mode it has there; symbolic links are followed.
///
/// # Errors
/// [`Error::Device`] if it cannot be looked at, [`Error::NotADevice`] if it is something else.
pub fn device(host_path: &Path, container_path: &Path, access: &str) -> Result<DeviceInput> {
    let meta = fs::metadata(host_path)
        .map_err(|source| Error::Device { path: host_path.to_owned(), source })?;
    from_metadata(&meta, container_path, access)
        .ok_or_else(|| Error::NotADevice { path: host_path.to_owned() })
}

fn from_metadata(meta: &fs::Metadata, path: &Path, access: &str) -> Option<DeviceInput> {
    let kind = match meta.file_type() {
        t if t.is_char_device() => DeviceKind::Char,
        t if t.is_block_device() => DeviceKind::Block,
        _ => return None,
    };
    // Device numbers have 32 and 20 bits of use; the kernel hands out none that i64 cannot hold.
    Some(DeviceInput {
        path: path.to_owned(),
        kind,
        major: i64::try_from(major(meta.rdev())).ok()?,
        minor: i64::try_from(minor(meta.rdev())).ok()?,
        file_mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        access: access.to_owned(),
    })
}

/// All device nodes below a folder, normally `/dev`, sorted by path, with access `rwm`.
///
/// Symbolic links are not followed and other file systems mounted below are not special: the
/// folders that hold no devices of the node (`pts`, `shm`, …) are skipped by name. Nodes that
/// vanish meanwhile are left out.
///
/// # Errors
/// [`Error::Device`] if the folder itself, or one below it, cannot be read.
pub fn host_devices(dev: &Path) -> Result<Vec<DeviceInput>> {
    let walk = Walk { top: dev, inside: Path::new("/dev"), access: "rwm", skipped: &SKIPPED };
    walk.all()
}

/// All device nodes below a folder of the node, at the same places below `inside`, sorted by path.
///
/// Symbolic links are not followed; what is no device is left out.
///
/// # Errors
/// [`Error::Device`] if the folder itself, or one below it, cannot be read.
pub fn devices_below(folder: &Path, inside: &Path, access: &str) -> Result<Vec<DeviceInput>> {
    Walk { top: folder, inside, access, skipped: &[] }.all()
}

struct Walk<'a> {
    top: &'a Path,
    inside: &'a Path,
    access: &'a str,
    skipped: &'a [&'a str],
}

impl Walk<'_> {
    fn all(&self) -> Result<Vec<DeviceInput>> {
        let mut found = Vec::new();
        walk(self, Path::new(""), 0, &mut found)?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }
}

fn walk(of: &Walk<'_>, below: &Path, depth: usize, found: &mut Vec<DeviceInput>) -> Result<()> {
    let folder = of.top.join(below);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if depth > 0 && e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Device { path: folder, source }),
    };
    for entry in entries {
        let entry = entry.map_err(|source| Error::Device { path: folder.clone(), source })?;
        let relative = below.join(entry.file_name());
        if of.skipped.iter().any(|s| relative == Path::new(s)) {
            continue;
        }
        // Not followed: DirEntry::metadata is lstat.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            if depth < MAX_DEPTH {
                walk(of, &relative, depth + 1, found)?;
            }
        } else if let Some(device) = from_metadata(&meta, &of.inside.join(&relative), of.access) {
            found.push(device);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn unprivileged_starts_from_nothing() {
        let null = device(Path::new("/dev/null"), Path::new("/dev/x"), "r").unwrap();
        let input = SpecInput { devices: vec![null.clone(), null], ..Default::default() };
        let rules = rules(&input);
        assert!(!rules[0].allow() && rules[0].typ() == Some(LinuxDeviceType::A));
        assert!(rules[1..].iter().all(|r| r.allow() && r.typ() != Some(LinuxDeviceType::A)));
        let last = rules.last().unwrap();
        assert_eq!((last.major(), last.minor()), (Some(1), Some(3)));
        assert_eq!(last.access().as_deref(), Some("r"));
        assert_eq!(nodes(&input).unwrap().unwrap().len(), 1);
    }

    #[test]
    fn privileged_may_use_all() {
        let rules = rules(&SpecInput { privileged: true, ..Default::default() });
        assert_eq!(rules.len(), 1);
        assert!(rules[0].allow() && rules[0].access().as_deref() == Some("rwm"));
        let fewer =
            SpecInput { privileged: true, devices_as_unprivileged: true, ..Default::default() };
        assert_eq!(super::rules(&fewer), super::rules(&SpecInput::default()));
    }

    #[test]
    fn the_devices_of_this_node() {
        let found = host_devices(Path::new("/dev")).unwrap();
        let null = found.iter().find(|d| d.path == Path::new("/dev/null")).unwrap();
        assert_eq!((null.kind, null.major, null.minor), (DeviceKind::Char, 1, 3));
        assert_eq!(null.file_mode, 0o666);
        assert!(found.is_sorted_by_key(|d| &d.path));
        for bad in ["/dev/pts", "/dev/console", "/dev/shm", "/dev/fd"] {
            assert!(!found.iter().any(|d| d.path.starts_with(bad)), "{bad}");
        }
    }

    #[test]
    fn devices_of_a_folder_and_below() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b", "a", "sub/c", "console"] {
            let (mode, null) = (Mode::from_bits_truncate(0o600), makedev(1, 3));
            mknod(&dir.path().join(name), SFlag::S_IFCHR, mode, null).unwrap();
        }
        symlink("a", dir.path().join("link")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let found = devices_below(dir.path(), Path::new("/dev/x"), "r").unwrap();
        let paths: Vec<_> = found.iter().map(|d| d.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/dev/x/a", "/dev/x/b", "/dev/x/console", "/dev/x/sub/c"]);
        assert!(found.iter().all(|d| d.access == "r" && (d.major, d.minor) == (1, 3)));
    }

    #[test]
    fn links_and_files_are_no_devices() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/dev/null", dir.path().join("link")).unwrap();
        symlink("..", dir.path().join("loop")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        assert_eq!(host_devices(dir.path()).unwrap(), []);
        let file = dir.path().join("file");
        assert!(matches!(device(&file, &file, "r"), Err(Error::NotADevice { .. })));
        let gone = dir.path().join("gone");
        assert!(matches!(device(&gone, &gone, "r"), Err(Error::Device { .. })));
        assert!(matches!(host_devices(&gone), Err(Error::Device { .. })));
    }
}
