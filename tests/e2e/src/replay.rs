//! Disks in memory whose every write is recorded, so that each state that a loss of power could have
//! left on them can be looked at.
//!
//! ```text
//! criod ─▶ ext4, xfs ─▶ loop device ─▶ FUSE: one file for each disk ─▶ Server: blocks, Recording
//!
//! recorded:  write write FLUSH write said(x) write write FLUSH …
//!                                             ▲ cut
//! the disk:  all up to the last flush before the cut, and any of the blocks written since
//! ```
//! A flush (or a write with FUA, which the block layer makes one of) reaches the server as FSYNC. What
//! the test was told goes into the same recording, so that it is known what must be there at a cut.

mod fuse;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::close;

/// The piece that a disk writes as a whole.
pub const BLOCK: usize = 4096;

/// What is on a disk: blocks that were never written are zero. Clones share their blocks.
#[derive(Debug, Clone, Default)]
pub struct Blocks(HashMap<u64, Arc<[u8; BLOCK]>>);

impl Blocks {
    /// Reads a piece that may begin and end anywhere.
    pub fn read(&self, mut offset: u64, mut to: &mut [u8]) {
        while !to.is_empty() {
            let (number, within) = (offset / BLOCK as u64, (offset % BLOCK as u64) as usize);
            let some = to.len().min(BLOCK - within);
            let (now, rest) = to.split_at_mut(some);
            match self.0.get(&number) {
                Some(block) => now.copy_from_slice(&block[within..within + some]),
                None => now.fill(0),
            }
            (to, offset) = (rest, offset + some as u64);
        }
    }

    /// Writes a piece that may begin and end anywhere.
    pub fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (number, within) = (offset / BLOCK as u64, (offset % BLOCK as u64) as usize);
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - within));
            let block = self.0.entry(number).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[within..within + now.len()].copy_from_slice(now);
            (bytes, offset) = (rest, offset + now.len() as u64);
        }
    }

    /// Makes a piece zero.
    pub fn zero(&mut self, offset: u64, length: u64) {
        let mut at = offset;
        while at < offset + length {
            let some = (BLOCK as u64 - at % BLOCK as u64).min(offset + length - at);
            if some == BLOCK as u64 {
                self.0.remove(&(at / BLOCK as u64));
            } else {
                self.write(at, &vec![0; some as usize]);
            }
            at += some;
        }
    }
}

/// What happened to a disk, and what somebody was told meanwhile.
#[derive(Debug, Clone)]
pub enum Event<T> {
    /// A write.
    Write(u64, Vec<u8>),
    /// A piece became zero: offset and length.
    Zero(u64, u64),
    /// Everything before it stays, whatever comes.
    Flush,
    /// What the test noted.
    Said(T),
}

impl<T> Event<T> {
    /// Does it to a disk; `keep` says which of its blocks reach it.
    pub fn apply(&self, to: &mut Blocks, mut keep: impl FnMut() -> bool) {
        match self {
            Event::Write(offset, bytes) => {
                let (mut at, mut rest) = (*offset, bytes.as_slice());
                while !rest.is_empty() {
                    let some = rest.len().min(BLOCK - (at % BLOCK as u64) as usize);
                    if keep() {
                        to.write(at, &rest[..some]);
                    }
                    (at, rest) = (at + some as u64, &rest[some..]);
                }
            }
            Event::Zero(offset, length) => {
                if keep() {
                    to.zero(*offset, *length);
                }
            }
            Event::Flush | Event::Said(_) => {}
        }
    }
}

#[derive(Debug)]
struct File<T> {
    name: String,
    size: u64,
    blocks: Blocks,
    /// Events, if they are recorded.
    recording: Option<Vec<Event<T>>>,
}

/// Files by their inode's number.
type Files<T> = Arc<Mutex<HashMap<u64, File<T>>>>;

fn lock<T>(files: &Files<T>) -> MutexGuard<'_, HashMap<u64, File<T>>> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves disks as files of a FUSE file system. It must not touch a file system that is on them.
#[derive(Debug)]
pub struct Server<T> {
    dir: tempfile::TempDir,
    files: Files<T>,
    next: std::sync::atomic::AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Server<T> {
    /// Mounts one in a folder of its own.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Server<T> {
        let dir = tempfile::Builder::new().prefix("criod-e2e-disks-").tempdir().unwrap();
        let files = Files::default();
        let (mounted, is_mounted) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (files, at) = (Arc::clone(&files), dir.path().to_owned());
            move || {
                // The device is this thread's alone: should the process be killed, it is closed
                // although another thread waits for a disk, and so waits no more.
                unshare(CloneFlags::CLONE_FILES).unwrap();
                // Nor may copies of others' pipes keep those from their end.
                let open = fs::read_dir("/proc/thread-self/fd").unwrap().flatten();
                let open: Vec<i32> =
                    open.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
                open.into_iter().filter(|fd| *fd > 2).for_each(|fd| {
                    let _ = close(fd);
                });
                let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
                let fd = device.as_raw_fd();
                let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                mount(Some("disks"), &at, Some("fuse"), flags, Some(options.as_str())).unwrap();
                mounted.send(()).unwrap();
                fuse::serve(&device, &files);
            }
        });
        is_mounted.recv().unwrap();
        Server { dir, files, next: 2.into(), thread: Some(thread) }
    }

    /// Attaches a disk of `size` bytes.
    pub fn attach(&self, blocks: Blocks, size: u64) -> Disk<'_, T> {
        let inode = self.next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let name = inode.to_string();
        let path = self.dir.path().join(&name);
        lock(&self.files).insert(inode, File { name, size, blocks, recording: None });
        let mut disk = Disk { server: self, inode, device: PathBuf::new() };
        let attached = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(attached.status.success(), "{}", String::from_utf8_lossy(&attached.stderr));
        disk.device = String::from_utf8(attached.stdout).unwrap().trim().into();
        disk
    }
}

impl<T> Drop for Server<T> {
    fn drop(&mut self) {
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A disk with its loop device.
#[derive(Debug)]
pub struct Disk<'a, T> {
    server: &'a Server<T>,
    inode: u64,
    /// The device.
    pub device: PathBuf,
}

impl<T> Disk<'_, T> {
    /// Begins to record; gives what is on it.
    pub fn record(&self) -> Blocks {
        let mut files = lock(&self.server.files);
        let file = files.get_mut(&self.inode).unwrap();
        file.recording = Some(Vec::new());
        file.blocks.clone()
    }

    /// Notes that something was said to the test.
    pub fn note(&self, said: T) {
        let mut files = lock(&self.server.files);
        let file = files.get_mut(&self.inode).unwrap();
        file.recording.as_mut().expect("it is recorded").push(Event::Said(said));
    }

    /// The device goes with its last user, whoever that is: it is mounted.
    pub fn leave(&mut self) {
        if !self.device.as_os_str().is_empty() {
            let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
            self.device.clear();
        }
    }

    /// What was recorded so far; nothing is recorded any more.
    pub fn recorded(&self) -> Vec<Event<T>> {
        lock(&self.server.files).get_mut(&self.inode).unwrap().recording.take().unwrap()
    }
}

impl<T> Drop for Disk<'_, T> {
    fn drop(&mut self) {
        self.leave();
        lock(&self.server.files).remove(&self.inode);
    }
}
