//! Keeper and monitor killed or stopped at bad moments.

use std::fs;
use std::time::Duration;

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options, members};
use nix::sys::signal::Signal;

use super::*;

#[tokio::test]
async fn a_keeper_that_dies_at_any_moment_is_not_missed() {
    let script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; done; exit 6";
    for moment in 0..6 {
        let mut keeper = Keeper::default();
        let mut detached = {
            let c = Container::new(&keeper, script, &Options::default());
            if moment > 0 {
                create(&c).await.unwrap();
            }
            if moment > 3 {
                c.client().await.start(ctx(), &StartRequest::new()).await.unwrap();
            }
            c.detach()
        };
        keeper.kill();
        if moment % 2 == 0 {
            // Nobody is there for the next step.
            let c = detached.attach(&keeper);
            start(&c).await;
            detached = c.detach();
        }
        keeper.restart();
        let mut c = detached.attach(&keeper);
        start(&c).await;
        if moment > 2 {
            eventually("the monitor is known again", || {
                let held = keeper.connect().call(&["GET", &c.id], &[]).ok()?.fields;
                (!held.is_empty()).then_some(())
            });
            c.kill_monitor();
            c.fork();
        }
        assert_eq!(code(&wait(&c).await), (6, 0, false), "{moment}");
        assert_eq!(c.texts("stdout"), lines("line", 300), "{moment}");
        delete(&c).await;
    }
}

#[tokio::test]
async fn a_keeper_that_is_stopped_holds_up_neither_calls_nor_deadlines() {
    let keeper = Keeper::default();
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let c = Container::new(&keeper, script, &Options::default());
    start(&c).await;
    says(&c, "ready");
    let spare = |c: &Container<'_>| keeper.connect().call(&["GET", &c.id], &[]).unwrap().fields;
    let before = spare(&c);
    sys::proc::signal(keeper.pid(), Signal::SIGSTOP);
    // Makes the monitor call it.
    c.client().await.reopen_log(ctx(), &ReopenLogRequest::new()).await.unwrap();
    for _ in 0..100 {
        state(&c).await;
    }
    stop(&c, 300).await;
    let end = wait(&c).await;
    assert_eq!((code(&end), phase(&end)), ((137, 9, false), Phase::PHASE_EXITED));
    sys::proc::signal(keeper.pid(), Signal::SIGCONT);
    drop(before);
    delete(&c).await;

    // One that goes on gets everything anew.
    let mut d = Container::new(
        &keeper,
        "i=0; while :; do echo $((i+=1)); sleep 0.01; done",
        &Options::default(),
    );
    start(&d).await;
    let before = spare(&d);
    sys::proc::signal(keeper.pid(), Signal::SIGSTOP);
    d.client().await.reopen_log(ctx(), &ReopenLogRequest::new()).await.unwrap();
    sys::proc::signal(keeper.pid(), Signal::SIGCONT);
    eventually("all spares are there", || (spare(&d) == before).then_some(()));
    let pid = state(&d).await.pid;
    d.kill_monitor();
    sys::proc::signal(pid, Signal::SIGKILL);
    d.fork();
    assert_eq!(code(&wait(&d).await), (137, 9, false));
    delete(&d).await;
}

#[tokio::test]
async fn both_killed_the_container_lives_and_what_is_lost_is_said() {
    for ends in [false, true] {
        let mut keeper = Keeper::default();
        let script = if ends {
            "echo one; sleep 0.2; exit 5"
        } else {
            // Its own pipeline is on descriptor 0 of others, and is not to be touched.
            "echo one; while [ ! -e /go ]; do sleep 0.02; done; echo two | cat; exit 5"
        };
        let mut detached = {
            let c = Container::new(&keeper, script, &Options::default());
            start(&c).await;
            says(&c, "one");
            c.kill_monitor();
            c.detach()
        };
        keeper.kill();
        if ends {
            std::thread::sleep(Duration::from_millis(400));
        }
        keeper.restart();
        let mut c = detached.attach(&keeper);
        c.fork();
        if !ends {
            let now = state(&c).await;
            assert_eq!(phase(&now), Phase::PHASE_RUNNING);
            assert!(now.lost.contains("no spare"), "{now:?}");
            assert!(sys::proc::stat(now.pid).is_some_and(|s| s.state != b'Z'));
            assert_eq!(sh(&c, "touch /go", 0).await.exit_code, 0);
        }
        let end = wait(&c).await;
        let exit = end.exit.as_ref().unwrap();
        if ends {
            // Reaped by who knows whom before anyone held a pidfd of it.
            assert!(exit.unknown == (exit.code == 255) && !end.lost.is_empty(), "{end:?}");
            assert!(exit.unknown || exit.code == 5, "{end:?}");
            assert_eq!(c.texts("stdout"), ["one"]);
        } else {
            assert!(exit.unknown || exit.code == 5, "{end:?}");
            assert_eq!(c.texts("stdout"), ["one", "two"]);
        }
        delete(&c).await;
    }
}

