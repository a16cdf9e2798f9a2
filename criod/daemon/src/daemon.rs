//! The daemon from start to end.
//!
//! ```text
//! configuration ─▶ keeper ─▶ store ─▶ records loaded ─▶ socket served ─▶ resumed ─▶ READY
//! SIGTERM, SIGINT ─▶ end at once: nothing that matters lives here
//! ```

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use criod_config::{CgroupManager, Config, ShortNameMode};
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::confine::Confine;
use crate::error::{Error, Kind, Result};
use crate::keeper::{self, Keeper};
use crate::network::Network;
use crate::node::{Node, Ops, Paths, new_id};
use crate::streaming::{self, Streams};
use crate::{recover, server, userns};

/// The cgroup that the keeper and the monitors live in.
const MONITORS: &str = "/criod-monitors";
/// CPU shares of that and of the next; one ordinary group has 1024. All runtime calls of the node are
/// made in the one and all bytes of streams go through the other: each is more than one task.
const SHARES: u64 = 10_240;
/// The cgroup of the processes that face the network.
const STREAMS: &str = "/criod-streams";

/// Runs the daemon until it is told to end.
pub(crate) async fn run(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::system("handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::system("handle SIGINT"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::system("handle SIGHUP"))?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            warn!("SIGHUP: the configuration is read at a start only; nothing is reloaded yet");
        }
    });
    let listen = config.listen.clone();
    let (node, streaming) = build(config).await?;
    recover::load(&node).await?;
    let listener = server::listen(&listen, &node.keeper).await?;
    recover::resume(&node).await;
    // Asked ahead, so that the first Status need not wait.
    let asked = Arc::clone(&node);
    tokio::spawn(async move { asked.all_features().await });
    let confined = Arc::clone(&node);
    tokio::task::spawn_blocking(move || confined.confine.prepare(&confined.config));
    tokio::spawn(crate::stats::run(Arc::clone(&node)));
    tokio::spawn(streaming::serve(Arc::clone(&node), streaming));
    tokio::spawn(crate::upgrade::run(Arc::clone(&node)));
    server::announce(&listen);
    notify("READY=1");
    tokio::select! {
        () = server::serve(Arc::clone(&node), listener) => {}
        _ = terminate.recv() => info!("SIGTERM"),
        _ = interrupt.recv() => info!("SIGINT"),
    }
    notify("STOPPING=1");
    Ok(())
}

async fn build(config: Config) -> Result<(Arc<Node>, TcpListener)> {
    if config.cgroup_manager == CgroupManager::Systemd {
        warn!("cgroup_manager = \"systemd\" is not supported yet: cgroupfs is used");
    }
    if !config.storage_driver.is_empty() && config.storage_driver != "overlay" {
        let driver = &config.storage_driver;
        return Err(Error::unsupported(format!("storage_driver {driver:?} is not supported yet")));
    }
    crate::files::check(&config)?;
    let paths = Paths { root: config.root.clone(), run: config.runroot.clone() };
    for dir in [
        paths.pods(),
        paths.containers(),
        paths.root.join("cni"),
        paths.run.join("containers"),
        paths.run.join("ns"),
        paths.empty().join("diff"),
    ] {
        std::fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
    }
    // The sockets in it are for root alone.
    userns::mode(&paths.run, 0o700)?;
    let lock = own(&paths)?;
    let hierarchy = cgroup::Hierarchy::detect().map_err(failed(MONITORS))?;
    let boot_id = sys::clock::boot_id().map_err(Error::system("read the boot id"))?;
    let mut options = storage::Options::default();
    options.boot_id = Some(boot_id.clone());
    let store = storage::Store::open(&paths.root, options).map_err(|source| Kind::Storage {
        id: "all images".into(),
        action: "open",
        source,
    })?;
    let store = Arc::new(store);
    userns::protect(&paths)?;
    let keeper = Keeper::start(keeper::Options {
        program: config.keeper_binary(),
        socket: config.keeper_socket(),
        log: paths.run.join("keeper.log"),
        cgroups: own_group(&hierarchy, MONITORS)?,
    })
    .await?;
    let monitor_program = config.monitor_binary();
    let stream_program = beside(&monitor_program, "criod-stream");
    let group = own_group(&hierarchy, STREAMS)?;
    let (streams, streaming) =
        Streams::open(&config, &paths.run, stream_program.clone(), group, &keeper).await?;
    let images = criod_images::Images::new(Arc::clone(&store), images(&config))
        .map_err(|e| Kind::Image { image: "*".into(), source: Arc::new(e) })?;
    let node = Node {
        pause_program: beside(&monitor_program, "criod-pause"),
        monitor_program,
        network: Network::new(&config, &paths.root.join("cni")),
        boot_id,
        keeper,
        store,
        images,
        hierarchy,
        pods: RwLock::new(BTreeMap::new()),
        containers: RwLock::new(BTreeMap::new()),
        creates: Arc::new(Ops::default()),
        changes: Arc::new(Ops::default()),
        last_time: AtomicI64::new(0),
        cdi: cdi::Registry::new(config.cdi_spec_dirs.clone()),
        stats: crate::stats::Statistics::default(),
        events: crate::events::Events::default(),
        streams,
        runtimes: crate::features::Runtimes::default(),
        confine: Confine::detect(&config, &paths.run)?,
        leftovers: crate::reconcile::Leftovers::default(),
        builds: crate::upgrade::Builds::default(),
        _lock: lock,
        config,
        paths,
    };
    for program in [&node.monitor_program, &node.pause_program, &stream_program] {
        if !program.exists() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::file("find the program", program)(missing));
        }
    }
    Ok((Arc::new(node), streaming))
}

