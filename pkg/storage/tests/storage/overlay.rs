//! Layers seen through a real overlay mount.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::common::*;
use storage::{Error, MountOptions, Options, Store};

fn options() -> MountOptions {
    MountOptions::default()
}

#[test]
fn whiteouts_hide_what_is_below() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    let below = Tar::new()
        .file("gone", b"")
        .file("kept", b"below")
        .file("gone-dir/x", b"")
        .file("opaque/old", b"")
        .file("opaque-late/old", b"")
        .file("replaced/old", b"")
        .file("replaced-late/old", b"")
        .file("replaced-implicit/old", b"")
        .file("to-file/old", b"")
        .file("file-again", b"old")
        .file("merged/old", b"")
        .end();
    let above = Tar::new()
        .file(".wh.gone", b"")
        .file(".wh.gone-dir", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"")
        .file("opaque-late/new", b"")
        .file("opaque-late/.wh..wh..opq", b"")
        .file(".wh.replaced", b"")
        .dir("replaced", 0o755)
        .file("replaced/new", b"")
        .file("replaced-late/new", b"")
        .file(".wh.replaced-late", b"")
        .file(".wh.replaced-implicit", b"")
        .file("replaced-implicit/new", b"")
        .file(".wh.to-file", b"")
        .file("to-file", b"file")
        .file("file-again", b"new")
        .file(".wh.file-again", b"")
        .file("merged/new", b"")
        .file("merged/.wh.never-there", b"")
        .file(".wh..wh.plnk/123.456", b"aufs")
        .file(".wh..wh.aufs", b"aufs")
        .end();
    let chain = layers(&store, &[below, above]);
    let mounted = Mounted::new(&store, &temp.path().join("c"), &chain, options());
    assert_eq!(
        mounted.names(),
        [
            "file-again",
            "kept",
            "merged",
            "merged/new",
            "merged/old",
            "opaque",
            "opaque-late",
            "opaque-late/new",
            "opaque/new",
            "replaced",
            "replaced-implicit",
            "replaced-implicit/new",
            "replaced-late",
            "replaced-late/new",
            "replaced/new",
            "to-file",
        ]
    );
    assert_eq!(fs::read(mounted.merged.join("file-again")).unwrap(), b"new");
    // It can be written to, and the layers do not change.
    fs::write(mounted.merged.join("kept"), "changed").unwrap();
    fs::remove_dir_all(mounted.merged.join("merged")).unwrap();
    assert_eq!(fs::read(diff(&store, &chain[0]).join("kept")).unwrap(), b"below");
    assert!(storage::usage(&mounted.mount.upper()).unwrap().inodes >= 3);
}

#[test]
fn an_opaque_root_hides_everything() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    let chain = layers(
        &store,
        &[
            Tar::new().file("a", b"").end(),
            Tar::new().file(".wh..wh..opq", b"").file("b", b"").end(),
            Tar::new().file("c", b"").end(),
        ],
    );
    let mounted = Mounted::new(&store, &temp.path().join("c"), &chain, options());
    assert_eq!(mounted.names(), ["b", "c"]);
}

#[test]
fn the_root_has_the_images_attributes() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    let chain = layers(
        &store,
        &[
            Tar::new().dir("./", 0o700).end(),
            Tar::new()
                .raw(&Fields { mode: 0o1775, uid: 5, gid: 6, ..fields(b'5', b"./") }, b"")
                .end(),
            Tar::new().file("f", b"").end(),
        ],
    );
    let mounted = Mounted::new(&store, &temp.path().join("c"), &chain, options());
    let stat = fs::metadata(&mounted.merged).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o1775, 5, 6));
}

