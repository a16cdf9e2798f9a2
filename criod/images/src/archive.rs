//! Files of a local image: in a folder, or in a tar archive that is read where it lies.
//!
//! An archive is walked once, headers only; a file in it is then a place and a length.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use registry::Descriptor;

use crate::error::Error;

/// The most entries of an archive that is looked at.
const MAX_ENTRIES: usize = 100_000;
/// How many links lead to a file.
const MAX_LINKS: usize = 8;

/// Where a local image's files are.
#[derive(Debug)]
pub(crate) enum Files {
    Folder(PathBuf),
    Tar { path: PathBuf, entries: HashMap<String, Entry> },
}

#[derive(Debug)]
pub(crate) enum Entry {
    File { at: u64, size: u64 },
    Link(String),
}

impl Files {
    /// A folder, or the archive in a file.
    pub(crate) fn open(path: &Path) -> Result<Files, Error> {
        let read = |source| Error::ReadLocal { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.is_dir() {
            return Ok(Files::Folder(path.to_owned()));
        }
        let mut archive = tar::Archive::new(File::open(path).map_err(read)?);
        let mut entries = HashMap::new();
        for entry in archive.entries_with_seek().map_err(read)? {
            let entry = entry.map_err(read)?;
            if entries.len() >= MAX_ENTRIES {
                return Err(problem(path, "too many entries"));
            }
            let Some(name) = normal(&entry.path().map_err(read)?) else { continue };
            let kind = entry.header().entry_type();
            if kind.is_file() {
                let (at, size) = (entry.raw_file_position(), entry.size());
                entries.insert(name, Entry::File { at, size });
            } else if (kind.is_symlink() || kind.is_hard_link())
                && let Some(target) = entry.link_name().map_err(read)?
            {
                let from = match kind.is_symlink() {
                    true => Path::new(&name).parent().unwrap_or(Path::new("")).join(&target),
                    false => target.into_owned(),
                };
                if let Some(target) = normal(&from) {
                    entries.insert(name, Entry::Link(target));
                }
            }
        }
        Ok(Files::Tar { path: path.to_owned(), entries })
    }

    /// What it was opened from.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Files::Folder(path) | Files::Tar { path, .. } => path,
        }
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Files::Folder(folder) => folder.join(name).is_file(),
            Files::Tar { entries, .. } => entries.contains_key(name),
        }
    }

    /// A file and its length.
    pub(crate) fn reader(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        let (path, entries) = match self {
            Files::Folder(folder) => {
                let name = normal(Path::new(name)).ok_or(io::ErrorKind::InvalidInput)?;
                let file = File::open(folder.join(name))?;
                let size = file.metadata()?.len();
                return Ok((Box::new(file), size));
            }
            Files::Tar { path, entries } => (path, entries),
        };
        let mut name = normal(Path::new(name)).ok_or(io::ErrorKind::InvalidInput)?;
        for _ in 0..MAX_LINKS {
            match entries.get(&name) {
                None => return Err(io::ErrorKind::NotFound.into()),
                Some(Entry::Link(target)) => name.clone_from(target),
                Some(Entry::File { at, size }) => {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(*at))?;
                    return Ok((Box::new(file.take(*size)), *size));
                }
            }
        }
        Err(io::Error::other("links lead in a circle"))
    }

    /// A whole small file.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let limit = registry::image::MAX_DOCUMENT;
        let fail = |source| Error::ReadLocal { path: self.path().join(name), source };
        let (reader, _) = self.reader(name).map_err(fail)?;
        let mut bytes = Vec::new();
        reader.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > limit {
            return Err(problem(&self.path().join(name), "too large"));
        }
        Ok(bytes)
    }

    /// A document of a layout, checked against its digest.
    pub(crate) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let name = blob(&descriptor.digest);
        let bytes = self.read(&name)?;
        if descriptor.digest.verify(&bytes) {
            Ok(bytes)
        } else {
            Err(problem(&self.path().join(name), "its content has another digest"))
        }
    }
}

/// Where a layout keeps a blob (OCI image specification, image-layout.md).
pub(crate) fn blob(digest: &registry::Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

pub(crate) fn problem(path: &Path, problem: impl Into<String>) -> Error {
    Error::Local { path: path.to_owned(), problem: problem.into() }
}

/// A relative name without `.` and `..`; none if it leads out or is not UTF-8.
fn normal(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                parts.pop()?;
            }
        }
    }
    Some(parts.join("/"))
}
