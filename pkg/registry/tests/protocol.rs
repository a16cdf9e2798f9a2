//! Manifests and getting in: tokens, passwords, refusals, waits, lies.

// Helpers outside of test functions count as tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fake::{Fake, client, client_with, ok, status, with};
use registry::{Client, ClientError, Credentials, Digest, ErrorKind, Manifest, Secret};

const NOBODY: Credentials = Credentials::Anonymous;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

async fn manifest(
    client: &Client,
    fake: &Fake,
    creds: &Credentials,
) -> Result<Manifest, ClientError> {
    client.manifest(&fake.endpoint(), "v1", creds).await
}

/// A token server that gives out `answer`.
async fn tokens(answer: &'static str) -> Fake {
    Fake::start(move |_| ok(answer)).await
}

/// A registry that wants `token`, to be had at `realm`.
async fn guarded(realm: String, token: &'static str) -> Fake {
    Fake::start(move |asked| {
        if asked.header("authorization") == format!("Bearer {token}") {
            return ok("{}");
        }
        let challenge =
            format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"repository:team/app:pull\"");
        with(status(401), "www-authenticate", &challenge)
    })
    .await
}

fn realm(fake: &Fake) -> String {
    format!("http://{}/token", fake.host())
}

#[tokio::test]
async fn a_manifest() {
    let fake = Fake::start(|_| {
        let answer = with(ok("{}"), "content-type", "application/vnd.oci.image.index.v1+json; q=1");
        with(answer, "docker-content-digest", &Digest::of("{}").to_string())
    })
    .await;
    let found = manifest(&client(), &fake, &NOBODY).await.unwrap();
    assert_eq!((found.media_type.as_str(), &found.bytes[..]), (INDEX, &b"{}"[..]));
    assert_eq!(found.digest, Digest::of("{}"));
    let asked = &fake.asked()[0];
    assert_eq!(asked.path, "/v2/team/app/manifests/v1");
    for kind in
        ["oci.image.index", "oci.image.manifest", "manifest.list.v2", "distribution.manifest.v2"]
    {
        assert!(asked.header("accept").contains(kind), "{kind}");
    }
    let by_digest =
        client().manifest(&fake.endpoint(), &Digest::of("{}").to_string(), &NOBODY).await;
    assert_eq!(by_digest.unwrap().digest, Digest::of("{}"));
    for bad in ["../x", "a/b", "a?b", "", "sha256:12"] {
        let error = client().manifest(&fake.endpoint(), bad, &NOBODY).await.unwrap_err();
        assert!(matches!(error, ClientError::Address { .. }), "{bad}");
    }
}

#[tokio::test]
async fn wrong_digests() {
    let fake = Fake::start(|_| ok("evil")).await;
    let wanted = Digest::of("good");
    let error =
        client().manifest(&fake.endpoint(), &wanted.to_string(), &NOBODY).await.unwrap_err();
    assert!(matches!(&error, ClientError::DigestMismatch { expected, actual, .. }
        if *expected == wanted && *actual == Digest::of("evil")));
    let lying =
        Fake::start(|_| with(ok("evil"), "docker-content-digest", &Digest::of("good").to_string()))
            .await;
    let error = manifest(&client(), &lying, &NOBODY).await.unwrap_err();
    assert!(matches!(error, ClientError::DigestMismatch { .. }));
}

#[tokio::test]
async fn huge_manifests() {
    let announced = Fake::start(|_| ok(vec![b' '; (4 << 20) + 1])).await;
    let error = manifest(&client(), &announced, &NOBODY).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "{error:?}");
    let chunked = Fake::start(|_| fake::chunked(Bytes::from(vec![b' '; (4 << 20) + 1]))).await;
    let error = manifest(&client(), &chunked, &NOBODY).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "{error:?}");
    let fits = Fake::start(|_| ok(vec![b' '; 4 << 20])).await;
    assert_eq!(manifest(&client(), &fits, &NOBODY).await.unwrap().bytes.len(), 4 << 20);
}

