//! Comparisons of results with f64 formulas. All functions first compare NaN and infinities.
//!
//! | function | limits |
//! |---|---|
//! | [`check_within`] | the difference of each element, by a bound of its own |
//! | [`check_close`] | the relative L2 distance, and the difference of each element |
//! | [`check_rounded`] | the relative L2 distance, by the error that the kernel's documented roundings make |
//!
//! A bound of an element is derived from the arithmetic: [`f32_sum_error`] gives the bound for an f32 sum,
//! [`rounding_error`] the bound for storing a result.

use half::bf16;
use reel_device::{DType, Element};

/// Largest relative error of rounding to f32, half a unit in the last place.
pub const F32_HALF_ULP: f64 = 1.0 / (1u64 << 24) as f64;

/// Returns the largest relative error of rounding to an element type: 2^-8 in bf16, 2^-24 in f32.
pub fn rounding_error(dtype: DType) -> f64 {
    if dtype == DType::BF16 { 1.0 / 256.0 } else { F32_HALF_ULP }
}

/// Returns a bound of the error of an f32 sum of `terms` products, added in any order. `magnitude` is the sum of the
/// absolute values of the products: the formula of the sum, applied to absolute values, gives it.
///
/// Each addition rounds a partial sum, by at most u = 2^-24 of `magnitude`, so `terms` u `magnitude` is never exceeded.
/// Roundings go up and down, so their sum grows with the square root of their number: 6 √terms u `magnitude` is
/// exceeded with a probability below 2 terms e^-18 (Higham and Mary, A New Approach to Probabilistic Rounding Error
/// Analysis, 2019, theorem 3.1). The bound is the smaller of both, and four further roundings: those of a product, of
/// factors that were computed before, and of a scale.
///
/// A tensor core truncates its sums, which may lose 2 u instead of u; a check of such a kernel doubles the bound.
pub fn f32_sum_error(terms: usize, magnitude: f64) -> f64 {
    let terms = terms as f64;
    F32_HALF_ULP * (terms.min(6.0 * terms.sqrt()) + 4.0) * magnitude
}

/// Checks `got` against `want`: values that are not finite must be equal, the relative L2 distance at most `rel_l2`,
/// and the difference of element `i` at most `bound(i)`.
///
/// In a large array an L2 distance hides a wrong element, so both limits are required.
///
/// # Errors
/// The first element that differs by more than its bound, with both values; or the L2 distance, its limit, and the
/// element with the largest difference.
pub fn check_close(
    name: &str,
    got: &[f32],
    want: &[f64],
    rel_l2: f64,
    bound: impl Fn(usize) -> f64,
) -> Result<(), String> {
    check_within(name, got, want, bound)?;
    let finite = || got.iter().zip(want).map(|(&g, &w)| (g as f64, w)).enumerate().filter(|(_, (g, _))| g.is_finite());
    let diff = finite().map(|(_, (g, w))| (g - w).powi(2)).sum::<f64>().sqrt();
    let size = finite().map(|(_, (_, w))| w * w).sum::<f64>().sqrt();
    let rel = if size > 0.0 { diff / size } else { diff };
    if !(rel <= rel_l2) {
        let off = |(_, (g, w)): &(usize, (f64, f64))| (g - w).abs();
        let (at, (got, want)) = finite().max_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or_default();
        return Err(format!(
            "{name}: relative L2 distance {rel:.3e} exceeds {rel_l2:.1e}; worst at index {at}: {got}, want {want}"
        ));
    }
    Ok(())
}

/// Checks `got` against `want`: values that are not finite must be equal, and the difference of element `i` at most
/// `bound(i)`.
///
/// # Errors
/// The first element that differs by more than its bound, with both values and the bound.
pub fn check_within(name: &str, got: &[f32], want: &[f64], bound: impl Fn(usize) -> f64) -> Result<(), String> {
    check_non_finite(name, got, want)?;
    for (i, (&g, &w)) in got.iter().zip(want).enumerate().filter(|(_, (g, _))| g.is_finite()) {
        // Arithmetic may flush denormals to zero, so the smallest normal f32 is added to the bound.
        let (off, bound) = ((g as f64 - w).abs(), bound(i) + f64::from(f32::MIN_POSITIVE));
        if !(off <= bound) {
            return Err(format!("{name}[{i}]: {g}, want {w}, off by {off:.3e}, more than {bound:.1e}"));
        }
    }
    Ok(())
}

/// Checks that `got` has as many elements as `want`, and that NaN and infinite elements are equal.
fn check_non_finite(name: &str, got: &[f32], want: &[f64]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{name}: {} elements, want {}", got.len(), want.len()));
    }
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let same = (g.is_nan() && w.is_nan()) || (g.is_finite() && w.is_finite()) || g as f64 == w;
        if !same {
            return Err(format!("{name}[{i}]: {g}, want {w}"));
        }
    }
    Ok(())
}

