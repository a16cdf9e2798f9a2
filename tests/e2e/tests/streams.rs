//! Streams, seen from the node: what is left of them whatever dies when. What their clients see is in
//! the conformance specs.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use api_cri::v1::ExecRequest;
use e2e::daemon::{Criod, Options, block, container, processes};
use e2e::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The URL for `true` in a container.
fn url(criod: &Criod, id: &str) -> String {
    let request = ExecRequest {
        container_id: id.to_owned(),
        cmd: vec!["true".into()],
        stdout: true,
        ..ExecRequest::default()
    };
    block(async { criod.runtime().exec(request).await }).unwrap().into_inner().url
}

fn connect(criod: &Criod, url: &str) -> TcpStream {
    let address = url.split('/').nth(2).unwrap().to_owned();
    let socket = criod.net.run(|| TcpStream::connect(address)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

/// Shows a token without asking for an upgrade; returns the first line of the answer.
fn answer(criod: &Criod, url: &str) -> String {
    let mut socket = connect(criod, url);
    let path = format!("/{}", url.splitn(4, '/').nth(3).unwrap());
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = socket.read_to_string(&mut text);
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn no_stream_is_left_whenever_criod_dies() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("streams");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    for round in 0..24u64 {
        // Connections make criod fork streams; it dies while it does.
        let url = url(&criod, &id);
        let open: Vec<TcpStream> = (0..3).map(|_| connect(&criod, &url)).collect();
        std::thread::sleep(Duration::from_micros(round * 400));
        criod.kill9();
        drop(open);
        criod.launch();
        criod.ready();
    }
    // Two are kept ready: the leak check of the end counts them.
    criod.finish();
}

#[test]
fn a_keeper_that_was_stopped_for_long_makes_room_and_forks_nothing_twice() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("stopped");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    let first = criod.keeper_pid().unwrap();
    kill(Pid::from_raw(first), Signal::SIGSTOP).unwrap();
    // These need streams, and so the keeper; their clients wait no longer than it takes to replace it.
    let urls: Vec<String> = (0..4).map(|_| url(&criod, &id)).collect();
    let answers: Vec<String> = std::thread::scope(|scope| {
        let asked: Vec<_> = urls.iter().map(|url| scope.spawn(|| answer(&criod, url))).collect();
        asked.into_iter().map(|a| a.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|a| a.starts_with("HTTP/1.1 4")), "{answers:?}");
    assert_ne!(criod.keeper_pid(), Some(first), "another one stands in for it");
    kill(Pid::from_raw(first), Signal::SIGCONT).unwrap();
    let dir = criod.dir.to_string_lossy().into_owned();
    let of = |name: &str| processes(&dir).into_iter().filter(|(_, l)| l.contains(name)).count();
    eventually("the first one ends", || (of("/criod-keeper") == 1).then_some(()));
    eventually("no twin is left", || (of("/criod-stream") <= 2).then_some(()));
    assert_eq!(criod.exec(&id, &["echo", "here"]).unwrap(), (0, "here\n".to_owned()));
    criod.finish();
}
