//! Which room may use which.
//!
//! ```text
//!   tests ──► anything                nobody ──► tests, but to tests/images in tests of its own
//!   criod ──► criod, api, pkg
//!   monitor ──► api-monitor, sys, crilog; criod-stream, which faces the network, also stream
//!   api ──► (nothing of ours)
//!   pkg ──► pkg                       never in a circle: cargo sees to that
//! ```
//! What a crate uses in its own tests is held to the same, but a monitor's tests may use all of
//! pkg.

use crate::Finding;
use crate::workspace::{Member, Use, Workspace};

/// The crates of ours that a monitor may be built from.
const MONITOR: [&str; 3] = ["api-monitor", "crilog", "sys"];

/// The one program of the monitors' room that lives as long as a connection, and what only it may
/// be built from.
const STREAM: (&str, [&str; 3]) = ("criod-stream", ["stream", "rustls", "serde_json"]);

/// What a monitor must never link, with why.
const TOO_LARGE: [(&str, &str); 9] = [
    ("tokio", "an asynchronous runtime is larger than the whole monitor"),
    ("tonic", "the monitor speaks ttrpc"),
    ("ttrpc", "the monitor has wire code of its own, which is smaller"),
    ("prost", "one implementation of protobuf is enough"),
    ("hyper", "the monitor touches no network"),
    ("rustls", "the monitor touches no network"),
    ("serde_json", "the monitor reads messages, and no documents"),
    ("clap", "nobody types a monitor's arguments"),
    ("tracing", "what a monitor has to say it says to criod"),
];

/// Arrows that point the wrong way.
pub fn check(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for member in &workspace.members {
        if !["api", "criod", "monitor", "pkg", "tests"].contains(&member.room()) {
            findings.push(Finding::new(&member.folder, "this is no room of the house"));
        }
        for (name, kind) in &member.uses {
            let Some(used) = workspace.get(name) else {
                findings.push(Finding::new(&member.folder, format!("{name} is not in it")));
                continue;
            };
            if !allowed(member, used, *kind) {
                let what = format!("must not use {} ({})", used.name, used.folder);
                findings.push(Finding::new(&member.folder, what));
            }
        }
    }
    findings
}

fn allowed(member: &Member, used: &Member, kind: Use) -> bool {
    match (member.room(), used.room()) {
        ("tests", _) => true,
        (_, "tests") => used.folder == "tests/images" && kind == Use::Dev,
        ("criod", "criod" | "api" | "pkg") => true,
        ("monitor", "pkg") if kind == Use::Dev => true,
        ("monitor", "api" | "pkg") => {
            MONITOR.contains(&used.name.as_str()) || streams_own(&member.name, &used.name)
        }
        ("pkg", "pkg") => true,
        _ => false,
    }
}

fn streams_own(member: &str, used: &str) -> bool {
    member == STREAM.0 && STREAM.1.contains(&used)
}

