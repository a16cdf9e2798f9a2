//! No text makes the reader panic, and what it takes it writes so that it reads the same.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use criod_config::{Config, Machine, from_text, to_toml};
use proptest::prelude::*;

fn read(text: &str) {
    let machine = Machine { systemd: true, path: String::new() };
    if let Ok(loaded) = from_text(&machine, Path::new("x"), text) {
        let written = to_toml(&loaded.config, &loaded.defaults);
        let again = from_text(&machine, Path::new("y"), &written);
        let again = again.unwrap_or_else(|e| panic!("{e}\n{written}"));
        assert_eq!(again.config, loaded.config, "{written}");
        loaded.warnings.iter().for_each(|w| assert!(!w.to_string().is_empty()));
    }
}

/// A key of the default file with its section.
fn key() -> impl Strategy<Value = String> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in to_toml(&Config::default(), &Config::default()).lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
            keys.push(format!("{section}.{key}"));
            keys.push(format!("crio.runtime.runtimes.x.{key}"));
        }
    }
    prop::sample::select(keys)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_value(key in key(), value in "[-+0-9a-zA-Z:=\"'\\[\\]{}/., µ_]{0,40}") {
        read(&format!("{key} = {value}"));
    }

    #[test]
    fn any_string(key in key(), value in any::<String>()) {
        let value = value.replace('\'', "");
        read(&format!("{key} = '''{value}'''"));
        read(&format!("{key} = ['''{value}''']"));
    }

    #[test]
    fn likely_strings(
        key in key(),
        value in "(nofile|core|net\\.a|/dev/a|/|CAP_|)[=:]?[-0-9]{0,22}(\\.[0-9]{0,30})?(ns|us|ms|s|m|h|MiB|TB|)[:a-z0-9]{0,8}"
    ) {
        read(&format!("{key} = \"{value}\""));
        read(&format!("{key} = [\"{value}\"]"));
    }

    #[test]
    fn any_names(names in prop::collection::vec(any::<String>(), 1..6)) {
        let quoted: Vec<_> = names
            .iter()
            .map(|n| format!("'{}'", n.replace(['\'', '\n', '\r'], "")))
            .collect();
        read(&format!("{} = 1", quoted.join(".")));
        read(&format!("crio.runtime.runtimes.{} = {{}}", quoted[0]));
    }
}

#[test]
fn depth_and_length_have_an_end() {
    read(&format!("a = {}", "[".repeat(100_000)));
    read(&format!("a{} = 1", ".a".repeat(50_000)));
    read(&format!("{} = 1", "a".repeat(1_000_000)));
    read(&format!("[crio]\nroot = \"/{}\"", "a".repeat(1_000_000)));
    read(&"x = 1\n".repeat(2));
    read(&"\n".repeat(1_000_000));
}
