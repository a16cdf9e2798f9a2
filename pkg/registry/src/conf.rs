//! registries.conf, version 2: which registries an unqualified name may mean, and where an image is
//! really fetched from.
//!
//! ```text
//!   "nginx:1" ── candidates() ──> [docker.io/library/nginx:1, …]      (aliases, search registries)
//!   reference ── sources() ────> [mirror 1, mirror 2, the location]   (the longest matching prefix)
//! ```
//!
//! The main file comes first, then the `*.conf` files of the drop-in directory by name. A later
//! file replaces single settings, registries of the same prefix and aliases of the same name; an
//! alias of `""` is removed (containers-registries.conf(5), containers-registries.conf.d(5)).
//!
//! A blocked registry is never contacted, but the mirrors configured for it are: that is how a
//! cluster says "from the mirror only".

mod file;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use file::ConfError;

use crate::reference::{Reference, ReferenceError};

/// What an unqualified name may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShortNameMode {
    /// One registry only: several are an error, unless an alias decides.
    Enforcing,
    /// Several are tried in order, as nobody can be asked.
    #[default]
    Permissive,
    /// Several are tried in order.
    Disabled,
}

/// Why a name cannot be turned into places to fetch from.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The name is malformed.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Several registries could be meant.
    #[error("short name mode is enforcing, but image name {name} returns ambiguous list: {}",
        .candidates.iter().map(Reference::to_string).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// The name as given.
        name: String,
        /// What it could mean.
        candidates: Vec<Reference>,
    },
    /// No registry could be meant.
    #[error("image name {name} names no registry, has no alias, and there are no unqualified-search registries{}",
        .path.as_ref().map(|p| format!(" in {}", p.display())).unwrap_or_default())]
    NoSearchRegistries {
        /// The name as given.
        name: String,
        /// The configuration.
        path: Option<PathBuf>,
    },
    /// The configuration forbids the registry.
    #[error("registry {prefix} is blocked, so {reference} cannot be pulled")]
    Blocked {
        /// What was asked for.
        reference: String,
        /// The registry's prefix.
        prefix: String,
    },
    /// Prefix and location make a reference that is malformed.
    #[error("{reference} becomes {rewritten:?} by the registries' configuration")]
    Rewrite {
        /// What was asked for.
        reference: String,
        /// What came out.
        rewritten: String,
        /// What is wrong with it.
        #[source]
        source: ReferenceError,
    },
}

/// When a mirror is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PullFromMirror {
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    location: String,
    insecure: bool,
    pull: PullFromMirror,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Registry {
    prefix: String,
    /// Empty: the reference as it is (with a wildcard prefix only).
    location: String,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

/// A place to fetch an image from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// `host[:port]`, as configured (`docker.io` stays that).
    pub host: String,
    /// The repository there.
    pub repository: String,
    /// No certificate checks, and plain HTTP when the server does not speak TLS.
    pub insecure: bool,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)
    }
}

/// The merged configuration.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    path: Option<PathBuf>,
    search: Vec<String>,
    mode: ShortNameMode,
    registries: Vec<Registry>,
    aliases: BTreeMap<String, Reference>,
}

impl Registries {
    /// Reads the file `path` and the `*.conf` files of the directory `dir`. What does not exist
    /// says nothing.
    pub fn load(path: &Path, dir: Option<&Path>) -> Result<Registries, ConfError> {
        let mut all = Registries { path: Some(path.to_owned()), ..Registries::default() };
        let mut files = vec![path.to_owned()];
        if let Some(dir) = dir {
            files.extend(drop_ins(dir)?);
        }
        for file in files {
            match std::fs::read_to_string(&file) {
                Ok(text) => all.merge(file::parse(&file, &text)?),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(ConfError::Read { path: file, source }),
            }
        }
        Ok(all)
    }

    /// Reads one text; `path` is for the errors.
    pub fn parse(path: &Path, text: &str) -> Result<Registries, ConfError> {
        let mut all = Registries { path: Some(path.to_owned()), ..Registries::default() };
        all.merge(file::parse(path, text)?);
        Ok(all)
    }

    fn merge(&mut self, parsed: file::Parsed) {
        if let Some(search) = parsed.search {
            self.search = search;
        }
        if let Some(mode) = parsed.mode {
            self.mode = mode;
        }
        for registry in parsed.registries {
            match self.registries.iter_mut().find(|r| r.prefix == registry.prefix) {
                Some(same) => *same = registry,
                None => self.registries.push(registry),
            }
        }
        for (name, target) in parsed.aliases {
            match target {
                Some(target) => self.aliases.insert(name, target),
                None => self.aliases.remove(&name),
            };
        }
    }

    /// The registries tried for an unqualified name, in order.
    pub fn search_registries(&self) -> &[String] {
        &self.search
    }

    /// What an unqualified name may become.
    pub fn short_name_mode(&self) -> ShortNameMode {
        self.mode
    }

    /// The same with another mode for unqualified names.
    pub fn with_short_name_mode(mut self, mode: ShortNameMode) -> Registries {
        self.mode = mode;
        self
    }

    /// The same with other search registries.
    pub fn with_search_registries(mut self, hosts: Vec<String>) -> Registries {
        self.search = hosts;
        self
    }

