//! Capabilities: their names and numbers, sets of them, and what this node can give.
//!
//! A set is a 64-bit word as in `/proc/<pid>/status`; bit n is capability n of `capability.h`.

use crate::error::{Error, Result};
use crate::input::Capabilities;
use std::fs;
use std::path::Path;

/// The names by number, `CAP_CHOWN` being 0.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapSet(u64);

impl std::fmt::Debug for CapSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl CapSet {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// What a container gets without being asked: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL,
    /// SETGID, SETUID, SETPCAP, NET_BIND_SERVICE. Not NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE,
    /// SETFCAP.
    pub const DEFAULT: Self = Self(0b101_1111_1011);

    /// All that [`NAMES`] knows.
    #[must_use]
    pub const fn all() -> Self {
        Self((1 << NAMES.len()) - 1)
    }

    /// From the kernel's bits. Bits without a name are left out: no runtime could be told them.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & Self::all().0)
    }

    /// The kernel's bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// From names, with or without `CAP_`, any case.
    ///
    /// # Errors
    /// [`Error::UnknownCapability`].
    pub fn from_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self> {
        names.into_iter().try_fold(Self::EMPTY, |set, name| {
            number(name.as_ref())
                .map(|n| Self(set.0 | 1 << n))
                .ok_or_else(|| Error::UnknownCapability { name: name.as_ref().to_owned() })
        })
    }

    /// The full names, sorted by alphabet.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let mut names: Vec<_> = NAMES
            .iter()
            .enumerate()
            .filter(|(n, _)| self.0 & (1 << n) != 0)
            .map(|(_, name)| *name)
            .collect();
        names.sort_unstable();
        names
    }

    /// Whether a capability is in the set; an unknown name is in none.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        number(name).is_some_and(|n| self.0 & (1 << n) != 0)
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in the first only.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The number of a capability by its name, with or without `CAP_`, any case.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    let short = match name.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case("CAP_") => name.get(4..)?,
        _ => name,
    };
    // There are 41 of them: the cast loses nothing.
    NAMES.iter().position(|n| n[4..].eq_ignore_ascii_case(short)).map(|n| n as u32)
}

/// The highest capability that this kernel knows, from `/proc/sys/kernel/cap_last_cap`.
///
/// # Errors
/// [`Error::ReadCapabilities`], [`Error::ParseCapabilities`].
pub fn last() -> Result<u32> {
    let path = Path::new("/proc/sys/kernel/cap_last_cap");
    let text = fs::read_to_string(path)
        .map_err(|source| Error::ReadCapabilities { path: path.to_owned(), source })?;
    text.trim().parse().map_err(|_| Error::ParseCapabilities {
        path: path.to_owned(),
        field: "number of the last capability",
    })
}

/// The capabilities of this process that it can hand to a container: those that are both
/// permitted (`CapPrm`) and in the bounding set (`CapBnd`) of `/proc/self/status`.
///
/// # Errors
/// [`Error::ReadCapabilities`], [`Error::ParseCapabilities`].
pub fn grantable() -> Result<CapSet> {
    let path = Path::new("/proc/self/status");
    let text = fs::read_to_string(path)
        .map_err(|source| Error::ReadCapabilities { path: path.to_owned(), source })?;
    let field = |field: &'static str| {
        status_field(&text, field)
            .ok_or_else(|| Error::ParseCapabilities { path: path.to_owned(), field })
    };
    Ok(field("CapPrm")?.intersection(field("CapBnd")?))
}

/// A capability field (`CapBnd`, `CapPrm`, …) of the text of a `status` file.
#[must_use]
pub fn status_field(text: &str, field: &str) -> Option<CapSet> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(field)?.strip_prefix(':')?;
        u64::from_str_radix(value.trim(), 16).ok().map(CapSet::from_bits)
    })
}

/// The five sets of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessCaps {
    /// What execve may ever give.
    pub bounding: CapSet,
    /// In force.
    pub effective: CapSet,
    /// May be put in force.
    pub permitted: CapSet,
    /// Kept over execve of a file that has them inheritable.
    pub inheritable: CapSet,
    /// Kept over any execve.
    pub ambient: CapSet,
}

/// Works out what [`Capabilities`] asks for, within what can be granted.
///
/// # Errors
/// [`Error::UnknownCapability`]; [`Error::CapabilityNotGrantable`] for one that is asked for by
/// its name. The default set and `ALL` are quietly cut to what can be granted.
pub fn resolve(wish: &Capabilities, privileged: bool, grantable: CapSet) -> Result<ProcessCaps> {
    let (add_all, add) = split_all(&wish.add)?;
    let (drop_all, drop) = split_all(&wish.drop)?;
    let (ambient_all, ambient) = split_all(&wish.add_ambient)?;
    let named = add.difference(drop).union(ambient);
    if let (false, Some(name)) = (privileged, named.difference(grantable).names().first()) {
        return Err(Error::CapabilityNotGrantable { name });
    }
    let base = match (privileged, drop_all, add_all) {
        (true, ..) | (_, false, true) => grantable,
        (_, true, _) => CapSet::EMPTY,
        _ => wish.base.intersection(grantable),
    };
    let ambient = if ambient_all { grantable } else { ambient };
    let kept = if privileged { base } else { base.union(add).difference(drop) };
    let set = kept.union(ambient).intersection(grantable);
    let ambient = ambient.intersection(grantable);
    let inheritable = if wish.inheritable { set } else { ambient };
    Ok(ProcessCaps { bounding: set, effective: set, permitted: set, inheritable, ambient })
}

