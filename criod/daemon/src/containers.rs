//! A container's life.
//!
//! ```text
//! CreateContainer  record ─▶ root mounted ─▶ spec ─▶ monitor forked ─▶ `runtime create` ─▶ CREATED
//!   fails at any step: everything is undone; what cannot be is REMOVING and tried again for ever
//! StartContainer   log opened, `runtime start` ─▶ RUNNING        exit: the monitor's news ─▶ EXITED
//! StopContainer    the monitor's deadline; answers when the record says EXITED
//! RemoveContainer  killed ─▶ `runtime delete`, monitor ends ─▶ unmounted, cgroup, files, record gone
//! ```
//! Log files stay: they are the kubelet's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api_cri::v1::{ContainerConfig, ContainerMetadata, CreateContainerRequest};
use api_monitor::monitor::{Config as MonitorConfig, StateResponse};
use cgroup::Cgroup;
use namespace::Pinned;
use registry::image::ContainerDefaults;
use storage::{ContainerMount, MountOptions};
use tracing::{info, warn};

use crate::error::{Error, Kind, Result};
use crate::monitor::{last_state, seal};
use crate::node::{Container, Node, Pod, Save, blocking, new_id};
use crate::record::{ContainerRecord, ContainerState, PodRecord, PodState, Wire};
use crate::spec;

