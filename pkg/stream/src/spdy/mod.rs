//! SPDY/3.1 as far as Kubernetes uses it: the frames, the header compression, the windows.
//!
//! ```text
//!  control  1│version 3 (15 bits)│type (16)│flags (8)│length (24)│payload
//!  data     0│stream (31)                  │flags (8)│length (24)│payload
//! ```
//!
//! # Windows
//!
//! SPDY/3.1 limits what is on its way on each stream and on the whole connection to 64 KiB until the
//! receiver grants more by WINDOW_UPDATE (or, for streams, SETTINGS_INITIAL_WINDOW_SIZE).
//! `moby/spdystream` (as of v0.5.1), which speaks for the kubelet, the API server, kubectl, crictl
//! and every other runtime, does none of this: it never sends WINDOW_UPDATE or SETTINGS, throws
//! received ones away, and sends as much as it likes; it lets TCP push back. A server that kept to
//! the specification would wait for ever after 64 KiB. So:
//!
//! * *Sending.* What is sent is counted from the start. Streams' windows bind from the moment at which
//!   the peer shows that it has such things, by a WINDOW_UPDATE for any stream or
//!   SETTINGS_INITIAL_WINDOW_SIZE; the connection's window binds from the first WINDOW_UPDATE for
//!   stream 0 on. Until then only the output buffer (and so TCP) limits. A peer with windows that says
//!   nothing before it has received 64 KiB is not told apart from one without; those that exist
//!   announce themselves in their first frames, as this implementation does.
//! * *Receiving.* This side announces its windows and grants what was consumed. A peer that goes
//!   beyond them is not blamed: the owner of the connection stops reading instead
//!   ([`Connection::space`] is only called while it has room for more), so that TCP pushes back.
//!
//!   A server that accepts a stream before it has spoken of windows is granted nothing: it would not
//!   read it, and where the Go server closes its socket with something unread, the kernel resets the
//!   connection and throws away output that is still on its way.
//!
//! The server says nothing before it has received a byte: client-go throws away what arrives in the
//! same read as the HTTP response.

mod connection;
mod header;

pub use connection::{Connection, Event, Limits, Status};
pub use header::{BLOCK_LIMIT, Headers, PAIRS_LIMIT};

/// Window of a stream and of the connection before anything is said, in bytes (section 2.6.8).
pub const INITIAL_WINDOW: u32 = 64 * 1024;
/// Largest window there can be.
pub const MAX_WINDOW: u32 = 0x7fff_ffff;
/// Longest payload of a control frame that is accepted, in bytes.
pub const CONTROL_LIMIT: usize = 16 * 1024;
/// Most data of one frame that is sent, in bytes.
pub const FRAME_DATA: usize = 128 * 1024;
/// Output is accepted while less than this waits to be sent, in bytes.
pub const OUTPUT_LIMIT: usize = 256 * 1024;
/// No further frame is parsed while more than this waits to be sent, in bytes: what goes beyond
/// [`OUTPUT_LIMIT`] are answers to a peer that does not read them.
pub const BACKLOG_LIMIT: usize = OUTPUT_LIMIT + 64 * 1024;
