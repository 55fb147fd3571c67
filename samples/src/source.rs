//! The data of a run: samples with a fingerprint, and the order in which a run takes its rows.

use crate::Result;
use crate::dataset::DataFile;
use crate::feed::SampleSource;
use crate::order::RowOrder;
use crate::order::mixture::Mixture;

/// A source of samples with a fingerprint, by which a resumed run checks that its data is the same.
pub trait DataSource: SampleSource {
    /// Fingerprint of the data files, without media.
    fn fingerprint(&self) -> String;
    /// The data files with their fingerprints.
    fn files(&self) -> &[DataFile];
    /// How the data files are mixed, if they have weights.
    fn mixture(&self) -> Option<&Mixture>;
    /// Checks the fields of a row, without loading its media.
    fn validate_row(&self, row: usize) -> Result<()>;
}

/// The order in which a run takes its rows: file order, or shuffled by `seed`; with weights, that of the mixture.
pub fn row_order(no_shuffle: bool, rows: &impl DataSource, seed: u64) -> RowOrder {
    match (rows.mixture(), no_shuffle) {
        (Some(mixture), _) => RowOrder::mixed(mixture.clone(), (!no_shuffle).then_some(seed)),
        (None, true) => RowOrder::file_order(rows.row_count()),
        (None, false) => RowOrder::shuffled(rows.row_count(), seed),
    }
}
