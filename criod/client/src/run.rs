//! The verb `run`: a pod with one container, from the image to the exit code.
//!
//! ```text
//! pull if missing ─► RunPodSandbox ─► CreateContainer ─► StartContainer ─┬─ detached: print ids
//!                                                                        └─ follow the log
//!        Ctrl-C: StopContainer (10 s) ─ again: StopContainer (0 s) ─────────► until it has exited
//!                                                                                   │
//!                         its exit code ◄─ remove the pod, and its log, unless kept ◄┘
//! ```
//! What fails before the container runs removes what was made until then (unless `--keep`), and
//! gives 125. A Ctrl-C before that ends with 130.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use api_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatus, CreateContainerRequest, ImageSpec,
    ImageStatusRequest, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping,
    RunPodSandboxRequest, StartContainerRequest,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::TOOL_FAILED;
use crate::args::{Format, PullPolicy, RunArgs};
use crate::connect::Client;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::lifecycle::{remove_sandbox, stop_container};
use crate::pull::fetch;
use crate::quantity::User;
use crate::show::{Printer, Pump, container_status, wait_ended};

/// How long a container may take to end after Ctrl-C, in seconds.
const GRACE: i64 = 10;

/// The exit code after Ctrl-C, where there is none of the container: 128 and SIGINT.
const INTERRUPTED: u8 = 130;

/// The scheduler's period in microseconds, of which a limit is a part.
const PERIOD: i64 = 100_000;

/// What a container must not see of the host, and what it must not write to, unless privileged.
/// Runtimes leave these lists to their callers.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What is to be made.
struct Plan {
    sandbox: PodSandboxConfig,
    container: ContainerConfig,
    /// The log's directory, if it is this run's own.
    own_logs: Option<PathBuf>,
}

/// What has been made.
#[derive(Default)]
struct Made {
    pod: Option<String>,
    container: String,
}

type Interrupts = mpsc::Receiver<()>;

pub(crate) async fn run(client: &Client, console: &mut Console, args: Box<RunArgs>) -> Result<u8> {
    let mut interrupts = console.interrupts()?;
    let mut plan = plan(&args, &console.pod_logs, &unique()?);
    let image = tokio::select! {
        image = image(client, console, &args, &plan.sandbox) => image?,
        Some(()) = interrupts.recv() => return Ok(INTERRUPTED),
    };
    if let Some(spec) = &mut plan.container.image {
        spec.image = image;
    }
    let logs = PathBuf::from(&plan.sandbox.log_directory);
    std::fs::create_dir_all(&logs)
        .map_err(|source| Error::LogDirectory { path: logs.clone(), source })?;

    let mut made = Made::default();
    let mut steps = Steps { console, interrupts: &mut interrupts, interrupted: false };
    let outcome = match start(client, &args.runtime, &plan, &mut made, &mut steps).await {
        Ok(false) => Ok(INTERRUPTED),
        Ok(true) if args.detach => {
            print_ids(console, &args, &made)?;
            return Ok(0);
        }
        Ok(true) => follow(client, console, &plan, &made, &mut interrupts).await,
        Err(e) => Err(e),
    };
    if !args.keep {
        tokio::select! {
            removed = clean_up(client, &plan, &made) => {
                if let Err(e) = removed {
                    console.complain(&e.line());
                }
            }
            Some(()) = interrupts.recv() => {
                console.complain("interrupted while the pod was removed: it may still be there");
            }
        }
    }
    outcome
}

fn print_ids(console: &Console, args: &RunArgs, made: &Made) -> Result<()> {
    let pod = made.pod.as_deref().unwrap_or_default();
    match args.output {
        Format::Table => console.print(&format!("{}\n{pod}\n", made.container)),
        Format::Json => {
            console.json(&json!({ "containerId": made.container, "podSandboxId": pod }))
        }
    }
}

