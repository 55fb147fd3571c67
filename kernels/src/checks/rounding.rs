//! Roundings for formulas: f64 arithmetic that rounds where a kernel does.

use reel_device::Element;

/// The largest relative size of one unit in the last place of an f32.
pub const F32_ULP: f64 = 1.0 / (1u64 << 23) as f64;

/// The largest relative error of `rsqrt.approx.f32`: 2^−22.9 (PTX ISA 9.0, 9.7.3.18).
pub const RSQRT_MAX_RELATIVE_ERROR: f64 = 1.28e-7;

/// Returns the derivative of `f` at 0 from finite differences over five points. The error is below 1e-10 if the fifth
/// derivative is not large.
pub fn derivative_at_zero(mut f: impl FnMut(f64) -> f64) -> f64 {
    let h = 1e-3;
    (8.0 * (f(h) - f(-h)) - (f(2.0 * h) - f(-2.0 * h))) / (12.0 * h)
}

/// Rounds to f32.
pub fn f32(x: f64) -> f64 {
    x as f32 as f64
}

/// Rounds to bf16.
pub fn bf16(x: f64) -> f64 {
    <half::bf16 as Element>::from_f32(x as f32).to_f32() as f64
}

/// Returns `x` unrounded.
pub fn unrounded(x: f64) -> f64 {
    x
}

/// Models an f32 approximation of `x` with a relative error of at most `max_error`. The error is pseudo-random and
/// depends on `x` alone.
pub fn approximate(x: f64, max_error: f64) -> f64 {
    let bits = (x.to_bits() ^ x.to_bits() >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let share = (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    f32(x * (1.0 + max_error * share))
}

/// Returns a sum in f32, in the order of a kernel that sums in stages: first every `runs[0]` consecutive terms, then
/// every `runs[1]` of these sums, and so on. At the end the remaining sums are added in order.
pub fn sum_f32_in_stages(terms: impl IntoIterator<Item = f64>, runs: &[usize]) -> f64 {
    let mut terms: Vec<f64> = terms.into_iter().collect();
    for &run in runs {
        terms = terms.chunks(run).map(|run| run.iter().fold(0.0, |sum, x| f32(sum + x))).collect();
    }
    terms.iter().fold(0.0, |sum, x| f32(sum + x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_round_in_their_order() {
        let tiny = 2f64.powi(-24);
        // A tiny term is lost when it is added to 1, but not when tiny terms are added to each other first.
        assert_eq!(sum_f32_in_stages([1.0, tiny, tiny, tiny, tiny], &[]), 1.0);
        assert_eq!(sum_f32_in_stages([1.0, 0.0, tiny, tiny, tiny, tiny], &[2]), 1.0 + 4.0 * tiny);
        assert_eq!(sum_f32_in_stages([1.0, 0.0, tiny, 0.0, tiny, 0.0, tiny, tiny], &[2]), 1.0 + 2.0 * tiny);
        assert_eq!(sum_f32_in_stages([1.0, 0.0, tiny, 0.0, tiny, 0.0, tiny, 0.0], &[2, 2]), 1.0 + 2.0 * tiny);
        assert_eq!(sum_f32_in_stages([], &[4]), 0.0);
    }

    #[test]
    fn slopes_are_good_to_ten_places() {
        assert!((derivative_at_zero(|h| (1.3 + h).exp()) / 1.3f64.exp() - 1.0).abs() < 1e-10);
    }

    #[test]
    fn approximations_stay_within_their_limit() {
        let limit = 1e-5;
        let errors: Vec<f64> = (1..1000).map(|i| i as f64 / 7.0).map(|x| (approximate(x, limit) - x) / x).collect();
        assert!(errors.iter().all(|e| e.abs() <= limit + 1e-7));
        let spread = (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt();
        assert!((0.5..0.65).contains(&(spread / limit)), "{spread}");
        assert_eq!(approximate(0.0, limit), 0.0);
    }
}
