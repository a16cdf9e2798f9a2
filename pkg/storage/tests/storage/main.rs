//! The store, used as its callers use it: on a real disk, with real mounts. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test ends there, and says where.

mod common;
mod damage;
mod hostile;
mod overlay;
mod owners;
mod rootfs;
mod store;
mod unpack;
