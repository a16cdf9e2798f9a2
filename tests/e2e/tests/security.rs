//! What the configuration says about the confinement of containers, with a real runtime.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use api_cri::v1::{
    ContainerConfig, LinuxContainerConfig, LinuxContainerSecurityContext, Mount, PodSandboxConfig,
    SecurityProfile, security_profile::ProfileType,
};
use e2e::daemon::{Criod, Options, container, lines};
use tonic::Code;

/// What fails in it is told apart from what other profiles refuse by its number.
const NO_MKDIR: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#;

fn confined(
    name: &str,
    script: &str,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> ContainerConfig {
    let mut security = LinuxContainerSecurityContext {
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault as i32,
            ..Default::default()
        }),
        ..Default::default()
    };
    change(&mut security);
    let linux = LinuxContainerConfig { security_context: Some(security), ..Default::default() };
    ContainerConfig { linux: Some(linux), ..container(name, &["sh", "-c", script]) }
}

/// What a container prints until it ends.
fn printed(criod: &Criod, pod: &str, config: &ContainerConfig, of: &PodSandboxConfig) -> String {
    let id = criod.run(pod, config, of);
    criod.ended(&id);
    let pod_name = &of.metadata.as_ref().unwrap().name;
    let name = &config.metadata.as_ref().unwrap().name;
    let log = lines(&criod.log(pod_name, name));
    log.iter().map(|(_, text)| format!("{text}\n")).collect()
}

#[test]
fn profiles_of_the_configuration() {
    let mut criod = Criod::prepare(Options {
        args: vec![
            "--seccomp-profile",
            "DIR/default.json",
            "--privileged-seccomp-profile",
            "DIR/privileged.json",
        ],
        no_network: true,
        ..Options::default()
    });
    fs::write(criod.dir.join("default.json"), NO_MKDIR).unwrap();
    let privileged =
        NO_MKDIR.replace("\"mkdir\", \"mkdirat\"", "\"chown\", \"fchownat\", \"lchown\"");
    fs::write(criod.dir.join("privileged.json"), privileged).unwrap();
    criod.launch();
    criod.ready();
    criod.pull(e2e::daemon::BUSYBOX).unwrap();

    let mut config = criod.host_pod("p");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.privileged = true;
    let pod = criod.run_pod(&config).unwrap();
    let script =
        "mkdir /d 2>/dev/null && echo made; touch /f; chown 1 /f 2>/dev/null && echo owned; true";
    let of = |config: &ContainerConfig, pod_config| printed(&criod, &pod, config, pod_config);
    assert_eq!(of(&confined("default", script, |_| ()), &config), "owned\n");
    let unconfined = confined("unconfined", script, |s| {
        s.seccomp.as_mut().unwrap().profile_type = ProfileType::Unconfined as i32;
    });
    assert_eq!(of(&unconfined, &config), "made\nowned\n");
    assert_eq!(of(&confined("privileged", script, |s| s.privileged = true), &config), "made\n");

    // A profile that has been broken since refuses who needs it, and nobody else.
    fs::write(criod.dir.join("default.json"), "{").unwrap();
    let error = criod.create(&pod, &confined("broken", "true", |_| ()), &config).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(
        error.message().contains("seccomp_profile: ") && error.message().contains("default.json"),
        "{error}"
    );
    let again = confined("again", script, |s| s.seccomp = None);
    assert_eq!(of(&again, &config), "made\nowned\n");
    // It is said at a start, which goes on.
    criod.restart();
    e2e::eventually("it is said", || criod.said().contains("will be refused").then_some(()));
    criod.finish();
}

#[test]
fn read_only_roots() {
    let criod =
        Criod::start(Options { args: vec!["--read-only"], no_network: true, ..Options::default() });
    let config = criod.host_pod("p");
    let pod = criod.run_pod(&config).unwrap();
    let script = "for d in / /etc /run /tmp /var /var/tmp /dev/shm; do \
                  (echo x > $d/file) 2>/dev/null && echo $d; done; \
                  (echo x >> /etc/hostname) 2>/dev/null && echo hostname; true";
    let plain = confined("plain", script, |_| ());
    assert_eq!(printed(&criod, &pod, &plain, &config), "/run\n/tmp\n/var/tmp\n/dev/shm\n");

    // What the container itself mounts there is its own.
    let volume = criod.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    let mount = Mount {
        container_path: "/tmp".into(),
        host_path: volume.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let own = ContainerConfig { mounts: vec![mount], ..confined("own", script, |_| ()) };
    assert_eq!(printed(&criod, &pod, &own, &config), "/run\n/tmp\n/var/tmp\n/dev/shm\n");
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "x\n");
    criod.finish();
}
