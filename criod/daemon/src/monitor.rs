//! criod's side of a monitor: forks it through the keeper, calls it, replaces it when it has died.
//!
//! ```text
//! call ──ok──▶ answer
//!   │ connection broken
//!   ▼
//! lock of the folder free? ──yes──▶ keeper forks a successor ──▶ call again
//!   │ no: it lives
//!   └──────────▶ connect anew ──▶ call again
//! ```
//! All calls but ExecSync may be repeated, so a broken connection is no error of theirs. A monitor that
//! lives and does not answer is one: it is stopped, or was killed and hangs in a disk's driver, and
//! cannot have a successor.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_monitor::monitor::*;
use api_monitor::service::MonitorClient;
use failpoint::step;
use nix::fcntl::{Flock, FlockArg};
use protobuf::Message;
use sys::seqpacket::Conn;
use tracing::{info, warn};
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use crate::error::{Error, Kind, Result};
use crate::keeper::{Keeper, Repeat};
use crate::node::{lock, on_disk};

/// Attempts to reach a monitor before the caller is told.
const ATTEMPTS: u32 = 5;

/// How long a call may go on before the monitor is asked whether it still serves, and how long it
/// may take to say so. Only one that is stopped, or cannot die, takes as long.
const SILENCE: Duration = Duration::from_secs(5);

/// How long a monitor may take to have room for a connection.
const SESSION: Duration = Duration::from_secs(5);

/// How long an upgrade may take: the monitor gives it up much earlier.
const UPGRADE: Duration = Duration::from_secs(30);

/// How often, and how far apart, the lock of an ending monitor is tried.
const SEAL_ROUNDS: u32 = 500;
const SEAL_PAUSE: Duration = Duration::from_millis(4);

/// A container's monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    id: String,
    dir: PathBuf,
    program: PathBuf,
    keeper: Keeper,
    client: tokio::sync::Mutex<Option<Connected>>,
    reached: tokio::sync::watch::Sender<bool>,
    /// What was last said to be lost.
    lost: std::sync::Mutex<String>,
}

#[derive(Clone)]
struct Connected {
    client: MonitorClient,
    number: u64,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "connection {}", self.number)
    }
}

/// Whether a monitor of this folder lives.
pub(crate) fn lives(dir: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).open(dir.join("lock")) else { return false };
    matches!(
        Flock::lock(file, FlockArg::LockExclusiveNonblock),
        Err((_, nix::errno::Errno::EWOULDBLOCK))
    )
}

/// Takes the lock of a folder that is to be removed, waiting a moment for a monitor that is ending.
///
/// While it is held no monitor can begin to live there: one that was forked late finds the lock
/// taken, or later the folder gone. `None`: a monitor lives.
pub(crate) fn seal(dir: &Path) -> Option<Flock<File>> {
    for _ in 0..SEAL_ROUNDS {
        let file = step!(
            "container: open its lock",
            OpenOptions::new().create(true).append(true).open(dir.join("lock"))
        )
        .ok()?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err(_) => std::thread::sleep(SEAL_PAUSE),
        }
    }
    None
}

/// What a monitor wrote down last, whether it lives or not.
pub(crate) fn last_state(dir: &Path) -> Option<StateResponse> {
    StateResponse::parse_from_bytes(&fs::read(dir.join("state")).ok()?).ok()
}

fn no_limit() -> Context {
    ttrpc::context::with_timeout(0)
}

