//! Calls are repeated, run beside each other and are given up: each has one result.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use api_cri::v1::PodSandboxConfig;
use e2e::daemon::{Criod, EXITED, Options, READY, RUNNING, block, container, lines};
use e2e::eventually;

/// A plugin that gives an address after a while and notes each call.
const SLOW: &str = r#"#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID" >> DIR/calls
case "$CNI_COMMAND" in
ADD) sleep 0.8; cat > /dev/null
     echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.9.0.2/24","interface":0}]}';;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}';;
esac
"#;

fn slow() -> Criod {
    let criod = Criod::start(Options::default());
    criod.script("plugins/e2e-slow", SLOW);
    criod.network(&e2e::daemon::chain(&[serde_json::json!({"type": "e2e-slow"})]));
    criod
}

fn adds(criod: &Criod) -> usize {
    let calls = std::fs::read_to_string(criod.dir.join("calls")).unwrap_or_default();
    calls.lines().filter(|l| l.starts_with("ADD")).count()
}

#[test]
fn eight_callers_get_one_pod() {
    let criod = slow();
    let config = criod.pod("one");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let calls: Vec<_> =
            (0..8).map(|_| scope.spawn(|| criod.run_pod(&config).unwrap())).collect();
        // Lists do not wait, and do not show what is not there yet.
        std::thread::sleep(Duration::from_millis(300));
        assert!(criod.pods().iter().all(|p| p.state == READY));
        calls.into_iter().map(|c| c.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!((adds(&criod), criod.pods().len()), (1, 1));
    assert_eq!(criod.ip(&ids[0]), "10.9.0.2");
    criod.finish();
}

#[test]
fn a_caller_that_goes_away_cancels_nothing() {
    let criod = slow();
    let config = criod.pod("gone");
    let request = api_cri::v1::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    };
    block(async {
        let mut runtime = criod.runtime();
        let call = runtime.run_pod_sandbox(request);
        assert!(tokio::time::timeout(Duration::from_millis(400), call).await.is_err());
    });
    // The repeated call joins the first.
    let id = criod.run_pod(&config).unwrap();
    assert_eq!(adds(&criod), 1);

    let sleep = container("sleep", &["sleep", "1000"]);
    let request = api_cri::v1::CreateContainerRequest {
        pod_sandbox_id: id.clone(),
        config: Some(sleep.clone()),
        sandbox_config: Some(config.clone()),
    };
    block(async {
        let mut runtime = criod.runtime();
        let call = runtime.create_container(request);
        assert!(tokio::time::timeout(Duration::from_millis(15), call).await.is_err());
    });
    let made = criod.create(&id, &sleep, &config).unwrap();
    assert_eq!(criod.containers().len(), 1);
    let request = api_cri::v1::StartContainerRequest { container_id: made.clone() };
    block(async {
        let mut runtime = criod.runtime();
        let call = runtime.start_container(request);
        let _ = tokio::time::timeout(Duration::from_millis(5), call).await;
    });
    criod.start(&made).unwrap();
    assert_eq!(criod.status(&made).unwrap().state, RUNNING);
    // The pod goes although nobody waits for it.
    let request = api_cri::v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
    block(async {
        let mut runtime = criod.runtime();
        let call = runtime.stop_pod_sandbox(request);
        let _ = tokio::time::timeout(Duration::from_millis(5), call).await;
    });
    criod.stop_pod(&id).unwrap();
    assert_ne!(criod.pod_status(&id).unwrap().state, READY);
    criod.finish();
}

#[test]
fn creates_beside_each_other_give_one_container() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("creates");
    let pod = criod.run_pod(&config).unwrap();
    let one = container("one", &["sleep", "1000"]);
    let ids: Vec<String> = std::thread::scope(|scope| {
        let calls: Vec<_> =
            (0..6).map(|_| scope.spawn(|| criod.create(&pod, &one, &config).unwrap())).collect();
        calls.into_iter().map(|c| c.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(criod.containers().len(), 1);
    let id = &ids[0];
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..6).map(|_| scope.spawn(|| criod.start(id))).collect();
        calls.into_iter().for_each(|c| c.join().unwrap().unwrap());
    });
    assert_eq!(criod.status(id).unwrap().state, RUNNING);
    // Another attempt is another container.
    let mut next = one.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    let other = criod.create(&pod, &next, &config).unwrap();
    assert_ne!(&other, id);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..6).map(|_| scope.spawn(|| criod.remove(id))).collect();
        calls.into_iter().for_each(|c| c.join().unwrap().unwrap());
    });
    assert_eq!(criod.containers().len(), 1);
    criod.finish();
}

/// A container that takes no notice of SIGTERM.
fn stubborn(criod: &Criod, pod: &str, config: &PodSandboxConfig) -> String {
    let script = "trap '' TERM; echo deaf; while :; do sleep 0.1; done";
    let id = criod.run(pod, &container("stubborn", &["sh", "-c", script]), config);
    let log = criod.log(&config.hostname, "stubborn");
    eventually("it is deaf", || (!lines(&log).is_empty()).then_some(()));
    id
}

#[test]
fn a_later_stop_brings_the_end_nearer() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("stops");
    let pod = criod.run_pod(&config).unwrap();
    let id = stubborn(&criod, &pod, &config);
    std::thread::scope(|scope| {
        let long = scope.spawn(|| criod.stop(&id, 600).unwrap());
        std::thread::sleep(Duration::from_millis(200));
        let longer = scope.spawn(|| criod.stop(&id, 900).unwrap());
        let short = scope.spawn(|| criod.stop(&id, 2).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        for _ in 0..20 {
            assert_eq!(criod.status(&id).unwrap().state, RUNNING);
            assert_eq!(criod.containers().len(), 1);
            assert_eq!(criod.pod_status(&pod).unwrap().state, READY);
        }
        assert!(!long.is_finished() && !short.is_finished());
        for call in [long, longer, short] {
            call.join().unwrap();
        }
    });
    let status = criod.status(&id).unwrap();
    assert_eq!((status.state, status.exit_code), (EXITED, 137));
    criod.finish();
}

#[test]
fn a_pod_is_stopped_while_a_container_is_being_stopped() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("nested");
    let pod = criod.run_pod(&config).unwrap();
    let id = stubborn(&criod, &pod, &config);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| criod.stop(&id, 600).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        criod.remove_pod(&pod).unwrap();
        stop.join().unwrap();
    });
    eventually("nothing is listed", || criod.containers().is_empty().then_some(()));
    criod.finish();
}
