//! Where output goes, whether a person sees it, and how that person interrupts.
//!
//! A verb never touches the process's own stdout and stderr, so that tests can look at what it
//! prints. The sinks are shared, because a thread that prints a log may be stuck in a write while
//! the verb still has to answer Ctrl-C.

use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// A place for output that threads share.
#[derive(Clone)]
pub(crate) struct Sink(Arc<Mutex<dyn Write + Send>>);

impl Sink {
    pub(crate) fn new(to: impl Write + Send + 'static) -> Sink {
        Sink(Arc::new(Mutex::new(to)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, dyn Write + Send + 'static> {
        // A panic during a write leaves at worst half a line.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where output goes and interruptions come from.
pub(crate) struct Console {
    pub(crate) out: Sink,
    pub(crate) err: Sink,
    /// Whether stderr is a terminal, where a line can be drawn anew.
    pub(crate) lively: bool,
    /// The present, where it is not the clock's.
    pub(crate) now: Option<Timestamp>,
    /// Where the logs of pods lie that were given no other place.
    pub(crate) pod_logs: PathBuf,
    /// Ctrl-C, where it is not the process's signals.
    pub(crate) interrupts: Option<mpsc::Receiver<()>>,
}

impl Console {
    /// The process's own.
    pub(crate) fn stdio() -> Console {
        Console {
            out: Sink::new(io::BufWriter::new(io::stdout())),
            err: Sink::new(io::stderr()),
            lively: io::stderr().is_terminal(),
            now: None,
            pod_logs: "/var/log/crio/pods".into(),
            interrupts: None,
        }
    }

    /// The present.
    pub(crate) fn now(&self) -> Timestamp {
        self.now.unwrap_or_else(Timestamp::now)
    }

    /// Prints for the verb's reader.
    pub(crate) fn print(&self, text: &str) -> Result<()> {
        self.write(text.as_bytes())
    }

    /// Prints bytes as they are.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        self.out.lock().write_all(bytes).map_err(Error::Output)
    }

    /// Prints a message as JSON.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).map_err(Error::Json)?;
        text.push('\n');
        self.print(&text)
    }

    /// Tells on stderr what goes on. Failures to do so fail nothing.
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(self.err.lock(), "{text}");
    }

    /// Says on stderr what went wrong.
    pub(crate) fn complain(&self, text: &str) {
        self.note(&format!("error: {text}"));
    }

    /// Gets out what is buffered.
    pub(crate) fn flush(&self) -> Result<()> {
        self.out.lock().flush().map_err(Error::Output)
    }

    /// From now on SIGINT and SIGTERM no longer end the process, but come from this.
    ///
    /// Must be called within a tokio runtime.
    pub(crate) fn interrupts(&mut self) -> Result<mpsc::Receiver<()>> {
        if let Some(given) = self.interrupts.take() {
            return Ok(given);
        }
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
        let (to, from) = mpsc::channel(4);
        // Ends with the receiver, or with the process.
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    () = to.closed() => return,
                }
                // A full channel holds enough of them.
                let _ = to.try_send(());
            }
        });
        Ok(from)
    }
}
