//! From what a person types to one pod, container or image.
//!
//! ```text
//! whole id ──none──► name, or POD/CONTAINER ──none──► beginning of an id ──none──► there is no …
//!    │                  │                                │
//!    └──────────────────┴─ one: that ─ several: an error that lists them
//! ```
//! A pod and its own container of the same name, as `run` makes them, are no ambiguity: the verb
//! says which it [`Prefer`]s. Where a container is wanted, a pod stands for its only one.

use api_cri::v1::{
    Container, ContainerState, Image, ImageSpec, ImageStatusRequest, ListContainersRequest,
    ListImagesRequest, ListPodSandboxRequest, PodSandbox,
};
use tonic::Code;

use crate::connect::Client;
use crate::error::{Error, Result};
use crate::table::short;

/// How many of several matches are listed.
const LISTED: usize = 8;

/// The pods and containers there are.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) pods: Vec<PodSandbox>,
    pub(crate) containers: Vec<Container>,
}

/// Which of a pod and its container is meant by the name that both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefer {
    Pod,
    Container,
}

/// What an id or name stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Found<'a> {
    Pod(&'a PodSandbox),
    Container(&'a Container),
}

impl Found<'_> {
    fn describe(&self, world: &World) -> String {
        match self {
            Found::Pod(p) => format!("pod {} ({})", p.name(), short(&p.id)),
            Found::Container(c) => {
                let pod = world.pod_name(c);
                let state = container_state(c.state);
                format!("container {} ({}, {state}, in pod {pod})", c.name(), short(&c.id))
            }
        }
    }
}

/// Things with a name in their metadata.
pub(crate) trait Named {
    fn name(&self) -> &str;
}

impl Named for PodSandbox {
    fn name(&self) -> &str {
        self.metadata.as_ref().map_or("", |m| &m.name)
    }
}

impl Named for Container {
    fn name(&self) -> &str {
        self.metadata.as_ref().map_or("", |m| &m.name)
    }
}

/// A container's state in a word.
pub(crate) fn container_state(state: i32) -> &'static str {
    match ContainerState::try_from(state) {
        Ok(ContainerState::ContainerCreated) => "created",
        Ok(ContainerState::ContainerRunning) => "running",
        Ok(ContainerState::ContainerExited) => "exited",
        Ok(ContainerState::ContainerUnknown) | Err(_) => "unknown",
    }
}

impl World {
    /// Asks the runtime for all of them.
    pub(crate) async fn load(client: &Client) -> Result<World> {
        let (mut for_pods, mut for_containers) = (client.runtime(), client.runtime());
        let pods = for_pods.list_pod_sandbox(ListPodSandboxRequest::default());
        let containers = for_containers.list_containers(ListContainersRequest::default());
        let pods = client.quick("list pods", pods).await?.items;
        let containers = client.quick("list containers", containers).await?.containers;
        Ok(World { pods, containers })
    }

    /// The name of a container's pod, or the pod's id if that is gone.
    pub(crate) fn pod_name<'a>(&'a self, c: &'a Container) -> &'a str {
        let pod = self.pods.iter().find(|p| p.id == c.pod_sandbox_id);
        pod.map_or(c.pod_sandbox_id.as_str(), Named::name)
    }

