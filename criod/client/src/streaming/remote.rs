//! A command in a container, or the container itself: its streams and ours.
//!
//! ```text
//!  upgrade ─► Ready ─► raw terminal, its size, input ─► … ─► Outcome ─► all output written ─► End
//!               input ends: stdin is closed, output goes on
//!               a signal: End at once; the connection is dropped, which the runtime notices
//! ```

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;

use stream::remote::{Channel, Client, ClientEvent, Outcome, Wants};
use tokio::sync::mpsc;

use super::connect::{Target, Upgraded};
use super::pipes::{Inlet, Outlet, Piece};
use super::terminal::Raw;
use super::wire::Wire;
use crate::console::{Console, Notice};
use crate::error::{Error, Result};

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By the other side.
    Outcome(Outcome),
    /// By a signal: its number.
    Signal(u8),
}

/// Holds a session with what `wants` names, until its end.
pub(crate) async fn converse(console: &mut Console, target: &Target, wants: Wants) -> Result<End> {
    let input = if wants.stdin { Some(console.input()?) } else { None };
    let screen = if wants.tty { console.screen() } else { None };
    let Upgraded { wire, response, rest } = target.upgrade(Client::request).await?;
    let mut client = Client::new(&response, wants).map_err(Error::StreamUpgrade)?;
    client.receive(&rest);
    let notices = if screen.is_some() { Some(console.notices()?) } else { None };
    let stderr = match wants.stderr {
        true => Some(Outlet::start("stderr", console.err.clone())?),
        false => None,
    };
    let stdout = Outlet::start("stdout", console.out.clone())?;
    let mut session = Session {
        wire,
        client,
        tty: wants.tty,
        input,
        inlet: None,
        held: None,
        stdout,
        stderr,
        screen,
        raw: None,
        notices,
        outcome: None,
        open: usize::from(wants.stdout) + usize::from(wants.stderr),
        gone: false,
    };
    session.run().await
}

struct Session {
    wire: Wire,
    client: Client,
    tty: bool,
    /// Until all streams are there.
    input: Option<File>,
    /// From then on, until there is no more, or no more is taken.
    inlet: Option<Inlet>,
    /// The piece that is being sent, and how much of it was.
    held: Option<(Piece, usize)>,
    stdout: Outlet,
    stderr: Option<Outlet>,
    screen: Option<File>,
    raw: Option<Raw>,
    notices: Option<mpsc::Receiver<Notice>>,
    outcome: Option<Outcome>,
    /// Outputs of which more may come.
    open: usize,
    /// Nothing more comes at all.
    gone: bool,
}

impl Session {
    async fn run(&mut self) -> Result<End> {
        loop {
            self.take_events()?;
            self.take_pending();
            self.send_input();
            if self.over() {
                self.stdout.close();
                if let Some(stderr) = &mut self.stderr {
                    stderr.close();
                }
                if self.stdout.done() && self.stderr.as_ref().is_none_or(Outlet::done) {
                    break;
                }
            }
            let reads = self.held.is_none() && self.client.room() > 0;
            tokio::select! {
                () = self.wire.turn(&mut self.client), if !self.gone => {}
                piece = next(&mut self.inlet), if reads && self.inlet.is_some() => match piece {
                    Some(piece) => self.held = Some((piece, 0)),
                    None => {
                        self.client.close();
                        self.inlet = None;
                    }
                },
                written = self.stdout.returned(), if !self.stdout.done() => {
                    written.map_err(Error::Output)?;
                }
                written = returned(&mut self.stderr), if self.stderr.is_some() => {
                    // As elsewhere, stderr that nobody reads fails nothing.
                    if written.is_err() {
                        self.stderr = None;
                    }
                }
                notice = heard(&mut self.notices), if self.notices.is_some() => match notice {
                    Some(Notice::Resized) => self.tell_size(),
                    Some(Notice::End(signal)) => return Ok(End::Signal(signal)),
                    None => self.notices = None,
                },
            }
        }
        match self.outcome.take() {
            Some(outcome) => Ok(End::Outcome(outcome)),
            None => Err(Error::StreamLost { source: self.wire.lost() }),
        }
    }