#[tokio::test]
async fn a_stream_that_has_ended_is_not_missed_by_a_successor() {
    let mut keeper = Keeper::default();
    // Stdout becomes a pipe of the container's own.
    let script = "echo one; exec 2>&-; { exec >&3 3>&-; while :; do echo inner; sleep 0.01; done; } 3>&1 | \
                  { exec >/dev/null; cat > /inner; }";
    let mut detached = {
        let c = Container::new(&keeper, script, &Options::default());
        start(&c).await;
        says(&c, "one");
        c.kill_monitor();
        c.detach()
    };
    keeper.replace();
    let mut c = detached.attach(&keeper);
    c.fork();
    assert!(state(&c).await.exit.is_none());
    delete(&c).await;
}

#[tokio::test]
async fn nothing_is_held_after_delete() {
    let keeper = Keeper::default();
    let base = {
        let c = Container::new(&keeper, "true", &Options::default());
        start(&c).await;
        wait(&c).await;
        delete(&c).await;
        eventually("the monitor ends", || c.monitor_ended().then_some(()));
        std::thread::sleep(Duration::from_millis(50));
        keeper.descriptors()
    };
    for n in 0..12 {
        let options = Options { terminal: n % 3 == 2, ..Options::default() };
        let mut c =
            Container::with(&keeper, "echo a; sleep 1000", &options, |c| c.stdin = n % 3 == 1);
        start(&c).await;
        if n % 2 == 0 {
            c.kill_monitor();
            c.fork();
        }
        delete(&c).await;
        eventually("the monitor ends", || c.monitor_ended().then_some(()));
    }
    eventually("the keeper holds no more", || (keeper.descriptors() <= base).then_some(()));
    assert!(keeper.connect().call(&["LIST", ""], &[]).unwrap().fields.is_empty());
    let exits = fs::read_to_string(keeper.dir.path().join("keeper.exits")).unwrap();
    assert_eq!(exits.lines().count(), 1, "{exits}");
}

#[tokio::test]
async fn a_deleted_container_stays_deleted_for_a_successor() {
    let keeper = Keeper::default();
    let mut c = Container::new(&keeper, "true", &Options::default());
    start(&c).await;
    wait(&c).await;
    delete(&c).await;
    eventually("the monitor ends", || c.monitor_ended().then_some(()));
    c.fork();
    let again = delete(&c).await.state.unwrap();
    assert_eq!((code(&again), phase(&again)), ((0, 0, false), Phase::PHASE_DELETED));
    eventually("the monitor ends", || c.monitor_ended().then_some(()));
}

#[tokio::test]
async fn a_stop_whose_signal_was_not_sent_is_made_up_for() {
    let keeper = Keeper::default();
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let mut c = Container::new(&keeper, script, &Options::default());
    start(&c).await;
    says(&c, "ready");
    c.kill_monitor();
    // As if it had died between noting the stop and sending the signal.
    let path = c.dir.join("state");
    let mut state: StateResponse =
        protobuf::Message::parse_from_bytes(&fs::read(&path).unwrap()).unwrap();
    state.stopping = protobuf::MessageField::some(Stopping {
        deadline: sys::clock::deadline(Duration::from_secs(60)),
        boot_id: sys::clock::boot_id().unwrap(),
        signal: 15,
        ..Stopping::new()
    });
    fs::write(&path, protobuf::Message::write_to_bytes(&state).unwrap()).unwrap();
    c.fork();
    assert_eq!(code(&wait(&c).await), (7, 0, false));
    delete(&c).await;
}

/// The kernel drops signals for which the first process of a pid namespace has no handler yet.
#[tokio::test]
async fn a_stop_right_after_the_start_waits_for_the_handler() {
    let keeper = Keeper::default();
    let script = "sleep 0.5; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let c = Container::new(&keeper, script, &Options::default());
    start(&c).await;
    stop(&c, 20_000).await;
    assert_eq!(code(&wait(&c).await), (7, 0, false));
    delete(&c).await;
}

#[tokio::test]
async fn a_fork_bomb_in_a_shared_pid_namespace_goes_with_its_container() {
    let keeper = Keeper::default();
    let options = Options { host_pid: true, ..Options::default() };
    let script = "(while :; do setsid sh -c 'sleep 0.02; :' & sleep 0.005; done) & \
                  echo up; while :; do sleep 0.1; done";
    let c = Container::new(&keeper, script, &options);
    start(&c).await;
    says(&c, "up");
    eventually("it forks", || (members(&c.id).len() > 4).then_some(()));
    stop(&c, 0).await;
    assert_eq!(code(&wait(&c).await), (137, 9, false));
    delete(&c).await;
    assert!(!cgroup(&c).exists());
}
