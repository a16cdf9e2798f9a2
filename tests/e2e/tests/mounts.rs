//! Mounts and devices by the configuration, and image volumes through kills of criod.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api_cri::v1::{ContainerConfig, Device, ImageSpec, Mount};
use e2e::daemon::{BUSYBOX, Cri, Criod, Options, container, image_volume};
use nix::mount::MsFlags;

const FILES: &str = "docker.io/test/files:1";
const LAYERED: &str = "docker.io/test/layered:1";
const DECLARES: &str = "docker.io/test/declares:1";

/// A criod with this configuration file; `DIR` in it is the folder. `before` prepares what it names.
fn with_config(text: &str, images: &[&'static str], before: impl Fn(&Path)) -> Criod {
    let options = Options {
        images: images.to_vec(),
        args: vec!["--config", "DIR/crio.conf"],
        ..Options::default()
    };
    let mut criod = Criod::prepare(options);
    let text = text.replace("DIR", &criod.dir.to_string_lossy());
    fs::write(criod.dir.join("crio.conf"), text).unwrap();
    before(&criod.dir);
    criod.launch();
    criod.ready();
    for image in images {
        criod.pull(&format!("docker.io/{image}")).unwrap();
    }
    criod.pull(BUSYBOX).unwrap();
    criod
}

fn idle(name: &str) -> ContainerConfig {
    container(name, &["sleep", "1000"])
}

fn mount(host_path: impl AsRef<Path>, at: &str) -> Mount {
    let host_path = host_path.as_ref().to_str().unwrap().to_owned();
    Mount { host_path, container_path: at.to_owned(), ..Mount::default() }
}

fn says(criod: &Criod, id: &str, script: &str) -> String {
    criod.exec(id, &["sh", "-c", script]).unwrap().1
}

/// Creates a container with image volumes and removes it; what a kill has cut is repeated.
fn cycle(cri: &Cri, kills: &AtomicUsize, pod: &str, config: &api_cri::v1::PodSandboxConfig) {
    let mut one = idle("one");
    one.mounts = vec![image_volume(FILES, "/one"), image_volume(LAYERED, "/many")];
    one.mounts[1].image_sub_path = "data".to_owned();
    let repeated = |call: &dyn Fn() -> Result<String, tonic::Status>| loop {
        let before = kills.load(Ordering::SeqCst);
        match call() {
            Ok(answer) => return answer,
            Err(e) => {
                let cut = before % 2 == 1 || kills.load(Ordering::SeqCst) != before;
                assert!(cut, "{e:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let id = repeated(&|| cri.create(pod, &one, config));
    repeated(&|| cri.start(&id).map(|()| String::new()));
    let cat = ["cat", "/one/data/file", "/many/keep"];
    let said = repeated(&|| cri.exec(&id, &cat).map(|(_, text)| text));
    assert_eq!(said, "of the image\nkept\n");
    repeated(&|| cri.remove(&id).map(|()| String::new()));
}

#[test]
fn no_kill_leaves_an_image_volume_mounted() {
    const ROUNDS: u32 = 24;
    let options = Options { images: vec!["test/files:1", "test/layered:1"], ..Options::default() };
    let mut criod = Criod::start(options);
    for image in [FILES, LAYERED] {
        criod.pull(image).unwrap();
    }
    let config = criod.host_pod("volumes");
    let pod = criod.run_pod(&config).unwrap();
    let kills = AtomicUsize::new(0);
    let began = Instant::now();
    cycle(&criod.cri, &kills, &pod, &config);
    let whole = began.elapsed();
    for round in 0..ROUNDS {
        let cri = criod.cri.clone();
        std::thread::scope(|scope| {
            let (kills, pod, config) = (&kills, &pod, &config);
            let running = scope.spawn(move || cycle(&cri, kills, pod, config));
            std::thread::sleep(whole * round / ROUNDS);
            kills.fetch_add(1, Ordering::SeqCst);
            criod.kill9();
            kills.fetch_add(1, Ordering::SeqCst);
            criod.launch();
            running.join().unwrap();
        });
    }
    // Nobody needs the images any more.
    for image in [FILES, LAYERED] {
        criod.remove_image(image).unwrap();
    }
    criod.finish();
}

#[test]
fn an_image_volume_is_known_to_the_next_criod() {
    let options = Options { images: vec!["test/files:1"], ..Options::default() };
    let mut criod = Criod::start(options);
    let image = criod.pull(FILES).unwrap();
    let config = criod.host_pod("volumes");
    let pod = criod.run_pod(&config).unwrap();
    let mut one = idle("one");
    one.mounts = vec![image_volume(&image, "/vol")];
    let id = criod.run(&pod, &one, &config);
    criod.restart();
    assert_eq!(says(&criod, &id, "cat /vol/data/file"), "of the image\n");
    assert_eq!(criod.status(&id).unwrap().mounts[0].image.as_ref().unwrap().image, image);
    let refused = criod.remove_image(&image).unwrap_err();
    assert!(refused.message().contains(&id), "{refused:?}");
    // The image goes while no criod looks; the layers stay as long as the container.
    criod.kill9();
    let record = format!("{}.json", image.trim_start_matches("sha256:"));
    fs::remove_file(criod.dir.join("root/images").join(record)).unwrap();
    criod.launch();
    criod.ready();
    assert_eq!(says(&criod, &id, "cat /vol/data/sub/deep"), "deep\n");
    criod.remove(&id).unwrap();
    criod.finish();
}

#[test]
fn every_container_has_the_default_mounts_and_the_time_zone() {
    let text = r#"
        [crio.runtime]
        default_mounts = ["DIR/token:/etc/token"]
        default_mounts_file = "DIR/mounts.conf"
        timezone = "Of/Test"
    "#;
    let mut criod = Criod::prepare(Options {
        args: vec!["--config", "DIR/crio.conf"],
        // Not every machine has zones.
        env: vec![("TZDIR", "DIR/zones")],
        ..Options::default()
    });
    let dir = criod.dir.clone();
    fs::write(dir.join("crio.conf"), "[crio.runtime]\ntimezone = \"No/Where\"\n").unwrap();
    let refused = criod.command().status().unwrap();
    assert!(!refused.success() && criod.said().contains("timezone"), "{}", criod.said());

    fs::create_dir_all(dir.join("secrets/sub")).unwrap();
    fs::write(dir.join("secrets/sub/key"), "secret\n").unwrap();
    fs::write(dir.join("token"), "token\n").unwrap();
    let lines = format!("# more\n{}/secrets:/run/secrets\n/not/there:/x\n", dir.display());
    fs::write(dir.join("mounts.conf"), lines).unwrap();
    fs::create_dir_all(dir.join("zones/Of")).unwrap();
    fs::write(dir.join("zones/Of/Test"), "TZif of the test").unwrap();
    let text = text.replace("DIR", &dir.to_string_lossy());
    fs::write(dir.join("crio.conf"), text).unwrap();
    criod.launch();
    criod.ready();
    criod.pull(BUSYBOX).unwrap();
    let config = criod.host_pod("defaults");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &idle("one"), &config);
    let script = "cat /etc/token /run/secrets/sub/key; echo changed > /run/secrets/sub/key; \
                  cat /run/secrets/sub/key; ls -d /x 2>/dev/null";
    assert_eq!(says(&criod, &id, script), "token\nsecret\nchanged\n");
    assert_eq!(fs::read_to_string(dir.join("secrets/sub/key")).unwrap(), "secret\n");
    assert_eq!(says(&criod, &id, "cat /etc/localtime"), "TZif of the test");
    // What a request mounts there wins.
    let mut two = idle("two");
    two.mounts = vec![mount(dir.join("token"), "/run/secrets")];
    let two = criod.run(&pod, &two, &config);
    assert_eq!(says(&criod, &two, "cat /run/secrets"), "token\n");
    criod.finish();
}

#[test]
fn volumes_that_images_declare_by_configuration() {
    for (mode, made, mounted) in
        [("bind", true, true), ("mkdir", true, false), ("ignore", false, false)]
    {
        let text = format!("[crio.image]\nimage_volumes = \"{mode}\"\n");
        let criod = with_config(&text, &["test/declares:1"], |_| ());
        let config = criod.host_pod("declared");
        let pod = criod.run_pod(&config).unwrap();
        let mut one = idle("one");
        one.image = Some(ImageSpec { image: DECLARES.into(), ..ImageSpec::default() });
        let id = criod.run(&pod, &one, &config);
        let exists = says(&criod, &id, "test -d /new/data && echo yes");
        assert_eq!(exists, if made { "yes\n" } else { "" }, "{mode}");
        let points = says(&criod, &id, "grep -c ' /new/data \\| /there ' /proc/mounts");
        assert_eq!(points, if mounted { "2\n" } else { "0\n" }, "{mode}");
        let written = says(&criod, &id, "echo x > /there/f && stat -c '%a %u' /there");
        assert_eq!(written, "1777 1000\n", "{mode}");
        // A container of an image decides nothing over what the runtime mounts.
        assert_eq!(
            says(&criod, &id, "test -c /dev/null && ls /proc/self/status"),
            "/proc/self/status\n"
        );
        criod.finish();
    }
}

#[test]
fn sources_below_a_prefix_and_sources_that_must_exist() {
    let text = r#"
        [crio.runtime]
        bind_mount_prefix = "DIR/node"
        absent_mount_sources_to_reject = ["/etc/hostname", "DIR/node/whole"]
    "#;
    let criod = with_config(text, &[], |dir| {
        fs::create_dir_all(dir.join("node/data/sub")).unwrap();
        fs::write(dir.join("node/data/sub/file"), "below the prefix\n").unwrap();
        symlink("/data/sub", dir.join("node/link")).unwrap();
        symlink("../../../../data", dir.join("node/climbs")).unwrap();
    });
    let config = criod.host_pod("prefix");
    let pod = criod.run_pod(&config).unwrap();
    let mut one = idle("one");
    one.mounts =
        vec![mount("/link", "/a"), mount("/climbs/sub", "/b"), mount("/made/for/it", "/c")];
    let id = criod.run(&pod, &one, &config);
    let text = says(&criod, &id, "cat /a/file /b/file; echo x > /c/file");
    assert_eq!(text, "below the prefix\nbelow the prefix\n");
    assert!(criod.dir.join("node/made/for/it/file").exists());
    let echoed = criod.status(&id).unwrap().mounts;
    assert_eq!(
        echoed.iter().map(|m| &*m.host_path).collect::<Vec<_>>(),
        ["/link", "/climbs/sub", "/made/for/it"]
    );
    for path in ["/etc/hostname", "/etc//hostname/.", "/whole"] {
        let mut two = idle("two");
        two.mounts = vec![mount(path, "/mnt")];
        let refused = criod.create(&pod, &two, &config).unwrap_err();
        assert!(refused.message().contains("absent_mount_sources_to_reject"), "{refused:?}");
    }
    assert!(!criod.dir.join("node/etc").exists() && !criod.dir.join("node/whole").exists());
    criod.finish();
}

#[test]
fn devices_by_configuration_and_annotation() {
    let text = r#"
        [crio.runtime]
        additional_devices = ["/dev/full:/dev/added:r", "/dev/zero:/dev/asked"]
        allowed_devices = ["/dev/zero"]
        device_ownership_from_security_context = true
        [crio.runtime.runtimes.runc]
        allowed_annotations = ["io.kubernetes.cri-o.Devices", "shm-size.crio.io"]
        [crio.runtime.runtimes.strict]
        runtime_path = "/usr/sbin/runc"
    "#;
    let criod = with_config(text, &[], |_| ());
    let mut config = criod.pod("devices");
    let annotation = |c: &mut api_cri::v1::PodSandboxConfig, key: &str, value: &str| {
        c.annotations.insert(key.to_owned(), value.to_owned());
    };
    annotation(
        &mut config,
        "io.kubernetes.cri-o.Devices",
        "/dev/zero:/dev/second, /dev/zero:/dev/third:r",
    );
    annotation(&mut config, "shm-size.crio.io", "3Mi");
    let pod = criod.run_pod(&config).unwrap();
    let mut one = idle("one");
    let device = |container_path: &str| Device {
        host_path: "/dev/null".into(),
        container_path: container_path.into(),
        permissions: "rw".into(),
    };
    one.devices = vec![device("/dev/asked"), device("/dev/mine")];
    let number = |value| Some(api_cri::v1::Int64Value { value });
    one.linux = Some(api_cri::v1::LinuxContainerConfig {
        security_context: Some(api_cri::v1::LinuxContainerSecurityContext {
            run_as_user: number(1234),
            run_as_group: number(77),
            ..Default::default()
        }),
        ..Default::default()
    });
    let id = criod.run(&pod, &one, &config);
    let text = says(&criod, &id, "cd /dev; stat -c '%n %t:%T %u:%g' added asked mine second third");
    assert_eq!(
        text,
        "added 1:7 0:0\nasked 1:3 1234:77\nmine 1:3 1234:77\nsecond 1:5 0:0\nthird 1:5 0:0\n"
    );
    assert_eq!(
        says(&criod, &id, "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2"),
        "3072\n"
    );

    // A device that nobody allowed, and a size that is none.
    for (key, value, part) in [
        ("io.kubernetes.cri-o.Devices", "/dev/random", "allowed_devices"),
        ("io.kubernetes.cri-o.Devices", "/dev/zero:rwx:x:y", "no"),
        ("shm-size.crio.io", "large", "size"),
    ] {
        let mut config = criod.pod("refused");
        annotation(&mut config, key, value);
        let refused = match criod.run_pod(&config) {
            Err(e) => e,
            Ok(pod) => {
                let e = criod.create(&pod, &idle("one"), &config).unwrap_err();
                criod.remove_pod(&pod).unwrap();
                e
            }
        };
        let text = refused.message();
        assert!(text.contains(key) && text.contains(part), "{refused:?}");
    }

    // A handler that allows none: the annotation is a mere note.
    let pod = criod
        .run_pod_with(
            &{
                let mut other = config.clone();
                other.metadata.as_mut().unwrap().name = "strict".into();
                other
            },
            "strict",
        )
        .unwrap();
    let id = criod.run(&pod, &idle("one"), &config);
    assert_eq!(says(&criod, &id, "ls /dev/second /dev/added 2>/dev/null"), "/dev/added\n");
    criod.finish();
}

#[test]
fn a_missing_device_of_the_configuration_is_named() {
    let criod =
        with_config("[crio.runtime]\nadditional_devices = [\"/dev/no-such\"]\n", &[], |_| ());
    let config = criod.host_pod("missing");
    let pod = criod.run_pod(&config).unwrap();
    let refused = criod.create(&pod, &idle("one"), &config).unwrap_err();
    let text = refused.message();
    assert!(text.contains("additional_devices") && text.contains("/dev/no-such"), "{refused:?}");
    criod.finish();
}

/// A container that has criod's own folders sees the roots of others come and go, and keeps none
/// alive.
#[test]
fn a_mount_of_what_is_ours_keeps_nothing_alive() {
    let criod = Criod::start(Options { small_root: Some(64 << 10), ..Options::default() });
    let root = criod.dir.join("root");
    let spread = |flag| {
        let none = None::<&str>;
        nix::mount::mount(none, &root, none, flag, none).unwrap();
    };
    let config = criod.host_pod("node");
    let pod = criod.run_pod(&config).unwrap();
    let other = criod.run(&pod, &idle("other"), &config);
    // Only what is shared can be seen to go.
    for (flag, left) in [(MsFlags::MS_PRIVATE, true), (MsFlags::MS_SHARED, false)] {
        spread(flag);
        let name = format!("agent-{left}");
        let mut agent = idle(&name);
        agent.mounts = vec![mount(&root, "/host")];
        let agent = criod.run(&pod, &agent, &config);
        let count = || says(&criod, &agent, &format!("grep -c {other} /proc/self/mountinfo"));
        assert_eq!(count(), "1\n", "{name}");
        if left {
            criod.remove(&agent).unwrap();
        } else {
            criod.remove(&other).unwrap();
            assert_eq!(count(), "0\n");
        }
    }
    criod.finish();
}

#[test]
fn a_runtime_is_told_not_to_pivot() {
    let text = r#"
        [crio.runtime]
        no_pivot = true
        default_runtime = "logged"
        [crio.runtime.runtimes.logged]
        runtime_path = "DIR/bin/logged"
    "#;
    let mut criod = Criod::prepare(Options {
        args: vec!["--config", "DIR/crio.conf", "--default-runtime", "logged"],
        ..Options::default()
    });
    let text = text.replace("DIR", &criod.dir.to_string_lossy());
    fs::write(criod.dir.join("crio.conf"), text).unwrap();
    criod.script("bin/logged", "#!/bin/sh\necho \"$@\" >> DIR/calls\nexec runc \"$@\"\n");
    criod.launch();
    criod.ready();
    criod.pull(BUSYBOX).unwrap();
    let config = criod.host_pod("pivot");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &idle("one"), &config);
    assert_eq!(says(&criod, &id, "ls /bin/sh"), "/bin/sh\n");
    let calls = fs::read_to_string(criod.dir.join("calls")).unwrap();
    let (create, others): (Vec<_>, Vec<_>) = calls.lines().partition(|l| l.contains(" create "));
    assert!(create.len() == 1 && create[0].contains(" --no-pivot "), "{calls}");
    assert!(others.iter().all(|l| !l.contains("--no-pivot")), "{calls}");
    criod.finish();
}

#[test]
fn hooks_of_the_node_run_where_they_are_meant_to() {
    let text = "[crio.runtime]\nhooks_dir = [\"DIR/hooks\", \"DIR/more\"]\n";
    let criod = with_config(text, &[], |dir| fs::create_dir(dir.join("hooks")).unwrap());
    criod.script("bin/hook", "#!/bin/sh\necho \"$1\" >> DIR/ran\n");
    let program = criod.dir.join("bin/hook");
    let hook = |name: &str, when: serde_json::Value, stages: &[&str]| {
        let hook = serde_json::json!({"path": program, "args": ["hook", name]});
        let text = serde_json::json!({
            "version": "1.0.0", "hook": hook, "when": when, "stages": stages,
        });
        fs::write(criod.dir.join("hooks").join(name), text.to_string()).unwrap();
    };
    hook("first.json", serde_json::json!({"always": true}), &["prestart"]);
    hook("last.json", serde_json::json!({"commands": ["sleep$"]}), &["poststop"]);
    hook("never.json", serde_json::json!({"annotations": {"a": "b"}}), &["createRuntime"]);
    hook("noted.json", serde_json::json!({"annotations": {"^note$": "1"}}), &["poststart"]);
    let mut config = criod.host_pod("hooks");
    config.annotations.insert("note".into(), "1".into());
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &idle("one"), &config);
    criod.remove(&id).unwrap();
    let ran = fs::read_to_string(criod.dir.join("ran")).unwrap();
    assert_eq!(ran, "first.json\nnoted.json\nlast.json\n");
    // One that cannot be understood guards nothing: no container starts without it.
    fs::write(criod.dir.join("hooks/odd.json"), "{").unwrap();
    let refused = criod.create(&pod, &idle("two"), &config).unwrap_err();
    assert!(refused.message().contains("odd.json"), "{refused:?}");
    criod.finish();
}

/// What is there when it is looked at, and gone when the runtime mounts it.
#[test]
fn a_source_that_vanishes_meanwhile_is_an_error_that_leaves_nothing() {
    let text = r#"
        [crio.runtime.runtimes.thief]
        runtime_path = "DIR/bin/thief"
    "#;
    let criod = with_config(text, &[], |dir| {
        let steal =
            "#!/bin/sh\ncase \"$*\" in *' create '*) rm -rf DIR/gone;; esac\nexec runc \"$@\"\n";
        let thief = dir.join("bin/thief");
        fs::create_dir(dir.join("bin")).unwrap();
        fs::write(&thief, steal.replace("DIR", &dir.to_string_lossy())).unwrap();
        fs::set_permissions(&thief, fs::Permissions::from_mode(0o755)).unwrap();
    });
    let config = criod.host_pod("thief");
    let pod = criod.run_pod_with(&config, "thief").unwrap();
    let gone = criod.dir.join("gone");
    fs::create_dir(&gone).unwrap();
    let mut one = idle("one");
    one.mounts = vec![mount(&gone, "/mnt")];
    let refused = criod.create(&pod, &one, &config).unwrap_err();
    assert!(refused.message().contains(gone.to_str().unwrap()), "{refused:?}");
    assert!(criod.containers().is_empty());
    criod.finish();
}

#[test]
fn a_link_to_a_path_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let criod = Criod::start(Options::default());
    let odd = criod.dir.join(std::ffi::OsStr::from_bytes(b"odd\xff"));
    fs::create_dir(&odd).unwrap();
    symlink(&odd, criod.dir.join("link")).unwrap();
    let config = criod.host_pod("odd");
    let pod = criod.run_pod(&config).unwrap();
    let mut one = idle("one");
    one.mounts = vec![mount(criod.dir.join("link"), "/mnt")];
    let refused = criod.create(&pod, &one, &config).unwrap_err();
    assert!(refused.message().contains("UTF-8"), "{refused:?}");
    criod.finish();
}
