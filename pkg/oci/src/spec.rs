//! Puts a whole `config.json` together, and checks what only the whole shows: a host name or a
//! kernel parameter that would reach the host because a namespace is the host's.

use crate::canonical::canonical;
use crate::devices;
use crate::error::{Error, Result};
use crate::input::{IntelRdt, Namespaces, Ns, ProcessInput, Resources, SpecInput};
use crate::mounts::{self, mappings};
use crate::process::{self, no_nul};
use crate::seccomp;
use oci_spec::runtime::{
    Hooks, Linux, LinuxBlockIoBuilder, LinuxCpu, LinuxHugepageLimit, LinuxIntelRdt, LinuxMemory,
    LinuxNamespace, LinuxNamespaceType, LinuxNetDevice, LinuxNetDeviceBuilder, LinuxPids,
    LinuxResources, Root, Spec,
};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

/// The version of the runtime specification that specs are written for. Nothing newer than this
/// is needed, and older runtimes refuse newer numbers.
const SPEC_VERSION: &str = "1.0.2";

/// What is hidden from an unprivileged container.
pub const DEFAULT_MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What an unprivileged container may read but not write.
pub const DEFAULT_READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Makes a container's `config.json`.
///
/// # Errors
/// See [`Error`]: it names the value that is wrong.
pub fn build(input: &SpecInput) -> Result<Vec<u8>> {
    let process = ProcessInput {
        privileged: input.privileged || input.process.privileged,
        host: input.host,
        ..input.process.clone()
    };
    let (process, caps) = process::assemble(&process)?;
    let (mounts, propagation) = mounts::assemble(input)?;
    check_hostname(input)?;

    let mut root = Root::default();
    root.set_path(if input.rootfs.as_os_str().is_empty() {
        PathBuf::from("rootfs")
    } else {
        input.rootfs.clone()
    })
    .set_readonly(Some(input.readonly_rootfs));

    let mut linux = Linux::default();
    let in_userns = input.namespaces.user != Ns::Host;
    if in_userns && input.namespaces.user == Ns::New && input.namespaces.uid_mappings.is_empty() {
        return Err(Error::UserNamespace { problem: "a new one needs mappings of user ids" });
    }
    if in_userns && input.namespaces.user == Ns::New && input.namespaces.gid_mappings.is_empty() {
        return Err(Error::UserNamespace { problem: "a new one needs mappings of group ids" });
    }
    let (uids, gids) = match in_userns {
        true => {
            (mappings(&input.namespaces.uid_mappings)?, mappings(&input.namespaces.gid_mappings)?)
        }
        false => (None, None),
    };
    linux
        .set_uid_mappings(uids)
        .set_gid_mappings(gids)
        .set_sysctl(sysctls(&input.sysctls, &input.namespaces)?)
        .set_resources(Some(resources(input)?))
        .set_cgroups_path(non_empty(&input.cgroups_path).map(PathBuf::from))
        .set_namespaces(Some(namespaces(&input.namespaces)))
        .set_devices(devices::nodes(input)?)
        .set_seccomp(seccomp::assemble(&input.seccomp, &input.host, caps.bounding)?)
        .set_rootfs_propagation(propagation.map(str::to_owned))
        .set_masked_paths(paths(input, input.masked_paths.as_deref(), &DEFAULT_MASKED_PATHS))
        .set_readonly_paths(paths(input, input.readonly_paths.as_deref(), &DEFAULT_READONLY_PATHS))
        .set_mount_label(input.mount_label.clone().filter(|l| !l.is_empty()))
        .set_net_devices(net_devices(input)?)
        .set_intel_rdt(input.intel_rdt.as_ref().map(intel_rdt));

    let mut spec = Spec::default();
    spec.set_version(SPEC_VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts))
        .set_process(Some(process))
        .set_hostname(input.hostname.clone().filter(|h| !h.is_empty()))
        .set_hooks(hooks(input)?)
        .set_annotations(Some(to_hash(&input.annotations)).filter(|a| !a.is_empty()))
        .set_linux(Some(linux));
    canonical(&spec)
}

