//! The verb `inspect`: all that the runtime tells of a container, pod or image, as JSON.
//!
//! `{"status": the CRI's message, "info": what the runtime adds}`; of several ids, a list of these.
//! Times, which the CRI counts in nanoseconds, are written out here; `info`, whose values are JSON
//! in strings, is unpacked.

use std::collections::BTreeMap;

use api_cri::v1::{ContainerStatusRequest, ImageSpec, ImageStatusRequest, PodSandboxStatusRequest};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::args::InspectArgs;
use crate::connect::Client;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::resolve::{self, Found, Prefer, World};

/// The fields that hold nanoseconds since the epoch.
const TIMES: [&str; 3] = ["createdAt", "startedAt", "finishedAt"];

pub(crate) async fn inspect(
    client: &Client,
    console: &mut Console,
    args: InspectArgs,
) -> Result<u8> {
    let world = World::load(client).await?;
    let mut all = Vec::new();
    for id in &args.ids {
        all.push(one(client, &world, id).await?);
    }
    match all.as_slice() {
        [only] => console.json(only)?,
        _ => console.json(&all)?,
    }
    Ok(0)
}

async fn one(client: &Client, world: &World, id: &str) -> Result<Value> {
    let mut runtime = client.runtime();
    let doing = format!("inspect {id}");
    match world.either(id, Prefer::Container) {
        Ok(Found::Container(c)) => {
            let request = ContainerStatusRequest { container_id: c.id.clone(), verbose: true };
            let answer = client.quick(doing, runtime.container_status(request)).await?;
            document(&answer.status, answer.info)
        }
        Ok(Found::Pod(p)) => {
            let request = PodSandboxStatusRequest { pod_sandbox_id: p.id.clone(), verbose: true };
            let answer = client.quick(doing, runtime.pod_sandbox_status(request)).await?;
            document(&answer.status, answer.info)
        }
        Err(Error::NoMatch { .. }) => {
            const KINDS: &str = "container, pod or image";
            let none = || Error::NoMatch { kinds: KINDS, id: id.into() };
            let (_, name) = match resolve::image(client, id).await {
                Err(Error::NoMatch { .. }) => return Err(none()),
                found => found?,
            };
            let image = Some(ImageSpec { image: name, ..ImageSpec::default() });
            let request = ImageStatusRequest { image, verbose: true };
            let answer = client.quick(doing, client.images().image_status(request)).await?;
            document(&Some(answer.image.ok_or_else(none)?), answer.info)
        }
        Err(e) => Err(e),
    }
}

fn document(status: &Option<impl Serialize>, info: BTreeMap<String, String>) -> Result<Value> {
    let mut status = serde_json::to_value(status).map_err(Error::Json)?;
    if let Value::Object(fields) = &mut status {
        for name in TIMES {
            let Some(nanos) = fields.get(name).and_then(Value::as_str) else { continue };
            if let Some(time) = nanos.parse().ok().and_then(|n| Timestamp::from_nanosecond(n).ok())
            {
                fields.insert(name.into(), Value::String(time.to_string()));
            }
        }
    }
    Ok(json!({ "status": status, "info": unpack(info) }))
}

/// What a runtime adds, with JSON in strings made JSON.
pub(crate) fn unpack(info: BTreeMap<String, String>) -> Map<String, Value> {
    let value = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
    info.into_iter().map(|(key, text)| (key, value(text))).collect()
}
