//! The house's rules, each a function from what is there to what is wrong with it.
//!
//! ```text
//! cargo metadata ─► workspace::Workspace ─► arrows::check   which room may use which
//! cargo tree ─────────────────────────────► arrows::closure what must not be linked into a monitor
//! Cargo.toml files ───────────────────────► manifest::check lints and versions are the workspace's
//! git ls-files ───────────────────────────► tidy::check     what every file looks like
//!                                        └► steps::check    what writes is a point that tests kill at
//! ```
//! Nothing here reads the machine; `main` does. So each rule is tested on made-up input that breaks
//! it.

pub mod arrows;
pub mod manifest;
pub mod steps;
pub mod tidy;
pub mod workspace;

use std::fmt;

/// A rule that is broken somewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file or crate, with the line where there is one.
    pub place: String,
    /// What is wrong, and what is right.
    pub what: String,
}

impl Finding {
    pub(crate) fn new(place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding { place: place.into(), what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}
