//! Files that criod makes for a pod: resolv.conf, hosts, hostname, and its /dev/shm.
//!
//! They lie in the pod's folder below runroot and are bound into its containers, unless a
//! container brings mounts of its own at these places (the kubelet brings /etc/hosts).

mod default_mounts;
mod timezone;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use api_cri::v1::DnsConfig;
use failpoint::step;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

pub(crate) use self::default_mounts::default_mounts;
pub(crate) use self::timezone::set_timezone;
use crate::error::{Error, Result};

/// Where in a container a file of the pod goes.
pub(crate) const FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hosts", "/etc/hosts"), ("hostname", "/etc/hostname")];

/// Size of the file system that a pod's files are on, in bytes: containers may write to them.
const FILES_SIZE: u64 = 1 << 20;
/// The longest resolv.conf that a pod is given, in bytes. The kubelet's has 2 KiB of searches at most.
const RESOLV_CONF: usize = 64 << 10;
/// Size of a pod's /dev/shm in bytes, as other runtimes have it.
const SHM_SIZE: u64 = 64 << 20;

/// What of the configuration cannot work is said at the start, not by every container.
pub(crate) fn check(config: &criod_config::Config) -> Result<()> {
    timezone::zone(&config.timezone)?;
    default_mounts::pairs(config)?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    step!("pod files: write", fs::write(path, text)).map_err(Error::file("write", path))
}

/// Writes hostname and resolv.conf. With an SELinux label all files of the pod have it.
pub(crate) fn prepare(
    dir: &Path,
    hostname: &str,
    dns: Option<&DnsConfig>,
    label: &str,
) -> Result<()> {
    step!("pod files: make folder", fs::create_dir_all(dir)).map_err(Error::file("create", dir))?;
    if !mounted(dir) {
        mount_tmpfs(dir, MsFlags::empty(), &format!("mode=755,size={FILES_SIZE}"), label)?;
    }
    write(&dir.join("hostname"), &format!("{hostname}\n"))?;
    let text = match dns {
        Some(dns) if *dns != DnsConfig::default() => resolv_conf(dns)?,
        // Nothing was asked for: the node's own. It may have none.
        _ => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    write(&dir.join("resolv.conf"), &text)
}

/// The text of resolv.conf for a DNS configuration.
fn resolv_conf(dns: &DnsConfig) -> Result<String> {
    let all = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    if let Some(bad) = all.into_iter().find(|w| w.contains(['\n', '\r', '\0'])) {
        return Err(Error::invalid(format!("dns_config: {bad:?} is more than one line")));
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    if text.len() > RESOLV_CONF {
        let text = format!("dns_config: {} bytes are more than {RESOLV_CONF}", text.len());
        return Err(Error::invalid(text));
    }
    Ok(text)
}

/// Writes /etc/hosts: the node's for a pod on the node's network, else the pod's names.
pub(crate) fn hosts(dir: &Path, host_network: bool, hostname: &str, ips: &[IpAddr]) -> Result<()> {
    let text = if host_network {
        fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        let own = ips.iter().map(|ip| format!("{ip}\t{hostname}\n")).collect::<String>();
        format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
             ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n{own}"
        )
    };
    write(&dir.join("hosts"), &text)
}

/// Mounts the pod's /dev/shm, of this size in bytes or of the usual one, if it is not mounted.
pub(crate) fn mount_shm(dir: &Path, size: Option<u64>, label: &str) -> Result<()> {
    let shm = dir.join("shm");
    step!("pod files: make shm", fs::create_dir_all(&shm)).map_err(Error::file("create", &shm))?;
    if mounted(&shm) {
        return Ok(());
    }
    mount_tmpfs(
        &shm,
        MsFlags::MS_NOEXEC,
        &format!("mode=1777,size={}", size.unwrap_or(SHM_SIZE)),
        label,
    )
}

fn mount_tmpfs(at: &Path, more: MsFlags, options: &str, label: &str) -> Result<()> {
    let context = security::selinux::mount_option(label);
    let options = context.map_or_else(|| options.to_owned(), |c| format!("{options},{c}"));
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | more;
    let options = Some(options.as_str());
    step!("pod files: mount", mount(Some("criod"), at, Some("tmpfs"), flags, options))
        .map_err(|e| Error::file("mount tmpfs at", at)(e.into()))
}

/// Gives all of them to the root of the pod's user namespace, by uid and gid of the node.
pub(crate) fn give(dir: &Path, root: (u32, u32)) -> Result<()> {
    for name in FILES.iter().map(|(name, _)| *name).chain(["shm"]) {
        let path = dir.join(name);
        let (uid, gid) = (Some(root.0), Some(root.1));
        match step!("pod files: give", std::os::unix::fs::lchown(&path, uid, gid)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("change the owner of", &path)(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Unmounts the pod's /dev/shm and removes the pod's folder. May be repeated.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    for at in [&dir.join("shm"), dir] {
        if mounted(at) {
            step!("pod files: unmount", umount2(at, MntFlags::MNT_DETACH))
                .map_err(|e| Error::file("unmount", at)(e.into()))?;
        }
    }
    match step!("pod files: remove folder", fs::remove_dir_all(dir)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", dir)(e)),
        _ => Ok(()),
    }
}

fn mounted(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev()).ok();
    match (device(path), path.parent().and_then(device)) {
        (Some(own), Some(parent)) => own != parent,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_as_the_kubelet_gives_it() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into(), "::1".into()],
            searches: vec!["a.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns).unwrap(),
            "search a.svc svc\nnameserver 10.96.0.10\nnameserver ::1\noptions ndots:5\n"
        );
        let evil = DnsConfig { servers: vec!["1.1.1.1\nsearch evil".into()], ..dns.clone() };
        assert!(resolv_conf(&evil).is_err());
        let long = DnsConfig { searches: vec!["a.svc".into(); 20_000], ..dns };
        assert!(resolv_conf(&long).is_err());
    }

    #[test]
    fn shm_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        prepare(&pod, "h", None, "").unwrap();
        mount_shm(&pod, None, "").unwrap();
        mount_shm(&pod, None, "").unwrap();
        assert!(mounted(&pod.join("shm")));
        remove(&pod).unwrap();
        remove(&pod).unwrap();
        assert!(!pod.exists());
    }
}
