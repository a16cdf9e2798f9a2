//! What criod and a container's monitor say to each other, and the files they share.
//!
//! Everything is generated from `proto/monitor.proto`.
//!
//! ```text
//! criod ── MonitorClient ── unix socket, ttrpc ──► the monitor's own wire code
//!    (feature `ttrpc`)                              (messages only)
//! ```
//!
//! The messages are always here and need nothing but `protobuf`: a monitor is a process of its own
//! for each container, so what it links is paid for many times. The feature `ttrpc` adds the
//! asynchronous client and the server's trait, and with them tokio.

/// The messages and enums of the package `criod.monitor.v1`.
// Their documentation is the definition's comments, and what is obvious has none there.
#[allow(missing_docs, nonstandard_style, unused, unreachable_pub, rust_2018_idioms, clippy::all)]
#[rustfmt::skip]
pub mod monitor {
    include!(concat!(env!("OUT_DIR"), "/monitor.rs"));
}

/// The client `MonitorClient`, the server's trait `Monitor`, and `create_monitor`, which makes of
/// the trait what `ttrpc::asynchronous::Server::register_service` takes.
#[cfg(feature = "ttrpc")]
#[allow(missing_docs, nonstandard_style, unused, unreachable_pub, rust_2018_idioms, clippy::all)]
#[rustfmt::skip]
pub mod service {
    include!(concat!(env!("OUT_DIR"), "/monitor_ttrpc.rs"));
}

pub use protobuf;

/// The service's full name, as a ttrpc request carries it.
pub const SERVICE: &str = "criod.monitor.v1.Monitor";
