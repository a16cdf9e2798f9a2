//! `exec` and `attach`, over real connections and a real terminal.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};

use api_cri::v1::{AttachRequest, ExecRequest};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use rcgen::{CertifiedIssuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use stream::http::Refusal;
use stream::remote::Outcome;

use super::fake::{Fake, Streamed};
use super::listing::two_pods;
use super::streamer::{Script, Streamer};
use super::{Closed, Seen, criod, error, until};
use crate::console::{Notice, Sink};

const WEB: &str = "bb11000000000000000000";

fn prints(stdout: &str, stderr: &str, outcome: Outcome) -> Script {
    Script::Print { stdout: stdout.into(), stderr: stderr.into(), outcome }
}

fn fails(text: &str) -> Script {
    prints("", "", Outcome::Failure(text.into()))
}

#[tokio::test]
async fn output_and_exit_code() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, prints("out\n", "err\n", Outcome::Exit(7))).await;
    let seen = criod(&fake, &["exec", "web", "--", "sh", "-c", "exit"]).await;
    assert_eq!(seen, (7, "out\n".into(), "err\n".into()));
    let asked = ExecRequest {
        container_id: WEB.into(),
        cmd: ["sh", "-c", "exit"].map(String::from).into(),
        tty: false,
        stdin: false,
        stdout: true,
        stderr: true,
    };
    assert_eq!(fake.state().streamed.take(), Some(Streamed::Exec(asked.clone())));

    let _streamer = Streamer::start(&fake, prints("", "", Outcome::Success)).await;
    assert_eq!(criod(&fake, &["exec", "-it", "web", "ls", "-t"]).await.0, 0);
    let cmd = ["ls", "-t"].map(String::from).into();
    let asked = ExecRequest { cmd, tty: true, stdin: true, stderr: false, ..asked };
    assert_eq!(fake.state().streamed.take(), Some(Streamed::Exec(asked)));
}

#[tokio::test]
async fn a_container_that_does_not_run() {
    let fake = two_pods();
    let _server = fake.serve();
    let line = "the container setup does not run: it is exited";
    assert_eq!(criod(&fake, &["exec", "setup", "ls"]).await, error(125, line));
    assert_eq!(criod(&fake, &["attach", "setup"]).await, error(125, line));
    assert_eq!(criod(&fake, &["exec", "--timeout", "1s", "setup", "ls"]).await, error(125, line));
    assert_eq!(fake.state().streamed, None);
    let nothing = error(125, "there is no container \"zz\"");
    assert_eq!(criod(&fake, &["exec", "zz", "ls"]).await, nothing);
    assert_eq!(criod(&fake, &["attach", "zz"]).await, nothing);
}

#[tokio::test]
async fn commands_that_fail() {
    let fake = two_pods();
    let _server = fake.serve();
    let words = "OCI runtime exec failed: exec: \"nope\": executable file not found in $PATH";
    let _streamer = Streamer::start(&fake, fails(words)).await;
    assert_eq!(
        criod(&fake, &["exec", "web", "nope"]).await,
        error(127, "there is no command \"nope\" in the container web")
    );
    let _streamer = Streamer::start(&fake, fails("the container\nis gone\u{7}")).await;
    assert_eq!(
        criod(&fake, &["exec", "web", "ls"]).await,
        error(125, "cannot run a command in the container web: the container; is gone\u{fffd}")
    );
    fake.state().failing.insert("exec", tonic::Status::unknown("too many"));
    assert_eq!(
        criod(&fake, &["exec", "web", "ls"]).await,
        error(125, "cannot run a command in the container web: too many")
    );
}

