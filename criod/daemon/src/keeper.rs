//! criod's side of the keeper: starts it where nobody else does, has it fork monitors and streams,
//! and hold what is criod's own: listening sockets, and its ends of the streams' control sockets.
//!
//! Where a service manager runs the keeper it is there before criod; otherwise criod starts it, in
//! a session of its own, and starts another when it has died. Calls are short and block, so they
//! run on the blocking pool.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use failpoint::step;
use sys::seqpacket::{Conn, Message};
use tracing::{info, warn};

use crate::error::{Kind, Result};
use crate::node::lock;

/// How long the keeper may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an upgrade may take: the keeper gives it up much earlier.
const UPGRADE: Duration = Duration::from_secs(15);
/// How long a keeper that was started may take to listen.
const START: Duration = Duration::from_secs(5);
/// How long a keeper that was started just now may take to answer before it is looked for again.
const GREETING: Duration = Duration::from_millis(500);
/// How long a service manager is given to start the one that it runs. Two keepers would take each other's
/// place, and monitors be forked outside the cgroup of its service.
const MANAGED: Duration = Duration::from_secs(3);
/// How long the thread that watches the keeper sleeps at a time.
const IDLE: Duration = Duration::from_secs(3600);
/// After a keeper that could not be started.
const RETRY: Duration = Duration::from_secs(1);
/// Under which name the keeper holds what is criod's own.
const OWN: &str = "criod";

/// How to start a keeper.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) program: PathBuf,
    pub(crate) socket: PathBuf,
    /// Where what it says goes.
    pub(crate) log: PathBuf,
    /// Folders of the cgroup that it and the monitors live in.
    pub(crate) cgroups: Vec<PathBuf>,
}

/// Whether a call whose answer was lost may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Always,
    /// It may have been done, and must not be done twice.
    Never,
}

/// The keeper. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Keeper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Options,
    conn: Mutex<Option<Conn>>,
    /// What criod has left there itself (for whom, under which name), to be left with a new keeper,
    /// too.
    own: Mutex<Vec<(String, String, OwnedFd)>>,
}

impl Keeper {
    /// Connects, starting the keeper where there is none.
    pub(crate) async fn start(options: Options) -> Result<Keeper> {
        let keeper =
            Keeper(Arc::new(Inner { options, conn: Mutex::new(None), own: Mutex::default() }));
        keeper.call(vec!["PING".into()], Vec::new(), "ping").await?;
        tokio::spawn(keeper.clone().guard());
        Ok(keeper)
    }

