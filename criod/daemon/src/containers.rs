//! The creation of a container. What comes after is in [`crate::life`].
//!
//! ```text
//! CreateContainer  record ─▶ root mounted ─▶ spec ─▶ monitor forked ─▶ `runtime create` ─▶ CREATED
//!   fails at any step: everything is undone; what cannot be is REMOVING and tried again for ever
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use api_cri::v1::{ContainerConfig, ContainerMetadata, CreateContainerRequest};
use api_monitor::monitor::Config as MonitorConfig;
use cgroup::Cgroup;
use failpoint::step;
use namespace::Pinned;
use registry::image::ContainerDefaults;
use storage::MountOptions;
use tracing::{info, warn};

use crate::error::{Error, Kind, Result};
use crate::monitor::last_state;
use crate::node::{Container, Node, Pod, Save, blocking, new_id, on_disk};
use crate::pod_cgroup::cgroup_name;
use crate::pods::bounded;
use crate::record::{ContainerRecord, ContainerState, PodRecord, PodState};
use crate::spec;
use crate::stats::measure_new;

/// What the pod's own process is, inside its root.
pub(crate) const PAUSE: &str = "/pause";
/// The longest name of a file, in bytes.
const MAX_NAME: usize = 255;

impl Node {
    /// Creates a container and returns its id. A repeated call gets the same one.
    pub(crate) async fn create(
        self: &Arc<Self>,
        request: CreateContainerRequest,
    ) -> Result<String> {
        let config = request.config.ok_or_else(|| Error::invalid("config is missing"))?;
        let meta =
            config.metadata.clone().ok_or_else(|| Error::invalid("config.metadata is missing"))?;
        if meta.name.is_empty() {
            return Err(Error::invalid("config.metadata.name is empty"));
        }
        let pod = self.pod(&request.pod_sandbox_id)?;
        bounded(&config.labels, &config.annotations)?;
        let key = format!("container {} {:?} {}", pod.id, meta.name, meta.attempt);
        let node = Arc::clone(self);
        self.creates
            .join(&key, move || async move { node.create_named(pod, meta, config).await })
            .await
    }

    async fn create_named(
        self: Arc<Self>,
        pod: Arc<Pod>,
        meta: ContainerMetadata,
        config: ContainerConfig,
    ) -> Result<String> {
        ready(&pod)?;
        let existing = self.containers_of(&pod.id).into_iter().find(|c| {
            let record = c.record.get();
            let same = record.config.0.metadata.as_ref() == Some(&meta);
            same && !record.infra && record.state != ContainerState::Removing
        });
        if let Some(existing) = existing {
            return match existing.record.get().state {
                ContainerState::Created => Ok(existing.id.clone()),
                _ => Err(Kind::Exists(format!(
                    "container {:?}, attempt {}, exists already in the pod as {}",
                    meta.name, meta.attempt, existing.id
                ))
                .into()),
            };
        }
        let spec = config.image.clone().unwrap_or_default();
        if spec.image.is_empty() {
            return Err(Error::invalid("config.image.image is empty"));
        }
        let images = self.images.clone();
        let name = spec.image.clone();
        let image = blocking(move || {
            images
                .for_container(&name)
                .map_err(|e| Kind::Image { image: name, source: Arc::new(e) }.into())
        })
        .await?;
        let id = new_id()?;
        let log_path = self.log_path(&pod.record.get(), &config, &id)?;
        let record = ContainerRecord {
            cgroup: cgroup_name(&pod.record.get(), &id),
            image_id: image.id.clone(),
            image_ref: image.image_ref.clone(),
            layers: image.layers.iter().map(ToString::to_string).collect(),
            log_path,
            stop_signal: spec::stop_signal(&config, &image.config.config)?,
            volumes: self.image_volumes(&config)?,
            ..ContainerRecord::new(id, &pod.id, config, self.new_time(), &self.boot_id)
        };
        self.make(&pod, record, &image.config.config, image.layers).await.map(|c| c.id.clone())
    }

