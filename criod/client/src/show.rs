//! The verb `logs`, and how a log comes to the terminal.
//!
//! ```text
//!  thread "log":  Reader ─► Joiner ─► lines ─► stdout, stderr     each 50 ms, until told
//!                                                                 that no more will come
//!  verb:          ContainerStatus, again and again ──ended──► the thread reads once more, ends
//! ```
//! The runtime says that a container has exited only when the last byte of its output is in the
//! file. The thread is one of its own because reading and writing may block; a process that ends
//! does not wait for it.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use api_cri::v1::{ContainerState, ContainerStatus, ContainerStatusRequest};
use jiff::Timestamp;
use tokio::sync::oneshot;
use tonic::Code;

use crate::args::LogsArgs;
use crate::connect::Client;
use crate::console::{Console, Sink};
use crate::error::{Error, Result};
use crate::logs::{Joiner, Line, Reader, Record, Stream};
use crate::resolve::{Named as _, World};

/// Between two looks at a log.
const LOOK: Duration = Duration::from_millis(50);

/// Between two questions about a container: at first, and at last.
const ASK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// How long the runtime may be away, such as for an upgrade, before a wait for a container fails.
const AWAY: Duration = Duration::from_secs(30);

pub(crate) async fn logs(client: &Client, console: &mut Console, args: LogsArgs) -> Result<u8> {
    let world = World::load(client).await?;
    let container = world.container(&args.id)?;
    let status = container_status(client, &container.id).await?;
    if status.log_path.is_empty() {
        return Err(Error::NoLog { container: container.name().into() });
    }
    let path = PathBuf::from(&status.log_path);
    let printer = Printer::new(console, args.timestamps, args.since, args.tail);
    let mut pump = Pump::start(&path, printer, args.follow);
    if args.follow {
        let ended = wait_ended(client, &container.id);
        tokio::pin!(ended);
        tokio::select! {
            ended = &mut ended => drop(ended?),
            // Only by an error before it is told to.
            done = pump.done() => return done.map(|_| 0),
        }
    }
    let read = pump.end().await?;
    if !read.found && !args.follow {
        let source = io::Error::from(io::ErrorKind::NotFound);
        return Err(Error::Log { path, source });
    }
    if read.malformed > 0 {
        let left_out = read.malformed;
        console.note(&format!("lines of the log that are no records, left out: {left_out}"));
    }
    Ok(0)
}

/// The status of a container.
pub(crate) async fn container_status(client: &Client, id: &str) -> Result<ContainerStatus> {
    let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
    let doing = format!("ask about the container {id}");
    let answer = client.quick(doing, client.runtime().container_status(request)).await?;
    answer.status.ok_or(Error::Incomplete { doing: "ContainerStatus", what: "a status" })
}

