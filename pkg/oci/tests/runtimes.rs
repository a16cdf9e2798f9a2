//! Specs under real runtimes: runc and crun run a busybox, which tells what it finds.
//!
//! crun refuses a node with both versions of control groups, so it sees a mount namespace in
//! which the version 2 mount is gone.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use oci::{
    Capabilities, DeviceInput, Host, IdMapping, MountInput, MountKind, Namespaces, Ns,
    ProcessInput, Rlimit, SeccompInput, SpecInput, UserInput, host_devices,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

const RUNC: &str = "/usr/sbin/runc";
const CRUN: &str = "/usr/bin/crun";
const BUSYBOX: &str = "/bin/busybox";

/// A bundle and its container, both gone when dropped.
struct Container {
    runtime: &'static str,
    dir: TempDir,
    id: String,
}

impl Container {
    fn new(runtime: &'static str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("criod-test-oci-{}-{n}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "proc", "dev", "sys", "tmp", "etc", "data"] {
            std::fs::create_dir_all(dir.path().join("rootfs").join(folder)).unwrap();
        }
        std::fs::copy(BUSYBOX, dir.path().join("rootfs/bin/busybox")).unwrap();
        Self { runtime, dir, id }
    }

    fn input(&self, script: &str) -> SpecInput {
        SpecInput {
            process: process(script),
            hostname: Some("inside".into()),
            cgroups_path: format!("/{}", self.id),
            seccomp: SeccompInput::Default,
            host: Host::current().unwrap(),
            ..Default::default()
        }
    }

    /// The runtime, in its mount namespace if it needs one of its own.
    fn command(&self, args: &[&str]) -> Command {
        let root = self.dir.path().join("state");
        let mut command = if self.runtime == CRUN {
            let mut command = Command::new("unshare");
            let script = "umount /sys/fs/cgroup/unified 2>/dev/null && mount -t tmpfs none /sys/fs/cgroup/unified; exec \"$@\"";
            command.args(["-m", "sh", "-c", script, "sh"]).arg(CRUN);
            command
        } else {
            Command::new(self.runtime)
        };
        // Runtimes give it to the container's user: it must not be the node's /dev/null.
        command.arg("--root").arg(root).args(args).stdin(Stdio::piped());
        command
    }

    fn write_config(&self, input: &SpecInput) {
        std::fs::write(self.dir.path().join("config.json"), oci::build(input).unwrap()).unwrap();
    }

    fn run(&self, input: &SpecInput) -> Output {
        self.write_config(input);
        let bundle = self.dir.path().to_str().unwrap();
        self.command(&["run", "--bundle", bundle, &self.id]).output().unwrap()
    }

    /// What a script prints in a container; the container must end well.
    fn prints(&self, input: &SpecInput) -> String {
        let output = self.run(input);
        assert!(output.status.success(), "{}: {output:?}", self.runtime);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.id]).output();
        let hierarchy = cgroup::Hierarchy::detect().unwrap();
        let group = cgroup::Cgroup::at(&hierarchy, &self.id.replace("criod", "/criod")).unwrap();
        let _ = group.kill();
        let _ = group.remove();
    }
}

fn process(script: &str) -> ProcessInput {
    ProcessInput {
        args: ["/bin/busybox", "sh", "-c", script].map(String::from).into(),
        env: vec![("PATH".into(), "/bin".into()), ("A".into(), "b c".into())],
        host: Host::current().unwrap(),
        ..Default::default()
    }
}

/// Lines `key:<tab>value` of a status file.
fn fields(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k, v.trim())).collect()
}

fn bits(set: oci::CapSet) -> String {
    format!("{:016x}", set.bits())
}

