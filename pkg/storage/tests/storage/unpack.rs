//! Layers as images have them: types, attributes, compressions, digests.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use crate::common::*;
use storage::{CommitLayer, Compression, Digest, Error, Limits};

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn types_and_attributes() {
    let temp = temp();
    let store = open(temp.path());
    let archive = Tar::new()
        .raw(&Fields { mode: 0o1711, uid: 7, gid: 8, mtime: 5, ..fields(b'5', b"./") }, b"")
        .raw(&Fields { mode: 0o2750, gid: 50, mtime: 11, ..fields(b'5', b"./dir/") }, b"")
        .raw(
            &Fields {
                mode: 0o4755,
                uid: 1000,
                gid: 2_000_000_000,
                mtime: 12,
                size: 5,
                ..fields(b'0', b"dir/suid")
            },
            b"hello",
        )
        .symlink("dir/link", "/etc/passwd")
        .link("hard", "dir/suid")
        .raw(&Fields { mode: 0o620, gid: 5, device: (5, 1), ..fields(b'3', b"console") }, b"")
        .raw(&Fields { mode: 0o660, device: (7, 300), ..fields(b'4', b"loop\n\xff0") }, b"")
        .raw(&Fields { mode: 0o622, ..fields(b'6', b"fifo") }, b"")
        .file("implicit/parent/file", b"")
        .end();
    let meta = layer(&store, None, &archive);
    let root = diff(&store, &meta.chain_id);

    let stat = fs::metadata(&root).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()), (0o1711, 7, 8, 5));
    let known = meta.root.unwrap();
    assert_eq!((known.mode, known.uid, known.gid), (0o1711, 7, 8));
    let stat = fs::metadata(root.join("dir")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.gid(), stat.mtime()), (0o2750, 50, 11));
    let stat = fs::metadata(root.join("dir/suid")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o4755, 1000, 2_000_000_000));
    assert_eq!((stat.mtime(), stat.nlink()), (12, 2));
    assert_eq!(fs::read(root.join("hard")).unwrap(), b"hello");
    assert_eq!(fs::read_link(root.join("dir/link")).unwrap().to_str(), Some("/etc/passwd"));
    let stat = fs::metadata(root.join("console")).unwrap();
    assert!(stat.file_type().is_char_device());
    assert_eq!((stat.rdev(), stat.mode() & 0o7777, stat.gid()), (0x501, 0o620, 5));
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(b"loop\n\xff0");
    let stat = fs::metadata(root.join::<&std::ffi::OsStr>(odd)).unwrap();
    assert!(stat.file_type().is_block_device());
    assert_eq!(rustix::fs::minor(stat.rdev()), 300);
    assert!(fs::metadata(root.join("fifo")).unwrap().file_type().is_fifo());
    let stat = fs::metadata(root.join("implicit/parent")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.mtime()), (0o755, 0, 1_000_000_000));
    assert_eq!(meta.size, 5);
    // The root, dir, suid, link, console, loop, fifo, implicit, parent, file.
    assert_eq!(meta.inodes, 10);
}

#[test]
fn times_of_directories_survive_a_small_cache() {
    let temp = temp();
    let store = open(temp.path());
    let mut tar = Tar::new();
    for dir in 0..200u64 {
        let name = format!("d{dir}/");
        tar = tar.raw(&Fields { mtime: 100 + dir, ..fields(b'5', name.as_bytes()) }, b"");
    }
    tar = tar.symlink("alias", "d7");
    for dir in (0..200).rev() {
        tar = tar.file(&format!("d{dir}/a"), b"a").file("alias/b", b"b");
    }
    let root = unpacked(&store, &tar.end());
    for dir in 0..200i64 {
        assert_eq!(fs::metadata(root.join(format!("d{dir}"))).unwrap().mtime(), 100 + dir);
    }
    assert_eq!(fs::read(root.join("d7/b")).unwrap(), b"b");
}

#[test]
fn pax_values_win() {
    let temp = temp();
    let store = open(temp.path());
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let archive = Tar::new()
        .pax(&[
            (b"path", long.as_bytes()),
            (b"size", b"3"),
            (b"uid", b"3000000000"),
            (b"gid", b"4000000000"),
            (b"mtime", b"1234567890.123456789"),
            (b"SCHILY.xattr.user.note", b"a=b\nc"),
            (b"SCHILY.xattr.trusted.note", b"left out"),
            (b"comment", b"ignored"),
        ])
        .raw(&Fields { size: 0, ..fields(b'0', b"short") }, b"abc")
        .pax(&[(b"linkpath", b"target"), (b"mtime", b"-1.5")])
        .symlink("link", "elsewhere")
        .end();
    let unpacked = unpack(&store, &archive).unwrap();
    assert_eq!(unpacked.skipped_xattrs, 1);
    let meta = layer(&store, None, &archive);
    let root = diff(&store, &meta.chain_id);
    let stat = fs::metadata(root.join(&long)).unwrap();
    assert_eq!((stat.size(), stat.uid(), stat.gid()), (3, 3_000_000_000, 4_000_000_000));
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (1_234_567_890, 123_456_789));
    let mut value = Vec::with_capacity(100);
    rustix::fs::getxattr(root.join(&long), "user.note", rustix::buffer::spare_capacity(&mut value))
        .unwrap();
    assert_eq!(value, b"a=b\nc");
    assert_eq!(fs::read_link(root.join("link")).unwrap().to_str(), Some("target"));
    let stat = fs::symlink_metadata(root.join("link")).unwrap();
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (-2, 500_000_000));
}

