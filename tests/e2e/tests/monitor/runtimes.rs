//! Runtimes that hang, fail, or are another than runc.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options, members};

use super::*;

/// runc behind a script that can be told to hang or fail at a verb.
pub(crate) struct Fake {
    pub(crate) path: PathBuf,
}

impl Fake {
    pub(crate) fn new(keeper: &Keeper) -> Fake {
        let path = keeper.dir.path().join("fake-runtime");
        // What hangs has a child, which is to go with it.
        let script = r#"#!/bin/sh
for a; do
  [ -e "$0.hang-$a" ] && { setsid sleep 54321 & sleep 54321; }
  [ -e "$0.fail-$a" ] && {
    log=; for b; do [ "$log" = next ] && log=$b; [ "$b" = --log ] && log=next; done
    cat "$0.fail-$a" > "$log"; exit 3
  }
done
exec /usr/sbin/runc "$@"
"#;
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Fake { path }
    }

    pub(crate) fn options(&self) -> Options {
        Options { runtime: self.path.to_str().unwrap().into(), ..Options::default() }
    }

    fn switch(&self, what: &str, verb: &str) -> PathBuf {
        self.path.with_file_name(format!("fake-runtime.{what}-{verb}"))
    }

    pub(crate) fn hang(&self, verb: &str) {
        fs::write(self.switch("hang", verb), "").unwrap();
    }

    pub(crate) fn fail(&self, verb: &str, log: &[u8]) {
        fs::write(self.switch("fail", verb), log).unwrap();
    }

    pub(crate) fn heal(&self, verb: &str) {
        let _ = fs::remove_file(self.switch("hang", verb));
        let _ = fs::remove_file(self.switch("fail", verb));
    }

    /// Calls of this verb that are under way.
    pub(crate) fn running(&self, verb: &str) -> Vec<i32> {
        let ours = sys::proc::with_argument(self.path.to_str().unwrap());
        let alive = |p: &i32| sys::proc::stat(*p).is_some_and(|s| s.state != b'Z');
        sys::proc::with_argument(verb)
            .into_iter()
            .filter(|p| ours.contains(p) && alive(p))
            .collect()
    }
}

#[tokio::test]
async fn a_create_that_hangs_is_ended_with_its_children() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    fake.hang("create");
    let limit = |c: &mut Config| c.create_timeout_ms = 300;
    let c = Container::with(&keeper, "true", &fake.options(), limit);
    let error = create(&c).await.unwrap_err().to_string();
    assert!(error.contains("did not end within 300 ms"), "{error}");
    assert!(fake.running("create").is_empty());
    let of = |c: &Container<'_>| sys::proc::tree(c.monitor);
    eventually("no child is left", || (of(&c).len() == 1).then_some(()));
    assert_eq!(phase(&wait(&c).await), Phase::PHASE_FAILED);
    delete(&c).await;
    // Deleted while it hangs, without any limit.
    let c = Container::new(&keeper, "true", &fake.options());
    let client = c.client().await;
    let call = tokio::spawn(async move { client.create(ctx(), &CreateRequest::new()).await });
    meanwhile("it hangs", || !fake.running("create").is_empty()).await;
    delete(&c).await;
    let error = call.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("deleted while"), "{error}");
    eventually("the runtime is gone", || fake.running("create").is_empty().then_some(()));
}

#[tokio::test]
async fn what_a_failing_runtime_says_is_passed_on_whatever_it_is() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    let mut huge = b"{\"level\":\"error\",\"msg\":\"".to_vec();
    huge.extend(std::iter::repeat_n(b'x', 20 << 20));
    for (log, said) in [
        (&b"\x00\xff\xfe garbage {\"msg\":"[..], "exit status 3"),
        (b"", "exit status 3"),
        (
            b"{\"level\":\"error\",\"msg\":\"a \\\"b\\\" \\u00e9 \\ud800\"}",
            "a \"b\" \u{e9} \u{fffd}",
        ),
        (&huge, "exit status 3"),
    ] {
        fake.fail("create", log);
        let c = Container::new(&keeper, "true", &fake.options());
        let error = message(create(&c).await);
        assert!(error.contains(said) && error.len() < 100_000, "{said}: {} bytes", error.len());
        assert_eq!(phase(&state(&c).await), Phase::PHASE_FAILED);
        let (private, _) = c.memory();
        assert!(private < 4096, "{private} kB");
        delete(&c).await;
    }
    fake.heal("create");
    // One that fails to start leaves a container that has ended.
    fake.fail("start", b"{\"level\":\"error\",\"msg\":\"no start today\"}\n");
    let c = Container::new(&keeper, "sleep 1000", &fake.options());
    create(&c).await.unwrap();
    let error = c.client().await.start(ctx(), &StartRequest::new()).await.unwrap_err().to_string();
    assert!(error.contains("no start today"), "{error}");
    let end = wait(&c).await;
    assert_eq!((code(&end).0, phase(&end)), (128, Phase::PHASE_EXITED));
    delete(&c).await;
    assert!(!cgroup(&c).exists());
}

