//! AppArmor: whether the kernel has it, which profiles are loaded, and the loading of our own.
//!
//! ```text
//! <sys>/module/apparmor/parameters/enabled   "Y" ─▶ it is on
//! <sys>/kernel/security/apparmor/profiles    "name (mode)" per line: what is loaded
//! text of a profile ──stdin──▶ apparmor_parser ─▶ kernel
//! ```

mod profile;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use self::profile::text;
use crate::{Error, Result};

/// How much of what the parser says is kept, in bytes.
const MOST_SAID: u64 = 4096;

/// A kernel with AppArmor.
#[derive(Debug, Clone)]
pub struct AppArmor {
    profiles: PathBuf,
    parser: Option<PathBuf>,
}

impl AppArmor {
    /// Looks below `sys` (`/sys`) for AppArmor, and in `folders` for `apparmor_parser`. `None` if
    /// the kernel has none, it is off, or its files are not there (securityfs is not mounted).
    #[must_use]
    pub fn detect(sys: &Path, folders: &[PathBuf]) -> Option<AppArmor> {
        let enabled = fs::read_to_string(sys.join("module/apparmor/parameters/enabled")).ok()?;
        let profiles = sys.join("kernel/security/apparmor/profiles");
        if !enabled.starts_with('Y') || !profiles.exists() {
            return None;
        }
        let parser = folders.iter().map(|f| f.join("apparmor_parser")).find(|p| p.is_file());
        Some(AppArmor { profiles, parser })
    }

    /// Whether there is a program to load profiles with.
    #[must_use]
    pub fn has_parser(&self) -> bool {
        self.parser.is_some()
    }

    /// Whether a profile is loaded. A stack (`a//&b`) is if all its profiles are.
    ///
    /// # Errors
    /// [`Error::Profiles`].
    pub fn is_loaded(&self, name: &str) -> Result<bool> {
        let loaded = fs::read(&self.profiles)
            .map_err(|source| Error::Profiles { path: self.profiles.clone(), source })?;
        let loaded = String::from_utf8_lossy(&loaded);
        // A name may hold spaces and parentheses; the mode comes last.
        let has =
            |name: &str| loaded.lines().any(|l| l.rsplit_once(" (").is_some_and(|l| l.0 == name));
        Ok(!name.is_empty() && name.split("//&").all(has))
    }

    /// Loads the profile [`text`] makes under this name, in the place of an older one.
    ///
    /// # Errors
    /// [`Error::NoParser`], [`Error::Parser`], [`Error::Refused`] with the parser's words.
    pub fn load(&self, name: &str) -> Result<()> {
        let Some(program) = &self.parser else {
            return Err(Error::NoParser { profile: name.to_owned() });
        };
        let fail =
            |source| Error::Parser { program: program.clone(), profile: name.to_owned(), source };
        let said = run(program, &text(name)).map_err(fail)?;
        match said {
            None => Ok(()),
            Some(said) => Err(Error::Refused {
                program: program.clone(),
                profile: name.to_owned(),
                said: said.trim().replace('\n', "; "),
            }),
        }
    }
}

/// Gives a parser a profile to load or replace, past its cache; what it said if it refused.
fn run(program: &Path, text: &str) -> io::Result<Option<String>> {
    let mut child = Command::new(program)
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    // The text is smaller than a pipe, so that this does not wait; a parser that takes none of it
    // says why.
    let written = stdin.map(|mut pipe| pipe.write_all(text.as_bytes()));
    let mut said = Vec::new();
    if let Some(mut pipe) = stderr {
        pipe.by_ref().take(MOST_SAID).read_to_end(&mut said)?;
        io::copy(&mut pipe, &mut io::sink())?;
    }
    let status = child.wait()?;
    if status.success() {
        return written.unwrap_or(Ok(())).map(|()| None);
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok(Some(if said.trim().is_empty() { status.to_string() } else { said }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sys(enabled: &str, profiles: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let parameters = dir.path().join("module/apparmor/parameters");
        let files = dir.path().join("kernel/security/apparmor");
        fs::create_dir_all(&parameters).unwrap();
        fs::create_dir_all(&files).unwrap();
        fs::write(parameters.join("enabled"), enabled).unwrap();
        fs::write(files.join("profiles"), profiles).unwrap();
        dir
    }

    #[test]
    fn detection() {
        let none = tempfile::tempdir().unwrap();
        assert!(AppArmor::detect(none.path(), &[]).is_none());
        assert!(AppArmor::detect(sys("N\n", "").path(), &[]).is_none());
        let on = sys("Y\n", "");
        assert!(!AppArmor::detect(on.path(), &[none.path().into()]).unwrap().has_parser());
        fs::remove_file(on.path().join("kernel/security/apparmor/profiles")).unwrap();
        assert!(AppArmor::detect(on.path(), &[]).is_none());
    }

    #[test]
    fn loaded_profiles() {
        let dir = sys(
            "Y\n",
            "crio-default (enforce)\n/usr/{bin,sbin}/my tool (x) (complain)\nlsb_release (enforce)\n",
        );
        let apparmor = AppArmor::detect(dir.path(), &[]).unwrap();
        for name in ["crio-default", "/usr/{bin,sbin}/my tool (x)", "crio-default//&lsb_release"] {
            assert!(apparmor.is_loaded(name).unwrap(), "{name}");
        }
        for name in ["", "crio", "crio-default (enforce)", "crio-default//&none", "//&"] {
            assert!(!apparmor.is_loaded(name).unwrap(), "{name}");
        }
        assert!(matches!(apparmor.load("x"), Err(Error::NoParser { .. })));
    }

    fn parser(script: &str) -> (tempfile::TempDir, AppArmor) {
        let dir = sys("Y\n", "");
        let program = dir.path().join("apparmor_parser");
        fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let apparmor = AppArmor::detect(dir.path(), &[dir.path().into()]).unwrap();
        assert!(apparmor.has_parser());
        (dir, apparmor)
    }

    #[test]
    fn the_parser_gets_the_text() {
        let (dir, apparmor) = parser("echo \"$@\" > args; cat > text");
        apparmor.load("ours").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("text")).unwrap(), text("ours"));
        assert_eq!(
            fs::read_to_string(dir.path().join("args")).unwrap(),
            "--replace --skip-cache\n"
        );
    }

    #[test]
    fn what_the_parser_says_is_told() {
        let (_dir, apparmor) = parser("cat > /dev/null; echo 'syntax error,\nline 1' >&2; exit 1");
        let e = apparmor.load("ours").unwrap_err().to_string();
        assert!(e.contains("\"ours\"") && e.ends_with("syntax error,; line 1"), "{e}");
        // It need not read, nor say anything, nor be brief.
        let (_dir, apparmor) = parser("exit 3");
        assert!(
            matches!(apparmor.load("ours"), Err(Error::Refused { said, .. }) if said.contains('3'))
        );
        let (_dir, apparmor) = parser("head -c 200000 /dev/zero | tr '\\0' x >&2; exit 1");
        assert!(
            matches!(apparmor.load("ours"), Err(Error::Refused { said, .. }) if said.len() == 4096)
        );
    }
}
