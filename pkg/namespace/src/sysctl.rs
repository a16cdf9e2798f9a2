//! Sysctls of namespaces: which namespace a name belongs to, and how it is written.
//!
//! The kernel finds the value behind a file of `/proc/sys` by the namespaces of the thread that
//! opens it. So the thread that has just made the namespaces writes the files, and a name that
//! belongs to none of them is refused: it would change the host.
//!
//! Names come in both spellings of sysctl(8): `net.ipv4.ip_forward` and `net/ipv4/ip_forward`.
//! The first separator decides; the other character then stands for itself, so that
//! `net.ipv4.conf.eth0/1.forwarding` and `net/ipv4/conf/eth0.1/forwarding` are the same.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sys::userns::Range;

use crate::{Error, Kind, Request, Result};

/// The components of a name, outermost first.
fn components(name: &str) -> Result<Vec<String>> {
    let malformed = || Error::SysctlName { name: name.to_owned() };
    let separator = name.chars().find(|c| matches!(c, '.' | '/')).ok_or_else(malformed)?;
    let part = |part: &str| match separator {
        '.' => part.replace('/', "."),
        _ => part.to_owned(),
    };
    let parts: Vec<String> = name.split(separator).map(part).collect();
    let usable = |part: &String| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains('/')
            && part.chars().all(|c| c.is_ascii_graphic())
    };
    if parts.iter().all(usable) { Ok(parts) } else { Err(malformed()) }
}

/// The namespace that a sysctl belongs to; `None` if it is the whole machine's.
///
/// # Errors
/// [`Error::SysctlName`].
pub fn kind_of(name: &str) -> Result<Option<Kind>> {
    components(name).map(|parts| kind(&parts))
}

/// Whether a sysctl's value is one line of text; the kernel takes a second line for nothing, or
/// for the end. A tab is between numbers.
///
/// # Errors
/// [`Error::SysctlValue`].
pub fn check(name: &str, value: &str) -> Result<()> {
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return Err(Error::SysctlValue { name: name.to_owned(), value: value.to_owned() });
    }
    Ok(())
}

fn kind(parts: &[String]) -> Option<Kind> {
    let second = parts.get(1).map(String::as_str)?;
    match parts[0].as_str() {
        "net" => Some(Kind::Net),
        "fs" if second == "mqueue" => Some(Kind::Ipc),
        "kernel" if second.starts_with("shm") || second.starts_with("msg") || second == "sem" => {
            Some(Kind::Ipc)
        }
        "kernel" if second == "hostname" || second == "domainname" => Some(Kind::Uts),
        _ => None,
    }
}

/// The file of a sysctl, if it belongs to one of `kinds`.
pub(crate) fn path(name: &str, kinds: &[Kind]) -> Result<PathBuf> {
    let parts = components(name)?;
    match kind(&parts) {
        Some(kind) if kinds.contains(&kind) => {
            let mut path = PathBuf::from("/proc/sys");
            path.extend(parts);
            Ok(path)
        }
        _ => Err(Error::SysctlNotNamespaced { name: name.to_owned() }),
    }
}

