//! How the process locks itself up before it reads a byte from the network.
//!
//! ```text
//! join cgroups ─▶ rlimits ─▶ chroot ─▶ [dialer: setns] ─▶ capabilities ─▶ no_new_privs ─▶ seccomp
//! ```
//! What it may do afterwards is to use the descriptors that it holds or is given: no call that
//! opens, binds, starts or ends anything is left. The kernel kills it at any other call.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::failed::{Failed, step};
use crate::say::say;

/// The most descriptors: a port-forward's streams, and a handful.
pub(crate) const FILES: u64 = 2048;

/// How long the log may be when something is still added to it, in bytes.
const LOG: u64 = 8 << 20;

/// What this process is for, which decides what it may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Faces the client.
    Stream,
    /// Dials within a network namespace.
    Dialer,
}

/// Moves the process into the cgroup of these folders, one per hierarchy. A failure is said only.
pub(crate) fn join(cgroups: &[PathBuf]) {
    for dir in cgroups {
        if let Err(e) = std::fs::write(dir.join("cgroup.procs"), "0") {
            say!("{}: {e}", dir.display());
        }
    }
}

/// The part that needs privileges and no namespace: limits and the empty root.
pub(crate) fn enclose(role: Role, root: &Path) -> Result<(), Failed> {
    // Stderr is a file, the log of all streams on a small file system.
    step("SIGXFSZ", sys::start::survive_file_limit())?;
    step("setrlimit", setrlimit(Resource::RLIMIT_FSIZE, LOG, LOG))?;
    step("setrlimit", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    // A dialer bounds its descriptors itself, for the kernel takes this limit also for how many
    // descriptors all processes of the user may have on their way in messages.
    if role == Role::Stream {
        step("setrlimit", setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES))?;
    }
    step("chroot", nix::unistd::chroot(root))?;
    step("chdir", nix::unistd::chdir("/"))
}

/// The rest: no privileges, and few calls.
pub(crate) fn lock(role: Role) -> Result<(), Failed> {
    let filter = step("seccomp filter", filter(role))?;
    step("capabilities", sys::caps::drop_all())?;
    step("no_new_privs", nix::sys::prctl::set_no_new_privs())?;
    step("dumpable", nix::sys::prctl::set_dumpable(false))?;
    step("seccomp", seccompiler::apply_filter(&filter))
}

/// Calls that take what the process holds already.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_shutdown,
    // What the standard library does as it ends.
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

fn condition(arg: u8, op: SeccompCmpOp, value: u64) -> seccompiler::Result<SeccompCondition> {
    Ok(SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)?)
}

/// A rule for each value that the argument may have.
fn one_of(arg: u8, values: &[u64]) -> seccompiler::Result<Vec<SeccompRule>> {
    let rule = |v: &u64| Ok(SeccompRule::new(vec![condition(arg, SeccompCmpOp::Eq, *v)?])?);
    values.iter().map(rule).collect()
}

/// Sending where the socket is connected to, and with no flags but the one that everybody sets:
/// MSG_FASTOPEN would connect sockets.
fn sending(rules: &mut BTreeMap<i64, Vec<SeccompRule>>) -> seccompiler::Result<()> {
    let flags = |arg| condition(arg, SeccompCmpOp::Eq, libc::MSG_NOSIGNAL as u64);
    let no_address = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_sendto, vec![SeccompRule::new(vec![flags(3)?, no_address])?]);
    rules.insert(libc::SYS_sendmsg, vec![SeccompRule::new(vec![flags(2)?])?]);
    Ok(())
}

/// Options of TCP sockets that may be set.
fn options() -> seccompiler::Result<Vec<SeccompRule>> {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    ];
    let rule = |(level, name): (i32, i32)| {
        let level = condition(1, SeccompCmpOp::Eq, level as u64)?;
        Ok(SeccompRule::new(vec![level, condition(2, SeccompCmpOp::Eq, name as u64)?])?)
    };
    options.into_iter().map(rule).collect()
}

