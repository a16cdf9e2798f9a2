//! The profile of containers that ask for none of their own: a list of what is allowed. What is
//! not on it answers `ENOSYS`, so that a program built for a newer kernel falls back to what it
//! did before. `EPERM` is for the calls of which programs, or those who read their messages, take
//! "may not" and "is not there" for different things.
//!
//! How it decides on the calls that open a way out:
//!
//! | call                          | without the capability                         | with  |
//! |-------------------------------|------------------------------------------------|-------|
//! | `clone`                       | only without a namespace flag                  | any   |
//! | `clone3`                      | `ENOSYS`: its flags lie in memory; libc then uses `clone` | any |
//! | `unshare`, `setns`, `mount`   | `EPERM`                                        | any   |
//! | the newer calls for mounting  | `ENOSYS`: programs then use `mount`            | any   |
//! | `socket`                      | families on a list; not the kernel's crypto, virtual machine sockets, audit | audit with CAP_AUDIT_WRITE |
//! | `personality`                 | the values that only change numbers            | same  |
//! | `keyctl` and the other key calls | `EPERM`                                     | same  |
//! | `io_uring_*`, `userfaultfd`, `kexec_*` and what else no rule names | `ENOSYS`  | same  |
//!
//! No condition that allows is an "is not": "is not 40" would be true for 40 with a bit set above
//! the 32 that the kernel looks at. Families are compared in all 64 bits; of a protocol, single
//! bits that audit's would have otherwise. Calls that 32-bit x86 hides in `socketcall`
//! cannot be looked into.
//!
//! A runtime compiles the filter for each start of a container and for each command run in one,
//! which takes longer with every name, every condition and every ABI. So nothing is here that
//! does not change an answer: see [`socket`] and [`TOLD_APART`], and `Host::x32`.

use super::profile::{ArchMap, Arg, Filter, Profile, Rule};

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
const EQUAL: &str = "SCMP_CMP_EQ";
const AT_MOST: &str = "SCMP_CMP_LE";
const MASKED_EQUAL: &str = "SCMP_CMP_MASKED_EQ";

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

/// The flags of clone(2) that make namespaces: cgroup, UTS, IPC, user, PID, network, mount. The
/// one for time shares its bits with the exit signal and counts for `clone3` only.
const NAMESPACE_FLAGS: u64 =
    0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000 | 0x0002_0000;

/// Files and folders.
const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat \
    dup dup2 dup3 faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat \
    fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock \
    fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 \
    futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init inotify_init1 \
    inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listxattr llistxattr \
    lremovexattr lseek _llseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat \
    name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 \
    pwritev pwritev2 read readahead readdir readlink readlinkat readv removexattr rename renameat \
    renameat2 rmdir sendfile sendfile64 setxattr splice stat stat64 statfs statfs64 statx symlink \
    symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime \
    utimensat utimensat_time64 utimes write writev fanotify_mark io_cancel io_destroy \
    io_getevents io_setup io_submit cachestat";

/// Memory.
const MEMORY: &str = "brk get_mempolicy madvise mbind membarrier memfd_create memfd_secret \
    mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap msync munlock munlockall munmap \
    pkey_alloc pkey_free pkey_mprotect remap_file_pages set_mempolicy map_shadow_stack mseal";

/// Processes, threads, users, scheduling.
const PROCESSES: &str = "capget capset execve execveat exit exit_group fork futex \
    futex_time64 futex_waitv futex_wait futex_wake futex_requeue get_robust_list get_thread_area \
    getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid \
    getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit \
    getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal prctl prlimit64 \
    process_mrelease restart_syscall rseq sched_get_priority_max sched_get_priority_min \
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address \
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid \
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
    setreuid32 setrlimit setsid setuid setuid32 ugetrlimit vfork wait4 waitid waitpid syscall";

