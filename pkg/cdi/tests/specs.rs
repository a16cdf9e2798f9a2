//! Whole directories of files: what vendors write, what is wrong with others, and what changes.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cdi::{DeviceNode, Edits, Error, Hook, IntelRdt, Mount, NetDevice, Problem, Registry};
use proptest::prelude::*;
use tempfile::TempDir;

/// Two directories, of which the second comes before the first.
struct Dirs {
    _root: TempDir,
    low: PathBuf,
    high: PathBuf,
    registry: Registry,
}

impl Dirs {
    fn new() -> Dirs {
        let root = tempfile::tempdir().unwrap();
        let (low, high) = (root.path().join("etc"), root.path().join("run"));
        fs::create_dir(&low).unwrap();
        let registry = Registry::new(vec![low.clone(), high.clone()]);
        Dirs { _root: root, low, high, registry }
    }

    fn write(&self, dir: &Path, name: &str, text: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }

    fn edits(&self, names: &[&str]) -> cdi::Result<Edits> {
        self.registry.current(|_| ()).edits(names)
    }

    fn problems(&self) -> Vec<Problem> {
        self.registry.current(|_| ()).problems().to_vec()
    }
}

/// A file that gives one device an environment.
fn one(kind: &str, device: &str, env: &str) -> String {
    format!(
        "cdiVersion: 0.5.0\nkind: {kind}\ndevices: [{{name: {device}, containerEdits: {{env: [{env}]}}}}]\n"
    )
}

