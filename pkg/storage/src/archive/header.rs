//! The fields of a tar header and the records of a pax header.
//!
//! ```text
//! 0 name 100 mode 108 uid 116 gid 124 size 136 mtime 148 checksum 156 type 157 link 257
//! 257 magic 265 … 329 major 337 minor 345 prefix 500        ustar
//!                             386 4 extents 482 more 483 size    GNU, sparse
//! ```

use super::{BLOCK, Header, Kind};
use crate::error::{Error, Result};

/// What pax records say of the next entry.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_major: Option<u64>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_name: Option<Vec<u8>>,
    /// Offsets and lengths in turn.
    pub(super) sparse_map: Option<Vec<u64>>,
}

pub(super) fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// An unsigned number: octal digits, or base 256 if the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    signed(field).and_then(|value| u64::try_from(value).ok())
}

/// A number that may be negative, which only base 256 can say (two's complement).
fn signed(field: &[u8]) -> Option<i128> {
    if field.first()? & 0x80 != 0 {
        // The first bit is the mark, the second the sign.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value: i128 = if negative { -1 } else { 0 };
        for byte in std::iter::once(first).chain(field[1..].iter().copied()) {
            value = value.checked_mul(256)?.checked_add(i128::from(byte))?;
        }
        // A u64 and an i64 both fit, and nothing more is of use.
        return (-(1 << 63)..(1 << 64)).contains(&value).then_some(value);
    }
    let digits = field.split(|b| *b == 0).next()?.trim_ascii();
    // A field left empty is zero.
    let mut value: i128 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value * 8 + i128::from(digit - b'0');
    }
    Some(value)
}

pub(super) fn parse(block: &[u8; BLOCK], offset: u64) -> Result<Header> {
    let bad = |problem| Error::Archive { offset, problem };
    let sum = number(&block[148..156]).ok_or(bad("a bad checksum"))?;
    let around = || block[..148].iter().chain(&block[156..]);
    let unsigned: u64 = 8 * 32 + around().map(|b| u64::from(*b)).sum::<u64>();
    // Some old writers summed signed bytes.
    let summed: i64 = 8 * 32 + around().map(|b| i64::from(b.cast_signed())).sum::<i64>();
    if sum != unsigned && i64::try_from(sum) != Ok(summed) {
        return Err(bad("the checksum of a header is wrong"));
    }
    let gnu = &block[257..265] == b"ustar  \0";
    let ustar = !gnu && &block[257..262] == b"ustar";
    let mut path = until_zero(&block[..100]).to_vec();
    if ustar {
        // star keeps times behind a shorter prefix.
        let prefix = if &block[508..512] == b"tar\0" { &block[345..476] } else { &block[345..500] };
        let prefix = until_zero(prefix);
        if !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
    }
    let kind = match block[156] {
        0 | b'0' | b'7' | b'S' => Kind::Regular,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => Kind::Other(other),
    };
    if block[156] == b'S' && !gnu {
        return Err(bad("a sparse file in an archive that is not GNU's"));
    }
    let field = |from: usize, to: usize, problem| number(&block[from..to]).ok_or(bad(problem));
    let device = if matches!(kind, Kind::Character | Kind::Block) {
        (field(329, 337, "a bad device number")?, field(337, 345, "a bad device number")?)
    } else {
        (0, 0)
    };
    let mtime = signed(&block[136..148]).and_then(|value| i64::try_from(value).ok());
    Ok(Header {
        offset,
        kind,
        path,
        link: until_zero(&block[157..257]).to_vec(),
        // Whatever is above the permission bits is the type, said elsewhere.
        mode: (field(100, 108, "a bad mode")? & 0o7777) as u32,
        uid: field(108, 116, "a bad user id")?,
        gid: field(116, 124, "a bad group id")?,
        mtime: (mtime.ok_or(bad("a bad time"))?, 0),
        size: field(124, 136, "a bad size")?,
        device,
        xattrs: Vec::new(),
        sparse: None,
    })
}

/// Records of the form `<length of the record> <key>=<value>\n`.
pub(super) fn parse_pax(
    mut records: &[u8],
    pax: &mut Pax,
) -> std::result::Result<(), &'static str> {
    const MALFORMED: &str = "a malformed pax header";
    // Some writers fill up with zeros.
    while !records.is_empty() && records[0] != 0 {
        let space = records.iter().take(20).position(|b| *b == b' ').ok_or(MALFORMED)?;
        let length = decimal(&records[..space]).ok_or(MALFORMED)?;
        let length = usize::try_from(length).map_err(|_| MALFORMED)?;
        if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
            return Err(MALFORMED);
        }
        let record = &records[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or(MALFORMED)?;
        take_pax(&record[..equals], &record[equals + 1..], pax).ok_or(MALFORMED)?;
        records = &records[length..];
    }
    Ok(())
}

fn take_pax(key: &[u8], value: &[u8], pax: &mut Pax) -> Option<()> {
    const XATTR: &[u8] = b"SCHILY.xattr.";
    // An empty value takes back what was said before.
    let text = || (!value.is_empty()).then(|| value.to_vec());
    let number = || if value.is_empty() { Some(None) } else { decimal(value).map(Some) };
    match key {
        b"path" => pax.path = text(),
        b"linkpath" => pax.link = text(),
        b"size" => pax.size = number()?,
        b"uid" => pax.uid = number()?,
        b"gid" => pax.gid = number()?,
        b"mtime" if value.is_empty() => pax.mtime = None,
        b"mtime" => pax.mtime = Some(time(value)?),
        b"GNU.sparse.major" => pax.sparse_major = number()?,
        b"GNU.sparse.name" => pax.sparse_name = text(),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => pax.sparse_size = number()?,
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
            pax.sparse_map.get_or_insert_default().push(decimal(value)?);
        }
        b"GNU.sparse.map" if value.is_empty() => pax.sparse_map = Some(Vec::new()),
        b"GNU.sparse.map" => {
            let numbers = value.split(|b| *b == b',').map(decimal);
            pax.sparse_map = Some(numbers.collect::<Option<_>>()?);
        }
        _ => {
            if let Some(name) = key.strip_prefix(XATTR) {
                pax.xattrs.retain(|(known, _)| known != name);
                pax.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Some(())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds with a fraction, maybe negative; nanoseconds count forward from the second.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            nanos = nanos * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0'));
        }
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}