#[tokio::test]
async fn bearer_with_a_password() {
    let auth = tokens(r#"{"token":"t1","expires_in":300}"#).await;
    let fake = guarded(realm(&auth), "t1").await;
    let (client, creds) = (client(), Credentials::basic("me", "hunter2"));
    manifest(&client, &fake, &creds).await.unwrap();
    manifest(&client, &fake, &creds).await.unwrap();
    assert_eq!(auth.asked().len(), 1, "the token is kept");
    let asked = &auth.asked()[0];
    assert_eq!(asked.header("authorization"), "Basic bWU6aHVudGVyMg==");
    assert_eq!(asked.query, "service=reg&scope=repository%3Ateam%2Fapp%3Apull&account=me");
    assert_eq!(fake.asked().len(), 3);
    assert!(fake.asked().iter().all(|a| !a.header("authorization").starts_with("Basic")));

    // Neither somebody else's nor another repository's.
    manifest(&client, &fake, &Credentials::basic("you", "x")).await.unwrap();
    assert_eq!(auth.asked().len(), 2);
    let mut other = fake.endpoint();
    other.repository = "other/app".into();
    client.manifest(&other, "v1", &creds).await.unwrap();
    assert_eq!(auth.asked().len(), 3);
}

#[tokio::test]
async fn bearer_for_nobody_and_by_identity_token() {
    let auth = tokens(r#"{"access_token":"t1","expires_in":-5}"#).await;
    let fake = guarded(realm(&auth), "t1").await;
    manifest(&client(), &fake, &NOBODY).await.unwrap();
    assert_eq!(auth.asked()[0].header("authorization"), "");
    let identity = Credentials::IdentityToken(Secret::new("re fresh"));
    manifest(&client(), &fake, &identity).await.unwrap();
    let asked = &auth.asked()[1];
    assert_eq!(asked.method, "POST");
    assert_eq!(asked.query, "");
    assert_eq!(
        asked.body,
        "service=reg&grant_type=refresh_token&client_id=criod-registry&refresh_token=re%20fresh\
         &scope=repository%3Ateam%2Fapp%3Apull"
    );
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let auth = tokens(r#"{"token":"t1"}"#).await;
    let fake = guarded(realm(&auth), "mine").await;
    manifest(&client(), &fake, &Credentials::RegistryToken(Secret::new("mine"))).await.unwrap();
    assert_eq!(fake.asked().len(), 1);
    let wrong = Credentials::RegistryToken(Secret::new("other"));
    let error = manifest(&client(), &fake, &wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(auth.asked().is_empty());
}

#[tokio::test]
async fn an_expired_token_is_replaced() {
    let turn = AtomicUsize::new(0);
    let auth = Fake::start(move |_| match turn.fetch_add(1, Ordering::SeqCst) {
        0 => ok(r#"{"token":"old"}"#),
        _ => ok(r#"{"token":"new"}"#),
    })
    .await;
    let (realm, turn) = (realm(&auth), AtomicUsize::new(0));
    let fake = Fake::start(move |asked| {
        let good =
            if turn.fetch_add(1, Ordering::SeqCst) < 2 { "Bearer old" } else { "Bearer new" };
        match asked.header("authorization") == good {
            true => ok("{}"),
            false => with(status(401), "www-authenticate", &format!("Bearer realm=\"{realm}\"")),
        }
    })
    .await;
    let client = client();
    manifest(&client, &fake, &NOBODY).await.unwrap();
    manifest(&client, &fake, &NOBODY).await.unwrap();
    assert_eq!(auth.asked().len(), 2);
    assert!(auth.asked()[0].query.contains("scope=repository%3Ateam%2Fapp%3Apull"));
}

#[tokio::test]
async fn insufficient_scope_is_asked_for() {
    let auth = Fake::start(|asked| match asked.query.contains("other%3Apull") {
        true => ok(r#"{"token":"wide"}"#),
        false => ok(r#"{"token":"narrow"}"#),
    })
    .await;
    let realm = realm(&auth);
    let fake = Fake::start(move |asked| {
        let ask = |rest: &str| format!("Bearer realm=\"{realm}\",{rest}");
        match asked.header("authorization") {
            "Bearer wide" => ok("{}"),
            "Bearer narrow" => with(
                status(403),
                "www-authenticate",
                &ask("scope=\"repository:other:pull\",error=\"insufficient_scope\""),
            ),
            _ => with(status(401), "www-authenticate", &ask("scope=\"repository:team/app:pull\"")),
        }
    })
    .await;
    manifest(&client(), &fake, &NOBODY).await.unwrap();
    let query = &auth.asked()[1].query;
    assert!(query.contains("other%3Apull") && query.contains("team%2Fapp%3Apull"), "{query}");
}

#[tokio::test]
async fn token_servers_that_lie() {
    for answer in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"token":""}"#,
        r#"{"token":7}"#,
        r#"{"token":"a\nb"}"#,
        "<html>",
    ] {
        let auth = tokens(answer).await;
        let fake = guarded(realm(&auth), "t").await;
        let error = manifest(&client(), &fake, &NOBODY).await.unwrap_err();
        assert!(matches!(error, ClientError::Token { .. }), "{answer}: {error:?}");
    }
    for (expires, _) in [("1e300", 0), ("\"x\"", 0), ("null", 0), ("-1", 0), ("{}", 0)] {
        let answer: &'static str =
            Box::leak(format!("{{\"token\":\"t\",\"expires_in\":{expires}}}").into_boxed_str());
        let auth = tokens(answer).await;
        let fake = guarded(realm(&auth), "t").await;
        manifest(&client(), &fake, &NOBODY).await.unwrap();
    }
    let huge = Fake::start(|_| ok(vec![b' '; (1 << 20) + 1])).await;
    let fake = guarded(realm(&huge), "t").await;
    let error = manifest(&client(), &fake, &NOBODY).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "{error:?}");
    // A token that does not help is not asked for without end.
    let auth = tokens(r#"{"token":"useless"}"#).await;
    let fake = guarded(realm(&auth), "t").await;
    let error = manifest(&client(), &fake, &NOBODY).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(auth.asked().len() <= 2);
    for bad in ["ftp://x/", "/token", "http://u:hunter2@127.0.0.1/", "http://", "a b"] {
        let fake = guarded(bad.into(), "t").await;
        let error = manifest(&client(), &fake, &Credentials::basic("me", "pw")).await.unwrap_err();
        assert!(matches!(error, ClientError::Token { .. }), "{bad}: {error:?}");
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}

#[tokio::test]
async fn refusals() {
    let refusing = Fake::start(|_| status(401)).await;
    let fake = guarded(realm(&refusing), "t").await;
    let creds = Credentials::basic("me", "hunter2");
    let error = manifest(&client(), &fake, &creds).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error:?} {error}").contains("hunter2"));

    let body = r#"{"errors":[{"code":"DENIED","message":"no\u001b[31m way"}]}"#;
    let denied = Fake::start(move |_| {
        let mut answer = ok(body);
        *answer.status_mut() = http::StatusCode::FORBIDDEN;
        answer
    })
    .await;
    let error = manifest(&client(), &denied, &creds).await.unwrap_err();
    assert!(error.to_string().ends_with("denied: DENIED no [31m way"), "{error}");

    let strange = Fake::start(|_| with(status(401), "www-authenticate", "Negotiate")).await;
    let error = manifest(&client(), &strange, &creds).await.unwrap_err();
    assert!(matches!(&error, ClientError::Challenge { schemes, .. } if schemes == "negotiate"));
    let basic = Fake::start(|_| with(status(401), "www-authenticate", "Basic realm=x")).await;
    for creds in [NOBODY, creds] {
        let error = manifest(&client(), &basic, &creds).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
    }
    assert_eq!(basic.asked().len(), 3, "a refused password is not sent twice");
    let gone = Fake::start(|_| status(404)).await;
    assert_eq!(manifest(&client(), &gone, &NOBODY).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn busy_registries_are_asked_again() {
    for code in [429, 500, 502, 503, 504] {
        let turn = AtomicUsize::new(0);
        let fake = Fake::start(move |_| match turn.fetch_add(1, Ordering::SeqCst) {
            // A wait that is cut down to what the client allows.
            0 | 1 => with(status(code), "retry-after", "86400"),
            _ => ok("{}"),
        })
        .await;
        manifest(&client(), &fake, &NOBODY).await.unwrap();
        assert_eq!(fake.asked().len(), 3);
        let always = Fake::start(move |_| status(code)).await;
        let error = manifest(&client_with(|o| o.retries = 2), &always, &NOBODY).await.unwrap_err();
        assert!(matches!(error, ClientError::Status { status, .. } if status == code));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(always.asked().len(), 3);
    }
    let teapot = Fake::start(|_| status(418)).await;
    assert_eq!(manifest(&client(), &teapot, &NOBODY).await.unwrap_err().kind(), ErrorKind::Other);
    assert_eq!(teapot.asked().len(), 1);
}

#[tokio::test]
async fn a_cut_manifest_is_fetched_again() {
    let turn = AtomicUsize::new(0);
    let fake = Fake::start(move |_| match turn.fetch_add(1, Ordering::SeqCst) {
        0 => fake::cut("{".into(), 2),
        _ => ok("{}"),
    })
    .await;
    assert_eq!(&manifest(&client(), &fake, &NOBODY).await.unwrap().bytes[..], b"{}");
}

#[tokio::test]
async fn hanging_and_absent_servers() {
    let fake = Fake::start(|_| fake::hang("{".into(), 2)).await;
    let client = client_with(|o| o.response_timeout = Duration::from_millis(200));
    let error = manifest(&client, &fake, &NOBODY).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);

    // Accepts connections (the kernel does) and never says a word.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = mute.local_addr().unwrap().to_string();
    for insecure in [true, false] {
        let client = client_with(|o| {
            o.response_timeout = Duration::from_millis(200);
            o.connect_timeout = Duration::from_millis(200);
        });
        let endpoint = registry::Endpoint { host: host.clone(), repository: "a".into(), insecure };
        let error = client.manifest(&endpoint, "v1", &NOBODY).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    drop(mute);
    for insecure in [true, false] {
        let endpoint = registry::Endpoint { host: host.clone(), repository: "a".into(), insecure };
        let error = client.manifest(&endpoint, "v1", &NOBODY).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
}
