//! Blobs: resuming, bounds, digests, redirects, silence.

// Helpers outside of test functions count as tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fake::{Fake, client, client_with, content, cut, descriptor, hang, ok, serve, status, with};
use futures_util::StreamExt as _;
use registry::client::BlobOptions;
use registry::{Client, ClientError, Credentials, Descriptor, Digest};

const NOBODY: Credentials = Credentials::Anonymous;

async fn fetch(client: &Client, fake: &Fake, blob: &Descriptor) -> Result<Bytes, ClientError> {
    client.blob(&fake.endpoint(), blob, &NOBODY).await?.bytes(1 << 30).await
}

#[tokio::test]
async fn whole() {
    let data = content(300_000);
    let served = data.clone();
    let fake = Fake::start(move |asked| serve(asked, &served)).await;
    let blob = descriptor("x", &data);
    let progress = Arc::new(AtomicU64::new(0));
    let options = BlobOptions { progress: Some(progress.clone()), ..BlobOptions::default() };
    let stream = client().blob_with(&fake.endpoint(), &blob, &NOBODY, options).await.unwrap();
    assert_eq!(stream.size(), 300_000);
    assert_eq!(stream.bytes(300_000).await.unwrap(), data);
    assert_eq!(progress.load(Ordering::Relaxed), 300_000);
    assert_eq!(fake.asked()[0].path, format!("/v2/team/app/blobs/{}", blob.digest));

    let stream = client().blob(&fake.endpoint(), &blob, &NOBODY).await.unwrap();
    assert!(matches!(stream.bytes(299_999).await, Err(ClientError::TooLarge { .. })));
    let empty = Fake::start(|_| ok("")).await;
    assert_eq!(fetch(&client(), &empty, &descriptor("x", b"")).await.unwrap(), "");
}

#[tokio::test]
async fn resumes_where_it_was_cut() {
    let data = content(100_000);
    let served = data.clone();
    let fake = Fake::start(move |asked| {
        let from = fake::range_start(asked).unwrap_or(0);
        let left = served.len() - from;
        if left <= 15_000 {
            return serve(asked, &served);
        }
        let part = cut(served.slice(from..from + 15_000), left);
        if from == 0 {
            return part;
        }
        let mut part = with(part, "content-range", &format!("bytes {from}-99999/100000"));
        *part.status_mut() = http::StatusCode::PARTIAL_CONTENT;
        part
    })
    .await;
    // More cuts than retries: each brings something.
    let client = client_with(|o| o.retries = 1);
    assert_eq!(fetch(&client, &fake, &descriptor("x", &data)).await.unwrap(), data);
    let ranges: Vec<String> = fake.asked().iter().map(|a| a.header("range").to_owned()).collect();
    assert_eq!(ranges[..3], ["", "bytes=15000-", "bytes=30000-"]);
    assert_eq!(ranges.len(), 7);
}

#[tokio::test]
async fn resumes_without_ranges() {
    let data = content(50_000);
    let (served, turn) = (data.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |_| match turn.fetch_add(1, Ordering::SeqCst) {
        0 => cut(served.slice(..20_000), 50_000),
        // Again from the beginning, and cut before anything new.
        1 => cut(served.slice(..10_000), 50_000),
        _ => ok(served.clone()),
    })
    .await;
    let progress = Arc::new(AtomicU64::new(0));
    let options = BlobOptions { progress: Some(progress.clone()), ..BlobOptions::default() };
    let blob = descriptor("x", &data);
    let stream = client().blob_with(&fake.endpoint(), &blob, &NOBODY, options).await.unwrap();
    assert_eq!(stream.bytes(1 << 20).await.unwrap(), data);
    assert_eq!(progress.load(Ordering::Relaxed), 50_000);
    assert_eq!(fake.asked().len(), 3);
}

#[tokio::test]
async fn gives_up_without_progress() {
    let data = content(1000);
    let served = data.clone();
    let fake = Fake::start(move |asked| match fake::range_start(asked) {
        None => cut(served.slice(..100), 1000),
        Some(_) => {
            let part = with(cut(Bytes::new(), 900), "content-range", "bytes 100-999/1000");
            let (mut head, body) = part.into_parts();
            head.status = http::StatusCode::PARTIAL_CONTENT;
            http::Response::from_parts(head, body)
        }
    })
    .await;
    let client = client_with(|o| o.retries = 2);
    let error = fetch(&client, &fake, &descriptor("x", &data)).await.unwrap_err();
    assert!(matches!(error, ClientError::Read { .. } | ClientError::Request { .. }), "{error:?}");
    // The first brought something; two more may fail, and the third is the last.
    assert!(fake.asked().len() <= 5, "{}", fake.asked().len());
}

