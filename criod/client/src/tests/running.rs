//! `run`.

use std::fs;

use api_cri::v1::*;

use super::fake::Fake;
use super::{Closed, Seen, criod, error, until};
use crate::console::Sink;

const T: &str = "2026-11-24T07:36:22.123456789Z";
const MADE: &str = "run pod; create container; start container";
const GONE: &str = "stop pod pod0000000000000; remove pod pod0000000000000";

/// A runtime that has the image `web`, whose containers write and end with 3.
fn fake() -> Fake {
    let fake = Fake::new();
    let mut state = fake.state();
    state.images.push(Image {
        id: "sha256:5eb".into(),
        repo_tags: vec!["web".into()],
        ..Default::default()
    });
    state.output = format!("{T} stdout F out\n{T} stderr F err\n{T} stdout P no newline");
    state.output.push('\n');
    state.exit = Some(3);
    drop(state);
    fake
}

#[tokio::test]
async fn attached() {
    let fake = fake();
    let _server = fake.serve();
    let (code, out, err) = criod(&fake, &["run", "web"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (3, "out\nno newline", "err\n"));
    assert_eq!(fake.calls(), format!("{MADE}; {GONE}"));
    // Its log is gone with it.
    assert_eq!(fs::read_dir(fake.dir.path().join("pods")).unwrap().count(), 0);
}

#[tokio::test]
async fn kept() {
    let fake = fake();
    let _server = fake.serve();
    let logs = fake.dir.path().join("mine");
    let dir = logs.to_str().unwrap();
    assert_eq!(
        criod(&fake, &["run", "--keep", "--log-dir", dir, "--name", "n/1", "web"]).await.0,
        3
    );
    assert_eq!(fake.calls(), MADE);
    assert!(logs.join("n_1.log").exists());
    assert_eq!(criod(&fake, &["logs", "n/1"]).await.1, "out\nno newline");
    // A log in a place that was named stays even when the pod goes.
    fake.state().calls.clear();
    fake.state().containers.clear();
    assert_eq!(criod(&fake, &["run", "--rm", "--log-dir", dir, "--name", "b", "web"]).await.0, 3);
    assert_eq!(fake.calls(), format!("{MADE}; {GONE}"));
    assert!(logs.join("b.log").exists());
}

#[tokio::test]
async fn what_is_asked_for() {
    let fake = fake();
    let _server = fake.serve();
    let args = [
        "run",
        "--name",
        "c",
        "--pod-name",
        "p",
        "-e",
        "A=1",
        "--env",
        "B=x=y",
        "-e",
        "A=2",
        "-v",
        "/srv:/data:ro",
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:53:53/udp",
        "--runtime",
        "crun",
        "--user",
        "1000:7",
        "--workdir",
        "/tmp",
        "--memory",
        "64Mi",
        "--cpus",
        "0.5",
        "--tty",
        "--entrypoint",
        "/init",
        "web",
        "--",
        "serve",
        "-v",
        "--",
        "x",
    ];
    assert_eq!(criod(&fake, &args).await.0, 3);
    let sandbox = fake.state().sandbox.take().unwrap();
    assert_eq!(sandbox.runtime_handler, "crun");
    let config = sandbox.config.unwrap();
    let meta = config.metadata.clone().unwrap();
    assert_eq!((meta.name.as_str(), meta.namespace.as_str(), meta.uid.len()), ("p", "default", 36));
    assert_eq!(config.hostname, "p");
    let ports: Vec<_> = config
        .port_mappings
        .iter()
        .map(|p| (p.host_ip.as_str(), p.host_port, p.container_port, p.protocol))
        .collect();
    assert_eq!(ports, [("", 8080, 80, 0), ("127.0.0.1", 53, 53, 1)]);
    let created = fake.state().created.take().unwrap();
    assert_eq!(created.sandbox_config.unwrap(), config);
    let c = created.config.unwrap();
    assert_eq!(c.metadata.unwrap().name, "c");
    let image = c.image.unwrap();
    assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:5eb", "web"));
    assert_eq!((c.command, c.working_dir, c.tty), (vec!["/init".to_owned()], "/tmp".into(), true));
    assert_eq!(c.args, ["serve", "-v", "--", "x"]);
    let envs: Vec<_> = c.envs.iter().map(|e| (e.key.as_str(), &e.value[..])).collect();
    assert_eq!(envs, [("A", &b"2"[..]), ("B", b"x=y")]);
    let m = &c.mounts[0];
    assert_eq!(
        (m.host_path.as_str(), m.container_path.as_str(), m.readonly),
        ("/srv", "/data", true)
    );
    let linux = c.linux.unwrap();
    let r = linux.resources.unwrap();
    assert_eq!(
        (r.cpu_period, r.cpu_quota, r.cpu_shares, r.memory_limit_in_bytes),
        (100_000, 50_000, 512, 64 << 20)
    );
    let s = linux.security_context.unwrap();
    assert_eq!((s.run_as_user.unwrap().value, s.run_as_group.unwrap().value), (1000, 7));
    assert!(s.masked_paths.iter().any(|p| p == "/proc/kcore"));
    assert!(s.readonly_paths.iter().any(|p| p == "/proc/sys"));
    let namespaces = s.namespace_options.unwrap();
    assert_eq!(namespaces.network, NamespaceMode::Pod as i32);
    assert_eq!(namespaces.pid, NamespaceMode::Container as i32);

    assert_eq!(criod(&fake, &["run", "--host-network", "--user", "nobody", "web"]).await.0, 3);
    let config = fake.state().sandbox.take().unwrap().config.unwrap();
    assert_eq!(config.hostname, "");
    let context = config.linux.unwrap().security_context.unwrap();
    assert_eq!(context.namespace_options.unwrap().network, NamespaceMode::Node as i32);
    let c = fake.state().created.take().unwrap().config.unwrap();
    let s = c.linux.unwrap().security_context.unwrap();
    assert_eq!((s.run_as_username.as_str(), s.run_as_user), ("nobody", None));
    assert!(c.metadata.unwrap().name.starts_with("web-"));
}

#[tokio::test]
async fn detached() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().exit = None;
    let (code, out, err) = criod(&fake, &["run", "-d", "web", "sleep", "-x"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "ctr0000000000000\npod0000000000000\n");
    assert_eq!(fake.calls(), MADE);
    assert_eq!(fake.state().created.take().unwrap().config.unwrap().args, ["sleep", "-x"]);
    let (_, out, _) = criod(&fake, &["run", "-d", "-o", "json", "web"]).await;
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["containerId"], "ctr0000000000000");
    assert_eq!(document["podSandboxId"], "pod0000000000000");
}

