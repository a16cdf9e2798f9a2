//! Who a container runs as, from the request and the files in its root.
//!
//! A user without a row in the image's passwd gets one, and a group in group, as programs look
//! their name and home up there. Nothing of that happens where the container itself may write the
//! file (its start may do the same), brings a mount there, or has no such file.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use api_cri::v1::{ContainerConfig, LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use oci::users::{GroupsPolicy, ResolvedUser, UserRequest};
use registry::image::ContainerDefaults;

use super::paths::clean;
use super::security;
use crate::error::{Error, Kind, Result};

/// No passwd or group file of an image is read beyond this size, in bytes.
const MAX_USER_FILE: u64 = 16 << 20;
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Who is asked for, before the image's files are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// A name or number; `None` leaves it to the image.
    user: Option<String>,
    gid: Option<u32>,
    supplemental: Vec<u32>,
    policy: GroupsPolicy,
}

/// Reads the fields that say who a container runs as.
pub(super) fn wanted(security: &LinuxContainerSecurityContext) -> Result<Wanted> {
    let number = |field: &str, value: i64| {
        u32::try_from(value)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| Error::invalid(format!("{field}: {value} is no id")))
    };
    let user = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => {
            return Err(Error::invalid("run_as_user and run_as_username are both set"));
        }
        (Some(uid), _) => Some(number("run_as_user", uid.value)?.to_string()),
        (None, "") => None,
        (None, name) => Some(name.to_owned()),
    };
    let gid = match &security.run_as_group {
        Some(_) if user.is_none() => {
            return Err(Error::invalid("run_as_group is set, but no user"));
        }
        Some(gid) => Some(number("run_as_group", gid.value)?),
        None => None,
    };
    let supplemental = security.supplemental_groups.iter();
    let supplemental =
        supplemental.map(|g| number("supplemental_groups", *g)).collect::<Result<_>>()?;
    let policy = match SupplementalGroupsPolicy::try_from(security.supplemental_groups_policy) {
        Ok(SupplementalGroupsPolicy::Merge) => GroupsPolicy::Merge,
        Ok(SupplementalGroupsPolicy::Strict) => GroupsPolicy::Strict,
        Err(_) => {
            let text = format!(
                "supplemental_groups_policy: unknown value {}",
                security.supplemental_groups_policy
            );
            return Err(Error::invalid(text));
        }
    };
    Ok(Wanted { user, gid, supplemental, policy })
}

/// Resolves who the container runs as, from the files in its root.
pub(crate) fn user(
    config: &ContainerConfig,
    image: &ContainerDefaults,
    rootfs: &Path,
) -> Result<ResolvedUser> {
    let wanted = wanted(&security(config))?;
    let request = UserRequest {
        user: wanted.user.as_ref().unwrap_or(&image.user),
        gid: wanted.gid,
        supplemental: &wanted.supplemental,
        policy: wanted.policy,
    };
    oci::users::resolve(&request, &read(rootfs, PASSWD)?, &read(rootfs, GROUP)?)
        .map_err(|e| Error::invalid(e.to_string()))
}

fn storage_error(path: &str, action: &'static str) -> impl FnOnce(storage::Error) -> Error {
    let id = path.to_owned();
    move |source| Kind::Storage { id, action, source }.into()
}

fn read(rootfs: &Path, path: &str) -> Result<Vec<u8>> {
    storage::read_in_root(rootfs, path, MAX_USER_FILE)
        .map(Option::unwrap_or_default)
        .map_err(storage_error(path, "read"))
}

/// Gives the user and the group of a container rows in the files of its root, where they have none.
pub(crate) fn name_user(
    config: &ContainerConfig,
    image: &ContainerDefaults,
    rootfs: &Path,
    user: &ResolvedUser,
) -> Result<()> {
    if !user.in_passwd {
        let home = home(config, image);
        let ResolvedUser { uid, gid, .. } = user;
        let row = format!("{uid}:x:{uid}:{gid}:{uid} user:{home}:/sbin/nologin\n");
        add_row(config, rootfs, PASSWD, user, &row)?;
    }
    if !oci::users::has_group(&read(rootfs, GROUP)?, user.gid) {
        add_row(config, rootfs, GROUP, user, &format!("{0}:x:{0}:\n", user.gid))?;
    }
    Ok(())
}

