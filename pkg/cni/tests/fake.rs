//! The verbs against plugins that are shell scripts: what each gets, and what each can do wrong.
//!
//! A fake plugin appends `<name> <verb>` to `calls` and keeps what it read in
//! `<name>.<verb>.json` and its environment in `<name>.<verb>.env`; then it runs the body that
//! the test gave it.

// What the tests share may fail the test, as the tests themselves may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::{
    Attachment, Bandwidth, Config, Error, NetworkList, Plugins, PortMapping, Protocol,
    ValidAttachment,
};
use serde_json::{Value, json};

struct World {
    folder: tempfile::TempDir,
    plugins: Plugins,
}

const RESULT: &str = r#"{"cniVersion":"1.0.0",
    "interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/ns","vendor":"x"}],
    "ips":[{"address":"10.1.0.2/16","gateway":"10.1.0.1","interface":1}],"dns":{}}"#;

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "net.d", "log"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let dirs = vec![folder.path().join("empty"), folder.path().join("bin")];
        let plugins = Plugins::new(dirs, &folder.path().join("cache"));
        World { folder, plugins }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A plugin with a body in the shell's language; `$log` is the folder of the records.
    fn plugin(&self, name: &str, body: &str) {
        let log = self.path("log");
        let script = format!(
            "#!/bin/sh\nlog={log}\necho {name} $CNI_COMMAND >>$log/calls\n\
             cat >$log/{name}.$CNI_COMMAND.json\nenv >$log/{name}.$CNI_COMMAND.env\n{body}\n",
            log = log.display()
        );
        let path = self.path("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// One whose ADD answers a result, and whose other verbs succeed.
    fn good(&self, name: &str) {
        self.plugin(name, &format!("[ $CNI_COMMAND != ADD ] || cat <<'END'\n{RESULT}\nEND"));
    }

    /// The network "test" of these plugins.
    fn network(&self, version: &str, plugins: Value) -> NetworkList {
        let list = json!({ "cniVersion": version, "name": "test", "plugins": plugins });
        fs::write(self.path("net.d/10-test.conflist"), list.to_string()).unwrap();
        Config::load(&self.path("net.d"), None).unwrap()
    }

    /// The plugins' runs since the last time.
    fn calls(&self) -> Vec<String> {
        let path = self.path("log/calls");
        let calls = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        calls.lines().map(str::to_owned).collect()
    }

    fn read(&self, run: &str) -> Value {
        let text = fs::read_to_string(self.path("log").join(format!("{run}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn env(&self, run: &str, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.path("log").join(format!("{run}.env"))).unwrap();
        let prefix = format!("{name}=");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
    }

    fn cached_files(&self) -> Vec<String> {
        let Ok(folder) = fs::read_dir(self.path("cache/results")) else { return Vec::new() };
        folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn attachment() -> Attachment {
    let netns = Some(PathBuf::from("/proc/self/ns/net"));
    Attachment::for_pod("pod1", netns, "default", "web", "u-1")
}

fn alive(pid: &str) -> bool {
    // A zombie that waits for the init process is dead.
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

/// Waits for something that another process does; the test's own time limit ends it.
async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_chain() {
    let world = World::new();
    world.good("first");
    world.good("second");
    let list = world.network(
        "1.0.0",
        json!([
            { "type": "first", "own": 1, "capabilities": { "bandwidth": true, "dns": false } },
            { "type": "second", "capabilities": { "portMappings": true } },
        ]),
    );
    assert!(list.declares("portMappings") && !list.declares("dns") && !list.declares("mac"));
    let mut attachment = attachment();
    let port = |host_port| PortMapping {
        host_port,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: None,
    };
    attachment.capabilities.port_mappings = vec![port(8080), port(0)];
    attachment.capabilities.bandwidth = Some(Bandwidth { ingress_rate: 5, ..Bandwidth::default() });
    attachment.capabilities.mac = Some("00:11:22:33:44:55".to_owned());

    let result = world.plugins.add(&list, &attachment).await.unwrap();
    assert_eq!(result.pod_ips("eth0"), ["10.1.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(world.calls(), ["first ADD", "second ADD"]);
    let first = world.read("first.ADD");
    assert_eq!(first["name"], "test");
    assert_eq!(first["cniVersion"], "1.0.0");
    assert_eq!(first["own"], 1);
    assert_eq!(first.get("prevResult"), None);
    assert_eq!(
        first["runtimeConfig"],
        json!({ "bandwidth":
            { "ingressRate": 5, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0 } })
    );
    let second = world.read("second.ADD");
    // As it was written, with the key that this crate does not know.
    assert_eq!(second["prevResult"], serde_json::from_str::<Value>(RESULT).unwrap());
    assert_eq!(
        second["runtimeConfig"],
        json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] })
    );
    let env = |name| world.env("second.ADD", name).unwrap();
    assert_eq!(env("CNI_CONTAINERID"), "pod1");
    assert_eq!(env("CNI_IFNAME"), "eth0");
    assert_eq!(env("CNI_NETNS"), "/proc/self/ns/net");
    assert_eq!(
        env("CNI_PATH"),
        format!("{}:{}", world.path("empty").display(), world.path("bin").display())
    );
    assert_eq!(
        env("CNI_ARGS"),
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;\
         K8S_POD_INFRA_CONTAINER_ID=pod1;K8S_POD_UID=u-1"
    );
    assert_eq!(world.cached_files(), ["test-pod1-eth0"]);
    let cached = world.plugins.cached().unwrap();
    assert_eq!(cached[0].result.as_ref(), Some(&result));
    assert_eq!(cached[0].network, "test");

    world.plugins.check(&list, &attachment).await.unwrap();
    assert_eq!(world.calls(), ["first CHECK", "second CHECK"]);
    assert_eq!(world.read("first.CHECK")["prevResult"]["ips"][0]["address"], "10.1.0.2/16");

    world.plugins.del(Some(&list), &attachment).await.unwrap();
    assert_eq!(world.calls(), ["second DEL", "first DEL"]);
    assert_eq!(world.read("first.DEL")["prevResult"]["ips"][0]["address"], "10.1.0.2/16");
    assert_eq!(world.env("first.DEL", "CNI_NETNS").unwrap(), "/proc/self/ns/net");
    assert_eq!(world.cached_files(), [] as [&str; 0]);
    // Again: the plugins are asked, without a result.
    world.plugins.del(Some(&list), &attachment).await.unwrap();
    assert_eq!(world.calls(), ["second DEL", "first DEL"]);
    assert_eq!(world.read("first.DEL").get("prevResult"), None);
    // And without a network nothing is known that could be deleted.
    world.plugins.del(None, &attachment).await.unwrap();
    assert_eq!(world.calls(), [] as [&str; 0]);
    let error = world.plugins.check(&list, &attachment).await.unwrap_err();
    assert!(matches!(error, Error::NotCached { .. }), "{error}");
}

#[tokio::test]
async fn del_uses_what_add_used() {
    let world = World::new();
    world.good("old");
    world.good("new");
    let list = world.network(
        "0.4.0",
        json!([{ "type": "old", "pool": "a", "capabilities": { "portMappings": true } }]),
    );
    let mut added = attachment();
    added.capabilities.port_mappings = vec![PortMapping {
        host_port: 53,
        container_port: 5353,
        protocol: Protocol::Udp,
        host_ip: Some("192.0.2.1".parse().unwrap()),
    }];
    world.plugins.add(&list, &added).await.unwrap();
    // The older version's form of the result.
    assert_eq!(world.plugins.cached().unwrap()[0].result.as_ref().unwrap().ips.len(), 1);

    fs::remove_file(world.path("net.d/10-test.conflist")).unwrap();
    let list = world.network("1.0.0", json!([{ "type": "new" }]));
    world.calls();
    // The daemon has restarted and knows only the pod; its network namespace is gone.
    let mut gone = attachment();
    gone.netns = Some(world.path("no-such-netns"));
    gone.args.clear();
    world.plugins.del(Some(&list), &gone).await.unwrap();
    assert_eq!(world.calls(), ["old DEL"]);
    let read = world.read("old.DEL");
    assert_eq!(read["pool"], "a");
    assert_eq!(read["cniVersion"], "0.4.0");
    assert_eq!(read["prevResult"]["cniVersion"], "0.4.0");
    assert_eq!(read["prevResult"]["ips"][0]["version"], "4");
    assert_eq!(
        read["runtimeConfig"]["portMappings"],
        json!([{ "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1" }])
    );
    assert_eq!(world.env("old.DEL", "CNI_NETNS").unwrap(), "");
    assert!(world.env("old.DEL", "CNI_ARGS").unwrap().contains("K8S_POD_NAME=web"));
    assert_eq!(world.cached_files(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_failed_add_is_undone() {
    let world = World::new();
    world.good("first");
    world.plugin(
        "second",
        r#"[ $CNI_COMMAND != ADD ] || { echo more >&2
           echo '{"cniVersion":"1.0.0","code":11,"msg":"no more addresses","details":"pool a"}'
           exit 1; }"#,
    );
    world.good("third");
    let plugins = json!([{ "type": "first" }, { "type": "second" }, { "type": "third" }]);
    let list = world.network("1.0.0", plugins);
    let error = world.plugins.add(&list, &attachment()).await.unwrap_err();
    assert_eq!(error.code(), Some(11));
    assert_eq!(
        error.to_string(),
        "CNI plugin second failed ADD: no more addresses (code 11); details: pool a; stderr: more"
    );
    assert_eq!(world.calls(), ["first ADD", "second ADD", "third DEL", "second DEL", "first DEL"]);
    assert_eq!(world.cached_files(), [] as [&str; 0]);
}

#[tokio::test]
async fn an_undoing_that_fails_is_remembered() {
    let world = World::new();
    world.plugin(
        "first",
        &format!("[ $CNI_COMMAND = ADD ] && echo '{RESULT}' && exit\n[ -e $log/healed ]"),
    );
    world.plugin("second", "[ $CNI_COMMAND != ADD ]");
    let list = world.network("1.0.0", json!([{ "type": "first" }, { "type": "second" }]));
    let error = world.plugins.add(&list, &attachment()).await.unwrap_err();
    assert!(matches!(&error, Error::PluginFailed { plugin, .. } if plugin == "second"), "{error}");
    assert_eq!(world.cached_files(), ["test-pod1-eth0"]);
    assert_eq!(world.plugins.cached().unwrap()[0].result, None);

    world.calls();
    let error = world.plugins.del(None, &attachment()).await.unwrap_err();
    assert!(matches!(&error, Error::PluginFailed { plugin, .. } if plugin == "first"), "{error}");
    // All are tried, so that one that never succeeds keeps no other from letting go.
    assert_eq!(world.calls(), ["second DEL", "first DEL"]);
    fs::write(world.path("log/healed"), "").unwrap();
    world.plugins.del(None, &attachment()).await.unwrap();
    assert_eq!(world.cached_files(), [] as [&str; 0]);
}

#[tokio::test]
async fn garbage_and_silence() {
    let world = World::new();
    for (body, expected) in [
        ("echo '\u{1b}[31mthis is no JSON'; echo why >&2", "this is no JSON; stderr: why"),
        (":", "answered ADD with what is no result: EOF"),
        ("echo '[]'", "not an object"),
        (r#"echo '{"ips":[{"address":"10.1.0.300/8"}]}'"#, "no address with a prefix length"),
        (r#"echo '{"cniVersion":"7.0.0"}'"#, "unknown CNI version"),
        (r#"echo '{"code":7,"msg":"bad config"}'"#, "bad config (code 7)"),
        ("echo half; exit 3", "exit status: 3; stdout: half"),
        ("kill -9 $$", "signal: 9"),
    ] {
        world.plugin("bad", &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{body}"));
        let list = world.network("1.0.0", json!([{ "type": "bad" }]));
        let error = world.plugins.add(&list, &attachment()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{body}: {error}");
        assert!(!error.contains('\u{1b}'), "{error}");
        assert_eq!(world.cached_files(), [] as [&str; 0]);
    }
}

#[tokio::test]
async fn one_that_hangs_is_killed_with_its_children() {
    let mut world = World::new();
    world.plugins.timeouts.add = Duration::from_millis(300);
    world.plugin(
        "slow",
        "[ $CNI_COMMAND = DEL ] && exit 0\necho waiting >&2\necho $$ >$log/parent\n\
         sleep 600 & echo $! >$log/child\nwait",
    );
    let list = world.network("1.0.0", json!([{ "type": "slow" }]));
    let error = world.plugins.add(&list, &attachment()).await.unwrap_err();
    let Error::Timeout { plugin, verb: "ADD", stderr, .. } = &error else { panic!("{error}") };
    assert_eq!((plugin.as_str(), stderr.as_str()), ("slow", "waiting"));
    for who in ["parent", "child"] {
        let pid = fs::read_to_string(world.path("log").join(who)).unwrap();
        until(|| !alive(&pid)).await;
    }
    assert_eq!(world.calls(), ["slow ADD", "slow DEL"]);
}

#[tokio::test]
async fn one_that_is_no_longer_wanted_is_killed() {
    let world = World::new();
    world.plugin("slow", "sleep 600 & echo $! >$log/child.tmp\nmv $log/child.tmp $log/child\nwait");
    let list = world.network("1.0.0", json!([{ "type": "slow" }]));
    let child = world.path("log/child");
    let attachment = attachment();
    tokio::select! {
        added = world.plugins.add(&list, &attachment) => panic!("{added:?}"),
        () = until(|| child.exists()) => {}
    }
    let pid = fs::read_to_string(child).unwrap();
    until(|| !alive(&pid)).await;
    // What it may have done is still to be undone.
    assert_eq!(world.cached_files(), ["test-pod1-eth0"]);
}

#[tokio::test]
async fn one_that_is_to_be_left_ends_by_itself() {
    let world = World::new();
    world.plugin(
        "slow",
        "touch $log/began\nwhile [ ! -e $log/go ]; do sleep 0.02; done\ntouch $log/ended",
    );
    let list = world.network("1.0.0", json!([{ "type": "slow" }]));
    let attachment = attachment();
    // A branch's own block runs when the others have been dropped: too late.
    let left = async {
        until(|| world.path("log/began").exists()).await;
        world.plugins.leave();
    };
    tokio::select! {
        added = world.plugins.add(&list, &attachment) => panic!("{added:?}"),
        () = left => {}
    }
    fs::write(world.path("log/go"), "").unwrap();
    until(|| world.path("log/ended").exists()).await;
    assert_eq!(world.cached_files(), ["test-pod1-eth0"]);
}

#[tokio::test]
async fn outputs_are_bounded() {
    let world = World::new();
    world.plugin("loud", "[ $CNI_COMMAND = DEL ] && exit 0\nexec yes");
    let list = world.network("1.0.0", json!([{ "type": "loud" }]));
    let error = world.plugins.add(&list, &attachment()).await.unwrap_err();
    assert!(matches!(error, Error::OutputTooLarge { limit: 1_048_576, .. }), "{error}");

    world.plugin("chatty", "head -c 3000000 /dev/zero | tr '\\0' x >&2\necho the end >&2\nexit 1");
    let list = world.network("1.0.0", json!([{ "type": "chatty" }]));
    let error = world.plugins.del(Some(&list), &attachment()).await.unwrap_err();
    let Error::PluginFailed { stderr, .. } = error else { panic!("{error}") };
    assert!(stderr.len() <= 4096 && stderr.ends_with("the end"), "{}", stderr.len());
}

#[tokio::test]
async fn one_that_talks_for_ever_is_killed() {
    let mut world = World::new();
    world.plugins.timeouts.del = Duration::from_millis(200);
    world.plugin("chatty", "exec yes >&2");
    let list = world.network("1.0.0", json!([{ "type": "chatty" }]));
    let error = world.plugins.del(Some(&list), &attachment()).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { verb: "DEL", .. }), "{error}");
}

#[tokio::test]
async fn one_that_leaves_a_daemon_behind_is_not_waited_for() {
    struct Kill(PathBuf);
    impl Drop for Kill {
        fn drop(&mut self) {
            let pid = fs::read_to_string(&self.0).unwrap_or_default();
            let _ = std::process::Command::new("kill").arg(pid.trim()).status();
        }
    }
    let world = World::new();
    let _kill = Kill(world.path("log/daemon"));
    // The daemon inherits all three descriptors.
    world.plugin(
        "starter",
        &format!(
            "[ $CNI_COMMAND = DEL ] && exit 0\necho '{RESULT}'\nsleep 600 & echo $! >$log/daemon"
        ),
    );
    let list = world.network("1.0.0", json!([{ "type": "starter" }]));
    world.plugins.add(&list, &attachment()).await.unwrap();
    assert!(alive(&fs::read_to_string(world.path("log/daemon")).unwrap()));
}

#[tokio::test]
async fn a_plugin_that_is_missing_or_no_program() {
    let world = World::new();
    world.good("first");
    fs::write(world.path("bin/second"), "#!/bin/sh\n").unwrap();
    let list = world.network("1.1.0", json!([{ "type": "first" }, { "type": "second" }]));
    let error = world.plugins.add(&list, &attachment()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "CNI plugin \"second\" not found in {}, {}",
            world.path("empty").display(),
            world.path("bin").display()
        )
    );
    let error = world.plugins.status(&list).await.unwrap_err();
    assert!(matches!(error, Error::PluginMissing { .. }), "{error}");
    // Nothing was begun.
    assert_eq!(world.calls(), [] as [&str; 0]);
    assert_eq!(world.cached_files(), [] as [&str; 0]);

    fs::write(world.path("bin/third"), "\x7fELF but not really").unwrap();
    fs::set_permissions(world.path("bin/third"), fs::Permissions::from_mode(0o755)).unwrap();
    let list = world.network("1.0.0", json!([{ "type": "third" }]));
    let error = world.plugins.del(Some(&list), &attachment()).await.unwrap_err();
    assert!(matches!(error, Error::Exec { .. }), "{error}");
}

#[tokio::test]
async fn names_that_climb_are_refused() {
    let world = World::new();
    world.good("first");
    let list = world.network("1.0.0", json!([{ "type": "first" }]));
    let spoil: [fn(&mut Attachment); 6] = [
        |a| a.container_id = "../../etc/passwd".to_owned(),
        |a| a.container_id.clear(),
        |a| a.ifname = "a/b".to_owned(),
        |a| a.ifname = "longer-than-fifteen".to_owned(),
        |a| a.args.push(("A".to_owned(), "b;CNI=1".to_owned())),
        |a| a.netns = None,
    ];
    for spoil in spoil {
        let mut attachment = attachment();
        spoil(&mut attachment);
        let error = world.plugins.add(&list, &attachment).await.unwrap_err();
        assert!(matches!(error, Error::InvalidAttachment { .. }), "{error}");
    }
    assert_eq!(world.calls(), [] as [&str; 0]);
}

#[tokio::test]
async fn status() {
    let world = World::new();
    world.good("first");
    world.plugin("second", r#"echo '{"code":50,"msg":"the controller is away"}'; exit 1"#);
    let plugins = json!([{ "type": "first" }, { "type": "second" }]);
    let list = world.network("1.1.0", plugins.clone());
    let error = world.plugins.status(&list).await.unwrap_err();
    assert_eq!(error.code(), Some(50));
    assert_eq!(world.calls(), ["first STATUS", "second STATUS"]);
    assert_eq!(world.env("first.STATUS", "CNI_CONTAINERID"), None);
    // The verb came with 1.1.0.
    let list = world.network("1.0.0", plugins);
    world.plugins.status(&list).await.unwrap();
    assert_eq!(world.calls(), [] as [&str; 0]);
}

#[tokio::test]
async fn gc() {
    let world = World::new();
    world.good("first");
    let list = world.network("1.1.0", json!([{ "type": "first" }]));
    for pod in ["kept", "stale"] {
        let netns = Some(PathBuf::from("/proc/self/ns/net"));
        let attachment = Attachment::for_pod(pod, netns, "default", pod, pod);
        world.plugins.add(&list, &attachment).await.unwrap();
    }
    world.calls();
    let kept = ValidAttachment { container_id: "kept".to_owned(), ifname: "eth0".to_owned() };
    let off = NetworkList { disable_gc: true, ..list.clone() };
    world.plugins.gc(&off, std::slice::from_ref(&kept)).await.unwrap();
    assert_eq!(world.calls(), [] as [&str; 0]);
    world.plugins.gc(&list, &[kept]).await.unwrap();
    assert_eq!(world.calls(), ["first DEL", "first GC"]);
    assert_eq!(world.env("first.DEL", "CNI_CONTAINERID").unwrap(), "stale");
    assert_eq!(
        world.read("first.GC")["cni.dev/valid-attachments"],
        json!([{ "containerID": "kept", "ifname": "eth0" }])
    );
    assert_eq!(world.cached_files(), ["test-kept-eth0"]);
}

#[tokio::test]
async fn check_where_it_cannot_be_or_is_not_wanted() {
    let world = World::new();
    world.good("first");
    let list = world.network("0.3.1", json!([{ "type": "first" }]));
    let error = world.plugins.check(&list, &attachment()).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let list = NetworkList { version: cni::Version::V100, disable_check: true, ..list };
    world.plugins.check(&list, &attachment()).await.unwrap();
    assert_eq!(world.calls(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_damaged_cache_does_not_keep_del_from_working() {
    let world = World::new();
    world.good("first");
    let list = world.network("1.0.0", json!([{ "type": "first" }]));
    world.plugins.add(&list, &attachment()).await.unwrap();
    let file = world.path("cache/results/test-pod1-eth0");
    let entry: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(entry["kind"], "cniCacheV1");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    world.calls();

    // The configuration inside is not usable: that of the network serves.
    let mut spoilt = entry.clone();
    spoilt["config"] = json!("bm90IGpzb24=");
    fs::write(&file, spoilt.to_string()).unwrap();
    assert!(world.plugins.del(None, &attachment()).await.is_err());
    world.plugins.del(Some(&list), &attachment()).await.unwrap();
    assert_eq!(world.calls(), ["first DEL"]);

    // Not an entry at all.
    for damaged in ["", "{", "[]", r#"{"kind":"other"}"#] {
        fs::write(&file, damaged).unwrap();
        world.plugins.del(Some(&list), &attachment()).await.unwrap();
        assert_eq!(world.calls(), ["first DEL"], "{damaged}");
    }
}

#[tokio::test]
async fn an_entry_of_libcni_is_taken_over() {
    let world = World::new();
    world.good("first");
    // {"cniVersion":"0.4.0","name":"theirs","plugins":[{"type":"first","pool":"t"}]}
    let config = "eyJjbmlWZXJzaW9uIjoiMC40LjAiLCJuYW1lIjoidGhlaXJzIiwicGx1Z2lucyI6W3sidHlwZSI6ImZpcnN0IiwicG9vbCI6InQifV19";
    let entry = json!({
        "kind": "cniCacheV1", "containerId": "pod1", "config": config, "ifName": "eth0",
        "networkName": "theirs", "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "web"]],
        "capabilityArgs": { "portMappings": null },
        "result": { "cniVersion": "0.4.0", "ips": [{ "version": "4", "address": "10.1.0.9/16" }] },
    });
    fs::create_dir_all(world.path("cache/results")).unwrap();
    fs::write(world.path("cache/results/theirs-pod1-eth0"), entry.to_string()).unwrap();
    let mut attachment = attachment();
    attachment.netns = None;
    world.plugins.del(None, &attachment).await.unwrap();
    let read = world.read("first.DEL");
    assert_eq!((&read["pool"], &read["name"]), (&json!("t"), &json!("theirs")));
    assert_eq!(read["prevResult"]["ips"][0]["address"], "10.1.0.9/16");
    assert_eq!(world.env("first.DEL", "CNI_ARGS").unwrap(), "IgnoreUnknown=1;K8S_POD_NAME=web");
    assert!(!Path::new(&world.path("cache/results/theirs-pod1-eth0")).exists());
}
