//! Pins in the kernel: what is made, what it holds, and that nothing stays. Needs root.

// What the tests share may fail the test, as the tests themselves may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use namespace::{Error, Kind, Pinned, Request, addresses, enter, interfaces, remove};

/// A folder whose pins are removed whatever happens.
struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch { folder: tempfile::tempdir().unwrap() }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("ns/pod")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = remove(&self.dir());
    }
}

/// A process that is killed whatever happens.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn all(hostname: Option<&'static str>) -> Request<'static> {
    Request { kinds: &Kind::ALL, hostname, sysctls: &[], users: None }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// The output of a program that was started in a namespace.
fn inside(option: &str, pin: &Path, command: &[&str]) -> String {
    let output = Command::new("nsenter")
        .arg(format!("--{option}={}", pin.display()))
        .args(command)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn mounts_of(pid: &str, below: &Path) -> usize {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    table.lines().filter(|line| line.contains(&format!("{}/", below.display()))).count()
}

#[test]
fn made_found_and_removed() {
    let scratch = Scratch::new();
    let pinned = Pinned::create(&scratch.dir(), &all(Some("a-pod"))).unwrap();
    assert_eq!(pinned.get(Kind::Net), Some(scratch.dir().join("net").as_path()));
    assert_eq!(Pinned::existing(&scratch.dir()), pinned);
    assert_eq!(mounts_of("self", scratch.folder.path()), 3);
    for kind in Kind::ALL {
        // The link's text holds the namespace's number.
        let link = format!("/proc/self/ns/{}", kind.name());
        let option = kind.name();
        let there = inside(option, pinned.get(kind).unwrap(), &["readlink", &link]);
        assert_ne!(there, fs::read_link(&link).unwrap().to_str().unwrap());
    }
    assert_eq!(inside("uts", pinned.uts.as_deref().unwrap(), &["uname", "-n"]), "a-pod");
    assert_ne!(nix::unistd::gethostname().unwrap(), "a-pod");

    remove(&scratch.dir()).unwrap();
    assert_eq!(mounts_of("self", scratch.folder.path()), 0);
    assert!(!scratch.dir().exists());
    assert_eq!(Pinned::existing(&scratch.dir()), Pinned::default());
    remove(&scratch.dir()).unwrap();
}

#[test]
fn only_what_was_asked_for() {
    let scratch = Scratch::new();
    let request = Request { kinds: &[Kind::Uts], ..Request::default() };
    let pinned = Pinned::create(&scratch.dir(), &request).unwrap();
    assert_eq!((pinned.net, pinned.ipc), (None, None));
    assert_eq!(pinned.uts, Some(scratch.dir().join("uts")));
    // For a pod of the host's network nothing is made at all but the folder.
    remove(&scratch.dir()).unwrap();
    let pinned = Pinned::create(&scratch.dir(), &Request::default()).unwrap();
    assert_eq!(pinned, Pinned::default());
}

#[test]
fn loopback_works() {
    let scratch = Scratch::new();
    let net = Pinned::create(&scratch.dir(), &all(None)).unwrap().net.unwrap();
    let local: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    assert_eq!(addresses(&net, "lo").unwrap(), local);
    assert_eq!(addresses(&net, "eth0").unwrap(), [] as [IpAddr; 0]);

    let before = interfaces(&net).unwrap().into_iter().find(|one| one.name == "lo").unwrap();
    enter(&net, || {
        for address in local {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stream.write_all(&[7; 5000]).unwrap();
        }
    })
    .unwrap();
    let after = interfaces(&net).unwrap().into_iter().find(|one| one.name == "lo").unwrap();
    assert!(after.rx_bytes >= before.rx_bytes + 10_000, "{before:?} {after:?}");
    assert!(after.tx_bytes >= before.tx_bytes + 10_000, "{before:?} {after:?}");
}

#[test]
fn sysctls_are_the_pods_own() {
    let host = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let host_shm = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let scratch = Scratch::new();
    let sysctls = pairs(&[
        ("net.ipv4.ip_unprivileged_port_start", "77"),
        ("net/ipv6/conf/default/disable_ipv6", "1"),
        ("kernel.shmmni", "99"),
        ("fs.mqueue.msg_max", "55"),
        ("kernel.domainname", "pods.example"),
    ]);
    let request = Request { kinds: &Kind::ALL, hostname: None, sysctls: &sysctls, users: None };
    let pinned = Pinned::create(&scratch.dir(), &request).unwrap();
    let cat = |option, pin: &Option<PathBuf>, file: &str| {
        inside(option, pin.as_deref().unwrap(), &["cat", &format!("/proc/sys/{file}")])
    };
    assert_eq!(cat("net", &pinned.net, "net/ipv4/ip_unprivileged_port_start"), "77");
    assert_eq!(cat("net", &pinned.net, "net/ipv6/conf/default/disable_ipv6"), "1");
    assert_eq!(cat("ipc", &pinned.ipc, "kernel/shmmni"), "99");
    assert_eq!(cat("ipc", &pinned.ipc, "fs/mqueue/msg_max"), "55");
    assert_eq!(cat("uts", &pinned.uts, "kernel/domainname"), "pods.example");
    let now = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert_eq!(now, host);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), host_shm);
}

