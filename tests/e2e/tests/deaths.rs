//! Monitors and keeper that die at once, are stopped, or are killed for want of memory, below a criod.
//!
//! ```text
//! killed    noticed at once, another takes over        (kills.rs, crash.rs; here: all orders at once)
//! stopped   lives, so there can be no other: calls say so in bounded time, and go on when it does
//! ```

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::daemon::{Criod, EXITED, Options, RUNNING, container, lines, numbers};
use e2e::disk::Disk;
use e2e::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

fn send(pid: i32, signal: Signal) {
    assert!(pid > 1);
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A process that is stopped until this is dropped.
struct Stopped(i32);

impl Stopped {
    fn new(pid: i32) -> Stopped {
        send(pid, Signal::SIGSTOP);
        eventually("it is stopped", || sys::proc::stat(pid).filter(|s| s.state == b'T'));
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGCONT);
    }
}

/// Says `line N` for every file `/goN`, in order, and ends with code 7 after the third.
const ASKED: &str =
    "for n in 0 1 2; do while [ ! -e /go$n ]; do sleep 0.02; done; echo line $n; done; exit 7";

fn go(criod: &Criod, id: &str, n: u32) {
    let path = format!("/go{n}");
    eventually("a command runs", || criod.exec(id, &["touch", &path]).ok());
}

fn said(criod: &Criod, pod: &str, n: usize) {
    let log = criod.log(pod, "c");
    eventually("a line", || (numbers(&log).len() == n).then_some(()));
}

#[test]
fn all_are_killed_at_once_in_every_order() {
    let mut criod = Criod::start(Options::default());
    let orders = [
        ["monitor", "keeper", "criod"],
        ["monitor", "criod", "keeper"],
        ["keeper", "monitor", "criod"],
        ["keeper", "criod", "monitor"],
        ["criod", "monitor", "keeper"],
        ["criod", "keeper", "monitor"],
        ["monitor", "keeper", ""],
        ["keeper", "monitor", ""],
    ];
    for (round, order) in orders.into_iter().enumerate() {
        let name = format!("round{round}");
        let config = criod.host_pod(&name);
        let pod = criod.run_pod(&config).unwrap();
        let id = criod.run(&pod, &container("c", &["sh", "-c", ASKED]), &config);
        go(&criod, &id, 0);
        said(&criod, &name, 1);
        let (monitor, keeper) = (criod.monitor_pid(&id).unwrap(), criod.keeper_pid().unwrap());
        for victim in order {
            match victim {
                "monitor" => send(monitor, Signal::SIGKILL),
                "keeper" => send(keeper, Signal::SIGKILL),
                "criod" => criod.kill9(),
                _ => {}
            }
        }
        if order.contains(&"criod") {
            criod.launch();
            criod.ready();
        }
        assert_eq!(criod.status(&id).unwrap().state, RUNNING, "{order:?}");
        eventually("another keeper", || criod.keeper_pid().filter(|new| *new != keeper));
        eventually("another monitor", || criod.monitor_pid(&id).filter(|new| *new != monitor));
        // It lived on, and so do its output and its commands.
        go(&criod, &id, 1);
        said(&criod, &name, 2);
        // This time the keeper has what a successor needs.
        let spares = || criod.keeper().call(&["GET", &id], &[]).ok().map(|a| a.fields.len());
        eventually("the spares are held again", || spares().filter(|n| *n >= 3));
        let monitor = criod.kill_monitor(&id);
        eventually("another monitor", || criod.monitor_pid(&id).filter(|new| *new != monitor));
        go(&criod, &id, 2);
        let end = criod.ended(&id);
        assert_eq!(numbers(&criod.log(&name, "c")), [0, 1, 2], "{order:?}");
        // What nobody held cannot be known to be whole: that is said, in the log and to clients.
        assert!(end.message.contains("no spare of the output was held"), "{order:?}: {end:?}");
        let said = fs::read_to_string(criod.dir.join("criod.log")).unwrap();
        let warned = |l: &str| l.contains(&id) && l.contains("no spare of the output was held");
        assert!(said.lines().any(warned), "{order:?}");
        // Kernels before 6.15 do not tell how one ended that was not ours.
        let unknown = end.reason == "ContainerStatusUnknown";
        assert_eq!(end.exit_code, if unknown { 255 } else { 7 }, "{order:?}: {end:?}");
        criod.stop_pod(&pod).unwrap();
        criod.remove_pod(&pod).unwrap();
    }
    criod.finish();
}

