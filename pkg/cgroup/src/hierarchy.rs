//! Where control groups are mounted, and which controller is in which hierarchy.
//!
//! | mode   | controllers             | beside them                                   |
//! |--------|-------------------------|-----------------------------------------------|
//! | V1     | one mount each, or few  | `name=systemd`, perhaps                       |
//! | Hybrid | as V1                   | a version 2 mount without controllers         |
//! | V2     | one mount               | –                                             |
//!
//! The version 1 hierarchies of a hybrid node are what [`crate::Cgroup`] works with there. runc puts
//! containers into the version 2 mount as well: that is cleaned, and pressures are read there.

use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How this node has its control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Version 1 only.
    V1,
    /// Version 2 only.
    V2,
    /// Controllers in version 1, and a version 2 mount beside them.
    Hybrid,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its controllers, `name=…` for a named one, sorted; empty for version 2.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The path that this process has in it, as in `/proc/self/cgroup`.
    pub own: String,
}

/// The hierarchies of a node. A clone shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy(Arc<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    mode: Mode,
    /// What groups are made in, in a fixed order.
    mounts: Vec<Mount>,
    /// The version 2 mount of a hybrid node.
    beside: Option<Mount>,
    /// Controllers of version 2.
    v2_controllers: Vec<String>,
    /// What the mount of a version 2 node says of the whole hierarchy.
    v2_flags: Vec<String>,
}

/// Options of a version 2 mount that hold for the hierarchy, wherever it is mounted.
const FLAGS: [&str; 6] = [
    "nsdelegate",
    "favordynmods",
    "memory_localevents",
    "memory_recursiveprot",
    "memory_hugetlb_accounting",
    "pids_localevents",
];

/// In which order hierarchies are gone through; named and unknown ones follow by alphabet. The
/// freezer is last but one so that a group that can be frozen has its limits already, `systemd`
/// comes last of all.
const ORDER: [&str; 13] = [
    "cpuset",
    "cpu",
    "cpuacct",
    "memory",
    "devices",
    "pids",
    "blkio",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "rdma",
    "freezer",
];

impl Hierarchy {
    /// Looks at this process's mounts.
    ///
    /// # Errors
    /// [`Error::Detect`], [`Error::NoHierarchy`].
    pub fn detect() -> Result<Self> {
        let read = |path: &'static str| {
            fs::read_to_string(path)
                .map_err(|source| Error::Detect { path: PathBuf::from(path), source })
        };
        let mut found = parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?;
        if found.mode == Mode::V2 {
            // Absent where the kernel has no controllers at all.
            let file = found.mounts[0].mountpoint.join("cgroup.controllers");
            let text = fs::read_to_string(file).unwrap_or_default();
            found.v2_controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        Ok(Self(Arc::new(found)))
    }

    /// The same from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
    ///
    /// # Errors
    /// [`Error::NoHierarchy`].
    pub fn parse(mountinfo: &str, own: &str) -> Result<Self> {
        parse(mountinfo, own).map(|inner| Self(Arc::new(inner)))
    }

