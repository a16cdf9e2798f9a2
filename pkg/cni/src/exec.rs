//! One run of one plugin: configuration in, JSON out, within limits.
//!
//! ```text
//!   spawn in a process group of its own
//!     |-- write the configuration to its stdin, close it
//!     |-- read stdout, at most 1 MiB          more ------> kill the group, OutputTooLarge
//!     |-- read stderr, keep the last 4 KiB
//!     |-- time is up ----------------------------------> kill the group, Timeout
//!     |-- this future is dropped ----------------------> kill the group, unless told to leave it
//!     '-- exit, then end of both outputs, or one second of grace: a plugin may leave a
//!         daemon behind that keeps them open
//!   exit 0 -> Answer;  otherwise -> Plugin, if stdout is an error object, or PluginFailed
//! ```
//!
//! A child of a plugin that has made a session or group of its own is not reached.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{Error, Result};

/// What a plugin may write on standard output, in bytes.
const MAX_STDOUT: usize = 1 << 20;
/// What is kept of its standard error, in bytes.
const KEPT_STDERR: usize = 4096;
/// What is shown of an output that is not understood, in characters.
const SNIPPET: usize = 512;
/// How long an output may stay open after the plugin has ended.
const GRACE: Duration = Duration::from_secs(1);

/// One run.
pub(crate) struct Call<'a> {
    /// The plugin's type, for errors.
    pub(crate) plugin: &'a str,
    pub(crate) program: &'a Path,
    pub(crate) verb: &'static str,
    /// The environment besides that of this process.
    pub(crate) env: &'a [(&'static str, OsString)],
    pub(crate) stdin: Vec<u8>,
    pub(crate) timeout: Duration,
    /// Whether to let it run when nobody waits for it.
    pub(crate) leave: &'a AtomicBool,
}

/// What a plugin answered that ended well.
pub(crate) struct Answer {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// The program of a plugin.
pub(crate) fn find(plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf> {
    dirs.iter()
        .map(|dir| dir.join(plugin))
        .find(|path| {
            path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
        .ok_or_else(|| Error::PluginMissing { plugin: plugin.to_owned(), dirs: dirs.to_vec() })
}

/// Kills a process group when dropped, unless the group's leader was waited for: until then its
/// id cannot be another's. Also not when it is to be left.
struct Group<'a>(Option<Pid>, &'a AtomicBool);

impl Group<'_> {
    fn of<'a>(child: &Child, leave: &'a AtomicBool) -> Group<'a> {
        Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw), leave)
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if let Some(leader) = self.0
            && !self.1.load(Ordering::Relaxed)
        {
            // It fails only if nothing is left to kill.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

/// How a run came to its end.
enum End {
    Exited(ExitStatus),
    TimedOut,
    TooLarge,
}

/// Runs a plugin.
pub(crate) async fn run(call: Call<'_>) -> Result<Answer> {
    let failed = |source| Error::Exec { plugin: call.plugin.to_owned(), verb: call.verb, source };
    let deadline = Instant::now() + call.timeout;
    let mut child = spawn(&call).await.map_err(failed)?;
    // Declared after the child, so dropped before it: while its leader is not yet reaped.
    let mut group = Group::of(&child, call.leave);
    let (mut stdin, mut out, mut err) =
        match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(stdin), Some(out), Some(err)) => (stdin, out, err),
            _ => return Err(failed(io::Error::other("a pipe is missing"))),
        };
    let feed = async move {
        // A plugin need not read its configuration.
        let _ = stdin.write_all(&call.stdin).await;
    };
    tokio::pin!(feed);
    let mut fed = false;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (mut out_open, mut err_open) = (true, true);
    let (mut out_buffer, mut err_buffer) = (vec![0u8; 8192], vec![0u8; 4096]);
    let mut exited: Option<(ExitStatus, Instant)> = None;
    let end = loop {
        if let Some((status, _)) = exited
            && !out_open
            && !err_open
        {
            break End::Exited(status);
        }
        let grace = exited.map_or(deadline, |(_, at)| at + GRACE);
        tokio::select! {
            // What was written is read before the exit and the clock are looked at.
            biased;
            read = out.read(&mut out_buffer), if out_open => match read {
                Ok(length) if length > 0 => {
                    stdout.extend_from_slice(&out_buffer[..length]);
                    if stdout.len() > MAX_STDOUT {
                        break End::TooLarge;
                    }
                }
                _ => out_open = false,
            },
            read = err.read(&mut err_buffer), if err_open => match read {
                Ok(length) if length > 0 => {
                    stderr.extend_from_slice(&err_buffer[..length]);
                    if stderr.len() > 4 * KEPT_STDERR {
                        stderr.drain(..stderr.len() - KEPT_STDERR);
                    }
                    // One that never stops talking must not keep the clock from being seen.
                    if Instant::now() >= grace {
                        break exited.map_or(End::TimedOut, |(status, _)| End::Exited(status));
                    }
                }
                _ => err_open = false,
            },
            () = &mut feed, if !fed => fed = true,
            status = child.wait(), if exited.is_none() => {
                exited = Some((status.map_err(failed)?, Instant::now()));
                group.disarm();
            },
            () = sleep_until(grace) => match exited {
                Some((status, _)) => break End::Exited(status),
                None => break End::TimedOut,
            },
        }
    };
    let stderr = snippet(&stderr[stderr.len().saturating_sub(KEPT_STDERR)..], KEPT_STDERR);
    let plugin = call.plugin.to_owned();
    let verb = call.verb;
    let status = match end {
        End::Exited(status) => status,
        End::TimedOut | End::TooLarge => {
            drop(group);
            // It was killed; this only reaps it.
            let _ = child.wait().await;
            return Err(match end {
                End::TimedOut => Error::Timeout { plugin, verb, timeout: call.timeout, stderr },
                _ => Error::OutputTooLarge { plugin, verb, limit: MAX_STDOUT },
            });
        }
    };
    if status.success() {
        return Ok(Answer { stdout, stderr });
    }
    Err(match plugin_error(call.plugin, verb, &stdout, &stderr) {
        Some(error) => error,
        None => {
            let stdout = snippet(&stdout, SNIPPET);
            Error::PluginFailed { plugin, verb, status, stdout, stderr }
        }
    })
}

