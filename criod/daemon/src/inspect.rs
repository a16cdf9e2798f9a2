//! The inspect service: HTTP/1 on the CRI's socket, as CRI-O's clients (cAdvisor) ask it.
//!
//! | path               | answer                                                             |
//! |--------------------|--------------------------------------------------------------------|
//! | `/info`            | storage driver and root, cgroup driver                             |
//! | `/containers/{id}` | what the node knows of a container, or of a pod                    |
//! | `/config`          | the effective configuration                                        |
//! | `/v1/pulls`        | pulls under way, with the progress of each layer                   |
//! | `/v1/recovery`     | what is left over and not gone yet, and records that cannot be read |
//! | `/criod/monitors`  | the keeper and each container's monitor: build, pid, memory        |
//! | `/criod/monitors/upgrade` | by POST: has these become the installed build, and says what came of it |
//!
//! What cAdvisor makes of it: a cgroup `crio-<id>` is a container, or, by its label, a pod whose network
//! it then reads through `pid`. It measures the folder `root`, less `/merged`, plus `/diff`: without
//! that there would be no statistics at all. A pod's is empty.

use std::sync::PoisonError;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::error::Error;
use crate::node::Node;
use crate::record::{ContainerRecord, ContainerState, PodRecord};

/// What stands for a container where a pod is meant.
const POD: &str = "POD";

/// The longest body of a request, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Answers one request.
pub(crate) async fn serve(node: &Node, request: Request<Incoming>) -> Response<String> {
    let path = request.uri().path().to_owned();
    let done = match (request.method(), path.as_str()) {
        (&Method::GET, "/criod/monitors") => node.processes().await.map(|all| json(&json!(all))),
        (&Method::POST, "/criod/monitors/upgrade") => {
            let body = http_body_util::Limited::new(request.into_body(), MAX_BODY);
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(e) => return reply(StatusCode::BAD_REQUEST, "text/plain", format!("{e}\n")),
            };
            match serde_json::from_slice(&body) {
                Ok(asked) => node.upgrade(&asked).await.map(|all| json(&json!(all))),
                Err(e) => Err(Error::invalid(e.to_string())),
            }
        }
        (method, path) => Ok(answer(node, method, path)),
    };
    done.unwrap_or_else(|e| {
        let status = match e.status().code() {
            tonic::Code::NotFound => StatusCode::NOT_FOUND,
            tonic::Code::InvalidArgument => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        reply(status, "text/plain", e.chain() + "\n")
    })
}

/// Answers what needs no waiting.
fn answer(node: &Node, method: &Method, path: &str) -> Response<String> {
    if method != Method::GET {
        return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is served\n".into());
    }
    match path {
        "/info" => json(&json!({
            "storage_driver": "overlay",
            "storage_image": "",
            "storage_root": node.paths.root,
            "cgroup_driver": "cgroupfs",
            "default_id_mappings": { "uids": null, "gids": null },
        })),
        "/config" => {
            let text = criod_config::to_toml(&node.config, &criod_config::Config::default());
            reply(StatusCode::OK, "application/toml", text)
        }
        "/v1/recovery" => json(&node.outstanding()),
        "/v1/pulls" => json(&json!(node.images.progress())),
        _ => match path.strip_prefix("/containers/") {
            Some(id) => container(node, id),
            None => reply(StatusCode::NOT_FOUND, "text/plain", format!("no such page: {path}\n")),
        },
    }
}

fn container(node: &Node, id: &str) -> Response<String> {
    let container = node.container(id).map(|c| c.record.get());
    match container {
        Ok(r) if !r.infra => json(&of_container(node, &r)),
        // The cgroup of this name stands for the pod.
        _ => match node.pods.read().unwrap_or_else(PoisonError::into_inner).get(id) {
            Some(pod) => json(&of_pod(node, &pod.record.get())),
            None => {
                let text = format!("can't find the container with id {id}\n");
                reply(StatusCode::NOT_FOUND, "text/plain", text)
            }
        },
    }
}

/// As CRI-O and dockershim named them.
fn name(container: &str, pod: Option<&PodRecord>, attempt: u32) -> String {
    let meta = pod.and_then(|p| p.config.0.metadata.clone()).unwrap_or_default();
    format!("k8s_{container}_{}_{}_{}_{attempt}", meta.name, meta.namespace, meta.uid)
}

/// The pid, as long as it is that of the container's first process.
fn live(r: &ContainerRecord) -> i32 {
    match r.state {
        ContainerState::Created | ContainerState::Running => r.pid,
        _ => 0,
    }
}

fn of_container(node: &Node, r: &ContainerRecord) -> Value {
    let pod = node.pod(&r.pod).ok().map(|p| p.record.get());
    let config = &r.config.0;
    let meta = config.metadata.clone().unwrap_or_default();
    json!({
        "name": name(&meta.name, pod.as_deref(), meta.attempt),
        "pid": live(r),
        "image": config.image.as_ref().map(|i| i.image.clone()),
        "image_ref": r.image_ref,
        "created_time": r.created_at,
        "labels": config.labels,
        "annotations": config.annotations,
        "crio_annotations": {},
        "log_path": r.log_path,
        "root": node.paths.rootfs(&r.id).join("merged"),
        "sandbox": r.pod,
        "ip_addresses": pod.as_ref().map(|p| p.ips.clone()).unwrap_or_default(),
        "host_network": pod.is_some_and(|p| crate::spec::host_network(&p)),
    })
}

/// A pod, as if it had a process of its own: cAdvisor tells its network by the label, and reads the
/// counters through any process in it.
fn of_pod(node: &Node, r: &PodRecord) -> Value {
    let attempt = r.config.0.metadata.as_ref().map_or(0, |m| m.attempt);
    let mut labels = r.config.0.labels.clone();
    labels.insert("io.kubernetes.container.name".to_owned(), POD.to_owned());
    let containers = node.containers_of(&r.id);
    let pid = containers.iter().map(|c| live(&c.record.get())).find(|pid| *pid > 0);
    json!({
        "name": name(POD, Some(r), attempt),
        "pid": pid.unwrap_or(r.infra_pid),
        "image": node.config.pause_image,
        "image_ref": "",
        "created_time": r.created_at,
        "labels": labels,
        "annotations": r.config.0.annotations,
        "crio_annotations": {},
        "log_path": "",
        "root": node.paths.empty(),
        "sandbox": r.id,
        "ip_addresses": r.ips,
        "host_network": crate::spec::host_network(r),
    })
}

fn json(value: &serde_json::Value) -> Response<String> {
    reply(StatusCode::OK, "application/json", value.to_string())
}

fn reply(status: StatusCode, kind: &str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Ok(kind) = header::HeaderValue::from_str(kind) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}
