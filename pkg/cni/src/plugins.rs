//! The verbs: a network's plugins run in order.
//!
//! ```text
//!   nothing --add--> intent cached --all plugins--> result cached --del--> nothing
//!                        |   ^                                      ^
//!                        |   '-- the undoing failed, or we died     |
//!                        '--- a plugin failed: DEL of all ----------'
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use failpoint::step;
use nix::sys::statfs::{FsType, statfs};
use serde_json::{Map, Value, json};
use tracing::warn;

use crate::cache::{Cache, Entry};
use crate::exec::{self, Answer};
use crate::result::result_version;
use crate::{Attachment, CniResult, Error, NetworkList, PluginConfig, Result, Version};

/// How long one run of one plugin may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// ADD; 5 minutes unless told otherwise.
    pub add: Duration,
    /// DEL; 1 minute.
    pub del: Duration,
    /// CHECK; 1 minute.
    pub check: Duration,
    /// STATUS; 10 seconds.
    pub status: Duration,
    /// GC; 1 minute.
    pub gc: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            add: Duration::from_secs(300),
            del: Duration::from_secs(60),
            check: Duration::from_secs(60),
            status: Duration::from_secs(10),
            gc: Duration::from_secs(60),
        }
    }
}

/// An attachment that GC must keep.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ValidAttachment {
    /// The container's id.
    pub container_id: String,
    /// The interface's name.
    pub ifname: String,
}

/// An attachment that the cache knows of.
#[derive(Debug, Clone, PartialEq)]
pub struct Cached {
    /// The network's name.
    pub network: String,
    /// The container's id.
    pub container_id: String,
    /// The interface's name.
    pub ifname: String,
    /// The network namespace at the time of ADD.
    pub netns: PathBuf,
    /// The result; `None` for an ADD that has not ended or has failed.
    pub result: Option<CniResult>,
}

/// The installed plugins and the cache of what they attached.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// The folders of the plugins' programs, in the order of search.
    pub plugin_dirs: Vec<PathBuf>,
    /// The folder of the cache; its entries are in `results` below it.
    pub cache_dir: PathBuf,
    /// The limits.
    pub timeouts: Timeouts,
    /// Whether plugins are left at work when nobody waits for them any more.
    leave: Arc<AtomicBool>,
}

impl Plugins {
    /// With the default timeouts.
    pub fn new(plugin_dirs: Vec<PathBuf>, cache_dir: &Path) -> Plugins {
        Plugins {
            plugin_dirs,
            cache_dir: cache_dir.to_owned(),
            timeouts: Timeouts::default(),
            leave: Arc::default(),
        }
    }

    /// From here on a plugin whose future is dropped is not killed: one that is killed half way may
    /// leave what no DEL finds, and this process is about to end.
    pub fn leave(&self) {
        self.leave.store(true, Ordering::Relaxed);
    }

    /// Removes unfinished cache entries of a process that died. Only where nobody else uses the
    /// cache: what another one is just writing would go, too.
    pub fn sweep(&self) {
        Cache::new(&self.cache_dir).sweep();
    }

    /// Attaches a container to a network: each plugin gets the result of the one before it; the
    /// last one's is returned and cached. If one fails, what was done is undone by DEL.
    ///
    /// # Errors
    ///
    /// That of the plugin that failed. If the undoing failed too, that is logged, and the cache
    /// keeps the entry for a later [`Plugins::del`].
    pub async fn add(&self, list: &NetworkList, attachment: &Attachment) -> Result<CniResult> {
        attachment.validate()?;
        if attachment.netns.is_none() {
            return Err(Error::InvalidAttachment {
                container: attachment.container_id.clone(),
                what: "network namespace",
                value: String::new(),
            });
        }
        // Nothing is begun that cannot be finished.
        for plugin in &list.plugins {
            exec::find(&plugin.kind, &self.plugin_dirs)?;
        }
        let capabilities = attachment.capabilities.to_map()?;
        let cache = Cache::new(&self.cache_dir);
        let mut entry = Entry::new(list, attachment, &capabilities);
        cache.write(&entry)?;
        let mut run = Run {
            plugins: self,
            list,
            env: self.env("ADD", attachment, attachment.netns.as_deref()),
            capabilities: &capabilities,
            previous: None,
        };
        let added = match run.add().await {
            Ok(result) => {
                entry.result = run.previous.clone();
                cache.write(&entry).map(|()| result)
            }
            Err(error) => Err(error),
        };
        if added.is_err() {
            run.env = self.env("DEL", attachment, attachment.netns.as_deref());
            let undone = run.del().await;
            let cleared = undone.and_then(|()| {
                cache.remove(&list.name, &attachment.container_id, &attachment.ifname)
            });
            if let Err(error) = cleared {
                warn!(
                    network = list.name,
                    container = attachment.container_id,
                    %error,
                    "cannot undo a failed CNI ADD; it stays in the cache",
                );
            }
        }
        added
    }

