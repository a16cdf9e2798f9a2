//! Which source wins: defaults, file, folder, environment, flags.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::Place;
use criod_config::{CgroupManager, Error, LogLevel, Origin, RuntimeType, Warning};

#[test]
fn each_source_wins_over_the_one_below() {
    let mut place = Place::new();
    place.file("crio.conf", "");
    place.file("conf.d/x", "");
    let root = |place: &Place, args: &[&str]| {
        let loaded = place.load(args).unwrap();
        (loaded.config.root, loaded.sources.keys.get("crio.root").cloned())
    };
    assert_eq!(root(&place, &[]), (PathBuf::from("/var/lib/criod"), None));
    place.file("crio.conf", "[crio]\nroot = \"/file\"\n");
    let origin = Some(Origin::File(place.path("crio.conf"), 2));
    assert_eq!(root(&place, &[]), (PathBuf::from("/file"), origin));
    place.file("conf.d/x", "# one\n[crio]\nroot = \"/folder\"\n");
    let origin = Some(Origin::File(place.path("conf.d/x"), 3));
    assert_eq!(root(&place, &[]), (PathBuf::from("/folder"), origin));
    place.set("CONTAINER_ROOT", "/env");
    let origin = Some(Origin::Env("CONTAINER_ROOT".to_owned()));
    assert_eq!(root(&place, &[]), (PathBuf::from("/env"), origin));
    let origin = Some(Origin::Flag("root".to_owned()));
    assert_eq!(root(&place, &["--root=/flag"]), (PathBuf::from("/flag"), origin.clone()));
    assert_eq!(root(&place, &["-r", "/a", "-r", "/last"]), (PathBuf::from("/last"), origin));
    place.set("CONTAINER_ROOT", "");
    assert_eq!(root(&place, &[]).0, PathBuf::from("/folder"), "an empty variable says nothing");
}

#[test]
fn the_folder_is_read_whole_and_in_order() {
    let place = Place::new();
    place.file("crio.conf", "");
    place.file("conf.d/20-last", "[crio.image]\npause_command = \"/20\"\n");
    place.file("conf.d/10.conf", "[crio.image]\npause_command = \"/10\"\npause_image = \"ten\"\n");
    place.file("conf.d/15/z", "[crio.image]\npause_command = \"/15z\"\n");
    place.file("conf.d/15/a/deep", "[crio.image]\npause_image = \"deep\"\n");
    place.file("outside", "[crio.image]\nglobal_auth_file = \"/linked\"\n");
    std::os::unix::fs::symlink("../outside", place.path("conf.d/30-link")).unwrap();
    std::os::unix::fs::symlink("15", place.path("conf.d/40-folder")).unwrap();
    std::os::unix::fs::symlink("nothing", place.path("conf.d/50-dangling")).unwrap();
    let loaded = place.load(&[]).unwrap();
    assert_eq!(loaded.config.pause_command, "/20");
    assert_eq!(loaded.config.pause_image, "deep");
    assert_eq!(loaded.config.global_auth_file.as_deref(), Some(Path::new("/linked")));
    let names = ["crio.conf", "conf.d/10.conf", "conf.d/15/a/deep", "conf.d/15/z"];
    let names = names.into_iter().chain(["conf.d/20-last", "conf.d/30-link"]);
    assert_eq!(loaded.sources.files, names.map(|n| place.path(n)).collect::<Vec<_>>());
}

#[test]
fn lists_are_replaced_but_storage_options_add_up() {
    let mut place = Place::new();
    let text = "[crio]\nstorage_option = [\"a\", \"b\"]\n[crio.image]\npinned_images = [\"x\"]\n";
    place.file("crio.conf", text);
    let text = "[crio]\nstorage_option = [\"b\", \"c\"]\n[crio.image]\npinned_images = [\"y\"]\n";
    place.file("conf.d/1", text);
    let config = place.load(&[]).unwrap().config;
    assert_eq!(config.storage_option[..], ["a", "b", "c"]);
    assert_eq!(config.pinned_images, ["y"]);
    place.set("CONTAINER_STORAGE_OPT", "d,e");
    assert_eq!(place.load(&[]).unwrap().config.storage_option[..], ["d", "e"]);
}

