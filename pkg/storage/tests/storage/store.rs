//! The store over restarts, and what keeps its parts alive.

use std::collections::BTreeSet;
use std::fs;
use std::time::SystemTime;

use crate::common::*;
use storage::{Digest, Error, ImageRecord, Options, Store};

/// An image with a config and a manifest of its own.
pub(crate) fn image(store: &Store, seed: &str, layers: &[Digest], names: &[&str]) -> ImageRecord {
    let config = format!("config of {seed}");
    let manifest = format!("manifest of {seed}");
    let (id, manifest_id) = (Digest::of(config.as_bytes()), Digest::of(manifest.as_bytes()));
    store.put_content(&id, config.as_bytes()).unwrap();
    store.put_content(&manifest_id, manifest.as_bytes()).unwrap();
    ImageRecord {
        digests: BTreeSet::from([format!("host/{seed}@{manifest_id}")]),
        id,
        manifest: manifest_id,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        size: 10,
        layers: layers.to_vec(),
        pulled_at: SystemTime::now(),
    }
}

pub(crate) fn three_layers(store: &Store) -> Vec<Digest> {
    let archives: Vec<_> =
        (0..3).map(|n| Tar::new().file(&format!("f{n}"), &[n; 100]).end()).collect();
    layers(store, &archives)
}

#[test]
fn one_process_at_a_time() {
    let temp = temp();
    let store = open(temp.path());
    match Store::open(temp.path(), Options::default()) {
        Err(Error::Locked { root }) => assert_eq!(root, temp.path()),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("opened twice"),
    }
    drop(store);
    let store = open(temp.path());
    store.let_go();
    open(temp.path());
}

#[test]
fn content_is_checked_both_ways() {
    let temp = temp();
    let store = open(temp.path());
    let digest = Digest::of(b"bytes");
    assert_eq!(store.get_content(&digest).unwrap(), None);
    assert!(matches!(store.put_content(&digest, b"other"), Err(Error::DigestMismatch { .. })));
    assert_eq!(store.get_content(&digest).unwrap(), None);
    store.put_content(&digest, b"bytes").unwrap();
    store.put_content(&digest, b"bytes").unwrap();
    assert_eq!(store.get_content(&digest).unwrap().unwrap(), b"bytes");
    let file = temp.path().join("content/sha256").join(digest.hex());
    fs::write(&file, "rot").unwrap();
    assert!(matches!(store.get_content(&digest), Err(Error::DigestMismatch { .. })));
    store.put_content(&digest, b"bytes").unwrap();
    assert_eq!(store.get_content(&digest).unwrap().unwrap(), b"bytes");
    store.remove_content(&digest).unwrap();
    store.remove_content(&digest).unwrap();
    assert_eq!(store.get_content(&digest).unwrap(), None);
}

#[test]
fn all_is_there_after_a_crash_except_what_was_under_way() {
    let temp = temp();
    let store = open(temp.path());
    let chain = three_layers(&store);
    let record = image(&store, "a", &chain, &["host/a:1", "host/a:2"]);
    let record = store.images().add(record).unwrap();
    let usage = store.layers_usage();
    assert_eq!(usage.inodes, 6);
    assert!(usage.bytes >= 300);
    // What a crash leaves: a layer half unpacked, records half written.
    let half = unpack(&store, &Tar::new().file("half", b"").end()).unwrap();
    std::mem::forget(half);
    assert_eq!(under_way(&store), 1);
    fs::write(temp.path().join("images/tmp-1-1"), "half").unwrap();
    fs::write(temp.path().join("content/sha256/tmp-1-2"), "half").unwrap();
    // The unpacked layer that was forgotten still holds the store: open a copy of it.
    let copy = temp.path().join("copy");
    let status = std::process::Command::new("cp")
        .args(["-a", "content", "layers", "images", "copy"])
        .current_dir({
            fs::create_dir(&copy).unwrap();
            temp.path()
        })
        .status()
        .unwrap();
    assert!(status.success());
    let again = open(&copy);
    assert_eq!(under_way(&again), 0);
    assert_eq!(again.images().list().len(), 1);
    assert_eq!(again.images().get(&record.id).unwrap(), record);
    assert_eq!(again.layers_usage(), usage);
    for folder in ["images", "content/sha256", "layers/overlay"] {
        assert!(names(&copy.join(folder)).iter().all(|name| !name.contains("tmp-")));
    }
    assert_eq!(*again.layer(&chain[2]).unwrap(), *store.layer(&chain[2]).unwrap());
}

