//! What was received for each destination and not consumed yet.
//!
//! ```text
//!   offered where it was received ──consumed──▶ gone
//!            │ the rest, when the next event is asked for
//!            ▼
//!          kept ──pending, consumed──▶ gone ──▶ Closed is told once nothing is kept
//! ```
//! In the common case, a destination that takes everything, no byte is copied.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::ops::Range;

/// A queue that was larger than this is freed when it is empty.
const SPARE: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Inbox {
    kept: VecDeque<u8>,
    /// The owner knows that something is kept.
    told: bool,
    /// Nothing more comes.
    closed: bool,
    closed_told: bool,
    discard: bool,
    /// Nothing is told yet.
    held: bool,
}

/// What is to be done with bytes that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// Tell them now.
    Tell,
    /// [`Inboxes::keep`] them.
    Keep,
    /// Nobody wants them.
    Drop,
}

/// What is to be told of bytes that were kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notice<K> {
    /// Look at [`Inboxes::pending`].
    Data(K),
    /// Closed, and all has been consumed.
    Closed(K),
}

/// One inbox for each destination.
#[derive(Debug)]
pub(crate) struct Inboxes<K> {
    boxes: HashMap<K, Inbox>,
    /// Those of which something may have to be told.
    due: VecDeque<K>,
    /// What was told last, and where the part of it lies that was not consumed.
    current: Option<(K, Range<usize>)>,
    /// Bytes kept in all.
    kept: usize,
}

impl<K: Copy + Eq + Hash> Inboxes<K> {
    /// Without any.
    pub(crate) fn new() -> Inboxes<K> {
        Inboxes { boxes: HashMap::new(), due: VecDeque::new(), current: None, kept: 0 }
    }

    /// Bytes kept in all.
    pub(crate) fn kept(&self) -> usize {
        self.kept
    }

    /// A new one. While it is `held`, nothing is told of it.
    pub(crate) fn open(&mut self, key: K, held: bool) {
        self.boxes.entry(key).or_default().held = held;
    }

    /// What was held is told from now on.
    pub(crate) fn release(&mut self, key: K) {
        if let Some(inbox) = self.boxes.get_mut(&key) {
            inbox.held = false;
            self.due.push_back(key);
        }
    }

    /// Forgets `key`: how many bytes nobody will consume.
    pub(crate) fn remove(&mut self, key: K) -> usize {
        let mut lost = 0;
        if let Some(inbox) = self.boxes.remove(&key) {
            lost += inbox.kept.len();
            self.kept -= inbox.kept.len();
        }
        if let Some((_, range)) = self.current.take_if(|(k, _)| *k == key) {
            lost += range.len();
        }
        lost
    }

    /// `range` arrived for `key`.
    pub(crate) fn arrived(&mut self, key: K, range: Range<usize>) -> Arrived {
        match self.boxes.get(&key) {
            Some(inbox) if inbox.discard => Arrived::Drop,
            Some(inbox) if !inbox.held && inbox.kept.is_empty() => {
                self.current = Some((key, range));
                Arrived::Tell
            }
            Some(_) => Arrived::Keep,
            None => Arrived::Drop,
        }
    }

    /// Keeps `bytes` for `key`.
    pub(crate) fn keep(&mut self, key: K, bytes: &[u8]) {
        let Some(inbox) = self.boxes.get_mut(&key) else { return };
        if inbox.discard || bytes.is_empty() {
            return;
        }
        if inbox.kept.is_empty() && !inbox.told {
            self.due.push_back(key);
        }
        inbox.kept.extend(bytes);
        self.kept += bytes.len();
    }

    /// Where the rest of what was told last lies, for [`settle`](Self::settle).
    pub(crate) fn unsettled(&self) -> Option<Range<usize>> {
        self.current.as_ref().map(|(_, range)| range.clone()).filter(|r| !r.is_empty())
    }

    /// Keeps the rest of what was told last: `bytes` are those at [`unsettled`](Self::unsettled).
    pub(crate) fn settle(&mut self, bytes: &[u8]) {
        let Some((key, _)) = self.current.take() else { return };
        if let Some(inbox) = self.boxes.get_mut(&key) {
            inbox.told = true;
        }
        self.keep(key, bytes);
    }

    /// `n` bytes were consumed: how many there really were.
    pub(crate) fn consumed(&mut self, key: K, n: usize) -> usize {
        let Some(inbox) = self.boxes.get_mut(&key) else { return 0 };
        if inbox.kept.is_empty() {
            let Some((_, range)) = self.current.as_mut().filter(|(k, _)| *k == key) else {
                return 0;
            };
            let n = n.min(range.len());
            range.start += n;
            if range.start >= range.end {
                self.current = None;
                if inbox.closed {
                    self.due.push_back(key);
                }
            }
            return n;
        }
        let n = n.min(inbox.kept.len());
        inbox.kept.drain(..n);
        self.kept -= n;
        if inbox.kept.is_empty() {
            inbox.told = false;
            if inbox.kept.capacity() > SPARE {
                inbox.kept = VecDeque::new();
            }
            if inbox.closed {
                self.due.push_back(key);
            }
        }
        n
    }

