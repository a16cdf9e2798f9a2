//! criod-monitor and criod-keeper with real containers: the life of one, and every death.
//!
//! | module     | what                                                              |
//! |------------|-------------------------------------------------------------------|
//! | here       | a life, and the deaths that every build must survive               |
//! | `output`   | what containers write, and logs that move, fill up and go          |
//! | `exec`     | commands in the container                                         |
//! | `deaths`   | keeper and monitor killed or stopped at bad moments               |
//! | `disks`    | logs on disks that fill up or are frozen, amid kills               |
//! | `stuck`    | processes that do not die as others do                            |
//! | `runtimes` | runtimes that hang, fail or are another                           |
//! | `sessions` | commands whose streams others carry                               |
//! | `attach`   | clients attached to the container's own streams                   |
//! | `null`     | streams that nobody wants, and the node's /dev/null               |
//! | `hostile`  | garbage and crowds on the sockets                                 |
//! | `update`   | what the container may use, changed by the runtime                |
//! | `upgrade`  | monitor and keeper that become another build in place             |
//! | `limits`   | what some use up, or hold for ever, leaves others theirs          |
#![allow(clippy::unwrap_used, reason = "what a test cannot set up is a failure of that test")]

#[path = "monitor/attach.rs"]
mod attach;
#[path = "monitor/deaths.rs"]
mod deaths;
#[path = "monitor/disks.rs"]
mod disks;
#[path = "monitor/exec.rs"]
mod exec;
#[path = "monitor/hostile.rs"]
mod hostile;
#[path = "monitor/limits.rs"]
mod limits;
#[path = "monitor/null.rs"]
mod null;
#[path = "monitor/output.rs"]
mod output;
#[path = "monitor/runtimes.rs"]
mod runtimes;
#[path = "monitor/sessions.rs"]
mod sessions;
#[path = "monitor/stuck.rs"]
mod stuck;
#[path = "monitor/update.rs"]
mod update;
#[path = "monitor/upgrade.rs"]
mod upgrade;

use std::time::Duration;

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options, members};
use ttrpc::context::Context;

fn ctx() -> Context {
    ttrpc::context::with_duration(Duration::from_secs(20))
}

async fn stop(c: &Container<'_>, timeout_ms: u64) {
    let request = StopRequest { timeout_ms, ..StopRequest::new() };
    c.client().await.stop(ctx(), &request).await.unwrap();
}

async fn create(c: &Container<'_>) -> ttrpc::Result<CreateResponse> {
    c.client().await.create(ctx(), &CreateRequest::new()).await
}

async fn start(c: &Container<'_>) {
    create(c).await.unwrap();
    c.client().await.start(ctx(), &StartRequest::new()).await.unwrap();
}

async fn state(c: &Container<'_>) -> StateResponse {
    c.client().await.state(ctx(), &StateRequest::new()).await.unwrap()
}

async fn wait(c: &Container<'_>) -> StateResponse {
    c.client().await.wait(ctx(), &WaitRequest::new()).await.unwrap()
}

async fn delete(c: &Container<'_>) -> DeleteResponse {
    c.client().await.delete(ctx(), &DeleteRequest::new()).await.unwrap()
}

fn code(state: &StateResponse) -> (i32, i32, bool) {
    let exit = state.exit.as_ref().unwrap();
    (exit.code, exit.signal, exit.unknown)
}

async fn run(c: &Container<'_>, args: &[&str], timeout_ms: u64) -> ttrpc::Result<ExecSyncResponse> {
    let process = serde_json::json!({
        "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
    });
    let process = process.to_string().into_bytes();
    let request = ExecSyncRequest { process, timeout_ms, ..ExecSyncRequest::new() };
    c.client().await.exec_sync(ctx(), &request).await
}

async fn sh(c: &Container<'_>, script: &str, timeout_ms: u64) -> ExecSyncResponse {
    run(c, &["/bin/sh", "-c", script], timeout_ms).await.unwrap()
}

