//! The CRI service: the only place that answers in its types.

mod convert;
mod runtime;

pub(crate) use convert::image_in_use;
pub(crate) use runtime::Runtime;
