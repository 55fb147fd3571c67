//! How a rank waits for MPI, whose requests are not file descriptors that `poll` could wait for.

use std::time::{Duration, Instant};

/// How long a rank tests its requests again and again. A message between processes of one machine takes less.
const SPIN_TIME: Duration = Duration::from_micros(100);

/// The longest pause between two tests.
const MAX_PAUSE: Duration = Duration::from_millis(1);

/// A wait without progress. A rank that waits for long leaves the CPU to others: ranks on one machine share its cores,
/// and one of them may be computing what this rank waits for.
#[derive(Debug, Default)]
pub(super) struct Idle {
    since: Option<Instant>,
}

impl Idle {
    /// Pauses for at most a sixteenth of the time without progress, so that the message is late by that share at most.
    pub fn wait(&mut self) {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited < SPIN_TIME {
            std::thread::yield_now();
        } else {
            std::thread::sleep((waited / 16).min(MAX_PAUSE));
        }
    }
}
