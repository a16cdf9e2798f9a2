//! `pods`, `ps`, `inspect`, `stop`, `rm`, `exec`, `status`, `stats`.

use api_cri::v1::*;
use serde_json::{Value, json};

use super::fake::{Fake, ago};
use super::{criod, error, ok};

const WEB_POD: &str = "aa11000000000000000000";
const DB_POD: &str = "aa22000000000000000000";
const WEB: &str = "bb11000000000000000000";
const DB: &str = "bb22000000000000000000";
const OLD: &str = "cc33000000000000000000";

pub(super) fn two_pods() -> Fake {
    let fake = Fake::new();
    fake.pod(WEB_POD, "web", 7200);
    fake.pod(DB_POD, "db", 45);
    fake.container(WEB, "web", WEB_POD, true);
    fake.container(DB, "postgres", DB_POD, true);
    fake.container(OLD, "setup", DB_POD, false);
    fake
}

#[tokio::test]
async fn pods() {
    let fake = two_pods();
    let _server = fake.serve();
    fake.state().pods[1].state = PodSandboxState::SandboxNotready as i32;
    fake.state().pods[1].runtime_handler = "crun".into();
    assert_eq!(
        criod(&fake, &["pods"]).await,
        ok("\
POD ID          CREATED          STATE       NAME   NAMESPACE   ATTEMPT   RUNTIME
aa22000000000   45 seconds ago   not ready   db     default     0         crun
aa11000000000   2 hours ago      ready       web    default     0         (default)
")
    );
    assert_eq!(criod(&fake, &["pods", "-q"]).await, ok(&format!("{DB_POD}\n{WEB_POD}\n")));
    let (code, out, _) = criod(&fake, &["pods", "-o", "json"]).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0);
    let first = &document["items"][0];
    assert_eq!(first["id"], DB_POD);
    assert_eq!(first["state"], "SANDBOX_NOTREADY");
    assert_eq!(first["createdAt"], ago(45).to_string());
    assert_eq!(first["metadata"]["namespace"], "default");
    assert_eq!(first["runtimeHandler"], "crun");
}

