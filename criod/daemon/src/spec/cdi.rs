//! Devices of vendors, by the Container Device Interface: which ones a request asks for, and what
//! they change in its spec.
//!
//! ```text
//!  CDI_devices, annotations cdi.k8s.io/* ─► names ─► cdi::Registry ─► Edits ─► SpecInput
//!                                                       (nodes of the host fill in what is not said)
//! ```

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use api_cri::v1::ContainerConfig;
use nix::sys::stat::{major, minor};
use oci::{DeviceInput, DeviceKind, MountInput, MountKind, Ns, SpecInput};
use tracing::warn;

use super::Request;
use crate::error::{Error, Result};

/// What a device node has that neither its vendor nor the node says a mode of.
const MODE: u32 = 0o666;

/// The devices that a container asks for, each once: those of the field first.
fn names(config: &ContainerConfig) -> Result<Vec<String>> {
    let annotated = cdi::annotated(&config.annotations)
        .map_err(|e| Error::invalid(format!("annotations: {e}")))?;
    let mut names: Vec<String> = Vec::new();
    for name in config.cdi_devices.iter().map(|d| &d.name).chain(&annotated) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    Ok(names)
}

impl Request<'_> {
    /// Makes the changes of all CDI devices. The process must be there already.
    pub(super) fn add_cdi_devices(&self, input: &mut SpecInput) -> Result<()> {
        let names = names(self.config)?;
        if names.is_empty() {
            return Ok(());
        }
        let specs = self.cdi.current(|problems| {
            for problem in problems {
                warn!("CDI: not used: {problem}");
            }
        });
        let edits = specs.edits(&names).map_err(|e| match e {
            cdi::Error::Name { .. } | cdi::Error::Many { .. } => {
                Error::invalid(format!("CDI_devices: {e}"))
            }
            e => Error::precondition(e.to_string()),
        })?;
        let of = |e: Failed| match e {
            Failed::Here(why) => {
                Error::precondition(format!("CDI devices {}: {why}", names.join(", ")))
            }
            Failed::Never(why) => {
                Error::unsupported(format!("CDI devices {}: {why}", names.join(", ")))
            }
        };
        self.check_runtime(&edits).map_err(of)?;
        apply(&edits, input).map_err(of)
    }

    /// Older runtimes skip over fields that they do not know.
    fn check_runtime(&self, edits: &cdi::Edits) -> Result<(), Failed> {
        let features = &self.features;
        let rdt = edits.intel_rdt.as_ref();
        for (asked, field, known) in [
            (!edits.net_devices.is_empty(), "netDevices", features.net_devices),
            (rdt.is_some_and(|r| r.schemata.is_some()), "schemata", features.rdt_schemata),
            (rdt.is_some_and(|r| r.enable_monitoring), "enableMonitoring", features.rdt_monitoring),
        ] {
            if asked && !known {
                let program = &self.handler.runtime_path;
                return Err(Failed::Never(format!("{program} does not know {field}")));
            }
        }
        Ok(())
    }
}

/// Why edits cannot be made.
#[derive(Debug)]
enum Failed {
    /// Something of the node is missing.
    Here(String),
    /// It is nothing that the runtime does.
    Never(String),
}

fn apply(edits: &cdi::Edits, input: &mut SpecInput) -> Result<(), Failed> {
    let split = |line: &String| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    input.process.env.extend(edits.env.iter().filter_map(split));
    let owner = (input.process.user.uid, input.process.user.gid);
    for asked in &edits.device_nodes {
        let device = node(asked, owner)?;
        input.devices.retain(|d| d.path != device.path);
        input.devices.push(device);
    }
    for asked in &edits.mounts {
        let mount = mount(asked, &input.namespaces.user)?;
        input.mounts.push(mount);
    }
    add_hooks(&edits.hooks, input);
    if let Some(rdt) = &edits.intel_rdt {
        input.intel_rdt = Some(oci::IntelRdt {
            class: rdt.clos_id.clone(),
            l3_cache_schema: rdt.l3_cache_schema.clone(),
            mem_bw_schema: rdt.mem_bw_schema.clone(),
            schemata: rdt.schemata.clone().unwrap_or_default(),
            enable_monitoring: rdt.enable_monitoring,
        });
    }
    // The specification has no way to ask for root's group.
    let groups = edits.additional_gids.iter().filter(|gid| **gid != 0);
    input.process.user.additional_gids.extend(groups);
    for device in &edits.net_devices {
        input.net_devices.insert(device.host_interface_name.clone(), device.name.clone());
    }
    Ok(())
}

