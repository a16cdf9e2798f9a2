//! What some use up, or would hold for ever, leaves others theirs.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options};
use nix::fcntl::{FcntlArg, fcntl};

use super::attach::*;
use super::runtimes::Fake;
use super::sessions::*;
use super::*;

#[tokio::test]
async fn as_many_that_are_waited_for() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let mut calls = Vec::new();
    for _ in 0..64 {
        let client = c.client().await;
        let process =
            serde_json::json!({ "args": SLEEP, "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        let process = process.to_string().into_bytes();
        let request = ExecSyncRequest { process, ..ExecSyncRequest::new() };
        calls.push(tokio::spawn(async move { client.exec_sync(ctx(), &request).await }));
    }
    meanwhile("all run", || started(&c) == 64).await;
    assert!(message(run(&c, &["/bin/true"], 0).await).contains("64 commands"));
    let (conn, _streams) = exec(&c, &["/bin/sh", "-c", "exit 3"]);
    assert_eq!(exit(&conn), Some(3));
    delete(&c).await;
    for call in calls {
        assert!(call.await.unwrap().is_ok_and(|done| !done.timed_out));
    }
}

/// How many commands there are.
fn begun(c: &Container<'_>) -> usize {
    files(c).iter().filter(|f| f.ends_with(".run")).count()
}

/// How many of them run: the runtime has said which process each is.
fn started(c: &Container<'_>) -> usize {
    let known = |f: &&String| std::fs::metadata(c.dir.join(f)).is_ok_and(|m| m.len() > 0);
    files(c).iter().filter(|f| f.ends_with(".run")).filter(known).count()
}

/// What a pipe holds, in bytes.
fn room(file: &File) -> i32 {
    fcntl(file, FcntlArg::F_GETPIPE_SZ).unwrap()
}

#[tokio::test]
async fn pipes_are_small_for_there_is_one_allowance_for_all() {
    let keeper = Keeper::default();
    let c = with_stdin(&keeper, "sleep 1000", false, false);
    start(&c).await;
    let (_conn, streams) = exec(&c, &SLEEP);
    assert_eq!(streams.len(), 3);
    assert!(streams.values().all(|s| room(s) <= 64 << 10));
    let (_conn, streams) = client(&c);
    assert_eq!(streams.len(), 3);
    assert!(streams.values().all(|s| room(s) <= 256 << 10));
    delete(&c).await;
}

#[tokio::test]
async fn those_who_typed_and_left_make_room_for_others() {
    let keeper = Keeper::default();
    let script = "stty raw -echo; echo ready; while ! test -e /tmp/go; do sleep 0.02; done; \
                  tr -d x; exit 7";
    let c = with_stdin(&keeper, script, true, false);
    start(&c).await;
    says(&c, "ready");
    let before = idle_descriptors(&c);
    // Nobody reads what they type.
    for _ in 0..70 {
        let (conn, mut streams) = client(&c);
        write_all(streams.get_mut("stdin").unwrap(), &[b'x'; 60_000]);
        drop((conn, streams));
    }
    // Some wait for the terminal to take what they have left.
    eventually("most are forgotten", || (descriptors(&c) <= before + 8).then_some(()));
    assert!(descriptors(&c) > before);
    let crowd: Vec<_> = (0..64).map(|_| client(&c)).collect();
    assert!(attach(&c, ["1", "1", "1"], &["GO"]).unwrap_err().contains("64 clients"));
    drop(crowd);
    // They leave nothing, and push nobody out.
    idle_again(&c, before + 8);
    // One that has said all it had to, but listens on: nothing is waited for in the end.
    let (conn, mut streams) = attach(&c, ["1", "0", "0"], &["GO"]).unwrap();
    write_all(streams.get_mut("stdin").unwrap(), &[b'x'; 60_000]);
    drop(streams);
    std::fs::write(c.dir.join("bundle/rootfs/tmp/go"), "").unwrap();
    idle_again(&c, before + 1);
    assert_rests(&c);
    drop(conn);
    idle_again(&c, before);
    delete(&c).await;
}

#[tokio::test]
async fn one_that_typed_too_much_is_cut_off_for_not_reading() {
    let keeper = Keeper::default();
    let script = "until_there() { until test -e $1; do sleep 0.02; done; }; \
                  stty raw -echo; echo ready; until_there /tmp/flood; yes | head -c 6000000; \
                  until_there /tmp/go; stty min 0 time 3; cat > /dev/null; echo empty; sleep 1000";
    let c = with_stdin(&keeper, script, true, false);
    start(&c).await;
    says(&c, "ready");
    let (conn, mut streams) = client(&c);
    // Until no more is taken.
    let stdin = streams.get_mut("stdin").unwrap();
    let mut refused = 0;
    while refused < 20 {
        refused = stdin.write(&[b'x'; 10_000]).map_or(refused + 1, |_| 0);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let touch =
        |name: &str| std::fs::write(c.dir.join("bundle/rootfs/tmp").join(name), "").unwrap();
    touch("flood");
    assert_eq!(conn.recv().unwrap().unwrap().fields[0], "SLOW");
    // The terminal has room again, and nobody has anything for it.
    touch("go");
    says(&c, "empty");
    assert_rests(&c);
    delete(&c).await;
}

/// It has nothing to do, and does not turn round and round.
fn assert_rests(c: &Container<'_>) {
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", c.monitor)).unwrap();
        let words: Vec<_> = stat.split_whitespace().map(str::to_owned).collect();
        words[13].parse::<u64>().unwrap() + words[14].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks() - before < 25, "it is busy");
}

#[tokio::test]
async fn a_runtime_that_hangs_for_nobody_is_ended() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    let c = Container::new(&keeper, "sleep 1000", &fake.options());
    start(&c).await;
    let before = idle_descriptors(&c);
    fake.hang("exec");
    let gone: Vec<_> = (0..64)
        .map(|n| match n % 2 {
            0 => prepare(&c, ["1", "1", "1"], &SLEEP),
            _ => prepare_tty(&c, &SLEEP),
        })
        .collect();
    gone.iter().for_each(|conn| conn.send(&["GO"], &[]).unwrap());
    eventually("all have begun", || (begun(&c) == 64).then_some(()));
    let refused = || go(&prepare(&c, ["1", "1", "1"], &SLEEP), &["GO"]).unwrap_err();
    assert!(refused().contains("64 commands"));
    drop(gone);
    fake.heal("exec");
    eventually("they count no more", || {
        let conn = prepare(&c, ["0", "0", "0"], &["/bin/sh", "-c", "exit 3"]);
        go(&conn, &["GO"]).ok().map(|_| assert_eq!(exit(&conn), Some(3)))
    });
    eventually("the runtimes are gone", || fake.running("exec").is_empty().then_some(()));
    eventually("and their files", || files(&c).is_empty().then_some(()));
    idle_again(&c, before);
    delete(&c).await;
}

/// How many files the monitor may open from now on.
fn limit_files(c: &Container<'_>, soft: &str) {
    let mut prlimit = std::process::Command::new("prlimit");
    let done = prlimit.args(["--pid", &c.monitor.to_string(), &format!("--nofile={soft}:")]);
    assert!(done.status().unwrap().success());
}

#[tokio::test]
async fn out_of_descriptors_it_waits() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    // One that waits is not turned out.
    let client = c.client().await;
    let waits = tokio::spawn(async move { client.wait(ctx(), &WaitRequest::new()).await });
    tokio::task::yield_now().await;
    state(&c).await;
    limit_files(&c, "3");
    let session = prepare(&c, ["0", "0", "0"], &["/bin/sh", "-c", "exit 3"]);
    let call = std::os::unix::net::UnixStream::connect(c.dir.join("monitor.sock")).unwrap();
    assert_rests(&c);
    limit_files(&c, "1024");
    assert!(go(&session, &["GO"]).unwrap().is_empty());
    assert_eq!(exit(&session), Some(3));
    assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
    drop(call);
    stop(&c, 0).await;
    assert_eq!(code(&waits.await.unwrap().unwrap()), (137, 9, false));
    delete(&c).await;
}