/// Sees to it that the image is here, and gives what the runtime calls it.
async fn image(
    client: &Client,
    console: &Console,
    args: &RunArgs,
    sandbox: &PodSandboxConfig,
) -> Result<String> {
    let policy = if args.no_pull { PullPolicy::Never } else { args.pull };
    let spec = ImageSpec {
        image: args.image.clone(),
        runtime_handler: args.runtime.clone(),
        ..ImageSpec::default()
    };
    if policy != PullPolicy::Always {
        let request = ImageStatusRequest { image: Some(spec.clone()), verbose: false };
        let doing = format!("look for the image {}", args.image);
        let mut images = client.images();
        match client.quick(doing, images.image_status(request)).await {
            Ok(answer) => {
                if let Some(image) = answer.image {
                    return Ok(image.id);
                }
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        if policy == PullPolicy::Never {
            return Err(Error::ImageMissing { image: args.image.clone() });
        }
    }
    fetch(client, console, spec, None, Some(sandbox.clone())).await
}

/// The calls that make something. They are awaited even when interrupted, for what they made would
/// stay; a second Ctrl-C gives up nevertheless.
struct Steps<'a> {
    console: &'a Console,
    interrupts: &'a mut Interrupts,
    interrupted: bool,
}

impl Steps<'_> {
    /// Awaits one. `None` if it was given up.
    async fn step<T>(&mut self, call: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        tokio::pin!(call);
        loop {
            tokio::select! {
                answer = &mut call => return answer.map(Some),
                Some(()) = self.interrupts.recv() => {
                    if self.interrupted {
                        self.console.complain("given up: what was being made may still be there");
                        return Ok(None);
                    }
                    self.interrupted = true;
                    self.console.note("ends after this step; Ctrl-C again gives up");
                }
            }
        }
    }
}

/// Makes pod and container and starts it. `false` if it was interrupted.
async fn start(
    client: &Client,
    handler: &str,
    plan: &Plan,
    made: &mut Made,
    steps: &mut Steps<'_>,
) -> Result<bool> {
    let mut runtime = client.runtime();
    let config = Some(plan.sandbox.clone());
    let request = RunPodSandboxRequest { config, runtime_handler: handler.into() };
    let call = client.long("start the pod", runtime.run_pod_sandbox(request));
    let Some(answer) = steps.step(call).await? else { return Ok(false) };
    let pod = made.pod.insert(answer.pod_sandbox_id).clone();
    if steps.interrupted {
        return Ok(false);
    }
    let request = CreateContainerRequest {
        pod_sandbox_id: pod,
        config: Some(plan.container.clone()),
        sandbox_config: Some(plan.sandbox.clone()),
    };
    let call = client.long("make the container", runtime.create_container(request));
    let Some(answer) = steps.step(call).await? else { return Ok(false) };
    made.container = answer.container_id;
    if steps.interrupted {
        return Ok(false);
    }
    let request = StartContainerRequest { container_id: made.container.clone() };
    let call = client.long("start the container", runtime.start_container(request));
    Ok(steps.step(call).await?.is_some() && !steps.interrupted)
}

