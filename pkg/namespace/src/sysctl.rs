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
use std::io::Write;
use std::path::PathBuf;

use crate::{Error, Kind, Result};

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
pub(crate) fn write(name: &str, value: &str, kinds: &[Kind]) -> Result<()> {
    let path = path(name, kinds)?;
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error::Sysctl { name: name.to_owned(), value: value.to_owned(), source })
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
