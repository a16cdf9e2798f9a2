//! What was done, and what was wrong.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Failures that are printed; the rest is only counted.
const PRINTED: usize = 20;

/// Counts of what was done and checked.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    done: BTreeMap<String, u64>,
    /// What was checked: how often it held.
    held: BTreeMap<String, u64>,
    /// What was checked and did not hold: each time with why.
    failed: BTreeMap<String, Vec<String>>,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was done.
    pub(crate) fn count(&self, what: &str) {
        *self.lock().done.entry(what.to_owned()).or_default() += 1;
    }

    /// A check held.
    pub(crate) fn pass(&self, what: &str) {
        *self.lock().held.entry(what.to_owned()).or_default() += 1;
    }

    /// A check did not hold.
    pub(crate) fn fail(&self, what: &str, why: String) {
        let mut inner = self.lock();
        let all: usize = inner.failed.values().map(Vec::len).sum();
        if all < PRINTED {
            println!("FAILED {what}: {why}");
        }
        inner.failed.entry(what.to_owned()).or_default().push(why);
    }

    /// A check.
    pub(crate) fn check(&self, what: &str, holds: bool, why: impl FnOnce() -> String) {
        if holds {
            self.pass(what);
        } else {
            self.fail(what, why());
        }
    }

    pub(crate) fn failed(&self) -> usize {
        self.lock().failed.values().map(Vec::len).sum()
    }

    /// Prints everything; the last line is the totals of the checks.
    pub(crate) fn report(&self) -> ExitCode {
        let inner = self.lock();
        for (what, n) in &inner.done {
            println!("{n:6}  {what}");
        }
        for (what, n) in &inner.held {
            println!("{n:6}  held: {what}");
        }
        for (what, all) in &inner.failed {
            println!("{:6}  FAILED: {what}", all.len());
        }
        let passed = inner.held.keys().filter(|k| !inner.failed.contains_key(*k)).count();
        println!("{passed} passed, {} failed", inner.failed.len());
        if inner.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
