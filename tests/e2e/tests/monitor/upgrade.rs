//! Monitor and keeper upgraded in place: nobody who uses the container notices.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options};

use super::attach::{attach, with_stdin};
use super::sessions::*;
use super::*;

/// Another build of a program: the same, and a few bytes behind it that nobody reads.
pub(super) fn build(keeper: &Keeper, program: &str, name: &str) -> PathBuf {
    let path = keeper.dir.path().join(name);
    fs::copy(e2e::program(program), &path).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(name.as_bytes()).unwrap();
    path
}

/// A release that does what it is called.
fn odd(keeper: &Keeper, name: &str) -> PathBuf {
    let path = keeper.dir.path().join(name);
    fs::copy(env!("CARGO_BIN_EXE_odd-release"), &path).unwrap();
    path
}

async fn upgrade(c: &Container<'_>, program: &Path) -> ttrpc::Result<UpgradeResponse> {
    let program = program.to_str().unwrap().to_owned();
    let request = UpgradeRequest { program, ..UpgradeRequest::new() };
    c.client().await.upgrade(ctx(), &request).await
}

/// The file that a process runs.
fn runs(pid: i32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

fn upgrade_keeper(keeper: &Keeper, program: &Path) -> Result<String, String> {
    let answer = keeper.connect().call(&["UPGRADE", program.to_str().unwrap()], &[]);
    answer.map(|m| m.fields[0].clone()).map_err(|e| e.to_string())
}

/// Numbered lines on both streams without end, until there is a file.
const FLOOD: &str = "trap '' TERM; i=0; while [ ! -e /tmp/end ]; do i=$((i+1)); echo out $i; \
                     echo err $i >&2; done; exit 3";

/// Ends it. The command itself may be killed, for the container ends at once.
async fn end_flood(c: &Container<'_>) {
    sh(c, "touch /tmp/end", 0).await;
}

/// Every line of a flood is there, once, in order.
fn assert_whole(c: &Container<'_>) -> usize {
    let (out, err) = (c.texts("stdout"), c.texts("stderr"));
    for (word, texts) in [("out", &out), ("err", &err)] {
        let expected = lines(word, u32::try_from(texts.len()).unwrap());
        let wrong = texts.iter().zip(&expected).find(|(found, expected)| found != expected);
        assert!(wrong.is_none(), "{wrong:?} of {}", texts.len());
    }
    assert_eq!(out.len(), err.len());
    out.len()
}

const UPGRADES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_upgrades_under_a_flood_lose_nothing() {
    let keeper = Keeper::default();
    let builds = [build(&keeper, "criod-monitor", "one"), build(&keeper, "criod-monitor", "two")];
    let c = with_stdin(&keeper, FLOOD, false, false);
    start(&c).await;
    let idle = idle_descriptors(&c);
    let waits = c.client().await;
    let end = tokio::spawn(async move { waits.wait(ctx_long(), &WaitRequest::new()).await });
    // A command that is waited for, one with pipes, one with a terminal, and one to come.
    let process = serde_json::json!({
        "args": ["/bin/sh", "-c", "while [ ! -e /tmp/exec ]; do sleep 0.1; echo x; done; echo done; exit 5"],
        "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
    });
    let request =
        ExecSyncRequest { process: process.to_string().into_bytes(), ..ExecSyncRequest::new() };
    let calls = c.client().await;
    let answer = tokio::spawn(async move { calls.exec_sync(ctx_long(), &request).await });
    let (pipes, mut piped) = exec(&c, &["/bin/sh", "-c", "cat; exit 6"]);
    let tty = prepare_tty(&c, &["/bin/sh", "-c", "while read x; do echo got $x; done; exit 7"]);
    let mut terminal = go(&tty, &["GO", "24", "80"]).unwrap().remove("tty").unwrap();
    let late = prepare(&c, ["0", "1", "0"], &["/bin/sh", "-c", "echo late; exit 8"]);
    let (client, mut attached) = attach(&c, ["0", "1", "0"], &["GO"]).unwrap();
    let mut copy = attached.remove("stdout").unwrap();
    let reader = std::thread::spawn(move || read_all(&mut copy));
    let open = idle_descriptors(&c);
    upgrade(&c, &builds[1]).await.unwrap();
    let memory = c.anonymous();
    for n in 0..UPGRADES {
        let answer = upgrade(&c, &builds[n % 2]).await.unwrap();
        assert_eq!(answer.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(runs(c.monitor), builds[n % 2]);
        if n % 20 == 0 {
            let line = format!("{n}\n");
            write_all(piped.get_mut("stdin").unwrap(), line.as_bytes());
            assert_eq!(read_until(piped.get_mut("stdout").unwrap(), "\n"), line);
            write_all(&mut terminal, line.as_bytes());
            assert!(read_until(&mut terminal, &format!("got {n}")).contains("got"));
            let said = sh(&c, "echo hello; exit 4", 0).await;
            assert_eq!(said.exit_code, 4);
        }
    }
    let comm = fs::read_to_string(format!("/proc/{}/comm", c.monitor)).unwrap();
    assert_eq!(comm, "criod-monitor\n");
    meanwhile("no descriptor is left", || descriptors(&c) == open).await;
    let now = c.anonymous();
    assert!(now <= memory + 64, "{memory} kB, then {now} kB");
    let mut heard = go(&late, &["GO"]).unwrap();
    assert_eq!(read_all(heard.get_mut("stdout").unwrap()), "late\n");
    assert_eq!(exit(&late), Some(8));
    drop(piped.remove("stdin"));
    assert_eq!(exit(&pipes), Some(6));
    write_all(&mut terminal, b"\x04");
    assert_eq!(exit(&tty), Some(7));
    sh(&c, "touch /tmp/exec", 0).await;
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.exit_code, 5);
    let output = fs::read_to_string(&answer.stdout).unwrap();
    assert!(output.ends_with("x\ndone\n"), "{output}");
    drop((terminal, piped, heard, pipes, tty, late));
    // The attached client is there.
    meanwhile("those are gone, too", || descriptors(&c) <= idle + 3).await;
    end_flood(&c).await;
    assert_eq!(code(&end.await.unwrap().unwrap()), (3, 0, false));
    assert_eq!(exit(&client), Some(3));
    let count = assert_whole(&c);
    // The client came in the middle of it.
    let seen = reader.join().unwrap();
    let first = seen.lines().next().unwrap().to_owned();
    let whole: String =
        c.texts("stdout").iter().skip_while(|l| **l != first).map(|l| format!("{l}\n")).collect();
    assert!(seen == whole, "{} of {} bytes, {count} lines", seen.len(), whole.len());
    delete(&c).await;
}

fn ctx_long() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(120))
}

