//! What is written down at each step: the file `state` in the monitor's folder.
//!
//! A successor reads it and goes on from there. It is written beside and renamed over, on tmpfs,
//! so that it is always whole. The lock on the file `lock` says whether a monitor lives: the
//! kernel lets go of it when the process ends, however it ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use api_monitor::monitor::{Config, StateResponse};
use nix::fcntl::{Flock, FlockArg};
use protobuf::Message;

/// The state, and where it is kept.
pub(crate) struct State {
    path: PathBuf,
    pub(crate) now: StateResponse,
}

impl State {
    /// Reads what a predecessor left; a new state where there was none.
    pub(crate) fn load(dir: &Path) -> io::Result<State> {
        let path = dir.join("state");
        let mut now = match fs::read(&path) {
            Ok(bytes) => StateResponse::parse_from_bytes(&bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => StateResponse::new(),
            Err(e) => return Err(e),
        };
        now.version = env!("CARGO_PKG_VERSION").into();
        now.monitor_pid = nix::unistd::getpid().as_raw();
        Ok(State { path, now })
    }

    /// Writes the state down.
    pub(crate) fn save(&self) -> io::Result<()> {
        let temp = self.path.with_extension("new");
        fs::write(&temp, self.now.write_to_bytes()?)?;
        fs::rename(&temp, &self.path)
    }
}

/// Reads the configuration that criod wrote.
pub(crate) fn config(dir: &Path) -> io::Result<Config> {
    Ok(Config::parse_from_bytes(&fs::read(dir.join("config"))?)?)
}

/// Takes the lock that only one living monitor of the folder can hold; `None`: another does.
pub(crate) fn lock(dir: &Path) -> io::Result<Option<Flock<File>>> {
    let file = OpenOptions::new().create(true).append(true).open(dir.join("lock"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e.into()),
    }
}
