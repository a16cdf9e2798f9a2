//! The certificate, key and client authority that streams serve with.
//!
//! The files are read for each connection, so that what replaces them is used from then on; where one
//! cannot be read at that moment, what was read last is. A stream gets them as sealed files in
//! memory, for it sees no file system.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Mutex;

use criod_config::{Config, TlsVersion};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tracing::warn;

use crate::error::{Error, Result};
use crate::node::lock;

/// What is served with.
#[derive(Debug)]
pub(crate) struct Tls {
    /// Certificate, key and, where clients have to show one, their authority.
    paths: Vec<PathBuf>,
    last: Mutex<Option<Vec<Vec<u8>>>>,
    version: TlsVersion,
    suites: Vec<String>,
}

impl Tls {
    /// `None`: connections are not encrypted.
    pub(crate) fn new(config: &Config) -> Option<Tls> {
        if !config.stream_enable_tls {
            return None;
        }
        let paths = [&config.stream_tls_cert, &config.stream_tls_key, &config.stream_tls_ca];
        Some(Tls {
            paths: paths.into_iter().flatten().cloned().collect(),
            last: Mutex::default(),
            version: config.tls_min_version,
            suites: config.tls_cipher_suites.clone(),
        })
    }

    /// The lowest version, and the cipher suites of TLS 1.2 that are allowed.
    pub(crate) fn words(&self) -> Vec<String> {
        let version = match self.version {
            TlsVersion::Tls12 => "1.2",
            TlsVersion::Tls13 => "1.3",
        };
        vec![version.to_owned(), self.suites.join(",")]
    }

    /// The files, for a stream.
    pub(crate) fn files(&self) -> Result<Vec<OwnedFd>> {
        let mut last = lock(&self.last);
        let read = |path: &PathBuf| std::fs::read(path).map_err(Error::file("read", path));
        let contents = match self.paths.iter().map(read).collect::<Result<Vec<_>>>() {
            Ok(contents) => &*last.insert(contents),
            Err(e) => match &*last {
                Some(contents) => {
                    warn!("streaming goes on with what was read before: {}", e.chain());
                    contents
                }
                None => return Err(e),
            },
        };
        let sealed = |(bytes, path): (&Vec<u8>, &PathBuf)| {
            sealed(bytes).map_err(Error::file("copy into memory", path))
        };
        contents.iter().zip(&self.paths).map(sealed).collect()
    }
}

/// A file in memory that nobody can change.
pub(super) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(c"criod", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn text(fd: OwnedFd) -> String {
        let mut file = File::from(fd);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(file.write_all(b"x").is_err());
        text
    }

    #[test]
    fn replaced_files_are_read_anew_and_missing_ones_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = ["cert", "key"].iter().map(|n| dir.path().join(n)).collect();
        let tls = Tls {
            paths: paths.clone(),
            last: Mutex::default(),
            version: TlsVersion::Tls13,
            suites: vec!["A".into(), "B".into()],
        };
        assert_eq!(tls.words(), ["1.3", "A,B"]);
        assert!(tls.files().is_err());
        let give = |word: &str| paths.iter().for_each(|p| std::fs::write(p, word).unwrap());
        let got = || tls.files().unwrap().into_iter().map(text).collect::<Vec<_>>();
        give("one");
        assert_eq!(got(), ["one", "one"]);
        give("two");
        assert_eq!(got(), ["two", "two"]);
        std::fs::remove_file(&paths[1]).unwrap();
        std::fs::write(&paths[0], "three").unwrap();
        assert_eq!(got(), ["two", "two"], "never one half of each");
    }

    #[test]
    fn without_tls_there_are_no_files() {
        assert!(Tls::new(&Config::default()).is_none());
    }
}
