//! RuntimeService. What is not built yet answers Unimplemented.

use std::collections::BTreeMap;
use std::sync::Arc;

use api_cri::v1::runtime_service_server::RuntimeService;
use api_cri::v1::*;
use cgroup::StatsReader;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::convert;
use super::lists::{in_parts, statuses_of};
use crate::error::{Error, Result};
use crate::metrics;
use crate::node::{Node, blocking, on_disk};

/// Answers the CRI's RuntimeService.
#[derive(Debug, Clone)]
pub(crate) struct Runtime(pub(crate) Arc<Node>);

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(value: T) -> Answer<T> {
    Ok(Response::new(value))
}

impl Runtime {
    fn conditions(&self) -> Vec<RuntimeCondition> {
        let ready =
            RuntimeCondition { r#type: "RuntimeReady".into(), status: true, ..Default::default() };
        let network = match self.0.network.usable() {
            Ok(()) => RuntimeCondition {
                r#type: "NetworkReady".into(),
                status: true,
                ..Default::default()
            },
            Err(e) => RuntimeCondition {
                r#type: "NetworkReady".into(),
                status: false,
                reason: "NetworkPluginNotReady".into(),
                message: format!("Network plugin returns error: {}", e.chain()),
            },
        };
        vec![ready, network]
    }

    async fn handlers(&self) -> Vec<RuntimeHandler> {
        let all = self.0.all_features().await;
        let default = self.0.config.default_runtime.as_str();
        let unnamed = all.iter().filter(|(name, _)| name == default).map(|(_, f)| ("", f));
        unnamed
            .chain(all.iter().map(|(name, f)| (name.as_str(), f)))
            .map(|(name, features)| RuntimeHandler {
                name: name.to_owned(),
                features: Some(RuntimeHandlerFeatures {
                    recursive_read_only_mounts: features.rro,
                    user_namespaces: features.user_namespaces,
                }),
            })
            .collect()
    }

    fn verbose(&self, id: &str, pid: i32, sandbox: &str) -> BTreeMap<String, String> {
        let path = self.0.paths.bundle(id).join("config.json");
        let spec = on_disk(|| std::fs::read_to_string(path)).unwrap_or_default();
        let spec: serde_json::Value = serde_json::from_str(&spec).unwrap_or_default();
        let info = serde_json::json!({
            "sandboxID": sandbox, "pid": pid, "runtimeSpec": spec,
        });
        BTreeMap::from([("info".to_owned(), info.to_string())])
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        answer(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "criod".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let mut info = BTreeMap::new();
        if request.into_inner().verbose {
            let config = criod_config::to_toml(&self.0.config, &self.0.config);
            let value =
                serde_json::json!({ "crio": config, "sandboxImage": self.0.config.pause_image });
            info.insert("config".to_owned(), value.to_string());
            info.insert("recovery".to_owned(), self.0.outstanding().to_string());
        }
        let runtime_handlers = self.handlers().await;
        let users = |h: &RuntimeHandler| h.features.as_ref().is_some_and(|f| f.user_namespaces);
        answer(StatusResponse {
            status: Some(RuntimeStatus { conditions: self.conditions() }),
            info,
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: runtime_handlers.iter().any(users),
                mount_options: true,
            }),
            runtime_handlers,
        })
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Answer<RuntimeConfigResponse> {
        answer(RuntimeConfigResponse {
            linux: Some(LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 }),
        })
    }

