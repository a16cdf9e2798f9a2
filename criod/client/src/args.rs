//! What the verbs take on the command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;

use crate::quantity::{self, Cpus, Env, Forward, Memory, Port, User, Volume};

/// A verb and what it was given.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a container in a pod of its own
    ///
    /// Its output is followed until it ends, and its exit code is that of this command. Ctrl-C
    /// stops it, a second one kills it. On a node with a kubelet, the kubelet removes pods that it
    /// did not make.
    Run(Box<RunArgs>),
    /// List pods
    Pods(PodsArgs),
    /// List containers
    Ps(PsArgs),
    /// List images
    Images(ImagesArgs),
    /// Show all that is known of a container, pod or image
    Inspect(InspectArgs),
    /// Show the output of a container
    Logs(LogsArgs),
    /// Run a command in a container
    ///
    /// Its exit code is that of this command; 127 where there is no such command, 125 where
    /// something else fails.
    Exec(ExecArgs),
    /// See what a container prints from now on, and type to it
    ///
    /// Where the container ends meanwhile, its exit code is that of this command.
    Attach(AttachArgs),
    /// Forward ports of this machine to a pod
    PortForward(PortForwardArgs),
    /// Pull an image
    Pull(PullArgs),
    /// Stop containers or pods
    Stop(StopArgs),
    /// Remove containers or pods
    Rm(RmArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Show whether the runtime is ready
    Status(StatusArgs),
    /// Show what containers use
    Stats(StatsArgs),
    /// Show the processes that outlive criod: its keeper, and a monitor for each container
    Monitors(MonitorsArgs),
}

impl Verb {
    /// Where the socket is said to be, and how long a call may take.
    pub(crate) fn link(&self) -> Link {
        match self {
            Verb::Run(a) => a.link.clone(),
            Verb::Pods(a) => a.link.clone(),
            Verb::Ps(a) => a.link.clone(),
            Verb::Images(a) => a.link.clone(),
            Verb::Inspect(a) => a.link.clone(),
            Verb::Logs(a) => a.link.clone(),
            Verb::Exec(a) => Link { runtime_endpoint: a.runtime_endpoint.clone(), timeout: None },
            Verb::Attach(a) => a.link.clone(),
            Verb::PortForward(a) => a.link.clone(),
            Verb::Pull(a) => a.link.clone(),
            Verb::Stop(a) => a.link.clone(),
            Verb::Rm(a) => a.link.clone(),
            Verb::Rmi(a) => a.link.clone(),
            Verb::Status(a) => a.link.clone(),
            Verb::Stats(a) => a.link.clone(),
            Verb::Monitors(a) => match &a.verb {
                Some(MonitorsVerb::Upgrade { link, .. }) => link.clone(),
                None => a.link.clone(),
            },
        }
    }
}

/// How the runtime is reached.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Link {
    /// The runtime's socket [env: CONTAINER_RUNTIME_ENDPOINT] [default: unix:///run/crio/crio.sock]
    #[arg(short = 'R', long, value_name = "ENDPOINT")]
    pub(crate) runtime_endpoint: Option<String>,
    /// How long a call may take, such as 30s or 2m [default: 10s, and no limit for what may take long]
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    pub(crate) timeout: Option<Duration>,
}

/// For whom output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// When `run` pulls the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// Each time.
    Always,
    /// When it is not here.
    Missing,
    /// Never.
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// The container's name [default: made from the image's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The pod's name [default: the container's]
    #[arg(long)]
    pub(crate) pod_name: Option<String>,
    /// Set a variable; without a value, take it from this environment
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = quantity::env)]
    pub(crate) env: Vec<Env>,
    /// Mount a directory or file of the host
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]", value_parser = quantity::volume)]
    pub(crate) volume: Vec<Volume>,
    /// Forward a port of the host
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]", value_parser = quantity::port)]
    pub(crate) publish: Vec<Port>,
    /// Use the host's network
    #[arg(long, conflicts_with = "publish")]
    pub(crate) host_network: bool,
    /// The runtime handler [default: the runtime's]
    #[arg(long, value_name = "HANDLER", default_value = "", hide_default_value = true)]
    pub(crate) runtime: String,
    /// Run as this user: a number or a name, with a group's number or without
    #[arg(long, value_name = "USER[:GROUP]", value_parser = quantity::user)]
    pub(crate) user: Option<User>,
    /// Start in this directory
    #[arg(long, value_name = "DIR", default_value = "", hide_default_value = true)]
    pub(crate) workdir: String,
    /// Start this instead of the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<String>,
    /// The most memory it may use, such as 64Mi
    #[arg(long, value_name = "BYTES", value_parser = quantity::memory)]
    pub(crate) memory: Option<Memory>,
    /// The most processors it may use, such as 0.5
    #[arg(long, value_name = "NUMBER", value_parser = quantity::cpus)]
    pub(crate) cpus: Option<Cpus>,
    /// Give it a terminal (for output only)
    #[arg(long)]
    pub(crate) tty: bool,
    /// Leave it running, and print the ids of container and pod
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Remove the pod when the container has ended; the default unless detached
    #[arg(long, conflicts_with_all = ["detach", "keep"])]
    pub(crate) rm: bool,
    /// Keep the pod when the container has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Where the log goes; it stays when the pod is removed
    #[arg(long, value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,
    /// When to pull the image
    #[arg(long, value_enum, value_name = "WHEN", default_value = "missing")]
    pub(crate) pull: PullPolicy,
    /// The same as --pull never
    #[arg(long, conflicts_with = "pull")]
    pub(crate) no_pull: bool,
    /// How to print the ids of a detached container
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
    /// The image
    pub(crate) image: String,
    /// The command's arguments, or the command if the image has no entrypoint
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PodsArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// Also those that do not run
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only those of this pod
    #[arg(short, long, value_name = "ID")]
    pub(crate) pod: Option<String>,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Also print digests
    #[arg(long)]
    pub(crate) digests: bool,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct MonitorsArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) verb: Option<MonitorsVerb>,
}