    /// Detaches a container, from each network that the cache has an entry for, with the
    /// configuration, arguments and wishes of ADD; without an entry, from `list`. May be
    /// repeated, and the network namespace may be gone.
    ///
    /// All plugins are run, also after one has failed. Entries are kept unless all succeeded.
    ///
    /// # Errors
    ///
    /// Those of the plugins, as [`Error::Several`] if there are several.
    pub async fn del(&self, list: Option<&NetworkList>, attachment: &Attachment) -> Result<()> {
        attachment.validate()?;
        let cache = Cache::new(&self.cache_dir);
        let entries = cache.of(&attachment.container_id, &attachment.ifname)?;
        if entries.is_empty() {
            let Some(list) = list else { return Ok(()) };
            let run = Run {
                plugins: self,
                list,
                env: self.env("DEL", attachment, attachment.netns.as_deref()),
                capabilities: &attachment.capabilities.to_map()?,
                previous: None,
            };
            return run.del().await;
        }
        let mut errors = Vec::new();
        for entry in entries {
            if let Err(error) = self.del_entry(&cache, &entry, list, attachment).await {
                errors.push(error);
            }
        }
        Error::collect(errors)
    }

    /// Detaches what one entry of the cache tells of.
    async fn del_entry(
        &self,
        cache: &Cache,
        entry: &Entry,
        list: Option<&NetworkList>,
        attachment: &Attachment,
    ) -> Result<()> {
        let (network, container) = (&entry.network_name, &entry.container_id);
        let cached = match (entry.list(), list) {
            (Ok(cached), _) => cached,
            (Err(_), Some(list)) if list.name == *network => list.clone(),
            (Err(reason), _) => {
                let path = cache.path(network, container, &entry.if_name);
                return Err(Error::InvalidConfig { path, reason });
            }
        };
        let mut attachment = attachment.clone();
        if let Some(args) = &entry.cni_args {
            attachment.args.clone_from(args);
        }
        let wishes = match &entry.capability_args {
            Some(wishes) => wishes.clone(),
            None => attachment.capabilities.to_map()?,
        };
        let netns = attachment.netns.clone().unwrap_or_else(|| PathBuf::from(&entry.netns));
        let run = Run {
            plugins: self,
            list: &cached,
            env: self.env("DEL", &attachment, Some(&netns)),
            capabilities: &wishes,
            previous: entry.result.clone(),
        };
        run.del().await?;
        cache.remove(network, container, &entry.if_name)
    }

    /// Asks the plugins whether an attachment is as ADD left it. Nothing is asked if the
    /// configuration says `disableCheck`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] before version 0.4.0, [`Error::NotCached`] without an ADD; that of
    /// the plugin that finds something missing.
    pub async fn check(&self, list: &NetworkList, attachment: &Attachment) -> Result<()> {
        attachment.validate()?;
        if list.version < Version::V040 {
            let network = list.name.clone();
            return Err(Error::Unsupported { network, version: list.version, verb: "CHECK" });
        }
        if list.disable_check {
            return Ok(());
        }
        let cache = Cache::new(&self.cache_dir);
        let entry = cache.read(&list.name, &attachment.container_id, &attachment.ifname);
        let Some(result) = entry.and_then(|entry| entry.result) else {
            let (network, container) = (list.name.clone(), attachment.container_id.clone());
            return Err(Error::NotCached { network, container });
        };
        let run = Run {
            plugins: self,
            list,
            env: self.env("CHECK", attachment, attachment.netns.as_deref()),
            capabilities: &attachment.capabilities.to_map()?,
            previous: Some(result),
        };
        for plugin in &list.plugins {
            run.one(plugin, "CHECK", self.timeouts.check).await?;
        }
        Ok(())
    }

