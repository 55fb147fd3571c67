//! Which row comes when: an endless stream of row numbers, pass after pass, each pass in an order of its own that
//! follows from seed and pass alone. Nothing is remembered, so any place in the stream can be found again.

use reel_kernels::philox::philox4x32_10;

/// Philox's streams are kept apart by what they are for; this is the order of rows.
const STREAM: u32 = 0x6f72_6465;

/// The order of `rows` rows.
#[derive(Clone, Debug)]
pub struct Order {
    rows: usize,
    /// `None` takes the file's order.
    seed: Option<u64>,
    /// The pass whose order is at hand.
    pass: Option<u64>,
    order: Vec<u32>,
}

impl Order {
    /// The file's order, again and again.
    pub fn of_file(rows: usize) -> Self {
        Self { rows, seed: None, pass: None, order: Vec::new() }
    }

    /// An order of its own for each pass.
    pub fn shuffled(rows: usize, seed: u64) -> Self {
        Self { seed: Some(seed), ..Self::of_file(rows) }
    }

    /// The row at place `slot` of the stream, counted from 0. Places one after another cost nothing; a jump to another
    /// pass makes that pass's order.
    pub fn row(&mut self, slot: u64) -> usize {
        let rows = self.rows as u64;
        let (pass, location) = (slot / rows, (slot % rows) as usize);
        let Some(seed) = self.seed else { return location };
        if self.pass != Some(pass) {
            self.order = permutation(self.rows, seed, pass);
            self.pass = Some(pass);
        }
        self.order[location] as usize
    }

    /// The pass that `slot` belongs to, counted from 0.
    pub fn pass(&self, slot: u64) -> u64 {
        slot / self.rows as u64
    }
}

/// The numbers below `n` in an order that follows from `seed` and `pass` (Fisher–Yates from the end, Philox).
fn permutation(n: usize, seed: u64, pass: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, below(i as u64 + 1, seed, pass, i as u64) as usize);
    }
    order
}

/// A number below `n`, all equally likely but for 2^-64 · n.
fn below(n: u64, seed: u64, pass: u64, position: u64) -> u64 {
    let counter = [position as u32, (position >> 32) as u32 ^ STREAM, pass as u32, (pass >> 32) as u32];
    let [a, b, ..] = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    let random = u128::from(a) | u128::from(b) << 32;
    ((random * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_files_order_begins_again_after_the_last() {
        let mut order = Order::of_file(3);
        assert_eq!((0..8).map(|i| order.row(i)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0, 1]);
        assert_eq!((order.pass(2), order.pass(3)), (0, 1));
    }

    #[test]
    fn seeds_and_passes_have_orders_of_their_own() {
        let one = permutation(50, 7, 0);
        assert_eq!(one, permutation(50, 7, 0));
        for other in
            [permutation(50, 8, 0), permutation(50, 7, 1), permutation(50, 7 << 32, 0), permutation(50, 7, 1 << 32)]
        {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn every_order_of_three_comes_about_equally_often() {
        let mut seen = std::collections::BTreeMap::new();
        for seed in 0..6000 {
            *seen.entry(permutation(3, seed, 1)).or_insert(0) += 1;
        }
        // 1000 expected of each of six; 5 standard deviations are 145.
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|n: &i32| (n - 1000).abs() < 145), "{seen:?}");
    }

    proptest! {
        #[test]
        fn a_pass_has_each_row_once_and_any_place_is_found_again(rows in 1usize..200, seed: u64, pass in 0u64..1000) {
            let mut order = Order::shuffled(rows, seed);
            let first = pass * rows as u64;
            let stream: Vec<usize> = (first..first + rows as u64).map(|slot| order.row(slot)).collect();
            let mut sorted = stream.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..rows).collect::<Vec<_>>());
            let slot = first + seed % rows as u64;
            prop_assert_eq!(Order::shuffled(rows, seed).row(slot), stream[(slot - first) as usize]);
        }
    }
}