#[test]
fn handlers_are_replaced_by_name() {
    let place = Place::new();
    place.program("bin/youki");
    place.file(
        "crio.conf",
        "[crio.runtime.runtimes.one]\nruntime_path = \"youki\"\nruntime_root = \"/run/one\"\n\
         [crio.runtime.runtimes.two]\nruntime_path = \"runc\"\n",
    );
    place.file(
        "conf.d/1",
        "[crio.runtime.runtimes.one]\nruntime_path = \"runc\"\n\
         [crio.runtime.runtimes.three]\ninherit_default_runtime = true\n",
    );
    let loaded = place.load(&[]).unwrap();
    let one = "crio.runtime.runtimes.one";
    assert_eq!(loaded.sources.origin(one), Origin::File(place.path("conf.d/1"), 1));
    assert_eq!(loaded.sources.origin(&format!("{one}.runtime_root")), Origin::Default);
    let config = loaded.config;
    let names: Vec<_> = config.runtimes.keys().map(String::as_str).collect();
    assert_eq!(names, ["crun", "one", "runc", "three", "two"]);
    assert_eq!(config.runtimes["one"].runtime_path, place.text("bin/runc"));
    assert_eq!(config.runtimes["one"].runtime_root, None, "the lower table is gone");
    assert_eq!(config.runtimes["three"].runtime_path, place.text("bin/crun"));
    assert_eq!(config.default_runtime, "crun");
    assert_eq!(config.handler("").unwrap().0, "crun");
    assert_eq!(config.handler("two").unwrap().0, "two");
    assert!(config.handler("four").is_none());
    assert_eq!(config.runtimes["crun"].min_memory(), 500 * 1024);
    assert_eq!(config.runtimes["runc"].min_memory(), 12 * 1024 * 1024);
}

#[test]
fn empty_names_read_nothing() {
    let mut place = Place::new();
    place.file("crio.conf", "[crio]\nroot = \"/file\"\n");
    place.file("conf.d/1", "[crio]\nrunroot = \"/folder\"\n");
    place.set("CONTAINER_CONFIG", &place.text("crio.conf"));
    place.set("CONTAINER_CONFIG_DIR", &place.text("conf.d"));
    let loaded = place.load_only(&[]).unwrap();
    assert_eq!(loaded.config.root, Path::new("/file"));
    assert_eq!(loaded.config.runroot, Path::new("/folder"));
    let loaded = place.load_only(&["-c", "", "-d", ""]).unwrap();
    assert_eq!(loaded.config.root, Path::new("/var/lib/criod"));
    assert_eq!(loaded.config.runroot, Path::new("/run/criod"));
    assert!(loaded.sources.files.is_empty());
}