    /// Asks whether the network can serve an ADD: all plugins are installed, and from version
    /// 1.1.0 on each says so itself.
    ///
    /// # Errors
    ///
    /// [`Error::PluginMissing`]; [`Error::Plugin`] with code 50 or 51 from a plugin that cannot.
    pub async fn status(&self, list: &NetworkList) -> Result<()> {
        for plugin in &list.plugins {
            exec::find(&plugin.kind, &self.plugin_dirs)?;
        }
        if list.version < Version::V110 {
            return Ok(());
        }
        let run = Run {
            plugins: self,
            list,
            env: self.env_without("STATUS"),
            capabilities: &Map::new(),
            previous: None,
        };
        for plugin in &list.plugins {
            run.one(plugin, "STATUS", self.timeouts.status).await?;
        }
        Ok(())
    }

    /// Removes what belongs to attachments of this network other than `valid`: those that the
    /// cache knows by DEL, then, from version 1.1.0 on, by the plugins' own GC. Does nothing if
    /// the configuration says `disableGC`.
    ///
    /// # Errors
    ///
    /// Those of the plugins; all of them are run.
    pub async fn gc(&self, list: &NetworkList, valid: &[ValidAttachment]) -> Result<()> {
        if list.disable_gc {
            return Ok(());
        }
        let cache = Cache::new(&self.cache_dir);
        let mut errors = Vec::new();
        for entry in cache.entries()? {
            let is_valid = valid.iter().any(|kept| {
                kept.container_id == entry.container_id && kept.ifname == entry.if_name
            });
            if entry.network_name != list.name || is_valid {
                continue;
            }
            let attachment = Attachment {
                container_id: entry.container_id.clone(),
                ifname: entry.if_name.clone(),
                ..Attachment::default()
            };
            // What is in the file did not come through `add` for certain.
            let deleted = match attachment.validate() {
                Ok(()) => self.del_entry(&cache, &entry, Some(list), &attachment).await,
                Err(error) => Err(error),
            };
            errors.extend(deleted.err());
        }
        if list.version >= Version::V110 {
            let attachments: Vec<Value> = valid
                .iter()
                .map(|kept| json!({ "containerID": kept.container_id, "ifname": kept.ifname }))
                .collect();
            let run = Run {
                plugins: self,
                list,
                env: self.env_without("GC"),
                capabilities: &Map::new(),
                previous: None,
            };
            for plugin in &list.plugins {
                let mut plugin = plugin.clone();
                let key = "cni.dev/valid-attachments".to_owned();
                plugin.object.insert(key, Value::from(attachments.clone()));
                errors.extend(run.one(&plugin, "GC", self.timeouts.gc).await.err());
            }
        }
        Error::collect(errors)
    }

    /// The attachments that the cache knows of. Files that are no entries are left out.
    ///
    /// # Errors
    ///
    /// [`Error::Cache`] if the folder cannot be read; that it does not exist is no error.
    pub fn cached(&self) -> Result<Vec<Cached>> {
        let entries = Cache::new(&self.cache_dir).entries()?;
        let cached = |entry: Entry| Cached {
            result: entry
                .result
                .as_ref()
                .and_then(|result| CniResult::from_json(result, Version::V110).ok()),
            network: entry.network_name,
            container_id: entry.container_id,
            ifname: entry.if_name,
            netns: PathBuf::from(entry.netns),
        };
        Ok(entries.into_iter().map(cached).collect())
    }

    /// The environment of a verb that concerns an attachment (section 2 of the specification).
    /// A network namespace that is gone is passed as none.
    fn env(&self, verb: &str, attachment: &Attachment, netns: Option<&Path>) -> Env {
        let netns = match netns {
            Some(path) if verb != "DEL" || is_namespace(path) => path.as_os_str().to_owned(),
            _ => OsString::new(),
        };
        let mut env = self.env_without(verb);
        env.extend([
            ("CNI_CONTAINERID", OsString::from(&attachment.container_id)),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", OsString::from(&attachment.ifname)),
            ("CNI_ARGS", OsString::from(attachment.args_string())),
        ]);
        env
    }

