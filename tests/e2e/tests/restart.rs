//! criod ends, or hands over to a successor, while calls of every kind are in flight.
//!
//! ```text
//! SIGTERM   all of them are answered Unavailable; criod ends while what they wait for still hangs
//! SIGHUP    all but ExecSync are; ExecSync calls end at the old one, the successor serves
//! ```

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api_cri::v1::{
    ExecSyncRequest, ExecSyncResponse, GetEventsRequest, PodSandboxConfig, StatusRequest,
};
use e2e::daemon::{
    Answer, BUSYBOX, Cri, Criod, EXITED, Options, Process, RUNNING, block, bridge, container,
};
use e2e::eventually;
use nix::sys::signal::Signal;
use tonic::{Code, Status};

/// Before a bridge: notes that it runs, then waits for a file.
const SLOW_PLUGIN: &str = r#"#!/bin/sh
case "$CNI_COMMAND" in
ADD) touch DIR/attaching
     while [ ! -e DIR/go ]; do sleep 0.05; done
     touch DIR/attached;;
esac
exec /usr/lib/cni/bridge
"#;

/// A runtime that does so in `create`.
const SLOW_RUNTIME: &str = r#"#!/bin/sh
case " $* " in *" create "*)
    touch DIR/creating
    while [ ! -e DIR/go ]; do sleep 0.05; done
esac
exec /usr/sbin/runc "$@"
"#;

fn there(path: &Path) {
    eventually(&format!("{} is there", path.display()), || path.exists().then_some(()));
}

/// What lies at this path in a container, while it runs.
fn inside(criod: &Criod, id: &str, path: &str) -> PathBuf {
    criod.dir.join("root/containers").join(id).join("rootfs/merged").join(path)
}

fn is_unavailable(what: &str, answer: Result<impl std::fmt::Debug, Status>) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), Code::Unavailable, "{what}: {status:?}");
    assert!(status.message().contains("criod is being restarted"), "{what}: {status:?}");
}

/// Events until the stream ends; `began` is set once it is open.
fn events(cri: &Cri, began: &AtomicBool) -> Answer<()> {
    block(async {
        let mut events =
            cri.runtime().get_container_events(GetEventsRequest {}).await?.into_inner();
        began.store(true, Ordering::SeqCst);
        while events.message().await?.is_some() {}
        Ok(())
    })
}

fn exec(cri: &Cri, id: &str, script: &str) -> Answer<ExecSyncResponse> {
    let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 50 };
    block(async { cri.runtime().exec_sync(request).await }).map(tonic::Response::into_inner)
}

/// What one side of criod's end has to do with the other.
struct Scene {
    slow: PodSandboxConfig,
    handled: PodSandboxConfig,
    pod: String,
    handled_pod: String,
    id: String,
}

impl Scene {
    fn new(criod: &Criod) -> Scene {
        criod.script("plugins/e2e-slow", SLOW_PLUGIN);
        criod.network(
            &bridge(&criod.dir, false).replace(r#""type":"bridge""#, r#""type":"e2e-slow""#),
        );
        let (config, slow) = (criod.host_pod("calls"), criod.pod("slow"));
        let handled = criod.host_pod("handled");
        let pod = criod.run_pod(&config).unwrap();
        let handled_pod = criod.run_pod_with(&handled, "slow").unwrap();
        let script = "trap 'touch /told' TERM; touch /ready; while :; do sleep 0.05; done";
        let id = criod.run(&pod, &container("stubborn", &["sh", "-c", script]), &config);
        there(&inside(criod, &id, "ready"));
        Scene { slow, handled, pod, handled_pod, id }
    }
}

/// Has a call of every kind in flight, does `end`, and checks how each is answered.
fn with_everything_in_flight(criod: &mut Criod, scene: &Scene, end: impl FnOnce(&mut Criod)) {
    let cri = criod.cri.clone();
    // A registry that takes connections and says nothing.
    let silent = criod.net.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let image = format!("{}/test/none:1", silent.local_addr().unwrap());
    let (cri, image, listening) = (&cri, &image, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let run = scope.spawn(|| cri.run_pod(&scene.slow));
        let create = scope.spawn(|| {
            let one = container("one", &["sleep", "1000"]);
            cri.create(&scene.handled_pod, &one, &scene.handled)
        });
        let stop = scope.spawn(|| cri.stop(&scene.id, 40));
        let pull = scope.spawn(|| cri.pull(image));
        let events = scope.spawn(|| events(cri, listening));
        // Who says nothing, and who stops in the middle of a request.
        let socket = criod.dir.join("criod.sock");
        let silent_client = UnixStream::connect(&socket).unwrap();
        let mut half = UnixStream::connect(&socket).unwrap();
        half.write_all(b"GET /info HTTP/1.1\r\nHost: x\r\n").unwrap();
        there(&criod.dir.join("attaching"));
        there(&criod.dir.join("creating"));
        there(&inside(criod, &scene.id, "told"));
        silent.accept().unwrap();
        eventually("events are listened to", || listening.load(Ordering::SeqCst).then_some(()));
        end(criod);
        is_unavailable("RunPodSandbox", run.join().unwrap());
        is_unavailable("CreateContainer", create.join().unwrap());
        is_unavailable("StopContainer", stop.join().unwrap());
        is_unavailable("PullImage", pull.join().unwrap());
        is_unavailable("GetContainerEvents", events.join().unwrap());
        drop((silent_client, half));
    });
    assert!(!criod.dir.join("attached").exists(), "the plugin still hangs");
}

