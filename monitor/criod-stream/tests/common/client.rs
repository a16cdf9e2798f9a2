//! The client's side: a request for an upgrade, then SPDY, driven without ever waiting in a call so
//! that both directions go on at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use stream::http::{Request, Response};
use stream::spdy::{Connection, Event, Headers, Limits};

use std::os::fd::{AsFd, OwnedFd};

use sys::seqpacket::Conn;

use super::{PATIENCE, Stream};

/// A connection, encrypted or not.
pub(crate) trait Io: Read + Write + Send {}
impl<T: Read + Write + Send> Io for T {}

const STREAM: u32 = 1024 * 1024;

pub(crate) struct Spdy {
    io: Box<dyn Io>,
    pub(crate) conn: Connection,
    /// What came on each stream.
    pub(crate) got: BTreeMap<u32, Vec<u8>>,
    /// On these nothing more comes.
    pub(crate) finished: BTreeSet<u32>,
    pub(crate) reset: BTreeSet<u32>,
    /// Streams that the server has accepted.
    pub(crate) replied: usize,
    /// The server has closed the connection.
    pub(crate) ended: bool,
    /// The server's data are thrown away, and counted.
    pub(crate) waste: Option<u64>,
}

/// Asks for `path` and returns the response's head and the bytes that came after it.
pub(crate) fn request(
    io: &mut dyn Io,
    method: &str,
    path: &str,
    lines: &[(&str, &str)],
) -> (Response, Vec<u8>) {
    io.write_all(&Request::write(method, path, "node", lines)).unwrap();
    let mut bytes = Vec::new();
    loop {
        if let Some((response, length)) = Response::parse(&bytes).unwrap() {
            return (response, bytes.split_off(length));
        }
        let mut chunk = [0; 4096];
        let n = io.read(&mut chunk).unwrap();
        assert!(n > 0, "no response but {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&chunk[..n]);
    }
}

impl Spdy {
    /// `tcp` is what `io` runs on.
    pub(crate) fn upgrade(
        mut io: Box<dyn Io>,
        tcp: &TcpStream,
        path: &str,
        protocol: &str,
    ) -> Spdy {
        let lines = [
            ("Connection", "Upgrade"),
            ("Upgrade", "SPDY/3.1"),
            ("X-Stream-Protocol-Version", protocol),
        ];
        let (response, early) = request(&mut *io, "POST", path, &lines);
        assert_eq!(response.status, 101);
        assert_eq!(response.headers.get("X-Stream-Protocol-Version"), Some(protocol));
        assert!(early.is_empty());
        tcp.set_nonblocking(true).unwrap();
        Spdy {
            io,
            conn: Connection::new(
                false,
                Limits { streams: 16, stream_window: STREAM, session_window: 4 * STREAM },
            ),
            got: BTreeMap::new(),
            finished: BTreeSet::new(),
            reset: BTreeSet::new(),
            replied: 0,
            ended: false,
            waste: None,
        }
    }

    pub(crate) fn plain(tcp: TcpStream, path: &str, protocol: &str) -> Spdy {
        let io = Box::new(tcp.try_clone().unwrap());
        Spdy::upgrade(io, &tcp, path, protocol)
    }

    pub(crate) fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let headers = headers.iter().fold(Headers::default(), |all, (k, v)| all.with(k, *v));
        self.conn.open(&headers).expect("the server takes no more streams")
    }

    fn write(&mut self) -> bool {
        let mut moved = false;
        while !self.conn.output().is_empty() {
            match self.io.write(self.conn.output()) {
                Ok(n) => self.conn.sent(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.ended = true;
                    break;
                }
            }
            moved = true;
        }
        let _ = self.io.flush();
        moved
    }

    fn read(&mut self) -> bool {
        let space = self.conn.space();
        if space.is_empty() || self.ended {
            return false;
        }
        match self.io.read(space) {
            Ok(0) => self.ended = true,
            Ok(n) => self.conn.filled(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            Err(e) if e.kind() == ErrorKind::Interrupted => return false,
            Err(_) => self.ended = true,
        }
        while let Some(event) = self.conn.poll().unwrap() {
            match event {
                Event::Data { stream, range } => {
                    let n = range.len();
                    match &mut self.waste {
                        Some(count) => *count += n as u64,
                        None => {
                            let bytes = self.conn.bytes(range);
                            self.got.entry(stream).or_default().extend_from_slice(bytes);
                        }
                    }
                    self.conn.credit(stream, n);
                }
                Event::Finished { stream } => drop(self.finished.insert(stream)),
                Event::Reset { stream } => drop(self.reset.insert(stream)),
                Event::Replied { .. } => self.replied += 1,
                Event::Opened { .. } | Event::GoAway => {}
            }
        }
        true
    }

    /// Moves what can be moved.
    pub(crate) fn pump(&mut self) -> bool {
        let wrote = self.write();
        self.read() | wrote
    }

    /// Moves bytes until `done`.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Spdy) -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !done(self) {
            if !self.pump() {
                assert!(Instant::now() < limit, "{what} does not come");
                assert!(!self.ended || done(self), "the connection ended before {what}");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Sends bytes that are no frames, as far as they are taken.
    pub(crate) fn raw(&mut self, mut bytes: &[u8]) {
        self.flush();
        while !bytes.is_empty() {
            match self.io.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => return,
            }
        }
    }

    /// Sends all of it.
    pub(crate) fn send(&mut self, stream: u32, bytes: &[u8]) {
        let mut from = 0;
        self.until("room", |this| {
            from += this.conn.send(stream, &bytes[from..]);
            from == bytes.len()
        });
        self.flush();
    }

    pub(crate) fn flush(&mut self) {
        self.until("all was sent", |this| this.conn.output().is_empty());
    }

    pub(crate) fn close(&mut self, stream: u32) {
        self.conn.close(stream);
        self.flush();
    }

    /// What has come on the stream.
    pub(crate) fn on(&self, stream: u32) -> &[u8] {
        self.got.get(&stream).map_or(&[], Vec::as_slice)
    }

    /// The same as text.
    pub(crate) fn text(&self, stream: u32) -> String {
        String::from_utf8_lossy(self.on(stream)).into_owned()
    }
}

/// The streams of an exec or attach.
pub(crate) struct Exec {
    pub(crate) spdy: Spdy,
    pub(crate) error: u32,
    pub(crate) stdin: u32,
    pub(crate) stdout: u32,
    pub(crate) stderr: u32,
    pub(crate) resize: u32,
}

impl Exec {
    /// Opens those of `error`, `stdin`, `stdout`, `stderr`, `resize` that are named.
    pub(crate) fn open(mut spdy: Spdy, names: &[&str]) -> Exec {
        let mut open = |name: &str| {
            if names.contains(&name) { spdy.open(&[("streamtype", name)]) } else { 0 }
        };
        let [error, stdin, stdout, stderr, resize] =
            ["error", "stdin", "stdout", "stderr", "resize"].map(&mut open);
        spdy.flush();
        Exec { spdy, error, stdin, stdout, stderr, resize }
    }

    /// The status on the error stream, once the server has said all.
    pub(crate) fn status(&mut self) -> String {
        let error = self.error;
        self.spdy.until("the status", |s| s.finished.contains(&error));
        self.spdy.text(error)
    }

    /// Waits for exactly this on a stream.
    pub(crate) fn expect(&mut self, stream: u32, bytes: &[u8]) {
        self.spdy.until("output", |s| s.on(stream).len() >= bytes.len());
        assert!(self.spdy.on(stream) == bytes, "{:?}", self.spdy.text(stream));
    }
}

/// A session of which both ends are ours: the client's, and the monitor's after GO.
pub(crate) struct Session {
    pub(crate) client: Exec,
    pub(crate) monitor: Conn,
    pub(crate) stream: Stream,
}

impl Session {
    /// `kind`: `exec` or `attach`; `wants`: terminal, stdin, stdout, stderr as digits.
    pub(crate) fn begin(kind: &'static str, wants: &str) -> Session {
        let stream = Stream::idle();
        let tcp = stream.plain();
        Session::over(stream, kind, wants, move |path| Spdy::plain(tcp, path, "v4.channel.k8s.io"))
    }

    pub(crate) fn over(
        stream: Stream,
        kind: &'static str,
        wants: &str,
        upgrade: impl FnOnce(&str) -> Spdy + Send + 'static,
    ) -> Session {
        let path = format!("/{kind}/TOKEN");
        let client = std::thread::spawn(move || upgrade(&path));
        let (monitor, handed) = super::peers();
        let mut answer = vec![if kind == "exec" { "EXEC" } else { "ATTACH" }.to_owned()];
        answer.extend(wants.chars().map(String::from));
        let answer: Vec<&str> = answer.iter().map(String::as_str).collect();
        stream.answer(&["ASK", kind, "TOKEN"], &answer, &[handed.as_fd()]);
        drop(handed);
        let names: Vec<&str> = ["resize", "stdin", "stdout", "stderr"]
            .into_iter()
            .zip(wants.chars())
            .filter_map(|(name, wanted)| (wanted == '1').then_some(name))
            .chain(["error"])
            .collect();
        let mut client = Exec::open(client.join().unwrap(), &names);
        // The streams are there when the server has said yes to each.
        client.spdy.until("replies", |s| s.replied == names.len());
        assert_eq!(super::recv(&monitor).fields, ["GO"]);
        Session { client, monitor, stream }
    }

    /// The monitor gives pipes for these; returns its ends.
    pub(crate) fn pipes<const N: usize>(&self, names: [&str; N]) -> [OwnedFd; N] {
        let pairs = names.map(|name| {
            let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
            if name == "stdin" { (write, read) } else { (read, write) }
        });
        let mut fields = vec!["OK"];
        fields.extend(names);
        let fds: Vec<_> = pairs.iter().map(|(theirs, _)| theirs.as_fd()).collect();
        self.monitor.send(&fields, &fds).unwrap();
        pairs.map(|(_, ours)| ours)
    }

    /// The process has nothing left to do.
    pub(crate) fn end(mut self) {
        drop(self.client);
        assert!(self.stream.wait().success(), "{}", self.stream.log());
    }
}