#[tokio::test]
async fn when_to_pull() {
    let fake = fake();
    let _server = fake.serve();
    for (args, pulled) in [
        (&["run", "web"][..], false),
        (&["run", "--no-pull", "web"], false),
        (&["run", "--pull", "always", "web"], true),
        (&["run", "--pull", "missing", "other"], true),
    ] {
        fake.state().calls.clear();
        assert_eq!(criod(&fake, args).await.0, 3, "{args:?}");
        assert_eq!(fake.calls().starts_with("pull "), pulled, "{args:?}");
    }
    let created = fake.state().created.take().unwrap();
    assert_eq!(created.config.unwrap().image.unwrap().image, "sha256:0123");
    fake.state().calls.clear();
    assert_eq!(
        criod(&fake, &["run", "--pull", "never", "other"]).await,
        error(125, "there is no image \"other\" here, and it must not be pulled")
    );
    assert_eq!(fake.calls(), "");
}

#[tokio::test]
async fn what_fails_leaves_nothing() {
    for (call, made, doing) in [
        ("run_pod_sandbox", "run pod", "start the pod"),
        ("create_container", "run pod; create container", "make the container"),
        ("start_container", MADE, "start the container"),
    ] {
        for detach in [false, true] {
            let fake = fake();
            let _server = fake.serve();
            fake.state().failing.insert(call, tonic::Status::internal("no"));
            let args: &[&str] = if detach { &["run", "-d", "web"] } else { &["run", "web"] };
            assert_eq!(criod(&fake, args).await, error(125, &format!("cannot {doing}: no")));
            let gone =
                if call == "run_pod_sandbox" { made.into() } else { format!("{made}; {GONE}") };
            assert_eq!(fake.calls(), gone);
            assert_eq!(fs::read_dir(fake.dir.path().join("pods")).unwrap().count(), 0);
        }
    }
}

/// Runs `web` until it is seen to write, interrupts it so often, and awaits its end.
async fn interrupted(fake: &Fake, interrupts: usize) -> u8 {
    let mut seen = Seen::new(fake);
    let (out, interrupt) = (seen.out.clone(), seen.interrupt.clone());
    let running = {
        let fake = fake.clone();
        tokio::spawn(async move { seen.run(&fake, &["run", "web"]).await })
    };
    until(|| out.text().starts_with("out\n")).await;
    for n in 1..=interrupts {
        interrupt.send(()).await.unwrap();
        until(|| fake.calls().matches("; stop ctr").count() >= n).await;
    }
    running.await.unwrap()
}

#[tokio::test]
async fn interrupted_it_stops() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().exit = None;
    assert_eq!(interrupted(&fake, 1).await, 143);
    assert_eq!(fake.calls(), format!("{MADE}; stop ctr0000000000000 in 10; {GONE}"));
}

#[tokio::test]
async fn interrupted_twice_it_is_killed() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().exit = None;
    fake.state().stubborn = true;
    assert_eq!(interrupted(&fake, 2).await, 137);
    assert_eq!(
        fake.calls(),
        format!("{MADE}; stop ctr0000000000000 in 10; stop ctr0000000000000 in 0; {GONE}")
    );
}

