//! Waits for MPI requests. These requests are not file descriptors, so `poll` cannot wait for them.

use std::hint::spin_loop;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use rustix::thread::{current_timer_slack, set_current_timer_slack};

/// The time for which a rank tests its requests without a pause. A small message between two cores takes less time.
///
/// The rank never yields its core. After a yield, a busy program of another user can run for its whole time slice of
/// several milliseconds, while a thread that wakes from a pause is scheduled first.
const SPIN_TIME: Duration = Duration::from_micros(20);

/// The shortest and the longest pause between two tests. During the shortest pause, another rank on the same core can
/// find a message and answer.
const PAUSES: [Duration; 2] = [Duration::from_micros(10), Duration::from_millis(1)];

/// The maximum delay of the end of a pause, in nanoseconds (timer slack). The kernel's default is 50 µs, longer than
/// the first pauses.
const TIMER_SLACK: Option<NonZeroU64> = NonZeroU64::new(1000);

/// A wait without progress. A rank that waits for a long time leaves its core to others: the ranks on one machine
/// share its cores, and one of them may be computing the data that this rank waits for.
#[derive(Debug, Default)]
pub(super) struct IdleWait {
    since: Option<Instant>,
    /// The thread's original timer slack, if it was changed.
    slack: Option<u64>,
}

impl IdleWait {
    /// Pauses for about an eighth of the time without progress. So a message is delayed by at most that share.
    pub fn pause(&mut self) {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited < SPIN_TIME {
            return spin_loop();
        }
        if self.slack.is_none() {
            self.slack = current_timer_slack().ok();
            // If this call fails, pauses end later.
            let _ = set_current_timer_slack(TIMER_SLACK);
        }
        let [least, most] = PAUSES;
        std::thread::sleep((waited / 8).clamp(least, most));
    }

    /// Records progress: the next wait starts anew.
    pub fn record_progress(&mut self) {
        self.since = None;
    }
}

impl Drop for IdleWait {
    fn drop(&mut self) {
        if let Some(slack) = self.slack {
            let _ = set_current_timer_slack(NonZeroU64::new(slack));
        }
    }
}
