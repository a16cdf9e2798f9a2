//! What is left over, by whatever cause, found and removed without a limit of tries.
//!
//! ```text
//! every second   records that are Removing ────────────────┐
//!                pods of another boot that have addresses ──┤   each thing by a task of its own,
//! at a start,    what lies in criod's places under an id ───┼─▶ so that one that hangs holds up
//! every 10 s     that no pod or container has ([`orphan`]) ─┤   no other: 1 s, 2 s … 60 s apart,
//! at a start     what CNI plugins hold for nobody (GC) ─────┘   until it is gone
//!                host ports of nobody
//! every 10 s     tokens that are past their time, trees that could not be removed
//! every hour     layers and content that no image and no container needs
//! ```
//! *Nothing that is being made is taken for left over:* an id is among those that are known before
//! its first effect, and ids are random, so they come once. What is there is listed first, and what
//! is known looked at afterwards. So what is found and not known belongs to what has ended.
//!
//! *Nothing of others is touched:* criod knows its own by the place (folders below root and runroot, its
//! cache of CNI results, what it left at the keeper) and by the form of the name, and elsewhere (cgroups)
//! by an id that was found in such a place.

mod orphan;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use tracing::{info, warn};

use crate::error::{Kind, Result};
use crate::node::{Node, blocking, lock};
use crate::record::{ContainerState, PodState};

/// Between rounds.
const ROUND: Duration = Duration::from_secs(1);
/// Between attempts to take one thing away: at first, and at most.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Between looks at all places.
const SWEEP: Duration = Duration::from_secs(10);
/// What has not been found for so long is gone.
const FORGET: Duration = Duration::from_secs(30);
/// When layers that nothing needs go: what a pull that was cut short has unpacked is for its
/// repetition.
const COLLECT: Duration = Duration::from_secs(3600);

/// Something that is left over and not gone yet.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outstanding {
    pub(crate) what: String,
    /// When it was found: nanoseconds since the Unix epoch.
    pub(crate) since: i64,
    pub(crate) tries: u64,
    /// Why it is not gone; empty: an attempt is under way.
    pub(crate) problem: String,
}

#[derive(Debug)]
struct Leftover {
    shown: Outstanding,
    busy: bool,
    pause: Duration,
    next: Instant,
    /// When it was found last.
    seen: Instant,
}

/// All that is outstanding.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    all: Mutex<BTreeMap<String, Leftover>>,
    /// The plugins have been asked what they hold for nobody.
    collected: AtomicBool,
}

impl Leftovers {
    /// What is outstanding now, in a fixed order.
    pub(crate) fn outstanding(&self) -> Vec<Outstanding> {
        lock(&self.all).values().map(|l| l.shown.clone()).collect()
    }

    /// Begins an attempt, unless one is under way or it is too early.
    fn begin(&self, what: &str) -> bool {
        let mut all = lock(&self.all);
        let now = Instant::now();
        let leftover = all.entry(what.to_owned()).or_insert_with(|| Leftover {
            shown: Outstanding {
                what: what.to_owned(),
                since: sys::clock::realtime(),
                tries: 0,
                problem: String::new(),
            },
            busy: false,
            pause: FIRST,
            next: now,
            seen: now,
        });
        leftover.seen = now;
        if leftover.busy || leftover.next > now {
            return false;
        }
        leftover.busy = true;
        leftover.shown.tries += 1;
        true
    }

    fn end(&self, what: &str, done: &Result<()>) {
        let mut all = lock(&self.all);
        let Some(leftover) = all.get_mut(what) else { return };
        match done {
            Ok(()) => drop(all.remove(what)),
            Err(e) => {
                leftover.busy = false;
                leftover.shown.problem = e.chain();
                leftover.next = Instant::now() + leftover.pause;
                leftover.pause = (leftover.pause * 2).min(LONGEST);
            }
        }
    }

    fn forget(&self) {
        lock(&self.all).retain(|_, l| l.busy || l.seen.elapsed() < FORGET.max(l.pause * 2));
    }
}

impl Node {
    /// What is left over and not gone yet, and whose records cannot be read, for people.
    pub(crate) fn outstanding(&self) -> serde_json::Value {
        let mut unreadable = Vec::new();
        for pod in self.all_pods() {
            if let Some(problem) = pod.record.problem() {
                unreadable.push(json!({ "pod": pod.id, "problem": problem }));
            }
        }
        for container in self.all_containers() {
            if let Some(problem) = container.record.problem() {
                unreadable.push(json!({ "container": container.id, "problem": problem }));
            }
        }
        json!({ "leftovers": self.leftovers.outstanding(), "unreadable": unreadable })
    }
}

