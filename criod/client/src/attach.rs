//! The verb `attach`: what a container prints from now on, and its input.

use std::time::Duration;

use api_cri::v1::AttachRequest;
use stream::remote::{Outcome, Wants};

use crate::args::AttachArgs;
use crate::connect::Client;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::exec::{SIGNALLED, must_run};
use crate::resolve::{Named as _, World};
use crate::show::wait_ended;
use crate::streaming::{End, Target, converse};

/// How long the runtime may take to say that a container has ended, after its output has.
const LATE: Duration = Duration::from_secs(2);

pub(crate) async fn attach(client: &Client, console: &mut Console, args: AttachArgs) -> Result<u8> {
    let world = World::load(client).await?;
    let container = world.container(&args.id)?;
    must_run(container)?;
    let wants = Wants { tty: args.tty, stdin: args.stdin, stdout: true, stderr: !args.tty };
    let request = AttachRequest {
        container_id: container.id.clone(),
        stdin: wants.stdin,
        tty: wants.tty,
        stdout: wants.stdout,
        stderr: wants.stderr,
    };
    let doing = format!("attach to the container {}", container.name());
    let answer = client.quick(doing.clone(), client.runtime().attach(request)).await?;
    let target = Target::new(&answer.url, &args.tls, client.timeout())?;
    match converse(console, &target, wants).await? {
        End::Signal(signal) => Ok(SIGNALLED + signal),
        End::Outcome(Outcome::Exit(code)) => Ok(code),
        End::Outcome(Outcome::Failure(message)) => Err(Error::Remote { doing, message }),
        // Only that it is over: the container may have closed its output, and go on.
        End::Outcome(Outcome::Success) => {
            let ended = tokio::time::timeout(LATE, wait_ended(client, &container.id)).await;
            let code = ended.ok().and_then(Result::ok).flatten().map_or(0, |s| s.exit_code);
            Ok(u8::try_from(code).unwrap_or(1))
        }
    }
}
