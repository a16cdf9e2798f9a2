//! Reading tar archives that strangers wrote.
//!
//! ```text
//! next() -> [x or g or L or K header, its data]* header -> Header     None at the end
//! chunk()/consume(): the data of that entry          next() passes over what is left of it
//! ```
//!
//! Understands ustar, star, GNU (long names, base-256 numbers, sparse files) and pax (POSIX.1-2001;
//! sparse 0.0, 0.1 and 1.0). Where writers and readers disagree it does what most builders of
//! images expect: sizes of entries that cannot have data are ignored, pax sizes go before the
//! header's, global pax headers are passed over, and a GNU long name goes before a pax path. What
//! describes an entry (long names, pax records, sparse maps) is bounded, whatever its header claims.

mod header;
#[cfg(test)]
mod tests;

use self::header::{Pax, number, parse, parse_pax, until_zero};
use crate::error::{Error, Result};
use crate::stream::Source;

const BLOCK: usize = 512;
/// The most that a long name or a pax header may hold.
const MAX_EXTENSION: u64 = 1 << 20;
/// The most extents of a sparse file.
const MAX_EXTENTS: usize = 1 << 18;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
    Other(u8),
}

impl Kind {
    /// Whether data may follow the header.
    fn has_data(self) -> bool {
        matches!(self, Kind::Regular | Kind::Other(_))
    }
}

/// The description of an entry.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    /// Where the header stands in the archive.
    pub(crate) offset: u64,
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds since 1970, and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Bytes of data in the archive.
    pub(crate) size: u64,
    pub(crate) device: (u64, u64),
    /// Names without the pax prefix, and values.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size and extents of a sparse file: the data is that of the extents, one after the other.
    pub(crate) sparse: Option<Sparse>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) size: u64,
    /// Offset and length.
    pub(crate) extents: Vec<(u64, u64)>,
}

/// An archive being read.
pub(crate) struct Archive<S> {
    source: S,
    /// Bytes read so far.
    offset: u64,
    /// Data of the current entry that was not read yet.
    left: u64,
    /// Zeros after it, up to the next block.
    padding: u64,
}

impl<S: Source> Archive<S> {
    pub(crate) fn new(source: S) -> Self {
        Self { source, offset: 0, left: 0, padding: 0 }
    }

    /// The description of the next entry.
    pub(crate) fn next(&mut self) -> Result<Option<Header>> {
        let mut pax: Option<Pax> = None;
        let mut long_path = None;
        let mut long_link = None;
        loop {
            let rest = self.left + self.padding;
            self.skip(rest)?;
            self.left = 0;
            self.padding = 0;
            let offset = self.offset;
            let bad = |problem| Error::Archive { offset, problem };
            let Some(block) = self.header_block()? else {
                if pax.is_some() || long_path.is_some() || long_link.is_some() {
                    return Err(bad("an entry is described, but does not follow"));
                }
                return Ok(None);
            };
            let mut header = parse(&block, offset)?;
            match block[156] {
                b'x' => {
                    let records = self.extension(&header)?;
                    parse_pax(&records, pax.get_or_insert_default()).map_err(bad)?;
                    continue;
                }
                b'g' => {
                    self.extension(&header)?;
                    continue;
                }
                b'L' => {
                    long_path = Some(until_zero(&self.extension(&header)?).to_vec());
                    continue;
                }
                b'K' => {
                    long_link = Some(until_zero(&self.extension(&header)?).to_vec());
                    continue;
                }
                _ => {}
            }
            let pax = pax.unwrap_or_default();
            header.size = pax.size.unwrap_or(header.size);
            header.uid = pax.uid.unwrap_or(header.uid);
            header.gid = pax.gid.unwrap_or(header.gid);
            header.mtime = pax.mtime.unwrap_or(header.mtime);
            if let Some(path) = long_path.or(pax.sparse_name).or(pax.path) {
                header.path = path;
            }
            if let Some(link) = long_link.or(pax.link) {
                header.link = link;
            }
            header.xattrs = pax.xattrs;
            // Before there was a type for directories, a name that ends in a slash was one.
            if block[156] == 0 && header.path.ends_with(b"/") {
                header.kind = Kind::Directory;
            }
            if !header.kind.has_data() {
                header.size = 0;
            }
            self.expect_data(header.size).ok_or(bad("size out of range"))?;
            if block[156] == b'S' {
                header.sparse = Some(self.old_sparse(&block).map_err(|e| e.at(offset))?);
            } else if header.kind == Kind::Regular {
                header.sparse = self
                    .pax_sparse(pax.sparse_major, pax.sparse_size, pax.sparse_map)
                    .map_err(|e| e.at(offset))?;
            }
            if let Some(sparse) = &header.sparse {
                check_sparse(sparse, self.left).map_err(bad)?;
                header.size = self.left;
            }
            return Ok(Some(header));
        }
    }

