//! The exact words of errors and warnings.
#![allow(clippy::unwrap_used)]

mod common;

use common::Place;
use criod_config::Error;

/// The message for a crio.conf of this text.
fn error(text: &str) -> String {
    let place = Place::new();
    place.file("crio.conf", text);
    place.short(place.load(&[]).unwrap_err())
}

fn warnings(text: &str) -> Vec<String> {
    let place = Place::new();
    place.file("crio.conf", text);
    place.file("conf.d/empty", "");
    place.warnings(&place.load(&[]).unwrap())
}

#[test]
fn a_wrong_value_names_file_line_and_key() {
    for (text, message) in [
        (
            "[crio.runtime]\n\npids_limit = \"many\"\n",
            "crio.conf:3: crio.runtime.pids_limit: expected an integer, found the string \"many\"",
        ),
        (
            "[crio]\nroot = 7\n",
            "crio.conf:2: crio.root: expected an absolute path, found the integer 7",
        ),
        (
            "[crio]\r\nroot = \"relative\"\r\n",
            "crio.conf:2: crio.root: expected an absolute path, found \"relative\"",
        ),
        (
            "crio.runtime.selinux = \"true\"",
            "crio.conf:1: crio.runtime.selinux: expected true or false, found the string \"true\"",
        ),
        (
            "[crio.network]\nplugin_dirs = \"/opt\"\n",
            "crio.conf:2: crio.network.plugin_dirs: expected an array of strings, found the string \
             \"/opt\"",
        ),
        (
            "[crio.network]\nplugin_dirs = [\n  \"/opt\",\n  \"bin\",\n]\n",
            "crio.conf:4: crio.network.plugin_dirs: expected an absolute path, found \"bin\"",
        ),
        (
            "[crio.runtime]\ncgroup_manager = \"systemctl\"\n",
            "crio.conf:2: crio.runtime.cgroup_manager: expected one of \"systemd\", \"cgroupfs\", \
             found \"systemctl\"",
        ),
        (
            "[crio.runtime]\ndefault_ulimits = [\"nofile=2048:1024\"]\n",
            "crio.conf:2: crio.runtime.default_ulimits: the soft limit of \"nofile=2048:1024\" is \
             above the hard one",
        ),
        (
            "[crio.runtime]\ndefault_capabilities = [\"CHOWN\", \"CAP_FLY\"]\n",
            "crio.conf:2: crio.runtime.default_capabilities: \"CAP_FLY\" is not a capability",
        ),
        (
            "[crio.runtime]\ndefault_sysctls = [\"vm.swappiness=1\"]\n",
            "crio.conf:2: crio.runtime.default_sysctls: \"vm.swappiness\" is not a parameter of a \
             pod's namespaces",
        ),
        (
            "[crio.image]\npull_progress_timeout = \"10\"\n",
            "crio.conf:2: crio.image.pull_progress_timeout: expected a duration such as \"30s\" or \
             \"1m30s\", found \"10\"",
        ),
        (
            "[crio.api]\nstream_port = \"65536\"\n",
            "crio.conf:2: crio.api.stream_port: expected a port from 0 to 65535, found the string \
             \"65536\"",
        ),
        (
            "[crio.metrics]\nmetrics_port = 65536\n",
            "crio.conf:2: crio.metrics.metrics_port: expected an integer from 0 to 65535, found \
             the integer 65536",
        ),
        (
            "[crio.runtime.runtimes.runc]\ncontainer_min_memory = \"12 parsecs\"\n",
            "crio.conf:2: crio.runtime.runtimes.runc.container_min_memory: expected a size such as \
             \"12MiB\", found \"12 parsecs\"",
        ),
        (
            "[crio.runtime]\nruntimes = 3\n",
            "crio.conf:2: crio.runtime.runtimes: expected a table, found the integer 3",
        ),
        ("crio = []\n", "crio.conf:1: crio: expected a table, found an array"),
        (
            "[crio]\nrunroot = \"/var/lib/criod\"\n",
            "crio.conf:2: crio.runroot: expected a folder other than crio.root",
        ),
        (
            "[crio.api]\nstream_enable_tls = true\n",
            "crio.conf:2: crio.api.stream_enable_tls: TLS needs a certificate and its key in \
             stream_tls_cert and stream_tls_key",
        ),
        (
            "[crio.runtime]\nlog_size_max = 100\n",
            "crio.conf:2: crio.runtime.log_size_max: expected at least 8192, or -1 for no limit",
        ),
        (
            "[crio.runtime]\nuid_mappings = \"0:1000:1000\"\n",
            "crio.conf:2: crio.runtime.uid_mappings: expected none: each pod asks for a user \
             namespace of its own",
        ),
        (
            "[crio.runtime]\ndefault_runtime = \"youki\"\n",
            "crio.conf:2: crio.runtime.default_runtime: there is no handler \"youki\"",
        ),
        (
            "[crio.runtime]\ndefault_runtime = \"x\"\n[crio.runtime.runtimes.x]\n",
            "crio.conf:2: crio.runtime.default_runtime: the handler \"x\" cannot work: there is no \
             \"x\" in PATH",
        ),
        (
            "[crio.runtime.runtimes.crun]\nruntime_path = \"/nowhere/crun\"\n",
            "built-in default: crio.runtime.default_runtime: the handler \"crun\" cannot work: \
             \"/nowhere/crun\" is not a program",
        ),
        (
            "[crio.runtime.runtimes.crun]\ninherit_default_runtime = true\n",
            "built-in default: crio.runtime.default_runtime: the handler \"crun\" inherits from \
             itself",
        ),
        (
            "[crio.runtime.workloads.w]\nresources = { cpushare = 1 }\n",
            "crio.conf:2: crio.runtime.workloads.w.resources: there is no resource \"cpushare\"",
        ),
    ] {
        assert_eq!(error(text), message, "{text}");
    }
}

