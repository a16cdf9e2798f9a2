//! What a pod's network namespace has: interfaces with their counters, and addresses.
//!
//! Both are read by a thread that has entered the namespace: the counters from
//! `/proc/thread-self/net/dev` (`/proc/net` would be that of the process's first thread), the
//! addresses by getifaddrs(3).

use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::pin::{join, on_thread};
use crate::{Error, Result, enter};

/// The counters of one interface since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// The interface's name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Errors on receiving.
    pub rx_errors: u64,
    /// Packets dropped on receiving.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Errors on sending.
    pub tx_errors: u64,
    /// Packets dropped on sending.
    pub tx_dropped: u64,
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
    let &[rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, ref sent @ ..] = &*numbers
    else {
        return None;
    };
    let &[tx_bytes, tx_packets, tx_errors, tx_dropped, ..] = sent else { return None };
    Some(Counters {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

/// The interfaces of the network namespace pinned at `netns`, `lo` among them.
///
/// # Errors
///
/// [`Error::Enter`] if there is no network namespace at the path; [`Error::Interfaces`].
pub fn interfaces(netns: &Path) -> Result<Vec<Counters>> {
    enter(netns, table)?.map_err(|source| Error::Interfaces { path: netns.to_owned(), source })
}

/// [`interfaces`] of many namespaces, in the order of `all`, by one thread that enters each in turn.
///
/// # Errors
///
/// [`Error::Thread`]; and of each namespace, those of [`interfaces`].
pub fn interfaces_of_all(all: &[&Path]) -> Result<Vec<Result<Vec<Counters>>>> {
    let Some(first) = all.first() else { return Ok(Vec::new()) };
    let one = |netns: &&Path| {
        join(netns)?;
        table().map_err(|source| Error::Interfaces { path: (*netns).to_owned(), source })
    };
    on_thread(first, || all.iter().map(one).collect())
}

/// The table of the namespace that the thread is in.
fn table() -> io::Result<Vec<Counters>> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a table"))
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
eth0.5:123456789012      1    7    3    0     0          0         0      42       1    9    4    0     0       0          0
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
                rx_packets: 1,
                rx_errors: 7,
                rx_dropped: 3,
                tx_bytes: 42,
                tx_packets: 1,
                tx_errors: 9,
                tx_dropped: 4,
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
