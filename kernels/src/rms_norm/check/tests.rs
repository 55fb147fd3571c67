use super::*;
use crate::checks::rounding::derivative_at_zero;

#[test]
fn the_chain_rule_equals_differences() {
    let (rows, cols) = (3, 7);
    let data = |count, seed| TestArray::new(F32, &normal_numbers(count, seed, 1.0)).to_f64();
    let (x, w, dy) = (data(rows * cols, 1), data(cols, 2), data(rows * cols, 3));
    let rstds = |x: &[f64]| x.chunks_exact(cols).map(|x| formula::rstd(x, EPS as f64)).collect::<Vec<_>>();
    let loss = |x: &[f64], w: &[f64]| -> f64 {
        formula::fwd(x, w, &rstds(x), unrounded).iter().zip(&dy).map(|(y, d)| y * d).sum()
    };
    let moved = |v: &[f64], i: usize, h: f64| {
        v.iter().enumerate().map(|(j, v)| if i == j { v + h } else { *v }).collect::<Vec<_>>()
    };
    let [dx, dw] = formula::gradients_of_x_w(&x, &w, &dy, &rstds(&x));
    for (i, got) in dx.iter().enumerate() {
        let want = derivative_at_zero(|h| loss(&moved(&x, i, h), &w));
        assert!((got - want).abs() < 1e-8, "dx {i}: {got}, want {want}");
    }
    for (i, got) in dw.iter().enumerate() {
        let want = derivative_at_zero(|h| loss(&x, &moved(&w, i, h)));
        assert!((got - want).abs() < 1e-8, "dw {i}: {got}, want {want}");
    }
}
