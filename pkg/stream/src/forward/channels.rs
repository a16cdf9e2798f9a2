//! The server's side over WebSocket channels: two for each port of the request, from the start.
//!
//! ```text
//!  channel 2i    data of the i-th port, both ways       first the port (u16, little-endian),
//!  channel 2i+1  a text when it failed, to the client   as a message of its own, on both
//! ```
//! Neither side can close a channel alone: a connection ends when the pod closes it, the session when
//! all have ended.

use super::{Error, Id, Step};
use crate::channels::{Channels, Piece};
use std::ops::Range;

/// Most ports of a request; their channels have one byte.
pub(super) const PORTS: usize = 100;
/// Input is read while not more than this is kept, in bytes.
const KEPT: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) channels: Channels,
    ports: Vec<u16>,
    /// How many of them were told.
    told: usize,
    /// Connections that have not ended.
    open: Vec<bool>,
    /// Ended by [`close`](Self::close), to be told.
    ended: Vec<Id>,
}

impl Server {
    /// `ports` are at most [`PORTS`].
    pub(super) fn new(base64: bool, ports: Vec<u16>) -> Server {
        let mut channels = Channels::new(base64, false);
        for (i, port) in ports.iter().take(PORTS).enumerate() {
            for channel in [i * 2, i * 2 + 1] {
                channels.say(number(channel), &port.to_le_bytes());
            }
        }
        let open = vec![true; ports.len()];
        Server { channels, ports, told: 0, open, ended: Vec::new() }
    }

    pub(super) fn kept_limit(&self) -> usize {
        KEPT
    }

    pub(super) fn step(&mut self) -> Result<Option<Step>, Error> {
        if let Some(port) = self.ports.get(self.told) {
            let id = Id(self.told as u64);
            self.told += 1;
            return Ok(Some(Step::Opened(id, *port)));
        }
        if let Some(id) = self.ended.pop() {
            return Ok(Some(Step::Reset(id)));
        }
        let data = |channel: u8| channel.is_multiple_of(2).then_some(Id(u64::from(channel) / 2));
        Ok(self.channels.poll()?.map(|piece| match piece {
            Piece::Raw(channel, range) => {
                data(channel).map_or(Step::Silent, |id| Step::Data(id, range))
            }
            Piece::Decoded(channel) => data(channel).map_or(Step::Silent, Step::Decoded),
            Piece::Closed(_) => Step::Silent,
            Piece::Gone => Step::Gone,
        }))
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.channels.bytes(range)
    }

    fn index(&self, id: Id) -> Option<usize> {
        let index = usize::try_from(id.0).ok()?;
        self.open.get(index).filter(|open| **open).map(|_| index)
    }

    pub(super) fn room(&self, id: Id) -> usize {
        if self.index(id).is_some() { self.channels.room() } else { 0 }
    }

    pub(super) fn send_space(&mut self, _id: Id) -> &mut [u8] {
        self.channels.send_space()
    }

    pub(super) fn send_filled(&mut self, id: Id, n: usize) {
        if let Some(index) = self.index(id) {
            self.channels.send_filled(number(index * 2), n);
        }
    }

    pub(super) fn send(&mut self, id: Id, bytes: &[u8]) -> usize {
        self.index(id).map_or(0, |index| self.channels.send(number(index * 2), bytes))
    }

    /// The pod sends nothing more: the connection has ended, which is told as if the client had ended
    /// it.
    pub(super) fn close(&mut self, id: Id) {
        if self.index(id).is_some() {
            self.ended.push(id);
            self.fail(id, None);
        }
    }

    pub(super) fn fail(&mut self, id: Id, text: Option<&str>) {
        let Some(index) = self.index(id) else { return };
        if let Some(text) = text {
            let end = (0..=text.len().min(1024)).rfind(|at| text.is_char_boundary(*at));
            self.channels.say(number(index * 2 + 1), &text.as_bytes()[..end.unwrap_or_default()]);
        }
        self.open[index] = false;
        if !self.open.contains(&true) {
            self.channels.close();
        }
    }

    pub(super) fn finish(&mut self) {
        self.open.fill(false);
        self.channels.close();
    }

    /// Whether every connection has ended.
    pub(super) fn over(&self) -> bool {
        !self.open.contains(&true)
    }
}

/// A channel's number, which is below 2 × [`PORTS`].
fn number(channel: usize) -> u8 {
    u8::try_from(channel).unwrap_or(u8::MAX)
}