fn text(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

#[test]
fn a_file_as_the_generator_of_a_vendor_writes_it() {
    let dirs = Dirs::new();
    dirs.write(&dirs.low, "nvidia.yaml", include_str!("files/gpu.yaml"));
    let edits = dirs.edits(&["nvidia.com/gpu=0", "nvidia.com/gpu=all"]).unwrap();
    assert_eq!(dirs.problems(), []);
    assert_eq!(edits.env, ["NVIDIA_VISIBLE_DEVICES=void"]);
    let nodes: Vec<_> = edits.device_nodes.iter().map(|n| n.path.as_str()).collect();
    // What holds for all devices once and first, then each device.
    let want = [
        "/dev/nvidia-uvm",
        "/dev/nvidiactl",
        "/dev/nvidia0",
        "/dev/dri/card1",
        "/dev/nvidia0",
        "/dev/nvidia1",
    ];
    assert_eq!(nodes, want);
    let chmod = ["nvidia-cdi-hook", "chmod", "--mode", "755", "--path", "/dev/dri"];
    assert_eq!(edits.hooks.len(), 3);
    assert_eq!(edits.hooks[2].args, chmod);
    assert_eq!(edits.mounts[0].options, ["ro", "nosuid", "nodev", "bind"]);
    // The same once more gives nothing more.
    let again = dirs.edits(&["nvidia.com/gpu=0", "nvidia.com/gpu=all", "nvidia.com/gpu=0"]);
    assert_eq!(again.unwrap(), edits);
}

#[test]
fn a_file_with_everything_in_it() {
    let dirs = Dirs::new();
    dirs.write(&dirs.low, "everything.json", include_str!("files/everything.json"));
    let edits = dirs.edits(&["vendor.com/net.card=card0"]).unwrap();
    let want = Edits {
        env: text(&["CARD=0", "EMPTY="]),
        device_nodes: vec![DeviceNode {
            path: "/dev/card0".into(),
            host_path: "/dev/vendor/card0".into(),
            kind: "c".into(),
            major: 240,
            minor: 7,
            file_mode: Some(0o660),
            permissions: "rw".into(),
            uid: Some(0),
            gid: Some(44),
        }],
        mounts: vec![Mount {
            host_path: "tmpfs".into(),
            container_path: "/scratch".into(),
            options: text(&["size=1m"]),
            kind: "tmpfs".into(),
        }],
        hooks: vec![Hook {
            hook_name: "poststop".into(),
            path: "/usr/libexec/vendor/reset".into(),
            args: text(&["reset", "0"]),
            env: text(&["A=b"]),
            timeout: Some(5),
        }],
        intel_rdt: Some(IntelRdt {
            clos_id: "guaranteed".into(),
            schemata: Some(text(&["L3:0=f"])),
            enable_monitoring: true,
            ..IntelRdt::default()
        }),
        additional_gids: vec![44, 0, 109],
        net_devices: vec![NetDevice {
            host_interface_name: "ens5f0v1".into(),
            name: "net1".into(),
        }],
    };
    assert_eq!(edits, want);
}

#[test]
fn what_looks_like_a_number_is_text_where_text_is_wanted() {
    let dirs = Dirs::new();
    let yaml = "cdiVersion: \"1.0.0\"\nkind: v/c\ndevices:\n\
                - name: 0\n  containerEdits: &e\n    ENV: [A=1, B=yes]\n    additionalGIDs: [0x10, 017]\n\
                \x20   deviceNodes: [{path: /dev/a, type: !!str c, major: 1, minor: 0b11, fileMode: 0o660}]\n\
                - {name: 1, containerEdits: *e}\n- {name: \"2\", containerEdits: {env: [A=b], mounts: null}}\n";
    dirs.write(&dirs.low, "a.yaml", yaml);
    assert_eq!(dirs.problems(), []);
    let zero = dirs.edits(&["v/c=0"]).unwrap();
    assert_eq!(zero.env, ["A=1", "B=yes"]);
    assert_eq!(zero.additional_gids, [16, 15]);
    let node = &zero.device_nodes[0];
    assert_eq!((node.major, node.minor, node.file_mode), (1, 3, Some(0o660)));
    assert_eq!(dirs.edits(&["v/c=1"]).unwrap(), zero);
    dirs.edits(&["v/c=2"]).unwrap();
}

#[test]
fn later_directories_win() {
    let dirs = Dirs::new();
    dirs.write(&dirs.low, "a.yaml", &one("v/c", "d", "FROM=low"));
    dirs.write(&dirs.high, "z.yaml", &one("v/c", "d", "FROM=high"));
    dirs.write(&dirs.low, "b.yaml", &one("v/c", "e", "FROM=low"));
    assert_eq!(dirs.edits(&["v/c=d", "v/c=e"]).unwrap().env, ["FROM=high", "FROM=low"]);
    assert_eq!(dirs.problems(), []);
}

#[test]
fn what_two_files_describe_is_nobodys() {
    let dirs = Dirs::new();
    dirs.write(&dirs.high, "a.yaml", &one("v/c", "d", "FROM=a"));
    dirs.write(&dirs.high, "b.yaml", &one("v/c", "d", "FROM=b"));
    dirs.write(&dirs.high, "c.yaml", &one("v/c", "e", "FROM=c"));
    dirs.write(&dirs.low, "a.yaml", &one("v/c", "d", "FROM=low"));
    let error = dirs.edits(&["v/c=d"]).unwrap_err();
    let (first, second) = (dirs.high.join("a.yaml"), dirs.high.join("b.yaml"));
    assert_eq!(error, Error::Ambiguous { name: "v/c=d".into(), first, second: second.clone() });
    assert_eq!(dirs.edits(&["v/c=e"]).unwrap().env, ["FROM=c"]);
    assert_eq!(dirs.problems().len(), 1);
    // Below them it does not matter: a later directory decides.
    fs::rename(&second, dirs.low.join("b.yaml")).unwrap();
    assert_eq!(dirs.edits(&["v/c=d"]).unwrap().env, ["FROM=a"]);
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let dirs = Dirs::new();
    dirs.write(&dirs.low, "a.yaml", &one("v/c", "d", "A=b"));
    let said = |name: &str| dirs.edits(&["v/c=d", name]).unwrap_err().to_string();
    assert_eq!(said("v/c=e"), "unknown CDI device \"v/c=e\": no file of \"v/c\" describes it");
    assert_eq!(said("w/c=d"), "unknown CDI device \"w/c=d\": there is no file of \"w/c\"");
    dirs.write(&dirs.low, "w.yaml", "kind: w/c");
    assert!(said("w/c=d").contains("w.yaml\": cdiVersion \"\" is none of"), "{}", said("w/c=d"));
    assert!(matches!(dirs.edits(&["gpu0"]), Err(Error::Name { .. })));
    assert_eq!(dirs.edits(&[]).unwrap(), Edits::default());
    let many: Vec<String> = (0..1025).map(|n| format!("v/c=d{n}")).collect();
    let error = dirs.registry.current(|_| ()).edits(&many).unwrap_err();
    assert_eq!(error, Error::Many { count: 1025, most: 1024 });
}

/// Each is a problem of that file alone.
#[test]
fn files_with_something_wrong_in_them() {
    let device = |edits: &str| {
        format!("cdiVersion: 1.1.0\nkind: v/c\ndevices: [{{name: d, containerEdits: {edits}}}]")
    };
    let huge = format!("# {}\n{}", "x".repeat(1 << 20), one("v/c", "d", "A=b"));
    let laughs: String = (1..20)
        .map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(",")))
        .collect();
    let laughs = format!("a0: &a0 [{}]\n{laughs}", ["x"; 10].join(","));
    for (bad, why) in [
        (String::new(), "there is nothing in it"),
        ("[".into(), "expected node content"),
        ("[".repeat(10_000), ""),
        (format!("{}1", "- ".repeat(10_000)), "too deep"),
        ("a".into(), "is no map"),
        (laughs, "too many parts"),
        ("{}\n---\n{}".into(), "more than one document"),
        ("cdiVersion: 1.1.0\nkind: v/c".into(), "describes no device"),
        ("cdiVersion: 1.1.0\nkind: c\ndevices: [{name: d}]".into(), "no vendor and class"),
        ("cdiVersion: 1.1.0\nkind: v/c\ndevices: [{name: d}]".into(), "no containerEdits"),
        ("cdiVersion: 1.1.0\nkind: v/c\ndevices: [{}]".into(), "that is no name"),
        ("cdiVersion: 1.1.0\nkind: v/c\nmore: 1".into(), "unknown field `more`"),
        ("kind: v/c\nKind: v/c".into(), "\"kind\" is given twice"),
        ("kind: [v/c]".into(), "kind: a list is no text"),
        ("kind: !vendor v/c".into(), "unknown tag"),
        ("kind: *a".into(), ""),
        ("<<: {kind: v/c}".into(), "merged maps"),
        ("[a]: b".into(), "no name of a field"),
        (
            "cdiVersion: 1.1.0\nkind: v/c\ndevices: [{name: d, containerEdits: &e {env: [A=b]}}, \
             {name: d, containerEdits: *e}]"
                .into(),
            "described twice",
        ),
        (device("{env: [=b]}"), "no variable"),
        (device("{env: [A]}"), "no variable"),
        (device("{env: A=b}"), "devices[0].containerEdits.env: \"A=b\" is no list"),
        (device("{deviceNodes: [{}]}"), "path \"\" is not absolute"),
        (device("{deviceNodes: [{path: dev/a}]}"), "\"dev/a\" is not absolute"),
        (device("{deviceNodes: [{path: /a, hostPath: b}]}"), "hostPath \"b\" is not absolute"),
        (device("{deviceNodes: [{path: /a, type: d}]}"), "unknown type \"d\""),
        (device("{deviceNodes: [{path: /a, permissions: rx}]}"), "unknown permissions \"rx\""),
        (device("{deviceNodes: [{path: /a, major: -1}]}"), "below zero"),
        (device("{deviceNodes: [{path: /a, major: 1.5}]}"), "\"1.5\" is no whole number"),
        (device("{deviceNodes: [{path: /a, uid: 4294967296}]}"), "uid"),
        (device("{deviceNodes: [{path: /a, colour: red}]}"), "unknown field `colour`"),
        (device("{mounts: [{hostPath: /a}]}"), "containerPath \"\" is not absolute"),
        (device("{mounts: [{containerPath: /a}]}"), "hostPath is empty"),
        (device("{hooks: [{hookName: before, path: /a}]}"), "unknown hook \"before\""),
        (device("{hooks: [{hookName: prestart, path: a}]}"), "hook's path \"a\" is not absolute"),
        (device("{hooks: [{hookName: prestart, path: /a, env: [b]}]}"), "no variable"),
        (device("{hooks: [{hookName: prestart, path: /a, timeout: 0}]}"), "above zero"),
        (device("{intelRdt: {closID: a/b}}"), "is no class"),
        (device("{intelRdt: {closID: a, enableMonitoring: maybe}}"), "no truth value"),
        (device("{netDevices: [{name: a}]}"), "a name is empty"),
        (
            device(
                "{netDevices: [{hostInterfaceName: a, name: b}, {hostInterfaceName: c, name: b}]}",
            ),
            "comes twice",
        ),
        (huge, "more than 1048576 bytes"),
    ] {
        let dirs = Dirs::new();
        dirs.write(&dirs.low, "bad.yaml", &bad);
        dirs.write(&dirs.low, "good.yaml", &one("v/c", "good", "A=b"));
        let shown: String = bad.chars().take(80).collect();
        let problems = dirs.problems();
        assert_eq!(problems.len(), 1, "{shown}");
        assert_eq!(problems[0].path, dirs.low.join("bad.yaml"));
        assert!(problems[0].text.contains(why), "{shown}: {}", problems[0].text);
        dirs.edits(&["v/c=good"]).unwrap();
    }
}

