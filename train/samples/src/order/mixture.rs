//! A mixture of data files with weights: decides how many rows of each file an epoch has, and which rows.
//!
//! Let file `i` have `n_i` rows and the share `p_i` of the sum of all weights. An epoch has `E = min over i of ⌊n_i /
//! p_i⌋` rows, so it ends when the first file has no rows left for its share; files with rows left are not used up.
//! File `i` has `E p_i` of these rows, rounded so that the sum is `E` (largest remainders). In each file, the next
//! epoch continues where the previous epoch stopped, and starts again at the first row after the last row.
//!
//! Example: 100 rows with weight 0.5 and 1000 rows with weight 0.5 give epochs of 200 rows. Each epoch has all rows of
//! the first file; ten epochs together have every row of the second file once.
//!
//! The mixture depends only on the seed and the position, so a resumed run continues the mixture without stored state.

use reel_support::diagnostic::Diagnostic;

use super::{RowOrder, permutation};

/// A file of a mixture.
#[derive(Clone, Debug, PartialEq)]
struct MixedFile {
    /// Index of the file's first row among the rows of all files.
    first_row: usize,
    /// Number of rows of the file.
    rows: usize,
    /// Number of rows of this file in an epoch.
    rows_per_epoch: usize,
}

/// The files of a mixture and the number of rows that each file has in an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    files: Vec<MixedFile>,
    epoch_rows: usize,
}

impl Mixture {
    /// Creates a mixture of `files`, each given as (name, number of rows, weight); weights are positive and finite.
    /// Rows are numbered consecutively over all files, in the order of the files.
    ///
    /// # Errors
    /// A weight is so small that an epoch has no row of its file.
    pub fn new(files: &[(String, usize, f64)]) -> Result<Self, Diagnostic> {
        // Divides all weights by the largest weight, so that their sum is finite.
        let largest = files.iter().map(|file| file.2).fold(0.0, f64::max);
        let scaled: Vec<f64> = files.iter().map(|file| file.2 / largest).collect();
        let sum: f64 = scaled.iter().sum();
        let shares: Vec<f64> = scaled.iter().map(|weight| weight / sum).collect();
        let limits = files.iter().zip(&shares).map(|((_, rows, _), share)| *rows as f64 / share);
        let epoch_rows = limits.fold(f64::INFINITY, f64::min);
        // The factor corrects rounding errors: a quotient just below a whole number counts as that number.
        let epoch_rows = (epoch_rows * (1.0 + 1e-12)).floor() as usize;
        let exact: Vec<f64> = shares.iter().map(|share| epoch_rows as f64 * share).collect();
        let mut counts: Vec<usize> =
            exact.iter().zip(files).map(|(exact, (_, rows, _))| (exact.floor() as usize).min(*rows)).collect();
        // The files with the largest remainders get the rows that rounding down has left over.
        let mut by_remainder: Vec<usize> = (0..files.len()).collect();
        by_remainder.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
        let left = epoch_rows.saturating_sub(counts.iter().sum());
        by_remainder.retain(|&file| counts[file] < files[file].1);
        by_remainder.into_iter().take(left).for_each(|file| counts[file] += 1);
        let mut first_row = 0;
        let mut mixed = Vec::with_capacity(files.len());
        for ((name, rows, weight), rows_per_epoch) in files.iter().zip(counts) {
            if rows_per_epoch == 0 {
                let what =
                    format!("has the weight {weight}, so an epoch of {epoch_rows} rows contains no row of this file");
                return Err(Diagnostic::new(name, what, "raise its weight, or leave the file out"));
            }
            mixed.push(MixedFile { first_row, rows: *rows, rows_per_epoch });
            first_row += rows;
        }
        let epoch_rows = mixed.iter().map(|file| file.rows_per_epoch).sum();
        Ok(Self { files: mixed, epoch_rows })
    }

    /// Creates the mixture of all rows except `left_out`. The remaining rows are numbered from 0 on. `files` are the
    /// names and weights of the files.
    ///
    /// # Errors
    /// The errors of [`Self::new`].
    pub fn without_rows(
        &self,
        files: impl Iterator<Item = (String, f64)>,
        left_out: impl Iterator<Item = usize> + Clone,
    ) -> Result<Self, Diagnostic> {
        let left = |file: &MixedFile| {
            let range = file.first_row..file.first_row + file.rows;
            file.rows - left_out.clone().filter(|row| range.contains(row)).count()
        };
        let files = files.zip(&self.files).map(|((name, weight), file)| (name, left(file), weight));
        Self::new(&files.collect::<Vec<_>>())
    }

    /// Number of rows of an epoch.
    pub fn epoch_rows(&self) -> usize {
        self.epoch_rows
    }

