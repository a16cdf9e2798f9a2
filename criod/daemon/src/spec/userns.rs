//! User namespaces: what a pod may ask for, and what its containers and their mounts then are.
//!
//! ```text
//! pod:        mode POD, one mapping of user ids and one of group ids, both from id 0   ─▶ Users
//!             mode NODE, or nothing said, no mappings                                  ─▶ the node's
//! container:  what its pod asked for, word for word
//! mount:      nothing, or the pod's mapping: its files' owners are shown as the pod's ids
//! ```

use api_cri::v1::{IdMapping, Mount, NamespaceMode, NamespaceOption, UserNamespace};
use criod_config::Config;
use namespace::{Range, Users};

use super::{Request, mode, pod_modes};
use crate::error::{Error, Result};
use crate::record::PodRecord;

const FIELD: &str = "namespace_options.userns_options";

/// The user namespace that is asked for; `None` is the node's.
fn asked(options: Option<&UserNamespace>) -> Result<Option<Users>> {
    let Some(options) = options else { return Ok(None) };
    let refuse = |why: String| Err(Error::invalid(format!("{FIELD}{why}")));
    match mode(options.mode)? {
        NamespaceMode::Pod => {}
        NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => {
            return Ok(None);
        }
        NamespaceMode::Node => return refuse(": the mode NODE has no mappings".into()),
        other => {
            return refuse(format!(".mode: {} is not for users", other.as_str_name()));
        }
    }
    Ok(Some(Users { uids: range("uids", &options.uids)?, gids: range("gids", &options.gids)? }))
}

/// The only mapping of a list.
fn range(field: &str, mappings: &[IdMapping]) -> Result<Range> {
    let refuse = |why: String| Err(Error::invalid(format!("{FIELD}.{field}: {why}")));
    let [only] = mappings else {
        return refuse(format!("expected one mapping, found {}", mappings.len()));
    };
    let range = Range { inside: only.container_id, outside: only.host_id, size: only.length };
    if range.inside != 0 {
        return refuse(format!("container_id is {}, so root is not mapped", range.inside));
    }
    if range.size == 0 {
        return refuse("length is 0".into());
    }
    // The highest number is no id.
    if range.outside.checked_add(range.size).is_none() {
        return refuse(format!("host_id {} and length {} are too high", range.outside, range.size));
    }
    Ok(range)
}

/// Checks what a pod asks for.
pub(crate) fn check_users(options: &NamespaceOption, node: &Config) -> Result<Option<Users>> {
    let Some(users) = asked(options.userns_options.as_ref())? else { return Ok(None) };
    for (field, range, least) in [
        ("uids", users.uids, node.minimum_mappable_uid),
        ("gids", users.gids, node.minimum_mappable_gid),
    ] {
        if i64::from(range.outside) < least {
            return Err(Error::invalid(format!(
                "{FIELD}.{field}: host_id {} is below {least}, the lowest that may be mapped",
                range.outside
            )));
        }
    }
    // The kernel lets nobody mount what shows a namespace of somebody else's.
    for (field, number) in [("pid", options.pid), ("ipc", options.ipc)] {
        if number == NamespaceMode::Node as i32 {
            return Err(Error::invalid(format!(
                "namespace_options.{field}: NODE is not for a pod with a user namespace of its own"
            )));
        }
    }
    Ok(Some(users))
}

/// The user namespace of a pod, which was checked when it was made.
pub(crate) fn pod_users(pod: &PodRecord) -> Option<Users> {
    asked(pod_modes(pod).userns_options.as_ref()).ok().flatten()
}

/// The uid and gid of the pod's root, as the node sees them.
pub(crate) fn pod_root(pod: &PodRecord) -> (u32, u32) {
    pod_users(pod).and_then(|users| users.root()).unwrap_or_default()
}

/// A range in the form that specs have.
fn mapping(range: Range) -> oci::IdMapping {
    oci::IdMapping { container_id: range.inside, host_id: range.outside, size: range.size }
}

