//! Seccomp profiles in the JSON form that Docker and Podman use and that the kubelet hands on for
//! `Localhost`: the runtime specification's form, with conditions under which a rule counts.
//!
//! ```text
//! {"defaultAction", "defaultErrnoRet"|"defaultErrno", "archMap"|"architectures", "flags",
//!  "syscalls": [{"names"|"name", "action", "errnoRet"|"errno", "args",
//!                "includes": {"caps", "arches", "minKernel"}, "excludes": {…}}]}
//! ```
//! A rule counts if the container has all capabilities that `includes` names, runs on one of its
//! architectures and on a kernel at least as new, and if nothing in `excludes` is true.
//! A profile in the runtime specification's own form is also one of these.

use crate::caps::{self, CapSet};
use crate::error::{Error, Result};
use crate::host::parse_release;
use crate::input::{Arch, Host};
use oci_spec::runtime::{
    Arch as OciArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// A profile, not yet chosen for a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    pub(super) default_action: String,
    pub(super) default_errno_ret: Option<u32>,
    pub(super) default_errno: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) architectures: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) arch_map: Vec<ArchMap>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) flags: Vec<String>,
    pub(super) listener_path: Option<PathBuf>,
    pub(super) listener_metadata: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) syscalls: Vec<Rule>,
}

/// An architecture, and those whose system calls its kernel takes as well.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ArchMap {
    pub(super) architecture: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) sub_architectures: Vec<String>,
}

/// What happens to some system calls.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    pub(super) name: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) names: Vec<String>,
    pub(super) action: String,
    pub(super) errno_ret: Option<u32>,
    pub(super) errno: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) args: Vec<Arg>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) includes: Filter,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) excludes: Filter,
}

/// A condition on an argument.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Arg {
    pub(super) index: usize,
    pub(super) value: u64,
    #[serde(default)]
    pub(super) value_two: u64,
    pub(super) op: String,
}

/// A condition on the container and its node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Filter {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) caps: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) arches: Vec<String>,
    pub(super) min_kernel: Option<String>,
}

/// Writers in Go leave `null` where a list is empty.
fn null_is_empty<'de, D, T>(from: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Reads a profile.
pub(super) fn parse(json: &[u8]) -> Result<Profile> {
    serde_json::from_slice(json).map_err(|source| Error::SeccompParse { source })
}

impl Profile {
    /// The filter for a container with these capabilities on this node.
    pub(super) fn select(&self, host: &Host, caps: CapSet) -> Result<LinuxSeccomp> {
        let mut syscalls = Vec::with_capacity(self.syscalls.len());
        for rule in &self.syscalls {
            if rule.includes.all_true(host, caps)? && !rule.excludes.any_true(host, caps)? {
                syscalls.extend(rule.build()?);
            }
        }
        let mut seccomp = LinuxSeccomp::default();
        seccomp
            .set_default_action(word("action", &self.default_action)?)
            .set_default_errno_ret(errno(self.default_errno_ret, self.default_errno.as_deref())?)
            .set_architectures(self.select_arches(host)?)
            .set_flags(words::<LinuxSeccompFilterFlag>("flag", &self.flags)?)
            .set_listener_path(self.listener_path.clone().filter(|p| !p.as_os_str().is_empty()))
            .set_listener_metadata(self.listener_metadata.clone().filter(|m| !m.is_empty()))
            .set_syscalls(Some(syscalls).filter(|s| !s.is_empty()));
        Ok(seccomp)
    }

    /// Whether every word in it is known, also where it does not count here.
    pub(super) fn check(&self, host: &Host) -> Result<()> {
        self.select(host, CapSet::EMPTY)?;
        for rule in &self.syscalls {
            rule.includes.all_true(host, CapSet::EMPTY)?;
            rule.excludes.any_true(host, CapSet::EMPTY)?;
            rule.build()?;
        }
        Ok(())
    }

    fn select_arches(&self, host: &Host) -> Result<Option<Vec<OciArch>>> {
        if !self.architectures.is_empty() && !self.arch_map.is_empty() {
            return Err(Error::SeccompProfile {
                problem: "\"architectures\" and \"archMap\" exclude each other",
            });
        }
        if !self.architectures.is_empty() {
            return words("architecture", &self.architectures);
        }
        let Some(map) = self.arch_map.iter().find(|m| m.architecture == scmp_name(host.arch))
        else {
            return Ok(None);
        };
        let names: Vec<_> = std::iter::once(&map.architecture)
            .chain(&map.sub_architectures)
            .filter(|name| host.x32 || *name != "SCMP_ARCH_X32")
            .cloned()
            .collect();
        words("architecture", &names)
    }
}

