//! The container's cgroup, as far as a monitor needs it: OOM kills, and killing what is left.
//!
//! Works on the folders that criod names, one per hierarchy: cgroup v1 and v2 are told apart by
//! the files that are there.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How many processes of the cgroup the kernel has killed for want of memory.
///
/// v2 says so in `memory.events`, v1 in `memory.oom_control`; both count under the same key. Read
/// at init's exit, for the files go with `runtime delete`.
pub(crate) fn oom_kills(dirs: &[String]) -> u64 {
    let count = |dir: &String| {
        ["memory.events", "memory.oom_control"].iter().find_map(|name| {
            let text = fs::read_to_string(Path::new(dir).join(name)).ok()?;
            text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
        })
    };
    dirs.iter().filter_map(count).sum()
}

/// Kills every process in the cgroup, once; those that fork meanwhile need another round.
/// Returns whether any was there.
pub(crate) fn kill_all(dirs: &[String]) -> bool {
    let mut any = false;
    for dir in dirs {
        let dir = Path::new(dir);
        // v2 kills atomically, frozen or not.
        if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
            continue;
        }
        let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) else { continue };
        // 0 stands for a process of another pid namespace.
        for pid in text.lines().filter_map(|l| l.parse().ok()).filter(|p| *p > 0) {
            any |= kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
        }
        // A frozen process dies when it is thawed.
        let _ = fs::write(dir.join("freezer.state"), "THAWED");
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_str().unwrap().to_owned(), "/nonexistent".to_owned()];
        assert_eq!(oom_kills(&dirs), 0);
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        fs::write(dir.path().join("memory.oom_control"), v1).unwrap();
        assert_eq!(oom_kills(&dirs), 2);
        let v2 = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n";
        fs::write(dir.path().join("memory.events"), v2).unwrap();
        assert_eq!(oom_kills(&dirs), 1);
    }
}
