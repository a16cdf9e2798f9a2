//! Mounts that every container of the node has: `default_mounts`, and the file that
//! `default_mounts_file` names (containers-mounts.conf(5)).
//!
//! ```text
//! default_mounts, then the lines of one file:  default_mounts_file
//!                                              else /etc/containers/mounts.conf
//!                                              else /usr/share/containers/mounts.conf
//! "/host:/inside" or "/same" ─▶ copied into <run>/containers/<id>/default-mounts/<n> ─▶ mounted
//! ```
//! What is mounted is a copy, so that a container has its own and can do nothing to the node's. It
//! lies in memory: such files are mostly secrets. What the node does not have is left out.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use criod_config::Config;
use failpoint::step;
use oci::MountInput;
use tracing::info;

use crate::error::{Error, Result};

/// Where the lines are when the configuration names no file.
const FILES: [&str; 2] = ["/etc/containers/mounts.conf", "/usr/share/containers/mounts.conf"];
/// The most that one container is given, in bytes and in files.
const MOST_BYTES: u64 = 16 << 20;
const MOST_FILES: usize = 10_000;
/// How deep folders are copied.
const DEEPEST: usize = 32;

/// Host paths and where they go.
pub(super) fn pairs(config: &Config) -> Result<Vec<(PathBuf, String)>> {
    let mut pairs = Vec::new();
    for entry in &config.default_mounts {
        let pair = parse(entry)
            .ok_or_else(|| Error::precondition(format!("default_mounts: {entry:?} is no mount")))?;
        pairs.push(pair);
    }
    let text = match &config.default_mounts_file {
        Some(path) => fs::read_to_string(path).map_err(Error::file("read", path))?,
        None => FILES.iter().find_map(|f| fs::read_to_string(f).ok()).unwrap_or_default(),
    };
    // Lines of another form are comments, as for others who read the file.
    pairs.extend(text.lines().filter_map(parse));
    Ok(pairs)
}

/// Copies what the node's default mounts name, and says what is to be mounted.
pub(crate) fn default_mounts(config: &Config, run: &Path) -> Result<Vec<MountInput>> {
    let mut copy = Copy { bytes: MOST_BYTES, files: MOST_FILES };
    let mut mounts = Vec::new();
    for (number, (host, inside)) in pairs(config)?.into_iter().enumerate() {
        let to = run.join("default-mounts").join(number.to_string());
        match fs::metadata(&host) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                info!(path = %host.display(), "a default mount is not there: left out");
                continue;
            }
            Err(e) => return Err(Error::file("look at the default mount", host)(e)),
            Ok(_) => {}
        }
        if let Some(parent) = to.parent() {
            step!("default mounts: make folder", fs::create_dir_all(parent))
                .map_err(Error::file("create", parent))?;
        }
        copy.all(&host, &to, 0).map_err(Error::file("copy the default mount", &host))?;
        mounts.push(MountInput {
            destination: inside,
            source: to.to_string_lossy().into_owned(),
            ..MountInput::default()
        });
    }
    Ok(mounts)
}

/// `/host:/inside`, or `/both`.
fn parse(line: &str) -> Option<(PathBuf, String)> {
    let line = line.trim();
    let (host, inside) = line.split_once(':').unwrap_or((line, line));
    let good = |p: &str| p.starts_with('/') && !p.contains('\0');
    (good(host) && good(inside) && crate::spec::clean(inside) != "/")
        .then(|| (PathBuf::from(host), inside.to_owned()))
}

/// What may still be copied.
struct Copy {
    bytes: u64,
    files: usize,
}

impl Copy {
    /// Copies a file or folder with its modes. Links are followed, and left out where they lead
    /// nowhere; what is neither file nor folder is left out, too.
    fn all(&mut self, from: &Path, to: &Path, depth: usize) -> std::io::Result<()> {
        let too_much = |what: &str| Err(std::io::Error::other(format!("too {what}")));
        let meta = match fs::metadata(from) {
            Ok(meta) => meta,
            Err(e) if depth > 0 && e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        if depth > DEEPEST {
            return too_much("deep");
        }
        self.files = match self.files.checked_sub(1) {
            Some(left) => left,
            None => return too_much("many files"),
        };
        if meta.is_dir() {
            step!("default mounts: make folder in one", fs::create_dir(to))?;
            for entry in fs::read_dir(from)? {
                let name = entry?.file_name();
                self.all(&from.join(&name), &to.join(&name), depth + 1)?;
            }
        } else if meta.is_file() {
            let mut bytes = Vec::new();
            fs::File::open(from)?.take(self.bytes + 1).read_to_end(&mut bytes)?;
            self.bytes = match self.bytes.checked_sub(bytes.len() as u64) {
                Some(left) => left,
                None => return too_much("large"),
            };
            step!(
                "default mounts: write",
                fs::File::options()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(to)
                    .and_then(|mut f| f.write_all(&bytes))
            )?;
        } else {
            return Ok(());
        }
        let mode = fs::Permissions::from_mode(meta.permissions().mode() & 0o7777);
        step!("default mounts: set mode", fs::set_permissions(to, mode))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn lines() {
        let same = |p: &str| Some((PathBuf::from(p), p.to_owned()));
        assert_eq!(parse(" /a "), same("/a"));
        assert_eq!(parse("/a:/b"), Some(("/a".into(), "/b".into())));
        for bad in ["", "# /a", "a:/b", "/a:b", "/a:", "/a:/", "/a:/.", "/"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_copy_with_its_modes() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("host");
        fs::create_dir_all(host.join("sub")).unwrap();
        fs::write(host.join("sub/secret"), "s").unwrap();
        fs::set_permissions(host.join("sub/secret"), fs::Permissions::from_mode(0o400)).unwrap();
        symlink("sub/secret", host.join("link")).unwrap();
        symlink("nowhere", host.join("dangling")).unwrap();
        let lines = dir.path().join("mounts.conf");
        let text = format!("# comment\n{}:/run/secrets\n/not/there\n", host.display());
        fs::write(&lines, text).unwrap();
        let config = Config {
            default_mounts: vec![format!("{}:/etc/one", host.join("link").display())],
            default_mounts_file: Some(lines),
            ..Config::default()
        };
        let run = dir.path().join("run");
        let mounts = default_mounts(&config, &run).unwrap();
        let at: Vec<_> = mounts.iter().map(|m| m.destination.as_str()).collect();
        assert_eq!(at, ["/etc/one", "/run/secrets"]);
        assert_eq!(fs::read_to_string(&mounts[0].source).unwrap(), "s");
        let copy = PathBuf::from(&mounts[1].source);
        assert_eq!(
            fs::metadata(copy.join("sub/secret")).unwrap().permissions().mode() & 0o777,
            0o400
        );
        assert_eq!(fs::read_to_string(copy.join("link")).unwrap(), "s");
        assert!(!copy.join("dangling").exists());
        let config = Config { default_mounts: vec!["a:/b".into()], ..Config::default() };
        assert!(default_mounts(&config, &run).is_err());
    }

    #[test]
    fn no_end_and_too_much_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("host");
        fs::create_dir(&host).unwrap();
        symlink(".", host.join("again")).unwrap();
        let mut copy = Copy { bytes: 10, files: 100 };
        assert!(copy.all(&host, &dir.path().join("to"), 0).is_err());
        fs::write(dir.path().join("large"), [0; 11]).unwrap();
        let mut copy = Copy { bytes: 10, files: 100 };
        let large = copy.all(&dir.path().join("large"), &dir.path().join("to2"), 0);
        assert_eq!(large.unwrap_err().to_string(), "too large");
    }
}
