//! What a container may use, changed by the runtime.

use api_monitor::monitor::*;
use e2e::eventually;
use e2e::monitor::{Container, Keeper, Options, cgroup_dir, members};
use ttrpc::{Code, Error};

use super::runtimes::Fake;
use super::*;

async fn update(c: &Container<'_>, resources: &str) -> ttrpc::Result<UpdateResponse> {
    let resources = resources.as_bytes().to_vec();
    c.client().await.update(ctx(), &UpdateRequest { resources, ..UpdateRequest::new() }).await
}

fn code(answer: ttrpc::Result<UpdateResponse>) -> (Code, String) {
    match answer {
        Err(Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("{other:?}"),
    }
}

fn memory(c: &Container<'_>) -> i64 {
    let group = cgroup_dir("memory", &c.id);
    let text = std::fs::read_to_string(group.join("memory.limit_in_bytes"))
        .or_else(|_| std::fs::read_to_string(group.join("memory.max")));
    text.unwrap().trim().parse().unwrap()
}

fn limit(bytes: i64) -> String {
    format!(r#"{{"memory":{{"limit":{bytes},"swap":{bytes}}}}}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runtime_changes_what_a_container_may_use() {
    let keeper = Keeper::default();
    let fake = Fake::new(&keeper);
    let options = Options { memory: Some(64 << 20), ..fake.options() };
    let mut c = Container::new(&keeper, "exec sleep 1000", &options);
    let early = code(update(&c, &limit(32 << 20)).await);
    assert_eq!(early.0, Code::FAILED_PRECONDITION, "{}", early.1);
    create(&c).await.unwrap();
    update(&c, &limit(32 << 20)).await.unwrap();
    assert_eq!(memory(&c), 32 << 20);
    c.client().await.start(ctx(), &StartRequest::new()).await.unwrap();

    // Several at once come one after another, the last one last.
    let client = c.client().await;
    let all =
        (1..=5).map(|n| {
            let client = client.clone();
            let resources = limit((40 + n) << 20).into_bytes();
            async move {
                client.update(ctx(), &UpdateRequest { resources, ..UpdateRequest::new() }).await
            }
        });
    for answer in futures(all).await {
        answer.unwrap();
    }
    assert!((41..=45).contains(&(memory(&c) >> 20)));

    fake.fail("update", br#"{"level":"error","msg":"it cannot"}"#);
    let (_, text) = code(update(&c, &limit(64 << 20)).await);
    assert!(text.contains("update: it cannot"), "{text}");
    fake.heal("update");
    let (_, text) = code(update(&c, "no JSON").await);
    assert!(text.contains("update"), "{text}");

    // A successor does it as well, and a stop waits for none of it.
    c.kill_monitor();
    c.fork();
    update(&c, &limit(48 << 20)).await.unwrap();
    assert_eq!(memory(&c), 48 << 20);
    fake.hang("update");
    let hanging = tokio::spawn({
        let client = c.client().await;
        let resources = limit(64 << 20).into_bytes();
        async move { client.update(ctx(), &UpdateRequest { resources, ..UpdateRequest::new() }).await }
    });
    eventually("it hangs", || (!fake.running("update").is_empty()).then_some(()));
    stop(&c, 0).await;
    eventually("it has ended", || members(&c.id).is_empty().then_some(()));
    let late = code(update(&c, &limit(64 << 20)).await);
    assert_eq!(late.0, Code::FAILED_PRECONDITION, "{}", late.1);
    // It is ended when its time is up.
    assert!(hanging.await.unwrap().is_err());
    assert!(fake.running("update").is_empty());
}

/// All answers, each asked for by a task of its own.
async fn futures<T: Send + 'static, F>(all: impl Iterator<Item = F>) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = all.map(tokio::spawn).collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}
