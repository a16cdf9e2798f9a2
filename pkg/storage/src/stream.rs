//! From the bytes that are received to the archive, in one pass.
//!
//! ```text
//!        second thread                                     caller's thread
//! reader -> sha256 (compressed) -> inflate/zstd  --256 KiB-->  sha256 (diff id) -> archive
//!                                                <--empty----
//! ```
//!
//! Four buffers go round, so the memory of a layer under way is bounded, and reading, inflating and
//! writing overlap. The second thread counts what comes out of the decoder and stops at the limit,
//! so a decompression bomb ends there.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use sha2::{Digest as _, Sha256};

use crate::Digest;
use crate::error::{Error, Result};

/// The size of a buffer between the threads, and of the reads from the source.
const BUFFER: usize = 256 * 1024;
/// How many buffers go round.
const BUFFERS: usize = 4;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain archive.
    None,
    /// gzip, one member or several (RFC 1952).
    Gzip,
    /// zstd, one frame or several (RFC 8878).
    Zstd,
}

impl Compression {
    /// The compression that a layer's media type says (OCI image specification, layer; Docker's
    /// schema 2); none if it is not a layer's.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type.rsplit_once(".tar")?.1 {
            "" => Some(Self::None),
            "+gzip" | ".gzip" => Some(Self::Gzip),
            "+zstd" | ".zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// How much a layer may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed archive.
    pub max_bytes: u64,
    /// Entries of the archive.
    pub max_entries: u64,
    /// Bytes of a name, and of a link's target. The kernel takes 4095.
    pub max_path: usize,
    /// Bytes of the value of an extended attribute. The kernel takes 65536.
    pub max_xattr: usize,
    /// Bytes after the end of the archive, compressed or not.
    pub max_trailing: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 128 << 30,
            max_entries: 10_000_000,
            max_path: 4095,
            max_xattr: 64 * 1024,
            max_trailing: 64 << 20,
        }
    }
}

/// What is known when a layer was read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    pub(crate) diff_id: Digest,
    pub(crate) compressed: Digest,
    pub(crate) compressed_size: u64,
}

/// The uncompressed bytes, chunk by chunk.
pub(crate) trait Source {
    /// What is there next; empty at the end only.
    fn chunk(&mut self) -> Result<&[u8]>;
    /// Takes bytes off the front of the chunk.
    fn consume(&mut self, bytes: usize);
}

impl Source for &[u8] {
    fn chunk(&mut self) -> Result<&[u8]> {
        Ok(self)
    }

    fn consume(&mut self, bytes: usize) {
        *self = &self[bytes..];
    }
}

/// What the second thread says last: digest and size of what was received.
type End = Result<(Digest, u64)>;

enum Message {
    Data(Vec<u8>),
    End(End),
}

/// The caller's end of the pipeline.
pub(crate) struct Chunks {
    full: Receiver<Message>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hash: Sha256,
    end: Option<(Digest, u64)>,
}