#[tokio::test]
async fn deadlines_and_ends_come_through_at_any_moment() {
    let keeper = Keeper::default();
    let builds = [build(&keeper, "criod-monitor", "one"), build(&keeper, "criod-monitor", "two")];
    for round in 0..12 {
        // It ends by itself, or by the deadline of a stop, while one upgrade follows another.
        let script = match round % 2 {
            0 => "trap '' TERM; echo ready; sleep 1000",
            _ => "echo ready; sleep 0.2; echo last; exit 9",
        };
        let c = Container::new(&keeper, script, &Options::default());
        // While it is created and started, too.
        let client = c.client().await;
        let request = CreateRequest::new();
        let (created, upgraded) =
            tokio::join!(client.create(ctx(), &request), upgrade(&c, &builds[0]));
        created.unwrap();
        upgraded.unwrap();
        let request = StartRequest::new();
        let (started, upgraded) =
            tokio::join!(client.start(ctx(), &request), upgrade(&c, &builds[1]));
        started.unwrap();
        upgraded.unwrap();
        says(&c, "ready");
        let began = Instant::now();
        if round % 2 == 0 {
            stop(&c, 100 + 20 * round).await;
        }
        let limited = sh(&c, "sleep 1000", 50);
        let probes = async {
            let mut n = 0;
            while state(&c).await.phase.enum_value() != Ok(Phase::PHASE_EXITED) {
                upgrade(&c, &builds[n % 2]).await.unwrap();
                n += 1;
            }
            n
        };
        if round % 4 == 0 {
            let (limited, _) = tokio::join!(limited, probes);
            assert!(limited.timed_out, "its deadline goes over, too");
        } else {
            probes.await;
        }
        let end = wait(&c).await;
        if round % 2 == 0 {
            assert_eq!(code(&end), (137, 9, false));
            assert!(began.elapsed() >= Duration::from_millis(100 + 20 * round), "not before");
        } else {
            assert_eq!(code(&end), (9, 0, false));
            assert_eq!(c.texts("stdout"), ["ready", "last"]);
        }
        upgrade(&c, &builds[0]).await.unwrap();
        assert_eq!(code(&delete(&c).await.state.unwrap()), code(&end));
        eventually("the monitor ends", || c.monitor_ended().then_some(()));
    }
}

