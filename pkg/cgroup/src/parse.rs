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

/// What one block device did for a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The entry of a device, made where there is none.
fn entry(devices: &mut Vec<DeviceIo>, (major, minor): (u32, u32)) -> Option<&mut DeviceIo> {
    let at = devices.iter().position(|d| (d.major, d.minor) == (major, minor));
    let at = at.unwrap_or_else(|| {
        devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
        devices.len() - 1
    });
    devices.get_mut(at)
}

/// `io.stat` of version 2. Devices that did nothing have no numbers and are left out.
#[must_use]
pub fn io_v2(text: &str) -> Vec<DeviceIo> {
    let mut devices = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let Some(name) = fields.next().and_then(device) else { continue };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(value) = value.parse::<u64>() else { continue };
            if !["rbytes", "wbytes", "rios", "wios"].contains(&key) {
                continue;
            }
            let Some(of) = entry(&mut devices, name) else { continue };
            match key {
                "rbytes" => of.read_bytes = value,
                "wbytes" => of.write_bytes = value,
                "rios" => of.read_ops = value,
                _ => of.write_ops = value,
            }
        }
    }
    devices
}

/// Two files of version 1 whose lines are `8:0 Read 4096`: bytes, and operations
/// (`blkio.throttle.io_service_bytes_recursive`, `blkio.throttle.io_serviced_recursive`).
#[must_use]
pub fn io_v1(bytes: &str, ops: &str) -> Vec<DeviceIo> {
    let mut devices = Vec::new();
    for (text, counts_bytes) in [(bytes, true), (ops, false)] {
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            let (Some(name), Some(what), Some(value)) =
                (fields.next().and_then(device), fields.next(), fields.next())
            else {
                continue;
            };
            let Ok(value) = value.parse::<u64>() else { continue };
            if what != "Read" && what != "Write" {
                continue;
            }
            let Some(of) = entry(&mut devices, name) else { continue };
            match (what, counts_bytes) {
                ("Read", true) => of.read_bytes = value,
                ("Read", false) => of.read_ops = value,
                (_, true) => of.write_bytes = value,
                (_, false) => of.write_ops = value,
            }
        }
    }
    devices
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
        let read = io_v2(v2);
        assert_eq!(read.len(), 2);
        let want = DeviceIo {
            major: 254,
            minor: 16,
            read_bytes: 4096,
            write_bytes: 8192,
            read_ops: 1,
            write_ops: 2,
        };
        assert_eq!(read[0], want);
        assert_eq!((read[1].major, read[1].write_ops), (8, 4));
        let bytes = "254:0 Read 4096\n254:0 Write 0\n254:0 Sync 4096\n254:0 Async 0\n254:0 Total 4096\n8:0 Read 1\nTotal 4097\n";
        let ops = "254:0 Read 2\n254:0 Write 0\n7:1 Write 5\nTotal 7\n";
        let read = io_v1(bytes, ops);
        assert_eq!(read.len(), 3);
        assert_eq!((read[0].read_bytes, read[0].read_ops, read[0].write_bytes), (4096, 2, 0));
        assert_eq!((read[1].read_bytes, read[1].read_ops), (1, 0));
        assert_eq!((read[2].major, read[2].minor, read[2].write_ops), (7, 1, 5));
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
            let _ = (flat(&text, "some"), limit(&text), io_v1(&text, &text), io_v2(&text), pressure(&text));
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
