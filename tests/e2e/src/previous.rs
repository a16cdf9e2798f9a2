//! The programs of an earlier commit: the one before the protocol between criod and its monitors
//! changed last.
//!
//! ```text
//! tests/e2e/previous.commit ─▶ git archive ─▶ TARGET/previous/source ─▶ cargo build (dev)
//!                                                 └─▶ TARGET/previous/COMMIT/{criod,criod-monitor,…}
//! ```
//! Whoever changes the protocol puts the commit before that into the file. Built once: the folder
//! is kept. A clone without that commit, which cannot fetch it either, cannot run these tests,
//! and they fail and say so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

const PROGRAMS: [&str; 5] =
    ["criod", "criod-monitor", "criod-keeper", "criod-stream", "criod-pause"];

/// The folder with the programs.
pub fn programs() -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let commit = fs::read_to_string(manifest.join("previous.commit")).unwrap();
    let commit = commit.trim();
    // target/debug/deps/test-…
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().nth(3).unwrap().join("previous");
    let done = target.join(commit);
    if PROGRAMS.iter().all(|name| done.join(name).exists()) {
        return done;
    }
    let source = target.join("source");
    let _ = fs::remove_dir_all(&source);
    fs::create_dir_all(&source).unwrap();
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "safe.directory=*"]).args(args).current_dir(manifest.join("../.."));
        command.output().unwrap()
    };
    let mut archive = git(&["archive", commit]);
    if !archive.status.success() {
        // A shallow clone: where it came from may still be there.
        git(&["fetch", "--quiet", "--depth", "1", "origin", commit]);
        archive = git(&["archive", commit]);
    }
    assert!(
        archive.status.success(),
        "this clone has no commit {commit}, with whose monitors this criod must work; fetch it \
         (git fetch --unshallow): {}",
        String::from_utf8_lossy(&archive.stderr)
    );
    let tar = target.join("source.tar");
    fs::write(&tar, archive.stdout).unwrap();
    run(Command::new("tar")
        .arg("-xf")
        .arg(&tar)
        .arg("-C")
        .arg(&source)
        .arg("--strip-components=0"));
    fs::remove_file(&tar).unwrap();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    build.args(["build", "--locked"]).args(PROGRAMS.iter().flat_map(|name| ["-p", name]));
    build.current_dir(&source).env("CARGO_TARGET_DIR", target.join("build"));
    // Nobody debugs them.
    build.env("CARGO_PROFILE_DEV_DEBUG", "0").env_remove("RUSTFLAGS");
    run(&mut build);
    fs::create_dir_all(&done).unwrap();
    for name in PROGRAMS {
        let new = done.join(format!("{name}.new"));
        fs::copy(target.join("build/debug").join(name), &new).unwrap();
        fs::rename(new, done.join(name)).unwrap();
    }
    let _ = fs::remove_dir_all(&source);
    let _ = fs::remove_dir_all(target.join("build"));
    done
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {said}");
}
