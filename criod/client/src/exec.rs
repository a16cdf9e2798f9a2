//! The verb `exec`: a command in a container, whose output comes when it has ended.

use std::time::Duration;

use api_cri::v1::ExecSyncRequest;

use crate::TOOL_FAILED;
use crate::args::ExecArgs;
use crate::connect::{Client, within};
use crate::console::Console;
use crate::error::Result;
use crate::resolve::{Named as _, World};

/// How much longer than the command the call may take.
const GRACE: Duration = Duration::from_secs(10);

pub(crate) async fn exec(client: &Client, console: &mut Console, args: ExecArgs) -> Result<u8> {
    let world = World::load(client).await?;
    let container = world.container(&args.id)?;
    let request = ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: args.command,
        // The CRI counts in seconds, and 0 is no limit.
        timeout: args
            .timeout
            .map_or(0, |t| i64::try_from(t.as_secs_f64().ceil() as u64).unwrap_or(0).max(1)),
    };
    let doing = format!("run a command in the container {}", container.name());
    let limit = args.timeout.map(|t| t + GRACE);
    let answer = within(doing, limit, client.runtime().exec_sync(request)).await?;
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
