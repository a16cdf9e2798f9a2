//! The node: everything that criod knows, and the indexes over it.
//!
//! ```text
//!            names ──┐
//!   lookup ──▶ pods ─┼─▶ Pod { record, op }          record: read by anyone, at any time
//!              containers ▶ Container { record, op, monitor, ended }    op: one change at a time
//! ```
//! Lists and status calls read records and wait for nobody. What changes a pod or container holds
//! its `op`; stopping does not hold it while it waits. Operations that clients repeat are joined
//! ([`Ops`]).

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use criod_config::Config;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::watch;

use crate::error::{Error, Kind, Result};
use crate::keeper::Keeper;
use crate::monitor::Monitor;
use crate::network::Network;
use crate::record::{self, ContainerRecord, ContainerState, PodRecord, PodState};

/// Takes a lock whose holder leaves nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value that is read often and replaced whole.
#[derive(Debug)]
struct Cell<T>(RwLock<Arc<T>>);

impl<T> Cell<T> {
    fn new(value: T) -> Cell<T> {
        Cell(RwLock::new(Arc::new(value)))
    }

    fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, value: T) -> Arc<T> {
        self.put(Arc::new(value))
    }

    fn put(&self, value: Arc<T>) -> Arc<T> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&value);
        value
    }
}

/// A pod sandbox.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) record: Kept<PodRecord>,
    pub(crate) op: tokio::sync::Mutex<()>,
    pub(crate) told: crate::events::Told,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) record: Kept<ContainerRecord>,
    pub(crate) op: tokio::sync::Mutex<()>,
    pub(crate) monitor: Monitor,
    /// True once the container has ended and its record says so.
    pub(crate) ended: watch::Sender<bool>,
    pub(crate) told: crate::events::Told,
    pub(crate) layer: crate::stats::Layer,
}

/// How surely a changed record must be on disk before the change holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Save {
    /// Even after a power loss.
    Durable,
    /// After a restart.
    Now,
    /// As soon as the disk takes it: a step towards less, which must not fail for want of space.
    Soon,
}

/// A record in memory and on disk.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    cell: Cell<T>,
    dir: PathBuf,
    /// Held by whoever changes it.
    disk: Mutex<Disk>,
    /// Why the one on disk cannot be read: it is left as it is, and changes are in memory alone.
    problem: Option<String>,
}

#[derive(Debug, Default)]
struct Disk {
    /// It does not have the last change.
    behind: bool,
    /// The folder is being removed, or has been: nothing may bring it back.
    gone: bool,
}

impl<T: Clone + serde::Serialize> Kept<T> {
    fn new(record: T, dir: PathBuf, problem: Option<String>) -> Kept<T> {
        Kept { cell: Cell::new(record), dir, disk: Mutex::default(), problem }
    }

    /// Why the record on disk cannot be read; `None`: it can.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    pub(crate) fn get(&self) -> Arc<T> {
        self.cell.get()
    }

    pub(crate) fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// Changes the record. With [`Save::Soon`] the change holds in any case.
    pub(crate) fn update(&self, save: Save, change: impl FnOnce(&mut T)) -> Result<Arc<T>> {
        on_disk(|| {
            let mut disk = lock(&self.disk);
            let mut next = (*self.cell.get()).clone();
            change(&mut next);
            // A step towards less holds from here on, however long the disk takes.
            let next = if save == Save::Soon { self.cell.set(next) } else { Arc::new(next) };
            if !disk.gone && self.problem.is_none() {
                match record::save(&self.dir, &*next, save == Save::Durable) {
                    Ok(()) => disk.behind = false,
                    Err(e) if save == Save::Soon => {
                        tracing::warn!("will be written later: {}", e.chain());
                        disk.behind = true;
                    }
                    Err(e) => return Err(e),
                }
            }
            Ok(self.cell.put(next))
        })
    }

    /// Changes the record in memory alone.
    pub(crate) fn note(&self, change: impl FnOnce(&mut T)) {
        on_disk(|| {
            let _disk = lock(&self.disk);
            let mut next = (*self.cell.get()).clone();
            change(&mut next);
            self.cell.set(next);
        });
    }

    /// Writes what the disk does not have yet.
    pub(crate) fn catch_up(&self) {
        on_disk(|| {
            let mut disk = lock(&self.disk);
            if disk.behind && !disk.gone && record::save(&self.dir, &*self.get(), false).is_ok() {
                disk.behind = false;
            }
        });
    }

    /// From here on nothing is written: the folder is about to be removed.
    pub(crate) fn end(&self) {
        lock(&self.disk).gone = true;
    }
}

