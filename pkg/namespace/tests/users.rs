//! User namespaces in the kernel: that they own the others, that those are set up all the same, and
//! that nothing stays. Needs root.

// What the tests share may fail the test, as the tests themselves may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;

use namespace::{Error, Kind, Pinned, Range, Request, Users, addresses, remove};

/// A folder whose pins are removed whatever happens.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("ns/pod")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = remove(&self.dir());
    }
}

const USERS: Users = Users {
    uids: Range { inside: 0, outside: 3_000_000, size: 65_536 },
    gids: Range { inside: 0, outside: 4_000_000, size: 65_536 },
};

/// The output of a shell as root of the pinned namespaces, or what it says of its failure.
fn inside(pinned: &Pinned, script: &str) -> Result<String, String> {
    let pins =
        [("user", &pinned.user), ("net", &pinned.net), ("ipc", &pinned.ipc), ("uts", &pinned.uts)];
    let options =
        pins.iter().filter_map(|(name, pin)| Some(format!("--{name}={}", pin.as_ref()?.display())));
    let output =
        Command::new("nsenter").args(options).args(["sh", "-ec", script]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn it_owns_the_others() {
    let scratch = Scratch::new();
    let sysctls: Vec<(String, String)> = [
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "20"),
        ("net.ipv4.ip_unprivileged_port_start", "0"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
        ("kernel.domainname", "a-domain"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let request = Request {
        kinds: &Kind::ALL,
        hostname: Some("a-pod"),
        sysctls: &sysctls,
        users: Some(USERS),
    };
    let pinned = Pinned::create(&scratch.dir(), &request).unwrap();
    assert_eq!(Pinned::existing(&scratch.dir()), pinned);
    assert_eq!(pinned.user.as_deref(), Some(scratch.dir().join("user").as_path()));
    assert_eq!(pinned.get(Kind::User), pinned.user.as_deref());

    let local: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    assert_eq!(addresses(pinned.net.as_deref().unwrap(), "lo").unwrap(), local);
    let seen = |script: &str| inside(&pinned, script).unwrap();
    assert_eq!(words(&seen("cat /proc/self/uid_map")), ["0", "3000000", "65536"]);
    assert_eq!(words(&seen("cat /proc/self/gid_map")), ["0", "4000000", "65536"]);
    assert_eq!(seen("id -u; uname -n; cat /proc/sys/kernel/domainname"), "0\na-pod\na-domain");
    assert_eq!(words(&seen("cat /proc/sys/net/ipv4/ping_group_range")), ["0", "65535"]);
    assert_eq!(seen("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "0");
    assert_eq!(seen("cat /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max"), "1\n20");
    // What only the owner's root may do.
    assert_eq!(seen("ip link set lo down; hostname other; uname -n"), "other");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/domainname").unwrap().trim(), "a-domain");

    remove(&scratch.dir()).unwrap();
    assert!(!scratch.dir().exists());
    assert_eq!(Pinned::existing(&scratch.dir()), Pinned::default());
}

#[test]
fn on_the_nodes_network_it_owns_nothing_of_it() {
    let scratch = Scratch::new();
    let request = Request { users: Some(USERS), ..Request::default() };
    let pinned = Pinned::create(&scratch.dir(), &request).unwrap();
    assert_eq!((&pinned.net, &pinned.ipc, &pinned.uts), (&None, &None, &None));
    assert_eq!(inside(&pinned, "id -u").unwrap(), "0");
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(inside(&pinned, "readlink /proc/self/ns/net").unwrap(), own.to_str().unwrap());
    inside(&pinned, "ip link set lo mtu 65000").unwrap_err();
}

#[test]
fn maps_that_the_kernel_refuses_leave_nothing() {
    let scratch = Scratch::new();
    for uids in [
        Range { size: 0, ..USERS.uids },
        Range { outside: u32::MAX - 5, ..USERS.uids },
        Range { inside: u32::MAX - 5, ..USERS.uids },
    ] {
        let request = Request {
            kinds: &Kind::ALL,
            users: Some(Users { uids, ..USERS }),
            ..Request::default()
        };
        let refused = Pinned::create(&scratch.dir(), &request).unwrap_err();
        assert!(matches!(refused, Error::Map { .. }), "{refused:?}");
        assert!(!scratch.dir().exists());
    }
}

#[test]
fn root_outside() {
    assert_eq!(USERS.root(), Some((3_000_000, 4_000_000)));
    let without = Users { uids: Range { inside: 1, ..USERS.uids }, ..USERS };
    assert_eq!(without.root(), None);
}
