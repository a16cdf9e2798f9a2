//! The connection to the runtime: one channel over a unix socket, and how long a call may take.
//!
//! Quick calls (lists, status) have a deadline of [`QUICK`] so that a runtime that hangs is noticed.
//! Calls that may rightly take long (pulling, starting, stopping) have none unless `--timeout` says
//! so. The `:authority` of all calls is `localhost`: HTTP/2 servers refuse a socket's path there.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use api_cri::MAX_MESSAGE_SIZE;
use api_cri::v1::image_service_client::ImageServiceClient;
use api_cri::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

use crate::error::{Error, Result};

/// How long a quick call may take where nothing else is said.
const QUICK: Duration = Duration::from_secs(10);

/// The runtime, and how it is called.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    channel: Channel,
    timeout: Option<Duration>,
}

impl Client {
    /// Connects to `endpoint`, `unix://` and a path or a path alone.
    pub(crate) async fn connect(endpoint: &str, timeout: Option<Duration>) -> Result<Client> {
        let socket = socket_path(endpoint)?;
        // The first connection is made here, where its error can be told from others; the channel
        // makes another when that one is lost.
        let first = open(&socket, timeout.unwrap_or(QUICK)).await?;
        let first = Mutex::new(Some(first));
        let path = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let first = first.lock().ok().and_then(|mut f| f.take());
            let path = path.clone();
            async move {
                let stream = match first {
                    Some(stream) => stream,
                    None => UnixStream::connect(&path).await?,
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|source| Error::Channel { path: socket.clone(), source })?;
        Ok(Client { socket, channel, timeout })
    }

    /// The socket's path.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// How long a call may take, where that was said.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The calls about pods and containers.
    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// The calls about images.
    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// Awaits a call that should answer at once. `doing` reads after "cannot".
    pub(crate) fn quick<'a, T: 'a>(
        &self,
        doing: impl Into<String>,
        call: impl Future<Output = Result<Response<T>, Status>> + Send + 'a,
    ) -> Call<'a, T> {
        within(doing.into(), Some(self.timeout.unwrap_or(QUICK)), call)
    }

    /// Awaits a call that may rightly take long. `doing` reads after "cannot".
    pub(crate) fn long<'a, T: 'a>(
        &self,
        doing: impl Into<String>,
        call: impl Future<Output = Result<Response<T>, Status>> + Send + 'a,
    ) -> Call<'a, T> {
        within(doing.into(), self.timeout, call)
    }
}

/// A call that is under way. On the heap, for a call is kilobytes, and each future that it is part
/// of would hold them several times.
pub(crate) type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Awaits a call, at most for `limit`. A call that is given up is cancelled at the server, too.
pub(crate) fn within<'a, T: 'a>(
    doing: String,
    limit: Option<Duration>,
    call: impl Future<Output = Result<Response<T>, Status>> + Send + 'a,
) -> Call<'a, T> {
    Box::pin(async move {
        let answer = match limit {
            None => call.await,
            Some(after) => match tokio::time::timeout(after, call).await {
                Ok(answer) => answer,
                Err(_) => return Err(Error::TimedOut { doing, after }),
            },
        };
        match answer {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(Error::call(doing, &status)),
        }
    })
}

async fn open(socket: &Path, limit: Duration) -> Result<UnixStream> {
    let path = socket.to_owned();
    match tokio::time::timeout(limit, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NotRunning { path, source }
            }
            io::ErrorKind::PermissionDenied => Error::Denied { path, source },
            _ => Error::Connect { path, source },
        }),
        Err(_) => {
            Err(Error::TimedOut { doing: format!("connect to {}", path.display()), after: limit })
        }
    }
}

fn socket_path(endpoint: &str) -> Result<PathBuf> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !path.starts_with('/') {
        return Err(Error::Endpoint { endpoint: endpoint.into() });
    }
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for good in ["unix:///run/x.sock", "/run/x.sock"] {
            assert_eq!(socket_path(good).unwrap(), Path::new("/run/x.sock"));
        }
        for wrong in ["", "tcp://127.0.0.1:1", "unix://", "x.sock", "unix://x.sock"] {
            assert!(matches!(socket_path(wrong), Err(Error::Endpoint { .. })), "{wrong}");
        }
    }
}
