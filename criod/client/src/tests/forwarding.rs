//! `port-forward`, over real connections.

use std::net::Ipv4Addr;
use std::time::Duration;

use api_cri::v1::{PodSandboxState, PortForwardRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::fake::{Fake, Streamed};
use super::listing::two_pods;
use super::streamer::{LARGE, Script, Streamer};
use super::{Captured, Seen, criod, error, until};

/// A forward that runs; ends when it is dropped.
struct Running {
    ports: Vec<u16>,
    err: Captured,
    task: JoinHandle<u8>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    async fn start(fake: &Fake, args: &[&'static str]) -> Running {
        let mut seen = Seen::new(fake);
        let (out, err) = (seen.out.clone(), seen.err.clone());
        let (fake, args) = (fake.clone(), [&["port-forward", "web"], args].concat());
        let count = args.len() - 2;
        let task = tokio::spawn(async move { seen.run(&fake, &args).await });
        until(|| out.text().lines().count() == count || task.is_finished()).await;
        let port = |line: &str| {
            let rest = line.strip_prefix("Forwarding from 127.0.0.1:")?;
            let (local, _) = rest.split_once(" -> ")?;
            local.parse().ok()
        };
        let ports = out.text().lines().map(|l| port(l).unwrap_or_else(|| panic!("{l}"))).collect();
        Running { ports, err, task }
    }

    async fn connect(&self, nth: usize) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[nth])).await.unwrap()
    }
}

/// Sends, ends, and reads what comes back.
async fn exchange(mut socket: TcpStream, bytes: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = socket.split();
    let send = async {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let ((), n) = tokio::join!(send, read.read_to_end(&mut back));
    n.unwrap();
    back
}

#[tokio::test]
async fn many_connections_at_once() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Forward).await;
    let running = Running::start(&fake, &[":1", "0:4"]).await;
    let asked =
        PortForwardRequest { pod_sandbox_id: "aa11000000000000000000".into(), port: vec![1, 4] };
    assert_eq!(fake.state().streamed.clone(), Some(Streamed::Forward(asked)));
    let mut exchanges = Vec::new();
    for i in 0..100_usize {
        // The others only after this one's end; some are large.
        let bytes = (0..if i % 25 == 0 { 3 << 20 } else { 100 * i }).map(|n| (n + i) as u8);
        let bytes: Vec<u8> = bytes.collect();
        let socket = running.connect(0).await;
        exchanges.push((bytes.clone(), tokio::spawn(exchange(socket, bytes))));
    }
    for (sent, back) in exchanges {
        assert!(back.await.unwrap() == sent);
    }
    for _ in 0..300 {
        assert_eq!(exchange(running.connect(0).await, b"x".to_vec()).await, b"x");
    }
    // The pod ends first; this side may go on until it ends, too.
    let mut socket = running.connect(1).await;
    let mut said = String::new();
    socket.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello");
    socket.write_all(b"more").await.unwrap();
    assert_eq!(running.err.text(), "");
}

#[tokio::test]
async fn one_that_is_not_read_stops_no_other() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Forward).await;
    let running = Running::start(&fake, &[":1"]).await;
    let (mut read, mut write) = running.connect(0).await.into_split();
    let chunk = vec![7; 1 << 20];
    // More than the sockets hold on the way there and back.
    let sending = tokio::spawn(async move {
        for _ in 0..40 {
            write.write_all(&chunk).await.unwrap();
        }
    });
    for _ in 0..10 {
        assert_eq!(exchange(running.connect(0).await, b"quick".to_vec()).await, b"quick");
    }
    assert!(!sending.is_finished());
    let mut back = Vec::new();
    read.read_to_end(&mut back).await.unwrap();
    assert!(back.len() == 40 << 20 && back.iter().all(|b| *b == 7));
    sending.await.unwrap();
}

