//! What no order of writes does, but a disk that fails or lies: each damage is said, nothing else
//! suffers, and a pull mends it.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use e2e::daemon::{BUSYBOX, Criod, EXITED, NOT_READY};
use e2e::eventually;

use super::machine::Machine;
use super::promises::runs;
use super::{LAYERED, SINGLE};

/// A machine whose images are pulled.
fn machine() -> Machine {
    let mut machine = Machine::new(&["test/layered:1", "test/single-1:1"]);
    machine.criod.launch();
    machine.criod.ready();
    for name in [BUSYBOX, LAYERED, SINGLE] {
        machine.criod.pull(name).unwrap();
    }
    machine
}

fn image(criod: &Criod, name: &str) -> serde_json::Value {
    let images = criod.list_images();
    let id = &images.iter().find(|i| i.repo_tags.iter().any(|t| t == name)).unwrap().id;
    let hex = id.trim_start_matches("sha256:");
    let path = criod.dir.join(format!("root/images/{hex}.json"));
    let text = fs::read(path).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["image"].clone()
}

fn hex(value: &serde_json::Value) -> &str {
    value.as_str().unwrap().trim_start_matches("sha256:")
}

/// The folder of the top layer of [`LAYERED`].
fn top(criod: &Criod) -> PathBuf {
    let image = image(criod, LAYERED);
    let top = image["layers"].as_array().unwrap().last().unwrap().clone();
    criod.dir.join("root/layers/overlay").join(hex(&top))
}

fn listed(criod: &Criod, name: &str) -> bool {
    criod.list_images().iter().any(|i| i.repo_tags.iter().any(|t| t == name))
}

/// The published layers but one, with when their folders were made: an inode may be used again.
fn others(criod: &Criod, but: &str) -> Vec<(String, SystemTime)> {
    let entries = fs::read_dir(criod.dir.join("root/layers/overlay")).unwrap().flatten();
    let all = entries.map(|e| (e.file_name().into_string().unwrap(), e));
    let mut all: Vec<_> = all
        .filter(|(n, _)| n.len() == 64 && n != but)
        .map(|(n, e)| (n, e.metadata().unwrap().created().unwrap()))
        .collect();
    all.sort();
    all
}

/// Does the damage while the power is off; then a pull mends what a use finds, if not the start.
fn mended(found_by_start: bool, damage: impl FnOnce(&Criod, PathBuf)) {
    let mut machine = machine();
    let top = top(&machine.criod);
    let name = top.file_name().unwrap().to_str().unwrap().to_owned();
    let before = others(&machine.criod, &name);
    machine.next_boot();
    damage(&machine.criod, top.clone());
    let criod = &mut machine.criod;
    criod.launch();
    criod.ready();
    assert!(listed(criod, BUSYBOX) && listed(criod, SINGLE));
    let config = criod.host_pod("early");
    let pod = criod.run_pod(&config).unwrap();
    let mut container = e2e::daemon::container("early", &["true"]);
    container.image.as_mut().unwrap().image = LAYERED.to_owned();
    if !found_by_start {
        assert!(listed(criod, LAYERED));
        let error = criod.create(&pod, &container, &config).unwrap_err();
        assert!(error.message().contains(&name) && error.message().contains("damaged"), "{error}");
    }
    // From here on the kubelet sees that it is to be pulled.
    assert!(!listed(criod, LAYERED));
    assert!(criod.create(&pod, &container, &config).is_err());
    // Whatever is collected meanwhile, what is whole stays.
    criod.remove_image(SINGLE).unwrap();
    criod.pull(SINGLE).unwrap();
    criod.pull(LAYERED).unwrap();
    let after = others(criod, &name);
    let kept = before.iter().filter(|l| after.contains(l)).count();
    // All but the one of the image that was removed.
    assert_eq!(kept, before.len() - 1, "{before:?} {after:?}");
    runs(criod);
    criod.stop_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
    machine.criod.finish();
}