impl Rule {
    fn build(&self) -> Result<Option<LinuxSyscall>> {
        let names = match (&self.name, self.names.as_slice()) {
            (Some(name), []) => vec![name.clone()],
            (Some(_), _) => {
                return Err(Error::SeccompProfile {
                    problem: "\"name\" and \"names\" of a rule exclude each other",
                });
            }
            // A rule for nothing.
            (None, []) => return Ok(None),
            (None, names) => names.to_vec(),
        };
        if names.iter().any(String::is_empty) {
            return Err(Error::SeccompProfile { problem: "a system call without a name" });
        }
        let args = self.args.iter().map(Arg::build).collect::<Result<Vec<_>>>()?;
        let mut syscall = LinuxSyscall::default();
        syscall
            .set_names(names)
            .set_action(word::<LinuxSeccompAction>("action", &self.action)?)
            .set_errno_ret(errno(self.errno_ret, self.errno.as_deref())?)
            .set_args(Some(args).filter(|a| !a.is_empty()));
        Ok(Some(syscall))
    }
}

impl Arg {
    fn build(&self) -> Result<LinuxSeccompArg> {
        if self.index > 5 {
            return Err(Error::SeccompProfile { problem: "system calls have six arguments" });
        }
        Ok(LinuxSeccompArgBuilder::default()
            .index(self.index)
            .value(self.value)
            .value_two(self.value_two)
            .op(word::<LinuxSeccompOperator>("operator", &self.op)?)
            .build()?)
    }
}

impl Filter {
    /// Whether all that is named is true; of architectures one is enough.
    fn all_true(&self, host: &Host, caps: CapSet) -> Result<bool> {
        let arch = self.arches.is_empty() || self.has_arch(host);
        let kernel = self.has_kernel(host)?.unwrap_or(true);
        Ok(arch && kernel && self.caps.iter().all(|c| caps.has(c)))
    }

    /// Whether anything that is named is true.
    fn any_true(&self, host: &Host, caps: CapSet) -> Result<bool> {
        let kernel = self.has_kernel(host)?.unwrap_or(false);
        Ok(kernel || self.has_arch(host) || self.caps.iter().any(|c| caps.has(c)))
    }

    fn has_arch(&self, host: &Host) -> bool {
        self.arches.iter().any(|a| a == host.arch.docker())
    }

    fn has_kernel(&self, host: &Host) -> Result<Option<bool>> {
        for cap in &self.caps {
            if caps::number(cap).is_none() {
                return Err(unknown("capability", cap));
            }
        }
        match self.min_kernel.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => parse_release(text)
                .map(|min| Some(host.kernel >= min))
                .ok_or_else(|| unknown("kernel version", text)),
        }
    }
}

/// The name that libseccomp gives an architecture.
pub(super) const fn scmp_name(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "SCMP_ARCH_X86_64",
        Arch::Aarch64 => "SCMP_ARCH_AARCH64",
        Arch::S390x => "SCMP_ARCH_S390X",
        Arch::Ppc64le => "SCMP_ARCH_PPC64LE",
        Arch::Riscv64 => "SCMP_ARCH_RISCV64",
    }
}

fn unknown(what: &'static str, value: &str) -> Error {
    Error::SeccompWord { what, value: value.to_owned() }
}

/// A word of the runtime specification.
fn word<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_| unknown(what, text))
}

fn words<T: DeserializeOwned>(what: &'static str, texts: &[String]) -> Result<Option<Vec<T>>> {
    let words = texts.iter().map(|t| word(what, t)).collect::<Result<Vec<_>>>()?;
    Ok(Some(words).filter(|w| !w.is_empty()))
}

