//! Why a session ends by force.

/// What the peer did that ends a session. What the session's `output` still holds tells the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It broke a rule of SPDY/3.1 or went beyond a limit.
    #[error("the peer broke SPDY: {0}")]
    Spdy(&'static str),
    /// It broke a rule of WebSocket or of its channels.
    #[error("the peer broke WebSocket: {0}")]
    WebSocket(&'static str),
}
