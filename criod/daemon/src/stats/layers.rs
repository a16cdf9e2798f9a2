//! What each container's writable layer takes on its disk: measured in the background, and read from
//! here by those who ask.
//!
//! ```text
//! created ─▶ measured ─┬─ changed ────────▶ due 5 s after the last walk (or 20 × its time)
//!                      └─ nothing heard ──▶ due 60 s after it (or 1000 ×), while processes live
//! due ─▶ marked ─▶ walked ─▶ a pause of 20 × the walk's time for all
//! ```
//! That something has changed is told by the kernel, in two ways, both set before the walk and taken
//! away at the first event, so that a heavy writer pays for one:
//!
//! | what                                | tells of                                    | of     |
//! |-------------------------------------|---------------------------------------------|--------|
//! | a fanotify mark on the container's  | writes, and so files that are made          | all    |
//! | file system                         |                                             |        |
//! | inotify watches on the folders that | names that come and go                      | 64     |
//! | the layer has                       |                                             | of it  |
//!
//! (A fanotify mark that tells of names needs file handles that lead back to files, and overlay has
//! those only with `nfs_export`.) For what neither tells of, such as writes through a mapping, and where
//! the kernel refuses both, there is the slower walk. In all, walks take less than a twentieth of one
//! processor.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::inotify::{self, AddWatchFlags, Inotify, InotifyEvent, WatchDescriptor};
use nix::sys::stat::fstat;
use storage::ContainerMount;
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use crate::node::{Container, Node, lock};
use crate::record::ContainerState;

/// Between walks of one container that changes all the time.
const CHANGED: Duration = Duration::from_secs(5);
/// Between walks of one container that nothing was heard of.
const QUIET: Duration = Duration::from_secs(60);
/// The pause after a walk, as a multiple of its duration: for all containers; for one that nothing
/// was heard of.
const SHARE: u32 = 20;
const QUIET_SHARE: u32 = 1000;

/// After an event that could not be read.
const PAUSE: Duration = Duration::from_millis(100);
/// How many folders of a layer are watched.
const MOST_FOLDERS: usize = 64;

/// A measured layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figure {
    pub(crate) usage: storage::Usage,
    /// When, in nanoseconds since the Unix epoch.
    pub(crate) at: i64,
}

/// The last figure of a container.
#[derive(Debug, Default)]
pub(crate) struct Layer(Mutex<Option<Figure>>);

impl Layer {
    pub(crate) fn get(&self) -> Option<Figure> {
        *lock(&self.0)
    }

    fn set(&self, usage: storage::Usage) {
        *lock(&self.0) = Some(Figure { usage, at: sys::clock::realtime() });
    }
}

/// The first figure of a new container, whose layer is all but empty.
pub(crate) fn measure_new(node: &Node, container: &Container) {
    let root = ContainerMount::existing(&node.paths.rootfs(&container.id));
    if let Ok(usage) = storage::usage(&root.upper()) {
        container.layer.set(usage);
    }
}

/// What the loop knows of one container.
#[derive(Debug)]
struct Known {
    container: Arc<Container>,
    root: PathBuf,
    /// Something was written since the last walk began, or may have been.
    changed: bool,
    /// The device of its root, by which events name it.
    device: Option<u64>,
    /// When the last walk ended, and how long it took.
    walked: Option<(Instant, Duration)>,
    /// Processes of it may write.
    live: bool,
}

impl Known {
    /// When it is to be measured, if ever.
    fn due(&self, now: Instant) -> Option<Instant> {
        let Some((end, took)) = self.walked else { return Some(now) };
        match (self.changed, self.live) {
            (true, _) => Some(end + CHANGED.max(took * SHARE)),
            (false, true) => Some(end + QUIET.max(took * QUIET_SHARE)),
            (false, false) => None,
        }
    }

    /// Notes that something was written, if it was here.
    fn hear(&mut self, devices: &Devices) {
        let told = |device| devices.as_ref().is_none_or(|all| all.contains(&device));
        self.changed |= self.device.is_some_and(told);
    }
}

/// One walk's result.
struct Walked {
    device: Option<u64>,
    usage: Option<storage::Usage>,
    took: Duration,
}

