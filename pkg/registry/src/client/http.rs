//! Connections and single exchanges: one pool of connections per host and security, redirects,
//! time limits. Knows nothing of registries.
//!
//! HTTP/1.1 only: a layer gets a connection of its own, so that parallel layers do not share one
//! flow-control window. Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`, …) and are
//! spoken to with CONNECT; loopback addresses never go through one.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::error::ClientError;
use super::tls;

/// Certificates are read again for connections made later than this.
const POOL_AGE: Duration = Duration::from_secs(300);
/// An unused connection is closed after this.
const IDLE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;

type HostPool = Pool<HttpsConnector<Dial>, Full<Bytes>>;

/// One request, as far as it stays the same over redirects.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Uri,
    pub(super) headers: HeaderMap,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) body: Bytes,
    /// Whether redirects are followed.
    pub(super) follow: bool,
}

impl Call {
    pub(super) fn get(url: Uri) -> Call {
        Call {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            authorization: None,
            body: Bytes::new(),
            follow: true,
        }
    }
}

/// An answer, and where it came from after redirects.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) url: Uri,
    /// Whether it came from another server than the one asked.
    pub(super) elsewhere: bool,
}

pub(super) struct Connections {
    user_agent: HeaderValue,
    certs_dirs: Vec<PathBuf>,
    connect_timeout: Duration,
    response_timeout: Duration,
    proxies: Arc<Matcher>,
    pools: std::sync::Mutex<HashMap<(String, bool), (Instant, HostPool)>>,
}

impl Connections {
    pub(super) fn new(
        user_agent: &str,
        certs_dirs: Vec<PathBuf>,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Connections {
        Connections {
            user_agent: HeaderValue::from_str(user_agent)
                .unwrap_or(HeaderValue::from_static("registry-client")),
            certs_dirs,
            connect_timeout,
            response_timeout,
            proxies: Arc::new(Matcher::from_env()),
            pools: std::sync::Mutex::default(),
        }
    }

    pub(super) fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    /// Sends `call` and follows redirects. `certs_host` is the name the first host's certificates
    /// are kept under. With `insecure` no certificate is checked and plain HTTP is spoken to
    /// addresses that say so.
    pub(super) async fn send(
        &self,
        mut call: Call,
        certs_host: &str,
        insecure: bool,
    ) -> Result<Answer, ClientError> {
        let first = Origin::of(&call.url);
        let mut elsewhere = false;
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&call.url);
            let certs_host =
                if origin == first { certs_host.to_owned() } else { authority(&call.url) };
            let response = self.exchange(&call, &certs_host, insecure).await?;
            let redirect = matches!(
                response.status(),
                StatusCode::MOVED_PERMANENTLY
                    | StatusCode::FOUND
                    | StatusCode::SEE_OTHER
                    | StatusCode::TEMPORARY_REDIRECT
                    | StatusCode::PERMANENT_REDIRECT
            );
            if !redirect || !call.follow {
                return Ok(Answer { response, url: call.url, elsewhere });
            }
            let next = redirect_target(&call.url, response.headers())?;
            let refuse = |problem| ClientError::Redirect {
                url: shown(&call.url),
                target: shown(&next),
                problem,
            };
            if next.scheme_str() != Some("https") && !insecure {
                return Err(refuse("plain HTTP is only spoken to insecure registries"));
            }
            if Origin::of(&next) != origin {
                // What was meant for one server is none of another's business, not even after a
                // redirect back.
                call.authorization = None;
                elsewhere = true;
            }
            call.url = next;
        }
        let url = shown(&call.url);
        Err(ClientError::Redirect { target: url.clone(), url, problem: "too many redirects" })
    }

    async fn exchange(
        &self,
        call: &Call,
        certs_host: &str,
        insecure: bool,
    ) -> Result<Response<Incoming>, ClientError> {
        let pool = self.pool(certs_host, insecure).await?;
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = call.url.clone();
        *request.headers_mut() = call.headers.clone();
        request.headers_mut().insert(USER_AGENT, self.user_agent.clone());
        if let Some(authorization) = &call.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        match tokio::time::timeout(self.response_timeout, pool.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(ClientError::Request { url: shown(&call.url), source }),
            Err(_) => {
                Err(ClientError::Timeout { url: shown(&call.url), after: self.response_timeout })
            }
        }
    }

    async fn pool(&self, certs_host: &str, insecure: bool) -> Result<HostPool, ClientError> {
        let key = (certs_host.to_owned(), insecure);
        {
            let mut pools = self.lock();
            pools.retain(|_, (made, _)| made.elapsed() < POOL_AGE);
            if let Some((_, pool)) = pools.get(&key) {
                return Ok(pool.clone());
            }
        }
        let (host, dirs) = (certs_host.to_owned(), self.certs_dirs.clone());
        let tls = tokio::task::spawn_blocking(move || tls::config(&host, insecure, &dirs)).await;
        let tls = match tls {
            Ok(tls) => tls?,
            // The runtime is being shut down, or reading the files panicked.
            Err(error) => {
                let source = rustls::Error::General(error.to_string());
                return Err(ClientError::Tls { host: certs_host.to_owned(), source });
            }
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(self.connect_timeout));
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        let dial = Dial { tcp, proxies: self.proxies.clone() };
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
        let builder = if insecure { builder.https_or_http() } else { builder.https_only() };
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(8)
            .build(builder.enable_http1().wrap_connector(dial));
        self.lock().insert(key, (Instant::now(), pool.clone()));
        Ok(pool)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, bool), (Instant, HostPool)>> {
        // The map is whole after every operation on it.
        self.pools.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Makes TCP connections, through a proxy where the environment says so.
#[derive(Clone)]
struct Dial {
    tcp: HttpConnector,
    proxies: Arc<Matcher>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl tower::Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        tower::Service::poll_ready(&mut self.tcp, cx).map_err(Into::into)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let proxy = if is_loopback(&target) { None } else { self.proxies.intercept(&target) };
        match proxy {
            None => {
                let connecting = self.tcp.call(target);
                Box::pin(async move { Ok(connecting.await?) })
            }
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let connecting = tunnel.call(target);
                Box::pin(async move { Ok(connecting.await?) })
            }
        }
    }
}

fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[derive(PartialEq, Eq)]
struct Origin(String, String, u16);

impl Origin {
    fn of(url: &Uri) -> Origin {
        let scheme = url.scheme_str().unwrap_or_default().to_ascii_lowercase();
        let port = url.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
        Origin(scheme, url.host().unwrap_or_default().to_ascii_lowercase(), port)
    }
}

fn authority(url: &Uri) -> String {
    url.authority().map(ToString::to_string).unwrap_or_default()
}

/// The address `Location` names, seen from `base` (RFC 3986, section 5.2, without dot segments).
fn redirect_target(base: &Uri, headers: &HeaderMap) -> Result<Uri, ClientError> {
    let fail = |problem| ClientError::Redirect {
        url: shown(base),
        target: "another address".into(),
        problem,
    };
    let location = headers.get(LOCATION).ok_or_else(|| fail("there is no Location"))?;
    let location = location.to_str().map_err(|_| fail("Location is not ASCII"))?;
    let location = location.split('#').next().unwrap_or_default().trim();
    let scheme = base.scheme_str().unwrap_or("https");
    let host = authority(base);
    let lower = location.to_ascii_lowercase();
    let text = if lower.starts_with("http://") || lower.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{host}{}{location}", base.path())
    } else if location.is_empty() || lower.split(['/', '?']).next().is_some_and(|s| s.contains(':'))
    {
        return Err(fail("Location is neither HTTP nor HTTPS"));
    } else {
        let parent = base.path().rfind('/').map_or("/", |at| &base.path()[..=at]);
        format!("{scheme}://{host}{parent}{location}")
    };
    let url: Uri = text.parse().map_err(|_| fail("Location is malformed"))?;
    match url.authority() {
        Some(authority) if !authority.as_str().contains('@') && !authority.host().is_empty() => {
            Ok(url)
        }
        _ => Err(fail("Location has no usable host")),
    }
}

/// An address without its query and user, fit for people.
pub(super) fn shown(url: &Uri) -> String {
    let host = authority(url);
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{}://{host}{}", url.scheme_str().unwrap_or("https"), url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(base: &str, location: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_str(location).unwrap());
        redirect_target(&base.parse().unwrap(), &headers).ok().map(|u| u.to_string())
    }

    #[test]
    fn locations() {
        let base = "https://r.io:5000/v2/a/blobs/x?y=1";
        for (location, expected) in [
            ("https://cdn.io/b?sig=1#frag", Some("https://cdn.io/b?sig=1")),
            ("HTTPS://cdn.io/b", Some("https://cdn.io/b")),
            ("//cdn.io/b", Some("https://cdn.io/b")),
            ("/b?c", Some("https://r.io:5000/b?c")),
            ("b", Some("https://r.io:5000/v2/a/blobs/b")),
            ("?z", Some("https://r.io:5000/v2/a/blobs/x?z")),
            ("ftp://cdn.io/b", None),
            ("file:/etc/passwd", None),
            ("https://u:p@cdn.io/b", None),
            ("https:///b", None),
            ("", None),
        ] {
            assert_eq!(target(base, location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn queries_are_not_shown() {
        let url = "https://u:hunter2@cdn.io/b?X-Signature=hunter2".parse().unwrap();
        assert_eq!(shown(&url), "https://cdn.io/b");
    }

    #[test]
    fn origins() {
        let of = |url: &str| Origin::of(&url.parse().unwrap());
        assert!(of("https://r.io/a") == of("https://R.io:443/b"));
        assert!(of("https://r.io/a") != of("http://r.io/a"));
        assert!(of("https://r.io/a") != of("https://r.io:444/a"));
        assert!(of("https://r.io/a") != of("https://x.r.io/a"));
    }

    #[tokio::test]
    async fn through_a_proxy() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = proxy.local_addr().unwrap();
        let second = Duration::from_secs(5);
        let mut connections = Connections::new("test", Vec::new(), second, second);
        let matcher = Matcher::builder().all(format!("http://me:pw@{address}")).build();
        connections.proxies = Arc::new(matcher);
        let served = tokio::spawn(async move {
            let (mut stream, _) = proxy.accept().await.unwrap();
            let mut heads = Vec::new();
            for answer in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"] {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                heads.push(String::from_utf8(head).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            heads
        });
        let call = Call::get("http://registry.test:5000/v2/".parse().unwrap());
        let answer = connections.send(call, "registry.test:5000", true).await.unwrap();
        assert_eq!(answer.response.status(), StatusCode::NO_CONTENT);
        let heads = served.await.unwrap();
        assert!(heads[0].starts_with("CONNECT registry.test:5000 HTTP/1.1\r\n"), "{heads:?}");
        assert!(heads[0].to_ascii_lowercase().contains("proxy-authorization: basic bwu6chc="));
        assert!(heads[1].starts_with("GET /v2/ HTTP/1.1\r\n") && !heads[1].contains("Basic"));
    }

    #[test]
    fn loopback_needs_no_proxy() {
        for (url, expected) in [
            ("http://localhost:5000/", true),
            ("http://127.3.2.1/", true),
            ("https://[::1]:5000/", true),
            ("https://localhost.evil.io/", false),
            ("https://10.0.0.1/", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
