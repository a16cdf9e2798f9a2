//! OCI hooks that a node injects into containers, as oci-hooks(5) of version 1.0.0 says.
//!
//! ```text
//! folders, in order:  a.json  B.json        of two files with one name the later folder's counts
//!   ─▶ sorted by name in lower case
//!   ─▶ those whose `when` holds for the container: each condition in it, and at least one
//!   ─▶ appended to the stages that they name (`prestart` is `createRuntime`)
//! ```
//! The folders are read for each container, so that there is nothing to watch. A file that cannot
//! be understood is an error: what it would have guarded must not start without it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::{Deserialize, Serialize};

/// The version that is understood.
const VERSION: &str = "1.0.0";
/// The most that is read of a file, in bytes.
const LARGEST: u64 = 1 << 20;

/// What can be wrong with a node's hooks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A folder or file cannot be read.
    #[error("reading hooks from {path:?}")]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no JSON of the expected form.
    #[error("hook {path:?} cannot be parsed")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file breaks a rule of the format.
    #[error("hook {path:?}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which.
        problem: String,
    },
    /// A pattern is no regular expression.
    #[error("hook {path:?}: pattern {pattern:?}")]
    Pattern {
        /// The file.
        path: PathBuf,
        /// The pattern.
        pattern: String,
        /// Why.
        #[source]
        source: Box<regex::Error>,
    },
}

/// When a hook runs, with the names of the runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// In the runtime's namespaces, before the root is changed.
    #[serde(alias = "prestart")]
    CreateRuntime,
    /// In the container's namespaces, before the root is changed.
    CreateContainer,
    /// In the container, before its program.
    StartContainer,
    /// After its program has begun.
    Poststart,
    /// After it has been deleted.
    Poststop,
}

/// A program that the runtime runs, in the form of the runtime specification.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Hook {
    /// The program: absolute.
    pub path: PathBuf,
    /// Its arguments, its name the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment, `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// How long it may take, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// Hooks by their stages: what `hooks` of a runtime's `config.json` holds.
pub type Hooks = BTreeMap<Stage, Vec<Hook>>;

/// What conditions look at.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// Annotations of the container and its pod.
    pub annotations: &'a BTreeMap<String, String>,
    /// The program that it runs.
    pub command: &'a str,
    /// Whether anything of the node is mounted into it because somebody asked for it.
    pub bind_mounts: bool,
}

#[derive(Debug, Deserialize)]
struct File {
    version: String,
    hook: Hook,
    #[serde(default)]
    when: When,
    stages: Vec<Stage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct When {
    always: Option<bool>,
    annotations: BTreeMap<String, String>,
    commands: Vec<String>,
    has_bind_mounts: Option<bool>,
}

/// The hooks of these folders that are meant for a container. Folders that are not there hold none.
///
/// # Errors
/// [`Error`], with the file that is wrong.
pub fn matching(folders: &[PathBuf], container: &Container<'_>) -> Result<Hooks, Error> {
    let mut hooks = Hooks::new();
    for path in files(folders)? {
        let file = read(&path)?;
        if file.when.holds(container, &path)? {
            for stage in file.stages {
                hooks.entry(stage).or_default().push(file.hook.clone());
            }
        }
    }
    Ok(hooks)
}

/// The files that count, in their order.
fn files(folders: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut named: BTreeMap<String, PathBuf> = BTreeMap::new();
    for folder in folders {
        let failed = |source| Error::Read { path: folder.clone(), source };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(failed(e)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".json") {
                named.insert(name, entry.path());
            }
        }
    }
    let mut files: Vec<(String, PathBuf)> = named.into_iter().collect();
    files.sort_by_key(|(name, _)| name.to_lowercase());
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn read(path: &Path) -> Result<File, Error> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|f| f.take(LARGEST).read_to_end(&mut bytes))
        .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let file: File = serde_json::from_slice(&bytes)
        .map_err(|source| Error::Parse { path: path.to_owned(), source })?;
    let problem = if file.version != VERSION {
        format!("version {:?} is not {VERSION}", file.version)
    } else if !file.hook.path.is_absolute() {
        format!("path {:?} is not absolute", file.hook.path)
    } else if !file.hook.path.exists() {
        format!("the program {:?} is not there", file.hook.path)
    } else if file.hook.timeout.is_some_and(|t| t <= 0) {
        "timeout is not above 0".to_owned()
    } else {
        return Ok(file);
    };
    Err(Error::Invalid { path: path.to_owned(), problem })
}