/// An error that says what is wrong, with a code that the kubelet takes for a passing one.
fn unavailable<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) {
    let error = answer.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    assert!(error.message().contains("does not answer"), "{error:?}");
}

#[test]
fn calls_to_a_monitor_that_is_stopped_say_so_and_go_on_when_it_does() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("stopped");
    let pod = criod.run_pod(&config).unwrap();
    let script =
        "trap 'echo bye; exit 5' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let id = criod.run(&pod, &container("c", &["sh", "-c", script]), &config);
    let other = criod.run(&pod, &container("other", &["sleep", "1000"]), &config);
    let stopped = Stopped::new(criod.monitor_pid(&id).unwrap());
    std::thread::scope(|scope| {
        let cri = &criod.cri;
        let calls = [
            scope.spawn(|| unavailable(cri.exec(&id, &["true"]))),
            scope.spawn(|| unavailable(cri.reopen_log(&id))),
            scope.spawn(|| unavailable(cri.remove(&id))),
        ];
        // A monitor that serves may take as long as it likes.
        let long = scope.spawn(|| cri.exec(&other, &["sh", "-c", "sleep 12; echo late"]));
        // Nobody else waits for it.
        assert_eq!(cri.exec(&other, &["echo", "yes"]).unwrap(), (0, "yes\n".to_owned()));
        assert_eq!(cri.status(&id).unwrap().state, RUNNING);
        assert_eq!(cri.containers().len(), 2);
        assert_eq!(long.join().unwrap().unwrap(), (0, "late\n".to_owned()));
        calls.into_iter().for_each(|c| c.join().unwrap());
    });
    // Nor does a criod that starts.
    criod.restart();
    assert_eq!(criod.status(&id).unwrap().state, RUNNING);
    let monitor = stopped.0;
    drop(stopped);
    // The removal has reached it, with the kill that goes before.
    let end = criod.ended(&id);
    assert_eq!(end.exit_code, 137);
    assert_eq!(criod.monitor_pid(&id), Some(monitor), "none takes its place");
    let found = numbers(&criod.log("stopped", "c"));
    assert!(found.iter().copied().eq(0..found.len() as u64), "{found:?}");
    criod.remove(&id).unwrap();
    criod.finish();
}

#[test]
fn a_keeper_that_is_stopped_is_replaced_and_nothing_is_lost_when_it_goes_on() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("keeper");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sh", "-c", ASKED]), &config);
    // Its init becomes the keeper's child.
    let monitor = criod.kill_monitor(&id);
    eventually("another monitor", || criod.monitor_pid(&id).filter(|new| *new != monitor));
    let stopped = Stopped::new(criod.keeper_pid().unwrap());
    go(&criod, &id, 0);
    said(&criod, "keeper", 1);
    // This needs a keeper, and gets one.
    let other = criod.run(&pod, &container("other", &["sh", "-c", "echo up; exit 3"]), &config);
    assert_eq!(criod.ended(&other).exit_code, 3);
    assert_ne!(criod.keeper_pid(), Some(stopped.0));
    go(&criod, &id, 1);
    let first = stopped.0;
    drop(stopped);
    let gone = || sys::proc::stat(first).is_none_or(|s| s.state == b'Z');
    eventually("the first one makes room", || gone().then_some(()));
    eventually("the spares are held", || {
        let held = criod.keeper().call(&["GET", &id], &[]).ok()?.fields;
        ["stdout", "stderr", "init", "log"]
            .iter()
            .all(|n| held.contains(&(*n).into()))
            .then_some(())
    });
    let monitor = criod.kill_monitor(&id);
    eventually("another monitor", || criod.monitor_pid(&id).filter(|new| *new != monitor));
    go(&criod, &id, 2);
    let end = criod.ended(&id);
    let unknown = end.reason == "ContainerStatusUnknown";
    assert_eq!(end.exit_code, if unknown { 255 } else { 7 }, "{end:?}");
    assert_eq!(numbers(&criod.log("keeper", "c")), [0, 1, 2]);
    criod.finish();
}

