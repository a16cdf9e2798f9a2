//! The server's side over WebSocket: five channels, open from the start.
//!
//! ```text
//!  handshake ─▶ an empty message (the Go server sends one, so that the client knows that it works)
//!            ─▶ data … ─▶ finish: status on channel 3, close frame 1000
//! ```
//! client-go takes a close frame with code 1000 as the end of stdout and stderr, any other end of the
//! connection as an error. It does not know the signal 255 from a server.

use super::{Channel, Error, Outcome, Step, Wants, resize, status};
use crate::channels::{Channels, Piece};
use std::ops::Range;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Input is read while not more than this is kept, in bytes.
const KEPT: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Server {
    channels: Channels,
    json: bool,
    /// Whether more may be sent: by number.
    open: [bool; 3],
    sizes: resize::Reader,
}

impl Server {
    pub(super) fn new(protocol: &str, wants: Wants) -> Server {
        let (version, form) = match protocol.split_once('.') {
            Some((version @ ("v4" | "v5"), form)) => (version, form),
            _ => ("", protocol),
        };
        let mut channels = Channels::new(form.starts_with("base64"), version == "v5");
        let greeted = if wants.stdout {
            STDOUT
        } else if wants.stderr {
            STDERR
        } else {
            ERROR
        };
        channels.say(greeted, b"");
        Server {
            channels,
            json: !version.is_empty(),
            open: [false, wants.stdout, wants.stderr],
            sizes: resize::Reader::default(),
        }
    }

    pub(super) fn space(&mut self) -> &mut [u8] {
        self.channels.socket_mut().space()
    }

    pub(super) fn filled(&mut self, n: usize) {
        self.channels.socket_mut().filled(n);
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        self.channels.socket_mut().receive(bytes)
    }

    pub(super) fn blocked(&self) -> bool {
        self.channels.socket().blocked()
    }

    pub(super) fn kept_limit(&self) -> usize {
        KEPT
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.channels.bytes(range)
    }

    pub(super) fn decoded(&self) -> &[u8] {
        self.channels.decoded()
    }

    pub(super) fn step(&mut self) -> Result<Option<Step>, Error> {
        Ok(self.channels.poll()?.map(|piece| match piece {
            Piece::Raw(STDIN, range) => Step::Stdin(range),
            Piece::Decoded(STDIN) => Step::Decoded,
            Piece::Raw(RESIZE, range) => Step::Size(self.sizes.read(self.channels.bytes(range))),
            Piece::Decoded(RESIZE) => Step::Size(self.sizes.read(self.channels.decoded())),
            Piece::Closed(STDIN) => Step::Closed(Channel::Stdin),
            Piece::Gone => Step::Gone,
            Piece::Raw(..) | Piece::Decoded(_) | Piece::Closed(_) => Step::Silent,
        }))
    }

    pub(super) fn consumed(&mut self, _n: usize) {
        // WebSocket has no windows.
    }

    fn number(channel: Channel) -> u8 {
        match channel {
            Channel::Stdin => STDIN,
            Channel::Stdout => STDOUT,
            Channel::Stderr => STDERR,
        }
    }

    pub(super) fn room(&self, channel: Channel) -> usize {
        let open = self.open[usize::from(Self::number(channel))];
        if open { self.channels.room() } else { 0 }
    }

    pub(super) fn send_space(&mut self, _channel: Channel) -> &mut [u8] {
        self.channels.send_space()
    }

    pub(super) fn send_filled(&mut self, channel: Channel, n: usize) {
        self.channels.send_filled(Self::number(channel), n);
    }

    pub(super) fn send(&mut self, channel: Channel, bytes: &[u8]) -> usize {
        self.channels.send(Self::number(channel), bytes)
    }

    pub(super) fn close(&mut self, channel: Channel) {
        self.open[usize::from(Self::number(channel))] = false;
    }

    pub(super) fn finish(&mut self, outcome: &Outcome) {
        let text = status::write(outcome, self.json);
        if !text.is_empty() {
            self.channels.say(ERROR, &text);
        }
        self.channels.close();
    }

    pub(super) fn output(&self) -> &[u8] {
        self.channels.socket().output()
    }

    pub(super) fn sent(&mut self, n: usize) {
        self.channels.socket_mut().sent(n);
    }
}
