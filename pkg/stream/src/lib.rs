//! SPDY/3.1, WebSocket and the remote command and port-forward protocols of Kubernetes, without I/O.
//!
//! Bytes of the connection go in, events come out; data go in, bytes for the connection come out.
//! The crate opens nothing, waits for nothing and has no clock: an epoll loop, a thread or a test
//! moves the bytes.
//!
//! ```text
//!            ┌──────────────────────────── Session ───────────────────────────┐
//!  socket ──▶│ space() filled(n) │ parse │ event() → Data, Closed, Resize, …   │──▶ pipes, sockets
//!  socket ◀──│ output() sent(n)  │ frame │ send_space() send_filled(n) close() │◀── pipes, sockets
//!            └─────────────────────────────────────────────────────────────────┘
//! ```
//!
//! * [`http`]: the request that is upgraded, and its response.
//! * [`remote`]: exec and attach (`*.channel.k8s.io`) over SPDY or WebSocket.
//! * [`forward`]: port-forward over SPDY, over WebSocket channels, and SPDY within WebSocket.
//! * [`spdy`], [`websocket`]: the transports alone.
//!
//! Servers are [`remote::Session`] and [`forward::Session`]; their clients, over SPDY, are
//! [`remote::Client`] and [`forward::Client`], which are driven in the same way.
//!
//! # How a session is driven
//!
//! 1. Read from the socket into [`space`](remote::Session::space) (it is empty while the session
//!    wants no input: then do not wait for the socket to be readable either) and say how much with
//!    [`filled`](remote::Session::filled). Bytes that came with the HTTP request go in by
//!    [`receive`](remote::Session::receive).
//! 2. Take [`event`](remote::Session::event)s until there is none. Do so after every `filled`,
//!    `receive`, `sent` and `consumed`: each may make one possible.
//! 3. `Data` borrows the bytes where they were received: write them to their destination at once,
//!    then say with [`consumed`](remote::Session::consumed) how many were taken. What was not taken
//!    is kept: once the destination takes more, offer it [`pending`](remote::Session::pending) and
//!    say `consumed`. While something is pending for a channel, no `Data` comes for it, and its
//!    `Closed` waits.
//! 4. For the way out, read into [`send_space`](remote::Session::send_space) and say
//!    [`send_filled`](remote::Session::send_filled) (no copy), or use
//!    [`send`](remote::Session::send). Both take at most [`room`](remote::Session::room) bytes; while
//!    that is 0, do not wait for the source.
//! 5. Write [`output`](remote::Session::output) to the socket whenever it is not empty; say
//!    [`sent`](remote::Session::sent).
//! 6. An error of `event` ends the session: write what `output` still holds (it names the reason to
//!    the peer), then close.
//!
//! Everything is bounded: see the constants of each module. No input makes it panic.

pub mod forward;
pub mod http;
pub mod remote;
pub mod spdy;
pub mod websocket;

mod buffer;
mod channels;
mod error;
mod inbox;
mod link;

pub use error::Error;
