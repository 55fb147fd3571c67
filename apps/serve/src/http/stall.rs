//! How long the other side of a connection may let this side wait.

use std::time::Duration;

/// The slowest transfer that is waited for, in bytes per second.
const MIN_BYTES_PER_SECOND: f64 = 1024.0;

/// The time that is left to a client that this side waits for. Waiting takes from it, and each byte that is transferred
/// gives back 1/1024 s. So a client that transfers nothing is given up after the limit, and one that sends or reads a
/// byte now and then soon after it.
#[derive(Debug)]
pub(super) struct StallBudget {
    limit: Duration,
    left: Duration,
}

impl StallBudget {
    /// A budget of `limit`, which is also its maximum.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, left: limit }
    }

    /// How long this side may wait from now on.
    pub(super) fn left(&self) -> Duration {
        self.left
    }

    /// Records that this side waited for `waited` until `bytes` bytes were transferred.
    pub(super) fn record(&mut self, waited: Duration, bytes: usize) {
        let earned = Duration::from_secs_f64(bytes as f64 / MIN_BYTES_PER_SECOND);
        self.left = (self.left.saturating_sub(waited) + earned).min(self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_uses_up_the_budget_and_a_steady_transfer_does_not() {
        let second = Duration::from_secs(1);
        let (mut trickle, mut steady) = (StallBudget::new(10 * second), StallBudget::new(10 * second));
        for _ in 0..20 {
            trickle.record(second, 1);
            steady.record(second, 2048);
        }
        assert!(trickle.left() < Duration::from_millis(2));
        assert_eq!(steady.left(), 10 * second);
    }
}
