//! criod is killed before and after each durable step of each operation, is started again, and gets
//! the call again that was cut, as from the kubelet.
//!
//! ```text
//! sources ─▶ all steps that there are       each must have been killed at, before and after
//! a scenario without a kill ─▶ the steps of each operation ─▶ the scenario with a kill at each
//! ```

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "failpoints/driver.rs"]
mod driver;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use api_cri::v1::*;
use driver::Driver;
use e2e::daemon::{
    Answer, Cri, Criod, EXITED, NOT_READY, Options, Point, READY, block, container, image_volume,
    lines, new_runc,
};
use e2e::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DECLARES: &str = "docker.io/test/declares:1";
const FILES: &str = "docker.io/test/files:1";
const LAYERED: &str = "docker.io/test/layered:1";

/// A container that there is not.
const UNKNOWN: &str = "unknown";

/// Says that it runs, and ends with 5 when it is told to.
const SCRIPT: &str = "trap 'exit 5' TERM; echo started; while :; do sleep 0.02; done";

/// A container that has what the pod has.
fn of_pod(name: &str, command: &[&str], pod: &PodSandboxConfig) -> ContainerConfig {
    let context = pod.linux.clone().unwrap().security_context.unwrap();
    let mut config = container(name, command);
    config.linux = Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            namespace_options: context.namespace_options,
            ..Default::default()
        }),
        ..Default::default()
    });
    config
}

fn update(cri: &Cri, id: &str, linux: LinuxContainerResources) -> Answer<()> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    block(async { cri.runtime().update_container_resources(request).await }).map(|_| ())
}

fn update_pod(cri: &Cri, id: &str, resources: LinuxContainerResources) -> Answer<()> {
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.to_owned(),
        resources: Some(resources),
        ..Default::default()
    };
    block(async { cri.runtime().update_pod_sandbox_resources(request).await }).map(|_| ())
}

fn memory(mib: i64) -> LinuxContainerResources {
    LinuxContainerResources { memory_limit_in_bytes: mib << 20, ..Default::default() }
}

/// The pod is the only one that is listed, and stands so.
fn is(driver: &Driver, pod: &str, state: i32) {
    let listed = driver.criod.pods();
    let listed: Vec<_> = listed.iter().map(|p| (p.id.as_str(), p.state)).collect();
    assert_eq!(listed, [(pod, state)]);
}

/// Starts a container and waits for its first line; it must be the only one.
fn start(driver: &mut Driver, op: &str, id: &str, name: &str) {
    driver.op(op, |cri| cri.start(id)).unwrap();
    let log = driver.criod.log(&driver.round, name);
    eventually("it has started", || (!lines(&log).is_empty()).then_some(()));
}

fn ran_once(driver: &Driver, name: &str) {
    let lines = lines(&driver.criod.log(&driver.round, name));
    assert_eq!(lines, [("stdout".to_owned(), "started".to_owned())]);
}

/// Leaves what no record knows for the next criod, if one is to come: a folder and a descriptor; and
/// the output of a command whose caller has gone.
fn without_a_record(driver: &Driver, id: &str) {
    let run = driver.criod.dir.join("run/containers");
    fs::write(run.join(id).join("exec-9.stdout"), "output").unwrap();
    fs::create_dir(run.join(UNKNOWN)).unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    driver.criod.keeper().call(&["SPARE", UNKNOWN, "log"], &[file.as_fd()]).unwrap();
}

/// None may have come.
fn nothing_without_a_record(driver: &Driver) {
    let _ = fs::remove_dir(driver.criod.dir.join("run/containers").join(UNKNOWN));
    driver.criod.keeper().call(&["DROP", UNKNOWN], &[]).unwrap();
}

