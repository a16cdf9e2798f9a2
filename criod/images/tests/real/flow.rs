//! Pulls that meet, that are left alone, that are cut.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use criod_images::{Kind, State, status_of};
use futures_util::future::join_all;
use registry::Credentials;

use crate::bench::{Bench, Proxy, Registry, big, options, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_pull_is_made_once() {
    let registry = Registry::with(&["test/layered:1"]);
    let proxy = Proxy::to(&registry.address()).await;
    let bench = Bench::new();
    let name = format!("{}/test/layered:1", proxy.address);
    // Held until all eight have asked.
    proxy.hold("/manifests/", 0);
    let pulls = join_all((0..8).map(|_| bench.pull(&name)));
    let ids = async {
        until("a request", || proxy.requests("/manifests/").len() == 1).await;
        assert_eq!(bench.images.progress().len(), 1);
        proxy.release();
    };
    let (ids, ()) = tokio::join!(pulls, ids);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(proxy.requests("/manifests/").len(), 1);
    let blobs = proxy.blobs();
    assert_eq!(blobs.len(), 5);
    assert!(blobs.values().all(|count| *count == 1), "{blobs:?}");
    bench.nothing_under_way();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_credentials_are_another_pull() {
    let registry = Registry::with(&["test/busybox:1"]);
    let proxy = Proxy::to(&registry.address()).await;
    let bench = Bench::new();
    let name = format!("{}/test/busybox:1", proxy.address);
    proxy.hold("/manifests/", 0);
    let both = async {
        let one = bench.images.pull(&name, Credentials::Anonymous);
        let two = bench.images.pull(&name, Credentials::basic("a", "b"));
        let (one, two) = tokio::join!(one, two);
        assert_eq!(one.unwrap(), two.unwrap());
    };
    let release = async {
        until("two requests", || proxy.requests("/manifests/").len() == 2).await;
        proxy.release();
    };
    tokio::join!(both, release);
    let layer = &registry.parts("test/busybox:1").0[0];
    assert_eq!(proxy.blobs()[layer], 1, "the layer was fetched twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_share_the_layers_that_they_have_in_common() {
    let names =
        ["test/busybox:1", "test/busybox:2", "test/docker:1", "test/zstd:1", "test/plain:1"];
    let registry = Registry::with(&names);
    let proxy = Proxy::to(&registry.address()).await;
    let bench = Bench::new();
    let base = registry.parts("test/busybox:1").0.remove(0);
    proxy.hold(&base, 4096);
    let full = names.map(|name| format!("{}/{name}", proxy.address));
    let pulls = join_all(full.iter().map(|name| bench.pull(name)));
    let look = async {
        // All of them show the layer moving, though one of them has it in hand.
        until("five pulls in the layer", || {
            let progress = bench.images.progress();
            progress.len() == 5
                && progress.iter().all(|pull| {
                    pull.layers.first().is_some_and(|layer| layer.state == State::Downloading)
                })
        })
        .await;
        proxy.release();
    };
    let (ids, ()) = tokio::join!(pulls, look);
    assert_eq!(proxy.blobs()[&base], 1, "the common layer was fetched more than once");
    for id in ids {
        assert_eq!(bench.images.for_container(&id).unwrap().layers[0].hex().len(), 64);
    }
    bench.nothing_under_way();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_cancels_nothing() {
    let registry = Registry::start(big(4 << 20), false);
    let proxy = Proxy::to(&registry.address()).await;
    let bench = Bench::new();
    let name = format!("{}/test/big:1", proxy.address);
    let large = registry.parts("test/big:1").0.remove(1);
    proxy.hold(&large, 1 << 20);
    let started = AtomicBool::new(false);
    tokio::select! {
        _ = bench.pull(&name) => panic!("the layer is held"),
        () = async {
            until("bytes", || {
                let progress = bench.images.progress();
                let layer = progress.first().and_then(|pull| pull.layers.get(1));
                layer.is_some_and(|layer| layer.done > 500_000 && layer.done < layer.total)
            })
            .await;
            started.store(true, Ordering::SeqCst);
        } => {}
    }
    assert!(started.load(Ordering::SeqCst));
    // The caller is gone, the pull is not.
    let progress = bench.images.progress();
    assert_eq!(progress[0].image, name);
    let json = serde_json::to_value(&progress).unwrap();
    assert_eq!(json[0]["layers"][1]["digest"], large);
    assert_eq!(json[0]["layers"][1]["state"], "downloading");
    let keys: Vec<_> = json[0]["layers"][1].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["digest", "done", "state", "total"]);
    proxy.release();
    until("the image", || bench.images.status(&name).is_some()).await;
    until("the end", || bench.images.progress().is_empty()).await;
    bench.nothing_under_way();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_dies_in_a_layer_and_comes_back() {
    let registry = Registry::start(big(8 << 20), false);
    let proxy = Proxy::to(&registry.address()).await;
    let bench = Bench::new();
    let name = format!("{}/test/big:1", proxy.address);
    let large = registry.parts("test/big:1").0.remove(1);
    proxy.hold(&large, 1 << 20);
    let crash = async {
        until("bytes", || {
            let progress = bench.images.progress();
            let layer = progress.first().and_then(|pull| pull.layers.get(1));
            layer.is_some_and(|layer| layer.done > 500_000)
        })
        .await;
        registry.stop();
        registry.restart();
        proxy.release();
    };
    tokio::join!(bench.pull(&name), crash);
    // Gone on from where it was, not from the beginning.
    let asked = proxy.requests(&large);
    assert!(asked.len() >= 2, "{asked:?}");
    assert!(asked[1].to_lowercase().contains("range: bytes="), "{}", asked[1]);
    let info = bench.images.status(&name).unwrap();
    assert!(info.size > 8 << 20);
    bench.nothing_under_way();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stays_away() {
    let registry = Registry::start(big(8 << 20), false);
    let proxy = Proxy::to(&registry.address()).await;
    let bench = Bench::new();
    let name = format!("{}/test/big:1", proxy.address);
    let (layers, config) = registry.parts("test/big:1");
    proxy.hold(&layers[1], 1 << 20);
    let crash = async {
        until("the small layer is done and bytes of the large", || {
            let progress = bench.images.progress();
            let done = |at: usize, least: u64| {
                progress.first().and_then(|p| p.layers.get(at)).is_some_and(|l| l.done > least)
            };
            done(1, 500_000) && progress[0].layers[0].state == State::Done
        })
        .await;
        registry.stop();
        proxy.release();
    };
    let (error, ()) = tokio::join!(bench.refused(&name), crash);
    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.full());
    let status = status_of(&error);
    assert_eq!(status.code(), tonic::Code::Unknown);
    assert!(status.message().starts_with("RegistryUnavailable: "), "{}", status.message());
    assert!(status.message().contains(&layers[1]) && status.message().contains(&name));
    bench.nothing_under_way();
    // The whole layer is kept for the next try.
    assert_eq!(bench.left().len(), 1, "{:?}", bench.left());
    registry.restart();
    proxy.forget();
    bench.pull(&name).await;
    let mut again: Vec<String> = proxy.blobs().into_keys().collect();
    let mut expected = vec![layers[1].clone(), config];
    again.sort();
    expected.sort();
    assert_eq!(again, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_stands_still_ends() {
    let registry = Registry::start(big(4 << 20), false);
    let proxy = Proxy::to(&registry.address()).await;
    let timeout = Some(Duration::from_millis(300));
    let bench = Bench::with(criod_images::Options { pull_progress_timeout: timeout, ..options() });
    let name = format!("{}/test/big:1", proxy.address);
    proxy.hold(&registry.parts("test/big:1").0[1], 1 << 20);
    let error = bench.refused(&name).await;
    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.full());
    bench.nothing_under_way();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_with_a_damaged_layer_is_passed_by() {
    let mirror = Registry::with(&["test/zstd:1"]);
    let origin = Registry::with(&["test/zstd:1"]);
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    let text = format!(
        "[[registry]]\nlocation = \"{}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        origin.address(),
        mirror.address()
    );
    std::fs::write(&conf, text).unwrap();
    let layers = mirror.parts("test/zstd:1").0;
    let file = mirror.blob_file(&layers[1]);
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    std::fs::remove_file(mirror.blob_file(&layers[0])).unwrap();
    let bench = Bench::with(criod_images::Options { registries_conf: conf, ..options() });
    let name = origin.name("test/zstd:1");
    bench.pull(&name).await;
    assert_eq!(bench.images.status(&name).unwrap().layers.len(), 2);
    bench.nothing_under_way();
}
