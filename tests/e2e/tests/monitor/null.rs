//! Streams that nobody wants: a runtime may give them to the container's user, and root owns the
//! node's /dev/null anyway, so that one must not be among them.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use e2e::monitor::{Container, Keeper, Options};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use sys::seqpacket::Conn;

use super::runtimes::crun;
use super::sessions::{connect, go, memfd};
use super::*;

/// The /dev/null of the node as this thread and those whom it starts see it: one of their own, in a
/// mount namespace that ends with them, so that a failure harms nobody.
struct DevNull(Vec<u32>);

impl DevNull {
    fn new() -> DevNull {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        // Not a node in the folder itself: that may be mounted without devices.
        let dir = tempfile::tempdir().unwrap();
        mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let node = dir.path().join("null");
        mknod(&node, SFlag::S_IFCHR, Mode::empty(), makedev(1, 3)).unwrap();
        fs::set_permissions(&node, Permissions::from_mode(0o666)).unwrap();
        mount(Some(&node), "/dev/null", none, MsFlags::MS_BIND, none).unwrap();
        umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
        DevNull(DevNull::now())
    }

    fn now() -> Vec<u32> {
        let meta = fs::metadata("/dev/null").unwrap();
        vec![meta.uid(), meta.gid(), meta.mode()]
    }

    fn assert_untouched(&self, what: &str) {
        assert_eq!(DevNull::now(), self.0, "{what}");
    }
}

fn process(uid: u32, tty: bool, script: &str) -> Vec<u8> {
    let process = serde_json::json!({
        "terminal": tty, "args": ["/bin/sh", "-c", script], "cwd": "/",
        "env": ["PATH=/bin", "TERM=xterm"], "user": { "uid": uid, "gid": 0 },
    });
    process.to_string().into_bytes()
}

fn prepare(c: &Container<'_>, uid: u32, wanted: [&str; 4], script: &str) -> Conn {
    let conn = connect(c);
    let process = memfd(&process(uid, wanted[0] == "1", script));
    let words: Vec<&str> = ["EXEC"].into_iter().chain(wanted).collect();
    conn.send(&words, &[process.as_fd()]).unwrap();
    conn
}

fn exit(conn: &Conn) -> Vec<String> {
    conn.recv().unwrap().unwrap().fields
}

/// A container whose init is that user's.
fn container<'a>(uid: u32, keeper: &'a Keeper, script: &str, options: &Options) -> Container<'a> {
    let c = Container::new(keeper, script, options);
    let path = c.dir.join("bundle/config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    spec["process"]["user"]["uid"] = uid.into();
    fs::write(&path, spec.to_string()).unwrap();
    c
}

/// Streams that are not wanted end at once, take everything, and may be opened again; then the
/// user tries to change what they are.
const SCRIPT: &str = "read x && exit 41; read x </dev/stdin && exit 42; \
    dd if=/dev/zero bs=1M count=64 2>/dev/null || exit 43; echo x >/dev/stderr || exit 44; \
    for n in 0 1 2; do chmod 662 /proc/self/fd/$n; done 2>/dev/null; exit 7";

#[tokio::test]
async fn the_nodes_is_given_to_nobody() {
    let null = DevNull::new();
    let keeper = Keeper::default();
    let runtimes = [crun(&keeper), Options::default()];
    for (options, uid) in runtimes.iter().flat_map(|o| [(o, 4321), (o, 0)]) {
        let who = format!("{}, uid {uid}", options.runtime);
        let script = "read x && exit 41; chmod 662 /proc/self/fd/0; echo eof; sleep 1000";
        let c = container(uid, &keeper, script, options);
        start(&c).await;
        says(&c, "eof");
        null.assert_untouched(&format!("{who} create"));

        let script = "cat; echo out; echo err >&2; chmod 662 /proc/self/fd/0; exit 7";
        let request =
            ExecSyncRequest { process: process(uid, false, script), ..Default::default() };
        let done = c.client().await.exec_sync(ctx(), &request).await.unwrap();
        assert_eq!((done.exit_code, fs::read(done.stdout).unwrap()), (7, b"out\n".to_vec()));
        null.assert_untouched(&format!("{who} exec"));

        let conn = prepare(&c, uid, ["0", "0", "0", "0"], SCRIPT);
        assert!(go(&conn, &["GO"]).unwrap().is_empty());
        assert_eq!(exit(&conn), ["EXIT", "7"]);
        null.assert_untouched(&format!("{who} exec without streams"));
        // The next one has nothing of what that one did.
        let conn = prepare(&c, uid, ["0", "0", "0", "1"], SCRIPT);
        let mut text = String::new();
        let mut streams = go(&conn, &["GO"]).unwrap();
        assert_eq!(exit(&conn), ["EXIT", "7"]);
        streams.get_mut("stderr").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "x\n");

        let conn = prepare(&c, uid, ["0", "1", "1", "1"], "cat; echo out; exit 7");
        let mut streams = go(&conn, &["GO"]).unwrap();
        drop(streams.remove("stdin"));
        assert_eq!(exit(&conn), ["EXIT", "7"]);
        let conn = prepare(&c, uid, ["1", "1", "1", "1"], "exit 7");
        let streams = go(&conn, &["GO", "24", "80"]).unwrap();
        assert_eq!(exit(&conn), ["EXIT", "7"]);
        drop(streams);
        null.assert_untouched(&format!("{who} exec with streams"));
        delete(&c).await;

        let options = Options { terminal: true, ..options.clone() };
        let c = container(uid, &keeper, "test -t 0 && echo tty; exit 4", &options);
        start(&c).await;
        assert_eq!(code(&wait(&c).await), (4, 0, false));
        assert_eq!(c.texts("stdout"), ["tty\r"]);
        delete(&c).await;
        null.assert_untouched(&format!("{who} with a terminal"));
    }
}