/// Takes up what a task of its own is to take away.
fn take_up(
    node: &Arc<Node>,
    what: String,
    work: impl Future<Output = Result<()>> + Send + 'static,
) {
    if !node.leftovers.begin(&what) {
        return;
    }
    let node = Arc::clone(node);
    tokio::spawn(async move {
        let done = tokio::spawn(work).await.unwrap_or_else(|_| Err(Kind::Panicked.into()));
        if let Err(e) = &done {
            warn!("{what}: still not gone: {}", e.chain());
        }
        node.leftovers.end(&what, &done);
    });
}

/// Takes away what is left over, for as long as criod lives.
pub(crate) async fn run(node: Arc<Node>) {
    let ports = Arc::clone(&node);
    tokio::spawn(async move { ports.network.settle_ports().await });
    let mut swept: Option<Instant> = None;
    let mut collected = Instant::now();
    loop {
        records(&node);
        if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            sweep(&node).await;
            swept = Some(Instant::now());
        }
        if collected.elapsed() >= COLLECT {
            collect(&node).await;
            collected = Instant::now();
        }
        node.leftovers.forget();
        tokio::time::sleep(ROUND).await;
    }
}

/// What records say is to be taken away.
fn records(node: &Arc<Node>) {
    for container in node.all_containers() {
        container.record.catch_up();
        if container.record.get().state == ContainerState::Removing {
            let (own, what) = (Arc::clone(node), format!("container {}", container.id));
            take_up(node, what, async move { own.remove_this(&container).await });
        }
    }
    for pod in node.all_pods() {
        pod.record.catch_up();
        let record = pod.record.get();
        let own = Arc::clone(node);
        if record.state == PodState::Removing {
            let what = format!("pod {}", pod.id);
            take_up(node, what, async move { own.take_pod_away(&pod).await });
        } else if record.attached && record.boot_id != node.boot_id {
            let what = format!("network of pod {}, which is of an earlier boot", pod.id);
            take_up(node, what, async move { own.return_network(&pod).await });
        }
    }
}

/// Looks at all places.
async fn sweep(node: &Arc<Node>) {
    match orphan::find(node).await {
        Ok(found) => {
            for id in found {
                let (own, what) = (Arc::clone(node), format!("what is left of {id}"));
                take_up(node, what, async move { orphan::remove(&own, &id).await });
            }
        }
        Err(e) => warn!("looking for what is left over: {}", e.chain()),
    }
    let own = Arc::clone(node);
    let files = blocking(move || {
        own.streams.forget_late();
        own.store.sweep().map_err(|source| {
            let id = "all images".to_owned();
            Kind::Storage { id, action: "remove what is left", source }.into()
        })
    });
    if let Err(e) = files.await {
        warn!("{}", e.chain());
    }
    if !node.leftovers.collected.load(Ordering::SeqCst) {
        let own = Arc::clone(node);
        take_up(node, "what CNI plugins hold for nobody".to_owned(), async move {
            let asked = own.network.collect(|| attached(&own)).await?;
            own.leftovers.collected.fetch_or(asked, Ordering::SeqCst);
            Ok(())
        });
    }
}

/// Pods that may be attached to a network.
fn attached(node: &Node) -> Vec<String> {
    let pods = node.all_pods();
    pods.iter().filter(|p| p.record.get().attached).map(|p| p.id.clone()).collect()
}

/// Removes layers and content that nothing needs.
async fn collect(node: &Arc<Node>) {
    // One whose record cannot be read may need any.
    if node.all_containers().iter().any(|c| node.of_unknown_image(c)) {
        return;
    }
    match node.images.collect_garbage().await {
        Ok(c) if c.layers + c.content == 0 => {}
        Ok(c) => info!(layers = c.layers, content = c.content, "what no image needs is removed"),
        Err(e) => warn!("{}", crate::error::chain(&e)),
    }
}

/// Names in a folder; none where there is no such folder.
pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_and_shown_until_it_is_gone() {
        let all = Leftovers::default();
        assert!(all.begin("x"));
        assert!(!all.begin("x"), "one attempt at a time");
        all.end("x", &Err(Kind::Panicked.into()));
        let shown = all.outstanding();
        assert_eq!((shown.len(), shown[0].tries), (1, 1));
        assert!(shown[0].problem.contains("panic"), "{shown:?}");
        assert!(!all.begin("x"), "not at once");
        all.forget();
        lock(&all.all).get_mut("x").unwrap().next = Instant::now();
        assert!(all.begin("x"));
        all.end("x", &Ok(()));
        assert!(all.outstanding().is_empty());
    }

    #[test]
    fn pauses_grow_to_a_limit_and_attempts_have_none() {
        let all = Leftovers::default();
        for tries in 1..=100 {
            assert!(all.begin("x"));
            all.end("x", &Err(Kind::Panicked.into()));
            let mut held = lock(&all.all);
            let one = held.get_mut("x").unwrap();
            assert_eq!(one.shown.tries, tries);
            assert!(one.pause <= LONGEST);
            one.next = Instant::now();
        }
    }
}
