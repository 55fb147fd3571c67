//! The definition, in f64.

/// `silu(gate) * up`
pub fn fwd(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

/// The gradients of `sum(dy * fwd(gate, up))` by central differences of the definition.
pub fn bwd(gate: &[f64], up: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let h = 1e-5;
    let slope =
        |g: f64, u: f64, dg: f64, du: f64| (fwd(&[g + dg], &[u + du])[0] - fwd(&[g - dg], &[u - du])[0]) / (2.0 * h);
    let each = |dg: f64, du: f64| -> Vec<f64> {
        gate.iter().zip(up).zip(dy).map(|((&g, &u), d)| d * slope(g, u, dg, du)).collect()
    };
    (each(h, 0.0), each(0.0, h))
}
