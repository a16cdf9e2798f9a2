//! The verbs that list: `pods`, `ps`, `images`. Newest first.

use api_cri::v1::{
    Container, ContainerFilter, ContainerState, ContainerStateValue, Image, ListContainersRequest,
    ListContainersResponse, ListImagesRequest, ListImagesResponse, ListPodSandboxRequest,
    ListPodSandboxResponse, PodSandboxState,
};

use crate::args::{Format, ImagesArgs, PodsArgs, PsArgs};
use crate::connect::Client;
use crate::console::Console;
use crate::error::Result;
use crate::resolve::{Named as _, World, container_state};
use crate::table::{Table, age, short, size};

pub(crate) async fn pods(client: &Client, console: &mut Console, args: PodsArgs) -> Result<u8> {
    let mut runtime = client.runtime();
    let request = ListPodSandboxRequest::default();
    let mut answer = client.quick("list pods", runtime.list_pod_sandbox(request)).await?;
    answer.items.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    print_pods(console, &args, &answer)?;
    Ok(0)
}

fn print_pods(console: &Console, args: &PodsArgs, pods: &ListPodSandboxResponse) -> Result<()> {
    if args.quiet {
        return pods.items.iter().try_for_each(|p| console.print(&format!("{}\n", p.id)));
    }
    if args.output == Format::Json {
        return console.json(pods);
    }
    let now = console.now();
    let mut table =
        Table::new(&["POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"]);
    for p in &pods.items {
        let meta = p.metadata.clone().unwrap_or_default();
        let ready = p.state == PodSandboxState::SandboxReady as i32;
        table.row(vec![
            short(&p.id),
            age(p.created_at, now),
            if ready { "ready" } else { "not ready" }.into(),
            meta.name,
            or_dash(&meta.namespace),
            meta.attempt.to_string(),
            or(&p.runtime_handler, "(default)"),
        ]);
    }
    console.print(&table.render())
}

pub(crate) async fn containers(client: &Client, console: &mut Console, args: PsArgs) -> Result<u8> {
    let mut world = World::load(client).await?;
    let mut filter = ContainerFilter::default();
    if !args.all {
        let state = ContainerState::ContainerRunning as i32;
        filter.state = Some(ContainerStateValue { state });
    }
    if let Some(pod) = &args.pod {
        filter.pod_sandbox_id = world.pod(pod)?.id.clone();
    }
    let mut runtime = client.runtime();
    let request = ListContainersRequest { filter: Some(filter) };
    let mut answer = client.quick("list containers", runtime.list_containers(request)).await?;
    answer.containers.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    world.containers.clear();
    print_containers(console, &args, &world, &answer)?;
    Ok(0)
}

fn print_containers(
    console: &Console,
    args: &PsArgs,
    world: &World,
    answer: &ListContainersResponse,
) -> Result<()> {
    if args.quiet {
        return answer.containers.iter().try_for_each(|c| console.print(&format!("{}\n", c.id)));
    }
    if args.output == Format::Json {
        return console.json(answer);
    }
    let now = console.now();
    let mut table =
        Table::new(&["CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD"]);
    for c in &answer.containers {
        table.row(vec![
            short(&c.id),
            image_name(c),
            age(c.created_at, now),
            container_state(c.state).into(),
            c.name().into(),
            c.metadata.as_ref().map_or(0, |m| m.attempt).to_string(),
            short(&c.pod_sandbox_id),
            match world.pod_name(c) {
                id if id == c.pod_sandbox_id => "-".into(),
                name => name.into(),
            },
        ]);
    }
    console.print(&table.render())
}

/// The image as the container's maker named it, else as the runtime does.
fn image_name(c: &Container) -> String {
    let Some(spec) = &c.image else { return "-".into() };
    let name = or(&spec.user_specified_image, &spec.image);
    let bare = name.strip_prefix("sha256:").unwrap_or(&name);
    if bare.len() == 64 && bare.bytes().all(|b| b.is_ascii_hexdigit()) {
        return short(bare);
    }
    or_dash(&name)
}

pub(crate) async fn images(client: &Client, console: &mut Console, args: ImagesArgs) -> Result<u8> {
    let mut service = client.images();
    let request = ListImagesRequest::default();
    let mut answer = client.quick("list images", service.list_images(request)).await?;
    answer.images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
    print_images(console, &args, &answer)?;
    Ok(0)
}

fn print_images(console: &Console, args: &ImagesArgs, answer: &ListImagesResponse) -> Result<()> {
    if args.quiet {
        return answer.images.iter().try_for_each(|i| console.print(&format!("{}\n", i.id)));
    }
    if args.output == Format::Json {
        return console.json(answer);
    }
    let heading: &[&str] = match args.digests {
        true => &["IMAGE", "TAG", "DIGEST", "IMAGE ID", "SIZE"],
        false => &["IMAGE", "TAG", "IMAGE ID", "SIZE"],
    };
    let mut table = Table::new(heading);
    for image in &answer.images {
        for (name, tag, digest) in names(image) {
            let mut row = vec![name, tag];
            if args.digests {
                row.push(digest);
            }
            row.extend([short(&image.id), size(image.size)]);
            table.row(row);
        }
    }
    console.print(&table.render())
}

/// Repository, tag and digest of each name of an image; one line of dashes for one without names.
fn names(image: &Image) -> Vec<(String, String, String)> {
    let digest_of = |repository: &str| {
        let of = |d: &&String| d.split_once('@').is_some_and(|(r, _)| r == repository);
        let digest = image.repo_digests.iter().find(of).or(image.repo_digests.first());
        digest.and_then(|d| d.split_once('@')).map_or("-".into(), |(_, d)| d.to_owned())
    };
    if !image.repo_tags.is_empty() {
        let split = |name: &String| match name.rsplit_once(':') {
            // A colon before a slash is a port's.
            Some((repository, tag)) if !tag.contains('/') => {
                (repository.to_owned(), tag.to_owned(), digest_of(repository))
            }
            _ => (name.clone(), "-".into(), digest_of(name)),
        };
        return image.repo_tags.iter().map(split).collect();
    }
    match image.repo_digests.first().and_then(|d| d.split_once('@')) {
        Some((repository, digest)) => vec![(repository.into(), "-".into(), digest.into())],
        None => vec![("-".into(), "-".into(), "-".into())],
    }
}

pub(crate) fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise.into() } else { text.into() }
}

pub(crate) fn or_dash(text: &str) -> String {
    or(text, "-")
}
