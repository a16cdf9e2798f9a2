//! A network namespace that lives as long as the value, and the processes in it.
//!
//! It is pinned nowhere, so that nothing is left whatever happens.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Net(File);

impl Net {
    /// A new one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Net {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Net(made.join().unwrap())
    }

    /// Runs something in it, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }

    /// What a command in it prints, if it succeeds.
    pub fn output(&self, program: &str, args: &[&str]) -> Option<String> {
        let output = self.run(|| Command::new(program).args(args).output()).ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
