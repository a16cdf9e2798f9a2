//! criod, the keeper or a monitor is killed at any moment of any call, or criod is told to end or to
//! reload; the caller repeats the call, as the kubelet does.
//!
//! ```text
//! a cycle: RunPodSandbox CreateContainer StartContainer … StopContainer RemoveContainer
//!          StopPodSandbox RemovePodSandbox
//! measured once, then run again and again with a kill that comes a little later each time
//! ```

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api_cri::v1::{LinuxContainerConfig, LinuxContainerSecurityContext, PodSandboxConfig};
use e2e::daemon::{Answer, BUSYBOX, Cri, Criod, EXITED, Options, container, lines, processes};
use e2e::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Odd while criod is being killed; another number after each kill.
type Kills = AtomicUsize;

/// Repeats a call that a kill has cut, and only such a call.
fn repeated<T>(kills: &Kills, what: &str, call: impl Fn() -> Answer<T>) -> T {
    loop {
        let before = kills.load(Ordering::SeqCst);
        match call() {
            Ok(answer) => return answer,
            Err(e) => {
                let cut = before % 2 == 1 || kills.load(Ordering::SeqCst) != before;
                assert!(cut, "{what}: {e:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// What the kubelet says to a container of its pod's namespaces: the same again.
fn in_the_namespaces_of(config: &PodSandboxConfig) -> LinuxContainerConfig {
    let pod = config.linux.clone().unwrap().security_context.unwrap();
    LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            namespace_options: pod.namespace_options,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// One cycle.
fn cycle(cri: &Cri, kills: &Kills, config: &PodSandboxConfig) {
    let name = config.metadata.clone().unwrap().name;
    let script = "trap 'exit 5' TERM; echo started; while :; do sleep 0.02; done";
    let mut one = container("one", &["sh", "-c", script]);
    one.linux = Some(in_the_namespaces_of(config));
    let pod = repeated(kills, "RunPodSandbox", || cri.run_pod(config));
    let listed = repeated(kills, "ListPodSandbox", || cri.try_pods());
    assert_eq!(listed.iter().map(|p| &p.id).collect::<Vec<_>>(), [&pod]);
    let id = repeated(kills, "CreateContainer", || cri.create(&pod, &one, config));
    repeated(kills, "StartContainer", || cri.start(&id));
    let log = cri.log(&name, "one");
    eventually("it has started", || (!lines(&log).is_empty()).then_some(()));
    repeated(kills, "StopContainer", || cri.stop(&id, 30));
    let status = repeated(kills, "ContainerStatus", || cri.status(&id));
    assert_eq!((status.state, status.exit_code), (EXITED, 5));
    repeated(kills, "RemoveContainer", || cri.remove(&id));
    repeated(kills, "StopPodSandbox", || cri.stop_pod(&pod));
    repeated(kills, "RemovePodSandbox", || cri.remove_pod(&pod));
    let listed = repeated(kills, "ListPodSandbox", || cri.try_pods());
    assert!(listed.is_empty(), "{listed:?}");
    // It ran once, however often it was asked to.
    assert_eq!(lines(&log).len(), 1, "{:?}", lines(&log));
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Criod,
    /// criod, by SIGTERM.
    Ended,
    /// criod, by SIGHUP.
    Reloaded,
    Keeper,
    Monitor,
}

fn strike(criod: &mut Criod, victim: Victim) {
    match victim {
        Victim::Criod => criod.kill9(),
        Victim::Ended => assert!(criod.end(Signal::SIGTERM).success()),
        Victim::Reloaded => {
            criod.reload().wait();
        }
        Victim::Keeper => {
            criod.replace_keeper();
        }
        Victim::Monitor => {
            let dir = criod.dir.join("run/containers").to_string_lossy().into_owned();
            let all = processes(&dir);
            let found = all.iter().find(|(_, line)| line.contains("criod-monitor"));
            // At some moments there is none.
            if let Some((pid, _)) = found {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
    }
}

fn killed_all_along(victim: Victim, rounds: u32, config: impl Fn(&Cri, &str) -> PodSandboxConfig) {
    killed_with(Options::default(), victim, rounds, config);
}

fn killed_with(
    options: Options,
    victim: Victim,
    rounds: u32,
    config: impl Fn(&Cri, &str) -> PodSandboxConfig,
) {
    let mut criod = Criod::start(options);
    let kills = Kills::new(0);
    let began = Instant::now();
    cycle(&criod.cri, &kills, &config(&criod.cri, "warm"));
    let whole = began.elapsed();
    for round in 0..rounds {
        let config = config(&criod.cri, &format!("round{round}"));
        let cri = criod.cri.clone();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| cycle(&cri, &kills, &config));
            std::thread::sleep(whole * round / rounds);
            kills.fetch_add(1, Ordering::SeqCst);
            strike(&mut criod, victim);
            kills.fetch_add(1, Ordering::SeqCst);
            if matches!(victim, Victim::Criod | Victim::Ended) {
                criod.launch();
            }
            if let Err(e) = running.join() {
                eprintln!("killed after {:?} of {whole:?}", whole * round / rounds);
                std::panic::resume_unwind(e);
            }
        });
        if round % 8 == 7 {
            criod.clean();
        }
    }
    criod.finish();
}

#[test]
fn with_a_network() {
    killed_all_along(Victim::Criod, 24, |cri, name| cri.pod(name));
}

#[test]
fn with_a_shared_pid_namespace_and_host_ports() {
    killed_all_along(Victim::Criod, 24, |cri, name| {
        let mut config = cri.pod(name);
        let linux = config.linux.as_mut().unwrap();
        let options = linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
        options.pid = api_cri::v1::NamespaceMode::Pod as i32;
        config.port_mappings.push(api_cri::v1::PortMapping {
            container_port: 80,
            host_port: 8080,
            ..Default::default()
        });
        config
    });
}

#[test]
fn with_a_user_namespace() {
    let options = Options { new_runc: true, ..Options::default() };
    killed_with(options, Victim::Criod, 24, |cri, name| cri.users_pod(name));
}

#[test]
fn told_to_end() {
    killed_all_along(Victim::Ended, 24, |cri, name| cri.pod(name));
}

#[test]
fn by_a_reload() {
    killed_all_along(Victim::Reloaded, 24, |cri, name| cri.pod(name));
}

#[test]
fn of_the_keeper() {
    killed_all_along(Victim::Keeper, 16, |cri, name| cri.pod(name));
}

#[test]
fn of_a_monitor() {
    killed_all_along(Victim::Monitor, 24, |cri, name| cri.pid_pod(name));
}

#[test]
fn during_a_pull() {
    let mut criod = Criod::start(Options::default());
    let kills = Kills::new(0);
    let content = || std::fs::read_dir(criod.dir.join("root/content/sha256")).unwrap().count();
    let whole_content = content();
    criod.remove_image(BUSYBOX).unwrap();
    let began = Instant::now();
    criod.pull(BUSYBOX).unwrap();
    let whole = began.elapsed();
    for round in 0..10 {
        criod.remove_image(BUSYBOX).unwrap();
        let cri = criod.cri.clone();
        std::thread::scope(|scope| {
            let kills = &kills;
            let pull = scope.spawn(move || repeated(kills, "PullImage", || cri.pull(BUSYBOX)));
            std::thread::sleep(whole * round / 10);
            kills.fetch_add(1, Ordering::SeqCst);
            criod.kill9();
            kills.fetch_add(1, Ordering::SeqCst);
            criod.launch();
            pull.join().unwrap();
        });
        assert_eq!(criod.list_images().len(), 1);
    }
    let found = std::fs::read_dir(criod.dir.join("root/content/sha256")).unwrap().count();
    assert_eq!(found, whole_content);
    criod.finish();
}
