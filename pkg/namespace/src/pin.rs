//! Pins: made by a thread that has new namespaces, found again, entered, removed.
//!
//! ```text
//!   (nothing) --create--> <dir>/{user,net,ipc,uts} mounted --remove--> (nothing)
//!        ^                        |
//!        '---- any failure <------'   (create removes what it had made)
//! ```
//!
//! Only a process of its own can have a new user namespace, so with one it is a short-lived process
//! that has the namespaces, and the thread enters them to set them up ([`make_owned`]).

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use failpoint::step;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};
use sys::userns::{Range, hold};

use crate::{Error, Result, netlink, sysctl};

/// The magic number of the file system whose files are namespaces, "nsfs".
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// A kind of namespace that a pod can have of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Interfaces, routes, sockets, packet filters.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// The hostname.
    Uts,
    /// Ids, and what root may do. It comes with [`Request::users`] alone.
    User,
}

impl Kind {
    /// Every kind that [`Request::kinds`] is about.
    pub const ALL: [Kind; 3] = [Kind::Net, Kind::Ipc, Kind::Uts];

    /// The name of the pin's file, which is also that below `/proc/<pid>/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Net => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::User => "user",
        }
    }

    fn flag(self) -> CloneFlags {
        match self {
            Kind::Net => CloneFlags::CLONE_NEWNET,
            Kind::Ipc => CloneFlags::CLONE_NEWIPC,
            Kind::Uts => CloneFlags::CLONE_NEWUTS,
            Kind::User => CloneFlags::CLONE_NEWUSER,
        }
    }
}

/// Every kind that can be pinned by name.
const PINS: [Kind; 4] = [Kind::Net, Kind::Ipc, Kind::Uts, Kind::User];

/// Which ids of the node those of a user namespace are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Users {
    /// User ids.
    pub uids: Range,
    /// Group ids.
    pub gids: Range,
}

impl Users {
    /// Root's user and group id as the node sees them; `None` if root is not mapped.
    pub fn root(&self) -> Option<(u32, u32)> {
        Some((self.uids.outside_of(0)?, self.gids.outside_of(0)?))
    }
}

/// What to make.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// The namespaces that the pod gets of its own; the others are the host's.
    pub kinds: &'a [Kind],
    /// The hostname to set. Ignored when the pod has no UTS namespace of its own.
    pub hostname: Option<&'a str>,
    /// Sysctls, name and value, written in this order before `lo` comes up. Each must belong to
    /// a namespace of `kinds`.
    pub sysctls: &'a [(String, String)],
    /// The user namespace that the pod gets, which owns the namespaces of `kinds`.
    pub users: Option<Users>,
}

/// The pinned namespaces of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pinned {
    /// The pin of the network namespace.
    pub net: Option<PathBuf>,
    /// The pin of the IPC namespace.
    pub ipc: Option<PathBuf>,
    /// The pin of the UTS namespace.
    pub uts: Option<PathBuf>,
    /// The pin of the user namespace.
    pub user: Option<PathBuf>,
}

impl Pinned {
    /// Makes new namespaces and pins them in `dir`, which must not exist yet; its parents are
    /// made as needed. A new network namespace has `lo` up with its addresses.
    ///
    /// Blocks for some milliseconds; not for a thread that serves others.
    ///
    /// # Errors
    ///
    /// Any but [`Error::Interfaces`]. Nothing is left behind then.
    pub fn create(dir: &Path, request: &Request<'_>) -> Result<Pinned> {
        // Bad names and values are refused before anything is made.
        for (name, value) in request.sysctls {
            sysctl::path(name, request.kinds)?;
            sysctl::check(name, value)?;
        }
        let made = |source| Error::MakeDirectory { path: dir.to_owned(), source };
        if let Some(parent) = dir.parent() {
            step!("namespaces: make folder of all", fs::create_dir_all(parent)).map_err(made)?;
        }
        // Not create_dir_all: what exists may be another pod's.
        step!("namespaces: make folder", fs::create_dir(dir)).map_err(made)?;
        let pinned = on_thread(dir, || make(dir, request)).and_then(|made| made);
        if pinned.is_err() {
            // The first error is the one to tell; a pin that stays is found by its directory.
            let _ = remove(dir);
        }
        pinned
    }

