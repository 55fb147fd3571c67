//! Normally distributed random numbers from a counter-based generator. Each element of each tensor is a function of
//! seed, stream and index, so the values do not depend on the number of threads.

use std::sync::LazyLock;

use reel_support::philox;

/// Maps each 16-bit random number to a normally distributed one: number i becomes the normal quantile of the
/// probability (i + 0.5) / 65 536.
static QUANTILES: LazyLock<Vec<f32>> =
    LazyLock::new(|| (0..1 << 16).map(|i| normal_quantile((f64::from(i) + 0.5) / 65536.0) as f32).collect());

/// The number of normally distributed numbers in one block. A block is the result of one call of the random generator
/// Philox.
pub(crate) const NORMALS_PER_BLOCK: usize = 8;

/// Returns the standard normal numbers `NORMALS_PER_BLOCK * block .. NORMALS_PER_BLOCK * (block + 1)` of the random
/// sequence that `seed` and the number `stream` select.
pub(crate) fn standard_normals(seed: u64, stream: u64, block: u64) -> [f32; NORMALS_PER_BLOCK] {
    let random = philox::random_words(seed, stream, block);
    let table: &[f32] = &QUANTILES;
    std::array::from_fn(|i| table[(random[i / 2] >> (16 * (i % 2))) as usize & 0xFFFF])
}

/// The inverse of the normal distribution function, by P. J. Acklam's rational approximation (relative error below
/// 1.2e-9).
fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e+01,
        2.209460984245205e+02,
        -2.759285104469687e+02,
        1.38357751867269e+02,
        -3.066479806614716e+01,
        2.506628277459239e+00,
    ];
    const B: [f64; 6] = [
        -5.447609879822406e+01,
        1.615858368580409e+02,
        -1.556989798598866e+02,
        6.680131188771972e+01,
        -1.328068155288572e+01,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-03,
        -3.223964580411365e-01,
        -2.400758277161838e+00,
        -2.549732539343734e+00,
        4.374664141464968e+00,
        2.938163982698783e+00,
    ];
    const D: [f64; 5] =
        [7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00, 3.754408661907416e+00, 1.0];
    const TAIL: f64 = 0.02425;
    let polynomial = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    if p > 0.5 {
        return -normal_quantile(1.0 - p);
    }
    if p < TAIL {
        let q = (-2.0 * p.ln()).sqrt();
        return polynomial(&C, q) / polynomial(&D, q);
    }
    let q = p - 0.5;
    polynomial(&A, q * q) * q / polynomial(&B, q * q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_equal_those_of_the_normal_distribution() {
        for (p, z) in [(0.5, 0.0), (0.975, 1.959963984540054), (0.001, -3.090232306167813), (0.8413447460685429, 1.0)] {
            assert!((normal_quantile(p) - z).abs() < 1e-8, "{p}");
        }
        let n = 400_000;
        let all: Vec<f64> =
            (0..n / NORMALS_PER_BLOCK as u64).flat_map(|b| standard_normals(7, 3, b)).map(f64::from).collect();
        let moment = |k: i32| all.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01 && (moment(4) - 3.0).abs() < 0.1);
        assert_ne!(standard_normals(7, 3, 0), standard_normals(7, 4, 0));
        assert_ne!(standard_normals(7, 3, 0), standard_normals(8, 3, 0));
    }
}
