//! The definition, in f64.

/// What is asked about one row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub log_prob: f64,
    pub entropy: f64,
    pub lse: f64,
}

/// The logits of a row.
pub fn logits(hidden: &[f64], weight: &[f64]) -> Vec<f64> {
    weight.chunks_exact(hidden.len()).map(|w| w.iter().zip(hidden).map(|(w, h)| w * h).sum()).collect()
}

/// Log-probability of the target and entropy under softmax(logits · s).
pub fn fwd(logits: &[f64], target: i32, s: f64) -> Row {
    let top = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b * s));
    let lse = top + logits.iter().map(|l| (l * s - top).exp()).sum::<f64>().ln();
    let entropy = -logits.iter().map(|l| (l * s - lse).exp() * (l * s - lse)).sum::<f64>();
    match usize::try_from(target) {
        Ok(target) => Row { log_prob: logits[target] * s - lse, entropy, lse },
        Err(_) => Row { log_prob: 0.0, entropy: 0.0, lse },
    }
}

/// The gradient of `a · log_prob + b · entropy` for the logits, by central differences.
pub fn bwd(logits: &[f64], target: i32, s: f64, a: f64, b: f64) -> Vec<f64> {
    let h = 1e-5;
    let at = |j: usize, h: f64| {
        let mut moved = logits.to_vec();
        moved[j] += h;
        let row = fwd(&moved, target, s);
        a * row.log_prob + b * row.entropy
    };
    (0..logits.len()).map(|j| (at(j, h) - at(j, -h)) / (2.0 * h)).collect()
}
