//! Where output goes, whether a person sees it, and how that person interrupts.
//!
//! A verb never touches the process's own stdout and stderr, so that tests can look at what it
//! prints. The sinks are shared, because a thread that prints a log may be stuck in a write while
//! the verb still has to answer Ctrl-C.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd;
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

/// What concerns whoever has given the terminal away to a command in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The terminal has another size.
    Resized,
    /// A signal that ends the process: its number.
    End(u8),
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
    /// What commands in containers read, where it is not the process's stdin.
    pub(crate) input: Option<File>,
    /// Signals as [`Console::notices`] tells them, where they are not the process's.
    pub(crate) notices: Option<mpsc::Receiver<Notice>>,
}

impl Console {
    /// The process's own.
    pub(crate) fn stdio() -> Console {
        Console {
            out: stdout(),
            err: Sink::new(io::stderr()),
            lively: io::stderr().is_terminal(),
            now: None,
            pod_logs: "/var/log/crio/pods".into(),
            interrupts: None,
            input: None,
            notices: None,
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

    /// What a command in a container reads, past the buffer of the process's stdin.
    pub(crate) fn input(&self) -> Result<File> {
        let of_process = || io::stdin().as_fd().try_clone_to_owned().map(File::from);
        match &self.input {
            Some(given) => given.try_clone(),
            None => of_process(),
        }
        .map_err(Error::Input)
    }

    /// The terminal whose size a command in a container is told.
    pub(crate) fn screen(&self) -> Option<File> {
        if let Some(given) = &self.input {
            return given.try_clone().ok().filter(File::is_terminal);
        }
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let mut own = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].into_iter();
        let terminal = own.find(|fd| fd.is_terminal())?;
        terminal.try_clone_to_owned().ok().map(File::from)
    }

    /// From now on these signals no longer do what they did, but come from this.
    ///
    /// Must be called within a tokio runtime.
    pub(crate) fn notices(&mut self) -> Result<mpsc::Receiver<Notice>> {
        if let Some(given) = self.notices.take() {
            return Ok(given);
        }
        let ending = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
        ];
        listen(&ending)
    }
}

/// Notices of the terminal's size, and of signals that are to `end` something.
fn listen(end: &[SignalKind]) -> Result<mpsc::Receiver<Notice>> {
    let (to, from) = mpsc::channel(4);
    let resized = (SignalKind::window_change(), Notice::Resized);
    // Signals have small numbers.
    let number = |kind: &SignalKind| u8::try_from(kind.as_raw_value()).unwrap_or_default();
    let ends = end.iter().map(|kind| (*kind, Notice::End(number(kind))));
    let mut heard = Vec::new();
    for (kind, notice) in std::iter::once(resized).chain(ends) {
        heard.push((signal(kind).map_err(Error::Signals)?, notice));
    }
    for (mut signals, notice) in heard {
        let to = to.clone();
        // Ends with the receiver, or with the process.
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = signals.recv() => {}
                    () = to.closed() => return,
                }
                if to.send(notice).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(from)
}

/// The process's stdout with a buffer of our own: that of the standard library looks for the ends
/// of lines in all that passes.
fn stdout() -> Sink {
    match io::stdout().as_fd().try_clone_to_owned() {
        Ok(fd) => Sink::new(io::BufWriter::new(File::from(fd))),
        Err(_) => Sink::new(io::BufWriter::new(io::stdout())),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn signals_become_notices() {
        // One that nothing else in this process needs.
        let mut notices = listen(&[SignalKind::user_defined1()]).unwrap();
        raise(Signal::SIGWINCH).unwrap();
        assert_eq!(notices.recv().await, Some(Notice::Resized));
        raise(Signal::SIGUSR1).unwrap();
        assert_eq!(notices.recv().await, Some(Notice::End(Signal::SIGUSR1 as u8)));
    }
}
