//! What is left over is found and removed, by whatever cause, and nothing of others with it.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_cri::v1::{PortMapping, StatusRequest};
use e2e::daemon::{Criod, Options, READY, RUNNING, block, chain, container};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

/// Longer than criod takes between two looks.
const LOOKS: Duration = Duration::from_secs(30);

/// Polls until there is no reason left not to go on.
fn until_none(what: &str, mut left: impl FnMut() -> Vec<String>) {
    let began = std::time::Instant::now();
    loop {
        let now = left();
        if now.is_empty() {
            return;
        }
        assert!(began.elapsed() < LOOKS, "{what}: {now:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn id(text: &str) -> String {
    text.repeat(64 / text.len())
}

/// Whether a name is one that is planted: an id of `a` and another digit in turn, or a token.
fn planted(name: &str) -> bool {
    name.ends_with(".stream-1") || (name.starts_with('a') && *name == id(&name[..2]))
}

/// What criod says of what it could not do yet.
fn recovery(criod: &Criod) -> Value {
    let status = block(async { criod.runtime().status(StatusRequest { verbose: true }).await });
    serde_json::from_str(&status.unwrap().into_inner().info["recovery"]).unwrap()
}

fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount(Some("test"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// Pins a new network namespace at a path.
fn netns(at: &Path) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(at, "").unwrap();
    let at = at.to_owned();
    let pin = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let own = Some("/proc/thread-self/ns/net");
        mount(own, &at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    };
    std::thread::spawn(pin).join().unwrap();
}

fn mounted(at: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|l| l.split(' ').nth(4) == at.to_str())
}

/// Folders of a cgroup in hierarchies of version 1 or 2.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let mut bases: Vec<PathBuf> = fs::read_dir(top).unwrap().map(|e| e.unwrap().path()).collect();
    bases.push(top.to_owned());
    bases.retain(|b| b.join("cgroup.procs").exists());
    bases.into_iter().map(|b| b.join(name)).collect()
}

/// What is somebody else's, in and beside criod's places.
struct Foreign {
    files: Vec<PathBuf>,
    mounts: Vec<PathBuf>,
    groups: Vec<PathBuf>,
}

impl Foreign {
    fn plant(criod: &Criod) -> Foreign {
        let at = |path: &str| criod.dir.join(path);
        let files = [
            "root/containers/notes",
            "root/pods/lost+found/x",
            "run/containers/notes",
            "run/ns/blue/x",
            "run/tokens/notes",
            "root/layers/overlay/notes",
            "root/theirs/x",
            "leases/e2e/10.88.200.1",
        ];
        let mut files: Vec<PathBuf> = files.iter().map(|f| at(f)).collect();
        for file in &files {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "theirs").unwrap();
        }
        // An attachment of a runtime that names its containers otherwise.
        let entry = serde_json::json!({
            "kind": "cniCacheV1", "containerId": "theirs", "config": "e30=", "ifName": "eth0",
            "networkName": "e2e",
        });
        files.push(at("root/cni/results/e2e-theirs-eth0"));
        fs::create_dir_all(at("root/cni/results")).unwrap();
        fs::write(files.last().unwrap(), entry.to_string()).unwrap();
        let mounts = vec![at("root/theirs/tmpfs"), at("run/theirs"), at("theirs/net")];
        tmpfs(&mounts[0]);
        tmpfs(&mounts[1]);
        netns(&mounts[2]);
        // Of another criod, or CRI-O, on the same machine.
        let mut groups = cgroups(&format!("{}/crio-{}", criod.tag, id("0f")));
        groups.extend(cgroups(&format!("{}/theirs", criod.tag)));
        groups.retain(|g| fs::create_dir_all(g).is_ok());
        assert!(!groups.is_empty());
        let table = "add table inet theirs; add chain inet theirs c; add rule inet theirs c drop";
        criod.net.output("nft", &[table]).unwrap();
        Foreign { files, mounts, groups }
    }

    fn untouched(self, criod: &Criod) {
        for file in &self.files {
            assert!(file.exists(), "{}", file.display());
        }
        for at in &self.mounts {
            assert!(mounted(at), "{}", at.display());
        }
        for group in &self.groups {
            assert!(group.is_dir(), "{}", group.display());
        }
        let table = criod.net.output("nft", &["list", "table", "inet", "theirs"]).unwrap();
        assert!(table.contains("drop"), "{table}");
        // What would be in the way of the last look at everything.
        for at in &self.mounts {
            nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
        for file in &self.files {
            fs::remove_file(file).unwrap();
        }
        for group in &self.groups {
            fs::remove_dir(group).unwrap();
        }
        for folder in ["root/pods/lost+found", "run/ns/blue"] {
            fs::remove_dir(criod.dir.join(folder)).unwrap();
        }
    }
}

#[test]
fn of_each_kind() {
    let mut criod = Criod::start(Options::default());
    let at = |criod: &Criod, path: &str| criod.dir.join(path);
    let mut config = criod.pod("stays");
    config.port_mappings =
        vec![PortMapping { host_port: 18080, container_port: 80, ..Default::default() }];
    let stays = criod.run_pod(&config).unwrap();
    let well = criod.run(&stays, &container("well", &["sleep", "1000"]), &config);
    let lost_config = criod.pod("lost");
    let lost = criod.run_pod(&lost_config).unwrap();
    let run = criod.run(&lost, &container("c", &["sleep", "1000"]), &lost_config);
    let lost_ip = criod.ip(&lost);
    let foreign = Foreign::plant(&criod);
    let rules =
        |criod: &Criod| criod.net.output("nft", &["list", "table", "inet", "criod"]).unwrap();
    let before = rules(&criod);

    // Somebody removes the records of what runs, while criod is down.
    criod.kill9();
    for dir in [format!("root/pods/{lost}"), format!("root/containers/{run}")] {
        for name in ["record.json", "first.json"] {
            fs::remove_file(at(&criod, &dir).join(name)).unwrap();
        }
    }
    // A rule of a pod that is gone.
    let rule = "add rule inet criod ports tcp dport 18081 dnat ip to 10.88.250.1:80";
    criod.net.output("nft", &[rule]).unwrap();
    criod.launch();
    criod.ready();

    // And each kind by itself, in the places where it would lie, while criod runs.
    let keeper = criod.keeper();
    let file = fs::File::open("/dev/null").unwrap();
    keeper.call(&["SPARE", &id("a1"), "stdout"], &[file.as_fd()]).unwrap();
    netns(&at(&criod, &format!("run/ns/{}/net", id("a2"))));
    tmpfs(&at(&criod, &format!("run/pods/{}", id("a3"))));
    tmpfs(&at(&criod, &format!("run/pods/{}/shm", id("a3"))));
    let spool = at(&criod, &format!("run/containers/{}", id("a4")));
    fs::create_dir_all(&spool).unwrap();
    fs::write(spool.join("stdout.spool"), "x").unwrap();
    let rootfs = at(&criod, &format!("root/containers/{}/rootfs", id("a5")));
    tmpfs(&rootfs.join("merged"));
    fs::create_dir_all(rootfs.join("diff/etc")).unwrap();
    fs::create_dir_all(at(&criod, &format!("root/pods/{}", id("a6")))).unwrap();
    fs::write(at(&criod, &format!("root/pods/{}/record.new", id("a6"))), "{").unwrap();
    fs::create_dir_all(at(&criod, &format!("run/runtime/{}", id("a7")))).unwrap();
    // Its cgroup is found by the name.
    let grouped: Vec<PathBuf> = cgroups(&format!("{}/x/crio-{}", criod.tag, id("a4")));
    let grouped: Vec<PathBuf> =
        grouped.into_iter().filter(|g| fs::create_dir_all(g).is_ok()).collect();
    assert!(!grouped.is_empty());
    let token = at(&criod, &format!("run/tokens/{}.stream-1", "a".repeat(32)));
    let ticket = serde_json::json!({"until": 1, "ticket": {"purpose": "exec", "id": "x"}});
    fs::write(&token, ticket.to_string()).unwrap();

    until_none("what is left over", || {
        let mut left = Vec::new();
        for place in [
            "root/pods",
            "root/containers",
            "run/pods",
            "run/ns",
            "run/containers",
            "run/runtime",
            "root/cni/results",
            "run/tokens",
            "leases/e2e",
        ] {
            let there = fs::read_dir(at(&criod, place)).into_iter().flatten().flatten();
            for name in there.map(|e| e.file_name().to_string_lossy().into_owned()) {
                let of_lost = [&lost, &run, &lost_ip].iter().any(|l| name.contains(l.as_str()));
                if of_lost || planted(&name) {
                    left.push(format!("{place}/{name}"));
                }
            }
        }
        let groups = cgroups(&format!("{}/lost/crio-{run}", criod.tag));
        let groups = groups.into_iter().chain(cgroups(&format!("{}/lost/crio-{lost}", criod.tag)));
        left.extend(
            groups.chain(grouped.clone()).filter(|g| g.exists()).map(|g| g.display().to_string()),
        );
        let held = criod.held().unwrap();
        left.extend(held.into_iter().filter(|h| *h != well).map(|h| format!("held {h}")));
        left.extend(criod.monitor_pid(&run).map(|pid| format!("monitor {pid}")));
        if rules(&criod) != before {
            left.push(rules(&criod));
        }
        left
    });
    assert_eq!(recovery(&criod)["leftovers"], serde_json::json!([]));

    foreign.untouched(&criod);
    assert_eq!(criod.pod_status(&stays).unwrap().state, READY);
    assert_eq!(criod.status(&well).unwrap().state, RUNNING);
    assert_eq!(criod.exec(&well, &["echo", "x"]).unwrap(), (0, "x\n".to_owned()));
    criod.finish();
}

/// A plugin that gives an address and does not give it back as long as a file is there.
const STUBBORN: &str = r#"#!/bin/sh
conf=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID" >>DIR/verbs
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.99.0.1/24","interface":0}]}' ;;
DEL) [ ! -e DIR/stubborn ] || { echo '{"cniVersion":"1.1.0","code":100,"msg":"not today"}'; exit 1; } ;;
GC) echo "$conf" | tr -d ' \n' >>DIR/gc; echo >>DIR/gc ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
esac
"#;

