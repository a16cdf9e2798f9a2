//! Giving up privileges for good.
//!
//! ```text
//! securebits locked ─▶ ambient and bounding sets emptied ─▶ permitted, effective, inheritable emptied
//! └──────────── need CAP_SETPCAP, hence this order ───────────┘
//! ```

use std::io;

use nix::errno::Errno;

/// linux/securebits.h: each bit with its lock beside it. Keeping capabilities over a change of the
/// user id is locked as off; everything else is locked as on, so that being root means nothing.
const SECUREBITS: libc::c_ulong = 0b1110_1111;

/// `_LINUX_CAPABILITY_VERSION_3`: two structures of 32 bits each.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn prctl(option: libc::c_int, value: libc::c_ulong, third: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: the options used here take integers and touch no memory of ours.
    let done = unsafe { libc::prctl(option, value, third, 0, 0) };
    Errno::result(done).map(drop)
}

/// Takes every capability from this thread, now and for whatever it may execute: out of all five
/// sets, with the securebits locked. Where CAP_SETPCAP is missing already, the bounding set and
/// the securebits stay as they are, which then gives nothing back, either: see
/// `no_new_privs`, which callers set as well.
pub fn drop_all() -> io::Result<()> {
    match prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0) {
        Ok(()) | Err(Errno::EPERM) => {}
        Err(e) => return Err(e.into()),
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0)?;
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(()) => {}
            // EINVAL: past the last that this kernel knows.
            Err(Errno::EINVAL | Errno::EPERM) => break,
            Err(e) => return Err(e.into()),
        }
    }
    let mut header = Header { version: VERSION, pid: 0 };
    let data = [Data { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 reads one header and two data structures, which live through the call.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    Errno::result(done)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left() {
        // Capabilities belong to a thread, so this one is enough.
        let status = std::thread::spawn(|| {
            drop_all().unwrap();
            // Twice is no error.
            drop_all().unwrap();
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        })
        .join()
        .unwrap();
        // SAFETY: geteuid takes nothing and cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let line = status.lines().find(|l| l.starts_with(set)).unwrap();
            if set != "CapBnd" || root {
                assert!(line.ends_with("0000000000000000"), "{line}");
            }
        }
    }

    #[test]
    fn the_bits_are_those_of_the_kernel() {
        let off_and_locked = libc::SECBIT_KEEP_CAPS_LOCKED;
        let on_and_locked = libc::SECBIT_NOROOT
            | libc::SECBIT_NOROOT_LOCKED
            | libc::SECBIT_NO_SETUID_FIXUP
            | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
            | libc::SECBIT_NO_CAP_AMBIENT_RAISE
            | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
        assert_eq!(SECUREBITS, (off_and_locked | on_and_locked) as libc::c_ulong);
    }
}
