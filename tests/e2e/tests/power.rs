//! A loss of power at any moment of pulls and of containers' lives, and what damage of the disk does.
//!
//! ```text
//! record:  mkfs, mount, criod: pull, run, exit, stop, kill -9, remove, pull again …   (replay::Event)
//! replay:  a cut ─▶ the disk as it may be ─▶ mount ─▶ criod of another boot ─▶ held(), now and then tried()
//! ```
//! `CRIOD_POWER=all` replays every flush, several times with other blocks lost; `CRIOD_POWER_SEED`
//! is the first seed. Each cut is printed with its seed.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "power/damage.rs"]
mod damage;
#[path = "power/machine.rs"]
mod machine;
#[path = "power/promises.rs"]
mod promises;

use e2e::daemon::{Criod, EXITED, container};
use e2e::random::Random;
use e2e::replay::{Blocks, Event};
use machine::Machine;
use promises::{Promises, Said, Trees, held, tried};

/// Of several layers, with whatever a layer can hold.
const LAYERED: &str = "docker.io/test/layered:1";
/// Of one small layer.
const SINGLE: &str = "docker.io/test/single-1:1";
const BUSYBOX: &str = e2e::daemon::BUSYBOX;

/// A file system to try.
struct Kind {
    name: &'static str,
    mkfs: &'static [&'static str],
    options: &'static str,
    /// Bytes of its disk.
    size: u64,
    /// How many cuts are replayed unless all are.
    cuts: usize,
}

const EXT4: Kind = Kind {
    name: "ext4",
    mkfs: &["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
    // What nobody syncs reaches the disk by itself, soon.
    options: "commit=1",
    size: 96 << 20,
    cuts: 40,
};

const XFS: Kind =
    Kind { name: "xfs", mkfs: &["mkfs.xfs", "-q", "-K"], options: "", size: 320 << 20, cuts: 40 };

#[test]
fn ext4() {
    power_is_lost(&EXT4);
}

#[test]
fn xfs() {
    power_is_lost(&XFS);
}

fn power_is_lost(kind: &Kind) {
    let mut machine = Machine::new(&[LAYERED.trim_start_matches("docker.io/"), "test/single-1:1"]);
    let (base, events, trees) = record(&mut machine, kind);
    let flushes: Vec<usize> =
        (0..events.len()).filter(|n| matches!(events[*n], Event::Flush)).collect();
    let count = |what: fn(&Event<Said>) -> bool| events.iter().filter(|e| what(e)).count();
    println!(
        "{}: {} writes, {} flushes, {} things said",
        kind.name,
        count(|e| matches!(e, Event::Write(..))),
        flushes.len(),
        count(|e| matches!(e, Event::Said(_))),
    );
    assert!(flushes.len() > 20 && count(|e| matches!(e, Event::Said(_))) > 20);
    let all = std::env::var("CRIOD_POWER").is_ok_and(|v| v == "all");
    let seed = std::env::var("CRIOD_POWER_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let cuts = if all { flushes.len() * 6 } else { kind.cuts };
    let only = std::env::var("CRIOD_POWER_ONLY").ok().and_then(|s| s.parse::<u64>().ok());
    for number in 0..cuts as u64 {
        let mut random = Random::new(seed + number);
        // Every sixth is just at a flush, with all that was written before: in turn, or by chance.
        let at = if all { number as usize / 6 } else { random.index(flushes.len()) };
        let end = flushes.get(at + 1).copied().unwrap_or(events.len());
        let begin = flushes[at] + 1;
        let cut = if number % 6 == 0 { begin } else { begin + random.index(end - begin + 1) };
        if only.is_some_and(|n| n != number) {
            continue;
        }
        println!("cut {number}: seed {}, after event {cut} of {}", seed + number, events.len());
        let mut blocks = base.clone();
        let mut promises = Promises::default();
        // How likely a block is to have been written: none, some, all.
        let chance = [0, 50, 80, 95, 100][random.index(5)];
        for (n, event) in events[..cut].iter().enumerate() {
            event.apply(&mut blocks, || n < begin || random.index(100) < chance);
            if let Event::Said(said) = event {
                promises.hear(said);
            }
        }
        machine.boot(blocks, kind, |criod| {
            held(criod, &promises, &trees);
            if number % 5 == 0 {
                tried(criod, &trees);
            }
        });
    }
}

/// The workload: what it was told stands in the recording.
fn record(machine: &mut Machine, kind: &Kind) -> (Blocks, Vec<Event<Said>>, Trees) {
    let mut trees = Trees::default();
    let (base, events) = machine.record(kind, |criod, note| {
        let pull = |criod: &Criod, name: &str, trees: &mut Trees| {
            let id = criod.pull(name).unwrap();
            note(Said::Pulled(name.to_owned(), id));
            trees.learn(criod);
        };
        let unpull = |criod: &Criod, name: &str| {
            note(Said::Unpull(name.to_owned()));
            criod.remove_image(name).unwrap();
        };
        let create = |criod: &Criod, pod: &str, name: &str, command: &[&str], pod_name: &str| {
            let id = criod.create(pod, &container(name, command), &criod.host_pod(pod_name));
            let id = id.unwrap();
            note(Said::Container(id.clone()));
            id
        };
        let run_pod = |criod: &Criod, name: &str| {
            let id = criod.run_pod(&criod.host_pod(name)).unwrap();
            note(Said::Pod(id.clone()));
            id
        };
        let remove = |criod: &Criod, id: &str| {
            note(Said::Uncontainer(id.to_owned()));
            criod.remove(id).unwrap();
        };
        let remove_pod = |criod: &Criod, id: &str| {
            note(Said::Unpod(id.to_owned()));
            criod.stop_pod(id).unwrap();
            criod.remove_pod(id).unwrap();
        };
        pull(criod, BUSYBOX, &mut trees);
        let stays = run_pod(criod, "stays");
        let writes = "while sleep 0.05; do seq 3000 >>/file; done";
        let c = create(criod, &stays, "writes", &["sh", "-c", writes], "stays");
        criod.start(&c).unwrap();
        pull(criod, LAYERED, &mut trees);
        pull(criod, SINGLE, &mut trees);
        let goes = run_pod(criod, "goes");
        let quick = create(criod, &goes, "quick", &["sh", "-c", "exit 3"], "goes");
        criod.start(&quick).unwrap();
        assert_eq!(criod.ended(&quick).exit_code, 3);
        unpull(criod, SINGLE);
        criod.stop(&c, 0).unwrap();
        assert_eq!(criod.status(&c).unwrap().state, EXITED);
        criod.restart();
        pull(criod, SINGLE, &mut trees);
        remove(criod, &quick);
        remove_pod(criod, &goes);
        for round in 0..4 {
            let name = format!("round-{round}");
            let pod = run_pod(criod, &name);
            let id = create(criod, &pod, "r", &["sh", "-c", "echo x >/new; sleep 0.1"], &name);
            criod.start(&id).unwrap();
            if round == 1 {
                unpull(criod, LAYERED);
            }
            criod.ended(&id);
            if round == 2 {
                pull(criod, LAYERED, &mut trees);
            }
            if round % 2 == 0 {
                remove(criod, &id);
                remove_pod(criod, &pod);
            }
        }
        unpull(criod, SINGLE);
        pull(criod, SINGLE, &mut trees);
    });
    (base, events, trees)
}