/// Default limit of a kernel's error, as a multiple of the error of one rounding. A kernel that needs more documents
/// why.
pub const DEFAULT_ROUNDING_FACTOR: f64 = 2.5;

/// Checks that the error of `got`, stored as `dtype`, is explained by the kernel's documented roundings and is not
/// much larger than one rounding. Errors are relative L2 distances from `exact`, the f64 formula.
///
/// `with_roundings` is the formula with the kernel's roundings, except the one at the store. Two bounds must hold:
/// 1.2 times the error of `with_roundings`, and `rounding_factor` times (default: [`DEFAULT_ROUNDING_FACTOR`]) the
/// error of rounding `exact` once. In bf16, 1e-6 is added for f32 sums and exponentials whose roundings are not
/// modelled one by one. If few elements make up the norm, the error varies from case to case; each bound is widened
/// by at least six of its standard deviations (in bf16 the first bound by one, the second by three).
///
/// # Errors
/// The first element where only one value is finite, or the bound that was exceeded and by how much.
pub fn check_rounded(
    name: &str,
    dtype: DType,
    got: &[f32],
    with_roundings: &[f64],
    exact: &[f64],
    rounding_factor: f64,
) -> Result<(), String> {
    let round = |&x: &f64| if dtype == DType::BF16 { <bf16 as Element>::from_f32(x as f32).to_f32() } else { x as f32 };
    let stored = |x: &[f64]| x.iter().map(round).collect::<Vec<f32>>();
    let (documented, once) = (stored(with_roundings), stored(exact));
    check_non_finite(name, got, exact)?;
    check_non_finite(&format!("{name}, formula with roundings"), &documented, exact)?;
    let finite = || exact.iter().enumerate().filter(|(_, x)| x.is_finite());
    let norm2: f64 = finite().map(|(_, x)| x * x).sum();
    let scale = if norm2 > 0.0 { norm2.sqrt() } else { 1.0 };
    let distance = |y: &[f32]| finite().map(|(i, x)| ((y[i] as f64 - x) / scale).powi(2)).sum::<f64>().sqrt();
    let (error, documented, once) = (distance(got), distance(&documented), distance(&once));
    // Estimates how much the relative error varies by chance: 1 / sqrt(n) for n elements of equal size, more if few
    // large elements make up most of the norm.
    let luck = finite().map(|(_, x)| (x / scale).powi(4)).sum::<f64>().sqrt();
    for (what, bound, times) in [("the documented roundings", documented, 1.2), ("one rounding", once, rounding_factor)]
    {
        // In bf16 a formula with the documented roundings gives the same numbers as the kernel, except for the few
        // numbers that lie halfway between two bf16 values. So the first bound needs little slack.
        let (deviations, unit) = match (dtype, times > 1.2) {
            (DType::BF16, false) => (1.0, 0.0),
            (DType::BF16, true) => (3.0, 2f64.powi(-9)),
            _ => (f64::max(6.0, 1.2 * times), 2f64.powi(-24)),
        };
        let free = if dtype == DType::BF16 { 1e-6 } else { 0.0 };
        let allowed = times * bound + deviations * luck * (bound + unit) + free;
        if !(error <= allowed) {
            let at = (0..got.len()).max_by(|&i, &j| {
                let off = |i: usize| (got[i] as f64 - exact[i]).abs();
                off(i).total_cmp(&off(j))
            });
            let at = at.unwrap_or(0);
            return Err(format!(
                "{name}: error {error:.3e} exceeds {allowed:.3e} (the error of {what} is {bound:.3e}); worst at index {at}: {}, want {}",
                got[at], exact[at]
            ));
        }
    }
    Ok(())
}

/// Asserts that [`check_rounded`] finds no error.
///
/// # Panics
/// If the error is larger than allowed.
#[track_caller]
pub fn assert_rounded(
    name: &str,
    dtype: DType,
    got: &[f32],
    with_roundings: &[f64],
    exact: &[f64],
    rounding_factor: f64,
) {
    if let Err(e) = check_rounded(name, dtype, got, with_roundings, exact, rounding_factor) {
        panic!("{e}");
    }
}

/// Asserts that [`check_close`] finds no error.
///
/// # Panics
/// If `got` and `want` differ by more than allowed.
#[track_caller]
pub fn assert_close(name: &str, got: &[f32], want: &[f64], rel_l2: f64, bound: impl Fn(usize) -> f64) {
    if let Err(e) = check_close(name, got, want, rel_l2, bound) {
        panic!("{e}");
    }
}

/// Asserts that [`check_within`] finds no error.
///
/// # Panics
/// If an element differs by more than its bound.
#[track_caller]
pub fn assert_within(name: &str, got: &[f32], want: &[f64], bound: impl Fn(usize) -> f64) {
    if let Err(e) = check_within(name, got, want, bound) {
        panic!("{e}");
    }
}