    /// The next data of the current entry; empty at its end.
    pub(crate) fn chunk(&mut self) -> Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let offset = self.offset;
        let chunk = self.source.chunk()?;
        if chunk.is_empty() {
            return Err(Error::Archive { offset, problem: "it ends in the middle of an entry" });
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(chunk.len());
        Ok(&chunk[..most])
    }

    /// Takes bytes off the front of the chunk.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.source.consume(bytes);
        self.offset += bytes as u64;
        self.left -= bytes as u64;
    }

    fn expect_data(&mut self, size: u64) -> Option<()> {
        let padded = size.checked_next_multiple_of(BLOCK as u64)?;
        self.offset.checked_add(padded)?;
        self.left = size;
        self.padding = padded - size;
        Some(())
    }

    fn skip(&mut self, mut bytes: u64) -> Result<()> {
        while bytes > 0 {
            let offset = self.offset;
            let chunk = self.source.chunk()?.len();
            if chunk == 0 {
                // Some writers leave out the last zeros.
                if bytes <= self.padding {
                    return Ok(());
                }
                let problem = "it ends in the middle of an entry";
                return Err(Error::Archive { offset, problem });
            }
            let step = usize::try_from(bytes).unwrap_or(usize::MAX).min(chunk);
            self.source.consume(step);
            self.offset += step as u64;
            bytes -= step as u64;
        }
        Ok(())
    }

    /// Fills a block; false if the archive ends before it.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            let offset = self.offset;
            let chunk = self.source.chunk()?;
            if chunk.is_empty() {
                if filled == 0 {
                    return Ok(false);
                }
                return Err(Error::Archive { offset, problem: "it ends in the middle of a block" });
            }
            let step = chunk.len().min(BLOCK - filled);
            block[filled..filled + step].copy_from_slice(&chunk[..step]);
            self.source.consume(step);
            self.offset += step as u64;
            filled += step;
        }
        Ok(true)
    }

    /// The next header; none after two blocks of zeros, or where the archive just ends.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if !self.block(&mut block)? {
            return Ok(None);
        }
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        if !self.block(&mut block)? || block == [0; BLOCK] {
            return Ok(None);
        }
        Err(Error::Archive { offset: self.offset, problem: "a single block of zeros" })
    }

    /// The data of an entry that describes the next one.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let bad = |problem| Error::Archive { offset: header.offset, problem };
        if header.size > MAX_EXTENSION {
            return Err(bad("a name or a pax header is too large"));
        }
        self.expect_data(header.size).ok_or(bad("size out of range"))?;
        // Not reserved ahead: what the header claims need not be there.
        let mut data = Vec::new();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(data);
            }
            data.extend_from_slice(chunk);
            let taken = chunk.len();
            self.consume(taken);
        }
    }

    /// The map of a sparse file in GNU's old format: in the header and in blocks after it, which
    /// do not count as data.
    fn old_sparse(&mut self, header: &[u8; BLOCK]) -> std::result::Result<Sparse, Failure> {
        let size = number(&header[483..495]).ok_or("a bad sparse file")?;
        let mut extents = Vec::new();
        let mut more = header[482] != 0;
        take_extents(&header[386..482], &mut extents)?;
        while more {
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? {
                return Err("it ends in the middle of a sparse map".into());
            }
            take_extents(&block[..504], &mut extents)?;
            more = block[504] != 0;
        }
        Ok(Sparse { size, extents })
    }

    /// The map of a sparse file in one of the pax formats.
    fn pax_sparse(
        &mut self,
        major: Option<u64>,
        size: Option<u64>,
        map: Option<Vec<u64>>,
    ) -> std::result::Result<Option<Sparse>, Failure> {
        let Some(size) = size else { return Ok(None) };
        let numbers = match (major, map) {
            (Some(1), _) => self.leading_map()?,
            (_, Some(map)) => map,
            (_, None) => return Err("a sparse file without a map".into()),
        };
        let (pairs, []) = numbers.as_chunks::<2>() else { return Err("an odd sparse map".into()) };
        Ok(Some(Sparse { size, extents: pairs.iter().map(|[at, len]| (*at, *len)).collect() }))
    }

    /// Format 1.0: the data begins with decimal numbers, one a line: how many extents, then offset
    /// and length of each; filled up to a block.
    fn leading_map(&mut self) -> std::result::Result<Vec<u64>, Failure> {
        let mut numbers = Vec::new();
        let mut expected = 1;
        let mut digits: Option<u64> = None;
        while numbers.len() < expected {
            if self.left < BLOCK as u64 {
                return Err("a sparse map is longer than its file".into());
            }
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? {
                return Err("it ends in the middle of a sparse map".into());
            }
            self.left -= BLOCK as u64;
            for byte in block {
                if numbers.len() == expected {
                    break;
                }
                match (byte, digits) {
                    (b'0'..=b'9', _) => {
                        let value = digits
                            .unwrap_or(0)
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                            .ok_or("a bad sparse map")?;
                        digits = Some(value);
                    }
                    (b'\n', Some(value)) => {
                        digits = None;
                        if numbers.is_empty() {
                            if value > MAX_EXTENTS as u64 {
                                return Err("a sparse map is too long".into());
                            }
                            expected = 1 + 2 * value as usize;
                        }
                        numbers.push(value);
                    }
                    _ => return Err("a bad sparse map".into()),
                }
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }
}

/// A problem that does not know yet where in the archive it is, or an error that does.
enum Failure {
    Problem(&'static str),
    Error(Error),
}

impl Failure {
    fn at(self, offset: u64) -> Error {
        match self {
            Failure::Problem(problem) => Error::Archive { offset, problem },
            Failure::Error(error) => error,
        }
    }
}

impl From<&'static str> for Failure {
    fn from(problem: &'static str) -> Self {
        Failure::Problem(problem)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

fn take_extents(
    table: &[u8],
    extents: &mut Vec<(u64, u64)>,
) -> std::result::Result<(), &'static str> {
    for entry in table.chunks_exact(24) {
        if entry[0] == 0 {
            continue;
        }
        if extents.len() == MAX_EXTENTS {
            return Err("a sparse map is too long");
        }
        let (Some(at), Some(len)) = (number(&entry[..12]), number(&entry[12..])) else {
            return Err("a bad sparse map");
        };
        extents.push((at, len));
    }
    Ok(())
}

/// Extents must follow each other, lie in the file, and have just the data that is there.
fn check_sparse(sparse: &Sparse, data: u64) -> std::result::Result<(), &'static str> {
    let mut end = 0u64;
    let mut total = 0u64;
    for &(at, len) in &sparse.extents {
        let after = at.checked_add(len).ok_or("a sparse map out of range")?;
        if at < end || after > sparse.size {
            return Err("a sparse map out of order or range");
        }
        end = after;
        total += len;
    }
    if i64::try_from(sparse.size).is_err() {
        return Err("a sparse file out of range");
    }
    if total == data { Ok(()) } else { Err("a sparse map that does not fit its data") }
}
