//! Defines the data source of a run: its samples, its fingerprint, and the order in which a run uses the rows.

use crate::Result;
use crate::dataset::DataFile;
use crate::feed::SampleSource;
use crate::order::RowOrder;
use crate::order::mixture::Mixture;

/// A source of samples. Its fingerprint lets a resumed run check that the data has not changed.
pub trait DataSource: SampleSource {
    /// Fingerprint of the data files, without media.
    fn fingerprint(&self) -> String;
    /// The data files with their fingerprints.
    fn files(&self) -> &[DataFile];
    /// The mixture of the data files; `None` if they have no weights.
    fn mixture(&self) -> Option<&Mixture>;
    /// Checks the fields of a row, without loading its media.
    fn validate_row(&self, row: usize) -> Result<()>;
}

/// Returns the order in which a run uses its rows: file order, or shuffled by `seed`. If the data files have weights,
/// returns the order of their mixture.
pub fn row_order(no_shuffle: bool, rows: &impl DataSource, seed: u64) -> RowOrder {
    match (rows.mixture(), no_shuffle) {
        (Some(mixture), _) => RowOrder::mixed(mixture.clone(), (!no_shuffle).then_some(seed)),
        (None, true) => RowOrder::file_order(rows.row_count()),
        (None, false) => RowOrder::shuffled(rows.row_count(), seed),
    }
}
