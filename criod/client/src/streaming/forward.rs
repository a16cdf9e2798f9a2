//! Local connections through one connection to the pod.
//!
//! ```text
//!  listeners ─ accept ─► open(port) ─► local ◄──► SPDY streams ◄──► the pod's port
//!
//!  local readable and room on its stream:  socket ─► the connection's output buffer
//!  data on its stream:                     the connection's input buffer ─► socket
//! ```
//! One task holds all of them, without a buffer for each: what a socket does not take stays with the
//! protocol, whose windows stop the other side. Each socket has a bell of its own that says which of
//! them can go on, so that thousands of idle ones cost nothing.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use stream::forward::{Client, ClientEvent, Id};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::connect::{Target, Upgraded};
use super::wire::Wire;
use crate::console::Console;
use crate::error::{Error, Result, one_line};

/// Accepted connections that wait for a stream; further ones wait in the kernel.
const ACCEPTED: usize = 16;

/// Reads of one socket before it is the turn of others.
const READS: usize = 4;

/// How long to wait where no further descriptor can be had.
const PAUSE: Duration = Duration::from_millis(100);

/// Forwards what `listeners` accept to their ports of the pod, until the connection is lost.
/// `begun` is called once it is there.
pub(crate) async fn forward(
    console: &Console,
    target: &Target,
    listeners: Vec<(TcpListener, u16)>,
    begun: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let Upgraded { wire, response, rest } = target.upgrade(Client::request).await?;
    let mut client = Client::new(&response).map_err(Error::StreamUpgrade)?;
    client.receive(&rest);
    begun()?;
    let (to, accepted) = mpsc::channel(ACCEPTED);
    let mut accepting = JoinSet::new();
    for (listener, port) in listeners {
        accepting.spawn(accept(listener, port, to.clone()));
    }
    let forwarding = Forwarding {
        wire,
        client,
        locals: HashMap::new(),
        stalled: VecDeque::new(),
        waiting: None,
        board: Arc::default(),
        gone: false,
    };
    forwarding.run(console, accepted).await
}

async fn accept(listener: TcpListener, port: u16, to: mpsc::Sender<(TcpStream, u16)>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                if to.send((socket, port)).await.is_err() {
                    return;
                }
            }
            // One that was given up already, or a limit that others may soon free.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// A local connection.
struct Local {
    socket: TcpStream,
    port: u16,
    bell: Arc<Bell>,
    waker: Waker,
    /// The server has accepted its stream.
    ready: bool,
    /// It sends nothing more.
    ended: bool,
    /// The pod sends nothing more.
    closed: bool,
    /// It is among those that wait for room.
    stalled: bool,
}

impl Local {
    /// Writes what the socket takes of `bytes`: how many, and whether it is broken. Where it takes
    /// no more, the bell rings once it does.
    fn write(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut cx = Context::from_waker(&self.waker);
        let mut taken = 0;
        // Only a write that has to wait has the bell rung.
        while taken < bytes.len() {
            match Pin::new(&mut self.socket).poll_write(&mut cx, &bytes[taken..]) {
                Poll::Ready(Ok(n)) if n > 0 => taken += n,
                Poll::Ready(_) => return (taken, true),
                Poll::Pending => break,
            }
        }
        (taken, false)
    }
}

struct Forwarding {
    wire: Wire,
    client: Client,
    locals: HashMap<Id, Local>,
    /// Those that may have something to send for which there was no room.
    stalled: VecDeque<Id>,
    /// One for which the server takes no stream yet.
    waiting: Option<(TcpStream, u16)>,
    board: Arc<Board>,
    gone: bool,
}

impl Forwarding {
    async fn run(
        mut self,
        console: &Console,
        mut accepted: mpsc::Receiver<(TcpStream, u16)>,
    ) -> Result<()> {
        let board = self.board.clone();
        loop {
            self.take_events(console)?;
            if self.gone {
                return Err(Error::StreamLost { source: self.wire.lost() });
            }
            for _ in 0..self.stalled.len() {
                let Some(id) = self.stalled.pop_front() else { break };
                if let Some(local) = self.locals.get_mut(&id) {
                    local.stalled = false;
                }
                self.serve(id);
            }
            if let Some((socket, port)) = self.waiting.take() {
                self.open(socket, port);
            }
            tokio::select! {
                () = self.wire.turn(&mut self.client) => {}
                rung = board.rung() => rung.into_iter().for_each(|id| self.serve(id)),
                Some((socket, port)) = accepted.recv(), if self.waiting.is_none() => {
                    self.open(socket, port);
                }
            }
        }
    }

