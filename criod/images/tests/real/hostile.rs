//! Images that lie, registries that refuse, disks that are full.

use criod_images::{Kind, Options, status_of};

use crate::bench::{Bench, Registry, big, options};

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_refused_leave_nothing() {
    let cases = [
        ("digest", Kind::Invalid, "checksum"),
        ("config-digest", Kind::Invalid, "digest"),
        ("missing", Kind::NotFound, "does not exist"),
        ("dotdot", Kind::Invalid, "leads out of the layer"),
        ("symlink", Kind::Invalid, "not a directory"),
        ("hardlink", Kind::Invalid, "leads out of the layer"),
        ("hardlink-symlink", Kind::Invalid, "not in the layer"),
        ("whiteout", Kind::Invalid, "not a possible name"),
        ("diff-id", Kind::Invalid, "diff id"),
        ("count", Kind::Invalid, "2 layers"),
        ("size", Kind::Invalid, "bytes"),
        ("truncated", Kind::Invalid, "decompressed"),
        ("garbage", Kind::Invalid, "decompressed"),
        ("config", Kind::Invalid, "configuration"),
        ("platform", Kind::Invalid, "linux/s390x"),
        ("bomb", Kind::Invalid, "limit"),
    ];
    let names: Vec<String> =
        cases.iter().map(|(case, ..)| format!("test/hostile-{case}:1")).collect();
    let registry = Registry::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let limits = storage::Limits { max_bytes: 64 << 20, ..storage::Limits::default() };
    let bench = Bench::with(Options { limits, ..options() });
    for ((case, kind, text), name) in cases.iter().zip(&names) {
        let name = registry.name(name);
        let error = bench.refused(&name).await;
        let full = error.full();
        assert_eq!(error.kind(), *kind, "{case}: {full}");
        assert!(full.contains(text), "{case}: {full}");
        assert!(full.contains(&name), "{case}: {full}");
        assert!(!status_of(&error).message().contains('\n'), "{case}: {full}");
        assert!(bench.images.status(&name).is_none(), "{case}");
        assert_eq!(bench.left(), Vec::<String>::new(), "{case}");
        assert_eq!(bench.images.fs_info().used_bytes, 0, "{case}");
        bench.nothing_under_way();
    }
    escaped_nowhere();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_reach_outside_stay_inside() {
    let names = ["absolute", "symlink-layers", "symlink-file", "whiteout-climb"];
    let names = names.map(|case| format!("test/hostile-{case}:1"));
    let registry = Registry::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let bench = Bench::new();
    for name in &names {
        bench.pull(&registry.name(name)).await;
        escaped_nowhere();
    }
    bench.nothing_under_way();
}

/// None of the files that the images try to write is there. (The victim of a whiteout is another
/// test's.)
fn escaped_nowhere() {
    for name in ["dotdot", "absolute", "direct", "up", "chain", "across", "file-link"] {
        let path = format!("{}-{name}", test_images::catalog::ESCAPES);
        assert!(std::fs::symlink_metadata(&path).is_err(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_beside_other_pulls_harms_none() {
    let names =
        ["test/hostile-truncated:1", "test/hostile-diff-id:1", "test/busybox:1", "test/zstd:1"];
    let registry = Registry::with(&names);
    let bench = Bench::new();
    let full = names.map(|name| registry.name(name));
    for _ in 0..5 {
        let (one, two, ..) = tokio::join!(
            bench.refused(&full[0]),
            bench.refused(&full[1]),
            bench.pull(&full[2]),
            bench.pull(&full[3]),
        );
        assert_eq!((one.kind(), two.kind()), (Kind::Invalid, Kind::Invalid));
        assert_eq!(bench.images.list(None).len(), 2);
        // Two layers, two manifests, two configs, two records.
        assert_eq!(bench.left().len(), 8, "{:?}", bench.left());
        for image in &full[2..] {
            bench.images.remove(image, &|_| None).await.unwrap();
        }
        assert_eq!(bench.left(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_and_who_is_not_there() {
    let registry = Registry::with(&["test/busybox:1"]);
    let bench = Bench::new();
    for name in ["test/busybox:nope", "test/nope:1"] {
        let error = bench.refused(&registry.name(name)).await;
        assert_eq!(error.kind(), Kind::NotFound, "{}", error.full());
        assert_eq!(status_of(&error).code(), tonic::Code::NotFound);
        assert!(error.full().contains(name), "{}", error.full());
    }
    registry.stop();
    let error = bench.refused(&registry.name("test/busybox:1")).await;
    let status = status_of(&error);
    assert_eq!(status.code(), tonic::Code::Unknown);
    assert!(status.message().starts_with("RegistryUnavailable: "), "{}", status.message());
    for name in ["", "A", "a:b:c", "a@sha256:12", "-", "http://x/y", "unqualified"] {
        let error = bench.refused(name).await;
        assert_eq!(error.kind(), Kind::BadReference, "{name:?}: {}", error.full());
        assert_eq!(status_of(&error).code(), tonic::Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_registry_is_not_asked() {
    let registry = Registry::with(&["test/busybox:1"]);
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    let text = format!("[[registry]]\nlocation = \"{}\"\nblocked = true\n", registry.address());
    std::fs::write(&conf, text).unwrap();
    let bench = Bench::with(Options { registries_conf: conf, ..options() });
    let error = bench.refused(&registry.name("test/busybox:1")).await;
    assert_eq!(error.kind(), Kind::Blocked, "{}", error.full());
    assert!(error.full().contains("blocked"), "{}", error.full());
}

/// A small file system. Unmounted with the value, which must come after the store.
struct Small(tempfile::TempDir);

impl Small {
    fn new(bytes: usize) -> Small {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        nix::mount::mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(size.as_str()),
        )
        .unwrap();
        Small(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_left_clean() {
    let registry = Registry::start(big(24 << 20), false);
    let good = Registry::with(&["test/busybox:1"]);
    let small = Small::new(12 << 20);
    let bench = Bench::at(&small.0.path().join("store"), options());
    let name = registry.name("test/big:1");
    let error = bench.refused(&name).await;
    assert_eq!(error.kind(), Kind::NoSpace, "{}", error.full());
    assert_eq!(status_of(&error).code(), tonic::Code::ResourceExhausted);
    assert!(error.full().contains(&name), "{}", error.full());
    assert_eq!(bench.left(), Vec::<String>::new());
    bench.nothing_under_way();
    // What fits still goes.
    bench.pull(&good.name("test/busybox:1")).await;
}
