//! The clocks that deadlines and records use.
//!
//! Deadlines are in CLOCK_BOOTTIME, which no clock step moves and which goes on in a suspended
//! machine, together with the boot id that they count from. Records carry wall time.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

fn nanos(clock: ClockId) -> i64 {
    // clock_gettime fails only for a clock that the kernel does not know; these two it has had
    // since 2.6.39.
    clock_gettime(clock).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

/// Nanoseconds since boot, suspended time included.
pub fn boottime() -> i64 {
    nanos(ClockId::CLOCK_BOOTTIME)
}

/// Nanoseconds since the Unix epoch.
pub fn realtime() -> i64 {
    nanos(ClockId::CLOCK_REALTIME)
}

/// The boot-time instant `after` from now, in nanoseconds; never overflows.
pub fn deadline(after: Duration) -> i64 {
    boottime().saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX))
}

/// The kernel's random id of this boot.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_advance_and_deadlines_saturate() {
        let a = boottime();
        assert!(a > 0 && boottime() >= a);
        assert!(realtime() > 1_700_000_000_000_000_000);
        assert_eq!(deadline(Duration::MAX), i64::MAX);
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
