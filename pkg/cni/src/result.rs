//! What a plugin answers to ADD, in every version of the specification.
//!
//! ```text
//!   0.1.0, 0.2.0   ip4: {ip, gateway, routes}, ip6: {...}, dns
//!   0.3.0 - 0.4.0  interfaces, ips: [{version: "4", address, gateway, interface}], routes, dns
//!   1.0.0          the same, ips without version
//!   1.1.0          the same, with mtu and more for interfaces and routes
//! ```
//!
//! [`CniResult`] is the newest form; older ones are read into it and written from it.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::Version;

/// The result of ADD.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniResult {
    /// The interfaces that were made, on the host and in the sandbox.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses, the primary one first.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// The routes.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The network's DNS.
    #[serde(default, deserialize_with = "or_default")]
    pub dns: ResultDns,
}

/// An interface that a plugin made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace it is in; empty for one on the host.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The socket of a vhost-user interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// The PCI device.
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address.
#[derive(Debug, Clone, PartialEq)]
pub struct IpConfig {
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix in bits.
    pub prefix: u8,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
    /// Its interface, as an index into the list of interfaces.
    pub interface: Option<usize>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Route {
    /// The destination, as in `0.0.0.0/0`.
    pub dst: String,
    /// The next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<String>,
    /// What 1.1.0 added (`mtu`, `advmss`, `priority`, `table`, `scope`).
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The network's DNS, as the plugins know it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResultDns {
    /// Name servers' addresses.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of resolv.conf.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// Go writes what is empty as null.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An address as it is written: with the prefix length, and an index that may be negative.
#[derive(Serialize, Deserialize)]
struct WireIp {
    /// "4" or "6", before 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    address: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    gateway: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
}

impl<'de> Deserialize<'de> for IpConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<IpConfig, D::Error> {
        let wire = WireIp::deserialize(deserializer)?;
        IpConfig::from_text(&wire.address, &wire.gateway, wire.interface)
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for IpConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_wire().serialize(serializer)
    }
}

impl IpConfig {
    fn from_text(address: &str, gateway: &str, interface: Option<i64>) -> Result<IpConfig, String> {
        let bad = || format!("{address:?} is no address with a prefix length");
        let (ip, prefix) = address.split_once('/').ok_or_else(bad)?;
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if prefix > if ip.is_ipv4() { 32 } else { 128 } {
            return Err(bad());
        }
        let gateway = match gateway {
            "" => None,
            text => Some(text.parse().map_err(|_| format!("{text:?} is no gateway"))?),
        };
        let interface = interface.and_then(|index| usize::try_from(index).ok());
        Ok(IpConfig { address: ip, prefix, gateway, interface })
    }

    fn to_wire(&self) -> WireIp {
        WireIp {
            version: None,
            address: format!("{}/{}", self.address, self.prefix),
            gateway: self.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
            interface: self.interface.and_then(|index| i64::try_from(index).ok()),
        }
    }
}

impl CniResult {
    /// Reads a result. Its own `cniVersion` says which form it has; without one, `assumed`.
    pub(crate) fn from_json(value: &Value, assumed: Version) -> Result<CniResult, String> {
        let object = value.as_object().ok_or("not an object")?;
        match result_version(object, assumed)? {
            Version::V010 | Version::V020 => from_old(object),
            _ => serde_json::from_value(value.clone()).map_err(|error| error.to_string()),
        }
    }

    /// The result in the form of `version`.
    pub(crate) fn to_json(&self, version: Version) -> serde_json::Result<Value> {
        let mut value = match version {
            Version::V010 | Version::V020 => self.to_old()?,
            _ => serde_json::to_value(self)?,
        };
        if version < Version::V100
            && let Some(ips) = value.get_mut("ips").and_then(Value::as_array_mut)
        {
            for (ip, config) in ips.iter_mut().zip(&self.ips) {
                ip["version"] = json!(if config.address.is_ipv4() { "4" } else { "6" });
            }
        }
        value["cniVersion"] = json!(version.as_str());
        Ok(value)
    }

