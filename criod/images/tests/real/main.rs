//! The image service against Debian's docker-registry, with the project's test images.
//!
//! ```text
//! bench.rs     a registry, a store, and a proxy between that counts, holds and cuts
//! good.rs      images that work: every form, once and again, by every name
//! flow.rs      pulls that meet: joined, shared, abandoned, cut, resumed
//! hostile.rs   images that lie; registries that refuse; disks that are full
//! local.rs     layouts and archives
//! cri.rs       the calls of CRI
//! ```

// Helpers outside of test functions count as tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
mod cri;
mod flow;
mod good;
mod hostile;
mod local;
