//! The verb `monitors`: the processes that outlive criod, and their upgrade in place.
//!
//! criod's own, over HTTP/1 on the CRI's socket:
//!
//! ```text
//! GET  /criod/monitors                              200  [{"kind": "monitor", "id": "…", …}]
//! POST /criod/monitors/upgrade  {"ids": […]}        200  [{"id": "…", "result": "upgraded"}]
//!                               {"all": true}
//! ```

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::args::{Format, MonitorsArgs, MonitorsVerb};
use crate::connect::Client;
use crate::console::Console;
use crate::error::{Error, Result, one_line};
use crate::resolve::World;
use crate::table::{Table, short};

/// The most bytes of an answer that are taken.
const MAX_ANSWER: usize = 16 << 20;

/// A process; what a later criod adds is kept for `-o json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Process {
    kind: String,
    id: String,
    name: String,
    pod: String,
    pid: i32,
    version: String,
    build: String,
    outdated: bool,
    private_kb: u64,
    pss_kb: u64,
}

/// What came of an upgrade.
#[derive(Debug, Deserialize, Serialize)]
struct Outcome {
    id: String,
    result: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    error: String,
}

pub(crate) async fn monitors(
    client: &Client,
    console: &mut Console,
    args: MonitorsArgs,
) -> Result<u8> {
    match args.verb {
        None => list(client, console, args.output).await,
        Some(MonitorsVerb::Upgrade { all, ids, .. }) => upgrade(client, console, all, &ids).await,
    }
}

async fn list(client: &Client, console: &mut Console, output: Format) -> Result<u8> {
    let doing = "list monitors";
    let answer = ask(client, doing, Method::GET, "/criod/monitors", Bytes::new()).await?;
    let all: Value = serde_json::from_slice(&answer).map_err(failed(doing))?;
    if output == Format::Json {
        console.json(&all)?;
        return Ok(0);
    }
    let all: Vec<Process> = serde_json::from_value(all).map_err(failed(doing))?;
    let mut table = Table::new(&[
        "CONTAINER",
        "NAME",
        "POD",
        "PID",
        "VERSION",
        "BUILD",
        "PRIVATE",
        "PSS",
        "STATE",
    ]);
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    for p in all {
        let state = match (p.pid, p.outdated) {
            (0, _) => "dead",
            (_, true) => "outdated",
            (_, false) => "current",
        };
        let id = if p.kind == "keeper" { p.kind } else { short(&p.id) };
        table.row(vec![
            id,
            or_dash(p.name),
            or_dash(short(&p.pod)),
            p.pid.to_string(),
            or_dash(p.version),
            or_dash(p.build),
            format!("{} kB", p.private_kb),
            format!("{} kB", p.pss_kb),
            state.into(),
        ]);
    }
    console.print(&table.render())?;
    Ok(0)
}

async fn upgrade(
    client: &Client,
    console: &mut Console,
    all: bool,
    named: &[String],
) -> Result<u8> {
    let doing = "upgrade monitors";
    let mut ids = Vec::new();
    if !all {
        let world = World::load(client).await?;
        for name in named {
            ids.push(match name.as_str() {
                "keeper" => name.clone(),
                // Pods' own containers are in no list of the CRI, but criod knows them.
                name => match world.container(name) {
                    Ok(c) => c.id.clone(),
                    Err(Error::NoMatch { .. }) => name.to_owned(),
                    Err(e) => return Err(e),
                },
            });
        }
    }
    let asked = if all { json!({ "all": true }) } else { json!({ "ids": ids }) };
    let body = Bytes::from(asked.to_string());
    let answer = ask(client, doing, Method::POST, "/criod/monitors/upgrade", body).await?;
    let outcomes: Vec<Outcome> = serde_json::from_slice(&answer).map_err(failed(doing))?;
    let mut code = 0;
    for Outcome { id, result, error } in outcomes {
        if error.is_empty() {
            console.print(&format!("{id} {}\n", one_line(&result)))?;
        } else {
            code = 1;
            console.complain(&format!("{id}: {}", one_line(&error)));
        }
    }
    Ok(code)
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(doing: &str) -> impl Fn(E) -> Error {
    move |e| Error::Http { doing: doing.to_owned(), source: e.into() }
}

async fn ask(
    client: &Client,
    doing: &str,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Bytes> {
    let stream = UnixStream::connect(client.socket()).await.map_err(failed(doing))?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(failed(doing))?;
    // Ends when the sender is dropped.
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.body(Full::new(body)).map_err(failed(doing))?;
    let answer = sender.send_request(request).await.map_err(failed(doing))?;
    let status = answer.status();
    let body =
        Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(failed(doing))?;
    let body = body.to_bytes();
    if status == StatusCode::OK {
        return Ok(body);
    }
    let said = match status {
        StatusCode::NOT_FOUND if body.starts_with(b"no such page") => {
            "it is not criod's, or an earlier one's".into()
        }
        _ => one_line(&String::from_utf8_lossy(&body)),
    };
    Err(Error::Refused { doing: doing.to_owned(), said })
}
