//! Every verb against a runtime that runs nothing, over a real socket.

mod fake;
mod forwarding;
mod images;
mod listing;
mod logging;
mod running;
mod streamer;
mod streaming;

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::console::{Console, Notice, Sink};
use fake::{Fake, NOW};

/// Output that a test can look at while it is written.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A place for output that nobody reads.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A verb's run as a person or program sees it.
struct Seen {
    out: Captured,
    err: Captured,
    console: Console,
    interrupt: mpsc::Sender<()>,
    notice: mpsc::Sender<Notice>,
}

impl Seen {
    fn new(fake: &Fake) -> Seen {
        let (out, err) = (Captured::default(), Captured::default());
        let (interrupt, interrupts) = mpsc::channel(4);
        let (notice, notices) = mpsc::channel(4);
        let console = Console {
            out: Sink::new(out.clone()),
            err: Sink::new(err.clone()),
            lively: false,
            now: Some(Timestamp::from_second(NOW).unwrap()),
            pod_logs: fake.dir.path().join("pods"),
            interrupts: Some(interrupts),
            // At its end, as nobody types anything.
            input: Some(File::open("/dev/null").unwrap()),
            notices: Some(notices),
        };
        Seen { out, err, console, interrupt, notice }
    }

    async fn run(&mut self, fake: &Fake, args: &[&str]) -> u8 {
        let endpoint = format!("unix://{}", fake.socket().display());
        let mut line = vec!["criod", args[0]];
        if !args.contains(&"-R") {
            line.extend(["-R", &endpoint]);
        }
        line.extend(&args[1..]);
        let command = clap::Command::new("criod").subcommands(crate::commands());
        let matches = command.try_get_matches_from(line).unwrap();
        crate::execute(&matches, "unix:///nonexistent", &mut self.console).await
    }
}

/// Runs a verb; gives exit code, stdout and stderr.
async fn criod(fake: &Fake, args: &[&str]) -> (u8, String, String) {
    let mut seen = Seen::new(fake);
    let code = seen.run(fake, args).await;
    (code, seen.out.text(), seen.err.text())
}

/// Waits until something is so; for a minute, lest a test hang.
async fn until(mut so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !so() {
        assert!(start.elapsed().as_secs() < 60, "it never came about");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

fn ok(out: &str) -> (u8, String, String) {
    (0, out.into(), String::new())
}

fn error(code: u8, line: &str) -> (u8, String, String) {
    (code, String::new(), format!("error: {line}\n"))
}

#[test]
fn the_command_line_is_consistent() {
    let command = clap::Command::new("criod").subcommands(crate::commands());
    command.clone().debug_assert();
    for wrong in [
        &["criod", "run"][..],
        &["criod", "run", "--rm", "-d", "x"],
        &["criod", "run", "--keep", "--rm", "x"],
        &["criod", "run", "--no-pull", "--pull", "always", "x"],
        &["criod", "run", "--host-network", "-p", "1:1", "x"],
        &["criod", "run", "--memory", "64m", "x"],
        &["criod", "exec", "x"],
        &["criod", "exec", "-i", "--timeout", "1s", "x", "ls"],
        &["criod", "exec", "--timeout", "1s", "--tty", "x", "ls"],
        &["criod", "exec", "--stream-cert", "x", "x", "ls"],
        &["criod", "attach"],
        &["criod", "port-forward", "x"],
        &["criod", "port-forward", "x", "80:0"],
        &["criod", "port-forward", "--address", "localhost:1", "x", "80"],
        &["criod", "stop"],
        &["criod", "logs", "--tail", "-1", "x"],
        &["criod", "ps", "-o", "xml"],
        &["criod", "ps", "--timeout", "soon"],
    ] {
        assert!(command.clone().try_get_matches_from(wrong).is_err(), "{wrong:?}");
    }
}

#[tokio::test]
async fn no_runtime() {
    let fake = Fake::new();
    let (code, out, err) = criod(&fake, &["ps"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    let path = fake.socket();
    let start =
        format!("error: criod is not running, or its socket is elsewhere: {}: ", path.display());
    assert!(err.starts_with(&start), "{err}");
    assert_eq!(err.lines().count(), 1);

    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (code, _, err) = criod(&fake, &["run", "x"]).await;
    assert_eq!((code, err.starts_with(&start)), (125, true), "{err}");

    let (code, _, err) = criod(&fake, &["ps", "-R", "tcp://127.0.0.1:1"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("tcp://127.0.0.1:1 is no endpoint"), "{err}");
}

#[tokio::test]
async fn a_runtime_that_speaks_something_else_or_nothing() {
    let fake = Fake::new();
    let listener = tokio::net::UnixListener::bind(fake.socket()).unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.writable().await.unwrap();
            let _ = stream.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let (code, _, err) = criod(&fake, &["ps"]).await;
    assert_eq!((code, err.lines().count()), (1, 1), "{err}");
    assert!(err.starts_with("error: cannot "), "{err}");
    serving.abort();
}

#[tokio::test]
async fn what_the_runtime_refuses() {
    let fake = Fake::new();
    let _server = fake.serve();
    let status = tonic::Status::internal("disk\nis \u{1b}[31mfull\n");
    fake.state().failing.insert("list_pod_sandbox", status);
    assert_eq!(
        criod(&fake, &["pods"]).await,
        error(1, "cannot list pods: disk; is \u{fffd}[31mfull")
    );
    fake.state().failing.insert("list_pod_sandbox", tonic::Status::unimplemented(""));
    let (_, _, err) = criod(&fake, &["pods"]).await;
    assert!(err.ends_with("; this runtime does not offer it\n"), "{err}");
}

#[tokio::test]
async fn a_runtime_that_hangs() {
    let fake = Fake::new();
    let _server = fake.serve();
    fake.state().hanging.push("list_pod_sandbox");
    assert_eq!(
        criod(&fake, &["pods", "--timeout", "50ms"]).await,
        error(1, "cannot list pods: no answer after 50ms; allow more with --timeout")
    );
}

#[tokio::test]
async fn output_that_nobody_reads_is_no_error() {
    let fake = Fake::new();
    let _server = fake.serve();
    let mut seen = Seen::new(&fake);
    seen.console.out = Sink::new(Closed);
    assert_eq!(seen.run(&fake, &["pods"]).await, 0);
    assert_eq!(seen.err.text(), "");
}
