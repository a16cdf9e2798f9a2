//! SELinux: whether the node has it, and the labels of containers.
//!
//! ```text
//! <sys>/fs/selinux/enforce                      is there ─▶ a policy is loaded
//! <etc>/selinux/config            SELINUXTYPE=targeted
//! <etc>/selinux/targeted/contexts/lxc_contexts  process = "system_u:system_r:container_t:s0" …
//!   (or <usr>/share/containers/selinux/contexts, which comes with container-selinux)
//!
//! process label = the policy's + what was asked for + the pod's level  s0:c23,c719
//! mount label   = the policy's file label + the same level
//! ```
//! What keeps containers of different pods apart is the level: a pair of categories that no other
//! pod has. What keeps them from the node is the type.

mod context;
mod relabel;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

pub use self::context::Context;
pub use self::relabel::relabel;
use crate::{Error, Result};

/// How many categories there are, as policies are built.
const CATEGORIES: u16 = 1024;

/// A node with SELinux.
#[derive(Debug, Clone)]
pub struct SeLinux {
    /// The kernel's file that checks a label.
    check: PathBuf,
    process: Context,
    init: Option<Context>,
    vm: Option<Context>,
    file: Context,
}

/// What a container's process is, as far as the policy tells kinds apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// A program.
    #[default]
    Program,
    /// An init system, which also manages cgroups and the like.
    Init,
    /// A virtual machine.
    Vm,
}

/// Parts of a label that are asked for; empty ones are the policy's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options<'a> {
    /// The user, `system_u`.
    pub user: &'a str,
    /// The role, `system_r`.
    pub role: &'a str,
    /// The type of processes, `container_t`.
    pub typ: &'a str,
    /// The level, `s0:c23,c719`.
    pub level: &'a str,
}

impl<'a> Options<'a> {
    /// These, and where they are silent the others.
    #[must_use]
    pub fn over(self, below: Options<'a>) -> Options<'a> {
        let or = |own: &'a str, other: &'a str| if own.is_empty() { other } else { own };
        Options {
            user: or(self.user, below.user),
            role: or(self.role, below.role),
            typ: or(self.typ, below.typ),
            level: or(self.level, below.level),
        }
    }
}

/// The labels of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// Of its processes.
    pub process: String,
    /// Of its files.
    pub mount: String,
}

impl SeLinux {
    /// Looks below `sys` (`/sys`), `etc` (`/etc`) and `usr` (`/usr`). `None` if no policy is
    /// loaded.
    ///
    /// # Errors
    /// [`Error::Policy`], [`Error::Contexts`] if one is, but says nothing usable of containers.
    pub fn detect(sys: &Path, etc: &Path, usr: &Path) -> Result<Option<SeLinux>> {
        let kernel = sys.join("fs/selinux");
        if !kernel.join("enforce").exists() {
            return Ok(None);
        }
        let read = |path: &Path| {
            fs::read_to_string(path)
                .map_err(|source| Error::Policy { path: path.to_owned(), source })
        };
        let mut path = usr.join("share/containers/selinux/contexts");
        if !path.exists() {
            let config = read(&etc.join("selinux/config"))?;
            let policy = value(&config, "SELINUXTYPE").unwrap_or("targeted").to_owned();
            path = etc.join("selinux").join(policy).join("contexts/lxc_contexts");
        }
        let text = read(&path)?;
        let bad = |problem| Error::Contexts { path: path.clone(), problem };
        let context = |key: &str| match value(&text, key) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|e: Error| bad(format!("{key}: {e}"))),
        };
        let needed = |key: &str| context(key)?.ok_or_else(|| bad(format!("no line \"{key} = …\"")));
        Ok(Some(SeLinux {
            check: kernel.join("context"),
            process: needed("process")?,
            init: context("init_process")?,
            vm: context("kvm_process")?,
            file: needed("file")?,
        }))
    }

    /// The labels of a container of this kind; `level` holds where the options name none.
    ///
    /// # Errors
    /// [`Error::Part`]; [`Error::Unknown`] for labels that the policy does not know.
    pub fn labels(&self, kind: Kind, options: &Options<'_>, level: &str) -> Result<Labels> {
        let policy = match kind {
            Kind::Program => &self.process,
            Kind::Init => self.init.as_ref().unwrap_or(&self.process),
            Kind::Vm => self.vm.as_ref().unwrap_or(&self.process),
        };
        // A policy without levels has no place for the pod's.
        let level = if options.level.is_empty() && policy.level.is_some() { level } else { "" };
        let asked = options.over(Options { level, ..Options::default() });
        let process = policy.with(&asked)?.to_string();
        // Roles and types of processes are none of files.
        let mount = self.file.with(&Options { role: "", typ: "", ..asked })?.to_string();
        self.check(&process)?;
        self.check(&mount)?;
        Ok(Labels { process, mount })
    }

    /// Asks the kernel whether the policy knows a label.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn check(&self, label: &str) -> Result<()> {
        let ask =
            || fs::OpenOptions::new().write(true).open(&self.check)?.write_all(label.as_bytes());
        ask().map_err(|source| Error::Unknown { label: label.to_owned(), source })
    }
}

