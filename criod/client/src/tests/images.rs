//! `images`, `pull`, `rmi`.

use api_cri::v1::*;

use super::fake::Fake;
use super::{criod, error, ok};

fn fake() -> Fake {
    let fake = Fake::new();
    let image = |id: &str, tags: &[&str], digests: &[&str], size| Image {
        id: id.into(),
        repo_tags: tags.iter().map(|&t| t.into()).collect(),
        repo_digests: digests.iter().map(|&t| t.into()).collect(),
        size,
        ..Default::default()
    };
    fake.state().images = vec![
        image(
            "sha256:feed0123456789abcdef",
            &["127.0.0.1:5000/a/web:1", "127.0.0.1:5000/a/web:latest"],
            &["127.0.0.1:5000/a/web@sha256:d1"],
            3_623_807,
        ),
        image("sha256:feee", &[], &["quay.io/tool@sha256:d2"], 999),
        image("sha256:0bad", &[], &[], 0),
    ];
    fake
}

#[tokio::test]
async fn images() {
    let fake = fake();
    let _server = fake.serve();
    assert_eq!(
        criod(&fake, &["images"]).await,
        ok("\
IMAGE                  TAG      IMAGE ID        SIZE
-                      -        0bad            0 B
quay.io/tool           -        feee            999 B
127.0.0.1:5000/a/web   1        feed012345678   3.62 MB
127.0.0.1:5000/a/web   latest   feed012345678   3.62 MB
")
    );
    let (_, out, _) = criod(&fake, &["images", "--digests"]).await;
    assert!(
        out.contains("\nquay.io/tool           -        sha256:d2   feee            999 B\n"),
        "{out}"
    );
    assert_eq!(
        criod(&fake, &["images", "-q"]).await,
        ok("sha256:0bad\nsha256:feee\nsha256:feed0123456789abcdef\n")
    );
}

#[tokio::test]
async fn remove_images() {
    let fake = fake();
    let _server = fake.serve();
    let (code, out, err) =
        criod(&fake, &["rmi", "127.0.0.1:5000/a/web:1", "0b", "fee", "none"]).await;
    assert_eq!((code, out.as_str()), (1, "127.0.0.1:5000/a/web:1\n0b\n"));
    assert_eq!(
        err,
        "error: \"fee\" could be any of image 127.0.0.1:5000/a/web:1 (feed012345678), \
         image quay.io/tool@sha256:d2 (feee)\n\
         error: there is no image \"none\"\n"
    );
    // A tag is removed as a tag, so that other tags of the image stay.
    assert_eq!(fake.calls(), "remove image 127.0.0.1:5000/a/web:1; remove image sha256:0bad");
}

#[tokio::test]
async fn pull_without_progress() {
    let fake = fake();
    let _server = fake.serve();
    // Asked once, answered with 404, and not asked again.
    fake.state().pull_waits_for = 1;
    let (code, out, err) = criod(&fake, &["pull", "--creds", "me:secret:1", "web"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "sha256:0123\n", "pulling web\n"));
    let auth = fake.state().pulled.take().unwrap().auth.unwrap();
    assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", "secret:1"));
    assert_eq!(
        criod(&fake, &["pull", "-o", "json", "web"]).await.1,
        "{\n  \"imageRef\": \"sha256:0123\"\n}\n"
    );
}

#[tokio::test]
async fn pull_with_progress() {
    let fake = fake();
    let _server = fake.serve();
    let at = |state: &str, done: u64| {
        format!(
            r#"[{{"image":"other:1","layers":[{{"digest":"sha256:99","state":"done"}}]}},
                {{"image":"docker.io/library/web:latest","layers":[
                  {{"digest":"sha256:aa00","total":2000,"done":{done},"state":"{state}"}},
                  {{"digest":"sha256:bb00","total":5,"done":5,"state":"exists"}}]}}]"#
        )
    };
    fake.state().progress = vec![
        "[]".into(),
        at("downloading", 5),
        at("downloading", 9),
        at("unpacking", 0),
        at("done", 0),
    ];
    fake.state().pull_waits_for = 6;
    let (code, out, err) = criod(&fake, &["pull", "web"]).await;
    assert_eq!((code, out.as_str()), (0, "sha256:0123\n"));
    assert_eq!(
        err,
        "pulling web\n\
         layer aa00: downloading (2.00 kB)\n\
         layer bb00: exists\n\
         layer aa00: unpacking\n\
         layer aa00: done\n"
    );
}

#[tokio::test]
async fn progress_that_makes_no_sense_spoils_no_pull() {
    for text in ["", "{}", "[{\"image\":5}]", "null"] {
        let fake = fake();
        let _server = fake.serve();
        fake.state().progress = vec![text.into()];
        fake.state().pull_waits_for = 1;
        assert_eq!(criod(&fake, &["pull", "web"]).await.0, 0, "{text}");
    }
}

#[tokio::test]
async fn a_pull_that_fails() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().failing.insert("pull_image", tonic::Status::not_found("manifest unknown"));
    let (code, _, err) = criod(&fake, &["pull", "web"]).await;
    assert_eq!(
        (code, err.as_str()),
        (1, "pulling web\nerror: cannot pull web: manifest unknown\n")
    );
    let (code, _, err) = criod(&fake, &["run", "web"]).await;
    assert_eq!((code, err.ends_with("error: cannot pull web: manifest unknown\n")), (125, true));
    assert_eq!(criod(&fake, &["rmi", "web"]).await, error(1, "there is no image \"web\""));
}
