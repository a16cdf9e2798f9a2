//! What can be set, and the registries' configuration as it stands on the disk.
//!
//! registries.conf and its drop-ins are looked at (not read) before every use, and read again when
//! a file came, went or changed. What cannot be read then is said once, and the last good
//! configuration stays.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use registry::auth::AuthFileError;
use registry::{
    AuthFile, ClientOptions, Credentials, Keyring, Platform, Registries, ShortNameMode,
};

use crate::Error;

/// Where credentials are looked for when no file is named.
const AUTH_FILES: [&str; 3] = [
    "/run/containers/0/auth.json",
    "/root/.config/containers/auth.json",
    "/root/.docker/config.json",
];

/// How [`Images`](crate::Images) behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file with the registries; one that does not exist says nothing.
    pub registries_conf: PathBuf,
    /// The folder with its drop-ins.
    pub registries_conf_dir: Option<PathBuf>,
    /// The file with credentials, for requests that bring none; the usual places if there is none.
    pub global_auth_file: Option<PathBuf>,
    /// What becomes of a name that several registries could serve; by itself what the file says.
    pub short_name_mode: Option<ShortNameMode>,
    /// How long nothing may arrive of a layer; 60 seconds if not said. There is no "for ever": one
    /// dead registry would stop all pulls of the node.
    pub pull_progress_timeout: Option<Duration>,
    /// Images the kubelet must not remove: a full name, `beginning*` or `*part*`.
    pub pinned: Vec<String>,
    /// Registries (`host[:port]`) without certificate checks, by plain HTTP if they speak no TLS.
    pub insecure_registries: Vec<String>,
    /// How the client of registries behaves.
    pub client: ClientOptions,
    /// Which of an index's images is taken.
    pub platform: Platform,
    /// Bounds of one layer.
    pub limits: storage::Limits,
    /// How many layers of one pull are under way at once.
    pub layers_per_pull: usize,
    /// How many layers are unpacked at once in all.
    pub layers_at_once: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            registries_conf: "/etc/containers/registries.conf".into(),
            registries_conf_dir: Some("/etc/containers/registries.conf.d".into()),
            global_auth_file: None,
            short_name_mode: None,
            pull_progress_timeout: None,
            pinned: Vec::new(),
            insecure_registries: Vec::new(),
            client: ClientOptions::default(),
            platform: Platform::host(),
            limits: storage::Limits::default(),
            layers_per_pull: 6,
            layers_at_once: 8,
        }
    }
}

/// A file's identity and time: another one means other content.
type Stamp = (PathBuf, Option<(SystemTime, u64)>);

/// The registries' configuration, kept up to date.
pub(crate) struct Conf {
    file: PathBuf,
    dir: Option<PathBuf>,
    mode: Option<ShortNameMode>,
    insecure: Vec<String>,
    read: Mutex<(Vec<Stamp>, Arc<Registries>)>,
}

impl Conf {
    pub(crate) fn new(options: &Options) -> Result<Conf, Error> {
        let conf = Conf {
            file: options.registries_conf.clone(),
            dir: options.registries_conf_dir.clone(),
            mode: options.short_name_mode,
            insecure: options.insecure_registries.clone(),
            read: Mutex::default(),
        };
        let stamps = conf.stamps();
        let registries = conf.load()?;
        *conf.read.lock().unwrap_or_else(PoisonError::into_inner) = (stamps, Arc::new(registries));
        Ok(conf)
    }

    /// The configuration as of now.
    pub(crate) fn get(&self) -> Arc<Registries> {
        let stamps = self.stamps();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.0 != stamps {
            read.0 = stamps;
            match self.load() {
                Ok(registries) => {
                    tracing::info!(file = %self.file.display(), "registries read again");
                    read.1 = Arc::new(registries);
                }
                Err(error) => {
                    tracing::warn!(error = error.full(), "the registries stay as they were");
                }
            }
        }
        read.1.clone()
    }

    fn load(&self) -> Result<Registries, Error> {
        let mut registries = Registries::load(&self.file, self.dir.as_deref())
            .map_err(|source| Error::Registries { source: Box::new(source) })?;
        if let Some(mode) = self.mode {
            registries = registries.with_short_name_mode(mode);
        }
        for host in &self.insecure {
            registries = registries.with_insecure(host);
        }
        Ok(registries)
    }

