//! Any bytes, any calls, in any order.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..500),
        cut in 1usize..100,
        which in 0usize..4,
    ) {
        let mut session = match which {
            3 => {
                let request = websocket_request("v4.channel.k8s.io", "/p");
                Accepted::negotiate(&request, &[80, 81]).unwrap().session()
            }
            which => pair(EVERY[which]).0,
        };
        for piece in bytes.chunks(cut) {
            session.receive(piece);
            events(&mut session);
        }
        session.finish();
        while !session.output().is_empty() {
            session.sent(100);
        }
        prop_assert!(session.done());
    }

    #[test]
    fn a_session_that_is_damaged_on_its_way_is_survived(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in 1usize..200,
        which in 0usize..3,
    ) {
        let (mut session, mut peer) = pair(EVERY[which]);
        let ids: Vec<_> = (0..5).map(|_| peer.client.open(80).unwrap()).collect();
        let mut bytes = peer.output();
        session.receive(&bytes);
        events(&mut session);
        peer.receive(session.output());
        client_events(&mut peer.client);
        for id in &ids {
            peer.client.send(*id, &[7; 2000]);
        }
        peer.client.close(ids[0]);
        peer.client.reset(ids[1]);
        peer.client.finish();
        bytes.extend(peer.output());
        let (mut session, _) = pair(EVERY[which]);
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
    fn any_course_of_events_leaves_nothing_and_mixes_nothing_up(
        steps in prop::collection::vec((0u8..10, 0usize..6, 1usize..5000), 1..100),
        tunnelled in any::<bool>(),
    ) {
        let (mut session, mut peer) = pair(EVERY[usize::from(tunnelled)]);
        // Bytes sent and received on each connection, in each direction.
        let mut up: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut down: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut ids = Vec::new();
        for (step, which, n) in steps {
            let id = ids.get(which % ids.len().max(1)).copied().unwrap_or(Id(0));
            let fill = |from: u64, n: usize| -> Vec<u8> { (0..n as u64).map(|i| (from + i + id.0) as u8).collect() };
            match step {
                0 | 1 => ids.extend(peer.client.open(80)),
                2 | 3 => {
                    let count = up.entry(id.0).or_default();
                    count.0 += peer.client.send(id, &fill(count.0, n)) as u64;
                }
                4 | 5 => {
                    let count = down.entry(id.0).or_default();
                    count.0 += session.send(id, &fill(count.0, n)) as u64;
                }
                6 => peer.client.close(id),
                7 => session.close(id),
                8 => if n % 2 == 0 { peer.client.reset(id) } else { session.reset(id) },
                _ => {
                    let take = session.pending(id).len().min(n);
                    let count = up.entry(id.0).or_default();
                    for byte in &session.pending(id)[..take] {
                        prop_assert_eq!(*byte, (count.1 + id.0) as u8);
                        count.1 += 1;
                    }
                    session.consumed(id, take);
                }
            }
            for piece in peer.output().chunks(n) {
                session.receive(piece);
                while let Some(event) = session.event().unwrap() {
                    let Event::Data { id, bytes } = event else { continue };
                    let take = bytes.len().min(n);
                    let count = up.entry(id.0).or_default();
                    for byte in &bytes[..take] {
                        prop_assert_eq!(*byte, (count.1 + id.0) as u8);
                        count.1 += 1;
                    }
                    session.consumed(id, take);
                }
            }
            let out = session.output().to_vec();
            session.sent(out.len());
            peer.receive(&out);
            while let Some(event) = peer.client.event().unwrap() {
                let ClientEvent::Data { id, bytes } = event else { continue };
                let count = down.entry(id.0).or_default();
                for byte in bytes {
                    prop_assert_eq!(*byte, (count.1 + id.0) as u8);
                    count.1 += 1;
                }
                let n = bytes.len();
                peer.client.consumed(id, n);
            }
        }
        peer.client.finish();
        run(&mut session, &mut peer);
        prop_assert_eq!(remembered(&session), [0; 4]);
        prop_assert_eq!(session.inbox.kept(), 0);
    }
}
