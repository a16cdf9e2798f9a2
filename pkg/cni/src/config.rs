//! Network configurations: which file is used, and what it says.
//!
//! ```text
//!   folder, names in order --.
//!     10-a.conflist  a list of plugins: {cniVersion, name, plugins: [...]}
//!     20-b.conf      one plugin: {cniVersion, name, type, ...}, made a list of one
//!     30-c.json      the same
//!     a/x.conf       further plugins of list "a", unless loadOnlyInlinedPlugins
//! ```
//!
//! The first valid file wins, or the first that has the wanted name. A file that is not valid is
//! passed over, with a warning that says why.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::warn;

use crate::attachment::is_identifier;
use crate::{Error, Result, Version};

/// No configuration is larger than this.
const MAX_FILE: u64 = 1 << 20;

/// The configuration of one plugin of a list: the JSON object, with its `type`.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// The plugin's type, which is the name of its program.
    pub kind: String,
    /// The object as configured.
    pub object: Map<String, Value>,
}

impl PluginConfig {
    /// Whether the plugin declares a capability.
    pub fn declares(&self, capability: &str) -> bool {
        self.object
            .get("capabilities")
            .and_then(|declared| declared.get(capability))
            .is_some_and(|value| value == &Value::Bool(true))
    }
}

/// A network: its plugins in the order of ADD.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version that is spoken: the newest of those listed that this crate knows.
    pub version: Version,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// The plugins, at least one.
    pub plugins: Vec<PluginConfig>,
    /// The file it was read from; empty for one from the cache.
    pub path: PathBuf,
}

impl NetworkList {
    /// Whether one of the plugins declares a capability, such as `portMappings`.
    pub fn declares(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.declares(capability))
    }

    /// The list as one JSON object that holds all of its plugins.
    pub(crate) fn to_json(&self) -> Value {
        let plugins = self.plugins.iter().map(|plugin| Value::Object(plugin.object.clone()));
        serde_json::json!({
            "cniVersion": self.version.as_str(),
            "name": self.name,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "loadOnlyInlinedPlugins": true,
            "plugins": plugins.collect::<Vec<_>>(),
        })
    }

    /// Reads one file: a list if its name ends in `.conflist`, else a single plugin.
    ///
    /// # Errors
    ///
    /// [`Error::ReadConfig`], [`Error::ParseConfig`], [`Error::InvalidConfig`].
    pub fn from_file(path: &Path) -> Result<NetworkList> {
        let object = read_object(path)?;
        if path.extension() == Some(OsStr::new("conflist")) {
            NetworkList::from_list(object, path)
        } else {
            NetworkList::from_plugin(object, path)
        }
    }

    /// A list, with the further plugins from the folder of its name.
    pub(crate) fn from_list(mut object: Map<String, Value>, path: &Path) -> Result<NetworkList> {
        let invalid = |reason: String| Error::InvalidConfig { path: path.to_owned(), reason };
        let name = network_name(&object).map_err(invalid)?;
        let version = version(&object).map_err(invalid)?;
        let flag = |key| flag(&object, key).map_err(invalid);
        let (disable_check, disable_gc) = (flag("disableCheck")?, flag("disableGC")?);
        let only_inlined = flag("loadOnlyInlinedPlugins")?;
        let mut plugins = Vec::new();
        match object.remove("plugins") {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => {
                for item in items {
                    let Value::Object(item) = item else {
                        return Err(invalid("a plugin is not an object".to_owned()));
                    };
                    plugins.push(plugin(item).map_err(invalid)?);
                }
            }
            Some(_) => return Err(invalid("\"plugins\" is not a list".to_owned())),
        }
        if !only_inlined && let Some(parent) = path.parent() {
            for file in files(&parent.join(&name), &["conf"]).unwrap_or_default() {
                let further = read_object(&file)?;
                let made = plugin(further);
                plugins.push(made.map_err(|reason| Error::InvalidConfig { path: file, reason })?);
            }
        }
        if plugins.is_empty() {
            return Err(invalid("it has no plugins".to_owned()));
        }
        Ok(NetworkList { name, version, disable_check, disable_gc, plugins, path: path.to_owned() })
    }

    /// A single plugin as a list of one.
    fn from_plugin(object: Map<String, Value>, path: &Path) -> Result<NetworkList> {
        let invalid = |reason: String| Error::InvalidConfig { path: path.to_owned(), reason };
        if object.contains_key("plugins") && !object.contains_key("type") {
            let reason = "it is a list of plugins, whose file's name must end in .conflist";
            return Err(invalid(reason.to_owned()));
        }
        let name = network_name(&object).map_err(invalid)?;
        let version = version(&object).map_err(invalid)?;
        Ok(NetworkList {
            name,
            version,
            disable_check: false,
            disable_gc: false,
            plugins: vec![plugin(object).map_err(invalid)?],
            path: path.to_owned(),
        })
    }
}