/// Lets go of what hangs, and repeats the calls.
fn all_succeed_now(criod: &Criod, scene: &Scene) {
    fs::write(criod.dir.join("go"), "").unwrap();
    // What the kubelet does: it lists, and repeats what is not there.
    let slow = criod.run_pod(&scene.slow).unwrap();
    assert!(criod.ip(&slow).starts_with("10.88."));
    let one =
        criod.create(&scene.handled_pod, &container("one", &["sleep", "1000"]), &scene.handled);
    criod.start(&one.unwrap()).unwrap();
    assert_eq!(criod.status(&scene.id).unwrap().state, RUNNING, "its deadline is far");
    criod.stop(&scene.id, 0).unwrap();
    assert_eq!(criod.status(&scene.id).unwrap().state, EXITED);
    criod.remove_image(BUSYBOX).ok();
    criod.pull(BUSYBOX).unwrap();
    assert_eq!(criod.pod_status(&scene.pod).unwrap().id, scene.pod);
    assert_eq!(criod.pods().len(), 3);
    assert_eq!(criod.containers().len(), 2);
}

/// A criod with a slow runtime.
fn slow() -> Criod {
    let args = vec!["--runtimes", "slow:DIR/slow:"];
    let mut criod = Criod::prepare(Options { args, ..Options::default() });
    criod.script("slow", SLOW_RUNTIME);
    criod.launch();
    criod.ready();
    criod.pull(BUSYBOX).unwrap();
    criod
}

#[test]
fn told_to_end_criod_answers_every_call_and_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut criod = slow();
        let scene = Scene::new(&criod);
        let cri = criod.cri.clone();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| exec(&cri, &scene.id, "touch /execs; sleep 1000"));
            there(&inside(&criod, &scene.id, "execs"));
            with_everything_in_flight(&mut criod, &scene, |criod| {
                assert!(criod.end(signal).success());
                assert!(criod.criods().is_empty());
            });
            is_unavailable("ExecSync", waits.join().unwrap());
            // Who comes now waits.
            let version = scope.spawn(|| cri.version());
            criod.launch();
            version.join().unwrap().unwrap();
        });
        all_succeed_now(&criod, &scene);
        criod.finish();
    }
}

#[test]
fn a_start_that_is_not_done_can_be_ended() {
    let mut criod = Criod::prepare(Options::default());
    criod.launch();
    let ended = criod.end(Signal::SIGTERM);
    // Before there is a handler the signal ends it, too.
    assert!(ended.success() || ended.code().is_none(), "{ended:?}");
    criod.launch();
    criod.ready();
    criod.finish();
}

/// A command whose answer is long, and comes when a file does.
const LONG: &str = "touch /waits; while [ ! -e /over ]; do sleep 0.05; done; seq 1 50000; \
                    echo last >&2; exit 7";

fn is_whole(answer: Answer<ExecSyncResponse>) {
    let answer = answer.unwrap();
    let numbers: String = (1..=50000).map(|n| format!("{n}\n")).collect();
    assert_eq!(answer.exit_code, 7);
    assert!(answer.stdout == numbers.as_bytes(), "{} bytes", answer.stdout.len());
    assert_eq!(answer.stderr, b"last\n");
}

