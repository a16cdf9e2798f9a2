//! Two connections against each other, frames cut anywhere, windows, and hostile peers.

use super::send::data_head;
use super::*;
use crate::spdy::{FRAME_DATA, OUTPUT_LIMIT};
use proptest::prelude::*;

const LIMITS: Limits =
    Limits { streams: 10, stream_window: INITIAL_WINDOW, session_window: INITIAL_WINDOW };

fn server() -> Connection {
    Connection::new(true, LIMITS)
}

fn client() -> Connection {
    Connection::new(false, LIMITS)
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[0x80, 3, 0, kind as u8, flags, a, b, c], payload].concat()
}

fn pair(kind: u16, a: u32, b: u32) -> Vec<u8> {
    control(kind, 0, &[a.to_be_bytes(), b.to_be_bytes()].concat())
}

fn data(stream: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    [&data_head(stream, bytes.len(), flags), bytes].concat()
}

/// SYN_STREAMs with empty headers, each with the numbers given.
fn opens(streams: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let mut packer = Packer::new();
    let mut bytes = Vec::new();
    for stream in streams {
        let block = packer.pack(&Headers::default()).unwrap();
        let payload = [&stream.to_be_bytes(), &[0; 6][..], &block].concat();
        bytes.extend(control(SYN_STREAM, 0, &payload));
    }
    bytes
}

/// An event with its bytes.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Data(u32, Vec<u8>),
    Other(Event),
}

/// What `connection` finds in `bytes` when they come in pieces of `cut`; pieces of data that follow
/// each other are joined, everything is consumed.
fn feed(connection: &mut Connection, bytes: &[u8], cut: usize) -> Result<Vec<Seen>, Error> {
    let mut seen = Vec::new();
    for piece in bytes.chunks(cut) {
        assert_eq!(connection.receive(piece), piece.len());
        while let Some(event) = connection.poll()? {
            match event {
                Event::Data { stream, range } => {
                    let bytes = connection.bytes(range).to_vec();
                    connection.credit(stream, bytes.len());
                    match seen.last_mut() {
                        Some(Seen::Data(last, all)) if *last == stream => all.extend(bytes),
                        _ => seen.push(Seen::Data(stream, bytes)),
                    }
                }
                event => seen.push(Seen::Other(event)),
            }
        }
    }
    Ok(seen)
}

/// Moves all output of `from` to `to`.
fn pass(from: &mut Connection, to: &mut Connection, cut: usize) -> Vec<Seen> {
    let bytes = from.output().to_vec();
    from.sent(bytes.len());
    feed(to, &bytes, cut).unwrap()
}

/// What a frame names, its payload cut off: (type or 0 for data, stream or first number, length).
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, usize)> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        found.push(if head[0] & 0x80 != 0 {
            let first = rest[..4].try_into().unwrap();
            (head[3], u32::from_be_bytes(first), length)
        } else {
            (0, u32::from_be_bytes(head[..4].try_into().unwrap()), length)
        });
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
    found
}

#[test]
fn a_stream_lives_and_is_forgotten() {
    for cut in [1, 7, 100_000] {
        let (mut a, mut b) = (client(), server());
        let headers = Headers::default().with("streamType", "data");
        let stream = a.open(&headers).unwrap();
        assert_eq!(a.room(stream), 0, "not accepted yet");
        assert_eq!(pass(&mut a, &mut b, cut), [Seen::Other(Event::Opened { stream, headers })]);
        b.reply(stream);
        b.reply(stream);
        assert_eq!(pass(&mut b, &mut a, cut), [Seen::Other(Event::Replied { stream })]);
        assert_eq!(a.send(stream, b"to b"), 4);
        a.close(stream);
        assert_eq!(a.send(stream, b"late"), 0);
        assert_eq!(
            pass(&mut a, &mut b, cut),
            [Seen::Data(stream, b"to b".to_vec()), Seen::Other(Event::Finished { stream })]
        );
        b.send_space(stream)[..4].copy_from_slice(b"to a");
        b.send_filled(stream, 4);
        b.close(stream);
        assert!(!b.contains(stream) && a.contains(stream));
        assert_eq!(
            pass(&mut b, &mut a, cut),
            [Seen::Data(stream, b"to a".to_vec()), Seen::Other(Event::Finished { stream })]
        );
        assert_eq!((a.streams(), b.streams(), b.theirs), (0, 0, 0));
    }
}

