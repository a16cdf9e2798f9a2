//! `logs`.

use std::fs;

use super::fake::{Fake, NOW};
use super::{Seen, criod, error, ok, until};

const CTR: &str = "bb11";

fn fake(running: bool) -> (Fake, std::path::PathBuf) {
    let fake = Fake::new();
    fake.pod("aa11", "web", 60);
    let log = fake.container(CTR, "main", "aa11", running);
    (fake, log)
}

fn at(second: i64, rest: &str) -> String {
    let time = jiff::Timestamp::from_second(NOW + second).unwrap();
    format!("{time} {rest}\n")
}

#[tokio::test]
async fn what_is_there() {
    let (fake, log) = fake(true);
    let _server = fake.serve();
    assert_eq!(
        criod(&fake, &["logs", "main"]).await,
        error(1, &format!("cannot read the log {}: entity not found", log.display()))
    );
    for line in [
        at(1, "stdout P one "),
        at(2, "stderr F error"),
        "no record\n".into(),
        at(3, "stdout F line"),
        at(4, "stdout F two"),
        at(5, "stdout P prompt> "),
    ] {
        Fake::log(&log, &line);
    }
    // By name, by id, by the pod it is alone in.
    for id in ["main", "bb", "web", "web/main"] {
        let (code, out, err) = criod(&fake, &["logs", id]).await;
        assert_eq!((code, out.as_str()), (0, "one line\ntwo\nprompt> "), "{id}");
        assert_eq!(err, "error\nlines of the log that are no records, left out: 1\n");
    }
    // What is not ended by a newline counts as a line, too.
    let (code, out, _) = criod(&fake, &["logs", "-t", "--tail", "2", "main"]).await;
    assert_eq!(
        (code, out.as_str()),
        (0, "2026-11-24T08:00:04.000000000Z two\n2026-11-24T08:00:05.000000000Z prompt> ")
    );
    assert_eq!(criod(&fake, &["logs", "--tail", "0", "main"]).await.1, "");
    let (_, out, err) = criod(&fake, &["logs", "--since", "2026-11-24T08:00:02Z", "main"]).await;
    assert_eq!((out.as_str(), err.lines().next()), ("two\nprompt> ", Some("error")));
    let (_, out, _) =
        criod(&fake, &["logs", "--since", "2026-11-24T08:00:01Z", "--tail", "9", "main"]).await;
    assert_eq!(out, "one line\ntwo\nprompt> ");
}

#[tokio::test]
async fn no_log() {
    let (fake, _) = fake(true);
    let _server = fake.serve();
    fake.state().containers[0].1.log_path.clear();
    assert_eq!(
        criod(&fake, &["logs", "main"]).await,
        error(1, "main has no log: its pod was made without a log directory")
    );
    assert_eq!(criod(&fake, &["logs", "no"]).await, error(1, "there is no container \"no\""));
}

#[tokio::test]
async fn follow_across_rotation_and_a_restart_of_the_runtime() {
    let (fake, log) = fake(true);
    let server = fake.serve();
    let mut seen = Seen::new(&fake);
    let out = seen.out.clone();
    let following = {
        let fake = fake.clone();
        tokio::spawn(
            async move { (seen.run(&fake, &["logs", "-f", "main"]).await, seen.err.text()) },
        )
    };
    Fake::log(&log, &at(1, "stdout F one"));
    until(|| out.text() == "one\n").await;

    let old = log.with_extension("log.20261124");
    fs::rename(&log, &old).unwrap();
    Fake::log(&old, &at(2, "stdout P two, "));
    Fake::log(&log, &at(3, "stdout F three"));
    until(|| out.text() == "one\ntwo, three\n").await;

    drop(server);
    Fake::log(&log, &at(4, "stdout F four"));
    until(|| out.text().ends_with("four\n")).await;
    let _server = fake.serve();

    // The last bytes are there before the exit is told.
    Fake::log(&log, &at(5, "stdout P five"));
    fake.exit(CTR, 1);
    let (code, err) = following.await.unwrap();
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out.text(), "one\ntwo, three\nfour\nfive");
}

#[tokio::test]
async fn follow_what_has_ended_or_is_removed() {
    let (fake, log) = fake(false);
    let _server = fake.serve();
    assert_eq!(criod(&fake, &["logs", "-f", "main"]).await, ok(""));
    Fake::log(&log, &at(1, "stdout F one"));
    Fake::log(&log, &at(1, "stdout F two"));
    assert_eq!(criod(&fake, &["logs", "-f", "--tail", "1", "main"]).await, ok("two\n"));

    for (container, status) in &mut fake.state().containers {
        container.state = 1;
        status.state = 1;
    }
    let mut seen = Seen::new(&fake);
    let out = seen.out.clone();
    let following = {
        let fake = fake.clone();
        tokio::spawn(async move { seen.run(&fake, &["logs", "-f", "main"]).await })
    };
    until(|| out.text() == "one\ntwo\n").await;
    fake.state().containers.clear();
    assert_eq!(following.await.unwrap(), 0);
}