/// What is linked into `program` and must not be, from the output of `cargo tree --prefix none`.
pub fn closure(program: &str, tree: &str) -> Vec<Finding> {
    let linked = |name: &str| tree.lines().any(|l| l.split(' ').next() == Some(name));
    if !linked(program) {
        return vec![Finding::new(program, "cargo tree does not show it")];
    }
    let too_large =
        TOO_LARGE.iter().filter(|(name, _)| linked(name) && !streams_own(program, name));
    too_large
        .map(|(name, why)| Finding::new(program, format!("must not link {name}: {why}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(folder: &str, uses: &[(&str, Use)]) -> Member {
        Member {
            name: folder.rsplit('/').next().unwrap().into(),
            folder: folder.into(),
            uses: uses.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect(),
        }
    }

    /// The house as it should be, with one more member.
    fn house(guest: Member) -> Vec<String> {
        let members = vec![
            member("pkg/sys", &[]),
            member("pkg/crilog", &[]),
            member("pkg/cni", &[("sys", Use::Normal)]),
            member("api/api-cri", &[]),
            member("api/api-monitor", &[]),
            member("monitor/criod-monitor", &[("sys", Use::Normal), ("api-monitor", Use::Normal)]),
            member("criod/client", &[("api-cri", Use::Normal)]),
            member("criod/daemon", &[("client", Use::Normal), ("cni", Use::Normal)]),
            member("tests/images", &[]),
            member("tests/e2e", &[("daemon", Use::Dev), ("criod-monitor", Use::Normal)]),
            guest,
        ];
        check(&Workspace { members }).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn only_what_faces_the_network_has_a_network_library() {
        let tree = |program: &str| format!("{program} v1\nstream v1\nrustls v0.23\n");
        assert!(closure("criod-stream", &tree("criod-stream")).is_empty());
        assert_eq!(closure("criod-monitor", &tree("criod-monitor")).len(), 1);
        assert!(streams_own("criod-stream", "stream") && !streams_own("criod-keeper", "stream"));
        assert!(!streams_own("criod-stream", "tokio"));
    }

    #[test]
    fn arrows_that_point_the_right_way() {
        for guest in [
            member("pkg/new", &[("cni", Use::Normal), ("sys", Use::Build)]),
            member("monitor/new", &[("crilog", Use::Normal), ("cni", Use::Dev)]),
            member("criod/new", &[("api-cri", Use::Normal), ("client", Use::Normal)]),
            member("pkg/new", &[("images", Use::Dev)]),
            member("tests/new", &[("api-monitor", Use::Normal), ("e2e", Use::Normal)]),
        ] {
            assert_eq!(house(guest), Vec::<String>::new());
        }
    }

    #[test]
    fn arrows_that_point_the_wrong_way() {
        for (room, used) in [
            ("pkg", "api-cri"),
            ("pkg", "api-monitor"),
            ("pkg", "daemon"),
            ("pkg", "criod-monitor"),
            ("pkg", "e2e"),
            ("api", "sys"),
            ("api", "daemon"),
            ("monitor", "api-cri"),
            ("monitor", "cni"),
            ("monitor", "daemon"),
            ("monitor", "criod-monitor"),
            ("criod", "criod-monitor"),
            ("criod", "e2e"),
            ("criod", "images"),
        ] {
            for kind in [Use::Normal, Use::Build, Use::Dev] {
                // Fine in tests.
                if ["cni", "images"].contains(&used) && kind == Use::Dev && room != "api" {
                    continue;
                }
                let found = house(member(&format!("{room}/new"), &[(used, kind)]));
                assert_eq!(found.len(), 1, "{room} uses {used} ({kind:?}): {found:?}");
                assert!(found[0].starts_with(&format!("{room}/new: must not use {used} ")));
            }
        }
    }

    #[test]
    fn a_room_of_its_own_is_none() {
        assert_eq!(house(member("lib/new", &[])), ["lib/new: this is no room of the house"]);
    }

    #[test]
    fn a_crate_from_outside_the_workspace_is_none_of_ours() {
        let found = house(member("criod/new", &[("elsewhere", Use::Normal)]));
        assert_eq!(found, ["criod/new: elsewhere is not in it"]);
    }

    #[test]
    fn what_a_monitor_links() {
        let small = "criod-monitor v0.1.0 (/src/monitor/criod-monitor)\nnix v0.31.3\n";
        assert_eq!(closure("criod-monitor", small), []);
        for (name, why) in TOO_LARGE {
            // Deep in the tree, and seen before.
            let tree = format!("{small}bytes v1.10.0\n{name} v1.2.3 (*)\n");
            let found = closure("criod-monitor", &tree);
            let what = format!("must not link {name}: {why}");
            assert_eq!(found, [Finding::new("criod-monitor", what)]);
        }
        // A name that only begins alike is another crate.
        assert_eq!(closure("criod-monitor", &format!("{small}tokio-like v1.0.0\n")), []);
        assert_eq!(closure("criod-monitor", "").len(), 1);
    }
}