    /// Replaces a keeper that has died, so that monitors can hand their spares over again.
    ///
    /// A connection that nobody writes to ends when the keeper does; one thread waits for that.
    async fn guard(self) {
        loop {
            let socket = self.0.options.socket.clone();
            let (tell, gone) = tokio::sync::oneshot::channel();
            // A thread of its own, as it would keep the pool from ending.
            let watch = std::thread::Builder::new().name("keeper-watch".into()).spawn(move || {
                let watched = Conn::connect(&socket, IDLE).map(|idle| {
                    while matches!(idle.recv(), Err(e) if e.kind() == io::ErrorKind::WouldBlock) {}
                });
                let _ = tell.send(watched);
            });
            if let Err(e) = watch {
                warn!("keeper is not watched: {e}");
            }
            if matches!(gone.await, Ok(Ok(()))) {
                warn!("keeper has gone");
            }
            if let Err(e) = self.call(vec!["PING".into()], Vec::new(), "ping").await {
                warn!("{}", e.chain());
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn call(
        &self,
        fields: Vec<String>,
        fds: Vec<OwnedFd>,
        action: &'static str,
    ) -> Result<Message> {
        self.ask(fields, fds, action, Repeat::Always).await
    }

    async fn ask(
        &self,
        fields: Vec<String>,
        fds: Vec<OwnedFd>,
        action: &'static str,
        repeat: Repeat,
    ) -> Result<Message> {
        let inner = Arc::clone(&self.0);
        let work = move || inner.call(&fields, &fds, repeat);
        let done = tokio::task::spawn_blocking(work).await.map_err(|_| Kind::Panicked)?;
        Ok(done.map_err(|source| Kind::Keeper { action, source })?)
    }

    /// Forks a program for `id`. Returns its pid and its pidfd.
    ///
    /// With [`Repeat::Always`] there may be two of it: only for a program that sees to it that the
    /// second one ends.
    pub(crate) async fn fork(
        &self,
        id: &str,
        command: Vec<String>,
        stdin: OwnedFd,
        stderr: OwnedFd,
        repeat: Repeat,
    ) -> Result<(i32, OwnedFd)> {
        const ACTION: &str = "fork";
        let mut fields = vec!["FORK".into(), id.to_owned()];
        fields.extend(command);
        let mut answer = self.ask(fields, vec![stdin, stderr], ACTION, repeat).await?;
        let pid = answer.fields.first().and_then(|p| p.parse().ok());
        pid.zip(answer.fds.pop()).ok_or_else(|| {
            let source = io::Error::from(io::ErrorKind::InvalidData);
            Kind::Keeper { action: ACTION, source }.into()
        })
    }

    /// Forgets what is held for a container whose monitor cannot say so itself.
    pub(crate) async fn forget(&self, id: &str) -> Result<()> {
        self.call(vec!["DROP".into(), id.to_owned()], Vec::new(), "forget").await.map(|_| ())
    }

    /// Ids that it holds something for, but criod's own.
    pub(crate) async fn held(&self) -> Result<Vec<String>> {
        let mut ids: Vec<String> = Vec::new();
        loop {
            let after = ids.last().cloned().unwrap_or_default();
            let page = self.call(vec!["LIST".into(), after], Vec::new(), "list").await?.fields;
            if page.is_empty() {
                ids.retain(|id| id != OWN);
                return Ok(ids);
            }
            ids.extend(page);
        }
    }

    /// What it holds for `id`, by name.
    pub(crate) async fn get(&self, id: &str) -> Result<Vec<(String, OwnedFd)>> {
        let answer = self.call(vec!["GET".into(), id.to_owned()], Vec::new(), "get").await?;
        Ok(answer.fields.into_iter().zip(answer.fds).collect())
    }

    /// Has it hold a descriptor for `id`, and every keeper that comes after it.
    pub(crate) async fn hold(&self, id: &str, name: &str, fd: OwnedFd) -> Result<()> {
        let again = fd.try_clone().map_err(|source| Kind::Keeper { action: "hold", source })?;
        lock(&self.0.own).push((id.to_owned(), name.to_owned(), again));
        let fields = vec!["SPARE".into(), id.to_owned(), name.to_owned()];
        self.call(fields, vec![fd], "hold").await.map(|_| ())
    }

    /// Ends what [`Keeper::hold`] began for all names of `id`.
    pub(crate) async fn release(&self, id: &str) -> Result<()> {
        lock(&self.0.own).retain(|(of, _, _)| of != id);
        self.forget(id).await
    }

    /// A listening socket that an earlier criod left there under this name. Others whose name
    /// begins with `kind` are let go of: what they listened to has been moved or replaced.
    pub(crate) async fn listener(&self, kind: &str, name: &str) -> Result<Option<OwnedFd>> {
        let mut found = None;
        for (held, fd) in self.get(OWN).await? {
            if held == name {
                found = Some(fd);
            } else if held.starts_with(kind) {
                self.call(vec!["DROP".into(), OWN.into(), held], Vec::new(), "drop").await?;
            }
        }
        Ok(found)
    }

    /// Leaves a listening socket there for a later criod.
    pub(crate) async fn keep(&self, name: &str, fd: OwnedFd) -> Result<()> {
        self.hold(OWN, name, fd).await
    }
}

impl Inner {
    fn call(&self, fields: &[String], fds: &[OwnedFd], repeat: Repeat) -> io::Result<Message> {
        let mut conn = lock(&self.conn);
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        for last in [false, true] {
            if conn.is_none() {
                *conn = Some(self.introduced()?);
            }
            let Some(open) = conn.as_ref() else { break };
            match open.call(&fields, &fds) {
                // The connection is broken, or its answers may come late and be taken for those of
                // later calls.
                Err(e) if e.kind() != io::ErrorKind::Other => {
                    *conn = None;
                    if last || repeat == Repeat::Never {
                        return Err(e);
                    }
                }
                other => return other,
            }
        }
        Err(io::Error::from(io::ErrorKind::NotConnected))
    }

    /// A new connection, with what criod leaves at every keeper.
    fn introduced(&self) -> io::Result<Conn> {
        let conn = self.connect()?;
        for (id, name, fd) in lock(&self.own).iter() {
            conn.call(&["SPARE", id, name], &[fd.as_fd()])?;
        }
        Ok(conn)
    }

    fn connect(&self) -> io::Result<Conn> {
        if let Ok(conn) = Conn::connect(&self.options.socket, PATIENCE)
            && conn.call(&["PING"], &[]).is_ok()
        {
            return Ok(conn);
        }
        if sys::notify::wanted()
            && let Ok(conn) = self.connect_within(MANAGED)
        {
            return Ok(conn);
        }
        self.spawn()?;
        self.connect_within(START)
    }

    fn connect_within(&self, limit: Duration) -> io::Result<Conn> {
        let end = std::time::Instant::now() + limit;
        // One that is stopped has its socket there until the new one listens in its place.
        let answering = || {
            let conn = Conn::connect(&self.options.socket, GREETING)?;
            conn.call(&["PING"], &[])?;
            conn.patient(PATIENCE)?;
            Ok(conn)
        };
        loop {
            match answering() {
                Ok(conn) => return Ok(conn),
                Err(e) if std::time::Instant::now() > end => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn spawn(&self) -> io::Result<()> {
        let options = &self.options;
        // no step: a log.
        let log = OpenOptions::new().create(true).append(true).open(&options.log)?;
        let mut command = Command::new(&options.program);
        command.arg("--socket").arg(&options.socket);
        for dir in &options.cgroups {
            command.arg("--cgroup").arg(dir);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.env_remove("NOTIFY_SOCKET").current_dir("/");
        let spawned = step!("keeper: start", command.spawn());
        let mut child = spawned
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", options.program.display())))?;
        info!(pid = child.id(), "keeper started");
        // It outlives us; if it does not, somebody has to reap it.
        std::thread::Builder::new()
            .name("keeper".into())
            .stack_size(64 << 10)
            .spawn(move || drop(child.wait()))?;
        Ok(())
    }
}

impl Keeper {
    /// Its version and its pid.
    pub(crate) async fn about(&self) -> Result<(String, i32)> {
        let mut fields = self.call(vec!["PING".into()], Vec::new(), "ping").await?.fields;
        let pid = fields.pop().and_then(|pid| pid.parse().ok());
        Ok((fields.pop().unwrap_or_default(), pid.unwrap_or(0)))
    }

    /// The installed program.
    pub(crate) fn program(&self) -> &std::path::Path {
        &self.0.options.program
    }

    /// Has it become the installed program in place. On a connection of its own, for it goes on
    /// answering others while it asks that program whether it agrees.
    pub(crate) async fn upgrade(&self) -> Result<()> {
        let inner = Arc::clone(&self.0);
        let work = move || {
            let program = inner.options.program.to_string_lossy().into_owned();
            let conn = Conn::connect(&inner.options.socket, UPGRADE)?;
            conn.call(&["UPGRADE", &program], &[])
        };
        let done = tokio::task::spawn_blocking(work).await.map_err(|_| Kind::Panicked)?;
        done.map_err(|source| Kind::Keeper { action: "upgrade", source })?;
        Ok(())
    }

    pub(crate) fn socket(&self) -> &std::path::Path {
        &self.0.options.socket
    }
}
