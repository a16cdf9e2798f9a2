//! The `process` object: of a container's first process, and of each that `exec` adds.

use crate::canonical::canonical;
use crate::caps::{self, CapSet, ProcessCaps};
use crate::error::{Error, Result};
use crate::input::{ProcessInput, Rlimit, UserInput};
use oci_spec::runtime::{
    Box as ConsoleSize, BoxBuilder, Capability, ExecCPUAffinityBuilder, LinuxCapabilities,
    LinuxCapabilitiesBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User,
};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

/// The `process` object for `runtime exec --process`, as JSON.
///
/// # Errors
/// See [`Error`]: what is wrong with arguments, environment, user, capabilities or limits.
pub fn process(input: &ProcessInput) -> Result<Vec<u8>> {
    canonical(&assemble(input)?.0)
}

/// The object, and the capabilities it has (seccomp depends on them).
pub(crate) fn assemble(input: &ProcessInput) -> Result<(Process, ProcessCaps)> {
    if input.args.is_empty() {
        return Err(Error::NoCommand);
    }
    for arg in &input.args {
        no_nul("argument", arg)?;
    }
    let caps = caps::resolve(&input.capabilities, input.privileged, input.host.grantable)?;
    let mut process = Process::default();
    process
        .set_terminal(Some(input.terminal))
        .set_console_size(console_size(input)?)
        .set_user(user(&input.user))
        .set_args(Some(input.args.clone()))
        .set_env(Some(env(&input.env)?))
        .set_cwd(cwd(&input.cwd)?)
        .set_capabilities(Some(capabilities(caps)?))
        .set_rlimits(rlimits(&input.rlimits)?)
        .set_no_new_privileges(Some(input.no_new_privileges))
        .set_apparmor_profile(input.apparmor_profile.clone().filter(|p| !p.is_empty()))
        .set_oom_score_adj(oom_score(input.oom_score_adj)?)
        .set_selinux_label(input.selinux_label.clone().filter(|l| !l.is_empty()));
    if let Some(cpus) = input.exec_cpu_affinity.as_deref().filter(|c| !c.is_empty()) {
        let affinity = ExecCPUAffinityBuilder::default().initial(cpus.to_owned()).build()?;
        process.set_exec_cpu_affinity(Some(affinity));
    }
    Ok((process, caps))
}

fn console_size(input: &ProcessInput) -> Result<Option<ConsoleSize>> {
    match input.console_size {
        Some((width, height)) if input.terminal => {
            Ok(Some(BoxBuilder::default().width(width).height(height).build()?))
        }
        _ => Ok(None),
    }
}

fn user(input: &UserInput) -> User {
    let mut gids = input.additional_gids.clone();
    gids.sort_unstable();
    gids.dedup();
    let mut user = User::default();
    user.set_uid(input.uid)
        .set_gid(input.gid)
        .set_umask(input.umask)
        .set_additional_gids(Some(gids).filter(|g| !g.is_empty()))
        .set_username(None);
    user
}

/// `NAME=value` in order of first appearance, each with its last value.
fn env(vars: &[(String, String)]) -> Result<Vec<String>> {
    let mut place: HashMap<&str, usize> = HashMap::new();
    let mut lines: Vec<String> = Vec::with_capacity(vars.len());
    for (name, value) in vars {
        if name.is_empty() || name.contains('=') {
            return Err(Error::EnvName { name: name.clone() });
        }
        no_nul("environment variable", name)?;
        no_nul("value of an environment variable", value)?;
        let line = format!("{name}={value}");
        match place.get(name.as_str()) {
            Some(&at) => lines[at] = line,
            None => {
                place.insert(name, lines.len());
                lines.push(line);
            }
        }
    }
    Ok(lines)
}

fn cwd(path: &str) -> Result<PathBuf> {
    no_nul("working directory", path)?;
    match path {
        "" => Ok(PathBuf::from("/")),
        path if path.starts_with('/') => Ok(PathBuf::from(path)),
        path => Err(Error::NotAbsolute { what: "working directory", path: path.to_owned() }),
    }
}

fn oom_score(value: Option<i32>) -> Result<Option<i32>> {
    match value {
        Some(value) if !(-1000..=1000).contains(&value) => Err(Error::OomScore { value }),
        value => Ok(value),
    }
}

fn capabilities(sets: ProcessCaps) -> Result<LinuxCapabilities> {
    let set = |set: CapSet| -> Result<std::collections::HashSet<Capability>> {
        set.names()
            .into_iter()
            .map(|name| {
                serde_json::from_value(serde_json::Value::from(name))
                    .map_err(|_| Error::UnknownCapability { name: name.to_owned() })
            })
            .collect()
    };
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(set(sets.bounding)?)
        .effective(set(sets.effective)?)
        .permitted(set(sets.permitted)?)
        .inheritable(set(sets.inheritable)?)
        .ambient(set(sets.ambient)?)
        .build()?)
}

