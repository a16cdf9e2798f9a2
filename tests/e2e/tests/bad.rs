//! What must fail does so clearly, and leaves nothing.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api_cri::v1::{ContainerConfig, ImageSpec};
use e2e::daemon::{
    BUSYBOX, Criod, EXITED, NOT_READY, Options, READY, RUNNING, UNKNOWN, container, lines,
};
use e2e::eventually;
use tonic::Code;

#[test]
fn what_nobody_knows() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("known");
    let error = criod.run_pod_with(&config, "nosuch").unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains("nosuch"), "{error}");

    let nobody = "0123456789abcdef";
    let sleep = container("c", &["sleep", "1000"]);
    let errors = [
        criod.create(nobody, &sleep, &config).unwrap_err(),
        criod.start(nobody).unwrap_err(),
        criod.status(nobody).unwrap_err(),
        criod.exec(nobody, &["true"]).unwrap_err(),
        criod.pod_status(nobody).unwrap_err(),
        criod.reopen_log(nobody).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.code(), Code::NotFound, "{error}");
        assert!(error.message().contains(nobody), "{error}");
    }
    // What is not there is stopped and removed already.
    criod.stop(nobody, 1).unwrap();
    criod.remove(nobody).unwrap();
    criod.stop_pod(nobody).unwrap();
    criod.remove_pod(nobody).unwrap();

    let pod = criod.run_pod(&config).unwrap();
    let missing = ContainerConfig {
        image: Some(ImageSpec { image: "docker.io/test/nosuch:1".into(), ..Default::default() }),
        ..sleep.clone()
    };
    let error = criod.create(&pod, &missing, &config).unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains("test/nosuch:1"), "{error}");
    let error = criod.pull("docker.io/test/nosuch:1").unwrap_err();
    assert!(error.message().contains("test/nosuch:1"), "{error}");
    criod.remove_image("docker.io/test/nosuch:1").unwrap();
    // The name was not kept by the creation that failed.
    criod.run(&pod, &sleep, &config);
    criod.finish();
}

#[test]
fn a_registry_that_refuses_or_cuts() {
    let criod = Criod::start(Options::default());
    let before = stored(&criod.dir.join("root"));
    let closed = criod.net.run(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    });
    let error = criod.pull(&format!("{closed}/test/busybox:1")).unwrap_err();
    assert!(error.message().contains(&closed.to_string()), "{error}");
    let listener = criod.net.run(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let cutting = listener.local_addr().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let server = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            // Each connection is closed at once.
            while listener.accept().is_ok() && !over.load(Ordering::SeqCst) {}
        }
    });
    let error = criod.pull(&format!("{cutting}/test/busybox:1")).unwrap_err();
    assert!(error.message().contains(&cutting.to_string()), "{error}");
    assert_eq!(stored(&criod.dir.join("root")), before);
    over.store(true, Ordering::SeqCst);
    criod.net.run(|| drop(std::net::TcpStream::connect(cutting)));
    server.join().unwrap();
    criod.finish();
}

#[test]
fn a_command_that_does_not_exist() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("command");
    let pod = criod.run_pod(&config).unwrap();
    let wrong = container("wrong", &["/no/such/command"]);
    // Runtimes differ in when they see it.
    let error = match criod.create(&pod, &wrong, &config) {
        Err(e) => {
            assert!(criod.containers().is_empty());
            e
        }
        Ok(id) => {
            let error = criod.start(&id).unwrap_err();
            let status = criod.status(&id).unwrap();
            assert_eq!((status.state, status.reason.as_str()), (EXITED, "StartError"));
            assert_ne!(status.exit_code, 0);
            assert!(status.message.contains("/no/such/command"), "{status:?}");
            error
        }
    };
    assert!(error.message().contains("/no/such/command"), "{error}");
    let other = criod.run(&pod, &container("other", &["sleep", "1000"]), &config);
    // In a running container it is not the call that fails.
    let answer = criod.exec(&other, &["/no/such/command"]);
    match answer {
        Ok((code, text)) => assert!(code == 126 || code == 127, "{code} {text}"),
        Err(e) => assert!(e.message().contains("/no/such/command"), "{e}"),
    }
    assert_eq!(criod.status(&other).unwrap().state, RUNNING);
    criod.finish();
}

