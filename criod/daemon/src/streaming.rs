//! Streaming: exec, attach and port-forward, over connections that outlive criod.
//!
//! ```text
//! Exec ─▶ token ─▶ URL          client ──TCP──▶ listener ──CONN──▶ criod-stream
//!                                                                     │ ASK token
//!          monitor ◀── prepared request ── criod ◀────────────────────┘
//!             └───────────────── its socket ────────────────▶ criod-stream        (exec, attach)
//!          dialer, in the pod's network ◀────────────────────▶ criod-stream        (port-forward)
//! ```
//! criod accepts and hands over; it reads no byte of a connection and carries none. What it hands to
//! a stream is one connected socket, to the container's monitor or to a dialer, on which it has
//! said beforehand what may be done: the stream can only begin that.
//!
//! | module    | what                                                     |
//! |-----------|----------------------------------------------------------|
//! | `token`   | what URLs stand for                                      |
//! | `process` | the streams: forked ahead, counted, taken up again       |
//! | `answer`  | what a stream gets for a token                           |
//! | `tls`     | the certificate that streams show                        |

mod answer;
mod process;
mod tls;
mod token;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criod_config::Config;
use nix::sys::resource::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use crate::error::{Error, Kind, Result};
use crate::keeper::Keeper;
use crate::node::{Node, on_disk};
use process::{Options, Pool, Stream};
use tls::Tls;
use token::{Ticket, Tokens};

/// Connections that may be open, where the limit of open files allows as many.
const MOST: u64 = 500;
/// Descriptors that each takes, and those that criod needs besides.
const FILES_EACH: u64 = 5;
const FILES_ELSE: u64 = 256;
/// How long a connection may take to show its token.
const TOKEN: Duration = Duration::from_secs(10);
/// How long one may be idle, where the configuration does not say.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// Questions that a stream may ask of one criod.
const QUESTIONS: u32 = 2;
/// Streams that are tried for a connection.
const ATTEMPTS: usize = 8;
/// Connections at a time through one port-forward.
const FORWARDED: &str = "1000";
/// After an accept or a fork that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// Under which name the keeper holds the listening socket.
const LISTENER: &str = "streaming ";

/// What the daemon knows of streaming.
#[derive(Debug)]
pub(crate) struct Streams {
    tokens: Tokens,
    pool: Pool,
    tls: Option<Tls>,
    address: SocketAddr,
    /// Host and port in URLs.
    host: String,
    idle: Duration,
    places: Arc<Semaphore>,
}

/// Whether what the keeper holds under this id is a stream.
pub(crate) fn is_stream(id: &str) -> bool {
    Pool::is_ours(id)
}

/// The listening socket: the one that the keeper holds for this address, else a new one.
async fn listen(config: &Config, keeper: &Keeper) -> Result<StdListener> {
    let wanted = (host(config), config.stream_port.0);
    let text = format!("{}:{}", wanted.0, wanted.1);
    let name = format!("{LISTENER}{text}");
    let failed = |e| Error::system(format!("listen for streaming at {text}"))(e);
    let listener = match keeper.listener(LISTENER, &name).await? {
        Some(held) => StdListener::from(held),
        None => {
            let host = if wanted.0.is_empty() { "127.0.0.1" } else { wanted.0 };
            let addresses: Vec<SocketAddr> =
                on_disk(|| (host, wanted.1).to_socket_addrs()).map_err(failed)?.collect();
            StdListener::bind(addresses.as_slice()).map_err(failed)?
        }
    };
    let spare = listener.as_fd().try_clone_to_owned().map_err(failed)?;
    keeper.keep(&name, spare).await?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

impl Streams {
    /// Opens the listening socket and takes up the tokens that there are; serves nothing yet.
    pub(crate) async fn open(
        config: &Config,
        run: &std::path::Path,
        program: PathBuf,
        cgroups: Vec<PathBuf>,
        keeper: &Keeper,
    ) -> Result<(Streams, StdListener)> {
        let listener = listen(config, keeper).await?;
        let address = listener.local_addr().map_err(Error::system("ask for the address"))?;
        let empty = run.join("empty");
        on_disk(|| std::fs::create_dir_all(&empty)).map_err(Error::file("create", &empty))?;
        let options = Options { program, empty, log: run.join("streams.log"), cgroups };
        let (files, _) = getrlimit(Resource::RLIMIT_NOFILE)
            .map_err(|e| Error::system("ask for the limit of open files")(e.into()))?;
        let most = (files.saturating_sub(FILES_ELSE) / FILES_EACH).clamp(1, MOST);
        let streams = Streams {
            tokens: Tokens::open(&run.join("tokens"))?,
            pool: Pool::new(options, keeper.clone()),
            tls: Tls::new(config),
            address,
            host: host_in_url(host(config), address),
            idle: config.stream_idle_timeout.unwrap_or(IDLE),
            places: Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(1))),
        };
        Ok((streams, listener))
    }

    /// Removes tokens that nobody can show any more.
    pub(crate) fn forget_late(&self) {
        self.tokens.forget_late();
    }

    /// The URL at which a ticket is served, once.
    fn url(&self, ticket: Ticket) -> Result<String> {
        let path = ticket.purpose.path();
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let token = on_disk(|| self.tokens.issue(ticket))?;
        Ok(format!("{scheme}://{}/{path}/{token}", self.host))
    }
}

