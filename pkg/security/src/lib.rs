//! The kernel's security modules, as far as a container runtime has to do with them.
//!
//! ```text
//! AppArmor   is it there? ─▶ a profile of our own, generated and loaded ─▶ its name in the spec
//!                            a profile of the node's: is it loaded?
//! SELinux    is it there? ─▶ the policy's labels for containers + a pair of categories per pod
//!                            ─▶ labels of processes, mounts and (relabelled) volumes
//! ```
//! Nothing here knows a client's types, and every path of the node is an argument: both modules
//! can be tried on a machine that has neither.

pub mod apparmor;
mod error;
pub mod selinux;

pub use error::{Error, Result};
