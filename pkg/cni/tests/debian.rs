//! A network of real plugins: bridge, host-local and portmap as Debian packages them, between
//! two network namespaces of the test's own, of which one plays the host. Needs root.

// What the tests share may fail the test, as the tests themselves may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use cni::{Attachment, Config, Plugins, PortMapping, Protocol, ValidAttachment};
use namespace::{Kind, Pinned, Request, enter};
use serde_json::json;

/// A folder with two network namespaces, which go whatever happens.
struct World {
    folder: tempfile::TempDir,
    host: PathBuf,
    pod: PathBuf,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let (host, pod) = (folder.path().join("host/net"), folder.path().join("pod/net"));
        let world = World { folder, host, pod };
        let request = Request { kinds: &[Kind::Net], ..Request::default() };
        for pin in [&world.host, &world.pod] {
            Pinned::create(pin.parent().unwrap(), &request).unwrap();
        }
        world
    }

    /// Runs asynchronous work, whose plugins are started on the one that plays the host.
    fn on_host<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        enter(&self.host, || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(work())
        })
        .unwrap()
    }

    fn leases(&self) -> Vec<String> {
        let Ok(folder) = fs::read_dir(self.folder.path().join("leases/test")) else {
            return Vec::new();
        };
        let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for pin in [&self.host, &self.pod] {
            let _ = namespace::remove(pin.parent().unwrap());
        }
    }
}

fn plugins(folder: &Path) -> Plugins {
    Plugins::new(vec![PathBuf::from("/usr/lib/cni")], &folder.join("cache"))
}

