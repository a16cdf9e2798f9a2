//! criod-stream: one process per open exec, attach or port-forward, which faces the network so that
//! criod does not.
//!
//! ```text
//! client ──TCP──▶ criod ──descriptor──▶ criod-stream ◀──pipes, terminal── monitor    (exec, attach)
//!                   ▲  asks what the token stands for  ◀──sockets──────── dialer     (port-forward)
//! ```
//! The keeper forks it with one end of its control socket as stdin and its log as stderr; idle ones
//! wait for their connection. It holds what it was given and can open nothing else: see `sandbox`.
//! criod may die while it works, and is not missed once it has answered what the token stands for.
//!
//! | module      | what                                                      |
//! |-------------|-----------------------------------------------------------|
//! | `sandbox`   | how it locks itself up                                    |
//! | `control`   | what criod says and asks                                  |
//! | `serve`     | from an idle process to an upgraded connection            |
//! | `tunnel`    | exec and attach                                           |
//! | `ends`      | their pipes or terminal                                   |
//! | `forwarder` | port-forward                                              |
//! | `link`      | a session on its connection                               |
//! | `wire`      | the connection: TCP, or TLS on it                         |
//! | `tls`       | what TLS is served with                                   |
//! | `dial`      | `--dial`: connects within a pod's network namespace       |
//! | `poller`    | the epoll set                                             |
//! | `say`       | the log                                                   |
//! | `failed`    | a step that failed, and why                               |

mod control;
mod dial;
mod ends;
mod failed;
mod forwarder;
mod link;
mod poller;
mod sandbox;
mod say;
mod serve;
mod tls;
mod tunnel;
mod wire;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use sandbox::Role;
use say::say;

/// What the command line says.
#[derive(Debug, Default)]
struct Options {
    /// Folders of the cgroup to join, one per hierarchy.
    cgroups: Vec<PathBuf>,
    /// The empty folder to be locked up in.
    root: PathBuf,
    dial: bool,
}

impl Options {
    /// `Ok(None)`: everything was said already.
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
        let mut options = Options::default();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--cgroup" => options.cgroups.push(value()?.into()),
                "--root" => options.root = value()?.into(),
                "--dial" => options.dial = true,
                "--version" => {
                    println!("criod-stream {}", env!("CARGO_PKG_VERSION"));
                    return Ok(None);
                }
                _ => return Err(format!("unknown argument {arg:?}")),
            }
        }
        if options.root.as_os_str().is_empty() {
            return Err("--root FOLDER is needed".into());
        }
        Ok(Some(options))
    }
}

fn run(options: &Options) -> Result<(), String> {
    sandbox::join(&options.cgroups);
    let control = std::io::stdin().as_fd().try_clone_to_owned();
    let control = control.map_err(|e| format!("stdin: {e}"))?.into();
    let role = if options.dial { Role::Dialer } else { Role::Stream };
    sandbox::enclose(role, &options.root).map_err(|e| e.to_string())?;
    match role {
        Role::Stream => serve::run(control),
        Role::Dialer => dial::run(control),
    }
}

fn main() -> ExitCode {
    if let Err(e) = sys::start::close_inherited() {
        say!("inherited descriptors: {e}");
        return ExitCode::FAILURE;
    }
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(text) => {
            say!("{text}");
            return ExitCode::from(64);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            say!("{text}");
            ExitCode::FAILURE
        }
    }
}