#[test]
fn gnu_long_names() {
    let temp = temp();
    let store = open(temp.path());
    let mut builder = tar::Builder::new(Vec::new());
    let name = format!("{}/{}", "n".repeat(120), "m".repeat(120));
    let target = "t".repeat(300);
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o600);
    builder.append_data(&mut header, &name, &b"hi"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", &target).unwrap();
    let root = unpacked(&store, &builder.into_inner().unwrap());
    assert_eq!(fs::read(root.join(&name)).unwrap(), b"hi");
    assert_eq!(fs::read_link(root.join("link")).unwrap().to_str(), Some(&*target));
}

#[test]
fn capabilities_come_after_the_owner() {
    let temp = temp();
    let store = open(temp.path());
    // cap_net_raw=ep, as the kernel stores it (version 2).
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archive = Tar::new()
        .pax(&[(b"SCHILY.xattr.security.capability", &capability)])
        .raw(&Fields { mode: 0o4755, uid: 33, size: 3, ..fields(b'0', b"ping") }, b"abc")
        .end();
    let root = unpacked(&store, &archive);
    let mut value = Vec::with_capacity(100);
    rustix::fs::getxattr(
        root.join("ping"),
        "security.capability",
        rustix::buffer::spare_capacity(&mut value),
    )
    .unwrap();
    assert_eq!(value, capability);
    assert_eq!(fs::metadata(root.join("ping")).unwrap().mode() & 0o7777, 0o4755);
}

#[test]
fn sparse_files_keep_their_holes() {
    let temp = temp();
    let store = open(temp.path());
    let size = 1u64 << 40;
    let mut block = [0u8; 512];
    let map = format!("2\n0\n3\n{}\n2\n", size - 2);
    block[..map.len()].copy_from_slice(map.as_bytes());
    let data = [&block[..], b"abcyz"].concat();
    let archive = Tar::new()
        .pax(&[
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"new"),
            (b"GNU.sparse.realsize", size.to_string().as_bytes()),
        ])
        .raw(&Fields { size: data.len() as u64, ..fields(b'0', b"x/GNUSparseFile.1/new") }, &data)
        .pax(&[
            (b"GNU.sparse.size", b"100"),
            (b"GNU.sparse.numblocks", b"1"),
            (b"GNU.sparse.map", b"98,2"),
        ])
        .raw(&Fields { size: 2, ..fields(b'0', b"old-pax") }, b"!!")
        .file("after", b"fine")
        .end();
    let meta = layer(&store, None, &archive);
    let root = diff(&store, &meta.chain_id);
    let stat = fs::metadata(root.join("new")).unwrap();
    assert_eq!(stat.size(), size);
    assert!(stat.blocks() < 100);
    let file = fs::File::open(root.join("new")).unwrap();
    let mut end = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut end, size - 4).unwrap();
    assert_eq!(&end, b"\0\0yz");
    let old = fs::read(root.join("old-pax")).unwrap();
    assert_eq!((old.len(), &old[97..]), (100, &b"\0!!"[..]));
    assert_eq!(fs::read(root.join("after")).unwrap(), b"fine");
    assert_eq!(meta.size, 3 + 2 + 2 + 4);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let temp = temp();
    let store = open(temp.path());
    let archive = Tar::new()
        .dir("dir", 0o700)
        .file("dir/kept", b"1")
        .dir("dir", 0o755)
        .file("file", b"old, and longer")
        .file("file", b"new")
        .dir("becomes-file/below", 0o755)
        .file("becomes-file/below/x", b"")
        .file("becomes-file", b"f")
        .file("becomes-dir", b"f")
        .file("becomes-dir/", b"")
        .dir("becomes-dir", 0o711)
        .file("becomes-dir/x", b"x")
        .symlink("link", "dir")
        .dir("link", 0o755)
        .file("link/own", b"own")
        .dir("becomes-link", 0o755)
        .file("becomes-link/lost", b"")
        .symlink("becomes-link", "dir")
        .file("becomes-link/through", b"2")
        .file("a", b"same")
        .link("b", "a")
        .link("b", "a")
        .link("a", "a")
        .symlink("here", ".")
        .link("here/a", "b")
        .end();
    let root = unpacked(&store, &archive);
    assert_eq!(
        names(&root),
        [
            "a",
            "b",
            "becomes-dir",
            "becomes-dir/x",
            "becomes-file",
            "becomes-link",
            "dir",
            "dir/kept",
            "dir/through",
            "file",
            "here",
            "link",
            "link/own"
        ]
    );
    assert_eq!(fs::read(root.join("file")).unwrap(), b"new");
    assert_eq!(fs::metadata(root.join("dir")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(root.join("becomes-dir")).unwrap().mode() & 0o7777, 0o711);
    assert!(fs::symlink_metadata(root.join("becomes-file")).unwrap().is_file());
    assert_eq!(fs::metadata(root.join("a")).unwrap().nlink(), 2);
    assert_eq!(fs::read(root.join("b")).unwrap(), b"same");
}