#[cfg(test)]
mod tests {
    use reel_device::DType::{BF16, F32};

    use super::{DEFAULT_ROUNDING_FACTOR, F32_HALF_ULP, check_close, check_rounded, check_within, f32_sum_error};
    use crate::checks::normal_numbers;

    #[test]
    fn close_rejects_nan_infinity_and_large_differences() {
        let (want, all) = ([1.0, 2.0, 3.0], f64::MAX);
        let of = |got: &[f32], rel_l2, bound: f64| check_close("x", got, &want, rel_l2, |_| bound);
        assert!(of(&[1.0, 2.0, 3.0], 0.0, 0.0).is_ok());
        assert!(of(&[1.0, 2.0], all, all).is_err());
        assert!(of(&[1.0, f32::NAN, 3.0], all, all).is_err());
        assert!(of(&[1.0, f32::INFINITY, 3.0], all, all).is_err());
        assert!(of(&[1.0, 2.1, 3.0], 1e-3, 1.0).unwrap_err().contains("worst at index 1"));
        assert!(of(&[1.0, 2.1, 3.0], 1.0, 1e-3).unwrap_err().starts_with("x[1]: 2.1, want 2"));
        assert!(check_close("x", &[f32::NAN], &[f64::NAN], 0.0, |_| 0.0).is_ok());
        assert!(check_close("x", &[f32::INFINITY], &[f64::NEG_INFINITY], all, |_| all).is_err());
        // If a bound is NaN, the check fails.
        assert!(of(&[1.0, 2.1, 3.0], 1.0, f64::NAN).is_err());
        // With one wrong element among a million, the L2 distance is small.
        let (mut got, want) = (vec![1.0; 1_000_000], vec![1.0; 1_000_000]);
        got[7] = 1.5;
        assert!(check_close("x", &got, &want, 1e-3, |_| 1e-3).unwrap_err().starts_with("x[7]"));
    }

    #[test]
    fn the_bound_of_a_sum_holds_and_is_small() {
        for n in [1usize, 2, 30, 1000, 20_000] {
            let (mut got, mut want, mut bounds) = (vec![], vec![], vec![]);
            for seed in 0..30 {
                let (x, y) = (normal_numbers(n, 2 * seed, 1.0), normal_numbers(n, 2 * seed + 1, 1.0));
                got.push(x.iter().zip(&y).fold(0.0f32, |sum, (x, y)| sum + x * y));
                let exact = || x.iter().zip(&y).map(|(x, y)| *x as f64 * *y as f64);
                want.push(exact().sum::<f64>());
                bounds.push(f32_sum_error(n, exact().map(f64::abs).sum()));
            }
            check_within("sum", &got, &want, |i| bounds[i]).unwrap();
            // A sum of n random terms is about √n in magnitude; the bounds are below 1 % of that.
            assert!(bounds.iter().all(|bound| *bound < 0.01 * (n as f64).sqrt()), "{n} terms: {bounds:?}");
        }
        assert_eq!(f32_sum_error(0, 1.0), 4.0 * F32_HALF_ULP);
    }

    #[test]
    fn rounded_rejects_undocumented_and_excessive_errors() {
        let exact: Vec<f64> = (0..1000).map(|i| 1.0 + i as f64 / 700.1).collect();
        let off = |by: f64| exact.iter().map(|x| (x * (1.0 + by)) as f32).collect::<Vec<f32>>();
        let of = |got: &[f32], with: &[f64]| check_rounded("x", F32, got, with, &exact, DEFAULT_ROUNDING_FACTOR);
        assert!(of(&off(0.0), &exact).is_ok());
        // The error is below 2.5 roundings, but the documented roundings do not explain it.
        assert!(of(&off(5e-8), &exact).unwrap_err().contains("documented"));
        let with: Vec<f64> = exact.iter().map(|x| x * (1.0 + 5e-8)).collect();
        assert!(of(&off(5e-8), &with).is_ok());
        // The documented roundings explain the error, but it is larger than allowed.
        let with: Vec<f64> = exact.iter().map(|x| x * (1.0 + 2e-7)).collect();
        assert!(of(&off(2e-7), &with).unwrap_err().contains("one rounding"));
        assert!(check_rounded("x", F32, &off(2e-7), &with, &exact, 9.0).is_ok());
        assert!(check_rounded("x", BF16, &off(0.0), &exact, &exact, DEFAULT_ROUNDING_FACTOR).is_ok());
        assert!(check_rounded("x", BF16, &off(5e-3), &exact, &exact, DEFAULT_ROUNDING_FACTOR).is_err());
        let mut bad = off(0.0);
        bad[7] = f32::NAN;
        assert!(of(&bad, &exact).is_err());
        assert!(of(&bad[..7], &exact).is_err());
    }
}
