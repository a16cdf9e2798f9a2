//! The server's side of TLS from what criod hands over: certificate chain, key and, where clients
//! must have a certificate, the authorities that sign them. All PEM in memfds.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite};

use crate::failed::{Failed, step};

/// The most bytes of one file.
const LIMIT: usize = 1024 * 1024;

/// All of a memfd, from its start, wherever its offset stands.
fn contents(of: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(of);
    let mut bytes = Vec::new();
    loop {
        let from = bytes.len();
        bytes.resize(from + 4096, 0);
        let n = file.read_at(&mut bytes[from..], from as u64)?;
        bytes.truncate(from + n);
        if n == 0 {
            return Ok(bytes);
        }
        if bytes.len() > LIMIT {
            return Err(io::Error::other("too long"));
        }
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Err(e) => Err(e.to_string()),
        Ok(all) if all.is_empty() => Err("no certificate in it".into()),
        Ok(all) => Ok(all),
    }
}

/// What a connection is served with, as criod hands it over.
pub(crate) struct Files {
    pub(crate) certificate: OwnedFd,
    pub(crate) key: OwnedFd,
    /// With it, only clients with a certificate that it signed are served.
    pub(crate) ca: Option<OwnedFd>,
    /// `1.3`: nothing older; else 1.2 and 1.3.
    pub(crate) lowest: String,
    /// Which cipher suites of TLS 1.2 are allowed, by their standard names, divided by commas; all
    /// that are safe where it is empty. Those of 1.3 are always allowed.
    pub(crate) suites: String,
}

/// The provider with the suites that are allowed.
fn provider(suites: &str) -> CryptoProvider {
    let mut provider = ring::default_provider();
    if !suites.is_empty() {
        let allowed = |suite: &SupportedCipherSuite| {
            suite.tls13().is_some()
                || suites.split(',').any(|name| suite.suite().as_str() == Some(name))
        };
        provider.cipher_suites.retain(allowed);
    }
    provider
}

/// The configuration of one connection.
pub(crate) fn server(files: Files) -> Result<Arc<ServerConfig>, Failed> {
    let Files { certificate, key, ca, lowest, suites } = files;
    let chain = step("certificate", contents(certificate))?;
    let chain = step("certificate", certificates(&chain))?;
    let key = step("key", contents(key))?;
    let key = step("key", PrivateKeyDer::from_pem_slice(&key))?;
    let provider = Arc::new(provider(&suites));
    let old = lowest != "1.3" && provider.cipher_suites.iter().any(|s| s.tls13().is_none());
    let versions: &[_] = if old { &[&TLS13, &TLS12] } else { &[&TLS13] };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = step("TLS versions", builder.with_protocol_versions(versions))?;
    let builder = match ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            let pem = step("client CA", contents(ca))?;
            for root in step("client CA", certificates(&pem))? {
                step("client CA", roots.add(root))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(step("client CA", verifier)?)
        }
    };
    let mut config = step("certificate and key", builder.with_single_cert(chain, key))?;
    // One connection in the life of the process: there is nothing to resume.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