/// The number of an error, given as number, as name, or as both.
fn errno(number: Option<u32>, name: Option<&str>) -> Result<Option<u32>> {
    const NAMES: [(&str, u32); 13] = [
        ("EPERM", 1),
        ("ENOENT", 2),
        ("EIO", 5),
        ("EAGAIN", 11),
        ("ENOMEM", 12),
        ("EACCES", 13),
        ("EBUSY", 16),
        ("ENODEV", 19),
        ("EINVAL", 22),
        ("ENOTTY", 25),
        ("ENOSYS", 38),
        ("EOPNOTSUPP", 95),
        ("EAFNOSUPPORT", 97),
    ];
    match (number, name) {
        (Some(number), _) => Ok(Some(number)),
        (None, None | Some("")) => Ok(None),
        (None, Some(name)) => NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| Some(*number))
            .or_else(|| name.parse().ok().map(Some))
            .ok_or_else(|| unknown("error name", name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn select(profile: &serde_json::Value, host: &Host, caps: &[&str]) -> Result<LinuxSeccomp> {
        parse(profile.to_string().as_bytes())?.select(host, CapSet::from_names(caps).unwrap())
    }

    fn host(arch: Arch, kernel: (u32, u32)) -> Host {
        Host { arch, kernel, ..Host::default() }
    }

    fn names(s: &LinuxSeccomp) -> Vec<String> {
        s.syscalls().iter().flatten().flat_map(|r| r.names().clone()).collect()
    }

    fn sample() -> serde_json::Value {
        json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS", "flags": null,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            ],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["two"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}},
                {"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
                {"names": ["not_arm"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"name": "old", "action": "SCMP_ACT_ERRNO", "errno": "EPERM",
                 "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]},
            ]
        })
    }

    #[test]
    fn conditions() {
        let x86 = select(&sample(), &host(Arch::X86_64, (4, 8)), &[]).unwrap();
        assert_eq!(names(&x86), ["read", "unshare", "arch_prctl", "not_arm", "ptrace", "old"]);
        assert_eq!(x86.default_errno_ret(), Some(38));
        let arches = serde_json::to_value(x86.architectures()).unwrap();
        assert_eq!(arches, json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]));
        let old = x86.syscalls().as_ref().unwrap().last().unwrap().clone();
        assert_eq!(
            serde_json::to_value(old).unwrap(),
            json!({"names": ["old"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                   "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]})
        );
        let arm = select(&sample(), &host(Arch::Aarch64, (4, 7)), &["SYS_ADMIN"]).unwrap();
        assert_eq!(names(&arm), ["read", "mount", "old"]);
        let none = select(&sample(), &host(Arch::Riscv64, (6, 1)), &[]).unwrap();
        assert_eq!(none.architectures(), &None);
    }

    #[test]
    fn what_is_refused() {
        let with = |pointer: &str, value: serde_json::Value| {
            let mut profile = sample();
            *profile.pointer_mut(pointer).unwrap() = value;
            select(&profile, &host(Arch::X86_64, (6, 1)), &[])
        };
        let word = |r: Result<LinuxSeccomp>, want: &str| match r {
            Err(Error::SeccompWord { value, .. }) => assert_eq!(value, want),
            other => panic!("{other:?}"),
        };
        word(with("/defaultAction", json!("ALLOW")), "ALLOW");
        word(with("/defaultErrno", json!("EFOO")), "EFOO");
        word(with("/flags", json!(["F"])), "F");
        word(with("/archMap/0/subArchitectures", json!(["PDP11"])), "PDP11");
        word(with("/syscalls/0/action", json!("")), "");
        word(with("/syscalls/1/includes/caps", json!(["CAP_ADMIN"])), "CAP_ADMIN");
        word(with("/syscalls/6/includes/minKernel", json!("new")), "new");
        word(with("/syscalls/7/args/0/op", json!("==")), "==");
        assert!(matches!(
            with("/syscalls/7/args/0/index", json!(6)),
            Err(Error::SeccompProfile { .. })
        ));
        assert!(matches!(
            with("/syscalls/0/names", json!([""])),
            Err(Error::SeccompProfile { .. })
        ));
        assert!(matches!(with("/syscalls", json!("x")), Err(Error::SeccompParse { .. })));
        let mut both = sample();
        both["architectures"] = json!(["SCMP_ARCH_X86"]);
        assert!(matches!(
            select(&both, &host(Arch::X86_64, (6, 1)), &[]),
            Err(Error::SeccompProfile { .. })
        ));
        let mut both = sample();
        both["syscalls"][7]["names"] = json!(["x"]);
        assert!(matches!(
            select(&both, &host(Arch::X86_64, (6, 1)), &[]),
            Err(Error::SeccompProfile { .. })
        ));
        assert!(matches!(parse(b"{}"), Err(Error::SeccompParse { .. })));
        assert!(matches!(parse(b""), Err(Error::SeccompParse { .. })));
    }

    #[test]
    fn rules_for_others_are_checked_too() {
        let host = host(Arch::X86_64, (6, 1));
        let mut profile = sample();
        let check = |p: &serde_json::Value| parse(p.to_string().as_bytes())?.check(&host);
        check(&profile).unwrap();
        profile["syscalls"][1]["action"] = json!("SCMP_ACT_MAYBE");
        select(&profile, &host, &[]).unwrap();
        assert!(
            matches!(check(&profile), Err(Error::SeccompWord { value, .. }) if value == "SCMP_ACT_MAYBE")
        );
    }

    #[test]
    fn the_specifications_own_form() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ARM"],
            "listenerPath": "/run/x.sock", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        });
        let got = select(&profile, &host(Arch::X86_64, (6, 1)), &[]).unwrap();
        assert_eq!(serde_json::to_value(got).unwrap(), profile);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes);
        }
    }
}
