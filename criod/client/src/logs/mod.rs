//! Reading logs in the CRI's format: records, the lines they make, files that are rotated.
//!
//! ```text
//! 2026-11-24T07:36:22.123456789Z stdout P a line longer than one rec\n
//! 2026-11-24T07:36:22.123456790Z stderr F of another stream\n
//! 2026-11-24T07:36:22.123456791Z stdout F ord\n
//!          │ parse: one Record for each
//!          ▼
//!        Joiner: P pieces wait, for each stream, until its F ──► Line "of another stream"
//!                                                                Line "a line longer than one record"
//! ```
//! A [`Reader`] takes records from a file as it grows, follows the path across rotation, and may
//! begin near the end. What it reads is not trusted: lines that are no records are counted and
//! skipped, and no line makes it hold more than [`MAX_HELD`] bytes for each stream.
//
//= Kubernetes: the CRI logging design, "log format"; k8s.io/cri-client writes tags as `P` or `F`,
//= with further tags after colons.

mod reader;

pub use reader::Reader;

use jiff::Timestamp;

/// The most bytes of an unfinished line that are held back. What is longer comes in parts.
pub const MAX_HELD: usize = 1024 * 1024;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and the output of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was written.
    pub time: Timestamp,
    /// Where it came from.
    pub stream: Stream,
    /// Whether the next record of the same stream goes on with the same line.
    pub partial: bool,
    /// The text, without a newline.
    pub text: &'a [u8],
}

/// Why a line of a log file is no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The line has fewer than the four fields, which single spaces divide.
    #[error("fewer than four fields")]
    Fields,
    /// The first field is no RFC 3339 time.
    #[error("no time")]
    Time,
    /// The second field is neither `stdout` nor `stderr`.
    #[error("no stream")]
    Stream,
    /// The third field begins with neither `P` nor `F`.
    #[error("no tag")]
    Tag,
}

/// Reads one line of a log file; `line` is without its newline.
///
/// # Errors
/// When it is no record in the CRI's format.
pub fn parse(line: &[u8]) -> Result<Record<'_>, RecordError> {
    let (time, rest) = field(line)?;
    let (stream, rest) = field(rest)?;
    // An empty text may come without the space before it.
    let (tags, text) = field(rest).unwrap_or((rest, b""));
    let time = std::str::from_utf8(time).map_err(|_| RecordError::Time)?;
    let time = time.parse().map_err(|_| RecordError::Time)?;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return Err(RecordError::Stream),
    };
    let partial = match tags.split(|&b| b == b':').next() {
        Some(b"P") => true,
        Some(b"F") => false,
        _ => return Err(RecordError::Tag),
    };
    Ok(Record { time, stream, partial, text })
}

fn field(line: &[u8]) -> Result<(&[u8], &[u8]), RecordError> {
    let at = line.iter().position(|&b| b == b' ').ok_or(RecordError::Fields)?;
    Ok((&line[..at], &line[at + 1..]))
}

/// A line as the container wrote it, or a part of one that is too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When its first record was written.
    pub time: Timestamp,
    /// Where it came from.
    pub stream: Stream,
    /// The text, without a newline.
    pub text: Vec<u8>,
    /// Whether it begins here; not so for the second part of a long one.
    pub begins: bool,
    /// Whether it ends here, with a newline.
    pub ends: bool,
}

/// Makes lines of records.
#[derive(Debug, Default)]
pub struct Joiner {
    held: [Option<Line>; 2],
}

impl Joiner {
    /// Takes the next record. Gives the line that ends with it, or the part of one that has become
    /// longer than [`MAX_HELD`].
    pub fn push(&mut self, record: &Record<'_>) -> Option<Line> {
        let held = &mut self.held[record.stream as usize];
        let mut line = held.take().unwrap_or_else(|| Line {
            time: record.time,
            stream: record.stream,
            text: Vec::new(),
            begins: true,
            ends: false,
        });
        line.text.extend_from_slice(record.text);
        if !record.partial {
            line.ends = true;
            return Some(line);
        }
        if line.text.len() < MAX_HELD {
            *held = Some(line);
            return None;
        }
        *held = Some(Line { text: Vec::new(), begins: false, ..line });
        Some(line)
    }

