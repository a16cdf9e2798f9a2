//! A criod that is killed at a point of its code, and started again (see `pkg/failpoint`).
//!
//! ```text
//! arm("2 after record: rename") ─▶ call ─▶ criod dies at the point ─▶ revive ─▶ call repeated
//! ```

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use super::{Criod, Process};

/// A point in criod's code: before or after a step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// `before` or `after`.
    pub when: String,
    /// The step's.
    pub name: String,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.when, self.name)
    }
}

/// A point that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// By which criod.
    pub pid: i32,
    /// Which.
    pub point: Point,
}

impl Criod {
    fn failpoint_file(&self, name: &str) -> PathBuf {
        self.dir.join("failpoints").join(name)
    }

    /// The points that were reached since this was asked last.
    pub fn hits(&self) -> Vec<Hit> {
        let text = fs::read_to_string(self.failpoint_file("hits")).unwrap_or_default();
        let done = self.failpoint_file("hits.done");
        let before: usize =
            fs::read_to_string(&done).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
        fs::write(done, text.len().to_string()).unwrap();
        let hit = |line: &str| {
            let mut fields = line.splitn(3, ' ');
            let pid = fields.next()?.parse().ok()?;
            let when = fields.next()?.to_owned();
            Some(Hit { pid, point: Point { when, name: fields.next()?.to_owned() } })
        };
        text[before..].lines().map(|line| hit(line).expect(line)).collect()
    }

    /// Has criod killed at these points, one after the other: each as number of times, and point.
    pub fn arm(&self, points: &[(usize, Point)]) {
        let text: String = points.iter().map(|(n, point)| format!("{n} {point}\n")).collect();
        let new = self.failpoint_file("kill.test");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.failpoint_file("kill")).unwrap();
    }

    /// How many points of those that were armed have not been reached.
    pub fn armed(&self) -> usize {
        fs::read_to_string(self.failpoint_file("kill")).unwrap_or_default().lines().count()
    }

    /// Starts criod again if it has been killed; says whether it had.
    pub fn revive(&mut self) -> bool {
        let Some(status) = self.process.as_mut().and_then(Process::ended) else {
            return false;
        };
        let signal = status.and_then(|s| s.signal());
        assert_eq!(signal, Some(9), "criod ended by itself: {status:?}\n{}", self.said());
        self.process = None;
        self.launch();
        true
    }
}
