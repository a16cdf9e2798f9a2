//! Which version of the specification a file needs, by the fields that it uses.

use crate::spec::{Edits, File};

/// A version of the specification that files may be written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u8, u8);

/// All that were released, the first two of them never with a file that anybody reads.
const RELEASED: [Version; 8] = [
    Version(0, 3),
    Version(0, 4),
    Version(0, 5),
    Version(0, 6),
    Version(0, 7),
    Version(0, 8),
    Version(1, 0),
    Version(1, 1),
];

/// Checks the version that a file names: whether it was released, and knows what the file uses.
pub(crate) fn check(file: &File) -> Result<(), String> {
    let given = file.version.as_str();
    let number = given.strip_prefix('v').unwrap_or(given);
    let known = RELEASED.iter().find(|v| format!("{}.{}.0", v.0, v.1) == number);
    let Some(known) = known else {
        return Err(format!("cdiVersion {given:?} is none of 0.3.0 to 1.1.0"));
    };
    let (least, why) = least(file);
    if *known < least {
        return Err(format!(
            "cdiVersion {given:?} does not know {why}, which came with {}.{}.0",
            least.0, least.1
        ));
    }
    Ok(())
}

/// The first version that knows all that is used, and what of it is the newest.
fn least(file: &File) -> (Version, &'static str) {
    let mut least = (Version(0, 3), "anything");
    let mut needs = |needed: bool, version: Version, what: &'static str| {
        if needed && version > least.0 {
            least = (version, what);
        }
    };
    let class = file.kind.split_once('/').map_or("", |(_, class)| class);
    needs(!file.annotations.is_empty(), Version(0, 6), "annotations");
    needs(class.contains('.'), Version(0, 6), "a dot in the class");
    for device in &file.devices {
        needs(!device.annotations.is_empty(), Version(0, 6), "annotations");
        let digit = device.name.starts_with(|c: char| c.is_ascii_digit());
        needs(digit, Version(0, 5), "a device's name that begins with a digit");
    }
    let of_devices = file.devices.iter().map(|d| &d.edits);
    for Edits { mounts, device_nodes, intel_rdt, additional_gids, net_devices, .. } in
        of_devices.chain([&file.edits])
    {
        needs(mounts.iter().any(|m| !m.kind.is_empty()), Version(0, 4), "a mount's type");
        let host_path = device_nodes.iter().any(|d| !d.host_path.is_empty());
        needs(host_path, Version(0, 5), "a device node's hostPath");
        needs(intel_rdt.is_some(), Version(0, 7), "intelRdt");
        needs(!additional_gids.is_empty(), Version(0, 7), "additionalGids");
        let newer = |r: &crate::IntelRdt| r.schemata.is_some() || r.enable_monitoring;
        needs(
            intel_rdt.as_ref().is_some_and(newer),
            Version(1, 1),
            "schemata and enableMonitoring",
        );
        needs(!net_devices.is_empty(), Version(1, 1), "netDevices");
    }
    least
}

#[cfg(test)]
mod tests {
    use crate::spec::File;

    fn check(version: &str, kind: &str, rest: &str) -> Result<(), String> {
        let text = format!("cdiVersion: {version}\nkind: {kind}\n{rest}");
        let node = crate::yaml::read(&text).unwrap();
        super::check(&node.value_as::<File>().unwrap())
    }

    #[test]
    fn each_field_needs_the_version_that_it_came_with() {
        let device = |edits: &str| format!("devices: [{{name: d, containerEdits: {edits}}}]");
        let top = |edits: &str| format!("containerEdits: {edits}");
        for (since, kind, rest) in [
            ("0.3.0", "v/c", device("{env: [A=b]}")),
            ("0.4.0", "v/c", device("{mounts: [{hostPath: /a, containerPath: /b, type: bind}]}")),
            ("0.5.0", "v/c", top("{deviceNodes: [{path: /a, hostPath: /b}]}")),
            ("0.5.0", "v/c", "devices: [{name: 0}]".into()),
            ("0.6.0", "v/c", "annotations: {a: b}".into()),
            ("0.6.0", "v/c", "devices: [{name: d, annotations: {a: b}}]".into()),
            ("0.6.0", "v/c.d", String::new()),
            ("0.7.0", "v/c", top("{additionalGids: [1]}")),
            ("0.7.0", "v/c", device("{intelRdt: {closID: a}}")),
            ("1.1.0", "v/c", device("{intelRdt: {schemata: [a]}}")),
            ("1.1.0", "v/c", top("{intelRdt: {enableMonitoring: true}}")),
            ("1.1.0", "v/c", device("{netDevices: [{hostInterfaceName: a, name: b}]}")),
        ] {
            let all = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
            for version in all {
                // None of them has more than one digit, so that text compares like versions.
                let want = version >= since;
                let got = check(version, kind, &rest);
                assert_eq!(got.is_ok(), want, "{version} {rest}: {got:?}");
            }
        }
    }

    #[test]
    fn versions_that_are_none() {
        check("v0.3.0", "v/c", "").unwrap();
        for version in ["0.1.0", "0.2.0", "0.3.1", "0.3", "1.2.0", "2.0.0", "vv1.0.0", "\"\"", "x"]
        {
            assert!(check(version, "v/c", "").unwrap_err().contains("cdiVersion"), "{version}");
        }
    }
}
