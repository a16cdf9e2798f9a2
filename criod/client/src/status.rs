//! The verbs about the node: `status`, `stats`.

use std::time::Duration;

use api_cri::v1::{
    ContainerStats, ContainerStatsFilter, CpuUsage, ListContainerStatsRequest,
    ListContainerStatsResponse, StatusRequest, VersionRequest,
};
use serde_json::json;

use crate::args::{Format, StatsArgs, StatusArgs};
use crate::connect::Client;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::inspect::unpack;
use crate::list::or_dash;
use crate::resolve::{Found, Prefer, World};
use crate::table::{Table, short, size};

/// Between two looks at processor time, where the runtime gives no rate.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) async fn status(client: &Client, console: &mut Console, args: StatusArgs) -> Result<u8> {
    let mut runtime = client.runtime();
    let version = client.quick("ask for the version", runtime.version(VersionRequest::default()));
    let version = version.await?;
    let request = StatusRequest { verbose: args.output == Format::Json };
    let status = client.quick("ask for the status", runtime.status(request)).await?;
    if args.output == Format::Json {
        console.json(&json!({
            "version": version,
            "status": status.status,
            "runtimeHandlers": status.runtime_handlers,
            "features": status.features,
            "info": unpack(status.info),
        }))?;
        return Ok(0);
    }
    console.print(&format!(
        "{} {}, CRI {}, on {}\n\n",
        version.runtime_name,
        version.runtime_version,
        version.runtime_api_version,
        client.socket().display(),
    ))?;
    let mut table = Table::new(&["CONDITION", "STATUS", "REASON", "MESSAGE"]);
    for c in status.status.unwrap_or_default().conditions {
        let is = if c.status { "true" } else { "false" };
        table.row(vec![c.r#type, is.into(), or_dash(&c.reason), or_dash(&c.message)]);
    }
    console.print(&table.render())?;
    if !status.runtime_handlers.is_empty() {
        let mut table = Table::new(&["HANDLER", "USER NAMESPACES", "RECURSIVE READ-ONLY"]);
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        for h in status.runtime_handlers {
            let features = h.features.unwrap_or_default();
            let name = if h.name.is_empty() { "(default)".into() } else { h.name };
            table.row(vec![
                name,
                yes(features.user_namespaces),
                yes(features.recursive_read_only_mounts),
            ]);
        }
        console.print("\n")?;
        console.print(&table.render())?;
    }
    Ok(0)
}

pub(crate) async fn stats(client: &Client, console: &mut Console, args: StatsArgs) -> Result<u8> {
    let filter = match &args.id {
        None => None,
        Some(id) => Some(match World::load(client).await?.either(id, Prefer::Container)? {
            Found::Container(c) => ContainerStatsFilter { id: c.id.clone(), ..Default::default() },
            Found::Pod(p) => {
                ContainerStatsFilter { pod_sandbox_id: p.id.clone(), ..Default::default() }
            }
        }),
    };
    let mut answer = sample(client, &filter).await?;
    if args.output == Format::Json {
        console.json(&answer)?;
        return Ok(0);
    }
    let mut before = Vec::new();
    if answer.stats.iter().filter_map(|s| s.cpu.as_ref()).any(|c| c.usage_nano_cores.is_none()) {
        tokio::time::sleep(INTERVAL).await;
        before = std::mem::replace(&mut answer, sample(client, &filter).await?).stats;
    }
    answer.stats.sort_by(|a, b| (name(a), id(a)).cmp(&(name(b), id(b))));
    let mut table = Table::new(&["CONTAINER", "NAME", "CPU %", "MEMORY", "DISK", "INODES"]);
    for s in &answer.stats {
        let earlier = before.iter().find(|b| id(b) == id(s)).and_then(|b| b.cpu.as_ref());
        let cpu = s.cpu.as_ref().and_then(|c| percent(c, earlier));
        let memory = s.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref());
        let disk = s.writable_layer.as_ref();
        let bytes = disk.and_then(|d| d.used_bytes.as_ref());
        let inodes = disk.and_then(|d| d.inodes_used.as_ref());
        table.row(vec![
            short(id(s)),
            or_dash(name(s)),
            cpu.map_or("-".into(), |p| format!("{p:.2}")),
            memory.map_or("-".into(), |m| size(m.value)),
            bytes.map_or("-".into(), |b| size(b.value)),
            inodes.map_or("-".into(), |i| i.value.to_string()),
        ]);
    }
    console.print(&table.render())?;
    Ok(0)
}

async fn sample(
    client: &Client,
    filter: &Option<ContainerStatsFilter>,
) -> Result<ListContainerStatsResponse, Error> {
    let request = ListContainerStatsRequest { filter: filter.clone() };
    client.quick("ask for stats", client.runtime().list_container_stats(request)).await
}

fn id(stats: &ContainerStats) -> &str {
    stats.attributes.as_ref().map_or("", |a| &a.id)
}

fn name(stats: &ContainerStats) -> &str {
    let metadata = stats.attributes.as_ref().and_then(|a| a.metadata.as_ref());
    metadata.map_or("", |m| &m.name)
}

/// Processor time in hundredths of one processor: the runtime's own rate, else that since
/// `earlier`.
fn percent(now: &CpuUsage, earlier: Option<&CpuUsage>) -> Option<f64> {
    if let Some(rate) = &now.usage_nano_cores {
        return Some(rate.value as f64 / 1e7);
    }
    let earlier = earlier?;
    let spent =
        now.usage_core_nano_seconds?.value.checked_sub(earlier.usage_core_nano_seconds?.value)?;
    let passed = now.timestamp.checked_sub(earlier.timestamp).filter(|&p| p > 0)?;
    Some(spent as f64 / passed as f64 * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api_cri::v1::UInt64Value;

    fn cpu(timestamp: i64, usage: u64, rate: Option<u64>) -> CpuUsage {
        CpuUsage {
            timestamp,
            usage_core_nano_seconds: Some(UInt64Value { value: usage }),
            usage_nano_cores: rate.map(|value| UInt64Value { value }),
            psi: None,
        }
    }

    #[test]
    fn rates() {
        assert_eq!(percent(&cpu(0, 0, Some(500_000_000)), None), Some(50.0));
        assert_eq!(percent(&cpu(2000, 500, None), Some(&cpu(1000, 0, None))), Some(50.0));
        assert_eq!(percent(&cpu(2000, 500, None), None), None);
        // Restarted, or asked twice within the runtime's own interval.
        assert_eq!(percent(&cpu(2000, 0, None), Some(&cpu(1000, 500, None))), None);
        assert_eq!(percent(&cpu(1000, 5, None), Some(&cpu(1000, 5, None))), None);
        assert_eq!(percent(&cpu(i64::MIN, 5, None), Some(&cpu(i64::MAX, 5, None))), None);
    }
}