    fn to_old(&self) -> serde_json::Result<Value> {
        let mut value = json!({ "dns": self.dns });
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == v4) else { continue };
            let routes: Vec<Value> = self
                .routes
                .iter()
                .filter(|route| route.dst.contains(':') != v4)
                .map(|route| json!({ "dst": route.dst, "gw": route.gw }))
                .collect();
            let mut old = json!({ "ip": ip.to_wire().address, "routes": routes });
            if let Some(gateway) = ip.gateway {
                old["gateway"] = serde_json::to_value(gateway)?;
            }
            value[key] = old;
        }
        Ok(value)
    }

    /// The addresses of the interface `ifname` in the sandbox, in the plugins' order; the first
    /// is the pod's primary one. An address without an interface counts as its. If the plugins
    /// report no address for this name, all that are not on the host are returned.
    pub fn pod_ips(&self, ifname: &str) -> Vec<IpAddr> {
        self.pod_addresses(ifname).into_iter().map(|(address, _)| address).collect()
    }

    /// As [`CniResult::pod_ips`], each with its prefix length.
    pub fn pod_addresses(&self, ifname: &str) -> Vec<(IpAddr, u8)> {
        let select = |wanted: &dyn Fn(&Interface) -> bool| -> Vec<(IpAddr, u8)> {
            let mut found: Vec<(IpAddr, u8)> = Vec::new();
            for ip in &self.ips {
                let matches = match ip.interface {
                    None => true,
                    Some(index) => self.interfaces.get(index).is_some_and(wanted),
                };
                if matches && !found.iter().any(|(address, _)| *address == ip.address) {
                    found.push((ip.address, ip.prefix));
                }
            }
            found
        };
        let exact = select(&|found| found.name == ifname && !found.sandbox.is_empty());
        if exact.is_empty() { select(&|found| !found.sandbox.is_empty()) } else { exact }
    }
}

/// The version that a result says it has.
pub(crate) fn result_version(
    object: &Map<String, Value>,
    assumed: Version,
) -> Result<Version, String> {
    match object.get("cniVersion") {
        None | Some(Value::Null) => Ok(assumed),
        Some(Value::String(text)) if text.is_empty() => Ok(assumed),
        Some(Value::String(text)) => text.parse().map_err(|error| format!("{error}")),
        Some(other) => Err(format!("cniVersion {other} is not a string")),
    }
}

