//! Images without a registry.

use std::path::Path;
use std::process::Command;

use criod_images::Kind;
use test_images::layout::write_layout;

use crate::bench::{Bench, catalog};

fn layout(dir: &Path, names: &[&str]) -> test_images::store::Catalog {
    let catalog = catalog(names);
    write_layout(&catalog, dir).unwrap();
    catalog
}

fn skopeo(from: &str, to: &str) {
    let out = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", from, to])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["test/busybox:1", "test/zstd:1", "test/index:1", "test/layers:120"];
    let catalog = layout(dir.path(), &names);
    let bench = Bench::new();
    for image in names {
        let name = format!("localhost/{image}");
        let id = bench.images.import_layout(dir.path(), &name).await.unwrap();
        let info = bench.images.status(&name).unwrap();
        assert_eq!((&info.id, &info.repo_tags), (&id, &vec![name.clone()]));
        let repository = name.rsplit_once(':').unwrap().0;
        let digest = &catalog.find(image).unwrap().root.digest;
        assert_eq!(info.repo_digests, [format!("{repository}@{digest}")]);
        assert!(bench.images.for_container(&name).is_ok());
    }
    bench.nothing_under_way();
    let error = bench.images.import_layout(dir.path(), "localhost/other:1").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{}", error.full());
    let nowhere = dir.path().join("nowhere");
    let error = bench.images.import_layout(&nowhere, "localhost/test/zstd:1").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{}", error.full());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layout_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = layout(dir.path(), &["test/zstd:1"]);
    let bench = Bench::new();
    let image = catalog.find("test/zstd:1").unwrap();
    // Each of its files in turn: manifest, layers, config.
    for blob in image.manifests.iter().chain(&image.blobs) {
        let file = dir.path().join("blobs/sha256").join(blob.digest.trim_start_matches("sha256:"));
        let whole = std::fs::read(&file).unwrap();
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        for bytes in [damaged, whole[..whole.len() - 1].to_vec(), Vec::new()] {
            std::fs::write(&file, bytes).unwrap();
            let name = "localhost/test/zstd:1";
            let error = bench.images.import(dir.path(), name).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{}: {}", blob.media_type, error.full());
            assert_eq!(bench.left(), Vec::<String>::new(), "{}", blob.media_type);
        }
        std::fs::write(&file, whole).unwrap();
    }
    bench.images.import(dir.path(), "localhost/test/zstd:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_both_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("layout");
    layout(&folder, &["test/layered:1"]);
    let source = format!("oci:{}:test/layered:1", folder.display());
    let oci = dir.path().join("oci.tar");
    let docker = dir.path().join("docker.tar");
    skopeo(&source, &format!("oci-archive:{}:test/layered:1", oci.display()));
    skopeo(&source, &format!("docker-archive:{}:test/layered:1", docker.display()));
    let (one, two, three) = (Bench::new(), Bench::new(), Bench::new());
    let name = "localhost/test/layered:1";
    let id = one.images.import(&folder, name).await.unwrap();
    assert_eq!(two.images.import(&oci, name).await.unwrap(), id);
    three.images.import(&docker, name).await.unwrap();
    // Docker's form has a config of its own, but the layers are the same.
    let layers = one.images.for_container(name).unwrap().layers;
    assert_eq!(layers.len(), 4);
    for bench in [&two, &three] {
        assert_eq!(bench.images.for_container(name).unwrap().layers, layers);
        assert_eq!(bench.images.status(name).unwrap().repo_digests.len(), 1);
        bench.nothing_under_way();
    }
    // Cut short, or none at all.
    let bytes = std::fs::read(&docker).unwrap();
    let fresh = Bench::new();
    for cut in [0, 100, 512, bytes.len() / 3, bytes.len() / 2] {
        std::fs::write(&docker, &bytes[..cut]).unwrap();
        fresh.images.import(&docker, name).await.unwrap_err();
        assert_eq!(fresh.left(), Vec::<String>::new());
    }
}
