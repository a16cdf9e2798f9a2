//! A newer build reaches what runs already, and builds of two releases work together.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use e2e::daemon::{BUSYBOX, Criod, EXITED, Options, RUNNING, container, numbers};
use e2e::{eventually, previous, program};
use serde_json::Value;

/// A criod whose monitors and keeper are in a folder of its own.
const OWN: [&str; 4] =
    ["--monitor-binary", "DIR/bin/criod-monitor", "--keeper-binary", "DIR/bin/criod-keeper"];

/// Puts the programs of a folder where criod finds them, as a package does: beside, then over.
/// `mark` makes another build of them.
fn install(criod: &Criod, from: &Path, names: &[&str], mark: &str) {
    let bin = criod.dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for name in names {
        let new = bin.join("new");
        fs::copy(from.join(name), &new).unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&new).unwrap();
        file.write_all(mark.as_bytes()).unwrap();
        drop(file);
        fs::rename(new, bin.join(name)).unwrap();
    }
}

const ALL: [&str; 4] = ["criod-monitor", "criod-keeper", "criod-stream", "criod-pause"];
const TWO: [&str; 2] = ["criod-monitor", "criod-keeper"];

fn stage() -> std::path::PathBuf {
    program("criod-monitor").parent().unwrap().to_owned()
}

fn started(options: Options, from: &Path) -> Criod {
    let args = OWN.to_vec();
    let mut criod = Criod::prepare(Options { args, ..options });
    install(&criod, from, &ALL, "");
    criod.launch();
    criod.ready();
    criod.pull(BUSYBOX).unwrap();
    criod
}

/// The verb `monitors`.
fn verb(criod: &Criod, args: &[&str]) -> Output {
    Command::new(program("criod"))
        .arg("monitors")
        .args(args)
        .arg("-R")
        .arg(criod.dir.join("criod.sock"))
        .output()
        .unwrap()
}

