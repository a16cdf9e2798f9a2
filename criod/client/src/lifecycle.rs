//! The verbs that end things: `stop`, `rm`, `rmi`. Of several ids, each is tried; what failed is
//! said, and makes the exit code 1.

use api_cri::v1::{
    Container, ContainerState, ImageSpec, PodSandbox, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, StopContainerRequest, StopPodSandboxRequest,
};

use crate::args::{RmArgs, RmiArgs, StopArgs};
use crate::connect::Client;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::resolve::{self, Found, Named as _, Prefer, World};

pub(crate) async fn stop(client: &Client, console: &mut Console, args: StopArgs) -> Result<u8> {
    let world = World::load(client).await?;
    let mut code = 0;
    for id in &args.ids {
        let stopped = match world.either(id, Prefer::Pod) {
            Ok(Found::Container(c)) => stop_container(client, &c.id, args.time.into()).await,
            Ok(Found::Pod(p)) => stop_pod(client, &world, p, args.time.into()).await,
            Err(e) => Err(e),
        };
        report(console, id, stopped, &mut code)?;
    }
    Ok(code)
}

pub(crate) async fn remove(client: &Client, console: &mut Console, args: RmArgs) -> Result<u8> {
    let world = World::load(client).await?;
    let mut code = 0;
    for id in &args.ids {
        let removed = match world.either(id, Prefer::Pod) {
            Ok(Found::Container(c)) => remove_container(client, c, args.force).await,
            Ok(Found::Pod(p)) => remove_pod(client, &world, p, args.force).await,
            Err(e) => Err(e),
        };
        report(console, id, removed, &mut code)?;
    }
    Ok(code)
}

pub(crate) async fn remove_images(
    client: &Client,
    console: &mut Console,
    args: RmiArgs,
) -> Result<u8> {
    let mut code = 0;
    for id in &args.images {
        let removed = remove_image(client, id).await;
        report(console, id, removed, &mut code)?;
    }
    Ok(code)
}

fn report(console: &Console, id: &str, done: Result<()>, code: &mut u8) -> Result<()> {
    match done {
        Ok(()) => console.print(&format!("{id}\n")),
        Err(e) => {
            console.complain(&e.line());
            *code = 1;
            Ok(())
        }
    }
}

fn runs(c: &Container) -> bool {
    c.state == ContainerState::ContainerRunning as i32
}

/// Stops a container; what still runs after `timeout` seconds is killed.
pub(crate) async fn stop_container(client: &Client, id: &str, timeout: i64) -> Result<()> {
    let request = StopContainerRequest { container_id: id.into(), timeout };
    let doing = format!("stop the container {id}");
    client.long(doing, client.runtime().stop_container(request)).await?;
    Ok(())
}

/// Stops a pod's containers, each within `timeout` seconds, and then the pod.
async fn stop_pod(client: &Client, world: &World, pod: &PodSandbox, timeout: i64) -> Result<()> {
    for c in world.of_pod(&pod.id).filter(|c| runs(c)) {
        match stop_container(client, &c.id, timeout).await {
            // Removed since it was listed.
            Err(e) if e.is_not_found() => {}
            stopped => stopped?,
        }
    }
    stop_sandbox(client, &pod.id).await
}

async fn stop_sandbox(client: &Client, id: &str) -> Result<()> {
    let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
    let doing = format!("stop the pod {id}");
    client.long(doing, client.runtime().stop_pod_sandbox(request)).await?;
    Ok(())
}

async fn remove_container(client: &Client, c: &Container, force: bool) -> Result<()> {
    if runs(c) && !force {
        return Err(Error::Running { container: format!("the container {}", c.name()) });
    }
    let request = RemoveContainerRequest { container_id: c.id.clone() };
    let doing = format!("remove the container {}", c.id);
    client.long(doing, client.runtime().remove_container(request)).await?;
    Ok(())
}

async fn remove_pod(client: &Client, world: &World, pod: &PodSandbox, force: bool) -> Result<()> {
    if let Some(c) = world.of_pod(&pod.id).find(|c| runs(c))
        && !force
    {
        let container = format!("the container {} of the pod {}", c.name(), pod.name());
        return Err(Error::Running { container });
    }
    remove_sandbox(client, &pod.id).await
}

/// Stops and removes a pod with all that is in it.
pub(crate) async fn remove_sandbox(client: &Client, id: &str) -> Result<()> {
    stop_sandbox(client, id).await?;
    let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
    let doing = format!("remove the pod {id}");
    client.long(doing, client.runtime().remove_pod_sandbox(request)).await?;
    Ok(())
}

async fn remove_image(client: &Client, id: &str) -> Result<()> {
    // The CRI's call succeeds for images that are not there.
    let (_, name) = resolve::image(client, id).await?;
    let image = Some(ImageSpec { image: name, ..ImageSpec::default() });
    let doing = format!("remove the image {id}");
    client.long(doing, client.images().remove_image(RemoveImageRequest { image })).await?;
    Ok(())
}
