//! Ports of the host that lead into pods, for networks whose plugins do not see to it.
//!
//! ```text
//!   outside -> host:8080 --prerouting--.
//!   host    -> host:8080 --output------+--> DNAT --> pod:80
//!   host    -> 127.0.0.1:8080 --output-'      |
//!                                             '--postrouting: masquerade, if the answer would
//!                                                otherwise not come back through the host
//! ```
//!
//! All rules are in a table of their own, named `criod` (with iptables: in chains named
//! `CRIOD-...`). Each change writes the whole table anew in one transaction, from the list of all
//! pods' mappings, so what is there never depends on what was there before, and nothing that a
//! crash left behind stays. With no mapping at all the table is gone.
//!
//! Sources that need masquerading: the host itself by way of 127.0.0.1 (which also needs the
//! `route_localnet` sysctl of the interface that leads to the pod), and the pod's own subnet,
//! the pod itself included. As `route_localnet` lets neighbours address the host's 127.0.0.0/8,
//! a rule drops what comes for it from other interfaces than `lo`.
//!
//! No socket is held for a port. `[::1]` does not lead into pods: the kernel cannot route from it.
//!
//! Modules: `mapping` (types, conflicts), `nft` and `iptables` (the text for each tool),
//! `command` (running the tools), `localnet` (the sysctl).

mod command;
mod error;
mod iptables;
mod localnet;
mod mapping;
mod nft;
mod ports;

pub use error::Error;
pub use mapping::{Mapping, Protocol};
pub use ports::{Backend, HostPorts};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;
