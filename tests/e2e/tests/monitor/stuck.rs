//! Processes that do not die as others do: frozen, paused, stopped, traced, daemons, bombs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options, cgroup_dir, members};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::*;

/// The file that freezes a container's cgroup, and what freezes it.
fn freezer(c: &Container<'_>) -> (PathBuf, &'static str) {
    let dir = cgroup_dir("freezer", &c.id);
    let one = dir.join("freezer.state");
    if one.exists() { (one, "FROZEN") } else { (dir.join("cgroup.freeze"), "1") }
}

/// Stops it at once, deletes it, and sees that nothing is left of it.
async fn goes(c: &Container<'_>, timeout_ms: u64) {
    let pids = members(&c.id);
    assert!(!pids.is_empty());
    stop(c, timeout_ms).await;
    let end = wait(c).await;
    assert_eq!((code(&end), phase(&end)), ((137, 9, false), Phase::PHASE_EXITED));
    delete(c).await;
    assert!(!cgroup(c).exists());
    let left = |p: &i32| sys::proc::stat(*p).is_some_and(|s| s.state != b'Z');
    eventually("all of them are gone", || (!pids.iter().any(left)).then_some(()));
}

/// What nobody's SIGKILL of init alone would end, with and without a pid namespace of its own.
#[tokio::test]
async fn no_process_is_left_of_daemons_bombs_and_the_stopped() {
    let keeper = Keeper::default();
    for script in [
        // Twice forked, sessions of their own, output closed, names that say nothing.
        "for n in 1 2 3; do setsid sh -c 'setsid sleep 1000 >/dev/null 2>&1 </dev/null & exit 0'; done; \
         trap '' TERM HUP INT; echo up; while :; do sleep 1; done",
        "bomb() { while :; do setsid sh -c 'usleep 20000; :' & usleep 3000; done; }; bomb & bomb & \
         trap '' TERM; echo up; while :; do sleep 0.1; done",
        "(trap '' TERM; kill -STOP $(sh -c 'echo $PPID')) & sleep 1000 & kill -STOP $!; \
         trap '' TERM; echo up; while :; do sleep 1; done",
    ] {
        for host_pid in [false, true] {
            let options = Options { host_pid, ..Options::default() };
            let c = Container::new(&keeper, script, &options);
            start(&c).await;
            says(&c, "up");
            eventually("they run", || (members(&c.id).len() > 2).then_some(()));
            goes(&c, 100).await;
        }
    }
}

#[tokio::test]
async fn what_is_frozen_or_paused_by_hand_goes_all_the_same() {
    let keeper = Keeper::default();
    for host_pid in [false, true] {
        for paused in [false, true] {
            let options = Options { host_pid, ..Options::default() };
            let mut c = Container::new(&keeper, "sleep 1000 & echo up; sleep 1000; :", &options);
            start(&c).await;
            says(&c, "up");
            let (file, frozen) = freezer(&c);
            if paused {
                let root = c.dir.join("runtime");
                let run = |args: &[&str]| {
                    let done =
                        Command::new(&options.runtime).arg("--root").arg(&root).args(args).output();
                    assert!(done.as_ref().unwrap().status.success(), "{done:?}");
                };
                run(&["pause", &c.id]);
            } else {
                fs::write(&file, frozen).unwrap();
            }
            eventually("it is frozen", || {
                (fs::read_to_string(&file).unwrap().trim() == frozen).then_some(())
            });
            assert_eq!(phase(&state(&c).await), Phase::PHASE_RUNNING);
            if paused {
                let said = message(run(&c, &["/bin/true"], 2000).await);
                assert!(said.contains("paused"), "{said}");
            }
            // Whoever takes over meanwhile is not held up by it either.
            c.kill_monitor();
            c.fork();
            goes(&c, 200).await;
        }
    }
}

/// Whoever traces a process hears of its end first, and may never ask for it.
#[tokio::test]
async fn a_tracer_that_sleeps_keeps_no_end_to_itself() {
    let keeper = Keeper::default();
    for (host_pid, of_init, signal) in
        [(false, true, false), (true, true, false), (false, true, true), (true, false, false)]
    {
        let options = Options { host_pid, ..Options::default() };
        let script = "sleep 1000 & trap '' TERM; echo up; while :; do sleep 1000; done";
        let c = Container::new(&keeper, script, &options);
        start(&c).await;
        says(&c, "up");
        let init = state(&c).await.pid;
        let child = || members(&c.id).into_iter().find(|p| *p != init);
        let traced = if of_init { init } else { eventually("its child", child) };
        let traced = Pid::from_raw(traced);
        ptrace::seize(traced, ptrace::Options::empty()).unwrap();
        if signal {
            // It has a signal that its tracer is to hear of, and stands still.
            sys::proc::signal(traced.as_raw(), Signal::SIGUSR1);
            eventually("it stands still", || {
                sys::proc::stat(traced.as_raw()).filter(|s| s.state == b't')
            });
        }
        goes(&c, 100).await;
        // Ours to reap, as its tracer.
        while waitpid(traced, None)
            .is_ok_and(|s| !matches!(s, WaitStatus::Signaled(..) | WaitStatus::Exited(..)))
        {
        }
    }
}