#[test]
fn a_failure_leaves_nothing() {
    let scratch = Scratch::new();
    let unknown = pairs(&[("net.ipv4.no_such_thing", "1")]);
    let request = Request { kinds: &Kind::ALL, hostname: None, sysctls: &unknown, users: None };
    let error = Pinned::create(&scratch.dir(), &request).unwrap_err();
    assert!(matches!(error, Error::Sysctl { .. }), "{error}");
    assert!(!scratch.dir().exists());

    let hosts = pairs(&[("kernel.pid_max", "4194304")]);
    let request = Request { kinds: &Kind::ALL, hostname: None, sysctls: &hosts, users: None };
    let error = Pinned::create(&scratch.dir(), &request).unwrap_err();
    assert!(matches!(error, Error::SysctlNotNamespaced { .. }), "{error}");
    assert!(!scratch.dir().exists());

    const LONG: &str = "a-hostname-that-is-longer-than-the-sixty-four-bytes-which-linux-allows";
    let error = Pinned::create(&scratch.dir(), &all(Some(LONG))).unwrap_err();
    assert!(matches!(error, Error::Hostname { .. }), "{error}");
    assert!(!scratch.dir().exists());
    assert_eq!(mounts_of("self", scratch.folder.path()), 0);
}

#[test]
fn another_pods_pins_are_not_touched() {
    let scratch = Scratch::new();
    let pinned = Pinned::create(&scratch.dir(), &all(None)).unwrap();
    let error = Pinned::create(&scratch.dir(), &all(None)).unwrap_err();
    assert!(matches!(error, Error::MakeDirectory { .. }), "{error}");
    assert_eq!(Pinned::existing(&scratch.dir()), pinned);
}

#[test]
fn whatever_is_half_there_goes() {
    let scratch = Scratch::new();
    let pinned = Pinned::create(&scratch.dir(), &all(None)).unwrap();
    // One pin unmounted, one unlinked, one mounted twice.
    let mount = |source: &Path, target: &Path| {
        let status = Command::new("mount").arg("--bind").arg(source).arg(target).status().unwrap();
        assert!(status.success());
    };
    let net = pinned.net.unwrap();
    mount(&net, &net);
    nix::mount::umount(&pinned.ipc.unwrap()).unwrap();
    let uts = pinned.uts.unwrap();
    nix::mount::umount(&uts).unwrap();
    fs::remove_file(&uts).unwrap();
    let half = Pinned::existing(&scratch.dir());
    assert_eq!((half.net.as_deref(), half.ipc, half.uts), (Some(net.as_path()), None, None));
    remove(&scratch.dir()).unwrap();
    assert!(!scratch.dir().exists());
    assert_eq!(mounts_of("self", scratch.folder.path()), 0);
    // A file where the folder should be, or a missing parent: nothing of ours is there.
    remove(&scratch.folder.path().join("no/such/folder")).unwrap();
}

#[test]
fn copies_in_other_mount_namespaces_go_too() {
    let scratch = Scratch::new();
    let pinned = Pinned::create(&scratch.dir(), &all(None)).unwrap();
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()
        .map(Process)
        .unwrap();
    // A line tells that the mount namespace is there.
    let mut byte = [0];
    std::io::Read::read_exact(other.0.stdout.as_mut().unwrap(), &mut byte).unwrap();
    let pid = other.0.id().to_string();
    assert_eq!(mounts_of(&pid, scratch.folder.path()), 3);
    drop(pinned);
    remove(&scratch.dir()).unwrap();
    assert_eq!(mounts_of(&pid, scratch.folder.path()), 0);
}

#[test]
fn pins_below_a_shared_mount() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        let status = Command::new("mount").args(args).arg(folder.path()).status().unwrap();
        assert!(status.success());
    };
    mount(&["-t", "tmpfs", "tmpfs"]);
    let _mounted = Mounted(folder.path().to_owned());
    mount(&["--make-shared"]);
    let dir = folder.path().join("pod");
    let pinned = Pinned::create(&dir, &all(None));
    let removed = remove(&dir);
    assert!(pinned.unwrap().net.is_some());
    removed.unwrap();
    assert_eq!(mounts_of("self", folder.path()), 0);
}

#[test]
fn entering_what_is_no_network_namespace() {
    let scratch = Scratch::new();
    let pinned = Pinned::create(&scratch.dir(), &all(None)).unwrap();
    let plain = scratch.folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    for path in [plain, scratch.folder.path().join("missing"), pinned.ipc.unwrap()] {
        let error = enter(&path, || ()).unwrap_err();
        assert!(matches!(error, Error::Enter { .. }), "{error}");
    }
}

#[test]
fn a_panic_inside_is_an_error() {
    let scratch = Scratch::new();
    let net = Pinned::create(&scratch.dir(), &all(None)).unwrap().net.unwrap();
    let error = enter(&net, || -> () { panic!("on purpose") }).unwrap_err();
    assert!(matches!(error, Error::Thread { .. }), "{error}");
}
