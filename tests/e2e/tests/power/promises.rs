//! What somebody was told before the power was lost, and whether it holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use api_cri::v1::{Container, ContainerState};
use e2e::daemon::{BUSYBOX, Criod, EXITED, NOT_READY, container};
use e2e::eventually;

use super::{LAYERED, SINGLE};

/// What is noted: of creations when they were answered, of removals before they were asked for.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    /// An image's name and id.
    Pulled(String, String),
    Unpull(String),
    Pod(String),
    Unpod(String),
    Container(String),
    Uncontainer(String),
}

/// What must be there.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    images: BTreeMap<String, String>,
    pods: BTreeSet<String>,
    containers: BTreeSet<String>,
}

impl Promises {
    pub(crate) fn hear(&mut self, said: &Said) {
        match said {
            Said::Pulled(name, id) => drop(self.images.insert(name.clone(), id.clone())),
            Said::Unpull(name) => drop(self.images.remove(name)),
            Said::Pod(id) => drop(self.pods.insert(id.clone())),
            Said::Unpod(id) => drop(self.pods.remove(id)),
            Said::Container(id) => drop(self.containers.insert(id.clone())),
            Said::Uncontainer(id) => drop(self.containers.remove(id)),
        }
    }
}

/// What layers look like when they are whole, by the hex of their chain ids.
#[derive(Debug, Default)]
pub(crate) struct Trees(HashMap<String, u64>);

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The published layers.
fn layers(criod: &Criod) -> Vec<(String, PathBuf)> {
    let overlay = criod.dir.join("root/layers/overlay");
    let published = names(&overlay).into_iter().filter(|n| n.len() == 64);
    published.map(|n| (n.clone(), overlay.join(n))).collect()
}

/// A folder's files, each file of several names once.
fn tree(dir: &Path, seen: &mut HashMap<u64, String>, hash: &mut DefaultHasher) {
    for name in names(dir) {
        let path = dir.join(&name);
        name.hash(hash);
        let stat = fs::symlink_metadata(&path).unwrap();
        if let Some(other) = seen.get(&stat.ino()) {
            other.hash(hash);
            continue;
        }
        (stat.mode(), stat.uid(), stat.gid(), stat.nlink(), stat.rdev()).hash(hash);
        if stat.is_file() {
            (stat.mtime(), stat.mtime_nsec()).hash(hash);
        }
        if stat.is_dir() {
            tree(&path, seen, hash);
        } else if stat.is_symlink() {
            fs::read_link(&path).unwrap().hash(hash);
        } else if stat.is_file() {
            fs::read(&path).unwrap().hash(hash);
        }
        seen.insert(stat.ino(), name);
    }
}

fn sum(layer: &Path) -> u64 {
    let mut hash = DefaultHasher::new();
    fs::symlink_metadata(layer.join("diff")).unwrap().mode().hash(&mut hash);
    tree(&layer.join("diff"), &mut HashMap::new(), &mut hash);
    hash.finish()
}

impl Trees {
    /// Looks at all layers that are there.
    pub(crate) fn learn(&mut self, criod: &Criod) {
        for (name, path) in layers(criod) {
            let sum = sum(&path);
            let known = *self.0.entry(name.clone()).or_insert(sum);
            assert_eq!(known, sum, "layer {name} is unpacked in the same way each time");
        }
    }

    /// All published layers that are whole; panics if one is not.
    fn whole(&self, criod: &Criod) -> BTreeSet<String> {
        let all = layers(criod);
        for (name, path) in &all {
            assert_eq!(self.0.get(name), Some(&sum(path)), "layer {name} is whole");
        }
        all.into_iter().map(|(name, _)| name).collect()
    }
}

/// The layers of an image.
fn layers_of(criod: &Criod, id: &str) -> Vec<String> {
    let hex = id.trim_start_matches("sha256:");
    let path = criod.dir.join(format!("root/images/{hex}.json"));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let layers = record["image"]["layers"].as_array().unwrap();
    let hex = |l: &serde_json::Value| l.as_str().unwrap().trim_start_matches("sha256:").to_owned();
    layers.iter().map(hex).collect()
}

/// Starts criod and looks whether all that was promised is there.
pub(crate) fn held(criod: &mut Criod, promises: &Promises, trees: &Trees) {
    let before = trees.whole(criod);
    criod.launch();
    criod.ready();
    let listed = criod.list_images();
    for (name, id) in &promises.images {
        let found = listed.iter().find(|i| i.repo_tags.contains(name));
        let found = found.unwrap_or_else(|| panic!("{name} was pulled: {listed:?}"));
        assert_eq!(found.id, *id);
    }
    let after = trees.whole(criod);
    for image in &listed {
        for layer in layers_of(criod, &image.id) {
            assert!(before.contains(&layer) && after.contains(&layer), "{layer} of {}", image.id);
        }
    }
    // No order of writes that a disk may choose damages anything.
    for folder in ["content/sha256", "layers/overlay", "images", "pods", "containers"] {
        let names = names(&criod.dir.join("root").join(folder));
        let damaged: Vec<_> = names.iter().filter(|n| n.contains(".damaged")).collect();
        assert!(damaged.is_empty(), "put aside in {folder}: {damaged:?}");
    }
    let pods = criod.pods();
    for id in &promises.pods {
        let pod = pods.iter().find(|p| p.id == *id);
        let pod = pod.unwrap_or_else(|| panic!("pod {id} was run: {pods:?}"));
        assert_eq!(pod.state, NOT_READY);
    }
    let containers = criod.containers();
    for id in &promises.containers {
        let found = containers.iter().find(|c| c.id == *id);
        let found = found.unwrap_or_else(|| panic!("container {id} was made: {containers:?}"));
        assert_eq!(found.state, EXITED);
    }
    assert!(pods.iter().all(|p| p.state == NOT_READY));
    // Of one whose removal had begun the record may be spoilt, too.
    let unknown = ContainerState::ContainerUnknown as i32;
    let over = |c: &Container| c.state == EXITED || c.state == unknown;
    assert!(containers.iter().all(over), "{containers:?}");
}

/// Uses what is there, and takes all of it away.
pub(crate) fn tried(criod: &mut Criod, trees: &Trees) {
    for name in [BUSYBOX, LAYERED, SINGLE] {
        criod.pull(name).unwrap();
    }
    assert_eq!(criod.list_images().len(), 3);
    trees.whole(criod);
    runs(criod);
    for pod in criod.pods() {
        criod.stop_pod(&pod.id).unwrap();
        criod.remove_pod(&pod.id).unwrap();
    }
    criod.clean();
    for image in criod.list_images() {
        criod.remove_image(&image.id).unwrap();
    }
    eventually("nothing is left of the images", || {
        let folders = ["content/sha256", "layers/overlay", "images"];
        folders.iter().all(|f| names(&criod.dir.join("root").join(f)).is_empty()).then_some(())
    });
}

/// Runs a container of the image with several layers.
pub(crate) fn runs(criod: &Criod) {
    let config = criod.host_pod("after");
    let pod = criod.run_pod(&config).unwrap();
    let mut all = container("all", &["sh", "-c", "[ $(cat /data/change) = after ] && exit 5"]);
    all.image.as_mut().unwrap().image = LAYERED.to_owned();
    let id = criod.run(&pod, &all, &config);
    assert_eq!(criod.ended(&id).exit_code, 5);
    criod.stop_pod(&pod).unwrap();
    criod.remove_pod(&pod).unwrap();
}
