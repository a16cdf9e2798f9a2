//! Writes tar archives with full control over every header, hostile ones included.
//!
//! A library that helps (refusing `..`, say) is of no use here, so headers are written by hand in
//! the ustar form (POSIX.1-2001), with one pax record block before an entry that needs long names
//! or extended attributes:
//!
//! ```text
//! [pax header 'x' + records]?  header(512)  data, padded to 512   ...   1024 zero bytes
//! ```
//!
//! The time of every entry is [`TIME`] unless set.

/// The time that entries and images carry: 2023-11-14T22:13:20Z.
pub const TIME: u64 = 1_700_000_000;

/// What an entry is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A regular file with this content.
    File(Vec<u8>),
    /// A regular file of zeros, whose content the caller supplies after the header.
    Header(u64),
    /// A directory.
    Dir,
    /// A symbolic link to this target.
    Symlink(String),
    /// A hard link to this entry.
    Hardlink(String),
    /// A named pipe.
    Fifo,
    /// A character device: major, minor.
    Char(u32, u32),
}

/// One entry of an archive.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name, exactly as it is to be written.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    fn new(path: &str, kind: Kind, mode: u32) -> Self {
        Self { path: path.into(), kind, mode, uid: 0, gid: 0, mtime: TIME, xattrs: Vec::new() }
    }

    /// A regular file of mode 0644.
    pub fn file(path: &str, data: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(data.into()), 0o644)
    }

    /// A directory of mode 0755.
    pub fn dir(path: &str) -> Self {
        Self::new(path, Kind::Dir, 0o755)
    }

    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> Self {
        Self::new(path, Kind::Symlink(target.into()), 0o777)
    }

    /// A hard link.
    pub fn hardlink(path: &str, target: &str) -> Self {
        Self::new(path, Kind::Hardlink(target.into()), 0o755)
    }

    /// A named pipe of mode 0600.
    pub fn fifo(path: &str) -> Self {
        Self::new(path, Kind::Fifo, 0o600)
    }

    /// A character device of mode 0666.
    pub fn char(path: &str, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Char(major, minor), 0o666)
    }

    /// The same with this mode.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// The same with this owner.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// The same with this time.
    #[must_use]
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// The same with one more extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.into(), value.to_vec()));
        self
    }
}

/// The archive of these entries.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        append(&mut out, entry);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// Appends one entry (header, and content if it has any).
pub fn append(out: &mut Vec<u8>, entry: &Entry) {
    let link = match &entry.kind {
        Kind::Symlink(to) | Kind::Hardlink(to) => to.as_str(),
        _ => "",
    };
    let mut records = Vec::new();
    if entry.path.len() > 100 {
        record(&mut records, "path", entry.path.as_bytes());
    }
    if link.len() > 100 {
        record(&mut records, "linkpath", link.as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&mut records, &format!("SCHILY.xattr.{name}"), value);
    }
    if !records.is_empty() {
        let pax = Entry::file("PaxHeaders", records.clone());
        header(out, &pax, b'x', "", records.len() as u64);
        content(out, &records);
    }
    let (flag, size) = match &entry.kind {
        Kind::File(data) => (b'0', data.len() as u64),
        Kind::Header(size) => (b'0', *size),
        Kind::Hardlink(_) => (b'1', 0),
        Kind::Symlink(_) => (b'2', 0),
        Kind::Char(..) => (b'3', 0),
        Kind::Dir => (b'5', 0),
        Kind::Fifo => (b'6', 0),
    };
    header(out, entry, flag, link, size);
    if let Kind::File(data) = &entry.kind {
        content(out, data);
    }
}

/// One pax record: its own length in decimal, a space, `key=value`, a newline.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(format!("{len} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn content(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn header(out: &mut Vec<u8>, entry: &Entry, flag: u8, link: &str, size: u64) {
    let mut h = [0u8; 512];
    put(&mut h[0..100], entry.path.as_bytes());
    octal(&mut h[100..108], entry.mode.into());
    octal(&mut h[108..116], entry.uid.into());
    octal(&mut h[116..124], entry.gid.into());
    octal(&mut h[124..136], size);
    octal(&mut h[136..148], entry.mtime);
    h[148..156].fill(b' ');
    h[156] = flag;
    put(&mut h[157..257], link.as_bytes());
    h[257..263].copy_from_slice(b"ustar\0");
    h[263..265].copy_from_slice(b"00");
    let (major, minor) = if let Kind::Char(a, b) = entry.kind { (a, b) } else { (0, 0) };
    octal(&mut h[329..337], major.into());
    octal(&mut h[337..345], minor.into());
    let sum: u64 = h.iter().map(|b| u64::from(*b)).sum();
    put(&mut h[148..156], format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&h);
}

/// A number in octal with a NUL at the end; in base 256 (GNU) when it is too large for that.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if value < 1 << (3 * digits.min(20)) {
        put(field, format!("{value:0digits$o}\0").as_bytes());
    } else {
        let at = field.len() - 8;
        field[at..].copy_from_slice(&value.to_be_bytes());
        field[0] |= 0x80;
    }
}

fn put(field: &mut [u8], data: &[u8]) {
    let n = data.len().min(field.len());
    field[..n].copy_from_slice(&data[..n]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_record_counts_its_own_length() {
        for n in [1usize, 5, 80, 88, 89, 90, 91, 980, 990, 1000] {
            let mut out = Vec::new();
            record(&mut out, "path", &vec![b'a'; n]);
            let text = String::from_utf8(out).unwrap();
            let (len, _) = text.split_once(' ').unwrap();
            assert_eq!(len.parse::<usize>().unwrap(), text.len());
        }
    }

    #[test]
    fn gnu_tar_reads_what_is_written() {
        let long = format!("{}/file", "d".repeat(150));
        let data = archive(&[
            Entry::dir("a"),
            Entry::file("a/f", "hello").mode(0o4755),
            Entry::hardlink("a/h", "a/f"),
            Entry::symlink("a/s", "f"),
            Entry::fifo("a/p"),
            Entry::file(&long, "x"),
            Entry::file("../up", "x"),
        ]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.tar");
        std::fs::write(&file, data).unwrap();
        let out = std::process::Command::new("tar").arg("-tvf").arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(text.contains("-rwsr-xr-x"), "{text}");
        assert!(text.contains("a/h link to a/f"), "{text}");
        assert!(text.contains("prw-------"), "{text}");
        assert!(text.contains(&long), "{text}");
        assert!(text.contains("../up"), "{text}");
    }

    #[test]
    fn sizes_beyond_octal_are_written_in_base_256() {
        let mut field = [0u8; 12];
        octal(&mut field, 10 << 30);
        assert_eq!(field[0] & 0x80, 0x80);
        assert_eq!(u64::from_be_bytes(field[4..].try_into().unwrap()), 10 << 30);
    }
}
