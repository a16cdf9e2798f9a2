//! What the tests of sources share: a folder with files, a command line, an environment.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use clap::Command;
use criod_config::{Error, Loaded};

pub struct Place {
    pub dir: tempfile::TempDir,
    pub env: BTreeMap<String, String>,
}

impl Place {
    /// A folder with programs crun and runc in `bin`, which is the PATH.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place { dir, env: BTreeMap::new() };
        place.program("bin/crun");
        place.program("bin/runc");
        let path = place.path("bin").to_str().unwrap().to_owned();
        place.set("PATH", &path);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn program(&self, name: &str) {
        self.file(name, "");
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    fn matches(&self, args: &[&str]) -> clap::ArgMatches {
        let command = Command::new("criod").args(criod_config::flags());
        command.try_get_matches_from([&["criod"], args].concat()).unwrap()
    }

    /// With `-c crio.conf -d conf.d` of the folder, then `args`.
    pub fn load(&self, args: &[&str]) -> Result<Loaded, Error> {
        let (file, dir) = (self.text("crio.conf"), self.text("conf.d"));
        self.load_only(&[&["-c", &file, "-d", &dir], args].concat())
    }

    pub fn load_only(&self, args: &[&str]) -> Result<Loaded, Error> {
        criod_config::load(&self.matches(args), &|name| self.env.get(name).cloned())
    }

    pub fn read(&self, args: &[&str]) -> Result<Loaded, Error> {
        criod_config::read(&self.matches(args), &|name| self.env.get(name).cloned())
    }

    /// Messages with this folder's name cut out.
    pub fn short(&self, message: impl ToString) -> String {
        message.to_string().replace(&format!("{}/", self.dir.path().display()), "")
    }

    pub fn warnings(&self, loaded: &Loaded) -> Vec<String> {
        loaded.warnings.iter().map(|w| self.short(w)).collect()
    }
}
