//! The order in which a run uses the rows: an endless sequence of row numbers. The sequence consists of passes over
//! all rows. The order within a pass depends only on the seed and the number of the pass, so a resumed run continues
//! the sequence without stored state.

pub mod held_out;
pub mod mixture;

use std::sync::Arc;

use reel_support::philox::philox4x32_10;

use mixture::Mixture;

/// The stream of random numbers of the row order, a part of the Philox counter ("orde" in ASCII). It separates them
/// from other uses of the seed.
const STREAM: u32 = 0x6f72_6465;

/// An endless stream of row numbers, in file order or in a new random order for each pass.
#[derive(Clone, Debug)]
pub struct RowOrder {
    rows: usize,
    /// The seed of the row order; `None`: rows are in file order.
    seed: Option<u64>,
    /// The mixture of files; one epoch of the mixture is one pass. `None` for a single data source.
    mixture: Option<Arc<Mixture>>,
    /// The row numbers that the order goes through, ascending; `None`: all rows.
    subset: Option<Arc<[u32]>>,
    /// Number of the pass whose row order `order` holds.
    pass: Option<u64>,
    order: Vec<u32>,
}

impl RowOrder {
    /// Creates an order in which every pass goes through the rows in file order.
    pub fn file_order(rows: usize) -> Self {
        Self { rows, seed: None, mixture: None, subset: None, pass: None, order: Vec::new() }
    }

    /// Creates an order in which every pass goes through the rows in a new random order.
    pub fn shuffled(rows: usize, seed: u64) -> Self {
        Self { seed: Some(seed), ..Self::file_order(rows) }
    }

    /// Creates the order of a mixture of files. With a seed, the rows of an epoch are shuffled; without a seed, each
    /// file is spread evenly over the epoch.
    pub fn from_mixture(mixture: Mixture, seed: Option<u64>) -> Self {
        let rows = mixture.epoch_rows();
        Self { seed, mixture: Some(Arc::new(mixture)), ..Self::file_order(rows) }
    }

    /// Makes the order go through the rows `subset`, ascending row numbers, instead of all rows from 0 on. The order
    /// must have been created for the number of rows in `subset`.
    pub fn restricted_to(self, subset: impl Iterator<Item = usize>) -> Self {
        Self { subset: Some(subset.map(|row| row as u32).collect()), ..self }
    }

    /// The number of rows of a pass.
    pub fn rows_per_pass(&self) -> usize {
        self.rows
    }

    /// The number of distinct rows in all passes together. A single pass of a mixture may have fewer rows.
    pub fn row_count(&self) -> usize {
        match (&self.subset, &self.mixture) {
            (Some(subset), _) => subset.len(),
            (None, Some(mixture)) => mixture.row_count(),
            (None, None) => self.rows,
        }
    }

    /// Whether any pass of the order goes through row `row`.
    pub fn contains(&self, row: usize) -> bool {
        match &self.subset {
            Some(subset) => u32::try_from(row).is_ok_and(|row| subset.binary_search(&row).is_ok()),
            None => row < self.row_count(),
        }
    }

    /// Returns the row number at index `stream_index` of the sequence, counted from 0. Computes the row order of a pass
    /// when the pass changes.
    pub fn row_at(&mut self, stream_index: u64) -> usize {
        let row = self.index_at(stream_index);
        self.subset.as_ref().map_or(row, |subset| subset[row] as usize)
    }

    fn index_at(&mut self, stream_index: u64) -> usize {
        let rows = self.rows as u64;
        let (pass, location) = (stream_index / rows, (stream_index % rows) as usize);
        if self.seed.is_none() && self.mixture.is_none() {
            return location;
        }
        if self.pass != Some(pass) {
            self.order = match (&self.mixture, self.seed) {
                (Some(mixture), seed) => mixture.rows_of_epoch(seed, pass),
                (None, seed) => permutation(self.rows, seed.unwrap_or_default(), pass),
            };
            self.pass = Some(pass);
        }
        self.order[location] as usize
    }
}

/// A random permutation of `0..n` for `seed` and `pass`: Fisher–Yates shuffle with Philox numbers.
pub(super) fn permutation(n: usize, seed: u64, pass: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, below(i as u64 + 1, seed, pass, i as u64) as usize);
    }
    order
}

/// A random number below `n`, for the swap at `position` of the shuffle. Its bias is at most 2^-64 · n.
fn below(n: u64, seed: u64, pass: u64, position: u64) -> u64 {
    let counter = [position as u32, (position >> 32) as u32 ^ STREAM, pass as u32, (pass >> 32) as u32];
    let [a, b, ..] = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    let random = u128::from(a) | u128::from(b) << 32;
    ((random * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn file_order_repeats_after_the_last_row() {
        let mut order = RowOrder::file_order(3);
        assert_eq!((0..8).map(|i| order.row_at(i)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0, 1]);
    }

    #[test]
    fn a_subset_is_used_in_the_order_of_its_indices() {
        let mut order = RowOrder::file_order(2).restricted_to([3, 7].into_iter());
        assert_eq!((0..3).map(|i| order.row_at(i)).collect::<Vec<_>>(), [3, 7, 3]);
        assert_eq!((order.row_count(), order.contains(2), order.contains(7)), (2, false, true));
        let (mut all, mut even) =
            (RowOrder::shuffled(5, 1), RowOrder::shuffled(5, 1).restricted_to((0..5).map(|row| 2 * row)));
        assert!((0..12).all(|i| even.row_at(i) == 2 * all.row_at(i)));
    }

    #[test]
    fn rows_of_a_mixture_are_those_of_all_passes() {
        let mixture = Mixture::new(&[("a".into(), 2, 1.0), ("b".into(), 10, 1.0)]).unwrap();
        let order = RowOrder::from_mixture(mixture, None);
        assert_eq!((order.rows_per_pass(), order.row_count()), (4, 12));
        assert!(order.contains(11) && !order.contains(12));
    }

    #[test]
    fn order_depends_on_seed_and_pass() {
        let one = permutation(50, 7, 0);
        assert_eq!(one, permutation(50, 7, 0));
        for other in
            [permutation(50, 8, 0), permutation(50, 7, 1), permutation(50, 7 << 32, 0), permutation(50, 7, 1 << 32)]
        {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn all_orders_of_three_rows_are_equally_frequent() {
        let mut seen = std::collections::BTreeMap::new();
        for seed in 0..6000 {
            *seen.entry(permutation(3, seed, 1)).or_insert(0) += 1;
        }
        // Each of the 6 permutations is expected 1000 times. Five standard deviations are 145.
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|n: &i32| (n - 1000).abs() < 145), "{seen:?}");
    }

    proptest! {
        #[test]
        fn pass_has_each_row_once_and_random_access_agrees(rows in 1usize..200, seed: u64, pass in 0u64..1000) {
            let mut order = RowOrder::shuffled(rows, seed);
            let first = pass * rows as u64;
            let stream: Vec<usize> = (first..first + rows as u64).map(|slot| order.row_at(slot)).collect();
            let mut sorted = stream.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..rows).collect::<Vec<_>>());
            let slot = first + seed % rows as u64;
            prop_assert_eq!(RowOrder::shuffled(rows, seed).row_at(slot), stream[(slot - first) as usize]);
        }
    }
}
