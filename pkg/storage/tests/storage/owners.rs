//! Layers seen with the owners of a user namespace.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use crate::common::*;
use storage::{ContainerMount, Digest, Error, MountOptions, Options, Owners, Store};
use sys::userns::{Holder, Range, hold};

const SIZE: u32 = 65_536;

/// A user namespace, as long as it is held.
struct Users {
    holder: Holder,
    uids: Range,
    gids: Range,
}

impl Users {
    fn at(uid: u32, gid: u32) -> Self {
        let range = |outside| Range { inside: 0, outside, size: SIZE };
        let (uids, gids) = (range(uid), range(gid));
        let holder = hold(0).unwrap();
        holder.map(uids, gids).unwrap();
        Self { holder, uids, gids }
    }

    fn options(&self) -> MountOptions {
        let namespace = PathBuf::from(format!("/proc/{}/ns/user", self.holder.pid()));
        let owners = Owners { namespace, uids: self.uids, gids: self.gids };
        MountOptions { owners: Some(owners), ..MountOptions::default() }
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

fn two_layers(store: &Store) -> Vec<Digest> {
    let owned = |kind, name, uid, gid| Fields { uid, gid, mode: 0o755, ..fields(kind, name) };
    layers(
        store,
        &[
            Tar::new()
                .raw(&owned(b'5', b"./", 5, 6), b"")
                .file("roots", b"")
                .file("gone", b"")
                .raw(&owned(b'5', b"home/", 1000, 1001), b"")
                .raw(&owned(b'0', b"beyond", 70_000, 0), b"")
                .end(),
            Tar::new()
                .raw(&owned(b'5', b"home/", 1000, 1001), b"")
                .raw(&owned(b'0', b"home/own", 1000, 1001), b"")
                .file(".wh.gone", b"")
                .end(),
        ],
    )
}

fn classic() -> Options {
    let mut options = Options::default();
    options.classic_mount = true;
    options
}

#[test]
fn each_namespace_sees_its_own_and_the_disk_keeps_its_own() {
    let temp = temp();
    for (name, options) in [("parts", Options::default()), ("classic", classic())] {
        let place = temp.path().join(name);
        let store = Store::open(&place, options).unwrap();
        let chain = two_layers(&store);
        let (one, two) = (Users::at(1_000_000, 2_000_000), Users::at(3_000_000, 3_000_000));
        let mounts: Vec<_> = [&one, &two]
            .map(|u| {
                Mounted::new(&store, &place.join(u.uids.outside.to_string()), &chain, u.options())
            })
            .into();
        for (users, mounted) in [&one, &two].iter().zip(&mounts) {
            let (uid, gid) = (users.uids.outside, users.gids.outside);
            let at = |name: &str| mounted.merged.join(name);
            assert_eq!(mounted.names(), ["beyond", "home", "home/own", "roots"]);
            assert_eq!(owner(&mounted.merged), (uid + 5, gid + 6));
            assert_eq!(owner(&at("roots")), (uid, gid));
            assert_eq!(owner(&at("home")), (uid + 1000, gid + 1001));
            assert_eq!(owner(&at("home/own")), (uid + 1000, gid + 1001));
            // Nobody there is.
            assert_eq!(owner(&at("beyond")), (65_534, gid));
            // What is written to is copied with its owner.
            fs::write(at("home/own"), "changed").unwrap();
            assert_eq!(owner(&at("home/own")), (uid + 1000, gid + 1001));
            assert_eq!(owner(&mounted.mount.upper().join("home/own")), (uid + 1000, gid + 1001));
            fs::write(at("new"), "").unwrap();
            chown(at("new"), Some(uid + 7), Some(gid)).unwrap();
            assert_eq!(owner(&mounted.mount.upper().join("new")), (uid + 7, gid));
            let dir = mounted.merged.parent().unwrap();
            assert!(!dir.join("owners").exists());
            fs::write(at("beyond"), "").unwrap_err();
        }
        let disk = diff(&store, &chain[1]).join("home/own");
        assert_eq!((owner(&disk), fs::read(&disk).unwrap()), ((1000, 1001), Vec::new()));
        assert_eq!(owner(&diff(&store, &chain[0]).join("roots")), (0, 0));
        drop(mounts);
        for users in [&one, &two] {
            ContainerMount::existing(&place.join(users.uids.outside.to_string())).remove().unwrap();
        }
    }
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(temp.path().to_str().unwrap())
    );
}

#[test]
fn read_only_and_without_layers() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    let users = Users::at(1_000_000, 1_000_000);
    let chain = layers(&store, &[Tar::new().file("f", b"f").end()]);
    for (name, chain, readonly) in
        [("one", &chain[..], true), ("none", &[], true), ("scratch", &[], false)]
    {
        let options = MountOptions { readonly, ..users.options() };
        let mounted = Mounted::new(&store, &temp.path().join(name), chain, options);
        assert_eq!(mounted.names().len(), chain.len());
        if !chain.is_empty() {
            assert_eq!(owner(&mounted.merged.join("f")), (1_000_000, 1_000_000));
        }
        if !readonly {
            assert_eq!(owner(&mounted.merged), (1_000_000, 1_000_000));
        }
    }
}

#[test]
fn what_fails_leaves_no_mount() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    let dir = temp.path().join("c");
    fs::create_dir(&dir).unwrap();
    let chain = layers(
        &store,
        &[Tar::new().raw(&Fields { uid: 70_000, ..fields(b'5', b"./") }, b"").end()],
    );
    let users = Users::at(1_000_000, 1_000_000);
    let error = store.container_mount(&dir, &chain, users.options()).unwrap_err();
    assert!(matches!(error, Error::Owner { id: 70_000 }), "{error:?}");

    let mut options = users.options();
    // Not a user namespace, and nothing at all.
    for namespace in ["/proc/self/ns/net", "/nowhere"] {
        options.owners.as_mut().unwrap().namespace = namespace.into();
        store.container_mount(&dir, &[], options.clone()).unwrap().mount().unwrap_err();
        assert!(!dir.join("owners").exists());
    }
    let mut options = users.options();
    options.extra = vec!["no_such_option=1".into()];
    store.container_mount(&dir, &[], options).unwrap().mount().unwrap_err();
    assert!(!dir.join("owners").exists());
}

#[test]
fn what_a_death_left_mounted_is_taken_away_and_no_layer_with_it() {
    let temp = temp();
    let store = open(&temp.path().join("store"));
    let chain = two_layers(&store);
    let users = Users::at(1_000_000, 1_000_000);
    let dir = temp.path().join("c");
    let owners = dir.join("owners");
    let leave = || {
        fs::create_dir_all(&owners).unwrap();
        rustix::mount::mount_bind(store.layers_folder(), &owners).unwrap();
        assert!(owners.join(chain[0].hex()).exists());
    };
    leave();
    let mounted = Mounted::new(&store, &dir, &chain, users.options());
    assert_eq!(owner(&mounted.merged.join("roots")), (1_000_000, 1_000_000));
    drop(mounted);
    leave();
    ContainerMount::existing(&dir).remove().unwrap();
    assert!(!owners.exists());
    assert!(diff(&store, &chain[0]).join("roots").exists());
}
