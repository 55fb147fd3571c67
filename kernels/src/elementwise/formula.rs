//! The definitions of the element-wise operations, in f64.

/// The sum `a + b`.
pub fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Returns the value of an IEEE binary16 with sign s, exponent e and mantissa m: `(−1)^s · 2^(e−15) · 1.m`, or `2^−14
/// · 0.m` for e = 0.
pub fn f16_to_f64(bits: u16) -> f64 {
    let (e, m) = ((bits >> 10 & 31) as i32, (bits & 0x3ff) as f64 / 1024.0);
    let magnitude = match e {
        0 => m * 2f64.powi(-14),
        31 if m == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + m) * 2f64.powi(e - 15),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}
