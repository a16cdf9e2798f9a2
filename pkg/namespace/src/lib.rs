//! Namespaces that outlive the process which made them.
//!
//! A pod's network, IPC and UTS namespaces exist before its first container and survive a
//! restart of the daemon. No process is left behind to hold them: each is held by a bind
//! mount of its file below `/proc` onto an empty file of a directory that belongs to the pod.
//!
//! ```text
//!   caller's thread                    a fresh thread, gone afterwards
//!   ---------------                    ------------------------------
//!   mkdir <dir>, create <dir>/net ...
//!   spawn ---------------------------> unshare(NEWNET | NEWIPC | NEWUTS)
//!                                      hostname, sysctls, lo up
//!                                      mount --bind /proc/thread-self/ns/net <dir>/net ...
//!   join <---------------------------- done
//! ```
//!
//! The thread shares the mount namespace of the process, so the pins appear in it, as those of
//! `ip netns` do. Propagation is left as the parent mount has it: below a shared `/run` the pins
//! also appear in the mount namespaces of its peers. A mount namespace that was cloned while a
//! pin existed may hold a copy that no unmount reaches; [`remove`] therefore also unlinks the
//! file, upon which the kernel detaches every mount on it in every mount namespace.
//!
//! A pod's user namespace, where it has one, is pinned with the others and owns them.
//!
//! What this crate does not do: pid and mount namespaces (the OCI runtime makes those), and
//! interfaces other than `lo` (CNI plugins make those).

mod error;
mod netlink;
mod pin;
mod stats;
mod sysctl;

pub use error::Error;
pub use pin::{Kind, Pinned, Request, Users, enter, is_namespace, pin_pid, remove};
pub use stats::{Counters, addresses, interfaces, interfaces_of_all};
pub use sys::userns::Range;
pub use sysctl::{check as check_sysctl, kind_of as kind_of_sysctl};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;
