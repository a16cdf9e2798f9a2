//! A node under load while everything that can fail does.
//!
//! ```text
//! chaos [--seconds 120] [--pods 40] [--seed N]
//!
//! warm-up        workers run pods, exec, rotate logs, stop, remove; an image comes and goes; nothing
//!                fails; criod's memory is taken
//! trouble        the same load
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
/// By how many hundredths criod's memory may be more at the end than it was at the beginning, and how
/// many kB of it are an allocator's whim.
const GROWTH: u64 = 10;
const WHIM: u64 = 2048;

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
    // Each as long as the other, by a criod that has just been started: what an allocator keeps of
    // a load is no leak.
    let calm = Duration::from_secs(args.seconds / 6);
    load.during(|| std::thread::sleep(calm));
    let before = memory(&mut criod);
    let trouble = Duration::from_secs(args.seconds).saturating_sub(2 * calm);
    let mut troubles = Troubles { criod: &mut criod, weather: &weather, proxy: &proxy, tally };
    load.during(|| {
        troubles.run(trouble, args.seed);
        std::thread::sleep(calm);
    });
    let after = memory(&mut criod);
    println!("criod's memory: {before} kB before, {after} kB after");
    tally.check(
        "criod's memory is where it began",
        after <= before + before * GROWTH / 100 + WHIM,
        || format!("{before} kB before, {after} kB after"),
    );
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

/// What criod has of its own, in kB, once it has come to rest.
fn memory(criod: &mut Criod) -> u64 {
    eventually("criod comes to rest", || criod.pods().is_empty().then_some(()));
    let status = std::fs::read_to_string(format!("/proc/{}/status", criod.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