fn cgroup(c: &Container<'_>) -> std::path::PathBuf {
    e2e::monitor::cgroup_dir("pids", &c.id)
}

/// As `eventually`, while the calls of this test go on.
async fn meanwhile(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds: {what}");
}

/// The log has caught up with what the state had to say of it.
fn nothing_is_late(c: &Container<'_>) {
    eventually("nothing is late any more", || {
        let state = std::fs::read(c.dir.join("state")).unwrap();
        let state: StateResponse = protobuf::Message::parse_from_bytes(&state).unwrap();
        state.lost.is_empty().then_some(())
    });
}

/// What a refused call says.
fn message<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> String {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => status.message,
        other => panic!("{other}"),
    }
}

/// Waits until the container has written this line.
fn says(c: &Container<'_>, line: &str) {
    eventually(line, || c.texts("stdout").contains(&line.into()).then_some(()));
}

fn phase(state: &StateResponse) -> Phase {
    state.phase.enum_value().unwrap()
}

fn lines(word: &str, n: u32) -> Vec<String> {
    (1..=n).map(|i| format!("{word} {i}")).collect()
}

#[tokio::test]
async fn a_life() {
    let keeper = Keeper::default();
    let script = "echo out; echo err >&2; printf unfinished; exit 3";
    let c = Container::new(&keeper, script, &Options::default());
    let created = create(&c).await.unwrap();
    assert!(created.pid > 0);
    assert!(!c.log.exists(), "the log appears with the start");
    assert_eq!(create(&c).await.unwrap().pid, created.pid, "repeated");
    let first = c.client().await.start(ctx(), &StartRequest::new()).await.unwrap();
    let again = c.client().await.start(ctx(), &StartRequest::new()).await.unwrap();
    assert_eq!(first.started_at, again.started_at);
    let end = wait(&c).await;
    assert_eq!(end.phase.enum_value(), Ok(Phase::PHASE_EXITED));
    assert_eq!(code(&end), (3, 0, false));
    assert!(!end.exit.oom && end.exit.finished_at >= first.started_at - 1_000_000_000);
    assert_eq!(c.texts("stdout"), ["out", "unfinished"]);
    assert_eq!(c.texts("stderr"), ["err"]);
    assert_eq!(code(&delete(&c).await.state.unwrap()), (3, 0, false));
    eventually("the monitor ends", || c.monitor_ended().then_some(()));
    assert!(keeper.connect().call(&["GET", &c.id], &[]).unwrap().fds.is_empty());
}

#[tokio::test]
async fn a_command_that_does_not_exist() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "true", &Options::default());
    let path = c.dir.join("bundle/config.json");
    let spec = std::fs::read_to_string(&path).unwrap().replace("/bin/sh", "/bin/nope");
    std::fs::write(&path, spec).unwrap();
    let error = create(&c).await.unwrap_err().to_string();
    assert!(error.contains("/bin/nope") && error.contains("no such file"), "{error}");
    assert_eq!(wait(&c).await.phase.enum_value(), Ok(Phase::PHASE_FAILED));
    assert!(!cgroup(&c).exists());
    delete(&c).await;
}

#[tokio::test]
async fn stops_with_a_deadline_that_only_comes_nearer() {
    let keeper = Keeper::default();
    let ready = |c: &Container<'_>| {
        eventually("ready", || c.texts("stdout").contains(&"ready".into()).then_some(()));
    };
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let polite = Container::new(&keeper, script, &Options::default());
    start(&polite).await;
    ready(&polite);
    stop(&polite, 10_000).await;
    assert_eq!(code(&wait(&polite).await), (7, 0, false));
    assert_eq!(polite.texts("stdout"), ["ready", "bye"]);

    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let mut deaf = Container::new(&keeper, script, &Options::default());
    start(&deaf).await;
    ready(&deaf);
    stop(&deaf, 60_000).await;
    stop(&deaf, 3_600_000).await;
    let now = state(&deaf).await;
    assert!(now.exit.is_none());
    let left = now.stopping.unwrap().deadline - sys::clock::boottime();
    assert!(left <= 60_000_000_000, "{left}");
    assert_eq!(sh(&deaf, "echo still here", 0).await.exit_code, 0);
    // The deadline is the monitor's and outlives it.
    stop(&deaf, 300).await;
    deaf.kill_monitor();
    deaf.fork();
    assert_eq!(code(&wait(&deaf).await), (137, 9, false));
}