/// What to do with them.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum MonitorsVerb {
    /// Have them become the installed build, without the containers noticing
    Upgrade {
        /// All that run another build, and the keeper
        #[arg(long, conflicts_with = "ids", required_unless_present = "ids")]
        all: bool,
        /// Containers: names, or ids or their beginnings; or "keeper"
        #[arg(value_name = "ID")]
        ids: Vec<String>,
        #[command(flatten)]
        link: Link,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// How to print: always JSON
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"], default_value = "json", hide = true)]
    pub(crate) output: String,
    /// Containers, pods or images: names, or ids or their beginnings
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// Go on until the container has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin with this many lines from the end
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// Print the time of each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Begin with lines of this time, or of so long ago: 2026-11-24T07:36:22Z, 10m
    #[arg(long, value_name = "TIME", value_parser = quantity::since)]
    pub(crate) since: Option<Timestamp>,
    /// The container: its name, or its id or the beginning of it
    pub(crate) id: String,
}

/// How the runtime's streaming server is verified where its URL is https.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct StreamTls {
    /// Also trust the authorities in this file (PEM) for an encrypted stream
    #[arg(long, value_name = "FILE")]
    pub(crate) stream_ca: Option<PathBuf>,
    /// The certificate to show for an encrypted stream (PEM)
    #[arg(long, value_name = "FILE", requires = "stream_key")]
    pub(crate) stream_cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "stream_cert")]
    pub(crate) stream_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The runtime's socket [env: CONTAINER_RUNTIME_ENDPOINT] [default: unix:///run/crio/crio.sock]
    #[arg(short = 'R', long, value_name = "ENDPOINT")]
    pub(crate) runtime_endpoint: Option<String>,
    /// Let the runtime end the command after so long, such as 30s or 2m; its output comes when it
    /// has ended [default: no limit, and output as it comes]
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    #[arg(conflicts_with_all = ["stdin", "tty"])]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) tls: StreamTls,
    /// Give it what is typed, or piped in
    #[arg(short = 'i', long, visible_alias = "interactive")]
    pub(crate) stdin: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// The container: its name, or its id or the beginning of it
    pub(crate) id: String,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    #[command(flatten)]
    pub(crate) tls: StreamTls,
    /// Give it what is typed, or piped in
    #[arg(short = 'i', long, visible_alias = "interactive")]
    pub(crate) stdin: bool,
    /// The container has a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// The container: its name, or its id or the beginning of it
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct PortForwardArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    #[command(flatten)]
    pub(crate) tls: StreamTls,
    /// The address to listen on, or several with commas
    #[arg(long, value_name = "IP", value_delimiter = ',', default_value = "127.0.0.1")]
    pub(crate) address: Vec<IpAddr>,
    /// The pod: its name, or its id or the beginning of it
    #[arg(value_name = "POD")]
    pub(crate) id: String,
    /// Ports; without LOCAL the same one, with an empty one or 0 any that is free
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = quantity::forward)]
    pub(crate) ports: Vec<Forward>,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// What to log in with
    #[arg(long, value_name = "USER:PASSWORD", value_parser = quantity::creds)]
    pub(crate) creds: Option<quantity::Creds>,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
    /// The image
    pub(crate) image: String,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// How long a container may take to end before it is killed, in seconds
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) time: u32,
    /// Containers or pods: names, or ids or their beginnings
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// Also what runs: it is killed
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Containers or pods: names, or ids or their beginnings
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// Images: names, or ids or their beginnings
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    pub(crate) link: Link,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
    /// A container, or a pod for all of its containers [default: all]
    pub(crate) id: Option<String>,
}
