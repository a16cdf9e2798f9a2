//! A file whose readers sleep as no signal can end: FUSE, with a server that does not answer a read.
//!
//! ```text
//! kernel ──INIT, LOOKUP, GETATTR, OPEN──▶ answered      ──READ──▶ taken, and never answered
//! ```
//! Once the server has taken a request, the process that waits for its answer is in uninterruptible
//! sleep. It is let go of when the connection ends: by [`Stuck::release`], by a drop, or with the
//! test's process.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::eventually;

/// The root's and the file's node.
const ROOT: u64 = 1;
const FILE: u64 = 2;

/// Operations of linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const ENOSYS: i32 = 38;
/// Reads go to the server, not to the page cache.
const DIRECT_IO: u32 = 1;

/// A folder with the file `stuck` in it.
#[derive(Debug)]
pub struct Stuck {
    at: PathBuf,
    taken: Arc<AtomicU32>,
    server: Option<JoinHandle<()>>,
}

impl Stuck {
    /// Mounts one at a folder that it makes.
    pub fn new(at: PathBuf) -> Stuck {
        std::fs::create_dir(&at).unwrap();
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("stuck"), &at, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let taken = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&taken);
        let server = std::thread::spawn(move || serve(&device, &counted));
        Stuck { at, taken, server: Some(server) }
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.at
    }

    /// Waits until somebody reads, whom no signal can end any more.
    pub fn is_read(&self) {
        let taken = || self.taken.load(Ordering::SeqCst) > 0;
        eventually("somebody reads", || taken().then_some(()));
    }

    /// Lets every sleeper go, with an error; they die of what has been sent to them.
    pub fn release(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.release();
    }
}

/// Answers until the connection is ended.
fn serve(mut device: &File, taken: &AtomicU32) {
    let mut request = vec![0u8; 1 << 20];
    loop {
        let length = match device.read(&mut request) {
            Ok(length) if length >= 40 => length,
            Err(e) if matches!(e.raw_os_error(), Some(2 | 4 | 11)) => continue,
            _ => return,
        };
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (operation, unique, node) = (word(4), long(8), long(16));
        let (error, body) = match operation {
            READ => {
                taken.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            INTERRUPT | FORGET | BATCH_FORGET => continue,
            INIT => (0, hello(word(44))),
            LOOKUP if request[40..length].starts_with(b"stuck\0") => (0, entry()),
            LOOKUP => (2, Vec::new()),
            GETATTR => (0, attributes(node)),
            OPEN => (0, [longs(&[0]), words(&[DIRECT_IO, 0])].concat()),
            OPENDIR => (0, vec![0; 16]),
            READDIR | RELEASE | RELEASEDIR | FLUSH => (0, Vec::new()),
            _ => (ENOSYS, Vec::new()),
        };
        let mut answer = Vec::new();
        answer.extend(u32::try_from(16 + body.len()).unwrap().to_le_bytes());
        answer.extend((-error).to_le_bytes());
        answer.extend(unique.to_le_bytes());
        answer.extend(body);
        // ENOENT: who asked has gone.
        let _ = device.write(&answer);
    }
}

fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// `struct fuse_init_out` of protocol 7.31 or the kernel's older one.
fn hello(minor: u32) -> Vec<u8> {
    let mut body = words(&[7, minor.min(31), 1 << 16, 0, 0, 4096, 1, 0]);
    body.resize(64, 0);
    body
}

/// `struct fuse_attr`.
fn attr(node: u64) -> Vec<u8> {
    let (mode, links) = if node == ROOT { (0o040_755, 2) } else { (0o100_644, 1) };
    let mut body = longs(&[node, 4096, 8, 0, 0, 0]);
    body.extend(words(&[0, 0, 0, mode, links, 0, 0, 0, 4096, 0]));
    body
}

/// `struct fuse_attr_out`.
fn attributes(node: u64) -> Vec<u8> {
    [longs(&[3600, 0]), attr(node)].concat()
}

/// `struct fuse_entry_out` of the file.
fn entry() -> Vec<u8> {
    [longs(&[FILE, 1, 3600, 3600, 0]), attr(FILE)].concat()
}
