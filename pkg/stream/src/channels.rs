//! Channels within WebSocket messages: the subprotocols `*.channel.k8s.io`.
//!
//! ```text
//!  channel.k8s.io         binary message  = number of the channel (1 byte), data
//!  base64.channel.k8s.io  text message    = '0' + number, base64 of the data
//!  v5.channel.k8s.io      binary message 255, number: the client sends nothing more on that channel
//! ```
//! Data of a plain message are handed on in pieces where they lie; base64 is decoded in pieces.

use crate::Error;
use crate::websocket::{CLOSE_NORMAL, Connection, Event, Kind, OUTPUT_LIMIT, Role};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::ops::Range;

/// First byte of the message that closes a channel, with v5.
const CLOSE_SIGNAL: u8 = 255;
/// Most data that are encoded into one message: encoded they are within the frame's limit.
const ENCODED: usize = 48 * 1024;

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Data where they lie in the input: [`Channels::bytes`].
    Raw(u8, Range<usize>),
    /// Data that were decoded: [`Channels::decoded`].
    Decoded(u8),
    /// The client sends nothing more on the channel.
    Closed(u8),
    /// The client has closed the connection.
    Gone,
}

/// The message that is being received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    /// Its first byte has not come.
    Start,
    /// Of this channel.
    Of(u8),
    /// A signal to close, of which the channel has come or has not.
    Signal(Option<u8>),
}

/// The server's side of a connection with channels.
#[derive(Debug)]
pub(crate) struct Channels {
    socket: Connection,
    base64: bool,
    signals: bool,
    message: Message,
    /// Up to 3 characters that do not make a group of 4 yet, then what comes with them.
    text: Vec<u8>,
    decoded: Vec<u8>,
    scratch: Vec<u8>,
}

impl Channels {
    /// `base64`: text messages; `signals`: the client may close channels.
    pub(crate) fn new(base64: bool, signals: bool) -> Channels {
        Channels {
            socket: Connection::new(Role::Server),
            base64,
            signals,
            message: Message::Start,
            text: Vec::new(),
            decoded: Vec::new(),
            scratch: Vec::new(),
        }
    }

    pub(crate) fn socket(&self) -> &Connection {
        &self.socket
    }

