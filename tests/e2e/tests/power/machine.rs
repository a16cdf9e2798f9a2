//! A machine whose power can be lost: a mount namespace, a boot id, a disk below criod's root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::daemon::{Criod, Options};
use e2e::replay::{Blocks, Disk, Event, Server};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::Kind;
use super::promises::Said;

/// Everything but the disk; criod does not run.
pub(crate) struct Machine {
    // Dropped first, with all that uses the disks.
    pub(crate) criod: Criod,
    boots: u32,
    disks: Server<Said>,
}

impl Machine {
    pub(crate) fn new(images: &[&'static str]) -> Machine {
        // Of this thread and what it starts; whatever happens, all mounts go with it.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let options = Options { images: images.to_vec(), own_root: true, ..Options::default() };
        let criod = Criod::prepare(options);
        let disks = Server::new();
        let machine = Machine { criod, boots: 0, disks };
        machine.name_boot();
        let id = Path::new("/proc/sys/kernel/random/boot_id");
        mount(Some(&machine.boot_id()), id, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        machine
    }

    fn boot_id(&self) -> PathBuf {
        self.criod.dir.join("boot_id")
    }

    fn name_boot(&self) {
        let text = format!("00000000-0000-4000-8000-{:012}\n", self.boots);
        fs::write(self.boot_id(), text).unwrap();
    }

    /// The power is lost and comes back.
    pub(crate) fn next_boot(&mut self) {
        self.criod.power_off();
        self.boots += 1;
        self.name_boot();
        // Leases are for a disk, too, but not for this one.
        let _ = fs::remove_dir_all(self.criod.dir.join("leases"));
    }

    /// Makes the file system and records what `work` does on it, and what it notes.
    pub(crate) fn record(
        &mut self,
        kind: &Kind,
        work: impl FnOnce(&mut Criod, &dyn Fn(Said)),
    ) -> (Blocks, Vec<Event<Said>>) {
        let mut disk = self.disks.attach(Blocks::default(), kind.size);
        let made = Command::new(kind.mkfs[0]).args(&kind.mkfs[1..]).arg(&disk.device).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let base = disk.record();
        let root = Mounted::new(&mut disk, kind, &self.criod.dir.join("root"));
        self.criod.launch();
        self.criod.ready();
        work(&mut self.criod, &|said| disk.note(said));
        let events = disk.recorded();
        self.criod.power_off();
        drop(root);
        (base, events)
    }

    /// Boots with that disk.
    pub(crate) fn boot(&mut self, blocks: Blocks, kind: &Kind, look: impl FnOnce(&mut Criod)) {
        self.next_boot();
        let mut disk = self.disks.attach(blocks, kind.size);
        let root = Mounted::new(&mut disk, kind, &self.criod.dir.join("root"));
        look(&mut self.criod);
        self.criod.power_off();
        drop(root);
    }
}

/// A mount of a disk.
struct Mounted(PathBuf);

impl Mounted {
    fn new(disk: &mut Disk<'_, Said>, kind: &Kind, at: &Path) -> Mounted {
        let options = Some(kind.options).filter(|o| !o.is_empty());
        mount(Some(&disk.device), at, Some(kind.name), MsFlags::empty(), options)
            .unwrap_or_else(|e| panic!("mount {}: {e}", kind.name));
        disk.leave();
        Mounted(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
