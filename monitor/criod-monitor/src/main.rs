//! criod-monitor: one small process per container that outlives criod.
//!
//! ```text
//!             ttrpc                      splice            format
//!   criod ───────────▶ main thread  pipe ──────▶ spool ──────────▶ log     (log thread)
//!                        │   ▲
//!      runtime create/…  │   │ SIGCHLD: it is a subreaper, so init is its child
//!                        ▼   │
//!                     container
//! ```
//! Three threads: the main one (`monitor`) serves calls, signals and deadlines, and sees to it that
//! output gets from pipes to spools, which another does (`pull`), as the container can hold a pipe;
//! the third (`logger`) writes the log, and may get stuck in a sick file system. Neither holds up the
//! first.
//!
//! | module    | what                                                           |
//! |-----------|----------------------------------------------------------------|
//! | `monitor` | the loop: who is called when something happens                 |
//! | `life`    | the container's phases, from create to delete                  |
//! | `takeover`| what a successor finds and how it goes on                      |
//! | `exec`    | commands run in the container                                  |
//! | `session` | the socket of those who carry streams                          |
//! | `command` | commands whose streams they carry                              |
//! | `attach`  | clients that are attached to the container                     |
//! | `update`  | changes of what the container may use                          |
//! | `upgrade` | becoming another build in place                                |
//! | `handover`| what then goes over                                            |
//! | `output`  | pipes, terminal and spools                                     |
//! | `pull`    | what touches pipes that the container may hold                 |
//! | `logger`  | spools to log file                                             |
//! | `rpc`     | the ttrpc wire                                                 |
//! | `keeper`  | the keeper's client                                            |
//! | `runtime` | the OCI runtime's command line and its errors                  |
//! | `state`   | what is written down at each step                              |
//! | `cgroup`  | OOM kills, and killing what is left in a cgroup                |
//!
//! Files in the monitor's folder: `config` (from criod), `lock` (held while a monitor lives),
//! `state`, `progress` (how far the log has come), `stdout.spool`, `stderr.spool`, `pid`,
//! `runtime.log`, `update.json`, `exec-N.*`, and the sockets `monitor.sock` and `stream.sock`.

mod attach;
mod cgroup;
mod command;
mod end;
mod exec;
mod handover;
mod keeper;
mod life;
mod logger;
mod monitor;
mod output;
mod poller;
mod progress;
mod pull;
mod rpc;
mod runtime;
mod session;
mod state;
mod takeover;
mod update;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;

use monitor::Monitor;

/// Another monitor holds the lock of the folder.
const EXIT_LOCKED: u8 = 75;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = match (args.next().as_deref(), args.next()) {
        (Some("--version"), _) => {
            println!("criod-monitor {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        // What would be handed over as stdin.
        (Some("--check-state"), Some(dir)) => {
            return match upgrade::check_state(dir.as_ref()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(text) => {
                    eprintln!("{text}");
                    ExitCode::FAILURE
                }
            };
        }
        (Some("--dir"), Some(dir)) => dir.into(),
        _ => {
            eprintln!("usage: criod-monitor --dir FOLDER   (its listening socket as stdin)");
            return ExitCode::from(64);
        }
    };
    let monitor = match (args.next().as_deref(), args.next().and_then(|n| n.parse().ok())) {
        (Some("--handover"), Some(n)) => sys::replace::inherited(n)
            .and_then(|memory| Monitor::resume(dir.clone(), memory))
            .map(Some),
        _ => Monitor::new(dir.clone()),
    };
    match monitor.and_then(|m| m.map_or(Ok(EXIT_LOCKED), |m| m.run().map(|()| 0))) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("criod-monitor: {}: {e}", dir.display());
            ExitCode::FAILURE
        }
    }
}
