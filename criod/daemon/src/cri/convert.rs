//! Records as the CRI tells them.

use std::collections::BTreeMap;

use api_cri::v1::*;
use nix::sys::signal::Signal as Number;

use crate::node::Node;
use crate::record::{ContainerRecord, ContainerState as State, PodRecord, PodState};
use crate::spec;

pub(super) fn pod_state(record: &PodRecord) -> i32 {
    match record.state {
        PodState::Ready => PodSandboxState::SandboxReady as i32,
        _ => PodSandboxState::SandboxNotready as i32,
    }
}

/// Pods that exist for clients.
pub(super) fn listed_pod(record: &PodRecord) -> bool {
    matches!(record.state, PodState::Ready | PodState::NotReady)
}

/// Containers that exist for clients.
pub(super) fn listed(record: &ContainerRecord) -> bool {
    !record.infra && !matches!(record.state, State::Creating | State::Removing)
}

pub(super) fn container_state(record: &ContainerRecord) -> i32 {
    (match record.state {
        State::Created => ContainerState::ContainerCreated,
        State::Running => ContainerState::ContainerRunning,
        State::Exited => ContainerState::ContainerExited,
        State::Creating | State::Removing | State::Unknown => ContainerState::ContainerUnknown,
    }) as i32
}

pub(super) fn pod(record: &PodRecord) -> PodSandbox {
    PodSandbox {
        id: record.id.clone(),
        metadata: record.config.0.metadata.clone(),
        state: pod_state(record),
        created_at: record.created_at,
        labels: record.config.0.labels.clone(),
        annotations: record.config.0.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

pub(crate) fn pod_status(record: &PodRecord) -> PodSandboxStatus {
    let mut ips = record.ips.iter().map(ToString::to_string);
    let first = ips.next();
    // Absent while it is unknown: a ready pod with an empty address is made anew by the kubelet.
    let network = match first {
        Some(ip) => Some(PodSandboxNetworkStatus {
            ip,
            additional_ips: ips.map(|ip| PodIp { ip }).collect(),
        }),
        None if spec::host_network(record) => Some(PodSandboxNetworkStatus::default()),
        None => None,
    };
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.0.metadata.clone(),
        state: pod_state(record),
        created_at: record.created_at,
        network,
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(spec::pod_modes(record)) }),
        }),
        labels: record.config.0.labels.clone(),
        annotations: record.config.0.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// The image as the client named it.
fn named(record: &ContainerRecord) -> ImageSpec {
    let asked = record.config.0.image.clone().unwrap_or_default();
    let image = match asked.user_specified_image.as_str() {
        "" => asked.image.clone(),
        name => name.to_owned(),
    };
    ImageSpec { image, ..asked }
}

pub(super) fn container(record: &ContainerRecord) -> Container {
    Container {
        id: record.id.clone(),
        pod_sandbox_id: record.pod.clone(),
        metadata: record.config.0.metadata.clone(),
        image: Some(named(record)),
        image_ref: record.image_ref.clone(),
        state: container_state(record),
        created_at: record.created_at,
        labels: record.config.0.labels.clone(),
        annotations: record.config.0.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

pub(super) fn container_status(record: &ContainerRecord) -> ContainerStatus {
    let config = &record.config.0;
    ContainerStatus {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        state: container_state(record),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: record.finished_at,
        exit_code: record.exit_code,
        image: Some(named(record)),
        image_ref: record.image_ref.clone(),
        reason: record.reason.clone(),
        message: record.message.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(record),
        log_path: record.log_path.to_string_lossy().into_owned(),
        resources: config
            .linux
            .as_ref()
            .and_then(|l| l.resources.clone())
            .map(|linux| ContainerResources { linux: Some(linux), windows: None }),
        image_id: record.image_id.clone(),
        user: Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: record.uid.into(),
                gid: record.gid.into(),
                supplemental_groups: record.groups.iter().map(|g| i64::from(*g)).collect(),
            }),
        }),
        stop_signal: signal(record.stop_signal),
    }
}

/// The mounts as they were asked for, and which images lie behind image volumes: the kubelet keeps
/// an image whose id it finds here.
fn mounts(record: &ContainerRecord) -> Vec<Mount> {
    let mut mounts = record.config.0.mounts.clone();
    for volume in &record.volumes {
        if let Some(image) = mounts.get_mut(volume.mount).and_then(|m| m.image.as_mut()) {
            image.image.clone_from(&volume.image_id);
            image.image_ref.clone_from(&volume.image_id);
        }
    }
    mounts
}

/// The CRI's number of a signal.
fn signal(number: i32) -> i32 {
    let name = match number {
        34 => "SIGRTMIN".to_owned(),
        64 => "SIGRTMAX".to_owned(),
        35..=49 => format!("SIGRTMINPLUS{}", number - 34),
        50..=63 => format!("SIGRTMAXMINUS{}", 64 - number),
        _ => Number::try_from(number).map_or("", Number::as_str).to_owned(),
    };
    Signal::from_str_name(&format!("SIGNAL_{name}")).unwrap_or(Signal::RuntimeDefault) as i32
}

/// Whether all of the wanted labels are there.
pub(super) fn selected(
    labels: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// The container that uses an image, if any does.
///
/// One whose record cannot be read may use any, unless its image is known from elsewhere.
pub(crate) fn image_in_use(node: &Node, image: &str) -> Option<String> {
    let uses = |c: &std::sync::Arc<crate::node::Container>| {
        let record = c.record.get();
        if node.of_unknown_image(c) {
            return Some(format!("{} (its record cannot be read)", c.id));
        }
        let used = record.image_id == image || record.volumes.iter().any(|v| v.image_id == image);
        (used && record.state != State::Removing).then(|| record.id.clone())
    };
    node.all_containers().iter().find_map(uses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_both_ways() {
        assert_eq!(signal(15), Signal::Sigterm as i32);
        assert_eq!(signal(37), Signal::Sigrtminplus3 as i32);
        assert_eq!(signal(50), Signal::Sigrtmaxminus14 as i32);
        assert_eq!(signal(0), 0);
    }

    #[test]
    fn selectors() {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let labels: BTreeMap<String, String> = map(&[("a", "1"), ("b", "2")]);
        assert!(selected(&labels, &map(&[])));
        assert!(selected(&labels, &map(&[("a", "1")])));
        assert!(!selected(&labels, &map(&[("a", "2")])));
    }
}