/// Prints the container's output until it has ended, and gives its exit code.
async fn follow(
    client: &Client,
    console: &Console,
    plan: &Plan,
    made: &Made,
    interrupts: &mut Interrupts,
) -> Result<u8> {
    let path = match container_status(client, &made.container).await {
        Ok(status) if !status.log_path.is_empty() => status.log_path.into(),
        _ => PathBuf::from(&plan.sandbox.log_directory).join(&plan.container.log_path),
    };
    let mut pump = Pump::start(&path, Printer::new(console, false, None, None), true);
    let mut printing = true;
    let mut stops = Stops {
        client: client.clone(),
        container: made.container.clone(),
        asked: 0,
        going_on: JoinSet::new(),
    };
    let ended = wait_ended(client, &made.container);
    tokio::pin!(ended);
    let status = loop {
        tokio::select! {
            status = &mut ended => break status?,
            Some(()) = interrupts.recv() => stops.next(console),
            Some(stopped) = stops.going_on.join_next() => {
                if let Ok(Err(e)) = stopped {
                    console.complain(&e.line());
                }
            }
            read = pump.done(), if printing => {
                printing = false;
                match read {
                    // There is nobody left to read it.
                    Err(Error::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                        stops.next(console);
                    }
                    Err(e) => console.complain(&e.line()),
                    Ok(_) => {}
                }
            }
        }
    };
    if printing {
        match pump.end().await {
            Err(Error::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => {}
            Err(e) => console.complain(&e.line()),
            Ok(_) => {}
        }
    }
    Ok(exit_code(console, status))
}

fn exit_code(console: &Console, status: Option<ContainerStatus>) -> u8 {
    let Some(status) = status else {
        console.complain("the container was removed before its exit code was known");
        return TOOL_FAILED;
    };
    if !matches!(status.reason.as_str(), "" | "Completed" | "Error") {
        let colon = if status.message.is_empty() { "" } else { ": " };
        console.complain(&crate::error::one_line(&format!(
            "the container ended with {}{colon}{}",
            status.reason, status.message
        )));
    }
    u8::try_from(status.exit_code).unwrap_or(u8::MAX)
}

/// The ways to stop a container, each harder than the last.
struct Stops {
    client: Client,
    container: String,
    asked: u32,
    going_on: JoinSet<Result<()>>,
}

impl Stops {
    fn next(&mut self, console: &Console) {
        let grace = if self.asked == 0 { GRACE } else { 0 };
        self.asked += 1;
        if grace > 0 && console.lively {
            console.note("stopping the container; Ctrl-C again kills it");
        }
        let (client, container) = (self.client.clone(), self.container.clone());
        self.going_on.spawn(async move {
            match stop_container(&client, &container, grace).await {
                Err(e) if e.is_not_found() => Ok(()),
                stopped => stopped,
            }
        });
    }
}

/// Removes the pod with all that is in it, and the log if nobody named a place for it.
async fn clean_up(client: &Client, plan: &Plan, made: &Made) -> Result<()> {
    if let Some(pod) = &made.pod {
        remove_sandbox(client, pod).await?;
    }
    if let Some(path) = &plan.own_logs {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Log { path: path.clone(), source }),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// A number that no other pod has.
fn unique() -> Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(Error::Random)?;
    Ok(uuid.trim().to_owned())
}

fn plan(args: &RunArgs, pod_logs: &Path, uid: &str) -> Plan {
    let name = args.name.clone().unwrap_or_else(|| name_for(&args.image, uid));
    let pod_name = args.pod_name.clone().unwrap_or_else(|| name.clone());
    let own_logs = match args.log_dir {
        Some(_) => None,
        None => Some(pod_logs.join(format!("default_{}_{uid}", file_name(&pod_name)))),
    };
    let log_directory = args.log_dir.clone().or_else(|| own_logs.clone()).unwrap_or_default();
    // The runtime works in another directory.
    let log_directory = std::path::absolute(&log_directory).unwrap_or(log_directory);
    let namespaces = NamespaceOption {
        network: match args.host_network {
            true => NamespaceMode::Node,
            false => NamespaceMode::Pod,
        } as i32,
        pid: NamespaceMode::Container as i32,
        ipc: NamespaceMode::Pod as i32,
        ..NamespaceOption::default()
    };
    let port = |p: &crate::quantity::Port| PortMapping {
        protocol: p.protocol as i32,
        container_port: p.container.into(),
        host_port: p.host.into(),
        host_ip: p.ip.clone(),
    };
    let sandbox = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod_name.clone(),
            uid: uid.into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: match args.host_network {
            true => String::new(),
            // The most that Linux takes.
            false => pod_name.chars().take(63).collect(),
        },
        log_directory: log_directory.to_string_lossy().into_owned(),
        port_mappings: args.publish.iter().map(port).collect(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces.clone()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..PodSandboxConfig::default()
    };
    let container = ContainerConfig {
        log_path: format!("{}.log", file_name(&name)),
        metadata: Some(ContainerMetadata { name, attempt: 0 }),
        image: Some(ImageSpec {
            image: args.image.clone(),
            user_specified_image: args.image.clone(),
            runtime_handler: args.runtime.clone(),
            ..ImageSpec::default()
        }),
        command: args.entrypoint.iter().cloned().collect(),
        args: args.command.clone(),
        working_dir: args.workdir.clone(),
        envs: variables(args),
        mounts: args
            .volume
            .iter()
            .map(|v| Mount {
                host_path: v.host.to_string_lossy().into_owned(),
                container_path: v.container.clone(),
                readonly: v.readonly,
                ..Mount::default()
            })
            .collect(),
        tty: args.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(args)),
            security_context: Some(security(args, namespaces)),
        }),
        ..ContainerConfig::default()
    };
    Plan { sandbox, container, own_logs }
}

