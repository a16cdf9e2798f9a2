//! The inspect service: HTTP/1 on the CRI's socket, as CRI-O's clients (cAdvisor) ask it.
//!
//! | path               | answer                                                             |
//! |--------------------|--------------------------------------------------------------------|
//! | `/info`            | storage driver and root, cgroup driver                             |
//! | `/containers/{id}` | what the node knows of a container                                 |
//! | `/config`          | the effective configuration                                        |
//! | `/v1/pulls`        | pulls under way, with the progress of each layer                   |

use http::{Method, Response, StatusCode, header};
use serde_json::json;

use crate::node::Node;

/// Answers one request.
pub(crate) fn answer(node: &Node, method: &Method, path: &str) -> Response<String> {
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
        "/v1/pulls" => json(&json!(node.images.progress())),
        _ => match path.strip_prefix("/containers/") {
            Some(id) => container(node, id),
            None => reply(StatusCode::NOT_FOUND, "text/plain", format!("no such page: {path}\n")),
        },
    }
}

fn container(node: &Node, id: &str) -> Response<String> {
    let Ok(container) = node.container(id) else {
        let text = format!("can't find the container with id {id}\n");
        return reply(StatusCode::NOT_FOUND, "text/plain", text);
    };
    let r = container.record.get();
    let pod = node.pod(&r.pod).map(|p| p.record.get());
    let ips = pod.as_ref().map(|p| p.ips.clone()).unwrap_or_default();
    let config = &r.config.0;
    json(&json!({
        "name": config.metadata.as_ref().map(|m| m.name.clone()),
        "pid": r.pid,
        "image": config.image.as_ref().map(|i| i.image.clone()),
        "image_ref": r.image_ref,
        "created_time": r.created_at,
        "labels": config.labels,
        "annotations": config.annotations,
        "crio_annotations": {},
        "log_path": r.log_path,
        "root": node.paths.rootfs(&r.id).join("merged"),
        "sandbox": r.pod,
        "ip_addresses": ips,
        "host_network": pod.is_ok_and(|p| crate::spec::host_network(&p)),
    }))
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