#[test]
fn the_server_is_silent_until_it_has_received_a_byte() {
    let mut b = server();
    assert!(b.output().is_empty());
    b.filled(0);
    assert!(b.output().is_empty());
    b.receive(&[0x80]);
    assert_eq!(frames(b.output())[0].0, SETTINGS as u8);
}

#[test]
fn a_peer_without_windows_is_sent_to_without_them() {
    // What moby/spdystream does: opens, and never speaks of windows.
    let mut b = server();
    feed(&mut b, &opens([1]), 999).unwrap();
    b.reply(1);
    b.sent(usize::MAX);
    let mut sent = 0;
    for _ in 0..100 {
        sent += b.send(1, &[0; FRAME_DATA]);
        b.sent(usize::MAX);
    }
    assert_eq!(sent, 100 * FRAME_DATA);
}

#[test]
fn output_that_is_not_taken_away_is_bounded() {
    let mut b = server();
    feed(&mut b, &opens([1]), 999).unwrap();
    b.reply(1);
    let mut sent = 0;
    while let n @ 1.. = b.send(1, &[0; FRAME_DATA]) {
        sent += n;
    }
    assert!(sent <= OUTPUT_LIMIT && b.output().len() <= OUTPUT_LIMIT + 8);
}

#[test]
fn a_peer_with_windows_is_never_sent_more_than_them() {
    let mut b = server();
    let mut bytes =
        control(SETTINGS, 0, &[&[0, 0, 0, 1, 0, 0, 0, 7][..], &10u32.to_be_bytes()].concat());
    bytes.extend(opens([1, 3]));
    feed(&mut b, &bytes, 999).unwrap();
    b.reply(1);
    b.reply(3);
    assert_eq!((b.send(1, &[0; 100]), b.send(1, &[0; 100])), (10, 0));
    feed(&mut b, &pair(WINDOW_UPDATE, 1, 5), 999).unwrap();
    assert_eq!(b.send_space(1).len(), 5);
    b.send_filled(1, 6);
    b.send_space(1);
    b.send_filled(1, 5);
    assert_eq!((b.room(1), b.room(3)), (0, 10));
    // A smaller initial window takes from those that are open, below 0, too.
    let smaller =
        control(SETTINGS, 0, &[&[0, 0, 0, 1, 0, 0, 0, 7][..], &4u32.to_be_bytes()].concat());
    feed(&mut b, &smaller, 999).unwrap();
    assert_eq!((b.room(1), b.room(3)), (0, 4));
    feed(&mut b, &pair(WINDOW_UPDATE, 1, 6), 999).unwrap();
    assert_eq!(b.room(1), 0);
    feed(&mut b, &pair(WINDOW_UPDATE, 1, 1), 999).unwrap();
    assert_eq!(b.room(1), 1);
    // The session's window binds once it is spoken of: 15 of 64 KiB are used.
    feed(&mut b, &pair(WINDOW_UPDATE, 1, 1 << 20), 999).unwrap();
    feed(&mut b, &pair(WINDOW_UPDATE, 0, 2), 999).unwrap();
    assert_eq!(b.send(1, &[0; FRAME_DATA]), INITIAL_WINDOW as usize - 15 + 2);
    assert_eq!((b.room(1), b.room(3)), (0, 0));
}

#[test]
fn windows_that_grow_too_large_end_the_connection() {
    for stream in [0, 1] {
        let mut b = server();
        feed(&mut b, &opens([1]), 999).unwrap();
        assert!(feed(&mut b, &pair(WINDOW_UPDATE, stream, MAX_WINDOW), 999).is_err());
        assert!(b.space().is_empty());
        assert_eq!(frames(b.output()).last(), Some(&(GOAWAY as u8, 1, 8)));
    }
}

