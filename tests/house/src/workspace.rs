//! What `cargo metadata` says of the workspace's own crates: where they lie and what of each other
//! they use.

use serde_json::Value;

/// How a crate uses another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// In what it builds to.
    Normal,
    /// In its build script.
    Build,
    /// In its tests only.
    Dev,
}

/// A crate of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its folder below the workspace's root, such as `pkg/sys`.
    pub folder: String,
    /// The crates of the workspace that it uses.
    pub uses: Vec<(String, Use)>,
}

impl Member {
    /// The first part of its folder.
    pub fn room(&self) -> &str {
        self.folder.split('/').next().unwrap_or_default()
    }
}

/// The workspace's own crates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workspace {
    /// In cargo's order.
    pub members: Vec<Member>,
}

impl Workspace {
    /// Reads the output of `cargo metadata --no-deps --format-version 1`. `None` if it is not that.
    pub fn parse(metadata: &Value) -> Option<Workspace> {
        let root = metadata["workspace_root"].as_str()?;
        let packages = metadata["packages"].as_array()?;
        let member = |package: &Value| {
            let folder = package["manifest_path"].as_str()?.strip_prefix(root)?;
            let folder = folder.strip_suffix("Cargo.toml")?.trim_matches('/').to_owned();
            let uses = package["dependencies"].as_array()?.iter().filter_map(|dependency| {
                // What comes from a registry has a source.
                let own = dependency["source"].is_null();
                let kind = match dependency["kind"].as_str() {
                    None => Use::Normal,
                    Some("build") => Use::Build,
                    Some(_) => Use::Dev,
                };
                own.then(|| Some((dependency["name"].as_str()?.to_owned(), kind)))?
            });
            Some(Member {
                name: package["name"].as_str()?.to_owned(),
                folder,
                uses: uses.collect(),
            })
        };
        Some(Workspace { members: packages.iter().map(member).collect::<Option<_>>()? })
    }

    /// The crate of this name.
    pub fn get(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_what_cargo_says() {
        let metadata = json!({
            "workspace_root": "/src",
            "packages": [{
                "name": "criod-monitor",
                "manifest_path": "/src/monitor/criod-monitor/Cargo.toml",
                "dependencies": [
                    {"name": "sys", "source": null, "kind": null},
                    {"name": "nix", "source": "registry", "kind": null},
                    {"name": "cni", "source": null, "kind": "dev"},
                    {"name": "api-cri", "source": null, "kind": "build"},
                ],
            }],
        });
        let member = Member {
            name: "criod-monitor".into(),
            folder: "monitor/criod-monitor".into(),
            uses: vec![
                ("sys".into(), Use::Normal),
                ("cni".into(), Use::Dev),
                ("api-cri".into(), Use::Build),
            ],
        };
        assert_eq!(member.room(), "monitor");
        assert_eq!(Workspace::parse(&metadata), Some(Workspace { members: vec![member] }));
    }

    #[test]
    fn anything_else_is_none() {
        assert_eq!(Workspace::parse(&json!({})), None);
        assert_eq!(Workspace::parse(&json!({"workspace_root": "/a", "packages": [{}]})), None);
    }
}
