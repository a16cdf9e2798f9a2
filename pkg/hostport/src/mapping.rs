//! Mappings, what makes one valid, and which two exclude each other.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::{Error, Result};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name that nft and iptables use.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A port of the host that leads to a port of a pod's address. A pod with two addresses has two
/// mappings for each port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address; `None` or the unspecified address for all of the pod address's
    /// family. A mapping whose `host_ip` is of the other family than its `pod_ip` has no effect.
    pub host_ip: Option<IpAddr>,
    /// The port on the host, not 0.
    pub host_port: u16,
    /// The port in the pod, not 0.
    pub container_port: u16,
    /// The pod's address.
    pub pod_ip: IpAddr,
    /// The length in bits of the prefix of the pod's subnet, as CNI told it: connections from
    /// there through the host port are masqueraded. 32 or 128 means the pod only.
    pub prefix: u8,
}

impl Mapping {
    /// The host's address, if it is a certain one.
    pub(crate) fn certain_host_ip(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether both addresses are of one family.
    pub(crate) fn has_effect(&self) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == self.pod_ip.is_ipv4())
    }

    /// Whether one packet could mean both.
    fn overlaps(&self, other: &Mapping) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && self.pod_ip.is_ipv4() == other.pod_ip.is_ipv4()
            && match (self.certain_host_ip(), other.certain_host_ip()) {
                (Some(one), Some(two)) => one == two,
                _ => true,
            }
    }
}

/// All pods' mappings, by the pod's id.
pub(crate) type Table = BTreeMap<String, Vec<Mapping>>;

/// `mappings` as they are stored for `pod`: those that have an effect, each once.
///
/// An error if they are not valid, or exclude each other or one of another pod in `table`.
pub(crate) fn admit(table: &Table, pod: &str, mappings: &[Mapping]) -> Result<Vec<Mapping>> {
    check_id(pod)?;
    let mut admitted: Vec<Mapping> = Vec::new();
    for mapping in mappings {
        let invalid = |what| Error::Mapping { pod: pod.to_owned(), what };
        if mapping.host_port == 0 || mapping.container_port == 0 {
            return Err(invalid("port 0"));
        }
        if mapping.prefix > if mapping.pod_ip.is_ipv4() { 32 } else { 128 } {
            return Err(invalid("a prefix longer than the address"));
        }
        if !mapping.has_effect() || admitted.contains(mapping) {
            continue;
        }
        let others = table.iter().filter(|(holder, _)| holder.as_str() != pod);
        let of_others = others.flat_map(|(holder, list)| list.iter().map(move |m| (holder, m)));
        let own = pod.to_owned();
        let taken = of_others
            .chain(admitted.iter().map(|m| (&own, m)))
            .find(|(_, other)| mapping.overlaps(other));
        if let Some((holder, _)) = taken {
            return Err(Error::Conflict {
                port: mapping.host_port,
                protocol: mapping.protocol,
                host_ip: mapping.host_ip,
                holder: holder.clone(),
                pod: pod.to_owned(),
            });
        }
        admitted.push(mapping.clone());
    }
    Ok(admitted)
}

/// The id goes into a text that the tools parse, and nft allows 128 bytes for a comment.
fn check_id(id: &str) -> Result<()> {
    let usable = (1..=100).contains(&id.len())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if usable { Ok(()) } else { Err(Error::PodId { id: id.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: Option<&str>, host_port: u16, pod_ip: &str) -> Mapping {
        Mapping {
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port: 80,
            pod_ip: pod_ip.parse().unwrap(),
            prefix: 24,
        }
    }

    #[test]
    fn one_port_for_one_pod() {
        let any = mapping(None, 80, "10.1.0.2");
        let table = Table::from([("a".to_owned(), vec![any.clone()])]);
        let error = admit(&table, "b", &[mapping(Some("192.0.2.1"), 80, "10.1.0.3")]).unwrap_err();
        assert_eq!(error.to_string(), "host port 80/tcp on 192.0.2.1 is already used by pod a");
        // Its own are replaced.
        assert!(admit(&table, "a", &[mapping(None, 80, "10.1.0.9")]).is_ok());
        // Other port, protocol, family.
        assert!(admit(&table, "b", &[mapping(None, 81, "10.1.0.3")]).is_ok());
        assert!(admit(&table, "b", &[mapping(None, 80, "fd00::3")]).is_ok());
        let udp = Mapping { protocol: Protocol::Udp, ..any.clone() };
        assert!(admit(&table, "b", &[udp]).is_ok());
        // Twice the same is once; twice the same port for two targets is a conflict.
        assert_eq!(admit(&Table::new(), "a", &[any.clone(), any.clone()]).unwrap().len(), 1);
        let other = Mapping { container_port: 81, ..any.clone() };
        assert!(matches!(
            admit(&Table::new(), "a", &[any, other]),
            Err(Error::Conflict { holder, .. }) if holder == "a"
        ));
    }

    #[test]
    fn two_addresses_are_two_ports() {
        let one = mapping(Some("192.0.2.1"), 80, "10.1.0.2");
        let table = Table::from([("a".to_owned(), vec![one])]);
        assert!(admit(&table, "b", &[mapping(Some("192.0.2.2"), 80, "10.1.0.3")]).is_ok());
        assert!(admit(&table, "b", &[mapping(Some("0.0.0.0"), 80, "10.1.0.3")]).is_err());
        // The other family's address: no effect, so no conflict.
        assert!(admit(&table, "b", &[mapping(Some("::"), 80, "10.1.0.3")]).unwrap().is_empty());
    }

    #[test]
    fn hostile() {
        for id in ["", "a\"; flush ruleset; #", "a b", "a\n", "é", &"x".repeat(101)] {
            let made = admit(&Table::new(), id, &[mapping(None, 80, "10.1.0.2")]);
            assert!(matches!(made, Err(Error::PodId { .. })), "{id:?}");
        }
        let zero = mapping(None, 0, "10.1.0.2");
        assert!(matches!(admit(&Table::new(), "a", &[zero]), Err(Error::Mapping { .. })));
        let long = Mapping { prefix: 33, ..mapping(None, 80, "10.1.0.2") };
        assert!(matches!(admit(&Table::new(), "a", &[long]), Err(Error::Mapping { .. })));
    }
}
