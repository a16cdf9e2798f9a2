//! The daemon from start to end.
//!
//! ```text
//! configuration ─▶ keeper ─▶ store ─▶ records loaded ─▶ socket served ─▶ resumed ─▶ READY
//!
//! SIGTERM, SIGINT ─▶ accepts no more ─▶ calls in flight answered (module `end`) ─▶ end at once
//! SIGHUP          ─▶ a successor (module `succeed`), which serves; the ExecSync calls in flight end here
//! ```
//! Two sets of threads. The *front* is one thread, `run`'s: it has signals and connections, and relays
//! ExecSync. The *work* is a pool with everything else. The front can always answer and end, whatever the
//! work waits for, and it can end the work alone. Ended so, the work leaves behind what a SIGKILL leaves:
//! nothing that matters lives here.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use criod_config::{CgroupManager, Config, ShortNameMode};
use failpoint::step;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{debug, error, info, warn};

use crate::confine::Confine;
use crate::end::{Attached, Count, FLUSH, Stage, Stages};
use crate::error::{Error, Kind, Result};
use crate::keeper::{self, Keeper};
use crate::network::Network;
use crate::node::{Node, Ops, Paths, lock, new_id, on_disk};
use crate::server::Server;
use crate::service_manager::{feed_watchdog, notify};
use crate::streaming::{self, Streams};
use crate::succeed::{Candidate, Heir, Program};
use crate::{recover, server, userns};

/// The cgroup that the keeper and the monitors live in.
const MONITORS: &str = "/criod-monitors";
/// CPU shares of that and of the next; one ordinary group has 1024. All runtime calls of the node are
/// made in the one and all bytes of streams go through the other: each is more than one task.
const SHARES: u64 = 10_240;
/// The cgroup of the processes that face the network.
const STREAMS: &str = "/criod-streams";

/// How long a hand-over waits for threads that are inside a system call. After that criod ends as a
/// whole, which ends them in any case, and takes ExecSync calls with it.
const STOP: Duration = Duration::from_secs(5);

/// Between looks whether a criod before still relays commands.
const RELAYS: Duration = Duration::from_secs(1);

/// The signals that end criod.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    /// Waits to be told to end.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => info!("SIGTERM"),
            _ = self.interrupt.recv() => info!("SIGINT"),
        }
    }
}

/// The signals that criod heeds.
struct Signals {
    ends: Ends,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let handle = |kind, name| signal(kind).map_err(Error::system(format!("handle {name}")));
        let terminate = handle(SignalKind::terminate(), "SIGTERM")?;
        let interrupt = handle(SignalKind::interrupt(), "SIGINT")?;
        let hangup = handle(SignalKind::hangup(), "SIGHUP")?;
        Ok(Signals { ends: Ends { terminate, interrupt }, hangup })
    }
}

/// The pool that does the work. Dropping it ends nothing: its threads may be anywhere, and end with
/// the process.
struct Work(Option<Runtime>);

impl Work {
    async fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        match &self.0 {
            Some(pool) => pool.spawn(work).await.unwrap_or_else(|_| Err(Kind::Panicked.into())),
            None => Err(Kind::Restarting.into()),
        }
    }

    /// Ends the pool and all that it does; whether that was so in time.
    async fn end(mut self) -> bool {
        let Some(pool) = self.0.take() else { return true };
        let (tell, told) = tokio::sync::oneshot::channel();
        // It blocks, and may not where other tasks are run.
        let thread = std::thread::Builder::new().name("stop".into()).spawn(move || {
            let began = Instant::now();
            pool.shutdown_timeout(STOP);
            let _ = tell.send(began.elapsed() < STOP);
        });
        thread.is_ok() && told.await.unwrap_or(false)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}

/// A criod that serves.
struct Serving {
    node: Arc<Node>,
    /// On runroot.
    lock: Flock<File>,
    /// The CRI's socket: what is accepted from, and what is handed over.
    listener: std::os::unix::net::UnixListener,
}