    /// The first contiguous piece of what is not consumed.
    pub(crate) fn pending(&self, key: K) -> &[u8] {
        self.boxes.get(&key).map(|inbox| inbox.kept.as_slices().0).unwrap_or_default()
    }

    /// Nothing more comes for `key`.
    pub(crate) fn close(&mut self, key: K) {
        if let Some(inbox) = self.boxes.get_mut(&key)
            && !std::mem::replace(&mut inbox.closed, true)
        {
            self.due.push_back(key);
        }
    }

    /// Nothing for `key` is wanted any more: how many bytes nobody will consume.
    pub(crate) fn discard(&mut self, key: K) -> usize {
        let Some(inbox) = self.boxes.get_mut(&key) else { return 0 };
        inbox.discard = true;
        let mut lost = std::mem::take(&mut inbox.kept).len();
        self.kept -= lost;
        if let Some((_, range)) = self.current.take_if(|(k, _)| *k == key) {
            lost += range.len();
        }
        self.due.push_back(key);
        lost
    }

    /// What is to be told next. What was told last must be settled.
    pub(crate) fn next(&mut self) -> Option<Notice<K>> {
        while let Some(key) = self.due.pop_front() {
            let Some(inbox) = self.boxes.get_mut(&key).filter(|i| !i.held) else { continue };
            if !inbox.kept.is_empty() {
                if !std::mem::replace(&mut inbox.told, true) {
                    return Some(Notice::Data(key));
                }
            } else if inbox.closed && !std::mem::replace(&mut inbox.closed_told, true) {
                return Some(Notice::Closed(key));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_at_once_is_never_kept() {
        let mut boxes = Inboxes::new();
        boxes.open(1, false);
        assert_eq!(boxes.arrived(1, 10..20), Arrived::Tell);
        assert_eq!(boxes.consumed(1, 10), 10);
        assert_eq!((boxes.unsettled(), boxes.kept(), boxes.next()), (None, 0, None));
        boxes.close(1);
        assert_eq!(boxes.next(), Some(Notice::Closed(1)));
        assert_eq!(boxes.next(), None);
        assert_eq!(boxes.arrived(2, 0..1), Arrived::Drop);
    }

    #[test]
    fn the_rest_is_kept_in_order_and_closed_comes_after_it() {
        let mut boxes = Inboxes::new();
        boxes.open(1, false);
        assert_eq!(boxes.arrived(1, 0..4), Arrived::Tell);
        assert_eq!(boxes.consumed(1, 1), 1);
        assert_eq!(boxes.unsettled(), Some(1..4));
        boxes.settle(b"bcd");
        assert_eq!(boxes.next(), None, "the owner knows");
        assert_eq!(boxes.arrived(1, 0..2), Arrived::Keep);
        boxes.keep(1, b"ef");
        boxes.close(1);
        assert_eq!(boxes.next(), None);
        assert_eq!(boxes.pending(1), b"bcdef");
        assert_eq!(boxes.consumed(1, 4), 4);
        assert_eq!(boxes.next(), None);
        assert_eq!(boxes.consumed(1, 9), 1);
        assert_eq!((boxes.next(), boxes.kept()), (Some(Notice::Closed(1)), 0));
    }

    #[test]
    fn what_was_held_is_told_when_it_is_released() {
        let mut boxes = Inboxes::new();
        boxes.open(1, true);
        assert_eq!(boxes.arrived(1, 0..1), Arrived::Keep);
        boxes.keep(1, b"a");
        boxes.close(1);
        assert_eq!(boxes.next(), None);
        boxes.release(1);
        assert_eq!(boxes.next(), Some(Notice::Data(1)));
        assert_eq!(boxes.consumed(1, 1), 1);
        assert_eq!(boxes.next(), Some(Notice::Closed(1)));
    }

    #[test]
    fn what_nobody_wants_is_counted_as_lost() {
        let mut boxes = Inboxes::new();
        boxes.open(1, false);
        boxes.open(2, false);
        boxes.keep(2, b"xyz");
        assert_eq!(boxes.arrived(1, 0..4), Arrived::Tell);
        assert_eq!(boxes.discard(1), 4);
        assert_eq!(boxes.arrived(1, 0..4), Arrived::Drop);
        assert_eq!(boxes.remove(2), 3);
        assert_eq!(boxes.kept(), 0);
        boxes.close(1);
        assert_eq!(boxes.next(), Some(Notice::Closed(1)));
        assert_eq!(boxes.next(), None);
    }
}
