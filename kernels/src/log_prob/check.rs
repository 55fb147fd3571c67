use super::{BwdParams, FwdParams, bwd, cases, formula, fwd};
use crate::DType;
use crate::DType::{BF16, F32};
use crate::checks::{Data, addr, addr_mut, checks, numbers, run};
use crate::compare::{OF_ONE, assert_rounded};

checks!(
    equals_the_formula_to_a_millionth,
    gradient_equals_the_formula,
    a_certain_token_has_no_gradient_and_an_impossible_one_no_probability,
    bad_logits_and_bad_targets_are_nan,
    threads_and_other_rows_change_nothing
);

/// log_prob and lse.
fn forward(logits: &[f32], targets: &[i32], inv_temperature: f32, threads: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = targets.len();
    let (mut log_prob, mut lse) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
    let params = FwdParams {
        logits: addr(logits),
        targets: addr(targets),
        log_prob: addr_mut(&mut log_prob),
        lse: addr_mut(&mut lse),
        rows: rows as u32,
        vocab: (logits.len() / rows) as u32,
        inv_temperature,
        reserved: 0,
    };
    run(&fwd(&params), threads);
    (log_prob, lse)
}

fn backward(dtype: DType, logits: &[f32], targets: &[i32], lse: &[f32], grad: &[f32], s: f32) -> Vec<f32> {
    let d_logits = Data::output(dtype, logits.len());
    let params = BwdParams {
        logits: addr(logits),
        targets: addr(targets),
        lse: addr(lse),
        grad: addr(grad),
        d_logits: d_logits.addr(),
        rows: targets.len() as u32,
        vocab: (logits.len() / targets.len()) as u32,
        inv_temperature: s,
        reserved: 0,
    };
    run(&bwd(dtype, &params), 2);
    d_logits.values()
}

/// First the largest logit, then others, the third row ignored.
fn targets(logits: &[f32], rows: usize, vocab: usize) -> Vec<i32> {
    let largest = (0..vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
    (0..rows).map(|r| [largest as i32, (r * 7919 % vocab) as i32, -100][r % 3]).collect()
}

fn equals_the_formula_to_a_millionth() {
    for (rows, vocab, scale, temperature) in cases() {
        let (logits, s) = (numbers(rows * vocab, 1, scale), 1.0 / temperature);
        let targets = targets(&logits, rows, vocab);
        let (log_prob, lse) = forward(&logits, &targets, s, 2);
        let exact: Vec<f64> = logits.iter().map(|&x| x as f64).collect();
        let each = |f: &dyn Fn(&[f64], i32) -> f64| -> Vec<f64> {
            exact.chunks_exact(vocab).zip(&targets).map(|(l, &t)| f(l, t)).collect()
        };
        let want = each(&|l, t| formula::log_prob(l, t, s as f64));
        // Relative to the result: a token that is all but certain keeps its places.
        for (i, (&got, &want)) in log_prob.iter().zip(&want).enumerate() {
            // That is e^-x where all others are x or more below, and the rounding of x is relative to x; the sum is f64.
            // The formula itself subtracts in f64 what is up to e^3 in size.
            let allowed = 4e-7 * want.abs() * want.abs().max(1e-300).ln().abs().max(1.0) + 1e-13;
            assert!((got as f64 - want).abs() <= allowed, "row {i} of {rows}x{vocab}: {got}, want {want}");
        }
        let name = format!("{rows}x{vocab}");
        let with = each(&|l, t| formula::log_prob_rounded(l, t, s as f64));
        assert_rounded(&format!("log_prob {name}"), F32, &log_prob, &with, &want, OF_ONE);
        let [with, want] = [formula::lse_rounded, formula::lse].map(|f| each(&|l, _| f(l, s as f64)));
        assert_rounded(&format!("lse {name}"), F32, &lse, &with, &want, OF_ONE);
    }
}

fn gradient_equals_the_formula() {
    for (rows, vocab, scale, temperature) in cases().into_iter().filter(|c| c.1 > 1) {
        let (logits, s, grad) = (numbers(rows * vocab, 1, scale), 1.0 / temperature, numbers(rows, 2, 1.0));
        let targets = targets(&logits, rows, vocab);
        let (_, lse) = forward(&logits, &targets, s, 1);
        let exact: Vec<f64> = logits.iter().map(|&x| x as f64).collect();
        let row = |r: usize| (&exact[r * vocab..][..vocab], targets[r], s as f64, lse[r] as f64, grad[r] as f64);
        let (mut with, mut want) = (Vec::new(), Vec::new());
        for (l, t, s, lse, grad) in (0..rows).map(row) {
            want.extend(formula::bwd(l, t, s, lse).iter().map(|d| d * grad));
            with.extend(formula::bwd_rounded(l, t, s, lse, grad));
        }
        for dtype in [F32, BF16] {
            let got = backward(dtype, &logits, &targets, &lse, &grad, s);
            // In f32 the exponent is rounded, a difference of numbers as large as the logits.
            let largest = exact.iter().fold(0.0f64, |a, l| a.max((l * s as f64).abs()));
            // Where a token is all but certain, little is left of the difference of 1 and p.
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let whole = norm(&mut grad.iter().map(|&g| (g * s) as f64));
            let left = (whole / norm(&mut want.iter().copied())).max(1.0);
            let of_one = if dtype == F32 { OF_ONE * (1.0 + largest * left) } else { OF_ONE };
            assert_rounded(&format!("d_logits {rows}x{vocab}"), dtype, &got, &with, &want, of_one);
        }
    }
}

fn a_certain_token_has_no_gradient_and_an_impossible_one_no_probability() {
    let mut logits = vec![-50.0; 40];
    logits[3] = 50.0;
    logits[5] = f32::NEG_INFINITY;
    let (log_prob, lse) = forward(&[logits.clone(), logits.clone()].concat(), &[3, 5], 1.0, 1);
    assert_eq!(log_prob, [0.0, f32::NEG_INFINITY]);
    let d = backward(F32, &logits, &[3], &lse[..1], &[1.0], 1.0);
    assert!(d.iter().all(|d| d.abs() < 1e-30), "{d:?}");
}

fn bad_logits_and_bad_targets_are_nan() {
    for poison in [f32::NAN, f32::INFINITY] {
        let mut logits = numbers(50, 1, 1.0);
        logits[31] = poison;
        assert!(forward(&logits, &[2], 1.0, 1).0[0].is_nan());
    }
    let logits = numbers(50, 1, 1.0);
    assert!(forward(&logits, &[50], 1.0, 1).0[0].is_nan());
    assert!(backward(F32, &logits, &[50], &[1.0], &[1.0], 1.0).iter().all(|d| d.is_nan()));
}

fn threads_and_other_rows_change_nothing() {
    let (rows, vocab) = (7, 3001);
    let logits = numbers(rows * vocab, 1, 4.0);
    let targets = targets(&logits, rows, vocab);
    let all = forward(&logits, &targets, 0.9, 1);
    assert_eq!(forward(&logits, &targets, 0.9, 4), all);
    let alone = forward(&logits[4 * vocab..5 * vocab], &targets[4..5], 0.9, 2);
    assert_eq!((alone.0[0], alone.1[0]), (all.0[4], all.1[4]));
}

#[cfg(test)]
mod tests;
