//! How far a pull is: criod's `GET /v1/pulls`, and what a person sees of it.
//!
//! The CRI's PullImage is silent until it is done. criod tells the rest over HTTP/1 on the same
//! socket:
//!
//! ```text
//! GET /v1/pulls   200  [{"image": "docker.io/library/web:1", "layers": [
//!                         {"digest": "sha256:…", "total": 123, "done": 45, "state": "downloading"}
//!                       ]}]
//! ```
//! States are `downloading`, `unpacking`, `done` and `exists`; unknown ones are shown as they are.
//! A server that answers otherwise, or not at all, is not asked again: then there is a spinner.
//! Where stderr is no terminal, there is a line for each change of a layer's state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::console::Console;
use crate::error::one_line;
use crate::table::{short, size};

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(200);

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most bytes of an answer that are taken.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// The most layers that are shown.
const MAX_LAYERS: usize = 256;

/// A pull that is going on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Pull {
    pub(crate) image: String,
    #[serde(default)]
    pub(crate) layers: Vec<Layer>,
}

/// How far one of its layers is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Layer {
    pub(crate) digest: String,
    /// Bytes; 0 if that is not known.
    #[serde(default)]
    pub(crate) total: u64,
    /// Bytes.
    #[serde(default)]
    pub(crate) done: u64,
    pub(crate) state: String,
}

/// The questions about pulls, over one connection.
struct Feed {
    socket: PathBuf,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl Feed {
    /// Asks once. `None` if the server does not offer it.
    async fn ask(&mut self) -> Option<Vec<Pull>> {
        tokio::time::timeout(PATIENCE, self.try_ask()).await.ok()?
    }

    async fn try_ask(&mut self) -> Option<Vec<Pull>> {
        let mut sender = match self.sender.take().filter(|s| !s.is_closed()) {
            Some(sender) => sender,
            None => {
                let stream = UnixStream::connect(&self.socket).await.ok()?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
                // Ends when the sender is dropped.
                tokio::spawn(connection);
                sender
            }
        };
        sender.ready().await.ok()?;
        let request = hyper::Request::get("/v1/pulls").header("host", "localhost");
        let answer = sender.send_request(request.body(Empty::new()).ok()?).await.ok()?;
        if answer.status() != hyper::StatusCode::OK {
            return None;
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.ok()?;
        self.sender = Some(sender);
        serde_json::from_slice(&body.to_bytes()).ok()
    }
}

/// Shows how far the pull of `image` is, as long as this is polled.
pub(crate) async fn watch(socket: &Path, image: &str, display: &mut Display) {
    let mut feed = Feed { socket: socket.into(), sender: None };
    loop {
        tokio::time::sleep(INTERVAL).await;
        match feed.ask().await {
            Some(pulls) => {
                if let Some(pull) = pick(&pulls, image) {
                    display.update(&pull.layers);
                }
            }
            None => std::future::pending().await,
        }
    }
}

/// The pull of `image` among others.
fn pick<'a>(pulls: &'a [Pull], image: &str) -> Option<&'a Pull> {
    let wanted = full_name(image);
    let exact = pulls.iter().find(|p| p.image == image || full_name(&p.image) == wanted);
    // A short name may have become that of another registry.
    let tail = format!("/{}", with_tag(image));
    exact.or_else(|| pulls.iter().find(|p| with_tag(&p.image).ends_with(&tail)))
}

fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.into() } else { format!("{image}:latest") }
}

