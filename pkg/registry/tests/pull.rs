//! Whole images: mirrors, indexes, configurations, and all the ways to be no image.

// Helpers outside of test functions count as tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::collections::HashMap;
use std::path::Path;

use fake::{Body, Fake, client, descriptor, ok, status};
use registry::image::media;
use registry::pull::{SourceError, resolve};
use registry::{
    Credentials, Descriptor, Digest, ErrorKind, ImageError, Keyring, Platform, PullError,
    Reference, Registries, fetch_image,
};
use serde_json::json;

/// What a registry has, by the end of a path.
#[derive(Default, Clone)]
struct Store(HashMap<String, Vec<u8>>);

impl Store {
    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let descriptor = descriptor(media_type, &bytes);
        self.0.insert(format!("/blobs/{}", descriptor.digest), bytes);
        descriptor
    }

    fn manifest(&mut self, tag: &str, value: &serde_json::Value) -> Descriptor {
        let bytes = serde_json::to_vec(value).unwrap();
        let descriptor = descriptor(value["mediaType"].as_str().unwrap(), &bytes);
        self.0.insert(format!("/manifests/{}", descriptor.digest), bytes.clone());
        self.0.insert(format!("/manifests/{tag}"), bytes);
        descriptor
    }

    fn image(&mut self, tag: &str, layers: &[&str]) -> Descriptor {
        let diff_ids: Vec<Digest> = layers.iter().map(|l| Digest::of(format!("{l}.tar"))).collect();
        let config = json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": [tag]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.blob(media::OCI_CONFIG, serde_json::to_vec(&config).unwrap());
        let layers: Vec<Descriptor> = layers
            .iter()
            .map(|l| {
                self.blob("application/vnd.oci.image.layer.v1.tar+gzip", l.as_bytes().to_vec())
            })
            .collect();
        self.manifest(
            tag,
            &json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
            "config": config, "layers": layers}),
        )
    }

    fn index(&mut self, tag: &str, entries: &[Descriptor]) -> Descriptor {
        self.manifest(
            tag,
            &json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX,
            "manifests": entries}),
        )
    }

    fn answer(&self, path: &str) -> http::Response<Body> {
        match path.find("/manifests/").or_else(|| path.find("/blobs/")) {
            Some(at) => self.0.get(&path[at..]).map_or_else(|| status(404), |b| ok(b.clone())),
            None => status(404),
        }
    }

    async fn serve(self) -> Fake {
        Fake::start(move |asked| self.answer(&asked.path)).await
    }
}

fn on(mut descriptor: Descriptor, os: &str, arch: &str) -> Descriptor {
    descriptor.platform = Some(Platform::new(os, arch, None));
    descriptor
}

fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

fn reference(fake: &Fake, rest: &str) -> Reference {
    Reference::parse(&format!("{}/team/app{rest}", fake.host())).unwrap()
}

fn conf(text: &str) -> Registries {
    Registries::parse(Path::new("r.conf"), text).unwrap()
}

async fn fetch(fake: &Fake, rest: &str) -> Result<registry::Fetched, PullError> {
    let registries = Registries::default().with_insecure(&fake.host());
    fetch_image(&client(), &registries, &reference(fake, rest), &Keyring::anonymous(), &amd64())
        .await
}