    fn open(&mut self, socket: TcpStream, port: u16) {
        let Some(id) = self.client.open(port) else {
            self.waiting = Some((socket, port));
            return;
        };
        // Without it things are slower, not wrong.
        let _ = socket.set_nodelay(true);
        let bell = Arc::new(Bell { id, rung: AtomicBool::new(false), board: self.board.clone() });
        let waker = Waker::from(bell.clone());
        let local = Local {
            socket,
            port,
            bell,
            waker,
            ready: false,
            ended: false,
            closed: false,
            stalled: false,
        };
        self.locals.insert(id, local);
    }

    fn take_events(&mut self, console: &Console) -> Result<()> {
        while let Some(event) = self.client.event()? {
            match event {
                ClientEvent::Ready { id } => {
                    if let Some(local) = self.locals.get_mut(&id) {
                        local.ready = true;
                    }
                    self.serve(id);
                }
                ClientEvent::Data { id, bytes } => {
                    let Some(local) = self.locals.get_mut(&id) else { continue };
                    let (taken, broken) = local.write(bytes);
                    self.client.consumed(id, taken);
                    if broken {
                        self.give_up(id);
                    }
                }
                ClientEvent::Closed { id } => {
                    let Some(local) = self.locals.get_mut(&id) else { continue };
                    let mut cx = Context::from_waker(&local.waker);
                    // Never waits for a TCP socket; one that is broken is noticed when it is read.
                    let _ = Pin::new(&mut local.socket).poll_shutdown(&mut cx);
                    local.closed = true;
                    if local.ended {
                        self.locals.remove(&id);
                    }
                }
                ClientEvent::Failed { id, text } => {
                    if let Some(local) = self.locals.remove(&id) {
                        let text = one_line(&text);
                        console.complain(&format!("cannot forward to port {}: {text}", local.port));
                    }
                }
                ClientEvent::Reset { id } => {
                    if let Some(local) = self.locals.remove(&id) {
                        // So that the reset goes on to whoever connected.
                        let _ = local.socket.set_zero_linger();
                    }
                }
                ClientEvent::Gone => self.gone = true,
            }
        }
        Ok(())
    }

    fn give_up(&mut self, id: Id) {
        self.locals.remove(&id);
        self.client.reset(id);
    }

    /// Moves what can be moved.
    fn serve(&mut self, id: Id) {
        let Some(local) = self.locals.get_mut(&id) else { return };
        local.bell.rung.store(false, Ordering::Release);
        loop {
            let pending = self.client.pending(id);
            if pending.is_empty() {
                break;
            }
            let (taken, broken) = local.write(pending);
            let all = taken == pending.len();
            self.client.consumed(id, taken);
            if broken {
                return self.give_up(id);
            }
            if !all {
                break;
            }
        }
        let mut reads = 0;
        while local.ready && !local.ended {
            let space = self.client.send_space(id);
            if space.is_empty() {
                if !std::mem::replace(&mut local.stalled, true) {
                    self.stalled.push_back(id);
                }
                return;
            }
            if reads == READS {
                local.waker.wake_by_ref();
                return;
            }
            reads += 1;
            let mut buffer = ReadBuf::new(space);
            let mut cx = Context::from_waker(&local.waker);
            match Pin::new(&mut local.socket).poll_read(&mut cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    local.ended = true;
                    self.client.close(id);
                    if local.closed {
                        self.locals.remove(&id);
                        return;
                    }
                }
                Poll::Ready(Ok(())) => {
                    let n = buffer.filled().len();
                    self.client.send_filled(id, n);
                }
                Poll::Ready(Err(_)) => return self.give_up(id),
                Poll::Pending => return,
            }
        }
    }
}

/// Wakes the task for one socket, and says which.
struct Bell {
    id: Id,
    rung: AtomicBool,
    board: Arc<Board>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = {
            let mut board = self.board.lock();
            board.rung.push(self.id);
            board.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Which bells were rung.
#[derive(Default)]
struct Board(Mutex<Rung>);

#[derive(Default)]
struct Rung {
    rung: Vec<Id>,
    /// Who waits for it.
    task: Option<Waker>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Rung> {
        // Nothing that holds it can panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for some to be rung. May be dropped at any time.
    async fn rung(&self) -> Vec<Id> {
        poll_fn(|cx| {
            let mut board = self.lock();
            if board.rung.is_empty() {
                board.task = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(std::mem::take(&mut board.rung))
        })
        .await
    }
}
