//! The two buffers of a connection: what was received and not yet parsed, what is to be sent.
//!
//! ```text
//!  Input    ┆ parsed │ to parse │ free ┆      space() is the free end, what is left moves to the front
//!  Output   ┆ sent │ to send │ header? data? │ free ┆     a frame's data are read into their place,
//!                                                        its header is put before them afterwards
//! ```
//! Ranges into the input stay valid until `space` or `receive` is called again.

use std::ops::Range;

/// Bytes that one read of the socket can fill.
pub(crate) const INPUT_SIZE: usize = 128 * 1024;

/// Received bytes.
#[derive(Debug)]
pub(crate) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Input {
        Input { bytes: vec![0; INPUT_SIZE].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The free end, after what is to be parsed has been moved to the front.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// `n` bytes of the free end are filled; more than there are count as all of them.
    pub(crate) fn filled(&mut self, n: usize) {
        self.end = self.end.saturating_add(n).min(self.bytes.len());
    }

    /// Copies the start of `bytes` in: how many.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        let space = self.space();
        let n = space.len().min(bytes.len());
        space[..n].copy_from_slice(&bytes[..n]);
        self.filled(n);
        n
    }

    /// What is to be parsed.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Takes the first `n` bytes, at most what there is: where they lie.
    pub(crate) fn take(&mut self, n: usize) -> Range<usize> {
        let from = self.start;
        self.start = from.saturating_add(n).min(self.end);
        from..self.start
    }

    /// Bytes that were taken.
    pub(crate) fn get(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Bytes that were taken, to be changed in place.
    pub(crate) fn get_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.bytes[range]
    }
}

/// Bytes to be sent. It grows as needed; who fills it keeps to a limit.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// Initialised as far as it was ever used.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The frame that is being filled: bytes kept for its header, then for its data.
    reserved: Option<(usize, usize)>,
}

impl Output {
    /// Bytes to be sent.
    #[allow(clippy::len_without_is_empty)]
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// What is to be sent.
    pub(crate) fn get(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// `n` bytes were sent.
    pub(crate) fn sent(&mut self, n: usize) {
        self.reserved = None;
        self.start = self.start.saturating_add(n).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Makes room for `n` bytes after the end.
    fn grow(&mut self, n: usize) {
        if self.end + n > self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end + n > self.bytes.len() {
            self.bytes.resize(self.end + n, 0);
        }
    }

    /// Appends `bytes`.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.reserved = None;
        self.grow(bytes.len());
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Where to put up to `n` bytes of a frame whose header takes up to `header` bytes.
    pub(crate) fn reserve(&mut self, header: usize, n: usize) -> &mut [u8] {
        self.grow(header + n);
        self.reserved = Some((header, n));
        let data = self.end + header;
        &mut self.bytes[data..data + n]
    }

    /// The reserved frame holds `n` bytes, and this is its header (not longer than was kept for it).
    /// False where nothing (or less) was reserved.
    pub(crate) fn commit(&mut self, header: &[u8], n: usize) -> bool {
        let Some((kept, most)) = self.reserved.take() else { return false };
        if n > most || header.len() > kept {
            return false;
        }
        let gap = kept - header.len();
        let data = self.end + kept;
        let at = if self.start == self.end {
            // Nothing lies before it: the frame may begin later.
            self.start += gap;
            self.start
        } else {
            if gap > 0 {
                self.bytes.copy_within(data..data + n, data - gap);
            }
            self.end
        };
        self.bytes[at..at + header.len()].copy_from_slice(header);
        self.end = at + header.len() + n;
        true
    }
}
