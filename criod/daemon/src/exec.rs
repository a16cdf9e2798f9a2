//! Commands in a running container: ExecSync, and what a command of any kind runs as.
//!
//! The command gets the container's own `process` object with other arguments: the same user,
//! environment, capabilities and limits. Its output comes as files from the monitor.

use std::sync::Arc;
use std::time::Duration;

use api_cri::v1::{ExecSyncRequest, ExecSyncResponse};
use api_monitor::monitor::ExecSyncRequest as Asked;

use crate::error::{Error, Kind, Result};
use crate::node::{Container, Node, blocking, on_disk};
use crate::record::ContainerState;

impl Node {
    /// Runs a command in a container and waits for its end. A caller that goes away leaves nothing.
    pub(crate) async fn exec_sync(
        self: &Arc<Self>,
        request: ExecSyncRequest,
    ) -> Result<ExecSyncResponse> {
        let node = Arc::clone(self);
        let task = tokio::spawn(async move { node.exec_and_wait(request).await });
        task.await.unwrap_or_else(|_| Err(Kind::Panicked.into()))
    }

    async fn exec_and_wait(self: &Arc<Self>, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
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
        let done =
            container.monitor.exec_sync(&asked).await.map_err(|e| match e.monitor_refusal() {
                Some(text) => {
                    Kind::Runtime(format!("exec in container {}: {text}", container.id)).into()
                }
                None => e,
            })?;
        let (stdout, stderr) = (done.stdout.clone(), done.stderr.clone());
        let (stdout, stderr) = blocking(move || Ok((take(&stdout)?, take(&stderr)?))).await?;
        if done.timed_out {
            return Err(Kind::ExecTimeout { command, seconds: request.timeout }.into());
        }
        Ok(ExecSyncResponse { stdout, stderr, exit_code: done.exit_code })
    }

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