/// The allow-list of a role, compiled.
pub(crate) fn filter(role: Role) -> seccompiler::Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        COMMON.iter().map(|call| (*call, Vec::new())).collect();
    let no_exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    let no_exec = vec![SeccompRule::new(vec![condition(2, no_exec, 0)?])?];
    rules.insert(libc::SYS_mmap, no_exec.clone());
    rules.insert(libc::SYS_mprotect, no_exec);
    rules.insert(libc::SYS_setsockopt, options()?);
    sending(&mut rules)?;
    let fcntl = [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD];
    rules.insert(libc::SYS_fcntl, one_of(1, &fcntl.map(|c| c as u64))?);
    match role {
        Role::Stream => {
            #[allow(clippy::unnecessary_cast, reason = "C libraries have them as different types")]
            let ioctl = [libc::FIONREAD as u64, libc::TIOCSWINSZ as u64];
            rules.insert(libc::SYS_ioctl, one_of(1, &ioctl)?);
        }
        Role::Dialer => {
            let families = [libc::AF_INET, libc::AF_INET6].map(|f| f as u64);
            let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let mut of = Vec::new();
            for family in families {
                of.push(SeccompRule::new(vec![
                    condition(0, SeccompCmpOp::Eq, family)?,
                    condition(1, SeccompCmpOp::Eq, kind as u64)?,
                    // The protocol: TCP, for others have streams, too.
                    condition(2, SeccompCmpOp::Eq, 0)?,
                ])?);
            }
            rules.insert(libc::SYS_socket, of);
            rules.insert(libc::SYS_connect, Vec::new());
        }
    }
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::io::{IsTerminal, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use nix::sys::signal::kill;
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendmsg,
        sendto, setsockopt, socket, sockopt,
    };

    use super::*;

    /// Names what the victim below does.
    const ACT: &str = "CRIOD_STREAM_ACT";
    const SURVIVED: i32 = 77;

    const FASTOPEN: MsgFlags =
        MsgFlags::from_bits_retain(libc::MSG_FASTOPEN).union(MsgFlags::MSG_NOSIGNAL);

    fn tcp(flags: SockFlag, protocol: Option<SockProtocol>) -> std::io::Result<()> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            // A system without IPv6 is no matter here.
            let _ = socket(family, SockType::Stream, flags, protocol);
        }
        Ok(())
    }

    fn send(fd: &impl AsRawFd, flags: MsgFlags) -> std::io::Result<()> {
        let bytes = [std::io::IoSlice::new(b"x")];
        sendmsg::<()>(fd.as_raw_fd(), &bytes, &[], flags, None)?;
        Ok(())
    }

    /// Not a test of its own: run by the others in a process that may be killed.
    #[test]
    fn victim() {
        let Ok(act) = std::env::var(ACT) else { return };
        let (role, act) = act.split_once(' ').unwrap();
        let role = if role == "dialer" { Role::Dialer } else { Role::Stream };
        let (mut ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut connected = std::net::TcpStream::connect(address).unwrap();
        let unconnected =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        let address = SockaddrStorage::from(address);
        let all = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        lock(role).unwrap();
        let done: std::io::Result<()> = match act {
            "nothing" => Ok(()),
            "use" => {
                // Memory, time, and what is held already.
                std::hint::black_box((vec![0u8; 64 << 20], std::time::Instant::now()));
                ours.write_all(&[1; 10_000]).unwrap();
                connected.write_all(&[1; 10_000]).unwrap();
                send(&connected, MsgFlags::MSG_NOSIGNAL).unwrap();
                ours.shutdown(std::net::Shutdown::Write)
            }
            "open" => std::fs::File::open("/").map(drop),
            "unlink" => std::fs::remove_file("/none"),
            "fork" => Command::new("/none").spawn().map(drop),
            "thread" => std::thread::Builder::new().spawn(|| ()).map(drop),
            "duplicate" => ours.try_clone().map(drop),
            "unix socket" => std::os::unix::net::UnixDatagram::unbound().map(drop),
            "tcp socket" => tcp(all, None),
            "blocking socket" => tcp(SockFlag::SOCK_CLOEXEC, None),
            "socket of a protocol" => tcp(all, Some(SockProtocol::Tcp)),
            "fast open" => sendto(unconnected.as_raw_fd(), b"x", &address, FASTOPEN)
                .map(drop)
                .map_err(Into::into),
            "fast open without address" => {
                nix::sys::socket::send(unconnected.as_raw_fd(), b"x", FASTOPEN)
                    .map(drop)
                    .map_err(Into::into)
            }
            "fast open in a message" => send(&unconnected, FASTOPEN),
            "address" => sendto(connected.as_raw_fd(), b"x", &address, MsgFlags::MSG_NOSIGNAL)
                .map(drop)
                .map_err(Into::into),
            "udp socket" => std::net::UdpSocket::bind("127.0.0.1:0").map(drop),
            "listen" => std::net::TcpListener::bind("127.0.0.1:0").map(drop),
            "kill" => kill(nix::unistd::getpid(), None).map_err(Into::into),
            "ioctl" => {
                std::hint::black_box(std::io::stdin().is_terminal());
                Ok(())
            }
            "option" => setsockopt(&ours, sockopt::RcvBuf, &4096).map_err(Into::into),
            _ => panic!("{act:?}"),
        };
        // Whether it worked is not the question.
        drop(done);
        std::process::exit(SURVIVED);
    }

    /// `None`: it was killed for what it did.
    fn outcome(role: &str, act: &str) -> Option<i32> {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sandbox::tests::victim", "--test-threads=1"])
            .env(ACT, format!("{role} {act}"))
            .output()
            .unwrap()
            .status;
        if status.signal() == Some(libc::SIGSYS) { None } else { Some(status.code().unwrap()) }
    }

    #[test]
    fn whoever_goes_beyond_is_killed() {
        for role in ["stream", "dialer"] {
            for act in ["nothing", "use"] {
                assert_eq!(outcome(role, act), Some(SURVIVED), "{role}: {act}");
            }
            for act in [
                "open",
                "unlink",
                "fork",
                "duplicate",
                "unix socket",
                "udp socket",
                "listen",
                "kill",
                "ioctl",
                "option",
                "thread",
                "fast open",
                "fast open without address",
                "fast open in a message",
                "address",
                "blocking socket",
                "socket of a protocol",
            ] {
                assert_eq!(outcome(role, act), None, "{role}: {act}");
            }
        }
        assert_eq!(outcome("stream", "tcp socket"), None);
        assert_eq!(outcome("dialer", "tcp socket"), Some(SURVIVED));
    }
}
