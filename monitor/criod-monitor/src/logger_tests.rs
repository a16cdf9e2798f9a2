//! Tests of the log thread, without a container.

use super::*;

struct Rig {
    dir: tempfile::TempDir,
    spools: [Arc<Spool>; 2],
    logger: Logger,
}

fn rig_in(dir: tempfile::TempDir) -> Rig {
    let spools =
        ["stdout.spool", "stderr.spool"].map(|n| Spool::open(&dir.path().join(n)).unwrap());
    let log = dir.path().join("0.log");
    let logger =
        Logger::start(log.to_str().unwrap(), dir.path(), true, spools.clone(), None).unwrap();
    Rig { dir, spools, logger }
}

impl Rig {
    fn put(&self, n: usize, bytes: &[u8]) {
        let at = self.spools[n].written.load(Ordering::Relaxed);
        self.spools[n].file.write_all_at(bytes, at).unwrap();
        self.spools[n].written.store(at + bytes.len() as u64, Ordering::Release);
        self.logger.notify();
    }

    fn wait(&self) -> Done {
        loop {
            let mut fds = [nix::poll::PollFd::new(
                self.logger.shared.event.as_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            assert_eq!(nix::poll::poll(&mut fds, 10_000u16).unwrap(), 1, "the logger is silent");
            if let Some(done) = self.logger.done().pop() {
                if !matches!(done, Done::Flushed) {
                    self.logger.send(Command::Kept);
                }
                return done;
            }
        }
    }

    fn flush(&self) {
        let ends = self.spools.each_ref().map(|s| s.written.load(Ordering::Relaxed));
        self.logger.send(Command::Flush(ends));
        assert!(matches!(self.wait(), Done::Flushed));
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join(name)).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }
}

#[test]
fn rotation_never_divides_a_line_and_the_last_one_is_closed() {
    let rig = rig_in(tempfile::tempdir().unwrap());
    rig.logger.send(Command::Open);
    assert!(matches!(rig.wait(), Done::Opened(Ok(Some(_)))));
    rig.put(0, b"one\ntw");
    rig.put(1, b"err\n");
    while rig.spools.iter().any(|s| s.consumed.load(Ordering::Relaxed) < 4) {
        std::thread::yield_now();
    }
    let path = rig.dir.path();
    std::fs::rename(path.join("0.log"), path.join("0.log.old")).unwrap();
    rig.logger.send(Command::Reopen);
    assert!(matches!(rig.wait(), Done::Reopened(Ok(Some(_)))));
    rig.put(0, b"o\nthree");
    rig.flush();
    let mut old = rig.texts("0.log.old");
    old.sort();
    assert_eq!(old, ["stderr F err", "stdout F one"]);
    assert_eq!(rig.texts("0.log"), ["stdout F two", "stdout F three"]);
}

#[test]
fn a_file_renamed_over_ours_gets_what_ours_held() {
    let rig = rig_in(tempfile::tempdir().unwrap());
    let path = rig.dir.path();
    rig.logger.send(Command::Open);
    rig.wait();
    rig.put(0, b"before\n");
    rig.flush();
    std::fs::rename(path.join("0.log"), path.join("0.log.old")).unwrap();
    rig.logger.send(Command::Reopen);
    rig.wait();
    rig.put(0, b"between\n");
    rig.flush();
    // The kubelet saw no answer, and puts the old file back.
    std::fs::rename(path.join("0.log.old"), path.join("0.log")).unwrap();
    rig.put(0, b"after\n");
    let ends = rig.spools.each_ref().map(|s| s.written.load(Ordering::Relaxed));
    rig.logger.send(Command::Flush(ends));
    while !matches!(rig.wait(), Done::Flushed) {}
    assert_eq!(rig.texts("0.log"), ["stdout F before", "stdout F between", "stdout F after"]);
}

#[test]
fn a_successor_cuts_back_to_whole_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let rig = rig_in(dir);
    rig.logger.send(Command::Open);
    rig.wait();
    rig.put(0, b"one\n");
    rig.flush();
    // As if killed between the log and the mark: a record, and half of one, too much.
    let mut log = OpenOptions::new().append(true).open(path.join("0.log")).unwrap();
    log.write_all(b"2026-11-24T00:00:00Z stdout F two\n2026-11").unwrap();
    rig.spools[0].file.write_all_at(b"two\n", 4).unwrap();
    let rig = rig_in(rig.dir);
    rig.logger.send(Command::Resume(None));
    rig.wait();
    rig.put(0, b"three\n");
    rig.flush();
    assert_eq!(rig.texts("0.log"), ["stdout F one", "stdout F two", "stdout F three"]);
}

#[test]
fn a_file_put_back_and_rotated_again_before_anything_was_written_is_not_lost() {
    let rig = rig_in(tempfile::tempdir().unwrap());
    let path = rig.dir.path();
    rig.logger.send(Command::Open);
    rig.wait();
    rig.put(0, b"before\n");
    rig.flush();
    std::fs::rename(path.join("0.log"), path.join("0.log.1")).unwrap();
    rig.logger.send(Command::Reopen);
    rig.wait();
    rig.put(0, b"between\n");
    rig.flush();
    std::fs::rename(path.join("0.log.1"), path.join("0.log")).unwrap();
    std::fs::rename(path.join("0.log"), path.join("0.log.2")).unwrap();
    rig.logger.send(Command::Reopen);
    while !matches!(rig.wait(), Done::Reopened(Ok(_))) {}
    rig.put(0, b"after\n");
    rig.flush();
    assert_eq!(rig.texts("0.log.2"), ["stdout F before"]);
    assert_eq!(rig.texts("0.log"), ["stdout F between", "stdout F after"]);
}

#[test]
fn nothing_is_written_to_a_log_that_only_we_have() {
    let rig = rig_in(tempfile::tempdir().unwrap());
    rig.put(0, b"one\n");
    rig.logger.send(Command::Open);
    while rig.logger.done().is_empty() {
        std::thread::yield_now();
    }
    rig.put(0, b"two\n");
    let ends = rig.spools.each_ref().map(|s| s.written.load(Ordering::Relaxed));
    rig.logger.send(Command::Flush(ends));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(rig.texts("0.log").len(), 0);
    rig.logger.send(Command::Kept);
    assert!(matches!(rig.wait(), Done::Flushed));
    assert_eq!(rig.texts("0.log").len(), 2);
}

#[test]
fn a_removed_log_begins_anew_and_one_renamed_meanwhile_is_found_by_a_successor() {
    let rig = rig_in(tempfile::tempdir().unwrap());
    let path = rig.dir.path();
    rig.logger.send(Command::Open);
    rig.wait();
    rig.put(0, b"one\n");
    rig.flush();
    std::fs::remove_file(path.join("0.log")).unwrap();
    rig.put(0, b"two\n");
    let ends = rig.spools.each_ref().map(|s| s.written.load(Ordering::Relaxed));
    rig.logger.send(Command::Flush(ends));
    while !matches!(rig.wait(), Done::Flushed) {}
    assert_eq!(rig.texts("0.log"), ["stdout F two"]);
    // Half a record that no mark vouches for, and a rotation before anybody cut it off.
    let mut log = OpenOptions::new().append(true).open(path.join("0.log")).unwrap();
    log.write_all(b"2026-11").unwrap();
    std::fs::rename(path.join("0.log"), path.join("0.log.1")).unwrap();
    let rig = rig_in(rig.dir);
    rig.logger.send(Command::Resume(None));
    rig.wait();
    rig.put(0, b"three\n");
    rig.flush();
    assert_eq!(rig.texts("0.log.1"), ["stdout F two", "stdout F three"]);
}