/// Measures layers for as long as criod lives.
pub(super) async fn run(node: Arc<Node>) {
    let (marks, mut events) = Marks::new().unzip();
    if marks.is_none() {
        info!("no fanotify: writable layers are measured once a minute");
    }
    let mut known: HashMap<String, Known> = HashMap::new();
    let mut walk: Option<(String, JoinHandle<Walked>)> = None;
    let mut rest = Instant::now();
    // What was told during a walk, whose device is not known before its end.
    let mut told: Devices = Some(Vec::new());
    loop {
        sync(&node, &mut known);
        let now = Instant::now();
        let next = known
            .iter()
            .filter_map(|(id, k)| Some((k.due(now)?, id)))
            .min_by_key(|(due, _)| *due)
            .map(|(due, id)| (due.max(rest), id.clone()));
        if walk.is_none()
            && let Some((due, id)) = &next
            && *due <= now
            && let Some(one) = known.get_mut(id)
        {
            one.changed = false;
            told = Some(Vec::new());
            let (root, marks) = (one.root.clone(), marks.clone());
            let work = tokio::task::spawn_blocking(move || measure(&root, marks.as_deref()));
            walk = Some((id.clone(), work));
        }
        let wake = match (&walk, next) {
            (None, Some((due, _))) => due,
            _ => now + QUIET,
        };
        let walking = async {
            match walk.as_mut() {
                Some((_, work)) => work.await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            news = changed(&mut events) => {
                for one in known.values_mut() {
                    one.hear(&news);
                }
                told = told.zip(news).map(|(told, news)| [told, news].concat());
            }
            done = walking => {
                let id = walk.take().map(|(id, _)| id).unwrap_or_default();
                let took = done.as_ref().map_or(Duration::ZERO, |d| d.took);
                rest = Instant::now() + took * SHARE;
                if let Some(one) = known.get_mut(&id) {
                    one.walked = Some((Instant::now(), took));
                    if let Some(done) = done {
                        one.device = done.device;
                        one.hear(&told);
                        if let Some(usage) = done.usage {
                            one.container.layer.set(usage);
                        }
                    }
                }
            }
            () = tokio::time::sleep_until(wake.into()) => {}
            () = node.stats.news.notified() => {}
        }
    }
}

/// Brings what is known to what there is.
fn sync(node: &Node, known: &mut HashMap<String, Known>) {
    let all = node.all_containers();
    known.retain(|id, _| node.has_container(id));
    for container in all {
        let record = container.record.get();
        let live = match record.state {
            ContainerState::Created | ContainerState::Running => true,
            ContainerState::Exited => false,
            _ => continue,
        };
        if record.infra {
            continue;
        }
        if let Some(one) = known.get_mut(&container.id) {
            // What it wrote last.
            one.changed |= one.live && !live;
            one.live = live;
            continue;
        }
        let one = Known {
            root: node.paths.rootfs(&container.id),
            changed: true,
            device: None,
            walked: container.layer.get().map(|_| (Instant::now(), Duration::ZERO)),
            live,
            container: Arc::clone(&container),
        };
        known.insert(container.id.clone(), one);
    }
}

fn measure(root: &Path, marks: Option<&Marks>) -> Walked {
    let begin = Instant::now();
    let root = ContainerMount::existing(root);
    // Set first: what is written during the walk must be heard of.
    let device = marks.and_then(|m| m.set(&root.merged()));
    let mut folders = 0;
    let usage = storage::usage_of(&root.upper(), &mut |folder| {
        folders += 1;
        if let (Some(marks), Some(device)) = (marks, device)
            && folders <= MOST_FOLDERS
        {
            marks.watch(&root.merged(), folder, device);
        }
    });
    if let Err(e) = &usage {
        debug!("{e}");
    }
    Walked { device, usage: usage.ok(), took: begin.elapsed() }
}

/// The devices that something was written to; `None`: any may be.
type Devices = Option<Vec<u64>>;

async fn changed(events: &mut Option<Receiver<Devices>>) -> Devices {
    let next = match events {
        Some(events) => events.recv().await,
        None => None,
    };
    match next {
        Some(devices) => devices,
        None => std::future::pending().await,
    }
}

/// All marks and watches. A container is known by the device of its root.
struct Marks {
    writes: Fanotify,
    names: Inotify,
    /// Devices of the watched folders. A watch goes with its first event.
    watched: Mutex<HashMap<WatchDescriptor, u64>>,
}

const WRITES: MaskFlags = MaskFlags::FAN_MODIFY.union(MaskFlags::FAN_CLOSE_WRITE);
const NAMES: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_ONLYDIR)
    .union(AddWatchFlags::IN_ONESHOT);

