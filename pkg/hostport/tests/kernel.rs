//! Rules in the kernel, by both backends: who reaches a pod through the host's ports, and that
//! nothing stays. All inside network namespaces of the test's own. Needs root.
//!
//! ```text
//!   outside 192.0.2.2 -- 192.0.2.1 host 10.9.0.1 -- bridge -- pod one 10.9.0.2, two 10.9.0.3
//!           2001:db8::2  2001:db8::1    fd09::1                   fd09::2           fd09::3
//! ```

// What the tests share may fail the test, as the tests themselves may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hostport::{Backend, Error, HostPorts, Mapping, Protocol};
use namespace::{Kind, Pinned, Request, enter};

const NAMES: [&str; 4] = ["host", "outside", "one", "two"];

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { folder: tempfile::tempdir().unwrap() };
        let sysctls = [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            // Addresses serve at once.
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.all.accept_dad", "0"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let request =
            Request { kinds: &[Kind::Net], hostname: None, sysctls: &sysctls, users: None };
        for name in NAMES {
            Pinned::create(&world.folder.path().join(name), &request).unwrap();
        }
        world.ip("host", "link add br0 type bridge");
        for (index, name) in ["outside", "one", "two"].into_iter().enumerate() {
            let pin = world.pin(name);
            let line =
                format!("link add to-{name} type veth peer name eth0 netns {}", pin.display());
            world.ip("host", &line);
            if name != "outside" {
                world.ip("host", &format!("link set to-{name} master br0"));
                // As the bridge plugin's hairpinMode does: where bridged packets pass iptables,
                // a pod's packets to itself leave by the port by which they came.
                world.ip("host", &format!("link set to-{name} type bridge_slave hairpin on"));
                world.ip(name, &format!("address add 10.9.0.{}/24 dev eth0", index + 1));
                world.ip(name, &format!("address add fd09::{}/64 dev eth0 nodad", index + 1));
            }
            world.ip("host", &format!("link set to-{name} up"));
            world.ip(name, "link set eth0 up");
        }
        world.ip("host", "link set br0 up");
        world.ip("host", "address add 10.9.0.1/24 dev br0");
        world.ip("host", "address add fd09::1/64 dev br0 nodad");
        world.ip("host", "address add 192.0.2.1/24 dev to-outside");
        world.ip("host", "address add 2001:db8::1/64 dev to-outside nodad");
        world.ip("outside", "address add 192.0.2.2/24 dev eth0");
        world.ip("outside", "address add 2001:db8::2/64 dev eth0 nodad");
        for name in ["one", "two"] {
            world.ip(name, "route add default via 10.9.0.1");
            world.ip(name, "-6 route add default via fd09::1");
        }
        world
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join("net")
    }

    fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        enter(&self.pin(name), work).unwrap()
    }

    fn run(&self, name: &str, program: &str, line: &str) -> String {
        self.inside(name, || {
            let output =
                Command::new(program).args(line.split_ascii_whitespace()).output().unwrap();
            assert!(output.status.success(), "{program} {line}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// Without /etc/netns or anything else of ip-netns: it only runs inside.
    fn ip(&self, name: &str, line: &str) {
        self.run(name, "ip", line);
    }

    fn on_host<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.inside("host", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(work())
        })
    }

    fn listen(&self, name: &str, at: &str) -> TcpListener {
        self.inside(name, || TcpListener::bind(at).unwrap())
    }

    /// The address that the listener sees if `from` reaches it at `to`.
    fn reaches(&self, from: &str, to: &str, listener: &TcpListener) -> IpAddr {
        let near = self.connect(from, to).unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
        let (far, peer) = listener.accept().unwrap();
        drop(near);
        // The end of the stream comes through, so answers have found their way too.
        let mut rest = Vec::new();
        (&far).read_to_end(&mut rest).unwrap();
        peer.ip()
    }

    fn connect(&self, from: &str, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.inside(from, || TcpStream::connect_timeout(&to, Duration::from_secs(5)))
    }

    /// All rules, without counters and dates.
    fn rules(&self, backend: Backend) -> String {
        if backend == Backend::Nft {
            return self.run("host", "nft", "list ruleset");
        }
        let both = ["iptables-save", "ip6tables-save"].map(|tool| self.run("host", tool, ""));
        let lines = both.iter().flat_map(|rules| rules.lines());
        lines.filter(|line| line.starts_with('-')).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in NAMES {
            let _ = namespace::remove(&self.folder.path().join(name));
        }
    }
}

fn mapping(host_port: u16, pod_ip: &str) -> Mapping {
    Mapping {
        protocol: Protocol::Tcp,
        host_ip: None,
        host_port,
        container_port: 80,
        pod_ip: pod_ip.parse().unwrap(),
        prefix: if pod_ip.contains(':') { 64 } else { 24 },
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn everybody_reaches_the_pod(backend: Backend) {
    let world = World::new();
    let four = world.listen("one", "0.0.0.0:80");
    let six = world.listen("one", "[fd09::2]:80");
    world.on_host(async || {
        let ports = HostPorts::open(backend, BTreeMap::new()).await.unwrap();
        assert_eq!(ports.backend(), backend);
        let both = [mapping(8080, "10.9.0.2"), mapping(8080, "fd09::2")];
        ports.add("pod-one", &both).await.unwrap();
        let once = world.rules(backend);
        ports.add("pod-one", &both).await.unwrap();
        assert_eq!(world.rules(backend), once);
        assert!(once.contains("pod pod-one"), "{once}");

        // From outside the pod sees who it is.
        assert_eq!(world.reaches("outside", "192.0.2.1:8080", &four), ip("192.0.2.2"));
        assert_eq!(world.reaches("outside", "[2001:db8::1]:8080", &six), ip("2001:db8::2"));
        // The host, by any of its addresses.
        assert_eq!(world.reaches("host", "127.0.0.1:8080", &four), ip("10.9.0.1"));
        world.reaches("host", "192.0.2.1:8080", &four);
        world.reaches("host", "10.9.0.1:8080", &four);
        world.reaches("host", "[2001:db8::1]:8080", &six);
        // A neighbour on the bridge, and the pod itself.
        for from in ["two", "one"] {
            assert_eq!(world.reaches(from, "10.9.0.1:8080", &four), ip("10.9.0.1"));
            world.reaches(from, "192.0.2.1:8080", &four);
            assert_eq!(world.reaches(from, "[fd09::1]:8080", &six), ip("fd09::1"));
        }
        // Other ports are nobody's, and the pod's own is not masqueraded.
        assert!(world.connect("outside", "192.0.2.1:8081").is_err());
        assert_eq!(world.reaches("two", "10.9.0.2:80", &four), ip("10.9.0.3"));

        ports.remove("pod-one").await.unwrap();
        ports.remove("pod-one").await.unwrap();
        let rules = world.rules(backend).to_lowercase();
        assert!(!rules.contains("criod"), "{rules}");
        assert!(world.connect("outside", "192.0.2.1:8080").is_err());
        assert!(world.connect("host", "127.0.0.1:8080").is_err());
    });
}

#[test]
fn everybody_reaches_the_pod_nft() {
    everybody_reaches_the_pod(Backend::Nft);
}

#[test]
fn everybody_reaches_the_pod_iptables() {
    everybody_reaches_the_pod(Backend::Iptables);
}

fn certain_addresses_and_conflicts(backend: Backend) {
    let world = World::new();
    let one = world.listen("one", "0.0.0.0:80");
    let two = world.listen("two", "0.0.0.0:80");
    let at =
        |host_ip: &str, pod_ip| Mapping { host_ip: Some(ip(host_ip)), ..mapping(8080, pod_ip) };
    world.on_host(async || {
        let ports = HostPorts::open(backend, BTreeMap::new()).await.unwrap();
        ports.add("pod-one", &[at("192.0.2.1", "10.9.0.2")]).await.unwrap();
        ports.add("pod-two", &[at("127.0.0.1", "10.9.0.3")]).await.unwrap();
        world.reaches("outside", "192.0.2.1:8080", &one);
        world.reaches("host", "127.0.0.1:8080", &two);
        assert!(world.connect("two", "10.9.0.1:8080").is_err());

        let before = world.rules(backend);
        let error = ports.add("pod-three", &[mapping(8080, "10.9.0.4")]).await.unwrap_err();
        assert!(matches!(&error, Error::Conflict { holder, .. } if holder == "pod-one"), "{error}");
        assert_eq!(world.rules(backend), before);

        // The list as a whole: pod one has gone, pod two has what it had.
        let all = BTreeMap::from([("pod-two".to_owned(), vec![mapping(8080, "10.9.0.3")])]);
        ports.reconcile(all).await.unwrap();
        assert!(!world.rules(backend).contains("pod-one"));
        world.reaches("outside", "192.0.2.1:8080", &two);
        let two_pods = BTreeMap::from([
            ("pod-one".to_owned(), vec![mapping(8080, "10.9.0.2")]),
            ("pod-two".to_owned(), vec![mapping(8080, "10.9.0.3")]),
        ]);
        assert!(matches!(ports.reconcile(two_pods).await, Err(Error::Conflict { .. })));
        world.reaches("outside", "192.0.2.1:8080", &two);
    });
}

#[test]
fn certain_addresses_and_conflicts_nft() {
    certain_addresses_and_conflicts(Backend::Nft);
}

#[test]
fn certain_addresses_and_conflicts_iptables() {
    certain_addresses_and_conflicts(Backend::Iptables);
}

fn what_a_crash_left_goes(backend: Backend) {
    let world = World::new();
    let one = world.listen("one", "0.0.0.0:80");
    world.on_host(async || {
        let ports = HostPorts::open(backend, BTreeMap::new()).await.unwrap();
        ports.add("pod-one", &[mapping(8080, "10.9.0.2")]).await.unwrap();
        ports.add("pod-two", &[mapping(8081, "10.9.0.3")]).await.unwrap();
        drop(ports);
        let all = BTreeMap::from([("pod-one".to_owned(), vec![mapping(8080, "10.9.0.2")])]);
        let ports = HostPorts::open(backend, all).await.unwrap();
        assert!(!world.rules(backend).contains("pod-two"));
        world.reaches("outside", "192.0.2.1:8080", &one);
        // Somebody clears everything: the next change brings it back.
        world.run("host", "nft", "flush ruleset");
        ports.add("pod-two", &[mapping(8081, "10.9.0.3")]).await.unwrap();
        world.reaches("outside", "192.0.2.1:8080", &one);
        HostPorts::open(backend, BTreeMap::new()).await.unwrap();
        assert!(!world.rules(backend).to_lowercase().contains("criod"));
    });
}

#[test]
fn what_a_crash_left_goes_nft() {
    what_a_crash_left_goes(Backend::Nft);
}

#[test]
fn what_a_crash_left_goes_iptables() {
    what_a_crash_left_goes(Backend::Iptables);
}

fn neighbours_do_not_reach_the_hosts_loopback(backend: Backend) {
    let world = World::new();
    let private = world.listen("host", "127.0.0.1:9000");
    world.on_host(async || {
        let ports = HostPorts::open(backend, BTreeMap::new()).await.unwrap();
        ports.add("pod-one", &[mapping(8080, "10.9.0.2")]).await.unwrap();
        // A pod that sends to 127.0.0.1 by way of the bridge.
        world.run("one", "sysctl", "-q -w net.ipv4.conf.all.route_localnet=1");
        world.run("one", "ip", "address delete 127.0.0.1/8 dev lo");
        world.run("one", "ip", "route flush table local dev lo");
        world.run("one", "ip", "route add 127.0.0.1/32 via 10.9.0.1 src 10.9.0.2");
        assert_eq!(world.run("host", "sysctl", "-n net.ipv4.conf.br0.route_localnet"), "1\n");
        let to: SocketAddr = "127.0.0.1:9000".parse().unwrap();
        let attempt =
            || world.inside("one", || TcpStream::connect_timeout(&to, Duration::from_millis(400)));
        assert!(attempt().is_err());
        // The attempt is a real one: without the rule it succeeds.
        ports.remove("pod-one").await.unwrap();
        attempt().unwrap();
        drop(private);
    });
}

#[test]
fn neighbours_do_not_reach_the_hosts_loopback_nft() {
    neighbours_do_not_reach_the_hosts_loopback(Backend::Nft);
}

#[test]
fn neighbours_do_not_reach_the_hosts_loopback_iptables() {
    neighbours_do_not_reach_the_hosts_loopback(Backend::Iptables);
}

#[test]
fn udp() {
    let world = World::new();
    let pod = world.inside("one", || UdpSocket::bind("0.0.0.0:53").unwrap());
    pod.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let udp = |host_port| Mapping {
        protocol: Protocol::Udp,
        container_port: 53,
        ..mapping(host_port, "10.9.0.2")
    };
    world.on_host(async || {
        let ports = HostPorts::open(Backend::Nft, BTreeMap::new()).await.unwrap();
        ports.add("pod-one", &[udp(5353)]).await.unwrap();
        let near = world.inside("outside", || UdpSocket::bind("0.0.0.0:0").unwrap());
        near.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        near.send_to(b"question", "192.0.2.1:5353").unwrap();
        let mut buffer = [0; 16];
        let (length, from) = pod.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"question");
        pod.send_to(b"answer", from).unwrap();
        let (length, from) = near.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"answer"[..], "192.0.2.1:5353".parse().unwrap()));
    });
}

#[test]
fn detection_changes_nothing() {
    let world = World::new();
    world.on_host(async || {
        let backend = Backend::detect().await.unwrap();
        assert_eq!(backend, Backend::Nft);
        assert_eq!(world.rules(backend), "");
    });
}

#[test]
fn a_pod_without_ports_costs_nothing() {
    let world = World::new();
    world.on_host(async || {
        let ports = HostPorts::open(Backend::Nft, BTreeMap::new()).await.unwrap();
        world.run("host", "nft", "add table inet criod");
        ports.add("pod-one", &[]).await.unwrap();
        ports.remove("pod-one").await.unwrap();
        // The tool was not run: it would have deleted the table.
        assert!(world.rules(Backend::Nft).contains("criod"));
    });
}