/// The form before 0.3.0.
fn from_old(object: &Map<String, Value>) -> Result<CniResult, String> {
    let mut result = CniResult::default();
    for key in ["ip4", "ip6"] {
        let Some(ip) = object.get(key).filter(|ip| !ip.is_null()) else { continue };
        let text = |key: &str| ip.get(key).and_then(Value::as_str).unwrap_or_default();
        result.ips.push(IpConfig::from_text(text("ip"), text("gateway"), None)?);
        if let Some(routes) = ip.get("routes").filter(|routes| !routes.is_null()) {
            let routes: Vec<Route> =
                serde_json::from_value(routes.clone()).map_err(|error| error.to_string())?;
            result.routes.extend(routes);
        }
    }
    if let Some(dns) = object.get("dns").filter(|dns| !dns.is_null()) {
        result.dns = serde_json::from_value(dns.clone()).map_err(|error| error.to_string())?;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(value: Value) -> Result<CniResult, String> {
        CniResult::from_json(&value, Version::V100)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn which_addresses_are_the_pods() {
        let result = read(json!({
            "interfaces": [
                { "name": "br0" }, { "name": "eth0" },
                { "name": "eth0", "sandbox": "/ns" }, { "name": "eth1", "sandbox": "/ns" },
            ],
            "ips": [
                { "address": "10.0.0.1/8", "interface": 0 },
                { "address": "10.0.0.2/8", "interface": 1 },
                { "address": "10.0.0.5/8", "interface": 3 },
                { "address": "fd00::3/64", "interface": 2 },
                { "address": "10.0.0.3/8", "interface": 2 },
                { "address": "fd00::3/64", "interface": 2 },
                { "address": "10.0.0.4/8" },
                { "address": "10.0.0.6/8", "interface": 99 },
                { "address": "10.0.0.7/8", "interface": -1 },
            ],
        }))
        .unwrap();
        // In the plugins' order: here IPv6 is primary.
        let expected = [ip("fd00::3"), ip("10.0.0.3"), ip("10.0.0.4"), ip("10.0.0.7")];
        assert_eq!(result.pod_ips("eth0"), expected);
        assert_eq!(result.pod_addresses("eth0")[0], (ip("fd00::3"), 64));
    }

    #[test]
    fn an_interface_of_another_name_is_better_than_none() {
        let result = read(json!({
            "interfaces": [{ "name": "veth1" }, { "name": "net1", "sandbox": "/ns" }],
            "ips": [{ "address": "10.0.0.1/8", "interface": 0 },
                    { "address": "10.0.0.2/8", "interface": 1 }],
        }))
        .unwrap();
        assert_eq!(result.pod_ips("eth0"), [ip("10.0.0.2")]);
        assert_eq!(read(json!({})).unwrap().pod_ips("eth0"), [] as [IpAddr; 0]);
    }

    #[test]
    fn every_version_and_back() {
        let result = read(json!({
            "interfaces": [{ "name": "eth0", "sandbox": "/ns", "mtu": 1400 }],
            "ips": [{ "address": "10.0.0.2/8", "gateway": "10.0.0.1", "interface": 0 },
                    { "address": "fd00::2/64" }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1300 }],
            "dns": { "nameservers": ["10.0.0.1"] },
        }))
        .unwrap();
        for version in [Version::V030, Version::V031, Version::V040, Version::V100, Version::V110] {
            let value = result.to_json(version).unwrap();
            assert_eq!(value["cniVersion"], version.as_str());
            let expected = if version < Version::V100 { json!("6") } else { Value::Null };
            assert_eq!(value["ips"][1]["version"], expected);
            assert_eq!(CniResult::from_json(&value, Version::V110).unwrap(), result);
        }
        let old = result.to_json(Version::V020).unwrap();
        assert_eq!(old["ip4"]["ip"], "10.0.0.2/8");
        assert_eq!(old["ip4"]["routes"], json!([{ "dst": "0.0.0.0/0", "gw": "10.0.0.1" }]));
        let back = CniResult::from_json(&old, Version::V110).unwrap();
        assert_eq!(back.pod_ips("eth0"), result.pod_ips("eth0"));
        assert_eq!(back.dns, result.dns);
    }

    #[test]
    fn what_go_writes_for_nothing() {
        let result = read(json!({
            "cniVersion": "0.4.0", "interfaces": null, "ips": null, "routes": null, "dns": null,
        }));
        assert_eq!(result.unwrap(), CniResult::default());
    }

    #[test]
    fn hostile() {
        for address in ["10.0.0.2", "10.0.0.2/33", "fd00::/129", "/8", "x/8", "10.0.0.2/-1", ""] {
            assert!(read(json!({ "ips": [{ "address": address }] })).is_err(), "{address}");
        }
        assert!(read(json!({ "ips": [{ "address": "10.0.0.2/8", "gateway": "x" }] })).is_err());
        assert!(read(json!({ "ips": {} })).is_err());
        assert!(read(json!({ "cniVersion": 1 })).is_err());
        assert!(read(json!("text")).is_err());
    }

    proptest! {
        #[test]
        fn any_text(text in "\\PC{0,60}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = CniResult::from_json(&value, Version::V100);
            }
        }

        #[test]
        fn any_address(address in "[0-9a-f.:/]{0,24}", gateway in "[0-9.]{0,12}", at in any::<i64>()) {
            if let Ok(config) = IpConfig::from_text(&address, &gateway, Some(at)) {
                let wire = config.to_wire();
                let back = IpConfig::from_text(&wire.address, &wire.gateway, wire.interface);
                prop_assert_eq!(back.unwrap(), config);
            }
        }
    }
}