/// "web" is docker.io/library/web:latest.
fn full_name(image: &str) -> String {
    let image = with_tag(image);
    match image.split_once('/') {
        None => format!("docker.io/library/{image}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => image,
        Some(_) => format!("docker.io/{image}"),
    }
}

/// Where the progress of one pull is seen.
pub(crate) enum Display {
    /// Bars, on a terminal.
    Bars { all: MultiProgress, spinner: ProgressBar, layers: BTreeMap<String, ProgressBar> },
    /// Lines.
    Lines { console: crate::console::Sink, states: BTreeMap<String, String> },
}

impl Display {
    /// Begins to show the pull of `image`.
    pub(crate) fn start(console: &Console, image: &str) -> Display {
        let image = one_line(image);
        if !console.lively {
            console.note(&format!("pulling {image}"));
            return Display::Lines { console: console.err.clone(), states: BTreeMap::new() };
        }
        Display::bars(ProgressDrawTarget::stderr(), &image)
    }

    fn bars(target: ProgressDrawTarget, image: &str) -> Display {
        let all = MultiProgress::with_draw_target(target);
        let spinner = all.add(ProgressBar::new_spinner());
        spinner.set_message(format!("pulling {image}"));
        spinner.enable_steady_tick(Duration::from_millis(100));
        Display::Bars { all, spinner, layers: BTreeMap::new() }
    }

    /// Shows how far the layers are.
    pub(crate) fn update(&mut self, now: &[Layer]) {
        for layer in now.iter().take(MAX_LAYERS) {
            match self {
                Display::Lines { console, states } => {
                    let old = states.insert(layer.digest.clone(), layer.state.clone());
                    if old.as_ref() != Some(&layer.state) {
                        let _ = writeln!(console.lock(), "{}", layer_line(layer));
                    }
                }
                Display::Bars { all, layers, .. } => {
                    let bar = layers
                        .entry(layer.digest.clone())
                        .or_insert_with(|| all.add(ProgressBar::no_length()));
                    draw(bar, layer);
                }
            }
        }
    }

    /// Takes the bars away.
    pub(crate) fn finish(self) {
        if let Display::Bars { all, spinner, layers } = self {
            layers.values().for_each(ProgressBar::finish);
            spinner.finish_and_clear();
            let _ = all.clear();
        }
    }
}

fn layer_name(layer: &Layer) -> String {
    one_line(&short(&layer.digest))
}

fn layer_line(layer: &Layer) -> String {
    let mut line = format!("layer {}: {}", layer_name(layer), one_line(&layer.state));
    if layer.state == "downloading" && layer.total > 0 {
        line.push_str(&format!(" ({})", size(layer.total)));
    }
    line
}

fn draw(bar: &ProgressBar, layer: &Layer) {
    bar.set_prefix(layer_name(layer));
    let template = match layer.state.as_str() {
        "downloading" if layer.total > 0 => {
            "{prefix:13} [{bar:30}] {bytes:>10}/{total_bytes:10} {binary_bytes_per_sec}"
        }
        "downloading" => "{prefix:13} {bytes}",
        _ => "{prefix:13} {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    if layer.total > 0 {
        bar.set_length(layer.total);
        bar.set_position(layer.done.min(layer.total));
    } else {
        bar.set_position(layer.done);
    }
    bar.set_message(one_line(match layer.state.as_str() {
        "exists" => "is here already",
        other => other,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull(image: &str) -> Pull {
        Pull { image: image.into(), layers: Vec::new() }
    }

    #[test]
    fn the_pull_that_is_meant() {
        let pulls = [
            pull("docker.io/library/web:1"),
            pull("docker.io/library/web:latest"),
            pull("127.0.0.1:5000/a/b@sha256:00"),
            pull("quay.io/x/tool:latest"),
        ];
        let name = |image: &str| pick(&pulls, image).map(|p| p.image.as_str());
        assert_eq!(name("web"), Some("docker.io/library/web:latest"));
        assert_eq!(name("library/web:1"), Some("docker.io/library/web:1"));
        assert_eq!(name("127.0.0.1:5000/a/b@sha256:00"), Some("127.0.0.1:5000/a/b@sha256:00"));
        assert_eq!(name("x/tool"), Some("quay.io/x/tool:latest"));
        assert_eq!(name("eb"), None);
        assert_eq!(name("127.0.0.1:5000/a/b"), None);
        assert_eq!(name(""), None);
    }

    #[test]
    fn what_a_server_says() {
        let text = r#"[{"image":"a","layers":[{"digest":"sha256:0","total":9,"done":3,"state":"downloading","more":1}]},{"image":"b"}]"#;
        let pulls: Vec<Pull> = serde_json::from_str(text).unwrap();
        assert_eq!(pulls[0].layers[0].done, 3);
        assert!(pulls[1].layers.is_empty());
        assert_eq!(layer_line(&pulls[0].layers[0]), "layer 0: downloading (9 B)");
    }

    #[test]
    fn bars_take_any_numbers() {
        let mut display = Display::bars(ProgressDrawTarget::hidden(), "x");
        for (total, done, state) in
            [(0, 5, "downloading"), (5, 9, "downloading"), (5, 5, "unpacking"), (0, 0, "odd\n{x}")]
        {
            let digest = format!("sha256:{total}");
            display.update(&[Layer { digest, total, done, state: state.into() }]);
        }
        let Display::Bars { layers, .. } = &display else { panic!("no bars") };
        assert_eq!(layers.len(), 2);
        assert_eq!(layers["sha256:5"].position(), 5);
        display.finish();
    }
}
