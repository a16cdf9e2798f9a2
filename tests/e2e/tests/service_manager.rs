//! criod below a service manager: readiness, the watchdog, a socket that is open before criod is.
//! With systemd itself all this is in tests/vm.

// Helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::time::Duration;

use e2e::daemon::{Criod, Options, RUNNING, container};
use e2e::eventually;

/// Stands for systemd. One that is told nothing for this long is told nothing any more: a watchdog's
/// sign comes each second.
struct Manager(UnixDatagram);

const SILENCE: Duration = Duration::from_secs(8);

impl Manager {
    fn at(dir: &Path) -> Manager {
        let socket = UnixDatagram::bind(dir.join("notify.sock")).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        Manager(socket)
    }

    fn told(&self) -> Option<String> {
        let mut text = [0; 4096];
        let n = self.0.recv(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text[..n]).into_owned())
    }

    /// All that has been said until now goes unheard.
    fn forget(&self) {
        self.0.set_nonblocking(true).unwrap();
        while self.told().is_some() {}
        self.0.set_nonblocking(false).unwrap();
    }
}

fn watched() -> Options {
    let env = [("NOTIFY_SOCKET", "DIR/notify.sock"), ("WATCHDOG_USEC", "3000000")];
    Options { env: env.to_vec(), ..Options::default() }
}

#[test]
fn the_watchdog_is_fed_as_long_as_criod_answers() {
    let mut criod = Criod::prepare(watched());
    let manager = Manager::at(&criod.dir);
    criod.launch();
    assert_eq!(manager.told().as_deref(), Some("READY=1"));
    criod.ready();
    for _ in 0..3 {
        assert_eq!(manager.told().as_deref(), Some("WATCHDOG=1"));
    }
    // Nothing of the network is asked for.
    std::fs::remove_file(criod.dir.join("cni/10-e2e.conflist")).unwrap();
    manager.forget();
    for _ in 0..3 {
        assert_eq!(manager.told().as_deref(), Some("WATCHDOG=1"));
    }
    let socket = criod.dir.join("criod.sock");
    std::fs::rename(&socket, criod.dir.join("away.sock")).unwrap();
    eventually("a criod that nobody can reach says so", || {
        criod.said().contains("self-check: the CRI's socket does not answer").then_some(())
    });
    manager.forget();
    assert_eq!(manager.told(), None, "and does not say that it lives");
    std::fs::rename(criod.dir.join("away.sock"), &socket).unwrap();
    assert_eq!(manager.told().as_deref(), Some("WATCHDOG=1"));
    std::fs::rename(criod.dir.join("run/lock"), criod.dir.join("run/lock-away")).unwrap();
    eventually("so does one whose lock is gone", || {
        criod.said().contains("run/lock is not the file that this criod has locked").then_some(())
    });
    manager.forget();
    assert_eq!(manager.told(), None);
    std::fs::rename(criod.dir.join("run/lock-away"), criod.dir.join("run/lock")).unwrap();
    assert_eq!(manager.told().as_deref(), Some("WATCHDOG=1"));
    criod.finish();
}

#[test]
fn the_watchdog_of_another_process_is_left_alone() {
    let mut options = watched();
    options.env.push(("WATCHDOG_PID", "1"));
    let mut criod = Criod::prepare(options);
    let manager = Manager::at(&criod.dir);
    criod.launch();
    assert_eq!(manager.told().as_deref(), Some("READY=1"));
    criod.ready();
    assert_eq!(manager.told(), None);
    criod.finish();
}

#[test]
fn a_socket_that_is_open_already_is_served() {
    let mut criod = Criod::prepare(Options::default());
    let path = criod.dir.join("criod.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let early = std::thread::scope(|scope| {
        let cri = criod.cri.clone();
        let early = scope.spawn(move || cri.version().map(|v| v.runtime_name));
        // Too early to be answered, which it is nevertheless.
        std::thread::sleep(Duration::from_millis(300));
        assert!(!early.is_finished());
        criod.launch_with(&socket);
        early.join().unwrap()
    });
    assert_eq!(early.unwrap(), "criod");
    criod.ready();
    criod.pull(e2e::daemon::BUSYBOX).unwrap();
    let config = criod.host_pod("pod");
    let pod = criod.run_pod(&config).unwrap();
    let id = criod.run(&pod, &container("n", &["sleep", "1000"]), &config);
    // With and without it the next one serves the same file.
    criod.kill9();
    criod.launch_with(&socket);
    criod.ready();
    criod.kill9();
    drop(socket);
    criod.launch();
    criod.ready();
    assert_eq!(criod.status(&id).unwrap().state, RUNNING);
    // The service manager has made another: the keeper's is of the past.
    criod.kill9();
    std::fs::remove_file(&path).unwrap();
    let socket = UnixListener::bind(&path).unwrap();
    criod.launch_with(&socket);
    criod.ready();
    criod.kill9();
    // The file was removed: what was passed cannot be reached, and nobody waits for ever.
    std::fs::remove_file(&path).unwrap();
    criod.launch_with(&socket);
    criod.ready();
    criod.kill9();
    criod.launch_with(&socket);
    criod.ready();
    assert_eq!(criod.status(&id).unwrap().state, RUNNING);
    criod.finish();
}

#[test]
fn another_socket_than_that_of_listen_is_refused() {
    let mut criod = Criod::prepare(Options::default());
    let other = UnixListener::bind(criod.dir.join("other.sock")).unwrap();
    criod.launch_with(&other);
    assert_eq!(criod.ended_by_itself().code(), Some(78), "starting again would not help");
    let said = criod.said();
    assert!(
        said.contains("other.sock, but `listen` is") && said.contains("criod.socket"),
        "{said}"
    );
    assert!(!criod.dir.join("run/keeper.sock").exists(), "nothing was begun");
}