/// A pair of categories that nobody has, as a level; begins to look at a place that `random` gives.
///
/// # Errors
/// [`Error::NoCategories`].
pub fn free_level(random: u64, taken: impl Fn(&str) -> bool) -> Result<String> {
    let pairs = u64::from(CATEGORIES) * u64::from(CATEGORIES - 1) / 2;
    (0..pairs)
        .map(|n| level((random % pairs + n) % pairs))
        .find(|level| !taken(level))
        .ok_or(Error::NoCategories)
}

/// The pair of this number among all.
fn level(number: u64) -> String {
    // Row by row of a triangle: the pairs with c0 first, then those with c1, …
    let (mut low, mut rest, mut row) = (0u64, number, u64::from(CATEGORIES) - 1);
    while rest >= row {
        (low, rest, row) = (low + 1, rest - row, row - 1);
    }
    format!("s0:c{low},c{}", low + 1 + rest)
}

/// The value of `key = value` or `key="value"` in a file of lines; the last one counts.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().map(str::trim).filter(|l| !l.starts_with('#'));
    let found = lines.filter_map(|l| l.split_once('=')).rfind(|(k, _)| k.trim() == key)?;
    Some(found.1.trim().trim_matches('"')).filter(|v| !v.is_empty())
}

/// An option of mount(2) by which a new file system gets one label for all its files.
#[must_use]
pub fn mount_option(label: &str) -> Option<String> {
    // The quotes are for the comma between categories.
    (!label.is_empty()).then(|| format!("context=\"{label}\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// As container-selinux writes it on Fedora.
    const FEDORA: &str = "process = \"system_u:system_r:container_t:s0\"\n\
        content = \"system_u:object_r:virt_var_lib_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n\
        ro_file=\"system_u:object_r:container_ro_file_t:s0\"\n\
        sandbox_kvm_process = \"system_u:system_r:svirt_qemu_net_t:s0\"\n\
        sandbox_lxc_process = \"system_u:system_r:container_t:s0\"\n\
        # comment = \"x\"\n\
        kvm_process = \"system_u:system_r:container_kvm_t:s0\"\n\
        init_process = \"system_u:system_r:container_init_t:s0\"\n\
        engine_process = \"system_u:system_r:container_engine_t:s0\"\n";

    fn node(contexts: &str) -> (tempfile::TempDir, Result<Option<SeLinux>>) {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        fs::create_dir_all(at("sys/fs/selinux")).unwrap();
        fs::create_dir_all(at("etc/selinux/mine/contexts")).unwrap();
        fs::write(at("sys/fs/selinux/enforce"), "1").unwrap();
        fs::write(at("sys/fs/selinux/context"), "").unwrap();
        fs::write(at("etc/selinux/config"), "SELINUX=enforcing\nSELINUXTYPE=mine\n").unwrap();
        fs::write(at("etc/selinux/mine/contexts/lxc_contexts"), contexts).unwrap();
        let found = SeLinux::detect(&at("sys"), &at("etc"), &at("usr"));
        (dir, found)
    }

    #[test]
    fn a_node_without() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SeLinux::detect(dir.path(), dir.path(), dir.path()).unwrap().is_none());
    }

    #[test]
    fn labels_of_kinds() {
        let (_dir, selinux) = node(FEDORA);
        let selinux = selinux.unwrap().unwrap();
        let of = |kind, options: Options<'_>| {
            let labels = selinux.labels(kind, &options, "s0:c1,c2").unwrap();
            (labels.process, labels.mount)
        };
        let file = "system_u:object_r:container_file_t:s0:c1,c2".to_owned();
        let none = Options::default();
        for (kind, typ) in [
            (Kind::Program, "container_t"),
            (Kind::Init, "container_init_t"),
            (Kind::Vm, "container_kvm_t"),
        ] {
            let process = format!("system_u:system_r:{typ}:s0:c1,c2");
            assert_eq!(of(kind, none), (process, file.clone()));
        }
        let all = Options { user: "u_u", role: "r_r", typ: "spc_t", level: "s0:c3.c9" };
        assert_eq!(
            of(Kind::Init, all),
            ("u_u:r_r:spc_t:s0:c3.c9".into(), "u_u:object_r:container_file_t:s0:c3.c9".into())
        );
        for bad in [
            Options { typ: "a:b", ..none },
            Options { user: "a b", ..none },
            Options { role: "\n", ..none },
            Options { level: "s0\",x=", ..none },
        ] {
            assert!(matches!(selinux.labels(Kind::Program, &bad, "s0"), Err(Error::Part { .. })));
        }
    }

    #[test]
    fn a_policy_without_levels_gets_none() {
        let (_dir, selinux) = node("process=a_u:a_r:a_t\nfile=a_u:object_r:f_t\n");
        let selinux = selinux.unwrap().unwrap();
        let labels = selinux.labels(Kind::Init, &Options::default(), "s0:c1,c2").unwrap();
        assert_eq!(
            (labels.process.as_str(), labels.mount.as_str()),
            ("a_u:a_r:a_t", "a_u:object_r:f_t")
        );
    }

    #[test]
    fn what_the_kernel_refuses() {
        let (dir, selinux) = node(FEDORA);
        let selinux = selinux.unwrap().unwrap();
        fs::remove_file(dir.path().join("sys/fs/selinux/context")).unwrap();
        let e = selinux.labels(Kind::Program, &Options::default(), "s0").unwrap_err();
        assert!(matches!(e, Error::Unknown { label, .. } if label.starts_with("system_u:")));
    }

    #[test]
    fn policies_that_say_nothing_of_containers() {
        for text in
            ["", "file = \"a:b:c\"", "process = \"a:b:c\"", "process = \"x\"\nfile = \"a:b:c\""]
        {
            assert!(matches!(node(text).1, Err(Error::Contexts { .. })), "{text}");
        }
        let (dir, _) = node(FEDORA);
        let at = |p: &str| dir.path().join(p);
        fs::remove_file(at("etc/selinux/mine/contexts/lxc_contexts")).unwrap();
        assert!(matches!(
            SeLinux::detect(&at("sys"), &at("etc"), &at("usr")),
            Err(Error::Policy { .. })
        ));
        // What container-selinux brings counts more.
        fs::create_dir_all(at("usr/share/containers/selinux")).unwrap();
        fs::write(at("usr/share/containers/selinux/contexts"), FEDORA).unwrap();
        assert!(SeLinux::detect(&at("sys"), &at("etc"), &at("usr")).unwrap().is_some());
    }

    #[test]
    fn every_pair_of_categories_once() {
        let pairs = u64::from(CATEGORIES) * u64::from(CATEGORIES - 1) / 2;
        let all: BTreeSet<String> = (0..pairs).map(level).collect();
        assert_eq!(all.len() as u64, pairs);
        assert!(
            all.contains("s0:c0,c1")
                && all.contains("s0:c1022,c1023")
                && all.contains("s0:c5,c700")
        );
    }

    proptest! {
        #[test]
        fn a_free_level_is_free(random in any::<u64>(), taken in any::<u64>()) {
            let taken = free_level(taken, |_| false).unwrap();
            let free = free_level(random, |l| l == taken).unwrap();
            prop_assert_ne!(&free, &taken);
            let (low, high) = free.strip_prefix("s0:c").unwrap().split_once(",c").unwrap();
            prop_assert!(low.parse::<u16>().unwrap() < high.parse::<u16>().unwrap());
        }
    }

    #[test]
    fn when_all_are_taken() {
        assert!(matches!(free_level(7, |_| true), Err(Error::NoCategories)));
    }

    #[test]
    fn mount_options() {
        assert_eq!(mount_option(""), None);
        assert_eq!(mount_option("a:b:c:s0:c1,c2").unwrap(), "context=\"a:b:c:s0:c1,c2\"");
    }
}