#[tokio::test]
async fn connections_that_come_to_nothing() {
    let fake = two_pods();
    let _server = fake.serve();
    let exec = ["exec", "web", "ls"];
    let lost = "the connection to the runtime's streaming server was lost";

    let _streamer = Streamer::start(&fake, Script::Vanish).await;
    let (code, out, err) = criod(&fake, &exec).await;
    assert_eq!((code, out.as_str()), (125, "half"));
    assert!(err.starts_with(&format!("error: {lost}")), "{err}");

    let _streamer = Streamer::start(&fake, Script::Garbage).await;
    let (code, out, err) = criod(&fake, &exec).await;
    assert_eq!((code, out.as_str()), (125, "half"));
    assert!(err.starts_with("error: cannot go on with the stream: the peer broke SPDY: "), "{err}");

    let refusal = Refusal::new(404, "no such\ntoken");
    let _streamer = Streamer::start(&fake, Script::Refuse(refusal)).await;
    let line = "the runtime's streaming server answered with status 404: no such; token";
    assert_eq!(criod(&fake, &exec).await, error(125, line));

    let gone = Streamer::start(&fake, Script::Echo).await.address;
    let (code, _, err) = criod(&fake, &exec).await;
    assert_eq!(code, 125);
    let start =
        format!("error: cannot connect to the runtime's streaming server at {gone}: Connection");
    assert!(err.starts_with(&start), "{err}");

    fake.state().url = "unix:///x".into();
    let line = "the runtime gave a stream's URL that is none: \"unix:///x\"";
    assert_eq!(criod(&fake, &exec).await, error(125, line));
}

#[tokio::test]
async fn answers_that_are_none() {
    let fake = two_pods();
    let _server = fake.serve();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    fake.state().url = format!("http://{}/x", listener.local_addr().unwrap());
    let answers = [
        ("SSH-2.0-x\r\n\r\n".to_owned(), "cannot understand the answer"),
        (String::new(), "the connection to the runtime's streaming server was lost"),
        (format!("HTTP/1.1 101 x\r\nx: {}", "x".repeat(20_000)), "the head is longer than"),
        ("HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n".to_owned(), "upgraded to something else"),
    ];
    let serving = tokio::spawn(async move {
        for (answer, _) in answers {
            let (mut io, _) = listener.accept().await.unwrap();
            let (mut read, mut write) = io.split();
            // All of it, lest the close be a reset.
            let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
            while !request.ends_with(b"\r\n\r\n") {
                let n = tokio::io::AsyncReadExt::read(&mut read, &mut buffer).await.unwrap();
                request.extend_from_slice(&buffer[..n]);
            }
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, answer.as_bytes()).await;
        }
    });
    for said in [
        "cannot understand the answer",
        "the connection to the runtime's streaming server was lost",
        "the head is longer than",
        "upgraded to something else",
    ] {
        let (code, _, err) = criod(&fake, &["exec", "web", "ls"]).await;
        assert_eq!((code, err.lines().count()), (125, 1), "{err}");
        assert!(err.contains(said), "{err}");
    }
    serving.await.unwrap();
}

/// Bytes of which each place is another.
fn bytes(n: usize) -> Vec<u8> {
    (0..n as u32 / 4).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect()
}

/// A file of these bytes, to be read from its start.
fn file(fake: &Fake, bytes: &[u8]) -> File {
    let path = fake.dir.path().join("input");
    std::fs::write(&path, bytes).unwrap();
    File::open(path).unwrap()
}

#[tokio::test]
async fn input_comes_back_byte_for_byte() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Echo).await;
    let sent = bytes(12 << 20);
    let mut seen = Seen::new(&fake);
    seen.console.input = Some(file(&fake, &sent));
    // That the input has ended is what ends it.
    assert_eq!(seen.run(&fake, &["exec", "-i", "web", "cat"]).await, 3);
    assert!(seen.out.bytes() == sent);
    assert_eq!(seen.err.text(), "");
}

/// Output that is taken only once it is allowed to.
#[derive(Clone, Default)]
struct Slow(Arc<Gate>);

#[derive(Default)]
struct Gate {
    taken: Mutex<(bool, Vec<u8>)>,
    allowed: Condvar,
}