/// The folder of configurations.
#[derive(Debug)]
pub struct Config;

impl Config {
    /// The network that `dir` configures: the first valid one in the order of the files' names,
    /// or the first valid one called `default_network`. Files that are not valid are warned
    /// about.
    ///
    /// # Errors
    ///
    /// [`Error::ReadDir`]; [`Error::NoNetwork`], which names each rejected file and the reason.
    pub fn load(dir: &Path, default_network: Option<&str>) -> Result<NetworkList> {
        let wanted = default_network.filter(|name| !name.is_empty());
        let found = files(dir, &["conflist", "conf", "json"])
            .map_err(|source| Error::ReadDir { dir: dir.to_owned(), source })?;
        let mut rejected = Vec::new();
        for path in found {
            match NetworkList::from_file(&path) {
                Ok(list) if wanted.is_none_or(|name| name == list.name) => return Ok(list),
                Ok(_) => {}
                Err(error) => {
                    let reason = reason(&error);
                    warn!(path = %path.display(), reason, "CNI configuration passed over");
                    rejected.push((path, reason));
                }
            }
        }
        let wanted = wanted.map(str::to_owned);
        Err(Error::NoNetwork { dir: dir.to_owned(), wanted, rejected })
    }

    /// What [`Config::load`] would read, by names, sizes and times. Two that are equal mean that
    /// nothing has changed in between.
    pub fn fingerprint(dir: &Path) -> Fingerprint {
        let mut entries = Vec::new();
        note(dir, &mut entries);
        let folders: Vec<PathBuf> = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect();
        for path in folders {
            for file in files(&path, &["conf"]).unwrap_or_default() {
                note_one(&file, &mut entries);
            }
        }
        entries.sort();
        Fingerprint(entries)
    }
}

/// A folder of configurations as it was at some time; see [`Config::fingerprint`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fingerprint(Vec<(PathBuf, u64, Option<SystemTime>)>);

fn note(dir: &Path, entries: &mut Vec<(PathBuf, u64, Option<SystemTime>)>) {
    for path in files(dir, &["conflist", "conf", "json"]).unwrap_or_default() {
        note_one(&path, entries);
    }
}

fn note_one(path: &Path, entries: &mut Vec<(PathBuf, u64, Option<SystemTime>)>) {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs::metadata(path) else { return };
    // The inode tells a file that was renamed into place within the clock's grain.
    entries.push((
        path.to_owned(),
        metadata.len() ^ (metadata.ino() << 20),
        metadata.modified().ok(),
    ));
}

/// The files of a folder with one of the extensions, in the order of their names.
fn files(dir: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let wanted = path
            .extension()
            .and_then(OsStr::to_str)
            .is_some_and(|extension| extensions.contains(&extension));
        // Through links, as a ConfigMap's files are.
        if wanted && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A file that holds one JSON object.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let failed = |source| Error::ReadConfig { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::other("larger than 1 MiB")));
    }
    serde_json::from_slice(&bytes)
        .map_err(|source| Error::ParseConfig { path: path.to_owned(), source })
}

