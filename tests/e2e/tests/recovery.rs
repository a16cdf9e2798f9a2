//! A criod after one that was killed: everything is as it was, and what cannot be read is shown.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use api_cri::v1::*;
use e2e::daemon::{BUSYBOX, Criod, EXITED, NOT_READY, Options, RUNNING, UNKNOWN, block, container};
use prost::Message;

/// Every answer about what there is, by call and id.
fn answers(criod: &Criod) -> Vec<(String, Vec<u8>)> {
    block(async {
        let (mut runtime, mut images) = (criod.runtime(), criod.images());
        let mut all = Vec::new();
        let mut add = |call: &str, bytes: Vec<u8>| all.push((call.to_owned(), bytes));
        let list = runtime.list_containers(ListContainersRequest::default()).await;
        let list = list.unwrap().into_inner();
        let pods = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await;
        let pods = pods.unwrap().into_inner();
        for container in &list.containers {
            let request =
                ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
            let answer = runtime.container_status(request).await.unwrap().into_inner();
            assert!(!answer.info.is_empty());
            add(&format!("ContainerStatus {}", container.id), answer.encode_to_vec());
        }
        for pod in &pods.items {
            let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
            let mut answer = runtime.pod_sandbox_status(request).await.unwrap().into_inner();
            answer.timestamp = 0;
            add(&format!("PodSandboxStatus {}", pod.id), answer.encode_to_vec());
        }
        add("ListContainers", list.encode_to_vec());
        add("ListPodSandbox", pods.encode_to_vec());
        let listed = images.list_images(ListImagesRequest::default()).await.unwrap().into_inner();
        for image in &listed.images {
            let spec = Some(ImageSpec { image: image.id.clone(), ..Default::default() });
            let request = ImageStatusRequest { image: spec, verbose: true };
            let answer = images.image_status(request).await.unwrap().into_inner();
            add(&format!("ImageStatus {}", image.id), answer.encode_to_vec());
        }
        add("ListImages", listed.encode_to_vec());
        let config = runtime.runtime_config(RuntimeConfigRequest::default()).await;
        add("RuntimeConfig", config.unwrap().into_inner().encode_to_vec());
        let status = runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
        add("Status", status.encode_to_vec());
        all
    })
}

#[test]
fn every_answer_is_the_same_byte_for_byte() {
    let mut criod = Criod::start(Options::default());
    let mut config = criod.pod("net");
    config.labels = [("a".to_owned(), "b".to_owned())].into();
    config.annotations = [("c".to_owned(), "d".to_owned())].into();
    config.port_mappings =
        vec![PortMapping { host_port: 18090, container_port: 80, ..Default::default() }];
    let pod = criod.run_pod(&config).unwrap();
    let shared = criod.pid_pod("shared");
    let other = criod.run_pod(&shared).unwrap();
    let mut limited = container("limited", &["sleep", "1000"]);
    limited.labels = [("x".to_owned(), "y".to_owned())].into();
    limited.envs = vec![KeyValue { key: "K".into(), value: b"v".to_vec() }];
    limited.linux = Some(LinuxContainerConfig {
        resources: Some(LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        }),
        ..Default::default()
    });
    let limited = criod.run(&pod, &limited, &config);
    criod.create(&pod, &container("created", &["true"]), &config).unwrap();
    let ended = criod.run(&pod, &container("ended", &["sh", "-c", "exit 3"]), &config);
    criod.ended(&ended);
    criod.run(
        &other,
        &container("deaf", &["sh", "-c", "trap '' TERM; sleep 1000 & wait; wait"]),
        &shared,
    );
    let stopped = criod.run_pod(&criod.host_pod("stopped")).unwrap();
    criod.stop_pod(&stopped).unwrap();
    let before = answers(&criod);
    for _ in 0..2 {
        criod.restart();
        let after = answers(&criod);
        for (old, new) in before.iter().zip(&after) {
            assert_eq!(old.0, new.0);
            assert!(
                old.1 == new.1,
                "{}:\n{}\n{}",
                old.0,
                String::from_utf8_lossy(&old.1),
                String::from_utf8_lossy(&new.1)
            );
        }
        assert_eq!(before.len(), after.len());
    }
    // Times of creation go on growing, and names are taken.
    let newest = criod.containers().iter().map(|c| c.created_at).max().unwrap();
    assert!(criod.create(&pod, &container("ended", &["true"]), &config).is_err());
    let later = criod.create(&pod, &container("later", &["true"]), &config).unwrap();
    assert!(criod.status(&later).unwrap().created_at > newest);
    assert_eq!(criod.run_pod(&config).unwrap(), pod);
    assert_eq!(criod.exec(&limited, &["echo", "x"]).unwrap(), (0, "x\n".to_owned()));
    criod.finish();
}