/// A cgroup with hardly any memory; its processes are killed and it is removed when dropped.
struct Starved(PathBuf);

impl Starved {
    fn new(name: &str) -> Starved {
        let one = Path::new("/sys/fs/cgroup/memory");
        let base = if one.exists() { one } else { Path::new("/sys/fs/cgroup") };
        let dir = base.join(name);
        fs::create_dir(&dir).unwrap();
        let made = Starved(dir);
        let limit = if one.exists() { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(made.0.join(limit), "8192").unwrap();
        made
    }

    fn add(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn kills(&self) -> u64 {
        let read = |name: &str| fs::read_to_string(self.0.join(name)).ok();
        let text = read("memory.events").or_else(|| read("memory.oom_control")).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("oom_kill ")).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        for _ in 0..200 {
            let pids = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 1) {
                sys::proc::signal(pid, Signal::SIGKILL);
            }
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_monitor_killed_for_want_of_memory_is_replaced_and_its_container_is_not_to_blame() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("oom");
    let pod = criod.run_pod(&config).unwrap();
    let script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); \
                  [ $((i%50)) = 0 ] && sleep 0.02; done; exit 7";
    let id = criod.run(&pod, &container("c", &["sh", "-c", script]), &config);
    for round in 1..=3 {
        let starved = Starved::new(&format!("{}-oom{round}", criod.tag));
        let monitor = criod.monitor_pid(&id).unwrap();
        starved.add(monitor);
        eventually("another monitor", || criod.monitor_pid(&id).filter(|new| *new != monitor));
        assert!(starved.kills() > 0, "it did not die of anything else");
    }
    let end = criod.ended(&id);
    assert_eq!((end.exit_code, end.reason.as_str()), (7, "Error"), "{end:?}");
    let found = numbers(&criod.log("oom", "c"));
    assert!(found.iter().copied().eq(0..5000), "{} lines", found.len());
    criod.finish();
}

#[test]
fn commands_of_a_killed_monitor_end_with_an_error_and_are_not_run_twice() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("exec");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    for round in 0..4u64 {
        let cri = &criod.cri;
        std::thread::scope(|scope| {
            let call = scope.spawn(|| cri.exec(&id, &["sh", "-c", "echo x >> /ran; sleep 1000"]));
            let ran = || criod.exec(&id, &["cat", "/ran"]).ok().filter(|a| a.0 == 0);
            let want = "x\n".repeat(usize::try_from(round).unwrap() + 1);
            eventually("it runs", || ran().filter(|a| a.1 == want));
            criod.kill_monitor(&id);
            let error = call.join().unwrap().unwrap_err();
            // Not DeadlineExceeded, which the kubelet takes for a probe that failed.
            assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        });
        eventually("commands work again", || criod.exec(&id, &["true"]).ok());
        // Without what looks for it.
        let left = || criod.exec(&id, &["ps"]).unwrap().1.contains("x >> /ran");
        eventually("nothing of it is left", || (!left()).then_some(()));
    }
    criod.finish();
}