#[test]
fn a_reload_leaves_commands_to_the_old_one_and_all_else_to_its_successor() {
    let mut criod = slow();
    let scene = Scene::new(&criod);
    let cri = criod.cri.clone();
    std::thread::scope(|scope| {
        let long = scope.spawn(|| exec(&cri, &scene.id, LONG));
        there(&inside(&criod, &scene.id, "waits"));
        let mut old = None;
        with_everything_in_flight(&mut criod, &scene, |criod| old = Some(criod.reload()));
        let mut old = old.unwrap();
        assert_eq!(criod.criods().len(), 2, "the old one waits for the command");
        assert_eq!(criod.exec(&scene.id, &["echo", "x"]).unwrap(), (0, "x\n".to_owned()));
        // Another one, which dies, and one that is started as if nothing was.
        let mut older = criod.reload();
        older.wait();
        criod.restart();
        assert!(old.ended().is_none());
        assert_eq!(criod.exec(&scene.id, &["touch", "/over"]).unwrap().0, 0);
        is_whole(long.join().unwrap());
        let status = old.wait();
        assert!(status.is_none_or(|s| s.success()), "{status:?}");
    });
    assert_eq!(criod.owner(), Some(criod.pid()));
    all_succeed_now(&criod, &scene);
    let left = || {
        let dir = criod.dir.join("run/containers").join(&scene.id);
        let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|n| n.to_string_lossy().starts_with("exec-")).count()
    };
    eventually("no output is left", || (left() == 0).then_some(()));
    criod.finish();
}

#[test]
fn output_that_nobody_will_read_goes_once_the_old_one_is_gone() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("output");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    let cri = criod.cri.clone();
    let left = criod.dir.join("run/containers").join(&id).join("exec-1-1.stdout");
    std::thread::scope(|scope| {
        let long = scope.spawn(|| exec(&cri, &id, LONG));
        there(&inside(&criod, &id, "waits"));
        fs::write(&left, "of an answer that is on its way").unwrap();
        let mut old = criod.reload();
        criod.restart();
        assert!(left.exists(), "the old one may be about to read it");
        old.kill9();
        long.join().unwrap().unwrap_err();
    });
    eventually("it is removed", || (!left.exists()).then_some(()));
    criod.finish();
}

/// What the successor has as a key's value, by its own account.
fn configured(criod: &Criod, key: &str) -> String {
    let request = StatusRequest { verbose: true };
    let answer = block(async { criod.runtime().status(request).await }).unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["config"]).unwrap();
    let text = info["crio"].as_str().unwrap();
    let line = text.lines().map(|l| l.trim_start_matches(['#', ' ']));
    let line = line.filter_map(|l| l.strip_prefix(&format!("{key} = "))).next();
    line.unwrap().to_owned()
}

/// SIGHUP, which must fail for a reason that is in the log.
fn refused(criod: &Criod, reason: &str) {
    let said = || fs::read_to_string(criod.dir.join("criod.log")).unwrap();
    let before = said().len();
    let pid = criod.pid();
    Process::other(pid).unwrap().signal(Signal::SIGHUP);
    let line = eventually("the log says that nothing changes", || {
        let new = said().split_off(before);
        new.lines().find(|l| l.contains("goes on serving")).map(str::to_owned)
    });
    assert!(line.contains(reason), "{reason}: {line}");
    assert_eq!((criod.owner(), criod.criods()), (Some(pid), vec![pid]));
    criod.version().unwrap();
}

#[test]
fn a_reload_takes_up_a_configuration_and_refuses_a_broken_one_or_a_broken_program() {
    let mut criod = Criod::start(Options::default());
    let conf = criod.dir.join("crio.conf");
    fs::write(&conf, "[crio.runtime\n").unwrap();
    refused(&criod, "crio.conf");
    fs::write(&conf, "[crio]\nstorage_driver = \"vfs\"\n").unwrap();
    refused(&criod, "vfs");
    fs::write(&conf, "[crio.runtime]\nctr_stop_timeout = 77\n").unwrap();

    // The program.
    let link = criod.dir.join("criod");
    let program = fs::read_link(&link).unwrap();
    let becomes = |text: &str| {
        fs::remove_file(&link).unwrap();
        criod.script("criod", text);
    };
    becomes("#!/bin/sh\nexit 3\n");
    refused(&criod, "ended before it could serve");
    becomes("no program");
    refused(&criod, "criod");
    fs::remove_file(&link).unwrap();
    refused(&criod, "criod");
    // One that hangs is replaced by the next.
    criod.script("criod", "#!/bin/sh\ntouch DIR/hangs\nexec sleep 1000.5\n");
    Process::other(criod.pid()).unwrap().signal(Signal::SIGHUP);
    there(&criod.dir.join("hangs"));
    assert_ne!(configured(&criod, "ctr_stop_timeout"), "77");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(program, &link).unwrap();
    let mut old = criod.reload();
    old.wait();
    assert_eq!(e2e::daemon::processes("sleep 1000.5"), Vec::new());
    assert_eq!(configured(&criod, "ctr_stop_timeout"), "77");
    // And again, and by its successor.
    fs::write(&conf, "[crio.runtime]\nctr_stop_timeout = 78\n").unwrap();
    criod.reload().wait();
    assert_eq!(configured(&criod, "ctr_stop_timeout"), "78");
    criod.finish();
}

