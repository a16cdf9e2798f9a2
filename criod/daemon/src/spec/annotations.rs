//! Annotations of pods that criod acts on, where the runtime handler allows it
//! (`allowed_annotations`).
//!
//! They have a newer name and the one of CRI-O's older releases; the newer one wins.

use std::collections::BTreeMap;

use criod_config::{ByteSize, RuntimeHandler};
use tracing::info;

use crate::error::{Error, Result};
use crate::record::PodRecord;

/// Devices of the node, `/dev/host:/dev/inside:rwm`, separated by commas.
pub(super) const DEVICES: [&str; 2] = ["devices.crio.io", "io.kubernetes.cri-o.Devices"];
/// The size of the pod's /dev/shm.
const SHM_SIZE: [&str; 2] = ["shm-size.crio.io", "io.kubernetes.cri-o.ShmSize"];

/// The value of an annotation that the handler allows. One that it does not allow is left alone.
pub(super) fn allowed<'a>(
    annotations: &'a BTreeMap<String, String>,
    handler: &RuntimeHandler,
    names: &[&'static str],
) -> Option<(&'static str, &'a str)> {
    names.iter().find_map(|name| {
        let value = annotations.get(*name)?;
        let allowed = &handler.allowed_annotations;
        if allowed.iter().any(|a| !a.is_empty() && name.starts_with(a.as_str())) {
            return Some((*name, value.as_str()));
        }
        info!(annotation = name, "not in the handler's allowed_annotations: without effect");
        None
    })
}

/// The size in bytes that a pod asks for its /dev/shm by annotation.
pub(crate) fn shm_size(pod: &PodRecord, handler: &RuntimeHandler) -> Result<Option<u64>> {
    let Some((name, text)) = allowed(&pod.config.0.annotations, handler, &SHM_SIZE) else {
        return Ok(None);
    };
    match quantity(text).parse() {
        Ok(ByteSize(bytes)) if bytes > 0 => Ok(Some(bytes)),
        _ => Err(Error::invalid(format!("annotation {name}: {text:?} is no size"))),
    }
}

/// `128Mi` is a quantity of Kubernetes, `128MiB` a size of configuration files.
fn quantity(text: &str) -> String {
    if text.ends_with('i') { format!("{text}B") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: &[(&str, &str)]) -> PodRecord {
        let own = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let config = api_cri::v1::PodSandboxConfig { annotations: own, ..Default::default() };
        PodRecord::new("p".into(), config, 0, "")
    }

    fn handler(allowed: &[&str]) -> RuntimeHandler {
        let allowed_annotations = allowed.iter().map(|a| (*a).to_owned()).collect();
        RuntimeHandler { allowed_annotations, ..RuntimeHandler::default() }
    }

    #[test]
    fn sizes_where_they_are_allowed() {
        let (new, old) = (("shm-size.crio.io", "1Mi"), ("io.kubernetes.cri-o.ShmSize", "64KiB"));
        let of = |annotations: &[(&str, &str)], allowed: &[&str]| {
            shm_size(&pod(annotations), &handler(allowed))
        };
        assert_eq!(of(&[new], &[]).unwrap(), None);
        assert_eq!(of(&[new], &["", "devices.crio.io"]).unwrap(), None);
        assert_eq!(of(&[new], &["shm-size.crio.io"]).unwrap(), Some(1 << 20));
        assert_eq!(of(&[old, new], &["shm", "io.kubernetes"]).unwrap(), Some(1 << 20));
        assert_eq!(of(&[old, new], &["io.kubernetes.cri-o."]).unwrap(), Some(64 << 10));
        for bad in ["", "0", "much", "-1", "1Xi", "1 2"] {
            assert!(of(&[("shm-size.crio.io", bad)], &["shm"]).is_err(), "{bad}");
        }
    }
}
