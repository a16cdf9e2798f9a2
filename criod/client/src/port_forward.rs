//! The verb `port-forward`: ports of this machine that lead into a pod, until it is interrupted.

use api_cri::v1::{PodSandboxState, PortForwardRequest};
use tokio::net::TcpListener;

use crate::args::PortForwardArgs;
use crate::connect::Client;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::resolve::{Named as _, World};
use crate::streaming::{self, Target};

pub(crate) async fn port_forward(
    client: &Client,
    console: &mut Console,
    args: PortForwardArgs,
) -> Result<u8> {
    let world = World::load(client).await?;
    let pod = world.pod(&args.id)?;
    if pod.state != PodSandboxState::SandboxReady as i32 {
        return Err(Error::PodStopped { pod: pod.name().into() });
    }
    let mut listeners = Vec::new();
    let mut lines = String::new();
    for port in &args.ports {
        for ip in &args.address {
            let address = (*ip, port.local).into();
            let failed = |source| Error::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            lines.push_str(&format!("Forwarding from {address} -> {}\n", port.remote));
            listeners.push((listener, port.remote));
        }
    }
    let request = PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: args.ports.iter().map(|p| p.remote.into()).collect(),
    };
    let doing = format!("forward to the pod {}", pod.name());
    let answer = client.quick(doing, client.runtime().port_forward(request)).await?;
    let target = Target::new(&answer.url, &args.tls, client.timeout())?;
    let begun = || {
        console.print(&lines)?;
        console.flush()
    };
    streaming::forward(console, &target, listeners, begun).await?;
    Ok(0)
}
