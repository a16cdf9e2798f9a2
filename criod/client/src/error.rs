//! What is said when something fails: one line, and what to do where that is known.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{endpoint} is no endpoint: expected unix:// and an absolute path")]
    Endpoint { endpoint: String },
    #[error("criod is not running, or its socket is elsewhere: {path}")]
    NotRunning { path: PathBuf, source: io::Error },
    #[error("not allowed to use the socket {path}, which is root's")]
    Denied { path: PathBuf, source: io::Error },
    #[error("cannot reach the socket {path}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("cannot talk to what listens on {path}")]
    Channel { path: PathBuf, source: tonic::transport::Error },
    /// A call's refusal. `Display` has the server's own words.
    #[error("cannot {doing}: {message}{hint}")]
    Call { doing: String, code: Code, message: String, hint: &'static str },
    #[error("cannot {doing}: no answer after {after:?}; allow more with --timeout")]
    TimedOut { doing: String, after: Duration },
    #[error("the runtime's answer to {doing:?} lacks {what}")]
    Incomplete { doing: &'static str, what: &'static str },
    #[error("cannot {doing}")]
    Http { doing: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {doing}: {said}")]
    Refused { doing: String, said: String },
    #[error("there is no {kinds} {id:?}")]
    NoMatch { kinds: &'static str, id: String },
    #[error("{id:?} could be any of {matches}")]
    Ambiguous { id: String, matches: String },
    #[error("{id:?} is a pod of {count} containers: name one of them{names}")]
    ManyContainers { id: String, count: usize, names: String },
    #[error("{container} runs: stop it first, or use --force")]
    Running { container: String },
    #[error("there is no image {image:?} here, and it must not be pulled")]
    ImageMissing { image: String },
    #[error("{container} has no log: its pod was made without a log directory")]
    NoLog { container: String },
    #[error("cannot read the log {path}")]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot make the log directory {path}")]
    LogDirectory { path: PathBuf, source: io::Error },
    #[error("cannot catch signals")]
    Signals(#[source] io::Error),
    #[error("cannot read random numbers")]
    Random(#[source] io::Error),
    #[error("cannot write")]
    Output(#[source] io::Error),
    #[error("cannot write JSON")]
    Json(#[source] serde_json::Error),
    #[error("the thread that prints the log could not be started")]
    Thread,
    #[error("cannot use the input")]
    Input(#[source] io::Error),
    #[error("the container {container} does not run: it is {state}")]
    NotRuns { container: String, state: &'static str },
    #[error("the pod {pod} is stopped")]
    PodStopped { pod: String },
    #[error("there is no command {command:?} in the container {container}")]
    NoCommand { command: String, container: String },
    /// A command or an attach that failed over there. `Display` has the runtime's own words.
    #[error("cannot {doing}: {message}")]
    Remote { doing: String, message: String },
    #[error("the runtime gave a stream's URL that is none: {url:?}")]
    StreamUrl { url: String },
    #[error("cannot connect to the runtime's streaming server at {address}")]
    StreamConnect { address: String, source: io::Error },
    #[error("cannot use the certificates or the key in {path}")]
    Certificates { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("there is no certificate in {path}")]
    NoCertificates { path: PathBuf },
    #[error("cannot set up an encrypted stream")]
    Tls(#[source] rustls::Error),
    #[error("the runtime's streaming server answered with status {status}: {text}")]
    StreamRefused { status: u16, text: String },
    #[error("cannot understand the answer of the runtime's streaming server")]
    StreamAnswer(#[source] stream::http::Error),
    #[error("cannot use the runtime's streaming server")]
    StreamUpgrade(#[source] stream::remote::ClientError),
    #[error("cannot go on with the stream")]
    Stream(#[from] stream::Error),
    #[error("the connection to the runtime's streaming server was lost")]
    StreamLost { source: Option<io::Error> },
    #[error("cannot set the terminal")]
    Terminal(#[source] io::Error),
    #[error("the thread that moves input or output could not be started")]
    Mover(#[source] io::Error),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
}

impl Error {
    /// The refusal of a call that was to do `doing`, which reads after "cannot".
    pub(crate) fn call(doing: String, status: &Status) -> Error {
        let hint = match status.code() {
            Code::Unimplemented => "; this runtime does not offer it",
            Code::Unavailable => "; is the runtime still running?",
            _ => "",
        };
        let message = match status.message() {
            "" => status.code().description().to_owned(),
            text => text.trim().to_owned(),
        };
        Error::Call { doing, code: status.code(), message, hint }
    }

    /// Whether the runtime said that it knows no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Error::Call { code: Code::NotFound, .. } | Error::NoMatch { .. })
    }

    /// The error and its causes in one line of printable characters.
    pub(crate) fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(e) = cause {
            line.push_str(": ");
            line.push_str(&e.to_string());
            cause = e.source();
        }
        one_line(&line)
    }
}

/// The text with its lines joined and without control characters, for a terminal obeys those.
pub(crate) fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.join("; ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