/// Whether `ALL` is among the names, and the set of the others.
fn split_all(names: &[String]) -> Result<(bool, CapSet)> {
    let is_all = |n: &&String| n.eq_ignore_ascii_case("ALL") || n.eq_ignore_ascii_case("CAP_ALL");
    Ok((names.iter().any(|n| is_all(&n)), CapSet::from_names(names.iter().filter(|n| !is_all(n)))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(add: &[&str], drop: &[&str]) -> Capabilities {
        Capabilities {
            add: add.iter().map(|s| (*s).to_owned()).collect(),
            drop: drop.iter().map(|s| (*s).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn effective(add: &[&str], drop: &[&str]) -> CapSet {
        resolve(&wish(add, drop), false, CapSet::all()).unwrap().effective
    }

    #[test]
    fn the_default_set_is_the_nine() {
        let mut want = [
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FSETID",
            "CAP_FOWNER",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_KILL",
        ];
        want.sort_unstable();
        assert_eq!(CapSet::DEFAULT.names(), want);
    }

    #[test]
    fn names_are_taken_in_any_dress() {
        for name in ["CAP_NET_RAW", "NET_RAW", "cap_net_raw", "net_raw"] {
            assert_eq!(number(name), Some(13), "{name}");
        }
        for name in ["", "CAP_", "CAP", "NET RAW", "CAP_CAP_NET_RAW", "ÄÖÜ", "ALL"] {
            assert_eq!(number(name), None, "{name}");
        }
        assert!(matches!(
            CapSet::from_names(["CHOWN", "NOPE"]),
            Err(Error::UnknownCapability { name }) if name == "NOPE"
        ));
    }

    #[test]
    fn add_and_drop() {
        assert_eq!(effective(&[], &[]), CapSet::DEFAULT);
        assert_eq!(effective(&["NET_RAW"], &["ALL"]).names(), ["CAP_NET_RAW"]);
        assert_eq!(effective(&["ALL"], &["ALL"]), CapSet::EMPTY);
        let most = effective(&["ALL"], &["SYS_ADMIN"]);
        assert!(!most.has("SYS_ADMIN") && most.has("SYS_BOOT"));
        assert!(!effective(&["CHOWN"], &["CHOWN"]).has("CHOWN"));
    }

    #[test]
    fn what_cannot_be_granted() {
        let less = CapSet::all().difference(CapSet::from_names(["SYS_RESOURCE", "KILL"]).unwrap());
        let sets = resolve(&wish(&["ALL"], &[]), false, less).unwrap();
        assert_eq!(sets.bounding, less);
        let sets = resolve(&wish(&[], &[]), true, less).unwrap();
        assert_eq!(
            (sets.bounding, sets.inheritable, sets.ambient),
            (less, CapSet::EMPTY, CapSet::EMPTY)
        );
        assert!(!resolve(&wish(&[], &[]), false, less).unwrap().effective.has("KILL"));
        assert!(matches!(
            resolve(&wish(&["sys_resource"], &[]), false, less),
            Err(Error::CapabilityNotGrantable { name: "CAP_SYS_RESOURCE" })
        ));
    }

    #[test]
    fn ambient_is_in_every_set() {
        let wish = Capabilities { add_ambient: vec!["NET_RAW".into()], ..wish(&[], &["ALL"]) };
        let sets = resolve(&wish, false, CapSet::all()).unwrap();
        let raw = CapSet::from_names(["NET_RAW"]).unwrap();
        assert_eq!(
            sets,
            ProcessCaps {
                bounding: raw,
                effective: raw,
                permitted: raw,
                inheritable: raw,
                ambient: raw
            }
        );
    }

    #[test]
    fn this_kernel() {
        assert!((30..64).contains(&last().unwrap()));
        let mine = grantable().unwrap();
        assert!(mine.has("CAP_SETUID"), "the tests run as root: {mine:?}");
    }

    #[test]
    fn status_fields() {
        let text = "Name:\tx\nCapPrm:\t000001fffeffffff\nCapBnd:\tzz\n";
        let set = status_field(text, "CapPrm").unwrap();
        assert!(!set.has("SYS_RESOURCE") && set.has("CHECKPOINT_RESTORE"));
        assert_eq!(status_field(text, "CapBnd"), None);
        assert_eq!(status_field(text, "Cap"), None);
    }
}
