//! The rules for iptables and ip6tables, where nftables cannot be used.
//!
//! ```text
//!   nat     PREROUTING, OUTPUT  to a local address -> CRIOD-PORTS  one DNAT for each mapping
//!           POSTROUTING                            -> CRIOD-MASQ   masquerade for each mapping
//!   filter  INPUT  127.0.0.0/8 from others than lo -> CRIOD-GUARD  drop            (IPv4)
//! ```
//!
//! The chains are written by `iptables-restore --noflush`, which empties and fills them in one
//! transaction for each table. The jumps into them are looked for first and added or deleted in
//! the same text. ip6tables may be missing as long as no mapping has an IPv6 address.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use tracing::debug;

use crate::command;
use crate::mapping::{Mapping, Table};
use crate::{Error, Result};

/// Seconds to wait for the lock that iptables programs share.
const WAIT: &str = "5";

/// A jump from a chain of the kernel's into one of ours.
struct Jump {
    table: &'static str,
    chain: &'static str,
    rule: &'static [&'static str],
}

const TO_LOCAL: &[&str] = &["-m", "addrtype", "--dst-type", "LOCAL", "-j", "CRIOD-PORTS"];
const JUMPS: [Jump; 4] = [
    Jump { table: "nat", chain: "PREROUTING", rule: TO_LOCAL },
    Jump { table: "nat", chain: "OUTPUT", rule: TO_LOCAL },
    Jump { table: "nat", chain: "POSTROUTING", rule: &["-j", "CRIOD-MASQ"] },
    Jump {
        table: "filter",
        chain: "INPUT",
        rule: &["-d", "127.0.0.0/8", "!", "-i", "lo", "-j", "CRIOD-GUARD"],
    },
];

/// The tables of a family and the chains that are ours there.
const TABLES: [(&str, &[&str]); 2] =
    [("nat", &["CRIOD-PORTS", "CRIOD-MASQ"]), ("filter", &["CRIOD-GUARD"])];

/// One family's tools and what differs.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn tool(self) -> &'static str {
        match self {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        }
    }

    fn restore(self) -> &'static str {
        match self {
            Family::V4 => "iptables-restore",
            Family::V6 => "ip6tables-restore",
        }
    }

    fn has_table(self, table: &str) -> bool {
        // IPv6 has no route_localnet to guard against.
        self == Family::V4 || table == "nat"
    }
}

/// Asks whether the tools and the kernel's table are there, and changes nothing.
pub(crate) async fn probe() -> Result<()> {
    command::run(Family::V4.restore(), &["--version"], "").await?;
    let args = ["-w", WAIT, "-t", "nat", "-S", "PREROUTING"];
    command::run(Family::V4.tool(), &args, "").await.map(drop)
}

/// Makes the kernel follow `table`.
pub(crate) async fn apply(table: &Table) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let mappings: Vec<(&str, &Mapping)> = table
            .iter()
            .flat_map(|(pod, list)| list.iter().map(move |mapping| (pod.as_str(), mapping)))
            .filter(|(_, mapping)| mapping.pod_ip.is_ipv4() == (family == Family::V4))
            .collect();
        match apply_family(family, &mappings).await {
            Err(error) if family == Family::V6 && mappings.is_empty() => {
                debug!(%error, "no host ports for IPv6, and ip6tables does not work");
            }
            other => other?,
        }
    }
    Ok(())
}

async fn apply_family(family: Family, mappings: &[(&str, &Mapping)]) -> Result<()> {
    let mut present = Vec::new();
    for jump in &JUMPS {
        present.push(family.has_table(jump.table) && is_present(family, jump).await?);
    }
    let text = render(family, mappings, &present);
    command::run(family.restore(), &["--noflush", "-w", WAIT], &text).await.map(drop)
}

