//! Pods, as a kubelet runs them.
//!
//! ```text
//! RunPodSandbox ─▶ Create, Start ─▶ exec, status, stats, log rotated … ─▶ Stop, or it ends by itself
//!   ─▶ status: exit code ─▶ log: every line ─▶ Remove ─▶ StopPodSandbox, RemovePodSandbox
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api_cri::v1::PodSandboxConfig;
use e2e::daemon::{Answer, Cri, EXITED, container, lines};
use e2e::random::Random;
use tonic::{Code, Status};

use crate::tally::Tally;
use crate::troubles::{Moment, Weather};

/// How long a call may be repeated before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(150);
/// The image that comes and goes.
const IMAGE: &str = "docker.io/test/layered:1";

/// The load of a node.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) cri: Cri,
    pub(crate) weather: &'a Weather,
    pub(crate) tally: &'a Tally,
    pub(crate) seed: u64,
    pub(crate) pods: usize,
}

/// Ends the load when it is dropped.
struct Ends<'a>(&'a Weather);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What has to be done in vain for the rest of a pod's life to make no sense.
#[derive(Debug)]
struct Lost;

impl Load<'_> {
    /// Puts the load on the node while something is done, and until the pods at hand are gone.
    pub(crate) fn during(&self, done: impl FnOnce()) {
        static PHASES: AtomicUsize = AtomicUsize::new(0);
        let phase = PHASES.fetch_add(1, Ordering::SeqCst);
        self.weather.begin();
        std::thread::scope(|scope| {
            for worker in 0..self.pods {
                scope.spawn(move || self.pods(phase, worker));
            }
            scope.spawn(|| self.pull());
            // Whatever becomes of it, the workers are to end.
            let _end = Ends(self.weather);
            done();
        });
    }

    fn pods(&self, phase: usize, worker: usize) {
        let mut random = Random::new(self.seed.wrapping_add((phase * 1000 + worker) as u64));
        let mut round = 0;
        while !self.weather.ended() {
            let name = format!("p{phase}-{worker}-{round}");
            if self.pod(&name, worker, &mut random).is_ok() {
                self.tally.count("pods from nothing to nothing");
            }
            round += 1;
        }
    }

    /// Whether a trouble explains this error.
    fn explained(&self, e: &Status, then: Moment) -> bool {
        let text = e.message();
        // A call that went on until criod was ended, and what comes before the next one serves.
        let cut = matches!(
            e.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        );
        (cut && self.weather.criod_died_since(then))
            || text.contains("chaos")
            || (text.contains("No space left") && self.weather.full())
            || (text.contains("os error 28") && self.weather.full())
    }

    /// Makes a call until it succeeds, as the kubelet does.
    fn repeated<T>(&self, what: &str, call: impl Fn() -> Answer<T>) -> Result<T, Lost> {
        let began = Instant::now();
        loop {
            let then = self.weather.now();
            let e = match call() {
                Ok(answer) => {
                    self.tally.pass("calls succeed, or a trouble explains why not");
                    return Ok(answer);
                }
                Err(e) => e,
            };
            self.tally.count("calls that a trouble cut");
            if !self.explained(&e, then) {
                let why = format!("{what}: {e:?}");
                self.tally.fail("calls succeed, or a trouble explains why not", why);
                return Err(Lost);
            }
            if began.elapsed() > PATIENCE {
                self.tally.fail("a repeated call succeeds in the end", format!("{what}: {e:?}"));
                return Err(Lost);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// One pod from nothing to nothing.
    fn pod(&self, name: &str, worker: usize, random: &mut Random) -> Result<(), Lost> {
        let config = match worker % 4 {
            0 | 1 => self.cri.pod(name),
            2 => self.cri.host_pod(name),
            _ => self.cri.pid_pod(name),
        };
        let pod = self.repeated("RunPodSandbox", || self.cri.run_pod(&config))?;
        for attempt in 0..=random.below(2) {
            self.container(&pod, &config, attempt, random)?;
        }
        self.repeated("StopPodSandbox", || self.cri.stop_pod(&pod))?;
        self.repeated("RemovePodSandbox", || self.cri.remove_pod(&pod))?;
        let listed = self.repeated("ListPodSandbox", || self.cri.try_pods())?;
        let gone = listed.iter().all(|p| p.id != pod);
        self.tally.check("what was removed is not listed", gone, || name.to_owned());
        // The logs of a removed pod are the kubelet's to remove.
        let logs = self.cri.log(name, "x");
        let _ = std::fs::remove_dir_all(logs.parent().unwrap());
        Ok(())
    }

    fn container(
        &self,
        pod: &str,
        config: &PodSandboxConfig,
        attempt: u64,
        random: &mut Random,
    ) -> Result<(), Lost> {
        let pod_name = config.metadata.as_ref().unwrap().name.clone();
        let name = format!("c{attempt}");
        let code = i32::try_from(random.below(200)).unwrap() + 1;
        let by_itself = random.below(2) == 0;
        let bursts = if by_itself { 3 + random.below(15) } else { u64::MAX >> 1 };
        let script = format!(
            "i=0; end() {{ echo end $i; exit {code}; }}; trap end TERM
             b=0; while [ $b -lt {bursts} ]; do b=$((b+1)); n=0
             while [ $n -lt 40 ]; do n=$((n+1)); echo line $((i=i+1)); done
             sleep 0.3; done; end"
        );
        let wanted = container(&name, &["sh", "-c", &script]);
        let log = self.cri.log(&pod_name, &name);
        let id = self.repeated("CreateContainer", || self.cri.create(pod, &wanted, config))?;
        self.repeated("StartContainer", || self.cri.start(&id))?;
        let mut files = vec![log.clone()];
        for _ in 0..random.below(5) {
            std::thread::sleep(Duration::from_millis(200 + random.below(1500)));
            match random.below(3) {
                0 => self.exec(&id, by_itself, random),
                1 => self.rotate(&id, &log, &mut files)?,
                _ => {
                    let status = self.repeated("ContainerStatus", || self.cri.status(&id))?;
                    let known = by_itself || status.state != EXITED;
                    self.tally.check("what runs is said to run", known, || format!("{status:?}"));
                }
            }
        }
        if by_itself {
            let began = Instant::now();
            while self.repeated("ContainerStatus", || self.cri.status(&id))?.state != EXITED {
                if began.elapsed() > PATIENCE {
                    self.tally
                        .fail("a container's end is noticed", format!("{pod_name}/{name} {id}"));
                    return Err(Lost);
                }
                std::thread::sleep(PAUSE);
            }
        } else {
            // Not before its shell has set the trap.
            let began = Instant::now();
            while lines_of(&files).is_empty() {
                if began.elapsed() > PATIENCE {
                    self.tally.fail("a log begins", format!("{pod_name}/{name} {id}"));
                    return Err(Lost);
                }
                std::thread::sleep(PAUSE);
            }
            self.repeated("StopContainer", || self.cri.stop(&id, 60))?;
        }
        let status = self.repeated("ContainerStatus", || self.cri.status(&id))?;
        let right = (status.state, status.exit_code) == (EXITED, code);
        self.tally.check("exit codes are right", right, || {
            format!("{pod_name}/{name}: {code} was expected: {status:?}")
        });
        self.whole(&format!("{pod_name}/{name} {id}"), &files);
        self.repeated("RemoveContainer", || self.cri.remove(&id))
    }

    /// Runs a command; one whose monitor or criod died meanwhile may have failed.
    fn exec(&self, id: &str, by_itself: bool, random: &mut Random) {
        let then = self.weather.now();
        let code = i32::try_from(random.below(100)).unwrap();
        let script = format!("echo {id}; exit {code}");
        match self.cri.exec(id, &["sh", "-c", &script]) {
            Ok(answer) => {
                let right = answer == (code, format!("{id}\n"));
                // One that ends while a command begins takes it along.
                let right = right || (by_itself && answer.0 != code);
                self.tally.check("commands have their output and code", right, || {
                    format!("{id}: {answer:?} instead of {code}")
                });
            }
            Err(e) => {
                let ended = by_itself;
                let explained =
                    self.explained(&e, then) || self.weather.monitor_died_since(then) || ended;
                self.tally.count("commands that a trouble cut");
                self.tally.check("calls succeed, or a trouble explains why not", explained, || {
                    format!("ExecSync: {e:?}")
                });
            }
        }
    }

    /// As the kubelet rotates.
    fn rotate(&self, id: &str, log: &Path, files: &mut Vec<PathBuf>) -> Result<(), Lost> {
        let old = log.with_extension(format!("log.{}", files.len()));
        if std::fs::rename(log, &old).is_err() {
            return Ok(());
        }
        files.insert(files.len() - 1, old);
        let then = self.weather.now();
        match self.cri.reopen_log(id) {
            Ok(()) => self.tally.count("logs rotated"),
            // It may have ended meanwhile; the kubelet does not mind.
            Err(e) if e.code() == Code::FailedPrecondition => {}
            Err(e) => {
                let explained = self.explained(&e, then) || self.weather.monitor_died_since(then);
                self.tally.check("calls succeed, or a trouble explains why not", explained, || {
                    format!("ReopenContainerLog: {e:?}")
                });
                // It was not done, or nobody knows: done again, it is.
                let _ = self.repeated("ReopenContainerLog", || match self.cri.reopen_log(id) {
                    Err(e) if e.code() == Code::FailedPrecondition => Ok(()),
                    other => other,
                });
            }
        }
        Ok(())
    }

    /// Each line is there, once, and in order.
    fn whole(&self, who: &str, files: &[PathBuf]) {
        // A full disk delays a log, and nothing else does.
        let (began, late) = (Instant::now(), self.weather.full());
        let mut found = lines_of(files);
        while late && !found.last().is_some_and(|l| l.starts_with("end ")) {
            if began.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(PAUSE);
            found = lines_of(files);
        }
        let numbers: Vec<u64> =
            found.iter().filter_map(|l| l.strip_prefix("line ")?.parse().ok()).collect();
        let last = found.last().and_then(|l| l.strip_prefix("end ")?.parse::<u64>().ok());
        let right = last.is_some_and(|last| numbers.iter().copied().eq(1..=last))
            && found.len() == numbers.len() + 1;
        self.tally.check("logs are whole", right, || {
            let odd = numbers.iter().zip(1..).find(|(n, wanted)| *n != wanted);
            let tail: Vec<&String> = found.iter().rev().take(3).collect();
            format!("{who}: {} lines, first odd {odd:?}, last {tail:?}", found.len())
        });
        if right {
            self.tally.count("logs compared");
        }
    }

    /// An image comes and goes until the end.
    fn pull(&self) {
        while !self.weather.ended() {
            let then = self.weather.now();
            match self.cri.pull(IMAGE) {
                Ok(_) => {
                    self.tally.count("images pulled");
                    let _ = self.repeated("RemoveImage", || self.cri.remove_image(IMAGE));
                }
                Err(e) => {
                    self.tally.count("pulls cut");
                    let registry =
                        matches!(e.code(), Code::Unavailable | Code::Unknown | Code::Internal);
                    let explained = registry || self.explained(&e, then);
                    self.tally.check(
                        "pulls succeed, or a trouble explains why not",
                        explained,
                        || format!("PullImage: {e:?}"),
                    );
                }
            }
            std::thread::sleep(PAUSE);
        }
        let _ = self.repeated("PullImage", || self.cri.pull(IMAGE));
    }
}

/// The lines of a log that was rotated, the oldest file first.
fn lines_of(files: &[PathBuf]) -> Vec<String> {
    files.iter().flat_map(|f| lines(f)).map(|(_, text)| text).collect()
}
