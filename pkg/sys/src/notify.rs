//! What a service tells its manager (sd_notify(3)).
//!
//! ```text
//! NOTIFY_SOCKET=/path or @abstract ◀── one datagram: READY=1, STOPPING=1, WATCHDOG=1, …
//! ```

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable that names the manager's socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Whether there is a service manager that wants to be told.
pub fn wanted() -> bool {
    std::env::var_os(SOCKET).is_some()
}

/// Tells the service manager, where there is one. It may be told several things at once, a line each.
pub fn notify(state: &str) -> io::Result<()> {
    let Some(socket) = std::env::var_os(SOCKET) else { return Ok(()) };
    let address = match socket.to_str().and_then(|name| name.strip_prefix('@')) {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}
