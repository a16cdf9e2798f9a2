//! Pod networks: plugins that are missing, fail or hang, no configuration at all, host ports.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use api_cri::v1::{PodSandboxConfig, PortMapping};
use e2e::daemon::{Criod, NOT_READY, Options, READY, bridge, chain, container};
use e2e::eventually;
use serde_json::json;
use tonic::Code;

/// A plugin that notes its calls and does what files say: `add` and `del` name what to do instead.
const FICKLE: &str = r#"#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID" >> DIR/calls
trouble() {
	case "$(cat "$1" 2>/dev/null)" in
	fail) echo '{"cniVersion":"1.0.0","code":11,"msg":"the pool is dry","details":"come back later"}'
	      exit 1;;
	garbage) echo 'this is no JSON'; echo 'and this is on stderr' >&2; exit 3;;
	slow) sleep 1; echo "DONE $CNI_CONTAINERID" >> DIR/calls;;
	hang) while :; do sleep 1; done;;
	esac
}
case "$CNI_COMMAND" in
ADD) trouble DIR/add
     echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.9.0.2/24","interface":0}]}';;
DEL) trouble DIR/del;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}';;
esac
"#;

fn fickle() -> Criod {
    let criod = Criod::start(Options::default());
    criod.script("plugins/e2e-fickle", FICKLE);
    criod.network(&chain(&[json!({"type": "e2e-fickle"})]));
    criod
}

fn told(criod: &Criod, what: &str, how: &str) {
    std::fs::write(criod.dir.join(what), how).unwrap();
}

fn calls(criod: &Criod, command: &str) -> usize {
    let calls = std::fs::read_to_string(criod.dir.join("calls")).unwrap_or_default();
    calls.lines().filter(|l| l.starts_with(command)).count()
}

#[test]
fn a_plugin_is_missing() {
    let criod = Criod::start(Options::default());
    criod.network(&chain(&[json!({"type": "e2e-nowhere"})]));
    let error = criod.run_pod(&criod.pod("missing")).unwrap_err();
    assert!(error.message().contains("e2e-nowhere"), "{error}");
    criod.clean();
    // It comes: nothing has to be started again.
    criod.script("plugins/e2e-nowhere", FICKLE);
    criod.run_pod(&criod.pod("missing")).unwrap();
    criod.finish();
}

#[test]
fn a_plugin_fails() {
    let criod = fickle();
    told(&criod, "add", "fail");
    let config = criod.pod("fails");
    let error = criod.run_pod(&config).unwrap_err();
    for part in ["e2e-fickle", "the pool is dry", "come back later"] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
    assert!(calls(&criod, "DEL") > 0, "what failed is undone");
    criod.clean();
    told(&criod, "add", "garbage");
    let error = criod.run_pod(&config).unwrap_err();
    assert!(error.message().contains("and this is on stderr"), "{error}");
    criod.clean();
    told(&criod, "add", "");
    criod.run_pod(&config).unwrap();
    criod.finish();
}

#[test]
fn a_plugin_hangs_and_nothing_else_does() {
    let mut criod = fickle();
    told(&criod, "add", "hang");
    let config = criod.pod("hangs");
    let cri = criod.cri.clone();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| cri.run_pod(&config));
        eventually("the plugin is called", || (calls(&criod, "ADD") == 1).then_some(()));
        let other = criod.host_pod("other");
        let pod = criod.run_pod(&other).unwrap();
        let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &other);
        assert_eq!(criod.exec(&id, &["echo", "x"]).unwrap().1, "x\n");
        assert!(criod.condition("RuntimeReady").0 && criod.condition("NetworkReady").0);
        assert_eq!(criod.pods().iter().filter(|p| p.state == READY).count(), 1);
        criod.stop(&id, 1).unwrap();
        criod.remove_pod(&pod).unwrap();
        assert!(!call.is_finished());
        told(&criod, "add", "");
        criod.restart();
        assert!(call.join().unwrap().is_err());
    });
    let pod = criod.run_pod(&config).unwrap();
    assert_eq!(criod.pods().len(), 1);
    eventually("the first try is undone", || (calls(&criod, "DEL") > 0).then_some(()));
    criod.stop_pod(&pod).unwrap();
    criod.finish();
}

/// A plugin that is killed half way may leave what no DEL finds: host-local makes the file of a lease
/// before it writes the owner's name into it.
#[test]
fn a_plugin_outlives_the_daemon_and_ends_before_it_is_undone() {
    let mut criod = fickle();
    told(&criod, "add", "slow");
    let config = criod.pod("slow");
    let cri = criod.cri.clone();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| cri.run_pod(&config));
        eventually("the plugin is called", || (calls(&criod, "ADD") == 1).then_some(()));
        criod.kill9();
        criod.launch();
        assert!(call.join().unwrap().is_err());
    });
    eventually("it is undone", || (calls(&criod, "DEL") > 0).then_some(()));
    let all = std::fs::read_to_string(criod.dir.join("calls")).unwrap();
    let verbs: Vec<&str> = all.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(verbs, ["ADD", "DONE", "DEL"], "{all}");
    criod.finish();
}