#[tokio::test]
async fn interrupted_during_the_pull() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().hanging.push("pull_image");
    let mut seen = Seen::new(&fake);
    let interrupt = seen.interrupt.clone();
    let running = {
        let fake = fake.clone();
        tokio::spawn(async move { seen.run(&fake, &["run", "other"]).await })
    };
    until(|| fake.calls() == "pull other").await;
    interrupt.send(()).await.unwrap();
    assert_eq!(running.await.unwrap(), 130);
    assert_eq!(fake.calls(), "pull other");
}

#[tokio::test]
async fn interrupted_before_the_start() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().hanging.push("image_status");
    let mut seen = Seen::new(&fake);
    seen.interrupt.try_send(()).unwrap();
    assert_eq!(seen.run(&fake, &["run", "web"]).await, 130);
    assert_eq!(fake.calls(), "");
}

/// Interrupts a run twice while `call` hangs, once it has been made.
async fn interrupted_in(fake: &Fake, call: &'static str, note: &str) -> (u8, String) {
    fake.state().hanging.push(call);
    let mut seen = Seen::new(fake);
    let (err, interrupt) = (seen.err.clone(), seen.interrupt.clone());
    let running = {
        let fake = fake.clone();
        tokio::spawn(async move { seen.run(&fake, &["run", "web"]).await })
    };
    until(|| fake.calls().ends_with(note)).await;
    interrupt.send(()).await.unwrap();
    interrupt.send(()).await.unwrap();
    (running.await.unwrap(), err.text())
}

#[tokio::test]
async fn interrupted_twice_in_a_step_gives_it_up() {
    let fake = fake();
    let _server = fake.serve();
    let (code, err) = interrupted_in(&fake, "run_pod_sandbox", "run pod").await;
    assert_eq!((code, fake.calls().as_str()), (130, "run pod"));
    assert!(err.ends_with("error: given up: what was being made may still be there\n"), "{err}");

    fake.state().hanging.clear();
    let (code, _) = interrupted_in(&fake, "create_container", "create container").await;
    assert_eq!(code, 130);
    assert!(fake.calls().ends_with(&format!("create container; {GONE}")), "{}", fake.calls());
}

#[tokio::test]
async fn interrupted_in_a_step_ends_after_it() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().hanging.push("run_pod_sandbox");
    let mut seen = Seen::new(&fake);
    let (err, interrupt) = (seen.err.clone(), seen.interrupt.clone());
    let running = {
        let fake = fake.clone();
        tokio::spawn(async move { seen.run(&fake, &["run", "web"]).await })
    };
    until(|| fake.calls() == "run pod").await;
    interrupt.send(()).await.unwrap();
    until(|| err.text().contains("ends after this step")).await;
    fake.state().hanging.clear();
    assert_eq!(running.await.unwrap(), 130);
    assert_eq!(fake.calls(), format!("run pod; {GONE}"));
}

#[tokio::test]
async fn interrupted_while_it_is_removed() {
    let fake = fake();
    let _server = fake.serve();
    let (code, err) = interrupted_in(&fake, "stop_pod_sandbox", "stop pod pod0000000000000").await;
    assert_eq!(code, 3);
    assert!(err.contains("interrupted while the pod was removed"), "{err}");
}

#[tokio::test]
async fn output_that_nobody_reads_any_more_stops_it() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().exit = None;
    let mut seen = Seen::new(&fake);
    seen.console.out = Sink::new(Closed);
    assert_eq!(seen.run(&fake, &["run", "web"]).await, 143);
    assert_eq!(fake.calls(), format!("{MADE}; stop ctr0000000000000 in 10; {GONE}"));
}

#[tokio::test]
async fn ends_that_are_told() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().exit = None;
    let mut seen = Seen::new(&fake);
    let (out, err) = (seen.out.clone(), seen.err.clone());
    let running = {
        let fake = fake.clone();
        tokio::spawn(async move { seen.run(&fake, &["run", "web"]).await })
    };
    until(|| !out.text().is_empty()).await;
    fake.state().containers[0].1.reason = "OOMKilled".into();
    fake.exit("ctr0000000000000", 137);
    assert_eq!(running.await.unwrap(), 137);
    assert!(err.text().ends_with("error: the container ended with OOMKilled\n"), "{}", err.text());
}

#[tokio::test]
async fn removed_by_another() {
    let fake = fake();
    let _server = fake.serve();
    fake.state().exit = None;
    let mut seen = Seen::new(&fake);
    let out = seen.out.clone();
    let running = {
        let fake = fake.clone();
        tokio::spawn(async move { seen.run(&fake, &["run", "web"]).await })
    };
    until(|| !out.text().is_empty()).await;
    fake.state().containers.clear();
    assert_eq!(running.await.unwrap(), 125);
}