#[test]
fn a_runtime_vanishes() {
    let handler = "gone:DIR/bin/runc:DIR/run/gone:oci";
    let mut criod =
        Criod::prepare(Options { args: vec!["--runtimes", handler], ..Options::default() });
    let runc = "#!/bin/sh\nexec /usr/sbin/runc \"$@\"\n";
    let path = criod.script("bin/runc", runc);
    criod.launch();
    criod.ready();
    criod.pull(BUSYBOX).unwrap();
    let config = criod.host_pod("runtime");
    let pod = criod.run_pod_with(&config, "gone").unwrap();
    let created = criod.create(&pod, &container("created", &["sleep", "1000"]), &config).unwrap();
    let running = criod.run(&pod, &container("running", &["sleep", "1000"]), &config);
    fs::remove_file(&path).unwrap();
    let text = path.to_str().unwrap();

    let error = criod.create(&pod, &container("late", &["true"]), &config).unwrap_err();
    assert!(error.message().contains(text), "{error}");
    let error = criod.start(&created).unwrap_err();
    assert!(error.message().contains(text), "{error}");
    assert_eq!(criod.status(&running).unwrap().state, RUNNING);
    let error = criod.exec(&running, &["true"]).unwrap_err();
    assert!(error.message().contains(text), "{error}");
    // Ending it needs no runtime.
    criod.stop(&running, 1).unwrap();
    assert_eq!(criod.status(&running).unwrap().state, EXITED);
    criod.script("bin/runc", runc);
    criod.finish();
}

#[test]
fn a_disk_that_is_full() {
    let criod = Criod::prepare(Options { small_root: Some(12 << 10), ..Options::default() });
    let mut criod = criod;
    criod.launch();
    criod.ready();
    let root = criod.dir.join("root");
    let fill = |path: &Path| {
        // Whole pages first, then what is left byte by byte.
        let mut file = fs::File::create(path).unwrap();
        for size in [65536, 4096, 1] {
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
    };
    let full = root.join("full");
    fill(&full);
    // While unpacking: some of the layer fits.
    fs::OpenOptions::new().write(true).open(&full).unwrap().set_len(11 << 20).unwrap();
    let error = criod.pull(BUSYBOX).unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(error.message().to_lowercase().contains("no space"), "{error}");
    assert!(criod.list_images().is_empty());
    criod.clean();
    fs::remove_file(&full).unwrap();
    criod.pull(BUSYBOX).unwrap();

    let config = criod.host_pod("full");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("before", &["sleep", "1000"]), &config);
    fill(&full);
    let error = criod.create(&pod, &container("late", &["true"]), &config).unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let error = criod.run_pod(&criod.host_pod("late")).unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert_eq!((criod.containers().len(), criod.pods().len()), (1, 1));
    // What runs can be used, stopped and removed, and that makes room.
    assert_eq!(criod.exec(&id, &["echo", "x"]).unwrap(), (0, "x\n".to_owned()));
    criod.stop(&id, 1).unwrap();
    assert_eq!(criod.status(&id).unwrap().exit_code, 137);
    criod.remove(&id).unwrap();
    criod.stop_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
    criod.clean();
    fs::remove_file(&full).unwrap();
    let pod = criod.run_pod(&config).unwrap();
    criod.run(&pod, &container("late", &["true"]), &config);
    criod.finish();
}

