//! The CRI container log format: raw output in, log records out.
//!
//! ```text
//! 2026-11-24T07:36:22.123456789Z stdout F a whole line
//! 2026-11-24T07:36:22.123456789Z stderr P the first 16 KiB of a longer one
//! └── RFC3339Nano ─────────────┘ └stream┘ └tag└── text, without its newline
//! ```
//! A record is written when its line is whole. Only a line of more than [`MAX_LINE`] bytes is cut
//! into `P` records, each of [`MAX_LINE`] bytes, with an `F` record for the rest. What is left
//! without a newline when the output ends becomes an `F` record.
//!
//! The formatter keeps no state: given the same bytes from the same place it makes the same
//! records, so that a successor can go on where a dead process left off.
//
//= KEP: kubelet CRI log format, https://kubernetes.io/docs/concepts/cluster-administration/logging

/// The longest text of one record, in bytes.
pub const MAX_LINE: usize = 16 * 1024;

/// What a record adds to its text, at most: time, stream, tag, spaces and newline.
pub const OVERHEAD: usize = STAMP_LEN + " stdout F \n".len();

/// Length of a formatted time.
pub const STAMP_LEN: usize = "2026-11-24T07:36:22.123456789Z".len();

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and the output of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn infix(self, full: bool) -> &'static [u8] {
        match (self, full) {
            (Stream::Stdout, true) => b" stdout F ",
            (Stream::Stdout, false) => b" stdout P ",
            (Stream::Stderr, true) => b" stderr F ",
            (Stream::Stderr, false) => b" stderr P ",
        }
    }
}

/// A time as RFC3339Nano in UTC, always with nine digits of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u8; STAMP_LEN]);

impl Stamp {
    /// Formats `nanos`, nanoseconds since the Unix epoch (years 0 to 9999).
    pub fn new(nanos: i64) -> Stamp {
        let secs = nanos.div_euclid(1_000_000_000);
        let (days, of_day) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        let mut s = *b"0000-00-00T00:00:00.000000000Z";
        digits(&mut s[0..4], year);
        digits(&mut s[5..7], month);
        digits(&mut s[8..10], day);
        digits(&mut s[11..13], of_day / 3600);
        digits(&mut s[14..16], of_day / 60 % 60);
        digits(&mut s[17..19], of_day % 60);
        digits(&mut s[20..29], nanos.rem_euclid(1_000_000_000));
        Stamp(s)
    }

    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn digits(place: &mut [u8], mut value: i64) {
    for d in place.iter_mut().rev() {
        *d = b'0' + u8::try_from(value.rem_euclid(10)).unwrap_or(0);
        value = value.div_euclid(10);
    }
}

/// Days since 1970-01-01 to (year, month, day) of the Gregorian calendar.
///
/// Counts in eras of 400 years that begin in March, so that the leap day is a year's last.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Appends to `out` the records of `input`, as many as are whole and as fit into `room` bytes of
/// `out`, and returns how many bytes of `input` they stand for.
///
/// With `end` the output has ended, and a last line without a newline becomes a record, too.
pub fn format(
    stream: Stream,
    stamp: &Stamp,
    input: &[u8],
    end: bool,
    room: usize,
    out: &mut Vec<u8>,
) -> usize {
    let mut taken = 0;
    loop {
        let rest = &input[taken..];
        let window = &rest[..rest.len().min(MAX_LINE + 1)];
        let (text, skip, full) = match memchr::memchr(b'\n', window) {
            Some(n) => (&rest[..n], n + 1, true),
            None if window.len() > MAX_LINE => (&rest[..MAX_LINE], MAX_LINE, false),
            None if end && !rest.is_empty() => (rest, rest.len(), true),
            None => return taken,
        };
        if out.len() + text.len() + OVERHEAD > room {
            return taken;
        }
        out.extend_from_slice(stamp.as_bytes());
        out.extend_from_slice(stream.infix(full));
        out.extend_from_slice(text);
        out.push(b'\n');
        taken += skip;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T: i64 = 1_795_678_582_123_456_789;

    fn all(input: &[u8], end: bool) -> (usize, String) {
        let mut out = Vec::new();
        let n = format(Stream::Stdout, &Stamp::new(T), input, end, usize::MAX, &mut out);
        (n, String::from_utf8(out).unwrap())
    }

    #[test]
    fn times() {
        let s = |n| String::from_utf8(Stamp::new(n).0.to_vec()).unwrap();
        assert_eq!(s(T), "2026-11-26T07:36:22.123456789Z");
        assert_eq!(s(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(s(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(s(-1), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(s(4_107_542_399_999_999_999), "2100-02-28T23:59:59.999999999Z");
    }

    #[test]
    fn a_line_waits_for_its_newline() {
        assert_eq!(
            all(b"one\ntwo", false),
            (4, "2026-11-26T07:36:22.123456789Z stdout F one\n".into())
        );
        let (n, text) = all(b"one\ntwo", true);
        assert_eq!(n, 7);
        assert!(text.ends_with("Z stdout F two\n"));
        assert_eq!(all(b"", true).0, 0);
    }

    #[test]
    fn only_a_line_beyond_the_limit_is_partial() {
        let mut line = vec![b'x'; MAX_LINE];
        assert_eq!(all(&line, false).0, 0);
        line.push(b'\n');
        let (n, text) = all(&line, false);
        assert_eq!((n, text.lines().count()), (MAX_LINE + 1, 1));
        assert!(text.contains(" stdout F "));
        let mut long = vec![b'y'; MAX_LINE + 1];
        assert_eq!(all(&long, false).0, MAX_LINE);
        long.push(b'\n');
        let (n, text) = all(&long, false);
        assert_eq!(n, MAX_LINE + 2);
        assert!(text.lines().next().unwrap().contains(" stdout P yyy"));
        assert!(text.ends_with(" stdout F y\n"));
    }

    #[test]
    fn stops_at_the_room_it_has() {
        let mut out = Vec::new();
        let room = 2 * (OVERHEAD + 1);
        let n = format(Stream::Stderr, &Stamp::new(T), b"a\nb\nc\n", false, room, &mut out);
        assert_eq!((n, out.len()), (4, room));
    }

    proptest! {
        /// Cutting the input anywhere gives the same texts, whatever the bytes.
        #[test]
        fn resumes_anywhere(mut input in proptest::collection::vec(
            prop_oneof![Just(b'\n'), any::<u8>()], 0..300), cut in 0usize..300) {
            input.extend(std::iter::repeat_n(b'z', MAX_LINE + 5));
            let cut = cut.min(input.len());
            let stamp = Stamp::new(T);
            let mut whole = Vec::new();
            let n = format(Stream::Stdout, &stamp, &input, true, usize::MAX, &mut whole);
            prop_assert_eq!(n, input.len());
            let mut parts = Vec::new();
            let first = format(Stream::Stdout, &stamp, &input[..cut], false, usize::MAX, &mut parts);
            let rest = format(Stream::Stdout, &stamp, &input[first..], true, usize::MAX, &mut parts);
            prop_assert_eq!(first + rest, input.len());
            prop_assert_eq!(parts, whole);
        }
    }
}
