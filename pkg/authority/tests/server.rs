//! Clients with odd authorities against a real HTTP/2 server.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use common::*;

fn has(headers: &[(String, String)], name: &str, value: &str) -> bool {
    headers.iter().any(|(n, v)| n == name && v == value)
}

/// Why there is this crate; the day that this fails, it is not needed any more.
#[tokio::test]
async fn the_server_alone_refuses() {
    for odd in ODD {
        let mut client = Client::connect(false).await;
        client.request(1, &request(odd)).await;
        assert_eq!(client.answer(1).await, Answer::Reset(PROTOCOL_ERROR), "{odd:?}");
    }
}

#[tokio::test]
async fn odd_authorities_become_localhost() {
    for odd in ODD.into_iter().chain(["a b", "[::1", "host:port:1", "\u{e9}"]) {
        let mut client = Client::connect(true).await;
        client.request(1, &request(odd)).await;
        assert_eq!(client.answer(1).await, Answer::Response, "{odd:?}");
        let seen = client.seen.recv().await.unwrap();
        assert_eq!(seen.authority.as_deref(), Some("localhost"), "{odd:?}");
        assert_eq!(seen.path, "/runtime.v1.RuntimeService/Version");
        assert!(has(&seen.headers, "content-type", "application/grpc"));
        assert!(has(&seen.headers, "te", "trailers"));
        assert_eq!(seen.headers.len(), 2);
    }
}

#[tokio::test]
async fn valid_authorities_stay() {
    for valid in ["localhost", "127.0.0.1:10010", "[::1]:80", "node.example"] {
        let mut client = Client::connect(true).await;
        client.request(1, &request(valid)).await;
        assert_eq!(client.answer(1).await, Answer::Response, "{valid:?}");
        let seen = client.seen.recv().await.unwrap();
        assert_eq!(seen.authority.as_deref(), Some(valid));
    }
}

/// From the second request on nearly every field is an index into the client's table.
#[tokio::test]
async fn many_requests_over_one_table() {
    let mut client = Client::connect(true).await;
    let mut sizes = Vec::new();
    for i in 0..50u32 {
        let number = i.to_string();
        let mut fields = request(ODD[0]);
        fields.push(("x-number", &number));
        fields.push(("x-same", "the same each time"));
        sizes.push(client.request(2 * i + 1, &fields).await);
        assert_eq!(client.answer(2 * i + 1).await, Answer::Response);
        let seen = client.seen.recv().await.unwrap();
        assert_eq!(seen.authority.as_deref(), Some("localhost"));
        assert!(has(&seen.headers, "x-number", &number));
        assert!(has(&seen.headers, "x-same", "the same each time"));
    }
    assert!(sizes[49] * 3 < sizes[0], "the table was not used: {sizes:?}");
}

/// Enough different fields to push the older ones out of the table, some of which come back.
#[tokio::test]
async fn a_table_that_overflows() {
    let mut client = Client::connect(true).await;
    for i in 0..60u32 {
        let value = (i % 7).to_string().repeat(600);
        let mut fields = request(ODD[1]);
        fields.push(("x-long", &value));
        client.request(2 * i + 1, &fields).await;
        assert_eq!(client.answer(2 * i + 1).await, Answer::Response);
        assert!(has(&client.seen.recv().await.unwrap().headers, "x-long", &value));
    }
}

#[tokio::test]
async fn the_tables_size_changes() {
    let mut client = Client::connect(true).await;
    for (i, size) in [0, 100, 4096].into_iter().enumerate() {
        let stream = 2 * u32::try_from(i).unwrap() + 1;
        let mut block_ = Vec::new();
        client.encoder.update_max_dynamic_size(size, &mut block_).unwrap();
        block_.extend(block(&mut client.encoder, &request(ODD[0])));
        client.write(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block_)).await;
        assert_eq!(client.answer(stream).await, Answer::Response, "{size}");
    }
}

