//! The host's count of how many keys each row of a decode step has.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Cost;

/// The number of keys of each row of a decode step. A captured launch reads them from device memory, where each step
/// changes them ([`crate::advance`]); its cost needs them on the host. Clones and ranges of this value share the
/// numbers.
#[derive(Clone, Debug)]
pub struct RowKeyCounts {
    all: Arc<Mutex<Vec<KeysOfRow>>>,
    rows: Range<usize>,
}

/// 0 keys: the row is not in use.
#[derive(Clone, Copy, Debug, Default)]
struct KeysOfRow {
    keys: usize,
    limit: usize,
}

impl RowKeyCounts {
    /// Makes the key counts of `rows` rows, none of which is in use.
    pub fn new(rows: usize) -> RowKeyCounts {
        RowKeyCounts { all: Arc::new(Mutex::new(vec![KeysOfRow::default(); rows])), rows: 0..rows }
    }

    /// Returns the key counts of the rows `first .. first + rows`. Both values share these counts.
    #[must_use]
    pub fn range(&self, first: usize, rows: usize) -> RowKeyCounts {
        let start = self.rows.start + first;
        RowKeyCounts { all: self.all.clone(), rows: start..(start + rows).min(self.rows.end) }
    }

    /// Sets the number of keys of these rows, and the number of keys at which each row ends.
    pub fn assign(&self, keys_and_limits: impl Iterator<Item = (usize, usize)>) {
        let new = keys_and_limits.map(|(keys, limit)| KeysOfRow { keys, limit });
        self.lock()[self.rows.clone()].iter_mut().zip(new).for_each(|(row, new)| *row = new);
    }

    /// Counts a step that was enqueued: each row in use gets one more key, or ends if it has reached its limit.
    pub fn advance(&self) {
        for row in &mut self.lock()[self.rows.clone()] {
            row.keys = if row.keys == 0 || row.keys >= row.limit { 0 } else { row.keys + 1 };
        }
    }

    /// The keys of all rows together.
    pub fn total(&self) -> usize {
        self.lock()[self.rows.clone()].iter().map(|row| row.keys).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<KeysOfRow>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a launch's cost that depends on how many keys its rows have.
#[derive(Clone, Debug)]
pub struct CostOfKeys {
    /// The rows.
    pub rows: RowKeyCounts,
    /// The number of keys that [`KernelLaunch::cost`](super::KernelLaunch::cost) counts: the maximum of all rows
    /// together.
    pub max_keys: f64,
    /// The cost of one key.
    pub of_one: Cost,
}

impl CostOfKeys {
    /// The cost of the difference between `max_keys` and the keys that the rows have now.
    pub(super) fn unused(&self) -> Cost {
        let keys = self.max_keys - self.rows.total() as f64;
        Cost { flops: keys * self.of_one.flops, bytes: keys * self.of_one.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_count_the_same_rows_and_a_row_ends_at_its_limit() {
        let all = RowKeyCounts::new(3);
        let last = all.range(1, 2);
        last.assign([(10, 11), (5, 100)].into_iter());
        assert_eq!((all.total(), all.range(0, 1).total(), last.range(1, 1).total()), (15, 0, 5));
        all.advance();
        assert_eq!((all.total(), last.total()), (17, 17));
        last.advance();
        assert_eq!(all.total(), 7);
        last.assign([(0, 0), (0, 0)].into_iter());
        all.advance();
        assert_eq!(all.total(), 0);
    }
}
