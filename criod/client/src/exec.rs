//! The verb `exec`: a command in a container.
//!
//! ```text
//!  ── Exec ─► URL ─► stdin, stdout, stderr or a terminal, as they come ─► exit code
//!  --timeout ── ExecSync ─► exit code and output, at the end: the runtime ends the command in time
//! ```

use std::time::Duration;

use api_cri::v1::{Container, ContainerState, ExecRequest, ExecSyncRequest};
use stream::remote::{Outcome, Wants};

use crate::TOOL_FAILED;
use crate::args::ExecArgs;
use crate::connect::{Client, within};
use crate::console::Console;
use crate::error::{Error, Result};
use crate::resolve::{Named as _, World, container_state};
use crate::streaming::{End, Target, converse};

/// How much longer than the command the call may take.
const GRACE: Duration = Duration::from_secs(10);

/// The exit code after a signal, less its number.
pub(crate) const SIGNALLED: u8 = 128;

pub(crate) async fn exec(client: &Client, console: &mut Console, args: ExecArgs) -> Result<u8> {
    let world = World::load(client).await?;
    let container = world.container(&args.id)?;
    must_run(container)?;
    let doing = format!("run a command in the container {}", container.name());
    if let Some(timeout) = args.timeout {
        return sync(client, console, container, args.command, timeout).await;
    }
    let wants = Wants { tty: args.tty, stdin: args.stdin, stdout: true, stderr: !args.tty };
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: args.command.clone(),
        tty: wants.tty,
        stdin: wants.stdin,
        stdout: wants.stdout,
        stderr: wants.stderr,
    };
    let answer = client.quick(doing.clone(), client.runtime().exec(request)).await?;
    let target = Target::new(&answer.url, &args.tls, None)?;
    match converse(console, &target, wants).await? {
        End::Signal(signal) => Ok(SIGNALLED + signal),
        End::Outcome(Outcome::Success) => Ok(0),
        End::Outcome(Outcome::Exit(code)) => Ok(code),
        End::Outcome(Outcome::Failure(message)) => {
            let command = args.command.into_iter().next().unwrap_or_default();
            if is_missing(&message, &command) {
                return Err(Error::NoCommand { command, container: container.name().into() });
            }
            Err(Error::Remote { doing, message })
        }
    }
}

/// Fails unless the container runs.
pub(crate) fn must_run(container: &Container) -> Result<()> {
    if container.state == ContainerState::ContainerRunning as i32 {
        return Ok(());
    }
    let state = container_state(container.state);
    Err(Error::NotRuns { container: container.name().into(), state })
}

/// Whether a failure is a runtime's way to say that there is no such command.
fn is_missing(message: &str, command: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let named = format!("exec: \"{command}\": stat ").to_ascii_lowercase();
    // runc without and with a path; crun.
    message.contains("executable file not found in $path")
        || message.contains(&named) && message.contains("no such file or directory")
        || message.contains("executable file `") && message.contains("` not found")
}

/// The command's output when it has ended, by itself or by the runtime after `timeout`.
async fn sync(
    client: &Client,
    console: &Console,
    container: &Container,
    command: Vec<String>,
    timeout: Duration,
) -> Result<u8> {
    let request = ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: command,
        // The CRI counts in seconds, and 0 is no limit.
        timeout: i64::try_from(timeout.as_secs_f64().ceil() as u64).unwrap_or(0).max(1),
    };
    let doing = format!("run a command in the container {}", container.name());
    let answer = within(doing, Some(timeout + GRACE), client.runtime().exec_sync(request)).await?;
    console.write(&answer.stdout)?;
    console.flush()?;
    let _ = console.err.lock().write_all(&answer.stderr);
    match u8::try_from(answer.exit_code) {
        Ok(code) => Ok(code),
        // Runtimes give -1 for a command that they ended themselves.
        Err(_) => {
            console.complain(&format!("the command has no exit code ({})", answer.exit_code));
            Ok(TOOL_FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_are_not_there() {
        let start = "error executing command in container: failed to exec in container: failed to \
                     start exec \"0\": OCI runtime exec failed: exec failed: unable to start \
                     container process: ";
        for (text, command) in [
            ("exec: \"nope\": executable file not found in $PATH: unknown", "nope"),
            (
                "exec: \"/bin/nope\": stat /bin/nope: no such file or directory: unknown",
                "/bin/nope",
            ),
            ("executable file `nope` not found in $PATH: No such file or directory", "nope"),
            ("executable file `/nope` not found: No such file or directory", "/nope"),
        ] {
            assert!(is_missing(&format!("{start}{text}"), command), "{text}");
        }
        for (text, command) in [
            ("exec: \"/etc/passwd\": permission denied: unknown", "/etc/passwd"),
            ("chdir to cwd (\"/gone\"): no such file or directory", "ls"),
            ("container not running", "ls"),
        ] {
            assert!(!is_missing(&format!("{start}{text}"), command), "{text}");
        }
    }
}
