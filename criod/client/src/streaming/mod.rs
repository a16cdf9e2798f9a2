//! The streams of exec, attach and port-forward: what the CRI gives only a URL for.
//!
//! ```text
//!  Exec, Attach, PortForward (CRI) ──URL──► connect ── TCP or TLS, POST, 101 ──► Wire
//!
//!   stdin ─ thread ─► ┐                                       ┌─ SPDY ─► Wire ─► socket
//!  stdout ◄─ thread ─ ┼─ remote: one task ─ stream::remote ───┤
//!  SIGWINCH ────────► ┘                                       └─ SPDY ◄─ Wire ◄─
//!
//!  local sockets ◄──► forward: one task ─ stream::forward ───── SPDY ◄► Wire ◄► socket
//! ```
//! SPDY is what every runtime speaks. The protocols and their limits are those of the crate `stream`;
//! here is only what moves the bytes. The task that owns a connection never waits for anything but
//! its next turn: what blocks (a terminal, a pipe that nobody reads) has a thread of its own, with
//! a few buffers between.

mod connect;
mod forward;
mod pipes;
mod remote;
mod terminal;
pub(crate) mod wire;

pub(crate) use connect::Target;
pub(crate) use forward::forward;
pub(crate) use remote::{End, converse};
