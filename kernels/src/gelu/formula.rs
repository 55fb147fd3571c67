//! The definition, in f64.

/// `x · (1 + erf(x / √2)) / 2`
pub fn fwd(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / 2f64.sqrt()))
}

/// `x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2`
pub fn tanh_fwd(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

/// The derivative of [`fwd`] or [`tanh_fwd`] by central differences.
pub fn slope(fwd: fn(f64) -> f64, x: f64) -> f64 {
    let h = 1e-5;
    (fwd(x + h) - fwd(x - h)) / (2.0 * h)
}

/// `erf(x) = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (1 · 3 · … · (2n+1))`, whose terms are all of one sign.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}
