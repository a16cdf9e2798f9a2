//! criod: the daemon, and a small client beside it.
//!
//! ```text
//! criod [flags]          the daemon          criod run, ps, logs, …   the client
//! criod [flags] config   the effective configuration
//! ```
//! | module       | what                                                                       |
//! |--------------|----------------------------------------------------------------------------|
//! | `daemon`     | from start to end                                                          |
//! | `server`     | the socket: gRPC, and `inspect` over HTTP/1                                |
//! | `end`        | the end of serving: every call is answered                                 |
//! | `succeed`    | a reload: one criod after another                                          |
//! | `service_manager` | readiness, the watchdog and sockets of systemd                        |
//! | `cri`        | the CRI service: the only place that answers in its types                  |
//! | `node`       | all that is known, and the indexes over it                                 |
//! | `pods`       | a pod sandbox's life                                                       |
//! | `containers` | the creation of a container                                                |
//! | `life`       | a container's start, end, stop and removal                                 |
//! | `update`     | what a container may use, changed while it runs                            |
//! | `pod_cgroup` | the cgroups of a pod, and its limits                                       |
//! | `exec`       | commands in containers                                                     |
//! | `streaming`  | exec, attach and port-forward, in connections that outlive criod           |
//! | `spec`       | from a request to a runtime's spec                                         |
//! | `confine`    | security modules of the kernel, and the profiles of the configuration      |
//! | `features`   | what runtimes and kernel can do together                                   |
//! | `files`      | what a pod's containers find in /etc and /dev/shm                          |
//! | `volumes`    | images mounted into containers of others, volumes that images declare      |
//! | `network`    | CNI and host ports                                                         |
//! | `stats`      | what containers and pods use                                               |
//! | `metrics`    | the same for dashboards                                                    |
//! | `events`     | what happens to containers and pods, told to who listens                   |
//! | `record`     | what is on disk of pods and containers                                     |
//! | `recover`    | what a start finds, and what is taken up again                             |
//! | `reconcile`  | what is left over, found and removed                                       |
//! | `monitor`    | calls to a container's monitor, and its replacement                        |
//! | `keeper`     | calls to the keeper, and its replacement                                   |
//! | `upgrade`    | which builds of both run, and their upgrade in place                       |
//! | `userns`     | pods with a user namespace of their own                                    |
//! | `error`      | what can go wrong, and which code says so                                  |

mod confine;
mod containers;
mod cri;
mod daemon;
mod end;
mod error;
mod events;
mod exec;
mod features;
mod files;
mod infra;
mod inspect;
mod keeper;
mod life;
mod metrics;
mod monitor;
mod network;
mod node;
mod pod_cgroup;
mod pods;
mod reconcile;
mod record;
mod recover;
mod server;
mod service_manager;
mod spec;
mod stats;
mod streaming;
mod succeed;
mod update;
mod upgrade;
mod userns;
mod volumes;

use std::io::Write;
use std::process::ExitCode;

use crate::service_manager::variable;
use crate::succeed::{Heir, Program, Start};
use clap::{Arg, ArgAction, ArgMatches, Command};
use criod_config::Loaded;
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What a configuration error ends with (EX_CONFIG): a service manager need not try again.
const EXIT_CONFIG: u8 = 78;

fn command() -> Command {
    let config = Command::new("config")
        .about("Print the effective configuration, with a comment on each key")
        .arg(
            Arg::new("default")
                .long("default")
                .action(ArgAction::SetTrue)
                .help("Print the built-in defaults instead"),
        );
    Command::new("criod")
        .about("A Kubernetes container runtime; without a subcommand, the daemon")
        .version(env!("CARGO_PKG_VERSION"))
        .args(criod_config::flags())
        .subcommand(config)
        .subcommands(criod_client::commands())
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    match matches.subcommand() {
        None => daemon(&matches),
        Some(("config", sub)) => print_config(&matches, sub.get_flag("default")),
        Some(_) => match runtime() {
            Ok(runtime) => {
                runtime.block_on(criod_client::run(&matches, criod_client::DEFAULT_ENDPOINT))
            }
            Err(e) => fail(&format!("cannot start: {e}"), 1),
        },
    }
}

fn fail(text: &str, code: u8) -> ExitCode {
    // Nobody is left to tell when stderr is gone.
    let _ = writeln!(std::io::stderr(), "criod: {text}");
    ExitCode::from(code)
}

/// The threads that do the daemon's work, or the client's.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn print_config(matches: &ArgMatches, default: bool) -> ExitCode {
    let text = if default {
        criod_config::default_toml()
    } else {
        match criod_config::read(matches, &variable) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    fail(&format!("warning: {warning}"), 0);
                }
                criod_config::to_toml(&loaded.config, &loaded.defaults)
            }
            Err(e) => return fail(&e.to_string(), EXIT_CONFIG),
        }
    };
    // no step: an answer.
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn daemon(matches: &ArgMatches) -> ExitCode {
    let began = Program::own().and_then(|program| Ok((Heir::find(&program)?, program)));
    let (heir, program) = match began {
        Ok((Start::Launched, _)) => return ExitCode::SUCCESS,
        Ok((Start::Successor(heir), program)) => (Some(heir), program),
        Ok((Start::First, program)) => (None, program),
        Err(e) => return fail(&format!("cannot start: {e}"), 1),
    };
    let loaded = match criod_config::load(matches, &variable) {
        Ok(loaded) => loaded,
        Err(e) => {
            if let Some(heir) = &heir {
                heir.refuse(&e.to_string());
            }
            return fail(&e.to_string(), EXIT_CONFIG);
        }
    };
    log_to(&loaded);
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    // A successor is handed the socket, and another start would be given the same.
    let passed = match &heir {
        Some(_) => Ok(None),
        None => service_manager::socket(&loaded.config.listen, &variable),
    };
    let passed = match passed {
        Ok(passed) => passed,
        Err(e) => {
            error!("{}", error::chain(&e));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let front = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (front, work) = match front.and_then(|front| Ok((front, runtime()?))) {
        Ok(both) => both,
        Err(e) => return fail(&format!("cannot start: {e}"), 1),
    };
    let code = match front.block_on(daemon::run(loaded.config, work, program, heir, passed)) {
        Ok(()) => 0,
        Err(e) => {
            error!("{}", e.chain());
            1
        }
    };
    // Whatever is under way goes on from its record when the next criod starts; to unwind it here would
    // undo some of it.
    std::process::exit(code)
}

/// Logs to the journal where stderr leads there, else to stderr.
fn log_to(loaded: &Loaded) {
    let level = loaded.config.log_level.to_string();
    // Of the wire's own libraries only what matters.
    let quiet = ["h2", "hyper", "hyper_util", "rustls", "tower", "ttrpc"];
    let quiet = quiet.map(|library| format!(",{library}=warn")).concat();
    let filter = EnvFilter::new(format!("{level}{quiet}"));
    let registry = tracing_subscriber::registry().with(filter);
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    match journal {
        Some(journal) => registry.with(journal).init(),
        None => {
            let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
            registry.with(stderr.with_ansi(false)).init();
        }
    }
}