    pub(crate) fn socket_mut(&mut self) -> &mut Connection {
        &mut self.socket
    }

    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.socket.bytes(range)
    }

    /// The data of the last [`Piece::Decoded`].
    pub(crate) fn decoded(&self) -> &[u8] {
        &self.decoded
    }

    pub(crate) fn poll(&mut self) -> Result<Option<Piece>, Error> {
        while let Some(event) = self.socket.poll()? {
            let (mut range, first, last) = match event {
                Event::Data { range, first, last } => (range, first, last),
                Event::Closed { .. } => return Ok(Some(Piece::Gone)),
            };
            if first {
                self.message = Message::Start;
            }
            if self.message == Message::Start
                && let Some(byte) = self.socket.bytes(range.clone()).first()
            {
                range.start += 1;
                self.message = match *byte {
                    CLOSE_SIGNAL if self.signals => Message::Signal(None),
                    // Another byte gives a number that no channel has.
                    byte if self.base64 => Message::Of(byte.wrapping_sub(b'0')),
                    byte => Message::Of(byte),
                };
            }
            match self.message {
                Message::Start => {}
                Message::Signal(channel) => {
                    let channel = match (channel, self.socket.bytes(range)) {
                        (None, [channel]) => Some(*channel),
                        (channel, []) => channel,
                        _ => return Err(self.socket.fail("a signal of wrong length")),
                    };
                    self.message = Message::Signal(channel);
                    match (channel, last) {
                        (Some(channel), true) => return Ok(Some(Piece::Closed(channel))),
                        (None, true) => return Err(self.socket.fail("a signal of wrong length")),
                        _ => {}
                    }
                }
                Message::Of(channel) if self.base64 => {
                    if self.decode(range, last).is_none() {
                        return Err(self.socket.fail("text that is not base64"));
                    }
                    if !self.decoded.is_empty() {
                        return Ok(Some(Piece::Decoded(channel)));
                    }
                }
                Message::Of(_) if range.is_empty() => {}
                Message::Of(channel) => return Ok(Some(Piece::Raw(channel, range))),
            }
        }
        Ok(None)
    }

    /// Decodes the whole groups of what came; at the message's end all of it.
    fn decode(&mut self, range: Range<usize>, last: bool) -> Option<()> {
        self.text.extend_from_slice(self.socket.bytes(range));
        let whole = if last { self.text.len() } else { self.text.len() / 4 * 4 };
        self.decoded.clear();
        STANDARD.decode_vec(&self.text[..whole], &mut self.decoded).ok()?;
        self.text.drain(..whole);
        if last {
            self.text.clear();
        }
        Some(())
    }

    fn first_byte(&self, channel: u8) -> u8 {
        if self.base64 { channel.wrapping_add(b'0') } else { channel }
    }

    /// How much may be sent on any channel now.
    pub(crate) fn room(&self) -> usize {
        if self.base64 { (self.socket.room() / 4 * 3).min(ENCODED) } else { self.socket.room() }
    }

    /// Where to put the next data, at most `room` bytes.
    pub(crate) fn send_space(&mut self) -> &mut [u8] {
        let room = self.room();
        if self.base64 {
            self.scratch.resize(ENCODED, 0);
            &mut self.scratch[..room]
        } else {
            self.socket.reserve(1, room)
        }
    }

    pub(crate) fn send_filled(&mut self, channel: u8, n: usize) {
        if n == 0 || n > self.room() {
            return;
        }
        if self.base64 {
            let scratch = std::mem::take(&mut self.scratch);
            self.say(channel, scratch.get(..n).unwrap_or_default());
            self.scratch = scratch;
        } else {
            self.socket.commit(Kind::Binary, &[channel], n);
        }
    }

    /// Sends the start of `bytes`: how many were taken.
    pub(crate) fn send(&mut self, channel: u8, bytes: &[u8]) -> usize {
        let n = self.room().min(bytes.len());
        if n > 0 {
            self.say(channel, &bytes[..n]);
        }
        n
    }

    /// Sends all of `bytes` (none, too) as a message, without regard to limits.
    pub(crate) fn say(&mut self, channel: u8, bytes: &[u8]) {
        let first = [self.first_byte(channel)];
        if self.base64 {
            let text = STANDARD.encode(bytes);
            self.socket.send(Kind::Text, &[&first, text.as_bytes()]);
        } else {
            self.socket.send(Kind::Binary, &[&first, bytes]);
        }
    }

    /// Closes the connection in good order.
    pub(crate) fn close(&mut self) {
        self.socket.close(CLOSE_NORMAL);
    }
}

