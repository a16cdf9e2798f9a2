//! A CRI runtime that runs nothing: it keeps records, writes logs, and notes what it was asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use api_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use api_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use api_cri::v1::*;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, async_trait};
use tower::ServiceExt as _;

/// The present in tests, in seconds since the epoch: 2026-11-24T08:00:00Z.
pub(super) const NOW: i64 = 1_795_507_200;

/// `ago` seconds before the present, in nanoseconds.
pub(super) fn ago(ago: i64) -> i64 {
    (NOW - ago) * 1_000_000_000
}

#[derive(Default)]
pub(super) struct State {
    pub(super) pods: Vec<PodSandbox>,
    pub(super) containers: Vec<(Container, ContainerStatus)>,
    pub(super) images: Vec<Image>,
    pub(super) stats: Vec<ContainerStats>,
    /// The calls that change something, in order.
    pub(super) calls: Vec<String>,
    pub(super) sandbox: Option<RunPodSandboxRequest>,
    pub(super) created: Option<CreateContainerRequest>,
    pub(super) pulled: Option<PullImageRequest>,
    pub(super) exec: Option<ExecSyncRequest>,
    pub(super) exec_answer: ExecSyncResponse,
    /// What Exec, Attach and PortForward answer.
    pub(super) url: String,
    /// The last of their requests.
    pub(super) streamed: Option<Streamed>,
    /// What containers write when they start.
    pub(super) output: String,
    /// What containers exit with when they have started; else they run.
    pub(super) exit: Option<i32>,
    /// Whether containers ignore SIGTERM.
    pub(super) stubborn: bool,
    /// Calls that fail, by name.
    pub(super) failing: BTreeMap<&'static str, Status>,
    /// Calls that do not answer as long as they are here.
    pub(super) hanging: Vec<&'static str>,
    /// The answers of `GET /v1/pulls`, the last of them again and again; 404 if there is none.
    pub(super) progress: Vec<String>,
    pub(super) asked_for_progress: usize,
    /// PullImage waits until progress was asked for so often.
    pub(super) pull_waits_for: usize,
}

/// A request for a stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Streamed {
    Exec(ExecRequest),
    Attach(AttachRequest),
    Forward(PortForwardRequest),
}

/// A handle of the runtime, and the runtime's side of it.
#[derive(Clone)]
pub(super) struct Fake {
    state: Arc<Mutex<State>>,
    pub(super) dir: Arc<tempfile::TempDir>,
}

/// A running server; ends, with all its connections, when it is dropped.
pub(super) struct Server {
    _tasks: JoinSet<()>,
}

impl Fake {
    pub(super) fn new() -> Fake {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Fake { state: Arc::default(), dir }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("cri.sock")
    }

    pub(super) fn calls(&self) -> String {
        self.state().calls.join("; ")
    }