    /// Number of rows of all files. An epoch may have fewer.
    pub(super) fn row_count(&self) -> usize {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// Returns the row numbers of epoch `epoch` in order. With a seed, the rows are shuffled; without a seed, the rows
    /// of each file stay in file order and are spread evenly over the epoch.
    pub(super) fn rows_of_epoch(&self, seed: Option<u64>, epoch: u64) -> Vec<u32> {
        let mut rows = Vec::with_capacity(self.epoch_rows);
        for (i, file) in self.files.iter().enumerate() {
            let mut order = match seed {
                Some(seed) => RowOrder::shuffled(file.rows, file_seed(seed, i)),
                None => RowOrder::file_order(file.rows),
            };
            let count = file.rows_per_epoch as u64;
            rows.extend((0..count).map(|n| (file.first_row + order.row_at(epoch * count + n)) as u32));
        }
        let positions = match seed {
            Some(seed) => permutation(self.epoch_rows, seed, epoch),
            None => self.spread(),
        };
        positions.into_iter().map(|position| rows[position as usize]).collect()
    }

    /// Returns a permutation of the rows of an epoch, `0..E`, numbered file by file. The permutation spreads each
    /// file evenly: row n of a file's c rows is placed at the fraction (n + 1/2) / c of the epoch.
    fn spread(&self) -> Vec<u32> {
        let mut all = Vec::with_capacity(self.epoch_rows);
        for file in &self.files {
            let count = file.rows_per_epoch as u64;
            let first = all.len() as u32;
            all.extend((0..count).map(|n| (2 * n + 1, count, first + n as u32)));
        }
        // The fractions a / b and c / d are compared as a d and c b. The sort is stable: equal fractions stay in file
        // order.
        all.sort_by(|a, b| (u128::from(a.0) * u128::from(b.1)).cmp(&(u128::from(b.0) * u128::from(a.1))));
        all.into_iter().map(|(_, _, position)| position).collect()
    }
}

/// Derives the seed of the row order of file `i` from `seed`, so that files of equal length have different row orders.
fn file_seed(seed: u64, i: usize) -> u64 {
    // The odd constant is 2^64 divided by the golden ratio; its multiples are far apart.
    seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mixture(files: &[(usize, f64)]) -> Mixture {
        let named: Vec<_> = files.iter().enumerate().map(|(i, f)| (format!("f{i}"), f.0, f.1)).collect();
        Mixture::new(&named).unwrap()
    }

    #[test]
    fn an_epoch_ends_with_the_first_file_that_is_used_up() {
        let counts = |files: &[(usize, f64)]| {
            let mixture = mixture(files);
            (mixture.epoch_rows(), mixture.files.iter().map(|f| f.rows_per_epoch).collect::<Vec<_>>())
        };
        assert_eq!(counts(&[(100, 0.5), (1000, 0.5)]), (200, vec![100, 100]));
        assert_eq!(counts(&[(70, 0.7), (30, 0.3)]), (100, vec![70, 30]));
        assert_eq!(counts(&[(70, 7.0), (300, 3.0)]), (100, vec![70, 30]));
        assert_eq!(counts(&[(10, 1.0), (10, 1.0), (10, 1.0)]), (30, vec![10, 10, 10]));
        assert_eq!(counts(&[(5, 2.0), (5, 1.0)]), (7, vec![5, 2]));
        assert_eq!(counts(&[(8, f64::MAX), (8, f64::MAX)]), (16, vec![8, 8]));
        let e = Mixture::new(&[("a".into(), 10, 1.0), ("b".into(), 10, 1e-3)]).unwrap_err().to_string();
        assert_eq!(
            e,
            "b: has the weight 0.001, so an epoch of 10 rows contains no row of this file; raise its weight, or leave the file out"
        );
    }

    #[test]
    fn rows_that_are_left_out_make_files_shorter() {
        let whole = mixture(&[(4, 1.0), (6, 1.0)]);
        let names = [("a".to_string(), 1.0), ("b".to_string(), 1.0)];
        let less = whole.without_rows(names.into_iter(), [0, 2, 5].into_iter()).unwrap();
        assert_eq!(less, mixture(&[(2, 1.0), (5, 1.0)]));
    }

    #[test]
    fn rows_in_file_order_are_spread_evenly() {
        let mixture = mixture(&[(4, 2.0), (100, 1.0)]);
        assert_eq!(mixture.rows_of_epoch(None, 0), [0, 4, 1, 2, 5, 3]);
        assert_eq!(mixture.rows_of_epoch(None, 1), [0, 6, 1, 2, 7, 3]);
    }

    proptest! {
        /// In each epoch, each file has its share of the rows. Each file is used in passes that may span several
        /// epochs, each row once per pass.
        #[test]
        fn each_file_is_used_evenly(
            files in prop::collection::vec((1usize..40, 0.1f64..10.0), 1..5),
            seed in prop::option::of(any::<u64>()),
        ) {
            let named: Vec<_> = files.iter().enumerate().map(|(i, f)| (format!("f{i}"), f.0, f.1)).collect();
            let Ok(mixture) = Mixture::new(&named) else { return Ok(()) };
            let sum: f64 = files.iter().map(|f| f.1).sum();
            let mut used: Vec<Vec<u32>> = vec![Vec::new(); files.len()];
            for epoch in 0..6 {
                let rows = mixture.rows_of_epoch(seed, epoch);
                prop_assert_eq!(rows.len(), mixture.epoch_rows());
                for (file, used) in mixture.files.iter().zip(&mut used) {
                    let range = file.first_row as u32..(file.first_row + file.rows) as u32;
                    let own = rows.iter().copied().filter(|row| range.contains(row)).collect::<Vec<_>>();
                    prop_assert_eq!(own.len(), file.rows_per_epoch);
                    used.extend(own);
                }
            }
            for ((file, used), (rows, weight)) in mixture.files.iter().zip(used).zip(files) {
                prop_assert!((file.rows_per_epoch as f64 - mixture.epoch_rows() as f64 * weight / sum).abs() < 1.0);
                let passes = used.len() / rows;
                for row in file.first_row..file.first_row + rows {
                    let times = used.iter().filter(|&&u| u as usize == row).count();
                    prop_assert!(times == passes || times == passes + 1);
                }
            }
        }
    }
}