#[tokio::test]
async fn exec_keeps_streams_apart_and_leaves_no_orphan() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let done = sh(&c, "echo a; echo b >&2; exit 5", 0).await;
    assert_eq!((done.exit_code, done.timed_out, done.truncated), (5, false, false));
    assert_eq!(std::fs::read_to_string(&done.stdout).unwrap(), "a\n");
    assert_eq!(std::fs::read_to_string(&done.stderr).unwrap(), "b\n");

    let big = sh(&c, "dd if=/dev/zero bs=1M count=20 2>/dev/null; echo end >&2", 0).await;
    assert_eq!((big.exit_code, big.truncated), (0, true));
    assert_eq!(std::fs::metadata(&big.stdout).unwrap().len(), 15 << 20);

    let late = sh(&c, "sleep 2000 & setsid sleep 2000 & sleep 2000", 300).await;
    assert!(late.timed_out);
    eventually("only init is left", || (members(&c.id).len() == 1).then_some(()));
    let error = run(&c, &["/nope"], 0).await.unwrap_err().to_string();
    assert!(error.contains("/nope"), "{error}");
    // A background process that keeps the pipe open does not hold the answer up.
    assert_eq!(sh(&c, "sleep 300 & echo started", 0).await.exit_code, 0);
    let left = std::fs::read_dir(&c.dir).unwrap().flatten().filter(|e| {
        let name = e.file_name().into_string().unwrap();
        name.starts_with("exec-") && !name.ends_with("stdout") && !name.ends_with("stderr")
    });
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn an_oom_kill_is_noticed() {
    let keeper = Keeper::default();
    let options = Options { memory: Some(16 << 20), ..Options::default() };
    let script = "exec dd if=/dev/zero of=/dev/null bs=100M";
    let c = Container::new(&keeper, script, &options);
    start(&c).await;
    let end = wait(&c).await;
    assert!(end.exit.oom, "{end:?}");
    assert_eq!(code(&end), (137, 9, false));
}

#[tokio::test]
async fn processes_in_a_shared_pid_namespace_die_with_init() {
    let keeper = Keeper::default();
    let options = Options { host_pid: true, ..Options::default() };
    let c = Container::new(&keeper, "setsid sleep 1000 & echo up; exit 4", &options);
    start(&c).await;
    assert_eq!(code(&wait(&c).await), (4, 0, false));
    assert_eq!(c.texts("stdout"), ["up"]);
    delete(&c).await;
    assert!(!cgroup(&c).exists());
}

const COUNT: &str =
    "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; echo err $i >&2; done; exit 9";

#[tokio::test]
async fn monitors_killed_at_any_moment_lose_nothing() {
    let keeper = Keeper::default();
    for _ in 0..6 {
        let mut c = Container::new(&keeper, COUNT, &Options::default());
        start(&c).await;
        for round in 0..8u64 {
            std::thread::sleep(Duration::from_millis(round * 3));
            c.kill_monitor();
            c.fork();
        }
        assert_eq!(code(&wait(&c).await), (9, 0, false));
        assert_eq!(c.texts("stdout"), lines("line", 3000));
        assert_eq!(c.texts("stderr"), lines("err", 3000));
        delete(&c).await;
    }
}