/// A node with everything that its vendor left to the host's.
fn node(asked: &cdi::DeviceNode, owner: (u32, u32)) -> Result<DeviceInput, Failed> {
    let host = Path::new(if asked.host_path.is_empty() { &asked.path } else { &asked.host_path });
    let kind = match asked.kind.as_str() {
        "b" => Some(DeviceKind::Block),
        "c" | "u" => Some(DeviceKind::Char),
        "p" => Some(DeviceKind::Fifo),
        _ => None,
    };
    let found = match fs::metadata(host) {
        Ok(found) => Some(found),
        Err(_) if kind == Some(DeviceKind::Fifo) || (kind.is_some() && asked.major != 0) => None,
        Err(e) => return Err(Failed::Here(format!("device node {}: {e}", host.display()))),
    };
    let there = found.as_ref().and_then(|m| match m.file_type() {
        t if t.is_char_device() => Some(DeviceKind::Char),
        t if t.is_block_device() => Some(DeviceKind::Block),
        t if t.is_fifo() => Some(DeviceKind::Fifo),
        _ => None,
    });
    let (kind, numbers) = match (kind, there, &found) {
        (Some(DeviceKind::Fifo), ..) => (DeviceKind::Fifo, (0, 0)),
        (Some(kind), ..) if asked.major != 0 => (kind, (asked.major, asked.minor)),
        (wanted, Some(kind), Some(meta)) if wanted.is_none_or(|wanted| wanted == kind) => {
            let number = |n: u64| i64::try_from(n).unwrap_or_default();
            let of_host = (number(major(meta.rdev())), number(minor(meta.rdev())));
            let own = asked.major != 0 && kind != DeviceKind::Fifo;
            (kind, if own { (asked.major, asked.minor) } else { of_host })
        }
        (wanted, there, _) => {
            let name = |kind: Option<DeviceKind>| match kind {
                Some(DeviceKind::Block) => "a block device",
                Some(DeviceKind::Fifo) => "a pipe",
                Some(_) => "a character device",
                None => "a device",
            };
            let what = if there.is_some() { name(there) } else { "no device" };
            let host = host.display();
            return Err(Failed::Here(format!(
                "device node {host} is {what}, not {}",
                name(wanted)
            )));
        }
    };
    let mode = found.filter(|_| there.is_some()).map_or(MODE, |m| m.mode() & 0o7777);
    Ok(DeviceInput {
        path: PathBuf::from(&asked.path),
        kind,
        major: numbers.0,
        minor: numbers.1,
        file_mode: asked.file_mode.unwrap_or(mode),
        uid: asked.uid.unwrap_or(owner.0),
        gid: asked.gid.unwrap_or(owner.1),
        access: match asked.permissions.as_str() {
            "" => "rwm",
            "none" => "",
            some => some,
        }
        .to_owned(),
    })
}

fn mount(asked: &cdi::Mount, user: &Ns) -> Result<MountInput, Failed> {
    let given = |option: &str| asked.options.iter().any(|o| o == option);
    let bound = given("bind") || given("rbind");
    let kind = match asked.kind.as_str() {
        "" | "none" | "bind" => MountKind::Bind,
        _ if bound => MountKind::Bind,
        "tmpfs" => MountKind::Tmpfs,
        other => MountKind::Other(other.to_owned()),
    };
    let mut options = asked.options.clone();
    if kind == MountKind::Bind {
        let source = &asked.host_path;
        if let Err(e) = fs::symlink_metadata(source) {
            return Err(Failed::Here(format!("mount source {source}: {e}")));
        }
        // Files of the host belong to the same users inside.
        if *user != Ns::Host && !given("idmap") && !given("ridmap") {
            options.push(if given("bind") { "idmap" } else { "ridmap" }.to_owned());
        }
    }
    Ok(MountInput {
        destination: asked.container_path.clone(),
        source: asked.host_path.clone(),
        kind,
        options,
        ..MountInput::default()
    })
}

