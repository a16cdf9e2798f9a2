//! Frames of every kind, cut anywhere, and hostile ones.

use super::*;
use proptest::prelude::*;

fn server() -> Connection {
    Connection::new(Role::Server)
}

fn client() -> Connection {
    Connection::new(Role::Client { seed: 7 })
}

/// A masked frame.
fn frame(first: u8, length: &[u8], payload: &[u8]) -> Vec<u8> {
    let key = [1, 2, 3, 4];
    let mut payload = payload.to_vec();
    unmask(&mut payload, key);
    [&[first][..], length, &key, &payload].concat()
}

/// Messages, and the code of a close frame.
type Found = (Vec<Vec<u8>>, Option<Option<u16>>);

/// Every message and closing code that `connection` finds in `bytes` when they come in pieces of
/// `cut`.
fn messages(connection: &mut Connection, bytes: &[u8], cut: usize) -> Result<Found, Error> {
    let (mut found, mut closed) = (Vec::new(), None);
    let mut open = false;
    for piece in bytes.chunks(cut.max(1)) {
        assert_eq!(connection.receive(piece), piece.len());
        while let Some(event) = connection.poll()? {
            match event {
                Event::Data { range, first, last } => {
                    assert_eq!(first, !open, "messages begin once");
                    if first {
                        found.push(Vec::new());
                    }
                    found.last_mut().unwrap().extend_from_slice(connection.bytes(range));
                    open = !last;
                }
                Event::Closed { code } => closed = Some(code),
            }
        }
    }
    Ok((found, closed))
}

#[test]
fn messages_of_every_size_go_both_ways() {
    let sizes = [0, 1, 125, 126, 127, 65535, 65536, 100_000];
    let (mut a, mut b) = (client(), server());
    let sent: Vec<Vec<u8>> = sizes.iter().map(|n| (0..*n).map(|i| i as u8).collect()).collect();
    for message in &sent {
        a.send(Kind::Binary, &[message]);
    }
    for message in &sent {
        b.send(Kind::Text, &[&message[..message.len() / 2], &message[message.len() / 2..]]);
    }
    let (to_b, to_a) = (a.output().to_vec(), b.output().to_vec());
    assert_eq!(messages(&mut b, &to_b, 60_000).unwrap().0, sent);
    assert_eq!(messages(&mut a, &to_a, 1000).unwrap().0, sent);
}

#[test]
fn a_frame_that_is_filled_in_place_has_the_shortest_head() {
    for n in [0usize, 1, 124, 125, 126, 65534, 65535, 100_000] {
        for before in [&b""[..], b"before"] {
            let mut b = server();
            if !before.is_empty() {
                b.send(Kind::Binary, &[before]);
            }
            let space = b.reserve(1, FRAME_DATA);
            space[..n].fill(b'x');
            b.commit(Kind::Binary, b"\x01", n);
            b.send(Kind::Binary, &[b"after"]);
            let bytes = b.output().to_vec();
            let (found, _) = messages(&mut client(), &bytes, 50_000).unwrap();
            let mut expected = vec![[&b"\x01"[..], &vec![b'x'; n]].concat(), b"after".to_vec()];
            if !before.is_empty() {
                expected.insert(0, before.to_vec());
            }
            assert!(found == expected, "{n}");
        }
    }
}

#[test]
fn fragments_are_one_message_and_control_frames_may_lie_between_them() {
    let bytes = [
        frame(0x02, &[0x83], b"abc"),
        frame(0x89, &[0x84], b"ping"),
        frame(0x00, &[0x80], b""),
        frame(0x80, &[0x82], b"de"),
        frame(0x8a, &[0x80], b""),
        frame(0x82, &[0x80], b""),
        frame(0x88, &[0x82], &1001u16.to_be_bytes()),
        b"thrown away".to_vec(),
    ]
    .concat();
    let mut b = server();
    let (found, closed) = messages(&mut b, &bytes, 1).unwrap();
    assert_eq!(found, [b"abcde".to_vec(), b"".to_vec()]);
    assert_eq!(closed, Some(Some(1001)));
    assert!(b.closed());
    assert_eq!(b.output(), b"\x8a\x04ping\x88\x02\x03\xe9");
    b.send(Kind::Binary, &[b"late"]);
    assert_eq!((b.output().len(), b.room()), (10, 0));
}

