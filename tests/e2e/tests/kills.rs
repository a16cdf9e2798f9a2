//! criod, a monitor and the keeper are killed while containers run: nobody notices.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use e2e::daemon::{Criod, EXITED, Options, RUNNING, container, numbers};
use e2e::eventually;

/// Prints numbered lines, twenty at a time, and ends with code 7.
fn counting(lines: u32) -> String {
    format!(
        "i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); \
         [ $((i%20)) = 0 ] && sleep 0.02; done; exit 7"
    )
}

fn assert_whole(criod: &Criod, pod: &str, name: &str, lines: u64) {
    let found = numbers(&criod.log(pod, name));
    let gap = found.iter().zip(0..).find(|(found, expected)| *found != expected);
    assert!(gap.is_none() && found.len() as u64 == lines, "{} lines, {gap:?}", found.len());
}

/// Waits until this container has written so many lines.
fn wrote(criod: &Criod, pod: &str, name: &str, lines: usize) {
    let log = criod.log(pod, name);
    eventually("lines are written", || (numbers(&log).len() >= lines).then_some(()));
}

#[test]
fn criod_dies_again_and_again_while_lines_are_written() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("count");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sh", "-c", &counting(3000)]), &config);
    let monitor = criod.monitor_pid(&id).unwrap();
    for round in 1..=6 {
        wrote(&criod, "count", "n", round * 300);
        criod.restart();
        assert_eq!(criod.status(&id).unwrap().state, RUNNING);
    }
    // It ends while nobody looks.
    criod.kill9();
    eventually("all lines are there", || {
        (numbers(&criod.log("count", "n")).len() == 3000).then_some(())
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(criod.monitor_pid(&id), Some(monitor), "it is the same all the time");
    criod.launch();
    criod.ready();
    let status = criod.status(&id).unwrap();
    assert_eq!((status.state, status.exit_code), (EXITED, 7), "from the first answer on");
    assert!(status.finished_at > status.started_at);
    assert_whole(&criod, "count", "n", 3000);
    criod.finish();
}

#[test]
fn a_monitor_dies_and_is_replaced_at_once() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("monitor");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sh", "-c", &counting(3000)]), &config);
    for round in 1..=5 {
        wrote(&criod, "monitor", "n", round * 300);
        let old = criod.kill_monitor(&id);
        eventually("a successor", || criod.monitor_pid(&id).filter(|new| *new != old));
        assert_eq!(criod.status(&id).unwrap().state, RUNNING);
    }
    assert_eq!(criod.exec(&id, &["echo", "here"]).unwrap(), (0, "here\n".to_owned()));
    assert_eq!(criod.ended(&id).exit_code, 7);
    assert_whole(&criod, "monitor", "n", 3000);
    criod.finish();
}

#[test]
fn a_monitor_dies_while_criod_is_down() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("both");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sh", "-c", &counting(1500)]), &config);
    let short = criod.run(&pod, &container("short", &["sh", "-c", "sleep 0.3; exit 9"]), &config);
    wrote(&criod, "both", "n", 100);
    criod.kill9();
    criod.kill_monitor(&id);
    criod.kill_monitor(&short);
    // The second container ends without anyone of its own to see it.
    std::thread::sleep(Duration::from_millis(600));
    criod.launch();
    criod.ready();
    assert_eq!(criod.ended(&short).exit_code, 9, "the keeper remembers");
    assert_eq!(criod.ended(&id).exit_code, 7);
    assert_whole(&criod, "both", "n", 1500);
    criod.finish();
}

#[test]
fn the_keeper_dies_and_gets_the_spares_back() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("keeper");
    let pod = criod.run_pod(&config).unwrap();
    let mut one = container("n", &["sh", "-c", &counting(3000)]);
    one.stdin = true;
    let id = criod.run(&pod, &one, &config);
    let spares = || {
        let mut names = criod.keeper().call(&["GET", &id], &[]).unwrap().fields;
        names.sort();
        names
    };
    let before = spares();
    assert!(before.len() >= 3, "{before:?}");
    criod.replace_keeper();
    eventually("the spares are back", || (spares() == before).then_some(()));
    let listening = || criod.keeper().call(&["GET", "criod"], &[]).unwrap().fields.len();
    eventually("the listening socket, too", || (listening() > 0).then_some(()));
    let old = criod.kill_monitor(&id);
    eventually("a successor", || criod.monitor_pid(&id).filter(|new| *new != old));
    assert_eq!(criod.ended(&id).exit_code, 7);
    assert_whole(&criod, "keeper", "n", 3000);
    criod.finish();
}

