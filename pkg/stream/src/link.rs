//! What the clients of exec and of port-forward share: a SPDY connection, and what came on it for
//! each destination and was not consumed.
//!
//! ```text
//! space, filled ─▶ step ─▶ Notice of what was kept, Event of the connection, … Gone once, last
//! ```

use crate::Error;
use crate::inbox::{Arrived, Inboxes, Notice};
use crate::spdy::{Connection, Event, Limits};
use std::hash::Hash;
use std::ops::Range;

/// A client's end of a connection; `K` names destinations.
#[derive(Debug)]
pub(crate) struct Link<K> {
    pub(crate) connection: Connection,
    pub(crate) inbox: Inboxes<K>,
    /// Bytes that may be kept before no more are wanted.
    most: usize,
    eof: bool,
    gone: bool,
}

/// What comes next.
pub(crate) enum Step<K> {
    Notice(Notice<K>),
    Event(Event),
    /// The server has closed the session.
    Gone,
    /// Nothing, for now or after `Gone`.
    Silent,
}

impl<K: Copy + Eq + Hash> Link<K> {
    pub(crate) fn new(limits: Limits) -> Link<K> {
        let most = limits.session_window as usize;
        let connection = Connection::new(false, limits);
        Link { connection, inbox: Inboxes::new(), most, eof: false, gone: false }
    }

    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.settle();
        if self.wants_input() { self.connection.space() } else { &mut [] }
    }

    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        self.settle();
        self.connection.receive(bytes)
    }

    pub(crate) fn wants_input(&self) -> bool {
        !self.eof && !self.gone && !self.connection.blocked() && self.inbox.kept() <= self.most
    }

    pub(crate) fn eof(&mut self) {
        self.eof = true;
    }

    /// What was told last and not consumed is kept elsewhere: its place is needed.
    pub(crate) fn settle(&mut self) {
        if let Some(range) = self.inbox.unsettled() {
            self.inbox.settle(self.connection.bytes(range));
        }
    }

    pub(crate) fn step(&mut self) -> Result<Step<K>, Error> {
        if self.gone {
            return Ok(Step::Silent);
        }
        if let Some(notice) = self.inbox.next() {
            return Ok(Step::Notice(notice));
        }
        let event = self.connection.poll();
        self.gone = event.is_err() || (self.eof && matches!(event, Ok(None)));
        Ok(match event? {
            Some(event) => Step::Event(event),
            None if self.gone => Step::Gone,
            None => Step::Silent,
        })
    }

    /// What lies at `range` came on `stream` for `key`; returned where it is to be told now.
    pub(crate) fn arrived(
        &mut self,
        key: K,
        stream: u32,
        range: Range<usize>,
    ) -> Option<Range<usize>> {
        match self.inbox.arrived(key, range.clone()) {
            Arrived::Tell => return Some(range),
            Arrived::Keep => self.inbox.keep(key, self.connection.bytes(range)),
            Arrived::Drop => self.connection.credit(stream, range.len()),
        }
        None
    }
}
