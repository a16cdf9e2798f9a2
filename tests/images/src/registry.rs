//! Runs Debian's docker-registry on loopback, with everything below one folder.
//!
//! ```text
//! DIR/registry.yml   DIR/registry.log   DIR/registry.pid   DIR/address   DIR/registries.conf   DIR/data/
//! serve: write files, start in a session of its own, wait for "listening on", write the address
//! stop:  is the process of the pid file ours (its command line names DIR)?  SIGTERM, SIGKILL
//! ```
//! With port 0 the kernel chooses, and the address is read from the log: no port is taken twice.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Error, Result, make_dir, write};

/// The user of a registry that asks for one.
pub const USER: &str = "testuser";
/// That user's password.
pub const PASSWORD: &str = "testpass";
/// The line of an htpasswd file for [`USER`] and [`PASSWORD`] (bcrypt).
const HTPASSWD: &str = "testuser:$2b$04$AkAGz0t.oqMyo/VnDfRS2esW.SiXnAxALVwAwAGbxHLH080JMhTni\n";
/// The registries that `registries.conf` leads to the local one.
pub const MIRRORED: [&str; 4] = ["registry.k8s.io", "gcr.io", "docker.io", "quay.io"];
/// How long a registry may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// A registry that runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// Host and port.
    pub address: String,
    /// Its process.
    pub pid: i32,
    /// Where its blobs lie.
    pub storage: PathBuf,
    /// The registries.conf that leads to it.
    pub registries_conf: PathBuf,
}

/// Starts a registry with its data below `dir`; with `private`, one that asks for [`USER`].
pub fn serve(dir: &Path, port: u16, private: bool) -> Result<Running> {
    make_dir(dir)?;
    let dir = &fs::canonicalize(dir).map_err(|source| Error::Read { path: dir.into(), source })?;
    let storage = dir.join("data");
    make_dir(&storage)?;
    let mut config = format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {data:?}}}, delete: {{enabled: true}}}}\n\
         http: {{addr: \"127.0.0.1:{port}\"}}\n",
        data = storage
    );
    if private {
        let users = dir.join("htpasswd");
        write(&users, HTPASSWD.as_bytes())?;
        config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {users:?}}}}}\n"));
    }
    let config_file = dir.join("registry.yml");
    write(&config_file, config.as_bytes())?;
    let log_file = dir.join("registry.log");
    let log = |source| Error::Write { path: log_file.clone(), source };
    let out = File::create(&log_file).map_err(log)?;
    let err = out.try_clone().map_err(log)?;
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config_file)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0)
        .spawn();
    let mut child =
        child.map_err(|source| Error::Run { program: "docker-registry".into(), source })?;
    let pid = child.id() as i32;
    write(dir.join("registry.pid"), format!("{pid}\n").as_bytes())?;

    let begin = Instant::now();
    let address = loop {
        let text = fs::read_to_string(&log_file).unwrap_or_default();
        if let Some(address) = listening(&text) {
            break address;
        }
        let ended = child.try_wait().ok().flatten().is_some();
        if ended || begin.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            let _ = fs::remove_file(dir.join("registry.pid"));
            let from = text.len().saturating_sub(600);
            let log = String::from_utf8_lossy(&text.as_bytes()[from..]).into_owned();
            return Err(Error::NotStarted { log });
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    write(dir.join("address"), format!("{address}\n").as_bytes())?;
    let registries_conf = dir.join("registries.conf");
    write(&registries_conf, mirrors(&address).as_bytes())?;
    Ok(Running { address, pid, storage, registries_conf })
}

/// The address in the registry's log line that says where it listens.
fn listening(log: &str) -> Option<String> {
    let at = log.find("listening on ")? + "listening on ".len();
    let rest = &log[at..];
    let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit())?;
    Some(rest[..end].to_string())
}

