//! Log-probabilities in f64, and versions with the roundings that `mod.rs` documents, except the rounding at the store.

use crate::checks::rounding::{F32_ULP, approximate, f32};

/// Results of the forward pass for a row. The backward pass needs them.
#[derive(Clone, Copy, Debug)]
pub struct RowStatistics {
    pub entropy: f64,
    pub lse: f64,
}

/// Returns `ln Σ e^(logit · inv_temperature)` of a row.
pub fn lse(logits: &[f64], inv_temperature: f64) -> f64 {
    let max = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    max * inv_temperature + logits.iter().map(|l| ((l - max) * inv_temperature).exp()).sum::<f64>().ln()
}

/// Returns `logit · inv_temperature − lse` of the target, or 0 for a negative target.
pub fn log_prob(logits: &[f64], target: i32, inv_temperature: f64) -> f64 {
    if target < 0 { 0.0 } else { logits[target as usize] * inv_temperature - lse(logits, inv_temperature) }
}

/// Computes [`lse`] with the kernel's roundings.
pub fn lse_rounded(logits: &[f64], inv_temperature: f64) -> f64 {
    let max = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    max * inv_temperature
        + logits.iter().map(|l| approximate(f32(f32(l - max) * inv_temperature).exp(), 2.0 * F32_ULP)).sum::<f64>().ln()
}

/// Computes [`log_prob`] with the kernel's roundings.
pub fn log_prob_rounded(logits: &[f64], target: i32, inv_temperature: f64) -> f64 {
    if target < 0 { 0.0 } else { logits[target as usize] * inv_temperature - lse_rounded(logits, inv_temperature) }
}

/// Returns `−Σ p ln p` with `p = e^(logit · inv_temperature − lse)`.
pub fn entropy(logits: &[f64], inv_temperature: f64) -> f64 {
    let lse = lse(logits, inv_temperature);
    -logits.iter().map(|l| (l * inv_temperature - lse).exp() * (l * inv_temperature - lse)).sum::<f64>()
}

/// Computes [`entropy`] with the kernel's roundings: `ln Σ e^x − Σ x e^x / Σ e^x`, where x is a scaled logit minus the
/// largest one.
pub fn entropy_rounded(logits: &[f64], inv_temperature: f64) -> f64 {
    let max = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let terms = logits.iter().map(|l| {
        let x = f32(f32(l - max) * inv_temperature);
        let e = approximate(x.exp(), 2.0 * F32_ULP);
        (e, f32(x * e))
    });
    let (sum, moment) = terms.fold((0.0, 0.0), |(sum, moment), (e, xe)| (sum + e, moment + xe));
    sum.ln() - moment / sum
}

/// Returns the gradient of `log_prob` with respect to the logits, by the chain rule with the row's `lse`. Tests check
/// it by finite differences.
pub fn bwd(logits: &[f64], target: i32, inv_temperature: f64, lse: f64) -> Vec<f64> {
    let one = |(j, l): (usize, &f64)| {
        if j as i32 == target {
            -inv_temperature * (l * inv_temperature - lse).exp_m1()
        } else {
            -inv_temperature * (l * inv_temperature - lse).exp()
        }
    };
    logits.iter().enumerate().map(|x| if target < 0 { 0.0 } else { one(x) }).collect()
}

/// Computes [`bwd`] times `grad`, with the kernel's roundings.
pub fn bwd_rounded(logits: &[f64], target: i32, inv_temperature: f64, lse: f64, grad: f64) -> Vec<f64> {
    let factor = f32(grad * inv_temperature);
    let one = |(j, l): (usize, &f64)| {
        let ln_p = f32(f32(l * inv_temperature) - lse);
        let e = if j as i32 == target { ln_p.exp_m1() } else { ln_p.exp() };
        -factor * approximate(e, 2.0 * F32_ULP)
    };
    logits.iter().enumerate().map(|x| if target < 0 { 0.0 } else { one(x) }).collect()
}

/// Returns the gradient of `d_log_prob · log_prob + d_entropy · entropy` with respect to the logits, by the chain
/// rule. `row` gives the row's lse and entropy, as the forward pass computed them. Tests check the gradient by finite
/// differences.
pub fn bwd_with_entropy(
    logits: &[f64],
    target: i32,
    inv_temperature: f64,
    [d_log_prob, d_entropy]: [f64; 2],
    row: &RowStatistics,
) -> Vec<f64> {
    let one = |(j, z): (usize, &f64)| {
        let ln_p = z * inv_temperature - row.lse;
        let of_log_prob = if j as i32 == target { -ln_p.exp_m1() } else { -ln_p.exp() };
        inv_temperature * (d_log_prob * of_log_prob - d_entropy * ln_p.exp() * (ln_p + row.entropy))
    };
    logits.iter().enumerate().map(|x| if target < 0 { 0.0 } else { one(x) }).collect()
}

/// Computes [`bwd_with_entropy`] with the kernel's roundings.
pub fn bwd_with_entropy_rounded(
    logits: &[f64],
    target: i32,
    inv_temperature: f64,
    [d_log_prob, d_entropy]: [f64; 2],
    row: &RowStatistics,
) -> Vec<f64> {
    let (d_log_prob, d_entropy) = (f32(d_log_prob * inv_temperature), f32(d_entropy * inv_temperature));
    let one = |(j, z): (usize, &f64)| {
        let ln_p = f32(f32(z * inv_temperature) - row.lse);
        let p = approximate(ln_p.exp(), 2.0 * F32_ULP);
        let of_log_prob = if j as i32 == target { approximate(-ln_p.exp_m1(), 2.0 * F32_ULP) } else { -p };
        f32(d_log_prob * of_log_prob) - f32(d_entropy * f32(p * f32(ln_p + row.entropy)))
    };
    logits.iter().enumerate().map(|x| if target < 0 { 0.0 } else { one(x) }).collect()
}
