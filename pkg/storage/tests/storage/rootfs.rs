//! Paths inside a root that somebody else controls.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use crate::common::*;
use storage::{Error, ensure_dir_in_root, read_in_root, resolve_in_root};

#[test]
fn reading_stays_inside() {
    let temp = temp();
    let root = temp.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(temp.path().join("secret"), "secret").unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0").unwrap();
    fs::write(root.join("secret"), "inside").unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    symlink("../../../../secret", root.join("etc/up")).unwrap();
    symlink(temp.path().join("secret"), root.join("out")).unwrap();
    symlink("/proc/self/root/etc/passwd", root.join("magic")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("fifo"), rustix::fs::Mode::RWXU).unwrap();

    let read = |path: &str| read_in_root(&root, path, 100);
    assert_eq!(read("/etc/passwd").unwrap().unwrap(), b"root:x:0:0");
    assert_eq!(read("etc/passwd").unwrap().unwrap(), b"root:x:0:0");
    assert_eq!(read("/absolute").unwrap().unwrap(), b"root:x:0:0");
    assert_eq!(read("/../../etc/passwd").unwrap().unwrap(), b"root:x:0:0");
    assert_eq!(read("/etc/up").unwrap().unwrap(), b"inside");
    assert_eq!(read("/out").unwrap(), None);
    assert_eq!(read("/magic").unwrap(), None);
    assert_eq!(read("/no/such").unwrap(), None);
    assert_eq!(read("/etc/passwd/x").unwrap(), None);
    for path in ["/fifo", "/etc", "/loop", "", "/"] {
        assert!(matches!(read(path), Err(Error::InRoot { .. })), "{path}");
    }
    assert_eq!(read_in_root(&root, "/etc/passwd", 10).unwrap().unwrap().len(), 10);
    assert!(matches!(
        read_in_root(&root, "/etc/passwd", 9),
        Err(Error::FileTooLarge { limit: 9, .. })
    ));
    // Where there is a /proc, its links do not lead out either.
    fs::create_dir(root.join("proc")).unwrap();
    let proc_flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("proc", root.join("proc"), "proc", proc_flags, None).unwrap();
    let guard = Tmpfs(root.join("proc"));
    assert!(read("/magic").is_err());
    drop(guard);
}

#[test]
fn directories_are_made_inside() {
    let temp = temp();
    let root = temp.path().join("root");
    fs::create_dir_all(root.join("real")).unwrap();
    symlink("/real/below", root.join("dangling")).unwrap();
    symlink("dangling/../more", root.join("chain")).unwrap();
    symlink(temp.path().join("outside"), root.join("out")).unwrap();
    symlink("self", root.join("self")).unwrap();
    fs::write(root.join("file"), "").unwrap();

    ensure_dir_in_root(&root, "/a/./b//c/", 0o2751, 7, 8).unwrap();
    for path in ["a", "a/b", "a/b/c"] {
        let stat = fs::metadata(root.join(path)).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o2751, 7, 8), "{path}");
    }
    // What is there stays as it is.
    ensure_dir_in_root(&root, "real", 0o700, 1, 1).unwrap();
    assert_eq!(fs::metadata(root.join("real")).unwrap().uid(), 0);
    ensure_dir_in_root(&root, "/dangling/x", 0o755, 0, 0).unwrap();
    assert!(root.join("real/below/x").is_dir());
    ensure_dir_in_root(&root, "chain/y", 0o755, 0, 0).unwrap();
    assert!(root.join("real/more/y").is_dir());
    ensure_dir_in_root(&root, "out/z", 0o755, 0, 0).unwrap();
    let inside = temp.path().join("outside/z");
    assert!(root.join(inside.strip_prefix("/").unwrap()).is_dir());
    ensure_dir_in_root(&root, "../../../w", 0o755, 0, 0).unwrap();
    assert!(root.join("w").is_dir());
    for path in ["file", "file/below", "self", "self/x"] {
        assert!(ensure_dir_in_root(&root, path, 0o755, 0, 0).is_err(), "{path}");
    }
    ensure_dir_in_root(&root, "", 0o755, 0, 0).unwrap();
    ensure_dir_in_root(&root, "/", 0o755, 0, 0).unwrap();
    assert_eq!(resolve_in_root(&root, "/chain/y").unwrap(), root.join("real/more/y"));
    assert_eq!(resolve_in_root(&root, "/../..").unwrap(), root);
    assert!(resolve_in_root(&root, "/nowhere").is_err());
    let mut beside: Vec<_> =
        fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["root"]);
}