/// All that a pod can have, but a user namespace.
fn whole_life(driver: &mut Driver) {
    let name = driver.round.clone();
    let dir = driver.criod.dir.clone();
    let mut config = driver.criod.pod(&name);
    let linux = config.linux.as_mut().unwrap();
    let options = linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
    options.pid = NamespaceMode::Pod as i32;
    linux.resources = Some(memory(256));
    config.port_mappings.push(PortMapping {
        container_port: 80,
        host_port: 8080,
        ..Default::default()
    });
    // As on the bridge's first day.
    let loopback = "/proc/sys/net/ipv4/conf/cni0/route_localnet";
    let _ = driver.criod.net.run(|| fs::write(loopback, "0"));
    let pod = driver.op("RunPodSandbox", |cri| cri.run_pod(&config)).unwrap();
    is(driver, &pod, READY);

    let clash = driver.criod.pod(&format!("{name}-clash"));
    let clash = PodSandboxConfig { port_mappings: config.port_mappings.clone(), ..clash };
    let e = driver.op("RunPodSandbox that fails", |cri| cri.run_pod(&clash)).unwrap_err();
    assert!(e.message().contains("8080"), "{e:?}");
    is(driver, &pod, READY);

    let mut one = of_pod("one", &["sh", "-c", SCRIPT], &config);
    one.image.as_mut().unwrap().image = DECLARES.into();
    one.working_dir = "/not/there/yet".into();
    one.mounts = vec![
        image_volume(FILES, "/files"),
        image_volume(LAYERED, "/layered"),
        Mount {
            host_path: dir.join("host").join(&name).to_string_lossy().into_owned(),
            container_path: "/host".into(),
            ..Default::default()
        },
    ];
    one.linux.as_mut().unwrap().resources = Some(memory(64));
    let id = driver.op("CreateContainer", |cri| cri.create(&pod, &one, &config)).unwrap();
    start(driver, "StartContainer", &id, "one");

    let e = driver
        .op("CreateContainer that fails", |cri| {
            cri.create(&pod, &of_pod("bad", &["/not/there"], &config), &config)
        })
        .unwrap_err();
    assert!(e.message().contains("/not/there"), "{e:?}");

    let wanted = LinuxContainerResources { oom_score_adj: 500, ..memory(128) };
    driver.op("UpdateContainerResources", |cri| update(cri, &id, wanted.clone())).unwrap();
    let status = driver.criod.status(&id).unwrap();
    assert_eq!(status.resources.unwrap().linux.unwrap(), wanted);
    // The kernel has no such processor.
    let refused = driver.op("UpdateContainerResources that fails", |cri| {
        update(cri, &id, LinuxContainerResources { cpuset_cpus: "4000".into(), ..memory(96) })
    });
    refused.unwrap_err();
    let status = driver.criod.status(&id).unwrap();
    assert_eq!(status.resources.unwrap().linux.unwrap(), wanted);
    driver.op("UpdatePodSandboxResources", |cri| update_pod(cri, &pod, memory(512))).unwrap();
    driver.op("ReopenContainerLog", |cri| cri.reopen_log(&id)).unwrap();

    without_a_record(driver, &id);
    driver.op("StopContainer", |cri| cri.stop(&id, 30)).unwrap();
    nothing_without_a_record(driver);
    let status = driver.criod.status(&id).unwrap();
    assert_eq!((status.state, status.exit_code), (EXITED, 5));
    driver.op("RemoveContainer", |cri| cri.remove(&id)).unwrap();

    // Somebody has taken away what runroot has of it, and the monitor dies.
    let lost = of_pod("lost", &["sh", "-c", SCRIPT], &config);
    let id = driver.criod.run(&pod, &lost, &config);
    let pid = driver.criod.monitor_pid(&id).unwrap();
    fs::remove_dir_all(dir.join("run/containers").join(&id)).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    driver.op("RemoveContainer without a monitor", |cri| cri.remove(&id)).unwrap();

    let two = of_pod("two", &["sh", "-c", SCRIPT], &config);
    let id = driver.op("CreateContainer two", |cri| cri.create(&pod, &two, &config)).unwrap();
    start(driver, "StartContainer two", &id, "two");
    driver.op("StopPodSandbox", |cri| cri.stop_pod(&pod)).unwrap();
    is(driver, &pod, NOT_READY);
    assert_eq!(driver.criod.status(&id).unwrap().state, EXITED);
    driver.op("RemovePodSandbox", |cri| cri.remove_pod(&pod)).unwrap();
    ran_once(driver, "one");
    ran_once(driver, "two");
}

/// A pod with a user namespace, by a runtime whose name nobody knows, removed while it runs.
fn users(driver: &mut Driver) {
    let config = driver.criod.users_pod(&driver.round);
    let run = |cri: &Cri| cri.run_pod_with(&config, "other");
    let pod = driver.op("RunPodSandbox", run).unwrap();
    is(driver, &pod, READY);
    let mut one = of_pod("one", &["sh", "-c", SCRIPT], &config);
    one.mounts = vec![image_volume(FILES, "/files")];
    one.linux.as_mut().unwrap().resources = Some(memory(64));
    let id = driver.op("CreateContainer", |cri| cri.create(&pod, &one, &config)).unwrap();
    start(driver, "StartContainer", &id, "one");
    driver.op("UpdateContainerResources", |cri| update(cri, &id, memory(128))).unwrap();
    driver.op("RemovePodSandbox", |cri| cri.remove_pod(&pod)).unwrap();
    ran_once(driver, "one");
}

/// An image of several layers comes and goes.
fn images(driver: &mut Driver) {
    let _ = driver.criod.remove_image(LAYERED);
    let before = content(&driver.criod);
    driver.op("PullImage", |cri| cri.pull(LAYERED)).unwrap();
    assert_eq!(driver.criod.list_images().len(), 2);
    // All of it is there: overlay has its layers.
    let config = driver.criod.host_pod(&driver.round);
    let pod = driver.criod.run_pod(&config).unwrap();
    let mut one = container("one", &["cat", "/data/keep", "/data/change"]);
    one.image.as_mut().unwrap().image = LAYERED.into();
    let id = driver.criod.run(&pod, &one, &config);
    assert_eq!(driver.criod.ended(&id).exit_code, 0);
    driver.criod.remove_pod(&pod).unwrap();
    driver.op("RemoveImage", |cri| cri.remove_image(LAYERED)).unwrap();
    assert_eq!(driver.criod.list_images().len(), 1);
    // What a kill left of a removal goes with the next one that collects.
    assert_eq!(content(&driver.criod), before);
}