#[test]
fn the_keeper_dies_while_criod_is_down() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("down");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sh", "-c", &counting(1500)]), &config);
    wrote(&criod, "down", "n", 100);
    let keeper = criod.keeper_pid().unwrap();
    criod.kill9();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::SIGKILL).unwrap();
    criod.launch();
    criod.ready();
    assert_ne!(criod.keeper_pid().unwrap(), keeper);
    assert_eq!(criod.ended(&id).exit_code, 7);
    assert_whole(&criod, "down", "n", 1500);
    criod.finish();
}

#[test]
fn a_stop_goes_on_to_its_deadline() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("stop");
    let pod = criod.run_pod(&config).unwrap();
    let script = "trap 'echo no' TERM; echo line 0; while :; do sleep 0.1; done";
    let id = criod.run(&pod, &container("stubborn", &["sh", "-c", script]), &config);
    wrote(&criod, "stop", "stubborn", 1);
    let (answer, began) = std::thread::scope(|scope| {
        let cri = criod.cri.clone();
        let stopping = id.clone();
        let began = Instant::now();
        let stop = scope.spawn(move || cri.stop(&stopping, 3));
        std::thread::sleep(Duration::from_millis(700));
        // Status, lists and commands answer meanwhile.
        assert_eq!(criod.status(&id).unwrap().state, RUNNING);
        assert_eq!(criod.containers().len(), 1);
        assert_eq!(criod.exec(&id, &["echo", "yes"]).unwrap(), (0, "yes\n".to_owned()));
        assert!(!stop.is_finished());
        criod.kill9();
        (stop.join().unwrap(), began)
    });
    assert!(answer.is_err(), "its criod is gone");
    // Nobody asks again.
    criod.launch();
    criod.ready();
    let status = criod.ended(&id);
    assert_eq!(status.exit_code, 137);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(3), "{took:?}");
    criod.stop(&id, 0).unwrap();
    criod.finish();
}

#[test]
fn who_connects_while_criod_is_down_waits() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("wait");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sleep", "1000"]), &config);
    criod.kill9();
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..5)
            .map(|_| {
                let (cri, id) = (criod.cri.clone(), id.clone());
                scope.spawn(move || {
                    (cri.status(&id).map(|s| s.state), cri.exec(&id, &["echo", "x"]))
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        assert!(calls.iter().all(|c| !c.is_finished()), "they wait");
        criod.launch();
        for call in calls {
            let (state, exec) = call.join().unwrap();
            assert_eq!(state.unwrap(), RUNNING);
            assert_eq!(exec.unwrap(), (0, "x\n".to_owned()));
        }
    });
    criod.finish();
}

#[test]
fn commands_end_with_their_criod_and_leave_nothing() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("exec");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sleep", "1000"]), &config);
    let answer = std::thread::scope(|scope| {
        let (cri, id) = (criod.cri.clone(), id.clone());
        let call = scope.spawn(move || cri.exec(&id, &["sleep", "4"]));
        std::thread::sleep(Duration::from_millis(500));
        criod.restart();
        call.join().unwrap()
    });
    assert!(answer.is_err());
    assert_eq!(criod.exec(&id, &["echo", "again"]).unwrap(), (0, "again\n".to_owned()));
    // No one waits for its answer any more; it runs to its own end.
    let left = || criod.exec(&id, &["ps"]).unwrap().1.contains("sleep 4");
    eventually("the command has ended", || (!left()).then_some(()));
    criod.finish();
}

#[test]
fn an_orderly_end_ends_nothing_else() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("orderly");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sh", "-c", &counting(1500)]), &config);
    let stopping = criod.run(&pod, &container("s", &["sleep", "1000"]), &config);
    for signal in [nix::sys::signal::SIGTERM, nix::sys::signal::SIGINT] {
        std::thread::scope(|scope| {
            // A call in flight does not hold it up.
            let (cri, stopping) = (criod.cri.clone(), stopping.clone());
            let call = scope.spawn(move || cri.exec(&stopping, &["sleep", "3"]));
            std::thread::sleep(Duration::from_millis(200));
            assert!(criod.end(signal).success());
            assert!(call.join().unwrap().is_err());
        });
        criod.launch();
        criod.ready();
        assert_eq!(criod.status(&stopping).unwrap().state, RUNNING);
    }
    assert_eq!(criod.ended(&id).exit_code, 7);
    assert_whole(&criod, "orderly", "n", 1500);
    criod.finish();
}
