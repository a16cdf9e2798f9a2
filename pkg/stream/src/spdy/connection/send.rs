//! What a connection sends: frames of data within the limits and windows, control frames.

use super::{Connection, FIN, GOAWAY, RST_STREAM, SYN_REPLY, SYN_STREAM, Status, Stream};
use crate::spdy::{FRAME_DATA, Headers, MAX_WINDOW, OUTPUT_LIMIT};

impl Connection {
    pub(super) fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) {
        if self.we_go {
            return;
        }
        let [k, kk] = kind.to_be_bytes();
        let [_, l @ ..] = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
        self.output.push(&[0x80, 3, k, kk, flags, l[0], l[1], l[2]]);
        self.output.push(payload);
    }

    /// A control frame of two numbers.
    pub(super) fn pair(&mut self, kind: u16, a: u32, b: u32) {
        let (a, b) = (a.to_be_bytes(), b.to_be_bytes());
        self.control(kind, 0, &[a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]);
    }

    /// Opens a stream: its number. `None` where the peer accepts no more at once, or at all.
    pub fn open(&mut self, headers: &Headers) -> Option<u32> {
        let ours = u32::try_from(self.streams.len()).ok()? - self.theirs;
        if self.they_go || self.we_go || ours >= self.peer_limit {
            return None;
        }
        let stream = self.next;
        if stream > MAX_WINDOW {
            return None;
        }
        let block = self.packer.pack(headers).ok()?;
        self.next += 2;
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        payload.extend_from_slice(&block);
        self.control(SYN_STREAM, 0, &payload);
        self.streams.insert(
            stream,
            Stream {
                window: self.stream_window,
                credit: 0,
                replied: false,
                local_closed: false,
                remote_closed: false,
            },
        );
        Some(stream)
    }

    /// Accepts a stream of the peer.
    pub fn reply(&mut self, stream: u32) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if std::mem::replace(&mut state.replied, true) {
            return;
        }
        // An empty block always can be packed.
        let Ok(block) = self.packer.pack(&Headers::default()) else { return };
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend_from_slice(&block);
        self.control(SYN_REPLY, 0, &payload);
    }

    /// How much may be sent on `stream` now, in bytes. 0 before it was accepted: spdystream throws
    /// such data away.
    pub fn room(&self, stream: u32) -> usize {
        let Some(state) = self.streams.get(&stream).filter(|s| s.replied && !s.local_closed) else {
            return 0;
        };
        if self.we_go {
            return 0;
        }
        let mut room = OUTPUT_LIMIT.saturating_sub(self.output.len()).min(FRAME_DATA);
        if self.stream_windows_bind {
            room = room.min(usize::try_from(state.window).unwrap_or(0));
        }
        if self.window_binds {
            room = room.min(usize::try_from(self.window).unwrap_or(0));
        }
        room
    }

    /// Where to put the next data of `stream`: at most `room` bytes.
    pub fn send_space(&mut self, stream: u32) -> &mut [u8] {
        let room = self.room(stream);
        self.output.reserve(8, room)
    }

    /// `n` bytes of the last [`send_space`](Self::send_space), at most `room`, were filled.
    pub fn send_filled(&mut self, stream: u32, n: usize) {
        if n == 0 || n > self.room(stream) {
            return;
        }
        if self.output.commit(&data_head(stream, n, 0), n) {
            self.count(stream, n);
        }
    }

    /// Sends the start of `bytes`: how many were taken.
    pub fn send(&mut self, stream: u32, bytes: &[u8]) -> usize {
        let n = self.room(stream).min(bytes.len());
        if n > 0 {
            self.output.push(&data_head(stream, n, 0));
            self.output.push(&bytes[..n]);
            self.count(stream, n);
        }
        n
    }

    /// Sends all of `bytes`, a short last word, without regard to limits and windows.
    pub fn say(&mut self, stream: u32, bytes: &[u8]) {
        let open = self.streams.get(&stream).is_some_and(|s| s.replied && !s.local_closed);
        if open && !bytes.is_empty() && !self.we_go {
            self.output.push(&data_head(stream, bytes.len(), 0));
            self.output.push(bytes);
            self.count(stream, bytes.len());
        }
    }

    fn count(&mut self, stream: u32, n: usize) {
        let n = i64::try_from(n).unwrap_or(i64::MAX / 2);
        self.window -= n;
        if let Some(state) = self.streams.get_mut(&stream) {
            state.window -= n;
        }
    }

    /// Nothing more is sent on `stream`.
    pub fn close(&mut self, stream: u32) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if std::mem::replace(&mut state.local_closed, true) {
            return;
        }
        let both = state.remote_closed;
        if !self.we_go {
            self.output.push(&data_head(stream, 0, FIN));
        }
        if both {
            self.forget(stream);
        }
    }

    /// Ends both directions of `stream`.
    pub fn reset(&mut self, stream: u32, status: Status) {
        if self.forget(stream) {
            self.pair(RST_STREAM, stream, status as u32);
        }
    }

    /// Whether `stream` is there: neither reset nor closed by both sides.
    pub fn contains(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Tells the peer that nothing more comes. No frame is sent after it.
    pub fn go_away(&mut self) {
        self.leave(0);
    }

    pub(super) fn fail(&mut self) {
        self.leave(1);
        self.failed = true;
    }

    fn leave(&mut self, status: u32) {
        // Without effect the second time: nothing follows a GOAWAY.
        self.pair(GOAWAY, self.last, status);
        self.we_go = true;
    }

    /// Bytes for the peer.
    pub fn output(&self) -> &[u8] {
        self.output.get()
    }

    /// `n` bytes of [`output`](Self::output) were sent.
    pub fn sent(&mut self, n: usize) {
        self.output.sent(n);
    }
}

pub(super) fn data_head(stream: u32, length: usize, flags: u8) -> [u8; 8] {
    let [a, b, c, d] = stream.to_be_bytes();
    // At most FRAME_DATA.
    let [_, l @ ..] = u32::try_from(length).unwrap_or_default().to_be_bytes();
    [a, b, c, d, flags, l[0], l[1], l[2]]
}
