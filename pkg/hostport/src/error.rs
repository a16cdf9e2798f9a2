//! What can go wrong with host ports, one variant for each operation.

use std::io;
use std::net::IpAddr;
use std::process::ExitStatus;
use std::time::Duration;

use crate::Protocol;

/// A failed operation on host ports.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither tool works.
    #[error("host ports need nft or iptables: {nft}; {iptables}")]
    NoBackend {
        /// What is wrong with nft.
        nft: Box<Error>,
        /// What is wrong with iptables.
        iptables: Box<Error>,
    },
    /// The port is taken.
    #[error("host port {port}/{protocol}{} is already used by pod {holder}", on(host_ip))]
    Conflict {
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
        /// The address that was asked for.
        host_ip: Option<IpAddr>,
        /// The pod that has it; may be the same one.
        holder: String,
        /// The pod that asked for it.
        pod: String,
    },
    /// The pod's id cannot stand in a rule's comment.
    #[error("{id:?} is no usable pod id")]
    PodId {
        /// The id.
        id: String,
    },
    /// The mapping makes no sense: port 0, or a prefix longer than the address.
    #[error("pod {pod} has a host port mapping with {what}")]
    Mapping {
        /// The pod.
        pod: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A tool could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A tool failed.
    #[error("{program} failed: {status}: {stderr}")]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A tool did not end; it was killed.
    #[error("{program} did not end within {timeout:?}")]
    Timeout {
        /// The program.
        program: &'static str,
        /// The limit.
        timeout: Duration,
    },
}

fn on(host_ip: &Option<IpAddr>) -> String {
    host_ip.map(|ip| format!(" on {ip}")).unwrap_or_default()
}
