//! Advances the clocks (`%clock`, `%globaltimer`) while a grid only waits for time to pass. A kernel may wait for
//! milliseconds, for example to keep a GPU busy; executing as many instructions as a GPU does in that time would take
//! the simulator minutes.
//!
//! The clocks advance only after many instructions without progress, and each advance needs a longer wait than the one
//! before: a loop that waits for other threads may count cycles, too, and give up after a number of them.

use crate::exec::grid::ProgressCounters;

/// Warp instructions without progress before the first advance. Each further advance needs twice as many.
const FIRST_WAIT: u64 = 50_000;
/// Cycles of the first advance. Each further advance is [`GROWTH`] times as long.
const FIRST_CYCLES: u64 = 1 << 20;
const GROWTH: u64 = 4;

/// Decides when and how far the clocks advance.
#[derive(Debug)]
pub(super) struct ClockAdvance {
    /// Cycles of the last advance.
    cycles: u64,
    wait: u64,
    /// Value of [`ProgressCounters::executed`] at which the next advance is due.
    due: u64,
    /// Whether the clocks have advanced since the last progress.
    advanced: bool,
    /// `reads` is the value of [`ProgressCounters::clock_reads`] at the last advance or progress; `exits` is the value
    /// of [`ProgressCounters::exits`] at the last progress.
    reads: u64,
    exits: u64,
}

impl Default for ClockAdvance {
    fn default() -> ClockAdvance {
        ClockAdvance { cycles: FIRST_CYCLES, wait: FIRST_WAIT, due: FIRST_WAIT, advanced: false, reads: 0, exits: 0 }
    }
}

impl ClockAdvance {
    /// Called when the grid makes progress. The clocks are advanced after [`FIRST_WAIT`] instructions without progress
    /// again, and by as many cycles as the last time, because the blocks of a grid often wait for equal times.
    pub fn restart(&mut self, progress: &ProgressCounters) {
        let due = progress.executed + FIRST_WAIT;
        let (cycles, reads, exits) = (self.cycles, progress.clock_reads, progress.exits);
        *self = ClockAdvance { cycles, wait: FIRST_WAIT, due, advanced: false, reads, exits };
    }

    /// Called while memory does not change: advances the clocks if no thread has ended since the last progress and the
    /// grid has waited long enough.
    pub fn advance_if_due(&mut self, progress: &mut ProgressCounters) {
        if progress.exits != self.exits {
            self.restart(progress);
        } else if progress.executed >= self.due {
            self.wait = self.wait.saturating_mul(2);
            self.due = progress.executed.saturating_add(self.wait);
            self.advance(progress);
        }
    }

    /// Advances the clocks if a thread has read one since the last call.
    pub fn advance(&mut self, progress: &mut ProgressCounters) {
        if progress.clock_reads == self.reads {
            return;
        }
        if std::mem::replace(&mut self.advanced, true) {
            self.cycles = self.cycles.saturating_mul(GROWTH);
        }
        self.reads = progress.clock_reads;
        progress.clock_lead = progress.clock_lead.saturating_add(self.cycles);
    }
}
