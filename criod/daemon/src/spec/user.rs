//! Who a container runs as, from the request and the files in its root.

use std::path::Path;

use api_cri::v1::{ContainerConfig, SupplementalGroupsPolicy};
use oci::users::{GroupsPolicy, ResolvedUser, UserRequest};
use registry::image::ContainerDefaults;

use super::security;
use crate::error::{Error, Kind, Result};

/// No passwd or group file of an image is read beyond this size, in bytes.
const MAX_USER_FILE: u64 = 16 << 20;

/// Resolves who the container runs as, from the files in its root.
pub(crate) fn user(
    config: &ContainerConfig,
    image: &ContainerDefaults,
    rootfs: &Path,
) -> Result<ResolvedUser> {
    let security = security(config);
    let number = |field: &str, value: i64| {
        u32::try_from(value).map_err(|_| Error::invalid(format!("{field}: {value} is no id")))
    };
    let asked = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => {
            return Err(Error::invalid("run_as_user and run_as_username are both set"));
        }
        (Some(uid), _) => number("run_as_user", uid.value)?.to_string(),
        (None, "") => image.user.clone(),
        (None, name) => name.to_owned(),
    };
    let gid = match &security.run_as_group {
        Some(_) if security.run_as_user.is_none() && security.run_as_username.is_empty() => {
            return Err(Error::invalid("run_as_group is set, but no user"));
        }
        Some(gid) => Some(number("run_as_group", gid.value)?),
        None => None,
    };
    let supplemental: Vec<u32> = security
        .supplemental_groups
        .iter()
        .map(|g| number("supplemental_groups", *g))
        .collect::<Result<_>>()?;
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
    let read = |path: &str| {
        storage::read_in_root(rootfs, path, MAX_USER_FILE).map(Option::unwrap_or_default).map_err(
            |source| Error::from(Kind::Storage { id: path.to_owned(), action: "read", source }),
        )
    };
    let request = UserRequest { user: &asked, gid, supplemental: &supplemental, policy };
    oci::users::resolve(&request, &read("/etc/passwd")?, &read("/etc/group")?)
        .map_err(|e| Error::invalid(e.to_string()))
}
