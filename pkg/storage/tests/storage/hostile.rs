//! Layers that want to get out, or to take more than their share.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::common::*;
use proptest::prelude::*;
use storage::{Compression, EntryProblem, Error, Limits};

/// A store in a folder with something beside it that must not change.
struct Guarded {
    temp: tempfile::TempDir,
    store: storage::Store,
}

impl Guarded {
    fn new() -> Self {
        let temp = temp();
        fs::create_dir(temp.path().join("outside")).unwrap();
        fs::write(temp.path().join("outside/secret"), "secret").unwrap();
        let store = open(&temp.path().join("store"));
        Self { temp, store }
    }

    fn outside(&self) -> String {
        self.temp.path().join("outside").to_str().unwrap().to_owned()
    }

    fn check(&self) {
        let outside = self.temp.path().join("outside");
        assert_eq!(names(&outside), ["secret"]);
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
        assert_eq!(
            std::os::unix::fs::MetadataExt::nlink(&outside.join("secret").metadata().unwrap()),
            1
        );
        let mut beside: Vec<_> =
            fs::read_dir(self.temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        beside.sort();
        assert_eq!(beside, ["outside", "store"]);
        let mut in_store: Vec<_> =
            fs::read_dir(self.store.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
        in_store.sort();
        assert_eq!(in_store, ["content", "images", "layers", "lock"]);
    }

    /// Unpacks what must be refused because of an entry.
    fn refused(&self, archive: &[u8]) -> (String, EntryProblem) {
        let error = unpack(&self.store, archive).err().expect("should be refused");
        self.check();
        assert_eq!(under_way(&self.store), 0);
        match error {
            Error::Entry { name, source } => (name, source),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    let guarded = Guarded::new();
    for name in ["../x", "a/../../x", "./../x", "/../x", "a/b/../../../x", ".."] {
        let (said, problem) = guarded.refused(&Tar::new().file(name, b"x").end());
        assert_eq!(said, name);
        assert!(matches!(problem, EntryProblem::Escapes), "{problem:?}");
        let (_, problem) = guarded.refused(&Tar::new().file("f", b"").link("l", name).end());
        assert!(matches!(problem, EntryProblem::TargetEscapes { .. }), "{problem:?}");
    }
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..."] {
        let (_, problem) = guarded.refused(&Tar::new().file(name, b"").end());
        assert!(matches!(problem, EntryProblem::BadName), "{name} {problem:?}");
    }
    let long = "x".repeat(5000);
    let (_, problem) = guarded.refused(&Tar::new().file(&long, b"").end());
    assert!(matches!(problem, EntryProblem::NameTooLong { .. }));
    let (_, problem) = guarded.refused(&Tar::new().pax(&[(b"path", b"a\0b")]).file("x", b"").end());
    assert!(matches!(problem, EntryProblem::BadName));
    let (_, problem) = guarded.refused(&Tar::new().file(".", b"").end());
    assert!(matches!(problem, EntryProblem::RootNotDirectory));
}

#[test]
fn absolute_names_land_inside() {
    let guarded = Guarded::new();
    let name = format!("{}/planted", guarded.outside());
    let root =
        unpacked(&guarded.store, &Tar::new().file(&name, b"x").file("//a/./b//c", b"y").end());
    guarded.check();
    assert!(root.join(name.trim_start_matches('/')).is_file());
    assert!(root.join("a/b/c").is_file());
}

#[test]
fn symlinks_never_lead_out() {
    let guarded = Guarded::new();
    let outside = guarded.outside();
    // To what is not in the layer: refused.
    let up = format!("{}{}", "../".repeat(30), outside.trim_start_matches('/'));
    for target in [outside.as_str(), up.as_str(), "/proc/self/root", "nowhere"] {
        let archive = Tar::new().symlink("link", target).file("link/planted", b"x").end();
        let (name, problem) = guarded.refused(&archive);
        assert_eq!(name, "link/planted");
        assert!(matches!(problem, EntryProblem::ParentNotDirectory), "{problem:?}");
    }
    // In chains, to what is: it lands there.
    let inside = outside.trim_start_matches('/');
    let archive = Tar::new()
        .dir(inside, 0o755)
        .symlink("a", "b/c")
        .symlink("b", &up)
        .symlink("d", "/a/../../../../..")
        .symlink(&format!("{inside}/c"), &outside)
        .file("a/planted", b"x")
        .file("d/top", b"x")
        .whole_file_over_link(&outside)
        .end();
    let root = unpacked(&guarded.store, &archive);
    guarded.check();
    assert!(root.join(inside).join("planted").is_file());
    assert!(root.join("top").is_file());
    assert!(root.join("over").symlink_metadata().unwrap().is_file());
    // A loop.
    let archive = Tar::new().symlink("x", "y").symlink("y", "x").file("x/z", b"").end();
    guarded.refused(&archive);
}

trait OverLink {
    fn whole_file_over_link(self, outside: &str) -> Self;
}

impl OverLink for Tar {
    /// A symlink to a file outside, then a file of the same name: must replace the symlink.
    fn whole_file_over_link(self, outside: &str) -> Self {
        self.symlink("over", &format!("{outside}/secret")).file("over", b"overwritten")
    }
}

#[test]
fn hard_links_stay_inside() {
    let guarded = Guarded::new();
    let secret = format!("{}/secret", guarded.outside());
    let (_, problem) = guarded.refused(&Tar::new().link("stolen", &secret).end());
    assert!(matches!(problem, EntryProblem::TargetMissing { .. }));
    let archive = Tar::new().symlink("dir", &guarded.outside()).link("stolen", "dir/secret").end();
    let (_, problem) = guarded.refused(&archive);
    assert!(matches!(problem, EntryProblem::TargetMissing { .. }));
    // The target itself is not followed: what is linked is the symlink.
    let archive = Tar::new()
        .symlink("soft", &secret)
        .link("hard", "soft")
        .raw(&Fields { size: 4, ..fields(b'0', b"hard") }, b"evil")
        .end();
    let root = unpacked(&guarded.store, &archive);
    guarded.check();
    assert!(root.join("hard").symlink_metadata().unwrap().is_file());
    for target in ["", "/", "."] {
        guarded.refused(&Tar::new().link("root", target).end());
    }
    guarded.refused(&Tar::new().dir("d", 0o755).link("l", "d").end());
    guarded.refused(&Tar::new().link("itself", "itself").end());
}

#[test]
fn attributes_that_only_overlay_may_set() {
    let guarded = Guarded::new();
    for name in [
        "trusted.overlay.redirect",
        "trusted.overlay.opaque",
        "trusted.overlay.overlay.opaque",
        "user.overlay.metacopy",
    ] {
        let key = format!("SCHILY.xattr.{name}");
        let archive = Tar::new().pax(&[(key.as_bytes(), b"/etc")]).dir("d", 0o755).end();
        let (_, problem) = guarded.refused(&archive);
        assert!(matches!(problem, EntryProblem::ForbiddenXattr { attribute } if attribute == name));
    }
    let big = vec![b'x'; 100_000];
    let archive = Tar::new().pax(&[(b"SCHILY.xattr.user.big", &big)]).file("f", b"").end();
    let (_, problem) = guarded.refused(&archive);
    assert!(matches!(problem, EntryProblem::XattrTooLarge { limit: 65536, .. }));
    // More than the file system has room for is not a full disk.
    let archive =
        Tar::new().pax(&[(b"SCHILY.xattr.user.big", &big[..60_000])]).file("f", b"").end();
    if let Err(error) = unpack(&guarded.store, &archive) {
        assert!(!error.is_no_space(), "{error:?}");
    }
}

#[test]
fn odd_ids_devices_and_types() {
    let guarded = Guarded::new();
    for fields in [
        Fields { uid: u64::from(u32::MAX), ..fields(b'0', b"f") },
        Fields { gid: 1 << 40, ..fields(b'0', b"f") },
        Fields { device: (1 << 12, 0), ..fields(b'3', b"f") },
        Fields { device: (0, 1 << 20), ..fields(b'4', b"f") },
    ] {
        let (_, problem) = guarded.refused(&Tar::new().raw(&fields, b"").end());
        assert!(matches!(problem, EntryProblem::IdOutOfRange), "{problem:?}");
    }
    let (_, problem) = guarded.refused(&Tar::new().raw(&fields(b'V', b"volume"), b"").end());
    assert!(matches!(problem, EntryProblem::UnsupportedType { kind: b'V' }));
    let (_, problem) = guarded.refused(&Tar::new().symlink("empty", "").end());
    assert!(matches!(problem, EntryProblem::BadName));
    let (_, problem) = guarded.refused(&Tar::new().file("f", b"").file("f/below", b"").end());
    assert!(matches!(problem, EntryProblem::ParentNotDirectory));
    let (_, problem) = guarded.refused(&Tar::new().file(&"n".repeat(256), b"").end());
    assert!(matches!(problem, EntryProblem::Os { .. }));
}

#[test]
fn very_deep_trees() {
    let guarded = Guarded::new();
    let deep = vec!["d"; 2000].join("/");
    let tar = Tar::new()
        .file(&format!("{deep}/file"), b"deep")
        .dir(&format!("{deep}/dir"), 0o711)
        .symlink("way", &"d/".repeat(2000));
    let root = unpacked(&guarded.store, &tar.clone().end());
    for path in [format!("{deep}/file"), "way/file".to_owned()] {
        assert_eq!(storage::read_in_root(&root, &path, 9).unwrap().unwrap(), b"deep");
    }
    // Replaced by a file: all of it must go.
    let meta = layer(&guarded.store, None, &tar.file("d", b"flat").end());
    assert_eq!(names(&diff(&guarded.store, &meta.chain_id)), ["d", "way"]);
    // Deeper than any path, and removed all the same.
    let top = guarded.temp.path().join("deeper");
    fs::create_dir(&top).unwrap();
    let mut at = fs::File::open(&top).unwrap();
    for depth in 0..6000 {
        rustix::fs::mkdirat(&at, "x", rustix::fs::Mode::RWXU).unwrap();
        if depth % 100 == 0 {
            let file = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
            drop(rustix::fs::openat(&at, "file", file, rustix::fs::Mode::RWXU).unwrap());
        }
        let flags = rustix::fs::OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, "x", flags, rustix::fs::Mode::empty()).unwrap().into();
    }
    drop(at);
    // What a path can say is measured: 2,047 levels, and more.
    assert!(storage::usage(&top).unwrap().inodes > 2000);
    storage::remove_tree(&top).unwrap();
    assert!(!top.exists());
    storage::remove_tree(&top).unwrap();
    let collected = guarded.store.gc().unwrap();
    assert_eq!(collected.layers, 2);
    guarded.check();
}

#[test]
fn limits_hold() {
    let guarded = Guarded::new();
    let unpack = |archive: &[u8], compression, limits: &Limits| {
        let done = guarded.store.begin_layer().unwrap().unpack(archive, compression, limits);
        let error = done.err().expect("should be refused");
        assert_eq!(under_way(&guarded.store), 0);
        error
    };
    // A bomb: a file of a gigabyte, of which as many zeros come as are enough.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let head = Tar::new().raw(&Fields { size: 1 << 30, ..fields(b'0', b"bomb") }, b"");
    encoder.write_all(&head.0).unwrap();
    encoder.write_all(&vec![0; 20 << 20]).unwrap();
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    let limits = Limits { max_bytes: 10 << 20, ..Limits::default() };
    match unpack(&bomb, Compression::Gzip, &limits) {
        Error::LayerTooLarge { limit } => assert_eq!(limit, 10 << 20),
        other => panic!("{other:?}"),
    }
    let limits = Limits { max_entries: 3, ..Limits::default() };
    let archive = Tar::new().file("a", b"").file("b", b"").file("a", b"").file("c", b"").end();
    match unpack(&archive, Compression::None, &limits) {
        Error::TooManyEntries { limit: 3 } => {}
        other => panic!("{other:?}"),
    }
    // A size that is only claimed.
    for size in [1 << 40, 1 << 62, u64::MAX - 511, u64::MAX] {
        let archive = Tar::new().raw(&Fields { size, ..fields(b'0', b"huge") }, b"little");
        assert!(matches!(
            unpack(&archive.0, Compression::None, &Limits::default()),
            Error::Archive { .. }
        ));
        for kind in [b'x', b'g', b'L', b'K'] {
            let archive = Tar::new().raw(&Fields { size, ..fields(kind, b"huge") }, b"little");
            assert!(matches!(
                unpack(&archive.0, Compression::None, &Limits::default()),
                Error::Archive { .. }
            ));
        }
    }
    guarded.check();
}

#[test]
fn damaged_streams() {
    let guarded = Guarded::new();
    let archive = Tar::new().file("a", &[7; 70_000]).end();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive).unwrap();
    let gzip = encoder.finish().unwrap();
    let zstd = zstd::stream::encode_all(&archive[..], 1).unwrap();
    let flipped = {
        let mut bytes = gzip.clone();
        let crc = bytes.len() - 6;
        bytes[crc] ^= 1;
        bytes
    };
    let cases: [(Compression, Vec<u8>); 8] = [
        (Compression::Gzip, gzip[..gzip.len() - 1].to_vec()),
        (Compression::Gzip, gzip[..gzip.len() / 2].to_vec()),
        (Compression::Gzip, flipped),
        (Compression::Gzip, [&gzip[..], b"garbage after it"].concat()),
        (Compression::Gzip, zstd.clone()),
        (Compression::Zstd, zstd[..zstd.len() - 5].to_vec()),
        (Compression::Zstd, gzip.clone()),
        (Compression::Gzip, b"not a gzip stream at all".to_vec()),
    ];
    for (number, (compression, bytes)) in cases.into_iter().enumerate() {
        let layer = guarded.store.begin_layer().unwrap();
        let error = layer.unpack(&bytes[..], compression, &Limits::default()).err().unwrap();
        assert!(matches!(error, Error::Decompress { .. }), "{number}: {error:?}");
    }
    for bytes in [gzip, archive[..1000].to_vec(), vec![b'x'; 2000]] {
        let error = unpack(&guarded.store, &bytes).err().unwrap();
        assert!(matches!(error, Error::Archive { .. }), "{error:?}");
    }
    assert_eq!(under_way(&guarded.store), 0);
}

#[test]
fn a_full_disk_is_told_and_cleaned_up() {
    let temp = temp();
    let tmpfs = Tmpfs::new(&temp.path().join("small"), "size=8m,nr_inodes=200");
    {
        let store = open(&tmpfs.0);
        let error = unpack(&store, &Tar::new().file("big", &vec![1; 9 << 20]).end()).err().unwrap();
        assert!(error.is_no_space(), "{error:?}");
        let mut tar = Tar::new();
        for number in 0..300 {
            tar = tar.file(&format!("f{number}"), b"");
        }
        let error = unpack(&store, &tar.end()).err().unwrap();
        assert!(error.is_no_space(), "{error:?}");
        assert_eq!(under_way(&store), 0);
        // There is room again.
        layer(&store, None, &Tar::new().file("fits", &vec![1; 5 << 20]).end());
        let content = vec![b'x'; 4 << 20];
        let digest = storage::Digest::of(&content);
        assert!(store.put_content(&digest, &content).unwrap_err().is_no_space());
        assert_eq!(store.get_content(&digest).unwrap(), None);
    }
}

/// One step of a random archive.
#[derive(Debug, Clone)]
enum Step {
    File(String),
    Dir(String),
    Symlink(String, String),
    Link(String, String),
    Device(String),
}

fn build(steps: &[Step], outside: &str) -> Vec<u8> {
    let real = |text: &String| text.replace('@', outside);
    let mut tar = Tar::new();
    for step in steps {
        tar = match step {
            Step::File(name) => tar.file(&real(name), b"overwritten"),
            Step::Dir(name) => tar.dir(&real(name), 0o755),
            Step::Symlink(name, target) => tar.symlink(&real(name), &real(target)),
            Step::Link(name, target) => tar.link(&real(name), &real(target)),
            Step::Device(name) => {
                tar.raw(&Fields { device: (1, 3), ..fields(b'3', real(name).as_bytes()) }, b"")
            }
        };
    }
    tar.end()
}

fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[ab]",
        1 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just("@".to_owned()),
        1 => Just("secret".to_owned()),
        1 => Just(".wh.a".to_owned()),
        1 => Just(".wh..wh..opq".to_owned()),
    ];
    (prop::bool::weighted(0.2), prop::collection::vec(part, 1..5)).prop_map(|(absolute, parts)| {
        format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => path().prop_map(Step::File),
        2 => path().prop_map(Step::Dir),
        3 => (path(), path()).prop_map(|(name, target)| Step::Symlink(name, target)),
        2 => (path(), path()).prop_map(|(name, target)| Step::Link(name, target)),
        1 => path().prop_map(Step::Device),
    ]
}

