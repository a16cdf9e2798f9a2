//! The CRI's socket: gRPC over HTTP/2, the inspect service over HTTP/1.
//!
//! The listening socket outlives criod: the keeper holds it, so that a client that connects while
//! criod is down waits in the socket's queue.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api_cri::v1::image_service_server::ImageServiceServer;
use api_cri::v1::runtime_service_server::RuntimeServiceServer;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{UnixListener, UnixStream};
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;
use tracing::{debug, info, warn};

use crate::cri::{Runtime, image_in_use};
use crate::error::{Error, Result};
use crate::inspect;
use crate::keeper::Keeper;
use crate::node::Node;

/// After an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// The listening socket at `path`: the one that the keeper holds, else the `passed` one, else a new one,
/// mode 0660.
pub(crate) async fn listen(
    path: &Path,
    keeper: &Keeper,
    passed: Option<StdListener>,
) -> Result<UnixListener> {
    // The socket is told by its file: whoever removed or replaced that has cut the way to it.
    let name = file_of(path).unwrap_or_default();
    let listener = match (keeper.listener("listener ", &name).await?, passed) {
        // Where both have one it is the same, unless the file of the passed one has been replaced.
        (Some(held), _) => StdListener::from(held),
        (None, Some(passed)) if !name.is_empty() => passed,
        (None, passed) => {
            if passed.is_some() {
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
    listener
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(listener))
        .map_err(Error::file("listen at", path))
}

/// A name for the very file at the path.
fn file_of(path: &Path) -> Option<String> {
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

/// Serves until the future is dropped.
pub(crate) async fn serve(node: Arc<Node>, listener: UnixListener) {
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
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(Arc::clone(&node), routes.clone(), stream));
            }
            Err(e) => {
                warn!("accept: {e}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn limit(size: criod_config::MessageSize) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

async fn connection(node: Arc<Node>, routes: Routes, stream: UnixStream) {
    let io = match authority::accept(stream).await {
        Ok(io) => io,
        Err(e) => {
            debug!("connection: {e}");
            return;
        }
    };
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let (node, mut routes) = (Arc::clone(&node), routes.clone());
        async move {
            if request.version() == http::Version::HTTP_2 {
                return routes.call(request.map(Body::new)).await;
            }
            let path = request.uri().path().to_owned();
            let response = inspect::answer(&node, request.method(), &path);
            Ok::<_, Infallible>(response.map(|text| Body::new(text.map_err(|e| match e {}))))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(1000);
    if let Err(e) = builder.serve_connection(TokioIo::new(io), service).await {
        debug!("connection: {e}");
    }
}

/// Says what the socket is, once it is served.
pub(crate) fn announce(path: &Path) {
    info!("serving the CRI at {}", path.display());
}
