//! Log-probabilities from hidden states in f64, and the same with the roundings that `mod.rs` documents, except the
//! rounding at the store.

use crate::checks::rounding::{ULP, approximate, f32, sum_in_runs};
use std::f64::consts::{LN_2, LOG2_E};

#[derive(Clone, Copy, Debug)]
pub struct RowResults {
    pub log_prob: f64,
    pub entropy: f64,
    pub lse: f64,
}

/// Returns the logits of a row.
pub fn logits(hidden: &[f64], weight: &[f64]) -> Vec<f64> {
    weight.chunks_exact(hidden.len()).map(|w| w.iter().zip(hidden).map(|(w, h)| w * h).sum()).collect()
}

/// Returns log-probability of the target, entropy and log-sum-exp under softmax(logits · inv_temperature).
pub fn fwd(logits: &[f64], target: i32, inv_temperature: f64) -> RowResults {
    let row_max = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b * inv_temperature));
    let lse = row_max + logits.iter().map(|l| (l * inv_temperature - row_max).exp()).sum::<f64>().ln();
    let entropy = -logits.iter().map(|l| (l * inv_temperature - lse).exp() * (l * inv_temperature - lse)).sum::<f64>();
    match usize::try_from(target) {
        Ok(target) => RowResults { log_prob: logits[target] * inv_temperature - lse, entropy, lse },
        Err(_) => RowResults { log_prob: 0.0, entropy: 0.0, lse },
    }
}

/// [`logits`] in f32, adding the terms of each logit in order.
pub fn logits_rounded(hidden: &[f64], weight: &[f64]) -> Vec<f64> {
    weight.chunks_exact(hidden.len()).map(|w| sum_in_runs(w.iter().zip(hidden).map(|(w, h)| w * h), &[])).collect()
}

/// [`fwd`] with the kernel's roundings.
pub fn fwd_rounded(logits: &[f64], target: i32, inv_temperature: f64) -> RowResults {
    let factor = f32(inv_temperature * LOG2_E);
    let t: Vec<f64> = logits.iter().map(|z| f32(z * factor)).collect();
    let row_max = t.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let terms: Vec<(f64, f64)> =
        t.iter().map(|t| f32(t - row_max)).map(|x| (x, approximate(x.exp2(), 2.0 * ULP))).collect();
    let total = sum_in_runs(terms.iter().map(|(_, e)| *e), &[32, 16]);
    let moment = sum_in_runs(terms.iter().map(|(x, e)| e * x), &[32, 16]);
    let ln_sum = approximate(total.ln(), 2.0 * ULP);
    let (entropy, lse) = (ln_sum - LN_2 * f32(moment / total), row_max * LN_2 + ln_sum);
    match usize::try_from(target) {
        Ok(target) => RowResults { log_prob: f32(t[target] - row_max) * LN_2 - ln_sum, entropy, lse },
        Err(_) => RowResults { log_prob: 0.0, entropy: 0.0, lse },
    }
}

/// Returns the gradient of `d_log_prob · log_prob + d_entropy · entropy` with respect to the logits, by the chain
/// rule. `row` gives the row's lse and entropy, as the forward pass computed them. Tests check the gradient by finite
/// differences.
pub fn bwd(
    logits: &[f64],
    target: i32,
    inv_temperature: f64,
    [d_log_prob, d_entropy]: [f64; 2],
    row: &RowResults,
) -> Vec<f64> {
    let one = |(j, z): (usize, &f64)| {
        let ln_p = z * inv_temperature - row.lse;
        let of_log_prob = if j as i32 == target { -ln_p.exp_m1() } else { -ln_p.exp() };
        inv_temperature * (d_log_prob * of_log_prob - d_entropy * ln_p.exp() * (ln_p + row.entropy))
    };
    logits.iter().enumerate().map(|x| if target < 0 { 0.0 } else { one(x) }).collect()
}

/// [`bwd`] with the kernel's roundings.
pub fn bwd_rounded(
    logits: &[f64],
    target: i32,
    inv_temperature: f64,
    [d_log_prob, d_entropy]: [f64; 2],
    row: &RowResults,
) -> Vec<f64> {
    let (d_log_prob, d_entropy) = (f32(d_log_prob * inv_temperature), f32(d_entropy * inv_temperature));
    let one = |(j, z): (usize, &f64)| {
        let ln_p = f32(f32(z * inv_temperature) - row.lse);
        let p = approximate(ln_p.exp(), 2.0 * ULP);
        let of_log_prob = if j as i32 == target { approximate(-ln_p.exp_m1(), 2.0 * ULP) } else { -p };
        f32(d_log_prob * of_log_prob) - f32(d_entropy * f32(p * f32(ln_p + row.entropy)))
    };
    logits.iter().enumerate().map(|x| if target < 0 { 0.0 } else { one(x) }).collect()
}
