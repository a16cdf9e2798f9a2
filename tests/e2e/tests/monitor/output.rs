//! What containers write, and logs that move, fill up and go.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options};

use super::*;

async fn reopen(c: &Container<'_>) {
    c.client().await.reopen_log(ctx(), &ReopenLogRequest::new()).await.unwrap();
}

/// Two streams of numbers in bursts that fill their pipes, until it is told to end.
const FLOOD: &str = "flood() { i=1; while :; do seq $i $((i+1999)); i=$((i+2000)); usleep 10000; done; }; \
                     trap 'exit 7' TERM; flood & flood >&2 & while :; do usleep 20000; done";

/// Without waiting for the disk: what these tests are about is not the machine's end.
pub(super) fn unsynced(config: &mut Config) {
    config.no_sync_log = true;
}

/// Reads logs piece by piece, and knows which number comes next on each stream.
#[derive(Default)]
struct Counted {
    next: [u64; 2],
}

impl Counted {
    /// Takes the records of a file that is complete.
    fn take(&mut self, path: &Path) {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{} is cut", path.display());
        for (n, line) in text.lines().enumerate() {
            let mut parts = line.splitn(4, ' ');
            let time = parts.next().unwrap();
            assert!(time.len() == 30 && time.ends_with('Z'), "{line:?}");
            let of = match parts.next().unwrap() {
                "stdout" => 0,
                "stderr" => 1,
                other => panic!("{}:{n}: stream {other:?}", path.display()),
            };
            assert_eq!(parts.next(), Some("F"), "{line:?}");
            let text = parts.next().unwrap();
            self.next[of] += 1;
            // What a writer was about to write when it was killed may be cut; it is the last.
            if text.parse() != Ok(self.next[of]) {
                panic!("{}:{n}: {text:?} in place of {}", path.display(), self.next[of]);
            }
        }
    }
}

/// A pseudo-random number below `n`; a seed of the time would make failures hard to repeat.
pub(super) fn random(state: &mut u64, n: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % n
}

/// Kills monitors at random under a flood, rotating the log now and then; all of it must be there.
async fn killed_under_a_flood(keeper: &Keeper) {
    let seconds = std::env::var("CRIOD_KILL_SECONDS").ok().and_then(|s| s.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(4));
    let mut c = Container::with(keeper, FLOOD, &Options::default(), unsynced);
    start(&c).await;
    let mut counted = Counted::default();
    let (mut seed, mut kills) = (7, 0);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_micros(random(&mut seed, 12_000)));
        c.kill_monitor();
        c.fork();
        kills += 1;
        if kills % 8 == 0 {
            let old = c.log.with_extension("old");
            fs::rename(&c.log, &old).unwrap();
            reopen(&c).await;
            counted.take(&old);
            fs::remove_file(&old).unwrap();
        }
    }
    stop(&c, 10_000).await;
    let end = wait(&c).await;
    assert_eq!((code(&end), end.lost.as_str()), ((7, 0, false), ""));
    let before = counted.next;
    // The writers were killed in the middle of a line, perhaps.
    let text = fs::read_to_string(&c.log).unwrap();
    let mut cut: Vec<&str> = text.lines().collect();
    for stream in [" stdout ", " stderr "] {
        let last = cut.iter().rposition(|l| l.contains(stream)).unwrap();
        cut.remove(last);
    }
    fs::write(&c.log, cut.join("\n") + "\n").unwrap();
    counted.take(&c.log);
    assert!(
        counted.next[0] > before[0] && before[0] > 0 && before[1] > 0,
        "{counted:?}",
        counted = counted.next
    );
    assert!(kills > 20, "{kills} kills");
    eprintln!("{kills} kills, {:?} lines", counted.next);
    delete(&c).await;
}

#[tokio::test]
async fn hundreds_of_kills_under_a_flood_lose_nothing_on_a_disk() {
    let keeper = Keeper::default();
    killed_under_a_flood(&keeper).await;
}

#[tokio::test]
async fn hundreds_of_kills_under_a_flood_lose_nothing_in_memory() {
    let keeper = Keeper::on("/dev/shm");
    killed_under_a_flood(&keeper).await;
}

