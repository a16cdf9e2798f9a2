//! One file: TOML text into the configuration.
//!
//! Tables are walked in the order of the file, so that of several mistakes the first one is
//! reported:
//! ```text
//! crio.runtime.pids_limit      a key of the table           -> read
//! crio.runtime                 a section, or on the way     -> walk into it
//! crio.runtime.runtimes.NAME   a handler                    -> a new one, from its own defaults
//! anything else                                             -> warning with the nearest name
//! ```

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::Config;
use crate::error::{Error, Origin, Warning};
use crate::handler::{RuntimeHandler, Workload};
use crate::key::{Key, Keyed};
use crate::load::Sources;
use crate::setting::{Problem, bare_or_quoted, expected};

pub(crate) const RUNTIMES: &str = "crio.runtime.runtimes";
pub(crate) const WORKLOADS: &str = "crio.runtime.workloads";

/// Reads `text`, which is the content of `path`, over `config`. After an error `config` holds what
/// came before it.
pub(crate) fn apply(
    path: &Path,
    text: &str,
    config: &mut Config,
    sources: &mut Sources,
    warnings: &mut Vec<Warning>,
) -> Result<(), Error> {
    // Editors of other systems begin a file with a mark that is no part of it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let document = DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(0, |s| s.start);
        let (line, column) = position(text, at);
        let message = e.message().trim().replace('\n', ", ");
        Error::Syntax { path: path.to_path_buf(), line, column, message }
    })?;
    let mut reader = Reader { path, text, config, sources, warnings };
    reader.section("", document.get_ref())
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    config: &'a mut Config,
    sources: &'a mut Sources,
    warnings: &'a mut Vec<Warning>,
}

type Entry<'t, 'i> = (&'t str, Range<usize>, &'t Spanned<DeValue<'i>>);

fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<Entry<'t, 'i>> {
    let mut entries: Vec<_> =
        table.iter().map(|(k, v)| (k.get_ref().as_ref(), k.span(), v)).collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    entries
}

impl Reader<'_> {
    fn origin(&self, span: &Range<usize>) -> Origin {
        Origin::File(self.path.to_path_buf(), position(self.text, span.start).0)
    }

    fn error(&self, key: &str, problem: Problem) -> Error {
        Error::Value {
            origin: self.origin(&problem.span),
            key: key.to_owned(),
            problem: problem.text,
        }
    }

    fn table<'v, 'i>(
        &self,
        key: &str,
        value: &'v Spanned<DeValue<'i>>,
    ) -> Result<&'v DeTable<'i>, Error> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.error(key, expected("a table", value))),
        }
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>) -> Result<(), Error> {
        for (name, span, value) in in_order(table) {
            let path = join(section, name);
            let key = Config::keys().iter().find(|k| k.section == section && k.name == name);
            if let Some(key) = key {
                (key.read)(self.config, value).map_err(|p| self.error(&path, p))?;
                self.sources.keys.insert(path, self.origin(&span));
            } else if path == RUNTIMES {
                for (name, span, value) in in_order(self.table(&path, value)?) {
                    let handler = self.repeated::<RuntimeHandler>(&path, name, span, value)?;
                    self.config.runtimes.insert(name.to_owned(), handler);
                }
            } else if path == WORKLOADS {
                for (name, span, value) in in_order(self.table(&path, value)?) {
                    let workload = self.repeated::<Workload>(&path, name, span, value)?;
                    self.config.workloads.insert(name.to_owned(), workload);
                }
            } else if is_section(&path) {
                self.section(&path, self.table(&path, value)?)?;
            } else {
                let nearest = nearest_key(section, name);
                self.warnings.push(Warning::UnknownKey {
                    key: path,
                    origin: self.origin(&span),
                    nearest,
                });
            }
        }
        Ok(())
    }

    /// One table of those that repeat. It starts from its own defaults: what a lower file said
    /// about the same name is gone.
    fn repeated<T: Keyed>(
        &mut self,
        parent: &str,
        name: &str,
        span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<T, Error> {
        let whole = join(parent, name);
        let mut item = T::default();
        let table = self.table(&whole, value)?;
        self.sources.forget(&whole);
        self.sources.keys.insert(whole.clone(), self.origin(&span));
        for (name, span, value) in in_order(table) {
            let path = join(&whole, name);
            match T::keys().iter().find(|k| k.name == name) {
                Some(key) => {
                    (key.read)(&mut item, value).map_err(|p| self.error(&path, p))?;
                    self.sources.keys.insert(path, self.origin(&span));
                }
                None => {
                    let names = T::keys().iter().map(|k| k.name);
                    let nearest = nearest(name, names).map(str::to_owned);
                    let origin = self.origin(&span);
                    self.warnings.push(Warning::UnknownKey { key: path, origin, nearest });
                }
            }
        }
        Ok(item)
    }
}

pub(crate) fn join(section: &str, name: &str) -> String {
    let name = bare_or_quoted(name);
    if section.is_empty() { name } else { format!("{section}.{name}") }
}

fn is_section(path: &str) -> bool {
    Config::keys().iter().any(|k| {
        k.section.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Line and column of a byte, from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let characters = before.iter().skip(start).filter(|b| (**b & 0xC0) != 0x80).count();
    (line, characters + 1)
}

/// What `name` in `section` may have been meant to be: a key or table there, the same name in
/// another section, or one like it there.
fn nearest_key(section: &str, name: &str) -> Option<String> {
    let keys = Config::keys();
    let other = |k: &Key<Config>| (k.section != section).then(|| k.path());
    if let Some(path) = keys.iter().filter(|k| k.name == name).find_map(other) {
        return Some(path);
    }
    let here = keys.iter().filter(|k| k.section == section).map(|k| k.name);
    let tables = keys.iter().map(|k| k.section).chain([RUNTIMES, WORKLOADS]).filter_map(|s| {
        let rest =
            if section.is_empty() { s } else { s.strip_prefix(section)?.strip_prefix('.')? };
        rest.split('.').next()
    });
    if let Some(near) = nearest(name, here.chain(tables)) {
        return Some(near.to_owned());
    }
    let elsewhere = nearest(name, keys.iter().map(|k| k.name))?;
    keys.iter().find(|k| k.name == elsewhere).map(Key::path)
}

/// The candidate with the fewest edits, at most 3 and fewer than half of the name.
fn nearest<'c>(name: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let length = name.chars().count();
    candidates
        .filter(|c| c.len().abs_diff(name.len()) <= 3 * 4)
        .map(|c| (distance(name, c), c))
        .filter(|(d, _)| *d <= 3 && *d * 2 < length.max(2))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Edits between two names: insert, delete, replace, swap neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let get = |r: &[usize], at: usize| r.get(at).copied().unwrap_or(usize::MAX / 2);
            let mut best = (get(&row, j) + usize::from(ca != cb))
                .min(get(&row, j + 1) + 1)
                .min(get(&next, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(cb) && b.get(j - 1) == Some(ca);
            if swapped {
                best = best.min(get(&above, j - 1) + 1);
            }
            next.push(best);
        }
        above = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}
