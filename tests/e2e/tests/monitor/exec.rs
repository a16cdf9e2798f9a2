//! Commands in the container.

use std::fs;
use std::time::Duration;

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options, members};

use super::runtimes::Fake;
use super::*;

/// Files of commands in the monitor's folder, other than output that was handed out.
fn files(c: &Container<'_>) -> Vec<String> {
    let all = fs::read_dir(&c.dir).unwrap().flatten();
    let mut names: Vec<_> = all.map(|e| e.file_name().into_string().unwrap()).collect();
    names.retain(|n| n.starts_with("exec-"));
    names
}

#[tokio::test]
async fn thirty_at_a_time_keep_their_outputs_apart() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let mut calls = Vec::new();
    for n in 0..30 {
        let client = c.client().await;
        let script = format!("echo out {n}; echo err {n} >&2; exit {n}");
        let process = serde_json::json!({
            "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 },
        });
        let process = process.to_string().into_bytes();
        let request = ExecSyncRequest { process, timeout_ms: 15_000, ..ExecSyncRequest::new() };
        calls.push(tokio::spawn(async move { client.exec_sync(ctx(), &request).await }));
    }
    for (n, call) in calls.into_iter().enumerate() {
        let done = call.await.unwrap().unwrap();
        assert_eq!((done.exit_code, done.timed_out), (n as i32, false));
        assert_eq!(fs::read_to_string(&done.stdout).unwrap(), format!("out {n}\n"));
        assert_eq!(fs::read_to_string(&done.stderr).unwrap(), format!("err {n}\n"));
        fs::remove_file(done.stdout).unwrap();
        fs::remove_file(done.stderr).unwrap();
    }
    assert!(files(&c).is_empty(), "{:?}", files(&c));
    delete(&c).await;
}

#[tokio::test]
async fn signals_exit_codes_and_missing_runtimes() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    let c = Container::new(&keeper, "sleep 1000", &fake.options());
    start(&c).await;
    assert_eq!(sh(&c, "kill -9 $$", 0).await.exit_code, 137);
    assert_eq!(sh(&c, "kill -TERM $$; sleep 10", 0).await.exit_code, 143);
    let before = files(&c).len();
    fs::rename(&fake.path, fake.path.with_extension("away")).unwrap();
    let error = run(&c, &["/bin/true"], 0).await.unwrap_err().to_string();
    assert!(error.contains("fake-runtime") && error.contains("No such file"), "{error}");
    assert_eq!(files(&c).len(), before);
    fs::rename(fake.path.with_extension("away"), &fake.path).unwrap();
    assert_eq!(sh(&c, "exit 3", 0).await.exit_code, 3);
    delete(&c).await;
    eventually("the monitor ends", || c.monitor_ended().then_some(()));
}

#[tokio::test]
async fn while_stopping_until_the_first_sigkill() {
    let keeper = Keeper::default();
    let script = "trap 'echo term' TERM; echo ready; while :; do sleep 0.05; done";
    let c = Container::new(&keeper, script, &Options::default());
    start(&c).await;
    says(&c, "ready");
    stop(&c, 60_000).await;
    says(&c, "term");
    assert_eq!(sh(&c, "exit 4", 0).await.exit_code, 4);
    // One that is under way when the end comes is answered, too.
    let client = c.client().await;
    let process = serde_json::json!({
        "args": ["/bin/busybox", "sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"],
        "user": { "uid": 0, "gid": 0 },
    });
    let process = process.to_string().into_bytes();
    let request = ExecSyncRequest { process, ..ExecSyncRequest::new() };
    let call = tokio::spawn(async move { client.exec_sync(ctx(), &request).await });
    let noted =
        |f: &String| f.ends_with(".run") && !fs::read(c.dir.join(f)).unwrap_or_default().is_empty();
    meanwhile("it runs", || files(&c).iter().any(noted)).await;
    stop(&c, 0).await;
    assert_eq!(call.await.unwrap().unwrap().exit_code, 137);
    assert_eq!(code(&wait(&c).await), (137, 9, false));
    let error = run(&c, &["/bin/true"], 0).await.unwrap_err().to_string();
    assert!(error.contains("not running"), "{error}");
    delete(&c).await;
}

#[tokio::test]
async fn a_runtime_that_hangs_does_not_outlive_the_deadline() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    let c = Container::new(&keeper, "sleep 1000", &fake.options());
    start(&c).await;
    fake.hang("exec");
    let late = sh(&c, "echo never", 200).await;
    assert!(late.timed_out);
    assert_eq!(late.exit_code, -1);
    eventually("the runtime is gone", || fake.running("exec").is_empty().then_some(()));
    fake.heal("exec");
    assert_eq!(sh(&c, "exit 6", 0).await.exit_code, 6);
    // Without a deadline it is the container's end that ends it.
    fake.hang("exec");
    let client = c.client().await;
    let request = ExecSyncRequest { process: b"{}".to_vec(), ..ExecSyncRequest::new() };
    let call = tokio::spawn(async move { client.exec_sync(ctx(), &request).await });
    meanwhile("it hangs", || !fake.running("exec").is_empty()).await;
    delete(&c).await;
    assert_eq!(call.await.unwrap().unwrap().exit_code, -1);
    eventually("the runtime is gone", || fake.running("exec").is_empty().then_some(()));
}

#[tokio::test]
async fn output_nobody_waits_for_is_removed() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let call = {
        let client = c.client().await;
        let process = serde_json::json!({
            "args": ["/bin/busybox", "sleep", "0.5"], "cwd": "/", "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 },
        });
        let process = process.to_string().into_bytes();
        let request = ExecSyncRequest { process, ..ExecSyncRequest::new() };
        tokio::spawn(async move { client.exec_sync(ctx(), &request).await })
    };
    meanwhile("it begins", || !files(&c).is_empty()).await;
    call.abort();
    let _ = call.await;
    eventually("no file is left", || files(&c).is_empty().then_some(()));
    delete(&c).await;
}

#[tokio::test]
async fn commands_of_a_dead_monitor_end_and_leave_nothing() {
    let keeper = Keeper::default();
    let mut c = Container::new(&keeper, "sleep 1000", &Options::default());
    start(&c).await;
    let kept = sh(&c, "echo kept", 0).await;
    for delay in [0, 10, 30, 60, 300] {
        let client = c.client().await;
        let process = serde_json::json!({
            "args": ["/bin/sh", "-c", "sleep 1000 & sleep 1000"], "cwd": "/",
            "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
        });
        let process = process.to_string().into_bytes();
        let request = ExecSyncRequest { process, ..ExecSyncRequest::new() };
        let call = tokio::spawn(async move { client.exec_sync(ctx(), &request).await });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        c.kill_monitor();
        assert!(call.await.unwrap().is_err());
        c.fork();
        assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
        eventually("only init is left", || (members(&c.id).len() == 1).then_some(()));
        assert_eq!(files(&c).len(), 2, "{delay}: {:?}", files(&c));
    }
    assert_eq!(fs::read_to_string(kept.stdout).unwrap(), "kept\n");
    // A new monitor's files do not meet an old one's.
    sh(&c, "echo new", 0).await;
    assert_eq!(files(&c).len(), 4);
    delete(&c).await;
}
