//! systemd's side of a service: sockets that it hands over, readiness, the watchdog.
//!
//! ```text
//! systemd ──LISTEN_FDS──▶ criod   criod.socket is open before criod is, and after it
//!         ◀──READY=1─────         once the socket is served
//!         ◀──WATCHDOG=1──         thrice in the time that WATCHDOG_USEC gives, each after a probe:
//!                                 the CRI's socket ─▶ version, lists ─▶ runroot still locked
//!         ◀──STOPPING=1──
//! ```
//! All of it is asked for by variables of the environment, and nothing happens where there are none.
//!
//! The probe goes the way of every call: the socket's file, whoever accepts, the threads that do the
//! work, the locks of the index and of each record. It asks for nothing that lies outside criod. A
//! network that is down, a registry, a runtime or a disk that hangs is no reason to end a criod that
//! answers, and would still be there for the next one.

use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tracing::{error, info, warn};

/// Probes in the time after which systemd takes criod for dead; one may take as long as there is
/// between two, so that a single slow one is not the end.
const PROBES: u32 = 3;

pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Tells the service manager, where there is one.
pub(crate) fn notify(state: &str) {
    if let Err(e) = sys::notify::notify(state) {
        warn!("notify the service manager: {e}");
    }
}

/// A variable that is meant for this process, by another that names a process id.
///
/// The service manager's variables are inherited by whatever a service starts; the id says whose they
/// are. `None` without the variable, or when it is another's.
fn ours(
    variable: &impl Fn(&str) -> Option<String>,
    name: &str,
    whose: Option<&str>,
) -> Option<u64> {
    let value = variable(name)?.parse().ok()?;
    let mine = whose.is_none_or(|whose| whose.parse() == Ok(std::process::id()));
    mine.then_some(value)
}

/// What a service manager has handed over that criod cannot serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// It cannot be taken.
    #[error("socket activation: descriptors that LISTEN_FDS promises")]
    Take(#[source] io::Error),
    /// It is no socket of the kind.
    #[error(
        "socket activation: descriptor {number} is no listening unix stream socket (ListenStream=)"
    )]
    Kind { number: i32 },
    /// It listens elsewhere.
    #[error(
        "socket activation: descriptor {number} listens at {}, but `listen` is {}: \
         ListenStream= of criod.socket must be the same path",
        at.display(), listen.display()
    )]
    Path { number: i32, at: PathBuf, listen: PathBuf },
}

