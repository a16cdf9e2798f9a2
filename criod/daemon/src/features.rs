//! What the OCI runtimes and the kernel of this node can do together.
//!
//! ```text
//! <runtime> features ─▶ JSON (runtime-spec, features.md) ─┐
//! the kernel: mount_setattr, user namespaces, version     ├─▶ Features: true where both have it
//!                                                         ┘
//! ```
//! A program is asked once, as long as it is the same file. One without the verb has nothing. An
//! answer that did not come in time is asked for again later; nobody waits longer than [`LIMIT`].

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use criod_config::RuntimeHandler;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;
use tracing::{debug, warn};

use crate::node::{Node, blocking, lock, on_disk};

/// How long a runtime may take to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a Status call waits for runtimes that have not been asked yet.
const PATIENCE: Duration = Duration::from_secs(2);
/// When one that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(60);
/// More than this is no answer; runc's has 10 kB.
const LONGEST: u64 = 1 << 20;

/// What one runtime can do on this kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// Mounts that are read-only with all that is mounted below them.
    pub(crate) rro: bool,
    /// Mounts that show other owners than the file system has.
    pub(crate) idmap: bool,
    /// Containers in a user namespace of their pod's own, with [`Features::idmap`].
    pub(crate) user_namespaces: bool,
    /// Network interfaces that move into a container.
    pub(crate) net_devices: bool,
    /// Lines of resctrl's `schemata` for a class of cache and memory bandwidth.
    pub(crate) rdt_schemata: bool,
    /// Monitoring groups of resctrl.
    pub(crate) rdt_monitoring: bool,
}

#[cfg(test)]
impl Features {
    /// A runtime that can everything.
    pub(crate) const ALL: Features = Features {
        rro: true,
        idmap: true,
        user_namespaces: true,
        net_devices: true,
        rdt_schemata: true,
        rdt_monitoring: true,
    };
}

/// What the runtimes that were asked can do, by program.
#[derive(Debug, Default)]
pub(crate) struct Runtimes(Mutex<BTreeMap<PathBuf, Arc<Mutex<Known>>>>);

/// Held by the one who asks, so that the others wait for his answer.
#[derive(Debug, Default)]
struct Known(Option<(Stamp, Arc<Features>, Option<Instant>)>);

/// What tells a program from one that took its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64, u64);

