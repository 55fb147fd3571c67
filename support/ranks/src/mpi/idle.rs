//! How a rank waits for MPI, whose requests are not file descriptors that `poll` could wait for.

use std::hint::spin_loop;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use rustix::thread::{current_timer_slack, set_current_timer_slack};

/// How long a rank tests its requests without a pause. A small message between two cores takes less.
///
/// It never yields its core: a yield lets a busy program of another user run for its whole time slice, milliseconds,
/// while a thread that wakes from a pause goes first.
const SPIN_TIME: Duration = Duration::from_micros(20);

/// The shortest and the longest pause between two tests. In the shortest, another rank that has the same core finds a
/// message and answers.
const PAUSES: [Duration; 2] = [Duration::from_micros(10), Duration::from_millis(1)];

/// How late a pause may end, in nanoseconds. The kernel's default is 50 µs, longer than the first pauses.
const TIMER_SLACK: Option<NonZeroU64> = NonZeroU64::new(1000);

/// A wait without progress. A rank that waits for long leaves its core to others: ranks on one machine share its cores,
/// and one of them may be computing what this rank waits for.
#[derive(Debug, Default)]
pub(super) struct Idle {
    since: Option<Instant>,
    /// The timer slack that the thread had, if this has changed it.
    slack: Option<u64>,
}

impl Idle {
    /// Pauses for about an eighth of the time without progress, so that a message is late by that share.
    pub fn wait(&mut self) {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited < SPIN_TIME {
            return spin_loop();
        }
        if self.slack.is_none() {
            self.slack = current_timer_slack().ok();
            // Without it, waits take longer.
            let _ = set_current_timer_slack(TIMER_SLACK);
        }
        let [least, most] = PAUSES;
        std::thread::sleep((waited / 8).clamp(least, most));
    }

    /// Records progress.
    pub fn end(&mut self) {
        self.since = None;
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        if let Some(slack) = self.slack {
            let _ = set_current_timer_slack(NonZeroU64::new(slack));
        }
    }
}