#[tokio::test]
async fn a_start_that_hangs_can_be_stopped_and_deleted() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    fake.hang("start");
    let c = Container::new(&keeper, "sleep 1000", &fake.options());
    create(&c).await.unwrap();
    let client = c.client().await;
    let call = tokio::spawn(async move { client.start(ctx(), &StartRequest::new()).await });
    meanwhile("it hangs", || !fake.running("start").is_empty()).await;
    stop(&c, 0).await;
    let end = wait(&c).await;
    assert_eq!(phase(&end), Phase::PHASE_EXITED);
    assert!(call.await.unwrap().is_err());
    assert!(fake.running("start").is_empty());
    delete(&c).await;
}

#[tokio::test]
async fn signals_may_go_through_the_runtime() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    let script = "trap 'echo usr1; exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    let indirect = |c: &mut Config| c.direct_signal = false;
    let c = Container::with(&keeper, script, &fake.options(), indirect);
    start(&c).await;
    says(&c, "ready");
    let request = StopRequest { signal: 10, timeout_ms: 10_000, ..StopRequest::new() };
    c.client().await.stop(ctx(), &request).await.unwrap();
    assert_eq!(code(&wait(&c).await), (5, 0, false));
    delete(&c).await;
    // A `runtime kill` that hangs does not put the SIGKILL off.
    let c = Container::with(&keeper, "sleep 1000", &fake.options(), indirect);
    start(&c).await;
    fake.hang("kill");
    stop(&c, 200).await;
    assert_eq!(code(&wait(&c).await), (137, 9, false));
    delete(&c).await;
}

/// crun as the runtime.
pub(super) fn crun(keeper: &Keeper) -> Options {
    let path = keeper.dir.path().join("crun");
    // It refuses a machine that has cgroups of both versions: it gets one without the second.
    let script = "#!/bin/sh\nexec unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null && mount -t tmpfs none /sys/fs/cgroup/unified; \
                  exec crun \"$@\"' sh \"$@\"\n";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Options { runtime: path.to_str().unwrap().into(), ..Options::default() }
}

#[tokio::test]
async fn crun_runs_them_as_well() {
    let keeper = Keeper::default();
    let options = crun(&keeper);
    let script = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; done; echo up; \
                  trap 'exit 9' TERM; while :; do sleep 0.05; done";
    let mut c = Container::new(&keeper, script, &options);
    start(&c).await;
    says(&c, "up");
    let done = sh(&c, "echo in; exit 3", 5000).await;
    assert_eq!((done.exit_code, fs::read_to_string(done.stdout).unwrap().as_str()), (3, "in\n"));
    assert!(sh(&c, "sleep 1000", 300).await.timed_out);
    c.kill_monitor();
    c.fork();
    stop(&c, 10_000).await;
    assert_eq!(code(&wait(&c).await), (9, 0, false));
    let mut want = lines("line", 500);
    want.push("up".into());
    assert_eq!(c.texts("stdout"), want);
    delete(&c).await;
    assert!(!cgroup(&c).exists() && members(&c.id).is_empty());

    let options = Options { terminal: true, ..options };
    let c = Container::new(&keeper, "test -t 1 && echo tty; exit 4", &options);
    start(&c).await;
    assert_eq!(code(&wait(&c).await), (4, 0, false));
    assert_eq!(c.texts("stdout"), ["tty\r"]);
    delete(&c).await;
    // A monitor that dies while it creates or starts.
    for delay in [0, 5, 15, 30] {
        let options = Options { terminal: false, ..options.clone() };
        let mut c = Container::new(&keeper, "echo hello; exit 5", &options);
        let client = c.client().await;
        let call = tokio::spawn(async move {
            client.create(ctx(), &CreateRequest::new()).await?;
            client.start(ctx(), &StartRequest::new()).await
        });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        c.kill_monitor();
        let _ = call.await;
        c.fork();
        start(&c).await;
        assert_eq!(code(&wait(&c).await), (5, 0, false), "{delay}");
        assert_eq!(c.texts("stdout"), ["hello"], "{delay}");
        delete(&c).await;
    }
}

/// Holds a lease on a file: whoever opens it waits until this is gone.
struct Lease(std::process::Child);

impl Lease {
    fn on(path: &std::path::Path) -> Lease {
        use std::io::{BufRead, BufReader};
        // F_SETLEASE, F_WRLCK
        let script = r#"open F, "+>>", $ARGV[0] or die; $SIG{IO} = sub {}; $| = 1;
            fcntl F, 1024, 1 or die $!; print "held\n"; sleep 60 while 1"#;
        let mut child = std::process::Command::new("perl")
            .args(["-e", script])
            .arg(path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Lease(child)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn one_that_ends_while_its_log_is_opened_was_not_started() {
    let keeper = Keeper::default();
    let c = Container::new(&keeper, "sleep 1000", &Options::default());
    create(&c).await.unwrap();
    let lease = Lease::on(&c.log);
    let client = c.client().await;
    let starting = tokio::spawn(async move { client.start(ctx(), &StartRequest::new()).await });
    meanwhile("the log is being opened", || in_open(c.monitor)).await;
    stop(&c, 0).await;
    let said = message(starting.await.unwrap());
    assert!(said.contains("ended before it was started"), "{said}");
    drop(lease);
    assert_eq!(wait(&c).await.started_at, 0);
    delete(&c).await;
}

/// One of a process's threads waits for a lease.
fn in_open(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads
        .filter_map(|t| std::fs::read_to_string(t.path().join("wchan")).ok())
        .any(|w| w.contains("lease"))
}