#[tokio::test]
async fn another_range_than_asked_for() {
    let data = content(1000);
    let served = data.clone();
    let fake = Fake::start(move |asked| {
        if fake::range_start(asked).is_none() {
            return cut(served.slice(..100), 1000);
        }
        let mut part = with(ok(served.slice(50..)), "content-range", "bytes 50-999/1000");
        *part.status_mut() = http::StatusCode::PARTIAL_CONTENT;
        part
    })
    .await;
    let error = fetch(&client(), &fake, &descriptor("x", &data)).await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn too_many_and_too_few() {
    let data = content(1000);
    let mut small = descriptor("x", &data);
    small.size = 999;
    let mut large = descriptor("x", &data);
    large.size = 1001;
    for chunks in [false, true] {
        let served = data.clone();
        let fake = Fake::start(move |asked| match chunks {
            true if fake::range_start(asked).is_none() => fake::chunked(served.clone()),
            _ => serve(asked, &served),
        })
        .await;
        let error = fetch(&client(), &fake, &small).await.unwrap_err();
        assert!(matches!(error, ClientError::TooLarge { limit: 999, .. }), "{error:?}");
        let error = fetch(&client(), &fake, &large).await.unwrap_err();
        assert!(
            matches!(error, ClientError::TooShort { expected: 1001, actual: 1000, .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn wrong_digest_is_the_last_thing_said() {
    let data = content(1000);
    let blob = descriptor("x", &data);
    let fake = Fake::start(|_| ok(vec![7u8; 1000])).await;
    let stream = client().blob(&fake.endpoint(), &blob, &NOBODY).await.unwrap();
    let items: Vec<_> = stream.verified().collect().await;
    let (last, before) = items.split_last().unwrap();
    assert!(before.iter().all(Result::is_ok));
    match last {
        Err(ClientError::DigestMismatch { expected, actual, .. }) => {
            assert_eq!(expected, &blob.digest);
            assert_eq!(actual, &Digest::of(vec![7u8; 1000]));
        }
        other => panic!("{other:?}"),
    }
    // Without the check the bytes are handed on.
    let stream = client().blob(&fake.endpoint(), &blob, &NOBODY).await.unwrap();
    assert!(stream.collect::<Vec<_>>().await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn redirects_lose_the_credentials() {
    let data = content(1000);
    let served = data.clone();
    let cdn = Fake::start(move |asked| serve(asked, &served)).await;
    let to = format!("http://{}/store/blob?sig=hunter2", cdn.host());
    let fake = Fake::start(move |asked| match asked.header("authorization") {
        "" => with(status(401), "www-authenticate", "Basic realm=\"r\""),
        _ => fake::redirect(&to),
    })
    .await;
    let creds = Credentials::basic("me", "pw");
    let stream = client().blob(&fake.endpoint(), &descriptor("x", &data), &creds).await.unwrap();
    assert!(!format!("{stream:?}").contains("hunter2"));
    assert_eq!(stream.bytes(1000).await.unwrap(), data);
    assert_eq!(fake.asked()[1].header("authorization"), "Basic bWU6cHc=");
    assert_eq!(cdn.asked().len(), 1);
    assert_eq!(cdn.asked()[0].header("authorization"), "");
    assert_eq!(cdn.asked()[0].query, "sig=hunter2");
}

#[tokio::test]
async fn a_redirect_target_gets_no_credentials_by_asking() {
    let thief = Fake::start(|asked| match asked.header("authorization") {
        "" => with(status(401), "www-authenticate", "Basic realm=\"r\""),
        _ => ok("x"),
    })
    .await;
    let to = format!("http://{}/", thief.host());
    let fake = Fake::start(move |_| fake::redirect(&to)).await;
    let creds = Credentials::basic("me", "pw");
    let error = client().blob(&fake.endpoint(), &descriptor("x", b"x"), &creds).await.unwrap_err();
    assert!(matches!(error, ClientError::Unauthorized { .. }), "{error:?}");
    assert!(thief.asked().iter().all(|a| a.header("authorization").is_empty()));
}

#[tokio::test]
async fn redirects_within_a_host_keep_the_credentials_and_loops_end() {
    let fake = Fake::start(|asked| match (asked.header("authorization"), asked.path.as_str()) {
        ("", _) => with(status(401), "www-authenticate", "Basic realm=\"r\""),
        (_, "/moved") => ok("x"),
        _ => fake::redirect("/moved"),
    })
    .await;
    let creds = Credentials::basic("me", "pw");
    let stream = client().blob(&fake.endpoint(), &descriptor("x", b"x"), &creds).await.unwrap();
    assert_eq!(stream.bytes(9).await.unwrap(), "x");

    let looping = Fake::start(|asked| fake::redirect(&asked.path)).await;
    let error = fetch(&client(), &looping, &descriptor("x", b"x")).await.unwrap_err();
    assert!(matches!(error, ClientError::Redirect { .. }), "{error:?}");
    assert_eq!(looping.asked().len(), 11);
}

#[tokio::test]
async fn silence_is_an_error() {
    let data = content(1000);
    let served = data.clone();
    let fake = Fake::start(move |_| hang(served.slice(..500), 1000)).await;
    let client = client_with(|o| o.stall_timeout = Some(Duration::from_millis(200)));
    let mut stream = client.blob(&fake.endpoint(), &descriptor("x", &data), &NOBODY).await.unwrap();
    let mut got = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(bytes) => got += bytes.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(got, 500);
    assert!(matches!(error, ClientError::Stalled { .. }), "{error:?}");
    assert_eq!(error.kind(), registry::ErrorKind::Unavailable);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn addresses_cannot_be_smuggled() {
    let fake = Fake::start(|_| ok("x")).await;
    let blob = descriptor("x", b"x");
    for (host, repository) in [
        (fake.host(), "../x"),
        (fake.host(), "a/../../b"),
        (fake.host(), "a?b"),
        (fake.host(), "a#b"),
        (fake.host(), ""),
        (format!("user@{}", fake.host()), "a"),
        (format!("{}/x", fake.host()), "a"),
        (format!("{}#", fake.host()), "a"),
    ] {
        let endpoint = registry::Endpoint { host, repository: repository.into(), insecure: true };
        let error = client().blob(&endpoint, &blob, &NOBODY).await.unwrap_err();
        assert!(matches!(error, ClientError::Address { .. }), "{endpoint}: {error:?}");
    }
    assert!(fake.asked().is_empty());
}