/// The variables, each once: the last of several wins.
fn variables(args: &RunArgs) -> Vec<KeyValue> {
    let last: BTreeMap<_, _> = args.env.iter().map(|e| (&e.key, &e.value)).collect();
    let pair = |(key, value): (&String, &String)| KeyValue {
        key: key.clone(),
        value: value.clone().into(),
    };
    last.into_iter().map(pair).collect()
}

fn resources(args: &RunArgs) -> LinuxContainerResources {
    let mut resources = LinuxContainerResources::default();
    if let Some(cpus) = args.cpus {
        resources.cpu_period = PERIOD;
        resources.cpu_quota = (cpus.0 * PERIOD / 1000).max(1000);
        resources.cpu_shares = (cpus.0 * 1024 / 1000).clamp(2, 262_144);
    }
    if let Some(memory) = args.memory {
        resources.memory_limit_in_bytes = memory.0;
    }
    resources
}

fn security(args: &RunArgs, namespaces: NamespaceOption) -> LinuxContainerSecurityContext {
    let mut context = LinuxContainerSecurityContext {
        namespace_options: Some(namespaces),
        masked_paths: MASKED.map(String::from).to_vec(),
        readonly_paths: READONLY.map(String::from).to_vec(),
        ..LinuxContainerSecurityContext::default()
    };
    let number = |value: i64| Some(Int64Value { value });
    match &args.user {
        None => {}
        Some(User::Number { uid, gid }) => {
            context.run_as_user = number(*uid);
            context.run_as_group = gid.and_then(number);
        }
        Some(User::Name { name, gid }) => {
            context.run_as_username = name.clone();
            context.run_as_group = gid.and_then(number);
        }
    }
    context
}

/// A name for what runs an image: the image's own, and something of `uid`.
fn name_for(image: &str, uid: &str) -> String {
    let name = image.split('@').next().unwrap_or(image);
    let name = name.rsplit('/').next().unwrap_or(name);
    let name = name.split(':').next().unwrap_or(name).to_ascii_lowercase();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let name = match name.trim_matches('-') {
        "" => "run",
        name => name,
    };
    format!("{name}-{}", uid.split('-').next().unwrap_or(uid))
}

/// A name that can be a file's.
fn file_name(name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.chars().map(plain).take(64).collect();
    match name.trim_matches('.') {
        "" => "run".into(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = |image| name_for(image, "0a1b2c3d-0000");
        assert_eq!(name("docker.io/library/web:1.2@sha256:00"), "web-0a1b2c3d");
        assert_eq!(name("127.0.0.1:5000/My_App"), "my-app-0a1b2c3d");
        assert_eq!(name("sha256:00"), "sha256-0a1b2c3d");
        assert_eq!(name(""), "run-0a1b2c3d");
        assert_eq!(name("/.."), "run-0a1b2c3d");
        assert_eq!(file_name("../../etc"), ".._.._etc");
        assert_eq!(file_name(".."), "run");
    }
}