type Harm = fn(&Path);

/// Ways in which a record is no longer what it was.
const HARMS: [(&str, Harm); 7] = [
    ("truncated", |p| fs::write(p, &fs::read(p).unwrap()[..90]).unwrap()),
    ("garbage", |p| fs::write(p, [0u8; 4096]).unwrap()),
    ("empty", |p| fs::write(p, "").unwrap()),
    ("folder", |p| {
        fs::remove_file(p).unwrap();
        fs::create_dir(p).unwrap();
    }),
    ("newer", |p| {
        let text = fs::read_to_string(p).unwrap();
        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record["state"] = "Frozen".into();
        fs::write(p, record.to_string()).unwrap();
    }),
    ("lost", |p| fs::remove_file(p).unwrap()),
    // All of it, as of a release that wrote no second one.
    ("alone", |p| {
        fs::write(p, "[]").unwrap();
        fs::remove_file(p.with_file_name("first.json")).unwrap();
    }),
];

#[test]
fn unreadable_containers() {
    let mut criod = Criod::start(Options::default());
    let config = criod.pod("whole");
    let pod = criod.run_pod(&config).unwrap();
    let named = |name: &str| {
        let mut asked = container(name, &["sleep", "1000"]);
        asked.labels = [("io.kubernetes.container.name".to_owned(), name.to_owned())].into();
        asked
    };
    let well = criod.run(&pod, &named("well"), &config);
    let ids: Vec<String> =
        HARMS.iter().map(|(name, _)| criod.run(&pod, &named(name), &config)).collect();
    let before = criod.containers();
    criod.kill9();
    let record =
        |criod: &Criod, id: &str| criod.dir.join("root/containers").join(id).join("record.json");
    for ((_, harm), id) in HARMS.iter().zip(&ids) {
        harm(&record(&criod, id));
    }
    let harmed: Vec<_> = ids.iter().map(|id| fs::read(record(&criod, id)).ok()).collect();
    for _ in 0..2 {
        criod.launch();
        criod.ready();
        let said = fs::read_to_string(criod.dir.join("criod.log")).unwrap();
        let list = criod.containers();
        assert_eq!(list.len(), before.len());
        assert_eq!(criod.status(&well).unwrap().state, RUNNING);
        for (id, (name, _)) in ids.iter().zip(&HARMS) {
            let status = criod.status(id).unwrap();
            assert_eq!((status.state, status.reason.as_str()), (UNKNOWN, "ContainerStatusUnknown"));
            let path = record(&criod, id);
            assert!(status.message.contains(path.to_str().unwrap()), "{status:?}");
            assert!(said.contains(path.to_str().unwrap()), "{said}");
            assert_eq!(status.metadata.unwrap().name, *name);
            assert!(status.created_at > 0 && !status.log_path.is_empty());
            let listed = list.iter().find(|c| c.id == *id).unwrap();
            assert_eq!((listed.state, &listed.pod_sandbox_id), (UNKNOWN, &pod));
            if *name != "alone" {
                let old = before.iter().find(|c| c.id == *id).unwrap();
                let mut same = listed.clone();
                same.state = RUNNING;
                assert_eq!(&same, old);
            }
            assert!(criod.monitor_pid(id).is_some(), "it is left alone");
        }
        criod.kill9();
    }
    let now: Vec<_> = ids.iter().map(|id| fs::read(record(&criod, id)).ok()).collect();
    assert_eq!(now, harmed, "nothing is changed");
    criod.launch();
    criod.ready();
    // Any image may be the one of which nothing is known.
    assert!(criod.remove_image(BUSYBOX).is_err());
    for (at, id) in ids.iter().enumerate() {
        // Some are stopped first, some are removed as they are; the rest goes with the pod.
        match at % 3 {
            0 => {
                criod.stop(id, 1).unwrap();
                let status = criod.status(id).unwrap();
                assert_eq!((status.state, status.exit_code), (EXITED, 137));
                criod.remove(id).unwrap();
            }
            1 => criod.remove(id).unwrap(),
            _ => continue,
        }
        assert!(criod.status(id).is_err());
        assert!(criod.monitor_pid(id).is_none());
        assert!(!record(&criod, id).parent().unwrap().exists());
    }
    assert_eq!(criod.exec(&well, &["echo", "x"]).unwrap(), (0, "x\n".to_owned()));
    criod.stop_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
    criod.clean();
    criod.finish();
}