#[test]
fn an_ordinary_container() {
    for runtime in [RUNC, CRUN] {
        let container = Container::new(runtime);
        let script = "busybox cat /proc/self/status; echo host:$(busybox hostname); echo a:$A; \
            echo cwd:$(busybox pwd); echo nofile:$(ulimit -n); \
            echo oom:$(busybox cat /proc/self/oom_score_adj); \
            busybox touch /sys/x 2>/dev/null || echo sys:readonly; \
            busybox touch /data/x 2>/dev/null || echo data:readonly; \
            echo masked:$(busybox stat -c %t:%T /proc/interrupts); \
            echo somaxconn:$(busybox cat /proc/sys/net/core/somaxconn)";
        let mut input = container.input(script);
        input.process.cwd = "/tmp".into();
        input.process.no_new_privileges = true;
        input.process.oom_score_adj = Some(500);
        input.process.user =
            UserInput { uid: 1000, gid: 1001, additional_gids: vec![3, 2], umask: Some(0o27) };
        input.process.rlimits = vec![Rlimit { name: "nofile".into(), soft: 512, hard: 1024 }];
        input.sysctls.insert("net.core.somaxconn".into(), "77".into());
        input.resources.memory_limit = Some(64 << 20);
        input.resources.pids_limit = Some(64);
        input.resources.cpu_shares = Some(512);
        input.mounts = vec![MountInput {
            destination: "/data".into(),
            source: container.dir.path().to_str().unwrap().into(),
            readonly: true,
            ..Default::default()
        }];
        let text = container.prints(&input);
        let got = fields(&text);
        let default = bits(oci::CapSet::DEFAULT.intersection(input.host.grantable));
        let want = [
            ("Uid", "1000\t1000\t1000\t1000"),
            ("Gid", "1001\t1001\t1001\t1001"),
            ("Groups", "2 3"),
            ("CapBnd", &default),
            ("CapAmb", "0000000000000000"),
            ("CapInh", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Umask", "0027"),
            ("host", "inside"),
            ("a", "b c"),
            ("cwd", "/tmp"),
            ("nofile", "512"),
            ("oom", "500"),
            ("sys", "readonly"),
            ("data", "readonly"),
            ("masked", "1:3"),
            ("somaxconn", "77"),
        ];
        for (key, value) in want {
            assert_eq!(got.get(key), Some(&value), "{runtime}: {key} in {text}");
        }
    }
}

#[test]
fn root_has_the_default_capabilities_and_no_namespaces_to_make() {
    for runtime in [RUNC, CRUN] {
        let container = Container::new(runtime);
        let script = "busybox grep Cap /proc/self/status; \
            busybox unshare -U busybox true 2>/dev/null && echo unshare:yes || echo unshare:no; \
            (busybox true) && echo fork:yes; \
            busybox mount -t tmpfs x /tmp 2>/dev/null && echo mount:yes || echo mount:no; \
            busybox ls /dev | busybox tr '\\n' ' ' | busybox sed s/^/dev:/";
        let text = container.prints(&container.input(script));
        let got = fields(&text);
        let default = bits(oci::CapSet::DEFAULT.intersection(Host::current().unwrap().grantable));
        for (key, value) in [
            ("CapEff", default.as_str()),
            ("CapPrm", &default),
            ("unshare", "no"),
            ("fork", "yes"),
            ("mount", "no"),
        ] {
            assert_eq!(got.get(key), Some(&value), "{runtime}: {key} in {text}");
        }
        for device in ["null", "zero", "urandom", "pts", "shm", "mqueue", "ptmx", "stdout"] {
            let list = got["dev"];
            assert!(list.split(' ').any(|d| d == device), "{runtime}: {device} in {list}");
        }
    }
}

#[test]
fn a_privileged_container() {
    for runtime in [RUNC, CRUN] {
        let container = Container::new(runtime);
        // Those that every node has: what else there is may belong to others.
        let devices: Vec<DeviceInput> = host_devices(Path::new("/dev"))
            .unwrap()
            .into_iter()
            .filter(|d| ["/dev/null", "/dev/kmsg", "/dev/full"].map(Path::new).contains(&&*d.path))
            .collect();
        assert!(devices.len() >= 2);
        let script = "busybox grep -E 'Cap|Seccomp:' /proc/self/status; \
            busybox mount -t tmpfs x /tmp && echo mount:yes; \
            busybox test -c /dev/full && echo full:yes; \
            busybox grep ' /sys sysfs rw' /proc/mounts >/dev/null && echo sys:rw; \
            busybox mknod /dev/mine b 7 200 && echo mknod:yes";
        let input = SpecInput {
            privileged: true,
            seccomp: SeccompInput::Unconfined,
            devices,
            ..container.input(script)
        };
        let text = container.prints(&input);
        let got = fields(&text);
        let all = bits(input.host.grantable);
        for (key, value) in [
            ("CapEff", all.as_str()),
            ("CapBnd", &all),
            ("CapInh", "0000000000000000"),
            ("Seccomp", "0"),
            ("mount", "yes"),
            ("full", "yes"),
            ("sys", "rw"),
            ("mknod", "yes"),
        ] {
            assert_eq!(got.get(key), Some(&value), "{runtime}: {key} in {text}");
        }
    }
}

#[test]
fn added_and_ambient_capabilities_reach_a_user_who_is_not_root() {
    for runtime in [RUNC, CRUN] {
        let container = Container::new(runtime);
        let mut input = container.input("busybox grep Cap /proc/self/status");
        input.process.user.uid = 1000;
        input.process.capabilities = Capabilities {
            drop: vec!["ALL".into()],
            add: vec!["NET_RAW".into()],
            add_ambient: vec!["NET_BIND_SERVICE".into()],
            ..Default::default()
        };
        let text = container.prints(&input);
        let got = fields(&text);
        let set = |names: &[&str]| bits(oci::CapSet::from_names(names).unwrap());
        assert_eq!(got["CapBnd"], set(&["NET_RAW", "NET_BIND_SERVICE"]), "{runtime}");
        assert_eq!(got["CapEff"], set(&["NET_BIND_SERVICE"]), "{runtime}");
        assert_eq!(got["CapAmb"], set(&["NET_BIND_SERVICE"]), "{runtime}");
    }
}

#[test]
fn exec_into_a_running_container() {
    for runtime in [RUNC, CRUN] {
        let container = Container::new(runtime);
        container.write_config(&container.input("exec busybox sleep 1000"));
        let bundle = container.dir.path().to_str().unwrap();
        let status = container
            .command(&["run", "--detach", "--bundle", bundle, &container.id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{runtime}");
        let mut exec = process("busybox grep -E 'Uid|CapEff|NoNewPrivs' /proc/self/status; exit 7");
        exec.user.uid = 5;
        exec.no_new_privileges = true;
        let file = container.dir.path().join("process.json");
        std::fs::write(&file, oci::process(&exec).unwrap()).unwrap();
        let output = container
            .command(&["exec", "--process", file.to_str().unwrap(), &container.id])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(7), "{runtime}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let got = fields(&text);
        assert_eq!(got["Uid"], "5\t5\t5\t5", "{runtime}");
        assert_eq!(got["NoNewPrivs"], "1", "{runtime}");
    }
}

/// The default profile, as libseccomp compiles it and the kernel runs it: perl makes the calls.
#[test]
#[cfg(target_arch = "x86_64")]
fn what_the_default_profile_answers() {
    const SOCKET: i64 = 41;
    const RAW: i64 = 3;
    const ABOVE: i64 = 1 << 32;
    const EPERM: &str = "1";
    const EINVAL: &str = "22";
    const ENOSYS: &str = "38";
    const EAFNOSUPPORT: &str = "97";
    // The number of a call, three arguments, what it answers without CAP_AUDIT_WRITE and with.
    let calls: &[([i64; 4], &str, &str)] = &[
        ([SOCKET, 1, 1, 0], "ok", "ok"),
        ([SOCKET, 2, RAW, 1], EPERM, EPERM), // The kernel's: it needs CAP_NET_RAW.
        ([SOCKET, 2, RAW, 9], EPERM, EPERM),
        ([SOCKET, 17, RAW, 0x0689], EPERM, EPERM),
        ([SOCKET, 10, 2, 17], "ok", "ok"),
        ([SOCKET, 16, RAW, 0], "ok", "ok"),
        ([SOCKET, 16, RAW, 15], "ok", "ok"),
        ([SOCKET, 16, RAW, 16], "ok", "ok"),
        ([SOCKET, 16, RAW, 9], EINVAL, "ok"),
        ([SOCKET, 16, RAW, 9 | ABOVE], ENOSYS, "ok"),
        ([SOCKET, 16 | ABOVE, RAW, 9], ENOSYS, ENOSYS),
        ([SOCKET, 38, 5, 0], EAFNOSUPPORT, EAFNOSUPPORT),
        ([SOCKET, 40, 1, 0], EAFNOSUPPORT, EAFNOSUPPORT),
        ([SOCKET, 38 | ABOVE, 5, 0], ENOSYS, ENOSYS),
        ([SOCKET, 40 | ABOVE, 1, 0], ENOSYS, ENOSYS),
        ([SOCKET, 46, 1, 0], ENOSYS, ENOSYS),
        ([SOCKET, -1, 1, 0], ENOSYS, ENOSYS),
        ([435, 0, 0, 0], ENOSYS, ENOSYS),          // clone3
        ([56, 0x1000_0011, 0, 0], ENOSYS, ENOSYS), // clone, with a user namespace
        ([272, 0x1000_0000, 0, 0], EPERM, EPERM),  // unshare
        ([165, 0, 0, 0], EPERM, EPERM),            // mount
        ([250, 0, 0, 0], EPERM, EPERM),            // keyctl
        ([321, 0, 0, 0], EPERM, EPERM),            // bpf
        ([428, -100, 0, 0], ENOSYS, ENOSYS),       // open_tree
        ([425, 1, 0, 0], ENOSYS, ENOSYS),          // io_uring_setup
        ([323, 1, 0, 0], ENOSYS, ENOSYS),          // userfaultfd
    ];
    let mut script = String::from(
        "sub t { my $n = shift; print syscall($n, @_) == -1 ? $! + 0 : 'ok', \"\\n\" }",
    );
    for ([number, a, b, c], ..) in calls {
        script.push_str(&format!(" t({number}, {a}, {b}, {c});"));
    }
    for runtime in [RUNC, CRUN] {
        for audit in [false, true] {
            let container = Container::new(runtime);
            let rootfs = container.dir.path().join("rootfs");
            for lib in ["lib", "lib64"] {
                std::os::unix::fs::symlink(format!("usr/{lib}"), rootfs.join(lib)).unwrap();
            }
            let mut input = container.input("");
            input.process.args = ["/usr/bin/perl", "-e", &script].map(String::from).into();
            input.process.capabilities.drop = vec!["NET_RAW".into()];
            input.process.capabilities.add =
                if audit { vec!["AUDIT_WRITE".into()] } else { Vec::new() };
            input.mounts = vec![MountInput {
                destination: "/usr".into(),
                source: "/usr".into(),
                readonly: true,
                ..Default::default()
            }];
            let text = container.prints(&input);
            let got: Vec<&str> = text.lines().collect();
            assert_eq!(got.len(), calls.len(), "{runtime}: {text}");
            for ((call, without, with), got) in calls.iter().zip(got) {
                let want = if audit { with } else { without };
                assert_eq!(&got, want, "{runtime}: {call:?}, audit {audit}");
            }
        }
    }
}

#[test]
fn a_profile_from_outside_is_obeyed() {
    for runtime in [RUNC, CRUN] {
        let container = Container::new(runtime);
        let profile = br#"{"defaultAction": "SCMP_ACT_ALLOW",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
              {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
              {"names": ["rmdir"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;
        let script = "busybox mkdir /tmp/x 2>/dev/null && echo mkdir:yes || echo mkdir:no; \
            busybox rmdir /data && echo rmdir:yes";
        let input = SpecInput {
            seccomp: SeccompInput::Profile(profile.to_vec()),
            ..container.input(script)
        };
        assert_eq!(container.prints(&input), "mkdir:no\nrmdir:yes\n", "{runtime}");
    }
}

#[test]
fn joined_and_shared_namespaces_and_nested_mounts() {
    for runtime in [RUNC, CRUN] {
        let container = Container::new(runtime);
        let outside = container.dir.path().join("outside");
        std::fs::create_dir_all(outside.join("sub")).unwrap();
        std::fs::write(outside.join("hosts"), "here").unwrap();
        let source = |path: PathBuf| path.to_str().unwrap().to_owned();
        let script = "echo net:$(busybox readlink /proc/self/ns/net); \
            echo hosts:$(busybox cat /etc/hosts); echo log:$(busybox cat /dev/termination-log); \
            busybox grep -c ' /a/b tmpfs' /proc/mounts | busybox sed s/^/inner:/";
        let mut input = container.input(script);
        input.namespaces = Namespaces {
            network: Ns::Path("/proc/self/ns/net".into()),
            ipc: Ns::Host,
            ..Default::default()
        };
        let bind = |destination: &str, path: PathBuf| MountInput {
            destination: destination.into(),
            source: source(path),
            ..Default::default()
        };
        // The inner mount comes first in the request.
        input.mounts = vec![
            MountInput { destination: "/a/b".into(), kind: MountKind::Tmpfs, ..Default::default() },
            bind("/a", outside.clone()),
            bind("/etc/hosts", outside.join("hosts")),
            bind("/dev/termination-log", outside.join("hosts")),
        ];
        let text = container.prints(&input);
        let got = fields(&text);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(got["net"], own.to_str().unwrap(), "{runtime}");
        assert_eq!((got["hosts"], got["log"], got["inner"]), ("here", "here", "1"), "{runtime}");
    }
}

#[test]
fn a_user_namespace() {
    for runtime in [RUNC, CRUN] {
        let container = Container::new(runtime);
        // The container's root must be able to get at its files.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(container.dir.path(), open).unwrap();
        let script = "echo map:$(busybox cat /proc/self/uid_map | busybox tr -s ' '); \
            echo uid:$(busybox id -u)";
        let mapping = vec![IdMapping { container_id: 0, host_id: 1 << 20, size: 1 << 16 }];
        let mut input = container.input(script);
        input.namespaces.user = Ns::New;
        input.namespaces.uid_mappings = mapping.clone();
        input.namespaces.gid_mappings = mapping;
        let text = container.prints(&input);
        let got = fields(&text);
        assert_eq!((got["map"], got["uid"]), ("0 1048576 65536", "0"), "{runtime}: {text}");
    }
}
