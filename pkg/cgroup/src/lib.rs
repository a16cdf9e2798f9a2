//! Control groups through their file system: where the hierarchies are, making, filling, killing
//! and removing a group, limits, and numbers. Version 1, version 2 and the mixture of both behind
//! one interface. No systemd: whoever has it manage groups asks it, and uses this to read.
//!
//! ```text
//! /proc/self/mountinfo ─ Hierarchy::detect ─► Hierarchy ─ Cgroup::at("/kubepods/pod1/crio-x")
//!                                                             │ create → add_process → set
//!                                                             │ stats, procs, oom_kills
//!                                                             └ kill → remove
//! ```
//! A group is named by its path below the mount point of every hierarchy, as in a spec's
//! `cgroupsPath`; on version 1 it is one folder in each. Groups vanish under one's hands (the
//! kubelet removes a pod's): a missing one is a success for [`Cgroup::kill`] and
//! [`Cgroup::remove`], and [`Error::NotFound`] for everything that reads.

mod error;
mod files;
mod group;
mod hierarchy;
mod kill;
pub mod parse;
mod resources;
mod stats;

pub use error::{Error, Result};
pub use group::Cgroup;
pub use hierarchy::{Hierarchy, Mode, Mount};
pub use parse::{DeviceIo, Pressure};
pub use resources::{Resources, is_limit, weight_of_shares};
pub use stats::{
    CpuStats, HugetlbStats, IoStats, MemoryStats, Parts, PidsStats, PressureStats, Stats,
    StatsReader, SwapStats,
};
