//! A container under conmon, started as CRI-O starts one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::eventually;

const PROGRAM: &str = "/usr/bin/conmon";
const RUNTIME: &str = "/usr/sbin/runc";

/// Ends with its container when dropped.
pub(crate) struct Conmon {
    pub(crate) pid: i32,
    pub(crate) log: PathBuf,
    id: String,
    dir: PathBuf,
}

/// Which one is on this machine.
pub(crate) fn version() -> String {
    let said = Command::new(PROGRAM).arg("--version").output().expect("conmon is not installed");
    String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().to_owned()
}

impl Conmon {
    /// Creates the container of `bundle` and starts it. Its id is the folder's name.
    pub(crate) fn start(dir: &Path, bundle: &Path) -> Conmon {
        fs::create_dir_all(dir.join("exits")).unwrap();
        let id = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let status = Command::new(PROGRAM)
            .args(["--cid", &id, "--cuuid", &id, "--name", &id])
            .args(["--runtime", RUNTIME])
            .args(["--runtime-arg", "--root", "--runtime-arg", &at("runtime")])
            .args(["--bundle", bundle.to_str().unwrap()])
            .args(["--container-pidfile", &at("pidfile")])
            .args(["--conmon-pidfile", &at("conmon-pidfile")])
            .args(["--persist-dir", &at(""), "--exit-dir", &at("exits")])
            .args(["--socket-dir-path", &at(""), "--log-path", &at("ctr.log")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "conmon: {status}");
        let pid = eventually("conmon has created the container", || {
            fs::read_to_string(at("pidfile")).ok().filter(|t| !t.is_empty())?;
            fs::read_to_string(at("conmon-pidfile")).ok()?.trim().parse().ok()
        });
        let made = Conmon { pid, log: at("ctr.log").into(), id, dir: dir.to_owned() };
        eventually("the runtime starts it", || made.runtime(&["start", &made.id]).then_some(()));
        made
    }

    fn runtime(&self, verb: &[&str]) -> bool {
        let mut call = Command::new(RUNTIME);
        call.arg("--root").arg(self.dir.join("runtime")).args(verb);
        call.output().unwrap().status.success()
    }
}

impl Drop for Conmon {
    fn drop(&mut self) {
        self.runtime(&["delete", "--force", &self.id]);
        // It ends with its container.
        for _ in 0..100 {
            if sys::proc::stat(self.pid).is_none_or(|s| s.state == b'Z') {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        sys::proc::signal(self.pid, nix::sys::signal::Signal::SIGKILL);
    }
}
