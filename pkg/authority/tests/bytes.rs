//! What comes out of the adapter, byte for byte, for whole inputs and however they are cut.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::io;
use std::time::Duration;

use authority::{Error, accept, accept_within};
use common::*;
use httlib_hpack::Encoder;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// Everything that the server would read, and whether it was rewritten.
async fn through(bytes: &[u8], piece: usize) -> (io::Result<Vec<u8>>, bool) {
    let mut sniffed = accept(Pieces::new(bytes, piece)).await.unwrap();
    let mut out = Vec::new();
    let mut rewriting = false;
    let mut buf = [0; 1000];
    loop {
        let result = sniffed.read(&mut buf).await;
        rewriting |= sniffed.is_rewriting();
        match result {
            Ok(0) => return (Ok(out), rewriting),
            Ok(n) => out.extend_from_slice(&buf[..n]),
            Err(e) => return (Err(e), rewriting),
        }
    }
}

/// A connection of a few requests with bodies.
fn connection(authority: Option<&str>) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]));
    bytes.extend(frame(PING, 0, 0, b"12345678"));
    for stream in [1, 3, 5] {
        let mut fields = request(authority.unwrap_or_default());
        fields.retain(|(name, _)| authority.is_some() || *name != ":authority");
        let block = block(&mut encoder, &fields);
        bytes.extend(frame(HEADERS, PADDED, stream, &[&[1][..], &block[..5], &[0]].concat()));
        bytes.extend(frame(CONTINUATION, END_HEADERS, stream, &block[5..]));
        bytes.extend(frame(DATA, END_STREAM, stream, &[7; 20_000]));
    }
    bytes
}

#[tokio::test]
async fn a_valid_or_absent_authority_changes_no_byte() {
    for authority in [Some("localhost"), Some("10.0.0.1:1234"), None] {
        let bytes = connection(authority);
        for piece in [1, 2, 9, 100, bytes.len()] {
            let (out, rewriting) = through(&bytes, piece).await;
            assert!(!rewriting, "{authority:?}");
            assert!(out.unwrap() == bytes, "{authority:?} in pieces of {piece}");
        }
    }
}

#[tokio::test]
async fn rewriting_does_not_depend_on_the_pieces() {
    let bytes = connection(Some(ODD[0]));
    let (whole, rewriting) = through(&bytes, bytes.len()).await;
    let whole = whole.unwrap();
    assert!(rewriting);
    assert!(!whole.windows(4).any(|w| w == b"crio"));
    assert_eq!(whole.windows(9).filter(|w| w == b"localhost").count(), 3);
    for piece in [1, 2, 9, 100, 8192] {
        assert!(through(&bytes, piece).await.0.unwrap() == whole, "in pieces of {piece}");
    }
}

/// A field that no table may hold stays one.
#[tokio::test]
async fn a_sensitive_field_stays_sensitive() {
    let mut encoder = Encoder::default();
    let mut block = block(&mut encoder, &request(ODD[0]));
    let secret = (b"authorization".to_vec(), b"secret".to_vec(), Encoder::NEVER_INDEXED);
    encoder.encode(secret, &mut block).unwrap();
    let bytes = [PREFACE, &frame(HEADERS, END_HEADERS, 1, &block)].concat();
    let out = through(&bytes, 100).await.0.unwrap();
    assert!(out.ends_with(b"\x10\x0dauthorization\x06secret"), "{out:?}");
}

/// What the server writes is not touched, nor held up by what the client has not finished.
#[tokio::test]
async fn the_other_direction_is_free() {
    let (mut near, far) = duplex(1 << 16);
    near.write_all(PREFACE).await.unwrap();
    near.write_all(&[0, 0, 9, HEADERS]).await.unwrap();
    let mut sniffed = accept(far).await.unwrap();
    sniffed.write_all(b"anything").await.unwrap();
    let mut buf = [0; 8];
    near.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"anything");
    // Once the client has gone, the server gets what there was of the frame.
    drop(near);
    let mut rest = Vec::new();
    sniffed.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, [PREFACE, &[0, 0, 9, HEADERS]].concat());
}

#[tokio::test]
async fn http1_and_nonsense_pass() {
    for text in [
        "GET /info HTTP/1.1\r\nHost: x\r\n\r\n",
        "PRI * HTTP/1.1\r\n\r\n",
        "PUT / HTTP/1.0\r\n\r\n",
        "P",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
        "\0",
    ] {
        for piece in [1, text.len()] {
            let mut sniffed = accept(Pieces::new(text.as_bytes(), piece)).await.unwrap();
            assert!(sniffed.is_http1(), "{text:?}");
            let mut out = String::new();
            sniffed.read_to_string(&mut out).await.unwrap();
            assert_eq!(out, text);
        }
    }
}

#[tokio::test]
async fn silence_and_hanging_up_are_errors() {
    let error = accept(Pieces::new(b"", 1)).await.unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");

    let (mut near, far) = duplex(100);
    near.write_all(b"PRI").await.unwrap();
    let limit = Duration::from_millis(1);
    let error = accept_within(far, limit).await.unwrap_err();
    assert!(matches!(error, Error::Silent(l) if l == limit), "{error}");
}

/// A server that reads on after an error is not given what came behind the broken block.
#[tokio::test]
async fn an_error_stays_an_error() {
    let mut bytes = connection(Some(ODD[0]));
    bytes.extend(frame(HEADERS, END_HEADERS, 7, &[0x80]));
    bytes.extend(frame(PING, 0, 0, b"12345678"));
    let mut sniffed = accept(Pieces::new(&bytes, 100)).await.unwrap();
    let mut out = Vec::new();
    for _ in 0..3 {
        let error = sniffed.read_to_end(&mut out).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// Frames that are likely to be read as such, of any content.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(HEADERS), Just(CONTINUATION), 0..12u8];
    let payload = proptest::collection::vec(any::<u8>(), 0..60);
    let frame_ = (kind, any::<u8>(), 0..4u32, payload)
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload));
    proptest::collection::vec(frame_, 0..20).prop_map(|frames| frames.concat())
}

proptest! {
    /// Garbage does no harm: what is not rewritten is not changed.
    #[test]
    fn garbage_passes(garbage in proptest::collection::vec(any::<u8>(), 0..2000), piece in 1..50usize) {
        let bytes = [PREFACE, &garbage].concat();
        let (out, rewriting) = runtime().block_on(through(&bytes, piece));
        if !rewriting {
            prop_assert!(out.unwrap() == bytes);
        }
    }

    #[test]
    fn frames_of_garbage_pass(garbage in frames(), piece in 1..50usize) {
        let bytes = [PREFACE, &garbage].concat();
        let (out, rewriting) = runtime().block_on(through(&bytes, piece));
        if !rewriting {
            prop_assert!(out.unwrap() == bytes);
        }
    }

    /// Behind a request that is rewritten, garbage gives an end or an error, the same however it
    /// is cut.
    #[test]
    fn garbage_behind_a_request(garbage in frames(), piece in 1..50usize) {
        let head = block(&mut Encoder::default(), &request(ODD[0]));
        let bytes = [PREFACE, &frame(HEADERS, END_HEADERS, 1, &head), &garbage].concat();
        let runtime = runtime();
        let (one, rewriting) = runtime.block_on(through(&bytes, bytes.len()));
        let (other, _) = runtime.block_on(through(&bytes, piece));
        prop_assert!(rewriting);
        prop_assert_eq!(one.map_err(|e| e.to_string()), other.map_err(|e| e.to_string()));
    }
}
