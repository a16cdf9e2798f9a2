//! A client of the CRI for tests: one connection per call, and no call without an end.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use api_cri::MAX_MESSAGE_SIZE;
use api_cri::v1::image_service_client::ImageServiceClient;
use api_cri::v1::runtime_service_client::RuntimeServiceClient;
use api_cri::v1::*;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

use super::BUSYBOX;
use crate::eventually;

/// What a call gives.
pub type Answer<T> = Result<T, Status>;

/// A container that runs, as messages have it.
pub const RUNNING: i32 = ContainerState::ContainerRunning as i32;
/// A container that has ended.
pub const EXITED: i32 = ContainerState::ContainerExited as i32;
/// A container of which it is not known.
pub const UNKNOWN: i32 = ContainerState::ContainerUnknown as i32;
/// A pod that is ready.
pub const READY: i32 = PodSandboxState::SandboxReady as i32;
/// A pod that is not.
pub const NOT_READY: i32 = PodSandboxState::SandboxNotready as i32;

/// The longest that any call may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a future to its end.
pub fn block<F: Future>(future: F) -> F::Output {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    });
    runtime.handle().block_on(future)
}

async fn limited<T>(call: impl Future<Output = Answer<Response<T>>>) -> Answer<T> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => panic!("a call took more than a minute"),
    }
}

/// The client.
#[derive(Debug, Clone)]
pub struct Cri {
    socket: PathBuf,
    logs: PathBuf,
    tag: String,
}

/// A container of busybox that runs this command.
pub fn container(name: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
        command: command.iter().map(|c| (*c).to_owned()).collect(),
        log_path: format!("{name}.log"),
        ..Default::default()
    }
}

/// An image that is mounted there.
pub fn image_volume(image: &str, at: &str) -> Mount {
    Mount {
        container_path: at.to_owned(),
        readonly: true,
        image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
        ..Mount::default()
    }
}

macro_rules! call {
    ($self:ident, $service:ident, $method:ident, $request:expr) => {
        block(async {
            let request = $request;
            limited($self.$service().$method(request)).await
        })
    };
}

impl Cri {
    /// One for this socket; pods log below `logs` and have their cgroups below `tag`.
    pub fn new(socket: PathBuf, logs: PathBuf, tag: String) -> Cri {
        Cri { socket, logs, tag }
    }

    fn channel(&self) -> Channel {
        let path = self.socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
    }

    /// The calls about pods and containers, on a connection of their own.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// The calls about images, likewise.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// Version.
    pub fn version(&self) -> Answer<VersionResponse> {
        call!(self, runtime, version, VersionRequest::default())
    }

    /// Whether a condition of the node's status holds, its reason and its message.
    pub fn condition(&self, name: &str) -> (bool, String, String) {
        let answer = call!(self, runtime, status, StatusRequest { verbose: false }).unwrap();
        let all = answer.status.unwrap().conditions;
        let found = all.into_iter().find(|c| c.r#type == name).unwrap();
        (found.status, found.reason, found.message)
    }

    /// Pulls an image.
    pub fn pull(&self, image: &str) -> Answer<String> {
        let image = Some(ImageSpec { image: image.into(), ..Default::default() });
        let request = PullImageRequest { image, ..Default::default() };
        call!(self, images, pull_image, request).map(|a| a.image_ref)
    }

    /// All images.
    pub fn list_images(&self) -> Vec<Image> {
        call!(self, images, list_images, ListImagesRequest::default()).unwrap().images
    }

    /// Removes an image.
    pub fn remove_image(&self, image: &str) -> Answer<()> {
        let image = Some(ImageSpec { image: image.into(), ..Default::default() });
        call!(self, images, remove_image, RemoveImageRequest { image }).map(|_| ())
    }

    /// A pod's configuration.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "e2e".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.logs.join(name).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/{name}", self.tag),
                security_context: Some(LinuxSandboxSecurityContext {
                    // As the kubelet asks: each container has a pid namespace of its own.
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// One on the host's network: quicker to run, as no plugin is.
    pub fn host_pod(&self, name: &str) -> PodSandboxConfig {
        let mut pod = self.pod(name);
        namespaces(&mut pod).network = NamespaceMode::Node as i32;
        pod
    }

    /// One on the host's network, whose containers share a pid namespace.
    pub fn pid_pod(&self, name: &str) -> PodSandboxConfig {
        let mut pod = self.host_pod(name);
        namespaces(&mut pod).pid = NamespaceMode::Pod as i32;
        pod
    }

    /// One with a user namespace of its own.
    pub fn users_pod(&self, name: &str) -> PodSandboxConfig {
        let mut pod = self.pod(name);
        let map = vec![IdMapping { container_id: 0, host_id: 1 << 17, length: 1 << 16 }];
        namespaces(&mut pod).userns_options =
            Some(UserNamespace { mode: NamespaceMode::Pod as i32, uids: map.clone(), gids: map });
        pod
    }

    /// RunPodSandbox.
    pub fn run_pod(&self, config: &PodSandboxConfig) -> Answer<String> {
        self.run_pod_with(config, "")
    }

    /// RunPodSandbox with a runtime handler.
    pub fn run_pod_with(&self, config: &PodSandboxConfig, handler: &str) -> Answer<String> {
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        call!(self, runtime, run_pod_sandbox, request).map(|a| a.pod_sandbox_id)
    }

    /// StopPodSandbox.
    pub fn stop_pod(&self, id: &str) -> Answer<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        call!(self, runtime, stop_pod_sandbox, request).map(|_| ())
    }

    /// RemovePodSandbox.
    pub fn remove_pod(&self, id: &str) -> Answer<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        call!(self, runtime, remove_pod_sandbox, request).map(|_| ())
    }

    /// PodSandboxStatus.
    pub fn pod_status(&self, id: &str) -> Answer<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        call!(self, runtime, pod_sandbox_status, request).map(|a| a.status.unwrap())
    }

