//! What a disk does to layers and records, and that what is whole survives it.

use std::fs;
use std::path::Path;

use crate::common::*;
use crate::store::{image, three_layers};
use storage::{Collected, Digest, Error, Options, Store};

fn boot(root: &Path, boot_id: &str) -> Store {
    let mut options = Options::default();
    options.boot_id = Some(boot_id.to_owned());
    Store::open(root, options).unwrap()
}

/// Names in the folder of layers that end so.
fn aside(store: &Store) -> usize {
    let entries = fs::read_dir(store.layers_folder()).unwrap().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().ends_with(".damaged")).count()
}

fn listed(store: &Store, names: &[&str]) -> bool {
    names.iter().all(|name| store.images().resolve(name).unwrap().is_some())
}

#[test]
fn a_layer_is_looked_at_once_in_each_boot() {
    let temp = temp();
    let store = boot(temp.path(), "one\n");
    let chain = three_layers(&store);
    store.images().add(image(&store, "all", &chain, &["all:1", "all:2"])).unwrap();
    store.images().add(image(&store, "low", &chain[..1], &["low:1"])).unwrap();
    let file = |store: &Store| diff(store, &chain[2]).join("f2");
    // What was written in this boot is as it is, also for the next process.
    fs::write(file(&store), "").unwrap();
    store.check_layers(&chain).unwrap();
    drop(store);
    let store = boot(temp.path(), "one");
    store.check_layers(&chain).unwrap();
    drop(store);
    // Without a boot id nothing is compared.
    let store = open(temp.path());
    store.check_layers(&chain).unwrap();
    drop(store);
    let store = boot(temp.path(), "two");
    store.check_layers(&chain[..2]).unwrap();
    assert!(listed(&store, &["all:1", "low:1"]));
    let error = store.check_layers(&chain).unwrap_err();
    assert!(
        matches!(&error, Error::DamagedLayer { chain_id, .. } if *chain_id == chain[2]),
        "{error}"
    );
    assert!(error.to_string().contains("2 names and 0 bytes instead of 2 and 100"), "{error}");
    assert!(!listed(&store, &["all:1"]) && listed(&store, &["low:1"]));
    assert_eq!((store.images().incomplete().len(), aside(&store)), (1, 1));
    // It is not there any more, and the others are kept for the next pull.
    store.check_layers(&chain).unwrap();
    assert_eq!(store.gc().unwrap(), Collected::default());
    let mut again = image(&store, "all", &chain, &["all:1"]);
    assert!(matches!(store.images().add(again.clone()), Err(Error::UnknownLayer { .. })));
    layer(&store, Some(&chain[1]), &Tar::new().file("f2", &[2; 100]).end());
    again.names.remove("all:2");
    store.images().add(again).unwrap();
    assert!(listed(&store, &["all:1", "all:2"]), "it has the names it had");
    assert!(store.images().incomplete().is_empty());
    drop(store);
    // In the next boot nobody can use what was put aside.
    let store = boot(temp.path(), "three");
    assert_eq!(aside(&store), 0);
    store.check_layers(&chain).unwrap();
    assert!(file(&store).exists());
}

#[test]
fn a_missing_name_and_a_mount() {
    let temp = temp();
    let store = boot(temp.path(), "one");
    let chain = three_layers(&store);
    store.images().add(image(&store, "all", &chain, &["all:1"])).unwrap();
    fs::remove_file(diff(&store, &chain[0]).join("f0")).unwrap();
    drop(store);
    let store = boot(temp.path(), "two");
    let dir = temp.path().join("container");
    let error = store.container_mount(&dir, &chain, storage::MountOptions::default()).unwrap_err();
    assert!(matches!(error, Error::DamagedLayer { chain_id, .. } if chain_id == chain[0]));
    let missing = store.container_mount(&dir, &chain, storage::MountOptions::default());
    assert!(matches!(missing, Err(Error::UnknownLayer { .. })));
}

#[test]
fn damaged_content_and_lost_records_keep_what_is_whole() {
    let temp = temp();
    let store = open(temp.path());
    let chain = three_layers(&store);
    let one = store.images().add(image(&store, "one", &chain, &["one:1"])).unwrap();
    drop(store);
    // A manifest that is zero: the image is not listed, its layers stay.
    let manifest = temp.path().join("content/sha256").join(one.manifest.hex());
    let bytes = fs::read(&manifest).unwrap();
    fs::write(&manifest, vec![0; bytes.len()]).unwrap();
    let store = open(temp.path());
    assert!(!listed(&store, &["one:1"]));
    assert_eq!(store.gc().unwrap(), Collected::default());
    store.images().add(image(&store, "one", &chain, &["one:1"])).unwrap();
    assert!(listed(&store, &["one:1"]));
    assert_eq!(fs::read(&manifest).unwrap(), bytes);
    drop(store);
    // A record that cannot be read: anything may be a part of its image.
    let record = temp.path().join("images").join(format!("{}.json", one.id.hex()));
    fs::write(&record, "{\"generation\"").unwrap();
    for _ in 0..2 {
        let store = open(temp.path());
        assert_eq!(store.gc().unwrap(), Collected::default());
        assert!(chain.iter().all(|layer| store.has_layer(layer)));
    }
    let store = open(temp.path());
    store.images().forget_incomplete().unwrap();
    assert_eq!(store.gc().unwrap().layers, 3);
}

#[test]
fn an_incomplete_image_ends_when_its_name_moves_or_the_room_is_needed() {
    let temp = temp();
    let store = boot(temp.path(), "one");
    let chain = three_layers(&store);
    let other = layer(&store, None, &Tar::new().file("other", b"").end());
    store.images().add(image(&store, "old", &chain, &["name:1"])).unwrap();
    drop(store);
    fs::remove_dir_all(temp.path().join("layers/overlay").join(chain[2].hex())).unwrap();
    let store = boot(temp.path(), "one");
    let new = std::slice::from_ref(&other.chain_id);
    assert_eq!(store.images().incomplete().len(), 1);
    store.images().add(image(&store, "else", new, &["else:1"])).unwrap();
    assert_eq!((store.images().incomplete().len(), store.gc().unwrap().layers), (1, 0));
    store.images().add(image(&store, "new", new, &["name:1"])).unwrap();
    assert_eq!((store.images().incomplete().len(), store.gc().unwrap().layers), (0, 2));
    drop(store);
    fs::remove_file(temp.path().join("content/sha256").join(Digest::of(b"config of new").hex()))
        .unwrap();
    let store = open(temp.path());
    let hurt = store.images().incomplete();
    assert_eq!(hurt.len(), 1);
    store.images().remove(&hurt[0].id).unwrap();
    assert!(store.images().incomplete().is_empty() && listed(&store, &["else:1"]));
}