/// Nothing but what the pod sends goes on here: no other reason to look at the connection again.
#[tokio::test]
async fn a_pod_that_sends_more_than_is_taken_at_once() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Forward).await;
    let running = Running::start(&fake, &[":6"]).await;
    let mut socket = running.connect(0).await;
    let mut buffer = vec![0; 7777];
    let receiving = async {
        let mut all = 0;
        loop {
            let n = socket.read(&mut buffer).await.unwrap();
            if n == 0 {
                return all;
            }
            assert!(buffer[..n].iter().all(|b| *b == 6));
            all += n;
            tokio::task::yield_now().await;
        }
    };
    // Should it come to a stop, the test is to end all the same.
    let all = tokio::time::timeout(Duration::from_secs(60), receiving).await.unwrap();
    assert_eq!(all, LARGE);
}

#[tokio::test]
async fn connections_that_the_pod_does_not_take() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Forward).await;
    let running = Running::start(&fake, &[":2", ":3", ":1"]).await;
    let mut back = Vec::new();
    running.connect(0).await.read_to_end(&mut back).await.unwrap();
    assert_eq!(running.err.text(), "error: cannot forward to port 2: nobody; listens\n");
    let reset = running.connect(1).await.read_to_end(&mut back).await.unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    // Others go on.
    assert_eq!(exchange(running.connect(2).await, b"x".to_vec()).await, b"x");
    assert!(back.is_empty());
}

#[tokio::test]
async fn clients_that_break_off() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Forward).await;
    let running = Running::start(&fake, &[":1"]).await;
    for _ in 0..20 {
        let mut socket = running.connect(0).await;
        socket.write_all(&[1; 100_000]).await.unwrap();
        socket.set_zero_linger().unwrap();
        drop(socket);
    }
    assert_eq!(exchange(running.connect(0).await, b"x".to_vec()).await, b"x");
}

#[tokio::test]
async fn the_connection_is_lost() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Forward).await;
    let mut running = Running::start(&fake, &[":1", ":5"]).await;
    let mut open = running.connect(0).await;
    open.write_all(b"x").await.unwrap();
    assert_eq!(open.read_u8().await.unwrap(), b'x');
    let _last = running.connect(1).await;
    assert_eq!((&mut running.task).await.unwrap(), 1);
    let err = running.err.text();
    assert!(err.starts_with("error: the connection to the runtime's streaming server was lost"));
    assert!(open.read_u8().await.is_err());
}

#[tokio::test]
async fn ports_and_pods_that_cannot_be_had() {
    let fake = two_pods();
    let _server = fake.serve();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (code, out, err) =
        criod(&fake, &["port-forward", "web", ":1", &format!("{port}:80")]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with(&format!("error: cannot listen on 127.0.0.1:{port}: ")), "{err}");
    assert_eq!(fake.state().streamed, None);

    fake.state().failing.insert("port_forward", tonic::Status::unimplemented("not yet"));
    let line = "cannot forward to the pod web: not yet; this runtime does not offer it";
    assert_eq!(criod(&fake, &["port-forward", "web", ":1"]).await, error(1, line));
    fake.state().pods[0].state = PodSandboxState::SandboxNotready as i32;
    let line = "the pod web is stopped";
    assert_eq!(criod(&fake, &["port-forward", "web", ":1"]).await, error(1, line));
    let line = "there is no pod \"nope\"";
    assert_eq!(criod(&fake, &["port-forward", "nope", ":1"]).await, error(1, line));
}

#[tokio::test]
async fn several_addresses() {
    let fake = two_pods();
    let _server = fake.serve();
    let _streamer = Streamer::start(&fake, Script::Forward).await;
    let mut seen = Seen::new(&fake);
    let out = seen.out.clone();
    let task = tokio::spawn(async move {
        let args = ["port-forward", "--address", "127.0.0.1,127.0.0.2", "web", ":1", ":4"];
        seen.run(&fake, &args).await
    });
    until(|| out.text().lines().count() == 4).await;
    let addresses: Vec<_> = out
        .text()
        .lines()
        .map(|l| l.split(' ').nth(2).unwrap().parse::<std::net::SocketAddr>().unwrap())
        .collect();
    assert_eq!(addresses[1].ip(), Ipv4Addr::new(127, 0, 0, 2));
    for address in &addresses[..2] {
        let socket = TcpStream::connect(address).await.unwrap();
        assert_eq!(exchange(socket, b"x".to_vec()).await, b"x");
    }
    task.abort();
    let _ = task.await;
}
