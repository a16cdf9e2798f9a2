//! Reading documents, choosing a platform, hostile shapes.

use proptest::prelude::*;

use super::*;

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn entry(n: u8, platform: Option<Platform>) -> Descriptor {
    Descriptor {
        media_type: media::OCI_MANIFEST.into(),
        digest: Digest::of([n]),
        size: 1,
        urls: vec![],
        platform,
        annotations: BTreeMap::new(),
    }
}

fn index(platforms: &[(&str, &str, Option<&str>)]) -> Index {
    let manifests = platforms
        .iter()
        .enumerate()
        .map(|(n, (os, arch, variant))| entry(n as u8, Some(Platform::new(os, arch, *variant))))
        .collect();
    Index { media_type: media::OCI_INDEX.into(), manifests, annotations: BTreeMap::new() }
}

fn chosen(index: &Index, platform: &Platform) -> Option<usize> {
    let found = select(index, platform).ok()?;
    index.manifests.iter().position(|m| m.digest == found.digest)
}

#[test]
fn selects() {
    let many = index(&[
        ("unknown", "unknown", None),
        ("linux", "arm", Some("v6")),
        ("linux", "arm", Some("v7")),
        ("linux", "arm64", None),
        ("linux", "arm64", Some("v8")),
        ("windows", "amd64", None),
        ("linux", "amd64", None),
        ("linux", "amd64", None),
    ]);
    assert_eq!(chosen(&many, &Platform::new("linux", "amd64", None)), Some(6));
    assert_eq!(chosen(&many, &Platform::new("linux", "arm", Some("v7"))), Some(2));
    assert_eq!(chosen(&many, &Platform::new("linux", "arm", Some("v6"))), Some(1));
    assert_eq!(chosen(&many, &Platform::new("linux", "arm64", Some("v8"))), Some(4));
    assert_eq!(chosen(&many, &Platform::new("linux", "arm64", None)), Some(4));
    let error = select(&many, &Platform::new("linux", "s390x", None)).unwrap_err();
    assert!(
        error.to_string().contains("linux/s390x") && error.to_string().contains("linux/arm/v7")
    );
    let armv5 = index(&[("linux", "arm", Some("v7"))]);
    assert_eq!(chosen(&armv5, &Platform::new("linux", "arm", Some("v5"))), None);
    let mut bare = index(&[("unknown", "unknown", None)]);
    assert_eq!(chosen(&bare, &Platform::host()), None);
    bare.manifests.push(entry(9, None));
    assert_eq!(chosen(&bare, &Platform::host()), Some(1));
}

#[test]
fn reads_each_kind() {
    let list = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{{"mediaType":"x","digest":"{D}","size":3,
           "platform":{{"os":"linux","architecture":"amd64","os.version":"1"}}}}]}}"#,
        media::DOCKER_LIST
    );
    assert!(matches!(Document::parse(list.as_bytes(), None).unwrap(), Document::Index(i)
        if i.manifests[0].platform == Some(Platform::new("linux", "amd64", None))));
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{}","digest":"{D}","size":3}},"layers":null}}"#,
        media::OCI_CONFIG
    );
    for content_type in [None, Some("text/plain"), Some(media::OCI_MANIFEST)] {
        assert!(matches!(Document::parse(manifest.as_bytes(), content_type).unwrap(),
            Document::Image(m) if m.is_container_image() && m.media_type == media::OCI_MANIFEST));
    }
    let docker = format!("{}; charset=utf-8", media::DOCKER_MANIFEST);
    assert!(matches!(Document::parse(manifest.as_bytes(), Some(&docker)).unwrap(),
        Document::Image(m) if m.media_type == media::DOCKER_MANIFEST));
}

#[test]
fn refuses() {
    let config = format!(r#"{{"mediaType":"c","digest":"{D}","size":3}}"#);
    let layers = vec![config.as_str(); MAX_LAYERS + 1].join(",");
    let parse = |text: String| Document::parse(text.as_bytes(), None).unwrap_err();
    assert!(matches!(parse(r#"{"schemaVersion":1,"fsLayers":[]}"#.into()), ImageError::Schema1));
    assert!(matches!(
        parse(format!(
            r#"{{"schemaVersion":2,"manifests":[],"layers":[],"mediaType":"{}"}}"#,
            media::OCI_INDEX
        )),
        ImageError::Ambiguous { .. }
    ));
    assert!(matches!(
        parse(format!(r#"{{"schemaVersion":2,"manifests":[],"config":{config}}}"#)),
        ImageError::Ambiguous { .. }
    ));
    assert!(matches!(
        parse(format!(
            r#"{{"schemaVersion":2,"config":{config},"mediaType":"{}"}}"#,
            media::OCI_INDEX
        )),
        ImageError::MediaType { .. }
    ));
    assert!(matches!(
        parse(format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}]}}"#)),
        ImageError::TooManyLayers { count: 513 }
    ));
    assert!(matches!(parse(r#"{"schemaVersion":2}"#.into()), ImageError::MediaType { .. }));
    for bad in
        ["", "[]", "{", "null", r#"{"schemaVersion":2,"config":{"digest":"sha256:1","size":1}}"#]
    {
        assert!(matches!(parse(bad.into()), ImageError::Manifest { .. }), "{bad}");
    }
    let negative = config.replace(":3", ":-3");
    assert!(matches!(
        parse(format!(r#"{{"schemaVersion":2,"config":{negative}}}"#)),
        ImageError::Manifest { .. }
    ));
}

#[test]
fn compressions() {
    let mut layer = entry(0, None);
    for (media_type, expected) in [
        ("application/vnd.oci.image.layer.v1.tar", Compression::None),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
    ] {
        layer.media_type = media_type.into();
        assert_eq!(layer.layer_compression().unwrap(), expected);
    }
    layer.urls = vec!["https://example.com/x".into()];
    assert!(matches!(layer.layer_compression(), Err(ImageError::ForeignLayer { .. })));
    layer.urls.clear();
    layer.media_type = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into();
    assert!(layer.layer_compression().unwrap_err().to_string().contains("+encrypted"));
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Document::parse(&bytes, None);
        let _ = ImageConfig::parse(&bytes);
    }
}
