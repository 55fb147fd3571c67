//! The definition of SwiGLU in f64: exact, and with the roundings that `mod.rs` documents.

use crate::checks::rounding::{F32_ULP, approximate, derivative_at_zero, f32};

/// `silu(gate) * up`
pub fn fwd(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

/// Returns the gradients of `sum(dy * fwd(gate, up))` for gate and for up, by finite differences of the definition.
pub fn gradients_of_gate_up(gate: &[f64], up: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let each = |dg: f64, du: f64| -> Vec<f64> {
        let at = |g: f64, u: f64| derivative_at_zero(|h| fwd(&[g + h * dg], &[u + h * du])[0]);
        gate.iter().zip(up).zip(dy).map(|((&g, &u), d)| d * at(g, u)).collect()
    };
    (each(1.0, 0.0), each(0.0, 1.0))
}

/// `1 + e^-g`
fn denominator(g: f64) -> f64 {
    f32(1.0 + approximate((-g).exp(), 2.0 * F32_ULP))
}

/// Returns the results of [`fwd`], computed with the kernel's roundings.
pub fn fwd_rounded(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| approximate(g / denominator(*g), 2.0 * F32_ULP) * u).collect()
}

/// Returns [`gradients_of_gate_up`], computed with the kernel's roundings.
pub fn gradients_of_gate_up_rounded(gate: &[f64], up: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let one = |((&g, &u), &dy): ((&f64, &f64), &f64)| {
        let s = approximate(1.0 / denominator(g), 2.0 * F32_ULP);
        let bend = f32(1.0 + f32(g * f32(1.0 - s)));
        (f32(f32(dy * u) * s) * bend, f32(dy * g) * s)
    };
    gate.iter().zip(up).zip(dy).map(one).unzip()
}