/// The answer of a call, however long that takes, from a monitor that serves meanwhile.
async fn answered<T>(
    client: &MonitorClient,
    call: impl Future<Output = ttrpc::Result<T>>,
) -> ttrpc::Result<T> {
    let silent = async {
        let state = StateRequest::new();
        loop {
            tokio::time::sleep(SILENCE).await;
            let asked = client.state(no_limit(), &state);
            match tokio::time::timeout(SILENCE, asked).await {
                Ok(Ok(_)) => {}
                // The call itself hears of it.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        biased;
        answer = call => answer,
        () = silent => Err(ttrpc::Error::Others(SILENT.into())),
    }
}

/// Where a monitor is stopped, by a signal or by its disk, nothing is to be done but to say so.
const SILENT: &str = "it does not answer; is it stopped?";

fn is_silent(error: &ttrpc::Error) -> bool {
    matches!(error, ttrpc::Error::Others(text) if text == SILENT)
}

fn broken(error: &ttrpc::Error) -> bool {
    !matches!(error, ttrpc::Error::RpcStatus(_)) && !is_silent(error)
}

/// Runs a command once; a broken connection is an error, for nobody knows how far it came.
pub(crate) async fn exec_sync(
    id: &str,
    connection: UnixStream,
    request: &ExecSyncRequest,
) -> Result<ExecSyncResponse> {
    let socket = tokio::net::UnixStream::from_std(connection)
        .map_err(Error::system("wait for the monitor"))?;
    let client = ttrpc::r#async::Client::new(Socket::new(socket));
    let failed = |source| Kind::Monitor { id: id.to_owned(), action: "exec", source }.into();
    let client = MonitorClient::new(client);
    answered(&client, client.exec_sync(no_limit(), request)).await.map_err(failed)
}

impl Monitor {
    pub(crate) fn new(id: &str, dir: PathBuf, program: PathBuf, keeper: Keeper) -> Monitor {
        Monitor {
            id: id.to_owned(),
            dir,
            program,
            keeper,
            client: tokio::sync::Mutex::default(),
            reached: tokio::sync::watch::Sender::new(false),
            lost: std::sync::Mutex::default(),
        }
    }

    /// Writes the configuration and forks the first monitor.
    pub(crate) async fn begin(&self, config: &Config) -> Result<()> {
        let bytes = config
            .write_to_bytes()
            .map_err(|e| Kind::Record { path: self.dir.join("config"), problem: e.to_string() })?;
        let path = self.dir.join("config");
        // Whole or not at all: by it is seen whether there is anything for a monitor to do.
        let write = || {
            let temp = self.dir.join("config.new");
            step!("monitor: make folder", fs::create_dir_all(&self.dir))?;
            step!("monitor: write config", fs::write(&temp, bytes))?;
            step!("monitor: rename config", fs::rename(&temp, &path))
        };
        on_disk(write).map_err(Error::file("write", &path))?;
        self.fork().await
    }

    /// Forks a monitor. If one lives after all, the new one finds the lock taken and ends.
    async fn fork(&self) -> Result<()> {
        let path = self.dir.join("monitor.sock");
        let listen = || {
            match step!("monitor: remove old socket", fs::remove_file(&path)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let (short, _folder) = sys::seqpacket::short_path(&path)?;
            let listener = step!("monitor: listen", UnixListener::bind(short))?;
            let log = self.dir.join("monitor.log");
            let log = step!(
                "monitor: open its log",
                OpenOptions::new().create(true).append(true).open(log)
            )?;
            Ok((listener, log))
        };
        let (listener, log) = on_disk(listen).map_err(Error::file("listen at", &path))?;
        let command = vec![
            self.program.to_string_lossy().into_owned(),
            "--dir".into(),
            self.dir.to_string_lossy().into_owned(),
        ];
        // A second one finds the lock taken.
        let again = Repeat::Always;
        step!(
            "monitor: fork",
            self.keeper.fork(&self.id, command, listener.into(), log.into(), again).await
        )?;
        Ok(())
    }

    async fn connected(&self) -> Result<Connected> {
        let mut held = self.client.lock().await;
        if let Some(connected) = &*held {
            return Ok(connected.clone());
        }
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let path = self.dir.join("monitor.sock");
        let (short, _folder) =
            sys::seqpacket::short_path(&path).map_err(Error::file("open", &path))?;
        let address = format!("unix://{}", short.display());
        let client = ttrpc::r#async::Client::connect(&address)
            .await
            .map_err(|source| self.error("connect", source))?;
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let connected = Connected { client: MonitorClient::new(client), number };
        *held = Some(connected.clone());
        self.reached.send_replace(true);
        Ok(connected)
    }

    /// After a broken connection: forgets it, and replaces a monitor that is dead.
    async fn mend(&self, number: Option<u64>) -> Result<()> {
        let mut held = self.client.lock().await;
        if held.as_ref().map(|c| c.number) != number {
            return Ok(());
        }
        *held = None;
        if on_disk(|| lives(&self.dir)) {
            return Ok(());
        }
        if self.deleted() {
            let text = format!("container {} has been deleted", self.id);
            return Err(Error::precondition(text));
        }
        if !self.exists() {
            return Err(Error::precondition(format!(
                "container {}: the folder of its monitor is gone",
                self.id
            )));
        }
        warn!(container = self.id, "monitor has died; starting a successor");
        self.fork().await?;
        info!(container = self.id, "successor started");
        Ok(())
    }

    fn error(&self, action: &'static str, source: ttrpc::Error) -> Error {
        Kind::Monitor { id: self.id.clone(), action, source }.into()
    }

    async fn call<T, F: Future<Output = ttrpc::Result<T>>>(
        &self,
        action: &'static str,
        call: impl Fn(MonitorClient) -> F,
    ) -> Result<T> {
        let call = |client: MonitorClient| {
            let call = call(client.clone());
            async move { answered(&client, call).await }
        };
        self.repeated(action, call).await
    }

    /// Makes a call, again where its connection broke.
    async fn repeated<T, F: Future<Output = ttrpc::Result<T>>>(
        &self,
        action: &'static str,
        call: impl Fn(MonitorClient) -> F,
    ) -> Result<T> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (number, failed) = match self.connected().await {
                Ok(Connected { client, number }) => match call(client).await {
                    Ok(answer) => return Ok(answer),
                    Err(e) if broken(&e) => (Some(number), self.error(action, e)),
                    Err(e) => return Err(self.error(action, e)),
                },
                Err(e) => (None, e),
            };
            if attempt >= ATTEMPTS {
                return Err(failed);
            }
            self.mend(number).await?;
            if attempt > 1 {
                tokio::time::sleep(Duration::from_millis(20 << attempt)).await;
            }
        }
    }

    pub(crate) async fn create(&self) -> Result<i32> {
        let request = CreateRequest::new();
        let call = |c: MonitorClient| {
            let request = request.clone();
            async move { c.create(no_limit(), &request).await }
        };
        step!("monitor: create", self.call("create", call).await).map(|a| a.pid)
    }

    pub(crate) async fn start(&self) -> Result<i64> {
        let request = StartRequest::new();
        let call = |c: MonitorClient| {
            let request = request.clone();
            async move { c.start(no_limit(), &request).await }
        };
        step!("monitor: start", self.call("start", call).await).map(|a| a.started_at)
    }

    pub(crate) async fn stop(&self, signal: i32, timeout: Duration) -> Result<()> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = StopRequest { signal, timeout_ms, ..StopRequest::new() };
        let call = |c: MonitorClient| {
            let request = request.clone();
            async move { c.stop(no_limit(), &request).await }
        };
        step!("monitor: stop", self.call("stop", call).await).map(|_| ())
    }

    /// Waits until it has been reached once by whatever call.
    pub(crate) async fn reached(&self) {
        let mut reached = self.reached.subscribe();
        // The sender lives as long as this does.
        let _ = reached.wait_for(|r| *r).await;
    }

    /// Waits for the container's end, through any number of monitors, and for one that is stopped.
    ///
    /// The connection that this waits on is also what tells at once that a monitor has died.
    pub(crate) async fn wait(&self) -> Result<StateResponse> {
        let request = WaitRequest::new();
        loop {
            let call = |c: MonitorClient| {
                let request = request.clone();
                async move {
                    let state = StateRequest::new();
                    let state = tokio::time::timeout(SILENCE, c.state(no_limit(), &state));
                    if let Ok(Ok(state)) = state.await {
                        self.say_lost(&state);
                    }
                    c.wait(no_limit(), &request).await
                }
            };
            match self.repeated("wait", call).await {
                Ok(state) => return Ok(state),
                Err(e) => {
                    if !self.exists() || self.deleted() {
                        return Err(e);
                    }
                    warn!("{}", e.chain());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Says once what a monitor could not take over.
    fn say_lost(&self, state: &StateResponse) {
        let mut said = lock(&self.lost);
        if !state.lost.is_empty() && *said != state.lost {
            warn!(container = self.id, "{}", state.lost);
        }
        said.clone_from(&state.lost);
    }

    pub(crate) async fn reopen_log(&self) -> Result<()> {
        let request = ReopenLogRequest::new();
        let call = |c: MonitorClient| {
            let request = request.clone();
            async move { c.reopen_log(no_limit(), &request).await }
        };
        step!("monitor: reopen log", self.call("reopen the log", call).await).map(|_| ())
    }

    /// Has the runtime change what the container may use: a `linux.resources` object, as JSON.
    pub(crate) async fn update(&self, resources: Vec<u8>) -> Result<()> {
        let request = UpdateRequest { resources, ..UpdateRequest::new() };
        let call = |c: MonitorClient| {
            let request = request.clone();
            async move { c.update(no_limit(), &request).await }
        };
        step!("monitor: update", self.call("update", call).await).map(|_| ())
    }

    /// A connection for one call. A monitor that has died is replaced.
    pub(crate) async fn connection(&self) -> Result<UnixStream> {
        let path = self.dir.join("monitor.sock");
        let connect = || async {
            let (short, _folder) = sys::seqpacket::short_path(&path)?;
            tokio::net::UnixStream::connect(short).await?.into_std()
        };
        if let Ok(connection) = connect().await {
            return Ok(connection);
        }
        self.state().await?;
        connect().await.map_err(Error::file("connect to", &path))
    }

    /// A connection to the monitor's other socket, which carries descriptors, with a request on it
    /// that whoever gets it may begin. A monitor that has died is replaced.
    pub(crate) async fn session(&self, fields: Vec<&str>, fds: Vec<OwnedFd>) -> Result<OwnedFd> {
        let path = self.dir.join("stream.sock");
        let ask = || {
            let conn = Conn::connect(&path, SESSION)?;
            conn.send(&fields, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
            // It may wait for as long as its client does.
            conn.patient(Duration::ZERO)?;
            Ok(OwnedFd::from(conn))
        };
        let failed = |e| Error::file("connect to", &path)(e);
        if let Ok(socket) = on_disk(ask) {
            return Ok(socket);
        }
        self.state().await?;
        on_disk(ask).map_err(failed)
    }

    /// Has the monitor become a program in place. Asked once: one that dies of it is replaced, by
    /// its installed program, and that is told.
    pub(crate) async fn upgrade(&self, program: &Path) -> Result<()> {
        let program = program.to_string_lossy().into_owned();
        let request = UpgradeRequest { program, ..UpgradeRequest::new() };
        let Connected { client, number } = self.connected().await?;
        let limit = ttrpc::context::with_duration(UPGRADE);
        match client.upgrade(limit, &request).await {
            Err(e) if broken(&e) => {
                self.mend(Some(number)).await?;
                Err(self.error("upgrade", e))
            }
            Err(e) => Err(self.error("upgrade", e)),
            Ok(_) => Ok(()),
        }
    }

    /// Whether there is one.
    pub(crate) fn lives(&self) -> bool {
        lives(&self.dir)
    }

    /// Where the container stands.
    async fn state(&self) -> Result<StateResponse> {
        let request = StateRequest::new();
        let call = |c: MonitorClient| {
            let request = request.clone();
            async move { c.state(no_limit(), &request).await }
        };
        self.call("state", call).await
    }

    /// Whether the container has been deleted, so that there is nothing left to monitor.
    fn deleted(&self) -> bool {
        last_state(&self.dir).is_some_and(|s| s.phase.enum_value() == Ok(Phase::PHASE_DELETED))
    }

    /// Whether there is what a monitor needs to live.
    pub(crate) fn exists(&self) -> bool {
        self.dir.join("config").exists()
    }

    /// Deletes the container and ends the monitor. A monitor that is gone has ended.
    pub(crate) async fn delete(&self) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        let deleted = || self.deleted();
        if deleted() && !on_disk(|| lives(&self.dir)) {
            return Ok(());
        }
        let request = DeleteRequest::new();
        let call = |c: MonitorClient| {
            let request = request.clone();
            async move {
                match c.delete(no_limit(), &request).await {
                    // It answers, then ends; the answer may be lost with it.
                    Err(e) if broken(&e) && deleted() => Ok(DeleteResponse::new()),
                    other => other,
                }
            }
        };
        step!("monitor: delete", self.call("delete", call).await).map(|_| ())
    }
}