#[tokio::test]
async fn what_does_not_agree_is_refused_and_what_crashes_is_survived() {
    let keeper = Keeper::default();
    let mut c = with_stdin(&keeper, FLOOD, false, false);
    start(&c).await;
    let (before, own) = (idle_descriptors(&c), runs(c.monitor));
    let script = keeper.dir.path().join("script");
    fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
    let text = keeper.dir.path().join("text");
    fs::write(&text, "no program").unwrap();
    for path in [&script, &text] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).unwrap();
    }
    for (program, why) in [
        (odd(&keeper, "refuses"), "nothing is known of this"),
        (odd(&keeper, "aborts"), "killed by signal 6"),
        (odd(&keeper, "hangs"), "in time"),
        (e2e::program("criod-keeper"), "will not go on"),
        (script, "script"),
        (text, "text"),
        (keeper.dir.path().to_owned(), "not a program"),
        ("/none".into(), "No such file"),
    ] {
        let (refused, lives) = tokio::join!(upgrade(&c, &program), async {
            // Meanwhile it serves.
            tokio::time::sleep(Duration::from_millis(20)).await;
            sh(&c, "echo here", 0).await.exit_code
        });
        let said = message(refused);
        assert!(said.contains(why), "{program:?}: {said}");
        assert_eq!((lives, runs(c.monitor)), (0, own.clone()));
    }
    // A phase, and a progress, of a later release.
    let state_of = |name: &str| fs::read(c.dir.join(name)).unwrap();
    let progress = state_of("progress");
    for (name, bytes, why) in
        [("config", vec![0xff; 7], "config"), ("progress", vec![9; 88], "progress")]
    {
        let old = state_of(name);
        let temp = c.dir.join("changed");
        fs::write(&temp, bytes).unwrap();
        fs::rename(c.dir.join(name), c.dir.join("put-aside")).unwrap();
        fs::rename(&temp, c.dir.join(name)).unwrap();
        let said = message(upgrade(&c, &own).await);
        fs::rename(c.dir.join("put-aside"), c.dir.join(name)).unwrap();
        assert!(said.contains(why), "{said}");
        assert!(name != "config" || state_of(name) == old);
    }
    assert_eq!(progress.len(), 88);
    // A call's connection may have been open before, as its client closes it in the background.
    meanwhile("no descriptor is left", || descriptors(&c) <= before).await;
    // It agrees, and crashes as soon as it has taken over.
    let broken = upgrade(&c, &odd(&keeper, "crashes")).await.unwrap_err();
    assert!(!matches!(broken, ttrpc::Error::RpcStatus(_)), "{broken}");
    eventually("it has crashed", || c.monitor_ended().then_some(()));
    std::thread::sleep(Duration::from_millis(50));
    c.fork();
    end_flood(&c).await;
    assert_eq!(code(&wait(&c).await), (3, 0, false));
    assert_whole(&c);
    delete(&c).await;
}

#[tokio::test]
async fn killed_at_any_moment_of_an_upgrade() {
    let keeper = Keeper::default();
    let builds = [build(&keeper, "criod-monitor", "one"), build(&keeper, "criod-monitor", "two")];
    let mut c = with_stdin(&keeper, FLOOD, false, false);
    start(&c).await;
    for round in 0..60u64 {
        let pause = Duration::from_micros(round * 97 % 4000);
        let _ = tokio::join!(upgrade(&c, &builds[round as usize % 2]), async {
            tokio::time::sleep(pause).await;
            c.kill_monitor();
        });
        c.fork();
        assert!(state(&c).await.exit.is_none());
    }
    end_flood(&c).await;
    assert_eq!(code(&wait(&c).await), (3, 0, false));
    assert_whole(&c);
    delete(&c).await;
}

