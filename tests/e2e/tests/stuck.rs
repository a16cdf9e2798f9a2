//! A process in uninterruptible sleep: its container cannot end, and nobody else may notice.
//!
//! ```text
//! cat /stuck/stuck ─READ─▶ a FUSE server that does not answer      Stuck::release ─▶ all of it goes
//! ```

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use api_cri::v1::{
    ContainerConfig, ContainerStatsRequest, ExecSyncRequest, Mount, PodSandboxConfig,
};
use e2e::daemon::{Answer, Criod, EXITED, Options, RUNNING, block, cgroup_members, container};
use e2e::eventually;
use e2e::stuck::Stuck;
use tonic::Code;

/// A container whose child reads what never comes.
fn reader(stuck: &Stuck) -> ContainerConfig {
    let mut config = container(
        "stuck",
        &["sh", "-c", "cat /stuck/stuck & trap 'exit 5' TERM; while :; do sleep 0.05; done"],
    );
    config.mounts.push(Mount {
        host_path: stuck.folder().to_string_lossy().into_owned(),
        container_path: "/stuck".into(),
        ..Default::default()
    });
    config
}

fn sleeps(criod: &Criod, stuck: &Stuck) -> i32 {
    stuck.is_read();
    let line = |pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let found = cgroup_members(&criod.tag).into_iter().map(|p| p.0);
    found.into_iter().find(|p| line(*p).starts_with("cat\0")).unwrap()
}

/// What a call about it says, once it has waited for long enough.
fn says_why(answer: Answer<()>, pid: i32) {
    let error = answer.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    let text = error.message();
    assert!(text.contains("uninterruptible") && text.contains(&pid.to_string()), "{text}");
}

/// Everything else goes on.
fn nobody_waits(criod: &Criod, config: &PodSandboxConfig, pod: &str, other: &str) {
    assert_eq!(criod.exec(other, &["echo", "yes"]).unwrap(), (0, "yes\n".to_owned()));
    assert_eq!(criod.status(other).unwrap().state, RUNNING);
    assert!(criod.pod_status(pod).is_ok());
    let stats = ContainerStatsRequest { container_id: other.to_owned() };
    block(async { criod.runtime().container_stats(stats).await }).unwrap();
    let id = criod.run(pod, &container("late", &["sh", "-c", "exit 3"]), config);
    assert_eq!(criod.ended(&id).exit_code, 3);
    criod.remove(&id).unwrap();
    let elsewhere = criod.host_pod("elsewhere");
    let second = criod.run_pod(&elsewhere).unwrap();
    criod.stop_pod(&second).unwrap();
    criod.remove_pod(&second).unwrap();
}

#[test]
fn a_process_that_no_signal_ends_holds_up_its_own_container_alone() {
    let folder = tempfile::Builder::new().prefix("criod-e2e-stuck-").tempdir().unwrap();
    let mut stuck = Stuck::new(folder.path().join("stuck"));
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("pod");
    let pod = criod.run_pod(&config).unwrap();
    let other = criod.run(&pod, &container("other", &["sleep", "1000"]), &config);
    let id = criod.run(&pod, &reader(&stuck), &config);
    let pid = sleeps(&criod, &stuck);
    assert_eq!(criod.exec(&id, &["echo", "here"]).unwrap(), (0, "here\n".to_owned()));
    // A command that holds its own pipe costs its caller its time, and nobody else's.
    let cmd = ["cat", "/stuck/stuck"].map(str::to_owned).to_vec();
    let command = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 2 };
    let late = block(async { criod.runtime().exec_sync(command).await }).unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert_eq!(criod.exec(&id, &["echo", "here"]).unwrap(), (0, "here\n".to_owned()));
    std::thread::scope(|scope| {
        let cri = &criod.cri;
        let calls = [
            scope.spawn(|| says_why(cri.stop(&id, 1), pid)),
            scope.spawn(|| says_why(cri.remove(&id), pid)),
        ];
        nobody_waits(&criod, &config, &pod, &other);
        assert_eq!(criod.status(&id).unwrap().state, RUNNING, "it has not ended");
        calls.into_iter().for_each(|c| c.join().unwrap());
    });
    // A criod that starts is not held up, and whoever takes over at a monitor is not either.
    criod.restart();
    let monitor = criod.kill_monitor(&id);
    eventually("another monitor", || criod.monitor_pid(&id).filter(|new| *new != monitor));
    assert_eq!(criod.status(&id).unwrap().state, RUNNING);
    std::thread::scope(|scope| {
        let cri = &criod.cri;
        let call = scope.spawn(|| says_why(cri.stop_pod(&pod), pid));
        // The pod's others were stopped meanwhile.
        assert_eq!(criod.ended(&other).state, EXITED);
        call.join().unwrap();
    });
    stuck.release();
    let status = criod.ended(&id);
    assert!([5, 137].contains(&status.exit_code), "{status:?}");
    criod.stop_pod(&pod).unwrap();
    criod.remove(&id).unwrap();
    criod.remove_pod(&pod).unwrap();
    criod.finish();
}

/// There its init is not the namespace's, and ends although its child cannot.
#[test]
fn what_outlives_init_in_a_shared_pid_namespace_is_removed_when_it_can_be() {
    let folder = tempfile::Builder::new().prefix("criod-e2e-stuck-").tempdir().unwrap();
    let mut stuck = Stuck::new(folder.path().join("stuck"));
    let criod = Criod::start(Options::default());
    let config = criod.pid_pod("pod");
    let pod = criod.run_pod(&config).unwrap();
    let shared = |mut c: ContainerConfig| {
        let context = config.linux.clone().unwrap().security_context.unwrap();
        c.linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
            .namespace_options = context.namespace_options;
        c
    };
    let other = criod.run(&pod, &shared(container("other", &["sleep", "1000"])), &config);
    let id = criod.run(&pod, &shared(reader(&stuck)), &config);
    sleeps(&criod, &stuck);
    criod.stop(&id, 20).unwrap();
    assert_eq!(criod.status(&id).unwrap().exit_code, 5);
    std::thread::scope(|scope| {
        let cri = &criod.cri;
        let call = scope.spawn(|| cri.remove(&id).unwrap_err());
        nobody_waits(&criod, &config, &pod, &other);
        let error = call.join().unwrap();
        assert!(error.message().contains(&id) || error.message().contains("cgroup"), "{error:?}");
    });
    // Its namespace cannot end either.
    let error = criod.stop_pod(&pod).unwrap_err();
    assert!(!error.message().is_empty(), "{error:?}");
    stuck.release();
    eventually("the pod can be stopped", || criod.stop_pod(&pod).ok());
    criod.remove_pod(&pod).unwrap();
    criod.finish();
}
