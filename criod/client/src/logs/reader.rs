//! A log file that grows, is rotated, or is cut back.
//!
//! ```text
//! drain:  read the open file to its end ──► is the path still this file?
//!           ▲    ▲                            │ yes, and not shorter ──► nothing more now
//!           │    └── go back to the last      │ yes, but shorter: it was cut back
//!           │        whole record, or to 0 ◄──┤
//!           │                                 │ no such file: renamed, successor not there yet
//!           │                                 │        └──► nothing more now
//!           └── read the old to its end ◄─────┘ another file: rotated
//!               once more, open the new
//! ```
//! The writer makes the successor before it writes to it and never writes to the old file after
//! that, so reading the old one once more after seeing the new loses nothing. The old file stays
//! open until the next rotation: a kubelet whose rotation failed renames it back, and then it is
//! read on from where it was, not from its beginning.
//!
//! A writer that takes up a dead one's work cuts the log back to its last whole record. That never
//! takes back a record that was read whole.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::{MAX_HELD, Record, Stream, parse};

const BLOCK: usize = 64 * 1024;

/// How far before the last lines that are asked for the pieces of their first are searched.
const SLACK: u64 = 1024 * 1024;

/// Reads the records of a log file. All of it blocks: use it in a thread of its own.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    current: Option<OpenLog>,
    previous: Option<OpenLog>,
    /// Lines of the end that are enough, when the first file is opened.
    tail: Option<usize>,
    malformed: u64,
}

#[derive(Debug)]
struct OpenLog {
    file: File,
    id: (u64, u64),
    /// Where the first record begins that was not read whole.
    consumed: u64,
    /// What was read after that: the beginning of a line.
    rest: Vec<u8>,
    /// The line that began at `consumed` is too long to be a record, and is skipped.
    skipping: bool,
}

impl Reader {
    /// A reader of the file at `path`, which need not exist yet.
    pub fn new(path: &Path) -> Reader {
        Reader { path: path.into(), current: None, previous: None, tail: None, malformed: 0 }
    }

    /// Begin so near the end that at least the last `lines` lines are read whole; there may be
    /// more. For the first file that is opened only.
    pub fn near_end(mut self, lines: usize) -> Reader {
        self.tail = Some(lines);
        self
    }

    /// How many lines so far were no records.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Whether there has been a file to read.
    pub fn found(&self) -> bool {
        self.current.is_some()
    }

