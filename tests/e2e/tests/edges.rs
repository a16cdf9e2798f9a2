//! Ends of things that come at a bad moment, and settings that meet an odd pod.
//!
//! ```text
//! while criod is down    the pod's own process ends, its socket is flooded, a monitor's folder goes
//! under a READY pod      its namespaces are unpinned
//! a runtime that hangs   in `create` while the pod is stopped, in `delete` while others wait
//! settings               pause_image without its registry, default_sysctls on the host's network
//! a pod's files          are read-only with the root, and bounded without
//! ```

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use api_cri::v1::{LinuxContainerConfig, LinuxContainerSecurityContext, PodSandboxStatusRequest};
use e2e::daemon::{
    BUSYBOX, Criod, EXITED, NOT_READY, Options, READY, RUNNING, block, cgroup_members, container,
};
use e2e::eventually;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

/// Ends every process in the container's cgroup.
fn kill_members(id: &str) {
    let members = cgroup_members(&format!("crio-{id}"));
    assert!(!members.is_empty());
    for (pid, _) in members {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    entries.map(|e| e.file_name().into_string().unwrap()).collect()
}

/// Pid of the pod's own process, as its verbose status has it.
fn infra_pid(criod: &Criod, pod: &str) -> i64 {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.into(), verbose: true };
    let answer = block(async { criod.runtime().pod_sandbox_status(request).await });
    let info = answer.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    info["pid"].as_i64().unwrap()
}

#[test]
fn a_pods_own_process_ends_while_criod_is_down() {
    let mut criod = Criod::start(Options::default());
    let config = criod.pid_pod("infra");
    let pod = criod.run_pod(&config).unwrap();
    let sleep = container("c", &["sleep", "1000"]);
    let id = criod.run(&pod, &sleep, &config);
    // The namespace is joined where it is pinned, not by the pid of whoever made it.
    let pin = criod.dir.join(format!("run/ns/{pod}/pid"));
    let infra = infra_pid(&criod, &pod);
    let of_infra = fs::metadata(format!("/proc/{infra}/ns/pid")).unwrap();
    assert_eq!(fs::metadata(&pin).unwrap().ino(), of_infra.ino());
    let spec = fs::read(criod.dir.join(format!("run/containers/{id}/bundle/config.json"))).unwrap();
    let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
    let spaces = spec["linux"]["namespaces"].as_array().unwrap();
    let joined = spaces.iter().find(|n| n["type"] == "pid").unwrap();
    assert_eq!(joined["path"].as_str(), pin.to_str());

    criod.kill9();
    kill_members(&pod);
    eventually("all in the namespace has ended", || {
        cgroup_members(&criod.tag).is_empty().then_some(())
    });
    criod.launch();
    criod.ready();
    eventually("the pod is not ready", || {
        (criod.pod_status(&pod).unwrap().state == NOT_READY).then_some(())
    });
    assert_eq!(infra_pid(&criod, &pod), 0);
    assert_eq!(criod.ended(&id).exit_code, 137);
    let late = container("late", &["sleep", "1000"]);
    let error = criod.create(&pod, &late, &config).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    criod.finish();
}

#[test]
fn its_socket_is_flooded_while_criod_is_down() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("flood");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    criod.kill9();
    let socket = criod.dir.join("criod.sock");
    let refused = block(async {
        let mut refused = 0;
        for _ in 0..5000 {
            refused += u32::from(tokio::net::UnixStream::connect(&socket).await.is_err());
        }
        refused
    });
    assert!(refused > 0, "the queue is full");
    criod.launch();
    criod.ready();
    assert_eq!(criod.status(&id).unwrap().state, RUNNING);
    criod.finish();
}

const FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

#[test]
fn the_files_of_a_pod_are_read_only_or_bounded() {
    let criod = Criod::start(Options::default());
    let config = criod.pod("files");
    let pod = criod.run_pod(&config).unwrap();
    let dir = criod.dir.join(format!("run/pods/{pod}"));
    let contents = || FILES.map(|name| fs::read(dir.join(name)).unwrap());
    let before = contents();
    let mut firm = container("firm", &["sleep", "1000"]);
    firm.linux = Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            readonly_rootfs: true,
            ..Default::default()
        }),
        ..Default::default()
    });
    let firm = criod.run(&pod, &firm, &config);
    let soft = criod.run(&pod, &container("soft", &["sleep", "1000"]), &config);
    for name in FILES {
        let (code, text) =
            criod.exec(&firm, &["sh", "-c", &format!("echo x >> /etc/{name}")]).unwrap();
        assert!(code != 0 && text.to_lowercase().contains("read-only"), "{name}: {code} {text}");
    }
    assert_eq!(contents(), before);

    // What it may write to holds no more than the pod's own.
    let fill = "dd if=/dev/zero of=/etc/hostname bs=65536 count=64";
    let (code, text) = criod.exec(&soft, &["sh", "-c", fill]).unwrap();
    assert!(code != 0 && text.to_lowercase().contains("no space"), "{code} {text}");
    let sizes: u64 = FILES.iter().map(|n| fs::metadata(dir.join(n)).unwrap().len()).sum();
    assert!((1 << 19..=1 << 20).contains(&sizes), "{sizes} bytes");
    assert_eq!(contents()[1..], before[1..], "the others are as they were");
    // And what is shared besides has room of its own.
    let (code, text) = criod.exec(&soft, &["sh", "-c", "echo x > /dev/shm/x"]).unwrap();
    assert_eq!(code, 0, "{text}");
    criod.finish();
}

