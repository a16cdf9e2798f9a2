//! As much of the FUSE protocol as a loop device needs (linux/fuse.h, version 7.31).
//!
//! ```text
//! request   len u32  opcode u32  unique u64  node u64  uid, gid, pid u32  padding u32   arguments
//! answer    len u32  -errno i32  unique u64                                             arguments
//! ```
//! Numbers are in the machine's own order. One request at a time, each answered before the next is
//! read, so that the order of the recording is one in which the disk could have done them.

use std::fs::File as Device;
use std::io::{IoSlice, Read, Write};

use super::{Event, File, Files, lock};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const FALLOCATE: u32 = 43;

const BIG_WRITES: u32 = 1 << 5;
const MAX_PAGES: u32 = 1 << 22;
/// The largest write, in pages.
const PAGES: u16 = 256;
const ROOT: u64 = 1;
/// FALLOC_FL_PUNCH_HOLE and FALLOC_FL_ZERO_RANGE.
const ZEROING: u32 = 0x02 | 0x10;

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const ENOSYS: i32 = 38;

/// An answer's arguments.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn u16(&mut self, value: u16) -> &mut Out {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Out {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Out {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn zeros(&mut self, count: usize) -> &mut Out {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// fuse_attr.
    fn attributes<T>(&mut self, inode: u64, file: Option<&File<T>>) -> &mut Out {
        let size = file.map_or(0, |f| f.size);
        let mode = if file.is_some() { 0o100_600 } else { 0o040_700 };
        self.u64(inode).u64(size).u64(size / 512).zeros(3 * 8 + 3 * 4);
        self.u32(mode).u32(1).zeros(3 * 4).u32(4096).u32(0)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Answers until the file system is unmounted.
pub(super) fn serve<T>(device: &Device, files: &Files<T>) {
    let mut request = vec![0; usize::from(PAGES) * 4096 + 4096];
    loop {
        let mut device = device;
        let length = match device.read(&mut request) {
            Ok(length) => length,
            // A request was taken back (ENOENT), or a signal came.
            Err(e) if e.raw_os_error() == Some(ENOENT) => continue,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            // Unmounted.
            Err(_) => return,
        };
        let (opcode, unique) = (u32_at(&request, 4), u64_at(&request, 8));
        if matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT) {
            continue;
        }
        let (error, out) = match answer(files, opcode, u64_at(&request, 16), &request[40..length]) {
            Ok(out) => (0, out),
            Err(error) => (-error, Out::default()),
        };
        let mut head = Out::default();
        head.u32(16 + out.0.len() as u32).u32(error.cast_unsigned()).u64(unique);
        // What nobody waits for any more cannot be answered.
        let _ = device.write_vectored(&[IoSlice::new(&head.0), IoSlice::new(&out.0)]);
    }
}

fn answer<T>(files: &Files<T>, opcode: u32, node: u64, body: &[u8]) -> Result<Out, i32> {
    let mut out = Out::default();
    let mut files = lock(files);
    match opcode {
        INIT => {
            out.u32(7).u32(31).u32(u32_at(body, 8)).u32(BIG_WRITES | MAX_PAGES);
            out.u16(0).u16(0).u32(u32::from(PAGES) * 4096).u32(1).u16(PAGES).u16(0).zeros(32);
        }
        LOOKUP => {
            let name = body.strip_suffix(&[0]).unwrap_or(body);
            let found = files.iter().find(|(_, f)| f.name.as_bytes() == name);
            let (inode, file) = found.ok_or(ENOENT)?;
            out.u64(*inode).zeros(4 * 8).attributes(*inode, Some(file));
        }
        GETATTR => {
            let file = files.get(&node);
            if file.is_none() && node != ROOT {
                return Err(ENOENT);
            }
            out.zeros(16).attributes(node, file);
        }
        OPEN => {
            out.zeros(16);
        }
        READ => {
            let file = files.get(&node).ok_or(ENOENT)?;
            let offset = u64_at(body, 8);
            let size = u64::from(u32_at(body, 16)).min(file.size.saturating_sub(offset));
            out.zeros(size as usize);
            file.blocks.read(offset, &mut out.0);
        }
        WRITE => {
            let file = files.get_mut(&node).ok_or(ENOENT)?;
            let (offset, size) = (u64_at(body, 8), u32_at(body, 16));
            let bytes = body.get(40..40 + size as usize).ok_or(EIO)?;
            file.blocks.write(offset, bytes);
            if let Some(recording) = &mut file.recording {
                recording.push(Event::Write(offset, bytes.to_vec()));
            }
            out.u32(size).u32(0);
        }
        FALLOCATE => {
            let file = files.get_mut(&node).ok_or(ENOENT)?;
            let (offset, length, mode) = (u64_at(body, 8), u64_at(body, 16), u32_at(body, 24));
            if mode & ZEROING == 0 {
                return Err(ENOSYS);
            }
            file.blocks.zero(offset, length);
            if let Some(recording) = &mut file.recording {
                recording.push(Event::Zero(offset, length));
            }
        }
        FSYNC => {
            let file = files.get_mut(&node).ok_or(ENOENT)?;
            if let Some(recording) = &mut file.recording {
                recording.push(Event::Flush);
            }
        }
        RELEASE | FLUSH => {}
        _ => return Err(ENOSYS),
    }
    Ok(out)
}