impl Marks {
    /// And what they tell, by a thread that waits for it; `None` where the kernel refuses.
    fn new() -> Option<(Arc<Marks>, Receiver<Devices>)> {
        let flags = InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::FAN_UNLIMITED_MARKS;
        // Of the descriptors that come with events: nothing is read from them.
        let files = EventFFlags::O_RDONLY
            | EventFFlags::O_CLOEXEC
            | EventFFlags::O_NONBLOCK
            | EventFFlags::O_LARGEFILE;
        let names = inotify::InitFlags::IN_CLOEXEC | inotify::InitFlags::IN_NONBLOCK;
        let marks = Arc::new(Marks {
            writes: Fanotify::init(flags, files).ok()?,
            names: Inotify::init(names).ok()?,
            watched: Mutex::default(),
        });
        let (sender, events) = mpsc::channel(16);
        let own = Arc::clone(&marks);
        std::thread::Builder::new()
            .name("layers".to_owned())
            .spawn(move || while sender.blocking_send(own.wait()).is_ok() {})
            .ok()?;
        Some((marks, events))
    }

    /// Marks the file system that is mounted here, and returns its device.
    fn set(&self, mountpoint: &Path) -> Option<u64> {
        let (dir, device) = mounted(mountpoint)?;
        let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        self.writes.mark(flags, WRITES, dir.as_fd(), None::<&Path>).ok().map(|()| device)
    }

    /// Watches a folder of a root for names.
    fn watch(&self, mountpoint: &Path, folder: &Path, device: u64) {
        // Whatever the container puts in the way of it.
        let Some(folder) = folder.to_str() else { return };
        let Ok(opened) = storage::open_path_in_root(mountpoint, folder) else { return };
        let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let mut watched = lock(&self.watched);
        if let Ok(watch) = self.names.add_watch(path.as_str(), NAMES) {
            watched.insert(watch, device);
        }
    }

    /// Waits for events.
    fn wait(&self) -> Devices {
        let both = [self.writes.as_fd(), self.names.as_fd()];
        let _ = poll(&mut both.map(|fd| PollFd::new(fd, PollFlags::POLLIN)), PollTimeout::NONE);
        let mut devices = match self.names.read_events() {
            Ok(events) => self.devices_of(&events),
            Err(_) => Vec::new(),
        };
        match self.writes.read_events() {
            Ok(events) => {
                let remove = MarkFlags::FAN_MARK_REMOVE | MarkFlags::FAN_MARK_FILESYSTEM;
                for event in &events {
                    // One without a file: the queue was too short.
                    let file = event.fd()?;
                    let device = fstat(file).ok()?.st_dev;
                    if !devices.contains(&device) {
                        let _ = self.writes.mark(remove, WRITES, file, None::<&Path>);
                        devices.push(device);
                    }
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => {
                // A file that could not be opened for us is not named.
                std::thread::sleep(PAUSE);
                return None;
            }
        }
        Some(devices)
    }

    fn devices_of(&self, events: &[InotifyEvent]) -> Vec<u64> {
        let mut watched = lock(&self.watched);
        let mut devices = Vec::new();
        for event in events {
            // The watch is gone: its one event has come before, or its file system went.
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                watched.remove(&event.wd);
            } else if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                devices.extend(watched.values());
            } else {
                devices.extend(watched.get(&event.wd));
            }
        }
        devices
    }
}

impl std::fmt::Debug for Marks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Marks").field("writes", &self.writes).finish_non_exhaustive()
    }
}