impl When {
    fn holds(&self, container: &Container<'_>, path: &Path) -> Result<bool, Error> {
        let pattern = |text: &str| {
            Regex::new(text).map_err(|e| Error::Pattern {
                path: path.to_owned(),
                pattern: text.to_owned(),
                source: Box::new(e),
            })
        };
        // All patterns are read, whatever the first ones say: a mistake shows at once.
        let mut conditions = Vec::new();
        conditions.extend(self.always);
        conditions.extend(self.has_bind_mounts.map(|wanted| wanted && container.bind_mounts));
        for (key, value) in &self.annotations {
            let (key, value) = (pattern(key)?, pattern(value)?);
            let mut all = container.annotations.iter();
            conditions.push(all.any(|(k, v)| key.is_match(k) && value.is_match(v)));
        }
        if !self.commands.is_empty() {
            let commands: Vec<Regex> =
                self.commands.iter().map(|c| pattern(c)).collect::<Result<_, _>>()?;
            conditions.push(commands.iter().any(|c| c.is_match(container.command)));
        }
        Ok(!conditions.is_empty() && conditions.into_iter().all(|c| c))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn file(dir: &Path, name: &str, when: Value, stages: &[&str]) {
        fs::create_dir_all(dir).unwrap();
        let hook = json!({"path": "/bin/sh", "args": ["sh", name]});
        let text = json!({"version": "1.0.0", "hook": hook, "when": when, "stages": stages});
        fs::write(dir.join(name), text.to_string()).unwrap();
    }

    fn names(hooks: &Hooks, stage: Stage) -> Vec<&str> {
        hooks.get(&stage).into_iter().flatten().map(|h| h.args[1].as_str()).collect()
    }

    fn found(folders: &[PathBuf]) -> Result<Hooks, Error> {
        let annotations = [("com.example.key", "yes"), ("other", "no")];
        let annotations = annotations.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let container =
            Container { annotations: &annotations, command: "/bin/nginx", bind_mounts: true };
        matching(folders, &container)
    }

    #[test]
    fn order_and_precedence() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let always = json!({"always": true});
        file(&one, "b.json", always.clone(), &["prestart", "poststop"]);
        file(&one, "A.json", always.clone(), &["createRuntime"]);
        file(&one, "c.json", always.clone(), &["createRuntime"]);
        file(&two, "c.json", always.clone(), &["startContainer"]);
        file(&two, "not-a-hook.txt", always, &["nowhere"]);
        let hooks = found(&[one, dir.path().join("missing"), two]).unwrap();
        assert_eq!(names(&hooks, Stage::CreateRuntime), ["A.json", "b.json"]);
        assert_eq!(names(&hooks, Stage::StartContainer), ["c.json"]);
        assert_eq!(names(&hooks, Stage::Poststop), ["b.json"]);
        let text = serde_json::to_string(&hooks).unwrap();
        assert!(text.starts_with(r#"{"createRuntime":[{"path":"/bin/sh","args":["sh","A.json"]}"#));
    }

    #[test]
    fn every_condition_must_hold() {
        for (when, holds) in [
            (json!({}), false),
            (json!({"always": true}), true),
            (json!({"always": false}), false),
            (json!({"always": false, "commands": ["nginx"]}), false),
            (json!({"commands": ["^/usr", "nginx$"]}), true),
            (json!({"commands": ["^nginx"]}), false),
            (json!({"hasBindMounts": true}), true),
            (json!({"hasBindMounts": false}), false),
            (json!({"annotations": {"^com\\.example\\.": "^yes$"}}), true),
            (json!({"annotations": {"^com\\.example\\.": "^no$"}}), false),
            (json!({"annotations": {"key$": "yes", "other": "yes"}}), false),
            (json!({"always": true, "annotations": {"nothing": ".*"}}), false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            file(dir.path(), "a.json", when.clone(), &["poststart"]);
            let hooks = found(&[dir.path().to_owned()]).unwrap();
            assert_eq!(!hooks.is_empty(), holds, "{when}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_an_error() {
        let good = json!({"version": "1.0.0", "hook": {"path": "/bin/sh"}, "stages": ["poststop"],
            "when": {"always": true}});
        let with = |change: fn(&mut Value)| {
            let dir = tempfile::tempdir().unwrap();
            let mut text = good.clone();
            change(&mut text);
            fs::write(dir.path().join("a.json"), text.to_string()).unwrap();
            found(&[dir.path().to_owned()])
        };
        assert_eq!(with(|_| ()).unwrap().len(), 1);
        assert_eq!(with(|t| t["new"] = json!(1)).unwrap().len(), 1);
        type Change = fn(&mut Value);
        let bad: [Change; 9] = [
            |t| t["version"] = json!("0.1.0"),
            |t| t["hook"]["path"] = json!("bin/sh"),
            |t| t["hook"]["path"] = json!("/bin/no-such-program"),
            |t| t["hook"]["timeout"] = json!(0),
            |t| t["stages"] = json!(["precreate"]),
            |t| t["stages"] = json!(null),
            |t| t["when"]["commands"] = json!(["("]),
            |t| t["when"] = json!({"always": false, "annotations": {"[": ""}}),
            |t| *t = json!([]),
        ];
        for (n, change) in bad.into_iter().enumerate() {
            let said = with(change).unwrap_err().to_string();
            assert!(said.contains("a.json"), "{n}: {said}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "[{}\\[\\]\":,a-z0-9. ]{0,60}") {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("a.json"), text).unwrap();
            prop_assert!(found(&[dir.path().to_owned()]).is_err());
        }
    }
}
