//! System calls that `nix` and `std` do not wrap, and the few small things that every process of
//! a container runtime asks of the kernel.
//!
//! This is the only crate of the project that may hold `unsafe`. Each block says why it is sound.
//!
//! | module        | what                                                                  |
//! |---------------|-----------------------------------------------------------------------|
//! | [`pidfd`]     | open, signal, and the exit status that outlives the process           |
//! | [`seqpacket`] | message sockets that carry descriptors                                |
//! | [`clock`]     | boot time, wall time, boot id                                         |
//! | [`notify`]    | what a service tells its manager                                      |
//! | [`null`]      | null devices of one's own                                             |
//! | [`pipe`]      | how many bytes a pipe holds; pipes that a container may reopen        |
//! | [`replace`]   | becoming another program in place, descriptors and all                |
//! | [`file`]      | exchanging two files                                                  |
//! | [`mount`]     | mounts that show other owners                                         |
//! | [`proc`]      | start times and process trees from /proc                              |
//! | [`tty`]       | the size of a terminal                                                |
//! | [`caps`]      | giving up privileges for good                                         |
//! | [`start`]     | what a process does first                                             |
//! | [`userns`]    | user namespaces                                                       |

pub mod caps;
pub mod clock;
pub mod file;
pub mod mount;
pub mod notify;
pub mod null;
pub mod pidfd;
pub mod pipe;
pub mod proc;
pub mod replace;
pub mod seqpacket;
pub mod start;
pub mod tty;
pub mod userns;

/// The environment variable in which the keeper tells those whom it forks which soft limit of open
/// files they and their containers are to have: its own is higher.
pub const SOFT_FILES: &str = "CRIOD_SOFT_FILES";
