//! The Container Runtime Interface, version v1: what kubelet and crictl say to a runtime.
//!
//! Everything is generated from `proto/runtime/v1/api.proto`; `tests/upstream.rs` holds that file
//! against the definition that Kubernetes publishes.
//!
//! ```text
//! kubelet, crictl ── RuntimeServiceClient ─┐                ┌─ RuntimeServiceServer ── trait
//!                                          ├─ unix socket ──┤
//!                    ImageServiceClient ───┘  HTTP/2, gRPC  └─ ImageServiceServer ──── trait
//! ```
//!
//! * A method of the traits that a server does not write answers `Unimplemented`.
//! * Maps are `BTreeMap`s, so that equal messages have equal encodings.
//! * Messages are [`serde::Serialize`] by the protobuf specification's JSON mapping, every field
//!   written: names in lowerCamelCase, enums by name, 64-bit integers as strings, bytes in base64.
//!
//! Feature `server` gives the traits and servers, `client` the clients; both are on by default.

pub(crate) mod json;

/// The messages and enums of the package `runtime.v1`, and the modules of its services.
// Its documentation is the definition's comments, and what is obvious has none there.
#[allow(missing_docs, deprecated, unreachable_pub, clippy::all)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/names.rs"));
}

/// The `FileDescriptorSet` of the definition, encoded, without comments and source positions.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));

/// The most that kubelet and crictl send or take in one message, in bytes. Servers and clients
/// must be told: what they allow by themselves is a quarter of it.
pub const MAX_MESSAGE_SIZE: usize = 16 * 1024 * 1024;