impl Stamp {
    fn of(program: &Path) -> Option<Stamp> {
        let m = fs::metadata(program).ok()?;
        Some(Stamp(m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
    }
}

impl Known {
    /// What is known of the file that is there now.
    fn get(&self, stamp: Stamp) -> Option<Arc<Features>> {
        let (of, features, retry) = self.0.as_ref()?;
        let fresh = *of == stamp && retry.is_none_or(|at| Instant::now() < at);
        fresh.then(|| Arc::clone(features))
    }
}

impl Runtimes {
    fn entry(&self, program: &Path) -> Arc<Mutex<Known>> {
        Arc::clone(lock(&self.0).entry(program.to_owned()).or_default())
    }

    /// Asks a program, unless it has answered already.
    fn features(&self, program: &Path, limit: Duration) -> Arc<Features> {
        let Some(stamp) = Stamp::of(program) else { return Arc::default() };
        let entry = self.entry(program);
        let mut known = lock(&entry);
        if let Some(features) = known.get(stamp) {
            return features;
        }
        let (answer, retry) = match ask(program, limit) {
            Ok(answer) => (answer, None),
            Err(Silent) => {
                warn!(program = %program.display(), "does not say in time what it can do");
                (Answer::default(), Some(Instant::now() + AGAIN))
            }
        };
        let features = Arc::new(answer.on(kernel()));
        debug!(program = %program.display(), ?features, "runtime asked");
        known.0 = Some((stamp, Arc::clone(&features), retry));
        features
    }

    /// What is known already, without waiting for anybody.
    fn known(&self, program: &Path) -> Arc<Features> {
        let entry = self.entry(program);
        let known = entry.try_lock().ok();
        known.and_then(|k| k.get(Stamp::of(program)?)).unwrap_or_default()
    }
}

impl Node {
    /// What the runtime of a handler can do. The first call for a program runs it.
    pub(crate) fn features(&self, handler: &RuntimeHandler) -> Arc<Features> {
        on_disk(|| self.runtimes.features(Path::new(&handler.runtime_path), LIMIT))
    }

    /// What each handler's runtime can do, in the order of their names. A runtime that has not been
    /// asked yet and does not answer soon can nothing so far.
    pub(crate) async fn all_features(self: &Arc<Self>) -> Vec<(String, Arc<Features>)> {
        let node = Arc::clone(self);
        let asked = blocking(move || {
            for handler in node.config.runtimes.values() {
                node.runtimes.features(Path::new(&handler.runtime_path), LIMIT);
            }
            Ok(())
        });
        // The asking goes on for the next call.
        let _ = tokio::time::timeout(PATIENCE, asked).await;
        let all = self.config.runtimes.iter();
        all.map(|(name, h)| (name.clone(), self.runtimes.known(Path::new(&h.runtime_path))))
            .collect()
    }
}

/// What of the specification's features structure is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    mount_options: Option<Vec<String>>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    namespaces: Option<Vec<String>>,
    #[serde(default)]
    mount_extensions: Option<Extensions>,
    #[serde(default)]
    net_devices: Option<Extension>,
    #[serde(default)]
    intel_rdt: Option<Rdt>,
}

#[derive(Debug, Default, Deserialize)]
struct Rdt {
    #[serde(default)]
    schemata: Option<bool>,
    #[serde(default)]
    monitoring: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
struct Extensions {
    #[serde(default)]
    idmap: Option<Extension>,
}

#[derive(Debug, Default, Deserialize)]
struct Extension {
    #[serde(default)]
    enabled: Option<bool>,
}

/// The runtime has not answered in time.
#[derive(Debug)]
struct Silent;

impl Answer {
    /// An answer that is none says that nothing can be done.
    fn read(bytes: &[u8]) -> Answer {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    fn on(&self, kernel: Features) -> Features {
        let has = |list: Option<&Vec<String>>, what: &str| {
            list.is_some_and(|list| list.iter().any(|name| name == what))
        };
        let linux = self.linux.as_ref();
        let idmap = linux.and_then(|l| l.mount_extensions.as_ref()?.idmap.as_ref()?.enabled);
        let idmap = kernel.idmap && idmap.unwrap_or_default();
        let devices = linux.and_then(|l| l.net_devices.as_ref()?.enabled);
        let rdt = linux.and_then(|l| l.intel_rdt.as_ref());
        let user = has(linux.and_then(|l| l.namespaces.as_ref()), "user");
        Features {
            rro: kernel.rro && has(self.mount_options.as_ref(), "rro"),
            idmap,
            user_namespaces: kernel.user_namespaces && idmap && user,
            net_devices: kernel.net_devices && devices.unwrap_or_default(),
            rdt_schemata: kernel.rdt_schemata && rdt.and_then(|r| r.schemata).unwrap_or_default(),
            rdt_monitoring: kernel.rdt_monitoring
                && rdt.and_then(|r| r.monitoring).unwrap_or_default(),
        }
    }
}

/// Runs `<program> features`.
fn ask(program: &Path, limit: Duration) -> Result<Answer, Silent> {
    let run = Command::new(program)
        .arg("features")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = run else { return Ok(Answer::default()) };
    let mut child = Ended(child);
    let Some(mut output) = child.0.stdout.take() else { return Ok(Answer::default()) };
    let until = Instant::now() + limit;
    let (mut bytes, mut part) = (Vec::new(), [0; 8192]);
    while (bytes.len() as u64) < LONGEST {
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(Silent),
            Err(nix::errno::Errno::EINTR) => continue,
            _ => {}
        }
        match output.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(read) => bytes.extend_from_slice(&part[..read]),
        }
    }
    Ok(Answer::read(&bytes))
}

/// A process that nothing more is expected of.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the kernel has.
fn kernel() -> Features {
    let release = nix::sys::utsname::uname().ok();
    let release = release.and_then(|u| u.release().to_str().map(version)).unwrap_or_default();
    // mount_setattr, and with it both: Linux 5.12. Layers of overlay with other owners: 5.19.
    let attributes = sys::mount::has_attributes();
    let spaces = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    Features {
        rro: attributes,
        idmap: attributes,
        user_namespaces: release >= (5, 19) && spaces.trim().parse().is_ok_and(|n: u64| n > 0),
        net_devices: true,
        // Whether resctrl is mounted is for the runtime to find.
        rdt_schemata: true,
        rdt_monitoring: true,
    }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features = Features::ALL;

    /// From runc 1.5.2, shortened.
    const RUNC: &str = r#"{"ociVersionMin": "1.0.0", "mountOptions": ["ro", "rro"],
        "linux": {"namespaces": ["cgroup", "user"], "capabilities": ["CAP_CHOWN"],
        "mountExtensions": {"idmap": {"enabled": true}}, "netDevices": {"enabled": true},
        "intelRdt": {"enabled": true, "schemata": true, "monitoring": true}}}"#;

