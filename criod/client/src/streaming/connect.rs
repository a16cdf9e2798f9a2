//! From the URL that the runtime gave to a connection that was upgraded.
//!
//! ```text
//!  http://HOST:PORT/exec/TOKEN    TCP ───────┐
//!  https://…                      TCP ─ TLS ─┴─ POST …, Upgrade: SPDY/3.1 ─► 101 ─► Wire
//! ```
//! TLS trusts the system's authorities and those of `--stream-ca`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use stream::http::{HEAD_LIMIT, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::wire::{Io, Wire};
use crate::args::StreamTls;
use crate::error::{Error, Result, one_line};

/// How long an upgrade may take. A runtime that is being restarted answers when it is back.
const UPGRADE: Duration = Duration::from_secs(30);

/// The most of a refusal's text that is shown, in bytes, and how long it is waited for.
const REFUSAL: (usize, Duration) = (1024, Duration::from_secs(2));

/// Where a stream is, and how it is reached.
pub(crate) struct Target {
    /// `http` or `https`.
    encrypted: bool,
    /// Host and port as they were in the URL.
    authority: String,
    /// Without brackets.
    host: String,
    port: u16,
    /// Path and query.
    path: String,
    tls: StreamTls,
    limit: Duration,
}

/// A connection whose upgrade was granted.
pub(super) struct Upgraded {
    pub(super) wire: Wire,
    pub(super) response: Response,
    /// What came with the response, of the protocol that follows.
    pub(super) rest: Vec<u8>,
}

impl Target {
    /// Of the `url` in an answer; the upgrade may take `timeout`.
    pub(crate) fn new(url: &str, tls: &StreamTls, timeout: Option<Duration>) -> Result<Target> {
        let wrong = || Error::StreamUrl { url: url.into() };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        // Without a port that is one, there is nothing but the host.
        let port = authority.port_u16();
        if bare.is_empty() || (port.is_none() && authority.as_str() != host) {
            return Err(wrong());
        }
        Ok(Target {
            encrypted,
            authority: authority.to_string(),
            host: bare.into(),
            port: port.unwrap_or(if encrypted { 443 } else { 80 }),
            path: uri.path_and_query().map_or("/", |p| p.as_str()).into(),
            tls: tls.clone(),
            limit: timeout.unwrap_or(UPGRADE),
        })
    }

    /// Connects and asks for an upgrade. `request` makes the request of host and path.
    pub(super) async fn upgrade(&self, request: fn(&str, &str) -> Vec<u8>) -> Result<Upgraded> {
        let upgraded = tokio::time::timeout(self.limit, Box::pin(self.ask(request))).await;
        upgraded.unwrap_or_else(|_| {
            let doing = format!("open a stream at {}", self.authority);
            Err(Error::TimedOut { doing, after: self.limit })
        })
    }

    async fn ask(&self, request: fn(&str, &str) -> Vec<u8>) -> Result<Upgraded> {
        let failed = |source| Error::StreamConnect { address: self.authority.clone(), source };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        // Keys are not to wait for the answers to others.
        tcp.set_nodelay(true).map_err(failed)?;
        let mut io: Box<dyn Io> = match self.encrypted {
            false => Box::new(tcp),
            true => {
                let name = ServerName::try_from(self.host.clone())
                    .map_err(|_| Error::StreamUrl { url: self.authority.clone() })?;
                let connector = TlsConnector::from(Arc::new(config(&self.tls)?));
                Box::new(connector.connect(name, tcp).await.map_err(failed)?)
            }
        };
        let lost = |source| Error::StreamLost { source: Some(source) };
        io.write_all(&request(&self.authority, &self.path)).await.map_err(lost)?;
        io.flush().await.map_err(lost)?;
        let mut read = Vec::with_capacity(HEAD_LIMIT);
        let (response, length) = loop {
            if let Some(head) = Response::parse(&read).map_err(Error::StreamAnswer)? {
                break head;
            }
            if io.read_buf(&mut read).await.map_err(lost)? == 0 {
                return Err(Error::StreamLost { source: None });
            }
        };
        let rest = read.split_off(length);
        if response.status != 101 {
            let text = one_line(&refusal(&mut io, rest).await);
            return Err(Error::StreamRefused { status: response.status, text });
        }
        Ok(Upgraded { wire: Wire::new(io), response, rest })
    }
}

/// The body of a refusal, or what of it comes soon.
async fn refusal(io: &mut Box<dyn Io>, start: Vec<u8>) -> String {
    let mut text = start;
    let (most, soon) = REFUSAL;
    let mut more = io.take(most.saturating_sub(text.len()) as u64);
    // What has come until then is enough.
    let _ = tokio::time::timeout(soon, more.read_to_end(&mut text)).await;
    text.truncate(most);
    String::from_utf8_lossy(&text).into_owned()
}

/// The settings of TLS.
fn config(tls: &StreamTls) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // Those that cannot be read are those that are not trusted.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &tls.stream_ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(Error::Tls)?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_root_certificates(roots);
    let mut config = match (&tls.stream_cert, &tls.stream_key) {
        (Some(cert), Some(key)) => {
            let unusable = |source| Error::Certificates { path: key.clone(), source };
            let key = PrivateKeyDer::from_pem_file(key).map_err(unusable)?;
            builder.with_client_auth_cert(certificates(cert)?, key).map_err(Error::Tls)?
        }
        _ => builder.with_no_client_auth(),
    };
    // An upgrade is a matter of HTTP/1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let unusable = |source| Error::Certificates { path: path.into(), source };
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(unusable)?
        .collect::<Result<_, _>>()
        .map_err(unusable)?;
    if all.is_empty() { Err(Error::NoCertificates { path: path.into() }) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target> {
        Target::new(url, &StreamTls::default(), None)
    }

    #[test]
    fn urls() {
        for (url, encrypted, authority, host, port, path) in [
            ("http://127.0.0.1:1/exec/t", false, "127.0.0.1:1", "127.0.0.1", 1, "/exec/t"),
            ("https://[::1]/a?b=c", true, "[::1]", "::1", 443, "/a?b=c"),
            ("http://node", false, "node", "node", 80, "/"),
        ] {
            let t = target(url).unwrap();
            assert_eq!((t.encrypted, t.authority.as_str()), (encrypted, authority), "{url}");
            assert_eq!((t.host.as_str(), t.port, t.path.as_str()), (host, port, path), "{url}");
        }
        for wrong in [
            "",
            "/exec/t",
            "ws://h/",
            "http://",
            "http:///x",
            "http://u@h/",
            "h:1",
            "http://h:p/",
            "http://h:/",
        ] {
            assert!(matches!(target(wrong), Err(Error::StreamUrl { .. })), "{wrong}");
        }
    }
}