impl Slow {
    fn allow(&self) {
        self.0.taken.lock().unwrap().0 = true;
        self.0.allowed.notify_all();
    }
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.0.taken.lock().unwrap();
        let mut taken = self.0.allowed.wait_while(taken, |(allowed, _)| !*allowed).unwrap();
        taken.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn output_that_is_not_taken_stops_nothing_else() {
    let fake = two_pods();
    let _server = fake.serve();
    let big = bytes(8 << 20);
    let script =
        Script::Print { stdout: big.clone(), stderr: "err".into(), outcome: Outcome::Exit(1) };
    let _streamer = Streamer::start(&fake, script).await;
    let mut seen = Seen::new(&fake);
    let (slow, err) = (Slow::default(), seen.err.clone());
    seen.console.out = Sink::new(slow.clone());
    let running = {
        let fake = fake.clone();
        tokio::spawn(async move { seen.run(&fake, &["exec", "web", "cat"]).await })
    };
    until(|| err.text() == "err").await;
    slow.allow();
    assert_eq!(running.await.unwrap(), 1);
    assert!(slow.0.taken.lock().unwrap().1 == big);
}

#[tokio::test]
async fn output_that_nobody_reads_is_no_error() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, prints("out", "", Outcome::Exit(1))).await;
    let mut seen = Seen::new(&fake);
    seen.console.out = Sink::new(Closed);
    assert_eq!(seen.run(&fake, &["exec", "web", "cat"]).await, 0);
    assert_eq!(seen.err.text(), "");
    let _streamer = Streamer::start(&fake, prints("out", "err", Outcome::Exit(1))).await;
    let mut seen = Seen::new(&fake);
    seen.console.err = Sink::new(Closed);
    assert_eq!(seen.run(&fake, &["exec", "web", "cat"]).await, 1);
    assert_eq!(seen.out.text(), "out");
}

/// What a person has before them: the terminal's other side.
struct Person {
    keys: File,
    terminal: File,
}

impl Person {
    fn new(seen: &mut Seen) -> Person {
        let pty = openpty(None, None).unwrap();
        let terminal = File::from(pty.slave);
        sys::tty::resize(&terminal, sys::tty::Size { rows: 24, columns: 80 }).unwrap();
        seen.console.input = Some(terminal.try_clone().unwrap());
        Person { keys: File::from(pty.master), terminal }
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        let cooked = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
        !tcgetattr(&self.terminal).unwrap().local_flags.intersects(cooked)
    }
}

#[tokio::test]
async fn keys_go_through_as_they_are_and_the_terminal_is_as_before() {
    let fake = two_pods();
    let _server = fake.serve();
    for (script, end, code) in [
        (Script::Echo, None, 125),
        (Script::Echo, Some(Notice::End(15)), 143),
        (Script::Echo, Some(Notice::End(1)), 129),
    ] {
        let streamer = Streamer::start(&fake, script).await;
        let mut seen = Seen::new(&fake);
        let mut person = Person::new(&mut seen);
        let before = tcgetattr(&person.terminal).unwrap();
        let (out, err, notice) = (seen.out.clone(), seen.err.clone(), seen.notice.clone());
        let running = {
            let fake = fake.clone();
            tokio::spawn(async move { seen.run(&fake, &["exec", "-it", "web", "sh"]).await })
        };
        until(|| person.is_raw()).await;
        person.types("a\r\u{3}\u{4}b");
        until(|| out.text() == "a\r\u{3}\u{4}b").await;
        match end {
            Some(end) => notice.send(end).await.unwrap(),
            None => drop(streamer),
        }
        assert_eq!(running.await.unwrap(), code);
        assert_eq!(tcgetattr(&person.terminal).unwrap(), before);
        assert_eq!(err.text().is_empty(), code != 125);
    }
}

#[tokio::test]
async fn the_size_of_the_terminal() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Sizes).await;
    let mut seen = Seen::new(&fake);
    let person = Person::new(&mut seen);
    let (out, notice) = (seen.out.clone(), seen.notice.clone());
    let running = {
        let fake = fake.clone();
        tokio::spawn(async move { seen.run(&fake, &["attach", "-it", "web"]).await })
    };
    until(|| out.text() == "80x24\r\n").await;
    let size = sys::tty::Size { rows: 50, columns: 132 };
    sys::tty::resize(&person.terminal, size).unwrap();
    notice.send(Notice::Resized).await.unwrap();
    until(|| out.text() == "80x24\r\n132x50\r\n").await;
    // Whoever had the terminal has gone.
    let Person { keys, terminal } = person;
    drop((keys, terminal));
    assert_eq!(running.await.unwrap(), 0);
}