/// What the environment says, or the working folder, if a row can hold it.
fn home(config: &ContainerConfig, image: &ContainerDefaults) -> String {
    let asked = config.envs.iter().rev().find(|e| e.key == "HOME");
    let asked = asked.and_then(|e| String::from_utf8(e.value.clone()).ok());
    let of_image = || image.env.iter().rev().find_map(|e| e.strip_prefix("HOME="));
    let folder = [config.working_dir.as_str(), image.working_dir.as_str()];
    let folder = || folder.into_iter().find(|d| !d.is_empty());
    let home = asked.or_else(|| of_image().or_else(folder).map(str::to_owned));
    home.filter(|h| h.starts_with('/') && !h.chars().any(|c| c == ':' || c.is_control()))
        .unwrap_or_else(|| "/".to_owned())
}

fn add_row(
    config: &ContainerConfig,
    rootfs: &Path,
    path: &str,
    user: &ResolvedUser,
    row: &str,
) -> Result<()> {
    let covered =
        |m: &api_cri::v1::Mount| [path, "/etc"].contains(&clean(&m.container_path).as_str());
    let mut text = read(rootfs, path)?;
    if text.is_empty() || config.mounts.iter().any(covered) {
        return Ok(());
    }
    let file = storage::open_path_in_root(rootfs, path).map_err(storage_error(path, "open"))?;
    let file = std::fs::File::from(file).metadata().map_err(Error::file("look at", path))?;
    let may = |bit: u32| file.mode() & bit != 0;
    let in_group = user.gid == file.gid() || user.groups.contains(&file.gid());
    if may(0o002) || (user.uid == file.uid() && may(0o200)) || (in_group && may(0o020)) {
        return Ok(());
    }
    if !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(row.as_bytes());
    storage::replace_in_root(rootfs, path, &text).map_err(storage_error(path, "add a row to"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn id(value: i64) -> Option<api_cri::v1::Int64Value> {
        Some(api_cri::v1::Int64Value { value })
    }

    #[test]
    fn what_is_no_user_names_its_field() {
        let none = LinuxContainerSecurityContext::default;
        for (security, field) in [
            (LinuxContainerSecurityContext { run_as_user: id(-1), ..none() }, "run_as_user"),
            (
                LinuxContainerSecurityContext { run_as_user: id(4_294_967_295), ..none() },
                "run_as_user",
            ),
            (
                LinuxContainerSecurityContext {
                    run_as_user: id(1),
                    run_as_group: id(1 << 32),
                    ..none()
                },
                "run_as_group",
            ),
            (LinuxContainerSecurityContext { run_as_group: id(1), ..none() }, "run_as_group"),
            (
                LinuxContainerSecurityContext { supplemental_groups: vec![0, -5], ..none() },
                "supplemental_groups",
            ),
            (
                LinuxContainerSecurityContext { supplemental_groups_policy: 2, ..none() },
                "supplemental_groups_policy",
            ),
            (
                LinuxContainerSecurityContext {
                    run_as_user: id(0),
                    run_as_username: "root".into(),
                    ..none()
                },
                "run_as_user",
            ),
        ] {
            let e = wanted(&security).unwrap_err().status();
            assert!(e.message().starts_with(field), "{}", e.message());
            assert_eq!(e.code(), tonic::Code::InvalidArgument);
        }
    }

    fn root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        for (name, text) in [("passwd", "root:x:0:0::/root:/bin/sh"), ("group", "root:x:0:\n")] {
            let path = dir.path().join("etc").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        dir
    }

    fn run_as(config: &ContainerConfig, image: &ContainerDefaults, root: &Path) -> ResolvedUser {
        let user = user(config, image, root).unwrap();
        name_user(config, image, root, &user).unwrap();
        user
    }

    fn file(root: &Path, name: &str) -> String {
        fs::read_to_string(root.join("etc").join(name)).unwrap()
    }

    fn image(user: &str) -> ContainerDefaults {
        ContainerDefaults { user: user.into(), working_dir: "/app".into(), ..Default::default() }
    }

    #[test]
    fn who_has_no_row_gets_one() {
        let root = root();
        let config = ContainerConfig::default();
        run_as(&config, &image("1001:77"), root.path());
        assert_eq!(
            file(root.path(), "passwd"),
            "root:x:0:0::/root:/bin/sh\n1001:x:1001:77:1001 user:/app:/sbin/nologin\n"
        );
        assert_eq!(file(root.path(), "group"), "root:x:0:\n77:x:77:\n");
        // Once is enough.
        let again = run_as(&config, &image("1001:77"), root.path());
        assert!(again.in_passwd);
        assert_eq!(file(root.path(), "group"), "root:x:0:\n77:x:77:\n");
        run_as(&config, &image(""), root.path());
        assert_eq!(file(root.path(), "passwd").lines().count(), 2);
    }

    #[test]
    fn who_brings_a_mount_or_may_write_gets_none() {
        for at in ["/etc", "/etc/", "/etc//passwd"] {
            let root = root();
            let mount = api_cri::v1::Mount { container_path: at.into(), ..Default::default() };
            let config = ContainerConfig { mounts: vec![mount], ..Default::default() };
            run_as(&config, &image("5"), root.path());
            assert_eq!(file(root.path(), "passwd").lines().count(), 1, "{at}");
        }
        let root = root();
        let passwd = root.path().join("etc/passwd");
        // As images for arbitrary users have it.
        fs::set_permissions(&passwd, fs::Permissions::from_mode(0o664)).unwrap();
        run_as(&ContainerConfig::default(), &image("5"), root.path());
        assert_eq!(file(root.path(), "passwd").lines().count(), 1);
        fs::remove_file(&passwd).unwrap();
        run_as(&ContainerConfig::default(), &image("5:5"), root.path());
        assert!(!passwd.exists());
    }

    #[test]
    fn homes() {
        let env = |value: &str| api_cri::v1::KeyValue { key: "HOME".into(), value: value.into() };
        let config = |envs| ContainerConfig { envs, ..Default::default() };
        let bare = ContainerDefaults::default();
        assert_eq!(home(&config(vec![]), &bare), "/");
        assert_eq!(home(&config(vec![]), &image("")), "/app");
        assert_eq!(home(&config(vec![env("/h")]), &image("")), "/h");
        for bad in ["a:b", "/a\nroot::0:0::/:/bin/sh", "relative", ""] {
            assert_eq!(home(&config(vec![env(bad)]), &image("")), "/", "{bad:?}");
        }
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("passwd");
        fs::write(&target, "host:x:0:0::/:/bin/sh\n").unwrap();
        let root = root();
        let passwd = root.path().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        symlink(&target, &passwd).unwrap();
        run_as(&ContainerConfig::default(), &image("5:5"), root.path());
        assert_eq!(fs::read_to_string(&target).unwrap(), "host:x:0:0::/:/bin/sh\n");
        // A link within the root gives way to a file with what it led to.
        fs::remove_file(&passwd).unwrap();
        fs::write(root.path().join("etc/real"), "root:x:0:0::/:/bin/sh\n").unwrap();
        symlink("/etc/real", &passwd).unwrap();
        let hard = outside.path().join("hard");
        fs::hard_link(root.path().join("etc/real"), &hard).unwrap();
        run_as(&ContainerConfig::default(), &image("5:5"), root.path());
        assert_eq!(file(root.path(), "passwd").lines().count(), 2);
        assert_eq!(fs::read_to_string(&hard).unwrap().lines().count(), 1);
    }
}