impl Request<'_> {
    /// The user namespace of the container, and its mappings.
    pub(super) fn users(&self, options: &NamespaceOption) -> Result<Option<Users>> {
        let users = pod_users(self.pod);
        if asked(options.userns_options.as_ref())? != users {
            return Err(Error::invalid(format!("{FIELD}: not those of the pod sandbox")));
        }
        if users.is_some() && mode(options.pid)? == NamespaceMode::Node {
            return Err(Error::invalid(
                "namespace_options.pid: NODE is not for a pod with a user namespace of its own",
            ));
        }
        Ok(users)
    }

    /// The mappings of a mount's files: of user ids and of group ids.
    pub(super) fn mount_users(
        &self,
        mount: &Mount,
    ) -> Result<(Vec<oci::IdMapping>, Vec<oci::IdMapping>)> {
        let users = mount_users(self.pod, mount)?;
        if users.is_some() && !self.features.idmap {
            return Err(Error::unsupported(format!(
                "mount {:?}: uid_mappings and gid_mappings: {} or the kernel has no id-mapped mounts",
                mount.container_path, self.handler.runtime_path
            )));
        }
        Ok(mappings(users))
    }
}

/// Whose ids a mount's files are to have: nothing, or the pod's own.
pub(crate) fn mount_users(pod: &PodRecord, mount: &Mount) -> Result<Option<Users>> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(None);
    }
    let refuse =
        |why: &str| Err(Error::invalid(format!("mount {:?}: {why}", mount.container_path)));
    let Some(users) = pod_users(pod) else {
        return refuse("uid_mappings and gid_mappings need a user namespace of the pod's own");
    };
    let only = |given: &[IdMapping], range: Range| {
        matches!(given, [m] if m.container_id == range.inside
            && m.host_id == range.outside && m.length == range.size)
    };
    if !only(&mount.uid_mappings, users.uids) {
        return refuse("uid_mappings: not those of the pod sandbox");
    }
    if !only(&mount.gid_mappings, users.gids) {
        return refuse("gid_mappings: not those of the pod sandbox");
    }
    Ok(Some(users))
}

/// What the node sees a container's user and group as.
pub(super) fn on_node(pod: &PodRecord, uid: u32, gid: u32) -> Result<(u32, u32)> {
    let Some(users) = pod_users(pod) else { return Ok((uid, gid)) };
    let find = |what: &str, range: Range, id: u32| {
        let none = || Error::invalid(format!("the pod's user namespace has no {what} {id}"));
        range.outside_of(id).ok_or_else(none)
    };
    Ok((find("user", users.uids, uid)?, find("group", users.gids, gid)?))
}