/// The only source's error.
fn cause(error: PullError) -> SourceError {
    match error {
        PullError::AllFailed { mut attempts, .. } if attempts.len() == 1 => attempts.remove(0).1,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_image_by_tag_digest_and_index() {
    let mut store = Store::default();
    let image = store.image("v1", &["a", "b"]);
    let other = store.image("arm", &["c"]);
    let inner = store.index("inner", &[on(image.clone(), "linux", "amd64")]);
    let index = store.index(
        "multi",
        &[
            on(other, "linux", "arm64"),
            on(descriptor(media::OCI_MANIFEST, b"attestation"), "unknown", "unknown"),
            on(inner, "linux", "amd64"),
        ],
    );
    let fake = store.serve().await;
    for (rest, top) in [
        (":v1".to_owned(), &image),
        (format!("@{}", image.digest), &image),
        (format!(":gone@{}", image.digest), &image),
        (":multi".to_owned(), &index),
        (format!("@{}", index.digest), &index),
    ] {
        let found = fetch(&fake, &rest).await.unwrap();
        assert_eq!(found.top_digest, top.digest, "{rest}");
        assert_eq!(found.manifest_digest, image.digest);
        assert!(found.manifest_digest.verify(&found.manifest_bytes));
        assert!(found.config_digest.verify(&found.config_bytes));
        assert_eq!(found.config.config.cmd, ["v1"]);
        assert_eq!(found.layers.len(), 2);
        assert_eq!(found.endpoint.repository, "team/app");
    }
}

#[tokio::test]
async fn no_images() {
    let mut store = Store::default();
    let image = store.image("v1", &["a"]);
    store.index("windows", &[on(image.clone(), "windows", "amd64")]);
    let mut deep = on(image.clone(), "linux", "amd64");
    for depth in 1..=4 {
        deep = on(store.index(&format!("deep{depth}"), &[deep]), "linux", "amd64");
    }
    let empty = store.blob("application/vnd.oci.empty.v1+json", b"{}".to_vec());
    let manifest = |config: &Descriptor, layers: &[Descriptor]| {
        json!({"schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST, "config": config, "layers": layers})
    };
    store.manifest("artifact", &manifest(&empty, &[]));
    let config = store.blob(media::OCI_CONFIG, br#"{"rootfs":{"type":"layers"}}"#.to_vec());
    let layer = store.blob("application/vnd.oci.image.layer.v1.tar+lzma", b"l".to_vec());
    store.manifest("lzma", &manifest(&config, std::slice::from_ref(&layer)));
    let mut plain = layer;
    plain.media_type = "application/vnd.oci.image.layer.v1.tar".into();
    store.manifest("count", &manifest(&config, &[plain]));
    let mut huge = config.clone();
    huge.size = (4 << 20) + 1;
    store.manifest("huge", &manifest(&huge, &[]));
    let mut missing = config.clone();
    missing.digest = Digest::of("nowhere");
    store.manifest("missing", &manifest(&missing, &[]));
    let mut longer = config;
    longer.size += 1;
    store.manifest("longer", &manifest(&longer, &[]));
    store.0.insert("/manifests/old".into(), br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec());
    let fake = store.serve().await;

    let image_error = async |tag: &str| match cause(fetch(&fake, tag).await.unwrap_err()) {
        SourceError::Image(error) => error,
        other => panic!("{tag}: {other:?}"),
    };
    assert!(matches!(image_error(":windows").await, ImageError::NoPlatform { .. }));
    fetch(&fake, ":deep3").await.unwrap();
    assert!(matches!(image_error(":deep4").await, ImageError::TooDeep));
    assert!(matches!(image_error(":artifact").await, ImageError::NotAnImage { .. }));
    assert!(matches!(image_error(":lzma").await, ImageError::LayerType { .. }));
    assert!(matches!(
        image_error(":count").await,
        ImageError::LayerCount { layers: 1, diff_ids: 0 }
    ));
    assert!(matches!(image_error(":huge").await, ImageError::TooLarge { .. }));
    assert!(matches!(image_error(":old").await, ImageError::Schema1));
    let error = fetch(&fake, ":missing").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(matches!(cause(fetch(&fake, ":longer").await.unwrap_err()), SourceError::Client(_)));

    let registries = Registries::default().with_insecure(&fake.host());
    let name = reference(&fake, ":artifact");
    let artifact = resolve(&client(), &registries, &name, &Keyring::anonymous(), &amd64()).await;
    assert!(!artifact.unwrap().manifest.is_container_image());
}

#[tokio::test]
async fn mirrors_that_fail_and_one_that_does_not() {
    let mut store = Store::default();
    store.image("v1", &["a"]);
    let good = store.serve().await;
    let broken = Fake::start(|_| status(500)).await;
    let without = Fake::start(|_| status(404)).await;
    let liar = Fake::start(|_| ok("{}")).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let mirror =
        |host: &str| format!("[[registry.mirror]]\nlocation = '{host}/cache'\ninsecure = true\n");
    let mirrors: String = [&broken.host(), &without.host(), &liar.host(), &refused]
        .iter()
        .map(|h| mirror(h))
        .collect();
    let text = format!(
        "[[registry]]\nprefix = 'reg.test'\nlocation = '{}'\ninsecure = true\n{mirrors}",
        good.host()
    );
    let name = Reference::parse("reg.test/team/app:v1").unwrap();
    let keyring = Keyring::given(Credentials::Anonymous);
    let found = fetch_image(&client(), &conf(&text), &name, &keyring, &amd64()).await.unwrap();
    assert_eq!(found.endpoint.host, good.host());
    assert_eq!(without.asked()[0].path, "/v2/cache/team/app/manifests/v1");

    // The same with a registry that is not there: each source's error is told.
    let text = text.replacen(&good.host(), &refused, 1);
    let error = fetch_image(&client(), &conf(&text), &name, &keyring, &amd64()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let told = error.to_string();
    for part in ["answered 500", "does not exist", "unsupported manifest", "refused"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let PullError::AllFailed { reference, attempts } = error else { panic!("{told}") };
    assert_eq!((*reference, attempts.len()), (name, 5));
}