/// Does what may wait for a disk where it holds up nobody else.
pub(crate) fn on_disk<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

type Joined<T> = Shared<BoxFuture<'static, Result<T>>>;

/// Operations in flight, by key. A repeated one joins; a caller that goes away ends nothing.
#[derive(Debug)]
pub(crate) struct Ops<T: Clone>(Mutex<HashMap<String, Joined<T>>>);

impl<T: Clone> Default for Ops<T> {
    fn default() -> Self {
        Ops(Mutex::default())
    }
}

impl<T: Clone + Send + Sync + 'static> Ops<T> {
    /// Joins the operation of this key, or begins it.
    pub(crate) async fn join<F>(self: &Arc<Self>, key: &str, begin: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let joined = {
            let mut running = lock(&self.0);
            match running.get(key) {
                Some(joined) => joined.clone(),
                None => {
                    let (ops, own) = (Arc::clone(self), key.to_owned());
                    let operation = begin();
                    let task = tokio::spawn(async move {
                        let done = std::panic::AssertUnwindSafe(operation).catch_unwind().await;
                        lock(&ops.0).remove(&own);
                        done.unwrap_or_else(|_| Err(Kind::Panicked.into()))
                    });
                    let joined =
                        async move { task.await.unwrap_or_else(|_| Err(Kind::Panicked.into())) }
                            .boxed()
                            .shared();
                    running.insert(key.to_owned(), joined.clone());
                    joined
                }
            }
        };
        joined.await
    }
}

/// Where things are.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub(crate) root: PathBuf,
    pub(crate) run: PathBuf,
}

impl Paths {
    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub(crate) fn pod(&self, id: &str) -> PathBuf {
        self.pods().join(id)
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// A folder with an empty `diff`: the writable layer of what has none.
    pub(crate) fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// A pod's files that are bound into its containers.
    pub(crate) fn pod_run(&self, id: &str) -> PathBuf {
        self.run.join("pods").join(id)
    }

    pub(crate) fn namespaces(&self, id: &str) -> PathBuf {
        self.run.join("ns").join(id)
    }

    /// A monitor's folder.
    pub(crate) fn container_run(&self, id: &str) -> PathBuf {
        self.run.join("containers").join(id)
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.container_run(id).join("bundle")
    }

    pub(crate) fn rootfs(&self, id: &str) -> PathBuf {
        self.container(id).join("rootfs")
    }
}

/// All that criod knows.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) paths: Paths,
    pub(crate) boot_id: String,
    pub(crate) keeper: Keeper,
    pub(crate) store: Arc<storage::Store>,
    pub(crate) images: criod_images::Images,
    pub(crate) hierarchy: cgroup::Hierarchy,
    pub(crate) network: Network,
    pub(crate) monitor_program: PathBuf,
    pub(crate) pause_program: PathBuf,
    pub(crate) pods: RwLock<BTreeMap<String, Arc<Pod>>>,
    pub(crate) containers: RwLock<BTreeMap<String, Arc<Container>>>,
    pub(crate) creates: Arc<Ops<String>>,
    pub(crate) changes: Arc<Ops<()>>,
    /// The time that was given last; times of creation grow strictly.
    pub(crate) last_time: AtomicI64,
    pub(crate) cdi: cdi::Registry,
    pub(crate) stats: crate::stats::Statistics,
    pub(crate) events: crate::events::Events,
    pub(crate) streams: crate::streaming::Streams,
    pub(crate) runtimes: crate::features::Runtimes,
    pub(crate) confine: crate::confine::Confine,
    /// What is left over and not gone yet.
    pub(crate) leftovers: crate::reconcile::Leftovers,
    pub(crate) builds: crate::upgrade::Builds,
    /// The pool of threads that does the work, and ends before what the front waits for.
    pub(crate) work: tokio::runtime::Handle,
    /// The pool is being ended: what fails in it now may do so for that alone.
    pub(crate) leaving: std::sync::atomic::AtomicBool,
    /// ExecSync calls in flight.
    pub(crate) relays: crate::end::Count,
    /// Output that a criod before may still be reading.
    pub(crate) output_of_before: Mutex<Option<Vec<PathBuf>>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("paths", &self.paths).finish_non_exhaustive()
    }
}

fn by_id<T>(
    what: &'static str,
    all: &RwLock<BTreeMap<String, Arc<T>>>,
    id: &str,
) -> Result<Arc<T>> {
    if id.is_empty() {
        return Err(Error::invalid(format!("{what} id is empty")));
    }
    let all = all.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = all.get(id) {
        return Ok(Arc::clone(found));
    }
    let mut matching = all.range(id.to_owned()..).take_while(|(k, _)| k.starts_with(id));
    match (matching.next(), matching.next()) {
        (Some((_, found)), None) => Ok(Arc::clone(found)),
        (Some(_), Some(_)) => Err(Kind::Ambiguous { what, id: id.to_owned() }.into()),
        _ => Err(Error::not_found(what, id)),
    }
}