/// Whether a jump exists.
async fn is_present(family: Family, jump: &Jump) -> Result<bool> {
    let mut args = vec!["-w", WAIT, "-t", jump.table, "-C", jump.chain];
    args.extend(jump.rule);
    match command::run(family.tool(), &args, "").await {
        Ok(_) => Ok(true),
        // 1 and 2: no such rule, no such chain. What is truly wrong shows when restoring.
        Err(Error::Failed { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

/// The text for iptables-restore; `present` tells which of the jumps exist.
fn render(family: Family, mappings: &[(&str, &Mapping)], present: &[bool]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (table, chains) in TABLES.iter().filter(|(table, _)| family.has_table(table)) {
        let _ = writeln!(text, "*{table}");
        for chain in *chains {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        let jumps = JUMPS.iter().zip(present).filter(|(jump, _)| jump.table == *table);
        for (jump, present) in jumps {
            let (chain, rule) = (jump.chain, jump.rule.join(" "));
            let _ = match (mappings.is_empty(), present) {
                (false, false) => writeln!(text, "-I {chain} 1 {rule}"),
                (true, true) => writeln!(text, "-D {chain} {rule}"),
                _ => Ok(()),
            };
        }
        if mappings.is_empty() {
            for chain in *chains {
                let _ = writeln!(text, "-X {chain}");
            }
        } else if *table == "nat" {
            for (pod, mapping) in mappings {
                let comment = format!("-m comment --comment \"pod {pod}\"");
                let _ = writeln!(text, "-A CRIOD-PORTS {} {comment}", dnat(mapping));
                for rule in masquerades(mapping) {
                    let _ = writeln!(text, "-A CRIOD-MASQ {rule} {comment} -j MASQUERADE");
                }
            }
        } else {
            text.push_str(
                "-A CRIOD-GUARD -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
                 -A CRIOD-GUARD -j DROP\n",
            );
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// The rule that leads a port into the pod, but for its comment.
fn dnat(mapping: &Mapping) -> String {
    let to = SocketAddr::new(mapping.pod_ip, mapping.container_port);
    let from = match (mapping.certain_host_ip(), mapping.pod_ip) {
        (Some(ip), _) => format!("-d {ip} "),
        (None, IpAddr::V4(_)) => String::new(),
        // No route leads from ::1 to another interface.
        (None, IpAddr::V6(_)) => "! -d ::1 ".to_owned(),
    };
    let (protocol, port) = (mapping.protocol, mapping.host_port);
    format!("{from}-p {protocol} -m {protocol} --dport {port} -j DNAT --to-destination {to}")
}

/// What of the mapping's connections is masqueraded: the conditions.
fn masquerades(mapping: &Mapping) -> Vec<String> {
    let Mapping { protocol, host_port, container_port, pod_ip, prefix, .. } = mapping;
    let through_this_port = format!(
        "-d {pod_ip} -p {protocol} -m {protocol} --dport {container_port} \
         -m conntrack --ctstate DNAT --ctorigdstport {host_port}"
    );
    let mut rules = vec![format!("-s {pod_ip}/{prefix} {through_this_port}")];
    if pod_ip.is_ipv4() {
        rules.push(format!("-s 127.0.0.0/8 {through_this_port}"));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    #[test]
    fn jumps_are_added_once_and_deleted_once() {
        let mapping = Mapping {
            protocol: Protocol::Tcp,
            host_ip: None,
            host_port: 8080,
            container_port: 80,
            pod_ip: "10.1.0.2".parse().unwrap(),
            prefix: 24,
        };
        let with = [("a", &mapping)];
        let count = |text: &str, what: &str| text.lines().filter(|l| l.starts_with(what)).count();
        let fresh = render(Family::V4, &with, &[false; 4]);
        assert_eq!((count(&fresh, "-I"), count(&fresh, "-D"), count(&fresh, "-X")), (4, 0, 0));
        let again = render(Family::V4, &with, &[true; 4]);
        assert_eq!((count(&again, "-I"), count(&again, "-D"), count(&again, "-X")), (0, 0, 0));
        let gone = render(Family::V4, &[], &[true; 4]);
        assert_eq!((count(&gone, "-I"), count(&gone, "-D"), count(&gone, "-X")), (0, 4, 3));
        let v6 = render(Family::V6, &[], &[true; 4]);
        assert_eq!((count(&v6, "-D"), count(&v6, "-X")), (3, 2));
    }
}
