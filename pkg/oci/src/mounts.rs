//! Which mounts a container has, and in which order.
//!
//! ```text
//! defaults, in their own order        /proc /dev /dev/pts /dev/shm /dev/mqueue /sys /sys/fs/cgroup
//!   minus those that a user mount replaces or covers
//! then the user's, by depth of the destination; equal depths keep the order in which they came
//! ```
//! A mount covers what is below its destination: whoever mounts `/dev` gets no `/dev/pts` of ours
//! in it. As the runtime mounts in list order, a shallower mount must come before a deeper one,
//! or it would hide it.

use crate::error::{Error, Result};
use crate::input::{IdMapping, MountInput, MountKind, Namespaces, Ns, Propagation, SpecInput};
use crate::process::no_nul;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};
use std::path::PathBuf;

/// The mounts of a spec, and its `rootfsPropagation`.
pub(crate) fn assemble(input: &SpecInput) -> Result<(Vec<Mount>, Option<&'static str>)> {
    let mut wanted: Vec<(String, &MountInput)> = Vec::with_capacity(input.mounts.len());
    for mount in &input.mounts {
        let destination = normalise(&mount.destination)?;
        wanted.retain(|(earlier, _)| *earlier != destination);
        wanted.push((destination, mount));
    }
    wanted.sort_by_key(|(destination, _)| depth(destination));

    let mut mounts: Vec<Mount> = Vec::with_capacity(wanted.len() + 7);
    for (destination, mount) in defaults(input) {
        if !wanted.iter().any(|(user, _)| covers(user, destination)) {
            mounts.push(mount);
        }
    }
    for (destination, mount) in &wanted {
        mounts.push(user_mount(destination, mount)?);
    }
    let any = |p| input.mounts.iter().any(|m| m.kind == MountKind::Bind && m.propagation == p);
    let propagation = if any(Propagation::Bidirectional) {
        Some("rshared")
    } else if any(Propagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    };
    Ok((mounts, propagation))
}

/// A destination in its only form: absolute, without empty or `.` components and without a slash
/// at the end.
///
/// # Errors
/// [`Error::NotAbsolute`], [`Error::MountClimbs`], [`Error::Nul`].
pub fn normalise(destination: &str) -> Result<String> {
    no_nul("mount destination", destination)?;
    if !destination.starts_with('/') {
        return Err(Error::NotAbsolute { what: "mount destination", path: destination.to_owned() });
    }
    let mut path = String::with_capacity(destination.len());
    for part in destination.split('/').filter(|p| !p.is_empty() && *p != ".") {
        if part == ".." {
            return Err(Error::MountClimbs { destination: destination.to_owned() });
        }
        path.push('/');
        path.push_str(part);
    }
    if path.is_empty() {
        path.push('/');
    }
    Ok(path)
}

/// How many components a normalised path has.
fn depth(path: &str) -> usize {
    if path == "/" { 0 } else { path.matches('/').count() }
}

/// Whether a mount at `above` hides one at `below`.
fn covers(above: &str, below: &str) -> bool {
    below
        .strip_prefix(if above == "/" { "" } else { above })
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The mounts that every container has.
fn defaults(input: &SpecInput) -> Vec<(&'static str, Mount)> {
    let ns = &input.namespaces;
    let in_userns = ns.user != Ns::Host;
    let sys_access = if input.privileged { "rw" } else { "ro" };
    let cgroup_access = if input.privileged || input.writable_cgroup { "rw" } else { "ro" };
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if !in_userns || maps_tty_group(ns) {
        pts.push("gid=5");
    }
    // sysfs belongs to the network namespace, mqueue to the IPC namespace: a user namespace that
    // does not own those may not mount them, but may bind what the host has mounted.
    let sys = if in_userns && ns.network == Ns::Host {
        // What the host has mounted below it comes along, and is to be no more writable.
        let access = if input.privileged { "rw" } else { "rro" };
        mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", access])
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys_access])
    };
    let mqueue = if in_userns && ns.ipc == Ns::Host {
        mount("/dev/mqueue", "bind", "/dev/mqueue", &["rbind", "nosuid", "noexec", "nodev"])
    } else {
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])
    };
    let mut cgroup = vec!["nosuid", "noexec", "nodev", "relatime", cgroup_access];
    cgroup.extend(input.cgroup_options.iter().map(String::as_str));
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mqueue,
        sys,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup),
    ]
}

/// Whether the group `tty` (5) has a number outside, without which devpts refuses `gid=5`.
fn maps_tty_group(ns: &Namespaces) -> bool {
    ns.gid_mappings.iter().any(|m| m.container_id <= 5 && 5 - m.container_id < m.size)
}

