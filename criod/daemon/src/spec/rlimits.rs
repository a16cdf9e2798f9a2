//! The limits of a container's processes: `default_ulimits`, as far as criod may set them.
//!
//! A hard limit can be raised with CAP_SYS_RESOURCE alone, and that of open files never beyond
//! `fs.nr_open`. What is above is lowered to what is possible, and that is said once for each.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;

use criod_config::Ulimit;
use nix::sys::resource::{Resource, getrlimit};

use crate::node::lock;

/// `default_ulimits` in the words of a spec.
pub(super) fn rlimits(limits: &[Ulimit]) -> Vec<oci::Rlimit> {
    if limits.is_empty() {
        return Vec::new();
    }
    let may_raise = oci::caps::grantable().is_ok_and(|c| c.has("CAP_SYS_RESOURCE"));
    limits.iter().map(|limit| clamp(limit, most(&limit.name, may_raise))).collect()
}

/// The highest value that a hard limit can have.
fn most(name: &str, may_raise: bool) -> u64 {
    let own = match by_name(name) {
        Some(resource) if !may_raise => getrlimit(resource).map_or(u64::MAX, |(_, hard)| hard),
        _ => u64::MAX,
    };
    let files = || fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok();
    match name {
        "nofile" => own.min(files().unwrap_or(u64::MAX)),
        _ => own,
    }
}

fn clamp(limit: &Ulimit, most: u64) -> oci::Rlimit {
    let (soft, hard) = (limit.soft.min(most), limit.hard.min(most));
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if hard < limit.hard && lock(&SAID).insert(limit.name.clone()) {
        tracing::info!(limit = limit.name, most, "default_ulimits: more than criod may set");
    }
    oci::Rlimit { name: limit.name.clone(), soft, hard }
}

fn by_name(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::RLIMIT_AS,
        "core" => Resource::RLIMIT_CORE,
        "cpu" => Resource::RLIMIT_CPU,
        "data" => Resource::RLIMIT_DATA,
        "fsize" => Resource::RLIMIT_FSIZE,
        "locks" => Resource::RLIMIT_LOCKS,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        "msgqueue" => Resource::RLIMIT_MSGQUEUE,
        "nice" => Resource::RLIMIT_NICE,
        "nofile" => Resource::RLIMIT_NOFILE,
        "nproc" => Resource::RLIMIT_NPROC,
        "rss" => Resource::RLIMIT_RSS,
        "rtprio" => Resource::RLIMIT_RTPRIO,
        "rttime" => Resource::RLIMIT_RTTIME,
        "sigpending" => Resource::RLIMIT_SIGPENDING,
        "stack" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_lowered_to_what_is_possible() {
        let limit = |soft, hard| Ulimit { name: "nofile".into(), soft, hard };
        let clamped = |soft, hard, most| {
            let done = clamp(&limit(soft, hard), most);
            (done.soft, done.hard)
        };
        assert_eq!(clamped(1024, 2048, 4096), (1024, 2048));
        assert_eq!(clamped(1024, u64::MAX, 4096), (1024, 4096));
        assert_eq!(clamped(u64::MAX, u64::MAX, 4096), (4096, 4096));
        assert_eq!(clamped(u64::MAX, u64::MAX, u64::MAX), (u64::MAX, u64::MAX));
    }

    #[test]
    fn the_most_is_what_the_kernel_says() {
        assert!(most("nofile", true) < u64::MAX, "fs.nr_open");
        assert_eq!(most("nproc", true), u64::MAX);
        let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        assert_eq!(most("nproc", false), hard);
    }
}