/// Where containers go whose pod names no cgroup.
const CGROUP_PARENT: &str = "/crio";
/// What the pod's own process is, inside its root.
const PAUSE: &str = "/pause";
/// How long a container that could not be started has to end.
const START_FAILED: Duration = Duration::from_secs(10);

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
        let key = format!("container {} {} {}", pod.id, meta.name, meta.attempt);
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
            pod: pod.id.clone(),
            state: ContainerState::Creating,
            created_at: self.new_time(),
            boot_id: self.boot_id.clone(),
            image_id: image.id.clone(),
            image_ref: image.image_ref.clone(),
            layers: image.layers.iter().map(ToString::to_string).collect(),
            log_path,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            pid: 0,
            stop_signal: spec::stop_signal(&config, &image.config.config)?,
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            infra: false,
            config: Wire(config),
            id,
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
        Ok(dir.join(name))
    }

    /// All steps of a creation; on failure all are undone.
    async fn make(
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
        let bundle = self.paths.bundle(id);
        std::fs::create_dir_all(&bundle).map_err(Error::file("create", &bundle))?;
        let bare = record.infra && layers.is_empty();
        let rootfs = if bare {
            let rootfs = bundle.join("rootfs");
            std::fs::create_dir_all(&rootfs).map_err(Error::file("create", &rootfs))?;
            rootfs
        } else {
            self.mount_root(id, layers)?
        };
        let user = spec::user(config, image, &rootfs)?;
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
            handler,
            // Without the x32 ABI, which no image uses and every filter would pay for.
            host: oci::Host { x32: false, ..oci::Host::current().map_err(spec_failed)? },
            hierarchy: &self.hierarchy,
            cgroup: &record.cgroup,
            target_pid,
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
            storage::ensure_dir_in_root(&rootfs, &input.process.cwd, 0o755, 0, 0).map_err(
                |source| Kind::Storage {
                    id: id.clone(),
                    action: "make the working folder",
                    source,
                },
            )?;
        }
        let bytes = oci::build(&input).map_err(spec_failed)?;
        let path = bundle.join("config.json");
        std::fs::write(&path, bytes).map_err(Error::file("write", &path))?;
        if let Some(dir) = record.log_path.parent()
            && !record.infra
        {
            std::fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        }
        container.record.update(Save::Now, |r| {
            r.uid = user.uid;
            r.gid = user.gid;
            r.groups.clone_from(&user.groups);
        })?;
        self.monitor_config(pod, &record, handler)
    }

    /// Pid of a container's init, if it is surely still that process.
    fn init_of(&self, record: &ContainerRecord) -> Option<i32> {
        let state = last_state(&self.paths.container_run(&record.id))?;
        let stat = sys::proc::stat(state.pid)?;
        let same = stat.start_time == state.pid_start_time && stat.state != b'Z';
        (record.state == ContainerState::Running && same).then_some(state.pid)
    }

    fn monitor_config(
        &self,
        pod: &PodRecord,
        record: &ContainerRecord,
        handler: &criod_config::RuntimeHandler,
    ) -> Result<MonitorConfig> {
        let root = match &handler.runtime_root {
            Some(root) => root.clone(),
            None => self.paths.run.join("runtime"),
        };
        let text = |p: &Path| p.to_string_lossy().into_owned();
        let program = handler.runtime_path.rsplit('/').next().unwrap_or_default();
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
            keeper: text(self.keeper.socket()),
            cgroups: self.cgroup(&record.cgroup)?.paths().iter().map(|p| text(p)).collect(),
            shared_pid: record.infra || spec::shares_pid(config, pod),
            direct_signal: ["runc", "crun", "youki"].contains(&program),
            create_timeout_ms: seconds.saturating_mul(1000),
            no_sync_log: handler.no_sync_log,
            env: std::env::vars()
                .filter(|(k, _)| k == "PATH" || k == "XDG_RUNTIME_DIR")
                .map(|(k, v)| format!("{k}={v}"))
                .collect(),
            ..MonitorConfig::new()
        })
    }

    fn cgroup(&self, name: &str) -> Result<Cgroup> {
        Cgroup::at(&self.hierarchy, name)
            .map_err(|source| Kind::Cgroup { name: name.to_owned(), source }.into())
    }

    fn mount_root(&self, id: &str, layers: &[storage::Digest]) -> Result<PathBuf> {
        let failed =
            |action| move |source| Error::from(Kind::Storage { id: id.to_owned(), action, source });
        let dir = self.paths.rootfs(id);
        std::fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        self.store.hold(id, layers).map_err(failed("hold its layers"))?;
        // Without `volatile` each unmount would write out everything that the disk has pending. A
        // power loss ends the container in any case. Kernels before 5.10 do not know it.
        let mount = |extra: &[&str]| {
            let extra = extra.iter().map(|o| (*o).to_owned()).collect();
            let options = MountOptions { extra, ..MountOptions::default() };
            self.store.container_mount(&dir, layers, options).and_then(|m| m.mount())
        };
        mount(&["volatile"]).or_else(|_| mount(&[])).map_err(failed("mount its root"))
    }

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
            security_context: Some(api_cri::v1::LinuxContainerSecurityContext {
                namespace_options: Some(api_cri::v1::NamespaceOption {
                    pid: api_cri::v1::NamespaceMode::Container as i32,
                    ..spec::pod_modes(&pod_record)
                }),
                no_new_privs: true,
                capabilities: Some(api_cri::v1::Capability {
                    drop_capabilities: vec!["ALL".into()],
                    ..api_cri::v1::Capability::default()
                }),
                ..api_cri::v1::LinuxContainerSecurityContext::default()
            }),
            ..api_cri::v1::LinuxContainerConfig::default()
        });
        let record = ContainerRecord {
            id: pod.id.clone(),
            pod: pod.id.clone(),
            config: Wire(config),
            state: ContainerState::Creating,
            created_at: self.new_time(),
            boot_id: self.boot_id.clone(),
            image_ref: image_id.clone(),
            image_id,
            layers: layers.iter().map(ToString::to_string).collect(),
            log_path: PathBuf::new(),
            cgroup: cgroup_name(&pod_record, &pod.id),
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            pid: 0,
            stop_signal: 9,
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            infra: true,
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

    /// Waits for the container's end and puts it on record.
    pub(crate) async fn watch(self: Arc<Self>, container: Arc<Container>) {
        let state = match container.monitor.wait().await {
            Ok(state) => state,
            // It has been removed, or somebody took the monitor's folder away.
            Err(_) => return self.lost(&container).await,
        };
        note_end(&container, &state);
        let record = container.record.get();
        if record.state == ContainerState::Exited {
            info!(container = container.id, code = record.exit_code, "container exited");
            if record.infra
                && let Ok(pod) = self.pod(&record.pod)
            {
                self.infra_ended(&pod);
            }
        }
        container.ended.send_replace(true);
        // The result is made durable in the background.
        let saved = blocking(move || {
            container.record.update(Save::Durable, |_| ()).map(|_| container.id.clone())
        });
        if let Err(e) = saved.await {
            warn!("{}", e.chain());
        }
    }

    /// Ends a container whose monitor's folder is gone, so that nothing can be known of it.
    async fn lost(&self, container: &Arc<Container>) {
        let record = container.record.get();
        if !matches!(record.state, ContainerState::Created | ContainerState::Running) {
            return;
        }
        warn!(container = container.id, "the folder of its monitor is gone; it is killed");
        let killed = self.cgroup(&record.cgroup).map(|group| {
            blocking(move || {
                let name = group.name().to_owned();
                group.kill().map_err(|source| Kind::Cgroup { name, source }.into())
            })
        });
        let killed = match killed {
            Ok(killing) => killing.await,
            Err(e) => Err(e),
        };
        if let Err(e) = killed {
            warn!(container = container.id, "{}", e.chain());
        }
        let ended = container.record.update(Save::Soon, |r| {
            r.state = ContainerState::Exited;
            r.exit_code = 137;
            r.finished_at = sys::clock::realtime();
            r.reason = "ContainerStatusUnknown".into();
            r.message = "the folder of its monitor was removed".into();
        });
        if let Err(e) = ended {
            warn!(container = container.id, "{}", e.chain());
        }
        container.ended.send_replace(true);
    }

    /// A pod whose own process has ended is no longer whole.
    pub(crate) fn infra_ended(&self, pod: &Arc<Pod>) {
        let lost = pod.record.update(Save::Soon, |r| {
            if r.state == PodState::Ready {
                r.state = PodState::NotReady;
            }
            r.infra_pid = 0;
        });
        if let Err(e) = lost {
            warn!("{}", e.chain());
        }
    }

    /// Starts a created container.
    pub(crate) async fn start(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let (node, key) = (Arc::clone(self), format!("start {}", container.id));
        self.changes.join(&key, move || async move { node.start_this(&container).await }).await
    }

    async fn start_this(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let _op = container.op.lock().await;
        let record = container.record.get();
        match record.state {
            ContainerState::Created => {}
            // Its answer was lost: it has been started.
            ContainerState::Running => return Ok(()),
            ContainerState::Exited if record.started_at > 0 => return Ok(()),
            _ => {
                let text = format!("container {} is not in the state CREATED", container.id);
                return Err(Error::precondition(text));
            }
        }
        match container.monitor.start().await {
            Ok(started_at) => {
                container.record.update(Save::Soon, |r| {
                    r.started_at = match r.finished_at {
                        0 => started_at,
                        finished => started_at.min(finished),
                    };
                    if r.state == ContainerState::Created {
                        r.state = ContainerState::Running;
                    }
                })?;
                Ok(())
            }
            Err(e) => {
                // The monitor ends what is left; the record shows why, as EXITED.
                let mut ended = container.ended.subscribe();
                let end = ended.wait_for(|e| *e);
                if tokio::time::timeout(START_FAILED, end).await.is_err() {
                    warn!(container = container.id, "could not be started and has not ended");
                }
                Err(said_by_runtime(e))
            }
        }
    }

    /// Stops a container; answers when its record says that it has ended. Unknown ones have.
    pub(crate) async fn stop(self: &Arc<Self>, id: &str, timeout: i64) -> Result<()> {
        let container = match self.container(id) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        let seconds = u64::try_from(timeout).unwrap_or(0);
        self.stop_this(&container, Duration::from_secs(seconds)).await
    }

    /// Nothing is held while it waits; a later stop can bring the deadline nearer.
    pub(crate) async fn stop_this(
        self: &Arc<Self>,
        container: &Arc<Container>,
        timeout: Duration,
    ) -> Result<()> {
        let record = container.record.get();
        match record.state {
            ContainerState::Created | ContainerState::Running => {}
            ContainerState::Creating if !record.infra => {
                let text = format!("container {} is being created", container.id);
                return Err(Error::precondition(text));
            }
            _ => return Ok(()),
        }
        if let Err(e) = container.monitor.stop(record.stop_signal, timeout).await {
            if container.monitor.exists() {
                return Err(e);
            }
            self.lost(container).await;
        }
        // The sender lives as long as the container.
        let _ = container.ended.subscribe().wait_for(|ended| *ended).await;
        Ok(())
    }

    /// Removes a container, killing it first. Unknown ones are removed.
    pub(crate) async fn remove(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = match self.container(id) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        if container.record.get().state == ContainerState::Creating {
            let text = format!("container {} is being created", container.id);
            return Err(Error::precondition(text));
        }
        let (node, key) = (Arc::clone(self), format!("remove {}", container.id));
        self.changes.join(&key, move || async move { node.remove_this(&container).await }).await
    }

    /// All steps back, from wherever the container stands. May be repeated.
    pub(crate) async fn remove_this(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let _op = container.op.lock().await;
        container.monitor.delete().await.map_err(said_by_runtime)?;
        container.ended.send_replace(true);
        // Before anything is gone: a restart must go on from here, not find half a container.
        container.record.update(Save::Soon, |r| r.state = ContainerState::Removing)?;
        if !self.paths.container_run(&container.id).join("config").exists() {
            self.keeper.forget(&container.id).await?;
        }
        let node = Arc::clone(self);
        let own = Arc::clone(container);
        blocking(move || node.clear_away(&own)).await?;
        self.forget_container(&container.id);
        info!(container = container.id, "container removed");
        Ok(())
    }

    /// What a container leaves on disk and in the cgroup tree.
    fn clear_away(&self, container: &Container) -> Result<()> {
        let id = &container.id;
        let record = container.record.get();
        let group = self.cgroup(&record.cgroup)?;
        let failed = |source| Error::from(Kind::Cgroup { name: record.cgroup.clone(), source });
        group.kill().map_err(failed)?;
        group.remove().map_err(failed)?;
        let root = ContainerMount::existing(&self.paths.rootfs(id));
        let gone =
            |action| move |source| Error::from(Kind::Storage { id: id.clone(), action, source });
        root.unmount().map_err(gone("unmount its root"))?;
        root.remove().map_err(gone("remove its root"))?;
        let run = self.paths.container_run(id);
        let sealed = seal(&run);
        if sealed.is_none() && run.exists() {
            let text = format!("container {id}: its monitor does not end");
            return Err(Error::precondition(text));
        }
        container.record.end();
        for dir in [run, container.record.dir().clone()] {
            match std::fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::file("remove", &dir)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the monitor open the log's path anew.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if container.record.get().state != ContainerState::Running {
            return Err(Error::precondition(format!("container {} is not running", container.id)));
        }
        container.monitor.reopen_log().await
    }
}

