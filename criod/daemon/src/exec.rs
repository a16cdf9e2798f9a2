//! Commands in a running container: ExecSync, and what a command of any kind runs as.
//!
//! The command gets the container's own `process` object with other arguments: the same user,
//! environment, capabilities and limits. Its output comes as files from the monitor.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api_cri::v1::{ExecSyncRequest, ExecSyncResponse};
use api_monitor::monitor::ExecSyncRequest as Asked;

use crate::error::{Error, Kind, Result};
use crate::monitor::exec_sync;
use crate::node::{Container, Node, blocking, on_disk};
use crate::record::ContainerState;

/// A command that is ready to run.
struct Ready {
    id: String,
    command: String,
    seconds: i64,
    asked: Asked,
    /// A connection to the monitor, of its own.
    monitor: UnixStream,
}

impl Node {
    /// Runs a command in a container and waits for its end. A caller that goes away leaves nothing.
    ///
    /// The front's to call: once the command is begun, nothing of the node is needed but the monitor.
    pub(crate) async fn exec_sync(
        self: &Arc<Self>,
        request: ExecSyncRequest,
    ) -> Result<ExecSyncResponse> {
        let relay = self.relays.one();
        let node = Arc::clone(self);
        let ready = self.work.spawn(async move { node.exec_ready(request).await });
        let ready = match ready.await.unwrap_or_else(|_| Err(Kind::Panicked.into())) {
            // Nothing has begun, and it is the end of the pool that it failed for.
            Err(_) if self.leaving.load(Ordering::SeqCst) => Err(Kind::Restarting.into()),
            other => other,
        }?;
        let task = tokio::spawn(async move {
            let _relay = relay;
            ready.run().await
        });
        task.await.unwrap_or_else(|_| Err(Kind::Panicked.into()))
    }

    async fn exec_ready(&self, request: ExecSyncRequest) -> Result<Ready> {
        let container = self.container(&request.container_id)?;
        if request.cmd.is_empty() {
            return Err(Error::invalid("cmd is empty"));
        }
        if request.timeout < 0 {
            return Err(Error::invalid(format!("timeout {} is negative", request.timeout)));
        }
        let container = self.running(&container.id)?;
        let command = request.cmd.join(" ");
        let process = self.process_of(&container.id, request.cmd, false)?;
        let limit = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        let asked = Asked {
            process,
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            ..Asked::new()
        };
        let monitor = container.monitor.connection().await?;
        Ok(Ready { id: container.id.clone(), command, seconds: request.timeout, asked, monitor })
    }
}

impl Ready {
    async fn run(self) -> Result<ExecSyncResponse> {
        let done = exec_sync(&self.id, self.monitor, &self.asked).await;
        let done = done.map_err(|e| match e.monitor_refusal() {
            Some(text) => Kind::Runtime(format!("exec in container {}: {text}", self.id)).into(),
            None => e,
        })?;
        let (stdout, stderr) = (done.stdout.clone(), done.stderr.clone());
        let (stdout, stderr) = blocking(move || Ok((take(&stdout)?, take(&stderr)?))).await?;
        if done.timed_out {
            return Err(Kind::ExecTimeout { command: self.command, seconds: self.seconds }.into());
        }
        Ok(ExecSyncResponse { stdout, stderr, exit_code: done.exit_code })
    }
}

impl Node {
    /// A container that runs.
    pub(crate) fn running(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.container(id)?;
        if container.record.get().state != ContainerState::Running {
            return Err(Error::precondition(format!("container {} is not running", container.id)));
        }
        Ok(container)
    }

    /// The container's process object with another command, as JSON.
    pub(crate) fn process_of(&self, id: &str, args: Vec<String>, tty: bool) -> Result<Vec<u8>> {
        let path = self.paths.bundle(id).join("config.json");
        let bytes = on_disk(|| std::fs::read(&path)).map_err(Error::file("read", &path))?;
        let bad = |e: serde_json::Error| {
            Error::from(Kind::Record { path: path.clone(), problem: e.to_string() })
        };
        let mut spec: serde_json::Value = serde_json::from_slice(&bytes).map_err(bad)?;
        let mut process = spec["process"].take();
        process["args"] = args.into();
        process["terminal"] = tty.into();
        if let Some(env) = process["env"].as_array_mut().filter(|_| tty) {
            let named = |v: &serde_json::Value| v.as_str().is_some_and(|v| v.starts_with("TERM="));
            if !env.iter().any(named) {
                env.push("TERM=xterm".into());
            }
        }
        serde_json::to_vec(&process).map_err(bad)
    }
}

/// Reads a file and removes it.
fn take(path: &str) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    std::fs::remove_file(path).map_err(Error::file("remove", path))?;
    Ok(bytes)
}