impl Source for Chunks {
    fn chunk(&mut self) -> Result<&[u8]> {
        while self.at == self.current.len() && self.end.is_none() {
            match self.full.recv() {
                Ok(Message::Data(data)) => {
                    self.hash.update(&data);
                    let old = std::mem::replace(&mut self.current, data);
                    self.at = 0;
                    // The other thread may have ended already.
                    let _ = self.empty.send(old);
                }
                Ok(Message::End(end)) => self.end = Some(end?),
                // Only after an error was told, or a panic, which the scope passes on.
                Err(_) => return Err(Error::Source { source: io::ErrorKind::BrokenPipe.into() }),
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

impl Chunks {
    /// Reads to the end, and tells what was read.
    fn finish(mut self, max_trailing: u64) -> Result<Summary> {
        let mut trailing = 0u64;
        loop {
            let more = self.chunk()?.len();
            if more == 0 {
                break;
            }
            trailing += more as u64;
            if trailing > max_trailing {
                return Err(Error::TrailingData { limit: max_trailing });
            }
            self.consume(more);
        }
        let diff_id = Digest::from_hash(self.hash.finalize().as_slice());
        match self.end {
            Some((compressed, compressed_size)) => {
                Ok(Summary { diff_id, compressed, compressed_size })
            }
            None => Err(Error::Source { source: io::ErrorKind::UnexpectedEof.into() }),
        }
    }
}

/// Reads and decompresses on a second thread while `each` takes the archive; then reads on to the
/// end, so that both digests are whole.
pub(crate) fn run<T>(
    reader: impl Read + Send,
    compression: Compression,
    limits: &Limits,
    each: impl FnOnce(&mut Chunks) -> Result<T>,
) -> Result<(T, Summary)> {
    std::thread::scope(|scope| {
        let (full_tx, full) = sync_channel(BUFFERS);
        let (empty, empty_rx) = channel();
        for _ in 0..BUFFERS {
            // The receiver is in this function.
            let _ = empty.send(Vec::new());
        }
        std::thread::Builder::new()
            .name("layer-read".into())
            .spawn_scoped(scope, move || {
                let end = decode(reader, compression, limits, &full_tx, &empty_rx);
                // Nobody listens if the other side failed.
                let _ = full_tx.send(Message::End(end));
            })
            .map_err(|source| Error::Source { source })?;
        let mut chunks =
            Chunks { full, empty, current: Vec::new(), at: 0, hash: Sha256::new(), end: None };
        let done = each(&mut chunks)?;
        Ok((done, chunks.finish(limits.max_trailing)?))
    })
}

/// The source, hashed. Keeps its error apart from the decoder's.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
    size: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Ok(read) => {
                    self.hash.update(&buffer[..read]);
                    self.size += read as u64;
                    return Ok(read);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.failed = Some(e);
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
        }
    }
}

fn decode(
    reader: impl Read,
    compression: Compression,
    limits: &Limits,
    full: &SyncSender<Message>,
    empty: &Receiver<Vec<u8>>,
) -> End {
    let mut source = Hashed { inner: reader, hash: Sha256::new(), size: 0, failed: None };
    let buffered = BufReader::with_capacity(BUFFER, &mut source);
    let pumped = match compression {
        Compression::None => pump(buffered, limits, full, empty),
        Compression::Gzip => {
            pump(flate2::bufread::MultiGzDecoder::new(buffered), limits, full, empty)
        }
        Compression::Zstd => match zstd::stream::read::Decoder::with_buffer(buffered) {
            Ok(decoder) => pump(decoder, limits, full, empty),
            Err(source) => Err(Error::Decompress { source }),
        },
    };
    if let Some(source) = source.failed {
        return Err(Error::Source { source });
    }
    pumped?;
    // A decoder may stop before the end of what was sent.
    let mut rest = vec![0; BUFFER];
    let mut trailing = 0u64;
    loop {
        let read = match source.read(&mut rest) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) => return Err(Error::Source { source: source.failed.unwrap_or(e) }),
        };
        trailing += read as u64;
        if trailing > limits.max_trailing {
            return Err(Error::TrailingData { limit: limits.max_trailing });
        }
    }
    Ok((Digest::from_hash(source.hash.finalize().as_slice()), source.size))
}

/// Fills buffers until the decoder ends or the other side goes away.
fn pump(
    mut decoder: impl Read,
    limits: &Limits,
    full: &SyncSender<Message>,
    empty: &Receiver<Vec<u8>>,
) -> Result<()> {
    let mut total = 0u64;
    loop {
        let Ok(mut buffer) = empty.recv() else { return Ok(()) };
        buffer.resize(BUFFER, 0);
        let mut filled = 0;
        while filled < BUFFER {
            match decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Decompress { source }),
            }
        }
        total += filled as u64;
        if total > limits.max_bytes {
            return Err(Error::LayerTooLarge { limit: limits.max_bytes });
        }
        let last = filled < BUFFER;
        buffer.truncate(filled);
        if filled > 0 && full.send(Message::Data(buffer)).is_err() {
            return Ok(());
        }
        if last {
            return Ok(());
        }
    }
}
