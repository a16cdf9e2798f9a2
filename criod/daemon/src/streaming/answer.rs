//! What a stream gets for a token: one connected socket, on which all that may be done has been said.
//!
//! ```text
//! exec, attach   monitor's stream.sock ─connect─▶ EXEC … or ATTACH … ─▶ the socket goes to the stream
//! port-forward   keeper forks a dialer ─ENTER netns─▶ OK              ─▶ its control socket goes there
//! ```
//! The stream says GO when the client has been answered. Should criod die in between, the socket closes
//! and nothing has happened; its successor is asked again.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use api_cri::v1::{AttachRequest, ExecRequest, NamespaceMode, PortForwardRequest};
use sys::seqpacket::Conn;

use super::process::Stream;
use super::tls::sealed;
use super::token::{Purpose, Ticket};
use crate::error::{Error, Kind, Result};
use crate::node::{Container, Node, Pod, blocking, new_id};
use crate::record::{ContainerState, PodState};
use crate::spec;

/// How long a dialer may take to enter a network namespace.
const DIALER: Duration = Duration::from_secs(10);

/// Ports in one request: as many as fit a message.
const MOST_PORTS: usize = 1000;

/// HTTP's words for what went wrong.
const NOT_FOUND: &str = "404";
const FAILED: &str = "500";

/// Tells a stream what its token stands for.
pub(super) async fn answer(
    node: &Arc<Node>,
    stream: &Stream,
    ticket: Option<Ticket>,
) -> io::Result<()> {
    let Some(ticket) = ticket else {
        return stream.send(&["NO", NOT_FOUND, "unknown or used token"], &[]);
    };
    let socket = match ticket.purpose {
        Purpose::Exec => node.prepare_exec(&ticket).await,
        Purpose::Attach => node.prepare_attach(&ticket).await,
        Purpose::PortForward => node.prepare_forward(&ticket).await,
    };
    let socket = match socket {
        Ok(socket) => socket,
        Err(e) => return stream.send(&["NO", FAILED, &e.chain()], &[]),
    };
    let flags = flags(&ticket);
    let ports: Vec<String> = ticket.ports.iter().map(ToString::to_string).collect();
    let (verb, words) = match ticket.purpose {
        Purpose::Exec => ("EXEC", flags.to_vec()),
        Purpose::Attach => ("ATTACH", flags.to_vec()),
        Purpose::PortForward => ("FORWARD", ports.iter().map(String::as_str).collect()),
    };
    let fields: Vec<&str> = std::iter::once(verb).chain(words).collect();
    stream.send(&fields, &[socket.as_fd()])
}

fn flags(ticket: &Ticket) -> [&'static str; 4] {
    [ticket.tty, ticket.stdin, ticket.stdout, ticket.stderr].map(|on| if on { "1" } else { "0" })
}

