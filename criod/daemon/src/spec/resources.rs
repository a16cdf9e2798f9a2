//! What a container may use.

use std::fs;

use api_cri::v1::{ContainerConfig, LinuxContainerResources};
use criod_config::RuntimeHandler;

use crate::error::{Error, Result};

pub(super) fn resources(
    config: &ContainerConfig,
    handler: &RuntimeHandler,
) -> Result<oci::Resources> {
    let none = LinuxContainerResources::default();
    let asked = config.linux.as_ref().and_then(|l| l.resources.as_ref()).unwrap_or(&none);
    let least = i64::try_from(handler.min_memory()).unwrap_or(i64::MAX);
    if asked.memory_limit_in_bytes > 0 && asked.memory_limit_in_bytes < least {
        return Err(Error::invalid(format!(
            "memory_limit_in_bytes: {} is below the least that this runtime can work with, {least}",
            asked.memory_limit_in_bytes
        )));
    }
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    Ok(oci::Resources {
        cpu_shares: u64::try_from(asked.cpu_shares).ok().filter(|v| *v > 0),
        cpu_quota: Some(asked.cpu_quota).filter(|v| *v != 0),
        cpu_period: u64::try_from(asked.cpu_period).ok().filter(|v| *v > 0),
        cpuset_cpus: text(&asked.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems),
        memory_limit: Some(asked.memory_limit_in_bytes).filter(|v| *v != 0),
        memory_swap: Some(asked.memory_swap_limit_in_bytes).filter(|v| *v != 0),
        hugepage_limits: asked
            .hugepage_limits
            .iter()
            .map(|h| (h.page_size.clone(), h.limit))
            .collect(),
        unified: asked.unified.clone(),
        ..oci::Resources::default()
    })
}

/// Without CAP_SYS_RESOURCE a score below our own cannot be set: it is raised to that.
pub(super) fn oom_score(asked: i64) -> i32 {
    let asked = i32::try_from(asked.clamp(-1000, 1000)).unwrap_or(0);
    static LIMIT: std::sync::OnceLock<Option<i32>> = std::sync::OnceLock::new();
    let limit = LIMIT.get_or_init(|| {
        let may = oci::caps::grantable().is_ok_and(|c| c.has("CAP_SYS_RESOURCE"));
        if may {
            return None;
        }
        let own = fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()?;
        tracing::info!(lowest = own, "no CAP_SYS_RESOURCE: OOM scores below this are raised to it");
        Some(own)
    });
    limit.map_or(asked, |lowest| asked.max(lowest))
}
