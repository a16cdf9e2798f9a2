//! What people see: aligned columns, short ids, ages, sizes.

use jiff::Timestamp;

use crate::error::one_line;

/// Characters of an id that are shown.
const SHORT: usize = 13;

/// Rows under a heading. Columns are as wide as their widest cell, the last is not padded.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heading: &[&str]) -> Table {
        Table { rows: vec![heading.iter().map(|&h| h.to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|c| one_line(c)).collect());
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|i| self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max())
            .map(|w| w.unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count()));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The first characters of an id, without the name of its hash.
pub(crate) fn short(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(SHORT).collect()
}

/// How long ago `nanos` (since the epoch) was: "3 minutes ago". A time that is not set is "-".
pub(crate) fn age(nanos: i64, now: Timestamp) -> String {
    if nanos <= 0 {
        return "-".into();
    }
    let seconds = (now.as_nanosecond() - i128::from(nanos)) / 1_000_000_000;
    let (count, unit) = match seconds {
        ..0 => return "in the future".into(),
        0 => return "just now".into(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        86_400..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// A number of bytes in units of 1000, with three digits: "3.62 MB".
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.5 would be shown as 1000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_no_line_ends_in_spaces() {
        let mut t = Table::new(&["A", "LONG", "LAST"]);
        t.row(vec!["wider".into(), "ä".into(), String::new()]);
        t.row(vec!["x".into(), "y\u{1b}[2J\nz".into(), "end".into()]);
        assert_eq!(
            t.render(),
            "A       LONG       LAST\nwider   ä\nx       y\u{fffd}[2J; z   end\n"
        );
    }

    #[test]
    fn ages() {
        let now = Timestamp::from_second(2_000_000_000).unwrap();
        let at = |ago: i64| age((2_000_000_000 - ago) * 1_000_000_000, now);
        assert_eq!(at(0), "just now");
        assert_eq!(at(1), "1 second ago");
        assert_eq!(at(59), "59 seconds ago");
        assert_eq!(at(60), "1 minute ago");
        assert_eq!(at(7199), "1 hour ago");
        assert_eq!(at(86_400 * 13), "13 days ago");
        assert_eq!(at(86_400 * 21), "3 weeks ago");
        assert_eq!(at(86_400 * 61), "2 months ago");
        assert_eq!(at(86_400 * 800), "2 years ago");
        assert_eq!(at(-5), "in the future");
        assert_eq!(age(0, now), "-");
        assert_eq!(age(i64::MIN, now), "-");
        assert_eq!(age(i64::MAX, now), "in the future");
    }

    #[test]
    fn sizes() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1000), "1.00 kB");
        assert_eq!(size(3_623_807), "3.62 MB");
        assert_eq!(size(36_238_070), "36.2 MB");
        assert_eq!(size(999_499), "999 kB");
        assert_eq!(size(999_999), "1.00 MB");
        assert_eq!(size(u64::MAX), "18.4 EB");
    }

    #[test]
    fn short_ids() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789abc");
        assert_eq!(short("ab"), "ab");
        assert_eq!(short(""), "");
    }
}
