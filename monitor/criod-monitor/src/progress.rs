//! The record of how far the log has come, for a successor.
//!
//! ```text
//! word  0 version | 1 dev  2 ino  3 length of the log | 4 5 bytes of the spools that are in it
//!       6 dev  7 ino  8 length of the file that a log without a name is being moved to (ino 0: none)
//!       9 where in the log that begins, plus one (0: it has a name)
//!       10 1: the log was opened by a rotation
//! ```
//! It is one write into one page, which no SIGKILL can divide. The page is there before it is
//! needed, so that a full file system cannot refuse it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const VERSION: u64 = 1;
const WORDS: usize = 11;
const LEN: usize = WORDS * 8;

/// The file `progress`, and what stands in it.
pub(crate) struct Progress {
    file: File,
    pub(crate) now: Mark,
}

/// A state in which whole records are in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) log: u64,
    pub(crate) spools: [u64; 2],
    pub(crate) moving: Option<Move>,
    pub(crate) from: Option<u64>,
    pub(crate) rotated: bool,
}

/// A file that records are being moved to, and how long it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) at: u64,
}

impl Mark {
    fn encode(&self) -> [u8; LEN] {
        let to = self.moving.unwrap_or(Move { dev: 0, ino: 0, at: 0 });
        let words: [u64; WORDS] = [
            VERSION,
            self.dev,
            self.ino,
            self.log,
            self.spools[0],
            self.spools[1],
            to.dev,
            to.ino,
            to.at,
            self.from.map_or(0, |f| f.saturating_add(1)),
            u64::from(self.rotated),
        ];
        let mut bytes = [0; LEN];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; LEN]) -> Option<Mark> {
        let mut words = [0u64; WORDS];
        for (word, place) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = place.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        let [version, dev, ino, log, out, err, to_dev, to_ino, at, from, rotated] = words;
        (version == VERSION).then_some(Mark {
            dev,
            ino,
            log,
            spools: [out, err],
            moving: (to_ino != 0).then_some(Move { dev: to_dev, ino: to_ino, at }),
            from: from.checked_sub(1),
            rotated: rotated != 0,
        })
    }
}

/// Whether what stands there is of a version that this program knows.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    let mut bytes = std::fs::read(path)?;
    bytes.resize(LEN, 0);
    match bytes.first_chunk().and_then(Mark::decode) {
        Some(_) => Ok(()),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "of an unknown version")),
    }
}

impl Progress {
    /// Opens the file; where there is none, or another's, it begins at nothing.
    pub(crate) fn open(path: &Path) -> io::Result<Progress> {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        let mut bytes = Vec::new();
        file.by_ref().take(LEN as u64).read_to_end(&mut bytes)?;
        // An earlier release's is shorter.
        bytes.resize(LEN, 0);
        let now = bytes.first_chunk().and_then(Mark::decode).unwrap_or_default();
        let progress = Progress { file, now };
        progress.save()?;
        Ok(progress)
    }

    /// Writes the mark down.
    pub(crate) fn save(&self) -> io::Result<()> {
        self.file.write_all_at(&self.now.encode(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip() {
        let mark = Mark {
            dev: 1,
            ino: u64::MAX,
            log: 3,
            spools: [4, 5],
            moving: Some(Move { dev: 6, ino: 7, at: 8 }),
            from: Some(0),
            rotated: true,
        };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        let plain = Mark { moving: None, from: None, ..mark };
        assert_eq!(Mark::decode(&plain.encode()), Some(plain));
        assert_eq!(Mark::decode(&[0; LEN]), None);
    }

    #[test]
    fn a_shorter_record_of_an_earlier_release_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mark = Mark { dev: 1, ino: 2, log: 3, spools: [4, 5], ..Mark::default() };
        std::fs::write(&path, &mark.encode()[..48]).unwrap();
        assert_eq!(Progress::open(&path).unwrap().now, mark);
        std::fs::write(&path, b"garbage").unwrap();
        assert_eq!(Progress::open(&path).unwrap().now, Mark::default());
    }
}