#[test]
fn what_is_consumed_is_granted_again() {
    let mut b = server();
    feed(&mut b, &opens([1]), 999).unwrap();
    b.reply(1);
    b.sent(usize::MAX);
    let half = INITIAL_WINDOW as usize / 2;
    feed(&mut b, &data(1, 0, &vec![0; half - 1]), 999_999).unwrap();
    assert_eq!(frames(b.output()), []);
    feed(&mut b, &data(1, 0, b"x"), 999).unwrap();
    let update = WINDOW_UPDATE as u8;
    assert_eq!(frames(b.output()), [(update, 0, 8), (update, 1, 8)]);
    assert_eq!(b.output()[12..16], (half as u32).to_be_bytes());
    b.sent(usize::MAX);
    // A stream that has ended gets nothing, the session does; so it does for what nobody wanted.
    feed(&mut b, &data(1, FIN, &vec![0; half]), 999_999).unwrap();
    assert_eq!(frames(b.output()), [(update, 0, 8)]);
    b.sent(usize::MAX);
    assert_eq!(feed(&mut b, &data(1, 0, &vec![0; half]), 999_999).unwrap(), []);
    assert_eq!(frames(b.output()), [(update, 0, 8)]);
}

#[test]
fn a_server_that_never_spoke_of_windows_is_granted_nothing() {
    for (greets, updates) in [(true, 2), (false, 0)] {
        let (mut a, mut b) = (client(), server());
        let stream = a.open(&Headers::default()).unwrap();
        pass(&mut a, &mut b, 999);
        if !greets {
            b.sent(usize::MAX);
        }
        b.reply(stream);
        pass(&mut b, &mut a, 999);
        feed(&mut a, &data(stream, 0, &vec![0; INITIAL_WINDOW as usize]), 999_999).unwrap();
        assert_eq!(frames(a.output()).len(), updates);
    }
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    let mut b = server();
    let opened = feed(&mut b, &opens((1..20_000).step_by(2)), 5000).unwrap();
    assert_eq!(opened.len(), 10);
    assert_eq!(b.streams(), 10);
    let resets = frames(b.output()).iter().filter(|f| f.0 == RST_STREAM as u8).count();
    assert_eq!(resets, 9_990);
    assert!(b.output().len() < BACKLOG_LIMIT);
    // Once one has gone another is taken: the headers' compression went on all the while.
    let mut b = server();
    let all = opens((1..101).step_by(2));
    let (most, last) = all.split_at(all.len() - 25);
    feed(&mut b, most, 100).unwrap();
    b.reset(1, Status::Cancel);
    assert_eq!(feed(&mut b, last, 100).unwrap().len(), 1);
}

#[test]
fn thousands_of_streams_one_after_the_other_leave_nothing() {
    let (mut a, mut b) = (client(), server());
    for _ in 0..5000 {
        let stream = a.open(&Headers::default()).unwrap();
        pass(&mut a, &mut b, 1000);
        b.reply(stream);
        b.send(stream, b"x");
        b.close(stream);
        pass(&mut b, &mut a, 1000);
        if stream % 4 == 1 {
            a.close(stream);
        } else {
            a.reset(stream, Status::Cancel);
        }
        pass(&mut a, &mut b, 1000);
    }
    assert_eq!((a.streams.len(), b.streams.len(), b.theirs), (0, 0, 0));
    assert!(a.output.len() + b.output.len() == 0);
}

#[test]
fn who_does_not_read_its_answers_is_not_read_from() {
    let mut b = server();
    let pings = control(PING, 0, &1u32.to_be_bytes()).repeat(1000);
    for _ in 0..1000 {
        b.receive(&pings);
        assert_eq!(b.poll(), Ok(None));
        assert!(b.output().len() <= BACKLOG_LIMIT + 64);
    }
    assert!(b.space().is_empty());
    while b.space().is_empty() {
        b.sent(usize::MAX);
        assert_eq!(b.poll(), Ok(None));
    }
}

#[test]
fn pings_of_the_peer_are_answered_and_own_ones_are_not() {
    let mut b = server();
    b.receive(
        &[control(PING, 0, &7u32.to_be_bytes()), control(PING, 0, &8u32.to_be_bytes())].concat(),
    );
    assert_eq!(b.poll(), Ok(None));
    let answered: Vec<_> = frames(b.output()).into_iter().filter(|f| f.0 == PING as u8).collect();
    assert_eq!(answered, [(PING as u8, 7, 4)]);
}

