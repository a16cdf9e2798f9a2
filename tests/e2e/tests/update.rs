//! What pods and containers may use, changed while they run and while criod dies; and limits that
//! are the node's configuration.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_cri::v1::*;
use base64::Engine;
use e2e::daemon::{Criod, EXITED, Options, block, container};
use e2e::eventually;
use prost::Message;

/// A limit of a container's cgroup, by its files' names of version 1 and 2.
fn limit(criod: &Criod, pod: &str, id: &str, v1: &str, v2: &str) -> String {
    let (controller, _) = v1.split_once('.').unwrap();
    let group = PathBuf::from(format!("{}/{pod}/crio-{id}", criod.tag));
    let top = Path::new("/sys/fs/cgroup");
    let one = top.join(controller).join(&group).join(v1);
    let file = if one.exists() { one } else { top.join(group).join(v2) };
    fs::read_to_string(file).unwrap().trim().to_owned()
}

fn memory_of(criod: &Criod, pod: &str, id: &str) -> i64 {
    limit(criod, pod, id, "memory.limit_in_bytes", "memory.max").parse().unwrap()
}

fn memory(mib: i64) -> LinuxContainerResources {
    LinuxContainerResources { memory_limit_in_bytes: mib << 20, ..Default::default() }
}

fn update(
    criod: &e2e::daemon::Cri,
    id: &str,
    linux: LinuxContainerResources,
) -> Result<(), tonic::Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    let answer = block(async { criod.runtime().update_container_resources(request).await });
    answer.map(|_| ())
}

fn recorded(criod: &Criod, id: &str) -> LinuxContainerResources {
    criod.status(id).unwrap().resources.unwrap().linux.unwrap()
}

/// The memory limit of the bundle, which a runtime that restores the container would use.
fn in_bundle(criod: &Criod, id: &str) -> i64 {
    let path = criod.dir.join("run/containers").join(id).join("bundle/config.json");
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    spec["linux"]["resources"]["memory"]["limit"].as_i64().unwrap()
}

fn sleeping(resources: LinuxContainerResources) -> ContainerConfig {
    let mut config = container("c", &["sleep", "1000"]);
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

#[test]
fn criod_dies_at_any_moment_of_an_update() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("update");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &sleeping(memory(64)), &config);
    for round in 0..24u32 {
        let wanted = if round % 2 == 0 { 128 } else { 64 };
        let cri = criod.cri.clone();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| update(&cri, &id, memory(wanted)));
            std::thread::sleep(Duration::from_micros(u64::from(round) * 250));
            criod.kill9();
            // What had not come through is served by the next one.
            criod.launch();
            let _ = running.join().unwrap();
        });
        criod.ready();
        // What is said is what is so, whichever it is.
        eventually("record, cgroup and bundle agree", || {
            let said = recorded(&criod, &id).memory_limit_in_bytes;
            let is = (memory_of(&criod, "update", &id), in_bundle(&criod, &id));
            (is == (said, said)).then_some(())
        });
        update(&criod, &id, memory(wanted)).unwrap();
        assert_eq!(memory_of(&criod, "update", &id), wanted << 20);
        assert_eq!(recorded(&criod, &id).memory_limit_in_bytes, wanted << 20);
    }
    criod.restart();
    assert_eq!(recorded(&criod, &id).memory_limit_in_bytes, 64 << 20);
    assert_eq!(in_bundle(&criod, &id), 64 << 20);
    criod.finish();
}

#[test]
fn an_update_that_had_begun_is_finished() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("begun");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &sleeping(memory(64)), &config);
    // As a criod leaves it that dies between the record and the cgroup.
    criod.kill9();
    let path = criod.dir.join("root/containers").join(&id).join("record.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let wanted = LinuxContainerResources { cpu_shares: 77, ..memory(128) };
    let bytes = base64::engine::general_purpose::STANDARD.encode(wanted.encode_to_vec());
    record["updating"] = bytes.into();
    fs::write(&path, record.to_string()).unwrap();
    criod.launch();
    criod.ready();
    eventually("it is finished", || (recorded(&criod, &id) == wanted).then_some(()));
    assert_eq!((memory_of(&criod, "begun", &id), in_bundle(&criod, &id)), (128 << 20, 128 << 20));
    let shares = limit(&criod, "begun", &id, "cpu.shares", "cpu.weight");
    assert!(shares == "77" || shares == "3", "{shares}");
    criod.finish();
}

#[test]
fn updates_race_with_the_stop() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("race");
    let pod = criod.run_pod(&config).unwrap();
    for round in 0..8 {
        let mut own = sleeping(memory(64));
        own.metadata.as_mut().unwrap().attempt = round;
        let id = criod.run(&pod, &own, &config);
        std::thread::scope(|scope| {
            let cri = criod.cri.clone();
            let updating = scope.spawn({
                let id = id.clone();
                move || {
                    for n in 0.. {
                        if let Err(e) = update(&cri, &id, memory(64 + n % 2)) {
                            return e;
                        }
                    }
                    unreachable!()
                }
            });
            criod.stop(&id, 0).unwrap();
            let e = updating.join().unwrap();
            assert_eq!(e.code(), tonic::Code::FailedPrecondition, "{e:?}");
        });
        assert_eq!(criod.status(&id).unwrap().state, EXITED);
        criod.remove(&id).unwrap();
        let e = update(&criod, &id, memory(64)).unwrap_err();
        assert_eq!(e.code(), tonic::Code::NotFound, "{e:?}");
    }
    criod.finish();
}

