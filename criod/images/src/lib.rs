//! The image service: `registry` (names and HTTP) and `storage` (layers on a disk) joined into what
//! a container runtime does with images.
//!
//! ```text
//!                 ┌── join ── a pull of the same name with the same credentials is under way
//! Images::pull ───┤
//!                 └── resolve ─ manifest, config ─┬─ layer ─┐      6 at once
//!                                                 ├─ layer ─┼─ content ── image record ── id
//!                                                 └─ layer ─┘
//!
//! one layer:  here already? ─ under way in another pull? ─ HTTP ─> channel ─> thread: hash, inflate,
//!             hash, unpack ─> digests compared, committed
//! ```
//!
//! A pull is a task of its own: it goes on when its caller goes away, and it ends whatever its
//! registry does. It publishes nothing before everything is on the disk; what a failed pull unpacked
//! is removed, except that whole layers are kept for a few minutes when trying again may help.
//!
//! Lists and states read the store's snapshot and parsed configs in memory: they never wait.
//!
//! [`ImageService`] gives all of it the form of CRI's service of the same name.

mod archive;
mod error;
mod images;
mod import;
mod layers;
mod options;
mod progress;
mod pull;
mod service;
mod user;

pub use error::{Error, Kind};
pub use images::{Collected, ContainerImage, FsInfo, ImageId, ImageInfo, Images};
pub use options::Options;
pub use progress::{LayerProgress, PullProgress, State};
pub use service::{ImageService, InUse, status_of};
