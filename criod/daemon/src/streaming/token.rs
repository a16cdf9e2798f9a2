//! Tokens: what a URL stands for, until somebody shows it.
//!
//! ```text
//! Exec, Attach, PortForward ─▶ <runroot>/tokens/T ──a stream shows T──▶ tokens/T.N ──TAKEN──▶ gone
//!                                   │ a minute passes          N: that stream alone may show it again
//!                                   ▼
//!                                 gone
//! ```
//! They lie on tmpfs, so that a URL that was given out is good after a restart, too. The step from T to
//! T.N is one rename: a token works once, whoever else has seen it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::node::{lock, new_id};

/// How long a token may be shown.
const LIFE: Duration = Duration::from_secs(60);
/// Tokens that may wait to be shown.
const MOST: usize = 1000;
/// Hexadecimal digits, four bits each.
const DIGITS: usize = 32;

/// What is done over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Purpose {
    Exec,
    Attach,
    PortForward,
}

impl Purpose {
    /// The first part of the URL's path.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Purpose::Exec => "exec",
            Purpose::Attach => "attach",
            Purpose::PortForward => "portforward",
        }
    }
}

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ticket {
    pub(crate) purpose: Purpose,
    /// The container, or the pod sandbox.
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) tty: bool,
    #[serde(default)]
    pub(crate) stdin: bool,
    #[serde(default)]
    pub(crate) stdout: bool,
    #[serde(default)]
    pub(crate) stderr: bool,
    #[serde(default)]
    pub(crate) ports: Vec<i32>,
}

