//! A disk of a test's own: ext4 on a loop device, that can be filled up and frozen.
//!
//! ```text
//! <folder>/disk.img ─ loop device ─ ext4 at <folder>/disk
//! ```
//! The loop device goes with the mount, however the test ends.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

/// The disk. Thawed and unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
    image: PathBuf,
}

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Disk {
    /// Makes one of this size in a folder and mounts it.
    pub fn new(folder: &Path, mebibytes: u64) -> Disk {
        let (image, at) = (folder.join("disk.img"), folder.join("disk"));
        File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        fs::create_dir(&at).unwrap();
        run("mkfs.ext4", &["-q", "-m", "0", image.to_str().unwrap()]);
        let disk = Disk { at, image };
        let (from, to) = (disk.image.to_str().unwrap(), disk.at.to_str().unwrap());
        run("mount", &["-o", "loop", from, to]);
        disk
    }

    /// A file on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// Takes all room that there is.
    pub fn fill(&self) {
        let mut filler = File::create(self.path("filler")).unwrap();
        for size in [1 << 16, 1 << 12] {
            while filler.write_all(&vec![1; size]).is_ok() {}
        }
        let _ = filler.sync_all();
    }

    /// Gives so many bytes of it back.
    pub fn make_room(&self, bytes: u64) {
        let filler = File::options().write(true).open(self.path("filler")).unwrap();
        let length = filler.metadata().unwrap().len();
        filler.set_len(length.saturating_sub(bytes)).unwrap();
    }

    /// Whether a page can be written to it.
    pub fn has_room(&self) -> bool {
        let path = self.path("probe");
        let Ok(probe) = File::create(&path) else { return false };
        let fits = probe.write_all_at(&[1; 4096], 0).is_ok();
        let _ = fs::remove_file(path);
        fits
    }

    /// Who writes to it waits from now on, as no signal can end.
    pub fn freeze(&self) -> Frozen<'_> {
        run("fsfreeze", &["--freeze", self.at.to_str().unwrap()]);
        Frozen(self)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.image);
    }
}

/// A disk that is frozen, until this is dropped.
#[derive(Debug)]
pub struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0.at).status();
        if !std::thread::panicking() {
            assert!(thawed.unwrap().success());
        }
    }
}
