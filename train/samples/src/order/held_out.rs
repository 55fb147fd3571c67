//! Chooses the rows that a run holds back from training for the validation loss (`--val-size`).

use reel_support::diagnostic::Diagnostic;

use super::permutation;

/// The pass whose permutation chooses the rows. No training run reaches it, so the choice is independent of the order
/// in which the other rows are used.
const PASS: u64 = u64::MAX;

/// Returns the rows of `0..rows` that are held back, in ascending order. They depend on the seed alone. A `size` below
/// 1 is a share of all rows, rounded up; 1 or more is a number of rows.
///
/// # Errors
/// No row would be left for training.
pub fn held_out_rows(rows: usize, size: f64, seed: u64) -> Result<Vec<usize>, Diagnostic> {
    let count = if size < 1.0 { (size * rows as f64).ceil() } else { size };
    if count >= rows as f64 {
        let what = format!("is {size}, which leaves none of the {rows} rows of --data for training");
        return Err(Diagnostic::new("--val-size", what, "give less"));
    }
    let mut held_out: Vec<usize> =
        permutation(rows, seed, PASS).into_iter().take(count as usize).map(|row| row as usize).collect();
    held_out.sort_unstable();
    Ok(held_out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_size_is_a_share_or_a_number_of_rows() {
        let count = |rows, size| held_out_rows(rows, size, 0).map(|held_out| held_out.len());
        assert_eq!((count(10, 0.1), count(11, 0.1), count(10, 1.0), count(10, 9.0)), (Ok(1), Ok(2), Ok(1), Ok(9)));
        for (rows, size) in [(10, 10.0), (10, 1e9), (1, 0.5), (3, 0.9)] {
            let e = count(rows, size).unwrap_err().to_string();
            assert!(e.starts_with(&format!("--val-size: is {size}, which leaves none of the {rows} rows")), "{e}");
        }
    }

    proptest! {
        #[test]
        fn rows_are_distinct_and_depend_on_the_seed(rows in 20usize..200, seed: u64) {
            let held_out = held_out_rows(rows, 0.5, seed).unwrap();
            prop_assert!(held_out.is_sorted_by(|a, b| a < b) && held_out.iter().all(|&row| row < rows));
            prop_assert_eq!(&held_out, &held_out_rows(rows, 0.5, seed).unwrap());
            prop_assert_ne!(held_out, held_out_rows(rows, 0.5, seed ^ 1).unwrap());
        }
    }
}