/// What no client can ask for, whatever it is for.
fn check(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<()> {
    if tty && stderr {
        return Err(Error::invalid(
            "tty and stderr cannot both be true: a terminal has one output",
        ));
    }
    if !(stdin || stdout || stderr) {
        return Err(Error::invalid("one of stdin, stdout and stderr must be true"));
    }
    Ok(())
}

impl Node {
    /// A pod whose ports can be reached.
    fn forwardable(&self, id: &str) -> Result<Arc<Pod>> {
        let pod = self.pod(id)?;
        if pod.record.get().state != PodState::Ready {
            return Err(Error::precondition(format!("pod sandbox {} is not ready", pod.id)));
        }
        Ok(pod)
    }

    /// The URL for a command in a container.
    pub(crate) fn exec_url(&self, request: ExecRequest) -> Result<String> {
        let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
        let container = self.running(&container_id)?;
        if cmd.is_empty() {
            return Err(Error::invalid("cmd is empty"));
        }
        check(tty, stdin, stdout, stderr)?;
        let ticket = Ticket::of(Purpose::Exec, &container.id);
        self.streams.url(Ticket { command: cmd, tty, stdin, stdout, stderr, ..ticket })
    }

    /// The URL for the input and output of a container's own process.
    pub(crate) fn attach_url(&self, request: AttachRequest) -> Result<String> {
        let AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
        let container = self.attachable(&container_id)?;
        check(tty, stdin, stdout, stderr)?;
        let ticket = Ticket::of(Purpose::Attach, &container.id);
        self.streams.url(Ticket { tty, stdin, stdout, stderr, ..ticket })
    }

    /// The URL for ports of a pod.
    pub(crate) fn forward_url(&self, request: PortForwardRequest) -> Result<String> {
        let PortForwardRequest { pod_sandbox_id, port } = request;
        let pod = self.forwardable(&pod_sandbox_id)?;
        if port.len() > MOST_PORTS {
            return Err(Error::invalid(format!("more than {MOST_PORTS} ports")));
        }
        if let Some(bad) = port.iter().find(|p| !(1..=65535).contains(*p)) {
            return Err(Error::invalid(format!("{bad} is no port")));
        }
        let ticket = Ticket::of(Purpose::PortForward, &pod.id);
        self.streams.url(Ticket { ports: port, ..ticket })
    }

    /// A container whose streams are there.
    fn attachable(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.container(id)?;
        match container.record.get().state {
            ContainerState::Created | ContainerState::Running => Ok(container),
            _ => Err(Error::precondition(format!("container {} is not running", container.id))),
        }
    }

    async fn prepare_exec(&self, ticket: &Ticket) -> Result<OwnedFd> {
        let container = self.running(&ticket.id)?;
        let process = self.process_of(&container.id, ticket.command.clone(), ticket.tty)?;
        let process = sealed(&process).map_err(Error::system("copy the process into memory"))?;
        let fields = std::iter::once("EXEC").chain(flags(ticket));
        container.monitor.session(fields.collect(), vec![process]).await
    }

    async fn prepare_attach(&self, ticket: &Ticket) -> Result<OwnedFd> {
        let container = self.attachable(&ticket.id)?;
        let [_, stdin, stdout, stderr] = flags(ticket);
        container.monitor.session(vec!["ATTACH", stdin, stdout, stderr], Vec::new()).await
    }

    async fn prepare_forward(&self, ticket: &Ticket) -> Result<OwnedFd> {
        let pod = self.forwardable(&ticket.id)?;
        let record = pod.record.get();
        let host = spec::mode(spec::pod_modes(&record).network)? == NamespaceMode::Node;
        let pins = namespace::Pinned::existing(&self.paths.namespaces(&pod.id));
        let netns = match (host, pins.net) {
            (true, _) => None,
            (false, Some(path)) => Some(path),
            (false, None) => {
                let text = format!("pod sandbox {} has no network namespace", pod.id);
                return Err(Error::precondition(text));
            }
        };
        let mut number = new_id()?;
        number.truncate(16);
        let (control, _process) = self.streams.pool.fork(&format!("dial-{number}"), true).await?;
        let id = pod.id.clone();
        blocking(move || {
            let conn = Conn::from(control);
            conn.patient(DIALER).map_err(Error::system("wait for a dialer"))?;
            let netns = netns.map(|path| File::open(&path).map_err(Error::file("open", path)));
            let netns = netns.transpose()?;
            let fds: Vec<_> = netns.iter().map(AsFd::as_fd).collect();
            conn.call(&["ENTER"], &fds).map_err(|e| {
                Error::from(Kind::System {
                    action: format!("enter the network of pod {id}"),
                    source: e,
                })
            })?;
            conn.patient(Duration::ZERO).map_err(Error::system("wait for a dialer"))?;
            Ok(OwnedFd::from(conn))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_output_and_nothing_is_no_request() {
        assert!(check(true, true, true, false).is_ok());
        assert!(check(false, false, false, true).is_ok());
        for (tty, stdin, stdout, stderr) in
            [(true, true, true, true), (false, false, false, false), (true, false, false, false)]
        {
            let refused = check(tty, stdin, stdout, stderr).unwrap_err();
            assert_eq!(refused.status().code(), tonic::Code::InvalidArgument);
        }
    }
}
