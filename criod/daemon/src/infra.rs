//! The process that holds a pod's pid namespace, where its containers share one.
//!
//! It is a container like any other, but for three things: it has the pod's id, it is not listed,
//! and its root is empty but for criod's own program, unless an image is configured for it. It runs
//! as whom the pod asks for and as confined, without any capability, on a read-only root.

use std::sync::Arc;

use api_cri::v1::{ContainerConfig, ContainerMetadata};
use registry::image::ContainerDefaults;

use crate::containers::PAUSE;
use crate::error::{Error, Kind, Result};
use crate::node::{Node, Pod, blocking};
use crate::pod_cgroup::cgroup_name;
use crate::record::ContainerRecord;
use crate::spec;

impl Node {
    /// Starts the process that holds a pod's pid namespace; returns its pid.
    pub(crate) async fn start_infra(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<i32> {
        let pause_image = self.config.pause_image.clone();
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "POD".into(), attempt: 0 }),
            command: vec![PAUSE.into()],
            ..ContainerConfig::default()
        };
        let pod_record = pod.record.get();
        let mut defaults = ContainerDefaults::default();
        let (mut layers, mut image_id) = (Vec::new(), String::new());
        if !pause_image.is_empty() {
            let failed = |source| Error::from(Kind::Image { image: pause_image.clone(), source });
            // The registry is asked only where the image is not here.
            if self.images.status(&pause_image).is_none() {
                let anonymous = registry::Credentials::Anonymous;
                self.images.pull(&pause_image, anonymous).await.map_err(failed)?;
            }
            let image = self.images.for_container(&pause_image).map_err(|e| failed(Arc::new(e)))?;
            config.command = vec![self.config.pause_command.clone()];
            (layers, image_id) = (image.layers, image.id);
            defaults.clone_from(&image.config.config);
        }
        config.linux = Some(api_cri::v1::LinuxContainerConfig {
            // It sleeps, and everything in the pod ends with it.
            resources: Some(api_cri::v1::LinuxContainerResources {
                cpu_shares: 2,
                oom_score_adj: -998,
                ..api_cri::v1::LinuxContainerResources::default()
            }),
            security_context: Some(spec::of_pod(&pod_record.config.0)),
        });
        let record = ContainerRecord {
            image_ref: image_id.clone(),
            image_id,
            layers: layers.iter().map(ToString::to_string).collect(),
            cgroup: cgroup_name(&pod_record, &pod.id),
            stop_signal: nix::libc::SIGKILL,
            infra: true,
            ..ContainerRecord::new(pod.id.clone(), &pod.id, config, self.new_time(), &self.boot_id)
        };
        let infra = self.make(pod, record, &defaults, layers).await?;
        self.start_this(&infra).await?;
        let pid = self.init_of(&infra.record.get()).ok_or_else(|| {
            Error::precondition("the process that holds the pod's pid namespace has ended")
        })?;
        // Containers join the pin, which no later process of this pid can be mistaken for.
        let pins = self.paths.namespaces(&pod.id);
        let id = pod.id.clone();
        blocking(move || {
            namespace::pin_pid(&pins, pid)
                .map_err(|source| Kind::Namespaces { pod: id, source }.into())
        })
        .await?;
        Ok(pid)
    }
}