#[tokio::test]
async fn a_terminal_for_a_command_whose_input_is_none() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Echo).await;
    let mut seen = Seen::new(&fake);
    seen.console.input = Some(file(&fake, b"echo\n"));
    assert_eq!(seen.run(&fake, &["exec", "-it", "web", "sh"]).await, 3);
    assert_eq!(seen.out.text(), "echo\n");
}

#[tokio::test]
async fn attaching() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, prints("out", "err", Outcome::Success)).await;
    fake.exit(WEB, 0);
    fake.state().containers[0].0.state = 1;
    let seen = criod(&fake, &["attach", "web"]).await;
    assert_eq!(seen, (0, "out".into(), "err".into()));
    let asked = AttachRequest {
        container_id: WEB.into(),
        stdin: false,
        tty: false,
        stdout: true,
        stderr: true,
    };
    assert_eq!(fake.state().streamed.take(), Some(Streamed::Attach(asked)));

    // The container's exit code, which the stream does not tell.
    fake.state().containers[0].1.exit_code = 42;
    assert_eq!(criod(&fake, &["attach", "-i", "web"]).await.0, 42);
    let _streamer = Streamer::start(&fake, fails("too slow")).await;
    let line = "cannot attach to the container web: too slow";
    assert_eq!(criod(&fake, &["attach", "web"]).await, error(125, line));
}

/// Files of an authority, of the server it vouches for, and of a client.
struct Papers {
    dir: tempfile::TempDir,
    server: ServerConfig,
}

fn papers(with_clients: bool) -> Papers {
    let dir = tempfile::tempdir().unwrap();
    let mut of_authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    of_authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(of_authority, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let cert = params.signed_by(&key, &authority).unwrap();
        std::fs::write(dir.path().join(format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        (CertificateDer::from(cert), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    };
    let (cert, key) = issue("server");
    issue("client");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match with_clients {
        true => builder.with_client_cert_verifier(verifier.build().unwrap()),
        false => builder.with_no_client_auth(),
    };
    Papers { dir, server: builder.with_single_cert(vec![cert], key).unwrap() }
}

#[tokio::test]
async fn encrypted() {
    let fake = two_pods();
    let _server = fake.serve();
    let Papers { dir, server } = papers(false);
    let _streamer = Streamer::encrypted(&fake, Script::Echo, server).await;
    let ca = dir.path().join("ca.pem");
    let ca = ca.to_str().unwrap();
    let sent = bytes(1 << 20);
    let mut seen = Seen::new(&fake);
    seen.console.input = Some(file(&fake, &sent));
    assert_eq!(seen.run(&fake, &["exec", "-i", "--stream-ca", ca, "web", "cat"]).await, 3);
    assert!(seen.out.bytes() == sent);

    let (code, _, err) = criod(&fake, &["exec", "web", "cat"]).await;
    assert_eq!(code, 125);
    assert!(err.contains("invalid peer certificate: UnknownIssuer"), "{err}");

    let none = dir.path().join("none.pem");
    std::fs::write(&none, "nothing\n").unwrap();
    let none = none.to_str().unwrap();
    let line = format!("there is no certificate in {none}");
    let args = ["exec", "--stream-ca", none, "web", "cat"];
    assert_eq!(criod(&fake, &args).await, error(125, &line));
    let args = ["exec", "--stream-ca", "/nonexistent", "web", "cat"];
    let (_, _, err) = criod(&fake, &args).await;
    assert!(err.starts_with("error: cannot use the certificates or the key in /nonexistent: "));
}

#[tokio::test]
async fn encrypted_with_a_client_certificate() {
    let fake = two_pods();
    let _server = fake.serve();
    let Papers { dir, server } = papers(true);
    let _streamer = Streamer::encrypted(&fake, prints("out", "", Outcome::Exit(9)), server).await;
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let args =
        ["exec", "--stream-ca", &ca, "--stream-cert", &cert, "--stream-key", &key, "web", "ls"];
    assert_eq!(criod(&fake, &args).await, (9, "out".into(), String::new()));
    let (code, _, err) = criod(&fake, &["exec", "--stream-ca", &ca, "web", "ls"]).await;
    assert_eq!(code, 125, "{err}");
}