#[test]
fn reloads_one_after_another_run_every_command_once() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("storm");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    let cri = criod.cri.clone();
    let over = &AtomicBool::new(false);
    let (cri, id, pod) = (&cri, &id, &pod);
    let again = |call: &dyn Fn() -> Answer<()>| {
        loop {
            match call() {
                Ok(()) => return,
                Err(e) => assert!(passes(&e), "{e:?}"),
            }
        }
    };
    let again = &again;
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let execs: Vec<_> = (0..3)
            .map(|worker| {
                scope.spawn(move || {
                    let mut n = 0;
                    while !over.load(Ordering::SeqCst) {
                        let script = format!("echo {worker}-{n} >>/ran; sleep 0.1; echo {n}");
                        let expected = format!("{n}\n");
                        again(&|| {
                            let answer = exec(cri, id, &script)?;
                            assert_eq!(answer.stdout, expected.as_bytes());
                            Ok(())
                        });
                        n += 1;
                    }
                    n
                })
            })
            .collect();
        let config = &config;
        let creates = scope.spawn(move || {
            let mut n = 0;
            while !over.load(Ordering::SeqCst) {
                let one = container(&format!("n{n}"), &["true"]);
                let made = std::cell::RefCell::new(String::new());
                again(&|| cri.create(pod, &one, config).map(|id| *made.borrow_mut() = id));
                let made = made.into_inner();
                again(&|| cri.start(&made));
                again(&|| cri.stop(&made, 10));
                again(&|| cri.remove(&made));
                n += 1;
            }
            n
        });
        for _ in 0..12 {
            let mut old = criod.reload();
            old.wait();
        }
        over.store(true, Ordering::SeqCst);
        assert!(creates.join().unwrap() > 0);
        execs.into_iter().map(|e| e.join().unwrap()).collect()
    });
    let (_, ran) = criod.exec(id, &["cat", "/ran"]).unwrap();
    let mut ran: Vec<&str> = ran.lines().collect();
    ran.sort_unstable();
    let mut expected: Vec<String> = counts
        .iter()
        .enumerate()
        .flat_map(|(worker, count)| (0..*count).map(move |n| format!("{worker}-{n}")))
        .collect();
    expected.sort_unstable();
    assert_eq!(ran, expected);
    assert_eq!(criod.containers().len(), 1);
    criod.finish();
}

/// Whether a call that failed so has not been begun, or goes on: it may be repeated.
fn passes(e: &Status) -> bool {
    let lost = e.message().contains("result of the command is lost");
    let cut = e.message().contains("transport error");
    !lost && (e.code() == Code::Unavailable || (e.code() == Code::Unknown && cut))
}

#[test]
fn whoever_is_killed_during_a_reload_one_serves_or_none_is_left() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("killed");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    let began = std::time::Instant::now();
    criod.reload().wait();
    let whole = began.elapsed();
    let victims = ["old", "new", "both"];
    for round in 0..18 {
        let old = criod.pid();
        Process::other(old).unwrap().signal(Signal::SIGHUP);
        std::thread::sleep(whole * round / 18);
        for pid in criod.criods() {
            let is_old = pid == old;
            let hit = match victims[round as usize % 3] {
                "old" => is_old,
                "new" => !is_old,
                _ => true,
            };
            if hit && let Some(mut process) = Process::other(pid) {
                process.signal(Signal::SIGKILL);
                process.wait();
            }
        }
        criod.settle();
        assert_eq!(criod.exec(&id, &["echo", "x"]).unwrap(), (0, "x\n".to_owned()));
        assert_eq!(criod.pods().len(), 1);
    }
    criod.finish();
}

#[test]
fn a_second_one_by_hand_is_refused() {
    let criod = Criod::start(Options::default());
    let mut second = criod.command();
    let second = criod.net.run(|| second.status().unwrap());
    assert!(!second.success());
    assert!(criod.said().contains("another criod uses"), "{}", criod.said());
    // And the first one has lost nothing by it.
    let mut answer = String::new();
    let mut inspect = UnixStream::connect(criod.dir.join("criod.sock")).unwrap();
    inspect.write_all(b"GET /info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    inspect.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    inspect.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    criod.finish();
}