#[test]
fn what_is_no_toml_has_line_and_column() {
    assert_eq!(error("[crio]\nroot = \"/a\"\nroot = \"/b\"\n"), "crio.conf:3:1: duplicate key");
    let message = error("[crio]\n  root = \n");
    assert!(message.starts_with("crio.conf:2:"), "{message}");
    let place = Place::new();
    place.file("conf.d/x", "");
    std::fs::write(place.path("crio.conf"), b"[crio]\n# \xff\n").unwrap();
    let error = place.load(&[]).unwrap_err();
    assert_eq!(place.short(&error), "crio.conf:2: not valid UTF-8");
}

#[test]
fn flags_and_variables_are_named() {
    let mut place = Place::new();
    let base = ["-c", "", "-d", ""];
    let with = |args: &[&str]| {
        let all = [&base[..], args].concat();
        place.load_only(&all).unwrap_err().to_string()
    };
    assert_eq!(
        with(&["--stream-port", "x"]),
        "flag --stream-port: crio.api.stream_port: expected a port from 0 to 65535, found \"x\""
    );
    assert_eq!(
        with(&["--runtimes", "a:b"]),
        "flag --runtimes: crio.runtime.runtimes: expected name:path:root and up to four more \
         fields, found \"a:b\""
    );
    assert_eq!(
        with(&["--selinux=maybe"]),
        "flag --selinux: crio.runtime.selinux: expected true or false, found \"maybe\""
    );
    place.set("CONTAINER_PIDS_LIMIT", "1e3");
    assert_eq!(
        place.load_only(&base).unwrap_err().to_string(),
        "environment variable CONTAINER_PIDS_LIMIT: crio.runtime.pids_limit: expected an integer \
         from -9223372036854775808 to 9223372036854775807, found \"1e3\""
    );
}

#[test]
fn an_unknown_key_is_warned_about_with_the_nearest() {
    assert_eq!(
        warnings(
            "unrelated = 1\n\
             [crio.runtime]\n\
             cgroup_managr = \"systemd\"\n\
             listen = \"/x\"\n\
             quite_something_else = 1\n\
             [crio.imagge]\n\
             pause_image = \"\"\n\
             [crio.runtime.runtimes.runc]\n\
             runtime_paht = \"runc\"\n\
             [criod]\n\
             monitor_binray = 5\n\
             \"odd name\" = 1\n"
        ),
        [
            "unknown key `unrelated` in crio.conf:1",
            "unknown key `crio.runtime.cgroup_managr` in crio.conf:3; did you mean \
             `cgroup_manager`?",
            "unknown key `crio.runtime.listen` in crio.conf:4; did you mean `crio.api.listen`?",
            "unknown key `crio.runtime.quite_something_else` in crio.conf:5",
            "unknown key `crio.runtime.runtimes.runc.runtime_paht` in crio.conf:9; did you mean \
             `runtime_path`?",
            "unknown key `crio.imagge` in crio.conf:6; did you mean `image`?",
            "unknown key `criod.monitor_binray` in crio.conf:11; did you mean `monitor_binary`?",
            "unknown key `criod.\"odd name\"` in crio.conf:12",
        ]
    );
}

