//! Images, layers and containers' root file systems on a disk.
//!
//! Everything here blocks; call it from threads that may. Nothing here knows of a network, a
//! registry or a runtime.
//!
//! ```text
//! <root>/lock                                     one process at a time
//!        content/sha256/<hex>                     manifests and configs, byte for byte
//!        layers/overlay/<chain id>/diff/          an unpacked layer
//!                                  meta.json      its LayerMeta
//!        layers/overlay/tmp-*                     under way; removed when the store is opened
//!        images/<image id>.json                   an ImageRecord
//!        checked                                  layers that were looked at in this boot
//! <anywhere>/diff, work, merged                   a ContainerMount
//! ```
//!
//! A layer comes into being like this; whatever interrupts it leaves a `tmp-*` at most:
//!
//! ```text
//! begin_layer -> LayerWriter -unpack-> Unpacked -commit-> LayerMeta
//!    mkdir tmp-*     one pass: compressed digest,  |  diff id compared, meta.json written,
//!                    inflate, diff id, files       |  syncfs, rename to the chain id, fsync
//!                                                  +- dropped: the tmp-* is removed
//! ```
//!
//! What a loss of power leaves is therefore whole, or a `tmp-*`. What a disk damages is put aside as
//! `*.damaged` when it is read, a layer when it is first used after a boot ([`Store::check_layers`]):
//! its images are not listed, but what is whole of them stays, so that another pull fetches no more
//! than what is missing.
//!
//! An image is published after its layers and its content, and is removed before them. A layer or
//! content lives as long as an image needs it, a container holds it ([`Store::hold`]) or a pull has
//! pinned it ([`Store::pin`]); everything else goes with [`Store::gc`] or when the last image that
//! needs it is removed.

mod archive;
mod check;
mod container;
mod content;
mod digest;
mod dirs;
mod durable;
mod error;
mod images;
mod layers;
mod rootfs;
mod store;
mod stream;
mod tree;
mod unpack;

pub use check::Extent;
pub use container::{ContainerMount, MountOptions, Owners};
pub use digest::{Digest, chain_ids};
pub use error::{EntryProblem, Error, Result};
pub use images::{ImageIndex, ImageRecord};
pub use layers::{CommitLayer, LayerMeta, LayerWriter, RootAttributes, Unpacked};
pub use rootfs::{
    ensure_dir_in_root, open_path_in_root, read_in_root, replace_in_root, resolve_in_root,
};
pub use store::{Collected, ImagesOf, Options, Pin, Store};
pub use stream::{Compression, Limits};
pub use tree::{Usage, remove_tree, usage, usage_of};
