//! The frames that a client sends, looked at and, where need be, rewritten.
//!
//! ```text
//!                ┌──────────── other frame: passes ───────────┐
//!                ▼                                            │
//! feed ──► raw ──┬─ HEADERS ─┬─ END_HEADERS ───────► judge ───┘
//!                │           └─ CONTINUATION … ─────►  │
//!                │                                     ├─ watching,  valid ───► Plain
//!                │                                     ├─ watching,  bad ─────► rewriting, emit
//!                │                                     └─ rewriting ──────────► emit
//!                └─ breaks the protocol ─┬─ watching ──► Plain (the server refuses it)
//!                                        └─ rewriting ─► Broken
//! ```
//!
//! Until the first header block is judged its frames are kept as they came, so that a client with
//! a valid authority has the very bytes it sent arrive.

use bytes::Bytes;
use http::uri::Authority;

use crate::hpack::{self, Decoder, Field};

/// How much is read at once, and about how much lies ready before the server has to take it.
pub(crate) const CHUNK: usize = 8 * 1024;
/// The longest header block that is decoded, in bytes as they come.
const MAX_BLOCK: usize = 64 * 1024;
/// The longest header list: names, values and 32 for each field, as HTTP/2 counts it.
const MAX_LIST: usize = 256 * 1024;
/// The most frames that one header block may be cut into.
const MAX_CONTINUATIONS: u32 = 256;
/// The longest frame that goes to the server: what every HTTP/2 peer must take.
const MAX_FRAME: usize = 16 * 1024;
/// What stands before every frame's payload.
const HEAD: usize = 9;

const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// How a client broke HTTP/2 after its header blocks began to be rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error(
        "a header block is longer than {MAX_BLOCK} bytes or in more than {MAX_CONTINUATIONS} frames"
    )]
    BlockTooLarge,
    #[error("another frame stands within a header block")]
    Interrupted,
    #[error("a HEADERS frame is shorter than its padding and priority")]
    Padding,
    #[error("a header block cannot be decoded")]
    Hpack(#[source] hpack::Error),
}

/// What [`Inbound::run`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// More input is needed.
    More,
    /// Enough lies ready to be taken first.
    Enough,
    /// Nothing more needs to be looked at; all input that there was lies ready.
    Plain,
}

/// A header block of which not all frames have come.
#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    priority: Option<[u8; 5]>,
    fragment: Vec<u8>,
    continuations: u32,
}

struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    fn parse(raw: &[u8]) -> Option<Self> {
        let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = raw.first_chunk::<HEAD>()?;
        Some(Self {
            length: usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2),
            kind,
            flags,
            // The first bit is reserved and means nothing.
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        })
    }
}

/// The state of one connection's inbound direction, from behind the preface on.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// Read and not yet dealt with.
    raw: Vec<u8>,
    /// How many bytes to come pass as they are.
    pass: usize,
    block: Option<Block>,
    /// The frames of `block` as they came; `None` once rewriting has begun.
    held: Option<Vec<u8>>,
    decoder: Decoder,
    broken: Option<Broken>,
}

impl Inbound {
    pub(crate) fn new() -> Self {
        Self {
            raw: Vec::new(),
            pass: 0,
            block: None,
            held: Some(Vec::new()),
            decoder: Decoder::new(),
            broken: None,
        }
    }

    pub(crate) fn is_rewriting(&self) -> bool {
        self.held.is_none()
    }

