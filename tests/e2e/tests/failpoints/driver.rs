//! Runs a scenario again and again, with criod killed at other points each time.
//!
//! ```text
//! once:    operations ─▶ the points that each one reaches
//! rounds:  each operation with a kill at its next point ─▶ repeated if that cut it ─▶ settled
//!                 └ what only the next criod reached: the same kill, then one there
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use e2e::daemon::{Answer, Cri, Criod, Hit, Options, Point};

/// How often one operation may reach a point before only some of the times are looked at.
const MOST: usize = 4;
/// Every so many kills the same point kills the next criod, too.
const TWICE: usize = 6;

/// Points at which a criod was killed, by all scenarios.
static KILLED: Mutex<BTreeSet<Point>> = Mutex::new(BTreeSet::new());

/// The points at which a criod was killed.
pub(crate) fn killed() -> BTreeSet<Point> {
    KILLED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A criod was killed there.
pub(crate) fn note(point: Point) {
    KILLED.lock().unwrap_or_else(PoisonError::into_inner).insert(point);
}

/// Where criod is killed: the points, with how many times each is reached first.
type Kill = Vec<(usize, Point)>;

/// A criod, and what is to happen to it.
pub(crate) struct Driver {
    /// The criod.
    pub(crate) criod: Criod,
    /// Names what this round makes.
    pub(crate) round: String,
    scenario: &'static str,
    plan: HashMap<String, Kill>,
    deaths: usize,
    /// What each operation reached.
    seen: Vec<(String, Vec<Hit>)>,
    /// Points that are, or will be, killed at.
    known: BTreeSet<Point>,
    /// Kills of which the second is where only a criod after a kill comes.
    recoveries: BTreeMap<String, Vec<Kill>>,
    kills: usize,
    missed: usize,
}

impl Driver {
    /// One whose criod serves.
    pub(crate) fn start(
        scenario: &'static str,
        options: Options,
        before: impl Fn(&Criod),
    ) -> Driver {
        let images = options.images.clone();
        let mut criod = Criod::prepare(Options { failpoints: true, ..options });
        before(&criod);
        criod.launch();
        criod.ready();
        for image in ["test/busybox:1"].iter().chain(&images) {
            criod.pull(&format!("docker.io/{image}")).unwrap();
        }
        Driver {
            criod,
            round: String::new(),
            scenario,
            plan: HashMap::new(),
            deaths: 0,
            seen: Vec::new(),
            known: BTreeSet::new(),
            recoveries: BTreeMap::new(),
            kills: 0,
            missed: 0,
        }
    }

    /// Runs the scenario once for each point that an operation reaches: for the `part.0`-th of
    /// `part.1` parts of them.
    pub(crate) fn kill_everywhere(mut self, part: (usize, usize), scenario: impl Fn(&mut Driver)) {
        // What is made but once comes into the first round, what a criod learns but once into the
        // second.
        self.run("first".into(), HashMap::new(), &scenario);
        self.criod.restart();
        self.seen.clear();
        self.run("second".into(), HashMap::new(), &scenario);
        let seen = std::mem::take(&mut self.seen);
        let mut number = 0;
        let mut kills = BTreeMap::new();
        for (op, hits) in seen {
            let own: Vec<Kill> = times(&hits, &self.known)
                .into_iter()
                .map(|(n, point)| {
                    number += 1;
                    match number % TWICE {
                        0 => vec![(n, point.clone()), (1, point)],
                        _ => vec![(n, point)],
                    }
                })
                .collect();
            self.known.extend(own.iter().flatten().map(|(_, point)| point.clone()));
            let own: Vec<Kill> =
                own.into_iter().filter(|kill| share(&op, kill, part.1) == part.0).collect();
            kills.insert(op, own);
        }
        let totals: Vec<_> = kills.iter().map(|(op, own)| (op, own.len())).collect();
        eprintln!("{}: {totals:?}", self.scenario);
        self.rounds("round", &kills, &scenario);
        // They may lead to others yet.
        for depth in 0..3 {
            let recoveries = std::mem::take(&mut self.recoveries);
            if recoveries.is_empty() {
                break;
            }
            self.rounds(&format!("recovery{depth}-"), &recoveries, &scenario);
        }
        let (name, kills, missed) = (self.scenario, self.kills, self.missed);
        eprintln!("{name}, part {part:?}: {kills} kills, {missed} points not reached again");
        self.criod.finish();
    }

    fn rounds(
        &mut self,
        name: &str,
        kills: &BTreeMap<String, Vec<Kill>>,
        scenario: &impl Fn(&mut Driver),
    ) {
        let most = kills.values().map(Vec::len).max().unwrap_or(0);
        for round in 0..most {
            let own =
                |(op, all): (&String, &Vec<Kill>)| Some((op.clone(), all.get(round)?.clone()));
            let plan = kills.iter().filter_map(own).collect();
            self.run(format!("{name}{round}"), plan, scenario);
        }
    }

    fn run(&mut self, name: String, plan: HashMap<String, Kill>, scenario: &impl Fn(&mut Driver)) {
        let _told = Told(format!("{}, {name}: {plan:?}", self.scenario));
        self.round = name;
        self.plan = plan;
        scenario(self);
        self.criod.clean();
    }

    /// An operation: a call, repeated for as long as a kill cuts it, and only then.
    pub(crate) fn op<T: Send>(
        &mut self,
        op: &str,
        call: impl Fn(&Cri) -> Answer<T> + Sync,
    ) -> Answer<T> {
        let kill = self.plan.remove(op).unwrap_or_default();
        if !kill.is_empty() {
            self.criod.arm(&kill);
        }
        self.criod.hits();
        let before = self.deaths;
        let answer = loop {
            let deaths = self.deaths;
            let answer = self.watched(&call);
            // Its connections end before it does.
            while !kill.is_empty() && self.deaths - before < kill.len() - self.criod.armed() {
                self.look();
            }
            match answer {
                Err(_) if self.deaths != deaths => {}
                answer => break answer,
            }
        };
        if !kill.is_empty() {
            let reached = kill.len() - self.criod.armed();
            self.criod.arm(&[]);
            self.kills += reached;
            self.missed += kill.len() - reached;
            // Not reached for once, as what is at work at the same time was faster: again, later.
            if reached == 0 && !killed().contains(&kill[0].1) {
                self.recoveries.entry(op.to_owned()).or_default().push(kill.clone());
            }
            kill[..reached].iter().for_each(|(_, point)| note(point.clone()));
        }
        let mut hits = self.criod.hits();
        if self.deaths > before {
            self.settle();
            hits.extend(self.criod.hits());
            self.learn(op, &kill, &hits);
        }
        self.seen.push((op.to_owned(), hits));
        answer
    }

    /// What the criods after the first one reached that nobody has been killed at.
    fn learn(&mut self, op: &str, kill: &Kill, hits: &[Hit]) {
        let Some(first) = hits.first().map(|h| h.pid) else { return };
        for hit in hits.iter().filter(|h| h.pid != first) {
            if self.known.insert(hit.point.clone()) {
                let both = kill[..1].iter().cloned().chain([(1, hit.point.clone())]);
                self.recoveries.entry(op.to_owned()).or_default().push(both.collect());
            }
        }
    }

    /// Makes a call while whoever starts criod again looks on.
    fn watched<T: Send>(&mut self, call: &(impl Fn(&Cri) -> Answer<T> + Sync)) -> Answer<T> {
        let cri = self.criod.cri.clone();
        let answer = std::thread::scope(|scope| {
            let calling = scope.spawn(|| call(&cri));
            while !calling.is_finished() {
                self.look();
            }
            calling.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
        });
        self.look();
        answer
    }

    fn look(&mut self) {
        if self.criod.revive() {
            self.deaths += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    /// Waits until nothing is left of what a kill left half done.
    fn settle(&mut self) {
        let names = |dir: &Path| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        let root = self.criod.dir.join("root");
        let mut left = Vec::new();
        for _ in 0..2000 {
            let Ok(pods) = self.watched(&Cri::try_pods) else { continue };
            let containers = self.criod.containers();
            let known: BTreeSet<&str> = pods
                .iter()
                .map(|p| p.id.as_str())
                .chain(containers.iter().map(|c| c.id.as_str()))
                .collect();
            left = [root.join("pods"), root.join("containers")]
                .iter()
                .flat_map(|d| names(d))
                .collect();
            left.retain(|id| !known.contains(id.as_str()));
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(4));
        }
        panic!("not taken away: {left:?}\n{}", self.criod.said());
    }
}

/// Which of so many drivers does a kill, whatever else each of them has seen.
fn share(op: &str, kill: &Kill, parts: usize) -> usize {
    format!("{op} {:?}", kill[0]).bytes().map(usize::from).sum::<usize>() % parts
}

/// Each point that is reached, with which time of it; not every time of those that come often. After a
/// step all is as it is before the next one: that is looked at where the point is not known yet.
fn times(hits: &[Hit], known: &BTreeSet<Point>) -> Vec<(usize, Point)> {
    let mut totals: HashMap<&Point, usize> = HashMap::new();
    hits.iter().for_each(|hit| *totals.entry(&hit.point).or_default() += 1);
    let mut counts: HashMap<&Point, usize> = HashMap::new();
    let mut times: Vec<(usize, Point)> = Vec::new();
    for (number, hit) in hits.iter().enumerate() {
        let n = counts.entry(&hit.point).or_default();
        *n += 1;
        let total = totals[&hit.point];
        let same = hit.point.when == "after"
            && hits.get(number + 1).is_some_and(|next| next.point.when == "before")
            && (known.contains(&hit.point) || *n > 1);
        if !same && (total <= MOST || [1, 2, total / 2, total].contains(n)) {
            times.push((*n, hit.point.clone()));
        }
    }
    times
}

/// What is said of a round that fails.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {}", self.0);
        }
    }
}
