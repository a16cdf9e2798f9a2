//! Each type's spelling, and what is none.

use super::*;

#[test]
fn durations_are_read_as_go_reads_them() {
    for (text, nanos) in [
        ("0", 0),
        ("0s", 0),
        ("+5s", 5_000_000_000),
        ("1m30s", 90_000_000_000),
        ("1.5h", 5_400_000_000_000),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        ("250ms", 250_000_000),
        ("1us", 1_000),
        ("1µs", 1_000),
        ("7ns", 7),
        ("0.3333333333333333333333h", 1_199_999_999_999),
        ("2562047h47m16.854775807s", i64::MAX as u64),
    ] {
        let read = Duration::from_text(text).unwrap();
        assert_eq!(read.as_nanos(), u128::from(nanos), "{text}");
        assert_eq!(Duration::from_text(&read.to_text()), Ok(read), "{}", read.to_text());
    }
    let bad = ["", "+", ".", "s", ".s", "5", "5 s", "-5s", "1x", "1s2", "2562047h47m16.854775808s"];
    for text in bad.into_iter().chain(["99999999999999999999999999999999999999999h", "1µ"]) {
        assert!(Duration::from_text(text).is_err(), "{text}");
    }
    assert_eq!(Duration::from_secs(3600).to_text(), "1h0m0s");
    assert_eq!(Duration::from_secs(60).to_text(), "1m0s");
    assert_eq!(Duration::from_millis(1500).to_text(), "1500ms");
}

#[test]
fn sizes_have_binary_and_decimal_units() {
    for (text, bytes) in [
        ("0", 0),
        ("17", 17),
        ("17b", 17),
        ("500KiB", 500 << 10),
        ("12MiB", 12 << 20),
        ("12 mib", 12 << 20),
        ("1G", 1 << 30),
        ("1GB", 1_000_000_000),
        ("16777215TiB", 16_777_215 << 40),
    ] {
        let read = ByteSize::from_text(text).unwrap();
        assert_eq!(read.0, bytes, "{text}");
        assert_eq!(ByteSize::from_text(&read.to_text()), Ok(read));
    }
    for text in ["", "MiB", "-1", "1.5MiB", "1 parsec", "16777216TiB", "99999999999999999999"] {
        assert!(ByteSize::from_text(text).is_err(), "{text}");
    }
}

#[test]
fn limits_have_a_known_name_and_an_order() {
    let read = |t: &str| Ulimit::from_text(t).map(|u| (u.name, u.soft, u.hard)).ok();
    assert_eq!(read("nofile=1024:2048"), Some(("nofile".into(), 1024, 2048)));
    assert_eq!(read("NOFILE=7"), Some(("nofile".into(), 7, 7)));
    assert_eq!(read("core=0:-1"), Some(("core".into(), 0, u64::MAX)));
    for text in ["nofile", "nofile=", "files=1", "nofile=-1:5", "nofile=-2", "nofile=1:2:3"] {
        assert_eq!(read(text), None, "{text}");
    }
}

#[test]
fn capabilities_are_the_kernels() {
    assert_eq!(Capability::new("cap_net_raw").unwrap().full(), "CAP_NET_RAW");
    assert_eq!(Capability::new("NET_RAW").unwrap().as_str(), "NET_RAW");
    assert_eq!(Capability::new("CAP_CAP_NET_RAW"), None);
    assert_eq!(Capability::new(""), None);
}

#[test]
fn parameters_are_a_pods_own() {
    for name in ["kernel.sem", "kernel.shmmax", "kernel.msgmax", "fs.mqueue.x", "net.a", "net/a"] {
        assert!(Sysctl::is_namespaced(name), "{name}");
    }
    for name in ["kernel.semx", "kernel.hostname", "vm.x", "net.", "network.x", ""] {
        assert!(!Sysctl::is_namespaced(name), "{name}");
    }
}

#[test]
fn devices_are_below_dev() {
    let read = |t: &str| DeviceSpec::from_text(t).map(|d| d.to_text()).ok();
    let all = Some("/dev/a:/dev/a:rwm".to_owned());
    assert_eq!(read("/dev/a"), all);
    assert_eq!(read("/dev/a:r"), Some("/dev/a:/dev/a:r".to_owned()));
    assert_eq!(read("/dev/a:/dev/b"), Some("/dev/a:/dev/b:rwm".to_owned()));
    assert_eq!(read("/dev/a:/dev/b:mr"), Some("/dev/a:/dev/b:mr".to_owned()));
    for text in ["", "/etc/a", "/dev/../etc", "/dev/a:/etc/b", "/dev/a:/dev/b:x", "/dev/a:rr"] {
        assert_eq!(read(text), None, "{text}");
    }
}
