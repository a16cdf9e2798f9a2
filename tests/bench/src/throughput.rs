//! How fast a container's output gets from its pipe to its log: lines of 100 bytes, as many as
//! make so many MiB, until the last of them is in the log.

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

/// Measures both, three times in turn.
pub(crate) fn run(mib: usize) {
    let version = conmon::version();
    let keeper = Keeper::on("/dev/shm");
    let lines = (mib << 20) / LINE;
    let text = "x".repeat(LINE - 1);
    let script = format!(
        "while [ ! -e /go ]; do usleep 10000; done; yes {text} | head -c {}; exec sleep 100000",
        lines * LINE
    );
    let rate = |mut times: Vec<Duration>| {
        times.sort_unstable();
        (lines * LINE) as f64 / times[1].as_secs_f64() / f64::from(1 << 20)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..3 {
        let c = Container::new(&keeper, &script, &Options::default());
        block_on(async {
            let client = c.client().await;
            client.create(limit(), &CreateRequest::new()).await.unwrap();
            client.start(limit(), &StartRequest::new()).await.unwrap();
        });
        let go = c.dir.join("bundle/rootfs/go");
        fs::write(&go, "").unwrap();
        ours.push(complete(&c.log, lines, Instant::now()));
        block_on(async { c.client().await.delete(limit(), &DeleteRequest::new()).await.unwrap() });
        fs::remove_file(&c.log).unwrap();
        fs::remove_file(&go).unwrap();

        let id = format!("conmon-{}-{n}", std::process::id());
        let spec = c.dir.join("bundle/config.json");
        let changed = fs::read_to_string(&spec).unwrap().replace(&c.id, &id);
        fs::write(&spec, changed).unwrap();
        let other = Conmon::start(&keeper.dir.path().join(&id), &c.dir.join("bundle"));
        fs::write(&go, "").unwrap();
        theirs.push(complete(&other.log, lines, Instant::now()));
        fs::remove_file(&other.log).unwrap();
    }
    let (ours, theirs) = (rate(ours), rate(theirs));
    println!("{mib} MiB of {LINE}-byte lines, pipe to log on tmpfs, MiB/s (median of 3)");
    println!("criod-monitor   {ours:>8.0}");
    println!("conmon          {theirs:>8.0}   ({version})");
    println!("factor          {:>8.1}", ours / theirs);
}