/// Runs the daemon, on the front, until it is told to end. `work` is not dropped: whoever calls this
/// ends the process then.
pub(crate) async fn run(
    config: Config,
    work: Runtime,
    program: Program,
    heir: Option<Heir>,
    passed: Option<std::os::unix::net::UnixListener>,
) -> Result<()> {
    let work = Work(Some(work));
    let mut signals = Signals::new()?;
    let mut socket = passed.map_or(server::Socket::None, server::Socket::Passed);
    if let Some(heir) = &heir {
        if let Err(e) = check(&config) {
            heir.refuse(&e.chain());
            return Err(e);
        }
        let given = tokio::select! {
            given = heir.wait(&config) => given?,
            () = signals.ends.told() => return Ok(()),
        };
        let Some((name, given)) = given else {
            info!("not needed as a successor");
            return Ok(());
        };
        socket = server::Socket::Given(name, given);
    }
    let serving = tokio::select! {
        done = work.spawn(start(config, socket)) => done?,
        () = signals.ends.told() => return Ok(()),
    };
    let listener = serving.listener.try_clone().and_then(UnixListener::from_std);
    let listener = listener.map_err(Error::file("listen at", &serving.node.config.listen))?;
    let (stages, connections) = (Stages::new(), Count::default());
    let server = Server::new(Arc::clone(&serving.node), stages.seen(), connections.clone());
    let accepting = Attached(tokio::spawn(server.serve(listener)));
    server::announce(&serving.node.config.listen);
    notify("READY=1");
    let (listen, lock) = (&serving.node.config.listen, serving.node.paths.run.join("lock"));
    let fed = feed_watchdog(listen.clone(), serving.lock.metadata(), lock);
    let fed = Attached(tokio::spawn(fed));
    let successor = succeeded(&mut signals, &program, &serving.node, heir).await;
    // Whoever connects from here on waits in the socket for the next one.
    drop((accepting, fed));
    let mut done = Ok(());
    if let Some(successor) = successor {
        stages.set(Stage::HandingOver);
        done = hand_over(&mut signals, serving, work, successor).await;
    } else {
        notify("STOPPING=1");
    }
    stages.set(Stage::Ending);
    let _ = tokio::time::timeout(FLUSH, connections.none()).await;
    done
}

/// Waits until there is a successor that can serve; `None`: criod is told to end.
async fn succeeded(
    signals: &mut Signals,
    program: &Program,
    node: &Node,
    mut heir: Option<Heir>,
) -> Option<Candidate> {
    let mut candidate: Option<Candidate> = None;
    loop {
        let again = tokio::select! {
            () = signals.ends.told() => return None,
            _ = signals.hangup.recv() => true,
            again = Heir::again(&mut heir) => again,
            checked = Candidate::checked(&mut candidate, &node.config) => match checked {
                Ok(()) => return candidate,
                Err(e) => {
                    stays(&e);
                    candidate = None;
                    false
                }
            },
        };
        if again {
            info!("reload: starting a successor");
            notify("RELOADING=1");
            // One that is there already may have read what has changed since.
            drop(candidate.take());
            match Candidate::start(program) {
                Ok(started) => candidate = Some(started),
                Err(e) => stays(&e),
            }
        }
    }
}

/// A reload has failed.
fn stays(e: &Error) {
    error!("reload: {}; this criod goes on serving as it is", e.chain());
    notify("READY=1");
}

/// Lets go of everything but the ExecSync calls in flight, and returns when they have ended, or when
/// criod is to end.
async fn hand_over(
    signals: &mut Signals,
    serving: Serving,
    work: Work,
    mut successor: Candidate,
) -> Result<()> {
    let Serving { node, lock: own, listener } = serving;
    node.leaving.store(true, Ordering::SeqCst);
    node.network.leave();
    // Work that is cut where it waits for a clock or a socket is cut by a panic.
    std::panic::set_hook(Box::new(|panic| debug!("reload: work is cut: {panic}")));
    let stopped = tokio::select! {
        stopped = work.end() => stopped,
        () = signals.ends.told() => {
            notify("STOPPING=1");
            return Ok(());
        }
    };
    drop(std::panic::take_hook());
    let relaying = relay_lock(&node.paths, FlockArg::LockSharedNonblock);
    if stopped {
        node.store.let_go();
        drop(own);
    } else {
        warn!("reload: a thread does not end: ExecSync calls in flight are given up");
    }
    // In this order: whoever is not the main process has no say.
    notify(&format!("MAINPID={}", successor.pid()));
    let name = server::file_of(&node.config.listen).unwrap_or_default();
    successor
        .go(&name, listener.as_fd())
        .map_err(Error::system("hand over to a successor that could serve"))?;
    drop(listener);
    info!(pid = successor.pid(), calls = node.relays.now(), "reload: the successor serves");
    if stopped {
        tokio::select! {
            () = node.relays.none() => {}
            () = signals.ends.told() => {}
            // For as long as criod is here.
            () = hand_on(&mut signals.hangup, &successor) => {}
        }
    }
    drop(relaying);
    Ok(())
}

/// Hands every SIGHUP on.
async fn hand_on(hangup: &mut Signal, successor: &Candidate) {
    while hangup.recv().await.is_some() {
        successor.again();
    }
}

/// Says, as long as it is held shared, that a criod relays commands whose output lies in files; taken
/// exclusively, that none does.
fn relay_lock(paths: &Paths, how: FlockArg) -> Option<Flock<File>> {
    let path = paths.run.join("relays.lock");
    // no step: there is nothing in it.
    let file = OpenOptions::new().create(true).append(true).open(path).ok()?;
    Flock::lock(file, how).ok()
}

/// Removes the output of commands that a criod before still relayed, once it does no more.
async fn forget_output(node: Arc<Node>) {
    while on_disk(|| relay_lock(&node.paths, FlockArg::LockExclusiveNonblock)).is_none() {
        tokio::time::sleep(RELAYS).await;
    }
    for path in lock(&node.output_of_before).take().unwrap_or_default() {
        // no step: as in `recover`, where it is one; what is left is found again.
        let _ = std::fs::remove_file(path);
    }
}

