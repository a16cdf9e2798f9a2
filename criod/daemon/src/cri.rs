//! The CRI service: the only place that answers in its types.

mod convert;
mod lists;
mod runtime;

pub(crate) use convert::{image_in_use, pod_status};
pub(crate) use lists::statuses_of;
pub(crate) use runtime::Runtime;