    /// The same with all traffic to `host` insecure (a registry, `host[:port]`).
    pub fn with_insecure(mut self, host: &str) -> Registries {
        match self.registries.iter_mut().find(|r| r.prefix == host) {
            Some(registry) => registry.insecure = true,
            None => self.registries.push(Registry {
                prefix: host.to_owned(),
                location: host.to_owned(),
                insecure: true,
                blocked: false,
                mirrors: Vec::new(),
            }),
        }
        self
    }

    /// The references `name` may mean, in the order to try them. A qualified name means itself.
    /// Where neither tag nor digest is given the tag is `latest`; beside a digest the tag is dropped.
    pub fn candidates(&self, name: &str) -> Result<Vec<Reference>, LookupError> {
        let (reference, short) = Reference::parse_short(name)?;
        if !short {
            return Ok(vec![reference.with_default_tag().without_redundant_tag()]);
        }
        let bare = name.split(['@', ':']).next().unwrap_or_default();
        let suffix = &name[bare.len()..];
        let complete = |repository: &str| {
            Reference::parse(&format!("{repository}{suffix}"))
                .map(|reference| reference.with_default_tag().without_redundant_tag())
        };
        // An alias counts in every mode.
        if let Some(target) = self.aliases.get(bare) {
            return Ok(vec![complete(&target.name())?]);
        }
        let mut candidates: Vec<Reference> = Vec::new();
        for host in &self.search {
            let candidate = complete(&format!("{host}/{bare}"))?;
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
        match candidates.len() {
            0 => {
                let (name, path) = (name.to_owned(), self.path.clone());
                Err(LookupError::NoSearchRegistries { name, path })
            }
            2.. if self.mode == ShortNameMode::Enforcing => {
                Err(LookupError::Ambiguous { name: name.to_owned(), candidates })
            }
            _ => Ok(candidates),
        }
    }

    /// Where to fetch `reference` from, in the order to try: its mirrors, then its location.
    pub fn sources(&self, reference: &Reference) -> Result<Vec<Endpoint>, LookupError> {
        let text = reference.to_string();
        let Some((registry, matched)) = self.find(&text) else {
            return Ok(vec![endpoint(reference, false)]);
        };
        let digested = reference.digest().is_some();
        let mut sources = Vec::new();
        for mirror in &registry.mirrors {
            let wanted = match mirror.pull {
                PullFromMirror::All => true,
                PullFromMirror::DigestOnly => digested,
                PullFromMirror::TagOnly => !digested,
            };
            if !wanted {
                continue;
            }
            let place = rewrite(reference, &mirror.location, &text[matched..])?;
            // A mirror may have an entry of its own, which says how it is to be spoken to.
            let own = self.find(&place.to_string()).map(|(own, _)| own);
            if own.is_some_and(|own| own.blocked && own.prefix != registry.prefix) {
                continue;
            }
            let insecure = mirror.insecure || own.is_some_and(|own| own.insecure);
            sources.push(endpoint(&place, insecure));
        }
        if !registry.blocked {
            let place = match registry.location.as_str() {
                "" => reference.clone(),
                location => rewrite(reference, location, &text[matched..])?,
            };
            sources.push(endpoint(&place, registry.insecure));
        }
        if sources.is_empty() {
            let (reference, prefix) = (text, registry.prefix.clone());
            return Err(LookupError::Blocked { reference, prefix });
        }
        let mut seen = std::collections::HashSet::new();
        sources.retain(|source| seen.insert(source.clone()));
        Ok(sources)
    }

    /// The registry with the longest prefix matching, and how much of `text` it matches.
    fn find(&self, text: &str) -> Option<(&Registry, usize)> {
        self.registries
            .iter()
            .filter_map(|registry| Some((registry, matches(text, &registry.prefix)?)))
            .max_by_key(|(registry, _)| registry.prefix.len())
    }
}

fn endpoint(reference: &Reference, insecure: bool) -> Endpoint {
    Endpoint {
        host: reference.domain().to_owned(),
        repository: reference.path().to_owned(),
        insecure,
    }
}

fn rewrite(reference: &Reference, location: &str, rest: &str) -> Result<Reference, LookupError> {
    let rewritten = format!("{location}{rest}");
    let source = match Reference::parse_short(&rewritten) {
        Ok((place, false)) => return Ok(place),
        // The location's host is all there is, and was read as the path of another registry.
        Ok((_, true)) => ReferenceError::Path { name: rewritten.clone(), path: String::new() },
        Err(error) => error,
    };
    Err(LookupError::Rewrite { reference: reference.to_string(), rewritten, source })
}

/// How many bytes of the reference `text` the `prefix` covers, if it matches.
///
/// A prefix ends at a boundary (`/`, `:`, `@` or the end). As in the original implementation a
/// prefix that is a host alone also matches that host with a port. `*.` stands for any number of
/// labels, at least one.
fn matches(text: &str, prefix: &str) -> Option<usize> {
    let end = match prefix.strip_prefix('*') {
        Some(suffix) => {
            let host = text.split('/').next().unwrap_or_default();
            let at = host
                .match_indices(suffix)
                .map(|(at, _)| at)
                .find(|at| *at > 0 && boundary(text, at + suffix.len()))?;
            at + suffix.len()
        }
        None => text.starts_with(prefix).then_some(prefix.len())?,
    };
    boundary(text, end).then_some(end)
}

fn boundary(text: &str, at: usize) -> bool {
    matches!(text.as_bytes().get(at), None | Some(b'/' | b':' | b'@'))
}

fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfError> {
    let read = |source| ConfError::Read { path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|e| e == "conf") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests;