#[test]
fn codes_that_nobody_may_send_are_not_sent_back() {
    for (code, answer) in [(1000, 1000), (4999, 4999), (1005, 1002), (0, 1002), (5000, 1002)] {
        let mut b = server();
        let close = frame(0x88, &[0x82], &u16::to_be_bytes(code));
        assert_eq!(messages(&mut b, &close, 99).unwrap().1, Some(Some(code)));
        assert_eq!(b.output()[2..], u16::to_be_bytes(answer));
    }
    let mut b = server();
    assert_eq!(messages(&mut b, &frame(0x88, &[0x80], b""), 99).unwrap().1, Some(None));
    assert_eq!(b.output(), b"\x88\x02\x03\xe8");
}

#[test]
fn what_the_specification_forbids_ends_the_connection() {
    let long = frame(0x89, &[0xfe, 0, 126], &[0; 126]);
    for (bytes, why) in [
        (vec![0x82, 0x01, b'x'], "not masked"),
        (frame(0xc2, &[0x80], b""), "a reserved bit"),
        (frame(0x83, &[0x80], b""), "an unknown frame"),
        (frame(0x8b, &[0x80], b""), "an unknown control frame"),
        (frame(0x80, &[0x80], b""), "a continuation of nothing"),
        ([frame(0x02, &[0x80], b""), frame(0x82, &[0x80], b"")].concat(), "two at once"),
        (frame(0x09, &[0x80], b""), "a cut ping"),
        (long, "a long ping"),
        (frame(0x82, &[0xfe, 0, 5], b"abcde"), "a long length"),
        (frame(0x82, &[0xff, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 256]), "a longer length"),
        (frame(0x82, &[0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], b""), "a length of 2^63"),
        (frame(0x88, &[0x81], b"x"), "a cut code"),
    ] {
        let mut b = server();
        assert!(messages(&mut b, &bytes, 4).is_err(), "{why}");
        assert_eq!(b.output(), b"\x88\x02\x03\xea", "{why}");
        assert!(b.space().is_empty() && b.poll() == Ok(None), "{why}");
    }
    let mut a = client();
    assert!(messages(&mut a, &frame(0x82, &[0x81], b"x"), 99).is_err(), "masked by a server");
}

#[test]
fn who_does_not_read_its_pongs_is_not_read_from() {
    let mut b = server();
    let ping = frame(0x89, &[0xfd], &[0; 125]);
    let mut taken = 0;
    for _ in 0..100_000 {
        taken += b.receive(&ping);
        assert_eq!(b.poll(), Ok(None));
        assert!(b.output().len() <= BACKLOG_LIMIT + 200);
        if b.space().is_empty() {
            break;
        }
    }
    assert!(b.space().is_empty() && taken < 1 << 20);
    b.sent(usize::MAX);
    assert!(!b.space().is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        cut in 1usize..50,
        masked in any::<bool>(),
    ) {
        let mut connection = if masked { server() } else { client() };
        let _ = messages(&mut connection, &bytes, cut);
        prop_assert!(connection.output().len() <= BACKLOG_LIMIT + 200);
    }

    #[test]
    fn messages_survive_being_cut_anywhere(
        sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
        cut in 1usize..700,
    ) {
        let mut a = client();
        for message in &sent {
            a.send(Kind::Binary, &[message]);
        }
        let bytes = a.output().to_vec();
        prop_assert_eq!(messages(&mut server(), &bytes, cut).unwrap().0, sent);
    }

    #[test]
    fn unmasking_is_what_the_specification_says(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        key in any::<[u8; 4]>(),
        cut in 0usize..200,
    ) {
        let plain: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| b ^ key[i % 4]).collect();
        let mut masked = bytes;
        let cut = cut.min(masked.len());
        unmask(&mut masked[..cut], key);
        unmask(&mut masked[cut..], turned(key, cut));
        prop_assert_eq!(masked, plain);
    }
}