    /// Takes input, to be dealt with by [`run`](Self::run).
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
    }

    /// Deals with the input as far as it goes, and appends to `ready` what the server is to read.
    ///
    /// `ready` grows by no more than a chunk and a rewritten header block.
    pub(crate) fn run(&mut self, ready: &mut Vec<u8>) -> Result<Step, Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let mut done = 0;
        let result = self.frames(&mut done, ready);
        self.raw.drain(..done);
        self.raw.shrink_to(2 * CHUNK);
        match result {
            Ok(Step::Plain) => self.end(ready),
            Err(_) if !self.is_rewriting() => {
                self.end(ready);
                return Ok(Step::Plain);
            }
            Err(broken) => self.broken = Some(broken),
            Ok(Step::More | Step::Enough) => {}
        }
        result
    }

    /// Appends what is left where nothing more will be looked at. Half a frame of a client that is
    /// being rewritten is of use to nobody and is left out.
    pub(crate) fn end(&mut self, ready: &mut Vec<u8>) {
        if let Some(held) = &mut self.held {
            ready.append(held);
            ready.append(&mut self.raw);
        }
    }

    fn frames(&mut self, done: &mut usize, ready: &mut Vec<u8>) -> Result<Step, Broken> {
        loop {
            let rest = &self.raw[*done..];
            if self.pass > 0 {
                let n = self.pass.min(rest.len());
                ready.extend_from_slice(&rest[..n]);
                self.pass -= n;
                *done += n;
                if self.pass > 0 {
                    return Ok(Step::More);
                }
            }
            if ready.len() >= CHUNK {
                return Ok(Step::Enough);
            }
            let rest = &self.raw[*done..];
            let Some(head) = Head::parse(rest) else {
                return Ok(Step::More);
            };
            match (head.kind, &self.block) {
                (HEADERS, None) => {}
                (CONTINUATION, Some(block)) if block.stream == head.stream => {}
                (_, Some(_)) => return Err(Broken::Interrupted),
                (_, None) => {
                    self.pass = HEAD + head.length;
                    continue;
                }
            }
            // Padding and priority are not part of the block but of its first frame.
            if head.length > MAX_BLOCK + 1 + 5 + 255 {
                return Err(Broken::BlockTooLarge);
            }
            let Some(frame) = rest.get(..HEAD + head.length) else {
                return Ok(Step::More);
            };
            let block = take(self.block.take(), &head, &frame[HEAD..])?;
            if let Some(held) = &mut self.held {
                held.extend_from_slice(frame);
            }
            *done += frame.len();
            if head.flags & END_HEADERS == 0 {
                self.block = Some(block);
                continue;
            }
            let mut fields =
                self.decoder.decode(&block.fragment, MAX_LIST).map_err(Broken::Hpack)?;
            let replaced = replace(&mut fields);
            if !replaced && !self.is_rewriting() {
                return Ok(Step::Plain);
            }
            self.held = None;
            emit(&block, &fields, ready);
        }
    }
}

/// Adds the payload of a HEADERS or CONTINUATION frame to the block that it belongs to.
fn take(block: Option<Block>, head: &Head, payload: &[u8]) -> Result<Block, Broken> {
    let (mut block, part) = match block {
        Some(mut block) => {
            block.continuations += 1;
            (block, payload)
        }
        None => {
            let mut part = payload;
            let mut padding = 0;
            if head.flags & PADDED != 0 {
                let (&length, rest) = part.split_first().ok_or(Broken::Padding)?;
                (padding, part) = (usize::from(length), rest);
            }
            let mut priority = None;
            if head.flags & PRIORITY != 0 {
                let (&first, rest) = part.split_first_chunk().ok_or(Broken::Padding)?;
                (priority, part) = (Some(first), rest);
            }
            let length = part.len().checked_sub(padding).ok_or(Broken::Padding)?;
            let block = Block {
                stream: head.stream,
                end_stream: head.flags & END_STREAM != 0,
                priority,
                fragment: Vec::new(),
                continuations: 0,
            };
            (block, &part[..length])
        }
    };
    if block.fragment.len() + part.len() > MAX_BLOCK || block.continuations > MAX_CONTINUATIONS {
        return Err(Broken::BlockTooLarge);
    }
    block.fragment.extend_from_slice(part);
    Ok(block)
}

/// Puts `localhost` where an authority is none that the server would take; whether it did.
fn replace(fields: &mut [Field]) -> bool {
    let mut replaced = false;
    for field in fields {
        if field.name == ":authority" && Authority::try_from(&*field.value).is_err() {
            field.value = Bytes::from_static(b"localhost");
            replaced = true;
        }
    }
    replaced
}

/// Appends the frames of a header block whose fields are literals.
fn emit(block: &Block, fields: &[Field], ready: &mut Vec<u8>) {
    let mut payload = Vec::new();
    payload.extend(block.priority.iter().flatten());
    for field in fields {
        hpack::literal(field, &mut payload);
    }
    let mut kind = HEADERS;
    let mut flags = if block.end_stream { END_STREAM } else { 0 };
    if block.priority.is_some() {
        flags |= PRIORITY;
    }
    let mut rest = &payload[..];
    loop {
        let (part, left) = rest.split_at(rest.len().min(MAX_FRAME));
        if left.is_empty() {
            flags |= END_HEADERS;
        }
        // No part is longer than MAX_FRAME, which three bytes hold.
        let [.., l0, l1, l2] = part.len().to_be_bytes();
        ready.extend([l0, l1, l2, kind, flags]);
        ready.extend(block.stream.to_be_bytes());
        ready.extend(part);
        if left.is_empty() {
            return;
        }
        (rest, kind, flags) = (left, CONTINUATION, 0);
    }
}
