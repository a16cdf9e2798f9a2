//! criod's bundled client: thin verbs over the CRI socket, for people who have no other client.
//!
//! ```text
//! criod VERB … ──args──► Verb ──┬─ gRPC (HTTP/2) ──► unix socket ──► criod, or any CRI runtime
//!                               ├─ HTTP/1, same socket: how far a pull is, and monitors
//!                               ├─ SPDY over TCP or TLS, to the URL that a call gave: streams
//!                               └─ log files on this machine, in the CRI's log format
//! ```
//!
//! The binary `criod` mounts [`commands`] beside the daemon and hands what was matched to [`run`].
//! Nothing here knows the daemon: the verbs use only calls of the CRI, and do without the progress
//! of a pull where the server does not tell it. `monitors` alone is criod's own.
//!
//! * `args` what the verbs take; `quantity` the notations in it (64Mi, 8080:80/udp, 10m)
//! * `connect` the socket and the deadline of calls; `error` what is said when something fails
//! * `resolve` from what a person types (a name, the start of an id) to one pod or container
//! * `list`, `inspect`, `lifecycle`, `monitors`, `exec`, `attach`, `port_forward`, `pull`, `run`, `show`,
//!   `status` the verbs
//! * `streaming` the connections of exec, attach and port-forward
//! * [`logs`] the CRI log format: reading, joining, tailing, following across rotation
//! * `console`, `table` what people see. Programs ask for `-o json`: the messages of the CRI by
//!   the protobuf JSON mapping, which is also what other CRI clients print.

mod args;
mod attach;
mod connect;
mod console;
mod error;
mod exec;
mod inspect;
mod lifecycle;
mod list;
pub mod logs;
mod monitors;
mod port_forward;
mod progress;
mod pull;
mod quantity;
mod resolve;
mod run;
mod show;
mod status;
mod streaming;
mod table;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use api_cri::v1::VersionRequest;
use clap::{ArgMatches, Command, FromArgMatches as _, Subcommand as _};

use args::Verb;
use connect::Client;
use console::Console;
use error::{Error, Result};
use resolve::World;

/// The socket that is asked when nothing else is said.
pub const DEFAULT_ENDPOINT: &str = "unix:///run/crio/crio.sock";

/// The variable of the environment that names another socket.
pub const ENDPOINT_VARIABLE: &str = "CONTAINER_RUNTIME_ENDPOINT";

/// What `run`, `exec` and `attach` exit with when they fail themselves, so that it is not taken for
/// the exit code of what they started.
const TOOL_FAILED: u8 = 125;

/// What `exec` exits with when there is no such command, as shells do.
const NO_COMMAND: u8 = 127;

/// The subcommands, to be mounted in the command line of `criod`.
///
/// Each brings its own `--runtime-endpoint`/`-R` and `--timeout`: the command line they are mounted
/// in need not know them.
pub fn commands() -> Vec<Command> {
    Verb::augment_subcommands(Command::new("criod")).get_subcommands().cloned().collect()
}

/// Runs the subcommand in `matches`, which are those of the whole command line.
///
/// `endpoint` is the socket to ask where neither `--runtime-endpoint` nor the environment names
/// one; usually [`DEFAULT_ENDPOINT`]. Whatever fails has been said on stderr in one line when this
/// returns. Needs a tokio runtime with I/O and time.
pub async fn run(matches: &ArgMatches, endpoint: &str) -> ExitCode {
    ExitCode::from(execute(matches, endpoint, &mut Console::stdio()).await)
}

/// Asks the runtime at a socket for its version and all its pods and containers: whether it answers at
/// all. Each step may take as long as `limit`.
pub async fn probe(socket: &Path, limit: Duration) -> std::io::Result<()> {
    let asked = async {
        let client = Client::connect(&socket.to_string_lossy(), Some(limit)).await?;
        let mut runtime = client.runtime();
        client.quick("ask for the version", runtime.version(VersionRequest::default())).await?;
        World::load(&client).await.map(drop)
    };
    asked.await.map_err(std::io::Error::other)
}

/// [`run`], on a console of the caller's.
async fn execute(matches: &ArgMatches, endpoint: &str, console: &mut Console) -> u8 {
    let verb = match Verb::from_arg_matches(matches) {
        Ok(verb) => verb,
        Err(e) => {
            console.complain(&e.to_string());
            return TOOL_FAILED;
        }
    };
    let failed = match verb {
        Verb::Run(_) | Verb::Exec(_) | Verb::Attach(_) => TOOL_FAILED,
        _ => 1,
    };
    let code = dispatch(verb, endpoint, console).await;
    let code = code.and_then(|code| console.flush().map(|()| code));
    match code {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(Error::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(e) => {
            // What was printed before the failure still stands.
            let _ = console.flush();
            console.complain(&e.line());
            if matches!(e, Error::NoCommand { .. }) { NO_COMMAND } else { failed }
        }
    }
}

async fn dispatch(verb: Verb, endpoint: &str, console: &mut Console) -> Result<u8> {
    let link = verb.link();
    let from_environment = std::env::var(ENDPOINT_VARIABLE).ok().filter(|e| !e.is_empty());
    let endpoint = link.runtime_endpoint.or(from_environment).unwrap_or_else(|| endpoint.into());
    let client = Client::connect(&endpoint, link.timeout).await?;
    match verb {
        Verb::Run(a) => Box::pin(run::run(&client, console, a)).await,
        Verb::Pods(a) => Box::pin(list::pods(&client, console, a)).await,
        Verb::Ps(a) => Box::pin(list::containers(&client, console, a)).await,
        Verb::Images(a) => Box::pin(list::images(&client, console, a)).await,
        Verb::Inspect(a) => Box::pin(inspect::inspect(&client, console, a)).await,
        Verb::Logs(a) => Box::pin(show::logs(&client, console, a)).await,
        Verb::Exec(a) => Box::pin(exec::exec(&client, console, a)).await,
        Verb::Attach(a) => Box::pin(attach::attach(&client, console, a)).await,
        Verb::PortForward(a) => Box::pin(port_forward::port_forward(&client, console, a)).await,
        Verb::Pull(a) => Box::pin(pull::pull(&client, console, a)).await,
        Verb::Stop(a) => Box::pin(lifecycle::stop(&client, console, a)).await,
        Verb::Rm(a) => Box::pin(lifecycle::remove(&client, console, a)).await,
        Verb::Rmi(a) => Box::pin(lifecycle::remove_images(&client, console, a)).await,
        Verb::Status(a) => Box::pin(status::status(&client, console, a)).await,
        Verb::Stats(a) => Box::pin(status::stats(&client, console, a)).await,
        Verb::Monitors(a) => Box::pin(monitors::monitors(&client, console, a)).await,
    }
}