#[tokio::test]
async fn a_rotated_log_loses_doubles_and_divides_no_line() {
    let keeper = Keeper::default();
    let c = Container::with(&keeper, FLOOD, &Options::default(), unsynced);
    start(&c).await;
    let mut counted = Counted::default();
    for round in 0..45 {
        tokio::time::sleep(Duration::from_millis(3 * (round % 7))).await;
        let old = c.log.with_extension(format!("{round}"));
        fs::rename(&c.log, &old).unwrap();
        match round % 3 {
            // The answer is seen.
            0 => {
                reopen(&c).await;
                counted.take(&old);
                fs::remove_file(&old).unwrap();
            }
            // It is not, and the old file is put back over the new one.
            1 => {
                reopen(&c).await;
                tokio::time::sleep(Duration::from_millis(round % 5)).await;
                fs::rename(&old, &c.log).unwrap();
            }
            // The call was not even made.
            _ => fs::rename(&old, &c.log).unwrap(),
        }
    }
    // What lies in a file without a name is moved with the next record at the latest.
    let old = c.log.with_extension("last");
    fs::rename(&c.log, &old).unwrap();
    reopen(&c).await;
    counted.take(&old);
    assert!(counted.next[0] > 1000 && counted.next[1] > 1000, "{:?}", counted.next);
    delete(&c).await;
}

#[tokio::test]
async fn a_log_put_back_while_its_monitor_is_killed_is_whole() {
    let keeper = Keeper::default();
    let mut c = Container::with(&keeper, FLOOD, &Options::default(), unsynced);
    start(&c).await;
    let mut counted = Counted::default();
    let mut seed = 3;
    for round in 0..40 {
        let old = c.log.with_extension("old");
        fs::rename(&c.log, &old).unwrap();
        reopen(&c).await;
        std::thread::sleep(Duration::from_millis(4));
        fs::rename(&old, &c.log).unwrap();
        std::thread::sleep(Duration::from_micros(random(&mut seed, 3000)));
        c.kill_monitor();
        c.fork();
        if round % 5 == 4 {
            reopen(&c).await;
            fs::rename(&c.log, &old).unwrap();
            reopen(&c).await;
            counted.take(&old);
        }
    }
    assert!(counted.next[0] > 1000, "{:?}", counted.next);
    delete(&c).await;
}

/// A small tmpfs at a folder of its own; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, size: &str) -> Small {
        fs::create_dir_all(&at).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some(size)).unwrap();
        Small(at)
    }

    fn resize(&self, size: &str) {
        let flags = nix::mount::MsFlags::MS_REMOUNT;
        nix::mount::mount(Some("tmpfs"), &self.0, Some("tmpfs"), flags, Some(size)).unwrap();
    }

    fn log(&self) -> String {
        self.0.join("0.log").to_str().unwrap().into()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_delays_the_log_but_neither_loses_a_line_nor_holds_up_a_stop() {
    let keeper = Keeper::default();
    let disk = Small::mount(keeper.dir.path().join("disk"), "size=128k");
    let script = "trap '' TERM; i=0; while [ $i -lt 4000 ]; do i=$((i+1)); \
                  echo line $i; echo err $i >&2; done; echo done; echo > /done; \
                  while :; do sleep 0.05; done";
    let mut c = Container::with(&keeper, script, &Options::default(), |config| {
        config.log_path = disk.log();
    });
    start(&c).await;
    let done = c.dir.join("bundle/rootfs/done");
    eventually("it has written everything", || done.exists().then_some(()));
    // How much of it is taken then depends on how the records came in pieces.
    let said = || fs::read_to_string(c.dir.join("stderr")).unwrap_or_default();
    eventually("the disk is full", || said().contains("No space left").then_some(()));
    c.kill_monitor();
    c.fork();
    assert!(fs::read(disk.log()).unwrap().ends_with(b"\n"), "only whole records");
    // It says so once, not at each attempt.
    stop(&c, 100).await;
    let end = wait(&c).await;
    assert_eq!(code(&end), (137, 9, false));
    assert!(end.lost.contains("still being written"), "{end:?}");
    let said = fs::read_to_string(c.dir.join("stderr")).unwrap();
    assert!(said.lines().count() < 10, "{said}");
    disk.resize("size=8m");
    let of = |s: &str| c.texts(s).len();
    eventually("all of it is written", || {
        (of("stdout") >= 4000 && of("stderr") >= 4000).then_some(())
    });
    let mut want = lines("line", 4000);
    want.push("done".into());
    eventually("the last line", || (c.texts("stdout") == want).then_some(()));
    assert_eq!(c.texts("stderr"), lines("err", 4000));
    nothing_is_late(&c);
    delete(&c).await;
}

#[tokio::test]
async fn a_full_disk_that_gets_room_again_has_every_line() {
    let keeper = Keeper::default();
    let disk = Small::mount(keeper.dir.path().join("disk"), "size=128k");
    let script = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); echo line $i; done; exit 3";
    let c = Container::with(&keeper, script, &Options::default(), |config| {
        config.log_path = disk.log();
    });
    start(&c).await;
    for size in ["size=256k", "size=512k", "size=16m"] {
        std::thread::sleep(Duration::from_millis(300));
        disk.resize(size);
    }
    assert_eq!(code(&wait(&c).await), (3, 0, false));
    assert!(c.texts("stdout") == lines("line", 50_000));
    delete(&c).await;
}

