//! A registry of the tests' own: an HTTP server on 127.0.0.1 that answers by a closure and keeps
//! what it was asked. It ends with the value.

#![allow(dead_code, unreachable_pub)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use registry::{Client, ClientOptions, Descriptor, Digest, Endpoint};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub type Body = BoxBody<Bytes, std::io::Error>;
pub type Handler = Arc<dyn Fn(&Asked) -> Response<Body> + Send + Sync>;

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().unwrap()).unwrap_or_default()
    }
}

pub struct Fake {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub async fn start(handler: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static) -> Fake {
        Fake::start_with(None, handler).await
    }

    pub async fn start_with(
        tls: Option<tokio_rustls::TlsAcceptor>,
        handler: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static,
    ) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler: Handler = Arc::new(handler);
        let log: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let connections: Arc<AtomicUsize> = Arc::default();
        let (kept, counted) = (log.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let (handler, log, tls) = (handler.clone(), kept.clone(), tls.clone());
                serving.spawn(async move {
                    let service =
                        service_fn(move |request| answer(request, handler.clone(), log.clone()));
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(tcp), service).await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(tcp).await else { return };
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        Fake { address, log, connections, task }
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint { host: self.host(), repository: "team/app".into(), insecure: true }
    }

    /// What it was asked, the looks for what it speaks left out.
    pub fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().iter().filter(|a| a.path != "/v2/").cloned().collect()
    }
}

async fn answer(
    request: Request<Incoming>,
    handler: Handler,
    log: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let asked = Asked {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    log.lock().unwrap().push(asked.clone());
    // A look for what the server speaks.
    if asked.path == "/v2/" {
        return Ok(ok(""));
    }
    Ok(handler(&asked))
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

pub fn ok(bytes: impl Into<Bytes>) -> Response<Body> {
    Response::new(full(bytes))
}

pub fn status(code: u16) -> Response<Body> {
    let mut response = ok("");
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

pub fn with(mut response: Response<Body>, name: &'static str, value: &str) -> Response<Body> {
    response.headers_mut().append(name, value.parse().unwrap());
    response
}

pub fn redirect(to: &str) -> Response<Body> {
    with(status(307), "location", to)
}

/// Announces `length` bytes, sends `bytes` and closes the connection.
pub fn cut(bytes: Bytes, length: usize) -> Response<Body> {
    let frames = stream::iter([Ok(Frame::data(bytes)), Err(std::io::Error::other("cut"))]);
    // The bytes must be on the wire before the connection breaks.
    let frames = frames.then(|frame| async {
        if frame.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        frame
    });
    let body = StreamBody::new(frames);
    with(Response::new(BodyExt::boxed(locked(body))), "content-length", &length.to_string())
}

/// Announces `length` bytes, sends `bytes` and then nothing.
pub fn hang(bytes: Bytes, length: usize) -> Response<Body> {
    let frames = stream::iter([Ok(Frame::data(bytes))]).chain(stream::pending());
    let body = StreamBody::new(frames);
    with(Response::new(BodyExt::boxed(locked(body))), "content-length", &length.to_string())
}

/// Sends `bytes` in one chunk, with no length announced.
pub fn chunked(bytes: Bytes) -> Response<Body> {
    Response::new(BodyExt::boxed(locked(StreamBody::new(stream::iter([Ok(Frame::data(bytes))])))))
}

/// A body only ever polled by one task, said to be shareable by holding it in a mutex.
struct Locked<B>(Mutex<std::pin::Pin<Box<B>>>);

fn locked<B>(body: B) -> Locked<B> {
    Locked(Mutex::new(Box::pin(body)))
}

impl<B: hyper::body::Body> hyper::body::Body for Locked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.0.lock().unwrap().as_mut().poll_frame(cx)
    }
}

/// The bytes of a range request from `Range: bytes=n-`.
pub fn range_start(asked: &Asked) -> Option<usize> {
    asked.header("range").strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// A right answer to a request for `content`, ranges included.
pub fn serve(asked: &Asked, content: &Bytes) -> Response<Body> {
    match range_start(asked) {
        None => ok(content.clone()),
        Some(n) if n >= content.len() => status(416),
        Some(n) => {
            let range = format!("bytes {n}-{}/{}", content.len() - 1, content.len());
            let mut response = with(ok(content.slice(n..)), "content-range", &range);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response
        }
    }
}

/// A client with short waits.
pub fn client() -> Client {
    client_with(|_| {})
}

pub fn client_with(change: impl FnOnce(&mut ClientOptions)) -> Client {
    let mut options = ClientOptions {
        certs_dirs: Vec::new(),
        backoff: Duration::from_millis(5),
        max_retry_after: Duration::from_millis(20),
        ..ClientOptions::default()
    };
    change(&mut options);
    Client::new(options)
}

pub fn descriptor(media_type: &str, content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: Digest::of(content),
        size: content.len() as u64,
        urls: Vec::new(),
        platform: None,
        annotations: Default::default(),
    }
}

/// Bytes that differ from their neighbours, so that a shifted resume is noticed.
pub fn content(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect::<Vec<u8>>()
        .into()
}
