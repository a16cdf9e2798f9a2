//! systemd's side of a service: readiness, the watchdog, and sockets that it hands over.
//!
//! ```text
//! systemd ──LISTEN_FDS──▶ criod            criod.socket is open before criod is, and after it
//! systemd ◀──READY=1───── criod            once the socket is served
//!         ◀──WATCHDOG=1── criod            each half of the time that WATCHDOG_USEC gives, but only
//!                                          when the self-check has passed
//!         ◀──STOPPING=1── criod
//! ```
//! All of it is asked for by variables of the environment, and nothing happens where there are none.

use tracing::warn;

/// Tells the service manager, where there is one.
pub(crate) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|s| match socket.to_str() {
        Some(name) if name.starts_with('@') => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name[1..])?;
            s.send_to_addr(state.as_bytes(), &address)
        }
        _ => s.send_to(state.as_bytes(), &socket),
    });
    if let Err(e) = sent {
        warn!("notify the service manager: {e}");
    }
}
