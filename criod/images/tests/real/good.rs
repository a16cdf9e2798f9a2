//! Images that work.

use criod_images::{Images, Kind};
use registry::Credentials;

use crate::bench::{Bench, Proxy, Registry, catalog, options};

const GOOD: [&str; 14] = [
    "test/busybox:1",
    "test/docker:1",
    "test/pause:1",
    "test/zstd:1",
    "test/plain:1",
    "test/layered:1",
    "test/index:1",
    "test/user-1002:1",
    "test/user-www-data:1",
    "test/user-1003-users:1",
    "test/user-www-data-100:1",
    "test/user-root:1",
    "test/config:1",
    "test/layers:120",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_form_is_pulled_and_still_there_after_a_restart() {
    let registry = Registry::with(&GOOD);
    let bench = Bench::new();
    let mut ids = Vec::new();
    for image in GOOD {
        let name = registry.name(image);
        let id = bench.pull(&name).await;
        let info = bench.images.status(&name).unwrap();
        assert_eq!(info.id, id, "{image}");
        assert!(info.size > 0, "{image}");
        assert!(info.repo_tags.contains(&name), "{image}: {:?}", info.repo_tags);
        let repository = name.rsplit_once(':').unwrap().0;
        let digest = format!("{repository}@{}", registry.root(image));
        assert!(info.repo_digests.contains(&digest), "{image}: {:?}", info.repo_digests);
        let user = match image {
            "test/user-1002:1" => (Some(1002), ""),
            "test/user-1003-users:1" => (Some(1003), ""),
            "test/user-www-data:1" | "test/user-www-data-100:1" => (None, "www-data"),
            "test/user-root:1" => (None, "root"),
            _ => (Some(0), ""),
        };
        assert_eq!((info.uid, info.username.as_str()), user, "{image}");
        ids.push((image, id));
    }
    bench.nothing_under_way();
    let id_of = |image| ids.iter().find(|(name, _)| *name == image).unwrap().1.clone();
    assert_eq!(id_of("test/busybox:1"), registry.parts("test/busybox:1").1);
    assert_eq!(bench.images.status(&registry.name("test/layers:120")).unwrap().layers.len(), 120);

    // What is unpacked is what was packed.
    let file = |image: &str, layer: usize, path: &str| {
        let info = bench.images.status(&registry.name(image)).unwrap();
        let folder = bench.images.store().layers_folder();
        std::fs::read_to_string(folder.join(info.layers[layer].hex()).join("diff").join(path))
            .unwrap()
    };
    assert_eq!(file("test/zstd:1", 1, "packing"), "zstd\n");
    assert_eq!(file("test/plain:1", 1, "packing"), "plain\n");
    assert_eq!(file("test/index:1", 1, "arch"), "amd64\n");
    assert_eq!(file("test/layers:120", 119, "layers/last"), "119\n");

    let config = bench.images.for_container(&registry.name("test/config:1")).unwrap();
    assert_eq!(config.config.config.working_dir, "/srv/sub");
    assert_eq!(config.name, registry.name("test/config:1"));
    let digest = format!("{}@{}", registry.name("test/config"), registry.root("test/config:1"));
    assert_eq!(config.image_ref, digest);
    let by_id = bench.images.for_container(&config.id).unwrap();
    assert_eq!((by_id.name, by_id.layers), (config.name, config.layers));

    let before = listed(&bench.images);
    let usage = bench.images.fs_info();
    assert!(usage.used_bytes > 0 && usage.inodes > 0);
    assert_eq!(usage.mountpoint, bench.root);
    let (root, _dir) = (bench.root.clone(), bench);
    drop(_dir.images);
    let again = Bench::at(&root, options());
    assert_eq!(listed(&again.images), before);
    assert_eq!(again.images.fs_info(), usage);
}

fn listed(images: &Images) -> Vec<String> {
    images.list(None).iter().map(|info| format!("{info:?}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_here_costs_a_look_at_its_manifest() {
    let registry = Registry::with(&["test/busybox:1", "test/busybox:2"]);
    let proxy = Proxy::to(&registry.address()).await;
    let bench = Bench::new();
    let name = format!("{}/test/busybox:1", proxy.address);
    let id = bench.pull(&name).await;
    proxy.forget();
    assert_eq!(bench.pull(&name).await, id);
    assert_eq!(proxy.requests("/manifests/").len(), 1);
    assert!(proxy.blobs().is_empty());
    // By digest too, and the layer is not fetched again for another config.
    let digest = format!("{}/test/busybox@{}", proxy.address, registry.root("test/busybox:1"));
    assert_eq!(bench.pull(&digest).await, id);
    assert!(proxy.blobs().is_empty());
    let other = bench.pull(&format!("{}/test/busybox:2", proxy.address)).await;
    assert_ne!(other, id);
    let (layers, config) = registry.parts("test/busybox:2");
    assert_eq!(proxy.blobs().keys().collect::<Vec<_>>(), [&config], "{layers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_takes_its_name_along() {
    let registry = Registry::with(&["test/single-1:1", "test/single-2:1"]);
    let bench = Bench::new();
    let name = registry.name("test/single-1:1");
    let first = bench.pull(&name).await;
    // The other image under the first one's name.
    let mut moved = catalog(&["test/single-2:1"]);
    moved.images[0].names = vec!["test/single-1:1".into()];
    let target =
        test_images::push::Target { address: registry.address(), storage: None, user: None };
    test_images::push::push(&moved, &target).unwrap();
    let second = bench.pull(&name).await;
    assert_ne!(first, second);
    assert_eq!(bench.images.status(&name).unwrap().id, second);
    let old = bench.images.status(&first).unwrap();
    assert!(old.repo_tags.is_empty(), "{:?}", old.repo_tags);
    let digest = format!("{}@{}", registry.name("test/single-1"), registry.root("test/single-1:1"));
    assert_eq!(old.repo_digests, std::slice::from_ref(&digest));
    assert_eq!(bench.images.status(&digest).unwrap().id, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_ids_find_images() {
    let registry = Registry::with(&["test/busybox:1", "test/index:1"]);
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    let text = std::fs::read_to_string(&registry.running.registries_conf).unwrap();
    let text = format!("{text}\n[aliases]\nshorty = \"docker.io/library/busybox\"\n");
    std::fs::write(&conf, text).unwrap();
    let bench = Bench::with(criod_images::Options { registries_conf: conf, ..options() });
    // A short name, by way of the search registry and its mirror.
    let id = bench.pull("busybox").await;
    let hex = id.trim_start_matches("sha256:");
    for text in [
        "busybox",
        "busybox:latest",
        "library/busybox",
        "docker.io/library/busybox:latest",
        "docker.io/busybox",
        "shorty",
        id.as_str(),
        hex,
        &hex[..12],
        &id[..20],
    ] {
        let found = bench.images.status(text).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(found.id, id, "{text}");
        assert_eq!(found.repo_tags, ["docker.io/library/busybox:latest"]);
    }
    let digest = registry.root("test/busybox:1");
    for text in [format!("busybox@{digest}"), format!("docker.io/library/busybox:x@{digest}")] {
        assert_eq!(bench.images.status(&text).unwrap().id, id, "{text}");
    }
    for text in ["", "busy", "busybox:1", "q.io/busybox", "BUSYBOX", &"0".repeat(64), "a b"] {
        assert!(bench.images.status(text).is_none(), "{text:?}");
    }
    assert_eq!(bench.images.list(Some("shorty")).len(), 1);
    assert_eq!(bench.images.list(Some("nothing")).len(), 0);
    assert_eq!(
        bench.images.for_container("busybox").unwrap().name,
        "docker.io/library/busybox:latest"
    );
    assert_eq!(bench.images.for_container("nothing").unwrap_err().kind(), Kind::NotFound);

    // Of an index both the index and the platform's manifest lead to the image.
    let name = registry.name("test/index");
    let index = bench.pull(&format!("{name}:1")).await;
    let image = registry.catalog.find("test/index:1").unwrap();
    for manifest in [&image.root, &image.manifests[1]] {
        let found = bench.images.status(&format!("{name}@{}", manifest.digest)).unwrap();
        assert_eq!(found.id, index);
    }
    let arm = &image.manifests[0];
    assert!(bench.images.status(&format!("{name}@{}", arm.digest)).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_appear_are_seen() {
    let registry = Registry::with(&["test/busybox:1"]);
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    let bench = Bench::with(criod_images::Options { registries_conf: conf.clone(), ..options() });
    let error = bench.refused("busybox:1").await;
    assert_eq!(error.kind(), Kind::BadReference, "{}", error.full());
    std::fs::copy(&registry.running.registries_conf, &conf).unwrap();
    bench.pull("busybox:1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_short_name_can_mean_is_tried_in_order() {
    let without = Registry::with(&["test/pause:1"]);
    let with = Registry::with(&["test/busybox:1"]);
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    let search = format!(
        "unqualified-search-registries = ['{}', '{}']\n",
        without.address(),
        with.address()
    );
    std::fs::write(&conf, search).unwrap();
    let options = criod_images::Options { registries_conf: conf, ..options() };
    let bench = Bench::with(options.clone());
    let id = bench.pull("test/busybox:1").await;
    let info = bench.images.status("test/busybox:1").unwrap();
    assert_eq!((info.id, info.repo_tags), (id, vec![with.name("test/busybox:1")]));
    // All of them are named if none has it.
    let error = bench.refused("test/nothing:1").await;
    assert_eq!(error.kind(), Kind::NotFound, "{}", error.full());
    for place in [&without, &with] {
        assert!(error.full().contains(&place.address()), "{}", error.full());
    }
    let strict = Some(registry::ShortNameMode::Enforcing);
    let bench = Bench::with(criod_images::Options { short_name_mode: strict, ..options });
    let error = bench.refused("test/busybox:1").await;
    assert_eq!(error.kind(), Kind::BadReference, "{}", error.full());
    assert!(error.full().contains("ambiguous"), "{}", error.full());
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_by_name_and_by_id() {
    let registry = Registry::with(&["test/busybox:1", "test/busybox:2"]);
    let bench = Bench::new();
    let (one, alias) = (registry.name("test/busybox:1"), registry.name("test/busybox:alias"));
    let id = bench.pull(&one).await;
    assert_eq!(bench.pull(&alias).await, id);
    let two = bench.pull(&registry.name("test/busybox:2")).await;
    let free = |_: &String| None;
    let used = |_: &String| Some("web".to_owned());

    // Another name is left, so nothing is lost that a container needs.
    bench.images.remove(&one, &used).await.unwrap();
    assert!(bench.images.status(&one).is_none());
    let info = bench.images.status(&alias).unwrap();
    assert_eq!((info.repo_tags, info.repo_digests.len()), (vec![alias.clone()], 1));

    let error = bench.images.remove(&alias, &used).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains("web"), "{error}");
    assert_eq!(bench.images.remove(&id, &used).await.unwrap_err().kind(), Kind::InUse);
    assert!(bench.images.status(&alias).is_some());

    bench.images.remove(&alias, &free).await.unwrap();
    assert!(bench.images.status(&id).is_none());
    // Again, and what never was.
    for gone in [&alias, &id, "no.such/image:1", "not a name"] {
        bench.images.remove(gone, &used).await.unwrap();
    }
    // The layer is the other image's too.
    assert_eq!(bench.images.list(None).len(), 1);
    assert_eq!(bench.images.for_container(&two).unwrap().layers.len(), 1);

    // A container that holds its layers keeps them.
    let layers = bench.images.for_container(&two).unwrap().layers;
    bench.images.store().hold("web", &layers).unwrap();
    bench.images.remove(&two[..20], &free).await.unwrap();
    assert!(bench.images.list(None).is_empty());
    assert!(bench.images.store().has_layer(&layers[0]));
    bench.images.collect_garbage().await.unwrap();
    assert!(bench.images.store().has_layer(&layers[0]));
    bench.images.store().release("web");
    assert_eq!(bench.images.collect_garbage().await.unwrap().layers, 1);
    assert_eq!(bench.left(), Vec::<String>::new());
    assert_eq!(bench.images.fs_info().used_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_the_request_and_of_the_file() {
    let registry = Registry::start(catalog(&["test/busybox:1"]), true);
    let name = registry.name("test/busybox:1");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let with_file = criod_images::Options { global_auth_file: Some(file.clone()), ..options() };
    let bench = Bench::with(with_file);
    let wrong = || Credentials::basic("testuser", "hunter2");
    assert_eq!(bench.refused(&name).await.kind(), Kind::Unauthorized);
    let error = bench.images.pull(&name, wrong()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized, "{}", error.full());
    assert!(!error.full().contains("hunter2"), "{}", error.full());
    assert_eq!(bench.left(), Vec::<String>::new());

    let id = bench.images.pull(&name, Credentials::basic("testuser", "testpass")).await.unwrap();
    // Being here is no permission: the registry is asked again.
    assert_eq!(bench.refused(&name).await.kind(), Kind::Unauthorized);
    let auth = format!(
        r#"{{"auths":{{"{}":{{"auth":"dGVzdHVzZXI6dGVzdHBhc3M="}}}}}}"#,
        registry.address()
    );
    std::fs::write(&file, auth).unwrap();
    assert_eq!(bench.pull(&name).await, id);
    // What the request brings counts, not the file.
    assert_eq!(bench.images.pull(&name, wrong()).await.unwrap_err().kind(), Kind::Unauthorized);
}