#[tokio::test]
async fn a_log_whose_folder_is_gone_holds_nobody_up_and_comes_back() {
    let keeper = Keeper::default();
    let folder = keeper.dir.path().join("pod/container");
    fs::create_dir_all(&folder).unwrap();
    let log = folder.join("0.log");
    let script = "i=0; while :; do i=$((i+1)); echo line $i; echo $i > /n; sleep 0.001; done";
    let mut c = Container::with(&keeper, script, &Options::default(), |config| {
        config.log_path = log.to_str().unwrap().into();
    });
    start(&c).await;
    let count = c.dir.join("bundle/rootfs/n");
    let n = || fs::read_to_string(&count).ok()?.trim().parse::<u64>().ok();
    eventually("it writes", || n().filter(|n| *n > 20));
    fs::remove_dir_all(keeper.dir.path().join("pod")).unwrap();
    let gone = eventually("the count", n);
    let error = c.client().await.reopen_log(ctx(), &ReopenLogRequest::new()).await.unwrap_err();
    assert!(error.to_string().contains("0.log"), "{error}");
    eventually("it goes on", || n().filter(|n| *n > gone + 200));
    c.kill_monitor();
    c.fork();
    let back = eventually("the count", n);
    fs::create_dir_all(&folder).unwrap();
    eventually("it goes on", || n().filter(|n| *n > back + 200));
    eventually("the log is back", || fs::metadata(&log).is_ok_and(|m| m.len() > 0).then_some(()));
    stop(&c, 0).await;
    wait(&c).await;
    let texts = c.texts("stdout");
    let first: u64 = texts[0].strip_prefix("line ").unwrap().parse().unwrap();
    // Between the last look at the count and the removal some may have gone with the file.
    assert!(first <= gone + 200, "{first} {gone}");
    let want: Vec<_> = (first..first + texts.len() as u64).map(|i| format!("line {i}")).collect();
    assert!(texts == want && texts.len() as u64 > back - first, "{first} {}", texts.len());
    delete(&c).await;
}

#[tokio::test]
async fn odd_output_is_kept_byte_for_byte() {
    let keeper = Keeper::default();
    let script = "x() { head -c $1 /dev/zero | tr '\\0' x; }; \
                  x 16384; echo; x 16385; echo; x 40000; echo; echo; printf '\\000\\377\\r\\n'; \
                  x 100 >&2; x 1000000; x 16384 >&2";
    let c = Container::new(&keeper, script, &Options::default());
    start(&c).await;
    wait(&c).await;
    let log = fs::read(&c.log).unwrap();
    let mut texts = [Vec::new(), Vec::new()];
    for line in log.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap();
        let of = usize::from(&line[31..37] == b"stderr");
        texts[of].push((line[38], line[40..].to_vec()));
    }
    let x = |n| vec![b'x'; n];
    let mut want = vec![(b'F', x(16384))];
    want.extend([(b'P', x(16384)), (b'F', x(1))]);
    want.extend([(b'P', x(16384)), (b'P', x(16384)), (b'F', x(40000 - 2 * 16384))]);
    want.extend([(b'F', x(0)), (b'F', b"\0\xff\r".to_vec())]);
    want.extend(std::iter::repeat_n((b'P', x(16384)), 61));
    want.push((b'F', x(1_000_000 - 61 * 16384)));
    assert!(
        texts[0] == want,
        "{:?}",
        texts[0].iter().map(|t| (t.0, t.1.len())).collect::<Vec<_>>()
    );
    let want = [(b'P', x(16384)), (b'F', x(100))];
    assert!(texts[1] == want);
    delete(&c).await;
}

