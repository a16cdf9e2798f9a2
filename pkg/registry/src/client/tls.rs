//! TLS settings of one host: the system's authorities, those of the host's certificate directory,
//! and the client certificates there.
//!
//! ```text
//!   certs.d/registry.example.com:5000/
//!     anything.crt            an authority's certificates, PEM
//!     name.cert + name.key    a client certificate and its key, PEM
//! ```
//!
//! (containers-certs.d(5)). The first directory of the list that knows the host is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::error::ClientError;
use crate::reference::valid_domain;

/// The settings for `host`. Reads files: not to be called where blocking hurts.
pub(super) fn config(
    host: &str,
    insecure: bool,
    certs_dirs: &[PathBuf],
) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(ring::default_provider());
    let tls = |source| ClientError::Tls { host: host.to_owned(), source };
    let files = HostFiles::find(host, certs_dirs)?;
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(tls)?;
    let builder = if insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
    } else {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::debug!(%error, "a system certificate cannot be read");
        }
        roots.add_parsable_certificates(native.certs);
        for (path, certificate) in files.authorities {
            roots
                .add(certificate)
                .map_err(|error| ClientError::Certificate { path, problem: error.to_string() })?;
        }
        builder.with_root_certificates(roots)
    };
    match files.client {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(tls),
        None => Ok(builder.with_no_client_auth()),
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

#[derive(Default)]
struct HostFiles {
    authorities: Vec<(PathBuf, CertificateDer<'static>)>,
    client: Option<Identity>,
}

impl HostFiles {
    fn find(host: &str, certs_dirs: &[PathBuf]) -> Result<HostFiles, ClientError> {
        // A redirect may name any host: only what cannot lead out of the directory is looked up.
        let certs_dirs = if valid_domain(host) { certs_dirs } else { &[] };
        for dir in certs_dirs {
            let dir = dir.join(host);
            match std::fs::read_dir(&dir) {
                Ok(entries) => {
                    let mut paths = Vec::new();
                    for entry in entries {
                        let entry = entry.map_err(|source| ClientError::ReadCertificates {
                            path: dir.clone(),
                            source,
                        })?;
                        paths.push(entry.path());
                    }
                    paths.sort();
                    return HostFiles::read(&paths);
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(ClientError::ReadCertificates { path: dir, source }),
            }
        }
        Ok(HostFiles::default())
    }

    fn read(paths: &[PathBuf]) -> Result<HostFiles, ClientError> {
        let mut files = HostFiles::default();
        for path in paths {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => {
                    let read = certificates(path)?;
                    files.authorities.extend(read.into_iter().map(|c| (path.clone(), c)));
                }
                Some("cert") => {
                    let key_path = path.with_extension("key");
                    if !key_path.is_file() {
                        return Err(malformed(path, "there is no .key file of the same name"));
                    }
                    let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
                        .map_err(|error| malformed(&key_path, &error.to_string()))?;
                    let chain = certificates(path)?;
                    if files.client.is_some() {
                        tracing::debug!(path = %path.display(), "only the first client certificate is used");
                    } else {
                        files.client = Some((chain, key));
                    }
                }
                Some("key") if !path.with_extension("cert").is_file() => {
                    return Err(malformed(path, "there is no .cert file of the same name"));
                }
                _ => {}
            }
        }
        Ok(files)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path)
        .map_err(|source| ClientError::ReadCertificates { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(path, &error.to_string()))?;
    if all.is_empty() {
        return Err(malformed(path, "there is no certificate in it"));
    }
    Ok(all)
}

fn malformed(path: &Path, problem: &str) -> ClientError {
    ClientError::Certificate { path: path.to_owned(), problem: problem.to_owned() }
}

/// Takes any certificate: what "insecure" asks for. The handshake itself is still checked, so that
/// the peer does hold the key of what it shows.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