#[test]
fn what_was_named_must_be_there() {
    let place = Place::new();
    let missing = place.text("crio.conf");
    match place.load_only(&["-c", &missing, "-d", ""]) {
        Err(Error::Read { path, .. }) => assert_eq!(path, place.path("crio.conf")),
        other => panic!("{other:?}"),
    }
    let loaded = place.load_only(&["-c", "", "-d", &place.text("none")]).unwrap();
    assert_eq!(loaded.warnings, [Warning::NoDir { path: place.path("none") }]);
    match place.load_only(&["-c", place.dir.path().to_str().unwrap(), "-d", ""]) {
        Err(Error::Read { .. }) => {}
        other => panic!("a folder is no file: {other:?}"),
    }
    match place.load_only(&["-c", "/dev/zero", "-d", ""]) {
        Err(Error::TooLarge { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn flags_have_their_names() {
    let place = Place::new();
    place.program("opt/kata/containerd-shim-kata-v2");
    let kata = format!(
        "kata:{}:/run/kata:vm:true:/etc/kata.toml:64MiB",
        place.text("opt/kata/containerd-shim-kata-v2")
    );
    let args = [
        ["-c", ""],
        ["-d", ""],
        ["--listen", "/t/s"],
        ["--runroot", "/t/run"],
        ["--log-dir", "/t/log"],
        ["-l", "debug"],
        ["--cni-config-dir", "/t/net.d"],
        ["--cni-plugin-dir", "/t/a,/t/b"],
        ["--cni-plugin-dir", "/t/c"],
        ["--cgroup-manager", "cgroupfs"],
        ["--default-runtime", "runc"],
        ["--runtimes", &kata],
        ["--runtimes", "mine:runc:/run/mine"],
        ["--registries-conf", "/t/registries.conf"],
        ["--registries-conf-dir", "/t/registries.conf.d"],
        ["--stream-address", "0.0.0.0"],
        ["--stream-port", "10010"],
        ["--global-auth-file", "/t/auth"],
        ["--pause-image", "pause"],
        ["--default-ulimits", "nofile=1:2,core=-1"],
        ["--pids-limit", "-1"],
        ["--tz", "Local"],
        ["--pull-progress-timeout", "1m30s"],
    ];
    let args: Vec<&str> = args.iter().flatten().copied().chain(["--no-pivot"]).collect();
    let args = [args.as_slice(), &["--drop-infra-ctr=false", "--add-inheritable-capabilities"]];
    let c = place.load_only(&args.concat()).unwrap().config;
    assert_eq!(c.listen, Path::new("/t/s"));
    assert_eq!(c.keeper_socket(), Path::new("/t/run/keeper.sock"));
    assert_eq!(c.log_dir, Path::new("/t/log"));
    assert_eq!(c.log_level, LogLevel::Debug);
    assert_eq!(c.network_dir, Path::new("/t/net.d"));
    assert_eq!(c.plugin_dirs, ["/t/a", "/t/b", "/t/c"].map(PathBuf::from));
    assert_eq!(c.cgroup_manager, CgroupManager::Cgroupfs);
    assert_eq!(c.default_runtime, "runc");
    assert_eq!(c.registries_conf, Path::new("/t/registries.conf"));
    assert_eq!(c.registries_conf_dir, Path::new("/t/registries.conf.d"));
    assert_eq!((c.stream_address.as_str(), c.stream_port.0), ("0.0.0.0", 10010));
    assert_eq!(c.pause_image, "pause");
    assert_eq!(c.default_ulimits.len(), 2);
    assert_eq!((c.default_ulimits[0].soft, c.default_ulimits[0].hard), (1, 2));
    assert_eq!(c.default_ulimits[1].soft, u64::MAX);
    assert_eq!(c.timezone, "Local");
    assert_eq!(c.pull_progress_timeout, Duration::from_secs(90));
    assert!(c.no_pivot && !c.drop_infra_ctr && c.add_inheritable_capabilities);
    let kata = &c.runtimes["kata"];
    assert_eq!(kata.runtime_type, RuntimeType::Vm);
    assert!(kata.privileged_without_host_devices);
    assert_eq!(kata.runtime_config_path.as_deref(), Some(Path::new("/etc/kata.toml")));
    assert_eq!(kata.min_memory(), 64 << 20);
    assert_eq!(c.runtimes["mine"].runtime_path, place.text("bin/runc"));
    assert_eq!(c.runtimes["mine"].runtime_root.as_deref(), Some(Path::new("/run/mine")));
}

#[test]
fn variables_have_their_irregular_names() {
    let mut place = Place::new();
    for (name, value) in [
        ("PULL_IN_A_CGROUP", "pod"),
        ("CONTAINER_ENABLE_TLS", "true"),
        ("CONTAINER_TLS_CERT", "/c"),
        ("CONTAINER_TLS_KEY", "/k"),
        ("STREAM_IDLE_TIMEOUT", "1h"),
        ("CONTAINER_INJECT_GOMAXPROCS", "4"),
        ("CONTAINER_STOP_TIMEOUT", "60"),
        ("CONTAINER_TIME_ZONE", "UTC"),
        ("CONTAINER_INCLUDED_POD_METRCIS", "cpu"),
        ("CONTAINER_CNI_PLUGIN_DIR", "/a,/b"),
        ("CONTAINER_RUNTIMES", "a:runc:/run/a,b:crun:/run/b"),
        ("DISABLE_HOSTPORT_MAPPING", "1"),
        ("CONTAINER_ENABLE_NRI", "false"),
    ] {
        place.set(name, value);
    }
    let c = place.load_only(&["-c", "", "-d", ""]).unwrap().config;
    assert_eq!(c.separate_pull_cgroup, "pod");
    assert!(c.stream_enable_tls && c.disable_hostport_mapping);
    assert_eq!(c.stream_idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((c.min_injected_gomaxprocs, c.ctr_stop_timeout), (4, 60));
    assert_eq!(c.timezone, "UTC");
    assert_eq!(c.included_pod_metrics, ["cpu"]);
    assert_eq!(c.plugin_dirs.len(), 2);
    assert_eq!(c.runtimes.len(), 4);
    assert!(c.enable_nri, "this flag has no variable");
}

#[test]
fn flags_are_a_sound_command() {
    let mut command = clap::Command::new("criod").args(criod_config::flags());
    command.clone().debug_assert();
    let long = command.render_long_help().to_string();
    assert!(long.contains("--cgroup-manager <VALUE>"), "{long}");
    let unknown = command.try_get_matches_from(["criod", "--cgroup-managr", "x"]);
    assert!(unknown.is_err());
}

#[test]
fn the_machine_decides_on_defaults() {
    let place = Place::new();
    let mut machine = criod_config::Machine { systemd: false, path: place.text("bin") };
    let c = machine.defaults();
    assert_eq!(c.cgroup_manager, CgroupManager::Cgroupfs);
    assert_eq!(c.default_runtime, "crun");
    std::fs::remove_file(place.path("bin/crun")).unwrap();
    machine.systemd = true;
    let c = machine.defaults();
    assert_eq!(c.cgroup_manager, CgroupManager::Systemd);
    assert_eq!(c.default_runtime, "runc");
    assert_eq!(c.runtimes.len(), 1);
    machine.path = "relative:/nowhere".to_owned();
    assert!(machine.defaults().runtimes.is_empty());
}