#[test]
fn compressions_give_the_same_layer() {
    let temp = temp();
    let store = open(temp.path());
    let noise: Vec<u8> =
        (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let archive = Tar::new().file("noise", &noise).file("b", b"b").end();
    let (front, back) = archive.split_at(1_000_001);
    let zstd = |data: &[u8]| zstd::stream::encode_all(data, 1).unwrap();
    let cases = [
        (Compression::None, archive.clone()),
        (Compression::Gzip, gzip(&archive)),
        (Compression::Gzip, [gzip(front), gzip(b""), gzip(back)].concat()),
        (Compression::Zstd, zstd(&archive)),
        (Compression::Zstd, [zstd(front), zstd(back)].concat()),
    ];
    for (compression, bytes) in cases {
        let unpacked = store
            .begin_layer()
            .unwrap()
            .unpack(&bytes[..], compression, &Limits::default())
            .unwrap();
        assert_eq!(unpacked.diff_id, Digest::of(&archive));
        assert_eq!(unpacked.compressed, Digest::of(&bytes));
        assert_eq!(unpacked.compressed_size, bytes.len() as u64);
        assert_eq!((unpacked.size, unpacked.entries), (3_000_001, 2));
    }
    assert_eq!(under_way(&store), 0);
    assert_eq!(
        Compression::of_media_type("application/vnd.oci.image.layer.v1.tar+zstd"),
        Some(Compression::Zstd)
    );
    assert_eq!(
        Compression::of_media_type("application/vnd.docker.image.rootfs.diff.tar.gzip"),
        Some(Compression::Gzip)
    );
    assert_eq!(
        Compression::of_media_type("application/vnd.oci.image.layer.v1.tar"),
        Some(Compression::None)
    );
    assert_eq!(Compression::of_media_type("application/vnd.oci.image.config.v1+json"), None);
}

#[test]
fn digests_go_to_the_end_of_the_stream() {
    let temp = temp();
    let store = open(temp.path());
    let mut archive = Tar::new().file("a", b"a").end();
    archive.resize(archive.len() + 700_000, 7);
    let unpacked = unpack(&store, &archive).unwrap();
    assert_eq!(unpacked.diff_id, Digest::of(&archive));
    let limits = Limits { max_trailing: 600_000, ..Limits::default() };
    let error = store.begin_layer().unwrap().unpack(&archive[..], Compression::None, &limits);
    assert!(matches!(error, Err(Error::TrailingData { limit: 600_000 })));
}

#[test]
fn wrong_digests_are_not_committed() {
    let temp = temp();
    let store = open(temp.path());
    let archive = Tar::new().file("a", b"a").end();
    let (right, wrong) = (Digest::of(&archive), Digest::of(b"something else"));
    for (diff_id, compressed, what) in
        [(&wrong, &right, "diff id"), (&right, &wrong, "compressed layer")]
    {
        let commit =
            CommitLayer { chain_id: &right, parent: None, diff_id, compressed: Some(compressed) };
        match unpack(&store, &archive).unwrap().commit(&commit) {
            Err(Error::DigestMismatch { what: said, expected, actual }) => {
                assert_eq!((said, expected, actual), (what, wrong.clone(), right.clone()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(!store.has_layer(&right));
    assert_eq!(fs::read_dir(store.layers_folder()).unwrap().count(), 0);
}

#[test]
fn one_chain_id_many_times_at_once() {
    let temp = temp();
    let store = open(temp.path());
    let archive = Tar::new().file("a", &[1; 100_000]).dir("d", 0o755).end();
    let id = Digest::of(&archive);
    let metas: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| layer(&store, None, &archive))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(metas.iter().all(|meta| **meta == *metas[0]));
    assert_eq!(names(&diff(&store, &id)), ["a", "d"]);
    assert_eq!(under_way(&store), 0);
    assert_eq!(store.layers_usage().inodes, 3);
    assert_eq!(*layer(&store, None, &archive), *metas[0]);
}

/// Fails after some bytes, as a connection does.
struct Broken<'a>(&'a [u8]);

impl std::io::Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset by peer")),
            read => Ok(read),
        }
    }
}

#[test]
fn a_failing_source_is_told_apart() {
    let temp = temp();
    let store = open(temp.path());
    let archive = Tar::new().file("a", &[1; 600_000]).end();
    for (compression, bytes) in
        [(Compression::None, archive.clone()), (Compression::Gzip, gzip(&archive))]
    {
        let reader = Broken(&bytes[..bytes.len() / 2]);
        let error = store
            .begin_layer()
            .unwrap()
            .unpack(reader, compression, &Limits::default())
            .err()
            .unwrap();
        assert!(error.is_source(), "{error:?}");
        assert!(chain_of(&error).contains("reset by peer"));
    }
    assert_eq!(under_way(&store), 0);
}
