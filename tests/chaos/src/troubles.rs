//! What goes wrong, and until when it explains an error.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use e2e::daemon::{Criod, chain, processes};
use e2e::random::Random;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::proxy::Proxy;
use crate::tally::Tally;

/// A plugin that is a bridge, and at times fails before or after its work, or takes its time.
const PLUGIN: &str = r#"#!/bin/sh
trouble() {
	echo '{"cniVersion":"1.0.0","code":11,"msg":"chaos","details":"come back later"}'
	exit 1
}
if [ -e DIR/trouble ]; then
	case "$CNI_COMMAND $(($(od -An -N1 -tu1 /dev/urandom) % 16))" in
	ADD\ 0 | DEL\ 0) trouble ;;
	ADD\ 1 | DEL\ 1) /usr/lib/cni/bridge >/dev/null; trouble ;;
	ADD\ 2 | DEL\ 2) sleep 5 ;;
	esac
fi
exec /usr/lib/cni/bridge
"#;

/// How long the disk stays full.
const FULL: Duration = Duration::from_secs(8);
/// How long an error may come after what explains it.
const AFTERMATH: Duration = Duration::from_secs(12);
/// A monitor that has just handed its spares to a new keeper is one that may be killed.
const HANDED_OVER: Duration = Duration::from_secs(2);

/// Has pods of a criod use the plugin.
pub(crate) fn plugin(criod: &Criod) {
    criod.script("plugins/e2e-chaos", PLUGIN);
    criod.network(&chain(&[json!({
        "type": "e2e-chaos", "bridge": "cni0", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": criod.dir.join("leases"),
            "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
        },
    })]));
}

/// What workers know of troubles.
#[derive(Debug)]
pub(crate) struct Weather {
    /// Odd while a criod is down or going; another number after each.
    criods: AtomicU64,
    /// Monitors that were killed, likewise.
    monitors: AtomicU64,
    /// The disk is full, or was a moment ago.
    full: Mutex<Option<Instant>>,
    ended: AtomicBool,
}

impl Weather {
    pub(crate) fn new() -> Weather {
        Weather {
            criods: AtomicU64::new(0),
            monitors: AtomicU64::new(0),
            full: Mutex::new(None),
            ended: AtomicBool::new(false),
        }
    }

    pub(crate) fn begin(&self) {
        self.ended.store(false, Ordering::SeqCst);
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// What there is at a moment, to be compared with what was.
    pub(crate) fn now(&self) -> Moment {
        Moment {
            criods: self.criods.load(Ordering::SeqCst),
            monitors: self.monitors.load(Ordering::SeqCst),
        }
    }

    /// A criod was down at some time since then.
    pub(crate) fn criod_died_since(&self, then: Moment) -> bool {
        then.criods % 2 == 1 || self.now().criods != then.criods
    }

    /// A monitor died since then, or is dying.
    pub(crate) fn monitor_died_since(&self, then: Moment) -> bool {
        then.monitors % 2 == 1 || self.now().monitors != then.monitors
    }

    /// The disk is full, or was not long ago.
    pub(crate) fn full(&self) -> bool {
        self.full.lock().unwrap().is_some_and(|until| Instant::now() < until)
    }
}

/// Numbers of deaths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    criods: u64,
    monitors: u64,
}

/// Who makes them.
pub(crate) struct Troubles<'a> {
    pub(crate) criod: &'a mut Criod,
    pub(crate) weather: &'a Weather,
    pub(crate) proxy: &'a Proxy,
    pub(crate) tally: &'a Tally,
}

impl Troubles<'_> {
    /// Makes trouble for so long, then sees to it that there is none.
    pub(crate) fn run(&mut self, time: Duration, seed: u64) {
        let mut random = Random::new(seed);
        let began = Instant::now();
        let trouble = self.criod.dir.join("trouble");
        std::fs::write(&trouble, "").unwrap();
        self.proxy.bad(true);
        let mut filled = false;
        while began.elapsed() < time {
            std::thread::sleep(Duration::from_millis(1000 + random.below(2500)));
            match random.below(10) {
                0..=2 => self.kill_criod(),
                3 => self.end_criod(),
                4..=5 => self.reload_criod(),
                6 => self.kill_keeper(),
                _ => self.kill_monitors(&mut random),
            }
            if !filled && began.elapsed() > time / 2 {
                filled = true;
                self.fill_the_disk();
            }
        }
        std::fs::remove_file(trouble).unwrap();
        self.proxy.bad(false);
        println!("{:6}  connections to the registry cut", self.proxy.cut());
        self.criod.ready();
    }

    /// A criod goes, another comes: calls between may be cut.
    fn replace_criod(&mut self, what: &str, replace: impl FnOnce(&mut Criod)) {
        self.weather.criods.fetch_add(1, Ordering::SeqCst);
        replace(self.criod);
        self.criod.ready();
        self.weather.criods.fetch_add(1, Ordering::SeqCst);
        self.tally.count(what);
    }

    fn kill_criod(&mut self) {
        self.replace_criod("criod killed", |criod| {
            criod.kill9();
            criod.launch();
        });
    }

    fn end_criod(&mut self) {
        self.replace_criod("criod ended with SIGTERM", |criod| {
            criod.terminate();
            criod.launch();
        });
    }

    fn reload_criod(&mut self) {
        let mut before = None;
        self.replace_criod("criod reloaded", |criod| before = Some(criod.reload()));
        // It may have commands to relay.
        if let Some(mut old) = before {
            old.wait();
        }
    }

    fn kill_keeper(&mut self) {
        self.criod.replace_keeper();
        std::thread::sleep(HANDED_OVER);
        self.tally.count("keepers killed");
    }

    fn kill_monitors(&mut self, random: &mut Random) {
        let dir = self.criod.dir.join("run/containers").to_string_lossy().into_owned();
        let all: Vec<i32> = processes(&dir)
            .into_iter()
            .filter(|(_, line)| line.contains("criod-monitor"))
            .map(|(pid, _)| pid)
            .collect();
        self.weather.monitors.fetch_add(1, Ordering::SeqCst);
        for _ in 0..=random.below(4) {
            let Some(pid) = all.get(random.index(all.len().max(1))) else { break };
            if kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok() {
                self.tally.count("monitors killed");
            }
        }
        // Calls of the dead ones end within this.
        std::thread::sleep(Duration::from_millis(300));
        self.weather.monitors.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes every block of the disk for a while; criod is killed meanwhile, too.
    fn fill_the_disk(&mut self) {
        use std::io::Write;
        *self.weather.full.lock().unwrap() = Some(Instant::now() + FULL + AFTERMATH);
        let path = self.criod.dir.join("root/logs/filler");
        let mut filler = std::fs::File::create(&path).unwrap();
        let began = Instant::now();
        let block = vec![0; 64 << 10];
        let mut killed = false;
        // What others free is taken, too.
        while began.elapsed() < FULL {
            while filler.write_all(&block).is_ok() {}
            std::thread::sleep(Duration::from_millis(20));
            if !killed && began.elapsed() > FULL / 2 {
                killed = true;
                self.kill_criod();
            }
        }
        std::fs::remove_file(path).unwrap();
        *self.weather.full.lock().unwrap() = Some(Instant::now() + AFTERMATH);
        self.tally.count("the disk filled");
    }
}