/// Mappings in the form that specs have.
pub(super) fn mappings(users: Option<Users>) -> (Vec<oci::IdMapping>, Vec<oci::IdMapping>) {
    users.map(|u| (vec![mapping(u.uids)], vec![mapping(u.gids)])).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(container_id: u32, host_id: u32, length: u32) -> Vec<IdMapping> {
        vec![IdMapping { container_id, host_id, length }]
    }

    fn options(mode: NamespaceMode, uids: Vec<IdMapping>, gids: Vec<IdMapping>) -> NamespaceOption {
        NamespaceOption {
            pid: NamespaceMode::Container as i32,
            userns_options: Some(UserNamespace { mode: mode as i32, uids, gids }),
            ..NamespaceOption::default()
        }
    }

    fn refusal(options: &NamespaceOption, node: &Config) -> String {
        check_users(options, node).unwrap_err().chain()
    }

    #[test]
    fn what_a_pod_may_ask_for() {
        let node = Config::default();
        let good = options(NamespaceMode::Pod, map(0, 65_536, 65_536), map(0, 1, u32::MAX - 1));
        let users = check_users(&good, &node).unwrap().unwrap();
        assert_eq!(users.uids, Range { inside: 0, outside: 65_536, size: 65_536 });
        assert_eq!(users.root(), Some((65_536, 1)));
        let node_mode = options(NamespaceMode::Node, vec![], vec![]);
        assert_eq!(check_users(&node_mode, &node).unwrap(), None);
        assert_eq!(check_users(&NamespaceOption::default(), &node).unwrap(), None);
    }

    #[test]
    fn what_is_refused_and_which_field_it_is() {
        let node = Config::default();
        let good = || map(0, 65_536, 65_536);
        let pod = |uids, gids| options(NamespaceMode::Pod, uids, gids);
        let two = [good(), good()].concat();
        for (bad, field) in [
            (pod(vec![], good()), "uids: expected one mapping, found 0"),
            (pod(good(), vec![]), "gids: expected one mapping, found 0"),
            (pod(two, good()), "uids: expected one mapping, found 2"),
            (pod(map(1, 65_536, 65_536), good()), "uids: container_id is 1"),
            (pod(good(), map(0, 65_536, 0)), "gids: length is 0"),
            (pod(map(0, u32::MAX - 5, 6), good()), "uids: host_id"),
            (options(NamespaceMode::Node, good(), good()), "the mode NODE has no mappings"),
            (options(NamespaceMode::Container, vec![], vec![]), "mode: CONTAINER"),
            (options(NamespaceMode::Target, good(), good()), "mode: TARGET"),
        ] {
            let text = refusal(&bad, &node);
            assert!(text.contains(field) && text.contains("userns_options"), "{field}: {text}");
        }
        let unknown = NamespaceOption {
            userns_options: Some(UserNamespace { mode: 77, ..UserNamespace::default() }),
            ..NamespaceOption::default()
        };
        assert!(refusal(&unknown, &node).contains("77"));
        for (field, number) in [("pid", 0), ("ipc", 1)] {
            let mut bad = pod(good(), good());
            [&mut bad.pid, &mut bad.ipc].into_iter().nth(number).map(|f| *f = 2).unwrap();
            assert!(refusal(&bad, &node).contains(field));
        }
    }

    #[test]
    fn mounts_have_the_pods_ids_or_none() {
        let options = options(NamespaceMode::Pod, map(0, 65_536, 100), map(0, 70_000, 100));
        let with = |options| {
            let context = api_cri::v1::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            };
            let linux = api_cri::v1::LinuxPodSandboxConfig {
                security_context: Some(context),
                ..Default::default()
            };
            let config = api_cri::v1::PodSandboxConfig { linux: Some(linux), ..Default::default() };
            PodRecord::new("p".into(), config, 0, "boot")
        };
        let (own, nodes) = (with(options), with(NamespaceOption::default()));
        let mount = |uid_mappings, gid_mappings| Mount {
            container_path: "/m".into(),
            uid_mappings,
            gid_mappings,
            ..Mount::default()
        };
        let same = mount(map(0, 65_536, 100), map(0, 70_000, 100));
        assert_eq!(mount_users(&own, &same).unwrap(), pod_users(&own));
        assert!(pod_users(&own).is_some());
        for pod in [&own, &nodes] {
            assert_eq!(mount_users(pod, &mount(vec![], vec![])).unwrap(), None);
        }
        let refused = |pod, mount: &Mount| mount_users(pod, mount).unwrap_err().chain();
        assert!(refused(&nodes, &same).contains("need a user namespace"));
        for (uids, gids, field) in [
            (map(0, 65_536, 99), map(0, 70_000, 100), "uid_mappings"),
            (vec![], map(0, 70_000, 100), "uid_mappings"),
            (map(0, 65_536, 100), vec![], "gid_mappings"),
            (map(0, 65_536, 100), map(1, 70_000, 100), "gid_mappings"),
        ] {
            let text = refused(&own, &mount(uids, gids));
            assert!(text.contains("\"/m\"") && text.contains(field), "{text}");
        }
        assert_eq!(on_node(&own, 5, 99).unwrap(), (65_541, 70_099));
        assert!(on_node(&own, 5, 100).unwrap_err().chain().contains("group 100"));
        assert_eq!(on_node(&nodes, 5, 100).unwrap(), (5, 100));
    }

    #[test]
    fn the_lowest_ids_that_may_be_mapped() {
        let node =
            Config { minimum_mappable_uid: 1000, minimum_mappable_gid: 2000, ..Config::default() };
        let with = |uid, gid| options(NamespaceMode::Pod, map(0, uid, 10), map(0, gid, 10));
        check_users(&with(1000, 2000), &node).unwrap();
        assert!(refusal(&with(999, 2000), &node).contains("uids: host_id 999 is below 1000"));
        assert!(refusal(&with(1000, 1999), &node).contains("gids: host_id 1999 is below 2000"));
    }
}