#[tokio::test]
async fn padding_priority_and_continuations() {
    let mut client = Client::connect(true).await;
    let block = block(&mut client.encoder, &request(ODD[0]));
    let mut first = vec![7]; // padding
    first.extend([0, 0, 0, 0, 15]); // priority: depends on 0, weight 16
    first.extend(&block[..3]);
    first.extend([0; 7]);
    client.write(&frame(HEADERS, PADDED | PRIORITY | END_STREAM, 1, &first)).await;
    client.write(&frame(CONTINUATION, 0, 1, &block[3..4])).await;
    client.write(&frame(CONTINUATION, 0, 1, &[])).await;
    client.write(&frame(CONTINUATION, END_HEADERS, 1, &block[4..])).await;
    assert_eq!(client.answer(1).await, Answer::Response);
    let seen = client.seen.recv().await.unwrap();
    assert_eq!(seen.authority.as_deref(), Some("localhost"));
    assert!(seen.body.is_empty());
}

/// A block that is longer than one frame may be, before and after it is rewritten.
#[tokio::test]
async fn a_long_block() {
    let mut client = Client::connect(true).await;
    let values: Vec<String> =
        ["a", "b", "c"].into_iter().map(|letter| letter.repeat(15_000)).collect();
    let mut fields = request(ODD[0]);
    fields.extend(values.iter().map(|v| ("x-long", v.as_str())));
    let block = block(&mut client.encoder, &fields);
    let parts: Vec<_> = block.chunks(16 * 1024).collect();
    assert!(parts.len() > 1);
    for (i, part) in parts.iter().enumerate() {
        let (kind, mut flags) = if i == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
        if i + 1 == parts.len() {
            flags |= END_HEADERS;
        }
        client.write(&frame(kind, flags, 1, part)).await;
    }
    assert_eq!(client.answer(1).await, Answer::Response);
    let seen = client.seen.recv().await.unwrap();
    let long: Vec<_> = seen.headers.iter().filter(|(n, _)| n == "x-long").collect();
    assert!(long.iter().map(|(_, v)| v).eq(&values));
}

#[tokio::test]
async fn slow_as_can_be() {
    let mut client = Client::connect(true).await;
    client.slow = true;
    for stream in [1, 3, 5] {
        let block = block(&mut client.encoder, &request(ODD[2]));
        client.write(&frame(HEADERS, END_HEADERS, stream, &block)).await;
        client.write(&frame(PING, 0, 0, b"12345678")).await;
        client.write(&frame(DATA, END_STREAM, stream, b"body")).await;
        assert_eq!(client.answer(stream).await, Answer::Response);
        assert_eq!(client.seen.recv().await.unwrap().body, b"body");
    }
}

/// 10 MB with headers and trailers around it, whichever way the connection goes.
#[tokio::test]
async fn a_large_body_arrives_unharmed() {
    // Bytes that repeat late, among them every kind of frame's head.
    let mut state = 1u32;
    let body: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(10_000_000)
    .collect();
    for authority in [ODD[0], "localhost"] {
        let mut client = Client::connect(true).await;
        let head = block(&mut client.encoder, &request(authority));
        client.write(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        for part in body.chunks(16 * 1024) {
            client.write(&frame(DATA, 0, 1, part)).await;
        }
        let trailers = block(&mut client.encoder, &[("x-end", "yes")]);
        client.write(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers)).await;
        assert_eq!(client.answer(1).await, Answer::Response);
        let seen = client.seen.recv().await.unwrap();
        assert!(seen.body == body, "{authority:?}: {} bytes", seen.body.len());
        assert_eq!(seen.trailers, [("x-end".to_owned(), "yes".to_owned())]);
    }
}

