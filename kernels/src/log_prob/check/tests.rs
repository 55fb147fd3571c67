use super::*;
use crate::checks::rounding::derivative_at_zero;

#[test]
fn the_chain_rule_equals_differences() {
    let (logits, s) = (TestArray::new(F32, &normal_numbers(12, 1, 1.0)).to_f64(), 0.8);
    for target in [-1, 0, 7] {
        let got = formula::bwd(&logits, target, s, formula::lse(&logits, s));
        for (i, got) in got.iter().enumerate() {
            let want = derivative_at_zero(|h| {
                let mut moved = logits.clone();
                moved[i] += h;
                formula::log_prob(&moved, target, s)
            });
            assert!((got - want).abs() < 1e-9, "target {target}, logit {i}: {got}, want {want}");
        }
    }
}

#[test]
fn the_chain_rule_with_entropies_equals_differences() {
    let (logits, s, grads) = (TestArray::new(F32, &normal_numbers(12, 1, 1.0)).to_f64(), 0.8, [0.7, -1.3]);
    for target in [-1, 0, 7] {
        let row = formula::RowStatistics { entropy: formula::entropy(&logits, s), lse: formula::lse(&logits, s) };
        let got = formula::bwd_with_entropy(&logits, target, s, grads, &row);
        for (i, got) in got.iter().enumerate() {
            let want = derivative_at_zero(|h| {
                let mut moved = logits.clone();
                moved[i] += h;
                // In a row without a target neither the log-probability nor the entropy has a gradient.
                match target {
                    ..0 => 0.0,
                    _ => grads[0] * formula::log_prob(&moved, target, s) + grads[1] * formula::entropy(&moved, s),
                }
            });
            assert!((got - want).abs() < 1e-9, "target {target}, logit {i}: {got}, want {want}");
        }
    }
}