    /// Written by another process: a program that is open for writing cannot be run, and a test that
    /// forks meanwhile would hold it open.
    fn script(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("runtime");
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$2.new\" && chmod 755 \"$2.new\" && mv \"$2.new\" \"$2\"";
        let written = Command::new("/bin/sh").args(["-c", write, "sh", body]).arg(&path).status();
        assert!(written.unwrap().success());
        path
    }

    #[test]
    fn a_feature_needs_runtime_and_kernel() {
        let runc = Answer::read(RUNC.as_bytes());
        assert_eq!(runc.on(ALL), ALL);
        assert_eq!(runc.on(Features::default()), Features::default());
        let old = Features { user_namespaces: false, ..ALL };
        assert_eq!(runc.on(old), old);
        for (text, wanted) in [
            (r#"{"mountOptions": ["rro"]}"#, Features { rro: true, ..Features::default() }),
            (
                r#"{"linux": {"namespaces": ["user"], "mountExtensions": null}}"#,
                Features::default(),
            ),
            (
                r#"{"linux": {"mountExtensions": {"idmap": {"enabled": true}}}}"#,
                Features { idmap: true, ..Features::default() },
            ),
            (
                r#"{"linux": {"netDevices": {"enabled": true}, "intelRdt": {"schemata": false}}}"#,
                Features { net_devices: true, ..Features::default() },
            ),
            ("unknown command features", Features::default()),
            ("{}", Features::default()),
            (r#"{"mountOptions": "rro"}"#, Features::default()),
        ] {
            assert_eq!(Answer::read(text.as_bytes()).on(ALL), wanted, "{text}");
        }
    }

    #[test]
    fn a_program_is_asked_once_as_long_as_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let body = format!("echo >>{}; echo '{RUNC}'", count.display());
        let program = script(dir.path(), &body);
        let runtimes = Runtimes::default();
        assert_eq!(*runtimes.known(&program), Features::default());
        for _ in 0..3 {
            assert_eq!(*runtimes.features(&program, LIMIT), kernel());
        }
        assert_eq!(*runtimes.known(&program), kernel());
        assert_eq!(fs::read(&count).unwrap(), b"\n");
        script(dir.path(), "echo '{}'");
        assert_eq!(*runtimes.known(&program), Features::default());
        assert_eq!(*runtimes.features(&program, LIMIT), Features::default());
    }

    #[test]
    fn programs_that_hang_fail_or_never_stop_are_borne() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "exec sleep 1000");
        assert!(matches!(ask(&program, Duration::from_millis(50)), Err(Silent)));
        let program = script(dir.path(), "exec cat /dev/zero");
        assert_eq!(ask(&program, LIMIT).unwrap().on(ALL), Features::default());
        let program = script(dir.path(), "exit 1");
        assert_eq!(ask(&program, LIMIT).unwrap().on(ALL), Features::default());
        assert_eq!(ask(&dir.path().join("none"), LIMIT).unwrap().on(ALL), Features::default());
        assert_eq!(*Runtimes::default().features(dir.path(), LIMIT), Features::default());
    }

    #[test]
    fn releases() {
        assert_eq!(version("6.18.5-gcp"), (6, 18));
        assert_eq!(version("5.19-rc1"), (5, 19));
        assert_eq!(version("odd"), (0, 0));
    }
}