    /// A pod's address.
    pub fn ip(&self, id: &str) -> String {
        self.pod_status(id).unwrap().network.unwrap().ip
    }

    /// ListPodSandbox.
    pub fn pods(&self) -> Vec<PodSandbox> {
        self.try_pods().unwrap()
    }

    /// ListPodSandbox, which may fail.
    pub fn try_pods(&self) -> Answer<Vec<PodSandbox>> {
        let request = ListPodSandboxRequest::default();
        call!(self, runtime, list_pod_sandbox, request).map(|a| a.items)
    }

    /// CreateContainer.
    pub fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        pod_config: &PodSandboxConfig,
    ) -> Answer<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        call!(self, runtime, create_container, request).map(|a| a.container_id)
    }

    /// StartContainer.
    pub fn start(&self, id: &str) -> Answer<()> {
        let request = StartContainerRequest { container_id: id.into() };
        call!(self, runtime, start_container, request).map(|_| ())
    }

    /// A container that is created and started.
    pub fn run(
        &self,
        pod: &str,
        config: &ContainerConfig,
        pod_config: &PodSandboxConfig,
    ) -> String {
        let id = self.create(pod, config, pod_config).unwrap();
        self.start(&id).unwrap();
        id
    }

    /// StopContainer, with a timeout in seconds.
    pub fn stop(&self, id: &str, timeout: i64) -> Answer<()> {
        let request = StopContainerRequest { container_id: id.into(), timeout };
        call!(self, runtime, stop_container, request).map(|_| ())
    }

    /// RemoveContainer.
    pub fn remove(&self, id: &str) -> Answer<()> {
        let request = RemoveContainerRequest { container_id: id.into() };
        call!(self, runtime, remove_container, request).map(|_| ())
    }

    /// ContainerStatus.
    pub fn status(&self, id: &str) -> Answer<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        call!(self, runtime, container_status, request).map(|a| a.status.unwrap())
    }

    /// Waits until a container has ended.
    pub fn ended(&self, id: &str) -> ContainerStatus {
        eventually("the container ends", || self.status(id).ok().filter(|s| s.state == EXITED))
    }

    /// ListContainers.
    pub fn containers(&self) -> Vec<Container> {
        let request = ListContainersRequest::default();
        call!(self, runtime, list_containers, request).unwrap().containers
    }

    /// ExecSync: the exit code and what it printed.
    pub fn exec(&self, id: &str, command: &[&str]) -> Answer<(i32, String)> {
        let cmd = command.iter().map(|c| (*c).to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: 30 };
        call!(self, runtime, exec_sync, request).map(|a| {
            let text = String::from_utf8_lossy(&a.stdout) + String::from_utf8_lossy(&a.stderr);
            (a.exit_code, text.into_owned())
        })
    }

    /// ReopenContainerLog.
    pub fn reopen_log(&self, id: &str) -> Answer<()> {
        let request = ReopenContainerLogRequest { container_id: id.into() };
        call!(self, runtime, reopen_container_log, request).map(|_| ())
    }

    /// The log file of a container.
    pub fn log(&self, pod: &str, name: &str) -> PathBuf {
        Path::new(&self.logs).join(pod).join(format!("{name}.log"))
    }
}

fn namespaces(pod: &mut PodSandboxConfig) -> &mut NamespaceOption {
    let linux = pod.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default()
}
