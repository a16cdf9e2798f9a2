//! The unit files: what the design asks of them, and what must never be in them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

fn settings(unit: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../systemd").join(unit);
    let text = fs::read_to_string(path).unwrap().replace("\\\n", "");
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.filter_map(|l| l.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
}

fn value(unit: &str, key: &str) -> Option<String> {
    settings(unit).into_iter().find(|(k, _)| k == key).map(|(_, v)| v)
}

#[test]
fn a_stop_kills_no_container() {
    for unit in ["criod.service", "criod-keeper.service"] {
        assert_eq!(value(unit, "KillMode").as_deref(), Some("process"), "{unit}");
        assert_eq!(value(unit, "RuntimeDirectoryPreserve").as_deref(), Some("yes"), "{unit}");
        assert_eq!(value(unit, "StartLimitIntervalSec").as_deref(), Some("0"), "{unit}");
    }
    assert_eq!(value("criod-keeper.service", "Delegate").as_deref(), Some("yes"));
}

#[test]
fn no_unit_has_a_mount_namespace_of_its_own() {
    // The settings of systemd.exec(5) that make one.
    let own = [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "ExtensionDirectories",
        "ExtensionImages",
        "InaccessiblePaths",
        "MountAPIVFS",
        "MountImages",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateTmp",
        "PrivateUsers",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootImage",
        "TemporaryFileSystem",
    ];
    for unit in ["criod.service", "criod-keeper.service"] {
        for (key, _) in settings(unit) {
            assert!(!own.contains(&key.as_str()), "{unit}: {key}");
        }
    }
}

#[test]
fn paths_agree_with_the_defaults() {
    let config = criod_config::Config::default();
    let listen = value("criod.socket", "ListenStream").unwrap();
    assert_eq!(Path::new(&listen), config.listen);
    assert_eq!(value("criod.socket", "SocketMode").as_deref(), Some("0660"));
    let keeper = value("criod-keeper.service", "ExecStart").unwrap();
    let socket = config.keeper_socket();
    assert!(keeper.ends_with(&format!(" --socket {}", socket.display())), "{keeper}");
    let daemon = value("criod.service", "ExecStart").unwrap();
    for group in ["CONFIG", "RUNTIME", "STORAGE", "NETWORK", "METRICS"] {
        assert!(daemon.contains(&format!("$CRIO_{group}_OPTIONS")), "{daemon}");
    }
}

#[test]
fn the_examples_are_whole() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conf");
    let machine = criod_config::Machine { systemd: true, path: String::new() };
    let drop_in = conf.join("crio.conf.d/10-example.conf");
    let text = fs::read_to_string(&drop_in).unwrap();
    let loaded = criod_config::from_text(&machine, &drop_in, &text).unwrap();
    assert_eq!(loaded.config, machine.defaults(), "as it stands it changes nothing");
    // With the comment marks of the examples gone it must read without a warning.
    let shown = |text: &str| {
        let example = |l: &&str| l.starts_with("# [") || l.contains(" = ");
        let lines: Vec<_> =
            text.lines().filter(example).map(|l| l.trim_start_matches("# ")).collect();
        lines.join("\n")
    };
    let loaded = criod_config::from_text(&machine, &drop_in, &shown(&text)).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    assert_eq!(loaded.config.default_runtime, "runc");
    let text = fs::read_to_string(conf.join("registries.conf")).unwrap();
    let table: toml::Table = shown(&text).parse().unwrap();
    assert_eq!(table["registry"][0]["mirror"][0]["pull-from-mirror"].as_str(), Some("all"));
}