fn mount(
    destination: &'static str,
    typ: &str,
    source: &str,
    options: &[&str],
) -> (&'static str, Mount) {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    (destination, mount)
}

const PROPAGATIONS: [&str; 8] =
    ["private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];

fn user_mount(destination: &str, input: &MountInput) -> Result<Mount> {
    no_nul("mount source", &input.source)?;
    for option in &input.options {
        no_nul("mount option", option)?;
    }
    let given = |option: &str| input.options.iter().any(|o| o == option);
    let readonly = input.readonly || given("ro") || given("rro");
    check_recursive_readonly(destination, input)?;

    let mut options: Vec<String> = Vec::new();
    let mut push = |option: &str| {
        if !options.iter().any(|o| o == option) {
            options.push(option.to_owned());
        }
    };
    let (typ, source) = match &input.kind {
        MountKind::Bind => {
            if input.source.is_empty() {
                return Err(Error::MountSource { destination: destination.to_owned() });
            }
            if !input.source.starts_with('/') {
                return Err(Error::NotAbsolute {
                    what: "mount source",
                    path: input.source.clone(),
                });
            }
            push(if given("bind") { "bind" } else { "rbind" });
            if !PROPAGATIONS.iter().any(|p| given(p)) {
                push(match input.propagation {
                    Propagation::Private => "rprivate",
                    Propagation::HostToContainer => "rslave",
                    Propagation::Bidirectional => "rshared",
                });
            }
            ("bind", input.source.as_str())
        }
        MountKind::Tmpfs => ("tmpfs", non_empty(&input.source, "tmpfs")),
        MountKind::Other(name) => {
            no_nul("file system type", name)?;
            (name.as_str(), non_empty(&input.source, name))
        }
    };
    match (readonly, input.recursive_readonly || given("rro")) {
        (true, true) => push("rro"),
        (true, false) => push("ro"),
        (false, _) => push("rw"),
    }
    for option in &input.options {
        if !matches!(option.as_str(), "bind" | "rbind" | "ro" | "rw" | "rro" | "") {
            push(option);
        }
    }
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options))
        .set_uid_mappings(mappings(&input.uid_mappings)?)
        .set_gid_mappings(mappings(&input.gid_mappings)?);
    Ok(mount)
}

fn check_recursive_readonly(destination: &str, input: &MountInput) -> Result<()> {
    let needs = match input {
        m if !m.recursive_readonly => return Ok(()),
        m if !m.readonly => "a read-only mount",
        m if m.kind != MountKind::Bind => "a bind mount",
        m if m.propagation != Propagation::Private => "private propagation",
        m if m.options.iter().any(|o| o == "bind") => "a recursive bind mount",
        _ => return Ok(()),
    };
    Err(Error::RecursiveReadonly { destination: destination.to_owned(), needs })
}