#[test]
fn unreadable_pods_and_what_is_in_them() {
    let mut criod = Criod::start(Options::default());
    let mut pods = Vec::new();
    for (name, harm) in HARMS {
        let mut config = if name == "lost" { criod.pid_pod(name) } else { criod.pod(name) };
        config.labels = [("l".to_owned(), name.to_owned())].into();
        let id = criod.run_pod(&config).unwrap();
        let mut asked = container("c", &["sleep", "1000"]);
        let meta = config.metadata.clone().unwrap();
        asked.labels = [("name", meta.name), ("namespace", meta.namespace), ("uid", meta.uid)]
            .map(|(k, v)| (format!("io.kubernetes.pod.{k}"), v))
            .into();
        let inside = criod.run(&id, &asked, &config);
        pods.push((id, name, harm, inside));
    }
    let before = criod.pods();
    let ips: Vec<_> = pods.iter().map(|p| criod.pod_status(&p.0).unwrap().network).collect();
    criod.kill9();
    for (id, name, harm, inside) in &pods {
        harm(&criod.dir.join("root/pods").join(id).join("record.json"));
        let record = criod.dir.join("root/containers").join(inside).join("record.json");
        // One whose everything is damaged, but for the folder of its monitor.
        if *name == "garbage" {
            fs::write(record, "x").unwrap();
        } else if *name == "empty" {
            fs::write(record, "x").unwrap();
            fs::write(criod.dir.join("run/containers").join(inside).join("config"), "x").unwrap();
        }
    }
    criod.launch();
    criod.ready();
    for (at, (id, name, _, inside)) in pods.iter().enumerate() {
        let status = criod.pod_status(id).unwrap();
        assert_eq!(status.state, NOT_READY, "{name}");
        assert_eq!(status.metadata.as_ref().unwrap().name, *name);
        assert_eq!(status.metadata.as_ref().unwrap().uid, format!("uid-{name}"));
        if !matches!(*name, "lost") {
            assert_eq!(status.network, ips[at], "{name}");
        }
        if *name != "alone" {
            let old = before.iter().find(|p| p.id == *id).unwrap();
            assert_eq!((&status.labels, status.created_at), (&old.labels, old.created_at));
        }
        // The rest of the pod goes on until somebody asks for its end.
        let state = criod.status(inside).unwrap().state;
        assert_eq!(state, if matches!(*name, "garbage" | "empty") { UNKNOWN } else { RUNNING });
        assert!(criod.monitor_pid(inside).is_some());
    }
    for (id, name, ..) in &pods {
        criod.stop_pod(id).unwrap_or_else(|e| panic!("{name}: {e}"));
        criod.remove_pod(id).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(criod.pod_status(id).is_err());
    }
    criod.clean();
    criod.finish();
}
