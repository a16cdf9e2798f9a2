//! A node under load while everything that can fail does.
//!
//! ```text
//! chaos [--seconds 120] [--pods 40] [--seed N]
//!
//! warm-up        each worker runs one pod; criod's memory is taken
//! trouble        workers run pods, exec, rotate logs, stop, remove; an image comes and goes
//!                  │ criod killed, ended, reloaded; monitors and the keeper killed     (troubles.rs)
//!                  │ CNI plugins fail and hang; the registry cuts connections; the disk fills
//! calm           the same load, nothing fails; criod's memory is taken again
//! end            everything removed: nothing may be left
//! ```
//! Each container writes numbered lines and says at its end how many they were: no log may lack one, or
//! have one twice. Each exit code is known before. Errors of calls are only allowed where a trouble
//! explains them; what failed is repeated, as the kubelet does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what a test cannot set up is a failure of that test"
)]

mod load;
mod proxy;
mod random;
mod tally;
mod troubles;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use e2e::daemon::{Cri, Criod, Options};
use e2e::eventually;

use crate::tally::Tally;
use crate::troubles::{Troubles, Weather};

/// KiB of the file system that holds images, layers and logs.
const ROOT: u64 = 400 << 10;
/// Of how many of criod's memory that of the end may be beyond that of the beginning.
const GROWTH: u64 = 10;

struct Args {
    seconds: u64,
    pods: usize,
    seed: u64,
}

fn args() -> Result<Args, String> {
    let mut args = Args { seconds: 120, pods: 40, seed: u64::from(std::process::id()) };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value: u64 = given
            .next()
            .and_then(|v| v.parse().ok())
            .ok_or(format!("{name}: a number is needed"))?;
        match name.as_str() {
            "--seconds" => args.seconds = value,
            "--pods" => args.pods = usize::try_from(value).map_err(|e| e.to_string())?,
            "--seed" => args.seed = value,
            _ => return Err(format!("unknown argument {name:?}")),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(text) => {
            eprintln!("chaos: {text}\nusage: chaos [--seconds N] [--pods N] [--seed N]");
            return ExitCode::from(64);
        }
    };
    println!("chaos: {} seconds, {} pods, seed {}", args.seconds, args.pods, args.seed);
    let tally = Tally::default();
    let ended = catch_unwind(AssertUnwindSafe(|| soak(&args, &tally)));
    if ended.is_err() {
        tally.fail("the end", "nothing is left behind".into());
    }
    tally.report()
}

fn soak(args: &Args, tally: &Tally) {
    let options = Options {
        images: vec!["test/layered:1"],
        small_root: Some(ROOT),
        // What the whole node would have is here for one folder.
        args: vec!["--log-level", "info"],
        ..Options::default()
    };
    let mut criod = Criod::prepare(options);
    // Logs lie on the disk that fills, too.
    criod.cri =
        Cri::new(criod.dir.join("criod.sock"), criod.dir.join("root/logs"), criod.tag.clone());
    let proxy = proxy::Proxy::start(&criod);
    troubles::plugin(&criod);
    criod.launch();
    criod.ready();
    criod.pull(e2e::daemon::BUSYBOX).unwrap();

    let weather = Weather::new();
    let load = load::Load {
        cri: criod.cri.clone(),
        weather: &weather,
        tally,
        seed: args.seed,
        pods: args.pods,
    };
    load.run(Until::Once);
    let before = memory(&mut criod);
    let trouble = Duration::from_secs(args.seconds * 5 / 6);
    let calm = Duration::from_secs(args.seconds).saturating_sub(trouble);
    let mut troubles = Troubles { criod: &mut criod, weather: &weather, proxy: &proxy, tally };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| load.run(Until::Told));
        let pulling = scope.spawn(|| load.pull());
        troubles.run(trouble, args.seed);
        std::thread::sleep(calm);
        weather.end();
        running.join().unwrap();
        pulling.join().unwrap();
    });
    let after = memory(&mut criod);
    println!("criod's memory: {before} kB before, {after} kB after");
    tally.check("criod's memory is where it began", after <= before + before / GROWTH, || {
        format!("{before} kB before, {after} kB after")
    });
    proxy.end();
    let failed = tally.failed();
    if failed > 0 {
        let kept = std::env::temp_dir().join("chaos-criod.log");
        let _ = std::fs::copy(criod.dir.join("criod.log"), &kept);
        println!("criod's log: {}", kept.display());
    }
    criod.finish();
    tally.pass("nothing is left behind");
}

/// When a worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// After one pod.
    Once,
    /// When the weather says so, and the pod at hand is gone.
    Told,
}

/// What criod has of its own, in kB, once it has come to rest.
fn memory(criod: &mut Criod) -> u64 {
    eventually("criod comes to rest", || criod.pods().is_empty().then_some(()));
    let status = std::fs::read_to_string(format!("/proc/{}/status", criod.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