fn network(folder: &Path, version: &str) -> cni::NetworkList {
    let list = json!({
        "cniVersion": version,
        "name": "test",
        "plugins": [
            {
                "type": "bridge", "bridge": "br-test", "isGateway": true, "ipMasq": false,
                "ipam": {
                    "type": "host-local", "dataDir": folder.join("leases"),
                    "ranges": [[{ "subnet": "10.213.7.0/24" }], [{ "subnet": "fd13::/64" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    let dir = folder.join("net.d");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("10-test.conflist"), list.to_string()).unwrap();
    Config::load(&dir, Some("test")).unwrap()
}

/// One request and its answer between two namespaces.
fn talks(server: &Path, at: &str, client: &Path, to: &str) {
    let listener = enter(server, || TcpListener::bind(at).unwrap()).unwrap();
    let mut near = enter(client, || TcpStream::connect(to).unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    near.write_all(b"question").unwrap();
    let mut buffer = [0; 8];
    far.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"question");
    far.write_all(b"answer!!").unwrap();
    near.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"answer!!");
}

/// Whether there is an interface of that name.
fn has_interface(netns: &Path, name: &str) -> bool {
    namespace::interfaces(netns).unwrap().iter().any(|one| one.name == name)
}

fn a_pod_through(version: &str) {
    let world = World::new();
    let folder = world.folder.path();
    let (list, plugins) = (network(folder, version), plugins(folder));
    assert!(list.declares("portMappings"));
    let mut attachment =
        Attachment::for_pod("pod1", Some(world.pod.clone()), "default", "web", "u-1");
    attachment.capabilities.port_mappings = vec![PortMapping {
        host_port: 18080,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: None,
    }];
    let result = world.on_host(async || {
        plugins.status(&list).await.unwrap();
        plugins.add(&list, &attachment).await.unwrap()
    });
    let ips = result.pod_ips("eth0");
    let expected: [IpAddr; 2] = ["10.213.7.2".parse().unwrap(), "fd13::2".parse().unwrap()];
    assert_eq!(ips, expected);
    assert_eq!(result.pod_addresses("eth0")[0].1, 24);
    assert_eq!(namespace::addresses(&world.pod, "eth0").unwrap(), ips);
    assert_eq!(world.leases().len(), 2);

    talks(&world.pod, "0.0.0.0:80", &world.host, "10.213.7.2:80");
    talks(&world.host, "10.213.7.1:70", &world.pod, "10.213.7.1:70");
    talks(&world.pod, "0.0.0.0:80", &world.host, "127.0.0.1:18080");
    talks(&world.pod, "0.0.0.0:80", &world.host, "10.213.7.1:18080");
    world.on_host(async || {
        plugins.del(None, &attachment).await.unwrap();
        // Again, as the kubelet does.
        plugins.del(Some(&list), &attachment).await.unwrap();
    });
    assert!(!has_interface(&world.pod, "eth0"));
    assert_eq!(world.leases(), [] as [&str; 0]);
    let refused = enter(&world.host, || TcpStream::connect("127.0.0.1:18080").is_err()).unwrap();
    assert!(refused);
}

#[test]
fn a_pod_through_1_0_0() {
    a_pod_through("1.0.0");
}

#[test]
fn a_pod_through_0_3_1() {
    a_pod_through("0.3.1");
}

#[test]
fn the_address_is_given_back_though_the_namespace_is_gone() {
    let world = World::new();
    let folder = world.folder.path();
    let (list, plugins) = (network(folder, "0.4.0"), plugins(folder));
    let attachment = Attachment::for_pod("pod1", Some(world.pod.clone()), "default", "web", "u");
    world.on_host(async || plugins.add(&list, &attachment).await.unwrap());
    assert_eq!(world.leases().len(), 2);
    namespace::remove(world.pod.parent().unwrap()).unwrap();
    world.on_host(async || plugins.del(None, &attachment).await.unwrap());
    assert_eq!(world.leases(), [] as [&str; 0]);
    assert_eq!(plugins.cached().unwrap(), []);
}

#[test]
fn a_failure_in_the_chain_gives_the_address_back() {
    let world = World::new();
    let folder = world.folder.path();
    let plugins = plugins(folder);
    let mut list = network(folder, "1.0.0");
    // portmap refuses this mark.
    list.plugins[1].object.insert("markMasqBit".to_owned(), json!(77));
    let mut attachment =
        Attachment::for_pod("pod1", Some(world.pod.clone()), "default", "web", "u-1");
    attachment.capabilities.port_mappings = vec![PortMapping {
        host_port: 18080,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: None,
    }];
    let error = world.on_host(async || plugins.add(&list, &attachment).await.unwrap_err());
    assert!(error.to_string().contains("portmap"), "{error}");
    // portmap's DEL refuses the mark too, but bridge was still asked.
    assert!(!has_interface(&world.pod, "eth0"));
    assert_eq!(world.leases(), [] as [&str; 0]);
}

#[test]
fn gc_gives_back_what_nobody_owns() {
    let world = World::new();
    let folder = world.folder.path();
    let (list, plugins) = (network(folder, "1.0.0"), plugins(folder));
    let attachment = Attachment::for_pod("pod1", Some(world.pod.clone()), "default", "web", "u");
    world.on_host(async || {
        plugins.add(&list, &attachment).await.unwrap();
        let valid = ValidAttachment { container_id: "pod1".into(), ifname: "eth0".into() };
        plugins.gc(&list, &[valid]).await.unwrap();
    });
    assert_eq!(world.leases().len(), 2);
    world.on_host(async || plugins.gc(&list, &[]).await.unwrap());
    assert_eq!(world.leases(), [] as [&str; 0]);
    assert!(!has_interface(&world.pod, "eth0"));
}

#[test]
fn check_notices_what_is_missing() {
    let world = World::new();
    let folder = world.folder.path();
    let (list, plugins) = (network(folder, "1.0.0"), plugins(folder));
    let attachment = Attachment::for_pod("pod1", Some(world.pod.clone()), "default", "web", "u");
    world.on_host(async || {
        plugins.add(&list, &attachment).await.unwrap();
        plugins.check(&list, &attachment).await.unwrap();
    });
    let deleted = enter(&world.pod, || {
        std::process::Command::new("ip").args(["link", "delete", "eth0"]).status().unwrap()
    });
    assert!(deleted.unwrap().success());
    let error = world.on_host(async || plugins.check(&list, &attachment).await.unwrap_err());
    assert!(matches!(error, cni::Error::Plugin { verb: "CHECK", .. }), "{error}");
    world.on_host(async || plugins.del(None, &attachment).await.unwrap());
    assert_eq!(world.leases(), [] as [&str; 0]);
}
