//! A way to the registry on which connections break.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use e2e::daemon::Criod;
use e2e::random::Random;

/// One connection of so many is cut.
const CUT: u64 = 3;
/// After at most so many bytes.
const AFTER: u64 = 300 << 10;

#[derive(Debug, Default)]
struct State {
    /// Connections are cut.
    bad: AtomicBool,
    ended: AtomicBool,
    cut: AtomicU64,
}

/// Listens in the network namespace of a criod, and leads to its registry.
#[derive(Debug)]
pub(crate) struct Proxy(Arc<State>);

impl Proxy {
    /// Starts one, and has the criod that is started next use it.
    pub(crate) fn start(criod: &Criod) -> Proxy {
        let listener = criod.net.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let conf = criod.dir.join("registry/registries.conf");
        std::fs::write(conf, test_images::registry::mirrors(&address)).unwrap();
        let state = Arc::new(State::default());
        let (own, registry) = (Arc::clone(&state), criod.registry.clone());
        // Threads begin in the namespace of the one that begins them.
        criod.net.run(move || std::thread::spawn(move || accept(&own, &listener, &registry)));
        Proxy(state)
    }

    /// From now on connections are cut, or are not.
    pub(crate) fn bad(&self, bad: bool) {
        self.0.bad.store(bad, Ordering::SeqCst);
    }

    /// How many were cut.
    pub(crate) fn cut(&self) -> u64 {
        self.0.cut.load(Ordering::SeqCst)
    }

    pub(crate) fn end(&self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

fn accept(state: &Arc<State>, listener: &TcpListener, registry: &str) {
    let mut random = Random::new(1);
    while !state.ended.load(Ordering::SeqCst) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let Ok(server) = TcpStream::connect(registry) else { continue };
        let bad = state.bad.load(Ordering::SeqCst) && random.below(CUT) == 0;
        let limit = if bad { random.below(AFTER) } else { u64::MAX };
        let _ = client.set_nonblocking(false);
        let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
        std::thread::spawn(move || copy(from, to, u64::MAX));
        let state = Arc::clone(state);
        std::thread::spawn(move || {
            if copy(server, client, limit) {
                state.cut.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}

/// Copies until the end, or until so many bytes were copied; then both are closed. True: cut.
fn copy(mut from: TcpStream, mut to: TcpStream, limit: u64) -> bool {
    let mut buffer = [0; 16 << 10];
    let mut copied = 0;
    let cut = loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break false,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break false,
        };
        copied += n as u64;
        if copied > limit {
            break true;
        }
        if to.write_all(&buffer[..n]).is_err() {
            break false;
        }
    };
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
    cut
}