#[test]
fn a_runtime_that_alone_knows_how_is_asked_by_the_monitor() {
    // By its name nobody could tell that it is runc.
    let criod = Criod::prepare(Options {
        args: vec!["--runtimes", "other:DIR/other:DIR/run/runtime:oci:::64KiB"],
        ..Default::default()
    });
    criod.script("other", "#!/bin/sh\necho \"$@\" >> DIR/other.calls\nexec runc \"$@\"\n");
    let mut criod = criod;
    criod.launch();
    criod.ready();
    criod.pull(e2e::daemon::BUSYBOX).unwrap();
    let config = criod.host_pod("other");
    let pod = criod.run_pod_with(&config, "other").unwrap();
    let id = criod.run(&pod, &sleeping(memory(64)), &config);
    let wanted = LinuxContainerResources { cpu_shares: 77, ..memory(128) };
    update(&criod, &id, wanted.clone()).unwrap();
    let calls = fs::read_to_string(criod.dir.join("other.calls")).unwrap();
    assert!(calls.contains(" update --resources "), "{calls}");
    assert_eq!(memory_of(&criod, "other", &id), 128 << 20);
    assert_eq!(recorded(&criod, &id), wanted);
    // It says no: all stays as it is.
    let e = update(
        &criod,
        &id,
        LinuxContainerResources { memory_limit_in_bytes: 65536, ..Default::default() },
    );
    assert!(e.as_ref().unwrap_err().message().contains("memory"), "{e:?}");
    assert_eq!((memory_of(&criod, "other", &id), in_bundle(&criod, &id)), (128 << 20, 128 << 20));
    assert_eq!(recorded(&criod, &id), wanted);
    criod.finish();
}

#[test]
fn limits_of_the_configuration() {
    let criod = Criod::start(Options {
        args: vec![
            "--pids-limit",
            "50",
            "--default-ulimits",
            "nofile=1000:2000",
            "--default-ulimits",
            "core=0:-1",
            "--default-ulimits",
            "nproc=-1:-1",
        ],
        ..Default::default()
    });
    let config = criod.host_pod("configured");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    assert_eq!(limit(&criod, "configured", &id, "pids.max", "pids.max"), "50");
    let (_, text) = criod.exec(&id, &["cat", "/proc/1/limits", "/proc/self/limits"]).unwrap();
    let files: Vec<_> = text.lines().filter(|l| l.starts_with("Max open files")).collect();
    let values = |line: &str| line.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(":");
    let files: Vec<_> = files.into_iter().map(values).collect();
    // Of the first process, and of a command; runc before 1.1.13 raises the soft limit of the latter
    // at times.
    assert!(files[0] == "1000:2000" && files[1].ends_with(":2000"), "{files:?}");
    criod.finish();
}

#[test]
fn the_cgroup_of_a_pod_goes_with_the_last_one_in_it() {
    let criod = Criod::start(Options::default());
    let parent = format!("/{}/shared/by", criod.tag);
    let with = |name: &str, mib: i64| {
        let mut config = criod.host_pod(name);
        let linux = config.linux.as_mut().unwrap();
        linux.cgroup_parent.clone_from(&parent);
        linux.resources = Some(memory(mib));
        config
    };
    let top = e2e::monitor::cgroup_dir("memory", "x").with_file_name(&criod.tag);
    let group = top.join("shared/by");
    let first = criod.run_pod(&with("first", 64)).unwrap();
    let second = criod.run_pod(&with("second", 256)).unwrap();
    let text = |name: &str| fs::read_to_string(group.join(name));
    let bytes = || text("memory.limit_in_bytes").or_else(|_| text("memory.max")).unwrap();
    assert_eq!(bytes().trim(), (64 << 20).to_string(), "those of the one that it was made for");
    criod.stop_pod(&first).unwrap();
    criod.remove_pod(&first).unwrap();
    assert!(group.join(format!("crio-{second}")).exists());
    assert!(!group.join(format!("crio-{first}")).exists());
    criod.stop_pod(&second).unwrap();
    criod.remove_pod(&second).unwrap();
    assert!(!top.exists());
    criod.finish();
}

#[test]
fn limits_of_a_pod_that_an_update_had_begun_are_set_by_the_next_criod() {
    let mut criod = Criod::start(Options::default());
    let mut config = criod.host_pod("limited");
    config.linux.as_mut().unwrap().resources = Some(memory(64));
    let pod = criod.run_pod(&config).unwrap();
    let group = e2e::monitor::cgroup_dir("memory", "x").with_file_name(&criod.tag).join("limited");
    let file = ["memory.limit_in_bytes", "memory.max"].map(|name| group.join(name));
    let file = file.iter().find(|f| f.exists()).unwrap();
    let bytes = || fs::read_to_string(file).unwrap().trim().parse::<i64>().unwrap();
    let path = criod.dir.join("root/pods").join(&pod).join("record.json");
    let read = || serde_json::from_slice::<serde_json::Value>(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((bytes(), &read()["limiting"]), (64 << 20, &false.into()));
    // As a criod leaves it that dies between the record and the cgroup.
    criod.kill9();
    let mut record = read();
    record["limiting"] = true.into();
    fs::write(&path, record.to_string()).unwrap();
    fs::write(file, (32i64 << 20).to_string()).unwrap();
    criod.launch();
    criod.ready();
    assert_eq!((bytes(), &read()["limiting"]), (64 << 20, &false.into()));
    criod.finish();
}