    fn stamps(&self) -> Vec<Stamp> {
        let stamp = |path: &Path| {
            let meta = std::fs::metadata(path).ok();
            (path.to_owned(), meta.and_then(|m| Some((m.modified().ok()?, m.len()))))
        };
        let mut stamps = vec![stamp(&self.file)];
        if let Some(dir) = &self.dir {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            stamps.extend(entries.map(|entry| stamp(&entry.path())));
        }
        stamps[1..].sort();
        stamps
    }
}

/// What to show registries: what the request brings, then what files hold.
pub(crate) fn keyring(
    image: &str,
    given: Credentials,
    file: Option<&Path>,
) -> Result<Keyring, Error> {
    let mut keyring = Keyring::given(given);
    let files: Vec<&Path> = match file {
        Some(file) => vec![file],
        None => AUTH_FILES.iter().map(Path::new).collect(),
    };
    for path in files {
        match AuthFile::load(path) {
            Ok(read) => keyring = keyring.with_file(read),
            Err(AuthFileError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) if file.is_some() => {
                return Err(Error::AuthFile { image: image.into(), source: Box::new(source) });
            }
            // Not ours: another program's, in a form that we need not know.
            Err(error) => tracing::warn!(%error, "credentials passed over"),
        }
    }
    Ok(keyring)
}

/// Which images are pinned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pinned(Vec<Pattern>);

#[derive(Debug, Clone)]
enum Pattern {
    Exact(String),
    Beginning(String),
    /// In lower case: it is compared without regard to case.
    Part(String),
}

impl Pinned {
    pub(crate) fn new(patterns: &[String]) -> Pinned {
        let read = |pattern: &String| {
            let pattern = pattern.trim();
            match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
                _ if pattern.trim_matches('*').is_empty() => None,
                (Some(rest), Some(_)) => {
                    Some(Pattern::Part(rest.trim_end_matches('*').to_lowercase()))
                }
                (None, Some(beginning)) => Some(Pattern::Beginning(beginning.into())),
                _ => Some(Pattern::Exact(pattern.into())),
            }
        };
        Pinned(patterns.iter().filter_map(read).collect())
    }

    /// Whether a full name is one of them.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Exact(exact) => name == exact,
            Pattern::Beginning(beginning) => name.starts_with(beginning.as_str()),
            Pattern::Part(part) => name.to_lowercase().contains(part.as_str()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_patterns() {
        let pinned = |pattern: &str| Pinned::new(&[pattern.to_owned()]);
        let name = "registry.k8s.io/pause:3.10";
        assert!(pinned(name).has(name));
        assert!(!pinned("registry.k8s.io/pause").has(name));
        assert!(pinned("registry.k8s.io/pause*").has(name));
        assert!(!pinned("k8s.io/pause*").has(name));
        assert!(pinned("*PAUSE*").has(name));
        assert!(!pinned("*other*").has(name));
        for nothing in ["", "*", "**", " "] {
            assert!(!pinned(nothing).has(name), "{nothing:?}");
        }
    }

    #[test]
    fn registries_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            registries_conf: dir.path().join("registries.conf"),
            registries_conf_dir: Some(dir.path().join("d")),
            ..Options::default()
        };
        let conf = Conf::new(&options).unwrap();
        assert!(conf.get().search_registries().is_empty());
        let write = |text: &str| std::fs::write(&options.registries_conf, text).unwrap();
        write("unqualified-search-registries = ['a.io']");
        assert_eq!(conf.get().search_registries(), ["a.io"]);
        write("this is no TOML");
        assert_eq!(conf.get().search_registries(), ["a.io"]);
        assert!(Conf::new(&options).is_err());
        write("unqualified-search-registries = ['b.io']");
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/1.conf"), "unqualified-search-registries = ['c.io']")
            .unwrap();
        assert_eq!(conf.get().search_registries(), ["c.io"]);
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(conf.get().search_registries().is_empty());
    }

    #[test]
    fn a_missing_auth_file_is_no_error_a_broken_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        assert!(keyring("a", Credentials::Anonymous, Some(&file)).is_ok());
        std::fs::write(&file, "{").unwrap();
        let error = keyring("a", Credentials::Anonymous, Some(&file)).unwrap_err();
        assert!(error.full().contains("auth.json"), "{}", error.full());
    }
}