    fn log_path(&self, pod: &PodRecord, config: &ContainerConfig, id: &str) -> Result<PathBuf> {
        let dir = match pod.config.0.log_directory.as_str() {
            "" => self.config.log_dir.join(&pod.id),
            dir => PathBuf::from(dir),
        };
        let name = match config.log_path.as_str() {
            "" => format!("{id}.log"),
            name => name.to_owned(),
        };
        if Path::new(&name).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return Err(Error::invalid(format!("log_path {name:?} leaves the log directory")));
        }
        if name.contains('\0') || name.split('/').any(|part| part.len() > MAX_NAME) {
            return Err(Error::invalid(format!("log_path {name:?} is no path of a file")));
        }
        Ok(dir.join(name))
    }

    /// All steps of a creation; on failure all are undone.
    pub(crate) async fn make(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        record: ContainerRecord,
        image: &ContainerDefaults,
        layers: Vec<storage::Digest>,
    ) -> Result<Arc<Container>> {
        let container = self.add_container(record);
        let made = self.build_container(pod, &container, image, layers).await;
        let made = match made {
            // The pod may have been stopped in the meantime.
            Ok(()) if !container.record.get().infra => ready(pod),
            other => other,
        };
        match made {
            Ok(()) => {
                let created = |r: &mut ContainerRecord| r.state = ContainerState::Created;
                if let Err(e) = container.record.update(Save::Now, created) {
                    self.undo_container(&container).await;
                    return Err(e);
                }
                on_disk(|| measure_new(self, &container));
                self.tell(&container);
                tokio::spawn(Arc::clone(self).watch(Arc::clone(&container)));
                info!(container = container.id, pod = pod.id, "container created");
                Ok(container)
            }
            Err(e) => {
                self.undo_container(&container).await;
                Err(e)
            }
        }
    }

    /// Takes a container that never was away again; what fails is tried again later.
    pub(crate) async fn undo_container(self: &Arc<Self>, container: &Arc<Container>) {
        container.record.note(|r| r.state = ContainerState::Removing);
        if let Err(e) = self.remove_this(container).await {
            warn!(container = container.id, "not gone yet, will be tried again: {}", e.chain());
        }
    }

    async fn build_container(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        container: &Arc<Container>,
        image: &ContainerDefaults,
        layers: Vec<storage::Digest>,
    ) -> Result<()> {
        let node = Arc::clone(self);
        let (pod_record, own, image) = (pod.record.get(), Arc::clone(container), image.clone());
        let command = spec::args(&container.record.get().config.0, &image)?.join(" ");
        let monitor = blocking(move || node.lay_out(&pod_record, &own, &image, &layers)).await?;
        container.monitor.begin(&monitor).await?;
        let pid = container.monitor.create().await.map_err(|e| match e.monitor_refusal() {
            // Not every runtime names what it could not run.
            Some(text) => Kind::Runtime(format!("command {command:?}: {text}")).into(),
            None => e,
        })?;
        container.record.note(|r| r.pid = pid);
        Ok(())
    }

    /// Everything on disk: record, root, bundle. Returns what the monitor is to know.
    fn lay_out(
        &self,
        pod: &PodRecord,
        container: &Container,
        image: &ContainerDefaults,
        layers: &[storage::Digest],
    ) -> Result<MonitorConfig> {
        let id = &container.id;
        let record = container.record.get();
        let config = &record.config.0;
        // The one durable entry, before the writable layer.
        container.record.update(Save::Durable, |_| ())?;
        // The pod may have been stopped since it was looked at; from here on that sees this one.
        if !record.infra {
            ready(&*self.pod(&pod.id)?)?;
        }
        let (_, handler) = self
            .config
            .handler(&pod.handler)
            .ok_or_else(|| Error::invalid(format!("no runtime handler {:?}", pod.handler)))?;
        let layers_failed = |source| {
            Error::from(Kind::Storage { id: id.clone(), action: "hold its layers", source })
        };
        self.store.hold(id, &record.all_layers()).map_err(layers_failed)?;
        let bundle = self.paths.bundle(id);
        step!("container: make bundle", std::fs::create_dir_all(&bundle))
            .map_err(Error::file("create", &bundle))?;
        let bare = record.infra && layers.is_empty();
        let args = spec::args(config, image)?;
        let labels = spec::Labels::of(config, pod, &args, &self.config, handler, &self.confine)?;
        // The pod's root cannot reach what lies below runroot.
        let rootfs = if bare && spec::pod_users(pod).is_none() {
            let rootfs = bundle.join("rootfs");
            step!("container: make bare root", std::fs::create_dir_all(&rootfs))
                .map_err(Error::file("create", &rootfs))?;
            spec::label_root(&rootfs, &labels)?;
            rootfs
        } else {
            self.mount_root(pod, id, layers, &labels.mount)?
        };
        self.open_way(pod, id)?;
        let user = spec::user(config, image, &rootfs)?;
        if !record.infra {
            spec::name_user(config, image, &rootfs, &user)?;
        }
        let volumes = self.mount_volumes(pod, &record, &labels.mount)?;
        let target_pid = match spec::target(config) {
            Some(target) => {
                let target = self.container(&target)?.record.get();
                if target.pod != pod.id {
                    return Err(Error::invalid("target_id is in another pod"));
                }
                self.init_of(&target)
            }
            None => None,
        };
        let spec_failed = |source| Error::from(Kind::Spec { id: id.clone(), source });
        let request = spec::Request {
            id,
            config,
            pod,
            pod_dir: &self.paths.pod_run(&pod.id),
            pinned: &Pinned::existing(&self.paths.namespaces(&pod.id)),
            pid_pin: &self.paths.namespaces(&pod.id).join("pid"),
            image,
            rootfs: &rootfs,
            node: &self.config,
            cdi: &self.cdi,
            features: self.features(handler),
            handler,
            host: oci::Host::current().map_err(spec_failed)?,
            confine: &self.confine,
            labels: &labels,
            hierarchy: &self.hierarchy,
            able: self.able(),
            cgroup: &record.cgroup,
            target_pid,
            dir: container.record.dir(),
            run: &self.paths.container_run(id),
            infra: record.infra,
            volumes: &volumes,
        };
        let mut input = request.build(&user)?;
        if bare {
            input.mounts.retain(|m| m.destination != "/dev/shm");
            input.readonly_rootfs = true;
            input.mounts.push(oci::MountInput {
                destination: PAUSE.into(),
                source: self.pause_program.to_string_lossy().into_owned(),
                readonly: true,
                ..oci::MountInput::default()
            });
        } else if input.process.cwd != "/" {
            let (uid, gid) = spec::pod_root(pod);
            storage::ensure_dir_in_root(&rootfs, &input.process.cwd, 0o755, uid, gid).map_err(
                |source| Kind::Storage {
                    id: id.clone(),
                    action: "make the working folder",
                    source,
                },
            )?;
        }
        if !record.infra {
            crate::files::set_timezone(id, &self.config.timezone, &rootfs)?;
        }
        let bytes = oci::build(&input).map_err(spec_failed)?;
        let path = bundle.join("config.json");
        step!("container: write spec", std::fs::write(&path, bytes))
            .map_err(Error::file("write", &path))?;
        if let Some(dir) = record.log_path.parent()
            && !record.infra
        {
            step!("container: make log folder", std::fs::create_dir_all(dir))
                .map_err(Error::file("create", dir))?;
        }
        container.record.update(Save::Now, |r| {
            r.uid = user.uid;
            r.gid = user.gid;
            r.groups.clone_from(&user.groups);
        })?;
        self.monitor_config(pod, &record, handler)
    }

    /// Pid of a running container's init, if it is surely still that process.
    pub(crate) fn init_of(&self, record: &ContainerRecord) -> Option<i32> {
        let init = self.init_process(&record.id)?;
        (record.state == ContainerState::Running).then_some(init)
    }

    /// The same, also of a container that is not started yet.
    pub(crate) fn init_process(&self, id: &str) -> Option<i32> {
        let state = last_state(&self.paths.container_run(id))?;
        let stat = sys::proc::stat(state.pid)?;
        (stat.start_time == state.pid_start_time && stat.state != b'Z').then_some(state.pid)
    }

    /// The folder of a runtime's own state.
    pub(crate) fn runtime_root(&self, handler: &criod_config::RuntimeHandler) -> PathBuf {
        match &handler.runtime_root {
            Some(root) => root.clone(),
            None => self.paths.run.join("runtime"),
        }
    }

    fn monitor_config(
        &self,
        pod: &PodRecord,
        record: &ContainerRecord,
        handler: &criod_config::RuntimeHandler,
    ) -> Result<MonitorConfig> {
        let root = self.runtime_root(handler);
        let text = |p: &Path| p.to_string_lossy().into_owned();
        // A version may be part of the name: runc-1.5.2.
        let program = handler.runtime_path.rsplit('/').next().unwrap_or_default();
        let program = program.split_once('-').map_or(program, |(name, _)| name);
        let config = &record.config.0;
        let seconds = u64::try_from(handler.container_create_timeout).unwrap_or(240);
        Ok(MonitorConfig {
            id: record.id.clone(),
            bundle: text(&self.paths.bundle(&record.id)),
            runtime: handler.runtime_path.clone(),
            runtime_args: vec!["--root".into(), text(&root)],
            log_path: if record.infra { String::new() } else { text(&record.log_path) },
            terminal: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            keeper: text(self.keeper.socket()),
            cgroups: self.cgroup(&record.cgroup)?.paths().iter().map(|p| text(p)).collect(),
            shared_pid: record.infra || spec::shares_pid(config, pod),
            direct_signal: ["runc", "crun", "youki"].contains(&program),
            create_timeout_ms: seconds.saturating_mul(1000),
            no_sync_log: handler.no_sync_log,
            create_args: self
                .config
                .no_pivot
                .then(|| "--no-pivot".to_owned())
                .into_iter()
                .collect(),
            env: std::env::vars()
                .filter(|(k, _)| k == "PATH" || k == "XDG_RUNTIME_DIR")
                .map(|(k, v)| format!("{k}={v}"))
                .collect(),
            ..MonitorConfig::new()
        })
    }

    pub(crate) fn cgroup(&self, name: &str) -> Result<Cgroup> {
        Cgroup::at(&self.hierarchy, name)
            .map_err(|source| Kind::Cgroup { name: name.to_owned(), source }.into())
    }

    fn mount_root(
        &self,
        pod: &PodRecord,
        id: &str,
        layers: &[storage::Digest],
        label: &str,
    ) -> Result<PathBuf> {
        let failed =
            |action| move |source| Error::from(Kind::Storage { id: id.to_owned(), action, source });
        let dir = self.paths.rootfs(id);
        step!("container: make root folder", std::fs::create_dir_all(&dir))
            .map_err(Error::file("create", &dir))?;
        self.store.check_layers(layers).map_err(failed("use its image"))?;
        // Without `volatile` each unmount would write out everything that the disk has pending. A
        // power loss ends the container in any case. Kernels before 5.10 do not know it.
        let mount = |extra: &[&str]| {
            let context = security::selinux::mount_option(label);
            let extra = extra.iter().map(|o| (*o).to_owned()).chain(context).collect();
            let owners = self.owners(pod);
            let options = MountOptions { extra, owners, ..MountOptions::default() };
            self.store.container_mount(&dir, layers, options).and_then(|m| m.mount())
        };
        mount(&["volatile"]).or_else(|_| mount(&[])).map_err(failed("mount its root"))
    }
}

fn ready(pod: &Pod) -> Result<()> {
    let record = pod.record.get();
    if record.state != PodState::Ready || record.stopping {
        return Err(Error::precondition(format!("pod sandbox {} is not ready", pod.id)));
    }
    Ok(())
}
