//! The machine is booted: what ran has ended, images stay, and what was taken is given back.
//!
//! The boot id is that of another text, bound over the kernel's in a mount namespace of the test's own.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use e2e::daemon::{Criod, EXITED, NOT_READY, Options, READY, container};
use e2e::eventually;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Has the kernel say another boot id, to this thread and what it starts.
fn another_boot(dir: &Path) {
    let file = dir.join("boot_id");
    fs::write(&file, "11111111-2222-4333-8444-555555555555\n").unwrap();
    mount(Some(&file), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn what_ran_has_ended_and_addresses_are_given_back() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let mut criod = Criod::start(Options::default());
    let config = criod.pod("boot");
    let pod = criod.run_pod(&config).unwrap();
    let ip = criod.ip(&pod);
    let ran = criod.run(&pod, &container("ran", &["sleep", "1000"]), &config);
    let done = criod.run(&pod, &container("done", &["sh", "-c", "exit 4"]), &config);
    let good = criod.run(&pod, &container("good", &["true"]), &config);
    let created = criod.create(&pod, &container("created", &["true"]), &config).unwrap();
    let before = [criod.ended(&done), criod.ended(&good)];
    let images = criod.list_images();
    let lease = criod.dir.join("leases/e2e").join(&ip);
    assert!(lease.exists());
    criod.power_off();
    another_boot(&criod.dir);
    criod.launch();
    criod.ready();
    assert_eq!(criod.list_images(), images);
    assert_eq!(criod.pod_status(&pod).unwrap().state, NOT_READY);
    // By these a client knows what must not run again (restartPolicy Never).
    let listed = criod.containers();
    assert_eq!(listed.len(), 4);
    assert!(listed.iter().all(|c| c.state == EXITED && c.pod_sandbox_id == pod), "{listed:?}");
    for lost in [&ran, &created] {
        let status = criod.status(lost).unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "ContainerStatusUnknown"));
        assert!(status.finished_at >= status.created_at.max(1), "{status:?}");
    }
    assert_eq!([criod.status(&done).unwrap(), criod.status(&good).unwrap()], before);
    // Nobody has to ask for it.
    eventually("the address is free", || (!lease.exists()).then_some(()));
    let results = criod.dir.join("root/cni/results");
    eventually("the cache is empty", || {
        (fs::read_dir(&results).unwrap().count() == 0).then_some(())
    });
    assert!(!criod.dir.join("run/ns").join(&pod).exists());
    // The client runs the pod anew beside the old one; a further restart changes nothing.
    let mut next = config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    let again = criod.run_pod(&next).unwrap();
    criod.run(&again, &container("ran", &["sleep", "1000"]), &next);
    criod.restart();
    assert_eq!(criod.pod_status(&again).unwrap().state, READY);
    assert_eq!(criod.pod_status(&pod).unwrap().state, NOT_READY);
    assert_eq!(criod.status(&done).unwrap(), before[0]);
    criod.stop_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
    assert_eq!((criod.pods().len(), criod.containers().len()), (1, 1));
    criod.finish();
}
