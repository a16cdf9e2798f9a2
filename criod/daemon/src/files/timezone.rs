//! `/etc/localtime` of containers, by the key `timezone`.
//!
//! ```text
//! ""        what the image has
//! Local     the node's own (/etc/localtime)
//! Area/City a file below $TZDIR, else /usr/share/zoneinfo
//! ```
//! The file is written into the container's root before anything runs there, in place of what the
//! image has: a mount on a link would change what the link leads to.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Kind, Result};
use failpoint::step;

/// More than any zone's file has, in bytes.
const LARGEST: u64 = 1 << 20;

/// The bytes of the zone that the configuration names.
pub(crate) fn zone(name: &str) -> Result<Option<Vec<u8>>> {
    let zones = std::env::var_os("TZDIR").filter(|d| !d.is_empty());
    zone_below(Path::new(&zones.unwrap_or_else(|| "/usr/share/zoneinfo".into())), name)
}

fn zone_below(zones: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = match name {
        "" => return Ok(None),
        _ if name.eq_ignore_ascii_case("local") => PathBuf::from("/etc/localtime"),
        name => {
            let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
            if !Path::new(name).components().all(plain) {
                return Err(Error::precondition(format!("timezone {name:?} is no name of a zone")));
            }
            zones.join(name)
        }
    };
    let mut bytes = Vec::new();
    let read = fs::File::open(&path).and_then(|f| f.take(LARGEST).read_to_end(&mut bytes));
    read.map_err(Error::file("read the timezone", &path))?;
    if !bytes.starts_with(b"TZif") {
        let text = format!("timezone {name:?}: {} is no file of a zone", path.display());
        return Err(Error::precondition(text));
    }
    Ok(Some(bytes))
}

/// Gives the container with this root the zone that the configuration names.
pub(crate) fn set_timezone(id: &str, name: &str, rootfs: &Path) -> Result<()> {
    match zone(name)? {
        Some(bytes) => put(id, &bytes, rootfs),
        None => Ok(()),
    }
}

fn put(id: &str, zone: &[u8], rootfs: &Path) -> Result<()> {
    let etc = storage::ensure_dir_in_root(rootfs, "/etc", 0o755, 0, 0).map_err(|source| {
        let action = "set the timezone";
        Error::from(Kind::Storage { id: id.to_owned(), action, source })
    })?;
    // By the open folder: no link of the image leads elsewhere.
    let path = PathBuf::from(format!("/proc/self/fd/{}/localtime", etc.as_raw_fd()));
    let failed = |e| Error::file("write", rootfs.join("etc/localtime"))(e);
    match step!("timezone: remove old", fs::remove_file(&path)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    step!(
        "timezone: write",
        fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .and_then(|mut f| f.write_all(zone))
    )
    .map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names() {
        let dir = tempfile::tempdir().unwrap();
        let zones = dir.path().join("zones");
        fs::create_dir_all(zones.join("Europe")).unwrap();
        fs::write(zones.join("Europe/Berlin"), "TZif2").unwrap();
        fs::write(zones.join("zone.tab"), "text").unwrap();
        fs::write(dir.path().join("outside"), "TZif2").unwrap();
        let of = |name: &str| zone_below(&zones, name);
        assert_eq!(of("").unwrap(), None);
        assert_eq!(of("Europe/Berlin").unwrap().unwrap(), b"TZif2");
        let outside = dir.path().join("outside");
        for bad in [outside.to_str().unwrap(), "../outside", "No/Where", "zone.tab", "Europe"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_image_has_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let zones = dir.path().join("usr/share/zoneinfo");
        fs::create_dir_all(&zones).unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(zones.join("Etc"), "of the image").unwrap();
        let localtime = dir.path().join("etc/localtime");
        symlink("/usr/share/zoneinfo/Etc", &localtime).unwrap();
        for _ in 0..2 {
            put("c", b"TZif", dir.path()).unwrap();
            assert!(fs::symlink_metadata(&localtime).unwrap().is_file());
            assert_eq!(fs::read(&localtime).unwrap(), b"TZif");
        }
        assert_eq!(fs::read_to_string(zones.join("Etc")).unwrap(), "of the image");
        // Where /etc is a link out of the root.
        let other = tempfile::tempdir().unwrap();
        let root = other.path().join("root");
        fs::create_dir(&root).unwrap();
        symlink("../../..", root.join("etc")).unwrap();
        put("c", b"TZif", &root).unwrap();
        assert!(root.join("localtime").is_file() && !other.path().join("localtime").exists());
    }
}