fn hooks(input: &SpecInput) -> Result<Option<Hooks>> {
    let parse = |hooks| serde_json::from_value(hooks).map_err(|source| Error::Json { source });
    input.hooks.clone().map(parse).transpose()
}

fn intel_rdt(input: &IntelRdt) -> LinuxIntelRdt {
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_clos_id(non_empty(&input.class))
        .set_l3_cache_schema(non_empty(&input.l3_cache_schema))
        .set_mem_bw_schema(non_empty(&input.mem_bw_schema))
        .set_schemata(Some(input.schemata.clone()).filter(|s| !s.is_empty()))
        .set_enable_monitoring(Some(true).filter(|_| input.enable_monitoring));
    rdt
}

fn net_devices(input: &SpecInput) -> Result<Option<HashMap<String, LinuxNetDevice>>> {
    if let Some(name) = input.net_devices.keys().next()
        && input.namespaces.network == Ns::Host
    {
        return Err(Error::NetDeviceOfHost { name: name.clone() });
    }
    let devices = input.net_devices.iter().map(|(host, name)| {
        let device = LinuxNetDeviceBuilder::default().name(name.clone()).build()?;
        Ok((host.clone(), device))
    });
    Ok(Some(devices.collect::<Result<HashMap<_, _>>>()?).filter(|d| !d.is_empty()))
}

fn check_hostname(input: &SpecInput) -> Result<()> {
    match input.hostname.as_deref().filter(|h| !h.is_empty()) {
        Some(name) if input.namespaces.uts == Ns::Host => {
            Err(Error::HostnameOfHost { hostname: name.to_owned() })
        }
        Some(name) => no_nul("host name", name),
        None => Ok(()),
    }
}

fn namespaces(input: &Namespaces) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    [
        (Pid, &input.pid),
        (Network, &input.network),
        (Ipc, &input.ipc),
        (Uts, &input.uts),
        (Mount, &input.mount),
        (Cgroup, &input.cgroup),
        (User, &input.user),
    ]
    .into_iter()
    .filter_map(|(typ, ns)| {
        let path = match ns {
            Ns::Host => return None,
            Ns::New => None,
            Ns::Path(path) => Some(path.clone()),
        };
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ).set_path(path);
        Some(namespace)
    })
    .collect()
}

/// The default list with the given ones added, sorted; `None` where nothing is to be done.
fn paths(input: &SpecInput, given: Option<&[String]>, default: &[&str]) -> Option<Vec<String>> {
    if input.privileged || given.is_some_and(<[String]>::is_empty) {
        return Some(Vec::new());
    }
    let mut paths: Vec<String> = default.iter().map(|p| (*p).to_owned()).collect();
    paths.extend(given.unwrap_or_default().iter().cloned());
    paths.sort_unstable();
    paths.dedup();
    Some(paths)
}

fn sysctls(
    input: &BTreeMap<String, String>,
    ns: &Namespaces,
) -> Result<Option<HashMap<String, String>>> {
    for name in input.keys() {
        let dotted = name.replace('/', ".");
        let (namespace, of) = match dotted.as_str() {
            n if n.starts_with("net.") => ("a network", &ns.network),
            "kernel.sem" => ("an IPC", &ns.ipc),
            n if n.starts_with("kernel.shm") || n.starts_with("kernel.msg") => ("an IPC", &ns.ipc),
            n if n.starts_with("fs.mqueue.") => ("an IPC", &ns.ipc),
            "kernel.domainname" | "kernel.hostname" => ("a UTS", &ns.uts),
            _ => return Err(Error::SysctlGlobal { name: name.clone() }),
        };
        if *of == Ns::Host {
            return Err(Error::SysctlNamespace { name: name.clone(), namespace });
        }
    }
    Ok(Some(to_hash(input)).filter(|s| !s.is_empty()))
}

