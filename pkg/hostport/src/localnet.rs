//! `route_localnet`: without it the kernel does not send a packet that came from 127.0.0.1 out
//! of another interface than `lo`, and a port of 127.0.0.1 could not lead into a pod.
//!
//! It is set for the interface that leads to the pod, which the routes tell: the one with the
//! longest prefix, never that of a default route.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use failpoint::step;
use tracing::{debug, warn};

use crate::mapping::Table;

/// Sets the sysctl for the interfaces that lead to the pods in `table`. A pod without a route of
/// its own, or an interface that refuses, means only that 127.0.0.1 does not lead there.
pub(crate) fn allow(table: &Table) {
    let pods: BTreeSet<Ipv4Addr> = table
        .values()
        .flatten()
        .filter_map(|mapping| match mapping.pod_ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
        .collect();
    if pods.is_empty() {
        return;
    }
    // Of the calling thread's network namespace; `/proc/net` is the first thread's.
    let routes = match fs::read_to_string("/proc/thread-self/net/route") {
        Ok(routes) => routes,
        Err(error) => {
            warn!(%error, "cannot read the routes: 127.0.0.1 does not lead to host ports");
            return;
        }
    };
    let mut interfaces = BTreeSet::new();
    for pod in pods {
        match interface(&routes, pod) {
            Some(name) => drop(interfaces.insert(name)),
            None => debug!(%pod, "no route of its own: 127.0.0.1 does not lead to its host ports"),
        }
    }
    for name in interfaces {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
        let set = match fs::read_to_string(&path) {
            Ok(value) if value.trim() == "1" => Ok(()),
            _ => step!("host ports: let loopback through", fs::write(&path, "1")),
        };
        if let Err(error) = set {
            warn!(path, %error, "127.0.0.1 does not lead to host ports");
        }
    }
}

/// The interface that leads to `ip`, by the text of `/proc/net/route`.
fn interface(routes: &str, ip: Ipv4Addr) -> Option<&str> {
    // The columns are: Iface Destination Gateway Flags RefCnt Use Metric Mask ...
    // Addresses are numbers in the machine's byte order of what is in network order in memory.
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let ip = u32::from_ne_bytes(ip.octets());
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            let mask = number(columns.get(7)?)?;
            let name: &str = columns.first()?;
            let leads = ip & mask == number(columns.get(1)?)? && mask != 0 && name != "lo";
            // The kernel allows neither, but this becomes part of a path.
            (leads && !name.contains('/') && name != "..").then_some((mask.count_ones(), name))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
cni0\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
veth1\t0700010A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
";

    #[cfg(target_endian = "little")]
    #[test]
    fn longest_prefix() {
        assert_eq!(interface(ROUTES, Ipv4Addr::new(10, 1, 0, 7)), Some("veth1"));
        assert_eq!(interface(ROUTES, Ipv4Addr::new(10, 1, 3, 4)), Some("cni0"));
        assert_eq!(interface(ROUTES, Ipv4Addr::new(192, 0, 2, 1)), None);
    }

    proptest! {
        #[test]
        fn any_text(text in "x\n([a-z/.]{0,5}\t[0-9A-Fx]{0,9}\t0\t0\t0\t0\t0\t[0-9A-F]{0,9}\n?){0,3}") {
            if let Some(name) = interface(&text, Ipv4Addr::new(10, 1, 0, 7)) {
                prop_assert!(!name.contains('/'));
            }
        }
    }
}
