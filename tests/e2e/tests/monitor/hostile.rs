//! Garbage and crowds on the sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options};
use sys::seqpacket::Conn;

use super::*;

fn connect(c: &Container<'_>) -> UnixStream {
    let stream = UnixStream::connect(c.dir.join("monitor.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn frame(length: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(1u32.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(body);
    bytes
}

/// Reads to the end: the monitor has hung up.
fn hung_up(mut stream: UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn bad_frames_cost_their_connection_and_nothing_else() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "while :; do echo tick; sleep 0.01; done", &Options::default());
    start(&c).await;
    for bytes in [
        frame(u32::MAX, 1, b""),
        frame((4 << 20) + 1, 1, b""),
        frame(3, 1, b"\xff\xff\xff"),
        // A string whose length goes beyond the message, and one that is not UTF-8.
        frame(6, 1, b"\x0a\xff\xff\xff\xff\x0f"),
        frame(4, 1, b"\x0a\x02\xc3\x28"),
    ] {
        let mut stream = connect(&c);
        stream.write_all(&bytes).unwrap();
        assert!(hung_up(stream), "{bytes:?}");
    }
    // Frames of other types are passed over; what is asked of no service is refused.
    let mut stream = connect(&c);
    stream.write_all(&frame(3, 3, b"abc")).unwrap();
    stream.write_all(&frame(5, 9, b"abcde")).unwrap();
    stream.write_all(&frame(0, 1, b"")).unwrap();
    let mut header = [0; 10];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[8], 2);
    // Pseudo-random bytes.
    let mut seed = 1u64;
    for _ in 0..200 {
        let mut stream = connect(&c);
        let bytes: Vec<u8> = (0..64)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        let _ = stream.write_all(&frame(54, 1, &bytes));
    }
    // One that asks without end and never listens.
    let mut deaf = connect(&c);
    deaf.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let ask = frame(29, 1, b"\x0a\x19criod.monitor.v1.Monitor\x00\x12\x00");
    let many = ask.repeat(1000);
    for _ in 0..500 {
        if deaf.write_all(&many).is_err() {
            break;
        }
    }
    drop(deaf);
    assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
    eventually("it shrinks again", || (c.memory().0 < 8192).then_some(()));
    delete(&c).await;
}

#[tokio::test]
async fn a_thousand_connections_do_not_lock_anybody_out() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "echo up; sleep 1000", &Options::default());
    start(&c).await;
    let client = c.client().await;
    let waiting = {
        let client = c.client().await;
        tokio::spawn(async move { client.wait(ctx(), &WaitRequest::new()).await })
    };
    tokio::task::yield_now().await;
    client.state(ctx(), &StateRequest::new()).await.unwrap();
    let mut crowd = Vec::new();
    for n in 0..1000 {
        let mut stream = connect(&c);
        if n % 2 == 0 {
            // Half a message.
            let _ = stream.write_all(&frame(1000, 1, b"abc"));
        }
        crowd.push(stream);
    }
    assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
    assert_eq!(sh(&c, "exit 3", 0).await.exit_code, 3);
    stop(&c, 0).await;
    // One that waits for an answer is not among those who are turned out.
    let end = waiting.await.unwrap().unwrap();
    assert_eq!(code(&end), (137, 9, false));
    drop(crowd);
    delete(&c).await;
}

#[tokio::test]
async fn garbage_at_the_keeper_is_answered_or_cut_off() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let held = keeper.connect().call(&["GET", &c.id], &[]).unwrap().fields;
    for fields in [
        &["NOPE"][..],
        &[""],
        &["SPARE", "id", "name"],
        &["WATCH", "id", "x"],
        &["REAP", "99999999999"],
        &["FORK", "id", "/nonexistent/program"],
        &["GET"],
        &["LIST"],
    ] {
        let error = keeper.connect().call(fields, &[]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::Other, "{fields:?}: {error}");
    }
    // Not a list of strings at all: raw bytes over the same kind of socket.
    for bytes in [&b"PING"[..], b"\xff\xfe\0", &[b'x'; 16 << 10]] {
        let conn = keeper.connect();
        let _ = nix::unistd::write(&conn, bytes);
        assert!(!matches!(conn.recv(), Ok(Some(m)) if m.fields[0] == "OK"), "{bytes:?}");
    }
    // Too many spares for one container.
    let conn = keeper.connect();
    let null = std::fs::File::open("/dev/null").unwrap();
    let fd = std::os::fd::AsFd::as_fd(&null);
    let full = (0..20).find_map(|n| conn.call(&["SPARE", "many", &n.to_string()], &[fd]).err());
    assert_eq!(full.unwrap().kind(), std::io::ErrorKind::Other);
    conn.call(&["DROP", "many"], &[]).unwrap();
    // A crowd that says nothing, and one that never reads its answers.
    let path = keeper.dir.path().join("keeper.sock");
    let crowd: Vec<Conn> =
        (0..3000).filter_map(|_| Conn::connect(&path, Duration::from_secs(2)).ok()).collect();
    for conn in crowd.iter().take(50) {
        for _ in 0..100 {
            if conn.send(&["PING"], &[]).is_err() {
                break;
            }
        }
    }
    keeper.connect().call(&["PING"], &[]).unwrap();
    drop(crowd);
    assert_eq!(keeper.connect().call(&["GET", &c.id], &[]).unwrap().fields, held);
    delete(&c).await;
}