#[test]
fn its_namespaces_are_unpinned_under_a_pod() {
    let criod = Criod::start(Options::default());
    for kind in ["net", "uts", "ipc", "pid"] {
        let config = if kind == "pid" { criod.pid_pod(kind) } else { criod.pod(kind) };
        let pod = criod.run_pod(&config).unwrap();
        let pin = criod.dir.join(format!("run/ns/{pod}/{kind}"));
        umount2(&pin, MntFlags::MNT_DETACH).unwrap();
        let error = criod.create(&pod, &container("c", &["sleep", "1000"]), &config).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{kind}: {error}");
        assert!(error.message().contains(&pod), "{kind}: {error}");
        assert!(criod.containers().is_empty());
        let own = cgroup_members(&format!("crio-{pod}"));
        assert_eq!(cgroup_members(&format!("{}/{kind}", criod.tag)), own, "{kind}");
        criod.stop_pod(&pod).unwrap();
        criod.remove_pod(&pod).unwrap();
    }
    criod.finish();
}

#[test]
fn a_monitor_and_its_folder_are_gone() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("lost");
    let pod = criod.run_pod(&config).unwrap();
    let stopped = criod.run(&pod, &container("stopped", &["sleep", "1000"]), &config);
    let removed = criod.run(&pod, &container("removed", &["sleep", "1000"]), &config);
    let other = criod.run(&pod, &container("other", &["sleep", "1000"]), &config);
    criod.kill9();
    for id in [&stopped, &removed] {
        criod.kill_monitor(id);
        fs::remove_dir_all(criod.dir.join("run/containers").join(id)).unwrap();
    }
    criod.launch();
    criod.ready();
    criod.stop(&stopped, 1).unwrap();
    let status = criod.status(&stopped).unwrap();
    assert_eq!((status.state, status.reason.as_str()), (EXITED, "ContainerStatusUnknown"));
    assert_ne!(status.exit_code, 0);
    eventually("its processes have ended", || {
        cgroup_members(&format!("crio-{stopped}")).is_empty().then_some(())
    });
    assert_eq!(criod.status(&other).unwrap().state, RUNNING);
    criod.remove_pod(&pod).unwrap();
    criod.clean();
    criod.finish();
}

/// A criod whose runtime is runc behind a script.
fn behind(script: &str) -> Criod {
    let args = vec!["--runtimes", "slow:DIR/bin/slow:DIR/run/slow:oci"];
    let mut criod = Criod::prepare(Options { args, ..Options::default() });
    criod.script("bin/slow", script);
    criod.launch();
    criod.ready();
    criod.pull(BUSYBOX).unwrap();
    criod
}

/// What such a criod's runtime knows of.
fn known(criod: &Criod) -> Vec<String> {
    let root = criod.dir.join("run/slow");
    if root.exists() { names(&root) } else { Vec::new() }
}

const HANGS_IN_CREATE: &str = r#"#!/bin/sh
case " $* " in *" create "*)
    touch DIR/began
    timeout 8 tail -f DIR/criod.log >/dev/null
    touch DIR/over
esac
exec /usr/sbin/runc "$@"
"#;

#[test]
fn a_pod_is_stopped_while_a_creation_hangs() {
    let criod = behind(HANGS_IN_CREATE);
    let config = criod.host_pod("hang");
    let pod = criod.run_pod_with(&config, "slow").unwrap();
    let answer = std::thread::scope(|scope| {
        let creating =
            scope.spawn(|| criod.cri.create(&pod, &container("c", &["sleep", "1000"]), &config));
        eventually("the runtime hangs", || criod.dir.join("began").exists().then_some(()));
        criod.stop_pod(&pod).unwrap();
        assert!(!criod.dir.join("over").exists(), "it does not wait for the runtime");
        creating.join().unwrap()
    });
    answer.unwrap_err();
    assert_eq!(criod.pod_status(&pod).unwrap().state, NOT_READY);
    assert!(criod.containers().is_empty());
    criod.remove_pod(&pod).unwrap();
    criod.clean();
    assert_eq!(known(&criod), Vec::<String>::new());
    criod.finish();
}