#[test]
fn nothing_is_sent_after_a_goaway() {
    let mut b = server();
    feed(&mut b, &opens([1]), 999).unwrap();
    b.reply(1);
    b.go_away();
    b.sent(usize::MAX);
    b.say(1, b"late");
    b.close(1);
    b.go_away();
    let late = [control(PING, 0, &1u32.to_be_bytes()), opens([3])].concat();
    let mut rest = server();
    std::mem::swap(&mut rest.unpacker, &mut b.unpacker);
    let _ = feed(&mut b, &late[..12], 999);
    assert_eq!(b.output(), b"");
}

#[test]
fn frames_that_break_the_rules_end_the_connection() {
    let header = |kind, payload: &[u8]| control(kind, 0, payload);
    let long = [&[0x80, 3, 0, 1, 0, 0, 0x40, 1], &[0; 20][..]].concat();
    for (bytes, why) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), "no SPDY"),
        (vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], "another version"),
        (long, "a long control frame"),
        (data(1, 0, b""), "data for no stream"),
        (data(0, 0, b""), "data for stream 0"),
        ([opens([1]), data(2, 0, b"")].concat(), "data for a stream of the other side"),
        (opens([2]), "an even stream of a client"),
        (opens([0]), "stream 0"),
        (opens([3, 1]), "a smaller number"),
        (opens([1, 1]), "the same number"),
        (header(SYN_STREAM, &[0; 9]), "a short SYN_STREAM"),
        (header(SYN_STREAM, &[0; 30]), "no compression"),
        (header(SYN_REPLY, &[0; 4]), "an empty SYN_REPLY"),
        (header(RST_STREAM, &[0; 7]), "a short RST_STREAM"),
        (pair(RST_STREAM, 9, 1), "RST_STREAM for no stream"),
        (header(SETTINGS, &[0; 3]), "short SETTINGS"),
        (header(SETTINGS, &[0xff, 0xff, 0xff, 0xff]), "SETTINGS with a wrong count"),
        (header(SETTINGS, &[0, 0, 0, 1, 0, 0, 0, 7, 0x80, 0, 0, 0]), "a window of 2^31"),
        (header(PING, &[0; 5]), "a long PING"),
        (header(GOAWAY, &[0; 4]), "a short GOAWAY"),
        (header(WINDOW_UPDATE, &[0; 4]), "a short WINDOW_UPDATE"),
        (pair(WINDOW_UPDATE, 5, 1), "WINDOW_UPDATE for no stream"),
        (header(HEADERS, b""), "short HEADERS"),
    ] {
        for cut in [1, 1000] {
            let mut b = server();
            let mut failed = false;
            for piece in bytes.chunks(cut) {
                b.receive(piece);
                loop {
                    match b.poll() {
                        Ok(None) => break,
                        Ok(Some(_)) => {}
                        Err(_) => {
                            failed = true;
                            break;
                        }
                    }
                }
            }
            assert!(failed, "{why}");
            assert_eq!(frames(b.output()).last().unwrap().0, GOAWAY as u8, "{why}");
            assert!(b.space().is_empty() && b.poll() == Ok(None), "{why}");
        }
    }
}

#[test]
fn unknown_frames_are_skipped() {
    let unknown = [&[0x80, 3, 0, 10, 0, 0x01, 0, 0][..], &[7; 65536]].concat();
    let bytes = [unknown, opens([1])].concat();
    assert_eq!(feed(&mut server(), &bytes, 1000).unwrap().len(), 1);
}

#[test]
fn a_stream_that_is_reset_within_a_frame_gets_no_more_of_it() {
    let mut b = server();
    feed(&mut b, &opens([1]), 999).unwrap();
    b.reply(1);
    let bytes = [data(1, FIN, &[1; 100]), opens([3])[18..].to_vec()].concat();
    b.receive(&bytes[..50]);
    assert!(matches!(b.poll(), Ok(Some(Event::Data { .. }))));
    b.reset(1, Status::Cancel);
    assert_eq!(feed(&mut b, &bytes[50..108], 10).unwrap(), []);
    assert!(matches!(b.parse, Parse::Head));
}

