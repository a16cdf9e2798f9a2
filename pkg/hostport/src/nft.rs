//! The rules as a text for `nft -f -`.
//!
//! ```text
//!   add table inet criod; delete table inet criod     (so that deleting never fails)
//!   table inet criod {
//!     ports                              one DNAT for each mapping
//!     prerouting, output (nat, -100)     to a local address -> ports
//!     postrouting (nat, 100)             masquerade for each mapping
//!     guard (filter, input, 0)           127.0.0.0/8 from other interfaces than lo: drop
//!   }
//! ```
//!
//! nft applies the whole text in one transaction. What comes into it are numbers, addresses and
//! ids that were checked, so nothing needs quoting.

use std::fmt::Write;
use std::net::IpAddr;

use crate::Result;
use crate::command;
use crate::mapping::{Mapping, Protocol, Table};

/// The tool.
const NFT: &str = "nft";

/// Makes the kernel follow `table`.
pub(crate) async fn apply(table: &Table) -> Result<()> {
    command::run(NFT, &["-f", "-"], &render(table)).await.map(drop)
}

/// Asks nft and the kernel whether they know all that is used, and changes nothing.
pub(crate) async fn probe() -> Result<()> {
    let mapping = |pod_ip: IpAddr| Mapping {
        protocol: Protocol::Tcp,
        host_ip: None,
        host_port: 1,
        container_port: 1,
        pod_ip,
        prefix: 24,
    };
    let mappings = vec![
        mapping(std::net::Ipv4Addr::LOCALHOST.into()),
        mapping(std::net::Ipv6Addr::LOCALHOST.into()),
    ];
    let table = Table::from([("probe".to_owned(), mappings)]);
    command::run(NFT, &["-c", "-f", "-"], &render(&table)).await.map(drop)
}

/// The whole text.
fn render(table: &Table) -> String {
    let mut text = String::from("add table inet criod\ndelete table inet criod\n");
    if table.values().all(Vec::is_empty) {
        return text;
    }
    let (mut ports, mut masquerade) = (String::new(), String::new());
    for (pod, mapping) in
        table.iter().flat_map(|(pod, list)| list.iter().map(move |mapping| (pod, mapping)))
    {
        // Writing to a String cannot fail.
        let _ = writeln!(ports, "    {} comment \"pod {pod}\"", dnat(mapping));
        for rule in masquerades(mapping) {
            let _ = writeln!(masquerade, "    {rule} masquerade comment \"pod {pod}\"");
        }
    }
    let _ = write!(
        text,
        "table inet criod {{
  chain ports {{
{ports}  }}
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    fib daddr type local jump ports
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump ports
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
{masquerade}  }}
  chain guard {{
    type filter hook input priority 0; policy accept;
    ct state established,related return
    iifname != \"lo\" ip daddr 127.0.0.0/8 drop comment \"route_localnet lets them in\"
  }}
}}
"
    );
    text
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ip" } else { "ip6" }
}

/// The rule that leads a port into the pod.
fn dnat(mapping: &Mapping) -> String {
    let family = family(mapping.pod_ip);
    let to = std::net::SocketAddr::new(mapping.pod_ip, mapping.container_port);
    let from = match (mapping.certain_host_ip(), mapping.pod_ip) {
        (Some(ip), _) => format!("{family} daddr {ip}"),
        (None, IpAddr::V4(_)) => "meta nfproto ipv4".to_owned(),
        // No route leads from ::1 to another interface.
        (None, IpAddr::V6(_)) => "ip6 daddr != ::1".to_owned(),
    };
    let (protocol, port) = (mapping.protocol, mapping.host_port);
    format!("{from} {protocol} dport {port} dnat {family} to {to}")
}

/// What of the mapping's connections is masqueraded: the conditions.
fn masquerades(mapping: &Mapping) -> Vec<String> {
    let Mapping { protocol, host_port, container_port, pod_ip, prefix, .. } = mapping;
    let family = family(*pod_ip);
    let through_this_port = format!(
        "{family} daddr {pod_ip} {protocol} dport {container_port} \
         ct status dnat ct original proto-dst {host_port}"
    );
    let mut rules = vec![format!("{family} saddr {pod_ip}/{prefix} {through_this_port}")];
    if pod_ip.is_ipv4() {
        rules.push(format!("ip saddr 127.0.0.0/8 {through_this_port}"));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: Option<&str>, pod_ip: &str) -> Mapping {
        Mapping {
            protocol: Protocol::Udp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 5353,
            container_port: 53,
            pod_ip: pod_ip.parse().unwrap(),
            prefix: if pod_ip.contains(':') { 64 } else { 24 },
        }
    }

    #[test]
    fn nothing_leaves_no_table() {
        let empty = "add table inet criod\ndelete table inet criod\n";
        assert_eq!(render(&Table::new()), empty);
        assert_eq!(render(&Table::from([("a".to_owned(), Vec::new())])), empty);
    }

    #[test]
    fn rules() {
        assert_eq!(
            dnat(&mapping(None, "10.1.0.2")),
            "meta nfproto ipv4 udp dport 5353 dnat ip to 10.1.0.2:53"
        );
        assert_eq!(
            dnat(&mapping(Some("0.0.0.0"), "10.1.0.2")),
            "meta nfproto ipv4 udp dport 5353 dnat ip to 10.1.0.2:53"
        );
        assert_eq!(
            dnat(&mapping(Some("192.0.2.1"), "10.1.0.2")),
            "ip daddr 192.0.2.1 udp dport 5353 dnat ip to 10.1.0.2:53"
        );
        assert_eq!(
            dnat(&mapping(None, "fd00::2")),
            "ip6 daddr != ::1 udp dport 5353 dnat ip6 to [fd00::2]:53"
        );
        assert_eq!(
            masquerades(&mapping(None, "fd00::2")),
            ["ip6 saddr fd00::2/64 ip6 daddr fd00::2 udp dport 53 \
              ct status dnat ct original proto-dst 5353"]
        );
        assert_eq!(masquerades(&mapping(None, "10.1.0.2")).len(), 2);
    }
}