/// The reason without the path, which stands beside it.
fn reason(error: &Error) -> String {
    match error {
        Error::ReadConfig { source, .. } => format!("cannot be read: {source}"),
        Error::ParseConfig { source, .. } => format!("not valid JSON: {source}"),
        Error::InvalidConfig { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

fn network_name(object: &Map<String, Value>) -> std::result::Result<String, String> {
    match object.get("name") {
        Some(Value::String(name)) if is_identifier(name) => Ok(name.clone()),
        Some(other) => Err(format!("{other} is no usable network name")),
        None => Err("it has no \"name\"".to_owned()),
    }
}

/// The newest known one of `cniVersion` and `cniVersions`; without any, 0.1.0 is meant.
fn version(object: &Map<String, Value>) -> std::result::Result<Version, String> {
    let mut listed = Vec::new();
    match object.get("cniVersion") {
        None => {}
        Some(Value::String(text)) => listed.push(text.as_str()),
        Some(other) => return Err(format!("cniVersion {other} is not a string")),
    }
    match object.get("cniVersions") {
        None => {}
        Some(Value::Array(items)) => {
            for item in items {
                let text = item.as_str().ok_or("cniVersions holds what is not a string")?;
                listed.push(text);
            }
        }
        Some(other) => return Err(format!("cniVersions {other} is not a list")),
    }
    listed.retain(|text| !text.is_empty());
    if listed.is_empty() {
        return Ok(Version::V010);
    }
    let known = listed.iter().filter_map(|text| text.parse::<Version>().ok()).max();
    known.ok_or_else(|| format!("CNI version {} is not known", listed.join(", ")))
}

/// A boolean, which may also be written as the string "true" or "false".
fn flag(object: &Map<String, Value>, key: &str) -> std::result::Result<bool, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key} {other} is neither true nor false")),
    }
}

