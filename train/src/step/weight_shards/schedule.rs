//! The order in which all ranks gather weights and exchange gradients in a round. The order is the same on every rank
//! and in every round, even if a rank computes no micro-batch or one without media.
//!
//! ```text
//! forward    E  L0  L1  O          gather a unit (embedding, layers, output); it is prefetched while the unit before
//!                                  it computes
//! backward   L1  L0  b0  b1        the output is still in memory; b0 has the gradients of O and L1, b1 the others.
//!                                  L0 is gathered before b0, so that it arrives while L1 computes
//! ```

use reel_runtime::WeightUnit;

/// An exchange of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExchangeEvent {
    /// The weights of this unit are gathered.
    Gather(WeightUnit),
    /// The next bucket of gradients is exchanged.
    Bucket,
}

/// The exchanges of a round, and how many of them have been started.
#[derive(Debug, Default)]
pub(super) struct ExchangeSchedule {
    events: Vec<ExchangeEvent>,
    started: usize,
}

impl ExchangeSchedule {
    /// Makes the schedule of a model. `forward` are the units in the order of a forward pass. `is_used_in_backward`
    /// says whether the backward pass needs the weights of a unit; it always needs those of the last unit. `buckets`
    /// has, for each bucket, the units of its parameters.
    pub fn new(
        forward: &[WeightUnit],
        is_used_in_backward: impl Fn(WeightUnit) -> bool,
        buckets: impl Iterator<Item = Vec<WeightUnit>>,
    ) -> Self {
        let mut events: Vec<ExchangeEvent> = forward.iter().map(|unit| ExchangeEvent::Gather(*unit)).collect();
        let position = |unit: WeightUnit| forward.iter().position(|other| *other == unit).unwrap_or(0);
        // The lowest position in the forward pass that the backward pass must reach before the bucket is complete.
        let mut lowest = usize::MAX;
        let mut buckets = buckets
            .map(|units| {
                lowest = units.into_iter().map(position).chain([lowest]).min().unwrap_or(0);
                lowest
            })
            .peekable();
        let last = forward.len().saturating_sub(1);
        let backward: Vec<usize> =
            (0..forward.len()).rev().filter(|i| *i == last || is_used_in_backward(forward[*i])).collect();
        for (i, at) in backward.iter().enumerate() {
            // The last unit of the forward pass is the first of the backward pass and stays in memory.
            events.extend(backward.get(i + 1).map(|next| ExchangeEvent::Gather(forward[*next])));
            while buckets.next_if(|lowest| lowest >= at).is_some() {
                events.push(ExchangeEvent::Bucket);
            }
        }
        events.extend(buckets.map(|_| ExchangeEvent::Bucket));
        Self { events, started: 0 }
    }

    /// Returns the next exchange; `None` at the end of the round.
    pub fn next(&self) -> Option<ExchangeEvent> {
        self.events.get(self.started).copied()
    }

    /// Records that the next exchange was started.
    pub fn advance(&mut self) {
        self.started += 1;
    }

    /// Whether the rest of the round gathers `unit`.
    pub fn will_gather(&self, unit: WeightUnit) -> bool {
        self.events.iter().skip(self.started).any(|event| *event == ExchangeEvent::Gather(unit))
    }

    /// Begins the next round.
    pub fn restart(&mut self) {
        self.started = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn unit(stage: usize, index: usize) -> WeightUnit {
        WeightUnit { stage, index }
    }

    const E: WeightUnit = unit(0, 0);
    const L0: WeightUnit = unit(1, 0);
    const L1: WeightUnit = unit(1, 1);
    const O: WeightUnit = unit(2, 0);

    fn events(forward: &[WeightUnit], buckets: &[&[WeightUnit]]) -> Vec<ExchangeEvent> {
        let buckets = buckets.iter().map(|units| units.to_vec());
        ExchangeSchedule::new(forward, |unit| unit != E, buckets).events
    }

    #[test]
    fn a_unit_is_gathered_before_the_gradients_of_the_unit_that_computes_meanwhile() {
        use ExchangeEvent::{Bucket, Gather};
        let forward = [E, L0, L1, O].map(Gather);
        let backward = [Gather(L1), Gather(L0), Bucket, Bucket];
        assert_eq!(events(&[E, L0, L1, O], &[&[O, L1], &[L1, L0, E]]), [&forward[..], &backward].concat());
        let small = [Gather(L1), Bucket, Gather(L0), Bucket, Bucket, Bucket];
        assert_eq!(events(&[E, L0, L1, O], &[&[O], &[L1], &[L0], &[E]]), [&forward[..], &small].concat());
        // With tied embeddings, the embedding is also the output layer. Its gradient is complete only at the end of
        // the backward pass.
        let tied = [Gather(E), Gather(L0), Gather(L1), Gather(E), Gather(L1), Gather(L0), Bucket, Bucket];
        assert_eq!(events(&[E, L0, L1, E], &[&[L1, L0], &[E]]), tied);
        // Buckets keep their order, even if a later one is complete first.
        let late = [Gather(L1), Gather(L0), Bucket, Bucket];
        assert_eq!(events(&[E, L0, L1, O], &[&[L0], &[O]]), [&forward[..], &late].concat());
    }

    #[test]
    fn a_round_is_repeated() {
        let mut schedule = ExchangeSchedule::new(&[E, O], |_| true, std::iter::empty());
        assert!(schedule.will_gather(E) && schedule.will_gather(O));
        schedule.advance();
        // The embedding is gathered again for the backward pass.
        assert!(schedule.will_gather(E) && schedule.next() == Some(ExchangeEvent::Gather(O)));
        (0..2).for_each(|_| schedule.advance());
        assert!(!schedule.will_gather(E) && schedule.next().is_none());
        schedule.restart();
        assert_eq!(schedule.next(), Some(ExchangeEvent::Gather(E)));
    }
}