    fn take_events(&mut self) -> Result<()> {
        while !self.gone {
            let event = match self.client.event() {
                Ok(Some(event)) => event,
                Ok(None) => break,
                // What matters has been said.
                Err(_) if self.outcome.is_some() => ClientEvent::Gone,
                Err(e) => return Err(e.into()),
            };
            match event {
                ClientEvent::Ready => self.begin()?,
                ClientEvent::Data { channel, bytes } => {
                    let n = match (channel, &mut self.stderr) {
                        (Channel::Stderr, Some(stderr)) => stderr.offer(bytes),
                        (Channel::Stderr, None) => bytes.len(),
                        _ => self.stdout.offer(bytes),
                    };
                    self.client.consumed(channel, n);
                }
                ClientEvent::Closed { channel: Channel::Stdin } => {
                    (self.inlet, self.held) = (None, None);
                }
                ClientEvent::Closed { .. } => self.open -= 1,
                ClientEvent::Outcome(outcome) => self.outcome = Some(plain(outcome)),
                ClientEvent::Gone => self.gone = true,
            }
        }
        Ok(())
    }

    /// All streams are there.
    fn begin(&mut self) -> Result<()> {
        self.tell_size();
        if let Some(input) = self.input.take() {
            if self.tty && input.is_terminal() {
                self.raw = Some(Raw::enter(input.try_clone().map_err(Error::Input)?)?);
            }
            self.inlet = Some(Inlet::start(input)?);
        }
        Ok(())
    }

    /// Output for which there was no room when it came.
    fn take_pending(&mut self) {
        for channel in [Channel::Stdout, Channel::Stderr] {
            loop {
                let pending = self.client.pending(channel);
                let n = match (channel, &mut self.stderr) {
                    (Channel::Stderr, Some(stderr)) => stderr.offer(pending),
                    (Channel::Stderr, None) => pending.len(),
                    _ => self.stdout.offer(pending),
                };
                if n == 0 {
                    break;
                }
                self.client.consumed(channel, n);
            }
        }
    }

    fn send_input(&mut self) {
        while let Some(((buffer, filled), sent)) = self.held.take() {
            let n = self.client.send(&buffer[sent..filled]);
            if sent + n < filled {
                self.held = Some(((buffer, filled), sent + n));
                if n == 0 {
                    return;
                }
            } else if let Some(inlet) = &mut self.inlet {
                inlet.give(buffer);
            }
        }
    }

    /// Whether nothing more comes from the other side that is not in an outlet.
    fn over(&self) -> bool {
        let taken = |channel| self.client.pending(channel).is_empty();
        let ended = self.gone || (self.outcome.is_some() && self.open == 0);
        ended && taken(Channel::Stdout) && taken(Channel::Stderr)
    }

    fn tell_size(&mut self) {
        let Some(screen) = &self.screen else { return };
        // A terminal that is gone, or that does not know, has no size to tell.
        if let Ok(size) = sys::tty::size(screen.as_fd())
            && size != sys::tty::Size::default()
        {
            self.client.resize(size.columns, size.rows);
        }
    }
}

/// Without what servers put before every failure that is not the client's.
fn plain(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Failure(text) => {
            let plain = text.trim_start_matches("Internal error occurred: ");
            Outcome::Failure(plain.to_owned())
        }
        other => other,
    }
}

// What a branch of `select!` waits for is made before it is looked at whether it is to be waited
// for.

async fn next(inlet: &mut Option<Inlet>) -> Option<Piece> {
    inlet.as_mut()?.take().await
}

async fn returned(outlet: &mut Option<Outlet>) -> std::io::Result<()> {
    match outlet {
        Some(outlet) if !outlet.done() => outlet.returned().await,
        _ => std::future::pending().await,
    }
}

async fn heard(notices: &mut Option<mpsc::Receiver<Notice>>) -> Option<Notice> {
    notices.as_mut()?.recv().await
}
