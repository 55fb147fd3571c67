//! Sums of f32 in the order in which torch adds them on a processor, so that means, and with them comparisons and advantages,
//! have the same bits: lanes of 8 side by side, then the rest, then the lanes one after the other (`aten/src/ATen/native/cpu/
//! SumKernel.cpp` of torch 2.7.1, for its AVX2 code and up to 128 numbers, beyond which it begins to cascade).

const LANES: usize = 8;
/// Sums that are kept apart to hide the latency of an addition.
const APART: usize = 4;

/// The sum.
pub fn sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        let rows: Vec<[f32; 1]> = values.iter().map(|&x| [x]).collect();
        return rows_apart(&rows)[0];
    }
    let (rows, rest) = values.as_chunks::<LANES>();
    rest.iter().chain(&rows_apart(rows)).fold(0.0, |sum, x| sum + x)
}

/// The sum of rows, lane by lane: every fourth row together, what is left over to the first, then the four together.
fn rows_apart<const N: usize>(rows: &[[f32; N]]) -> [f32; N] {
    let add = |a: [f32; N], b: &[f32; N]| std::array::from_fn(|lane| a[lane] + b[lane]);
    let mut sums = [[0.0; N]; APART];
    let (fours, rest) = rows.as_chunks::<APART>();
    for four in fours {
        for (sum, row) in sums.iter_mut().zip(four) {
            *sum = add(*sum, row);
        }
    }
    sums[0] = rest.iter().fold(sums[0], add);
    sums[1..].iter().fold(sums[0], add)
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f32]) -> f32 {
    if values.is_empty() { 0.0 } else { sum(values) / values.len() as f32 }
}

/// The standard deviation with n - 1 in the divisor, in f64 within, as torch's `std`; 0 for fewer than two values.
pub fn std(values: &[f32]) -> f32 {
    if values.len() < 2 {
        return 0.0;
    }
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let squares: f64 = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    (squares / (n - 1.0)).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_shows_in_the_bits() {
        // 2^24 swallows a single 1: which ones are added together first decides the sum.
        let big = 16_777_216.0;
        assert_eq!(sum(&[big, 1.0, 1.0, 1.0]), big);
        assert_eq!(sum(&[1.0, 1.0, 1.0, 1.0, big]), big);
        assert_eq!(sum(&[1.0, big, 0.0, 0.0, 1.0]), big + 2.0);
        assert_eq!(sum(&[big, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]), big + 2.0);
        assert_eq!(sum(&[]), 0.0);
    }

    proptest! {
        #[test]
        fn a_sum_is_a_sum(values in prop::collection::vec(-4.0f32..4.0, 0..130)) {
            let exact: f64 = values.iter().map(|&x| f64::from(x)).sum();
            let size: f64 = values.iter().map(|&x| f64::from(x.abs())).sum();
            prop_assert!((f64::from(sum(&values)) - exact).abs() <= size * 1e-5);
        }

        /// Whole numbers add up exactly in any order.
        #[test]
        fn nothing_is_left_out(values in prop::collection::vec(-99i16..99, 0..130)) {
            let floats: Vec<f32> = values.iter().map(|&x| f32::from(x)).collect();
            prop_assert_eq!(sum(&floats), values.iter().map(|&x| i32::from(x)).sum::<i32>() as f32);
        }

        #[test]
        fn std_does_not_see_a_shift(values in prop::collection::vec(-9i8..9, 2..20), shift in -9i8..9) {
            let at = |s: i8| std(&values.iter().map(|&x| f32::from(x) + f32::from(s)).collect::<Vec<_>>());
            prop_assert!((at(0) - at(shift)).abs() < 1e-4);
            prop_assert_eq!(at(0) == 0.0, values.iter().all(|x| *x == values[0]));
        }
    }
}
