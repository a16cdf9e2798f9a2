//! What a pod's network namespace has: interfaces with their counters, and addresses.
//!
//! Both are read by a thread that has entered the namespace: the counters from
//! `/proc/thread-self/net/dev` (`/proc/net` would be that of the process's first thread), the
//! addresses by getifaddrs(3).

use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::{Error, Result, enter};

/// The counters of one interface since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// The interface's name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Errors on receiving.
    pub rx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Errors on sending.
    pub tx_errors: u64,
}

/// Reads the lines of `/proc/net/dev` below its two lines of headings.
fn parse(text: &str) -> Option<Vec<Counters>> {
    text.lines().skip(2).filter(|line| !line.trim().is_empty()).map(counters).collect()
}

/// One line: the name, eight numbers of receiving, eight of sending.
fn counters(line: &str) -> Option<Counters> {
    let (name, numbers) = line.rsplit_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()
        .ok()?;
    Some(Counters {
        name: name.trim().to_owned(),
        rx_bytes: *numbers.first()?,
        rx_errors: *numbers.get(2)?,
        tx_bytes: *numbers.get(8)?,
        tx_errors: *numbers.get(10)?,
    })
}

/// The interfaces of the network namespace pinned at `netns`, `lo` among them.
///
/// # Errors
///
/// [`Error::Enter`] if there is no network namespace at the path; [`Error::Interfaces`].
pub fn interfaces(netns: &Path) -> Result<Vec<Counters>> {
    enter(netns, || {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a table"))
    })?
    .map_err(|source| Error::Interfaces { path: netns.to_owned(), source })
}

/// The IP addresses of the interface `ifname` in the network namespace pinned at `netns`, in
/// the kernel's order; none if there is no such interface. Link-local IPv6 addresses are left
/// out.
///
/// # Errors
///
/// [`Error::Enter`] if there is no network namespace at the path; [`Error::Interfaces`].
pub fn addresses(netns: &Path, ifname: &str) -> Result<Vec<IpAddr>> {
    enter(netns, || -> io::Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        for entry in nix::ifaddrs::getifaddrs()?.filter(|entry| entry.interface_name == ifname) {
            let Some(address) = entry.address else { continue };
            if let Some(v4) = address.as_sockaddr_in() {
                found.push(IpAddr::V4(v4.ip()));
            } else if let Some(v6) = address.as_sockaddr_in6()
                && !v6.ip().is_unicast_link_local()
            {
                found.push(IpAddr::V6(v6.ip()));
            }
        }
        Ok(found)
    })?
    .map_err(|source| Error::Interfaces { path: netns.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
eth0.5:123456789012      1    7    0    0     0          0         0      42       1    9    0    0     0       0          0
";

    #[test]
    fn a_table() {
        let found = parse(TABLE).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[1],
            Counters {
                name: "eth0.5".into(),
                rx_bytes: 123_456_789_012,
                rx_errors: 7,
                tx_bytes: 42,
                tx_errors: 9
            }
        );
    }

    #[test]
    fn a_broken_table() {
        assert!(parse("a\nb\neth0 1 2 3").is_none());
        assert!(parse("a\nb\neth0: 1 2 3").is_none());
        assert!(parse("a\nb\neth0: x").is_none());
    }

    proptest! {
        #[test]
        fn any_text(text in "\\PC{0,20}\n\n(\\PC{0,10}:)?[ 0-9a-z\n]{0,80}") {
            let _ = parse(&text);
        }
    }
}