#[test]
fn a_layers_file_is_cut_short() {
    mended(false, |_, top| {
        let file = top.join("diff/special/setuid");
        fs::OpenOptions::new().write(true).open(file).unwrap().set_len(0).unwrap();
    });
}

#[test]
fn a_layers_file_is_missing_and_a_pull_finds_it() {
    let mut machine = machine();
    let top = top(&machine.criod);
    machine.next_boot();
    fs::remove_file(top.join("diff/again/second")).unwrap();
    let criod = &mut machine.criod;
    criod.launch();
    criod.ready();
    assert!(listed(criod, LAYERED));
    criod.pull(LAYERED).unwrap();
    assert!(listed(criod, LAYERED) && top.join("diff/again/second").exists());
    assert!(criod.said().contains("put aside"), "{}", criod.said());
    runs(criod);
    machine.criod.finish();
}

#[test]
fn a_layers_record_is_zero() {
    mended(true, |_, top| {
        let length = fs::metadata(top.join("meta.json")).unwrap().len();
        fs::write(top.join("meta.json"), vec![0; length as usize]).unwrap();
    });
}

#[test]
fn manifest_config_and_index_are_damaged() {
    let mut machine = machine();
    let criod = &machine.criod;
    let content = criod.dir.join("root/content/sha256");
    let (layered, single, busybox) =
        (image(criod, LAYERED), image(criod, SINGLE), image(criod, BUSYBOX));
    let layers = others(criod, "");
    machine.next_boot();
    let zero = |path: PathBuf| {
        let length = fs::metadata(&path).unwrap().len();
        fs::write(path, vec![0; length as usize]).unwrap();
    };
    zero(content.join(hex(&layered["manifest"])));
    zero(content.join(hex(&single["id"])));
    let record = machine.criod.dir.join(format!("root/images/{}.json", hex(&busybox["id"])));
    let text = fs::read(&record).unwrap();
    fs::write(&record, &text[..text.len() / 2]).unwrap();
    let criod = &mut machine.criod;
    criod.launch();
    criod.ready();
    assert_eq!(criod.list_images(), Vec::new());
    assert!(criod.said().contains("not listed") && criod.said().contains("put aside"));
    for name in [LAYERED, SINGLE, BUSYBOX] {
        criod.pull(name).unwrap();
        assert!(listed(criod, name));
    }
    assert_eq!(others(criod, ""), layers, "no layer was fetched again");
    let whole = fs::read(content.join(hex(&layered["manifest"]))).unwrap();
    assert!(whole.starts_with(b"{"));
    runs(criod);
    machine.criod.finish();
}

#[test]
fn records_of_pods_and_containers_are_zero() {
    let mut machine = machine();
    let criod = &machine.criod;
    let config = criod.host_pod("zero");
    let pod = criod.run_pod(&config).unwrap();
    let sleep = e2e::daemon::container("sleep", &["sleep", "1000"]);
    let id = criod.run(&pod, &sleep, &config);
    let other = criod.run_pod(&criod.host_pod("other")).unwrap();
    machine.next_boot();
    let root = machine.criod.dir.join("root");
    // Their first records are other files.
    fs::remove_file(root.join(format!("containers/{id}/record.json"))).unwrap();
    fs::write(root.join(format!("containers/{id}/record.json")), "").unwrap();
    fs::remove_file(root.join(format!("pods/{pod}/record.json"))).unwrap();
    fs::write(root.join(format!("pods/{pod}/record.json")), [0; 512]).unwrap();
    let criod = &mut machine.criod;
    criod.launch();
    criod.ready();
    assert_eq!(criod.status(&id).unwrap().state, EXITED);
    for id in [&pod, &other] {
        assert_eq!(criod.pod_status(id).unwrap().state, NOT_READY);
    }
    criod.remove(&id).unwrap();
    for id in [&pod, &other] {
        criod.stop_pod(id).unwrap();
        criod.remove_pod(id).unwrap();
    }
    eventually("nothing is left", || {
        let left = fs::read_dir(root.join("pods")).unwrap().count();
        (left == 0).then_some(())
    });
    machine.criod.finish();
}