/// Images of the catalogue that must not be pulled.
const REFUSED: [&str; 14] = [
    "test/hostile-digest:1",
    "test/hostile-config-digest:1",
    "test/hostile-missing:1",
    "test/hostile-dotdot:1",
    "test/hostile-hardlink:1",
    "test/hostile-hardlink-symlink:1",
    "test/hostile-diff-id:1",
    "test/hostile-count:1",
    "test/hostile-size:1",
    "test/hostile-truncated:1",
    "test/hostile-garbage:1",
    "test/hostile-config:1",
    "test/hostile-platform:1",
    "test/hostile-whiteout:1",
];
/// Images that mean to write outside, and must write inside or be refused.
const CONFINED: [&str; 5] = [
    "test/hostile-absolute:1",
    "test/hostile-symlink:1",
    "test/hostile-symlink-layers:1",
    "test/hostile-symlink-file:1",
    "test/hostile-whiteout-climb:1",
];

/// Every file below `dir` that belongs to images.
fn stored(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for part in ["content/sha256", "layers/overlay", "images"] {
        let entries = fs::read_dir(dir.join(part)).unwrap().flatten();
        all.extend(entries.map(|e| e.path().to_string_lossy().into_owned()));
    }
    all.sort();
    all
}

#[test]
fn hostile_images() {
    let images = REFUSED.iter().chain(&CONFINED).copied().collect();
    let criod = Criod::start(Options { images, ..Options::default() });
    let root = criod.dir.join("root");
    let before = stored(&root);
    for name in REFUSED {
        let answer = criod.pull(&format!("docker.io/{name}"));
        if name.contains("dotdot") || name.contains("whiteout") || name.contains("hardlink") {
            // Refused, or with nothing of the outside in it.
            if answer.is_ok() {
                criod.remove_image(&format!("docker.io/{name}")).unwrap();
            }
        } else {
            let error = answer.unwrap_err();
            assert!(error.message().contains(name), "{name}: {error}");
        }
        assert_eq!(criod.list_images().len(), 1, "{name}");
        assert_eq!(stored(&root), before, "{name}");
    }
    for name in CONFINED {
        if criod.pull(&format!("docker.io/{name}")).is_ok() {
            criod.remove_image(&format!("docker.io/{name}")).unwrap();
        }
        assert_eq!(stored(&root), before, "{name}");
    }
    // Where all of them mean to write.
    let entries = fs::read_dir("/tmp").unwrap().flatten();
    let mut escaped = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    let escaped = escaped.find(|name| name.starts_with("criod-escape"));
    assert!(escaped.is_none(), "{escaped:?}");
    criod.finish();
}

