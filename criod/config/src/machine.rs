//! What the defaults depend on: whether systemd runs the machine, and which runtimes it has.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::handler::RuntimeHandler;
use crate::types::CgroupManager;

/// Where programs are looked for when there is no PATH.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The runtimes that need no configuration, the one that is liked best first.
const KNOWN: [&str; 2] = ["crun", "runc"];

/// The facts of a machine from which its defaults follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Whether systemd is the init.
    pub systemd: bool,
    /// Where programs are looked for, as in PATH.
    pub path: String,
}

impl Machine {
    /// This machine; `path` is PATH, where it is set.
    pub fn here(path: Option<&str>) -> Self {
        Machine {
            systemd: Path::new("/run/systemd/system").is_dir(),
            path: path.filter(|p| !p.is_empty()).unwrap_or(DEFAULT_PATH).to_owned(),
        }
    }

    /// The configuration here when nobody says anything: the cgroup manager, handlers for crun and
    /// runc where they are, and the first of them as the default.
    pub fn defaults(&self) -> Config {
        let mut config = Config::default();
        if !self.systemd {
            config.cgroup_manager = CgroupManager::Cgroupfs;
        }
        for name in KNOWN {
            let Some(found) = self.find(name) else { continue };
            // A path that is not text could not be written down again.
            let Some(found) = found.to_str() else { continue };
            config.runtimes.insert(name.to_owned(), RuntimeHandler::at(found));
            if config.default_runtime.is_empty() {
                config.default_runtime = name.to_owned();
            }
        }
        config
    }

    /// The program `name` in PATH. Relative entries of PATH are passed over: what they name depends
    /// on where the daemon was started.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        if name.is_empty() || name.contains('/') {
            return None;
        }
        self.path
            .split(':')
            .filter(|folder| folder.starts_with('/'))
            .map(|folder| Path::new(folder).join(name))
            .find(|file| is_program(file))
    }
}

/// Whether a file is there that somebody may execute.
pub(crate) fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
