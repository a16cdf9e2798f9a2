//! Fetching images from registries: names, configuration, credentials, the HTTP protocol, and the
//! documents an image is made of. Knows nothing of storage or of who asks.
//!
//! ```text
//!   name ─ conf::Registries ─> references ─> endpoints ┐
//!   CRI auth, auth.json ─ auth::Keyring ─> credentials ┤
//!                                                      v
//!         pull::fetch_image ─ client::Client ─> registry (HTTPS, tokens, redirects, resuming)
//!                 │
//!                 v
//!   pull::Fetched { manifest, config, layers }  ──>  client.blob(layer) ─> verified bytes
//! ```
//!
//! Whatever comes from a registry is checked against the digest that named it and bounded in size.
//! No secret is ever printed: neither passwords and tokens nor the query of an address.

pub mod auth;
pub mod client;
pub mod conf;
pub mod digest;
pub mod image;
pub mod pull;
pub mod reference;

pub use auth::{AuthFile, Credentials, Keyring, Secret};
pub use client::{BlobStream, Client, ClientError, ClientOptions, ErrorKind, Manifest};
pub use conf::{Endpoint, LookupError, Registries, ShortNameMode};
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use image::{
    Compression, Descriptor, Document, ImageConfig, ImageError, ImageManifest, Platform,
};
pub use pull::{Fetched, PullError, fetch_image};
pub use reference::{Reference, ReferenceError};
