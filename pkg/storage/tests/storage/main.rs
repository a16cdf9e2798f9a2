//! The store, used as its callers use it: on a real disk, with real mounts. Needs root.

mod common;
mod hostile;
mod overlay;
mod rootfs;
mod store;
mod unpack;