#[test]
fn a_detach_fails_at_first() {
    let criod = fickle();
    let config = criod.pod("stays");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    told(&criod, "del", "fail");
    for _ in 0..2 {
        let error = criod.stop_pod(&pod).unwrap_err();
        assert!(error.message().contains("the pool is dry"), "{error}");
    }
    // What could be done has been done.
    assert_eq!(criod.ended(&id).exit_code, 137);
    assert_eq!(criod.pod_status(&pod).unwrap().state, NOT_READY);
    assert!(criod.remove_pod(&pod).is_err());
    assert_eq!(criod.pods().len(), 1, "it is still there, for it is not gone");
    told(&criod, "del", "");
    criod.stop_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
    criod.finish();
}

#[test]
fn what_a_failed_run_leaves_is_taken_away_later() {
    let mut criod = fickle();
    told(&criod, "add", "fail");
    told(&criod, "del", "fail");
    let config = criod.pod("later");
    assert!(criod.run_pod(&config).is_err());
    assert!(criod.pods().is_empty(), "it never was");
    let before = calls(&criod, "DEL");
    eventually("it is tried again", || (calls(&criod, "DEL") > before).then_some(()));
    criod.restart();
    let before = calls(&criod, "DEL");
    eventually("a successor tries, too", || (calls(&criod, "DEL") > before).then_some(()));
    // The name is free.
    told(&criod, "add", "");
    let pod = criod.run_pod(&config).unwrap();
    assert_eq!(criod.pod_status(&pod).unwrap().state, READY);
    told(&criod, "del", "");
    criod.finish();
}

#[test]
fn there_is_no_network() {
    let criod = Criod::start(Options { no_network: true, ..Options::default() });
    let (ready, reason, message) = criod.condition("NetworkReady");
    assert!(!ready && !reason.is_empty() && !message.is_empty(), "{reason} {message}");
    assert!(criod.condition("RuntimeReady").0);
    let error = criod.run_pod(&criod.pod("none")).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("cni"), "{error}");
    let config = criod.host_pod("host");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["true"]), &config);
    assert_eq!(criod.ended(&id).exit_code, 0);

    criod.network("{ this is no JSON");
    let (ready, _, message) = criod.condition("NetworkReady");
    assert!(!ready && message.contains("10-e2e.conflist"), "{message}");
    criod.network(&bridge(&criod.dir, false));
    assert!(criod.condition("NetworkReady").0);
    criod.run_pod(&criod.pod("none")).unwrap();
    criod.finish();
}

fn with_ports(mut config: PodSandboxConfig, ports: &[(i32, i32)]) -> PodSandboxConfig {
    config.port_mappings = ports
        .iter()
        .map(|(host_port, container_port)| PortMapping {
            host_port: *host_port,
            container_port: *container_port,
            ..Default::default()
        })
        .collect();
    config
}

/// What a server behind this address says, if there is one.
fn says(criod: &Criod, address: &str) -> Option<String> {
    criod.net.run(|| {
        let address = address.parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })
}

fn host_ports(portmap: bool) {
    let mut criod = Criod::start(Options { portmap, ..Options::default() });
    let config = with_ports(criod.pod("ports"), &[(8080, 80), (0, 81)]);
    let pod = criod.run_pod(&config).unwrap();
    let serve = |text: &str| format!("while :; do echo {text} | nc -l -p 80; done");
    criod.run(&pod, &container("web", &["sh", "-c", &serve("first")]), &config);
    let other = with_ports(criod.pod("other"), &[(8081, 80)]);
    let other_pod = criod.run_pod(&other).unwrap();
    criod.run(&other_pod, &container("web", &["sh", "-c", &serve("second")]), &other);
    let reached = |criod: &Criod, address: &str, text: &str| {
        eventually(&format!("{text} at {address}"), || {
            says(criod, address).filter(|said| said.trim() == text)
        });
    };
    for _ in 0..2 {
        reached(&criod, "127.0.0.1:8080", "first");
        reached(&criod, "10.88.0.1:8080", "first");
        reached(&criod, "127.0.0.1:8081", "second");
        criod.restart();
    }
    // A successor opens and closes without touching those of others.
    criod.remove_pod(&other_pod).unwrap();
    assert_eq!(says(&criod, "127.0.0.1:8081"), None);
    reached(&criod, "127.0.0.1:8080", "first");
    criod.stop_pod(&pod).unwrap();
    assert_eq!(says(&criod, "127.0.0.1:8080"), None);
    criod.finish();
}

#[test]
fn host_ports_without_portmap() {
    host_ports(false);
}

#[test]
fn host_ports_by_portmap() {
    host_ports(true);
}

#[test]
fn a_host_port_is_taken() {
    let criod = Criod::start(Options::default());
    criod.run_pod(&with_ports(criod.pod("first"), &[(8080, 80)])).unwrap();
    let error = criod.run_pod(&with_ports(criod.pod("second"), &[(8080, 80)])).unwrap_err();
    assert!(error.message().contains("8080"), "{error}");
    assert_eq!(criod.pods().len(), 1);
    criod.finish();
}