    /// The pins that exist in `dir`, as after a restart. A file onto which no namespace is
    /// mounted (as after a reboot on a persistent file system) does not count.
    pub fn existing(dir: &Path) -> Pinned {
        let mut pinned = Pinned::default();
        for kind in PINS {
            let path = dir.join(kind.name());
            if is_namespace(&path) {
                pinned.set(kind, path);
            }
        }
        pinned
    }

    /// The pin of a kind.
    pub fn get(&self, kind: Kind) -> Option<&Path> {
        match kind {
            Kind::Net => self.net.as_deref(),
            Kind::Ipc => self.ipc.as_deref(),
            Kind::Uts => self.uts.as_deref(),
            Kind::User => self.user.as_deref(),
        }
    }

    fn set(&mut self, kind: Kind, path: PathBuf) {
        match kind {
            Kind::Net => self.net = Some(path),
            Kind::Ipc => self.ipc = Some(path),
            Kind::Uts => self.uts = Some(path),
            Kind::User => self.user = Some(path),
        }
    }
}

/// The work of the fresh thread. Its namespaces die with it unless they were pinned.
fn make(dir: &Path, request: &Request<'_>) -> Result<Pinned> {
    if let Some(users) = request.users {
        return make_owned(dir, request, users);
    }
    let flags = request.kinds.iter().fold(CloneFlags::empty(), |all, kind| all | kind.flag());
    step!("namespaces: make", unshare(flags))
        .map_err(|errno| Error::Unshare { path: dir.to_owned(), source: errno.into() })?;
    set_up(dir, request)?;
    let mut pinned = Pinned::default();
    for &kind in request.kinds {
        let path = dir.join(kind.name());
        pin(kind, &path)?;
        pinned.set(kind, path);
    }
    Ok(pinned)
}

/// The same with a user namespace that owns the others.
///
/// ```text
/// process: user + others new, waits     this thread: writes the maps, pins all,
///    ends <----------------------------              enters all but user, sets them up
/// ```
fn make_owned(dir: &Path, request: &Request<'_>, users: Users) -> Result<Pinned> {
    let flags = request.kinds.iter().fold(CloneFlags::empty(), |all, kind| all | kind.flag());
    let holder =
        step!("namespaces: make with users", hold((flags - CloneFlags::CLONE_NEWUSER).bits()))
            .map_err(|source| Error::Unshare { path: dir.to_owned(), source })?;
    step!("namespaces: map users", holder.map(users.uids, users.gids))
        .map_err(|source| Error::Map { path: dir.to_owned(), source })?;
    let mut pinned = Pinned::default();
    let made = Path::new("/proc").join(holder.pid().to_string()).join("ns");
    for kind in PINS {
        if kind == Kind::User || request.kinds.contains(&kind) {
            let path = dir.join(kind.name());
            pin_namespace(&made.join(kind.name()), &path)?;
            pinned.set(kind, path);
        }
    }
    drop(holder);
    for kind in Kind::ALL {
        if let Some(pin) = pinned.get(kind) {
            let failed = |source| Error::Enter { path: pin.to_owned(), source };
            let file = fs::File::open(pin).map_err(failed)?;
            setns(file.as_fd(), kind.flag()).map_err(|errno| failed(errno.into()))?;
        }
    }
    set_up(dir, request)?;
    Ok(pinned)
}

/// Sets up the calling thread's new namespaces.
fn set_up(dir: &Path, request: &Request<'_>) -> Result<()> {
    if let Some(hostname) = request.hostname.filter(|_| request.kinds.contains(&Kind::Uts)) {
        nix::unistd::sethostname(hostname)
            .map_err(|e| Error::Hostname { hostname: hostname.to_owned(), source: e.into() })?;
    }
    for (name, value) in request.sysctls {
        sysctl::write(name, value, request)?;
    }
    if request.kinds.contains(&Kind::Net) {
        netlink::loopback_up()
            .map_err(|source| Error::Loopback { path: dir.to_owned(), source })?;
    }
    Ok(())
}