/// All prefixes of an archive's steps: a refused step does not hide what those before it did.
fn unpack_all(guarded: &Guarded, steps: &[Step]) -> usize {
    let mut good: Vec<Step> = Vec::new();
    for step in steps {
        good.push(step.clone());
        let done = unpack(&guarded.store, &build(&good, &guarded.outside()));
        guarded.check();
        match done {
            Ok(_) => {}
            Err(Error::Entry { .. }) => {
                good.pop();
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    good.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_archives_never_write_outside(steps in prop::collection::vec(step(), 1..14)) {
        let guarded = Guarded::new();
        unpack_all(&guarded, &steps);
        prop_assert_eq!(under_way(&guarded.store), 0);
    }

    #[test]
    fn damaged_archives_never_panic(
        steps in prop::collection::vec(step(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let guarded = Guarded::new();
        let mut archive = build(&steps, &guarded.outside());
        for (at, byte) in damage {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        archive.truncate(cut.index(archive.len()) + 1);
        let _ = unpack(&guarded.store, &archive);
        guarded.check();
    }
}

#[test]
fn removal_follows_nothing_and_enters_no_mount() {
    let guarded = Guarded::new();
    let tree = guarded.temp.path().join("outside-too");
    fs::create_dir_all(tree.join("a/mnt")).unwrap();
    std::os::unix::fs::symlink(guarded.outside(), tree.join("a/link")).unwrap();
    std::os::unix::fs::symlink(Path::new(&guarded.outside()).join("secret"), tree.join("l"))
        .unwrap();
    {
        let tmpfs = Tmpfs::new(&tree.join("a/mnt"), "size=1m");
        fs::write(tmpfs.0.join("precious"), "x").unwrap();
        let error = storage::remove_tree(&tree).unwrap_err();
        assert!(matches!(error, Error::MountInside { .. }), "{error:?}");
        assert_eq!(fs::read(tmpfs.0.join("precious")).unwrap(), b"x");
        let error = storage::remove_tree(&tmpfs.0).unwrap_err();
        assert!(matches!(error, Error::MountInside { .. }), "{error:?}");
    }
    storage::remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    guarded.check();
}
