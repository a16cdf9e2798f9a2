//! What /proc says of processes.

use std::fs;

use nix::sys::signal::Signal;

/// Parent, session and start time (clock ticks since boot) of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The process.
    pub pid: i32,
    /// State letter, `Z` for a zombie.
    pub state: u8,
    /// Its parent.
    pub ppid: i32,
    /// The session that it belongs to.
    pub session: i32,
    /// Field 22: with the pid it names one process of this boot.
    pub start_time: u64,
    /// Field 52: the wait status of one that has ended and was not reaped; 0 where it may not be
    /// seen.
    pub exit_code: i32,
}

/// Parses a line of `/proc/PID/stat`. The command in it may hold spaces and parentheses.
pub fn parse_stat(line: &str) -> Option<Stat> {
    let open = line.find('(')?;
    let close = line.rfind(')')?;
    let mut rest = line.get(close + 1..)?.split_ascii_whitespace();
    let state = rest.next()?.bytes().next()?;
    let ppid = rest.next()?.parse().ok()?;
    let session = rest.nth(1)?.parse().ok()?;
    let start_time = rest.nth(15)?.parse().ok()?;
    let exit_code = rest.nth(29).and_then(|w| w.parse().ok()).unwrap_or(0);
    let pid = line[..open].trim().parse().ok()?;
    Some(Stat { pid, state, ppid, session, start_time, exit_code })
}

/// Reads the state of one process; `None` when there is none.
pub fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether a process has a handler for a signal; `None` when there is no such process.
pub fn catches(pid: i32, signal: i32) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    let bit = u32::try_from(signal).ok()?.checked_sub(1)?;
    Some(mask.checked_shr(bit)? & 1 == 1)
}

/// Which file a process executes: device and inode number.
pub fn program(pid: i32) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let file = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((file.dev(), file.ino()))
}

/// The processes that there are.
fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Processes in whose `/proc/PID/FILE`, words that each end in NUL, `word` is one; none for an empty
/// one, which would be in every file.
fn with_word(file: &str, word: &str) -> Vec<i32> {
    if word.is_empty() {
        return Vec::new();
    }
    let has = |pid: &i32| {
        let all = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        all.split(|b| *b == 0).any(|w| w == word.as_bytes())
    };
    pids().filter(has).collect()
}

/// Processes that have `argument` on their command line; none for an empty one.
pub fn with_argument(argument: &str) -> Vec<i32> {
    with_word("cmdline", argument)
}

/// Processes that were started with `variable` (`NAME=value`) in their environment; none for an
/// empty one.
pub fn with_environment(variable: &str) -> Vec<i32> {
    with_word("environ", variable)
}

/// Every process below `root`, and every one of a session that `root` leads, itself included.
///
/// Nothing for 0 and 1: below these is everything, and no caller can mean that.
pub fn tree(root: i32) -> Vec<i32> {
    if root <= 1 {
        return Vec::new();
    }
    let all: Vec<Stat> = pids().filter_map(stat).filter(|s| s.state != b'Z').collect();
    let mut found: Vec<i32> =
        all.iter().filter(|s| s.pid == root || s.session == root).map(|s| s.pid).collect();
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        for s in &all {
            if s.ppid == parent && !found.contains(&s.pid) {
                found.push(s.pid);
            }
        }
        at += 1;
    }
    found
}

/// How often a tree is looked at for processes that it has got in the meantime.
const KILL_ROUNDS: u32 = 20;

/// Kills `root` and all that it started.
///
/// They are stopped first, over and over until no new one is found, so that none can start another
/// while the others are being killed, or lose the parent that it would be found by.
///
/// Nothing happens where `root` cannot be meant: the init process, the caller, or no process.
pub fn kill_tree(root: i32) {
    if root <= 1 || root == nix::unistd::getpid().as_raw() {
        return;
    }
    let mut stopped: Vec<i32> = Vec::new();
    for _ in 0..KILL_ROUNDS {
        let before = stopped.len();
        for pid in tree(root) {
            if !stopped.contains(&pid) {
                signal(pid, Signal::SIGSTOP);
                stopped.push(pid);
            }
        }
        if stopped.len() == before {
            break;
        }
    }
    for pid in stopped.into_iter().rev() {
        signal(pid, Signal::SIGKILL);
    }
}

/// Sends a signal to one process, if it is there. Nothing happens for pids that name groups.
pub fn signal(pid: i32, signal: Signal) {
    if pid > 0 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_hold_anything() {
        let line = "42 (a ) b (c) S 1 2 3 0 -1 4 5 6 7 8 9 10 11 12 13 20 0 1 777 1 2";
        let got = parse_stat(line).unwrap();
        assert_eq!(
            got,
            Stat { pid: 42, state: b'S', ppid: 1, session: 3, start_time: 777, exit_code: 0 }
        );
        assert_eq!(parse_stat("garbage"), None);
        assert_eq!(parse_stat("1 ) ("), None);
    }

    #[test]
    fn the_status_of_the_dead_can_be_read_before_they_are_reaped() {
        for (script, status) in [("exit 7", 7 << 8), ("kill -9 $$", 9), ("exit 0", 0)] {
            let mut child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pid = child.id() as i32;
            let dead = (0..400).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                stat(pid).filter(|s| s.state == b'Z')
            });
            child.wait().unwrap();
            assert_eq!(dead.unwrap().exit_code, status, "{script}");
        }
    }

    #[test]
    fn nobody_has_an_empty_argument() {
        let mut child = std::process::Command::new("sleep").args(["1000.25"]).spawn().unwrap();
        let found = (0..200).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            Some(with_argument("1000.25")).filter(|f| !f.is_empty())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, Some(vec![child.id() as i32]));
        assert_eq!(with_argument(""), Vec::<i32>::new());
    }

    #[test]
    fn an_environment_tells_its_process() {
        let child = std::process::Command::new("sleep").arg("100").env("SYS_TEST", "17").spawn();
        let mut child = child.unwrap();
        // The new program's environment is in place a little after the call that starts it returns.
        let mut found = Vec::new();
        for _ in 0..400 {
            found = with_environment("SYS_TEST=17");
            if !found.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let (pid, others) = (child.id() as i32, with_environment("SYS_TEST=1"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((found, others), (vec![pid], vec![]));
        assert!(with_environment("").is_empty());
    }

    #[test]
    fn everything_is_no_tree() {
        assert_eq!((tree(0), tree(1), tree(-1)), (vec![], vec![], vec![]));
    }

    #[test]
    fn a_tree_is_found_and_killed_while_it_forks() {
        // One that leaves the session, one that waits, and one that forks without end.
        let script = "setsid sleep 1000 & sleep 1000 & while :; do sh -c 'sleep 0.01'; done";
        let mut child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = child.id() as i32;
        let mut of = Vec::new();
        for _ in 0..200 {
            of = tree(pid);
            if of.len() >= 4 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        kill_tree(pid);
        child.wait().unwrap();
        assert!(of.len() >= 4, "{of:?}");
        let lives = |p: &&i32| stat(**p).is_some_and(|s| s.state != b'Z');
        for _ in 0..200 {
            if !of.iter().any(|p| lives(&p)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{:?} of {of:?} live", of.iter().filter(lives).collect::<Vec<_>>());
    }
}