#[test]
fn what_cannot_be_removed_is_tried_for_ever_and_shown() {
    let mut criod = Criod::prepare(Options::default());
    criod.script("plugins/stubborn", STUBBORN);
    let conf = chain(&[serde_json::json!({"type": "stubborn"})]).replace("1.0.0", "1.1.0");
    criod.network(&conf);
    criod.launch();
    criod.ready();
    let lost = criod.run_pod(&criod.pod("lost")).unwrap();
    let kept = criod.run_pod(&criod.pod("kept")).unwrap();
    criod.kill9();
    fs::remove_dir_all(criod.dir.join("root/pods").join(&lost)).unwrap();
    fs::write(criod.dir.join("stubborn"), "").unwrap();
    fs::write(criod.dir.join("gc"), "").unwrap();
    criod.launch();
    criod.ready();
    until_none("it is said why it is not gone", || {
        let all = recovery(&criod);
        let of_it = |l: &&Value| l["what"].as_str().unwrap().contains(&lost);
        let found = all["leftovers"].as_array().unwrap().iter().find(of_it);
        let seen = found.is_some_and(|l| {
            l["problem"].as_str().unwrap().contains("not today") && l["tries"].as_u64() > Some(1)
        });
        if seen { Vec::new() } else { vec![all.to_string()] }
    });
    // The plugins were asked to collect, and told of the one that is left.
    until_none("GC", || {
        let asked = fs::read_to_string(criod.dir.join("gc")).unwrap();
        let told = asked.lines().any(|l| l.contains("valid-attachments") && l.contains(&kept));
        assert!(!asked.contains(&lost), "{asked}");
        if told { Vec::new() } else { vec![asked] }
    });
    fs::remove_file(criod.dir.join("stubborn")).unwrap();
    until_none("it goes", || {
        let all = recovery(&criod)["leftovers"].as_array().unwrap().clone();
        all.iter().map(ToString::to_string).collect()
    });
    let said = fs::read_to_string(criod.dir.join("verbs")).unwrap();
    assert!(said.lines().any(|l| l == format!("DEL {lost}")), "{said}");
    assert!(!said.lines().any(|l| l == format!("DEL {kept}")), "{said}");
    assert_eq!(criod.pod_status(&kept).unwrap().state, READY);
    let script = criod.dir.join("plugins/stubborn");
    assert!(fs::metadata(script).unwrap().permissions().mode() & 0o100 != 0);
    criod.finish();
}