#[test]
fn a_key_without_effect_is_warned_about_once() {
    let place = Place::new();
    place.file("crio.conf", "[crio.runtime]\nlog_to_journald = true\nconmon = \"\"\n");
    place.file("conf.d/1", "[crio.runtime]\nlog_to_journald = true\n[crio.runtime.workloads.w]\n");
    place.file("conf.d/2", "[crio.runtime.runtimes.runc]\nmonitor_cgroup = \"pod\"\n");
    assert_eq!(
        place.warnings(&place.load(&["--profile", "--profile-port", "1"]).unwrap()),
        [
            "flag --profile has no effect",
            "flag --profile-port has no effect",
            "conf.d/1:2: key `crio.runtime.log_to_journald` is accepted but has no effect yet",
            "conf.d/2:2: key `crio.runtime.runtimes.runc.monitor_cgroup` is accepted but has no \
             effect yet",
            "conf.d/1:3: key `crio.runtime.workloads.w` is accepted but has no effect yet",
        ]
    );
}

#[test]
fn values_that_are_put_right_are_warned_about() {
    let place = Place::new();
    place.file(
        "crio.conf",
        "[crio.runtime]\nctr_stop_timeout = 5\n\
         [crio.runtime.runtimes.runc]\ncontainer_create_timeout = 1\n\
         [crio.image]\npull_progress_timeout = \"0s\"\n\
         [crio.network]\nplugin_dir = \"/old\"\n",
    );
    place.file("conf.d/x", "");
    let loaded = place.load(&[]).unwrap();
    assert_eq!(loaded.config.ctr_stop_timeout, 30);
    assert_eq!(loaded.config.runtimes["runc"].container_create_timeout, 30);
    let dirs: Vec<_> = loaded.config.plugin_dirs.iter().filter_map(|p| p.to_str()).collect();
    assert_eq!(dirs, ["/opt/cni/bin/", "/old"]);
    assert_eq!(
        place.warnings(&loaded),
        [
            "crio.conf:2: crio.runtime.ctr_stop_timeout: 5 is below 30, which is used",
            "crio.conf:4: crio.runtime.runtimes.runc.container_create_timeout: 1 is below 30, \
             which is used",
            "crio.conf:6: crio.image.pull_progress_timeout: without a limit one registry that \
             stalls holds up every pull of the node",
            "crio.conf:8: crio.network.plugin_dir: this is the older form of plugin_dirs, to which \
             it is added",
        ]
    );
}

#[test]
fn another_handler_that_cannot_work_is_left_out() {
    let place = Place::new();
    std::fs::write(place.path("bin/plain"), "").unwrap();
    place.file(
        "crio.conf",
        &format!(
            "[crio.runtime.runtimes.gone]\nruntime_path = \"/nowhere\"\n\
             [crio.runtime.runtimes.plain]\nruntime_path = \"{}\"\n\
             [crio.runtime.runtimes.vm]\nruntime_path = \"runc\"\nruntime_type = \"vm\"\n",
            place.text("bin/plain")
        ),
    );
    place.file("conf.d/x", "");
    let loaded = place.load(&[]).unwrap();
    assert_eq!(loaded.config.runtimes.len(), 2, "{:?}", loaded.config.runtimes);
    assert_eq!(
        place.warnings(&loaded),
        [
            "crio.conf:1: runtime handler `gone` is left out: \"/nowhere\" is not a program",
            "crio.conf:3: runtime handler `plain` is left out: \"bin/plain\" is not a program",
            "crio.conf:5: runtime handler `vm` is left out: expected a program \
             containerd-shim-NAME for the type vm, found \"bin/runc\"",
        ]
    );
}

#[test]
fn without_any_runtime_there_is_no_daemon_but_a_configuration_to_show() {
    let mut place = Place::new();
    place.set("PATH", "/nowhere");
    let args = ["-c", "", "-d", ""];
    assert!(matches!(place.load_only(&args), Err(Error::NoRuntime)));
    assert_eq!(place.read(&args).unwrap().config.default_runtime, "");
}