/// Waits until a container neither runs nor waits to be started. `None` if it was removed.
///
/// Goes on while the runtime is away, for a while: its restart does not end containers.
pub(crate) async fn wait_ended(client: &Client, id: &str) -> Result<Option<ContainerStatus>> {
    let mut pause = ASK.0;
    let mut away_since: Option<Instant> = None;
    loop {
        match container_status(client, id).await {
            Ok(status) => {
                away_since = None;
                let waits = [ContainerState::ContainerCreated, ContainerState::ContainerRunning];
                if !waits.iter().any(|&s| s as i32 == status.state) {
                    return Ok(Some(status));
                }
            }
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if !may_pass(&e) || since.elapsed() > AWAY {
                    return Err(e);
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(ASK.1);
    }
}

/// Whether an error may be that of a runtime that is being restarted.
fn may_pass(e: &Error) -> bool {
    match e {
        Error::TimedOut { .. } => true,
        // A connection that breaks is any of these.
        Error::Call { code, .. } => {
            matches!(code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
        }
        _ => false,
    }
}

/// How lines are printed.
pub(crate) struct Printer {
    out: Sink,
    err: Sink,
    timestamps: bool,
    since: Option<Timestamp>,
    /// The last lines, until there are no more for now.
    last: Option<(usize, VecDeque<Line>)>,
    tail: Option<usize>,
    joiner: Joiner,
    wrote: Option<Stream>,
}

impl Printer {
    /// A printer that begins with the last `tail` lines and leaves out those before `since`.
    pub(crate) fn new(
        console: &Console,
        timestamps: bool,
        since: Option<Timestamp>,
        tail: Option<usize>,
    ) -> Printer {
        Printer {
            out: console.out.clone(),
            err: console.err.clone(),
            timestamps,
            since,
            last: tail.map(|n| (n, VecDeque::new())),
            tail,
            joiner: Joiner::default(),
            wrote: None,
        }
    }

    fn record(&mut self, record: &Record<'_>) -> io::Result<()> {
        match self.joiner.push(record) {
            Some(line) => self.line(line),
            None => Ok(()),
        }
    }

    fn line(&mut self, line: Line) -> io::Result<()> {
        if self.since.is_some_and(|since| line.time < since) {
            return Ok(());
        }
        let Some((most, last)) = &mut self.last else { return self.write(&line) };
        last.push_back(line);
        if last.len() > *most {
            last.pop_front();
        }
        Ok(())
    }

    /// Prints what was kept, and from now on each line at once.
    fn caught_up(&mut self) -> io::Result<()> {
        if let Some((_, last)) = self.last.take() {
            last.iter().try_for_each(|line| self.write(line))?;
        }
        self.out.lock().flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        for line in self.joiner.finish() {
            self.line(line)?;
        }
        self.caught_up()
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        // What is printed to one terminal keeps its order.
        if self.wrote.replace(line.stream) == Some(Stream::Stdout) && line.stream == Stream::Stderr
        {
            self.out.lock().flush()?;
        }
        let mut to = match line.stream {
            Stream::Stdout => self.out.lock(),
            Stream::Stderr => self.err.lock(),
        };
        if self.timestamps && line.begins {
            write!(to, "{:.9} ", line.time)?;
        }
        to.write_all(&line.text)?;
        if line.ends { to.write_all(b"\n") } else { Ok(()) }
    }
}

/// What became of a log.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Read {
    /// Whether there was a file.
    pub(crate) found: bool,
    /// Lines that were no records.
    pub(crate) malformed: u64,
}

/// The thread that prints a log.
pub(crate) struct Pump {
    end: Option<Sender<()>>,
    done: oneshot::Receiver<Result<Read>>,
}

impl Pump {
    /// Begins to print the log at `path`, which may not exist yet: what comes until [`Pump::end`]
    /// if it is to `follow`, else what is there.
    pub(crate) fn start(path: &Path, mut printer: Printer, follow: bool) -> Pump {
        let (end, ended) = channel();
        let (to, done) = oneshot::channel();
        let path = path.to_owned();
        let spawned = std::thread::Builder::new().name("log".into()).spawn(move || {
            let _ = to.send(pump(&path, &mut printer, follow.then_some(&ended)));
        });
        // Without the thread its end of `done` is gone, which says so.
        drop(spawned);
        Pump { end: Some(end), done }
    }

    /// The thread's end: only an error brings it about before [`Pump::end`]. Not to be awaited
    /// again after it has been ready.
    pub(crate) async fn done(&mut self) -> Result<Read> {
        (&mut self.done).await.unwrap_or_else(|_| Err(Error::Thread))
    }

    /// Says that no more will come, and waits until all is printed.
    pub(crate) async fn end(mut self) -> Result<Read> {
        drop(self.end.take());
        self.done().await
    }
}

fn pump(path: &Path, printer: &mut Printer, ended: Option<&Receiver<()>>) -> Result<Read> {
    let mut reader = Reader::new(path);
    // Lines that --since leaves out must not count.
    if let (Some(lines), None) = (printer.tail, printer.since) {
        reader = reader.near_end(lines);
    }
    // The two may fail with the same kinds of error, and mean different things.
    let mut unwritten = None;
    let failed = |source: io::Error| Error::Log { path: path.into(), source };
    loop {
        let last = ended.is_none_or(|e| matches!(e.try_recv(), Err(TryRecvError::Disconnected)));
        let mut sink = |record: &Record<'_>| {
            printer.record(record).map_err(|e| {
                let kind = e.kind();
                unwritten = Some(e);
                kind.into()
            })
        };
        let mut read = reader.drain(&mut sink);
        if last && read.is_ok() {
            read = reader.finish(&mut sink);
        }
        if let Err(e) = read {
            return Err(unwritten.map_or_else(|| failed(e), Error::Output));
        }
        if last {
            printer.finish().map_err(Error::Output)?;
            return Ok(Read { found: reader.found(), malformed: reader.malformed() });
        }
        printer.caught_up().map_err(Error::Output)?;
        if let Some(ended) = ended {
            // Whether it was told or not is looked at above.
            let _ = ended.recv_timeout(LOOK);
        }
    }
}