/// What the store has of manifests, configs and layers.
fn content(criod: &Criod) -> BTreeSet<String> {
    let folders = ["root/content/sha256", "root/layers/overlay", "root/images"];
    let entries = folders.iter().flat_map(|f| fs::read_dir(criod.dir.join(f)).unwrap().flatten());
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// The first start of all.
fn first_start() {
    let mut criod = Criod::prepare(Options { failpoints: true, ..Options::default() });
    criod.launch();
    criod.ready();
    let hits = criod.hits();
    let points: BTreeSet<Point> = hits.into_iter().map(|h| h.point).collect();
    for point in points {
        criod.reboot();
        let root = criod.dir.join("root");
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
        criod.arm(&[(1, point.clone())]);
        criod.launch();
        eventually("it is killed", || criod.revive().then_some(()));
        driver::note(point);
        criod.ready();
        let config = criod.host_pod("first");
        let pod = criod.run_pod(&config).unwrap();
        criod.remove_pod(&pod).unwrap();
    }
    criod.finish();
}

/// What the configuration adds to containers.
fn configure(criod: &Criod) {
    let dir = &criod.dir;
    fs::create_dir_all(dir.join("secrets/sub")).unwrap();
    fs::write(dir.join("secrets/sub/key"), "secret\n").unwrap();
    fs::create_dir_all(dir.join("zones/Of")).unwrap();
    fs::write(dir.join("zones/Of/Test"), "TZif2").unwrap();
    let text = r#"
        [crio.runtime]
        default_mounts = ["DIR/secrets:/run/secrets"]
        timezone = "Of/Test"
        [crio.image]
        image_volumes = "bind"
    "#;
    fs::write(dir.join("crio.conf"), text.replace("DIR", &dir.to_string_lossy())).unwrap();
    let path = std::env::var("PATH").unwrap();
    criod.script("other", &format!("#!/bin/sh\nPATH={path}\nexec {} \"$@\"\n", new_runc()));
}

fn options(images: &[&'static str]) -> Options {
    Options {
        images: images.to_vec(),
        args: vec!["--config", "DIR/crio.conf"],
        // Not every machine has zones.
        env: vec![("TZDIR", "DIR/zones")],
        ..Options::default()
    }
}

fn whole_lives(part: (usize, usize)) {
    let images = ["test/declares:1", "test/files:1", "test/layered:1"];
    let driver = Driver::start("whole life", options(&images), configure);
    driver.kill_everywhere(part, whole_life);
}

#[test]
fn criod_is_killed_at_every_step() {
    std::thread::scope(|scope| {
        let all: [Box<dyn FnOnce() + Send>; 3] = [
            Box::new(|| whole_lives((0, 2))),
            Box::new(|| whole_lives((1, 2))),
            Box::new(|| {
                let options = Options { new_runc: true, ..options(&["test/files:1"]) };
                let options = Options {
                    args: [
                        options.args.clone(),
                        vec!["--runtimes", "other:DIR/other:DIR/run/runtime:oci"],
                    ]
                    .concat(),
                    ..options
                };
                Driver::start("users", options, configure).kill_everywhere((0, 1), users);
                let options = Options { images: vec!["test/layered:1"], ..Options::default() };
                Driver::start("images", options, |_| ()).kill_everywhere((0, 1), images);
                first_start();
            }),
        ];
        let all = all.map(|work| scope.spawn(work));
        let done = all.map(|thread| thread.join());
        for done in done {
            done.unwrap_or_else(|e| std::panic::resume_unwind(e));
        }
    });
    let killed = driver::killed();
    let steps = steps();
    let missing: Vec<String> = steps
        .iter()
        .flat_map(|name| {
            ["before", "after"].map(|when| Point { when: when.into(), name: name.clone() })
        })
        .filter(|point| !killed.contains(point))
        .map(|point| point.to_string())
        .collect();
    assert!(missing.is_empty(), "nobody was killed there: {missing:#?}");
}

/// The names of all steps, from the sources.
fn steps() -> BTreeSet<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut names = BTreeSet::new();
    let mut folders: Vec<_> = house::steps::FOLDERS.iter().map(|f| top.join(f)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&top).unwrap().to_str().unwrap();
            if house::steps::concerns(name) {
                let text = fs::read_to_string(&path).unwrap();
                names.extend(house::steps::steps(name, &text).into_iter().map(|s| s.name));
            }
        }
    }
    assert!(names.len() > 100, "{names:?}");
    names
}