    /// The environment of a verb that concerns no attachment.
    fn env_without(&self, verb: &str) -> Env {
        let mut path = OsString::new();
        for (index, dir) in self.plugin_dirs.iter().enumerate() {
            if index > 0 {
                path.push(":");
            }
            path.push(dir);
        }
        vec![("CNI_COMMAND", OsString::from(verb)), ("CNI_PATH", path)]
    }
}

type Env = Vec<(&'static str, OsString)>;

/// One verb's run through a list.
struct Run<'a> {
    plugins: &'a Plugins,
    list: &'a NetworkList,
    env: Env,
    capabilities: &'a Map<String, Value>,
    /// The result so far, or the cached one, in the list's version.
    previous: Option<Value>,
}

impl Run<'_> {
    /// All plugins in order; the result of the last.
    async fn add(&mut self) -> Result<CniResult> {
        let version = self.list.version;
        let mut last = CniResult::default();
        for plugin in &self.list.plugins {
            let answer = self.one(plugin, "ADD", self.plugins.timeouts.add).await?;
            last = self.result(plugin, &answer)?;
            let said: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
            let same_version = said.as_object().is_some_and(|object| {
                object.contains_key("cniVersion") && result_version(object, version) == Ok(version)
            });
            // As the plugin wrote it, with what this crate does not know, if the form is right.
            self.previous = Some(if same_version {
                said
            } else {
                last.to_json(version)
                    .map_err(|source| Error::Encode { what: "a result", source })?
            });
        }
        Ok(last)
    }

    /// The result that a plugin answered to ADD.
    fn result(&self, plugin: &PluginConfig, answer: &Answer) -> Result<CniResult> {
        let bad = |reason| Error::BadResult {
            plugin: plugin.kind.clone(),
            verb: "ADD",
            reason,
            stdout: exec::snippet(&answer.stdout, 512),
            stderr: answer.stderr.clone(),
        };
        // An error object in spite of exit status 0.
        if let Some(error) = exec::plugin_error(&plugin.kind, "ADD", &answer.stdout, &answer.stderr)
        {
            return Err(error);
        }
        let value: Value =
            serde_json::from_slice(&answer.stdout).map_err(|error| bad(error.to_string()))?;
        CniResult::from_json(&value, self.list.version).map_err(bad)
    }

    /// All plugins in reverse order, also after one has failed.
    async fn del(&self) -> Result<()> {
        let mut errors = Vec::new();
        for plugin in self.list.plugins.iter().rev() {
            errors.extend(self.one(plugin, "DEL", self.plugins.timeouts.del).await.err());
        }
        Error::collect(errors)
    }

    /// One plugin.
    async fn one(
        &self,
        plugin: &PluginConfig,
        verb: &'static str,
        timeout: Duration,
    ) -> Result<Answer> {
        let program = exec::find(&plugin.kind, &self.plugins.plugin_dirs)?;
        let stdin = serde_json::to_vec(&self.configuration(plugin, verb))
            .map_err(|source| Error::Encode { what: "a plugin's configuration", source })?;
        let call = exec::Call {
            plugin: &plugin.kind,
            program: &program,
            verb,
            env: &self.env,
            stdin,
            timeout,
            leave: &self.plugins.leave,
        };
        step!("cni: run plugin", exec::run(call).await)
    }

    /// What the plugin reads: its configuration with the list's name and version, the result so
    /// far, and those wishes whose capability it declares (section 3 of the specification).
    fn configuration(&self, plugin: &PluginConfig, verb: &str) -> Map<String, Value> {
        let mut object = plugin.object.clone();
        object.insert("name".to_owned(), Value::from(self.list.name.as_str()));
        object.insert("cniVersion".to_owned(), Value::from(self.list.version.as_str()));
        if let Some(previous) = &self.previous
            && (verb != "DEL" || self.list.version >= Version::V040)
        {
            object.insert("prevResult".to_owned(), previous.clone());
        }
        let wishes: Map<String, Value> = self
            .capabilities
            .iter()
            .filter(|(name, _)| plugin.declares(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wishes.is_empty() {
            object.insert("runtimeConfig".to_owned(), Value::Object(wishes));
        }
        object
    }
}

/// Whether a namespace is mounted at `path`, or it is one of a process.
fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: FsType = FsType(0x6e73_6673);
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}
