//! The CRI's socket: gRPC over HTTP/2, the inspect service over HTTP/1.
//!
//! The listening socket outlives criod: the keeper holds it, so that a client that connects while
//! criod is down waits in the socket's queue.
//!
//! ```text
//! connections, ExecSync   the front: one thread, which outlives a hand-over
//! all other calls         run by the pool of threads that does the work, and ends with it
//! ```

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use api_cri::v1::image_service_server::ImageServiceServer;
use api_cri::v1::runtime_service_server::RuntimeServiceServer;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{UnixListener, UnixStream};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;
use tracing::{debug, info, warn};

use crate::cri::{Runtime, image_in_use};
use crate::end::{Attached, Count, Seen, Stage, unavailable, until};
use crate::error::{Error, Kind, Result};
use crate::inspect;
use crate::keeper::Keeper;
use crate::node::Node;

/// After an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// The call that outlives a hand-over.
const EXEC_SYNC: &str = "/runtime.v1.RuntimeService/ExecSync";

/// A listening socket that this criod was started with.
pub(crate) enum Socket {
    None,
    /// From the criod before it, with the name of its file.
    Given(String, OwnedFd),
    /// From the service manager.
    Passed(StdListener),
}

/// The listening socket at `path`: the one that was given, else the one that the keeper holds, else the
/// one that was passed, else a new one, mode 0660.
pub(crate) async fn listen(path: &Path, keeper: &Keeper, socket: Socket) -> Result<StdListener> {
    // The socket is told by its file: whoever removed or replaced that has cut the way to it.
    let name = file_of(path).unwrap_or_default();
    // Where the keeper has one, too, it is the same, unless the file has been replaced.
    let held = keeper.listener("listener ", &name).await?;
    let listener = match (socket, held) {
        (Socket::Given(of, given), _) if of == name => StdListener::from(given),
        (_, Some(held)) => StdListener::from(held),
        (Socket::Passed(passed), None) if !name.is_empty() => passed,
        (socket, None) => {
            if matches!(socket, Socket::Passed(_)) {
                let path = path.display();
                warn!("{path} has been removed: restart criod.socket once criod is stopped");
            }
            bind(path).map_err(Error::file("listen at", path))?
        }
    };
    let spare = listener.as_fd().try_clone_to_owned().map_err(Error::file("listen at", path))?;
    if let Some(name) = file_of(path) {
        keeper.keep(&name, spare).await?;
    }
    listener.set_nonblocking(true).map_err(Error::file("listen at", path))?;
    Ok(listener)
}

/// A name for the very file at the path.
pub(crate) fn file_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::symlink_metadata(path).ok()?;
    Some(format!("listener {}:{} {}", file.dev(), file.ino(), path.display()))
}

fn bind(path: &Path) -> std::io::Result<StdListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (short, _folder) = sys::seqpacket::short_path(path)?;
    let listener = StdListener::bind(short)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// What answers.
pub(crate) struct Server {
    node: Arc<Node>,
    routes: Routes,
    stage: Seen,
    /// Those that speak.
    connections: Count,
}

impl Server {
    pub(crate) fn new(node: Arc<Node>, stage: Seen, connections: Count) -> Arc<Server> {
        let runtime = RuntimeServiceServer::new(Runtime(Arc::clone(&node)))
            .max_decoding_message_size(limit(node.config.grpc_max_recv_msg_size))
            .max_encoding_message_size(limit(node.config.grpc_max_send_msg_size));
        let hook = {
            let node = Arc::clone(&node);
            move |id: &String| image_in_use(&node, id)
        };
        let images = criod_images::ImageService::new(node.images.clone(), Arc::new(hook));
        let images = ImageServiceServer::new(images)
            .max_decoding_message_size(limit(node.config.grpc_max_recv_msg_size))
            .max_encoding_message_size(limit(node.config.grpc_max_send_msg_size));
        let routes = Routes::new(runtime).add_service(images);
        Arc::new(Server { node, routes, stage, connections })
    }

    /// Takes connections until the future is dropped.
    pub(crate) async fn serve(self: Arc<Server>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(Arc::clone(&self).connection(stream))),
                Err(e) => {
                    warn!("accept: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Server>, stream: UnixStream) {
        let io = match authority::accept(stream).await {
            Ok(io) => io,
            Err(e) => {
                debug!("connection: {e}");
                return;
            }
        };
        let _counted = self.connections.one();
        let own = Arc::clone(&self);
        let service = hyper::service::service_fn(move |request| Arc::clone(&own).call(request));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http2().max_concurrent_streams(1000);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        let mut stage = self.stage.clone();
        let done = tokio::select! {
            done = connection.as_mut() => done,
            () = stage.reached(Stage::HandingOver) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = done {
            debug!("connection: {e}");
        }
    }

    async fn call(
        self: Arc<Server>,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Body>, Infallible> {
        if request.version() != http::Version::HTTP_2 {
            return Ok(self.inspect(request).await);
        }
        let exec = request.uri().path() == EXEC_SYNC;
        let mut routes = self.routes.clone();
        let request = request.map(Body::new);
        let mut stage = self.stage.clone();
        if stage.now() > Stage::Serving {
            return Ok(unavailable(false).into_http());
        }
        if exec {
            return tokio::select! {
                biased;
                answer = routes.call(request) => answer,
                () = stage.reached(Stage::Ending) => Ok(unavailable(true).into_http()),
            };
        }
        let answer = tokio::select! {
            // First: what the pool says while it ends is its end's.
            biased;
            () = stage.reached(Stage::HandingOver) => Err(unavailable(false)),
            answer = self.work(async move { routes.call(request).await }) => answer,
        };
        Ok(match answer {
            Ok(Ok(answer)) => until(Stage::HandingOver, stage, answer),
            Err(status) => status.into_http(),
        })
    }

    async fn inspect(&self, request: http::Request<Incoming>) -> http::Response<Body> {
        let node = Arc::clone(&self.node);
        let mut stage = self.stage.clone();
        let answer = tokio::select! {
            biased;
            () = stage.reached(Stage::HandingOver) => Err(unavailable(false)),
            answer = self.work(async move { inspect::serve(&node, request).await }) => answer,
        };
        let answer = answer.unwrap_or_else(|status| {
            let mut answer = http::Response::new(format!("{}\n", status.message()));
            *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            answer
        });
        answer.map(|text| Body::new(text.map_err(|e| match e {})))
    }

    /// Has the pool do it.
    async fn work<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Status> {
        let mut task = Attached(self.node.work.spawn(work));
        (&mut task.0).await.map_err(|e| match e.is_cancelled() {
            true => unavailable(false),
            false => Error::from(Kind::Panicked).status(),
        })
    }
}

fn limit(size: criod_config::MessageSize) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

/// Says what the socket is, once it is served.
pub(crate) fn announce(path: &Path) {
    info!("serving the CRI at {}", path.display());
}
