//! Sum, mean and standard deviation of f32 values with torch's order of additions on a CPU, so that rewards and
//! advantages have the same bits as in torch.
//!
//! ```text
//! sum of n >= 8 values: split into rows of 8 lanes and a rest of less than 8 values
//!     4 partial sums, each adds every fourth row; remaining rows go to the first; then the 4 are added: 8 lanes
//!     total = rest values, then the 8 lanes, added one by one
//! ```
//! Source: `aten/src/ATen/native/cpu/SumKernel.cpp` of torch 2.7.1, its AVX2 code for up to 128 values (for more
//! values, torch adds in another order).

const LANES: usize = 8;
/// Number of partial sums. Torch adds rows to several partial sums to hide the latency of additions.
const PARTIAL_SUMS: usize = 4;

/// Returns the sum, added in torch's order.
pub fn sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        let rows: Vec<[f32; 1]> = values.iter().map(|&x| [x]).collect();
        return sum_rows(&rows)[0];
    }
    let (rows, rest) = values.as_chunks::<LANES>();
    rest.iter().chain(&sum_rows(rows)).fold(0.0, |sum, x| sum + x)
}

/// Adds rows of `N` values lane by lane, in [`PARTIAL_SUMS`] partial sums per lane.
fn sum_rows<const N: usize>(rows: &[[f32; N]]) -> [f32; N] {
    let add = |a: [f32; N], b: &[f32; N]| std::array::from_fn(|lane| a[lane] + b[lane]);
    let mut sums = [[0.0; N]; PARTIAL_SUMS];
    let (fours, rest) = rows.as_chunks::<PARTIAL_SUMS>();
    for four in fours {
        for (sum, row) in sums.iter_mut().zip(four) {
            *sum = add(*sum, row);
        }
    }
    sums[0] = rest.iter().fold(sums[0], add);
    sums[1..].iter().fold(sums[0], add)
}

/// Returns the mean of the values that are not NaN, as torch's `nanmean`; 0 if there are none.
pub fn mean(values: &[f32]) -> f32 {
    let known: Vec<f32> = values.iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect();
    sum(&known) / values.iter().filter(|x| !x.is_nan()).count().max(1) as f32
}

/// Returns the standard deviation of the values that are not NaN, with divisor n - 1, computed in f64 as in torch's
/// `std`; 0 for fewer than two values.
pub fn std(values: &[f32]) -> f32 {
    let known: Vec<f64> = values.iter().filter(|x| !x.is_nan()).map(|&x| f64::from(x)).collect();
    if known.len() < 2 {
        return 0.0;
    }
    let n = known.len() as f64;
    let mean = known.iter().sum::<f64>() / n;
    (known.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sum_has_the_bits_of_torchs_order() {
        // 2^24 + 1 rounds to 2^24 in f32, so the sum shows which values were added first.
        let big = 16_777_216.0;
        assert_eq!(sum(&[big, 1.0, 1.0, 1.0]), big);
        assert_eq!(sum(&[1.0, 1.0, 1.0, 1.0, big]), big);
        assert_eq!(sum(&[1.0, big, 0.0, 0.0, 1.0]), big + 2.0);
        assert_eq!(sum(&[big, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]), big + 2.0);
        assert_eq!(sum(&[]), 0.0);
    }

    proptest! {
        #[test]
        fn sum_is_close_to_the_f64_sum(values in prop::collection::vec(-4.0f32..4.0, 0..130)) {
            let exact: f64 = values.iter().map(|&x| f64::from(x)).sum();
            let size: f64 = values.iter().map(|&x| f64::from(x.abs())).sum();
            prop_assert!((f64::from(sum(&values)) - exact).abs() <= size * 1e-5);
        }

        /// Checks that every value is added once. Sums of small integers are exact in any order, so they must equal
        /// the integer sum.
        #[test]
        fn every_value_is_added_once(values in prop::collection::vec(-99i16..99, 0..130)) {
            let floats: Vec<f32> = values.iter().map(|&x| f32::from(x)).collect();
            prop_assert_eq!(sum(&floats), values.iter().map(|&x| i32::from(x)).sum::<i32>() as f32);
        }

        /// NaN stands for no value, so that mean and deviation are those of the other values.
        #[test]
        fn mean_and_std_leave_nan_out(values in prop::collection::vec(prop::option::of(-9i8..9), 0..20)) {
            let all: Vec<f32> = values.iter().map(|x| x.map_or(f32::NAN, f32::from)).collect();
            let known: Vec<f32> = values.iter().flatten().map(|&x| f32::from(x)).collect();
            prop_assert_eq!((mean(&all), std(&all)), (mean(&known), std(&known)));
        }

        #[test]
        fn std_is_invariant_under_shift(values in prop::collection::vec(-9i8..9, 2..20), shift in -9i8..9) {
            let at = |s: i8| std(&values.iter().map(|&x| f32::from(x) + f32::from(s)).collect::<Vec<_>>());
            prop_assert!((at(0) - at(shift)).abs() < 1e-4);
            prop_assert_eq!(at(0) == 0.0, values.iter().all(|x| *x == values[0]));
        }
    }
}