/// Creations hang when all is done, and so does every deletion of the container whose deletion is
/// the first, until `go` is there.
const HANGS_IN_DELETE: &str = r#"#!/bin/sh
wait_for() { while [ ! -e DIR/$1 ]; do sleep 0.1; done; }
case " $* " in
*" create "*)
    /usr/sbin/runc "$@" || exit
    mkdir DIR/created.$$
    wait_for never
    ;;
*" delete "*)
    for id; do :; done
    ln -s "$id" DIR/deleting 2>/dev/null
    [ "$(readlink DIR/deleting)" != "$id" ] || wait_for go
    ;;
esac
exec /usr/sbin/runc "$@"
"#;

#[test]
fn a_leftover_that_hangs_holds_up_no_other() {
    let mut criod = behind(HANGS_IN_DELETE);
    let config = criod.host_pod("left");
    let pod = criod.run_pod_with(&config, "slow").unwrap();
    std::thread::scope(|scope| {
        let creations = ["first", "second"].map(|name| {
            let (cri, pod, config) = (criod.cri.clone(), pod.clone(), config.clone());
            scope.spawn(move || cri.create(&pod, &container(name, &["sleep", "1000"]), &config))
        });
        eventually("both are created", || {
            let marks = names(&criod.dir).iter().filter(|n| n.starts_with("created.")).count();
            (marks == 2).then_some(())
        });
        criod.kill9();
        for creation in creations {
            creation.join().unwrap().unwrap_err();
        }
    });
    assert_eq!(names(&criod.dir.join("root/containers")).len(), 2);
    criod.launch();
    criod.ready();
    let hangs = eventually("one deletion hangs", || fs::read_link(criod.dir.join("deleting")).ok());
    eventually("the other is gone", || {
        (names(&criod.dir.join("root/containers")) == [hangs.to_str().unwrap()]).then_some(())
    });
    fs::write(criod.dir.join("go"), "").unwrap();
    eventually("the first one, too", || {
        names(&criod.dir.join("root/containers")).is_empty().then_some(())
    });
    assert_eq!(known(&criod), Vec::<String>::new());
    assert_eq!(criod.pod_status(&pod).unwrap().state, READY);
    criod.finish();
}

#[test]
fn the_registry_of_the_pause_image_is_gone() {
    const PAUSE: &str = "docker.io/test/pause:1";
    let criod = Criod::start(Options {
        images: vec!["test/pause:1"],
        args: vec!["--pause-image", PAUSE],
        ..Options::default()
    });
    let config = criod.pid_pod("first");
    criod.run_pod(&config).unwrap();
    let images = criod.list_images();
    let pause = images.iter().find(|i| i.repo_tags.iter().any(|t| t == PAUSE)).unwrap();
    assert!(pause.pinned, "{pause:?}");
    test_images::registry::stop(&criod.dir.join("registry")).unwrap();
    criod.pull("docker.io/test/busybox:2").unwrap_err();
    let config = criod.pid_pod("second");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    let (_, text) = criod.exec(&id, &["ps", "-o", "pid,args"]).unwrap();
    assert!(text.lines().any(|l| l.trim().starts_with("1 ") && l.contains("/pause")), "{text}");
    criod.finish();
}

#[test]
fn default_sysctls_are_for_pods_with_a_namespace_for_them() {
    let args = vec!["--default-sysctls", "net.ipv4.ping_group_range=7 9"];
    let criod = Criod::start(Options { args, ..Options::default() });
    let range = |config: &api_cri::v1::PodSandboxConfig| {
        let pod = criod.run_pod(config).unwrap();
        let id = criod.run(&pod, &container("c", &["sleep", "1000"]), config);
        let answer = criod.exec(&id, &["cat", "/proc/sys/net/ipv4/ping_group_range"]).unwrap();
        answer.1.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(range(&criod.pod("own")), ["7", "9"]);
    assert_ne!(range(&criod.host_pod("host")), ["7", "9"]);
    // What the pod itself asks for is refused.
    let mut asking = criod.host_pod("asking");
    let sysctls = &mut asking.linux.as_mut().unwrap().sysctls;
    sysctls.insert("net.ipv4.ping_group_range".into(), "7 9".into());
    let error = criod.run_pod(&asking).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    criod.finish();
}
