//! Any bytes, any calls, in any order.

use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..500),
        cut in 1usize..100,
        which in 0usize..6,
    ) {
        let mut session = match WEBSOCKET_PROTOCOLS.get(which) {
            Some(protocol) => websocket_session(protocol, ALL).0,
            None => spdy_pair(&SPDY_PROTOCOLS, ALL).0,
        };
        for piece in bytes.chunks(cut) {
            session.receive(piece);
            events(&mut session);
        }
        session.finish(Outcome::Success);
        session.sent(usize::MAX);
        prop_assert!(session.done());
    }

    #[test]
    fn a_session_that_is_damaged_on_its_way_is_survived(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in 1usize..200,
        which in 0usize..6,
    ) {
        let (mut session, bytes) = match WEBSOCKET_PROTOCOLS.get(which) {
            Some(protocol) => {
                let (session, mut socket) = websocket_session(protocol, TTY);
                for message in [&b"\0input"[..], b"0aW4=", b"\x04{\"Width\":1}", b"\xff\0"] {
                    socket.send(Kind::Binary, &[message]);
                }
                socket.ping();
                socket.send(Kind::Binary, &[b"\0", &[7; 70_000]]);
                socket.close(CLOSE_NORMAL);
                (session, socket.output().to_vec())
            }
            None => {
                let (mut session, mut client) = spdy_pair(&SPDY_PROTOCOLS, TTY);
                let mut bytes = client.output().to_vec();
                run(&mut session, &mut client, 9999);
                client.resize(1, 2);
                client.send(&[7; 60_000]);
                client.close();
                client.finish();
                bytes.extend_from_slice(client.output());
                (spdy_pair(&SPDY_PROTOCOLS, TTY).0, bytes)
            }
        };
        let mut bytes = bytes;
        for (at, byte) in damage {
            *at.get_mut(&mut bytes) = byte;
        }
        for piece in bytes.chunks(cut) {
            session.receive(piece);
            events(&mut session);
            prop_assert!(session.output().len() < 64 * 1024);
            session.sent(usize::MAX);
        }
        session.eof();
        events(&mut session);
        prop_assert_eq!(session.event(), Ok(None));
    }

    #[test]
    fn any_calls_are_survived_and_bytes_stay_in_order(
        steps in prop::collection::vec((0u8..9, 0usize..3000), 1..80),
        spdy in any::<bool>(),
        cut in 1usize..5000,
    ) {
        let (mut session, mut client, mut socket);
        if spdy {
            let both = spdy_pair(&SPDY_PROTOCOLS, ALL);
            (session, client, socket) = (both.0, Some(both.1), None);
            run(&mut session, client.as_mut().unwrap(), 999);
        } else {
            let both = websocket_session("v5.channel.k8s.io", ALL);
            (session, client, socket) = (both.0, None, Some(both.1));
            events(&mut session);
        }
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for (step, n) in steps {
            match step {
                0..3 => {
                    let bytes: Vec<u8> = (0..n).map(|i| (sent.len() + i) as u8).collect();
                    let out = if let Some(client) = &mut client {
                        let taken = client.send(&bytes);
                        sent.extend_from_slice(&bytes[..taken]);
                        let out = client.output().to_vec();
                        client.sent(out.len());
                        out
                    } else {
                        let socket = socket.as_mut().unwrap();
                        socket.send(Kind::Binary, &[b"\0", &bytes]);
                        sent.extend_from_slice(&bytes);
                        let out = socket.output().to_vec();
                        socket.sent(out.len());
                        out
                    };
                    for piece in out.chunks(cut) {
                        prop_assert_eq!(session.receive(piece), piece.len());
                        while let Some(event) = session.event().unwrap() {
                            let Event::Data { channel, bytes } = event else { panic!("{event:?}") };
                            let take = bytes.len().min(n);
                            got.extend_from_slice(&bytes[..take]);
                            session.consumed(channel, take);
                        }
                    }
                }
                3 => {
                    let take = session.pending(Channel::Stdin).len().min(n);
                    got.extend_from_slice(&session.pending(Channel::Stdin)[..take]);
                    session.consumed(Channel::Stdin, take);
                }
                4 => {
                    let taken = session.send(Channel::Stdout, &vec![0; n]);
                    prop_assert!(taken <= n);
                }
                5 => {
                    let room = session.send_space(Channel::Stderr).len();
                    session.send_filled(Channel::Stderr, room.min(n));
                }
                6 => session.sent(n),
                7 => session.send_filled(Channel::Stdout, n),
                _ => {
                    let out = session.output().to_vec();
                    session.sent(out.len());
                    if let Some(client) = &mut client {
                        client.receive(&out);
                        while let Ok(Some(_)) = client.event() {}
                    }
                }
            }
        }
        while !session.pending(Channel::Stdin).is_empty() {
            let piece = session.pending(Channel::Stdin).to_vec();
            session.consumed(Channel::Stdin, piece.len());
            got.extend(piece);
        }
        prop_assert_eq!(got, sent);
    }
}
