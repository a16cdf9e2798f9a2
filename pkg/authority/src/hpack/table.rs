//! The tables that a header block's indices point into (RFC 7541 §2.3).
//!
//! ```text
//! index   1 ………………… 61   62 ………………………………… 61 + n
//!         static table   dynamic: newest … oldest ──► evicted
//! ```

use std::collections::VecDeque;

use bytes::Bytes;

/// The size of the dynamic table until the encoder takes another (RFC 9113 §6.5.2).
const DEFAULT_SIZE: usize = 4096;

/// What an entry counts for beyond its name and value (RFC 7541 §4.1).
pub(crate) const OVERHEAD: usize = 32;

/// Static and dynamic table as one.
#[derive(Debug)]
pub(crate) struct Table {
    /// The newest first.
    dynamic: VecDeque<(Bytes, Bytes)>,
    size: usize,
    capacity: usize,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { dynamic: VecDeque::new(), size: 0, capacity: DEFAULT_SIZE }
    }

    /// The entry of an index; there is none at 0.
    pub(crate) fn get(&self, index: usize) -> Option<(Bytes, Bytes)> {
        let index = index.checked_sub(1)?;
        match STATIC.get(index) {
            Some((name, value)) => {
                Some((Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes())))
            }
            None => self.dynamic.get(index - STATIC.len()).cloned(),
        }
    }

    /// Adds an entry. One that is larger than the whole table empties it (RFC 7541 §4.4).
    pub(crate) fn insert(&mut self, name: Bytes, value: Bytes) {
        let size = name.len() + value.len() + OVERHEAD;
        self.evict(self.capacity.saturating_sub(size));
        if size <= self.capacity {
            self.size += size;
            self.dynamic.push_front((name, value));
        }
    }

    /// Takes another capacity.
    pub(crate) fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.evict(capacity);
    }

    /// Drops the oldest entries until the rest is no larger than `size`.
    fn evict(&mut self, size: usize) {
        while self.size > size
            && let Some((name, value)) = self.dynamic.pop_back()
        {
            self.size -= name.len() + value.len() + OVERHEAD;
        }
    }
}

/// RFC 7541, appendix A.
#[rustfmt::skip]
static STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