#[test]
fn json_has_the_same_rules() {
    let dirs = Dirs::new();
    let json = |rest: &str| {
        format!("{{\"cdiVersion\": \"1.0.0\", \"kind\": \"v/c\", \"devices\": [{rest}]}}")
    };
    let good =
        "{\"name\": 0, \"ContainerEdits\": {\"env\": [\"A=\\ud83d\\ude00\"], \"mounts\": null}}";
    dirs.write(&dirs.low, "good.json", &json(good));
    for (n, bad) in [
        "{",
        "{\"name\": \"d\", \"name\": \"e\", \"containerEdits\": {\"env\": [\"A=b\"]}}",
        "{\"name\": \"d\", \"containerEdits\": {\"env\": [\"A=b\"], \"more\": 1}}",
        &"[".repeat(100_000),
    ]
    .iter()
    .enumerate()
    {
        dirs.write(&dirs.low, &format!("{n}.json"), &json(bad));
    }
    assert_eq!(dirs.problems().len(), 4);
    assert_eq!(dirs.edits(&["v/c=0"]).unwrap().env, ["A=\u{1f600}"]);
}

#[test]
fn what_is_in_a_directory_and_is_no_spec() {
    let dirs = Dirs::new();
    dirs.write(&dirs.low, "a.yaml", &one("v/c", "d", "A=b"));
    dirs.write(&dirs.low, "README", "not for us");
    dirs.write(&dirs.low, "b.yml", "nor this");
    fs::create_dir(dirs.low.join("folder.yaml")).unwrap();
    assert_eq!(dirs.problems(), []);
    // Each of them is said, and holds up nobody.
    nix::unistd::mkfifo(&dirs.low.join("pipe.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("gone", dirs.low.join("link.json")).unwrap();
    symlink(".", &dirs.high).unwrap();
    let problems = dirs.problems();
    let names: Vec<_> = problems.iter().map(|p| p.path.file_name().unwrap()).collect();
    assert_eq!(names, ["link.json", "pipe.json"]);
    dirs.edits(&["v/c=d"]).unwrap();
    // A directory that is none is its own problem.
    fs::remove_file(&dirs.high).unwrap();
    fs::write(&dirs.high, "").unwrap();
    assert_eq!(dirs.problems().last().unwrap().path, dirs.high);
    dirs.edits(&["v/c=d"]).unwrap();
}

#[test]
fn changes_are_seen_at_the_next_call() {
    let dirs = Dirs::new();
    assert!(dirs.edits(&["v/c=d"]).is_err());
    let file = dirs.high.join("a.yaml");
    // Written in place, with the same length, and as fast as can be.
    for n in 0..100 {
        dirs.write(&dirs.high, "a.yaml", &one("v/c", "d", &format!("A={:02}", n)));
        assert_eq!(dirs.edits(&["v/c=d"]).unwrap().env, [format!("A={n:02}")]);
    }
    dirs.write(&dirs.high, "b.yaml", &one("v/c", "e", "A=b"));
    dirs.edits(&["v/c=e"]).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(dirs.edits(&["v/c=d"]).is_err());
    fs::remove_dir_all(&dirs.high).unwrap();
    assert!(dirs.edits(&["v/c=e"]).is_err());
}

#[test]
fn what_has_not_changed_is_not_read_again() {
    let dirs = Dirs::new();
    dirs.write(&dirs.low, "a.yaml", &one("v/c", "d", "A=b"));
    dirs.write(&dirs.low, "bad.yaml", "x");
    let mut reports = 0;
    let first = dirs.registry.current(|_| reports += 1);
    // Until it has been there for a while, each call reads.
    let end = SystemTime::now() + Duration::from_secs(60);
    let mut settled = dirs.registry.current(|_| reports += 1);
    loop {
        let next = dirs.registry.current(|_| reports += 1);
        if std::sync::Arc::ptr_eq(&next, &settled) {
            break;
        }
        assert!(SystemTime::now() < end, "it is read for ever");
        settled = next;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(reports, 1, "what is known is not said again");
    assert!(!std::sync::Arc::ptr_eq(&first, &settled));
}

proptest! {
    #[test]
    fn no_text_is_too_much(text in "(?s).{0,400}|([a-z{}\\[\\],:&*!|>' \"\\n-]{0,200})") {
        let dirs = Dirs::new();
        dirs.write(&dirs.low, "a.yaml", &text);
        dirs.write(&dirs.low, "b.json", &text);
        let _ = dirs.edits(&["v/c=d"]);
    }

    #[test]
    fn both_forms_mean_the_same(
        env in prop::collection::vec("[A-Z]{1,3}=[ -~]{0,12}", 1..4),
        options in prop::collection::vec("[ -~]{0,12}", 0..4),
        gids in prop::collection::vec(any::<u32>(), 0..4),
        mode in prop::option::of(any::<u32>()),
    ) {
        let edits = serde_json::json!({
            "env": env,
            "deviceNodes": [{"path": "/dev/a", "fileMode": mode}],
            "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": options}],
            "additionalGids": gids,
        });
        let json = serde_json::json!({
            "cdiVersion": "1.1.0", "kind": "v/c",
            "devices": [{"name": "d", "containerEdits": edits}],
        }).to_string();
        let dirs = Dirs::new();
        dirs.write(&dirs.low, "a.json", &json);
        let of_json = dirs.edits(&["v/c=d"]).unwrap();
        fs::remove_file(dirs.low.join("a.json")).unwrap();
        // Every JSON document is YAML.
        dirs.write(&dirs.low, "a.yaml", &json);
        prop_assert_eq!(&dirs.edits(&["v/c=d"]).unwrap(), &of_json);
        prop_assert_eq!(of_json.env, env);
        prop_assert_eq!(of_json.additional_gids, gids);
        prop_assert_eq!(of_json.device_nodes[0].file_mode, mode);
    }
}