fn plugin(object: Map<String, Value>) -> std::result::Result<PluginConfig, String> {
    let kind = match object.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(other) => return Err(format!("plugin type {other} is not a string")),
        None => return Err("a plugin has no \"type\"".to_owned()),
    };
    // The type is looked up in the plugin folders: it must not climb out of them.
    if kind.is_empty() || kind == "." || kind == ".." || kind.contains(['/', '\0']) {
        return Err(format!("plugin type {kind:?} is no file name"));
    }
    Ok(PluginConfig { kind, object })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new(files: &[(&str, &str)]) -> Folder {
            let folder = Folder(tempfile::tempdir().unwrap());
            for (name, text) in files {
                folder.write(name, text);
            }
            folder
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn load(&self, wanted: Option<&str>) -> Result<NetworkList> {
            Config::load(self.0.path(), wanted)
        }
    }

    const LIST: &str =
        r#"{"cniVersion":"1.0.0","name":"list","plugins":[{"type":"one"},{"type":"two"}]}"#;
    const SINGLE: &str = r#"{"cniVersion":"0.3.1","name":"single","type":"three"}"#;

    #[test]
    fn the_first_valid_one_wins() {
        let folder = Folder::new(&[
            ("00-readme.txt", "not looked at"),
            ("10-broken.conflist", "{"),
            ("20-single.conf", SINGLE),
            ("30-list.conflist", LIST),
        ]);
        fs::create_dir(folder.0.path().join("05-folder.conf")).unwrap();
        let single = folder.load(None).unwrap();
        assert_eq!((single.name.as_str(), single.version), ("single", Version::V031));
        assert_eq!(single.plugins.len(), 1);
        assert_eq!(single.path, folder.0.path().join("20-single.conf"));
        assert_eq!(folder.load(Some("")).unwrap().name, "single");
        let list = folder.load(Some("list")).unwrap();
        let kinds: Vec<&str> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        assert_eq!(kinds, ["one", "two"]);
        let error = folder.load(Some("absent")).unwrap_err().to_string();
        assert!(
            error.contains("named \"absent\"")
                && error.contains("10-broken.conflist: not valid JSON"),
            "{error}"
        );
    }

    #[test]
    fn json_files_and_missing_folders() {
        let folder = Folder::new(&[("a.json", SINGLE)]);
        assert_eq!(folder.load(None).unwrap().name, "single");
        let missing = folder.0.path().join("missing");
        assert!(matches!(Config::load(&missing, None), Err(Error::ReadDir { .. })));
        let error = Folder::new(&[]).load(None).unwrap_err();
        assert!(matches!(error, Error::NoNetwork { rejected, .. } if rejected.is_empty()));
    }

    #[test]
    fn what_is_not_valid_says_why() {
        for (name, text, reason) in [
            ("a.conf", LIST, "must end in .conflist"),
            ("a.conf", "[]", "not valid JSON"),
            ("a.conf", r#"{"name":"x"}"#, "no \"type\""),
            ("a.conf", r#"{"type":"x"}"#, "no \"name\""),
            ("a.conf", r#"{"name":"../x","type":"x"}"#, "no usable network name"),
            ("a.conf", r#"{"name":"x","type":"../x"}"#, "no file name"),
            ("a.conf", r#"{"name":"x","type":".."}"#, "no file name"),
            ("a.conf", r#"{"name":"x","type":"x","cniVersion":"9.0.0"}"#, "9.0.0 is not known"),
            ("a.conf", r#"{"name":"x","type":"x","cniVersion":1}"#, "not a string"),
            ("a.conflist", r#"{"name":"x"}"#, "no plugins"),
            ("a.conflist", r#"{"name":"x","plugins":[]}"#, "no plugins"),
            ("a.conflist", r#"{"name":"x","plugins":{}}"#, "not a list"),
            ("a.conflist", r#"{"name":"x","plugins":["y"]}"#, "not an object"),
            ("a.conflist", r#"{"name":"x","plugins":[{}]}"#, "no \"type\""),
            ("a.conflist", r#"{"name":"x","disableGC":3,"plugins":[]}"#, "neither true nor false"),
        ] {
            let error = Folder::new(&[(name, text)]).load(None).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let large = format!(r#"{{"name":"x","type":"x","y":"{}"}}"#, "z".repeat(1 << 20));
        let error = Folder::new(&[("a.conf", &large)]).load(None).unwrap_err().to_string();
        assert!(error.contains("larger than 1 MiB"), "{error}");
    }

    #[test]
    fn versions_and_flags() {
        let text = r#"{"cniVersion":"0.4.0","cniVersions":["0.3.1","1.1.0","2.0.0"],"name":"x",
            "disableCheck":true,"disableGC":"True","plugins":[{"type":"x"}]}"#;
        let list = Folder::new(&[("a.conflist", text)]).load(None).unwrap();
        assert_eq!(list.version, Version::V110);
        assert!(list.disable_check && list.disable_gc);
        let none = Folder::new(&[("a.conf", r#"{"name":"x","type":"x"}"#)]).load(None).unwrap();
        assert_eq!(none.version, Version::V010);
    }

    #[test]
    fn plugins_from_the_folder_of_the_list() {
        let folder = Folder::new(&[
            ("a.conflist", r#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"in"}]}"#),
            ("net/20.conf", r#"{"type":"second"}"#),
            ("net/10.conf", r#"{"type":"first"}"#),
            ("net/30.json", "not looked at"),
        ]);
        let list = folder.load(None).unwrap();
        let kinds: Vec<&str> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        assert_eq!(kinds, ["in", "first", "second"]);
        // The cache holds all of them and looks for no others.
        let Value::Object(cached) = list.to_json() else { panic!("no object") };
        let again = NetworkList::from_list(cached, &list.path).unwrap();
        assert_eq!(again, list);
        folder.write(
            "a.conflist",
            r#"{"name":"net","loadOnlyInlinedPlugins":true,"plugins":[{"type":"in"}]}"#,
        );
        assert_eq!(folder.load(None).unwrap().plugins.len(), 1);
        folder.write("a.conflist", r#"{"name":"net"}"#);
        assert_eq!(folder.load(None).unwrap().plugins.len(), 2);
    }

    #[test]
    fn fingerprints() {
        let folder = Folder::new(&[("a.conf", SINGLE), ("net/x.conf", "{}")]);
        let print = || Config::fingerprint(folder.0.path());
        let before = print();
        assert_eq!(before, print());
        folder.write("b.txt", "not looked at");
        assert_eq!(before, print());
        folder.write("net/y.conf", "{}");
        let second = print();
        assert_ne!(before, second);
        folder.write("a.conf.tmp", SINGLE);
        fs::rename(folder.0.path().join("a.conf.tmp"), folder.0.path().join("a.conf")).unwrap();
        assert_ne!(second, print());
        assert_eq!(Config::fingerprint(Path::new("/no/such/folder")), Fingerprint::default());
    }
}
