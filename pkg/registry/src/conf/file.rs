//! One registries.conf file: its TOML, checked, with errors that name the file and the line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{Mirror, PullFromMirror, Registry, ShortNameMode};
use crate::reference::{Reference, valid_component};

/// Why the registries' configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A file or the drop-in directory cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file says something that is not understood.
    #[error("{}:{line}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Raw {
    unqualified_search_registries: Option<Spanned<Vec<String>>>,
    short_name_mode: Option<Spanned<String>>,
    #[serde(default)]
    registry: Vec<Spanned<RawRegistry>>,
    #[serde(default)]
    aliases: BTreeMap<String, Spanned<String>>,
    // The old format's only table.
    registries: Option<Spanned<toml::Table>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawRegistry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    pull_from_mirror: Option<String>,
    #[serde(default)]
    mirror: Vec<Spanned<RawMirror>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawMirror {
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: String,
}

/// What one file says. `None` is "says nothing about it".
#[derive(Default)]
pub(super) struct Parsed {
    pub(super) search: Option<Vec<String>>,
    pub(super) mode: Option<ShortNameMode>,
    pub(super) registries: Vec<Registry>,
    /// `None` as a value removes the alias.
    pub(super) aliases: BTreeMap<String, Option<Reference>>,
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Parsed, ConfError> {
    let invalid = |at: usize, problem: String| ConfError::Invalid {
        path: path.to_owned(),
        line: text.as_bytes().iter().take(at).filter(|&&b| b == b'\n').count() + 1,
        problem,
    };
    let raw: Raw = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        invalid(at, error.message().to_owned())
    })?;
    if let Some(old) = raw.registries {
        let problem = "the [registries] tables of version 1 are not supported; \
            use unqualified-search-registries and [[registry]]";
        return Err(invalid(old.span().start, problem.into()));
    }

    let mut parsed = Parsed::default();
    if let Some(search) = raw.unqualified_search_registries {
        let at = search.span().start;
        let mut hosts = Vec::new();
        for host in search.into_inner() {
            hosts.push(place(&host).map_err(|problem| invalid(at, problem))?);
        }
        parsed.search = Some(hosts);
    }
    if let Some(mode) = raw.short_name_mode {
        let at = mode.span().start;
        parsed.mode = Some(match mode.get_ref().as_str() {
            "enforcing" => ShortNameMode::Enforcing,
            "permissive" | "" => ShortNameMode::Permissive,
            "disabled" => ShortNameMode::Disabled,
            other => {
                let problem = format!(
                    "short-name-mode {other:?} is none of \"enforcing\", \"permissive\", \"disabled\""
                );
                return Err(invalid(at, problem));
            }
        });
    }
    for registry in raw.registry {
        let at = registry.span().start;
        parsed.registries.push(
            check(registry.into_inner()).map_err(|(inner, p)| invalid(inner.unwrap_or(at), p))?,
        );
    }
    for (name, value) in raw.aliases {
        let at = value.span().start;
        let target = alias(&name, value.get_ref()).map_err(|problem| invalid(at, problem))?;
        parsed.aliases.insert(name, target);
    }
    Ok(parsed)
}

/// The problem, and where it is if not at the table itself.
type Problem = (Option<usize>, String);

fn check(raw: RawRegistry) -> Result<Registry, Problem> {
    let here = |problem: String| (None, problem);
    let location = match raw.location.as_str() {
        "" => String::new(),
        some => place(some).map_err(here)?,
    };
    let prefix = match (raw.prefix.as_str(), location.as_str()) {
        ("", "") => return Err(here("the registry has neither prefix nor location".into())),
        ("", location) => location.to_owned(),
        (prefix, _) => wildcard_location(prefix).map_err(here)?,
    };
    if location.is_empty() && !prefix.starts_with("*.") {
        let problem = "the registry has no location, and its prefix is not like *.example.com";
        return Err(here(problem.into()));
    }
    if raw.pull_from_mirror.is_some() {
        return Err(here("pull-from-mirror belongs into a [[registry.mirror]]".into()));
    }
    let mut mirrors = Vec::new();
    for mirror in raw.mirror {
        let at = mirror.span().start;
        let there = |problem: String| (Some(at), problem);
        let mirror = mirror.into_inner();
        if mirror.location.is_empty() {
            return Err(there("the mirror has no location".into()));
        }
        if raw.mirror_by_digest_only && !mirror.pull_from_mirror.is_empty() {
            let problem = "mirror-by-digest-only and pull-from-mirror exclude each other";
            return Err(there(problem.into()));
        }
        let pull = match mirror.pull_from_mirror.as_str() {
            "" if raw.mirror_by_digest_only => PullFromMirror::DigestOnly,
            "" | "all" => PullFromMirror::All,
            "digest-only" => PullFromMirror::DigestOnly,
            "tag-only" => PullFromMirror::TagOnly,
            other => {
                let problem = format!(
                    "pull-from-mirror {other:?} is none of \"all\", \"digest-only\", \"tag-only\""
                );
                return Err(there(problem));
            }
        };
        let location = place(&mirror.location).map_err(there)?;
        mirrors.push(Mirror { location, insecure: mirror.insecure, pull });
    }
    let (insecure, blocked) = (raw.insecure, raw.blocked);
    Ok(Registry { prefix, location, insecure, blocked, mirrors })
}

/// A location that images can be fetched from: its host must be recognisable as one, or what it
/// makes would be read as a path of the default registry.
fn place(text: &str) -> Result<String, String> {
    let place = location(text)?;
    let host = place.split('/').next().unwrap_or_default();
    if !crate::reference::is_domain(host) {
        return Err(format!("location {text:?} needs a host with a dot or a port"));
    }
    Ok(place)
}

/// A location is written without a scheme; slashes at its end mean nothing.
fn location(text: &str) -> Result<String, String> {
    let trimmed = text.trim_end_matches('/');
    if text.contains("://") {
        return Err(format!("location {text:?} must not have a scheme such as https://"));
    }
    let (host, path) = trimmed.split_once('/').unwrap_or((trimmed, ""));
    // What follows the host may end in the middle of a reference: after a tag, even.
    let path_ok = path
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':' | b'@'));
    if !crate::reference::valid_domain(host) || !path_ok {
        return Err(format!("location {text:?} is not host[:port][/path]"));
    }
    Ok(trimmed.to_owned())
}

fn wildcard_location(prefix: &str) -> Result<String, String> {
    match prefix.strip_prefix("*.") {
        // A wildcard stands for a host's first labels: nothing comes after the host.
        Some(rest) if rest.contains('/') => {
            Err(format!("prefix {prefix:?}: a wildcard can only be followed by a host"))
        }
        Some(rest) => location(rest).map(|rest| format!("*.{rest}")),
        None => location(prefix),
    }
}

fn alias(name: &str, value: &str) -> Result<Option<Reference>, String> {
    if !name.split('/').all(valid_component) {
        return Err(format!("alias {name:?} is not a short name without tag and digest"));
    }
    if let Ok((_, false)) = Reference::parse_short(name) {
        return Err(format!("alias {name:?} names a registry already"));
    }
    if value.is_empty() {
        return Ok(None);
    }
    let problem = |why: String| format!("alias {name:?} = {value:?}: {why}");
    let (target, short) = Reference::parse_short(value).map_err(|e| problem(e.to_string()))?;
    if short {
        return Err(problem("the registry is missing".into()));
    }
    if target.tag().is_some() || target.digest().is_some() {
        return Err(problem("a tag or a digest is not allowed".into()));
    }
    Ok(Some(target))
}
