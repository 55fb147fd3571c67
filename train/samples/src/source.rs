//! Defines the data source of a run: its samples, its fingerprint, and the order of its rows.

use std::path::PathBuf;

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
    /// The rows that are held back from training, ascending.
    fn held_out_rows(&self) -> &[usize] {
        &[]
    }
    /// Checks the fields of a row, without loading its media.
    fn validate_row(&self, row: usize) -> Result<()>;
    /// The local media files that a row names, which need not exist.
    ///
    /// # Errors
    /// The row is malformed.
    fn media_files(&self, row: usize) -> Result<Vec<PathBuf>>;
}

/// Returns the order in which a run uses its rows: file order, or shuffled by `seed`. If the data files have weights,
/// this is the order of their mixture. Rows that are held back from training are left out.
pub fn row_order(no_shuffle: bool, rows: &impl DataSource, seed: u64) -> RowOrder {
    let held_out = rows.held_out_rows();
    let count = rows.row_count() - held_out.len();
    let order = match (rows.mixture(), no_shuffle) {
        (Some(mixture), _) => RowOrder::from_mixture(mixture.clone(), (!no_shuffle).then_some(seed)),
        (None, true) => RowOrder::file_order(count),
        (None, false) => RowOrder::shuffled(count, seed),
    };
    match held_out.is_empty() {
        true => order,
        false => order.restricted_to((0..rows.row_count()).filter(|row| held_out.binary_search(row).is_err())),
    }
}