    pub(super) fn serve(&self) -> Server {
        let _ = fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).unwrap();
        let fake = self.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fake = fake.clone();
                let service = tower::service_fn(move |r| fake.clone().answer(r));
                connections.spawn(async move {
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                        .await;
                });
            }
        });
        Server { _tasks: tasks }
    }

    async fn answer(
        self,
        request: hyper::Request<Incoming>,
    ) -> Result<hyper::Response<Body>, Infallible> {
        if request.version() == hyper::Version::HTTP_2 {
            assert_eq!(request.uri().authority().unwrap().as_str(), "localhost");
            let routes = Routes::new(RuntimeServiceServer::new(self.clone()))
                .add_service(ImageServiceServer::new(self));
            return Ok(routes.oneshot(request.map(Body::new)).await.unwrap());
        }
        let mut state = self.state();
        state.asked_for_progress += 1;
        let answer = match state.progress.len() {
            0 => None,
            1 => Some(state.progress[0].clone()),
            _ => Some(state.progress.remove(0)),
        };
        let found = request.uri().path() == "/v1/pulls" && answer.is_some();
        let text = if found { answer.unwrap_or_default() } else { "not found".into() };
        let mut response = hyper::Response::new(Body::new(Full::new(Bytes::from(text))));
        if !found {
            *response.status_mut() = hyper::StatusCode::NOT_FOUND;
        }
        Ok(response)
    }

    /// Adds a pod, made `created` seconds ago.
    pub(super) fn pod(&self, id: &str, name: &str, created: i64) {
        self.state().pods.push(PodSandbox {
            id: id.into(),
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            created_at: ago(created),
            ..Default::default()
        });
    }

    /// Adds a container with a log in the fake's directory. Gives the log's path.
    pub(super) fn container(&self, id: &str, name: &str, pod: &str, running: bool) -> PathBuf {
        let path = self.dir.path().join(format!("{name}.log"));
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec {
                image: format!("sha256:{}", "5".repeat(64)),
                user_specified_image: "docker.io/library/web:1".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let state = match running {
            true => ContainerState::ContainerRunning,
            false => ContainerState::ContainerExited,
        };
        self.add(id, pod, config, &path, state, ago(180));
        path
    }

    fn add(
        &self,
        id: &str,
        pod: &str,
        config: ContainerConfig,
        log: &Path,
        state: ContainerState,
        created_at: i64,
    ) {
        let container = Container {
            id: id.into(),
            pod_sandbox_id: pod.into(),
            metadata: config.metadata.clone(),
            image: config.image.clone(),
            state: state as i32,
            created_at,
            ..Default::default()
        };
        let status = ContainerStatus {
            id: id.into(),
            metadata: config.metadata,
            image: config.image,
            state: state as i32,
            created_at,
            started_at: created_at,
            log_path: log.to_string_lossy().into_owned(),
            ..Default::default()
        };
        self.state().containers.push((container, status));
    }

    pub(super) fn exit(&self, id: &str, code: i32) {
        for (container, status) in &mut self.state().containers {
            if container.id == id && status.state != ContainerState::ContainerExited as i32 {
                container.state = ContainerState::ContainerExited as i32;
                status.state = container.state;
                status.exit_code = code;
            }
        }
    }

    pub(super) fn log(path: &Path, text: &str) {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    async fn enter(&self, call: &'static str, note: Option<String>) -> Result<(), Status> {
        self.state().calls.extend(note);
        loop {
            {
                let state = self.state();
                if let Some(status) = state.failing.get(call) {
                    return Err(status.clone());
                }
                if !state.hanging.contains(&call) {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn status_of(&self, id: &str) -> Result<ContainerStatus, Status> {
        let state = self.state();
        let found = state.containers.iter().find(|(c, _)| c.id == id);
        found.map(|(_, s)| s.clone()).ok_or_else(|| Status::not_found(format!("no container {id}")))
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl RuntimeService for Fake {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        self.enter("version", None).await?;
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "criod".into(),
            runtime_version: "1.2.3".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, r: Request<StatusRequest>) -> Answer<StatusResponse> {
        self.enter("status", None).await?;
        let condition = |kind: &str, status: bool, reason: &str, message: &str| RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: reason.into(),
            message: message.into(),
        };
        let info = match r.into_inner().verbose {
            true => [("config".to_owned(), r#"{"sandboxImage":"pause"}"#.to_owned())].into(),
            false => BTreeMap::new(),
        };
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", true, "", ""),
                    condition(
                        "NetworkReady",
                        false,
                        "NetworkPluginNotReady",
                        "no CNI\nconfiguration",
                    ),
                ],
            }),
            runtime_handlers: vec![
                RuntimeHandler { name: String::new(), features: None },
                RuntimeHandler {
                    name: "crun".into(),
                    features: Some(RuntimeHandlerFeatures {
                        recursive_read_only_mounts: false,
                        user_namespaces: true,
                    }),
                },
            ],
            info,
            ..Default::default()
        }))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        self.enter("list_pod_sandbox", None).await?;
        Ok(Response::new(ListPodSandboxResponse { items: self.state().pods.clone() }))
    }

    async fn pod_sandbox_status(
        &self,
        r: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let id = r.into_inner().pod_sandbox_id;
        let status = PodSandboxStatus { id, created_at: ago(60), ..Default::default() };
        Ok(Response::new(PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn run_pod_sandbox(
        &self,
        r: Request<RunPodSandboxRequest>,
    ) -> Answer<RunPodSandboxResponse> {
        self.enter("run_pod_sandbox", Some("run pod".into())).await?;
        let r = r.into_inner();
        self.state().pods.push(PodSandbox {
            id: "pod0000000000000".into(),
            metadata: r.config.clone().unwrap().metadata,
            ..Default::default()
        });
        self.state().sandbox = Some(r);
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: "pod0000000000000".into() }))
    }

    async fn stop_pod_sandbox(
        &self,
        r: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let id = r.into_inner().pod_sandbox_id;
        self.enter("stop_pod_sandbox", Some(format!("stop pod {id}"))).await?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = r.into_inner().pod_sandbox_id;
        self.enter("remove_pod_sandbox", Some(format!("remove pod {id}"))).await?;
        let mut state = self.state();
        state.pods.retain(|p| p.id != id);
        state.containers.retain(|(c, _)| c.pod_sandbox_id != id);
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn create_container(
        &self,
        r: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        self.enter("create_container", Some("create container".into())).await?;
        let r = r.into_inner();
        let config = r.config.clone().unwrap();
        let directory = r.sandbox_config.clone().unwrap().log_directory;
        let log = Path::new(&directory).join(&config.log_path);
        let id = "ctr0000000000000";
        self.add(id, &r.pod_sandbox_id, config, &log, ContainerState::ContainerCreated, ago(0));
        self.state().created = Some(r);
        Ok(Response::new(CreateContainerResponse { container_id: id.into() }))
    }

    async fn start_container(
        &self,
        r: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        self.enter("start_container", Some("start container".into())).await?;
        let id = r.into_inner().container_id;
        let log = self.status_of(&id)?.log_path;
        let (output, exit) = {
            let state = self.state();
            (state.output.clone(), state.exit)
        };
        Fake::log(Path::new(&log), &output);
        for (container, status) in &mut self.state().containers {
            if container.id == id {
                container.state = ContainerState::ContainerRunning as i32;
                status.state = container.state;
            }
        }
        if let Some(code) = exit {
            self.exit(&id, code);
        }
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        r: Request<StopContainerRequest>,
    ) -> Answer<StopContainerResponse> {
        let StopContainerRequest { container_id: id, timeout } = r.into_inner();
        self.enter("stop_container", Some(format!("stop {id} in {timeout}"))).await?;
        if timeout > 0 && self.state().stubborn {
            std::future::pending::<()>().await;
        }
        self.exit(&id, if timeout > 0 { 143 } else { 137 });
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        r: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let id = r.into_inner().container_id;
        self.enter("remove_container", Some(format!("remove {id}"))).await?;
        self.state().containers.retain(|(c, _)| c.id != id);
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        r: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        self.enter("list_containers", None).await?;
        let filter = r.into_inner().filter.unwrap_or_default();
        let wanted = |c: &&Container| {
            filter.state.is_none_or(|s| s.state == c.state)
                && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == c.pod_sandbox_id)
        };
        let state = self.state();
        let containers = state.containers.iter().map(|(c, _)| c).filter(wanted).cloned().collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        r: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        self.enter("container_status", None).await?;
        let r = r.into_inner();
        let status = Some(self.status_of(&r.container_id)?);
        let info = match r.verbose {
            true => [
                ("info".to_owned(), r#"{"pid":42}"#.to_owned()),
                ("note".to_owned(), "no JSON".to_owned()),
            ]
            .into(),
            false => BTreeMap::new(),
        };
        Ok(Response::new(ContainerStatusResponse { status, info }))
    }

    async fn exec_sync(&self, r: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        self.enter("exec_sync", None).await?;
        self.state().exec = Some(r.into_inner());
        Ok(Response::new(self.state().exec_answer.clone()))
    }

    async fn exec(&self, r: Request<ExecRequest>) -> Answer<ExecResponse> {
        self.enter("exec", None).await?;
        let mut state = self.state();
        state.streamed = Some(Streamed::Exec(r.into_inner()));
        Ok(Response::new(ExecResponse { url: state.url.clone() }))
    }

    async fn attach(&self, r: Request<AttachRequest>) -> Answer<AttachResponse> {
        self.enter("attach", None).await?;
        let mut state = self.state();
        state.streamed = Some(Streamed::Attach(r.into_inner()));
        Ok(Response::new(AttachResponse { url: state.url.clone() }))
    }

    async fn port_forward(&self, r: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        self.enter("port_forward", None).await?;
        let mut state = self.state();
        state.streamed = Some(Streamed::Forward(r.into_inner()));
        Ok(Response::new(PortForwardResponse { url: state.url.clone() }))
    }

    async fn list_container_stats(
        &self,
        r: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let filter = r.into_inner().filter.unwrap_or_default();
        let wanted = |s: &&ContainerStats| {
            let id = s.attributes.as_ref().map_or("", |a| &a.id);
            filter.id.is_empty() || filter.id == id
        };
        let stats = self.state().stats.iter().filter(wanted).cloned().collect();
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }
}

#[async_trait]
impl ImageService for Fake {
    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(ListImagesResponse { images: self.state().images.clone() }))
    }

    async fn image_status(&self, r: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        self.enter("image_status", None).await?;
        let name = r.into_inner().image.unwrap_or_default().image;
        if name.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(Status::new(Code::InvalidArgument, "invalid reference format"));
        }
        let is = |i: &&Image| {
            i.id == name || i.repo_tags.iter().chain(&i.repo_digests).any(|t| *t == name)
        };
        let image = self.state().images.iter().find(is).cloned();
        Ok(Response::new(ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, r: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let r = r.into_inner();
        let name = r.image.clone().unwrap_or_default().image;
        self.state().pulled = Some(r);
        self.enter("pull_image", Some(format!("pull {name}"))).await?;
        loop {
            let enough = {
                let state = self.state();
                state.asked_for_progress >= state.pull_waits_for
            };
            if enough {
                return Ok(Response::new(PullImageResponse { image_ref: "sha256:0123".into() }));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn remove_image(&self, r: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let name = r.into_inner().image.unwrap_or_default().image;
        self.enter("remove_image", Some(format!("remove image {name}"))).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }
}