fn listed(criod: &Criod) -> Vec<Value> {
    let output = verb(criod, &["-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn outdated(criod: &Criod) -> usize {
    listed(criod).iter().filter(|p| p["outdated"] == true).count()
}

/// Prints numbered lines, and ends with code 7.
fn counting(lines: u32) -> String {
    format!(
        "i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); \
         [ $((i%20)) = 0 ] && sleep 0.02; done; exit 7"
    )
}

fn assert_whole(criod: &Criod, pod: &str, lines: u64) {
    let found = numbers(&criod.log(pod, "n"));
    let gap = found.iter().zip(0..).find(|(found, expected)| *found != expected);
    assert!(gap.is_none() && found.len() as u64 == lines, "{} lines, {gap:?}", found.len());
}

#[test]
fn an_installed_build_reaches_running_containers() {
    let mut criod = started(Options::default(), &stage());
    let config = criod.host_pod("up");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sh", "-c", &counting(6000)]), &config);
    let still = criod.run(&pod, &container("still", &["sleep", "1000"]), &config);
    let before = listed(&criod);
    assert_eq!(before.len(), 3);
    assert_eq!(before[0]["kind"], "keeper");
    assert_eq!(before[0]["pid"], criod.keeper_pid().unwrap());
    let of = |all: &[Value], id: &str| all.iter().find(|p| p["id"] == id).unwrap().clone();
    let one = of(&before, &id);
    assert_eq!((one["name"].as_str(), one["pod"].as_str()), (Some("n"), Some(pod.as_str())));
    assert_eq!(one["pid"], criod.monitor_pid(&id).unwrap());
    assert_eq!(one["version"], env!("CARGO_PKG_VERSION"));
    assert!(one["privateKb"].as_u64().unwrap() > 0 && one["pssKb"].as_u64().unwrap() > 0);
    assert_eq!(outdated(&criod), 0);

    // On request: first one, then the rest.
    install(&criod, &stage(), &TWO, "second");
    assert_eq!(outdated(&criod), 3);
    let done = verb(&criod, &["upgrade", "n"]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(String::from_utf8(done.stdout).unwrap(), format!("{id} upgraded\n"));
    assert_eq!(outdated(&criod), 2);
    let done = verb(&criod, &["upgrade", "--all"]);
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && said.contains("keeper upgraded"), "{said}");
    assert!(said.contains(&format!("{id} current")), "{said}");
    let second = listed(&criod);
    assert!(second.iter().all(|p| p["outdated"] == false), "{second:?}");
    for (old, new) in before.iter().zip(&second) {
        assert_eq!((&old["pid"], &old["id"]), (&new["pid"], &new["id"]));
        assert_ne!(old["build"], new["build"]);
    }
    assert!(verb(&criod, &["upgrade"]).status.code() != Some(0), "what?");
    assert!(!verb(&criod, &["upgrade", "nobody"]).status.success());
    let table = String::from_utf8(verb(&criod, &[]).stdout).unwrap();
    assert!(table.starts_with("CONTAINER") && table.contains("keeper"), "{table}");

    // What will not go on is told, and nothing happens.
    fs::rename(criod.dir.join("bin/criod-monitor"), criod.dir.join("bin/good")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_odd-release"), criod.dir.join("bin/criod-monitor")).unwrap();
    let done = verb(&criod, &["upgrade", "n", "still"]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!((done.status.code(), said.matches("killed by signal").count()), (Some(1), 2));
    assert_eq!(of(&listed(&criod), &id)["pid"], one["pid"]);
    fs::rename(criod.dir.join("bin/good"), criod.dir.join("bin/criod-monitor")).unwrap();

    // By itself, when criod starts.
    install(&criod, &stage(), &TWO, "third");
    criod.restart();
    eventually("all are of the installed build", || (outdated(&criod) == 0).then_some(()));
    let third = listed(&criod);
    for (old, new) in second.iter().zip(&third) {
        assert_eq!(old["pid"], new["pid"]);
        assert_ne!(old["build"], new["build"]);
    }
    assert_eq!(criod.exec(&still, &["echo", "here"]).unwrap(), (0, "here\n".into()));
    let ended = criod.ended(&id);
    assert_eq!((ended.state, ended.exit_code), (EXITED, 7));
    assert_whole(&criod, "up", 6000);
    criod.finish();
}

#[test]
fn killed_while_everything_is_upgraded() {
    let mut criod = started(Options::default(), &stage());
    let config = criod.host_pod("kills");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sh", "-c", &counting(4000)]), &config);
    for round in 0..8u64 {
        install(&criod, &stage(), &TWO, &format!("build {round}"));
        let upgrade = std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| verb(&criod, &["upgrade", "--all"]));
            std::thread::sleep(std::time::Duration::from_millis(7 * round));
            match round % 3 {
                0 => drop(criod.kill_monitor(&id)),
                1 => drop(criod.replace_keeper()),
                _ => {}
            }
            upgrade.join().unwrap()
        });
        assert!(round % 3 != 2 || upgrade.status.success(), "{upgrade:?}");
        if round % 3 == 2 {
            criod.restart();
        }
        eventually("it runs", || {
            (criod.status(&id).ok()?.state == RUNNING && criod.exec(&id, &["true"]).is_ok())
                .then_some(())
        });
    }
    assert_eq!(criod.ended(&id).exit_code, 7);
    assert_whole(&criod, "kills", 4000);
    criod.finish();
}

/// A life with all that criod and a monitor say to each other.
fn life(criod: &Criod, name: &str) {
    let config = criod.host_pod(name);
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sh", "-c", &counting(400)]), &config);
    assert_eq!(criod.exec(&id, &["echo", "hello"]).unwrap(), (0, "hello\n".into()));
    criod.reopen_log(&id).unwrap();
    assert_eq!(criod.ended(&id).exit_code, 7);
    assert_whole(criod, name, 400);
    let stopped = criod.run(&pod, &container("s", &["sleep", "1000"]), &config);
    criod.stop(&stopped, 1).unwrap();
    assert_eq!(criod.ended(&stopped).exit_code, 137);
    criod.remove(&id).unwrap();
    criod.stop_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
}

#[test]
fn criod_and_monitors_of_two_releases_work_together() {
    let old = previous::programs();
    // A monitor of the release before, with this criod, which also takes one over from its own.
    let options = Options { criod: Some(old.join("criod")), ..Options::default() };
    let mut criod = started(options, &old);
    let config = criod.host_pod("over");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sh", "-c", &counting(3000)]), &config);
    criod.kill9();
    criod.becomes(program("criod"));
    criod.launch();
    criod.ready();
    assert_eq!(criod.status(&id).unwrap().state, RUNNING);
    life(&criod, "old-monitor");
    install(&criod, &stage(), &TWO, "");
    let refused = verb(&criod, &["upgrade", "n"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("has no Upgrade") || said.contains("current"), "{said}");
    // A monitor of this release, with the criod of the one before.
    criod.kill9();
    criod.becomes(old.join("criod"));
    criod.launch();
    criod.ready();
    life(&criod, "new-monitor");
    assert_eq!(criod.ended(&id).exit_code, 7);
    assert_whole(&criod, "over", 3000);
    criod.finish();
}