    /// Which kind of node this is.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// Whether files have their version 2 names.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.0.mode == Mode::V2
    }

    /// The hierarchies that groups are made in, in a fixed order.
    #[must_use]
    pub fn mounts(&self) -> &[Mount] {
        &self.0.mounts
    }

    /// The version 2 mount of a hybrid node.
    #[must_use]
    pub fn beside(&self) -> Option<&Mount> {
        self.0.beside.as_ref()
    }

    /// The controllers of a version 2 node, as its root has them.
    #[must_use]
    pub fn v2_controllers(&self) -> &[String] {
        &self.0.v2_controllers
    }

    /// Options of a version 2 node's mount that hold for the whole hierarchy. Whoever mounts it once
    /// more in the node's own cgroup namespace sets them for all, and without them takes them away.
    #[must_use]
    pub fn v2_flags(&self) -> &[String] {
        &self.0.v2_flags
    }

    /// The hierarchy that a controller is in: on version 2 the only one, whether or not the
    /// controller is there.
    #[must_use]
    pub fn mount_of(&self, controller: &str) -> Option<&Mount> {
        match self.0.mode {
            Mode::V2 => self.0.mounts.first(),
            _ => self.0.mounts.iter().find(|m| m.controllers.iter().any(|c| c == controller)),
        }
    }

    /// Whether the node has a controller.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        match self.0.mode {
            // These are no controllers there, but always at hand.
            Mode::V2 if matches!(controller, "freezer" | "devices") => true,
            Mode::V2 => self.0.v2_controllers.iter().any(|c| c == controller),
            _ => self.mount_of(controller).is_some(),
        }
    }

    /// Whether swap can be limited: `memory.swap.max` or `memory.memsw.limit_in_bytes` in the
    /// group that this process is in. The root of version 2 has no such file: there it counts
    /// whether the kernel knows swap at all.
    #[must_use]
    pub fn has_swap_limit(&self) -> bool {
        let Some(memory) = self.mount_of("memory") else { return false };
        let own = memory.mountpoint.join(memory.own.trim_start_matches('/'));
        let name = match self.0.mode {
            Mode::V2 => "memory.swap.max",
            _ => "memory.memsw.limit_in_bytes",
        };
        own.join(name).exists() || (self.0.mode == Mode::V2 && Path::new("/proc/swaps").exists())
    }
}

/// What [`Hierarchy::parse`] does.
fn parse(mountinfo: &str, own: &str) -> Result<Inner> {
    let own: Vec<(Vec<&str>, &str)> = own
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            Some((controllers.split(',').filter(|c| !c.is_empty()).collect(), path))
        })
        .collect();
    let own_path = |controllers: &[String]| {
        own.iter()
            .find(|(of, _)| match controllers.first() {
                Some(first) => of.contains(&first.as_str()),
                None => of.is_empty(),
            })
            .map_or("/", |(_, path)| path)
            .to_owned()
    };
    let known: Vec<&str> = own.iter().flat_map(|(c, _)| c.iter().copied()).collect();

    let mut v1: Vec<Mount> = Vec::new();
    let mut v2: Vec<Mount> = Vec::new();
    let mut flags: Vec<String> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mountpoint, fs_type, super_options)) = mountinfo_fields(line) else {
            continue;
        };
        match fs_type {
            "cgroup2" => {
                v2.push(Mount { controllers: Vec::new(), mountpoint, own: own_path(&[]) });
                let given = super_options.split(',').filter(|o| FLAGS.contains(o));
                flags = given.map(str::to_owned).collect();
            }
            "cgroup" => {
                let mut controllers: Vec<String> = super_options
                    .split(',')
                    .filter(|o| o.starts_with("name=") || known.contains(o))
                    .map(str::to_owned)
                    .collect();
                controllers.sort_unstable();
                // The same hierarchy may be mounted again somewhere else: the first counts.
                if controllers.is_empty() || v1.iter().any(|m| m.controllers == controllers) {
                    continue;
                }
                let own = own_path(&controllers);
                v1.push(Mount { controllers, mountpoint, own });
            }
            _ => {}
        }
    }
    v1.sort_by_key(|m| (m.rank(), m.controllers.clone()));
    // Mounted over one another, the last is what a path reaches; apart, the usual one counts.
    let usual = Path::new("/sys/fs/cgroup");
    let beside = v2.iter().rposition(|m| m.mountpoint.starts_with(usual));
    let beside = match beside {
        Some(at) => Some(v2.swap_remove(at)),
        None => v2.pop(),
    };
    let controllers_in_v1 =
        v1.iter().any(|m| m.controllers.iter().any(|c| !c.starts_with("name=")));
    match (controllers_in_v1, beside) {
        (true, None) => Ok(of(Mode::V1, v1, None)),
        (true, Some(v2)) => Ok(of(Mode::Hybrid, v1, Some(v2))),
        (false, Some(v2)) => Ok(Inner { v2_flags: flags, ..of(Mode::V2, vec![v2], None) }),
        (false, None) => Err(Error::NoHierarchy),
    }
}