/// Host and port as they stand in URLs: a name as it was configured, for a certificate is checked
/// against it; instead of "every address" one that a client on this machine can connect to.
fn host_in_url(host: &str, address: SocketAddr) -> String {
    if !host.is_empty() && host.parse::<IpAddr>().is_err() {
        return format!("{host}:{}", address.port());
    }
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port()).to_string()
}

/// The address or name that is configured, without the brackets that an IPv6 address may stand in.
fn host(config: &Config) -> &str {
    let host = config.stream_address.as_str();
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

/// Serves connections until the future is dropped.
pub(crate) async fn serve(node: Arc<Node>, listener: StdListener) {
    match node.streams.pool.found().await {
        Ok(found) => {
            for stream in found {
                tokio::spawn(attend(Arc::clone(&node), stream, true));
            }
        }
        Err(e) => warn!("streams of the criod before: {}", e.chain()),
    }
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => return warn!("streaming is not served: {e}"),
    };
    info!("streaming at {}", node.streams.address);
    refill(&node);
    loop {
        if let Err(e) = serve_one(&node, &listener).await {
            warn!("streaming: {}", e.chain());
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Takes a connection from the queue once there is a stream for it, so that one that has been
/// accepted depends on nobody.
async fn serve_one(node: &Arc<Node>, listener: &TcpListener) -> Result<()> {
    let streams = &node.streams;
    let places = Arc::clone(&streams.places);
    let place = match Arc::clone(&places).try_acquire_owned() {
        Ok(place) => place,
        Err(_) => {
            warn!("as many streaming connections are open as may be: others wait");
            places.acquire_owned().await.map_err(|_| Kind::Panicked)?
        }
    };
    let stream = ready(node).await?;
    let accepted = listener.accept().await.and_then(|(socket, _)| socket.into_std());
    let socket = match accepted {
        Ok(socket) => OwnedFd::from(socket),
        Err(e) => {
            streams.pool.park(stream);
            return Err(Error::system("accept")(e));
        }
    };
    let done = hand_over(node, stream, &socket, place).await;
    refill(node);
    done
}

/// A stream that has no connection.
async fn ready(node: &Arc<Node>) -> Result<Arc<Stream>> {
    if let Some(stream) = node.streams.pool.take() {
        return Ok(stream);
    }
    let stream = node.streams.pool.begin().await?;
    tokio::spawn(attend(Arc::clone(node), Arc::clone(&stream), false));
    Ok(stream)
}

/// Gives a connection to a stream; to another one, where that has died.
async fn hand_over(
    node: &Arc<Node>,
    mut stream: Arc<Stream>,
    socket: &OwnedFd,
    place: OwnedSemaphorePermit,
) -> Result<()> {
    let streams = &node.streams;
    let files = match &streams.tls {
        Some(tls) => on_disk(|| tls.files())?,
        None => Vec::new(),
    };
    let mut fds = vec![socket.as_fd()];
    fds.extend(files.iter().map(AsFd::as_fd));
    let idle = streams.idle.as_millis().to_string();
    let token = TOKEN.as_millis().to_string();
    let tls = streams.tls.as_ref().map(Tls::words).unwrap_or_default();
    let mut fields = vec!["CONN", &idle, &token, FORWARDED];
    fields.extend(tls.iter().map(String::as_str));
    let mut place = place;
    for _ in 0..ATTEMPTS {
        match streams.pool.give(&stream, place, &fields, &fds) {
            Ok(()) => return Ok(()),
            Err(Some(back)) => place = back,
            // Its end was quicker, and gave the place back.
            Err(None) => {
                let again = Arc::clone(&streams.places).acquire_owned().await;
                place = again.map_err(|_| Kind::Panicked)?;
            }
        }
        stream = ready(node).await?;
    }
    Err(Error::precondition("no stream takes a connection"))
}

/// Sees to it that there are idle streams.
fn refill(node: &Arc<Node>) {
    let node = Arc::clone(node);
    tokio::spawn(async move {
        // However soon they end: no more than are missing now.
        for _ in 0..process::SPARE {
            match node.streams.pool.more().await {
                Ok(Some(stream)) => drop(tokio::spawn(attend(Arc::clone(&node), stream, false))),
                Ok(None) => return,
                // The next connection tries again.
                Err(e) => return warn!("streaming: {}", e.chain()),
            }
        }
    });
}

/// Listens to a stream until it ends. `before`: it is one of a criod before, and has been asked where
/// it stands.
async fn attend(node: Arc<Node>, stream: Arc<Stream>, mut before: bool) {
    let streams = &node.streams;
    let mut questions = 0;
    loop {
        let message = match stream.recv().await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(e) => {
                misbehaves(&stream, &e);
                break;
            }
        };
        let fields: Vec<&str> = message.fields.iter().map(String::as_str).collect();
        let done = match fields[..] {
            // Once; and once more in answer to PING.
            ["ASK", purpose, token] if questions < QUESTIONS => {
                questions += 1;
                let ticket = on_disk(|| streams.tokens.show(token, purpose, &stream.number));
                answer::answer(&node, &stream, ticket).await
            }
            ["TAKEN"] => {
                stream.place_late(&streams.places);
                streams.pool.proven(&stream);
                on_disk(|| streams.tokens.done(&stream.number));
                Ok(())
            }
            // An idle one of the criod before may be of an earlier release, and is not needed: it ends
            // when its control socket is let go of.
            ["IDLE"] if before => break,
            ["BUSY"] if before => {
                before = false;
                stream.place_late(&streams.places);
                Ok(())
            }
            _ => Err(std::io::Error::from(std::io::ErrorKind::InvalidData)),
        };
        if let Err(e) = done {
            misbehaves(&stream, &e);
            break;
        }
    }
    on_disk(|| streams.tokens.done(&stream.number));
    streams.pool.gone(&stream).await;
}

/// Whoever breaks the rules, or does not take what it is told, may be somebody else's by now.
fn misbehaves(stream: &Stream, e: &std::io::Error) {
    warn!("stream {}: {e}: it is ended", stream.number);
    stream.kill();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_what_was_configured_where_a_client_can_reach_it() {
        let at = |host: &str, address: &str| host_in_url(host, address.parse().unwrap());
        assert_eq!(at("127.0.0.1", "127.0.0.1:5"), "127.0.0.1:5");
        assert_eq!(at("localhost", "127.0.0.1:5"), "localhost:5");
        assert_eq!(at("", "127.0.0.1:5"), "127.0.0.1:5");
        assert_eq!(at("0.0.0.0", "0.0.0.0:5"), "127.0.0.1:5");
        assert_eq!(at("::", "[::]:5"), "[::1]:5");
        assert_eq!(at("::1", "[::1]:5"), "[::1]:5");
        assert_eq!(at("fd00::2", "[fd00::2]:5"), "[fd00::2]:5");
    }
}