fn non_empty<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// Id mappings in the specification's form; none is `None`.
pub(crate) fn mappings(input: &[IdMapping]) -> Result<Option<Vec<LinuxIdMapping>>> {
    if input.is_empty() {
        return Ok(None);
    }
    let build = |m: &IdMapping| {
        LinuxIdMappingBuilder::default()
            .container_id(m.container_id)
            .host_id(m.host_id)
            .size(m.size)
            .build()
    };
    Ok(Some(input.iter().map(build).collect::<std::result::Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bind(destination: &str) -> MountInput {
        MountInput { destination: destination.into(), source: "/src".into(), ..Default::default() }
    }

    fn built(mounts: Vec<MountInput>) -> Vec<Mount> {
        assemble(&SpecInput { mounts, ..Default::default() }).unwrap().0
    }

    fn destinations(mounts: &[Mount]) -> Vec<&str> {
        mounts.iter().map(|m| m.destination().to_str().unwrap()).collect()
    }

    const DEFAULTS: [&str; 7] =
        ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];

    #[test]
    fn user_mounts_come_after_the_defaults_by_depth_and_stably() {
        let got = built(
            ["/b/c/d", "/z", "/dev/termination-log", "/a//b/", "/etc/hosts", "/a"].map(bind).into(),
        );
        let mut want = DEFAULTS.to_vec();
        want.extend(["/z", "/a", "/dev/termination-log", "/a/b", "/etc/hosts", "/b/c/d"]);
        assert_eq!(destinations(&got), want);
    }

    #[test]
    fn a_user_mount_replaces_a_default_and_what_is_below_it() {
        let got = built(vec![bind("/dev/shm"), bind("/sys/"), bind("/devices")]);
        let want = ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/devices", "/dev/shm"];
        assert_eq!(destinations(&got), want);
        let got = built(vec![bind("/dev")]);
        assert_eq!(destinations(&got), ["/proc", "/sys", "/sys/fs/cgroup", "/dev"]);
    }

    #[test]
    fn of_two_at_one_place_the_later_stays() {
        let mut second = bind("/etc/./hosts");
        second.source = "/second".into();
        let got = built(vec![bind("/etc/hosts"), second]);
        assert_eq!(got.len(), DEFAULTS.len() + 1);
        assert_eq!(got[7].source().as_deref(), Some(std::path::Path::new("/second")));
    }

    #[test]
    fn options_of_bind_mounts() {
        let options = |m: MountInput| built(vec![m])[7].options().clone().unwrap();
        assert_eq!(options(bind("/a")), ["rbind", "rprivate", "rw"]);
        let m = MountInput { readonly: true, recursive_readonly: true, ..bind("/a") };
        assert_eq!(options(m), ["rbind", "rprivate", "rro"]);
        let m = MountInput {
            options: ["bind", "ro", "noexec", "noexec"].map(String::from).into(),
            propagation: Propagation::HostToContainer,
            ..bind("/a")
        };
        assert_eq!(options(m), ["bind", "rslave", "ro", "noexec"]);
        let m = MountInput {
            kind: MountKind::Tmpfs,
            source: String::new(),
            options: vec!["mode=1777".into()],
            ..bind("/a")
        };
        assert_eq!(options(m), ["rw", "mode=1777"]);
    }

    #[test]
    fn root_propagation_is_the_widest_asked_for() {
        let with = |propagations: &[Propagation]| {
            let mounts = propagations
                .iter()
                .enumerate()
                .map(|(n, p)| MountInput { propagation: *p, ..bind(&format!("/{n}")) })
                .collect();
            assemble(&SpecInput { mounts, ..Default::default() }).unwrap().1
        };
        use Propagation::{Bidirectional, HostToContainer, Private};
        assert_eq!(with(&[Private]), None);
        assert_eq!(with(&[Private, HostToContainer]), Some("rslave"));
        assert_eq!(with(&[Bidirectional, HostToContainer]), Some("rshared"));
    }

    #[test]
    fn what_is_refused() {
        let fails = |m: MountInput| {
            assemble(&SpecInput { mounts: vec![m], ..Default::default() }).unwrap_err()
        };
        assert!(matches!(fails(bind("a")), Error::NotAbsolute { .. }));
        assert!(matches!(fails(bind("/a/../b")), Error::MountClimbs { .. }));
        assert!(matches!(fails(bind("/a\0")), Error::Nul { .. }));
        let m = MountInput { source: String::new(), ..bind("/a") };
        assert!(matches!(fails(m), Error::MountSource { .. }));
        for m in [
            MountInput { recursive_readonly: true, ..bind("/a") },
            MountInput {
                recursive_readonly: true,
                readonly: true,
                propagation: Propagation::HostToContainer,
                ..bind("/a")
            },
        ] {
            assert!(matches!(fails(m), Error::RecursiveReadonly { .. }));
        }
    }

    #[test]
    fn a_user_namespace_binds_what_it_may_not_mount() {
        let namespaces =
            Namespaces { user: Ns::New, network: Ns::Host, ipc: Ns::Host, ..Default::default() };
        let got = assemble(&SpecInput { namespaces, ..Default::default() }).unwrap().0;
        let types: Vec<_> = got.iter().map(|m| m.typ().clone().unwrap()).collect();
        assert_eq!(types, ["proc", "tmpfs", "devpts", "tmpfs", "bind", "bind", "cgroup"]);
        assert!(!got[2].options().clone().unwrap().contains(&"gid=5".to_owned()));
    }

    proptest! {
        #[test]
        fn normalising_is_idempotent_and_never_climbs(path in "/?([a.]{0,3}/){0,5}[a.]{0,3}") {
            if let Ok(clean) = normalise(&path) {
                prop_assert!(clean.starts_with('/'));
                prop_assert!(!clean.split('/').any(|p| p == ".." || p == "."));
                prop_assert_eq!(normalise(&clean).unwrap(), clean);
            } else {
                prop_assert!(!path.starts_with('/') || path.split('/').any(|p| p == ".."));
            }
        }

        #[test]
        fn no_mount_hides_an_earlier_one(paths in proptest::collection::vec("(/[ab]){1,4}", 0..12)) {
            let got = built(paths.iter().map(|p| bind(p)).collect());
            let names = destinations(&got);
            for (n, later) in names.iter().enumerate() {
                prop_assert!(!names[..n].iter().any(|earlier| covers(later, earlier)));
            }
        }
    }
}
