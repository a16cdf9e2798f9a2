//! What every crate's Cargo.toml says: that lints and versions are the workspace's. A crate beside
//! it has no version.

use toml::{Table, Value};

use crate::Finding;

/// The one crate that may hold `unsafe`, and so has lints of its own.
pub const UNSAFE_FOLDER: &str = "pkg/sys";

/// What is wrong with the manifest of the crate in `folder`.
pub fn check(folder: &str, text: &str) -> Vec<Finding> {
    let place = format!("{folder}/Cargo.toml");
    let manifest = match text.parse::<Table>() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new(place, error.message())],
    };
    let mut findings = Vec::new();
    let inherits = |table: Option<&Value>| {
        table.and_then(|t| t.get("workspace")).and_then(Value::as_bool) == Some(true)
    };
    if folder == UNSAFE_FOLDER {
        let rust = manifest.get("lints").and_then(|l| l.get("clippy"));
        let level = rust.and_then(|r| r.get("undocumented_unsafe_blocks")).and_then(Value::as_str);
        if level != Some("deny") {
            findings.push(Finding::new(&place, "must deny undocumented_unsafe_blocks"));
        }
    } else if !inherits(manifest.get("lints")) {
        findings.push(Finding::new(&place, "must say `[lints] workspace = true`"));
    }
    let mut tables = vec![&manifest];
    let targets = manifest.get("target").and_then(Value::as_table);
    tables.extend(targets.into_iter().flatten().filter_map(|(_, t)| t.as_table()));
    for table in tables {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in table.get(kind).and_then(Value::as_table).into_iter().flatten() {
                if !inherits(Some(value)) && value.get("path").is_none() {
                    let what = format!("the version of {name} is the workspace's to say");
                    findings.push(Finding::new(&place, what));
                }
            }
        }
    }
    findings
}

/// What is wrong with the workspace's own manifest.
pub fn check_root(text: &str) -> Vec<Finding> {
    let manifest = match text.parse::<Table>() {
        Ok(manifest) => manifest,
        Err(error) => return vec![Finding::new("Cargo.toml", error.message())],
    };
    let lints = manifest.get("workspace").and_then(|w| w.get("lints"));
    let level = |group: &str, lint: &str| {
        lints.and_then(|l| l.get(group)).and_then(|g| g.get(lint)).and_then(Value::as_str)
    };
    let unsafe_code = level("rust", "unsafe_code");
    if unsafe_code == Some("deny") || unsafe_code == Some("forbid") {
        return Vec::new();
    }
    vec![Finding::new("Cargo.toml", "the workspace's lints must deny unsafe_code")]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"a\"\n[dependencies]\nnix = { workspace = true }\n\
                        toml.workspace = true\n[lints]\nworkspace = true\n";

    fn found(folder: &str, text: &str) -> Vec<String> {
        check(folder, text).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_good_one() {
        assert_eq!(found("pkg/a", GOOD), Vec::<String>::new());
        let path = format!("{GOOD}[dev-dependencies]\nb = {{ path = \"../b\" }}\n");
        assert_eq!(found("pkg/a", &path), Vec::<String>::new());
    }

    #[test]
    fn lints_of_its_own() {
        let text = GOOD.replace("workspace = true\n[lints]", "workspace = true\n[other]");
        assert_eq!(
            found("pkg/a", &text),
            ["pkg/a/Cargo.toml: must say `[lints] workspace = true`"]
        );
        let text = "[lints.rust]\nunsafe_code = \"allow\"\n";
        assert_eq!(found("criod/a", text).len(), 1);
        let sys = format!("{text}[lints.clippy]\nundocumented_unsafe_blocks = \"deny\"\n");
        assert_eq!(found(UNSAFE_FOLDER, &sys), Vec::<String>::new());
        assert_eq!(found("pkg/system", &sys).len(), 1);
        let what = "pkg/sys/Cargo.toml: must deny undocumented_unsafe_blocks";
        assert_eq!(found(UNSAFE_FOLDER, text), [what]);
    }

    #[test]
    fn versions_of_its_own() {
        for entry in [
            "[dev-dependencies]\nserde = \"1\"\n",
            "[build-dependencies]\nserde = { version = \"1\" }\n",
            "[target.'cfg(unix)'.dependencies]\nserde = { workspace = false }\n",
        ] {
            let found = found("pkg/a", &format!("{GOOD}{entry}"));
            assert_eq!(
                found,
                ["pkg/a/Cargo.toml: the version of serde is the workspace's to say"],
                "{entry}"
            );
        }
    }

    #[test]
    fn no_toml() {
        assert_eq!(found("pkg/a", "[").len(), 1);
        assert_eq!(check_root("[").len(), 1);
    }

    #[test]
    fn the_root_denies_unsafe() {
        let lints = |level: &str| format!("[workspace.lints.rust]\nunsafe_code = \"{level}\"\n");
        assert_eq!(check_root(&lints("deny")), []);
        assert_eq!(check_root(&lints("forbid")), []);
        assert_eq!(check_root(&lints("warn")).len(), 1);
        assert_eq!(check_root("[workspace]\n").len(), 1);
    }
}
