//! `criod config`: the same in, the same out, and conf/crio.conf is what it prints.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::Place;
use criod_config::{Machine, default_toml, from_text, to_toml};

fn machine(place: &Place, systemd: bool) -> Machine {
    Machine { systemd, path: place.text("bin") }
}

/// Every key of the default file, as (section, key), handlers' and workloads' left out.
fn keys() -> Vec<(String, String)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in default_toml().lines() {
        let bare = line.trim_start_matches("# ");
        if bare.starts_with('[') && bare.ends_with(']') && !bare.contains(' ') {
            section = bare.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = bare.split_once(" = ")
            && line.starts_with("# ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            keys.push((section.clone(), key.to_owned()));
        }
    }
    keys
}

#[test]
fn the_installed_file_is_the_default_output() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conf/crio.conf");
    if std::env::var_os("CRIOD_WRITE_CONF").is_some() {
        std::fs::write(&path, default_toml()).unwrap();
    }
    let installed = std::fs::read_to_string(&path).unwrap();
    assert_eq!(installed, default_toml(), "write it with CRIOD_WRITE_CONF=1");
}

#[test]
fn the_default_output_changes_nothing_and_describes_all() {
    let place = Place::new();
    for systemd in [true, false] {
        let machine = machine(&place, systemd);
        let loaded = from_text(&machine, Path::new("x"), &default_toml()).unwrap();
        assert_eq!(loaded.config, machine.defaults());
        assert!(loaded.warnings.is_empty() && loaded.sources.keys.is_empty());
    }
    assert!(keys().len() > 150, "{}", keys().len());
    for line in default_toml().lines() {
        let comment = line.is_empty() || line.starts_with('#') || line.starts_with('[');
        assert!(comment && line.len() <= 100, "{line}");
    }
}

/// For each key a value that differs from its default is found by trying; then all together must
/// survive being written and read.
#[test]
fn every_key_survives_the_round_trip() {
    let place = Place::new();
    let machine = machine(&place, false);
    let defaults = machine.defaults();
    let candidates = [
        "true",
        "false",
        "\"/a b/\\\"c\\\\d/é\"",
        "[\"/x\", \"/y\"]",
        "[\"nofile=5:-1\"]",
        "[\"net.core.somaxconn=9\"]",
        "[\"A=b,c=d\"]",
        "[\"cpu\", \"diskIO\"]",
        "[\"CAP_NET_RAW\"]",
        "[\"/dev/kvm:/dev/x:rw\"]",
        "\"1h2m3.000000004s\"",
        "\"12345KiB\"",
        "\"runc\"",
        "12345",
        "\"12345\"",
        "\"cgroupfs\"",
        "\"systemd\"",
        "\"bind\"",
        "\"disabled\"",
        "\"trace\"",
        "\"json\"",
        "\"VersionTLS13\"",
        "\"none\"",
        "\"pod\"",
        "\"vm\"",
        "{ \"a.b/c\" = \"d\" }",
        "{ cpushares = 5, cpuset = \"0-3\" }",
    ];
    let mut all = String::new();
    let mut section = String::new();
    for (of, key) in keys() {
        if key == "stream_enable_tls" {
            continue; // It needs two other keys; below.
        }
        if key == "uid_mappings" || key == "gid_mappings" {
            continue; // Anything but the default is refused.
        }
        let found = candidates.iter().find(|value| {
            let text = format!("[{of}]\n{key} = {value}\n");
            let Ok(loaded) = from_text(&machine, Path::new("x"), &text) else { return false };
            let written = to_toml(&loaded.config, &defaults);
            let again = from_text(&machine, Path::new("y"), &written);
            let again = again.unwrap_or_else(|e| panic!("{e}\n{written}"));
            assert_eq!(again.config, loaded.config, "{text}\n{written}");
            let unset = from_text(&machine, Path::new("x"), &format!("[{of}]\n")).unwrap();
            loaded.config != unset.config
        });
        let found = found.unwrap_or_else(|| panic!("no candidate for {of}.{key}"));
        if section != of {
            all.push_str(&format!("[{of}]\n"));
            section = of;
        }
        all.push_str(&format!("{key} = {found}\n"));
    }
    all.push_str("[crio.runtime.runtimes.\"odd . name\"]\nruntime_path = \"/bin/x\"\n");
    all = all.replace("[crio.api]", "[crio.api]\nstream_enable_tls = true");
    all = all.replacen("runroot = \"/", "runroot = \"/other/", 1);
    let loaded = from_text(&machine, Path::new("all"), &all).unwrap();
    let written = to_toml(&loaded.config, &defaults);
    let again = from_text(&machine, Path::new("again"), &written).unwrap();
    assert_eq!(again.config, loaded.config, "{written}");
    assert_eq!(to_toml(&again.config, &defaults), written, "the same bytes each time");
}

#[test]
fn what_is_not_the_default_is_no_comment_and_says_the_default() {
    let place = Place::new();
    let text = "[crio]\nroot = \"/data\"\n[crio.network]\nplugin_dirs = [\"/a\", \"/b\"]\n\
                [crio.runtime.runtimes.mine]\nruntime_path = \"/x\"\n";
    let machine = machine(&place, true);
    let loaded = from_text(&machine, Path::new("x"), text).unwrap();
    let written = to_toml(&loaded.config, &loaded.defaults);
    for part in [
        "\n# Where images, layers and the records of pods and containers are kept.\n\
         # Default: \"/var/lib/criod\"\nroot = \"/data\"\n",
        "# Default: [\"/opt/cni/bin/\"]\nplugin_dirs = [\n    \"/a\",\n    \"/b\",\n]\n",
        "\n[crio.runtime.runtimes.mine]\nruntime_path = \"/x\"\n",
        "# runroot = \"/run/criod\"\n",
        "# cgroup_manager = \"systemd\"\n",
    ] {
        assert!(written.contains(part), "{part}\nis not in\n{written}");
    }
}

#[test]
fn what_this_machine_lacks_is_spelled_out() {
    let place = Place::new();
    let here = machine(&place, false);
    let written = to_toml(&here.defaults(), &here.defaults());
    assert!(written.contains("\ncgroup_manager = \"cgroupfs\"\n"), "{written}");
    assert!(written.contains("\ndefault_runtime = \"crun\"\n"), "{written}");
    let there = machine(&place, true);
    let read = from_text(&there, Path::new("x"), &written).unwrap().config;
    assert_eq!(read, here.defaults());
}
