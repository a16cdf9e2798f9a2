//! TLS: with and without certificates of clients, versions, and what it costs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::client::{Session, Spdy};
use common::{Stream, drain, memfd, noise};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

const CONN: [&str; 4] = ["CONN", "14400000", "10000", "1000"];

struct Authority(CertifiedIssuer<'static, KeyPair>);

struct Identity {
    chain: String,
    key: String,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity { chain: certificate.pem(), key: key.serialize_pem() }
    }
}

fn client(
    tcp: TcpStream,
    authority: &Authority,
    identity: Option<&Identity>,
    versions: &[&'static SupportedProtocolVersion],
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(Identity { chain, key }) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap);
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(chain.collect(), key).unwrap()
        }
    };
    // As Go's clients do.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("node").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp)
}

fn files(identity: &Identity, ca: Option<&Authority>) -> Vec<OwnedFd> {
    let mut files = vec![memfd(identity.chain.as_bytes()), memfd(identity.key.as_bytes())];
    files.extend(ca.map(|ca| memfd(ca.0.pem().as_bytes())));
    files
}

fn connect(stream: &Stream, fields: &[&str], files: &[OwnedFd]) -> TcpStream {
    stream.connect(fields, &files.iter().map(AsFd::as_fd).collect::<Vec<_>>())
}

fn session(
    versions: &'static [&'static SupportedProtocolVersion],
    wants: &str,
    fields: &[&str],
) -> Session {
    let authority = Authority::new();
    let stream = Stream::idle();
    let tcp = connect(&stream, fields, &files(&authority.sign("node"), None));
    Session::over(stream, "exec", wants, move |path| {
        let io = client(tcp.try_clone().unwrap(), &authority, None, versions);
        Spdy::upgrade(Box::new(io), &tcp, path, "v4.channel.k8s.io")
    })
}

#[test]
fn bytes_arrive_both_ways_in_both_versions() {
    const OLD: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
    for versions in [OLD, rustls::DEFAULT_VERSIONS] {
        let mut s = session(versions, "0110", &CONN);
        let [stdin, stdout] = s.pipes(["stdin", "stdout"]);
        let (stdin, stdout) = (Stdio::from(stdin), Stdio::from(stdout));
        let mut cat = Command::new("cat").stdin(stdin).stdout(stdout).spawn().unwrap();
        let bytes = noise(8 * 1024 * 1024);
        s.client.spdy.send(s.client.stdin, &bytes);
        s.client.spdy.close(s.client.stdin);
        s.client.expect(s.client.stdout, &bytes);
        assert!(cat.wait().unwrap().success());
        let spare = Stream::idle();
        spare.settle();
        let private = s.stream.private_memory();
        assert!(private <= 2 << 20, "{private}");
        s.monitor.send(&["EXIT", "5"], &[]).unwrap();
        assert!(s.client.status().contains("\"5\""));
        s.end();
    }
}

#[test]
fn an_open_exec_is_small() {
    let mut s = session(rustls::DEFAULT_VERSIONS, "0111", &CONN);
    let [_stdin, stdout, _stderr] = s.pipes(["stdin", "stdout", "stderr"]);
    File::from(stdout).write_all(b"prompt").unwrap();
    s.client.expect(s.client.stdout, b"prompt");
    // As always on a node, idle ones share what they have read of the program.
    let spare = Stream::idle();
    spare.settle();
    let private = s.stream.private_memory();
    assert!(private <= 2 << 20, "{private}");
    s.end();
}

#[test]
fn only_clients_whom_the_authority_knows_are_served() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (server, ours, theirs) =
        (authority.sign("node"), authority.sign("client"), stranger.sign("client"));
    for (identity, served) in [(Some(&ours), true), (Some(&theirs), false), (None, false)] {
        let mut stream = Stream::idle();
        let tcp = connect(&stream, &CONN, &files(&server, Some(&authority)));
        let mut io = client(tcp, &authority, identity, rustls::DEFAULT_VERSIONS);
        let mut answer = Vec::new();
        let said = io.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| io.flush());
        let heard = said.and_then(|()| io.read_to_end(&mut answer));
        if served {
            heard.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 404 "));
        } else {
            assert!(heard.is_err() && answer.is_empty());
        }
        drop(io);
        assert!(stream.wait().code().is_some());
    }
}

#[test]
fn the_lowest_version_and_the_suites_are_criods_to_choose() {
    let old: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
    for (lowest, suites, served) in [
        ("1.2", "", true),
        ("1.3", "", false),
        ("1.2", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,TLS_NONSENSE", true),
        ("1.2", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", false),
        ("1.2", "TLS_NONSENSE", false),
    ] {
        let authority = Authority::new();
        let mut stream = Stream::idle();
        let fields = [&CONN[..], &[lowest, suites]].concat();
        let tcp = connect(&stream, &fields, &files(&authority.sign("node"), None));
        let mut io = client(tcp, &authority, None, old);
        let said = io.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| io.flush());
        assert_eq!(said.is_ok(), served, "{lowest} {suites}");
        drop(io);
        assert!(stream.wait().code().is_some());
    }
}

#[test]
fn plain_text_and_noise_do_not_get_through() {
    let authority = Authority::new();
    let identity = authority.sign("node");
    let plain = b"GET /exec/TOKEN HTTP/1.1\r\n\r\n".to_vec();
    // The start of a record that never ends.
    let record = [&[22, 3, 1, 64, 0][..], &noise(100)].concat();
    for bytes in [plain, noise(100_000), record] {
        let mut stream = Stream::idle();
        let fields = ["CONN", "1000", "300", "1000"];
        let mut tcp = connect(&stream, &fields, &files(&identity, None));
        let _ = tcp.write_all(&bytes);
        // An alert, at most.
        assert!(drain(&mut tcp).len() < 100);
        drop(tcp);
        assert!(stream.wait().code().is_some());
    }
}

#[test]
fn files_that_are_none_are_said() {
    let good = Authority::new().sign("node");
    let other = Authority::new().sign("node");
    let file = |text: &str| memfd(text.as_bytes());
    for (files, word) in [
        (vec![file(""), file(&good.key)], "certificate"),
        (vec![file("nonsense"), file(&good.key)], "certificate"),
        (vec![file(&good.chain), file(&good.chain)], "key"),
        (vec![file(&good.chain), file(&other.key)], "certificate and key"),
        (vec![file(&good.chain), file(&good.key), file("nonsense")], "client CA"),
        (vec![memfd(&vec![b'a'; 3 << 20]), file(&good.key)], "too long"),
    ] {
        let mut stream = Stream::idle();
        let mut tcp = connect(&stream, &CONN, &files);
        assert_eq!(tcp.read(&mut [0]).unwrap_or(0), 0);
        assert_eq!(stream.wait().code(), Some(1));
        assert!(stream.log().contains(word), "{word}: {}", stream.log());
    }
}
