//! What every file looks like.
//!
//! - A Rust file begins with `//!`: what it is for.
//! - Source files have at most [`MOST_LINES`] lines.
//! - `unsafe` is allowed nowhere but in one crate.
//! - No file names a package registry's host, nor a path of one machine: the project is built with
//!   whatever registries a machine is set up for, and wherever it lies.

use crate::Finding;
use crate::manifest::UNSAFE_FOLDER;

/// How long a source file may be.
pub const MOST_LINES: usize = 800;

/// Hosts of package registries, in pieces: this file is held to the rule, too.
const HOSTS: [&[&str]; 12] = [
    &["deb", "debian", "org"],
    &["security", "debian", "org"],
    &["index", "crates", "io"],
    &["static", "crates", "io"],
    &["static", "rust-lang", "org"],
    &["proxy", "golang", "org"],
    &["sum", "golang", "org"],
    &["registry", "npmjs", "org"],
    &["pypi", "org"],
    &["files", "pythonhosted", "org"],
    &["repo1", "maven", "org"],
    &["repo", "maven", "apache", "org"],
];

/// Folders at the root of a machine that is not everybody's, in pieces likewise.
const FOLDERS: [&[&str]; 4] =
    [&["", "work", ""], &["", "farm", ""], &["", "tmp", "peers"], &["", "tmp", "t-"]];

/// What is wrong with a file of the project. `path` is below the project's root.
pub fn check(path: &str, text: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Locked dependencies name where they come from.
    if path == "Cargo.lock" || path.ends_with("/go.sum") {
        return findings;
    }
    let Ok(text) = std::str::from_utf8(text) else { return findings };
    let kind = path.rsplit('.').next().unwrap_or_default();
    let lines = text.lines().count();
    if ["rs", "go", "sh", "py"].contains(&kind) && lines > MOST_LINES {
        let what = format!("{lines} lines are more than {MOST_LINES}: part it");
        findings.push(Finding::new(path, what));
    }
    if kind == "rs" && !text.starts_with("//!") {
        findings.push(Finding::new(path, "must begin with `//!` and say what it is for"));
    }
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{path}:{}", number + 1);
        if kind == "rs" && !path.starts_with(&format!("{UNSAFE_FOLDER}/")) && allows_unsafe(line) {
            let what = format!("only {UNSAFE_FOLDER} may allow unsafe code");
            findings.push(Finding::new(place(), what));
        }
        for host in HOSTS.iter().map(|parts| parts.join(".")) {
            if has_word(line, &host) {
                let what = format!("names the registry {host}: leave it to the machine's clients");
                findings.push(Finding::new(place(), what));
            }
        }
        for folder in FOLDERS.iter().map(|parts| parts.join("/")) {
            if begins_path(line, &folder) {
                let what = format!("{folder} is a path of one machine");
                findings.push(Finding::new(place(), what));
            }
        }
    }
    findings
}

/// An attribute that allows, expects or warns of what the workspace denies.
fn allows_unsafe(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with('#') && line.contains(concat!("unsafe", "_code"))
}

/// `word` with no more of a host's name before it.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !ends_in_name(&line[..at]))
}

/// `folder` where a path begins, rather than within one.
fn begins_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !ends_in_name(&line[..at]) && !before.is_some_and(|c| "}])*/~$".contains(c))
    })
}

fn ends_in_name(text: &str) -> bool {
    text.chars().next_back().is_some_and(|c| c.is_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(path, text.as_bytes()).iter().map(Finding::to_string).collect()
    }

    const NOTHING: Vec<String> = Vec::new();

    #[test]
    fn a_rust_file_says_what_it_is_for() {
        assert_eq!(found("a/b.rs", "//! For.\nfn a() {}\n"), NOTHING);
        for text in ["", "\n//! Late.\n", "// Not to the reader.\n", "#![allow(x)]\n//! Late.\n"] {
            let what = "a/b.rs: must begin with `//!` and say what it is for";
            assert_eq!(found("a/b.rs", text), [what]);
        }
        assert_eq!(found("a/b.go", "package b\n"), NOTHING);
    }

    #[test]
    fn a_file_has_an_end() {
        let text = "//! Long.\n".repeat(MOST_LINES);
        assert_eq!(found("a/b.rs", &text), NOTHING);
        for path in ["a/b.rs", "a/b.go", "a/b.sh"] {
            let found = found(path, &format!("{text}\n"));
            assert_eq!(found, [format!("{path}: 801 lines are more than 800: part it")]);
        }
        assert_eq!(found("a/b.json", &"{}\n".repeat(2000)), NOTHING);
    }

    #[test]
    fn unsafe_lives_in_one_place() {
        for attribute in ["#![allow(unsafe_code)]", "    #[expect(unsafe_code, reason = \"\")]"] {
            let text = format!("//! For.\n{attribute}\n");
            let what = "only pkg/sys may allow unsafe code";
            assert_eq!(
                found("pkg/cni/src/lib.rs", &text),
                [format!("pkg/cni/src/lib.rs:2: {what}")]
            );
            assert_eq!(found("pkg/system/src/lib.rs", &text).len(), 1);
            assert_eq!(found("pkg/sys/src/lib.rs", &text), NOTHING);
        }
        assert_eq!(found("a/b.rs", "//! The lint unsafe_code is on.\n"), NOTHING);
    }

    #[test]
    fn hosts_of_registries() {
        for host in HOSTS.iter().map(|parts| parts.join(".")) {
            for text in [host.clone(), format!("see https://{host}/x"), format!("a\n({host})")] {
                let found = found("README.md", &text);
                assert_eq!(found.len(), 1, "{text}: {found:?}");
                assert!(found[0].contains(&host));
                assert_eq!(check("Cargo.lock", text.as_bytes()), []);
            }
            assert_eq!(found("README.md", &format!("my{host}")), NOTHING);
        }
    }

    #[test]
    fn paths_of_one_machine() {
        for folder in FOLDERS.iter().map(|parts| parts.join("/")) {
            for text in [format!("cd {folder}x"), format!("\"{folder}x\""), format!("a={folder}x")]
            {
                let found = found("a/run", &text);
                assert_eq!(found.len(), 1, "{text}: {found:?}");
                assert!(found[0].starts_with("a/run:1: "));
            }
            for within in ["/var/lib", "{dir}", "$(dir)", "..", "*"] {
                assert_eq!(found("a/run", &format!("{within}{folder}x")), NOTHING, "{within}");
            }
        }
    }

    #[test]
    fn what_is_no_text_is_left_alone() {
        let mut bytes = HOSTS[0].join(".").into_bytes();
        bytes.push(0xff);
        assert_eq!(check("a.bin", &bytes), []);
    }
}