    /// The containers of a pod.
    pub(crate) fn of_pod<'a>(&'a self, pod: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |c| c.pod_sandbox_id == pod)
    }

    /// The pod that is meant.
    pub(crate) fn pod(&self, id: &str) -> Result<&PodSandbox> {
        let matches = self.matches(id, true, false);
        match self.only(id, "pod", &matches, Prefer::Pod)? {
            Found::Pod(pod) => Ok(pod),
            Found::Container(_) => Err(Error::NoMatch { kinds: "pod", id: id.into() }),
        }
    }

    /// The container that is meant.
    pub(crate) fn container(&self, id: &str) -> Result<&Container> {
        const KINDS: &str = "container";
        let mut matches = self.matches(id, false, true);
        if matches.is_empty() {
            matches = self.matches(id, true, false);
        }
        match self.only(id, KINDS, &matches, Prefer::Container)? {
            Found::Container(c) => Ok(c),
            Found::Pod(pod) => {
                let all: Vec<_> = self.of_pod(&pod.id).collect();
                let running = ContainerState::ContainerRunning as i32;
                let mut alive = all.iter().filter(|c| c.state == running);
                match (all.as_slice(), alive.next(), alive.next()) {
                    ([only], _, _) => Ok(only),
                    (_, Some(only), None) => Ok(only),
                    _ => {
                        let names: Vec<_> = all.iter().take(LISTED).map(|c| c.name()).collect();
                        let names = match names.len() {
                            0 => String::new(),
                            _ => format!(": {}", names.join(", ")),
                        };
                        Err(Error::ManyContainers { id: id.into(), count: all.len(), names })
                    }
                }
            }
        }
    }

    /// The pod or container that is meant.
    pub(crate) fn either(&self, id: &str, prefer: Prefer) -> Result<Found<'_>> {
        self.only(id, "container or pod", &self.matches(id, true, true), prefer)
    }

    fn matches(&self, id: &str, pods: bool, containers: bool) -> Vec<Found<'_>> {
        if id.is_empty() {
            return Vec::new();
        }
        let select = |pod: &dyn Fn(&PodSandbox) -> bool, container: &dyn Fn(&Container) -> bool| {
            let pods = self.pods.iter().filter(|p| pods && pod(p)).map(Found::Pod);
            let those = self.containers.iter().filter(|c| containers && container(c));
            pods.chain(those.map(Found::Container)).collect::<Vec<_>>()
        };
        let whole = select(&|p| p.id == id, &|c| c.id == id);
        if !whole.is_empty() {
            return whole;
        }
        let path = id.split_once('/');
        let named = select(&|p| p.name() == id, &|c| {
            c.name() == id
                || path.is_some_and(|(pod, name)| c.name() == name && self.pod_name(c) == pod)
        });
        if !named.is_empty() {
            return named;
        }
        select(&|p| p.id.starts_with(id), &|c| c.id.starts_with(id))
    }

    fn only<'a>(
        &self,
        id: &str,
        kinds: &'static str,
        matches: &[Found<'a>],
        prefer: Prefer,
    ) -> Result<Found<'a>> {
        match matches {
            [] => return Err(Error::NoMatch { kinds, id: id.into() }),
            [only] => return Ok(*only),
            // Pods come first in matches.
            [Found::Pod(pod), Found::Container(c)] if c.pod_sandbox_id == pod.id => {
                return Ok(matches[match prefer {
                    Prefer::Pod => 0,
                    Prefer::Container => 1,
                }]);
            }
            _ => {}
        }
        let mut listed: Vec<_> = matches.iter().take(LISTED).map(|m| m.describe(self)).collect();
        if matches.len() > LISTED {
            listed.push(format!("{} more", matches.len() - LISTED));
        }
        Err(Error::Ambiguous { id: id.into(), matches: listed.join(", ") })
    }
}

/// The image that is meant, and by what the runtime knows it.
///
/// The runtime resolves names as it does for pods; only beginnings of ids are looked for here.
pub(crate) async fn image(client: &Client, id: &str) -> Result<(Image, String)> {
    let spec = ImageSpec { image: id.into(), ..ImageSpec::default() };
    let request = ImageStatusRequest { image: Some(spec), verbose: false };
    let mut images = client.images();
    let doing = || format!("look for the image {id}");
    match client.quick(doing(), images.image_status(request)).await {
        Ok(answer) => {
            if let Some(image) = answer.image {
                return Ok((image, id.into()));
            }
        }
        // It is no name of an image, but may begin an id.
        Err(Error::Call { code: Code::NotFound | Code::InvalidArgument, .. }) => {}
        Err(e) => return Err(e),
    }
    let bare = id.strip_prefix("sha256:").unwrap_or(id);
    let hex = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_hexdigit());
    let all = client.quick("list images", images.list_images(ListImagesRequest::default())).await?;
    let mut matches: Vec<Image> = match hex {
        false => Vec::new(),
        true => all.images.into_iter().filter(|i| begins(&i.id, bare)).collect(),
    };
    match matches.len() {
        0 => Err(Error::NoMatch { kinds: "image", id: id.into() }),
        1 => {
            let image = matches.remove(0);
            let name = image.id.clone();
            Ok((image, name))
        }
        _ => {
            let listed: Vec<_> = matches.iter().take(LISTED).map(describe_image).collect();
            Err(Error::Ambiguous { id: id.into(), matches: listed.join(", ") })
        }
    }
}

