//! A lower bound on the bytes that matrix products read from memory and not from a cache. A decode step reads every
//! weight once, and the next step reads the weights again in the same order: a cycle of about the size of the model.
//! Caches of `capacity` bytes can keep at most `capacity` bytes of a repeated cycle, for any replacement policy:
//!
//! ```text
//! bytes of an operand from memory >= bytes * (1 - capacity / cycle)
//! cycle = bytes of the different operands that products have read since they read this one last, itself included
//! ```
//!
//! Only right operands count. Reads of other data in between make the true cycle longer, so the bound stays a lower
//! bound. Two operands that overlap but begin at different addresses count as two.

use std::collections::BTreeMap;

use crate::Addr;

/// The right operand of one matrix product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OperandRead {
    /// Bytes of the operand.
    pub bytes: f64,
    /// Bytes of the cycle that ends with this read: of all different operands that were read since the last read of
    /// this operand, this operand included. If the profile has no earlier read of this operand, the cycle is the bytes
    /// of all different operands in the profile. A profile shows one of several equal rounds of work, so the operand
    /// was last read one round earlier.
    pub cycle: f64,
}

impl OperandRead {
    /// Sets the cycle of an operand that has no earlier read in the profile to the bytes of all operands in the
    /// profile.
    pub(crate) fn set_unknown_cycle(&mut self, all_operands: f64) {
        if self.cycle.is_infinite() {
            self.cycle = all_operands;
        }
    }

    /// The minimum number of bytes that come from memory if all caches together hold `capacity` bytes.
    pub fn min_bytes_from_memory(&self, capacity: f64) -> f64 {
        (self.bytes * (1.0 - capacity / self.cycle)).max(0.0)
    }
}

/// The right operands of several matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OperandReads {
    /// Bytes of the operands, counted once for each read.
    bytes: f64,
    /// The sum, over all reads, of the operand's bytes divided by the bytes of its cycle.
    shares: f64,
    /// Bytes of the reads whose cycle begins before the profile. These reads are not part of `shares`.
    open: f64,
}

impl OperandReads {
    /// Adds a read of an operand.
    pub fn add(&mut self, read: &OperandRead) {
        self.bytes += read.bytes;
        match read.cycle.is_infinite() {
            true => self.open += read.bytes,
            false => self.shares += read.bytes / read.cycle,
        }
    }

    pub(crate) fn set_unknown_cycle(&mut self, all_operands: f64) {
        if self.open > 0.0 {
            self.shares += self.open / all_operands;
            self.open = 0.0;
        }
    }

    /// The minimum number of bytes that come from memory if all caches together hold `capacity` bytes.
    pub fn min_bytes_from_memory(&self, capacity: f64) -> f64 {
        (self.bytes - capacity * self.shares).max(0.0)
    }
}

/// The right operands of all matrix products so far, each with the number of its last read.
#[derive(Debug, Default)]
pub(crate) struct OperandHistory {
    /// By address: the number of the last read, and the bytes of the largest operand that was read there.
    last: BTreeMap<u64, (u64, f64)>,
    /// The bytes of each operand, by the number of its last read.
    order: BTreeMap<u64, f64>,
    reads: u64,
}

impl OperandHistory {
    /// Bytes of all different operands.
    pub fn bytes(&self) -> f64 {
        self.last.values().map(|(_, bytes)| bytes).sum()
    }

    /// Adds a read of the operand with this address and number of bytes.
    pub fn read(&mut self, (address, bytes): (Addr, f64)) -> OperandRead {
        let number = self.reads;
        self.reads += 1;
        let (cycle, largest) = match self.last.get(&address.0).copied() {
            None => (f64::INFINITY, bytes),
            Some((before, largest)) => {
                let later: f64 = self.order.range(before + 1..).map(|(_, bytes)| bytes).sum();
                self.order.remove(&before);
                (later + bytes, largest.max(bytes))
            }
        };
        self.last.insert(address.0, (number, largest));
        self.order.insert(number, largest);
        OperandRead { bytes, cycle }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cycle_is_what_was_read_since_the_last_read() {
        let mut history = OperandHistory::default();
        let mut cycle = |address, bytes| history.read((Addr(address), bytes)).cycle;
        assert_eq!([cycle(1, 10.0), cycle(2, 20.0), cycle(3, 30.0)], [f64::INFINITY; 3]);
        assert_eq!([cycle(1, 10.0), cycle(1, 10.0), cycle(3, 30.0), cycle(2, 20.0)], [60.0, 10.0, 40.0, 60.0]);
        assert_eq!(history.bytes(), 60.0);
    }

    #[test]
    fn caches_keep_their_share_of_a_cycle() {
        let mut reads = OperandReads::default();
        reads.add(&OperandRead { bytes: 60.0, cycle: 100.0 });
        reads.add(&OperandRead { bytes: 40.0, cycle: f64::INFINITY });
        reads.set_unknown_cycle(100.0);
        assert_eq!(
            [0.0, 30.0, 100.0, 200.0].map(|capacity| reads.min_bytes_from_memory(capacity)),
            [100.0, 70.0, 0.0, 0.0]
        );
        let mut read = OperandRead { bytes: 60.0, cycle: f64::INFINITY };
        read.set_unknown_cycle(240.0);
        assert_eq!(
            [0.0, 60.0, 240.0, 300.0].map(|capacity| read.min_bytes_from_memory(capacity)),
            [60.0, 45.0, 0.0, 0.0]
        );
    }

    proptest! {
        /// An LRU cache with room for `capacity` operands of one byte misses at least as often as the bound says.
        #[test]
        fn a_real_cache_misses_at_least_as_often(
            addresses in prop::collection::vec(0u64..12, 1..200),
            capacity in 1usize..14,
        ) {
            let (mut history, mut reads) = (OperandHistory::default(), OperandReads::default());
            let (mut cache, mut misses) = (Vec::new(), 0);
            // Only the second of two equal rounds is counted, as in a profile after a warm-up round.
            for round in 0..2 {
                for &address in &addresses {
                    let read = history.read((Addr(address), 1.0));
                    let hit = cache.iter().position(|a| *a == address);
                    if round == 1 {
                        reads.add(&read);
                        misses += usize::from(hit.is_none());
                    }
                    hit.map(|at| cache.remove(at));
                    cache.push(address);
                    if cache.len() > capacity {
                        cache.remove(0);
                    }
                }
            }
            prop_assert!(reads.min_bytes_from_memory(capacity as f64) <= misses as f64 + 1e-9);
        }
    }
}