    /// Gives what was never ended, when nothing more will come. Stdout's is first.
    pub fn finish(&mut self) -> Vec<Line> {
        let held = self.held.iter_mut().filter_map(Option::take);
        held.filter(|line| !line.text.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: &str = "2016-10-06T00:17:09.669794202Z";

    #[test]
    fn records_of_other_writers() {
        let r = parse(b"2016-10-06T00:17:09.669794202Z stdout P log content 1").unwrap();
        assert_eq!(r.time.as_nanosecond(), 1_475_713_029_669_794_202);
        assert_eq!((r.stream, r.partial, r.text), (Stream::Stdout, true, &b"log content 1"[..]));
        let r = parse(b"2016-10-06T02:17:09.6+02:00 stderr F:tag:x  two spaces\r").unwrap();
        assert_eq!(r.time.as_nanosecond(), 1_475_713_029_600_000_000);
        assert_eq!((r.stream, r.partial, r.text), (Stream::Stderr, false, &b" two spaces\r"[..]));
        for empty in ["2016-10-06T00:17:09Z stdout F ", "2016-10-06T00:17:09Z stdout F"] {
            assert_eq!(parse(empty.as_bytes()).unwrap().text, b"");
        }
    }

    #[test]
    fn what_is_no_record() {
        for (line, error) in [
            (String::new(), RecordError::Fields),
            ("some text".into(), RecordError::Fields),
            ("some more text".into(), RecordError::Time),
            (format!("{T} stdin F x"), RecordError::Stream),
            (format!("{T} stdout X x"), RecordError::Tag),
            (format!("{T} stdout  F x"), RecordError::Tag),
            (format!(" {T} stdout F x"), RecordError::Time),
            (format!("{{\"log\":\"x\",\"time\":\"{T}\"}} a b"), RecordError::Time),
        ] {
            assert_eq!(parse(line.as_bytes()), Err(error), "{line}");
        }
        assert_eq!(parse(b"\xff\xfe stdout F x"), Err(RecordError::Time));
    }

    fn record(stream: Stream, partial: bool, text: &[u8]) -> Record<'_> {
        Record { time: Timestamp::UNIX_EPOCH, stream, partial, text }
    }

    #[test]
    fn streams_join_apart() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.push(&record(Stream::Stdout, true, b"a")), None);
        assert_eq!(joiner.push(&record(Stream::Stderr, true, b"x")), None);
        assert_eq!(joiner.push(&record(Stream::Stderr, false, b"y")).unwrap().text, b"xy");
        assert_eq!(joiner.push(&record(Stream::Stdout, false, b"b")).unwrap().text, b"ab");
        assert_eq!(joiner.push(&record(Stream::Stdout, true, b"left")), None);
        let left = joiner.finish();
        assert_eq!((left.len(), left[0].text.as_slice(), left[0].ends), (1, &b"left"[..], false));
        assert_eq!(joiner.finish(), vec![]);
    }

    #[test]
    fn a_line_without_end_is_not_held_without_end() {
        let mut joiner = Joiner::default();
        let piece = vec![b'x'; 16 * 1024];
        let mut parts = Vec::new();
        for _ in 0..200 {
            parts.extend(joiner.push(&record(Stream::Stdout, true, &piece)));
        }
        parts.extend(joiner.push(&record(Stream::Stdout, false, b"")));
        assert!(parts.len() > 2);
        assert!(parts.iter().all(|p| p.text.len() <= MAX_HELD + piece.len()));
        assert_eq!(parts.iter().map(|p| p.text.len()).sum::<usize>(), 200 * piece.len());
        assert_eq!(parts.iter().filter(|p| p.begins).count(), 1);
        assert!(parts[0].begins && parts.last().unwrap().ends);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }

        #[test]
        fn near_records_do_not_panic(line in "[0-9TZ:.+-]{0,32} ?(stdout|stderr|x)? ?[PF:]{0,3} ?.{0,8}") {
            let _ = parse(line.as_bytes());
        }

        #[test]
        fn what_is_written_is_read(
            nanos in 0i64..4_000_000_000_000_000_000,
            err in any::<bool>(),
            partial in any::<bool>(),
            text in proptest::collection::vec(any::<u8>().prop_filter("newline", |b| *b != b'\n'), 0..64),
        ) {
            let time = Timestamp::from_nanosecond(nanos.into()).unwrap();
            let stream = if err { "stderr" } else { "stdout" };
            let tag = if partial { "P" } else { "F" };
            let mut line = format!("{time} {stream} {tag} ").into_bytes();
            line.extend(&text);
            let r = parse(&line).unwrap();
            prop_assert_eq!(r.time, time);
            prop_assert_eq!(r.stream == Stream::Stderr, err);
            prop_assert_eq!(r.partial, partial);
            prop_assert_eq!(r.text, text.as_slice());
        }
    }
}
