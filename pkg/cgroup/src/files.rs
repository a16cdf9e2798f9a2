//! Reading and writing the small files of a control group.
//!
//! Reading reuses one buffer: a file is read whole into it, and the parser looks at it there.

use crate::error::{Error, Result};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// How much is read of a file. The longest are lists of processes: four million of them, the most
/// that a kernel can have, at eight bytes each.
const MAX: u64 = 32 << 20;

/// A buffer to read files into.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    text: String,
    path: PathBuf,
}

impl Buffer {
    /// The text of `folder/name`; `None` if there is no such file, or its controller is off.
    pub(crate) fn read(&mut self, folder: &Path, name: &str) -> Result<Option<&str>> {
        self.path.clear();
        self.path.push(folder);
        self.path.push(name);
        self.text.clear();
        let read =
            File::open(&self.path).and_then(|file| file.take(MAX).read_to_string(&mut self.text));
        match read {
            Ok(_) => Ok(Some(&self.text)),
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
    match open.and_then(|mut file| file.write_all(value.as_bytes())) {
        Ok(()) => Ok(()),
        Err(e) if is_gone(&e) => Err(Error::NotFound { path: path.to_owned() }),
        Err(source) => Err(Error::Write { path: path.to_owned(), value: value.to_owned(), source }),
    }
}
