//! Monitors killed under a flood whose log is on a disk that fills up; logs on a disk that is frozen.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use api_monitor::monitor::*;
use e2e::disk::Disk;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options};
use nix::sys::signal::Signal;

use super::attach::{attach, with_stdin};
use super::output::{random, unsynced};
use super::*;

/// The bytes of each stream, put together again from the records of one log file after the other:
/// numbers that count up, with blanks or line ends between them.
#[derive(Default)]
struct Numbers {
    /// What has come since the last blank.
    open: [Vec<u8>; 2],
    /// The last number that is whole; where the writer was killed it may be cut all the same.
    last: [Option<String>; 2],
    next: [u64; 2],
    partial: u64,
}

impl Numbers {
    fn take(&mut self, path: &Path) {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{} is cut", path.display());
        for line in text.lines() {
            let mut parts = line.splitn(4, ' ');
            let time = parts.next().unwrap();
            assert!(time.len() == 30 && time.ends_with('Z'), "{line:.80?}");
            let of = usize::from(parts.next() == Some("stderr"));
            let whole = parts.next() == Some("F");
            self.partial += u64::from(!whole);
            let end = if whole { "\n" } else { "" };
            for byte in parts.next().unwrap().bytes().chain(end.bytes()) {
                if byte.is_ascii_whitespace() {
                    self.number(of);
                } else {
                    self.open[of].push(byte);
                }
            }
        }
    }

    fn number(&mut self, of: usize) {
        if self.open[of].is_empty() {
            return;
        }
        let new = String::from_utf8(std::mem::take(&mut self.open[of])).unwrap();
        if let Some(last) = self.last[of].replace(new) {
            self.next[of] += 1;
            assert_eq!(last.parse(), Ok(self.next[of]), "{last:?} in place of {}", self.next[of]);
        }
    }
}

/// Numbers on both streams, each a line.
const LINES: &str = "flood() { i=1; while :; do seq $i $((i+1999)); i=$((i+2000)); usleep 10000; done; }; \
                     trap 'exit 7' TERM; flood & flood >&2 & while :; do usleep 20000; done";
/// The same without a line's end, ever.
const UNBROKEN: &str = "flood() { i=1; while :; do seq $i $((i+1999)) | tr '\\n' ' '; i=$((i+2000)); \
                        usleep 10000; done; }; \
                        trap 'exit 7' TERM; flood & flood >&2 & while :; do usleep 20000; done";
/// On one stream.
const ONE: &str = "flood() { i=1; while :; do seq $i $((i+999)); i=$((i+1000)); usleep 10000; done; }; \
                   trap 'exit 7' TERM; flood & while :; do usleep 20000; done";

/// Kills monitors at random; meanwhile the log is rotated, and the disk is filled and gets room again.
async fn killed(keeper: &Keeper, disk: Option<&Disk>, script: &str, options: &Options) -> Numbers {
    let seconds = std::env::var("CRIOD_KILL_SECONDS").ok().and_then(|s| s.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(6));
    let mut c = Container::with(keeper, script, options, |config| {
        unsynced(config);
        if let Some(disk) = disk {
            config.log_path = disk.path("0.log").to_str().unwrap().into();
        }
    });
    start(&c).await;
    let (mut numbers, mut seed, mut kills, mut full) = (Numbers::default(), 11, 0, 0);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_micros(random(&mut seed, 12_000)));
        c.kill_monitor();
        c.fork();
        kills += 1;
        let (round, old) = (kills % 32, c.log.with_extension("old"));
        if round % 8 == 0 {
            fs::rename(&c.log, &old).unwrap();
            if c.client().await.reopen_log(ctx(), &ReopenLogRequest::new()).await.is_ok() {
                numbers.take(&old);
                fs::remove_file(&old).unwrap();
            } else {
                // As the kubelet does.
                fs::rename(&old, &c.log).unwrap();
            }
        }
        match disk {
            Some(disk) if round == 9 => disk.fill(),
            Some(disk) if round > 9 && round < 20 => {
                full += u32::from(!disk.has_room());
                disk.make_room(random(&mut seed, 20_000));
            }
            Some(disk) if round == 20 => fs::remove_file(disk.path("filler")).unwrap(),
            _ => {}
        }
    }
    if let Some(disk) = disk {
        let _ = fs::remove_file(disk.path("filler"));
        assert!(full > 0, "the disk was full at {full} kills of {kills}");
    }
    stop(&c, 10_000).await;
    let end = wait(&c).await;
    assert_eq!((code(&end), end.lost.as_str()), ((7, 0, false), ""));
    numbers.take(&c.log);
    assert!(kills > 20, "{kills} kills");
    eprintln!("{kills} kills, {full} of them on a full disk, {:?} numbers", numbers.next);
    delete(&c).await;
    numbers
}

#[tokio::test]
async fn kills_under_a_flood_lose_nothing_on_ext4_that_fills_up() {
    let keeper = Keeper::default();
    let disk = Disk::new(keeper.dir.path(), 32);
    let numbers = killed(&keeper, Some(&disk), LINES, &Options::default()).await;
    assert!(numbers.next.iter().all(|n| *n > 1000), "{:?}", numbers.next);
}