/// From the configuration to a node that is ready to be served.
async fn start(config: Config, socket: server::Socket) -> Result<Serving> {
    check(&config)?;
    let (node, streaming, lock) = build(config).await?;
    recover::load(&node).await?;
    let listener = server::listen(&node.config.listen, &node.keeper, socket).await?;
    recover::resume(&node).await;
    // Asked ahead, so that the first Status need not wait.
    let asked = Arc::clone(&node);
    tokio::spawn(async move { asked.all_features().await });
    let confined = Arc::clone(&node);
    tokio::task::spawn_blocking(move || confined.confine.prepare(&confined.config));
    tokio::spawn(crate::stats::run(Arc::clone(&node)));
    tokio::spawn(streaming::serve(Arc::clone(&node), streaming));
    tokio::spawn(crate::upgrade::run(Arc::clone(&node)));
    tokio::spawn(forget_output(Arc::clone(&node)));
    Ok(Serving { node, lock, listener })
}

/// What can be said of a configuration before anything is touched.
fn check(config: &Config) -> Result<()> {
    if !config.storage_driver.is_empty() && config.storage_driver != "overlay" {
        let driver = &config.storage_driver;
        return Err(Error::unsupported(format!("storage_driver {driver:?} is not supported yet")));
    }
    crate::files::check(config)?;
    let monitor = config.monitor_binary();
    let (pause, stream) = (beside(&monitor, "criod-pause"), beside(&monitor, "criod-stream"));
    for program in [&config.keeper_binary(), &monitor, &pause, &stream] {
        if !program.exists() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::file("find the program", program)(missing));
        }
    }
    Ok(())
}

async fn build(config: Config) -> Result<(Arc<Node>, TcpListener, Flock<File>)> {
    if config.cgroup_manager == CgroupManager::Systemd {
        warn!("cgroup_manager = \"systemd\" is not supported yet: cgroupfs is used");
    }
    let paths = Paths { root: config.root.clone(), run: config.runroot.clone() };
    for dir in [
        paths.pods(),
        paths.containers(),
        paths.root.join("cni"),
        paths.run.join("containers"),
        paths.run.join("ns"),
        paths.empty().join("diff"),
    ] {
        step!("start: make folder", std::fs::create_dir_all(&dir))
            .map_err(Error::file("create", &dir))?;
    }
    // The sockets in it are for root alone.
    userns::mode(&paths.run, 0o700)?;
    let lock = own(&paths)?;
    let relays = match relay_lock(&paths, FlockArg::LockExclusiveNonblock) {
        Some(_) => None,
        None => Some(Vec::new()),
    };
    let hierarchy = cgroup::Hierarchy::detect().map_err(failed(MONITORS))?;
    let boot_id = sys::clock::boot_id().map_err(Error::system("read the boot id"))?;
    let mut options = storage::Options::default();
    options.boot_id = Some(boot_id.clone());
    let open = || storage::Store::open(&paths.root, options.clone());
    let held = |e: &storage::Error| matches!(e, storage::Error::Locked { .. });
    let store = once_free(open, held).map_err(|source| Kind::Storage {
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
        Streams::open(&config, &paths.run, stream_program, group, &keeper).await?;
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
        work: tokio::runtime::Handle::current(),
        leaving: AtomicBool::new(false),
        relays: Count::default(),
        output_of_before: std::sync::Mutex::new(relays),
        config,
        paths,
    };
    Ok((Arc::new(node), streaming, lock))
}

/// How long the locks on runroot and the store may still be held by what a dead criod left.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Takes what a dead criod may hold for a moment longer: until the last of its threads has closed what
/// it had open (fanotify's takes a while), and what it had just forked runs; the one goes before
/// the other.
fn once_free<T, E>(
    mut take: impl FnMut() -> Result<T, E>,
    held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let began = Instant::now();
    loop {
        match take() {
            Err(e) if held(&e) && began.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            taken => return taken,
        }
    }
}

/// Takes runroot for this criod and for this root: what lies in the one belongs to records in the
/// other, and would be taken for left over by any other pair.
fn own(paths: &Paths) -> Result<Flock<File>> {
    let path = paths.run.join("lock");
    let take = || {
        // no step: whether it is there says nothing.
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e.into())
    };
    let held = |e: &std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
    let lock = once_free(take, held).map_err(|e| match held(&e) {
        true => Error::precondition(format!("another criod uses {}", paths.run.display())),
        false => Error::file("lock", &path)(e),
    })?;
    let of_root = paths.root.join("id");
    let id = match std::fs::read_to_string(&of_root) {
        Ok(id) => id,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let id = new_id()?;
            step!("start: write id of root", std::fs::write(&of_root, &id))
                .map_err(Error::file("write", &of_root))?;
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
            step!("start: write id of root into runroot", std::fs::write(&of_run, &id))
                .map_err(Error::file("write", &of_run))?;
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
