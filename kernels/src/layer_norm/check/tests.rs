use super::*;
use crate::checks::rounding::derivative_at_zero;

#[test]
fn the_chain_rule_equals_differences() {
    let (rows, cols) = (3, 7);
    let data = |count, seed| TestArray::new(F32, &normal_numbers(count, seed, 1.0)).to_f64();
    let (dy, inputs) = (data(rows * cols, 4), [data(rows * cols, 1), data(cols, 2), data(cols, 3)]);
    let loss = |[x, w, b]: [&[f64]; 3]| -> f64 {
        let y = formula::fwd(x, [w, b], &statistics(formula::mean_and_rstd, x, cols), unrounded);
        y.iter().zip(&dy).map(|(y, d)| y * d).sum()
    };
    let [x, w, _] = &inputs;
    let got = formula::gradients_of_x_w_b(x, w, &dy, &statistics(formula::mean_and_rstd, x, cols));
    for (which, got) in got.iter().enumerate() {
        for (i, got) in got.iter().enumerate() {
            let want = derivative_at_zero(|h| {
                let mut moved = inputs.clone();
                moved[which][i] += h;
                loss(moved.each_ref().map(|v| &v[..]))
            });
            assert!((got - want).abs() < 1e-8, "gradient {which}, {i}: {got}, want {want}");
        }
    }
}