/// The `linux.resources` object of these limits, without rules for devices, as JSON: what
/// `runtime update --resources` takes.
///
/// # Errors
/// [`Error`]: a weight of block I/O that is none.
pub fn limits(resources: &Resources) -> Result<Vec<u8>> {
    canonical(&without_devices(resources)?)
}

fn resources(input: &SpecInput) -> Result<LinuxResources> {
    let mut resources = without_devices(&input.resources)?;
    resources.set_devices(Some(devices::rules(input)));
    Ok(resources)
}

fn without_devices(r: &Resources) -> Result<LinuxResources> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(r.cpu_shares.filter(|v| *v != 0))
        .set_quota(r.cpu_quota.filter(|v| *v != 0).map(|v| v.max(-1)))
        .set_period(r.cpu_period.filter(|v| *v != 0))
        .set_cpus(r.cpuset_cpus.as_deref().and_then(non_empty))
        .set_mems(r.cpuset_mems.as_deref().and_then(non_empty));
    let bytes = |v: Option<i64>| v.filter(|v| *v != 0).map(|v| v.max(-1));
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(bytes(r.memory_limit))
        .set_swap(bytes(r.memory_swap))
        .set_reservation(bytes(r.memory_reservation));
    let hugepages: Vec<_> = r
        .hugepage_limits
        .iter()
        .map(|(size, limit)| {
            let mut page = LinuxHugepageLimit::default();
            page.set_page_size(size.clone()).set_limit(i64::try_from(*limit).unwrap_or(i64::MAX));
            page
        })
        .collect();
    let block_io = r
        .blkio_weight
        .map(|weight| LinuxBlockIoBuilder::default().weight(weight).build())
        .transpose()?;
    let mut resources = LinuxResources::default();
    resources
        .set_cpu(Some(cpu).filter(|c| *c != LinuxCpu::default()))
        .set_memory(Some(memory).filter(|m| *m != LinuxMemory::default()))
        .set_pids(r.pids_limit.filter(|v| *v != 0).map(|v| {
            let mut pids = LinuxPids::default();
            pids.set_limit(v.max(-1));
            pids
        }))
        .set_block_io(block_io)
        .set_hugepage_limits(Some(hugepages).filter(|h| !h.is_empty()))
        .set_unified(Some(to_hash(&r.unified)).filter(|u| !u.is_empty()));
    Ok(resources)
}