#[test]
fn a_deadline_survives_criod_and_monitor_and_only_comes_nearer() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("deadline");
    let pod = criod.run_pod(&config).unwrap();
    let deaf = "trap 'echo no' TERM; echo line 0; while :; do sleep 0.1; done";
    let near = criod.run(&pod, &container("near", &["sh", "-c", deaf]), &config);
    let far = criod.run(&pod, &container("far", &["sh", "-c", deaf]), &config);
    for name in ["near", "far"] {
        let log = criod.log("deadline", name);
        eventually("it listens", || (!numbers(&log).is_empty()).then_some(()));
    }
    std::thread::scope(|scope| {
        let cri = criod.cri.clone();
        let calls = [(near.clone(), 4), (far.clone(), 3000)].map(|(id, seconds)| {
            let cri = cri.clone();
            scope.spawn(move || cri.stop(&id, seconds))
        });
        // Both have had their signal.
        for name in ["near", "far"] {
            let log = criod.log("deadline", name);
            let heard = || lines(&log).iter().any(|(_, text)| text == "no");
            eventually("the signal", || heard().then_some(()));
        }
        criod.kill9();
        calls.into_iter().for_each(|c| assert!(c.join().unwrap().is_err()));
    });
    for id in [&near, &far] {
        send(criod.monitor_pid(id).unwrap(), Signal::SIGKILL);
    }
    criod.launch();
    criod.ready();
    assert_eq!(criod.status(&far).unwrap().state, RUNNING);
    assert_eq!(criod.exec(&far, &["echo", "yes"]).unwrap(), (0, "yes\n".to_owned()));
    std::thread::scope(|scope| {
        // This one comes too late to put it off, and this one brings it nearer.
        let cri = criod.cri.clone();
        let calls = [(near.clone(), 3000), (far.clone(), 1)].map(|(id, seconds)| {
            let cri = cri.clone();
            scope.spawn(move || cri.stop(&id, seconds))
        });
        calls.into_iter().for_each(|c| c.join().unwrap().unwrap());
    });
    for id in [&near, &far] {
        let status = criod.status(id).unwrap();
        assert_eq!((status.state, status.exit_code), (EXITED, 137));
    }
    criod.finish();
}

#[test]
fn a_frozen_log_disk_holds_up_its_container_alone_even_where_its_monitor_is_killed() {
    let folder = tempfile::Builder::new().prefix("criod-e2e-disk-").tempdir().unwrap();
    let disk = Disk::new(folder.path(), 16);
    let criod = Criod::start(Options::default());
    let mut config = criod.host_pod("frozen");
    config.log_directory = disk.path("pod").to_string_lossy().into_owned();
    let pod = criod.run_pod(&config).unwrap();
    let script = "trap 'exit 5' TERM; i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); \
                  sleep 0.01; done; echo > /done; while :; do sleep 0.02; done";
    let id = criod.run(&pod, &container("c", &["sh", "-c", script]), &config);
    let other = criod.run(&pod, &container("killed", &["sh", "-c", script]), &config);
    let log = |name: &str| disk.path("pod").join(format!("{name}.log"));
    for name in ["c", "killed"] {
        eventually("it writes", || (numbers(&log(name)).len() > 5).then_some(()));
    }
    let frozen = disk.freeze();
    for id in [&id, &other] {
        eventually("all is written", || {
            criod.exec(id, &["test", "-e", "/done"]).ok().filter(|a| a.0 == 0)
        });
    }
    // It is dead but for the thread that waits for the disk.
    let dead = criod.kill_monitor(&other);
    unavailable(criod.exec(&other, &["true"]));
    assert_eq!(criod.status(&other).unwrap().state, RUNNING);
    criod.stop(&id, 20).unwrap();
    assert_eq!(criod.ended(&id).exit_code, 5);
    assert!(numbers(&log("c")).len() < 200);
    drop(frozen);
    eventually("another monitor", || criod.monitor_pid(&other).filter(|new| *new != dead));
    criod.stop(&other, 20).unwrap();
    assert_eq!(criod.ended(&other).exit_code, 5);
    for name in ["c", "killed"] {
        eventually("the log is whole", || numbers(&log(name)).into_iter().eq(0..200).then_some(()));
    }
    criod.finish();
}
