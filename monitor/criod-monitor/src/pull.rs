//! Taking from pipes that the container has the other end of, without ever waiting for it.
//!
//! ```text
//! main thread ──work──▶ a thread that sleeps, or a new one ──┬─ at once ─▶ result
//!      ▲                                                     └─ late: HELD; the event tells when
//!      └──────────────────────── event ◀─────────────────────────────────────────────┘
//! ```
//! A pipe has one lock, and who splices from a file into it holds that lock until the file has been
//! read: a process in the container whose file comes from a server that is gone holds it for ever,
//! and whoever touches the pipe then, even to ask how much is in it, waits as no signal can end. Only
//! threads that nobody needs do so here; poll is free of the lock.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// How long the main thread waits for what takes microseconds.
const LIMIT: Duration = Duration::from_millis(50);
const STACK: usize = 16 << 10;

/// What is said of a pipe that the container holds.
pub(crate) const HELD: Errno = Errno::EBUSY;

type Work = Box<dyn FnOnce() -> Result<usize, Errno> + Send>;

#[derive(Default)]
struct Outcome {
    result: Option<Result<usize, Errno>>,
    /// Nobody waits for it any more: the event is to tell.
    late: bool,
}

#[derive(Default)]
struct Job {
    outcome: Mutex<Outcome>,
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Arc<Job>, Work)>,
    sleeping: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    event: EventFd,
}

/// The threads: one as a rule, and one more for each pipe that is held.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

/// One pipe's side of it: what is late of it.
#[derive(Default)]
pub(crate) struct Pull(Option<Arc<Job>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half changed, and a panic ends the process.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(crate) fn new() -> io::Result<Pool> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_flags(flags)?;
        Ok(Pool(Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), event })))
    }

    /// Readable when something that was late is done.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    /// The event has been seen.
    pub(crate) fn seen(&self) {
        let _ = self.0.event.read();
    }

    fn submit(&self, job: Arc<Job>, work: Work) -> io::Result<()> {
        let mut queue = lock(&self.0.queue);
        queue.jobs.push_back((job, work));
        if queue.sleeping >= queue.jobs.len() {
            self.0.wake.notify_one();
            return Ok(());
        }
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("pull".into()).stack_size(STACK);
        let spawned = thread.spawn(move || shared.serve());
        if spawned.is_err() {
            queue.jobs.pop_back();
        }
        spawned.map(|_| ())
    }
}

impl Shared {
    fn serve(&self) {
        let mut queue = lock(&self.queue);
        loop {
            while let Some((job, work)) = queue.jobs.pop_front() {
                drop(queue);
                let result = work();
                let mut outcome = lock(&job.outcome);
                outcome.result = Some(result);
                if outcome.late {
                    let _ = self.event.write(1);
                }
                job.done.notify_one();
                drop(outcome);
                queue = lock(&self.queue);
            }
            if queue.sleeping > 0 {
                return;
            }
            queue.sleeping += 1;
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.sleeping -= 1;
        }
    }
}

impl Pull {
    /// Has the work done, or goes on waiting for the work of before, whose result it has then.
    ///
    /// [`HELD`]: it is not done yet; when it is, the event tells.
    pub(crate) fn run(
        &mut self,
        pool: &Pool,
        work: impl FnOnce() -> Result<usize, Errno> + Send + 'static,
    ) -> Result<usize, Errno> {
        if let Some(job) = &self.0 {
            let Some(result) = lock(&job.outcome).result.take() else { return Err(HELD) };
            self.0 = None;
            return result;
        }
        let job = Arc::new(Job::default());
        pool.submit(Arc::clone(&job), Box::new(work)).map_err(|_| Errno::EAGAIN)?;
        let outcome = lock(&job.outcome);
        let waited =
            job.done.wait_timeout_while(outcome, LIMIT, |outcome| outcome.result.is_none());
        let mut outcome = waited.unwrap_or_else(PoisonError::into_inner).0;
        if let Some(result) = outcome.result.take() {
            return result;
        }
        outcome.late = true;
        drop(outcome);
        self.0 = Some(job);
        Err(HELD)
    }

    /// Something is late.
    pub(crate) fn is_held(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_is_late_is_told_of_and_holds_up_nothing_else() {
        let pool = Pool::new().unwrap();
        let (mut one, mut two) = (Pull::default(), Pull::default());
        assert_eq!(one.run(&pool, || Ok(1)), Ok(1));
        let (release, held) = channel::<()>();
        let stuck = move || {
            held.recv().unwrap();
            Ok(2)
        };
        assert_eq!(one.run(&pool, stuck), Err(HELD));
        assert!(one.is_held() && !two.is_held());
        for _ in 0..100 {
            assert_eq!(two.run(&pool, || Err(Errno::EAGAIN)), Err(Errno::EAGAIN));
        }
        assert_eq!(one.run(&pool, || unreachable!()), Err(HELD));
        release.send(()).unwrap();
        let mut fds = [nix::poll::PollFd::new(pool.event(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 10_000u16), Ok(1));
        pool.seen();
        assert_eq!(one.run(&pool, || unreachable!()), Ok(2));
        assert_eq!(one.run(&pool, || Ok(3)), Ok(3));
    }
}