/// The CRI's socket, where a service manager has opened it (sd_listen_fds(3)).
pub(crate) fn socket(
    listen: &Path,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<Option<UnixListener>, SocketError> {
    // Without an owner they would be whoever's.
    let Some(whose) = variable("LISTEN_PID") else { return Ok(None) };
    let Some(count) = ours(variable, "LISTEN_FDS", Some(&whose)) else { return Ok(None) };
    let passed = sys::start::passed(usize::try_from(count).unwrap_or(usize::MAX));
    let mut found = None;
    for fd in passed.map_err(SocketError::Take)? {
        let number = fd.as_raw_fd();
        let socket = listening(fd).ok_or(SocketError::Kind { number })?;
        let at = socket.local_addr().ok().and_then(|a| a.as_pathname().map(Path::to_path_buf));
        let at = at.ok_or(SocketError::Kind { number })?;
        if !same(&at, listen) {
            return Err(SocketError::Path { number, at, listen: listen.to_path_buf() });
        }
        found = Some(socket);
    }
    Ok(found)
}

fn listening(fd: OwnedFd) -> Option<UnixListener> {
    getsockopt(&fd.as_fd(), sockopt::AcceptConn).ok()?.then(|| UnixListener::from(fd))
}

/// Whether two paths name one file in one folder, by whatever links.
fn same(one: &Path, other: &Path) -> bool {
    let folder = |path: &Path| std::fs::canonicalize(path.parent()?).ok();
    one == other
        || one.file_name() == other.file_name()
            && folder(one).is_some()
            && folder(one) == folder(other)
}

/// What a probe finds wrong.
#[derive(Debug, thiserror::Error)]
enum Sick {
    #[error("the CRI's socket does not answer")]
    Silent(#[source] io::Error),
    #[error("the CRI's socket has not answered within {} ms", .0.as_millis())]
    Late(Duration),
    #[error("{} is not the file that this criod has locked", .0.display())]
    Lock(PathBuf),
}

/// How often systemd wants to hear of this process (sd_watchdog_enabled(3)).
fn watchdog(variable: &impl Fn(&str) -> Option<String>) -> Option<Duration> {
    let whose = variable("WATCHDOG_PID");
    let limit = ours(variable, "WATCHDOG_USEC", whose.as_deref())?;
    (limit > 0).then(|| Duration::from_micros(limit))
}

/// A file, wherever its name has gone.
type Identity = (u64, u64);

fn identity(file: io::Result<Metadata>) -> Option<Identity> {
    file.ok().map(|file| (file.dev(), file.ino()))
}

/// Feeds the watchdog, where there is one, as long as probes of the socket at `listen` pass and the
/// file at `lock` is the one that was `locked`. For as long as the future lives: a criod that has a
/// successor must not speak for it.
pub(crate) async fn feed_watchdog(listen: PathBuf, locked: io::Result<Metadata>, lock: PathBuf) {
    let Some(limit) = watchdog(&variable) else { return };
    let locked = identity(locked);
    let pause = limit / PROBES;
    info!("a watchdog expects a sign every {} ms", limit.as_millis());
    let mut due = tokio::time::interval(pause);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        match probe(&listen, locked, &lock, pause).await {
            Ok(()) => notify("WATCHDOG=1"),
            Err(e) => error!("self-check: {}", crate::error::chain(&e)),
        }
    }
}

async fn probe(
    listen: &Path,
    locked: Option<Identity>,
    lock: &Path,
    limit: Duration,
) -> Result<(), Sick> {
    match tokio::time::timeout(limit, criod_client::probe(listen, limit)).await {
        Ok(answered) => answered.map_err(Sick::Silent)?,
        Err(_) => return Err(Sick::Late(limit)),
    }
    // Another criod would lock another file, and both would own what lies in runroot.
    match identity(std::fs::symlink_metadata(lock)) {
        Some(now) if Some(now) == locked => Ok(()),
        _ => Err(Sick::Lock(lock.to_path_buf())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn from<'a>(all: &'a [(&'a str, String)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| all.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn a_watchdog_is_for_the_process_that_it_names() {
        let mine = std::process::id().to_string();
        let after = |usec: &str, pid: Option<&str>| {
            let mut all = vec![("WATCHDOG_USEC", usec.to_owned())];
            all.extend(pid.map(|pid| ("WATCHDOG_PID", pid.to_owned())));
            watchdog(&from(&all))
        };
        assert_eq!(after("60000000", None), Some(Duration::from_secs(60)));
        assert_eq!(after("60000000", Some(&mine)), Some(Duration::from_secs(60)));
        assert_eq!(after("60000000", Some("1")), None);
        assert_eq!(after("60000000", Some("")), None);
        for wrong in ["", "0", "-1", "1m", "99999999999999999999999"] {
            assert_eq!(after(wrong, None), None, "{wrong:?}");
        }
        assert_eq!(watchdog(&from(&[])), None);
    }

    #[test]
    fn sockets_of_another_process_are_left_alone() {
        let listen = Path::new("/run/crio/crio.sock");
        // Were it taken for this process, there would be no such descriptor.
        let count = || ("LISTEN_FDS", "1000".to_owned());
        for all in [vec![], vec![count()], vec![count(), ("LISTEN_PID", "1".into())]] {
            assert!(socket(listen, &from(&all)).unwrap().is_none());
        }
        let mine = ("LISTEN_PID", std::process::id().to_string());
        let error = socket(listen, &from(&[count(), mine.clone()])).unwrap_err();
        assert!(matches!(error, SocketError::Take(_)), "{error:?}");
        assert!(socket(listen, &from(&[("LISTEN_FDS", "0".into()), mine])).unwrap().is_none());
    }

    #[test]
    fn only_a_listening_stream_socket_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        assert!(listening(listener.into()).is_some());
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(listening(one.into()).is_none());
        assert!(listening(UnixDatagram::bind(dir.path().join("d")).unwrap().into()).is_none());
        assert!(listening(tempfile::tempfile().unwrap().into()).is_none());
    }

    #[test]
    fn a_path_is_the_same_by_whatever_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        std::os::unix::fs::symlink("run", dir.path().join("var")).unwrap();
        let path = |name| dir.path().join(name);
        assert!(same(&path("run/s"), &path("var/s")));
        assert!(!same(&path("run/s"), &path("var/t")));
        assert!(!same(&path("run/s"), &path("s")));
        assert!(!same(Path::new("none/s"), Path::new("nor/s")));
    }
}