#[test]
fn a_damaged_record() {
    let mut criod = Criod::start(Options::default());
    let config = criod.host_pod("hurt");
    let pod = criod.run_pod(&config).unwrap();
    let script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done";
    let hurt = criod.run(&pod, &container("hurt", &["sh", "-c", script]), &config);
    let well = criod.run(&pod, &container("well", &["sleep", "1000"]), &config);
    let other = criod.run_pod(&criod.host_pod("other")).unwrap();
    let record = criod.dir.join(format!("root/containers/{hurt}/record.json"));
    let pod_record = criod.dir.join(format!("root/pods/{other}/record.json"));
    criod.kill9();
    let saved = (fs::read(&record).unwrap(), fs::read(&pod_record).unwrap());
    fs::write(&record, &saved.0[..saved.0.len() / 2]).unwrap();
    fs::write(&pod_record, "").unwrap();
    criod.launch();
    criod.ready();
    // The rest is served; what is known of the damaged ones is shown, and in the log.
    assert_eq!(criod.status(&well).unwrap().state, RUNNING);
    assert_eq!(criod.status(&hurt).unwrap().state, UNKNOWN);
    assert_eq!(criod.pod_status(&pod).unwrap().state, READY);
    assert_eq!(criod.pod_status(&other).unwrap().state, NOT_READY);
    assert!(criod.said().contains(&hurt) && criod.said().contains(&other), "{}", criod.said());
    let log = criod.log("hurt", "hurt");
    let seen = lines(&log).len();
    eventually("its container goes on", || (lines(&log).len() > seen + 5).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(criod.monitor_pid(&hurt).is_some());
    assert_eq!(fs::read(&record).unwrap(), saved.0[..saved.0.len() / 2], "it is left as it is");
    assert!(criod.dir.join(format!("run/pods/{other}/hostname")).exists());
    // Its layers are in use although nobody knows by whom.
    criod.remove(&well).unwrap();
    let error = criod.remove_image(BUSYBOX).unwrap_err();
    assert!(error.message().contains(&hurt), "{error}");
    // Mended, it is as if nothing had been.
    criod.kill9();
    fs::write(&record, &saved.0).unwrap();
    fs::write(&pod_record, &saved.1).unwrap();
    criod.launch();
    criod.ready();
    assert_eq!(criod.status(&hurt).unwrap().state, RUNNING);
    assert_eq!(criod.exec(&hurt, &["echo", "x"]).unwrap(), (0, "x\n".to_owned()));
    assert_eq!(criod.pod_status(&other).unwrap().state, READY);
    criod.finish();
}

#[test]
fn a_second_criod_on_the_same_folders() {
    let criod = Criod::start(Options::default());
    let config = criod.host_pod("first");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    // With all the same, with another socket, and with another folder beside the same root.
    let own: [&[&str]; 3] = [&[], &["--listen"], &["--listen", "--runroot"]];
    for flags in own {
        let mut command = criod.command();
        for flag in flags {
            command.arg(flag).arg(criod.dir.join(format!("second{flag}")));
        }
        command.stderr(std::process::Stdio::piped());
        let mut second = criod.net.run(|| command.spawn().unwrap());
        let ended = eventually("it gives up", || second.try_wait().unwrap());
        assert!(!ended.success());
        let output = second.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(&*criod.dir.to_string_lossy()), "{text}");
        assert_eq!(criod.status(&id).unwrap().state, RUNNING);
        assert_eq!(criod.exec(&id, &["echo", "x"]).unwrap(), (0, "x\n".to_owned()));
    }
    criod.finish();
}

#[test]
fn a_socket_file_that_nobody_listens_at() {
    let mut criod = Criod::prepare(Options::default());
    drop(UnixListener::bind(criod.dir.join("criod.sock")).unwrap());
    criod.launch();
    eventually("it serves", || criod.version().ok());
    // Somebody removes the file: a successor makes another.
    criod.kill9();
    fs::remove_file(criod.dir.join("criod.sock")).unwrap();
    criod.launch();
    criod.ready();
    criod.finish();
}

#[test]
fn the_machine_is_booted() {
    let mut criod = Criod::start(Options::default());
    let config = criod.pod("boot");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("c", &["sleep", "1000"]), &config);
    let done = criod.run(&pod, &container("done", &["sh", "-c", "exit 4"]), &config);
    assert_eq!(criod.ended(&done).exit_code, 4);
    let created = criod.create(&pod, &container("created", &["true"]), &config).unwrap();
    let images = criod.list_images();
    criod.reboot();
    criod.launch();
    criod.ready();
    assert_eq!(criod.list_images(), images);
    assert_eq!(criod.pod_status(&pod).unwrap().state, NOT_READY);
    assert_eq!(criod.containers().len(), 3);
    for lost in [&id, &created] {
        let status = criod.status(lost).unwrap();
        assert_eq!(status.state, EXITED);
        assert_ne!(status.exit_code, 0, "{status:?}");
    }
    assert_eq!(criod.status(&done).unwrap().exit_code, 4, "what is known is kept");
    assert!(criod.exec(&id, &["true"]).is_err());
    assert!(criod.start(&created).is_err());
    // The kubelet runs the pod anew beside the old one.
    let mut next = config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    let again = criod.run_pod(&next).unwrap();
    criod.run(&again, &container("c", &["sleep", "1000"]), &next);
    criod.stop(&id, 1).unwrap();
    criod.remove(&id).unwrap();
    criod.stop_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
    assert_eq!(criod.pods().len(), 1);
    criod.finish();
}
