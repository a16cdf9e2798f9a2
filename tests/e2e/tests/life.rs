//! Whole lives of pods and containers, with real runtimes, plugins and a registry.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use e2e::daemon::{BUSYBOX, Criod, EXITED, Options, READY, container, lines, numbers};
use e2e::eventually;
use e2e::monitor::cgroup_dir;

/// Debian's crun refuses a hybrid hierarchy, so it has to see one without its second half.
const CRUN: &str = r#"#!/bin/sh
exec unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null && mount -t tmpfs none /sys/fs/cgroup/unified; exec /usr/bin/crun "$@"' sh "$@"
"#;

fn whole_life(criod: &Criod, handler: &str) {
    let config = criod.pod("life");
    let pod = criod.run_pod_with(&config, handler).unwrap();
    assert_eq!(criod.run_pod_with(&config, handler).unwrap(), pod, "the same call, the same pod");
    let status = criod.pod_status(&pod).unwrap();
    assert_eq!((status.state, status.runtime_handler.as_str()), (READY, handler));
    assert!(criod.ip(&pod).starts_with("10.88."), "{status:?}");

    let script = "echo out; echo err >&2; trap 'echo bye; exit 5' TERM; \
                  while :; do sleep 0.05; done";
    let web = container("web", &["sh", "-c", script]);
    let id = criod.create(&pod, &web, &config).unwrap();
    assert_eq!(criod.create(&pod, &web, &config).unwrap(), id);
    assert_eq!(criod.status(&id).unwrap().image.unwrap().image, BUSYBOX);
    criod.start(&id).unwrap();
    criod.start(&id).unwrap();
    let log = criod.log("life", "web");
    eventually("both lines are in the log", || (lines(&log).len() == 2).then_some(()));
    let line = |stream: &str, text: &str| (stream.to_owned(), text.to_owned());
    for expected in [line("stdout", "out"), line("stderr", "err")] {
        assert!(lines(&log).contains(&expected), "{:?}", lines(&log));
    }
    let (code, text) =
        criod.exec(&id, &["sh", "-c", "hostname; ip -4 addr show eth0; exit 3"]).unwrap();
    assert_eq!(code, 3);
    assert!(text.starts_with("life\n") && text.contains(&criod.ip(&pod)), "{text}");

    criod.stop(&id, 20).unwrap();
    criod.stop(&id, 20).unwrap();
    let status = criod.status(&id).unwrap();
    assert_eq!((status.state, status.exit_code, status.reason.as_str()), (EXITED, 5, "Error"));
    assert!(lines(&log).contains(&line("stdout", "bye")));
    criod.remove(&id).unwrap();
    criod.remove(&id).unwrap();
    assert!(criod.status(&id).is_err() && log.exists());
    criod.stop_pod(&pod).unwrap();
    criod.stop_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
    assert!(criod.pod_status(&pod).is_err());
    criod.clean();
}

#[test]
fn under_runc() {
    let criod = Criod::start(Options::default());
    whole_life(&criod, "");
    criod.finish();
}

#[test]
fn under_crun() {
    let options = Options {
        args: vec!["--runtimes", "crun:DIR/bin/crun:DIR/run/crun:oci"],
        ..Options::default()
    };
    let mut criod = Criod::prepare(options);
    criod.script("bin/crun", CRUN);
    criod.launch();
    criod.ready();
    criod.pull(BUSYBOX).unwrap();
    whole_life(&criod, "crun");
    criod.finish();
}

#[test]
fn in_the_default_cgroup_and_without_asking_for_logs() {
    let criod = Criod::start(Options::default());
    let mut config = criod.host_pod("plain");
    config.linux.as_mut().unwrap().cgroup_parent = String::new();
    config.log_directory = String::new();
    let pod = criod.run_pod(&config).unwrap();
    let mut plain = container("plain", &["echo", "hello"]);
    plain.log_path = String::new();
    let id = criod.run(&pod, &plain, &config);
    assert_eq!(criod.ended(&id).exit_code, 0);
    let log = criod.status(&id).unwrap().log_path;
    assert_eq!(lines(log.as_ref()), [("stdout".to_owned(), "hello".to_owned())]);
    let group = cgroup_dir("pids", "x").with_file_name(format!("crio/pod{pod}"));
    assert!(group.join(format!("crio-{id}")).exists());
    assert!(group.join(format!("crio-{pod}")).exists(), "by it cAdvisor knows the pod");
    criod.remove_pod(&pod).unwrap();
    assert!(e2e::daemon::processes(&id).is_empty());
    assert!(!group.exists());
    criod.finish();
}

