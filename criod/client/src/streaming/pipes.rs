//! What may block, in threads: reading the input, writing the output.
//!
//! ```text
//!  Inlet   thread: read(2) ──full buffer──► take()      ◄──empty buffer── give()
//!  Outlet  thread: write(2) ◄──full buffer── offer()    ──empty buffer──► returned()
//! ```
//! Each has [`BUFFERS`] of [`SIZE`] bytes; where all are on their way, the other side waits. The
//! threads end with the channels, or with the process, which waits for neither.

use std::fs::File;
use std::io::{self, Read as _};
use std::thread;

use tokio::sync::mpsc;

use crate::console::Sink;
use crate::error::{Error, Result};

/// Buffers between a thread and the connection.
const BUFFERS: usize = 4;

/// Bytes of a buffer: as much as a frame holds.
const SIZE: usize = stream::spdy::FRAME_DATA;

/// A piece of the input: a buffer and how much of it is filled.
pub(super) type Piece = (Box<[u8]>, usize);

/// The input.
pub(super) struct Inlet {
    full: mpsc::Receiver<Piece>,
    empty: mpsc::UnboundedSender<Box<[u8]>>,
}

impl Inlet {
    /// Begins to read `from`.
    pub(super) fn start(mut from: File) -> Result<Inlet> {
        let (filled, full) = mpsc::channel(BUFFERS);
        let (empty, mut emptied) = mpsc::unbounded_channel::<Box<[u8]>>();
        for _ in 0..BUFFERS {
            // Its receiver is here.
            let _ = empty.send(vec![0; SIZE].into());
        }
        let read = move || {
            while let Some(mut buffer) = emptied.blocking_recv() {
                let n = loop {
                    match from.read(&mut buffer) {
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        // A terminal that was hung up has ended.
                        read => break read.unwrap_or_default(),
                    }
                };
                if n == 0 || filled.blocking_send((buffer, n)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("input".into()).spawn(read).map_err(Error::Mover)?;
        Ok(Inlet { full, empty })
    }

    /// The next piece, `None` when the input has ended. May be dropped at any time.
    pub(super) async fn take(&mut self) -> Option<Piece> {
        self.full.recv().await
    }

    /// Gives a buffer back.
    pub(super) fn give(&mut self, buffer: Box<[u8]>) {
        // The thread may have ended.
        let _ = self.empty.send(buffer);
    }
}

/// Where output goes.
pub(super) struct Outlet {
    /// `None` once no more will come.
    full: Option<mpsc::UnboundedSender<Vec<u8>>>,
    returned: mpsc::UnboundedReceiver<io::Result<Vec<u8>>>,
    empty: Vec<Vec<u8>>,
    done: bool,
}

impl Outlet {
    /// Begins to write to `to`.
    pub(super) fn start(name: &str, to: Sink) -> Result<Outlet> {
        // Bounded by the buffers there are.
        let (full, mut filled) = mpsc::unbounded_channel::<Vec<u8>>();
        let (give, returned) = mpsc::unbounded_channel();
        let write = move || {
            while let Some(mut buffer) = filled.blocking_recv() {
                let written = {
                    let mut to = to.lock();
                    to.write_all(&buffer).and_then(|()| to.flush())
                };
                buffer.clear();
                let failed = written.is_err();
                if give.send(written.map(|()| buffer)).is_err() || failed {
                    return;
                }
            }
        };
        thread::Builder::new().name(name.into()).spawn(write).map_err(Error::Mover)?;
        let empty = (0..BUFFERS).map(|_| Vec::with_capacity(SIZE)).collect();
        Ok(Outlet { full: Some(full), returned, empty, done: false })
    }

    /// Takes the start of `bytes`: how many.
    pub(super) fn offer(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while let Some(full) = &self.full
            && taken < bytes.len()
            && let Some(mut buffer) = self.empty.pop()
        {
            let n = (bytes.len() - taken).min(SIZE);
            buffer.extend_from_slice(&bytes[taken..taken + n]);
            taken += n;
            // A thread that has ended has said why.
            let _ = full.send(buffer);
        }
        taken
    }

    /// No more will come.
    pub(super) fn close(&mut self) {
        self.full = None;
    }

    /// Whether all was written that will come.
    pub(super) fn done(&self) -> bool {
        self.done
    }

    /// Waits until a buffer was written, or all of them ([`done`](Self::done)). May be dropped at
    /// any time.
    pub(super) async fn returned(&mut self) -> io::Result<()> {
        match self.returned.recv().await {
            Some(buffer) => self.empty.push(buffer?),
            None => self.done = true,
        }
        Ok(())
    }
}