/// Writes a sysctl of the calling thread's namespaces.
pub(crate) fn write(name: &str, value: &str, request: &Request<'_>) -> Result<()> {
    let path = path(name, request.kinds)?;
    let within = request.users.and_then(|users| within(&path, value, users.gids));
    let text = within.as_deref().unwrap_or(value);
    let put = || {
        let mut file = OpenOptions::new().write(true).open(&path)?;
        file.write_all(text.as_bytes())
    };
    let written = match (put(), request.users.and_then(|users| users.root())) {
        // Since Linux 6.11 those of an IPC namespace are its owner's root's alone.
        (Err(e), Some((root, _))) if e.kind() == io::ErrorKind::PermissionDenied => {
            sys::userns::as_user(root, put)
        }
        (written, _) => written,
    };
    written.map_err(|source| Error::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// The groups that may send pings, as the node sees them: the kernel takes them so from whoever is
/// not in the user namespace. The range ends where the namespace's does.
fn within(path: &Path, value: &str, gids: Range) -> Option<String> {
    if !path.ends_with("net/ipv4/ping_group_range") {
        return None;
    }
    let mut ids = value.split_whitespace().map(str::parse::<u32>);
    let (Some(Ok(first)), Some(Ok(last)), None) = (ids.next(), ids.next(), ids.next()) else {
        return None;
    };
    let highest = gids.inside.checked_add(gids.size.checked_sub(1)?)?;
    let (first, last) = (first.max(gids.inside), last.min(highest));
    // "1 0" is nobody.
    if first > last {
        return None;
    }
    Some(format!("{} {}", gids.outside_of(first)?, gids.outside_of(last)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Kind; 3] = [Kind::Net, Kind::Ipc, Kind::Uts];

    fn text(name: &str) -> String {
        path(name, &ALL).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn both_spellings() {
        assert_eq!(text("net.ipv4.ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(text("net/ipv4/ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(
            text("net.ipv4.conf.eth0/1.forwarding"),
            "/proc/sys/net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(
            text("net/ipv4/conf/eth0.1/forwarding"),
            "/proc/sys/net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(text("kernel.shm_rmid_forced"), "/proc/sys/kernel/shm_rmid_forced");
        assert_eq!(text("fs.mqueue.msg_max"), "/proc/sys/fs/mqueue/msg_max");
    }

    #[test]
    fn what_belongs_to_the_machine_is_refused() {
        for name in ["kernel.pid_max", "vm.swappiness", "fs.file-max", "kernel.semantic"] {
            assert!(matches!(path(name, &ALL), Err(Error::SysctlNotNamespaced { .. })), "{name}");
        }
        // Namespaced, but the pod uses the host's.
        assert!(matches!(
            path("net.ipv4.ip_forward", &[Kind::Ipc]),
            Err(Error::SysctlNotNamespaced { .. })
        ));
    }

    #[test]
    fn kinds() {
        for (name, kind) in [
            ("net.core.somaxconn", Some(Kind::Net)),
            ("net/ipv4/tcp_rmem", Some(Kind::Net)),
            ("kernel.shmmax", Some(Kind::Ipc)),
            ("kernel/msgmni", Some(Kind::Ipc)),
            ("kernel.sem", Some(Kind::Ipc)),
            ("fs.mqueue.msg_max", Some(Kind::Ipc)),
            ("kernel.domainname", Some(Kind::Uts)),
            ("kernel.sched_x", None),
            ("vm.overcommit_memory", None),
            ("fs.file-max", None),
            ("netx.y", None),
        ] {
            assert_eq!(kind_of(name).unwrap(), kind, "{name}");
        }
        assert!(kind_of("kernel").is_err());
    }

    #[test]
    fn values_are_one_line() {
        for value in ["1", "", "4096\t16384 4194304", "cubic"] {
            check("net.x", value).unwrap();
        }
        for value in ["1\n", "1\n2", "\r", "\0", "1\u{1b}"] {
            assert!(matches!(check("net.x", value), Err(Error::SysctlValue { .. })), "{value:?}");
        }
    }

    #[test]
    fn what_climbs_is_refused() {
        for name in ["", "net", "net/../kernel/pid_max", "net..ipv4", "net.//.kernel", "/net/ipv4"]
        {
            assert!(matches!(path(name, &ALL), Err(Error::SysctlName { .. })), "{name}");
        }
    }

    #[test]
    fn groups_that_may_ping() {
        let gids = Range { inside: 0, outside: 100_000, size: 65_536 };
        let file = Path::new("/proc/sys/net/ipv4/ping_group_range");
        let with = |value| within(file, value, gids);
        assert_eq!(with("0 2147483647").as_deref(), Some("100000 165535"));
        assert_eq!(with("5\t7\n").as_deref(), Some("100005 100007"));
        for other in ["1 0", "70000 80000", "0", "0 1 2", "a b", "-1 5", ""] {
            assert_eq!(with(other), None, "{other}");
        }
        assert_eq!(within(Path::new("/proc/sys/net/ipv4/tcp_rmem"), "0 1", gids), None);
    }

    proptest! {
        #[test]
        fn never_outside_of_the_namespaced_folders(name in "(net|kernel|fs)?[./a-z\\PC]{0,40}") {
            if let Ok(path) = path(&name, &ALL) {
                let path = path.to_str().unwrap();
                prop_assert!(path.starts_with("/proc/sys/net/")
                    || path.starts_with("/proc/sys/kernel/")
                    || path.starts_with("/proc/sys/fs/mqueue"));
                prop_assert!(!path.split('/').any(|part| part == ".." || part == "."));
            }
        }
    }
}
