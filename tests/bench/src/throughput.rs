//! How fast a container's output gets from its pipe to its log: lines of 100 bytes, as many as
//! make so many MiB, until the last of them is in the log; and what processor time that took the
//! monitor. The container only copies a file, so that it is not what is measured.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use api_monitor::monitor::{CreateRequest, DeleteRequest, StartRequest};
use e2e::monitor::{Container, Keeper, Options};
use ttrpc::context::{Context, with_duration};

use crate::block_on;
use crate::conmon::{self, Conmon};

/// Bytes of a line, its newline included.
const LINE: usize = 100;
/// What stands in front of a line in a log: conmon's times have an offset in place of the Z.
const PREFIX: usize = "2026-11-24T07:36:22.123456789Z stdout F ".len();

/// How often.
const ROUNDS: usize = 5;

fn limit() -> Context {
    with_duration(Duration::from_secs(60))
}

/// Waits until a log has all lines; returns the time since `began`.
fn complete(log: &Path, lines: usize, began: Instant) -> Duration {
    let enough = (lines * (LINE + PREFIX)) as u64;
    let end = began + Duration::from_secs(300);
    while fs::metadata(log).map_or(0, |m| m.len()) < enough {
        assert!(Instant::now() < end, "{} is not complete", log.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    began.elapsed()
}

/// Measures both in turn.
pub(crate) fn run(mib: usize) {
    let version = conmon::version();
    let keeper = Keeper::on("/dev/shm");
    let lines = (mib << 20) / LINE;
    let text = ("x".repeat(LINE - 1) + "\n").repeat(lines);
    let script = "while [ ! -e /go ]; do usleep 10000; done; cat /lines; exec sleep 100000";
    let rate = |mut times: Vec<Duration>| {
        times.sort_unstable();
        (lines * LINE) as f64 / times[times.len() / 2].as_secs_f64() / f64::from(1 << 20)
    };
    let (mut our_work, mut their_work) = (Vec::new(), Vec::new());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let c = Container::new(&keeper, script, &Options::default());
        block_on(async {
            let client = c.client().await;
            client.create(limit(), &CreateRequest::new()).await.unwrap();
            client.start(limit(), &StartRequest::new()).await.unwrap();
        });
        let go = c.dir.join("bundle/rootfs/go");
        fs::write(c.dir.join("bundle/rootfs/lines"), &text).unwrap();
        let before = worked(c.monitor);
        fs::write(&go, "").unwrap();
        ours.push(complete(&c.log, lines, Instant::now()));
        our_work.push(worked(c.monitor) - before);
        block_on(async { c.client().await.delete(limit(), &DeleteRequest::new()).await.unwrap() });
        fs::remove_file(&c.log).unwrap();
        fs::remove_file(&go).unwrap();

        let id = format!("conmon-{}-{n}", std::process::id());
        let spec = c.dir.join("bundle/config.json");
        let changed = fs::read_to_string(&spec).unwrap().replace(&c.id, &id);
        fs::write(&spec, changed).unwrap();
        let other = Conmon::start(&keeper.dir.path().join(&id), &c.dir.join("bundle"));
        let before = worked(other.pid);
        fs::write(&go, "").unwrap();
        theirs.push(complete(&other.log, lines, Instant::now()));
        their_work.push(worked(other.pid) - before);
        fs::remove_file(c.dir.join("bundle/rootfs/lines")).unwrap();
        fs::remove_file(&other.log).unwrap();
    }
    println!("{mib} MiB of {LINE}-byte lines, pipe to log on tmpfs (median of {ROUNDS})");
    println!("                   MiB/s   MiB per second of its processor time");
    let (ours, our_work) = (rate(ours), rate(our_work));
    let (theirs, their_work) = (rate(theirs), rate(their_work));
    println!("criod-monitor   {ours:>8.0}{our_work:>8.0}");
    println!("conmon          {theirs:>8.0}{their_work:>8.0}   ({version})");
    println!("factor          {:>8.1}{:>8.1}", ours / theirs, our_work / their_work);
}

/// Processor time of a process so far.
fn worked(pid: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text[text.rfind(')').unwrap()..].split(' ').collect();
    // Fields 14 and 15, in ticks of 10 ms; the one after the command is the third.
    let ticks: u64 = fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
