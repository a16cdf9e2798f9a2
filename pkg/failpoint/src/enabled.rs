//! The points, for builds that are tested.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The environment variable with the folder.
const VARIABLE: &str = "FAILPOINTS";

/// A point is reached.
pub fn hit(when: &str, name: &str) {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    /// One at a time, so that the counting is right.
    static ONE: Mutex<()> = Mutex::new(());
    let folder = FOLDER.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let Some(folder) = folder else { return };
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let log = OpenOptions::new().create(true).append(true).open(folder.join("hits"));
    let line = format!("{} {when} {name}\n", std::process::id());
    if let Err(e) = log.and_then(|mut log| log.write_all(line.as_bytes())) {
        // A test that learns nothing must not pass.
        eprintln!("failpoint {when} {name}: {e}");
        std::process::abort();
    }
    if due(&folder.join("kill"), when, name) {
        // No destructor, no other thread: nothing of this process happens from here on.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }
}

/// Counts the point if it is the one that is waited for; says whether that was the last time.
fn due(path: &Path, when: &str, name: &str) -> bool {
    let Ok(text) = fs::read_to_string(path) else { return false };
    let (line, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let mut fields = line.splitn(3, ' ');
    let (Some(number), Some(of_when), Some(of_name)) =
        (fields.next().and_then(|n| n.parse::<u32>().ok()), fields.next(), fields.next())
    else {
        return false;
    };
    if (of_when, of_name) != (when, name) {
        return false;
    }
    let left = match number {
        0 | 1 => rest.to_owned(),
        more => format!("{} {when} {name}\n{rest}", more - 1),
    };
    let new = path.with_extension("new");
    let written = fs::write(&new, left).and_then(|()| fs::rename(&new, path));
    written.is_ok() && number <= 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn the_point_is_counted_down() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kill");
        assert!(!due(&path, "before", "a"));
        fs::write(&path, "2 after a: b c\n1 before d\n").unwrap();
        assert!(!due(&path, "before", "d"));
        assert!(!due(&path, "before", "a: b c"));
        assert!(!due(&path, "after", "a: b c"));
        assert!(due(&path, "after", "a: b c"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "1 before d\n");
        assert!(due(&path, "before", "d"));
        assert!(!due(&path, "before", "d"));
    }

    /// Run by the next one in a process of its own.
    #[test]
    fn steps() {
        let three = crate::step!("first", 1 + 2);
        assert_eq!(crate::step!("second", three + 1), 4);
    }

    #[test]
    fn a_process_dies_at_its_point() {
        let dir = tempfile::tempdir().unwrap();
        let run = || {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "enabled::tests::steps"]).env(VARIABLE, dir.path());
            command.output().unwrap().status
        };
        let hits = || {
            let text = fs::read_to_string(dir.path().join("hits")).unwrap();
            fs::remove_file(dir.path().join("hits")).unwrap();
            text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect::<Vec<_>>()
        };
        assert!(run().success());
        assert_eq!(hits(), ["before first", "after first", "before second", "after second"]);
        fs::write(dir.path().join("kill"), "1 after first\n").unwrap();
        assert_eq!(run().signal(), Some(9));
        assert_eq!(hits(), ["before first", "after first"]);
        assert!(run().success());
    }
}