#[tokio::test]
async fn without_a_log_output_is_dropped_and_nobody_waits() {
    let keeper = Keeper::default();
    let script = "seq 1 1000000; seq 1 1000000 >&2; exit 5";
    let c = Container::with(&keeper, script, &Options::default(), |c| c.log_path.clear());
    start(&c).await;
    let before = fs::read_dir(&c.dir).unwrap().count();
    assert_eq!(code(&wait(&c).await), (5, 0, false));
    reopen(&c).await;
    assert_eq!(fs::read_dir(&c.dir).unwrap().count(), before);
    delete(&c).await;
}

#[tokio::test]
async fn what_lingers_after_init_delays_nothing_and_is_still_logged() {
    let keeper = Keeper::default();
    let options = Options { host_pid: true, ..Options::default() };
    let script =
        "sh -c 'i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done' & echo up; exit 4";
    let mut c = Container::with(&keeper, script, &options, |config| {
        // As if nothing could be killed: it goes on writing.
        config.shared_pid = false;
    });
    start(&c).await;
    let end = wait(&c).await;
    assert_eq!((code(&end), phase(&end)), ((4, 0, false), Phase::PHASE_EXITED));
    let had = c.texts("stdout").len();
    eventually("more is logged", || (c.texts("stdout").len() > had + 20).then_some(()));
    c.kill_monitor();
    c.fork();
    assert_eq!(phase(&state(&c).await), Phase::PHASE_EXITED);
    let had = c.texts("stdout").len();
    eventually("more is logged", || (c.texts("stdout").len() > had + 20).then_some(()));
    let mut texts = c.texts("stdout");
    texts.retain(|t| t != "up");
    let n = u32::try_from(texts.len()).unwrap();
    assert_eq!(texts, lines("line", n));
    delete(&c).await;
    assert!(!cgroup(&c).exists());
}

#[tokio::test]
async fn stdin_is_held_open_and_can_be_written_to_by_a_successor() {
    let keeper = Keeper::default();
    let script = "read a; echo got $a; read b </dev/stdin; echo got $b";
    let mut c = Container::with(&keeper, script, &Options::default(), |config| config.stdin = true);
    start(&c).await;
    c.kill_monitor();
    let id = c.id.clone();
    let give = |text: &str| {
        let held = keeper.connect().call(&["GET", &id], &[]).unwrap();
        let at = held.fields.iter().position(|n| n == "stdin").unwrap();
        let pipe = fs::File::from(held.fds.into_iter().nth(at).unwrap());
        std::io::Write::write_all(&mut &pipe, text.as_bytes()).unwrap();
    };
    give("one\n");
    c.fork();
    says(&c, "got one");
    assert!(state(&c).await.exit.is_none());
    give("two\n");
    assert_eq!(code(&wait(&c).await), (0, 0, false));
    assert_eq!(c.texts("stdout"), ["got one", "got two"]);
}

#[tokio::test]
async fn a_terminal_that_is_closed_and_opened_again_goes_on() {
    let keeper = Keeper::default();
    let options = Options { terminal: true, ..Options::default() };
    let script = "echo a; exec 0<&- 1>&- 2>&-; sleep 0.4; exec 1>/dev/console; echo b; \
                  i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo n $i; done; exit 3";
    for _ in 0..5 {
        let c = Container::new(&keeper, script, &options);
        start(&c).await;
        assert_eq!(code(&wait(&c).await), (3, 0, false));
        let mut want = vec!["a\r".to_owned(), "b\r".to_owned()];
        want.extend((1..=2000).map(|i| format!("n {i}\r")));
        let texts = c.texts("stdout");
        assert!(texts == want, "{} of {}: {:?}", texts.len(), want.len(), texts.last());
        delete(&c).await;
    }
}