/// Starts the program. One that is being replaced right now ("text file busy") is tried again.
async fn spawn(call: &Call<'_>) -> io::Result<Child> {
    const TRIES: u32 = 20;
    let mut tries = 0;
    loop {
        let spawned = Command::new(call.program)
            .envs(call.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir("/")
            .process_group(0)
            .spawn();
        match spawned {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < TRIES => {
                tries += 1;
                sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}

/// The error object that a plugin writes to standard output, if it did.
pub(crate) fn plugin_error(
    plugin: &str,
    verb: &'static str,
    stdout: &[u8],
    stderr: &str,
) -> Option<Error> {
    let value: Value = serde_json::from_slice(stdout).ok()?;
    let code = value.get("code")?.as_u64().and_then(|code| u32::try_from(code).ok())?;
    let text = |key| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (msg, details) = (text("msg"), text("details"));
    if code == 0 && msg.is_empty() {
        return None;
    }
    let (plugin, stderr) = (plugin.to_owned(), stderr.to_owned());
    Some(Error::Plugin { plugin, verb, code, msg, details, stderr })
}

/// The beginning of an output as one line of text, of at most `limit` characters.
pub(crate) fn snippet(bytes: &[u8], limit: usize) -> String {
    // A character has at most four bytes.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * limit)]);
    let mut line: String =
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(limit).collect();
    if bytes.len() > line.len() && text.trim().chars().count() > limit {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snippets() {
        assert_eq!(snippet(b"  one\ntwo\x1b[0m \n", 100), "one two [0m");
        assert_eq!(snippet(b"\xff\xfe", 100), "\u{fffd}\u{fffd}");
        assert_eq!(snippet("ä".repeat(600).as_bytes(), 512).chars().count(), 513);
        assert_eq!(snippet(b"", 512), "");
    }

    #[test]
    fn error_objects() {
        let error = plugin_error("p", "ADD", br#"{"code":11,"msg":"later","details":"d"}"#, "");
        assert_eq!(error.unwrap().code(), Some(11));
        for other in [&b"garbage"[..], b"{}", b"[]", br#"{"code":"x","msg":"m"}"#, b"", b"null"] {
            assert!(plugin_error("p", "ADD", other, "").is_none());
        }
    }
}
