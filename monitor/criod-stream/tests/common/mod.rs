//! A criod-stream under test, with the test as its criod and its monitor.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests, each with its own part"
)]

pub(crate) mod client;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sys::seqpacket::{Conn, Message};

/// Longer than anything takes that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running process.
pub(crate) struct Stream {
    child: Child,
    /// Criod's end.
    pub(crate) control: Conn,
    /// The empty folder.
    pub(crate) root: tempfile::TempDir,
    log: tempfile::NamedTempFile,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Our own child, not waited for yet: the pid is its.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("its log: {}", self.log());
        }
    }
}

/// The program under test.
pub(crate) fn program() -> PathBuf {
    // The one that is shipped, where it is to be tested as it is built for that.
    std::env::var_os("CRIOD_STREAM")
        .map_or(env!("CARGO_BIN_EXE_criod-stream").into(), PathBuf::from)
}

impl Stream {
    /// An idle one.
    pub(crate) fn idle() -> Stream {
        Stream::with(&[])
    }

    /// With more arguments.
    pub(crate) fn with(args: &[&str]) -> Stream {
        let (control, theirs) = Conn::pair().unwrap();
        control.patient(PATIENCE).unwrap();
        let root = tempfile::tempdir().unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        let child = Command::new(program())
            .arg("--root")
            .arg(root.path())
            .args(args)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(fs::File::options().append(true).open(log.path()).unwrap())
            .spawn()
            .unwrap();
        Stream { child, control, root, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap().replace('\0', "")
    }

    /// Makes its log so long, with nothing in it.
    pub(crate) fn fill_log(&self, length: u64) {
        self.log.as_file().set_len(0).unwrap();
        self.log.as_file().set_len(length).unwrap();
    }

    pub(crate) fn say(&self, fields: &[&str], fds: &[BorrowedFd<'_>]) {
        self.control.send(fields, fds).unwrap();
    }

    /// The next message; the process must be alive.
    pub(crate) fn hear(&self) -> Vec<String> {
        self.control.recv().unwrap().expect("criod-stream has ended").fields
    }

    /// Gives it one end of a new connection; returns the other.
    pub(crate) fn connect(&self, fields: &[&str], files: &[BorrowedFd<'_>]) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client.set_nodelay(true).unwrap();
        let (server, _) = listener.accept().unwrap();
        let mut fds = vec![server.as_fd()];
        fds.extend_from_slice(files);
        self.say(fields, &fds);
        client
    }

    /// One of a patient criod.
    pub(crate) fn plain(&self) -> TcpStream {
        self.connect(&["CONN", "14400000", "10000", "1000"], &[])
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("criod-stream does not end; its log: {}", self.log());
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A line of /proc/PID/status.
    pub(crate) fn status(&self, name: &str) -> String {
        let all = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = all.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
    }

    /// How many descriptors it has.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Memory that is its alone, in bytes; of the shipped program all of it. What a program for
    /// tests has read of its own large file is left out.
    pub(crate) fn private_memory(&self) -> u64 {
        let all = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap();
        let kib = |name| {
            let line = all.lines().find_map(|l: &str| l.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        match std::env::var_os("CRIOD_STREAM") {
            Some(_) => 1024 * (kib("Private_Dirty:") + kib("Private_Clean:")),
            None => 1024 * kib("Anonymous:"),
        }
    }

    /// Waits until it is locked up, which is before it answers anything.
    pub(crate) fn settle(&self) {
        self.say(&["PING"], &[]);
        assert_eq!(self.hear(), ["IDLE"]);
    }

    /// Answers its question, and waits until that is taken.
    pub(crate) fn answer(&self, ask: &[&str], answer: &[&str], fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.hear(), ask);
        self.say(answer, fds);
        assert_eq!(self.hear(), ["TAKEN"]);
    }
}

/// The monitor's or the dialer's end of a connection, and the one to hand over.
pub(crate) fn peers() -> (Conn, Conn) {
    let (ours, theirs) = Conn::pair().unwrap();
    ours.patient(PATIENCE).unwrap();
    (ours, theirs)
}

pub(crate) fn recv(conn: &Conn) -> Message {
    conn.recv().unwrap().expect("the other end has closed")
}

/// Waits until nobody has this pipe's other end. Another test's child may, until it executes.
pub(crate) fn broken(pipe: OwnedFd) {
    sys::pipe::set_nonblocking(pipe.as_fd()).unwrap();
    let mut pipe = fs::File::from(pipe);
    let until = Instant::now() + PATIENCE;
    while !matches!(pipe.write(b"x"), Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe) {
        assert!(Instant::now() < until, "the pipe is still open");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// All that comes until the end; resets are an end, too.
pub(crate) fn drain(mut from: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 65536];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return all,
            Err(e) => panic!("{e}"),
        }
    }
}

/// Bytes that differ from their neighbours.
pub(crate) fn noise(n: usize) -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// A file in memory.
pub(crate) fn memfd(contents: &[u8]) -> OwnedFd {
    let fd = nix::sys::memfd::memfd_create(c"test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let mut file = fs::File::from(fd.unwrap());
    file.write_all(contents).unwrap();
    file.into()
}