/// Mounts the calling thread's namespace of `kind` onto a new file at `path`.
fn pin(kind: Kind, path: &Path) -> Result<()> {
    pin_namespace(&Path::new("/proc/thread-self/ns").join(kind.name()), path)
}

/// Mounts a namespace onto a new file at `path`.
fn pin_namespace(namespace: &Path, path: &Path) -> Result<()> {
    step!(
        "namespaces: make file",
        OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)
    )
    .map_err(|source| Error::MakeFile { path: path.to_owned(), source })?;
    let bind = MsFlags::MS_BIND;
    step!("namespaces: pin", mount(Some(namespace), path, None::<&str>, bind, None::<&str>))
        .map_err(|errno| Error::Mount { path: path.to_owned(), source: errno.into() })
}

/// The name of a pinned pid namespace.
const PID: &str = "pid";

/// Pins the pid namespace of the process `pid` as `pid` in the directory of a pod's pins, which is
/// made if it is not there. [`remove`] removes it with the others.
///
/// # Errors
///
/// [`Error::MakeDirectory`], [`Error::MakeFile`], [`Error::Mount`].
pub fn pin_pid(dir: &Path, pid: i32) -> Result<PathBuf> {
    step!("namespaces: make folder for pid", fs::create_dir_all(dir))
        .map_err(|source| Error::MakeDirectory { path: dir.to_owned(), source })?;
    let path = dir.join(PID);
    pin_namespace(&Path::new("/proc").join(pid.to_string()).join("ns/pid"), &path)?;
    Ok(path)
}

/// Whether a namespace is mounted at `path`.
pub fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}

/// Removes the pins in `dir` and the directory. A namespace itself ends when the last process in
/// it has. What is not there, in whole or in part, is no error, so it can be repeated.
///
/// # Errors
///
/// [`Error::Unmount`] or [`Error::Remove`], after everything else was tried.
pub fn remove(dir: &Path) -> Result<()> {
    let mut first = None;
    for name in PINS.iter().map(|k| k.name()).chain([PID]) {
        if let Err(error) = unpin(&dir.join(name)) {
            first.get_or_insert(error);
        }
    }
    match first {
        Some(error) => Err(error),
        None => gone(step!("namespaces: remove folder", fs::remove_dir(dir)))
            .map_err(|source| Error::Remove { path: dir.to_owned(), source }),
    }
}

/// Unmounts all that is mounted on the file `path` and unlinks it.
fn unpin(path: &Path) -> Result<()> {
    // Several may lie on top of each other; the kernel says EINVAL when none is left.
    loop {
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        match step!("namespaces: unpin", umount2(path, flags)) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT | nix::Error::ENOTDIR) => break,
            Err(errno) => {
                return Err(Error::Unmount { path: path.to_owned(), source: errno.into() });
            }
        }
    }
    gone(step!("namespaces: remove file", fs::remove_file(path)))
        .map_err(|source| Error::Remove { path: path.to_owned(), source })
}

/// That something was not there to remove is a success.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        other => other,
    }
}

/// Runs `work` on a thread of its own that has entered the network namespace pinned at `path`.
/// The thread ends afterwards, so no other work of this process can find itself there. Threads
/// and processes that `work` starts are in the namespace too.
///
/// # Errors
///
/// [`Error::Enter`] if there is no network namespace at the path; [`Error::Thread`] if `work`
/// panicked.
pub fn enter<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    on_thread(path, || {
        join(path)?;
        Ok(work())
    })?
}

/// Has this thread join the network namespace at `path`. The thread must not be another's.
pub(crate) fn join(path: &Path) -> Result<()> {
    let failed = |source| Error::Enter { path: path.to_owned(), source };
    // A FIFO in the wrong place would block an open without O_NONBLOCK.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
}

/// Runs `work` on a fresh thread and waits for it.
pub(crate) fn on_thread<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let failed = |source| Error::Thread { path: path.to_owned(), source };
    thread::scope(|scope| {
        thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, work)
            .map_err(failed)?
            .join()
            .map_err(|_| failed(io::Error::other("the thread panicked")))
    })
}