#[test]
fn a_peer_that_goes_away_is_heard_once_and_opens_nothing_more() {
    let (mut a, mut b) = (client(), server());
    a.open(&Headers::default()).unwrap();
    a.go_away();
    assert_eq!(pass(&mut a, &mut b, 9).len(), 2);
    assert_eq!(feed(&mut b, &pair(GOAWAY, 0, 0), 9).unwrap(), []);
    assert_eq!(b.open(&Headers::default()), None);
    assert_eq!(a.open(&Headers::default()), None);
}

#[test]
fn the_peers_limit_of_streams_is_kept() {
    let (mut a, mut b) = (client(), server());
    b.receive(&[0x80]);
    let greeting = b.output().to_vec();
    feed(&mut a, &greeting, 999).unwrap();
    let opened = (0..20).filter_map(|_| a.open(&Headers::default())).count();
    assert_eq!(opened, LIMITS.streams as usize);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        cut in 1usize..64,
        server in any::<bool>(),
    ) {
        let mut connection = Connection::new(server, LIMITS);
        let _ = feed(&mut connection, &bytes, cut);
        prop_assert!(connection.output().len() < 64 * 1024);
    }

    #[test]
    fn any_frames_are_survived(
        all in prop::collection::vec(
            (0u16..12, any::<u8>(), 0u32..6, prop::collection::vec(any::<u8>(), 0..40)), 0..40),
        cut in 1usize..200,
    ) {
        let mut bytes = opens([1, 3]);
        for (kind, flags, stream, payload) in all {
            bytes.extend(match kind {
                0 => data(stream, flags, &payload),
                kind => control(kind, flags, &[&stream.to_be_bytes()[..], &payload].concat()),
            });
        }
        let mut b = server();
        let _ = feed(&mut b, &bytes, cut);
        prop_assert!(b.streams() <= 2);
    }

    #[test]
    fn everything_arrives_within_the_windows(
        steps in prop::collection::vec((0usize..4, 0usize..40_000, any::<bool>()), 1..60),
        cut in 1usize..100_000,
    ) {
        // Both sides speak of windows, and the receiver checks that they are kept.
        let limits = Limits { streams: 10, stream_window: 30_000, session_window: 100_000 };
        let (mut a, mut b) = (Connection::new(false, limits), Connection::new(true, limits));
        let streams: Vec<u32> = (0..4).map(|_| a.open(&Headers::default()).unwrap()).collect();
        pass(&mut a, &mut b, cut);
        streams.iter().for_each(|s| b.reply(*s));
        pass(&mut b, &mut a, cut);
        let mut sent = [0usize; 4];
        let mut got = [0usize; 4];
        let mut held = [0usize; 4];
        for (which, n, consume) in steps {
            let stream = streams[which];
            let bytes: Vec<u8> = (0..n).map(|i| (sent[which] + i) as u8).collect();
            sent[which] += a.send(stream, &bytes);
            let bytes = a.output().to_vec();
            a.sent(bytes.len());
            for piece in bytes.chunks(cut) {
                b.receive(piece);
                while let Some(event) = b.poll().unwrap() {
                    let Event::Data { stream, range } = event else { panic!("{event:?}") };
                    let at = streams.iter().position(|s| *s == stream).unwrap();
                    for byte in b.bytes(range.clone()) {
                        prop_assert_eq!(*byte, got[at] as u8);
                        got[at] += 1;
                    }
                    held[at] += range.len();
                    prop_assert!(held[at] <= 30_000 && held.iter().sum::<usize>() <= 100_000);
                }
            }
            prop_assert_eq!(sent, got);
            if consume {
                b.credit(stream, std::mem::take(&mut held[which]));
                pass(&mut b, &mut a, cut);
            }
        }
        // What was consumed can be sent again: nothing of the windows is lost.
        for (stream, n) in streams.iter().zip(&mut held) {
            b.credit(*stream, std::mem::take(n));
        }
        pass(&mut b, &mut a, cut);
        prop_assert!(streams.iter().all(|s| a.room(*s) >= 15_000));
    }
}
