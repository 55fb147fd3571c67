//! The definition of AdamW in f64, and a second version with the f32 roundings that `mod.rs` documents.

use crate::checks::rounding::f32;

use super::StepHyperparameters;

/// Returns the state after one AdamW step from the state `[w, m, v]`. `g` is the gradient, already clipped.
pub fn step(s: &StepHyperparameters, [w, m, v]: [f64; 3], g: f64) -> [f64; 3] {
    let w = w * (1.0 - s.lr * s.weight_decay);
    let m = s.beta1 * m + (1.0 - s.beta1) * g;
    let v = s.beta2 * v + (1.0 - s.beta2) * g * g;
    let (bias1, bias2) = (1.0 - s.beta1.powf(s.step as f64), 1.0 - s.beta2.powf(s.step as f64));
    [w - s.lr / bias1 * m / ((v / bias2).sqrt() + s.eps), m, v]
}

/// Computes [`step`] with every operation rounded to f32.
pub fn step_rounded(s: &StepHyperparameters, [w, m, v]: [f64; 3], g: f64) -> [f64; 3] {
    let p = s.step_numbers();
    let [lr, rest1, beta2, rest2, eps] = [p.lr, p.rest1, p.beta2, p.rest2, p.eps].map(|x| x as f64);
    let g = f32(g);
    let m = f32(m + f32(rest1 * f32(g - m)));
    let v = f32(f32(beta2 * v) + f32(rest2 * f32(g * g)));
    let root = f32(f32(f32(v.sqrt()) / f32((p.bias2 as f64).sqrt())) + eps);
    let (decay, size) = (f32(1.0 - lr * p.weight_decay as f64), f32(lr / p.bias1 as f64));
    [f32(f32(w * decay) - f32(size * f32(m / root))), m, v]
}

/// The definition of the split of an f32 that is not NaN. Without the sign bit, the high half is the multiple of 2¹⁶
/// nearest to the f32's bits (ties upwards), and the low half is the bits minus that multiple. The sign bit goes to
/// the high half.
#[cfg(test)]
pub fn split_to_bf16_and_remainder(x: f32) -> (u16, i16) {
    let (sign, magnitude) = (x.to_bits() >> 31, (x.to_bits() & 0x7fff_ffff) as i64);
    let hi = (magnitude as f64 / 65536.0 + 0.5).floor() as i64;
    ((sign << 15) as u16 | hi as u16, (magnitude - (hi << 16)) as i16)
}
