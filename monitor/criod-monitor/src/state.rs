//! What is written down at each step: the file `state` in the monitor's folder.
//!
//! A successor reads it and goes on from there. It is written beside and renamed over, on tmpfs,
//! so that it is always whole. The two files change places: then both always have the page that
//! the next state needs, and a full file system does not lose an exit status. The lock on the file
//! `lock` says whether a monitor lives: the kernel lets go of it when the process ends, however it
//! ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_monitor::monitor::{Config, Phase, StateResponse};
use nix::fcntl::{Flock, FlockArg};
use protobuf::{EnumOrUnknown, Message};

/// How often, and how far apart, the lock is tried: a child that a dead monitor had forked holds
/// it until it executes the runtime.
const LOCK_ROUNDS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Room that both files keep, in bytes.
const ROOM: u64 = 4096;

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
        if now.phase.enum_value().is_err() {
            now.phase = EnumOrUnknown::new(known(&now));
        }
        now.version = env!("CARGO_PKG_VERSION").into();
        now.monitor_pid = nix::unistd::getpid().as_raw();
        Ok(State { path, now })
    }

    /// One that was handed over by what this process has been until now.
    pub(crate) fn handed_over(dir: &Path, mut now: StateResponse) -> State {
        now.version = env!("CARGO_PKG_VERSION").into();
        State { path: dir.join("state"), now }
    }

    /// Writes the state down.
    pub(crate) fn save(&self) -> io::Result<()> {
        let bytes = self.now.write_to_bytes()?;
        let temp = self.path.with_extension("new");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&temp)?;
        // Never shorter while it is written: a page that is given up may not be had again.
        file.write_all_at(&bytes, 0)?;
        file.set_len(bytes.len() as u64)?;
        if sys::file::exchange(&temp, &self.path).is_err() {
            // The first time, or a file system that cannot.
            fs::rename(&temp, &self.path)?;
            let spare = File::create(&temp)?;
            let _ = nix::fcntl::posix_fallocate(&spare, 0, ROOM as i64);
        }
        Ok(())
    }
}

/// The phase that stands for one that only a later release knows. What is there must not be begun
/// a second time; the rest is learnt from the processes.
fn known(state: &StateResponse) -> Phase {
    if state.exit.is_some() {
        Phase::PHASE_DRAINING
    } else if state.started_at != 0 {
        Phase::PHASE_RUNNING
    } else if state.pid != 0 {
        Phase::PHASE_STARTING
    } else {
        Phase::PHASE_CREATING
    }
}

/// Reads the state as it was written.
pub(crate) fn read(dir: &Path) -> io::Result<StateResponse> {
    Ok(StateResponse::parse_from_bytes(&fs::read(dir.join("state"))?)?)
}

/// Reads the configuration that criod wrote.
pub(crate) fn config(dir: &Path) -> io::Result<Config> {
    Ok(Config::parse_from_bytes(&fs::read(dir.join("config"))?)?)
}

/// Takes the lock that only one living monitor of the folder can hold; `None`: another does.
pub(crate) fn lock(dir: &Path) -> io::Result<Option<Flock<File>>> {
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join("lock"))?;
    for _ in 0..LOCK_ROUNDS {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
            Err((_, e)) => return Err(e.into()),
        };
        std::thread::sleep(LOCK_PAUSE);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use api_monitor::monitor::Exit;
    use protobuf::MessageField;

    use super::*;

    #[test]
    fn states_follow_each_other_whole_and_of_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::load(dir.path()).unwrap();
        assert_eq!(state.now.phase.enum_value(), Ok(Phase::PHASE_NEW));
        for length in [10, 9000, 3, 0, 5000] {
            state.now.error = "e".repeat(length);
            state.save().unwrap();
            assert_eq!(State::load(dir.path()).unwrap().now, state.now);
        }
        fs::write(dir.path().join("state"), [0xff; 7]).unwrap();
        assert!(State::load(dir.path()).is_err());
    }

    #[test]
    fn a_full_disk_keeps_no_exit_from_being_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let mount = Small::mount(dir.path());
        let mut state = State::load(dir.path()).unwrap();
        state.save().unwrap();
        let mut filler = File::create(dir.path().join("filler")).unwrap();
        while io::Write::write(&mut filler, &[0; 4096]).is_ok_and(|n| n > 0) {}
        for code in 0..5 {
            state.now.exit = MessageField::some(Exit { code, ..Exit::new() });
            state.save().unwrap();
            assert_eq!(State::load(dir.path()).unwrap().now.exit.code, code);
        }
        drop(filler);
        drop(mount);
    }

    /// A small tmpfs, unmounted when dropped.
    struct Small(PathBuf);

    impl Small {
        fn mount(at: &Path) -> Small {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=64k")).unwrap();
            Small(at.to_owned())
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }

    #[test]
    fn a_phase_of_a_later_release_never_begins_anything_anew() {
        let mut state = StateResponse::new();
        state.phase = EnumOrUnknown::from_i32(99);
        state.pid = 7;
        state.started_at = 1;
        let dir = tempfile::tempdir().unwrap();
        let load = |state: &StateResponse| {
            fs::write(dir.path().join("state"), state.write_to_bytes().unwrap()).unwrap();
            State::load(dir.path()).unwrap().now.phase.enum_value().unwrap()
        };
        assert_eq!(load(&state), Phase::PHASE_RUNNING);
        state.exit = MessageField::some(Exit::new());
        assert_eq!(load(&state), Phase::PHASE_DRAINING);
        state.exit = MessageField::none();
        state.started_at = 0;
        assert_eq!(load(&state), Phase::PHASE_STARTING);
    }
}