#[tokio::test]
async fn an_exit_while_no_monitor_lives_is_exact() {
    let keeper = Keeper::default();
    let mut c = Container::new(&keeper, "sleep 0.3; echo last; exit 42", &Options::default());
    start(&c).await;
    let pid = state(&c).await.pid;
    c.kill_monitor();
    eventually("init ends", || sys::proc::stat(pid).is_none_or(|s| s.state == b'Z').then_some(()));
    c.fork();
    assert_eq!(code(&wait(&c).await), (42, 0, false));
    assert_eq!(c.texts("stdout"), ["last"]);
}

#[tokio::test]
async fn a_keeper_killed_loses_nothing() {
    let mut keeper = Keeper::default();
    let script = "i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo line $i; sleep 0.03; done; exit 6";
    let mut detached = {
        let c = Container::new(&keeper, script, &Options::default());
        start(&c).await;
        c.detach()
    };
    keeper.replace();
    let mut c = detached.attach(&keeper);
    eventually("the monitor hands its spares over again", || {
        let held = keeper.connect().call(&["GET", &c.id], &[]).ok()?.fields;
        let all = ["stdout", "stderr", "init", "log"];
        all.iter().all(|n| held.contains(&(*n).into())).then_some(())
    });
    c.kill_monitor();
    c.fork();
    assert_eq!(code(&wait(&c).await), (6, 0, false));
    assert_eq!(c.texts("stdout"), lines("line", 50));
}

#[tokio::test]
async fn a_terminal_outlives_its_monitor() {
    let keeper = Keeper::default();
    let options = Options { terminal: true, ..Options::default() };
    let script = "test -t 0 && test -t 1 && echo tty; i=0; \
                  while [ $i -lt 200 ]; do i=$((i+1)); echo n $i; sleep 0.01; done; exit 2";
    let mut c = Container::new(&keeper, script, &options);
    start(&c).await;
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(150));
        c.kill_monitor();
        c.fork();
    }
    assert_eq!(code(&wait(&c).await), (2, 0, false));
    let mut want = vec!["tty\r".to_owned()];
    want.extend((1..=200).map(|i| format!("n {i}\r")));
    assert_eq!(c.texts("stdout"), want);
}

#[tokio::test]
async fn a_create_that_its_monitor_did_not_survive_begins_again() {
    let keeper = Keeper::default();
    for delay in [0, 2, 5, 10, 20, 30] {
        let mut c = Container::new(&keeper, "echo hello", &Options::default());
        let client = c.client().await;
        let call = tokio::spawn(async move { client.create(ctx(), &CreateRequest::new()).await });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        c.kill_monitor();
        let _ = call.await;
        c.fork();
        start(&c).await;
        assert_eq!(code(&wait(&c).await), (0, 0, false), "{delay}");
        assert_eq!(c.texts("stdout"), ["hello"]);
    }
}

#[tokio::test]
async fn a_start_that_its_monitor_did_not_survive_happens_once() {
    let keeper = Keeper::default();
    for delay in [0, 2, 5, 8, 12, 20] {
        let mut c = Container::new(&keeper, "echo hello; exit 5", &Options::default());
        create(&c).await.unwrap();
        let client = c.client().await;
        let call = tokio::spawn(async move { client.start(ctx(), &StartRequest::new()).await });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        c.kill_monitor();
        let _ = call.await;
        c.fork();
        c.client().await.start(ctx(), &StartRequest::new()).await.unwrap();
        assert_eq!(code(&wait(&c).await), (5, 0, false), "{delay}");
        assert_eq!(c.texts("stdout"), ["hello"], "{delay}");
    }
}

#[tokio::test]
async fn two_monitors_of_one_container_cannot_be() {
    let keeper = Keeper::default();
    let mut c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let first = c.monitor;
    let sock = c.dir.join("monitor.sock");
    std::fs::rename(&sock, c.dir.join("kept")).unwrap();
    c.fork();
    eventually("the second one goes", || c.monitor_ended().then_some(()));
    assert!(sys::proc::stat(first).is_some());
    std::fs::rename(c.dir.join("kept"), &sock).unwrap();
    assert_eq!(state(&c).await.monitor_pid, first);
    delete(&c).await;
}
