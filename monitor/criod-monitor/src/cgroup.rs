//! The container's cgroup, as far as a monitor needs it: OOM kills, and killing what is left.
//!
//! Works on the folders that criod names, one per hierarchy: cgroup v1 and v2 are told apart by
//! the files that are there. Groups that the container made below its own are included.
//!
//! On v1 nothing kills a group at once. Where the freezer's folder is among those named, the group
//! is frozen first, so that it cannot fork faster than it is killed, and thawed to die.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a group is read again for processes that have been forked in the meantime.
const ROUNDS: u32 = 20;

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

/// Kills every process in the cgroup, and returns whether any was there. One that was being forked
/// where there is no freezer may need another call.
pub(crate) fn kill_all(dirs: &[String]) -> bool {
    let mut any = false;
    let mut frozen = Vec::new();
    for dir in dirs {
        let state = Path::new(dir).join("freezer.state");
        if fs::write(&state, "FROZEN").is_ok() {
            frozen.push(state);
        }
    }
    for dir in dirs {
        let dir = Path::new(dir);
        // v2 kills atomically, frozen or not, and the groups below as well.
        if dir.join("cgroup.kill").exists() {
            any |= !members(dir).is_empty();
            let _ = fs::write(dir.join("cgroup.kill"), "1");
            continue;
        }
        let mut killed: Vec<i32> = Vec::new();
        for _ in 0..ROUNDS {
            let before = killed.len();
            for pid in members(dir) {
                if !killed.contains(&pid) {
                    any |= kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
                    killed.push(pid);
                }
            }
            if killed.len() == before {
                break;
            }
        }
    }
    // What is frozen dies when it is thawed; so does what somebody else had frozen.
    for state in frozen {
        let _ = fs::write(state, "THAWED");
    }
    any
}

/// The processes in a group and in those below it. 0 stands for one of another pid namespace.
fn members(dir: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    let mut dirs: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
        let below = fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    pids
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

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

    /// A group of its own on the freezer's hierarchy, with a group below it.
    struct Group(PathBuf, Vec<Child>);

    impl Drop for Group {
        fn drop(&mut self) {
            let dirs = [self.0.to_str().unwrap().to_owned()];
            for _ in 0..100 {
                self.1.iter_mut().for_each(|c| {
                    let _ = c.try_wait();
                });
                kill_all(&dirs);
                let _ = fs::remove_dir(self.0.join("below"));
                if fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }

    #[test]
    fn a_fork_bomb_and_what_is_below_are_killed_frozen_or_not() {
        let Some(base) = ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup"]
            .iter()
            .find(|d| Path::new(d).join("cgroup.procs").exists())
        else {
            panic!("no cgroups here");
        };
        let mut group =
            Group(Path::new(base).join(format!("criod-kill-{}", std::process::id())), Vec::new());
        fs::create_dir_all(group.0.join("below")).unwrap();
        let pids = |dir: &Path| members(dir).len();
        for (dir, script) in [
            (group.0.clone(), "while :; do setsid sh -c 'sleep 0.05' & sh -c 'sleep 0.01'; done"),
            (group.0.join("below"), "sleep 1000; :"),
        ] {
            let join = format!("echo 0 > {}/cgroup.procs; {script}", dir.display());
            group.1.push(Command::new("sh").arg("-c").arg(join).spawn().unwrap());
            while pids(&dir) < 2 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        let dirs = [group.0.to_str().unwrap().to_owned()];
        // Frozen by somebody else already.
        let _ = fs::write(group.0.join("freezer.state"), "FROZEN");
        assert!(kill_all(&dirs));
        for _ in 0..500 {
            group.1.iter_mut().for_each(|c| {
                let _ = c.try_wait();
            });
            if pids(&group.0) == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} processes are left", pids(&group.0));
    }
}