/// Signals, clocks, waiting.
const SIGNALS_AND_TIME: &str = "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres \
    clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 getitimer gettimeofday kill nanosleep _newselect pause poll \
    ppoll ppoll_time64 pselect6 pselect6_time64 rt_sigaction rt_sigpending rt_sigprocmask \
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo select setitimer sigaction sigaltstack signal signalfd signalfd4 sigpending \
    sigprocmask sigreturn sigsuspend tgkill time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd timerfd_create \
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill";

/// Sockets, bar `socket` itself, and other ways to talk.
const TALKING: &str = "accept accept4 bind connect getpeername getsockname getsockopt ipc listen \
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg semctl semget semop semtimedop semtimedop_time64 send sendmmsg \
    sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown socketcall socketpair";

/// About the machine.
const MACHINE: &str = "getrandom sysinfo uname";

/// Allowed on an architecture only (the kernel's names for it, in profiles' words).
const BY_ARCH: [(&[&str], &str); 5] = [
    (&["amd64", "x32", "x86"], "arch_prctl modify_ldt"),
    (&["ppc64le"], "sync_file_range2"),
    (
        &["arm", "arm64"],
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    (&["s390", "s390x"], "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    (&["riscv64"], "riscv_flush_icache"),
];

/// Allowed with a capability, refused without: with `EPERM` if in [`TOLD_APART`].
const BY_CAPABILITY: [(&str, &str); 12] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
         move_mount open_tree pivot_root quotactl quotactl_fd setdomainname sethostname setns \
         umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module query_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_SYS_NICE", "set_mempolicy_home_node"),
];

/// The calls above, and those of which more than one capability is enough, that answer `EPERM`
/// when refused: programs ask with them whether they may, or report what they answer. For all
/// others `ENOSYS` does, or does better: there is an older call to fall back to (`move_mount`), or
/// the feature counts as missing (`fanotify_init`, `quotactl`).
const TOLD_APART: &str = "bpf chroot clock_settime mount perf_event_open pivot_root reboot \
    sethostname setns settimeofday umount2 unshare";

/// Refused with `EPERM` whoever asks: keys belong to users, not to containers.
const KEYS: &str = "add_key keyctl request_key";

/// What personality(2) may set: Linux, Linux in 32 bits, both with the old uname; -1 asks.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const AF_NETLINK: u64 = 16;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// The last family before [`AF_NETLINK`].
const BEFORE_NETLINK: u64 = 15;
const AF_PACKET: u64 = 17;
/// The last family before [`AF_ALG`].
const BEFORE_ALG: u64 = 37;
/// The families from there to the last, without the two refused: bits compared, and their value.
const AFTER_ALG: [(u64, u64); 4] = [(u64::MAX, 39), (u64::MAX, 41), (!1, 42), (!1, 44)];
const NETLINK_AUDIT: u64 = 9;
/// The bits that tell netlink's 32 protocols apart.
const NETLINK_BITS: [u64; 5] = [1, 2, 4, 8, 16];

/// The profile.
pub(super) fn profile() -> Profile {
    let mut syscalls = vec![
        Rule { errno_ret: Some(EPERM), ..rule(ERRNO, KEYS) },
        rule(ALLOW, FILES),
        rule(ALLOW, MEMORY),
        rule(ALLOW, PROCESSES),
        rule(ALLOW, SIGNALS_AND_TIME),
        rule(ALLOW, TALKING),
        rule(ALLOW, MACHINE),
    ];
    for (arches, names) in BY_ARCH {
        let arches = arches.iter().map(|a| (*a).to_owned()).collect();
        syscalls
            .push(Rule { includes: Filter { arches, ..Filter::default() }, ..rule(ALLOW, names) });
    }
    // Before that version a tracer could change a call after the filter had passed it.
    syscalls.push(Rule {
        includes: Filter { min_kernel: Some("4.8".to_owned()), ..Filter::default() },
        ..rule(ALLOW, "ptrace process_vm_readv process_vm_writev")
    });
    for value in PERSONALITIES {
        syscalls.push(with_args(ALLOW, "personality", vec![equal(0, value)]));
    }
    for (capability, names) in BY_CAPABILITY {
        syscalls.push(Rule { includes: capabilities(&[capability]), ..rule(ALLOW, names) });
        let names: Vec<&str> = names.split_whitespace().filter(|n| told_apart(n)).collect();
        if !names.is_empty() {
            syscalls.push(Rule {
                errno_ret: Some(EPERM),
                excludes: capabilities(&[capability]),
                ..rule(ERRNO, &names.join(" "))
            });
        }
    }
    syscalls.extend(either("bpf", "CAP_BPF"));
    syscalls.extend(either("perf_event_open", "CAP_PERFMON"));
    syscalls.extend(clone());
    syscalls.extend(socket());
    Profile {
        default_action: ERRNO.to_owned(),
        default_errno_ret: Some(ENOSYS),
        arch_map: arch_map(),
        syscalls,
        ..Profile::default()
    }
}

fn told_apart(name: &str) -> bool {
    TOLD_APART.split_whitespace().any(|n| n == name)
}

/// A call that CAP_SYS_ADMIN allows as well as a capability of its own. The rules exclude each
/// other, as the same one twice is no good to libseccomp.
fn either(name: &str, capability: &str) -> [Rule; 3] {
    let admin = "CAP_SYS_ADMIN";
    [
        Rule { includes: capabilities(&[admin]), ..rule(ALLOW, name) },
        Rule {
            includes: capabilities(&[capability]),
            excludes: capabilities(&[admin]),
            ..rule(ALLOW, name)
        },
        Rule {
            errno_ret: Some(EPERM),
            excludes: capabilities(&[admin, capability]),
            ..rule(ERRNO, name)
        },
    ]
}

fn clone() -> [Rule; 4] {
    let without = || capabilities(&["CAP_SYS_ADMIN"]);
    let s390 = || vec!["s390".to_owned(), "s390x".to_owned()];
    let flags = |index| masked(index, NAMESPACE_FLAGS, 0);
    [
        Rule { includes: without(), ..rule(ALLOW, "clone clone3") },
        Rule {
            excludes: Filter { arches: s390(), ..without() },
            ..with_args(ALLOW, "clone", vec![flags(0)])
        },
        // There the stack comes first.
        Rule {
            includes: Filter { arches: s390(), ..Filter::default() },
            excludes: without(),
            ..with_args(ALLOW, "clone", vec![flags(1)])
        },
        Rule { errno_ret: Some(ENOSYS), excludes: without(), ..rule(ERRNO, "clone3") },
    ]
}

/// Rules that allow may overlap; one that refuses overlaps with none, as libseccomp does not say
/// which of two different answers is given.
///
/// Without the capability for audit, a socket up to [`BEFORE_ALG`] is allowed if one of the bits
/// of its protocol differs from [`NETLINK_AUDIT`]'s: so is every other protocol of netlink, and
/// audit is not, whatever is in the bits above. The families before netlink and [`AF_PACKET`],
/// whose protocols are those of Internet and Ethernet, are allowed with any; the protocols of the
/// rest are small numbers other than that.
fn socket() -> Vec<Rule> {
    let audit = || capabilities(&["CAP_AUDIT_WRITE"]);
    let allow = |args| with_args(ALLOW, "socket", args);
    let refuse = |errno, args| Rule { errno_ret: Some(errno), ..with_args(ERRNO, "socket", args) };
    let mut rules = vec![Rule { includes: audit(), ..allow(vec![at_most(0, BEFORE_ALG)]) }];
    let mut without = vec![
        allow(vec![at_most(0, BEFORE_NETLINK)]),
        allow(vec![equal(0, AF_PACKET)]),
        // What programs that log to audit take for "there is no audit here".
        refuse(EINVAL, vec![equal(0, AF_NETLINK), equal(2, NETLINK_AUDIT)]),
    ];
    for bit in NETLINK_BITS {
        let differs = masked(2, bit, !NETLINK_AUDIT & bit);
        without.push(allow(vec![at_most(0, BEFORE_ALG), differs]));
    }
    rules.extend(without.into_iter().map(|rule| Rule { excludes: audit(), ..rule }));
    rules.extend(AFTER_ALG.map(|(mask, value)| allow(vec![masked(0, mask, value)])));
    rules.extend([AF_ALG, AF_VSOCK].map(|f| refuse(EAFNOSUPPORT, vec![equal(0, f)])));
    rules
}

fn arch_map() -> Vec<ArchMap> {
    [
        ("SCMP_ARCH_X86_64", &["SCMP_ARCH_X86", "SCMP_ARCH_X32"] as &[&str]),
        ("SCMP_ARCH_AARCH64", &["SCMP_ARCH_ARM"]),
        ("SCMP_ARCH_S390X", &["SCMP_ARCH_S390"]),
        ("SCMP_ARCH_PPC64LE", &[]),
        ("SCMP_ARCH_RISCV64", &[]),
    ]
    .into_iter()
    .map(|(architecture, subs)| ArchMap {
        architecture: architecture.to_owned(),
        sub_architectures: subs.iter().map(|s| (*s).to_owned()).collect(),
    })
    .collect()
}

fn rule(action: &str, names: &str) -> Rule {
    let mut names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    names.sort_unstable();
    Rule { names, action: action.to_owned(), ..Rule::default() }
}

fn with_args(action: &str, names: &str, args: Vec<Arg>) -> Rule {
    Rule { args, ..rule(action, names) }
}

fn equal(index: usize, value: u64) -> Arg {
    Arg { index, value, value_two: 0, op: EQUAL.to_owned() }
}

fn at_most(index: usize, value: u64) -> Arg {
    Arg { index, value, value_two: 0, op: AT_MOST.to_owned() }
}

/// Whether the bits of a mask have these values.
fn masked(index: usize, mask: u64, value: u64) -> Arg {
    Arg { index, value: mask, value_two: value, op: MASKED_EQUAL.to_owned() }
}

fn capabilities(names: &[&str]) -> Filter {
    Filter { caps: names.iter().map(|n| (*n).to_owned()).collect(), ..Filter::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::CapSet;
    use crate::input::{Arch, Host};
    use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};
    use std::collections::HashSet;

    fn filter(arch: Arch, caps: &[&str]) -> LinuxSeccomp {
        let host = Host { arch, kernel: (6, 1), ..Host::default() };
        profile().select(&host, CapSet::from_names(caps).unwrap()).unwrap()
    }

    fn rules_for<'a>(filter: &'a LinuxSeccomp, name: &str) -> Vec<&'a LinuxSyscall> {
        let rules = filter.syscalls().as_ref().unwrap();
        rules.iter().filter(|r| r.names().iter().any(|n| n == name)).collect()
    }

    /// What a filter answers to a call; `None` is the default answer.
    fn answer(filter: &LinuxSeccomp, name: &str, args: [u64; 6]) -> Option<Result<(), u32>> {
        let holds = |rule: &&&LinuxSyscall| {
            rule.args().iter().flatten().all(|arg| {
                let given = args[arg.index()];
                match serde_json::to_value(arg.op()).unwrap().as_str().unwrap() {
                    EQUAL => given == arg.value(),
                    AT_MOST => given <= arg.value(),
                    MASKED_EQUAL => given & arg.value() == arg.value_two().unwrap(),
                    other => panic!("{other}"),
                }
            })
        };
        let rules = rules_for(filter, name);
        let answers: Vec<_> = rules
            .iter()
            .filter(holds)
            .map(|rule| match rule.action() {
                LinuxSeccompAction::ScmpActAllow => Ok(()),
                _ => Err(rule.errno_ret().unwrap()),
            })
            .collect();
        // Which of two would count is libseccomp's affair.
        assert!(answers.windows(2).all(|a| a[0] == a[1]), "{name} {args:?}: {answers:?}");
        answers.first().copied()
    }

    #[test]
    fn no_call_is_in_two_rules_without_condition() {
        for arch in [Arch::X86_64, Arch::Aarch64, Arch::S390x, Arch::Ppc64le, Arch::Riscv64] {
            for caps in
                [vec![], vec!["SYS_ADMIN"], vec!["BPF"], vec!["SYS_ADMIN", "BPF", "PERFMON"]]
            {
                let filter = filter(arch, &caps);
                let mut seen = HashSet::new();
                for rule in filter.syscalls().iter().flatten().filter(|r| r.args().is_none()) {
                    for name in rule.names() {
                        assert!(seen.insert(name), "{name} on {arch:?} with {caps:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn namespaces_need_a_capability() {
        let plain = filter(Arch::X86_64, &[]);
        let call = |flags| answer(&plain, "clone", [flags, 0, 0, 0, 0, 0]);
        assert_eq!(call(0x003d_0f00), Some(Ok(())), "a thread");
        assert_eq!(call(17), Some(Ok(())), "a fork");
        for flag in
            [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
        {
            assert_eq!(call(flag | 17), None, "{flag:x}");
        }
        let none = [0; 6];
        assert_eq!(answer(&plain, "clone3", none), Some(Err(ENOSYS)));
        for name in TOLD_APART.split_whitespace().chain(KEYS.split_whitespace()) {
            assert_eq!(answer(&plain, name, none), Some(Err(EPERM)), "{name}");
        }
        for name in ["open_tree", "fsopen", "move_mount", "io_uring_setup", "userfaultfd"] {
            assert_eq!(answer(&plain, name, none), None, "{name}");
        }
        let admin = filter(Arch::X86_64, &["SYS_ADMIN"]);
        for name in ["clone", "clone3", "unshare", "setns", "mount", "bpf", "perf_event_open"] {
            assert_eq!(answer(&admin, name, [u64::MAX; 6]), Some(Ok(())), "{name}");
        }
        assert_eq!(answer(&filter(Arch::X86_64, &["BPF"]), "bpf", none), Some(Ok(())));
        let s390 = filter(Arch::S390x, &[]);
        assert_eq!(answer(&s390, "clone", [u64::MAX, 17, 0, 0, 0, 0]), Some(Ok(())));
        assert_eq!(answer(&s390, "clone", [0, 0x1000_0000, 0, 0, 0, 0]), None);
    }

    #[test]
    fn sockets() {
        let plain = filter(Arch::X86_64, &[]);
        let call = |f: &LinuxSeccomp, family, protocol| {
            answer(f, "socket", [family, 1, protocol, 0, 0, 0])
        };
        let audit = filter(Arch::X86_64, &["AUDIT_WRITE"]);
        let families = || (0..=45).filter(|f| ![AF_ALG, AF_VSOCK].contains(f));
        for f in [&plain, &audit] {
            for family in families() {
                for protocol in 0..=8 {
                    assert_eq!(call(f, family, protocol), Some(Ok(())), "{family} {protocol}");
                }
            }
            for protocol in (0..32).filter(|p| *p != NETLINK_AUDIT) {
                assert_eq!(call(f, AF_NETLINK, protocol), Some(Ok(())), "{protocol}");
            }
            // Raw Internet protocols, multipath TCP, frames of Fibre Channel (0x8906, swapped).
            for family in [2, 10, AF_PACKET] {
                for protocol in [9, 41, 137, 255, 262, 0x0689] {
                    assert_eq!(call(f, family, protocol), Some(Ok(())), "{family} {protocol}");
                }
            }
            for unknown in [46, 47, 48, 64, 1 << 31, 1 << 32, u64::MAX] {
                for protocol in [0, 3, NETLINK_AUDIT, u64::MAX] {
                    assert_eq!(call(f, unknown, protocol), None, "{unknown} {protocol}");
                }
            }
            // The kernel takes the lower 32 bits only.
            for family in [AF_ALG, AF_VSOCK] {
                for protocol in [0, NETLINK_AUDIT, u64::MAX] {
                    assert_eq!(call(f, family, protocol), Some(Err(EAFNOSUPPORT)));
                    for above in [1 << 32, 1 << 63] {
                        assert_eq!(call(f, family | above, protocol), None);
                    }
                }
            }
        }
        assert_eq!(call(&plain, AF_NETLINK, NETLINK_AUDIT), Some(Err(EINVAL)));
        for above in (32..64).map(|bit| 1 << bit) {
            assert_eq!(call(&plain, AF_NETLINK, NETLINK_AUDIT | above), None);
            assert_eq!(call(&plain, AF_NETLINK | above, NETLINK_AUDIT), None);
        }
        assert_eq!(call(&audit, AF_NETLINK, NETLINK_AUDIT), Some(Ok(())));
    }

    #[test]
    fn every_capability_allows_its_calls_and_no_others() {
        let all_names: HashSet<String> =
            profile().syscalls.iter().flat_map(|r| r.names.clone()).collect();
        let allowed = |caps: &[&str]| -> HashSet<String> {
            let filter = filter(Arch::X86_64, caps);
            let of = |n: &&String| answer(&filter, n, [0; 6]) == Some(Ok(()));
            all_names.iter().filter(of).cloned().collect()
        };
        let plain = allowed(&[]);
        for (capability, names) in BY_CAPABILITY {
            let with = allowed(&[capability]);
            for name in names.split_whitespace() {
                assert!(!plain.contains(name) && with.contains(name), "{name}");
            }
            assert!(plain.is_subset(&with));
        }
        assert_eq!(allowed(&["CAP_NET_ADMIN"]), plain);
        let every = CapSet::all().names();
        for name in KEYS.split_whitespace() {
            assert!(!allowed(&every).contains(name), "{name}");
        }
        for name in TOLD_APART.split_whitespace() {
            assert!(!plain.contains(name) && allowed(&every).contains(name), "{name}");
        }
    }

    /// What an unprivileged process can do harm with, or has done: no rule may let it through.
    #[test]
    fn nothing_grants_these() {
        for caps in [&[] as &[&str], &["SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_PTRACE"]] {
            let filter = filter(Arch::X86_64, caps);
            for name in "add_key keyctl request_key io_uring_enter io_uring_register \
                io_uring_setup userfaultfd kexec_file_load kexec_load migrate_pages move_pages \
                nfsservctl swapoff swapon sysfs uselib ustat vm86 vm86old vmsplice"
                .split_whitespace()
            {
                assert_ne!(answer(&filter, name, [0; 6]), Some(Ok(())), "{name}");
            }
        }
    }

    #[test]
    fn old_kernels_cannot_trace() {
        let host = Host { arch: Arch::X86_64, kernel: (4, 7), ..Host::default() };
        let old = profile().select(&host, CapSet::EMPTY).unwrap();
        assert!(rules_for(&old, "ptrace").is_empty());
    }

    #[test]
    fn architectures() {
        let names = |arch| serde_json::to_value(filter(arch, &[]).architectures()).unwrap();
        let x86 = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
        assert_eq!(names(Arch::X86_64), serde_json::json!(x86[..2]));
        let host = Host { arch: Arch::X86_64, x32: true, ..Host::default() };
        let asked = profile().select(&host, CapSet::EMPTY).unwrap();
        let asked = serde_json::to_value(asked.architectures()).unwrap();
        assert_eq!(asked, serde_json::json!(x86));
        assert_eq!(names(Arch::Aarch64), serde_json::json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]));
    }
}