fn to_hash(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{IdMapping, ProcessInput};
    use serde_json::{Value, json};

    fn input() -> SpecInput {
        SpecInput {
            process: ProcessInput { args: vec!["sh".into()], ..Default::default() },
            ..Default::default()
        }
    }

    fn json(input: &SpecInput) -> Value {
        serde_json::from_slice(&build(input).unwrap()).unwrap()
    }

    #[test]
    fn sysctls_stay_in_their_namespaces() {
        let with = |name: &str, namespaces: Namespaces| {
            let sysctls = [(name.to_owned(), "1".to_owned())].into();
            build(&SpecInput { sysctls, namespaces, ..input() })
        };
        let host_net = || Namespaces { network: Ns::Host, ..Default::default() };
        let host_ipc = || Namespaces { ipc: Ns::Host, ..Default::default() };
        let host_uts = || Namespaces { uts: Ns::Host, ..Default::default() };
        for (name, host) in [
            ("net.core.somaxconn", host_net()),
            ("net/ipv4/ip_forward", host_net()),
            ("kernel.shmmax", host_ipc()),
            ("kernel.msgmax", host_ipc()),
            ("kernel.sem", host_ipc()),
            ("fs.mqueue.msg_max", host_ipc()),
            ("kernel.domainname", host_uts()),
        ] {
            with(name, Namespaces::default()).unwrap();
            assert!(
                matches!(with(name, host), Err(Error::SysctlNamespace { name: n, .. }) if n == name)
            );
        }
        for name in ["kernel.panic", "vm.swappiness", "netx", "fs.file-max", "kernel.semx", ""] {
            assert!(
                matches!(with(name, Namespaces::default()), Err(Error::SysctlGlobal { name: n }) if n == name)
            );
        }
    }

    #[test]
    fn the_hosts_name_is_not_changed() {
        let namespaces = Namespaces { uts: Ns::Host, ..Default::default() };
        let named = SpecInput { hostname: Some("x".into()), namespaces, ..input() };
        assert!(matches!(build(&named), Err(Error::HostnameOfHost { .. })));
        assert!(
            json(&SpecInput { hostname: Some(String::new()), ..named }).get("hostname").is_none()
        );
    }

    #[test]
    fn masked_paths() {
        let masked = |input: &SpecInput| json(input)["linux"]["maskedPaths"].clone();
        assert_eq!(masked(&input()), json!(DEFAULT_MASKED_PATHS));
        assert_eq!(masked(&SpecInput { masked_paths: Some(vec![]), ..input() }), json!([]));
        let more = masked(&SpecInput { masked_paths: Some(vec!["/a".into()]), ..input() });
        assert_eq!(more.as_array().unwrap().len(), DEFAULT_MASKED_PATHS.len() + 1);
        assert_eq!(masked(&SpecInput { privileged: true, ..input() }), json!([]));
    }

    #[test]
    fn zero_is_no_limit_and_minus_one_is_unlimited() {
        let zero = Resources {
            cpu_shares: Some(0),
            cpu_quota: Some(0),
            cpu_period: Some(0),
            cpuset_cpus: Some(String::new()),
            memory_limit: Some(0),
            memory_swap: Some(0),
            pids_limit: Some(0),
            ..Default::default()
        };
        let got = json(&SpecInput { resources: zero, ..input() });
        let keys: Vec<_> = got["linux"]["resources"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["devices"]);
        let unlimited = Resources {
            memory_limit: Some(-5),
            cpu_quota: Some(-1),
            pids_limit: Some(-1),
            ..Default::default()
        };
        let got = json(&SpecInput { resources: unlimited, ..input() });
        let got = &got["linux"]["resources"];
        assert_eq!((&got["memory"], &got["pids"]), (&json!({"limit": -1}), &json!({"limit": -1})));
    }

    #[test]
    fn limits_alone_have_no_devices() {
        let some = Resources {
            cpu_shares: Some(5),
            hugepage_limits: [("2MB".into(), 0)].into(),
            ..Default::default()
        };
        let want = r#"{"cpu":{"shares":5},"hugepageLimits":[{"limit":0,"pageSize":"2MB"}]}"#;
        assert_eq!(String::from_utf8(limits(&some).unwrap()).unwrap(), want);
        assert_eq!(limits(&Resources::default()).unwrap(), b"{}");
    }

    #[test]
    fn a_new_user_namespace_needs_mappings() {
        let namespaces = Namespaces { user: Ns::New, ..Default::default() };
        let bad = SpecInput { namespaces: namespaces.clone(), ..input() };
        assert!(matches!(build(&bad), Err(Error::UserNamespace { .. })));
        let uid_mappings = vec![IdMapping { container_id: 0, host_id: 1 << 16, size: 1 << 16 }];
        let bad = SpecInput { namespaces: Namespaces { uid_mappings, ..namespaces }, ..input() };
        assert!(matches!(build(&bad), Err(Error::UserNamespace { .. })));
    }

    #[test]
    fn hooks_keep_their_order_and_are_checked() {
        let hooks = json!({"prestart": [{"path": "/b"}, {"path": "/a", "args": ["a"]}]});
        let got = json(&SpecInput { hooks: Some(hooks.clone()), ..input() });
        assert_eq!(got["hooks"], hooks);
        let bad = SpecInput { hooks: Some(json!({"prestart": "x"})), ..input() };
        assert!(matches!(build(&bad), Err(Error::Json { .. })));
    }
}
