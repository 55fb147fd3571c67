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
