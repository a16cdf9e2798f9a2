//! What the end-to-end tests share.
//!
//! The programs under test come from the folder that `CRIOD_BIN` names, else from the folder that
//! cargo built the tests into.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what a test cannot set up is a failure of that test"
)]

pub mod daemon;
pub mod disk;
pub mod monitor;
pub mod previous;
pub mod random;
pub mod replay;
pub mod stuck;

use std::path::PathBuf;

/// A program under test.
pub fn program(name: &str) -> PathBuf {
    let dir = std::env::var_os("CRIOD_BIN").map(PathBuf::from).or_else(|| {
        // target/debug/deps/test-…
        Some(std::env::current_exe().ok()?.parent()?.parent()?.to_owned())
    });
    let path = dir.unwrap_or_default().join(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// Polls until `done` gives something; panics with `what` after ten seconds.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(got) = done() {
            return got;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("not within ten seconds: {what}");
}