    /// The pod CIDR is the CNI configuration's business.
    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        answer(UpdateRuntimeConfigResponse {})
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Answer<RunPodSandboxResponse> {
        let pod_sandbox_id = self.0.run_pod(request.into_inner()).await?;
        answer(RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        self.0.stop_pod(&request.into_inner().pod_sandbox_id).await?;
        answer(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        self.0.remove_pod(&request.into_inner().pod_sandbox_id).await?;
        answer(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let pod = self.0.pod(&request.pod_sandbox_id)?;
        let record = pod.record.get();
        if !convert::listed_pod(&record) {
            return Err(Error::not_found("pod sandbox", &request.pod_sandbox_id).into());
        }
        let info = match request.verbose {
            true => self.verbose(&pod.id, record.infra_pid, &pod.id),
            false => BTreeMap::new(),
        };
        answer(PodSandboxStatusResponse {
            status: Some(convert::pod_status(&record)),
            info,
            containers_statuses: statuses_of(&self.0, &pod.id),
            timestamp: sys::clock::realtime(),
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        answer(ListPodSandboxResponse { items: self.list_pods(request.into_inner().filter) })
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let container_id = self.0.create(request.into_inner()).await?;
        answer(CreateContainerResponse { container_id })
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        self.0.start(&request.into_inner().container_id).await?;
        answer(StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        self.0.stop(&request.container_id, request.timeout).await?;
        answer(StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        self.0.remove(&request.into_inner().container_id).await?;
        answer(RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        answer(ListContainersResponse { containers: self.list(request.into_inner().filter) })
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let record = self.0.container(&request.container_id)?.record.get();
        if !convert::listed(&record) {
            return Err(Error::not_found("container", &request.container_id).into());
        }
        let info = match request.verbose {
            true => self.verbose(&record.id, record.pid, &record.pod),
            false => BTreeMap::new(),
        };
        answer(ContainerStatusResponse { status: Some(convert::container_status(&record)), info })
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        self.0.update(request.into_inner()).await?;
        answer(UpdateContainerResourcesResponse {})
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        self.0.update_pod(request.into_inner()).await?;
        answer(UpdatePodSandboxResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        self.0.reopen_log(&request.into_inner().container_id).await?;
        answer(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        answer(self.0.exec_sync(request.into_inner()).await?)
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        answer(ExecResponse { url: self.0.exec_url(request.into_inner())? })
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        answer(AttachResponse { url: self.0.attach_url(request.into_inner())? })
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Answer<PortForwardResponse> {
        answer(PortForwardResponse { url: self.0.forward_url(request.into_inner())? })
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        let container = self.0.container(&id)?;
        if !convert::listed(&container.record.get()) {
            return Err(Error::not_found("container", &id).into());
        }
        let node = Arc::clone(&self.0);
        let read = move || node.container_stats(&mut StatsReader::default(), &container);
        answer(ContainerStatsResponse { stats: Some(blocking(read).await?) })
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let stats = self.list_stats(request.into_inner().filter).await?;
        answer(ListContainerStatsResponse { stats })
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let pod = self.0.pod(&id)?;
        if !convert::listed_pod(&pod.record.get()) {
            return Err(Error::not_found("pod sandbox", &id).into());
        }
        answer(PodSandboxStatsResponse { stats: Some(self.0.pod_stats(pod).await?) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let stats = self.list_pod_stats(request.into_inner().filter).await?;
        answer(ListPodSandboxStatsResponse { stats })
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        let descriptors = metrics::descriptors(&self.0.config.included_pod_metrics);
        answer(ListMetricDescriptorsResponse { descriptors })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        answer(ListPodSandboxMetricsResponse { pod_metrics: self.list_metrics().await? })
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<BoxStream<ContainerEventResponse>> {
        answer(self.0.events.subscribe())
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<BoxStream<StreamPodSandboxesResponse>> {
        let all = self.list_pods(request.into_inner().filter);
        in_parts(all, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes })
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<BoxStream<StreamContainersResponse>> {
        let all = self.list(request.into_inner().filter);
        in_parts(all, |containers| StreamContainersResponse { containers })
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<BoxStream<StreamContainerStatsResponse>> {
        let all = self.list_stats(request.into_inner().filter).await?;
        in_parts(all, |container_stats| StreamContainerStatsResponse { container_stats })
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<BoxStream<StreamPodSandboxStatsResponse>> {
        let all = self.list_pod_stats(request.into_inner().filter).await?;
        in_parts(all, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats })
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<BoxStream<StreamPodSandboxMetricsResponse>> {
        let all = self.list_metrics().await?;
        in_parts(all, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics })
    }
}
