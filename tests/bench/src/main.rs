//! Measurements side by side with conmon, in one run, with the same bundle and runtime.
//!
//! ```text
//! bench monitor-memory [--count N]    memory of a monitor: exit status 1 where conmon's is less
//! bench log-throughput [--mib N]      from a container's pipe to its log
//! bench recovery [--count N]          kill -9 to served and watched: 1 where it takes a second
//! ```
//! The programs under test come from the folder that `CRIOD_BIN` names: the static ones that are
//! installed, not those of a debug build.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails is none")]

mod conmon;
mod memory;
mod recovery;
mod throughput;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().ok().filter(|n| (1..=1000).contains(n));
    let done = match words[..] {
        ["monitor-memory"] => memory::run(50),
        ["monitor-memory", "--count", n] if number(n).is_some() => memory::run(number(n).unwrap()),
        ["log-throughput"] => {
            throughput::run(200);
            true
        }
        ["log-throughput", "--mib", n] if number(n).is_some() => {
            throughput::run(number(n).unwrap());
            true
        }
        ["recovery"] => recovery::run(100, 10),
        ["recovery", "--count", n] if number(n).is_some() => recovery::run(number(n).unwrap(), 10),
        _ => {
            eprintln!(
                "usage: bench monitor-memory [--count N] | log-throughput [--mib N] | \
                 recovery [--count N]"
            );
            return ExitCode::from(64);
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A runtime for what is asynchronous, on this thread.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