impl Ticket {
    /// One that asks for nothing yet.
    pub(crate) fn of(purpose: Purpose, id: &str) -> Ticket {
        Ticket {
            purpose,
            id: id.to_owned(),
            command: Vec::new(),
            tty: false,
            stdin: false,
            stdout: false,
            stderr: false,
            ports: Vec::new(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    /// CLOCK_BOOTTIME in nanoseconds.
    until: i64,
    ticket: Ticket,
}

/// The tokens that there are.
#[derive(Debug)]
pub(crate) struct Tokens {
    dir: PathBuf,
    /// By the time at which they end.
    pending: Mutex<BTreeSet<(i64, String)>>,
}

impl Tokens {
    /// Takes up those that lie in the folder.
    pub(crate) fn open(dir: &Path) -> Result<Tokens> {
        let private = || {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        };
        private().map_err(Error::file("create", dir))?;
        let mut pending = BTreeSet::new();
        for entry in fs::read_dir(dir).map_err(Error::file("read", dir))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            match read(&entry.path()) {
                Ok(file) if valid(&name) => {
                    pending.insert((file.until, name));
                }
                // Shown already; whoever did so may ask again.
                Ok(file) if file.until > sys::clock::boottime() => {}
                _ if ours(&name) => drop(fs::remove_file(entry.path())),
                _ => {}
            }
        }
        Ok(Tokens { dir: dir.to_owned(), pending: Mutex::new(pending) })
    }

    /// A new token for a ticket.
    pub(crate) fn issue(&self, ticket: Ticket) -> Result<String> {
        let mut token = new_id()?;
        token.truncate(DIGITS);
        let mut pending = lock(&self.pending);
        let now = sys::clock::boottime();
        while pending.first().is_some_and(|(until, _)| *until <= now)
            && let Some((_, late)) = pending.pop_first()
        {
            let _ = fs::remove_file(self.dir.join(late));
        }
        if pending.len() >= MOST {
            return Err(Kind::Exhausted(format!("{MOST} streaming requests wait already")).into());
        }
        let until = sys::clock::deadline(LIFE);
        let path = self.dir.join(&token);
        let file = File { until, ticket };
        let bytes = serde_json::to_vec(&file)
            .map_err(|e| Kind::Record { path: path.clone(), problem: e.to_string() })?;
        fs::write(&path, bytes).map_err(Error::file("write", &path))?;
        pending.insert((until, token.clone()));
        Ok(token)
    }

    /// Removes those that are past their time, also where a stream has shown one and ended unseen.
    pub(crate) fn forget_late(&self) {
        let now = sys::clock::boottime();
        lock(&self.pending).retain(|(until, _)| *until > now);
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if ours(&entry.file_name().to_string_lossy())
                && read(&entry.path()).is_ok_and(|file| file.until <= now)
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// What a token stands for that `stream` shows; `None`: nothing, or no longer.
    pub(crate) fn show(&self, token: &str, purpose: &str, stream: &str) -> Option<Ticket> {
        if !valid(token) {
            return None;
        }
        let (path, taken) = (self.dir.join(token), self.taken(token, stream));
        // A token of another purpose stays: somebody guesses, or mistypes.
        let fits = |path: &Path| read(path).is_ok_and(|f| f.ticket.purpose.path() == purpose);
        if fits(&path) && fs::rename(&path, &taken).is_ok() {
            lock(&self.pending).retain(|(_, pending)| pending != token);
        }
        let file = read(&taken).ok()?;
        (file.until > sys::clock::boottime() && file.ticket.purpose.path() == purpose)
            .then_some(file.ticket)
    }

    /// The stream has what it asked for, or has ended: what it has shown is gone.
    pub(crate) fn done(&self, stream: &str) {
        let suffix = format!(".{stream}");
        // It may have shown it to the criod before.
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(&suffix) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn taken(&self, token: &str, stream: &str) -> PathBuf {
        self.dir.join(format!("{token}.{stream}"))
    }
}

/// Whether a file's name is that of a token, shown or not.
fn ours(name: &str) -> bool {
    name.split('.').next().is_some_and(valid)
}

fn valid(token: &str) -> bool {
    token.len() == DIGITS && token.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn read(path: &Path) -> io::Result<File> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(purpose: Purpose) -> Ticket {
        Ticket {
            command: vec!["true".into()],
            tty: true,
            stdin: true,
            stdout: true,
            ..Ticket::of(purpose, "c")
        }
    }

    #[test]
    fn a_token_works_once_and_again_only_for_who_showed_it() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let token = tokens.issue(ticket(Purpose::Exec)).unwrap();
        assert_eq!(tokens.show(&token, "attach", "s1"), None);
        assert_eq!(tokens.show(&token, "exec", "s1"), Some(ticket(Purpose::Exec)));
        assert_eq!(tokens.show(&token, "exec", "s2"), None);
        // After a restart, too.
        let tokens = Tokens::open(dir.path()).unwrap();
        assert_eq!(tokens.show(&token, "exec", "s2"), None);
        assert_eq!(tokens.show(&token, "exec", "s1"), Some(ticket(Purpose::Exec)));
        tokens.done("s2");
        assert!(tokens.show(&token, "exec", "s1").is_some());
        tokens.done("s1");
        assert_eq!(tokens.show(&token, "exec", "s1"), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_restart_forgets_none_and_a_minute_all() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let token = tokens.issue(ticket(Purpose::PortForward)).unwrap();
        let again = Tokens::open(dir.path()).unwrap();
        assert_eq!(lock(&again.pending).len(), 1);
        // As if the minute were over.
        let path = dir.path().join(&token);
        let mut file = read(&path).unwrap();
        file.until = sys::clock::boottime() - 1;
        fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
        let late = Tokens::open(dir.path()).unwrap();
        late.issue(ticket(Purpose::Exec)).unwrap();
        assert!(!path.exists());
        assert_eq!(again.show(&token, "portforward", "s"), None);
    }

    #[test]
    fn a_late_one_is_worth_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let token = tokens.issue(ticket(Purpose::Exec)).unwrap();
        let path = dir.path().join(&token);
        let mut file = read(&path).unwrap();
        file.until = sys::clock::boottime() - 1;
        fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
        assert_eq!(tokens.show(&token, "exec", "s"), None);
    }

    #[test]
    fn late_ones_go_and_what_is_somebody_elses_stays() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let [late, shown, good] = [(); 3].map(|()| tokens.issue(ticket(Purpose::Exec)).unwrap());
        tokens.show(&shown, "exec", "s").unwrap();
        for path in [dir.path().join(&late), tokens.taken(&shown, "s")] {
            let mut file = read(&path).unwrap();
            file.until = sys::clock::boottime() - 1;
            fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
        }
        fs::write(dir.path().join("notes"), "x").unwrap();
        tokens.forget_late();
        drop(Tokens::open(dir.path()).unwrap());
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [good.as_str(), "notes"]);
    }

    #[test]
    fn no_more_than_a_thousand_wait() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let all: Vec<String> =
            (0..MOST).map(|_| tokens.issue(ticket(Purpose::Exec)).unwrap()).collect();
        let refused = tokens.issue(ticket(Purpose::Exec)).unwrap_err();
        assert_eq!(refused.status().code(), tonic::Code::ResourceExhausted);
        tokens.show(&all[0], "exec", "s").unwrap();
        tokens.issue(ticket(Purpose::Exec)).unwrap();
    }

    #[test]
    fn what_is_no_token_reaches_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&dir.path().join("tokens")).unwrap();
        let token = tokens.issue(ticket(Purpose::Exec)).unwrap();
        for bad in ["", "..", "../tokens/x", &format!("../tokens/{token}"), &token.to_uppercase()] {
            assert_eq!(tokens.show(bad, "exec", "s"), None, "{bad}");
        }
        assert!(tokens.show(&token, "exec", "s").is_some());
    }
}
