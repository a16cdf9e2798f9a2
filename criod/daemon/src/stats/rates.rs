//! How fast processor time is used: the difference of two readings of a counter.
//!
//! ```text
//! started, or criod started ─▶ a reading      every ten seconds ─▶ a reading
//!        older ─────────── newer ─────────────────────── a call
//!          └── the base, while the newer one is younger than 5 s
//! ```
//! So a rate is that of the last 5 to 20 seconds, or of the time since the start if that is shorter,
//! whoever else asks, and however often. It is absent in the first tenth of a second, and where the
//! counter went backwards. Time is the monotonic clock's: setting the clock makes no rate wrong.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::node::lock;

/// Between two readings of the sampler.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// A reading this old is the base of a rate.
const SETTLED: Duration = Duration::from_secs(5);
/// The shortest time that a rate is taken over.
const SHORTEST: Duration = Duration::from_millis(100);

/// The processor time, in nanoseconds, that a group had used at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) at: Instant,
    pub(super) usage: u64,
}

#[derive(Debug)]
struct Pair {
    older: Reading,
    newer: Reading,
}

/// Earlier readings, by the name of what was read. Locked for a look only.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<String, Pair>>);

impl Rates {
    /// Keeps a reading as a base of rates to come.
    pub(super) fn keep(&self, name: &str, reading: Reading) {
        let mut all = lock(&self.0);
        match all.get_mut(name) {
            Some(pair) if reading.usage >= pair.newer.usage => {
                *pair = Pair { older: pair.newer, newer: reading };
            }
            // The first one, or another group of the same name.
            _ => {
                all.insert(name.to_owned(), Pair { older: reading, newer: reading });
            }
        }
    }

    /// Whether there is a base for a rate.
    pub(super) fn knows(&self, name: &str) -> bool {
        lock(&self.0).contains_key(name)
    }

    /// Nanoseconds of processor time per second up to this reading.
    pub(super) fn rate(&self, name: &str, now: Reading) -> Option<u64> {
        let base = {
            let all = lock(&self.0);
            all.get(name).map(|pair| match now.at.duration_since(pair.newer.at) {
                age if age >= SETTLED => pair.newer,
                _ => pair.older,
            })
        };
        let Some(base) = base else {
            self.keep(name, now);
            return None;
        };
        let Some(used) = now.usage.checked_sub(base.usage) else {
            lock(&self.0).remove(name);
            return None;
        };
        let passed = now.at.duration_since(base.at);
        if passed < SHORTEST {
            return None;
        }
        let rate = u128::from(used) * 1_000_000_000 / passed.as_nanos();
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, wanted: impl Fn(&str) -> bool) {
        lock(&self.0).retain(|name, _| wanted(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64, usage: u64) -> Reading {
        Reading { at: start + Duration::from_millis(ms), usage }
    }

    #[test]
    fn a_rate_needs_two_readings_some_time_apart() {
        let (rates, start) = (Rates::default(), Instant::now());
        assert_eq!(rates.rate("a", at(start, 0, 500)), None);
        assert_eq!(rates.rate("a", at(start, 50, 900)), None);
        assert_eq!(rates.rate("a", at(start, 1000, 500_000_500)), Some(500_000_000));
    }

    #[test]
    fn who_asks_often_moves_no_base() {
        let (rates, start) = (Rates::default(), Instant::now());
        rates.keep("a", at(start, 0, 0));
        rates.keep("a", at(start, 10_000, 10_000_000_000));
        for ms in [10_001, 10_002, 11_000, 14_999] {
            // One processor until then, none since.
            let rate = rates.rate("a", at(start, ms, 10_000_000_000)).unwrap();
            assert_eq!(rate, 10_000_000_000_000 / ms);
        }
        assert_eq!(rates.rate("a", at(start, 15_000, 10_000_000_000)), Some(0));
    }

    #[test]
    fn a_counter_that_went_backwards_makes_no_rate() {
        let (rates, start) = (Rates::default(), Instant::now());
        rates.keep("a", at(start, 0, 1000));
        assert_eq!(rates.rate("a", at(start, 1000, 10)), None);
        assert_eq!(rates.rate("a", at(start, 2000, 20)), None);
        assert_eq!(rates.rate("a", at(start, 3000, 30)), Some(10));
        rates.keep("a", at(start, 4000, 5));
        assert_eq!(rates.rate("a", at(start, 5000, 7)), Some(2));
        rates.retain(|_| false);
        assert_eq!(rates.rate("a", at(start, 6000, 9)), None);
    }
}