/// Two requests' frames among one another.
#[tokio::test]
async fn streams_interleave() {
    let mut client = Client::connect(true).await;
    for stream in [1, 3] {
        let block = block(&mut client.encoder, &request(ODD[0]));
        client.write(&frame(HEADERS, END_HEADERS, stream, &block)).await;
    }
    for (stream, flags) in [(1, 0), (3, 0), (3, END_STREAM), (1, END_STREAM)] {
        client.write(&frame(DATA, flags, stream, &[u8::try_from(stream).unwrap(); 3])).await;
    }
    assert_eq!(client.answer(1).await, Answer::Response);
    let mut bodies =
        vec![client.seen.recv().await.unwrap().body, client.seen.recv().await.unwrap().body];
    bodies.sort();
    assert_eq!(bodies, [[1; 6], [3; 6]]);
}

/// Before anything is rewritten it is for the server to refuse what is broken, as it would alone.
#[tokio::test]
async fn a_broken_first_block_is_the_servers() {
    for frames in [
        vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 40])],
        vec![frame(HEADERS, 0, 1, &[0x82]), frame(DATA, END_STREAM, 1, b"x")],
        vec![frame(CONTINUATION, END_HEADERS, 1, &[0x82])],
        vec![frame(HEADERS, END_HEADERS | PADDED, 1, &[2, 0x82])],
        vec![frame(HEADERS, END_HEADERS, 1, &vec![0x82; 70_000])],
    ] {
        let mut answers = Vec::new();
        for adapted in [false, true] {
            let mut client = Client::connect(adapted).await;
            client.write_if_open(&frames.concat()).await;
            answers.push(client.answer(1).await);
        }
        assert!(matches!(answers[0], Answer::GoAway(_)), "{answers:?} to {:?}", &frames[0][..10]);
        assert_eq!(answers[0], answers[1]);
    }
}

/// Afterwards the connection ends.
#[tokio::test]
async fn a_broken_later_block_ends_the_connection() {
    let broken = [
        vec![frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0xff; 40])],
        vec![frame(HEADERS, 0, 3, &[0x82]), frame(DATA, END_STREAM, 3, b"x")],
        vec![frame(HEADERS, 0, 3, &[0x82]), frame(CONTINUATION, END_HEADERS, 5, &[0x84])],
        vec![frame(HEADERS, END_HEADERS | PADDED, 3, &[2, 0x82])],
        vec![frame(HEADERS, END_HEADERS | PADDED, 3, &[])],
        vec![frame(HEADERS, END_HEADERS | PRIORITY, 3, &[0; 4])],
        vec![frame(HEADERS, END_HEADERS, 3, &vec![0x82; 70_000])],
        vec![frame(HEADERS, 0, 3, &vec![0x82; 40_000]), frame(CONTINUATION, 0, 3, &[0x82; 40_000])],
        // An entry of 4 kB, again and again.
        vec![frame(HEADERS, END_HEADERS, 3, &bomb())],
    ];
    for frames in broken {
        let mut client = Client::connect(true).await;
        client.request(1, &request(ODD[0])).await;
        assert_eq!(client.answer(1).await, Answer::Response);
        client.write_if_open(&frames.concat()).await;
        let answer = client.answer(3).await;
        assert!(
            matches!(answer, Answer::Closed | Answer::GoAway(_)),
            "{answer:?} to {:?}",
            &frames[0][..12]
        );
    }
}

fn bomb() -> Vec<u8> {
    let mut block = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e]; // a value of 127 + 33 + 30 * 128 bytes
    block.extend([b'x'; 4000]);
    block.extend([0xbe; 5000]);
    block
}

#[tokio::test]
async fn too_many_continuations_end_the_connection() {
    let mut client = Client::connect(true).await;
    client.request(1, &request(ODD[0])).await;
    assert_eq!(client.answer(1).await, Answer::Response);
    let mut flood = frame(HEADERS, 0, 3, &[0x82]);
    flood.extend(frame(CONTINUATION, 0, 3, &[]).repeat(1000));
    client.write_if_open(&flood).await;
    assert!(matches!(client.answer(3).await, Answer::Closed | Answer::GoAway(_)));
}