/// The folder, opened, and its device, if something is mounted on it. A mark goes by what was opened,
/// so that an unmount meanwhile cannot lead it to the disk below.
fn mounted(mountpoint: &Path) -> Option<(File, u64)> {
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    let dir = File::options().read(true).custom_flags(flags).open(mountpoint).ok()?;
    let device = dir.metadata().ok()?.dev();
    let above = std::fs::metadata(mountpoint.parent()?).ok()?.dev();
    (device != above).then_some((dir, device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use std::fs;

    /// A root as a container has it.
    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Root {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            for name in ["lower", "diff", "work", "merged"] {
                fs::create_dir(at(name)).unwrap();
            }
            let data = format!(
                "lowerdir={},upperdir={},workdir={}",
                at("lower").display(),
                at("diff").display(),
                at("work").display()
            );
            let kind = Some("overlay");
            mount(kind, &at("merged"), kind, MsFlags::empty(), Some(data.as_str())).unwrap();
            Root(dir)
        }

        fn merged(&self, name: &str) -> PathBuf {
            self.0.path().join("merged").join(name)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = umount2(&self.merged(""), MntFlags::MNT_DETACH);
        }
    }

    /// Marks without the thread that waits.
    fn marks() -> Marks {
        let fan = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let ino = inotify::InitFlags::IN_CLOEXEC | inotify::InitFlags::IN_NONBLOCK;
        Marks {
            writes: Fanotify::init(fan, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC).unwrap(),
            names: Inotify::init(ino).unwrap(),
            watched: Mutex::default(),
        }
    }

    fn quiet(marks: &Marks) -> bool {
        let mut fds = [marks.writes.as_fd(), marks.names.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 0
    }

    #[test]
    fn a_write_is_heard_of_once() {
        let (root, other, marks) = (Root::new(), Root::new(), marks());
        let walked = measure(root.0.path(), Some(&marks));
        let device = walked.device.unwrap();
        assert_eq!(walked.usage.unwrap().inodes, 1);
        assert_ne!(measure(other.0.path(), Some(&marks)).device, Some(device));
        assert!(quiet(&marks));
        let mut file = File::create(root.merged("file")).unwrap();
        assert_eq!(marks.wait().unwrap(), [device]);
        std::io::Write::write_all(&mut file, b"x").unwrap();
        assert_eq!(marks.wait().unwrap(), [device]);
        while !quiet(&marks) {
            marks.wait().unwrap();
        }
        for _ in 0..100 {
            std::io::Write::write_all(&mut file, &[1; 4096]).unwrap();
        }
        assert!(quiet(&marks), "a writer pays for one event");
        let walked = measure(root.0.path(), Some(&marks));
        assert!(walked.usage.unwrap().bytes >= 100 * 4096);
        std::io::Write::write_all(&mut file, b"x").unwrap();
        assert_eq!(marks.wait().unwrap(), [device]);
    }

    #[test]
    fn names_that_go_are_heard_of() {
        let (root, marks) = (Root::new(), marks());
        fs::create_dir(root.merged("a")).unwrap();
        fs::write(root.merged("a/file"), [1; 8192]).unwrap();
        let before = measure(root.0.path(), Some(&marks));
        assert!(quiet(&marks));
        fs::remove_file(root.merged("a/file")).unwrap();
        assert_eq!(marks.wait().unwrap(), [before.device.unwrap()]);
        let after = measure(root.0.path(), Some(&marks)).usage.unwrap();
        assert_eq!(after.inodes, before.usage.unwrap().inodes - 1);
        fs::create_dir(root.merged("b")).unwrap();
        assert_eq!(marks.wait().unwrap(), [before.device.unwrap()]);
        // With the root all watches go.
        drop(root);
        while !quiet(&marks) {
            marks.wait();
        }
        assert!(lock(&marks.watched).is_empty());
    }

    #[test]
    fn what_is_not_mounted_is_not_marked() {
        let dir = tempfile::tempdir().unwrap();
        let marks = marks();
        fs::create_dir(dir.path().join("merged")).unwrap();
        let walked = measure(dir.path(), Some(&marks));
        assert_eq!(walked.device, None);
        fs::write(dir.path().join("merged/file"), "x").unwrap();
        assert!(quiet(&marks));
    }
}
