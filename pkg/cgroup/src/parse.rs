//! Parsers of control group files: pure functions of their text.
//!
//! The kernel adds keys and columns from release to release: what is not known is passed over,
//! what is not there is `None`. No parser fails, as there would be nobody to tell.

/// The value of a key in a flat keyed file (`key value` per line).
#[must_use]
pub fn flat(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key { value.trim().parse().ok() } else { None }
    })
}

/// The values of several keys, in one pass.
pub fn flat_all<const N: usize>(text: &str, keys: [&str; N]) -> [Option<u64>; N] {
    let mut values = [None; N];
    let mut left = N;
    for line in text.lines() {
        let Some((name, value)) = line.split_once(' ') else { continue };
        if let Some(at) = keys.iter().position(|k| *k == name) {
            if values[at].is_none() {
                left -= 1;
            }
            values[at] = value.trim().parse().ok();
            if left == 0 {
                break;
            }
        }
    }
    values
}

/// A file with one number.
#[must_use]
pub fn single(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A file with a limit: `None` if it is none (`max`, `-1`, or the highest multiple of the page
/// size, as version 1 writes it).
#[must_use]
pub fn limit(text: &str) -> Option<u64> {
    single(text).filter(|v| *v < 1 << 62)
}

/// Bytes and operations of all devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Io {
    /// Read.
    pub read: u64,
    /// Written.
    pub write: u64,
}

/// `io.stat` of version 2: bytes and operations, over all devices.
#[must_use]
pub fn io_v2(text: &str) -> (Io, Io) {
    let (mut bytes, mut ops) = (Io::default(), Io::default());
    for (key, value) in text.split_whitespace().filter_map(|field| field.split_once('=')) {
        let Ok(value) = value.parse::<u64>() else { continue };
        let sum = match key {
            "rbytes" => &mut bytes.read,
            "wbytes" => &mut bytes.write,
            "rios" => &mut ops.read,
            "wios" => &mut ops.write,
            _ => continue,
        };
        *sum = sum.saturating_add(value);
    }
    (bytes, ops)
}

/// A `blkio.throttle.io_*_recursive` file of version 1: `8:0 Read 4096`, over all devices.
#[must_use]
pub fn io_v1(text: &str) -> Io {
    let mut io = Io::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let (Some(_), Some(what), Some(value)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Ok(value) = value.parse::<u64>() else { continue };
        match what {
            "Read" => io.read = io.read.saturating_add(value),
            "Write" => io.write = io.write.saturating_add(value),
            _ => {}
        }
    }
    io
}

/// How much of the time tasks waited.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Percent over the last ten seconds.
    pub avg10: f64,
    /// Percent over the last minute.
    pub avg60: f64,
    /// Percent over the last five minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total_us: u64,
}

/// A pressure file: the lines `some` and `full`; the latter was not there for CPU before 5.13.
#[must_use]
pub fn pressure(text: &str) -> Option<(Pressure, Pressure)> {
    let line = |name| text.lines().find_map(|line| pressure_line(line.strip_prefix(name)?));
    Some((line("some ")?, line("full ").unwrap_or_default()))
}

fn pressure_line(line: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for (key, value) in line.split_whitespace().filter_map(|field| field.split_once('=')) {
        match key {
            "avg10" => pressure.avg10 = percent(value)?,
            "avg60" => pressure.avg60 = percent(value)?,
            "avg300" => pressure.avg300 = percent(value)?,
            "total" => pressure.total_us = value.parse().ok()?,
            _ => {}
        }
    }
    Some(pressure)
}

fn percent(text: &str) -> Option<f64> {
    text.parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0)
}

/// `cgroup.procs`: process ids. A process outside the reader's pid namespace shows as 0 and is
/// left out, as 0 means another thing to kill(2).
pub fn procs(text: &str) -> impl Iterator<Item = i32> + '_ {
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn flat_keyed() {
        let text = "usage_usec 824692919\nuser_usec 676977960\nsystem_usec 147714959\nnice_usec 507516614\nodd\n";
        assert_eq!(flat(text, "user_usec"), Some(676_977_960));
        assert_eq!(flat(text, "user"), None);
        assert_eq!(
            flat_all(text, ["system_usec", "nr_periods", "usage_usec"]),
            [Some(147_714_959), None, Some(824_692_919)]
        );
        assert_eq!(flat("oom -1\noom_kill 3\n", "oom"), None);
        assert_eq!(flat_all("", ["a"]), [None]);
    }

    #[test]
    fn limits() {
        for (text, want) in [
            ("max\n", None),
            ("-1\n", None),
            ("9223372036854771712\n", None),
            ("18446744073709551615", None),
            ("1073741824\n", Some(1 << 30)),
            ("0\n", Some(0)),
            ("", None),
        ] {
            assert_eq!(limit(text), want, "{text}");
        }
    }

    #[test]
    fn io() {
        let v2 = "254:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=7 dios=8\n254:0 \n8:0 rbytes=1 wbytes=2 rios=3 wios=4 cost.usage=5\n";
        assert_eq!(io_v2(v2), (Io { read: 4097, write: 8194 }, Io { read: 4, write: 6 }));
        let v1 = "254:0 Read 4096\n254:0 Write 0\n254:0 Sync 4096\n254:0 Async 0\n254:0 Total 4096\n8:0 Read 1\nTotal 4097\n";
        assert_eq!(io_v1(v1), Io { read: 4097, write: 0 });
    }

    #[test]
    fn pressures() {
        let text = "some avg10=0.00 avg60=2.20 avg300=13.61 total=184749483\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7\n";
        let (some, full) = pressure(text).unwrap();
        assert_eq!(some, Pressure { avg10: 0.0, avg60: 2.2, avg300: 13.61, total_us: 184_749_483 });
        assert_eq!((full.avg10, full.total_us), (0.5, 7));
        let old = "some avg10=1.00 avg60=2.00 avg300=3.00 total=4\n";
        assert_eq!(pressure(old).unwrap().1, Pressure::default());
        for bad in ["", "full avg10=0.00", "some avg10=nan total=1", "some avg10=-1 total=1"] {
            assert_eq!(pressure(bad), None, "{bad}");
        }
    }

    #[test]
    fn processes() {
        let pids: Vec<_> = procs("1\n0\n77\n-3\nx\n\n99999999999\n").collect();
        assert_eq!(pids, [1, 77]);
    }

    proptest! {
        #[test]
        fn no_text_makes_them_fall(text in "((some|full|[0-9]+:[0-9]+|Read|rbytes=|avg10=|total=)[ =]?[0-9.-]{0,25}[ \n]?){0,20}") {
            let _ = (flat(&text, "some"), limit(&text), io_v1(&text), io_v2(&text), pressure(&text));
            prop_assert!(procs(&text).all(|pid| pid > 0));
        }

        #[test]
        fn what_is_written_is_read(values in proptest::collection::vec(any::<u64>(), 3)) {
            let text = format!("a {}\nb {}\nab {}\n", values[0], values[1], values[2]);
            let read = flat_all(&text, ["ab", "a", "b"]);
            prop_assert_eq!(read, [Some(values[2]), Some(values[0]), Some(values[1])]);
            prop_assert_eq!(flat(&text, "ab"), Some(values[2]));
        }
    }
}