#[tokio::test]
async fn kills_within_a_line_without_end_lose_nothing_on_ext4_that_fills_up() {
    let keeper = Keeper::default();
    let disk = Disk::new(keeper.dir.path(), 32);
    let numbers = killed(&keeper, Some(&disk), UNBROKEN, &Options::default()).await;
    assert!(numbers.next.iter().all(|n| *n > 1000), "{:?}", numbers.next);
    assert!(numbers.partial > 10, "{} partial records", numbers.partial);
}

#[tokio::test]
async fn kills_under_a_flood_on_a_terminal_lose_nothing() {
    let keeper = Keeper::on("/dev/shm");
    let options = Options { terminal: true, ..Options::default() };
    let numbers = killed(&keeper, None, ONE, &options).await;
    assert!(numbers.next[0] > 1000 && numbers.next[1] == 0, "{:?}", numbers.next);
}

#[tokio::test]
async fn what_clients_write_to_stdin_amid_kills_arrives_once() {
    let keeper = Keeper::default();
    let mut c = with_stdin(&keeper, "cat; exit 4", false, false);
    start(&c).await;
    let mut seed = 5;
    for n in 1..=150 {
        state(&c).await;
        let (_conn, mut streams) = attach(&c, ["1", "0", "0"], &["GO"]).unwrap();
        let stdin = streams.get_mut("stdin").unwrap();
        std::io::Write::write_all(stdin, format!("line {n}\n").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_micros(random(&mut seed, 4000)));
        c.kill_monitor();
        c.fork();
    }
    let want = lines("line", 150);
    eventually("all of it has come", || (c.texts("stdout").len() >= 150).then_some(()));
    assert_eq!(c.texts("stdout"), want);
    delete(&c).await;
}

/// Writes 300 lines, says so in a file, and ends when it is asked to.
const COUNTED: &str = "trap 'echo bye; exit 7' TERM; i=0; while [ $i -lt 300 ]; do i=$((i+1)); \
                       echo line $i; usleep 1000; done; echo > /done; while :; do usleep 20000; done";

fn on_disk<'a>(keeper: &'a Keeper, disk: &Disk) -> Container<'a> {
    Container::with(keeper, COUNTED, &Options::default(), |config| {
        config.log_path = disk.path("0.log").to_str().unwrap().into();
    })
}

async fn whole(c: &Container<'_>) {
    let mut want = lines("line", 300);
    want.push("bye".into());
    eventually("the log is whole", || (c.texts("stdout") == want).then_some(()));
}

#[tokio::test]
async fn a_frozen_log_disk_holds_up_neither_a_command_nor_a_stop() {
    let keeper = Keeper::default();
    let disk = Disk::new(keeper.dir.path(), 16);
    let c = on_disk(&keeper, &disk);
    start(&c).await;
    says(&c, "line 10");
    let frozen = disk.freeze();
    let done = c.dir.join("bundle/rootfs/done");
    eventually("it has written everything", || done.exists().then_some(()));
    assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
    assert_eq!(sh(&c, "exit 3", 5000).await.exit_code, 3);
    stop(&c, 10_000).await;
    let end = wait(&c).await;
    assert_eq!((code(&end), phase(&end)), ((7, 0, false), Phase::PHASE_EXITED));
    assert!(end.lost.contains("still being written"), "{end:?}");
    assert!(!c.texts("stdout").contains(&"bye".into()));
    drop(frozen);
    whole(&c).await;
    nothing_is_late(&c);
    delete(&c).await;
}

#[tokio::test]
async fn a_monitor_killed_while_its_disk_is_frozen_loses_nothing() {
    let keeper = Keeper::default();
    let disk = Disk::new(keeper.dir.path(), 16);
    let mut c = on_disk(&keeper, &disk);
    start(&c).await;
    says(&c, "line 10");
    let frozen = disk.freeze();
    let done = c.dir.join("bundle/rootfs/done");
    eventually("it has written everything", || done.exists().then_some(()));
    sys::proc::signal(c.monitor, Signal::SIGKILL);
    std::thread::sleep(Duration::from_millis(100));
    assert!(!c.monitor_ended(), "one of its threads waits for the disk, as no signal can end");
    drop(frozen);
    eventually("it ends", || c.monitor_ended().then_some(()));
    c.fork();
    stop(&c, 10_000).await;
    assert_eq!(code(&wait(&c).await), (7, 0, false));
    whole(&c).await;
    delete(&c).await;
}

#[tokio::test]
async fn a_start_that_waits_for_a_frozen_disk_can_be_stopped() {
    let keeper = Keeper::default();
    let disk = Disk::new(keeper.dir.path(), 16);
    let c = on_disk(&keeper, &disk);
    create(&c).await.unwrap();
    let frozen = disk.freeze();
    let client = c.client().await;
    let call = tokio::spawn(async move { client.start(ctx(), &StartRequest::new()).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!call.is_finished());
    assert_eq!(phase(&state(&c).await), Phase::PHASE_CREATED);
    stop(&c, 10_000).await;
    let error = message(call.await.unwrap());
    assert!(error.contains("ended before it was started"), "{error}");
    let end = wait(&c).await;
    assert_eq!((code(&end), end.started_at), ((137, 9, false), 0));
    drop(frozen);
    delete(&c).await;
}