impl Node {
    /// A pod by its id or the unique start of it.
    pub(crate) fn pod(&self, id: &str) -> Result<Arc<Pod>> {
        by_id("pod sandbox", &self.pods, id)
    }

    /// A container by its id or the unique start of it.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        by_id("container", &self.containers, id)
    }

    pub(crate) fn has_container(&self, id: &str) -> bool {
        self.containers.read().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    pub(crate) fn has_pod(&self, id: &str) -> bool {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    pub(crate) fn all_pods(&self) -> Vec<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn all_containers(&self) -> Vec<Arc<Container>> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn containers_of(&self, pod: &str) -> Vec<Arc<Container>> {
        self.all_containers().into_iter().filter(|c| c.record.get().pod == pod).collect()
    }

    pub(crate) fn add_pod(&self, record: PodRecord) -> Arc<Pod> {
        self.put_pod(record, None)
    }

    /// Adds a pod, with the reason if its record on disk cannot be read.
    pub(crate) fn put_pod(&self, record: PodRecord, problem: Option<String>) -> Arc<Pod> {
        let pod = Arc::new(Pod {
            id: record.id.clone(),
            record: Kept::new(record.clone(), self.paths.pod(&record.id), problem),
            op: tokio::sync::Mutex::default(),
            told: crate::events::Told::default(),
        });
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.insert(pod.id.clone(), Arc::clone(&pod));
        pod
    }

    pub(crate) fn add_container(&self, record: ContainerRecord) -> Arc<Container> {
        self.put_container(record, None)
    }

    /// Adds a container, with the reason if its record on disk cannot be read.
    pub(crate) fn put_container(
        &self,
        record: ContainerRecord,
        problem: Option<String>,
    ) -> Arc<Container> {
        let id = record.id.clone();
        let ended = record.state == ContainerState::Exited;
        let container = Arc::new(Container {
            record: Kept::new(record, self.paths.container(&id), problem),
            monitor: Monitor::new(
                &id,
                self.paths.container_run(&id),
                self.monitor_program.clone(),
                self.keeper.clone(),
            ),
            id: id.clone(),
            op: tokio::sync::Mutex::default(),
            ended: watch::Sender::new(ended),
            told: crate::events::Told::default(),
            layer: crate::stats::Layer::default(),
        });
        let mut all = self.containers.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(id, Arc::clone(&container));
        container
    }

    /// Whether any image may be that of this container, as its record cannot be read.
    pub(crate) fn of_unknown_image(&self, container: &Container) -> bool {
        let record = container.record.get();
        container.record.problem().is_some()
            && record.image_id.is_empty()
            && !(record.infra && self.config.pause_image.is_empty())
    }

    pub(crate) fn forget_pod(&self, id: &str) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(crate) fn forget_container(&self, id: &str) {
        self.containers.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.store.release(id);
    }

    /// Now, but later than every time that was given before.
    pub(crate) fn new_time(&self) -> i64 {
        let now = sys::clock::realtime();
        let previous = self.last_time.fetch_max(now, Ordering::SeqCst);
        if previous < now {
            return now;
        }
        self.last_time.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The pod of these names, where one is listed or being made.
    pub(crate) fn pod_named(&self, key: &PodKey) -> Option<Arc<Pod>> {
        self.all_pods().into_iter().find(|p| {
            let record = p.record.get();
            record.state != PodState::Removing && pod_key(&record) == *key
        })
    }
}

/// What makes a pod sandbox the same as another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodKey {
    name: String,
    namespace: String,
    uid: String,
    attempt: u32,
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }
}

/// What makes this pod sandbox the same as another.
pub(crate) fn pod_key(record: &PodRecord) -> PodKey {
    let m = record.config.0.metadata.clone().unwrap_or_default();
    PodKey { name: m.name, namespace: m.namespace, uid: m.uid, attempt: m.attempt }
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    use std::io::Read;
    let mut bytes = [0u8; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(Error::file("read", "/dev/urandom"))?;
    Ok(bytes)
}

/// Sixty-four random hexadecimal digits.
pub(crate) fn new_id() -> Result<String> {
    Ok(random::<32>()?.iter().map(|b| format!("{b:02x}")).collect())
}

/// Runs blocking work on the pool for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Kind::Panicked.into()))
}