// What a message of `ENCODED` bytes becomes is sent whole, so it must be less than what may wait.
const _: () = assert!(ENCODED / 3 * 4 < OUTPUT_LIMIT);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client() -> Connection {
        Connection::new(Role::Client { seed: 1 })
    }

    /// What arrives on each channel when `bytes` come in pieces of `cut`.
    fn arrive(
        channels: &mut Channels,
        bytes: &[u8],
        cut: usize,
    ) -> Result<Vec<(u8, Vec<u8>)>, Error> {
        let mut found: Vec<(u8, Vec<u8>)> = Vec::new();
        for piece in bytes.chunks(cut) {
            assert_eq!(channels.socket_mut().receive(piece), piece.len());
            while let Some(piece) = channels.poll()? {
                let (channel, data) = match piece {
                    Piece::Raw(channel, range) => (channel, channels.bytes(range).to_vec()),
                    Piece::Decoded(channel) => (channel, channels.decoded().to_vec()),
                    Piece::Closed(channel) => (channel, b"<closed>".to_vec()),
                    Piece::Gone => (99, Vec::new()),
                };
                match found.last_mut().filter(|(last, _)| *last == channel) {
                    Some((_, all)) => all.extend(data),
                    None => found.push((channel, data)),
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn a_signal_closes_a_channel_with_v5_only() {
        let mut sender = client();
        sender.send(Kind::Binary, &[b"\0data"]);
        sender.send(Kind::Binary, &[b"\xff\0"]);
        sender.close(CLOSE_NORMAL);
        let bytes = sender.output().to_vec();
        for cut in [1, 3, 100] {
            let found = arrive(&mut Channels::new(false, true), &bytes, cut).unwrap();
            assert_eq!(found, [(0, b"data<closed>".to_vec()), (99, Vec::new())]);
            let found = arrive(&mut Channels::new(false, false), &bytes, cut).unwrap();
            assert_eq!(found, [(0, b"data".to_vec()), (255, b"\0".to_vec()), (99, Vec::new())]);
        }
        for wrong in [&b"\xff"[..], b"\xff\0\0"] {
            let mut sender = client();
            sender.send(Kind::Binary, &[wrong]);
            for cut in [1, 100] {
                let bytes = sender.output().to_vec();
                assert!(arrive(&mut Channels::new(false, true), &bytes, cut).is_err());
            }
        }
    }

    #[test]
    fn what_is_not_base64_ends_the_connection() {
        for wrong in [&b"0Zm9"[..], b"0Z!9v", b"0Zg==Zg=="] {
            let mut sender = client();
            sender.send(Kind::Text, &[wrong]);
            let bytes = sender.output().to_vec();
            assert!(arrive(&mut Channels::new(true, false), &bytes, 100).is_err());
        }
    }

    #[test]
    fn empty_messages_are_nothing() {
        for base64 in [false, true] {
            let mut sender = client();
            sender.send(Kind::Binary, &[b""]);
            sender.send(Kind::Binary, &[b"0"]);
            let bytes = sender.output().to_vec();
            assert_eq!(arrive(&mut Channels::new(base64, true), &bytes, 1), Ok(vec![]));
        }
    }

    proptest! {
        #[test]
        fn both_forms_carry_every_byte(
            data in prop::collection::vec((0u8..5, prop::collection::vec(any::<u8>(), 1..400)), 0..6),
            cut in 1usize..500,
            base64 in any::<bool>(),
            in_place in any::<bool>(),
        ) {
            let mut expected: Vec<(u8, Vec<u8>)> = Vec::new();
            let mut sender = client();
            let mut back = Channels::new(base64, false);
            for (channel, bytes) in &data {
                if base64 {
                    let text = STANDARD.encode(bytes);
                    sender.send(Kind::Text, &[&[channel + b'0'], text.as_bytes()]);
                } else {
                    sender.send(Kind::Binary, &[&[*channel], bytes]);
                }
                if in_place {
                    back.send_space()[..bytes.len()].copy_from_slice(bytes);
                    back.send_filled(*channel, bytes.len());
                } else {
                    prop_assert_eq!(back.send(*channel, bytes), bytes.len());
                }
                match expected.last_mut().filter(|(last, _)| last == channel) {
                    Some((_, all)) => all.extend(bytes),
                    None => expected.push((*channel, bytes.clone())),
                }
            }
            let bytes = sender.output().to_vec();
            prop_assert_eq!(arrive(&mut Channels::new(base64, false), &bytes, cut).unwrap(), expected);

            // And what was sent is what a client reads.
            let mut reader = client();
            reader.receive(back.socket().output());
            let mut got = Vec::new();
            while let Some(event) = reader.poll().unwrap() {
                let Event::Data { range, first, .. } = event else { panic!("closed") };
                if first {
                    got.push(Vec::new());
                }
                got.last_mut().unwrap().extend_from_slice(reader.bytes(range));
            }
            let got: Vec<(u8, Vec<u8>)> = got.into_iter().map(|m| {
                if base64 {
                    (m[0] - b'0', STANDARD.decode(&m[1..]).unwrap())
                } else {
                    (m[0], m[1..].to_vec())
                }
            }).collect();
            prop_assert_eq!(got, data);
        }

        #[test]
        fn any_messages_are_survived(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in 1usize..64,
            base64 in any::<bool>(),
        ) {
            let mut sender = client();
            for message in &messages {
                sender.send(Kind::Binary, &[message]);
            }
            let bytes = sender.output().to_vec();
            let _ = arrive(&mut Channels::new(base64, true), &bytes, cut);
        }
    }
}