    /// Gives `sink` all records that are there now and were not given before.
    ///
    /// # Errors
    /// Those of the file, or of `sink`. That the file does not exist is none.
    pub fn drain(&mut self, sink: &mut dyn FnMut(&Record<'_>) -> io::Result<()>) -> io::Result<()> {
        loop {
            let Some(current) = &mut self.current else {
                match OpenLog::open(&self.path) {
                    Ok(mut open) => {
                        if let Some(lines) = self.tail.take() {
                            open.consumed = near_end(&open.file, lines)?;
                        }
                        self.current = Some(open);
                        continue;
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Err(e) => return Err(e),
                }
            };
            current.read_to_end(&mut self.malformed, sink)?;
            let there = match fs::metadata(&self.path) {
                Ok(there) => there,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
            };
            if (there.dev(), there.ino()) == current.id {
                if !current.cut_back_to(there.len()) {
                    return Ok(());
                }
                continue;
            }
            current.read_to_end(&mut self.malformed, sink)?;
            current.close_last_line(&mut self.malformed, sink)?;
            let back = self.previous.take_if(|p| p.id == (there.dev(), there.ino()));
            self.previous = self.current.take();
            // Without it, the loop opens the path, whatever that is by then.
            self.current = back;
        }
    }

    /// Gives `sink` a last record that was not ended by a newline, when nothing more will come.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn finish(
        &mut self,
        sink: &mut dyn FnMut(&Record<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        match &mut self.current {
            Some(current) => current.close_last_line(&mut self.malformed, sink),
            None => Ok(()),
        }
    }
}

impl OpenLog {
    fn open(path: &Path) -> io::Result<OpenLog> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let id = (meta.dev(), meta.ino());
        Ok(OpenLog { file, id, consumed: 0, rest: Vec::new(), skipping: false })
    }

    fn read_to_end(
        &mut self,
        malformed: &mut u64,
        sink: &mut dyn FnMut(&Record<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let held = self.rest.len();
            self.rest.resize(held + BLOCK, 0);
            let read = self.file.read_at(&mut self.rest[held..], self.consumed + held as u64);
            self.rest.truncate(held + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            self.take_lines(held, malformed, sink)?;
        }
    }

    /// Takes whole lines from `rest`, whose first `searched` bytes have no newline.
    fn take_lines(
        &mut self,
        searched: usize,
        malformed: &mut u64,
        sink: &mut dyn FnMut(&Record<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut start = 0;
        let mut from = searched;
        while let Some(at) = self.rest[from..].iter().position(|&b| b == b'\n') {
            let end = from + at;
            if std::mem::take(&mut self.skipping) {
                *malformed += 1;
            } else {
                match parse(&self.rest[start..end]) {
                    Ok(record) => sink(&record)?,
                    Err(_) => *malformed += 1,
                }
            }
            start = end + 1;
            from = start;
        }
        self.rest.drain(..start);
        self.consumed += start as u64;
        if self.rest.len() > MAX_HELD {
            self.consumed += self.rest.len() as u64;
            self.rest.clear();
            self.skipping = true;
        }
        Ok(())
    }

    /// Looks at the file's length, and says whether there is something to read anew.
    fn cut_back_to(&mut self, len: u64) -> bool {
        if len >= self.consumed + self.rest.len() as u64 {
            return false;
        }
        if len < self.consumed {
            // Emptied, not cut back: begin again.
            self.consumed = 0;
            self.skipping = false;
        }
        self.rest.clear();
        // At its new end there is nothing to read yet, and looking again would not end.
        len > self.consumed
    }

    fn close_last_line(
        &mut self,
        malformed: &mut u64,
        sink: &mut dyn FnMut(&Record<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        self.consumed += rest.len() as u64;
        if std::mem::take(&mut self.skipping) {
            *malformed += 1;
        } else if !rest.is_empty() {
            match parse(&rest) {
                Ok(record) => sink(&record)?,
                Err(_) => *malformed += 1,
            }
        }
        Ok(())
    }
}

/// Where to begin so that at least the last `lines` lines, with all their pieces, are read.
///
/// Goes backwards from one beginning of a line to the next. Records with tag `F` end lines; when
/// there have been `lines` of them, it goes on until it has seen one of each stream, before which
/// no piece of the lines that are wanted can lie.
fn near_end(file: &File, lines: usize) -> io::Result<u64> {
    let mut ends = 0usize;
    let mut enough_at = None;
    let mut seen = [false; 2];
    let mut position = file.metadata()?.len();
    let mut block = vec![0; BLOCK];
    while position > 0 {
        let start = position.saturating_sub(BLOCK as u64);
        let length = (position - start) as usize;
        let block = &mut block[..length];
        match file.read_exact_at(block, start) {
            Ok(()) => {}
            // Shorter than it was a moment ago: all of what is left is near the end.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            Err(e) => return Err(e),
        }
        for i in (0..length).rev().filter(|&i| block[i] == b'\n') {
            let begin = start + i as u64 + 1;
            if let Some(stream) = ended_stream(file, begin)? {
                if ends < lines {
                    ends += 1;
                } else {
                    seen[stream as usize] = true;
                }
            }
            if ends >= lines {
                let enough_at = *enough_at.get_or_insert(begin);
                if seen == [true; 2] || enough_at - begin > SLACK {
                    return Ok(begin);
                }
            }
        }
        position = start;
    }
    Ok(0)
}

/// The stream of the record that begins at `begin`, if that record ends a line.
fn ended_stream(file: &File, begin: u64) -> io::Result<Option<Stream>> {
    // Longer than time, stream and tag together.
    let mut head = [0; 128];
    let read = file.read_at(&mut head, begin)?;
    let head = &head[..read];
    let end = head.iter().position(|&b| b == b'\n').unwrap_or(read);
    Ok(parse(&head[..end]).ok().filter(|r| !r.partial).map(|r| r.stream))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Joiner;
    use proptest::prelude::*;
    use std::io::Write as _;

    const T: &str = "2026-11-24T07:36:22.123456789Z";

    fn texts(reader: &mut Reader) -> Vec<String> {
        let mut texts = Vec::new();
        reader
            .drain(&mut |r| {
                texts.push(String::from_utf8_lossy(r.text).into_owned());
                Ok(())
            })
            .unwrap();
        texts
    }

    fn append(path: &Path, text: &str) {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn line(path: &Path, text: &str) {
        append(path, &format!("{T} stdout F {text}\n"));
    }

    struct Log {
        dir: tempfile::TempDir,
        path: PathBuf,
    }

    fn log() -> Log {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        Log { dir, path }
    }

    #[test]
    fn a_file_that_comes_late_and_grows_by_pieces() {
        let log = log();
        let mut reader = Reader::new(&log.path);
        assert_eq!(texts(&mut reader), [""; 0]);
        assert!(!reader.found());
        append(&log.path, &format!("{T} stdout F on"));
        assert_eq!(texts(&mut reader), [""; 0]);
        append(&log.path, &format!("e\n{T} stderr F two\nnonsense\n{T}"));
        assert_eq!(texts(&mut reader), ["one", "two"]);
        assert_eq!(reader.malformed(), 1);
        append(&log.path, " stdout F three");
        assert_eq!(texts(&mut reader), [""; 0]);
        let mut last = Vec::new();
        reader
            .finish(&mut |r| {
                last.extend_from_slice(r.text);
                Ok(())
            })
            .unwrap();
        assert_eq!(last, b"three");
    }

    #[test]
    fn rotation_loses_and_doubles_nothing() {
        let log = log();
        let old = log.dir.path().join("0.log.20261124");
        let mut reader = Reader::new(&log.path);
        line(&log.path, "one");
        assert_eq!(texts(&mut reader), ["one"]);
        fs::rename(&log.path, &old).unwrap();
        line(&old, "two");
        // Renamed, not reopened yet.
        assert_eq!(texts(&mut reader), ["two"]);
        line(&old, "three");
        line(&log.path, "four");
        assert_eq!(texts(&mut reader), ["three", "four"]);
        line(&log.path, "five");
        fs::remove_file(&old).unwrap();
        assert_eq!(texts(&mut reader), ["five"]);
    }

    #[test]
    fn a_rotation_that_is_undone_repeats_nothing() {
        let log = log();
        let old = log.dir.path().join("0.log.20261124");
        let mut reader = Reader::new(&log.path);
        line(&log.path, "one");
        assert_eq!(texts(&mut reader), ["one"]);
        fs::rename(&log.path, &old).unwrap();
        line(&log.path, "two");
        assert_eq!(texts(&mut reader), ["two"]);
        fs::rename(&old, &log.path).unwrap();
        line(&log.path, "three");
        assert_eq!(texts(&mut reader), ["three"]);
    }

    #[test]
    fn cut_back_to_the_last_whole_record() {
        let log = log();
        let mut reader = Reader::new(&log.path);
        line(&log.path, "one");
        let whole = fs::metadata(&log.path).unwrap().len();
        append(&log.path, &format!("{T} stdout F tw"));
        assert_eq!(texts(&mut reader), ["one"]);
        File::options().write(true).open(&log.path).unwrap().set_len(whole).unwrap();
        assert_eq!(texts(&mut reader), [""; 0]);
        line(&log.path, "zwei");
        assert_eq!(texts(&mut reader), ["zwei"]);
        // Cut back and shorter, but with something in it.
        append(&log.path, &format!("{T} stdout F a long line that is not yet who"));
        assert_eq!(texts(&mut reader), [""; 0]);
        let len = fs::metadata(&log.path).unwrap().len();
        File::options().write(true).open(&log.path).unwrap().set_len(len - 45).unwrap();
        assert_eq!(texts(&mut reader), [""; 0]);
        append(&log.path, " stdout F end\n");
        let read = texts(&mut reader);
        assert_eq!(read.len() as u64 + reader.malformed(), 1, "{read:?}");
    }

    #[test]
    fn emptied_begins_again() {
        let log = log();
        let mut reader = Reader::new(&log.path);
        line(&log.path, "a line of some length");
        assert_eq!(texts(&mut reader).len(), 1);
        File::create(&log.path).unwrap();
        assert_eq!(texts(&mut reader), [""; 0]);
        line(&log.path, "b");
        assert_eq!(texts(&mut reader), ["b"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_not_held() {
        let log = log();
        append(&log.path, &"x".repeat(3 * MAX_HELD));
        let mut reader = Reader::new(&log.path);
        assert_eq!(texts(&mut reader), [""; 0]);
        assert!(reader.current.as_ref().unwrap().rest.capacity() <= 2 * (MAX_HELD + BLOCK));
        append(&log.path, "\n");
        line(&log.path, "after");
        assert_eq!(texts(&mut reader), ["after"]);
        assert_eq!(reader.malformed(), 1);
    }

    #[test]
    fn an_error_of_the_sink_ends_it() {
        let log = log();
        line(&log.path, "one");
        let failed =
            Reader::new(&log.path).drain(&mut |_| Err(io::Error::from(io::ErrorKind::BrokenPipe)));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn near_the_end_reads_little_of_a_big_file() {
        let log = log();
        let mut text = String::new();
        for i in 0..200_000 {
            text.push_str(&format!("{T} {} F {i}\n", if i % 2 == 0 { "stdout" } else { "stderr" }));
        }
        append(&log.path, &text);
        let read = texts(&mut Reader::new(&log.path).near_end(5));
        assert!((5..20).contains(&read.len()), "{}", read.len());
        assert_eq!(read.last().unwrap(), "199999");
    }

    proptest! {
        /// Whatever the records are, the last lines read from near the end are those of the whole.
        #[test]
        fn near_the_end_has_the_last_lines_whole(
            records in proptest::collection::vec((any::<bool>(), any::<bool>(), "[a-z]{0,9}", any::<bool>()), 0..60),
            lines in 0usize..12,
        ) {
            let log = log();
            let mut text = String::new();
            for (err, partial, content, good) in &records {
                if *good {
                    let stream = if *err { "stderr" } else { "stdout" };
                    text.push_str(&format!("{T} {stream} {} {content}\n", if *partial { "P" } else { "F" }));
                } else {
                    text.push_str(content);
                    text.push('\n');
                }
            }
            append(&log.path, &text);
            let joined = |mut reader: Reader| {
                let (mut joiner, mut all) = (Joiner::default(), Vec::new());
                reader.drain(&mut |r| { all.extend(joiner.push(r)); Ok(()) }).unwrap();
                all
            };
            let whole = joined(Reader::new(&log.path));
            let near = joined(Reader::new(&log.path).near_end(lines));
            let wanted = lines.min(whole.len());
            prop_assert!(near.len() >= wanted);
            prop_assert_eq!(&near[near.len() - wanted..], &whole[whole.len() - wanted..]);
        }

        /// However a file grows, no record is lost or doubled.
        #[test]
        fn any_growth_gives_all_records(cuts in proptest::collection::vec(1usize..90, 1..40)) {
            let log = log();
            let text: String = (0..30).map(|i| format!("{T} stdout F {i}\n")).collect();
            let mut reader = Reader::new(&log.path);
            let (mut read, mut from) = (Vec::new(), 0);
            for cut in cuts {
                let to = (from + cut).min(text.len());
                append(&log.path, &text[from..to]);
                read.extend(texts(&mut reader));
                from = to;
            }
            append(&log.path, &text[from..]);
            read.extend(texts(&mut reader));
            prop_assert_eq!(read, (0..30).map(|i| i.to_string()).collect::<Vec<_>>());
        }
    }
}
