//! A control group by name: its folders, making and removing it, its processes.

use crate::error::{Error, Result};
use crate::files::{Buffer, is_gone, write};
use crate::hierarchy::{Hierarchy, Mode, Mount};
use crate::parse;
use failpoint::step;
use nix::libc;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a folder that is busy is tried to be removed, and how long to wait at first; each
/// time twice as long: half a second in all.
const REMOVE_TRIES: u32 = 9;
const REMOVE_WAIT: Duration = Duration::from_millis(1);

/// How deep groups below one are looked for.
const MAX_DEPTH: usize = 32;

/// A control group, there or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    pub(crate) hierarchy: Hierarchy,
    name: String,
}

impl Cgroup {
    /// The group with this name, such as `/kubepods/pod1/crio-x`, below the mount point of every
    /// hierarchy.
    ///
    /// # Errors
    /// [`Error::Name`] if the name is not absolute, holds `..`, or is the root: this crate kills
    /// and removes groups, and never all of them.
    pub fn at(hierarchy: &Hierarchy, name: &str) -> Result<Self> {
        let refuse = |problem| Err(Error::Name { path: name.to_owned(), problem });
        if !name.starts_with('/') {
            return refuse("it is not absolute");
        }
        if name.contains('\0') {
            return refuse("it holds a NUL byte");
        }
        let mut clean = String::with_capacity(name.len());
        for part in name.split('/').filter(|p| !p.is_empty() && *p != ".") {
            if part == ".." {
                return refuse("it holds \"..\"");
            }
            clean.push('/');
            clean.push_str(part);
        }
        if clean.is_empty() {
            return refuse("it is the root");
        }
        Ok(Self { hierarchy: hierarchy.clone(), name: clean })
    }

