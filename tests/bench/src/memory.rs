//! Memory of a monitor beside that of a conmon: the same bundles, the same runtime, all running
//! at the same time.

use std::fs;
use std::path::Path;
use std::time::Duration;

use api_monitor::monitor::{CreateRequest, DeleteRequest, StartRequest};
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options};
use ttrpc::context::{Context, with_duration};

use crate::block_on;
use crate::conmon::{self, Conmon};

/// What each container runs: a little output, so that everything that writes a log has done so.
const SCRIPT: &str = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo line $i; done; \
                      echo err >&2; echo ready; exec sleep 100000";

fn limit() -> Context {
    with_duration(Duration::from_secs(60))
}

/// kB that are a process's own, and its share of all that it has.
fn memory(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |key: &str| -> u64 {
        let line = text.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (of("Private_Clean:") + of("Private_Dirty:"), of("Pss:"))
}

/// Median and maximum.
fn middle_and_most(mut all: Vec<u64>) -> (u64, u64) {
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() - 1])
}

/// Prints one row and returns the medians.
fn row(name: &str, pids: &[i32]) -> (u64, u64) {
    let all: Vec<_> = pids.iter().map(|pid| memory(*pid)).collect();
    let (private, most_private) = middle_and_most(all.iter().map(|m| m.0).collect());
    let (pss, most_pss) = middle_and_most(all.iter().map(|m| m.1).collect());
    let count = pids.len();
    println!("{name:<16}{count:>7}{private:>11}{most_private:>8}{pss:>11}{most_pss:>8}");
    (private, pss)
}

fn wait_for_log(log: &Path) {
    eventually("the last line is in the log", || {
        fs::read_to_string(log).is_ok_and(|t| t.contains("ready")).then_some(())
    });
}

/// Measures `count` of each. False: criod-monitor needs as much as conmon, or more.
pub(crate) fn run(count: usize) -> bool {
    let version = conmon::version();
    let keeper = Keeper::default();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..count {
        let c = Container::new(&keeper, SCRIPT, &Options::default());
        block_on(async {
            let client = c.client().await;
            client.create(limit(), &CreateRequest::new()).await.unwrap();
            client.start(limit(), &StartRequest::new()).await.unwrap();
        });
        wait_for_log(&c.log);
        // The same bundle, but for the name of its cgroup.
        let id = format!("conmon-{}-{n}", std::process::id());
        let bundle = keeper.dir.path().join(format!("bundle-{n}"));
        fs::create_dir_all(&bundle).unwrap();
        let spec = fs::read_to_string(c.dir.join("bundle/config.json")).unwrap();
        let rootfs = c.dir.join("bundle/rootfs");
        let spec = spec
            .replace(&c.id, &id)
            .replace("\"path\":\"rootfs\"", &format!("\"path\":{rootfs:?}"));
        fs::write(bundle.join("config.json"), spec).unwrap();
        let other = Conmon::start(&keeper.dir.path().join(&id), &bundle);
        wait_for_log(&other.log);
        ours.push(c);
        theirs.push(other);
    }
    println!("kB                           private                PSS");
    println!("{:<16}{:>7}{:>11}{:>8}{:>11}{:>8}", "", "count", "median", "max", "median", "max");
    let monitors: Vec<i32> = ours.iter().map(|c| c.monitor).collect();
    let (private, pss) = row("criod-monitor", &monitors);
    let conmons: Vec<i32> = theirs.iter().map(|c| c.pid).collect();
    let (their_private, their_pss) = row("conmon", &conmons);
    row("criod-keeper", &[keeper.pid()]);
    println!("({version})");
    if let Ok(n) = std::env::var("CRIOD_BENCH_HOLD") {
        // For a look at the processes.
        std::thread::sleep(Duration::from_secs(n.parse().unwrap_or(0)));
    }
    for c in &ours {
        block_on(async { c.client().await.delete(limit(), &DeleteRequest::new()).await.unwrap() });
    }
    let less = private < their_private && pss < their_pss;
    if !less {
        eprintln!("bench: criod-monitor's memory is not below conmon's");
    }
    less
}