#[test]
fn no_layers_and_one_read_only() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    {
        let mounted = Mounted::new(&store, &temp.path().join("scratch"), &[], options());
        assert!(mounted.names().is_empty());
        fs::write(mounted.merged.join("new"), "x").unwrap();
        assert_eq!(fs::read(mounted.mount.upper().join("new")).unwrap(), b"x");
    }
    let chain = layers(&store, &[Tar::new().file("f", b"f").end()]);
    let readonly = MountOptions { readonly: true, extra: vec!["nodev".into()], ..options() };
    for (name, chain) in [("one", &chain[..]), ("none", &[])] {
        let mounted = Mounted::new(&store, &temp.path().join(name), chain, readonly.clone());
        assert_eq!(mounted.names().len(), chain.len());
        let error = fs::write(mounted.merged.join("g"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let line = mountinfo(&mounted.merged);
        assert!(line.contains("nodev"), "{line}");
    }
}

fn mountinfo(point: &std::path::Path) -> String {
    let point = format!(" {} ", point.display());
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().find(|line| line.contains(&point)).unwrap().to_owned()
}

#[test]
fn many_layers_and_long_paths() {
    let temp = temp();
    // So long that no layer's path fits into one value of the mount API.
    let store = open(&temp.path().join("x".repeat(200)).join("store"));
    let archives: Vec<_> = (0..200)
        .map(|n| {
            Tar::new().file(&format!("f{n}"), b"").file("last", n.to_string().as_bytes()).end()
        })
        .collect();
    let chain = layers(&store, &archives);
    let mounted = Mounted::new(&store, &temp.path().join("c"), &chain, options());
    assert_eq!(mounted.names().len(), 201);
    assert_eq!(fs::read(mounted.merged.join("last")).unwrap(), b"199");
    drop(mounted);
    // Without the long paths.
    let short = Store::clone(&store);
    drop((store, short));
    let moved = temp.path().join("s");
    fs::rename(temp.path().join("x".repeat(200)).join("store"), &moved).unwrap();
    let store = open(&moved);
    let mounted = Mounted::new(&store, &temp.path().join("d"), &chain, options());
    assert_eq!(mounted.names().len(), 201);
    drop(mounted);
    // And with the classic call.
    drop(store);
    let mut classic = Options::default();
    classic.classic_mount = true;
    let store = Store::open(&moved, classic).unwrap();
    let mounted = Mounted::new(&store, &temp.path().join("e"), &chain, options());
    assert_eq!(mounted.names().len(), 201);
    assert_eq!(fs::read(mounted.merged.join("last")).unwrap(), b"199");
}

#[test]
fn mounting_and_unmounting_again_does_nothing() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    let chain = layers(&store, &[Tar::new().file("f", b"f").end()]);
    let dir = temp.path().join("c");
    let mounted = Mounted::new(&store, &dir, &chain, options());
    fs::write(mounted.merged.join("g"), "g").unwrap();
    mounted.mount.mount().unwrap();
    assert_eq!(mounted.names(), ["f", "g"]);
    let lines = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = mounted.merged.to_str().unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains(point)).count(), 1);
    // In use: it goes anyway.
    let busy = fs::File::open(mounted.merged.join("f")).unwrap();
    mounted.mount.unmount().unwrap();
    mounted.mount.unmount().unwrap();
    assert!(names(&mounted.merged).is_empty());
    drop(busy);
    // What was written is still there.
    mounted.mount.mount().unwrap();
    assert_eq!(mounted.names(), ["f", "g"]);
    // As after a restart of the daemon, when layers may not be known.
    fs::write(dir.join("record"), "the caller's").unwrap();
    storage::ContainerMount::existing(&dir).remove().unwrap();
    assert_eq!(names(&dir), ["record"]);
    storage::ContainerMount::existing(&dir).remove().unwrap();
    storage::ContainerMount::existing(&temp.path().join("never")).remove().unwrap();
}

#[test]
fn what_else_is_mounted_is_left_alone() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    let chain = layers(&store, &[Tar::new().file("f", b"f").end()]);
    let dir = temp.path().join("c");
    let tmpfs = Tmpfs::new(&dir.join("merged"), "size=1m");
    let mount = store.container_mount(&dir, &chain, options()).unwrap();
    assert!(matches!(mount.mount(), Err(Error::MountInside { .. })));
    drop(tmpfs);
    let missing = storage::Digest::of(b"no such layer");
    let error = store.container_mount(&dir, std::slice::from_ref(&missing), options()).unwrap_err();
    assert!(matches!(error, Error::UnknownLayer { chain_id } if chain_id == missing));
}

#[test]
fn a_failed_mount_says_why() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    let bad = MountOptions { extra: vec!["no_such_option=1".into()], ..options() };
    let dir = temp.path().join("c");
    fs::create_dir(&dir).unwrap();
    let error = store.container_mount(&dir, &[], bad).unwrap().mount().unwrap_err();
    let text = chain_of(&error);
    assert!(text.contains("no_such_option"), "{text}");
    assert!(names(&dir.join("merged")).is_empty());
}
