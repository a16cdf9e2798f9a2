//! Name/value blocks: the headers of SYN_STREAM, SYN_REPLY and HEADERS frames, compressed.
//!
//! ```text
//!  block  = number of pairs (u32) { length (u32) name length (u32) value }
//!  stream = zlib with a preset dictionary; one for each direction for the whole connection, each
//!           block ending at a byte by a sync flush
//! ```
//! SPDY/3.1, sections 2.6.10 and 2.6.10.1. A block that is larger than [`BLOCK_LIMIT`] when it is
//! unpacked ends the connection: the rest of it is never unpacked.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Most bytes of a block when unpacked.
pub const BLOCK_LIMIT: usize = 16 * 1024;
/// Most pairs of a block.
pub const PAIRS_LIMIT: usize = 64;

/// Words of the dictionary that stand behind their length.
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// The dictionary's end, without lengths.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417\
    502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request\
    401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented\
    503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, \
    Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
    application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,\
    sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        bytes.extend_from_slice(&length(word.len()));
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

/// A length on the wire; lengths here are far below 2³².
fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

/// Names and values of a block, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of `name` (case does not matter); several values are joined by NUL.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Adds a pair; names are sent in lower case.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Headers {
        self.0.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    fn parse(mut block: &[u8]) -> Result<Headers, &'static str> {
        let count = number(&mut block)?;
        if count > PAIRS_LIMIT {
            return Err("a header block with too many pairs");
        }
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut block)?;
            let value = text(&mut block)?;
            pairs.push((name, value));
        }
        if block.is_empty() { Ok(Headers(pairs)) } else { Err("bytes after a header block") }
    }

    fn write(&self) -> Vec<u8> {
        let mut block = length(self.0.len()).to_vec();
        for part in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&length(part.len()));
            block.extend_from_slice(part.as_bytes());
        }
        block
    }
}

fn number(block: &mut &[u8]) -> Result<usize, &'static str> {
    let (head, rest) = block.split_first_chunk::<4>().ok_or("a header block that is cut")?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*head)).map_err(|_| "a header block that is cut")
}

fn text(block: &mut &[u8]) -> Result<String, &'static str> {
    let n = number(block)?;
    let (text, rest) = block.split_at_checked(n).ok_or("a header block that is cut")?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Unpacks the blocks of one direction.
#[derive(Debug)]
pub(super) struct Unpacker {
    zlib: Decompress,
}

impl Unpacker {
    pub(super) fn new() -> Unpacker {
        Unpacker { zlib: Decompress::new(true) }
    }

    /// The headers of the next block. After an error the stream cannot be gone on with.
    pub(super) fn unpack(&mut self, mut packed: &[u8]) -> Result<Headers, &'static str> {
        // One byte more than is allowed, so that "full" means "too large".
        let mut block = Vec::with_capacity(BLOCK_LIMIT + 1);
        loop {
            let (read, written) = (self.zlib.total_in(), block.len());
            let result = self.zlib.decompress_vec(packed, &mut block, FlushDecompress::Sync);
            // What was read is a part of `packed`.
            let read = usize::try_from(self.zlib.total_in() - read).unwrap_or(packed.len());
            packed = packed.get(read..).unwrap_or_default();
            if block.len() > BLOCK_LIMIT {
                return Err("a header block that is too large");
            }
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib
                        .set_dictionary(&dictionary())
                        .map_err(|_| "a header block with another dictionary")?;
                    continue;
                }
                Err(_) => return Err("a header block that cannot be unpacked"),
                Ok(Status::StreamEnd) => return Err("the header compression has ended"),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if packed.is_empty() && block.len() == written {
                break;
            }
            if read == 0 && block.len() == written {
                return Err("a header block that cannot be unpacked");
            }
        }
        Headers::parse(&block)
    }
}

/// Packs the blocks of one direction.
#[derive(Debug)]
pub(super) struct Packer {
    zlib: Compress,
}

impl Packer {
    pub(super) fn new() -> Packer {
        // The dictionary and what is sent are small: a window of 2 KiB holds them, and the state
        // stays small.
        let mut zlib = Compress::new_with_window_bits(Compression::fast(), true, 11);
        // Setting it can only fail once something was packed; without it the blocks are larger, not
        // wrong.
        let _ = zlib.set_dictionary(&dictionary());
        Packer { zlib }
    }