#[test]
fn damaged_records_are_put_aside() {
    let temp = temp();
    let store = open(temp.path());
    let chain = three_layers(&store);
    let lone = layer(&store, None, &Tar::new().file("lone", b"").end());
    let good = store.images().add(image(&store, "good", &chain[..1], &["good:1"])).unwrap();
    let bad = store.images().add(image(&store, "bad", &chain[..1], &["bad:1"])).unwrap();
    let whole = store.images().add(image(&store, "whole", &chain, &["whole:1"])).unwrap();
    drop(store);
    let images = temp.path().join("images");
    let overlay = temp.path().join("layers/overlay");
    fs::write(images.join(format!("{}.json", bad.id.hex())), "{\"generation\": 1, ").unwrap();
    fs::copy(
        images.join(format!("{}.json", good.id.hex())),
        images.join(format!("{}.json", Digest::of(b"other").hex())),
    )
    .unwrap();
    fs::remove_file(overlay.join(chain[2].hex()).join("meta.json")).unwrap();
    fs::write(overlay.join(lone.chain_id.hex()).join("meta.json"), [0xff; 10]).unwrap();
    for _ in 0..2 {
        let store = open(temp.path());
        let index = store.images().list();
        let listed: Vec<_> = index.iter().map(|image| image.id.clone()).collect();
        // One is unreadable, one misses a layer.
        assert_eq!(listed, std::slice::from_ref(&good.id));
        assert!(!store.has_layer(&chain[2]) && !store.has_layer(&lone.chain_id));
        assert!(store.has_layer(&chain[1]));
        let aside = |folder| {
            fs::read_dir(folder)
                .unwrap()
                .filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".damaged"))
                .count()
        };
        assert_eq!((aside(&images), aside(&overlay)), (2, 2));
        assert!(overlay.join(format!("{}.damaged", chain[2].hex())).join("diff/f2").is_file());
    }
    // Pulling again completes the image.
    let store = open(temp.path());
    assert_eq!(three_layers(&store), chain);
    store.images().add(image(&store, "whole", &chain, &["whole:2"])).unwrap();
    assert_eq!(store.images().get(&whole.id).unwrap().layers, chain);
}

#[test]
fn names_move() {
    let temp = temp();
    let store = open(temp.path());
    let a = store.images().add(image(&store, "a", &[], &["x:1", "x:2"])).unwrap();
    let b = store.images().add(image(&store, "b", &[], &["x:1", "y:1"])).unwrap();
    let names = |store: &Store, id| {
        store.images().get(id).unwrap().names.iter().cloned().collect::<Vec<_>>()
    };
    let resolve = |text: &str| store.images().resolve(text).unwrap().map(|image| image.id.clone());
    assert_eq!(names(&store, &a.id), ["x:2"]);
    assert_eq!(names(&store, &b.id), ["x:1", "y:1"]);
    assert_eq!(resolve("x:1"), Some(b.id.clone()));
    store.images().tag("y:1", &a.id).unwrap();
    assert_eq!(resolve("y:1"), Some(a.id.clone()));
    assert_eq!(names(&store, &b.id), ["x:1"]);
    assert!(store.images().untag("x:1").unwrap());
    assert!(!store.images().untag("x:1").unwrap());
    assert_eq!(resolve("x:1"), None);
    // Nameless, but there.
    let digest = a.digests.first().unwrap();
    assert_eq!(resolve(digest), Some(a.id.clone()));
    assert_eq!(resolve(a.id.as_str()), Some(a.id.clone()));
    assert_eq!(resolve(a.id.hex()), Some(a.id.clone()));
    assert_eq!(resolve(&a.id.hex()[..12]), Some(a.id.clone()));
    assert_eq!(resolve(&a.id.as_str()[..20]), Some(a.id.clone()));
    assert_eq!(resolve(&a.id.hex()[..2]), None);
    assert_eq!(resolve("ABC"), None);
    assert_eq!(resolve(""), None);
    let unknown = Digest::of(b"unknown");
    assert!(matches!(store.images().tag("z:1", &unknown), Err(Error::UnknownImage { .. })));
    // A second pull keeps what was given meanwhile.
    store.images().add(image(&store, "a", &[], &["x:9"])).unwrap();
    let before = (names(&store, &a.id), names(&store, &b.id));
    assert_eq!(before.0, ["x:2", "x:9", "y:1"]);
    drop(store);
    let store = open(temp.path());
    assert_eq!((names(&store, &a.id), names(&store, &b.id)), before);
}

#[test]
fn an_interrupted_move_of_a_name_ends_with_the_new_owner() {
    let temp = temp();
    let store = open(temp.path());
    let a = store.images().add(image(&store, "a", &[], &["x:1"])).unwrap();
    let file = temp.path().join("images").join(format!("{}.json", a.id.hex()));
    let before = fs::read(&file).unwrap();
    let b = store.images().add(image(&store, "b", &[], &["x:1"])).unwrap();
    drop(store);
    // As if the second write had not happened.
    fs::write(&file, before).unwrap();
    let store = open(temp.path());
    assert_eq!(store.images().resolve("x:1").unwrap().unwrap().id, b.id);
    assert!(store.images().get(&a.id).unwrap().names.is_empty());
}

