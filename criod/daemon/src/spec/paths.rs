//! Paths of containers, and what the mounts below them pass on.

use std::fs;
use std::path::Path;

use api_cri::v1::{ContainerConfig, LinuxContainerSecurityContext};
use oci::Propagation;

use crate::error::{Error, Result};

/// A path of the container without `.`, `..` and doubled slashes, as text: nothing is resolved.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// What the mount that a path lies on passes on of later mounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spread {
    /// In both directions.
    shared: bool,
    /// It gets those of another.
    slave: bool,
}

impl Spread {
    /// What holds for a path of the node whose links are resolved.
    pub(super) fn of(path: &Path) -> Result<Spread, String> {
        let info = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
        Ok(Spread::read(&info, path))
    }

    fn read(mountinfo: &str, path: &Path) -> Spread {
        let mut best = (0, Spread::default());
        for line in mountinfo.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let (Some(point), Some(end)) = (fields.get(4), fields.iter().position(|f| *f == "-"))
            else {
                continue;
            };
            let point = sys::mount::unescape(point);
            let length = point.as_os_str().len();
            // Of mounts on top of each other the later one holds.
            if path.starts_with(&point) && length >= best.0 {
                let has = |word: &str| fields.iter().take(end).skip(6).any(|f| f.starts_with(word));
                best = (length, Spread { shared: has("shared:"), slave: has("master:") });
            }
        }
        best.1
    }

    /// Whether that is what a propagation promises.
    pub(super) fn check(self, wanted: Propagation) -> Result<(), String> {
        match wanted {
            Propagation::Bidirectional if !self.shared => Err("is not on a shared mount".into()),
            Propagation::HostToContainer if !self.shared && !self.slave => {
                Err("is not on a shared or slave mount".into())
            }
            _ => Ok(()),
        }
    }
}

/// `None` is the default list: that of who says nothing of security. The kubelet sends the list
/// that holds, and an empty one for a procMount that is Unmasked.
pub(super) fn paths(
    config: &ContainerConfig,
    field: &str,
    list: impl Fn(&LinuxContainerSecurityContext) -> &Vec<String>,
) -> Result<Option<Vec<String>>> {
    let Some(security) = config.linux.as_ref().and_then(|l| l.security_context.as_ref()) else {
        return Ok(None);
    };
    let all = list(security);
    let usable = |p: &&String| p.starts_with('/') && !p.contains('\0') && clean(p) != "/";
    match all.iter().find(|p| !usable(p)) {
        Some(bad) => Err(Error::invalid(format!("{field}: {bad:?} is no path to hide or protect"))),
        None => Ok(Some(all.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_text() {
        for (path, cleaned) in [("/a//b/../c/", "/a/c"), ("a/./b", "/a/b"), ("/../..", "/")] {
            assert_eq!(clean(path), cleaned);
        }
    }

    #[test]
    fn propagation_is_that_of_the_innermost_mount() {
        let info = "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
                    2 1 0:5 / /my\\040data rw - tmpfs t rw\n\
                    3 2 0:6 / /my\\040data/s rw master:7 - tmpfs t rw\n";
        let of = |path: &str| Spread::read(info, Path::new(path));
        let (shared, slave) = (of("/etc"), of("/my data/s/x"));
        assert_eq!(shared, Spread { shared: true, slave: false });
        assert_eq!(of("/my data/x"), Spread::default());
        assert_eq!(slave, Spread { shared: false, slave: true });
        assert_eq!(Spread::read("1 0 8:1 / / - ext4\nodd\n", Path::new("/")), Spread::default());
        for (spread, host, both) in [(shared, true, true), (slave, true, false)] {
            assert_eq!(spread.check(Propagation::HostToContainer).is_ok(), host);
            assert_eq!(spread.check(Propagation::Bidirectional).is_ok(), both);
        }
        assert!(Spread::default().check(Propagation::HostToContainer).is_err());
        assert!(Spread::default().check(Propagation::Private).is_ok());
    }

    #[test]
    fn paths_to_hide_are_paths_below_the_root() {
        for (path, good) in
            [("/proc/kcore", true), ("proc", false), ("", false), ("/", false), ("/x/..", false)]
        {
            let security = LinuxContainerSecurityContext {
                masked_paths: vec!["/sys/firmware".into(), path.into()],
                ..Default::default()
            };
            let linux = api_cri::v1::LinuxContainerConfig {
                security_context: Some(security),
                ..Default::default()
            };
            let config = ContainerConfig { linux: Some(linux), ..Default::default() };
            let read = paths(&config, "masked_paths", |s| &s.masked_paths);
            assert_eq!(read.is_ok(), good, "{path:?}");
        }
    }
}
