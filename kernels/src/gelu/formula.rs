//! GELU's definition in f64, and the same formulas with the kernels' roundings, as `mod.rs` documents them.

use crate::checks::rounding::{self, F32_ULP, approximate, f32};
use std::f64::consts::PI;

/// `x · (1 + erf(x / √2)) / 2`
pub fn fwd(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / 2f64.sqrt()))
}

/// Returns `x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2`.
pub fn tanh_fwd(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

/// Returns the derivative of [`fwd`] or [`tanh_fwd`] at x by central differences.
pub fn derivative(fwd: fn(f64) -> f64, x: f64) -> f64 {
    rounding::derivative_at_zero(|h| fwd(x + h))
}

/// Returns the normal distribution function and `e^(−x²/2)`, each rounded to f32.
fn cdf_rounded(x: f64) -> (f64, f64) {
    let bell = approximate((-0.5 * f32(x * x)).exp(), 2.0 * F32_ULP);
    // Computes Mills' ratio from its definition if the divisor is not too close to 0, otherwise from the first terms
    // of its asymptotic series.
    let z = x.abs();
    let far = (1.0 - 1.0 / (z * z) + 3.0 / z.powi(4) - 15.0 / z.powi(6)) / (z * (2.0 * PI).sqrt());
    let ratio = if z < 5.0 { 0.5 * (1.0 + erf(-z / 2f64.sqrt())) / (-0.5 * z * z).exp() } else { far };
    let tail = f32(bell * approximate(ratio, 2.0 * F32_ULP));
    (if x > 0.0 { f32(1.0 - tail) } else { tail }, bell)
}

/// Computes [`fwd`] with the kernel's roundings.
pub fn fwd_rounded(x: f64) -> f64 {
    x * cdf_rounded(x).0
}

/// Computes the derivative of [`fwd`] with the kernel's roundings.
pub fn derivative_rounded(x: f64) -> f64 {
    let (cdf, bell) = cdf_rounded(x);
    f32(cdf + f32(x * f32(f32((2.0 * PI).sqrt().recip()) * bell)))
}

/// Returns `1 / (1 + e^(−2u))` of the tanh form with the kernel's roundings; `mod.rs` defines u.
fn share_rounded(x: f64) -> f64 {
    let cubic = f32(x + f32(f32(f32(f32(0.044715) * x) * x) * x));
    let e = approximate((-f32(f32((8.0 / PI).sqrt()) * cubic)).exp(), 2.0 * F32_ULP);
    approximate(1.0 / f32(1.0 + e), 2.0 * F32_ULP)
}

/// Computes [`tanh_fwd`] with the kernel's roundings.
pub fn tanh_fwd_rounded(x: f64) -> f64 {
    x * share_rounded(x)
}

/// Computes the derivative of [`tanh_fwd`] with the kernel's roundings.
pub fn tanh_derivative_rounded(x: f64) -> f64 {
    let s = share_rounded(x);
    let bend = f32(s * f32(1.0 - s));
    let inner = f32(f32((8.0 / PI).sqrt()) * f32(1.0 + f32(f32(f32(3.0 * 0.044715) * x) * x)));
    f32(s + f32(f32(x * bend) * inner))
}

/// Returns the error function: `erf(x) = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (1 · 3 · … · (2n+1))`. All terms have the
/// same sign, so there is no cancellation.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}
