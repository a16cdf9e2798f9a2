//! criod as a service manager starts it: with a socket that is open already.
//!
//! ```text
//! stdin: the socket ─▶ sh: moves it to descriptor 3, LISTEN_PID is its own ─exec▶ criod
//! ```

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::{Criod, Process};

const HAND_OVER: &str = "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" 3<&0 </dev/null";

impl Criod {
    /// Starts criod with this socket; it does not serve yet when this returns.
    pub fn launch_with(&mut self, socket: &UnixListener) {
        assert!(self.process.is_none(), "it runs already");
        let criod = self.command();
        let mut command = Command::new("sh");
        command.args(["-c", HAND_OVER, "sh"]).arg(criod.get_program()).args(criod.get_args());
        command.envs(criod.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let path = self.dir.join("criod.log");
        let log = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let socket = OwnedFd::from(socket.try_clone().unwrap());
        command.stdin(Stdio::from(socket)).stdout(log.try_clone().unwrap()).stderr(log);
        command.process_group(0);
        let child = self.net.run(|| command.spawn().unwrap());
        self.process = Some(Process::Child(child));
    }

    /// Waits for the end of a criod that ends by itself.
    pub fn ended_by_itself(&mut self) -> std::process::ExitStatus {
        let mut process = self.process.take().expect("criod runs");
        process.wait().expect("it was started here")
    }
}
