//! Limits how long the client may make the server wait during a transfer.

use std::time::Duration;

/// The slowest transfer rate that does not use up the budget, in bytes per second.
const MIN_BYTES_PER_SECOND: f64 = 1024.0;

/// The time that the server may still wait for a client. Waiting reduces this time, and each transferred byte adds
/// 1/1024 s. So the budget also ends for a client that sends or reads a byte only now and then.
#[derive(Debug)]
pub(super) struct StallBudget {
    limit: Duration,
    left: Duration,
}

impl StallBudget {
    /// Creates a budget of `limit`. The budget never exceeds `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, left: limit }
    }

    /// How long the server may still wait.
    pub(super) fn remaining_time(&self) -> Duration {
        self.left
    }

    /// Records that `bytes` bytes were transferred after a wait of `waited`.
    pub(super) fn record_transfer(&mut self, waited: Duration, bytes: usize) {
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
            trickle.record_transfer(second, 1);
            steady.record_transfer(second, 2048);
        }
        assert!(trickle.remaining_time() < Duration::from_millis(2));
        assert_eq!(steady.remaining_time(), 10 * second);
    }
}