#[tokio::test]
async fn a_terminal_goes_on() {
    let keeper = Keeper::default();
    let builds = [build(&keeper, "criod-monitor", "one"), build(&keeper, "criod-monitor", "two")];
    let script = "echo ready; while read x; do echo got $x; done; exit 2";
    let c = with_stdin(&keeper, script, true, false);
    start(&c).await;
    says(&c, "ready\r");
    let (client, mut streams) = attach(&c, ["1", "1", "0"], &["GO", "24", "80"]).unwrap();
    for n in 0..20 {
        upgrade(&c, &builds[n % 2]).await.unwrap();
        write_all(streams.get_mut("stdin").unwrap(), format!("{n}\n").as_bytes());
        read_until(streams.get_mut("stdout").unwrap(), &format!("got {n}\r\n"));
    }
    write_all(streams.get_mut("stdin").unwrap(), b"\x04");
    assert_eq!(code(&wait(&c).await), (2, 0, false));
    assert_eq!(exit(&client), Some(2));
    let got: Vec<_> = c.texts("stdout").into_iter().filter(|l| l.starts_with("got")).collect();
    assert_eq!(got, (0..20).map(|n| format!("got {n}\r")).collect::<Vec<_>>());
    delete(&c).await;
}

#[tokio::test]
async fn the_keeper_is_upgraded_with_all_that_it_holds() {
    let keeper = Keeper::default();
    let builds = [build(&keeper, "criod-keeper", "one"), build(&keeper, "criod-keeper", "two")];
    let mut c = with_stdin(&keeper, FLOOD, false, false);
    let mut orphan = Container::new(&keeper, "sleep 1.5; exit 4", &Options::default());
    start(&c).await;
    start(&orphan).await;
    // From here on the keeper is its parent.
    orphan.kill_monitor();
    let held = |keeper: &Keeper| keeper.connect().call(&["GET", &c.id], &[]).unwrap().fields;
    let spares = held(&keeper);
    assert!(spares.len() >= 5, "{spares:?}");
    let own = runs(keeper.pid());
    for (program, why) in [
        (odd(&keeper, "refuses"), "nothing is known of this"),
        (odd(&keeper, "aborts"), "killed by signal 6"),
        (e2e::program("criod-monitor"), "will not go on"),
        ("/none".into(), "No such file"),
    ] {
        let said = upgrade_keeper(&keeper, &program).unwrap_err();
        assert!(said.contains(why), "{said}");
        assert_eq!(runs(keeper.pid()), own);
    }
    // While one hangs the keeper serves, and takes no other.
    let hangs = odd(&keeper, "hangs");
    let conn = sys::seqpacket::Conn::connect(
        &keeper.dir.path().join("keeper.sock"),
        Duration::from_secs(20),
    );
    let conn = conn.unwrap();
    conn.send(&["UPGRADE", hangs.to_str().unwrap()], &[]).unwrap();
    eventually("it is asked", || {
        (upgrade_keeper(&keeper, &builds[0]).unwrap_err().contains("under way")).then_some(())
    });
    assert_eq!(held(&keeper), spares);
    let said = conn.recv().unwrap().unwrap().fields;
    assert!(said[0] == "ERR" && said[1].contains("in time"), "{said:?}");
    drop(conn);
    let idle = |keeper: &Keeper| {
        let mut last = (0, 0);
        eventually("the keeper is idle", || {
            let now = keeper.descriptors();
            last = if now == last.1 { (last.0 + 1, now) } else { (0, now) };
            (last.0 == 10).then_some(now)
        })
    };
    let before = idle(&keeper);
    for n in 0..200 {
        upgrade_keeper(&keeper, &builds[n % 2]).unwrap();
        assert_eq!(runs(keeper.pid()), builds[n % 2]);
    }
    assert_eq!((idle(&keeper), held(&keeper)), (before, spares));
    let comm = fs::read_to_string(format!("/proc/{}/comm", keeper.pid())).unwrap();
    assert_eq!(comm, "criod-keeper\n");
    // What it was to remember it remembers, and what it forks goes on.
    orphan.fork();
    assert_eq!(code(&wait(&orphan).await), (4, 0, false));
    c.kill_monitor();
    c.fork();
    end_flood(&c).await;
    assert_eq!(code(&wait(&c).await), (3, 0, false));
    assert_whole(&c);
    delete(&c).await;
    delete(&orphan).await;
}