fn begins(id: &str, bare: &str) -> bool {
    id.strip_prefix("sha256:").unwrap_or(id).starts_with(bare)
}

fn describe_image(image: &Image) -> String {
    let name = image.repo_tags.first().or(image.repo_digests.first());
    format!("image {} ({})", name.map_or("<none>", String::as_str), short(&image.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api_cri::v1::{ContainerMetadata, PodSandboxMetadata};

    fn pod(id: &str, name: &str) -> PodSandbox {
        let metadata = PodSandboxMetadata { name: name.into(), ..Default::default() };
        PodSandbox { id: id.into(), metadata: Some(metadata), ..Default::default() }
    }

    fn container(id: &str, name: &str, pod: &str, state: ContainerState) -> Container {
        Container {
            id: id.into(),
            pod_sandbox_id: pod.into(),
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            state: state as i32,
            ..Default::default()
        }
    }

    fn world() -> World {
        let (run, exited) = (ContainerState::ContainerRunning, ContainerState::ContainerExited);
        World {
            pods: vec![pod("aa11", "web"), pod("aa22", "db"), pod("aa33", "empty"), pod("c1", "x")],
            containers: vec![
                container("bb11", "web", "aa11", run),
                container("bb22", "main", "aa22", exited),
                container("bb33", "main", "aa22", run),
                container("cc44", "db", "aa11", exited),
            ],
        }
    }

    fn either(id: &str, prefer: Prefer) -> Result<String> {
        Ok(match world().either(id, prefer)? {
            Found::Pod(p) => p.id.clone(),
            Found::Container(c) => c.id.clone(),
        })
    }

    #[test]
    fn ids_names_and_beginnings() {
        assert_eq!(either("bb22", Prefer::Pod).unwrap(), "bb22");
        assert_eq!(either("bb2", Prefer::Pod).unwrap(), "bb22");
        assert_eq!(either("empty", Prefer::Pod).unwrap(), "aa33");
        // A whole id is that one even if others begin with it or are named so.
        assert_eq!(either("c1", Prefer::Pod).unwrap(), "c1");
        assert_eq!(either("c", Prefer::Pod).unwrap_err().to_string().matches("pod").count(), 2);
    }

    #[test]
    fn a_pod_and_its_container_of_one_name() {
        assert_eq!(either("web", Prefer::Pod).unwrap(), "aa11");
        assert_eq!(either("web", Prefer::Container).unwrap(), "bb11");
        // But not when the container is another pod's.
        assert!(matches!(either("db", Prefer::Pod), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn what_could_be_several_is_listed() {
        let e = world().container("main").unwrap_err().line();
        assert_eq!(
            e,
            "\"main\" could be any of container main (bb22, exited, in pod db), \
             container main (bb33, running, in pod db)"
        );
        assert_eq!(world().container("web/db").unwrap().id, "cc44");
        assert!(matches!(world().container("db/main"), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn a_pod_stands_for_its_only_container_or_the_only_one_that_runs() {
        assert_eq!(world().container("aa22").unwrap().id, "bb33");
        assert!(matches!(world().container("empty"), Err(Error::ManyContainers { count: 0, .. })));
        let mut many = world();
        many.containers[1].state = ContainerState::ContainerRunning as i32;
        let e = many.container("aa22").unwrap_err().line();
        assert_eq!(e, "\"aa22\" is a pod of 2 containers: name one of them: main, main");
    }

    #[test]
    fn nothing_is_nothing() {
        for id in ["", "zz", "/", "web/", "/web"] {
            assert!(matches!(either(id, Prefer::Pod), Err(Error::NoMatch { .. })), "{id:?}");
            assert!(matches!(world().pod(id), Err(Error::NoMatch { .. })), "{id:?}");
            assert!(matches!(world().container(id), Err(Error::NoMatch { .. })), "{id:?}");
        }
    }
}
