//! What lies in criod's places under an id that no pod and no container has.
//!
//! ```text
//! a place                         what it holds of an id
//! <root>/pods, containers         a folder without a record: what a removal has left
//! <runroot>/pods, ns, containers  files and mounts, pinned namespaces, a monitor's folder (spools …)
//! <runroot>/runtime               the runtime's own state
//! <root>/cni/results              what a plugin gave: addresses
//! the keeper                      descriptors
//! ```
//! An id that is found in one of them is removed from all of them, and its cgroups with it, in the
//! order of a removal: the container and its monitor, the network, then what they used.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use nix::mount::{MntFlags, umount2};
use tracing::info;

use crate::error::{Error, Kind, Result};
use crate::monitor::{self, Monitor};
use crate::node::{Node, blocking};
use crate::record;
use crate::{files, streaming};

/// Ids that are found somewhere and known nowhere.
pub(super) async fn find(node: &Arc<Node>) -> Result<BTreeSet<String>> {
    // What is there comes first, what is known second.
    let mut found: BTreeSet<String> = node.keeper.held().await?.into_iter().collect();
    found.retain(|id| !streaming::is_stream(id));
    let own = Arc::clone(node);
    let lying = blocking(move || {
        let paths = &own.paths;
        let mut dirs = vec![paths.pods(), paths.containers()];
        dirs.extend(["pods", "ns", "containers"].map(|name| paths.run.join(name)));
        dirs.extend(runtime_roots(&own).into_iter().filter(|root| root.starts_with(&paths.run)));
        let mut ids: BTreeSet<String> = dirs.iter().flat_map(|d| super::entries(d)).collect();
        ids.extend(own.network.cached()?.into_iter().map(|c| c.container_id));
        Ok(ids)
    });
    found.extend(lying.await?);
    let own = Arc::clone(node);
    blocking(move || {
        found.retain(|id| record::is_id(id) && !known(&own, id));
        Ok(found)
    })
    .await
}

/// Whether an id is that of a pod or container, or may be.
fn known(node: &Node, id: &str) -> bool {
    node.has_container(id)
        || node.has_pod(id)
        || record::exists(&node.paths.pod(id))
        || record::exists(&node.paths.container(id))
}

/// The folders of runtimes' own state, each once.
fn runtime_roots(node: &Node) -> BTreeSet<PathBuf> {
    node.config.runtimes.values().map(|handler| node.runtime_root(handler)).collect()
}

/// Removes all of one id. May be repeated.
pub(super) async fn remove(node: &Arc<Node>, id: &str) -> Result<()> {
    let dir = node.paths.container_run(id);
    let monitor = Monitor::new(id, dir, node.monitor_program.clone(), node.keeper.clone());
    // Where it cannot be asked, or what it needs is damaged, there is another way.
    let ended = match monitor.exists() {
        true => monitor.delete().await,
        false => Ok(()),
    };
    let own = (Arc::clone(node), id.to_owned());
    let unused = blocking(move || end_container(&own.0, &own.1)).await;
    if let (Err(e), Ok(())) = (&ended, &unused) {
        info!(id, "its monitor could not delete it: {}", e.chain());
    }
    unused?;
    let pin = node.paths.namespaces(id).join("net");
    let netns = Some(pin.as_path()).filter(|p| namespace::is_namespace(p));
    if node.network.cached()?.iter().any(|c| c.container_id == id) {
        node.network.detach_unknown(id, netns).await?;
    }
    let own = (Arc::clone(node), id.to_owned());
    blocking(move || remove_files(&own.0, &own.1)).await?;
    node.keeper.forget(id).await?;
    info!(id, "what was left of it is removed");
    Ok(())
}

/// Ends what may still run, without its monitor.
fn end_container(node: &Node, id: &str) -> Result<()> {
    for handler in node.config.runtimes.values() {
        node.runtime_delete(&handler.runtime_path, &node.runtime_root(handler), id)?;
    }
    node.remove_cgroups_of(id)
}

fn remove_files(node: &Node, id: &str) -> Result<()> {
    let paths = &node.paths;
    let (run, pod_run) = (paths.container_run(id), paths.pod_run(id));
    let failed = |source| Error::from(Kind::Namespaces { pod: id.to_owned(), source });
    namespace::remove(&paths.namespaces(id)).map_err(failed)?;
    let dirs = [paths.container(id), paths.pod(id), run.clone(), pod_run.clone()];
    unmount_below(&dirs)?;
    files::remove(&pod_run)?;
    if run.exists() {
        let Some(_sealed) = monitor::seal(&run) else {
            return Err(Error::precondition(format!("container {id}: its monitor does not end")));
        };
        record::remove(&run)?;
    }
    for dir in [paths.container(id), paths.pod(id)] {
        // Somebody may have put a record back.
        if !record::exists(&dir) {
            record::remove(&dir)?;
        }
    }
    Ok(())
}

/// Unmounts everything at and below these folders, what was mounted last first.
fn unmount_below(dirs: &[PathBuf]) -> Result<()> {
    const TABLE: &str = "/proc/self/mountinfo";
    let table = std::fs::read_to_string(TABLE).map_err(Error::file("read", TABLE))?;
    for point in mount_points(&table, dirs).iter().rev() {
        // no step: what is still there is found again.
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It went with one that it was below.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(e) => return Err(Error::file("unmount", point)(e.into())),
        }
    }
    Ok(())
}

/// The mount points of a table that are at or below one of these folders, in its order.
fn mount_points(table: &str, dirs: &[PathBuf]) -> Vec<PathBuf> {
    let all = table.lines().filter_map(|line| line.split(' ').nth(4)).map(sys::mount::unescape);
    all.filter(|point| dirs.iter().any(|dir| point.starts_with(dir))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below() {
        let table = "\
1 0 8:1 / / rw - ext4 /dev/x rw
2 1 0:5 / /run/c/pods/a rw - tmpfs criod rw
3 2 0:6 / /run/c/pods/a/shm rw - tmpfs criod rw
4 1 0:7 / /run/c/pods/ab rw - tmpfs criod rw
5 1 0:8 / /run/c/pods/a/with\\040space rw - tmpfs x rw
6 1 0:8 / /srv/a rw - tmpfs x rw
short
";
        let found = mount_points(table, &["/run/c/pods/a".into()]);
        let wanted = ["/run/c/pods/a", "/run/c/pods/a/shm", "/run/c/pods/a/with space"];
        assert_eq!(found, wanted.map(PathBuf::from));
    }
}
