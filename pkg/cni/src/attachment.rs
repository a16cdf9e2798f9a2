//! What is attached to a network: a container's namespace, with the pod's wishes.
//!
//! A wish reaches a plugin as `runtimeConfig` in its configuration, and only if the plugin
//! declares the capability of that name (`"capabilities": {"portMappings": true}`). The names
//! and forms are those of the CNI project's CONVENTIONS document.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// One interface of one container.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attachment {
    /// The container's id; for a pod, the sandbox's.
    pub container_id: String,
    /// The network namespace. Needed for ADD and CHECK; DEL does without one that is gone.
    pub netns: Option<PathBuf>,
    /// The interface's name inside the namespace, commonly `eth0`.
    pub ifname: String,
    /// `CNI_ARGS`, in this order.
    pub args: Vec<(String, String)>,
    /// The wishes.
    pub capabilities: Capabilities,
}

impl Attachment {
    /// The interface `eth0` of a pod, with the arguments by which Kubernetes plugins know it.
    pub fn for_pod(
        sandbox_id: &str,
        netns: Option<PathBuf>,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Attachment {
        let arg = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        Attachment {
            container_id: sandbox_id.to_owned(),
            netns,
            ifname: "eth0".to_owned(),
            args: vec![
                arg("IgnoreUnknown", "1"),
                arg("K8S_POD_NAMESPACE", namespace),
                arg("K8S_POD_NAME", name),
                arg("K8S_POD_INFRA_CONTAINER_ID", sandbox_id),
                arg("K8S_POD_UID", uid),
            ],
            capabilities: Capabilities::default(),
        }
    }

    /// `CNI_ARGS` as one string.
    pub(crate) fn args_string(&self) -> String {
        let pairs: Vec<String> =
            self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(";")
    }

    /// Whether the names are such as the specification allows (section 2, "Parameters").
    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |what: &'static str, value: &str| Error::InvalidAttachment {
            container: self.container_id.clone(),
            what,
            value: value.to_owned(),
        };
        if !is_identifier(&self.container_id) {
            return Err(invalid("container id", &self.container_id));
        }
        let name = self.ifname.as_str();
        let usable = (1..=15).contains(&name.len())
            && name != "."
            && name != ".."
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0');
        if !usable {
            return Err(invalid("interface name", name));
        }
        for (key, value) in &self.args {
            let key_usable = !key.is_empty() && !key.contains([';', '=', '\0']);
            if !key_usable || value.contains([';', '\0']) {
                return Err(invalid("argument", &format!("{key}={value}")));
            }
        }
        Ok(())
    }
}

/// An id or a network's name: a letter or digit, then letters, digits, `_`, `.` and `-`.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
        // It becomes part of a file's name.
        && text.len() <= 128
}

/// The pod's wishes. What is empty is not passed on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Capabilities {
    /// `portMappings`. Those without a host port are left out.
    pub port_mappings: Vec<PortMapping>,
    /// `bandwidth`.
    pub bandwidth: Option<Bandwidth>,
    /// `ipRanges`: for each address wanted, the ranges it may come from.
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// `dns`.
    pub dns: Option<Dns>,
    /// `mac`.
    pub mac: Option<String>,
    /// `ips`: static addresses, with or without a prefix length.
    pub ips: Vec<String>,
    /// `cgroupPath`.
    pub cgroup_path: Option<String>,
    /// `io.kubernetes.cri.pod-annotations`.
    pub pod_annotations: BTreeMap<String, String>,
    /// Capabilities of other names, passed on as they are.
    pub other: Map<String, Value>,
}

impl Capabilities {
    /// All wishes by the name of the capability.
    pub(crate) fn to_map(&self) -> Result<Map<String, Value>> {
        let mut map = self.other.clone();
        let mut insert = |name: &'static str, value: serde_json::Result<Value>| {
            value
                .map(|value| map.insert(name.to_owned(), value))
                .map_err(|source| Error::Encode { what: name, source })
        };
        let ports: Vec<&PortMapping> =
            self.port_mappings.iter().filter(|mapping| mapping.host_port != 0).collect();
        if !ports.is_empty() {
            insert("portMappings", serde_json::to_value(ports))?;
        }
        if let Some(bandwidth) = &self.bandwidth {
            insert("bandwidth", serde_json::to_value(bandwidth))?;
        }
        if !self.ip_ranges.is_empty() {
            insert("ipRanges", serde_json::to_value(&self.ip_ranges))?;
        }
        if let Some(dns) = &self.dns {
            insert("dns", serde_json::to_value(dns))?;
        }
        if let Some(mac) = &self.mac {
            insert("mac", Ok(Value::from(mac.as_str())))?;
        }
        if !self.ips.is_empty() {
            insert("ips", serde_json::to_value(&self.ips))?;
        }
        if let Some(path) = &self.cgroup_path {
            insert("cgroupPath", Ok(Value::from(path.as_str())))?;
        }
        if !self.pod_annotations.is_empty() {
            let annotations = serde_json::to_value(&self.pod_annotations);
            insert("io.kubernetes.cri.pod-annotations", annotations)?;
        }
        Ok(map)
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the host that leads to one of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The port on the host; 0 for none.
    pub host_port: u16,
    /// The port in the container.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address to listen on; all of them if there is none.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none", default)]
    pub host_ip: Option<IpAddr>,
}

/// Limits in bits per second, bursts in bits. "Ingress" is what the container receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// What the container may receive.
    pub ingress_rate: u64,
    /// The burst of it.
    pub ingress_burst: u64,
    /// What the container may send.
    pub egress_rate: u64,
    /// The burst of it.
    pub egress_burst: u64,
}

/// A range that an address may come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpRange {
    /// The subnet, as in `10.1.2.0/24`.
    pub subnet: String,
    /// The first address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub range_start: Option<IpAddr>,
    /// The last address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub range_end: Option<IpAddr>,
    /// The gateway.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gateway: Option<IpAddr>,
}

/// The pod's DNS wishes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers' addresses.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options of resolv.conf.
    pub options: Vec<String>,
}