    /// Its name, absolute and clean.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A group below this one.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::at(&self.hierarchy, &format!("{}/{}", self.name, name))
    }

    /// Its folders, one for each hierarchy, in the order of [`Hierarchy::mounts`].
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.hierarchy.mounts().iter().map(|m| self.folder(m)).collect()
    }

    /// Its folder in the hierarchy of a controller, if the node has that.
    #[must_use]
    pub fn path_of(&self, controller: &str) -> Option<PathBuf> {
        self.hierarchy.mount_of(controller).map(|m| self.folder(m))
    }

    pub(crate) fn folder(&self, mount: &Mount) -> PathBuf {
        mount.mountpoint.join(self.name.trim_start_matches('/'))
    }

    /// Its folders, that of a hybrid node's version 2 mount among them.
    fn all_folders(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.hierarchy.mounts().iter().chain(self.hierarchy.beside()).map(|m| self.folder(m))
    }

    /// Whether it is there, in any hierarchy.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.all_folders().any(|path| path.is_dir())
    }

    pub(crate) fn not_found(&self) -> Error {
        let mount = self.hierarchy.mount_of("memory").or_else(|| self.hierarchy.mounts().first());
        Error::NotFound {
            path: mount.map_or_else(|| PathBuf::from(&self.name), |m| self.folder(m)),
        }
    }

    /// The highest group on the way to it that is in no hierarchy, itself if those above it are
    /// there; `None` if it is there, too.
    #[must_use]
    pub fn first_missing(&self) -> Option<Self> {
        let ends = self.name.match_indices('/').skip(1).map(|(at, _)| at);
        ends.chain([self.name.len()])
            .map(|end| Self {
                hierarchy: self.hierarchy.clone(),
                name: self.name[..end].to_owned(),
            })
            .find(|group| !group.exists())
    }

    /// Makes it, and the groups above it, in every hierarchy; what is there already stays.
    ///
    /// On version 1 a new `cpuset` has no CPUs and takes no process: it gets those of the group
    /// above. On version 2 the groups above pass on all controllers that they can pass on.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Read`], [`Error::Write`].
    pub fn create(&self) -> Result<()> {
        for mount in self.hierarchy.mounts() {
            let cpuset = mount.controllers.iter().any(|c| c == "cpuset");
            let mut above = mount.mountpoint.clone();
            for part in self.name.split('/').filter(|p| !p.is_empty()) {
                if self.hierarchy.is_v2() {
                    self.pass_on(&above);
                }
                let folder = above.join(part);
                match step!("cgroup: make", fs::create_dir(&folder)) {
                    Ok(()) => {}
                    Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                    Err(source) => return Err(Error::Create { path: folder, source }),
                }
                if cpuset {
                    inherit_cpuset(&above, &folder)?;
                }
                above = folder;
            }
        }
        Ok(())
    }

    /// Enables every controller for the groups below `folder`. Those that it does not have, and
    /// a group that has processes of its own, are the business of whoever made it.
    fn pass_on(&self, folder: &Path) {
        let file = folder.join("cgroup.subtree_control");
        for controller in self.hierarchy.v2_controllers() {
            if let Err(error) = write(&file, &format!("+{controller}")) {
                tracing::debug!(%controller, folder = %folder.display(), %error, "not passed on");
            }
        }
    }

    /// Puts a process into it, in every hierarchy in which it is there.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is in none; [`Error::Write`], also for a process that is gone.
    pub fn add_process(&self, pid: i32) -> Result<()> {
        let mut found = false;
        for path in self.paths() {
            match write(&path.join("cgroup.procs"), &pid.to_string()) {
                Ok(()) => found = true,
                Err(Error::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        if found { Ok(()) } else { Err(self.not_found()) }
    }

    /// The processes in it and in the groups below it, by id.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Read`].
    pub fn procs(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        let mut buffer = Buffer::default();
        let mut found = false;
        for folder in self.all_folders().filter(|f| f.is_dir()) {
            found = true;
            for_each_below(&folder, &mut |folder| {
                if let Some(text) = buffer.read(folder, "cgroup.procs")? {
                    pids.extend(parse::procs(text));
                }
                Ok(())
            })?;
        }
        if !found {
            return Err(self.not_found());
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Removes it and the groups below it, in every hierarchy. Processes in it are not touched:
    /// [`Cgroup::kill`] comes first. One that is not there is a success. Blocks for up to half a
    /// second for each folder that is busy.
    ///
    /// # Errors
    /// [`Error::Remove`] for the first folder that could not be removed; the others are.
    pub fn remove(&self) -> Result<()> {
        let mut first = Ok(());
        for folder in self.all_folders() {
            let removed = remove_tree(&folder, 0);
            if first.is_ok() {
                first = removed;
            }
        }
        first
    }

    /// Removes it where nothing is in it, and then the groups above it up to `top`, likewise.
    /// What is in use, or in which a group is, stays; what is not there is passed over. Never
    /// waits.
    ///
    /// # Errors
    /// [`Error::Remove`] for the first folder that could not be removed for another reason.
    pub fn remove_unused(&self, top: &Self) -> Result<()> {
        let inside =
            self.name.strip_prefix(&top.name).is_some_and(|r| r.is_empty() || r.starts_with('/'));
        let depth = if inside { self.name[top.name.len()..].matches('/').count() } else { 0 };
        for folder in self.all_folders() {
            for folder in folder.ancestors().take(depth + 1) {
                match step!("cgroup: remove unused", fs::remove_dir(folder)) {
                    Ok(()) => {}
                    Err(e) if is_gone(&e) => {}
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => {
                        break;
                    }
                    Err(source) => return Err(Error::Remove { path: folder.to_owned(), source }),
                }
            }
        }
        Ok(())
    }

    /// How many processes of it the kernel has killed for want of memory.
    ///
    /// # Errors
    /// [`Error::NotFound`], also without a memory controller; [`Error::Read`].
    pub fn oom_kills(&self) -> Result<u64> {
        let file = match self.hierarchy.mode() {
            Mode::V2 => "memory.events",
            Mode::V1 | Mode::Hybrid => "memory.oom_control",
        };
        let folder = self.path_of("memory").ok_or_else(|| self.not_found())?;
        match Buffer::default().read(&folder, file)? {
            Some(text) => Ok(parse::flat(text, "oom_kill").unwrap_or(0)),
            None => Err(Error::NotFound { path: folder.join(file) }),
        }
    }
}

impl Hierarchy {
    /// The groups whose last name is this one, wherever they are in whichever hierarchy, by name.
    /// Folders that come and go meanwhile are passed over.
    #[must_use]
    pub fn named(&self, name: &str) -> Vec<Cgroup> {
        let mut found = std::collections::BTreeSet::new();
        for mount in self.mounts().iter().chain(self.beside()) {
            // What cannot be read is in nobody's way but the caller's, who finds nothing there.
            let _ = for_each_below(&mount.mountpoint, &mut |folder| {
                if folder.file_name().is_some_and(|last| last == name)
                    && let Ok(below) = folder.strip_prefix(&mount.mountpoint)
                {
                    found.insert(format!("/{}", below.to_string_lossy()));
                }
                Ok(())
            });
        }
        found.iter().filter_map(|name| Cgroup::at(self, name).ok()).collect()
    }
}

fn inherit_cpuset(above: &Path, folder: &Path) -> Result<()> {
    let mut buffer = Buffer::default();
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if buffer.read(folder, name)?.is_some_and(|own| own.trim().is_empty())
            && let Some(text) = buffer.read(above, name)?
        {
            let text = text.trim().to_owned();
            write(&folder.join(name), &text)?;
        }
    }
    Ok(())
}

/// The folders of the groups right below one.
fn children(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// Does something with a group's folder and with those of the groups below it, from above.
pub(crate) fn for_each_below(
    folder: &Path,
    what: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    fn step(folder: &Path, depth: usize, what: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
        what(folder)?;
        match children(folder) {
            Ok(children) if depth < MAX_DEPTH => {
                children.iter().try_for_each(|child| step(child, depth + 1, what))
            }
            Ok(_) => Ok(()),
            Err(e) if is_gone(&e) => Ok(()),
            Err(source) => Err(Error::Read { path: folder.to_owned(), source }),
        }
    }
    step(folder, 0, what)
}

fn remove_tree(folder: &Path, depth: usize) -> Result<()> {
    let remove_error = |source| Error::Remove { path: folder.to_owned(), source };
    let mut wait = REMOVE_WAIT;
    for tries_left in (0..REMOVE_TRIES).rev() {
        // First without looking: most groups have none below.
        match step!("cgroup: remove", fs::remove_dir(folder)) {
            Ok(()) => return Ok(()),
            Err(e) if is_gone(&e) => return Ok(()),
            Err(e) if !matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => {
                return Err(remove_error(e));
            }
            Err(busy) => {
                let below = match children(folder) {
                    Ok(below) if depth < MAX_DEPTH => below,
                    Ok(_) => Vec::new(),
                    Err(e) if is_gone(&e) => return Ok(()),
                    Err(e) => return Err(remove_error(e)),
                };
                if below.is_empty() {
                    if tries_left == 0 {
                        return Err(remove_error(busy));
                    }
                    std::thread::sleep(wait);
                    wait *= 2;
                } else {
                    below.iter().try_for_each(|child| remove_tree(child, depth + 1))?;
                }
            }
        }
    }
    Err(remove_error(std::io::Error::from_raw_os_error(libc::EBUSY)))
}