fn ready(pod: &Pod) -> Result<()> {
    let record = pod.record.get();
    if record.state != PodState::Ready || record.stopping {
        return Err(Error::precondition(format!("pod sandbox {} is not ready", pod.id)));
    }
    Ok(())
}

fn cgroup_name(pod: &PodRecord, id: &str) -> String {
    let linux = pod.config.0.linux.as_ref();
    let parent = linux.map(|l| l.cgroup_parent.as_str()).filter(|p| !p.is_empty());
    let parent = parent.unwrap_or(CGROUP_PARENT).trim_matches('/');
    format!("/{parent}/crio-{id}")
}

/// A refusal of the runtime in its own words, without the way that it came.
fn said_by_runtime(error: Error) -> Error {
    match error.monitor_refusal() {
        Some(text) => Kind::Runtime(text).into(),
        None => error,
    }
}

/// Puts what the monitor says of the end on record.
pub(crate) fn note_end(container: &Container, state: &StateResponse) {
    let result = container.record.update(Save::Soon, |r| {
        if let Some(exit) = state.exit.as_ref() {
            r.state = match r.state {
                ContainerState::Removing => ContainerState::Removing,
                _ => ContainerState::Exited,
            };
            // The runtime's call may return after what it started has ended.
            r.started_at = state.started_at.min(exit.finished_at);
            r.finished_at = exit.finished_at;
            r.exit_code = exit.code;
            r.message.clone_from(&state.error);
            r.reason = match exit {
                _ if r.started_at == 0 && !state.error.is_empty() => "StartError",
                e if e.unknown => "ContainerStatusUnknown",
                e if e.oom => "OOMKilled",
                e if e.code == 0 => "Completed",
                _ => "Error",
            }
            .to_owned();
            if exit.unknown {
                r.message.clone_from(&state.lost);
            }
        } else if r.state != ContainerState::Removing {
            // It has ended before it had anything that could.
            r.state = ContainerState::Exited;
            r.exit_code = 255;
            r.finished_at = sys::clock::realtime();
            r.reason = "ContainerStatusUnknown".to_owned();
            r.message.clone_from(&state.error);
        }
    });
    if let Err(e) = result {
        warn!(container = container.id, "{}", e.chain());
    }
}

/// What a restart finds of a container that was created or running.
pub(crate) fn refresh(container: &Container, run: &Path) {
    let Some(state) = last_state(run) else { return };
    let pid = state.pid;
    container.record.note(|r| {
        r.pid = if pid > 0 { pid } else { r.pid };
        if state.started_at > 0 && r.state == ContainerState::Created {
            r.state = ContainerState::Running;
            r.started_at = state.started_at;
        }
    });
}