    /// The next block, packed.
    pub(super) fn pack(&mut self, headers: &Headers) -> Result<Vec<u8>, &'static str> {
        let block = headers.write();
        if block.len() > BLOCK_LIMIT {
            return Err("headers that are too large");
        }
        // Room for the worst case of what cannot be compressed, the stream's head and the flush.
        let mut packed = Vec::with_capacity(block.len() + block.len() / 8 + 128);
        let read = self.zlib.total_in();
        let result = self.zlib.compress_vec(&block, &mut packed, FlushCompress::Sync);
        let all = self.zlib.total_in() - read == block.len() as u64;
        if result.is_err() || !all || packed.len() == packed.capacity() {
            return Err("headers that cannot be packed");
        }
        Ok(packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2, "Adler-32 of the dictionary");
    }

    #[test]
    fn blocks_come_back_one_after_the_other() {
        let (mut packer, mut unpacker) = (Packer::new(), Unpacker::new());
        for n in 0..200 {
            let headers =
                Headers::default().with("streamType", "data").with("requestID", n.to_string());
            let packed = packer.pack(&headers).unwrap();
            assert!(n == 0 || packed.len() < 40, "{}", packed.len());
            let unpacked = unpacker.unpack(&packed).unwrap();
            assert_eq!(unpacked, headers);
            assert_eq!(unpacked.get("StreamType"), Some("data"));
        }
        assert_eq!(unpacker.unpack(&packer.pack(&Headers::default()).unwrap()).unwrap().0, []);
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        // 15 MiB of zeros are 15 KiB when packed.
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&dictionary()).unwrap();
        let mut packed = Vec::with_capacity(64 * 1024);
        zlib.compress_vec(&vec![0; 15 << 20], &mut packed, FlushCompress::Sync).unwrap();
        assert!(packed.len() < 32 * 1024);
        assert_eq!(Unpacker::new().unpack(&packed), Err("a header block that is too large"));
    }

    #[test]
    fn a_block_at_the_limit_is_unpacked_and_one_beyond_is_not() {
        for (more, fits) in [(0, true), (1, false)] {
            let mut zlib = Compress::new(Compression::fast(), true);
            let value = vec![b'x'; BLOCK_LIMIT - 13 + more];
            let mut block = [&length(1)[..], &length(1), b"a", &length(value.len())].concat();
            block.extend(value);
            let mut packed = Vec::with_capacity(BLOCK_LIMIT);
            zlib.compress_vec(&block, &mut packed, FlushCompress::Sync).unwrap();
            assert_eq!(Unpacker::new().unpack(&packed).is_ok(), fits);
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let packed = |block: &[u8], flush| {
            let mut zlib = Compress::new(Compression::fast(), true);
            let mut packed = Vec::with_capacity(4096);
            zlib.compress_vec(block, &mut packed, flush).unwrap();
            packed
        };
        for block in [
            &b""[..],
            b"\0\0\0",
            b"\0\0\0\x01",
            b"\0\0\0\x01\0\0\0\x05a",
            b"\xff\xff\xff\xff",
            b"\0\0\0\0x",
            b"\0\0\0\x01\0\0\0\x01a\xff\xff\xff\xff",
        ] {
            let refused = Unpacker::new().unpack(&packed(block, FlushCompress::Sync));
            assert!(refused.is_err(), "{block:?}");
        }
        let ended = packed(b"\0\0\0\0", FlushCompress::Finish);
        assert_eq!(Unpacker::new().unpack(&ended), Err("the header compression has ended"));
        assert!(Unpacker::new().unpack(b"\x78\xbb\0\0\0\0").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Headers::parse(&bytes);
            let mut unpacker = Unpacker::new();
            let _ = unpacker.unpack(&bytes);
            let _ = unpacker.unpack(&bytes);
        }

        #[test]
        fn any_headers_come_back(
            pairs in prop::collection::vec(("[a-z:-]{0,20}", ".{0,200}"), 0..20)
        ) {
            let headers = Headers(pairs);
            let packed = Packer::new().pack(&headers).unwrap();
            prop_assert_eq!(Unpacker::new().unpack(&packed).unwrap(), headers);
        }
    }
}
