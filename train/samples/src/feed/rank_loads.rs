//! Assigns the micro-batches of a step to processes (ranks) so that all ranks have about the same amount of work.
//!
//! A step consists of rounds. In each round, a rank computes at most one micro-batch. So the only choice in a round
//! is which rank gets which of its micro-batches: the longest goes to the rank with the least load so far, the second
//! longest to the rank with the second least load, and so on. Then the loads of two ranks never differ by more than
//! the longest micro-batch. Proof: let rank a have at most the load of rank b, so that a gets the longer micro-batch.
//! The difference b - a becomes smaller by the difference of the two lengths. If it becomes negative, its absolute
//! value is at most that difference, which is at most the longer length.

use std::cmp::Reverse;

/// The load of each rank: the sum of the lengths of the micro-batches that it got in this step.
#[derive(Clone, Debug)]
pub struct RankLoads(Vec<u64>);

impl RankLoads {
    /// The loads of `ranks` ranks at the start of a step: 0.
    pub fn new(ranks: usize) -> Self {
        Self(vec![0; ranks])
    }

    /// Assigns the micro-batches of a round, at most as many as there are ranks, and adds their `lengths` to the
    /// loads. Returns the rank of each micro-batch. Micro-batches of equal length, and ranks with equal load, are
    /// taken in the order of their indices.
    pub fn assign_round(&mut self, lengths: &[u64]) -> Vec<usize> {
        let mut by_length: Vec<usize> = (0..lengths.len()).collect();
        by_length.sort_by_key(|&index| (Reverse(lengths[index]), index));
        let mut by_load: Vec<usize> = (0..self.0.len()).collect();
        by_load.sort_by_key(|&rank| (self.0[rank], rank));
        let mut ranks = vec![0; lengths.len()];
        for (index, rank) in by_length.into_iter().zip(by_load) {
            ranks[index] = rank;
            self.0[rank] = self.0[rank].saturating_add(lengths[index]);
        }
        ranks
    }
}

/// Assigns the micro-batches of a whole step, whose lengths are known, to `size` ranks. Returns the rank of each.
pub fn ranks_of_micro_batches(lengths: &[u64], size: usize) -> Vec<usize> {
    let mut loads = RankLoads::new(size);
    lengths.chunks(size.max(1)).flat_map(|round| loads.assign_round(round)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Each rank gets at most one micro-batch of a round. The loads of two ranks differ by at most the length of
        /// the longest micro-batch, and so do a load and the mean load.
        #[test]
        fn loads_differ_by_at_most_the_longest_micro_batch(
            lengths in prop::collection::vec(prop_oneof![0u64..50, 1000u64..30_000], 1..60),
            size in 1usize..9,
        ) {
            let ranks = ranks_of_micro_batches(&lengths, size);
            prop_assert_eq!(ranks.len(), lengths.len());
            let mut loads = vec![0u64; size];
            for (round, lengths) in ranks.chunks(size).zip(lengths.chunks(size)) {
                let mut distinct = round.to_vec();
                distinct.sort_unstable();
                distinct.dedup();
                prop_assert_eq!(distinct.len(), round.len(), "{:?}", round);
                round.iter().zip(lengths).for_each(|(&rank, length)| loads[rank] += length);
            }
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            prop_assert!(most - least <= *lengths.iter().max().unwrap(), "{:?}", loads);
        }
    }

    #[test]
    fn the_longest_micro_batch_goes_to_the_rank_with_the_least_load() {
        // Round 1: rank 0 gets 9, rank 1 gets 1. Round 2: rank 1 has the smaller load, so it gets the 8 and rank 0
        // gets the 3. Round 3: the only micro-batch goes to rank 1, whose load is 9; the load of rank 0 is 12.
        assert_eq!(ranks_of_micro_batches(&[9, 1, 3, 8, 5], 2), [0, 1, 0, 1, 1]);
    }
}