fn add_hooks(hooks: &[cdi::Hook], input: &mut SpecInput) {
    for cdi::Hook { hook_name, path, args, env, timeout } in hooks {
        let mut hook = serde_json::json!({ "path": path });
        if !args.is_empty() {
            hook["args"] = args.as_slice().into();
        }
        if !env.is_empty() {
            hook["env"] = env.as_slice().into();
        }
        if let Some(timeout) = timeout {
            hook["timeout"] = (*timeout).into();
        }
        let all = input.hooks.get_or_insert_with(|| serde_json::json!({}));
        match &mut all[hook_name] {
            serde_json::Value::Array(some) => some.push(hook),
            none => *none = serde_json::Value::Array(vec![hook]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::{ProcessInput, UserInput};

    fn asked(path: &str) -> cdi::DeviceNode {
        cdi::DeviceNode { path: path.into(), ..Default::default() }
    }

    #[test]
    fn the_field_comes_before_annotations_and_all_come_once() {
        let config = ContainerConfig {
            cdi_devices: ["v/c=2", "v/c=2"]
                .map(|name| api_cri::v1::CdiDevice { name: name.into() })
                .to_vec(),
            annotations: [("cdi.k8s.io/x".into(), "v/c=1,v/c=2".into())].into(),
            ..Default::default()
        };
        assert_eq!(names(&config).unwrap(), ["v/c=2", "v/c=1"]);
        let bad = [("cdi.k8s.io/x".to_owned(), "gpu0".to_owned())].into();
        let error = names(&ContainerConfig { annotations: bad, ..config }).unwrap_err();
        assert!(error.chain().contains("\"gpu0\""), "{}", error.chain());
    }

    #[test]
    fn a_node_has_what_the_host_has_where_nothing_is_said() {
        let null = node(&asked("/dev/null"), (7, 8)).unwrap();
        assert_eq!((null.kind, null.major, null.minor), (DeviceKind::Char, 1, 3));
        assert_eq!((null.uid, null.gid, null.access.as_str()), (7, 8, "rwm"));
        let elsewhere = cdi::DeviceNode {
            host_path: "/dev/null".into(),
            permissions: "none".into(),
            uid: Some(0),
            file_mode: Some(0o600),
            ..asked("/dev/x")
        };
        let elsewhere = node(&elsewhere, (7, 8)).unwrap();
        assert_eq!((elsewhere.minor, elsewhere.uid, elsewhere.gid), (3, 0, 8));
        assert_eq!((elsewhere.file_mode, elsewhere.access.as_str()), (0o600, ""));
    }

    #[test]
    fn a_node_may_be_fully_described() {
        let full = cdi::DeviceNode { kind: "b".into(), major: 7, minor: 9, ..asked("/dev/none") };
        let got = node(&full, (0, 0)).unwrap();
        assert_eq!((got.kind, got.major, got.minor), (DeviceKind::Block, 7, 9));
        assert_eq!(got.file_mode, MODE);
        let pipe = cdi::DeviceNode { kind: "p".into(), ..asked("/dev/none") };
        assert_eq!(node(&pipe, (0, 0)).unwrap().kind, DeviceKind::Fifo);
        // The vendor's word holds, whatever is there.
        let other = cdi::DeviceNode { kind: "b".into(), major: 7, ..asked("/dev/null") };
        assert_eq!(node(&other, (0, 0)).unwrap().kind, DeviceKind::Block);
    }

    #[test]
    fn nodes_that_are_none() {
        let typed = |kind: &str, path: &str| cdi::DeviceNode { kind: kind.into(), ..asked(path) };
        for (node_of, said) in [
            (asked("/dev/none"), "/dev/none"),
            (typed("c", "/dev/none"), "/dev/none"),
            (asked("/dev"), "is no device"),
            (typed("b", "/dev/null"), "is a character device, not a block device"),
        ] {
            let Err(Failed::Here(why)) = node(&node_of, (0, 0)) else { panic!("{node_of:?}") };
            assert!(why.contains(said), "{why}");
        }
    }

    #[test]
    fn everything_is_applied() {
        let hook = |name: &str| cdi::Hook {
            hook_name: name.into(),
            path: "/h".into(),
            ..Default::default()
        };
        let edits = cdi::Edits {
            env: vec!["A=1=2".into()],
            device_nodes: vec![asked("/dev/null"), asked("/dev/null")],
            mounts: vec![
                cdi::Mount {
                    host_path: "/".into(),
                    container_path: "/host".into(),
                    options: vec!["ro".into(), "bind".into()],
                    ..Default::default()
                },
                cdi::Mount {
                    host_path: "tmpfs".into(),
                    container_path: "/t".into(),
                    kind: "tmpfs".into(),
                    ..Default::default()
                },
            ],
            hooks: vec![
                cdi::Hook {
                    args: vec!["h".into()],
                    env: vec!["B=c".into()],
                    timeout: Some(3),
                    ..hook("poststop")
                },
                hook("poststop"),
                hook("createContainer"),
            ],
            intel_rdt: Some(cdi::IntelRdt { clos_id: "gold".into(), ..Default::default() }),
            additional_gids: vec![0, 44],
            net_devices: vec![cdi::NetDevice {
                host_interface_name: "eth9".into(),
                name: "net0".into(),
            }],
        };
        let mut input = SpecInput {
            process: ProcessInput {
                args: vec!["sh".into()],
                user: UserInput { uid: 7, gid: 8, ..Default::default() },
                ..Default::default()
            },
            hooks: Some(serde_json::json!({"poststop": [{"path": "/first"}]})),
            ..Default::default()
        };
        apply(&edits, &mut input).unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&oci::build(&input).unwrap()).unwrap();
        assert_eq!(spec["process"]["env"], serde_json::json!(["A=1=2"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], serde_json::json!([44]));
        assert_eq!(spec["linux"]["devices"].as_array().unwrap().len(), 1);
        assert_eq!(
            spec["hooks"],
            serde_json::json!({
                "poststop": [
                    {"path": "/first"},
                    {"path": "/h", "args": ["h"], "env": ["B=c"], "timeout": 3},
                    {"path": "/h"},
                ],
                "createContainer": [{"path": "/h"}],
            })
        );
        let mounts = spec["mounts"].as_array().unwrap();
        let at = |place: &str| mounts.iter().find(|m| m["destination"] == place).unwrap();
        assert_eq!(at("/host")["options"], serde_json::json!(["bind", "rprivate", "ro"]));
        assert_eq!(at("/t")["type"], "tmpfs");
        assert_eq!(spec["linux"]["intelRdt"], serde_json::json!({"closID": "gold"}));
        assert_eq!(spec["linux"]["netDevices"], serde_json::json!({"eth9": {"name": "net0"}}));
        input.namespaces.network = Ns::Host;
        assert!(matches!(oci::build(&input), Err(oci::Error::NetDeviceOfHost { .. })));
    }

    #[test]
    fn mounts_in_a_user_namespace_are_mapped() {
        let bind = |option: &str| cdi::Mount {
            host_path: "/".into(),
            container_path: "/h".into(),
            options: vec![option.into()],
            ..Default::default()
        };
        let options = |asked: &cdi::Mount| mount(asked, &Ns::New).unwrap().options;
        assert_eq!(options(&bind("bind")), ["bind", "idmap"]);
        assert_eq!(options(&bind("rbind")), ["rbind", "ridmap"]);
        assert_eq!(options(&bind("idmap")), ["idmap"]);
        let gone = cdi::Mount { host_path: "/gone".into(), ..bind("bind") };
        assert!(matches!(mount(&gone, &Ns::Host), Err(Failed::Here(why)) if why.contains("/gone")));
    }
}