/// A registries.conf (version 2) that leads the public registries to this address.
pub fn mirrors(address: &str) -> String {
    let mut out = String::from("unqualified-search-registries = [\"docker.io\"]\n");
    for name in MIRRORED {
        out.push_str(&format!(
            "\n[[registry]]\nprefix = \"{name}\"\nlocation = \"{address}\"\ninsecure = true\n"
        ));
    }
    // Every port of the loopback: tests put servers of their own in front of the registry.
    for host in [address, "127.0.0.1", "localhost"] {
        out.push_str(&format!("\n[[registry]]\nlocation = \"{host}\"\ninsecure = true\n"));
    }
    out
}

/// Ends the registry that was started with this folder; fine if there is none any more.
pub fn stop(dir: &Path) -> Result<()> {
    let pid_file = dir.join("registry.pid");
    let Ok(text) = fs::read_to_string(&pid_file) else { return Ok(()) };
    let Ok(pid) = text.trim().parse::<i32>() else { return Ok(()) };
    let path = fs::canonicalize(dir).unwrap_or_else(|_| dir.into()).join("registry.yml");
    let ours = || {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|arg| arg == path.as_os_str().as_encoded_bytes())
    };
    let begin = Instant::now();
    let mut signal = Signal::SIGTERM;
    while ours() {
        let _ = kill(Pid::from_raw(pid), signal);
        if begin.elapsed() > PATIENCE {
            return Err(Error::NotStopped { pid });
        }
        if begin.elapsed() > PATIENCE / 3 {
            signal = Signal::SIGKILL;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // A child of this process would stay as a zombie.
    let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    fs::remove_file(&pid_file).map_err(|source| Error::Write { path: pid_file, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::{Target, push};

    /// Ends the registry however the test ends.
    struct Guard<'a>(&'a Path);
    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            stop(self.0).unwrap();
        }
    }

    fn skopeo(reference: &str, extra: &[&str]) -> (bool, String) {
        let out = Command::new("skopeo")
            .args(["inspect", "--tls-verify=false"])
            .args(extra)
            .arg(format!("docker://{reference}"))
            .output()
            .unwrap();
        let text =
            String::from_utf8_lossy(if out.status.success() { &out.stdout } else { &out.stderr });
        (out.status.success(), text.into_owned())
    }

    #[test]
    fn what_is_pushed_can_be_read_by_another_client() {
        let dir = tempfile::tempdir().unwrap();
        let _guard = Guard(dir.path());
        let running = serve(dir.path(), 0, false).unwrap();
        let names =
            ["test/busybox:1", "test/index:1", "test/docker:1", "test/hostile-config-digest:1"];
        let catalog = crate::catalog::build(&names).unwrap();
        let target = Target {
            address: running.address.clone(),
            storage: Some(running.storage.clone()),
            user: None,
        };
        push(&catalog, &target).unwrap();
        for name in &names[..3] {
            let (ok, text) = skopeo(&format!("{}/{name}", running.address), &[]);
            assert!(ok, "{name}: {text}");
        }
        let (ok, text) = skopeo(&format!("{}/{}", running.address, names[3]), &[]);
        assert!(!ok, "a changed config was accepted: {text}");
    }

    #[test]
    fn a_private_registry_asks_for_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let _guard = Guard(dir.path());
        let running = serve(dir.path(), 0, true).unwrap();
        let catalog = crate::catalog::build(&["test/busybox:1"]).unwrap();
        let mut target = Target { address: running.address.clone(), storage: None, user: None };
        assert!(matches!(push(&catalog, &target), Err(Error::Answer { status: 401, .. })));
        target.user = Some(format!("{USER}:{PASSWORD}"));
        push(&catalog, &target).unwrap();
        let image = format!("{}/test/busybox:1", running.address);
        assert!(!skopeo(&image, &[]).0);
        assert!(skopeo(&image, &["--creds", "testuser:testpass"]).0);
    }

    #[test]
    fn a_port_in_use_is_an_error_that_quotes_the_log() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let error = serve(dir.path(), taken.local_addr().unwrap().port(), false).unwrap_err();
        assert!(matches!(&error, Error::NotStarted { log } if log.contains("in use")), "{error}");
        assert!(!dir.path().join("registry.pid").exists());
        stop(dir.path()).unwrap();
    }
}
