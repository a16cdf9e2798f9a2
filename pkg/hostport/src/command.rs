//! Running the tools: a text in, their output out, within a time.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use failpoint::step;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::{Error, Result};

/// The tools answer within milliseconds; iptables may wait some seconds for its lock.
const LIMIT: Duration = Duration::from_secs(30);
/// What is kept of a tool's complaint, in characters.
const KEPT: usize = 1024;

/// Runs a tool with `input` on its standard input.
pub(crate) async fn run(program: &'static str, args: &[&str], input: &str) -> Result<String> {
    let failed = |source| Error::Run { program, source };
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = step!("host ports: run tool", command.spawn()).map_err(failed)?;
    let mut stdin =
        child.stdin.take().ok_or_else(|| failed(io::Error::other("a pipe is missing")))?;
    let feed = async move {
        // If it does not read, its status tells why.
        let _ = stdin.write_all(input.as_bytes()).await;
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = match timeout(LIMIT, both).await {
        Ok(output) => output.map_err(failed)?,
        Err(_) => return Err(Error::Timeout { program, timeout: LIMIT }),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stderr = stderr.trim().chars().take(KEPT).collect();
    Err(Error::Failed { program, status: output.status, stderr })
}
