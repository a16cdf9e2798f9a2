//! HTTPS: who is believed, who is not, and that nothing else is spoken unasked.

// Helpers outside of test functions count as tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::path::Path;
use std::sync::Arc;

use fake::{Fake, client, client_with, ok};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use registry::{ClientError, Credentials, Endpoint, ErrorKind};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

const NOBODY: Credentials = Credentials::Anonymous;

type Pair = CertifiedKey<rcgen::KeyPair>;

fn pair() -> Pair {
    generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap()
}

fn acceptor(own: &Pair, client: Option<&Pair>) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let mut roots = RootCertStore::empty();
            roots.add(client.cert.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = builder.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn endpoint(fake: &Fake, insecure: bool) -> Endpoint {
    Endpoint { insecure, ..fake.endpoint() }
}

fn write(dir: &Path, fake: &Fake, name: &str, text: &str) {
    let dir = dir.join(fake.host());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), text).unwrap();
}

#[tokio::test]
async fn self_signed() {
    let own = pair();
    let fake = Fake::start_with(Some(acceptor(&own, None)), |_| ok("{}")).await;
    let error = client().manifest(&endpoint(&fake, false), "v1", &NOBODY).await.unwrap_err();
    assert!(matches!(error, ClientError::Request { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Other, "a certificate is no outage");
    assert!(fake.asked().is_empty());

    client().manifest(&endpoint(&fake, true), "v1", &NOBODY).await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &fake, "ca.crt", &own.cert.pem());
    let trusting = client_with(|o| o.certs_dirs = vec!["/absent".into(), dir.path().into()]);
    trusting.manifest(&endpoint(&fake, false), "v1", &NOBODY).await.unwrap();
}

#[tokio::test]
async fn plain_http_only_when_insecure() {
    let fake = Fake::start(|_| ok("{}")).await;
    let error = client().manifest(&endpoint(&fake, false), "v1", &NOBODY).await.unwrap_err();
    assert!(matches!(error, ClientError::Request { .. }), "{error:?}");
    assert!(fake.asked().is_empty());
    client().manifest(&endpoint(&fake, true), "v1", &NOBODY).await.unwrap();
}

#[tokio::test]
async fn no_downgrade_by_redirect_or_realm() {
    let plain = Fake::start(|_| ok(r#"{"token":"t"}"#)).await;
    let own = pair();
    let to = format!("http://{}/x", plain.host());
    let fake = Fake::start_with(Some(acceptor(&own, None)), move |asked| {
        if asked.path.ends_with("/moved") {
            return fake::redirect(&to);
        }
        let challenge = format!("Bearer realm=\"{to}\"");
        fake::with(fake::status(401), "www-authenticate", &challenge)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &fake, "ca.crt", &own.cert.pem());
    let client = client_with(|o| o.certs_dirs = vec![dir.path().into()]);
    let creds = Credentials::basic("me", "pw");
    let error = client.manifest(&endpoint(&fake, false), "moved", &creds).await.unwrap_err();
    assert!(matches!(error, ClientError::Redirect { .. }), "{error:?}");
    let error = client.manifest(&endpoint(&fake, false), "v1", &creds).await.unwrap_err();
    assert!(matches!(error, ClientError::Token { .. }), "{error:?}");
    assert!(plain.asked().is_empty());
}

#[tokio::test]
async fn client_certificates() {
    let (own, me) = (pair(), pair());
    let fake = Fake::start_with(Some(acceptor(&own, Some(&me))), |_| ok("{}")).await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &fake, "ca.crt", &own.cert.pem());
    let attempt = || async {
        let client = client_with(|o| o.certs_dirs = vec![dir.path().into()]);
        client.manifest(&endpoint(&fake, false), "v1", &NOBODY).await
    };
    assert!(attempt().await.is_err());
    write(dir.path(), &fake, "me.cert", &me.cert.pem());
    let error = attempt().await.unwrap_err();
    assert!(matches!(&error, ClientError::Certificate { path, .. } if path.ends_with("me.cert")));
    write(dir.path(), &fake, "me.key", &me.signing_key.serialize_pem());
    attempt().await.unwrap();
    write(dir.path(), &fake, "other.key", &me.signing_key.serialize_pem());
    assert!(matches!(attempt().await, Err(ClientError::Certificate { .. })));
    std::fs::remove_file(dir.path().join(fake.host()).join("other.key")).unwrap();
    write(dir.path(), &fake, "bad.crt", "no certificate");
    assert!(matches!(attempt().await, Err(ClientError::Certificate { .. })));
}