/// How long the lock on runroot may still be held by what a dead criod left.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Takes runroot for this criod and for this root: what lies in the one belongs to records in the
/// other, and would be taken for left over by any other pair.
fn own(paths: &Paths) -> Result<Flock<File>> {
    let path = paths.run.join("lock");
    let options = || OpenOptions::new().create(true).append(true).open(&path);
    let mut file = options().map_err(Error::file("open", &path))?;
    let began = Instant::now();
    let lock = loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            // A criod that was killed has the lock until the last of its threads has closed what
            // it had open (fanotify's takes a while), and what it had just forked until that runs.
            Err((again, nix::errno::Errno::EWOULDBLOCK)) if began.elapsed() < LOCK_PATIENCE => {
                file = again;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let text = format!("another criod uses {}", paths.run.display());
                return Err(Error::precondition(text));
            }
            Err((_, e)) => return Err(Error::file("lock", &path)(e.into())),
        }
    };
    let of_root = paths.root.join("id");
    let id = match std::fs::read_to_string(&of_root) {
        Ok(id) => id,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let id = new_id()?;
            std::fs::write(&of_root, &id).map_err(Error::file("write", &of_root))?;
            id
        }
        Err(e) => return Err(Error::file("read", &of_root)(e)),
    };
    let of_run = paths.run.join("root-id");
    match std::fs::read_to_string(&of_run) {
        Ok(other) if other != id => Err(Error::precondition(format!(
            "{} belongs to another root than {}: is that mounted? (Otherwise remove {}.)",
            paths.run.display(),
            paths.root.display(),
            of_run.display()
        ))),
        Ok(_) => Ok(lock),
        Err(_) => {
            std::fs::write(&of_run, &id).map_err(Error::file("write", &of_run))?;
            Ok(lock)
        }
    }
}

fn beside(program: &Path, name: &str) -> PathBuf {
    program.parent().unwrap_or(Path::new("/")).join(name)
}

fn failed(name: &str) -> impl Fn(cgroup::Error) -> Error {
    move |source| Kind::Cgroup { name: name.to_owned(), source }.into()
}

/// Makes a cgroup for processes of ours; returns its folders.
fn own_group(hierarchy: &cgroup::Hierarchy, name: &str) -> Result<Vec<PathBuf>> {
    let group = cgroup::Cgroup::at(hierarchy, name).map_err(failed(name))?;
    group.create().map_err(failed(name))?;
    let share = cgroup::Resources { cpu_shares: Some(SHARES), ..cgroup::Resources::default() };
    if let Err(e) = group.set(&share) {
        warn!("cgroup {name}: {e}");
    }
    Ok(group.paths())
}

fn images(config: &Config) -> criod_images::Options {
    let pause = Some(&config.pause_image).filter(|image| !image.is_empty());
    criod_images::Options {
        registries_conf: config.registries_conf.clone(),
        registries_conf_dir: Some(config.registries_conf_dir.clone()),
        global_auth_file: config.global_auth_file.clone(),
        short_name_mode: Some(match config.short_name_mode {
            ShortNameMode::Enforcing => registry::ShortNameMode::Enforcing,
            ShortNameMode::Disabled => registry::ShortNameMode::Disabled,
        }),
        pull_progress_timeout: Some(config.pull_progress_timeout),
        pinned: config.pinned_images.iter().chain(pause).cloned().collect(),
        ..criod_images::Options::default()
    }
}

/// Tells the service manager, where there is one.
fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|s| match socket.to_str() {
        Some(name) if name.starts_with('@') => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name[1..])?;
            s.send_to_addr(state.as_bytes(), &address)
        }
        _ => s.send_to(state.as_bytes(), &socket),
    });
    if let Err(e) = sent {
        warn!("notify the service manager: {e}");
    }
}
