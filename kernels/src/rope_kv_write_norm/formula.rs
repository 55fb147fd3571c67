//! The definition in f64 is that of `rope_kv_write` for normalised heads.

use crate::rms_norm;

/// Returns the heads of x, each normalised with the weights w. `rstd` computes the scale of a head; `round` rounds to
/// the element type.
pub fn normalise(x: &[f64], w: &[f64], rstd: impl Fn(&[f64]) -> f64, round: fn(f64) -> f64) -> Vec<f64> {
    let rstds: Vec<f64> = x.chunks_exact(w.len()).map(rstd).collect();
    rms_norm::formula::fwd(x, w, &rstds, round).into_iter().map(round).collect()
}