fn of(mode: Mode, mounts: Vec<Mount>, beside: Option<Mount>) -> Inner {
    Inner { mode, mounts, beside, v2_controllers: Vec::new(), v2_flags: Vec::new() }
}

impl Mount {
    /// Its place in [`ORDER`].
    fn rank(&self) -> usize {
        let place = |c: &String| ORDER.iter().position(|o| o == c);
        let of = |c: &String| match place(c) {
            Some(at) if at < ORDER.len() - 1 => at,
            Some(_) => ORDER.len() + 1,
            None if c.starts_with("name=") => ORDER.len() + 2,
            None => ORDER.len(),
        };
        self.controllers.iter().map(of).min().unwrap_or(usize::MAX)
    }
}

/// Mount point, file system type and options of a line of mountinfo:
/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn mountinfo_fields(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let mountpoint = before.split(' ').nth(4)?;
    let mut after = after.splitn(3, ' ');
    Some((sys::mount::unescape(mountpoint), after.next()?, after.nth(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HYBRID: &str = "\
24 1 0:22 / /proc rw - proc proc rw
30 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
33 30 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,noprefix
35 30 0:31 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
36 30 0:32 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
37 30 0:29 / /else\\040where rw,relatime - cgroup cgroup rw,memory
";
    const HYBRID_OWN: &str =
        "5:cpuset:/\n4:memory:/me\n3:freezer:/\n2:cpu,cpuacct:/c\n1:name=systemd:/s\n0::/u\n";

    #[test]
    fn hybrid() {
        let h = Hierarchy::parse(HYBRID, HYBRID_OWN).unwrap();
        assert_eq!(h.mode(), Mode::Hybrid);
        let names: Vec<_> = h.mounts().iter().map(|m| m.controllers.join(",")).collect();
        assert_eq!(names, ["cpuset", "cpu,cpuacct", "memory", "freezer", "name=systemd"]);
        assert_eq!(h.mount_of("cpuacct").unwrap().own, "/c");
        assert_eq!(h.mount_of("memory").unwrap().mountpoint, Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(h.beside().unwrap().own, "/u");
        assert!(h.has("cpu") && !h.has("pids"));
        // The order of mounts is no order of ours.
        let reversed: Vec<_> = HYBRID.lines().take(8).collect();
        let reversed = reversed.into_iter().rev().collect::<Vec<_>>().join("\n");
        assert_eq!(Hierarchy::parse(&reversed, HYBRID_OWN).unwrap(), h);
    }

    #[test]
    fn only_one_version() {
        let lines: Vec<_> = HYBRID.lines().collect();
        let v1 = Hierarchy::parse(&lines[..7].join("\n"), HYBRID_OWN).unwrap();
        assert_eq!((v1.mode(), v1.beside()), (Mode::V1, None));
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let v2 = Hierarchy::parse(v2, "0::/system.slice/x.service\n").unwrap();
        assert_eq!(v2.mode(), Mode::V2);
        assert_eq!(v2.v2_flags(), ["nsdelegate"]);
        assert_eq!(v2.mounts()[0].own, "/system.slice/x.service");
        // A version 2 node whose init wants its own name=systemd hierarchy.
        let named =
            format!("{}\n{}", lines[6], "30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 c rw");
        assert_eq!(Hierarchy::parse(&named, "1:name=systemd:/\n0::/\n").unwrap().mode(), Mode::V2);
        assert!(matches!(Hierarchy::parse("", ""), Err(Error::NoHierarchy)));
        assert!(matches!(Hierarchy::parse(lines[0], HYBRID_OWN), Err(Error::NoHierarchy)));
    }

    #[test]
    fn this_node() {
        let h = Hierarchy::detect().unwrap();
        assert!(!h.mounts().is_empty());
        assert!(h.mounts().iter().all(|m| m.mountpoint.is_dir()), "{h:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fall(mountinfo in "(.{0,30}( - )?(cgroup2?)? ?\n?){0,5}", own in "([0-9]:[a-z,]*:?/?\n?){0,5}") {
            let _ = Hierarchy::parse(&mountinfo, &own);
        }
    }
}
