//! Reading and writing the small files of a control group.
//!
//! Reading reuses one buffer: a file is read whole into it, and the parser looks at it there.

use crate::error::{Error, Result};
use failpoint::step;
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// How much is read of a file. The longest are lists of processes: four million of them, the most
/// that a kernel can have, at eight bytes each.
const MAX: u64 = 32 << 20;

/// More than what the longest of the files has that the kernel makes as a whole (`memory.stat`).
const WHOLE: usize = 8 << 10;

/// A buffer to read files into.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    path: PathBuf,
}

impl Buffer {
    /// The text of `folder/name`; `None` if there is no such file, or its controller is off.
    pub(crate) fn read(&mut self, folder: &Path, name: &str) -> Result<Option<&str>> {
        self.get(folder, name, |file, bytes| file.take(MAX).read_to_end(bytes).map(|_| ()))
    }

    /// The same of a file that the kernel makes as a whole, as it does all but lists of processes:
    /// a read that does not fill the buffer has come to its end, and need not be asked again.
    pub(crate) fn read_whole(&mut self, folder: &Path, name: &str) -> Result<Option<&str>> {
        self.get(folder, name, |mut file, bytes| {
            bytes.resize(bytes.capacity().max(WHOLE), 0);
            let mut end = 0;
            loop {
                let read = file.read(&mut bytes[end..])?;
                end += read;
                if end < bytes.len() {
                    bytes.truncate(end);
                    return Ok(());
                }
                bytes.resize(end * 2, 0);
            }
        })
    }

    fn get(
        &mut self,
        folder: &Path,
        name: &str,
        read: impl FnOnce(File, &mut Vec<u8>) -> io::Result<()>,
    ) -> Result<Option<&str>> {
        self.path.clear();
        self.path.push(folder);
        self.path.push(name);
        self.bytes.clear();
        let read = File::open(&self.path).and_then(|file| {
            read(file, &mut self.bytes)?;
            std::str::from_utf8(&self.bytes).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))
        });
        match read {
            Ok(text) => Ok(Some(text)),
            Err(e) if is_gone(&e) || e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(source) => Err(Error::Read { path: self.path.clone(), source }),
        }
    }
}

/// Whether an error means that the group went away: before the file was opened (`ENOENT`), or
/// after (`ENODEV`).
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENOTDIR))
}

/// Writes a value in one call, which is how the kernel takes it.
///
/// # Errors
/// [`Error::NotFound`] if the file is not there, else [`Error::Write`].
pub(crate) fn write(path: &Path, value: &str) -> Result<()> {
    let open = OpenOptions::new().write(true).open(path);
    match step!("cgroup: write", open.and_then(|mut file| file.write_all(value.as_bytes()))) {
        Ok(()) => Ok(()),
        Err(e) if is_gone(&e) => Err(Error::NotFound { path: path.to_owned() }),
        Err(source) => Err(Error::Write { path: path.to_owned(), value: value.to_owned(), source }),
    }
}