#[test]
fn a_shared_pid_namespace_has_a_process_of_its_own() {
    let criod = Criod::start(Options::default());
    let config = criod.pid_pod("shared");
    let pod = criod.run_pod(&config).unwrap();
    let first = criod.run(&pod, &container("first", &["sleep", "1001"]), &config);
    let second = criod.run(&pod, &container("second", &["sleep", "1002"]), &config);
    let (_, text) = criod.exec(&second, &["ps", "-o", "pid,args"]).unwrap();
    for expected in ["sleep 1001", "sleep 1002", "/pause"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(text.lines().any(|l| l.trim().starts_with("1 ") && l.contains("/pause")), "{text}");
    assert_eq!(criod.containers().len(), 2, "the pod's own process is not listed");

    // Its own process ends: the namespace, and all that is in it, is gone.
    let infra = e2e::daemon::cgroup_members(&pod);
    assert_eq!(infra.len(), 1, "{infra:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(infra[0].0), nix::sys::signal::SIGKILL)
        .unwrap();
    eventually("the pod is not ready", || {
        (criod.pod_status(&pod).unwrap().state != READY).then_some(())
    });
    for id in [&first, &second] {
        assert_eq!(criod.ended(id).exit_code, 137);
    }
    criod.finish();
}

#[test]
fn logs_are_rotated_under_load_without_a_gap() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("rotate");
    let pod = criod.run_pod(&config).unwrap();
    let script = "i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done";
    let id = criod.run(&pod, &container("load", &["sh", "-c", script]), &config);
    let log = criod.log("rotate", "load");
    let mut parts = Vec::new();
    // As the kubelet does it: rename, then ask for the path to be opened anew.
    while criod.status(&id).unwrap().state != EXITED && parts.len() < 200 {
        let part = log.with_extension(format!("log.{}", parts.len()));
        std::fs::rename(&log, &part).unwrap();
        match criod.reopen_log(&id) {
            Ok(()) => assert!(log.exists(), "it answers when the new file is open"),
            // It has ended in the meantime.
            Err(e) => assert_eq!(criod.status(&id).unwrap().state, EXITED, "{e}"),
        }
        parts.push(part);
    }
    criod.ended(&id);
    assert!(parts.len() > 2, "it was rotated {} times", parts.len());
    if log.exists() {
        parts.push(log.clone());
    }
    let all: Vec<u64> = parts.iter().flat_map(|p| numbers(p)).collect();
    assert!(all.iter().copied().eq(0..40000), "{} lines", all.len());
    criod.remove(&id).unwrap();
    assert!(parts.iter().all(|p| p.exists()), "logs are the kubelet's");
    criod.finish();
}

#[test]
fn many_containers_are_there_at_once_after_a_kill() {
    const MANY: usize = 40;
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("many");
    let pod = criod.run_pod(&config).unwrap();
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (criod, pod, config) = (&criod.cri, &pod, &config);
            scope.spawn(move || {
                for n in (half..MANY).step_by(2) {
                    let one = container(&format!("c{n}"), &["sleep", "1000"]);
                    criod.run(pod, &one, config);
                }
            });
        }
    });
    criod.kill9();
    criod.launch();
    let began = Instant::now();
    // The listener is the keeper's: the call waits and is then served.
    let found = criod.containers();
    println!("served after {:?}", began.elapsed());
    assert_eq!(found.len(), MANY);
    assert!(found.iter().all(|c| c.state == e2e::daemon::RUNNING));
    criod.finish();
}