/// The limits sorted by name; of two with one name the later one.
fn rlimits(limits: &[Rlimit]) -> Result<Option<Vec<PosixRlimit>>> {
    let mut by_name = BTreeMap::new();
    for limit in limits {
        let name = limit.name.to_ascii_uppercase();
        let name = if name.starts_with("RLIMIT_") { name } else { format!("RLIMIT_{name}") };
        let typ: PosixRlimitType =
            serde_json::from_value(serde_json::Value::from(name.as_str()))
                .map_err(|_| Error::UnknownRlimit { name: limit.name.clone() })?;
        if limit.soft > limit.hard {
            return Err(Error::RlimitOrder { name, soft: limit.soft, hard: limit.hard });
        }
        let limit =
            PosixRlimitBuilder::default().typ(typ).soft(limit.soft).hard(limit.hard).build()?;
        by_name.insert(name, limit);
    }
    Ok(Some(by_name.into_values().collect::<Vec<_>>()).filter(|l| !l.is_empty()))
}

pub(crate) fn no_nul(what: &'static str, value: &str) -> Result<()> {
    if value.contains('\0') {
        return Err(Error::Nul { what, value: value.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Capabilities;

    fn input() -> ProcessInput {
        ProcessInput { args: vec!["sh".into()], ..Default::default() }
    }

    fn json(input: &ProcessInput) -> serde_json::Value {
        serde_json::from_slice(&process(input).unwrap()).unwrap()
    }

    #[test]
    fn later_variables_win_in_the_place_of_the_earlier() {
        let vars = [("A", "1"), ("B", "2"), ("A", "3=4"), ("C", "")];
        let vars: Vec<_> = vars.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        assert_eq!(env(&vars).unwrap(), ["A=3=4", "B=2", "C="]);
        for bad in ["", "A=B"] {
            assert!(matches!(env(&[(bad.into(), "x".into())]), Err(Error::EnvName { .. })));
        }
        assert!(matches!(env(&[("A".into(), "\0".into())]), Err(Error::Nul { .. })));
    }

    #[test]
    fn user_groups_are_a_set() {
        let user = UserInput { uid: 7, gid: 8, additional_gids: vec![9, 1, 9], umask: Some(0o27) };
        let got = json(&ProcessInput { user, ..input() });
        assert_eq!(
            got["user"],
            serde_json::json!({"uid": 7, "gid": 8, "additionalGids": [1, 9], "umask": 0o27})
        );
    }

    #[test]
    fn limits() {
        let limit = |name: &str, soft, hard| Rlimit { name: name.into(), soft, hard };
        let rlimits =
            vec![limit("nofile", 1, 2), limit("RLIMIT_CORE", 0, u64::MAX), limit("NOFILE", 3, 4)];
        let got = json(&ProcessInput { rlimits, ..input() });
        assert_eq!(
            got["rlimits"],
            serde_json::json!([
                {"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX},
                {"type": "RLIMIT_NOFILE", "soft": 3, "hard": 4},
            ])
        );
        let bad = ProcessInput { rlimits: vec![limit("nofiles", 1, 2)], ..input() };
        assert!(matches!(process(&bad), Err(Error::UnknownRlimit { name }) if name == "nofiles"));
        let bad = ProcessInput { rlimits: vec![limit("nofile", 3, 2)], ..input() };
        assert!(matches!(process(&bad), Err(Error::RlimitOrder { .. })));
    }

    #[test]
    fn what_is_refused() {
        assert!(matches!(process(&ProcessInput::default()), Err(Error::NoCommand)));
        let bad = ProcessInput { cwd: "tmp".into(), ..input() };
        assert!(matches!(process(&bad), Err(Error::NotAbsolute { path, .. }) if path == "tmp"));
        let bad = ProcessInput { oom_score_adj: Some(1001), ..input() };
        assert!(matches!(process(&bad), Err(Error::OomScore { value: 1001 })));
        let bad = ProcessInput { args: vec!["a\0b".into()], ..input() };
        assert!(matches!(process(&bad), Err(Error::Nul { .. })));
    }

    #[test]
    fn every_capability_has_a_name_that_the_specification_knows() {
        let got = json(&ProcessInput { privileged: true, ..input() });
        let names = got["capabilities"]["bounding"].as_array().unwrap();
        assert_eq!(names.len(), caps::NAMES.len());
        assert!(names.is_sorted_by_key(|n| n.as_str().unwrap()));
        assert_eq!(got["capabilities"]["ambient"], serde_json::json!([]));
    }

    #[test]
    fn a_size_needs_a_terminal() {
        let sized = ProcessInput { console_size: Some((80, 24)), ..input() };
        assert!(json(&sized).get("consoleSize").is_none());
        let tty = ProcessInput { terminal: true, ..sized };
        assert_eq!(json(&tty)["consoleSize"], serde_json::json!({"width": 80, "height": 24}));
    }

    #[test]
    fn exec_is_the_same_every_time() {
        let input = ProcessInput {
            capabilities: Capabilities { add: vec!["ALL".into()], ..Default::default() },
            ..input()
        };
        let first = process(&input).unwrap();
        assert!((0..50).all(|_| process(&input).unwrap() == first));
    }
}
