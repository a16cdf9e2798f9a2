//! What the tests share: archives with any content, stores in temporary folders, and guards that
//! leave nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage::{
    CommitLayer, Compression, ContainerMount, Digest, LayerMeta, Limits, MountOptions, Options,
    Store, Unpacked, chain_ids,
};
use tempfile::TempDir;

/// A temporary folder on a file system that overlay can write to.
pub(crate) fn temp() -> TempDir {
    tempfile::Builder::new().prefix("storage-test-").tempdir().unwrap()
}

pub(crate) fn open(root: &Path) -> Store {
    Store::open(root, Options::default()).unwrap()
}

/// An archive under construction; names and fields are written as they are given.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

pub(crate) struct Fields<'a> {
    pub(crate) kind: u8,
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
}

pub(crate) fn fields(kind: u8, name: &[u8]) -> Fields<'_> {
    Fields {
        kind,
        name,
        link: b"",
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 1_000_000_000,
        size: 0,
        device: (0, 0),
    }
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn raw(mut self, fields: &Fields<'_>, data: &[u8]) -> Self {
        if fields.name.len() > 100 || fields.link.len() > 100 {
            let mut records = Vec::new();
            if fields.name.len() > 100 {
                records.push((&b"path"[..], fields.name));
            }
            if fields.link.len() > 100 {
                records.push((&b"linkpath"[..], fields.link));
            }
            self = self.pax(&records);
        }
        let mut header = tar::Header::new_gnu();
        {
            let old = header.as_old_mut();
            let name = &fields.name[..fields.name.len().min(100)];
            old.name[..name.len()].copy_from_slice(name);
            let link = &fields.link[..fields.link.len().min(100)];
            old.linkname[..link.len()].copy_from_slice(link);
        }
        header.set_entry_type(tar::EntryType::new(fields.kind));
        header.set_mode(fields.mode);
        header.set_uid(fields.uid);
        header.set_gid(fields.gid);
        header.set_mtime(fields.mtime);
        header.set_size(fields.size);
        header.set_device_major(fields.device.0).unwrap();
        header.set_device_minor(fields.device.1).unwrap();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length += 1;
            }
            data.extend_from_slice(length.to_string().as_bytes());
            data.push(b' ');
            data.extend_from_slice(key);
            data.push(b'=');
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(&Fields { size: data.len() as u64, ..fields(b'x', b"pax") }, &data)
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        let fields = Fields { size: data.len() as u64, ..fields(b'0', name.as_bytes()) };
        self.raw(&fields, data)
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.raw(&Fields { mode, ..fields(b'5', name.as_bytes()) }, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(&Fields { link: target.as_bytes(), ..fields(b'2', name.as_bytes()) }, b"")
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.raw(&Fields { link: target.as_bytes(), ..fields(b'1', name.as_bytes()) }, b"")
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn unpack(store: &Store, archive: &[u8]) -> storage::Result<Unpacked> {
    store.begin_layer().unwrap().unpack(archive, Compression::None, &Limits::default())
}

/// Puts a layer on top of another; gives its record.
pub(crate) fn layer(store: &Store, below: Option<&Digest>, archive: &[u8]) -> Arc<LayerMeta> {
    let diff_id = Digest::of(archive);
    let chain_id = match below {
        None => diff_id.clone(),
        Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
    };
    let layer =
        CommitLayer { chain_id: &chain_id, parent: below, diff_id: &diff_id, compressed: None };
    unpack(store, archive).unwrap().commit(&layer).unwrap()
}

/// Puts layers on top of each other; gives their chain ids.
pub(crate) fn layers(store: &Store, archives: &[Vec<u8>]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for archive in archives {
        let meta = layer(store, chain.last(), archive);
        chain.push(meta.chain_id.clone());
    }
    let diffs: Vec<Digest> = archives.iter().map(|archive| Digest::of(archive)).collect();
    assert_eq!(chain, chain_ids(&diffs));
    chain
}

pub(crate) fn diff(store: &Store, chain_id: &Digest) -> PathBuf {
    store.layers_folder().join(chain_id.hex()).join("diff")
}

/// A layer's files, the layer being the only one.
pub(crate) fn unpacked(store: &Store, archive: &[u8]) -> PathBuf {
    diff(store, &layer(store, None, archive).chain_id)
}

/// Folders of layers under way.
pub(crate) fn under_way(store: &Store) -> usize {
    fs::read_dir(store.layers_folder())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().as_encoded_bytes().starts_with(b"tmp-"))
        .count()
}

/// A mounted root file system, unmounted at the end.
pub(crate) struct Mounted {
    pub(crate) mount: ContainerMount,
    pub(crate) merged: PathBuf,
}

impl Mounted {
    pub(crate) fn new(store: &Store, dir: &Path, chain: &[Digest], options: MountOptions) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mount = store.container_mount(dir, chain, options).unwrap();
        let mut mounted = Self { merged: mount.merged(), mount };
        mounted.merged = mounted.mount.mount().unwrap();
        mounted
    }

    /// All names in it, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.merged)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = self.mount.unmount();
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}

/// A tmpfs, unmounted at the end.
pub(crate) struct Tmpfs(pub(crate) PathBuf);

impl Tmpfs {
    pub(crate) fn new(path: &Path, options: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", path, "tmpfs", flags, options.as_c_str()).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// All names below a folder, sorted, without following symlinks.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    fn walk(top: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(top).unwrap().to_str().unwrap().to_owned());
            if path.symlink_metadata().unwrap().is_dir() {
                walk(top, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

/// An error with its sources.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