#[tokio::test]
async fn containers() {
    let fake = two_pods();
    let _server = fake.serve();
    assert_eq!(
        criod(&fake, &["ps"]).await,
        ok("\
CONTAINER       IMAGE                     CREATED         STATE     NAME       ATTEMPT   POD ID          POD
bb11000000000   docker.io/library/web:1   3 minutes ago   running   web        0         aa11000000000   web
bb22000000000   docker.io/library/web:1   3 minutes ago   running   postgres   0         aa22000000000   db
")
    );
    assert_eq!(criod(&fake, &["ps", "-aq"]).await, ok(&format!("{WEB}\n{DB}\n{OLD}\n")));
    assert_eq!(criod(&fake, &["ps", "-aq", "--pod", "db"]).await, ok(&format!("{DB}\n{OLD}\n")));
    assert_eq!(criod(&fake, &["ps", "--pod", "no"]).await, error(1, "there is no pod \"no\""));
    let (_, out, _) = criod(&fake, &["ps", "-a", "-p", "aa22", "-o", "json"]).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    let last = &document["containers"][1];
    assert_eq!(last["podSandboxId"], DB_POD);
    assert_eq!(last["state"], "CONTAINER_EXITED");
    assert_eq!(last["image"]["userSpecifiedImage"], "docker.io/library/web:1");
    // A container whose pod is gone, of an image without a name.
    fake.state().pods.clear();
    fake.state().containers.truncate(1);
    if let Some(spec) = &mut fake.state().containers[0].0.image {
        spec.user_specified_image.clear();
    }
    let (_, out, _) = criod(&fake, &["ps"]).await;
    assert_eq!(
        out.lines().nth(1),
        Some(
            "bb11000000000   5555555555555   3 minutes ago   running   web    0         aa11000000000   -"
        )
    );
}

#[tokio::test]
async fn nothing_to_list_is_a_heading() {
    let fake = Fake::new();
    let _server = fake.serve();
    let (code, out, err) = criod(&fake, &["ps"]).await;
    assert_eq!((code, out.lines().count(), err.as_str()), (0, 1, ""));
    assert_eq!(criod(&fake, &["images", "-q"]).await, ok(""));
    assert_eq!(criod(&fake, &["ps", "-o", "json"]).await, ok("{\n  \"containers\": []\n}\n"));
}

#[tokio::test]
async fn inspect() {
    let fake = two_pods();
    let _server = fake.serve();
    fake.state().images.push(Image {
        id: "sha256:feed00".into(),
        repo_tags: vec!["quay.io/x:1".into()],
        size: 5_000_000_000,
        ..Default::default()
    });
    let see = async |args: &[&str]| -> Value {
        let (code, out, err) = criod(&fake, args).await;
        assert_eq!((code, err.as_str()), (0, ""));
        serde_json::from_str(&out).unwrap()
    };
    // The pod's container, not the pod of the same name.
    let web = see(&["inspect", "web"]).await;
    assert_eq!(web["status"]["id"], WEB);
    assert_eq!(web["status"]["state"], "CONTAINER_RUNNING");
    assert_eq!(web["status"]["createdAt"], "2026-11-24T07:57:00Z");
    assert_eq!(web["info"], json!({ "info": { "pid": 42 }, "note": "no JSON" }));
    let pod = see(&["inspect", "aa22"]).await;
    assert_eq!(pod["status"]["id"], DB_POD);
    assert_eq!(pod["status"]["createdAt"], "2026-11-24T07:59:00Z");
    let image = see(&["inspect", "feed"]).await;
    assert_eq!(image["status"]["size"], "5000000000");
    assert_eq!(see(&["inspect", "quay.io/x:1", "db"]).await[0]["status"]["id"], "sha256:feed00");
    for none in ["Nothing", "nothing", "dead"] {
        let line = format!("there is no container, pod or image {none:?}");
        assert_eq!(criod(&fake, &["inspect", none]).await, error(1, &line));
    }
}

#[tokio::test]
async fn stop() {
    let fake = two_pods();
    let _server = fake.serve();
    assert_eq!(criod(&fake, &["stop", "-t", "3", "postgres", "web"]).await, ok("postgres\nweb\n"));
    assert_eq!(fake.calls(), format!("stop {DB} in 3; stop {WEB} in 3; stop pod {WEB_POD}"));
    fake.state().failing.insert("stop_pod_sandbox", tonic::Status::internal("busy"));
    let (code, out, err) = criod(&fake, &["stop", "nothing", "aa11", "bb22"]).await;
    assert_eq!((code, out.as_str()), (1, "bb22\n"));
    assert_eq!(
        err,
        format!(
            "error: there is no container or pod \"nothing\"\n\
             error: cannot stop the pod {WEB_POD}: busy\n"
        )
    );
}

#[tokio::test]
async fn remove() {
    let fake = two_pods();
    let _server = fake.serve();
    let (code, _, err) = criod(&fake, &["rm", "web", "bb22"]).await;
    assert_eq!(code, 1);
    assert_eq!(
        err,
        "error: the container web of the pod web runs: stop it first, or use --force\n\
         error: the container postgres runs: stop it first, or use --force\n"
    );
    assert_eq!(fake.calls(), "");
    assert_eq!(criod(&fake, &["rm", "setup"]).await, ok("setup\n"));
    assert_eq!(criod(&fake, &["rm", "-f", "bb22", "web"]).await, ok("bb22\nweb\n"));
    assert_eq!(
        fake.calls(),
        format!("remove {OLD}; remove {DB}; stop pod {WEB_POD}; remove pod {WEB_POD}")
    );
    // Nothing runs in this one any more.
    assert_eq!(criod(&fake, &["rm", "db"]).await, ok("db\n"));
}

#[tokio::test]
async fn exec_within_a_time() {
    let fake = two_pods();
    let _server = fake.serve();
    fake.state().exec_answer =
        ExecSyncResponse { stdout: b"out\xff".into(), stderr: b"err".into(), exit_code: 7 };
    let (code, out, err) =
        criod(&fake, &["exec", "--timeout", "1500ms", "postgres", "ls", "-l"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (7, "out\u{fffd}", "err"));
    let asked = fake.state().exec.take().unwrap();
    assert_eq!((asked.container_id.as_str(), asked.timeout), (DB, 2));
    assert_eq!(asked.cmd, ["ls", "-l"]);

    fake.state().exec_answer.exit_code = -1;
    assert_eq!(criod(&fake, &["exec", "--timeout", "1s", "web", "x"]).await.0, 125);
    fake.state().failing.insert("exec_sync", tonic::Status::unknown("no such file"));
    assert_eq!(
        criod(&fake, &["exec", "--timeout", "1s", "web", "x"]).await,
        error(125, "cannot run a command in the container web: no such file")
    );
    assert_eq!(
        criod(&fake, &["exec", "--timeout", "1s", "zz", "x"]).await,
        error(125, "there is no container \"zz\"")
    );
}

#[tokio::test]
async fn status() {
    let fake = Fake::new();
    let _server = fake.serve();
    let socket = fake.socket();
    assert_eq!(
        criod(&fake, &["status"]).await,
        ok(&format!(
            "\
criod 1.2.3, CRI v1, on {}

CONDITION      STATUS   REASON                  MESSAGE
RuntimeReady   true     -                       -
NetworkReady   false    NetworkPluginNotReady   no CNI; configuration

HANDLER     USER NAMESPACES   RECURSIVE READ-ONLY
(default)   no                no
crun        yes               no
",
            socket.display()
        ))
    );
    let (_, out, _) = criod(&fake, &["status", "-o", "json"]).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["version"]["runtimeName"], "criod");
    assert_eq!(document["status"]["conditions"][1]["status"], false);
    assert_eq!(document["info"]["config"]["sandboxImage"], "pause");
    assert_eq!(document["runtimeHandlers"][1]["features"]["userNamespaces"], true);
}

fn used(id: &str, name: &str, rate: Option<u64>) -> ContainerStats {
    let value = |value| Some(UInt64Value { value });
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: id.into(),
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            ..Default::default()
        }),
        cpu: Some(CpuUsage {
            timestamp: 1,
            usage_core_nano_seconds: value(10),
            usage_nano_cores: rate.map(|value| UInt64Value { value }),
            psi: None,
        }),
        memory: Some(MemoryUsage { working_set_bytes: value(3_500_000), ..Default::default() }),
        writable_layer: Some(FilesystemUsage {
            used_bytes: value(4096),
            inodes_used: value(7),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn stats() {
    let fake = two_pods();
    let _server = fake.serve();
    fake.state().stats = vec![used(WEB, "web", Some(123_456_789)), used(DB, "postgres", Some(0))];
    assert_eq!(
        criod(&fake, &["stats"]).await,
        ok("\
CONTAINER       NAME       CPU %   MEMORY    DISK      INODES
bb22000000000   postgres   0.00    3.50 MB   4.10 kB   7
bb11000000000   web        12.35   3.50 MB   4.10 kB   7
")
    );
    let (_, out, _) = criod(&fake, &["stats", "web", "-o", "json"]).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["stats"].as_array().unwrap().len(), 1);
    assert_eq!(document["stats"][0]["cpu"]["usageNanoCores"]["value"], "123456789");
    // A second look at a time that stands still gives no rate.
    fake.state().stats = vec![used(WEB, "web", None), ContainerStats::default()];
    let (_, out, _) = criod(&fake, &["stats"]).await;
    assert!(out.contains("\nbb11000000000   web    -       3.50 MB"), "{out}");
}