#[test]
fn prefixes_must_be_unique() {
    let temp = temp();
    let store = open(temp.path());
    for seed in 0..80 {
        store.images().add(image(&store, &format!("image {seed}"), &[], &[])).unwrap();
    }
    let index = store.images().list();
    let ids: Vec<_> = index.iter().map(|image| image.id.hex().to_owned()).collect();
    let mut ambiguous = 0;
    for id in &ids {
        for length in 3..=64 {
            let fitting = ids.iter().filter(|other| other.starts_with(&id[..length])).count();
            match index.resolve(&id[..length]) {
                Ok(found) => {
                    assert_eq!((fitting, found.unwrap().id.hex()), (1, id.as_str()));
                }
                Err(Error::AmbiguousId { .. }) => {
                    assert!(fitting > 1);
                    ambiguous += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    assert!(index.resolve("fff").unwrap().is_none() || ids.iter().any(|id| id.starts_with("fff")));
    // Of 80 ids, two begin with the same three digits more often than not; these do.
    assert_eq!(ambiguous > 0, (1..80).any(|n| ids[n - 1][..3] == ids[n][..3]));
}

#[test]
fn parts_must_be_there_before_the_image() {
    let temp = temp();
    let store = open(temp.path());
    let mut record = image(&store, "a", &[Digest::of(b"no layer")], &[]);
    assert!(matches!(store.images().add(record.clone()), Err(Error::UnknownLayer { .. })));
    record.layers.clear();
    record.manifest = Digest::of(b"no manifest");
    assert!(matches!(store.images().add(record), Err(Error::UnknownContent { .. })));
    assert!(store.images().list().is_empty());
}

#[test]
fn shared_layers_go_with_the_last_user() {
    let temp = temp();
    let store = open(temp.path());
    let chain = three_layers(&store);
    let a = store.images().add(image(&store, "a", &chain[..2], &["a:1"])).unwrap();
    let b = store.images().add(image(&store, "b", &chain, &["b:1"])).unwrap();
    store.hold("container", &chain[..1]).unwrap();

    let collected = store.images().remove(&b.id).unwrap();
    assert_eq!((collected.layers, collected.content), (1, 2));
    assert!(store.has_layer(&chain[1]) && !store.has_layer(&chain[2]));
    assert_eq!(store.get_content(&b.id).unwrap(), None);
    assert!(store.get_content(&a.id).unwrap().is_some());

    let pin = store.pin([chain[1].clone()]);
    assert_eq!(store.images().remove(&a.id).unwrap().layers, 0);
    assert_eq!(store.gc().unwrap().layers, 0);
    assert!(diff(&store, &chain[1]).is_dir());
    drop(pin);
    assert_eq!(store.gc().unwrap().layers, 1);
    assert!(store.has_layer(&chain[0]));
    store.release("container");
    let collected = store.gc().unwrap();
    assert_eq!((collected.layers, collected.usage.inodes), (1, 2));
    assert_eq!(store.layers_usage(), storage::Usage::default());
    assert_eq!(fs::read_dir(store.layers_folder()).unwrap().count(), 0);
    assert_eq!(store.images().remove(&a.id).unwrap(), storage::Collected::default());

    assert!(matches!(store.hold("c", &chain[..1]), Err(Error::UnknownLayer { .. })));
    drop(store);
    assert!(open(temp.path()).images().list().is_empty());
}

#[test]
fn a_pull_under_way_keeps_its_parts() {
    let temp = temp();
    let store = open(temp.path());
    let archive = Tar::new().file("f", b"").end();
    let id = Digest::of(&archive);
    let pin = store.pin([]);
    let twice = store.pin([id.clone()]);
    pin.add(id.clone());
    layer(&store, None, &archive);
    let config = Digest::of(b"config");
    pin.add(config.clone());
    store.put_content(&config, b"config").unwrap();
    drop(twice);
    assert_eq!(store.gc().unwrap(), storage::Collected::default());
    assert!(store.has_layer(&id));
    drop(pin);
    let collected = store.gc().unwrap();
    assert_eq!((collected.layers, collected.content), (1, 1));
}

#[test]
fn pulls_and_removals_at_once_leave_whole_images() {
    let temp = temp();
    let store = open(temp.path());
    let archives: Vec<_> =
        (0..3).map(|n| Tar::new().file(&format!("f{n}"), &[n; 10]).end()).collect();
    let diffs: Vec<_> = archives.iter().map(|archive| Digest::of(archive)).collect();
    let chain = storage::chain_ids(&diffs);
    std::thread::scope(|scope| {
        for puller in 0..3 {
            let (store, archives, chain) = (&store, &archives, &chain);
            scope.spawn(move || {
                for round in 0..6 {
                    let seed = format!("{puller}");
                    let config = Digest::of(format!("config of {seed}").as_bytes());
                    let manifest = Digest::of(format!("manifest of {seed}").as_bytes());
                    let pin = store.pin(chain.iter().cloned().chain([config, manifest]));
                    layers(store, archives);
                    let image = store.images().add(image(store, &seed, chain, &["n:1"])).unwrap();
                    drop(pin);
                    for layer in &image.layers {
                        assert!(diff(store, layer).is_dir());
                    }
                    if round < 5 {
                        store.images().remove(&image.id).unwrap();
                    }
                    store.gc().unwrap();
                }
            });
        }
    });
    let index = store.images().list();
    assert_eq!(index.len(), 3);
    assert_eq!(index.iter().filter(|image| image.names.contains("n:1")).count(), 1);
    assert!(chain.iter().all(|layer| store.has_layer(layer)));
    assert_eq!(under_way(&store), 0);
}
