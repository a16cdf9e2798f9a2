//! The AppArmor profile of containers that ask for none of their own.
//!
//! It allows what a container has by its namespaces and capabilities, and refuses what those do not
//! keep from it: changes of the kernel through `/proc` and `/sys`, mounts, and processes of other
//! profiles. A container's view of these files is read-only or hidden already; this holds where a
//! capability would undo that.
//!
//! ```text
//! write to   /proc/<pid>/**   /proc/sys/kernel/shm*   /sys/fs/cgroup/**      allowed
//!            anything else below /proc and /sys                             refused
//! signals    among themselves, from the unconfined, from runtimes            allowed
//! ptrace     among themselves; looked at by others                           allowed
//! ```
//! A refusal by pattern lists, letter by letter, what differs from the one path that is allowed, as
//! the language has no "all but". No file is included, as a node may have the parser alone.

/// The text of the profile with this name, for `apparmor_parser`. The name must not hold spaces,
/// quotes, parentheses or commas.
#[must_use]
pub fn text(name: &str) -> String {
    format!(
        "\
profile {name} flags=(attach_disconnected,mediate_deleted) {{
  capability,
  file,
  network,
  unix,
  umount,

  signal (send, receive) peer={name},
  signal (receive) peer=unconfined,
  signal (receive) peer={{/usr/bin/,/usr/sbin/,}}runc,
  signal (receive) peer={{/usr/bin/,/usr/sbin/,}}crun*,

  ptrace (trace, read) peer={name},
  ptrace (tracedby, readby),

  deny mount,

  # /proc itself, and its folders but those of processes and sys.
  deny /proc/* w,
  deny /proc/[^1-9s]** w,
  deny /proc/s[^y]** w,
  deny /proc/sy[^s]** w,
  deny /proc/sys[^/]** w,

  # /proc/sys but kernel/shm*.
  deny /proc/sys/[^k]** w,
  deny /proc/sys/k[^e]** w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /proc/sys/kernel/sh[^m]** w,

  deny /proc/kcore rwklx,
  deny /proc/sysrq-trigger rwklx,

  # /sys but fs/cgroup.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/fs/cg[^r]** wklx,

  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a path matches a pattern of AppArmor: `*` and `**`, the latter over slashes, each
    /// also for nothing unless it follows a slash; `[^…]` with ranges.
    fn matches(pattern: &[u8], path: &[u8], after_slash: bool) -> bool {
        match pattern {
            [] => path.is_empty(),
            [b'*', b'*', rest @ ..] => {
                let least = usize::from(after_slash);
                (least..=path.len()).any(|n| matches(rest, &path[n..], false))
            }
            [b'*', rest @ ..] => {
                let least = usize::from(after_slash);
                let most = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
                (least..=most).any(|n| matches(rest, &path[n..], false))
            }
            [b'[', b'^', rest @ ..] => {
                let end = rest.iter().position(|b| *b == b']').unwrap();
                let (set, after) = (&rest[..end], &rest[end + 1..]);
                let Some((first, others)) = path.split_first() else { return false };
                let inside = match set {
                    [low, b'-', high, more @ ..] => {
                        (*low..=*high).contains(first) || more.contains(first)
                    }
                    _ => set.contains(first),
                };
                !inside && *first != b'/' && matches(after, others, false)
            }
            [c, rest @ ..] => path.first() == Some(c) && matches(rest, &path[1..], *c == b'/'),
        }
    }

    fn refused(path: &str, access: char) -> bool {
        text("p").lines().any(|line| {
            let Some(rule) = line.trim().strip_prefix("deny /") else { return false };
            let (pattern, modes) = rule.trim_end_matches(',').rsplit_once(' ').unwrap();
            let pattern = format!("/{pattern}");
            modes.contains(access) && matches(pattern.as_bytes(), path.as_bytes(), false)
        })
    }

    #[test]
    fn what_changes_the_kernel_cannot_be_written() {
        for path in [
            "/proc/acpi/x",
            "/proc/asound/a/b",
            "/proc/bus/pci/00",
            "/proc/driver/x",
            "/proc/fs/ext4/a",
            "/proc/irq/1/smp_affinity",
            "/proc/kcore",
            "/proc/kmsg",
            "/proc/mtrr",
            "/proc/scsi/scsi",
            "/proc/sysrq-trigger",
            "/proc/sysvipc/shm",
            "/proc/timer_list",
            "/proc/tty/ldisc/x",
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/vm/swappiness",
            "/proc/sys/fs/file-max",
            "/proc/sys/user/max_user_namespaces",
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sys/kernel/sem",
            "/proc/sys/kernel/sysrq",
            "/proc/sys/kernel/sched_x",
            "/proc/sys/kernel/seccomp/actions_logged",
            "/proc/sys/kernel/keys/maxkeys",
            "/proc/sys/kernel/yama/ptrace_scope",
            "/sys/kernel/uevent_helper",
            "/sys/kernel/mm/ksm/run",
            "/sys/power/state",
            "/sys/firmware/efi/vars/x",
            "/sys/fs/bpf/x",
            "/sys/fs/selinux/load",
            "/sys/fs/ext4/a/b",
            "/sys/fs/cachefiles/x",
            "/sys/devices/virtual/powercap/x",
            "/sys/module/x/parameters/y",
            "/sys/class/net/eth0/mtu",
            "/sys/block/sda/queue/x",
            "/sys/bus/pci/rescan",
        ] {
            assert!(refused(path, 'w'), "{path}");
        }
        for path in ["/proc/kcore", "/sys/firmware/acpi/tables/x", "/sys/kernel/security/lsm"] {
            assert!(refused(path, 'r'), "{path}");
        }
    }

    #[test]
    fn what_belongs_to_a_container_can() {
        for path in [
            "/proc/1/oom_score_adj",
            "/proc/77/attr/exec",
            "/proc/90/task/91/comm",
            "/proc/8/fd/0",
            "/proc/sys/kernel/shmmax",
            "/proc/sys/kernel/shm_rmid_forced",
            "/sys/fs/cgroup/cgroup.procs",
            "/sys/fs/cgroup/memory/a/tasks",
            "/tmp/proc/x",
            "/system/a",
            "/procs/x",
            "/etc/passwd",
        ] {
            assert!(!refused(path, 'w'), "{path}");
        }
        for path in ["/proc/meminfo", "/proc/sys/kernel/hostname", "/sys/class/net", "/sys/fs/bpf"]
        {
            assert!(!refused(path, 'r'), "{path}");
        }
    }
}
