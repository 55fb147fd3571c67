use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{BwdParams, FwdParams, STATE_BYTES_PER_ROW, bwd, formula, fwd, test_cases_rows_vocab_scale_temperature};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(
    equals_the_formula_to_a_millionth,
    chunks_and_entropies_equal_the_formula,
    a_row_in_chunks_equals_the_whole_row,
    gradient_equals_the_formula,
    gradient_of_chunks_and_entropies_equals_the_formula,
    a_certain_token_has_no_gradient_and_an_impossible_one_no_probability,
    bad_logits_and_bad_targets_are_nan,
    threads_and_other_rows_change_nothing
);

/// Launches the forward kernel once, on the whole vocabulary; returns log_prob and lse.
fn forward(logits: &[f32], targets: &[i32], inv_temperature: f32, threads: usize) -> (Vec<f32>, Vec<f32>) {
    let [log_prob, _, lse] = log_prob_in_chunks(logits, targets, inv_temperature, usize::MAX, false, threads);
    (log_prob, lse)
}

/// Returns the logits of the columns `first .. first + columns` of every row.
fn part(logits: &[f32], rows: usize, first: usize, columns: usize) -> Vec<f32> {
    let vocab = logits.len() / rows;
    logits.chunks_exact(vocab).flat_map(|row| &row[first..first + columns]).copied().collect()
}

/// Returns log_prob, entropy (NaN unless requested) and lse, computed by launches on chunks of at most `most`
/// columns.
pub(crate) fn log_prob_in_chunks(
    logits: &[f32],
    targets: &[i32],
    inv_temperature: f32,
    most: usize,
    with_entropy: bool,
    threads: usize,
) -> [Vec<f32>; 3] {
    let (rows, vocab) = (targets.len(), logits.len() / targets.len());
    let [mut log_prob, mut entropy, mut lse] = [0, 1, 2].map(|_| vec![f32::NAN; rows]);
    // The state starts uninitialised: no launch may read it before the first one has written it.
    let state = TestArray::output(F32, STATE_BYTES_PER_ROW / 4 * rows);
    for first in (0..vocab).step_by(most.min(vocab)) {
        let columns = most.min(vocab - first);
        let logits = part(logits, rows, first, columns);
        let params = FwdParams {
            logits: addr(&logits),
            targets: addr(targets),
            log_prob: addr_mut(&mut log_prob),
            entropy: if with_entropy { addr_mut(&mut entropy) } else { Addr::NULL },
            lse: addr_mut(&mut lse),
            state: if columns < vocab { state.addr() } else { Addr::NULL },
            rows: rows as u32,
            vocab: vocab as u32,
            first: first as u32,
            columns: columns as u32,
            inv_temperature,
            reserved: 0,
        };
        run(&fwd(&params), threads);
    }
    [log_prob, entropy, lse]
}

/// Inputs of the backward kernel, except the logits.
struct Grads<'a> {
    targets: &'a [i32],
    lse: &'a [f32],
    grad: &'a [f32],
    /// The entropy and its gradient.
    entropy: Option<[&'a [f32]; 2]>,
    s: f32,
}

/// Returns the gradient of the logits, computed by launches on chunks of at most `most` columns.
fn backward(dtype: DType, logits: &[f32], g: &Grads, most: usize) -> Vec<f32> {
    let (rows, vocab) = (g.targets.len(), logits.len() / g.targets.len());
    let mut all = vec![0.0; logits.len()];
    for first in (0..vocab).step_by(most.min(vocab)) {
        let columns = most.min(vocab - first);
        let logits = part(logits, rows, first, columns);
        let d_logits = TestArray::output(dtype, logits.len());
        let params = BwdParams {
            logits: addr(&logits),
            targets: addr(g.targets),
            lse: addr(g.lse),
            entropy: g.entropy.map_or(Addr::NULL, |e| addr(e[0])),
            grad: addr(g.grad),
            d_entropy: g.entropy.map_or(Addr::NULL, |e| addr(e[1])),
            d_logits: d_logits.addr(),
            rows: rows as u32,
            vocab: vocab as u32,
            first: first as u32,
            columns: columns as u32,
            inv_temperature: g.s,
            reserved: 0,
        };
        run(&bwd(dtype, &params), 2);
        for (row, part) in all.chunks_exact_mut(vocab).zip(d_logits.values().chunks_exact(columns)) {
            row[first..first + columns].copy_from_slice(part);
        }
    }
    all
}

/// Returns the target of each row. Three kinds alternate: the column of the largest logit of the first row, some
/// other column, and −100, which means that the row is ignored.
fn targets(logits: &[f32], rows: usize, vocab: usize) -> Vec<i32> {
    let largest = (0..vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
    (0..rows).map(|r| [largest as i32, (r * 7919 % vocab) as i32, -100][r % 3]).collect()
}

fn equals_the_formula_to_a_millionth() {
    for (rows, vocab, scale, temperature) in test_cases_rows_vocab_scale_temperature() {
        let (logits, s) = (normal_numbers(rows * vocab, 1, scale), 1.0 / temperature);
        let targets = targets(&logits, rows, vocab);
        let (log_prob, lse) = forward(&logits, &targets, s, 2);
        let exact: Vec<f64> = logits.iter().map(|&x| x as f64).collect();
        let each = |f: &dyn Fn(&[f64], i32) -> f64| -> Vec<f64> {
            exact.chunks_exact(vocab).zip(&targets).map(|(l, &t)| f(l, t)).collect()
        };
        let want = each(&|l, t| formula::log_prob(l, t, s as f64));
        // The error is relative to the result, because a log-probability near 0 must keep its digits.
        for (i, (&got, &want)) in log_prob.iter().zip(&want).enumerate() {
            // A log-probability near 0 is about −e^−x, where x is the distance of the target's logit from the others. A
            // relative rounding error of x changes the result by x times that error; x is about |ln want|, the last
            // factor below. 1e-13 allows for the f64 rounding of the formula.
            let allowed = 4e-7 * want.abs() * want.abs().max(1e-300).ln().abs().max(1.0) + 1e-13;
            assert!((got as f64 - want).abs() <= allowed, "row {i} of {rows}x{vocab}: {got}, want {want}");
        }
        let name = format!("{rows}x{vocab}");
        let with = each(&|l, t| formula::log_prob_rounded(l, t, s as f64));
        assert_rounded(&format!("log_prob {name}"), F32, &log_prob, &with, &want, DEFAULT_ROUNDING_FACTOR);
        let [with, want] = [formula::lse_rounded, formula::lse].map(|f| each(&|l, _| f(l, s as f64)));
        assert_rounded(&format!("lse {name}"), F32, &lse, &with, &want, DEFAULT_ROUNDING_FACTOR);
    }
}

/// Returns the tolerance of the gradient of logits as a multiple of the error of one rounding. In f32 the exponent is a
/// rounded difference of numbers up to `largest`, the largest scaled logit, so the tolerance grows with `largest`. The
/// tolerance also grows where 1 − p cancels because a token's probability p is near 1: the gradient `want` is then
/// small compared with `scaled`, the gradients of the results times the inverse temperature.
pub(crate) fn gradient_tolerance(
    dtype: DType,
    largest: f64,
    mut scaled: impl Iterator<Item = f64>,
    want: &[f64],
) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let left = (norm(&mut scaled) / norm(&mut want.iter().copied())).max(1.0);
    if dtype == F32 { DEFAULT_ROUNDING_FACTOR * (1.0 + largest * left) } else { DEFAULT_ROUNDING_FACTOR }
}

fn gradient_equals_the_formula() {
    for (rows, vocab, scale, temperature) in test_cases_rows_vocab_scale_temperature().into_iter().filter(|c| c.1 > 1) {
        let (logits, s, grad) =
            (normal_numbers(rows * vocab, 1, scale), 1.0 / temperature, normal_numbers(rows, 2, 1.0));
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
            let grads = Grads { targets: &targets, lse: &lse, grad: &grad, entropy: None, s };
            let got = backward(dtype, &logits, &grads, usize::MAX);
            let largest = exact.iter().fold(0.0f64, |a, l| a.max((l * s as f64).abs()));
            let rounding_factor = gradient_tolerance(dtype, largest, grad.iter().map(|&g| (g * s) as f64), &want);
            assert_rounded(&format!("d_logits {rows}x{vocab}"), dtype, &got, &with, &want, rounding_factor);
        }
    }
}

/// Cases in which several launches compute a row: (rows, vocabulary, scale of the logits, temperature, columns per
/// launch). The last launch of a row may have fewer columns.
fn chunked() -> Vec<(usize, usize, f32, f32, usize)> {
    vec![
        (1, 1, 1.0, 1.0, 1),
        (17, 19, 1.0, 0.7, 8),
        (5, 8191, 8.0, 1.0, 2500),
        (4, 9000, 3.0, 1.3, 4096),
        (3, 1000, 0.0, 1.0, 999),
    ]
}

fn chunks_and_entropies_equal_the_formula() {
    // Most cases have so few rows that their error alone says little, so errors are measured over all cases together.
    let mut all: [(Vec<f32>, Vec<f64>, Vec<f64>); 3] = Default::default();
    for (rows, vocab, scale, temperature, columns) in chunked() {
        let (logits, s) = (normal_numbers(rows * vocab, 1, scale), 1.0 / temperature);
        let targets = targets(&logits, rows, vocab);
        let got = log_prob_in_chunks(&logits, &targets, s, columns, true, 2);
        for r in 0..rows {
            let row: Vec<f64> = logits[r * vocab..][..vocab].iter().map(|&x| x as f64).collect();
            let (target, s) = (targets[r], s as f64);
            let of = |log_prob: f64, entropy: f64, lse: f64| [log_prob, if target < 0 { 0.0 } else { entropy }, lse];
            let with = of(
                formula::log_prob_rounded(&row, target, s),
                formula::entropy_rounded(&row, s),
                formula::lse_rounded(&row, s),
            );
            let want = of(formula::log_prob(&row, target, s), formula::entropy(&row, s), formula::lse(&row, s));
            for (i, all) in all.iter_mut().enumerate() {
                let off = (got[i][r] as f64 - want[i]).abs();
                assert!(
                    off <= 4e-6 * (1.0 + want[i].abs()),
                    "{rows}x{vocab}, result {i} (log_prob, entropy, lse): {}, want {want:?}",
                    got[i][r]
                );
                all.0.push(got[i][r]);
                all.1.push(with[i]);
                all.2.push(want[i]);
            }
        }
        // log_prob and lse must have the same bits if the entropy is not computed and the number of threads differs.
        let alone = log_prob_in_chunks(&logits, &targets, s, columns, false, 3);
        assert_eq!((&alone[0], &alone[2]), (&got[0], &got[2]), "{rows}x{vocab}");
    }
    for (i, which) in ["log_prob", "entropy", "lse"].into_iter().enumerate() {
        let (got, with, want) = &all[i];
        assert_rounded(which, F32, got, with, want, if i == 1 { 8.0 } else { DEFAULT_ROUNDING_FACTOR });
    }
}

/// A row that is computed in chunks has the same results as a row computed in one launch. Chunks may hold only minus
/// infinities (with or without the target), a logit far above the others, a NaN or an infinity.
fn a_row_in_chunks_equals_the_whole_row() {
    const CHUNK: usize = 8;
    let mut logits = normal_numbers(5 * CHUNK, 3, 1.0);
    logits[..CHUNK].fill(f32::NEG_INFINITY);
    logits[3 * CHUNK..4 * CHUNK].fill(f32::NEG_INFINITY);
    logits[2 * CHUNK + 1] = 200.0;
    for target in [0, 9, 17, 30, 39, 40, -1] {
        let [chunks, whole] =
            [CHUNK, usize::MAX].map(|most| log_prob_in_chunks(&logits, &[target], 0.5, most, true, 1));
        for (got, want) in chunks.iter().flatten().zip(whole.iter().flatten()) {
            let equal = got == want || got.is_nan() && want.is_nan() || (got - want).abs() <= 1e-6 * want.abs() + 1e-30;
            assert!(equal, "target {target}: {chunks:?}, want {whole:?}");
        }
        // The entropy is near 0, since the other tokens' probabilities are about e^-100.
        assert!(chunks[1][0].abs() < 1e-30, "{chunks:?}");
    }
    for poison in [f32::NAN, f32::INFINITY] {
        for at in [3, 20, 39] {
            let mut logits = logits.clone();
            logits[at] = poison;
            let got = log_prob_in_chunks(&logits, &[9], 0.5, CHUNK, true, 1);
            assert!(got.iter().flatten().all(|x| x.is_nan()), "{poison} at {at}: {got:?}");
        }
    }
    let nothing = log_prob_in_chunks(&[f32::NEG_INFINITY; 20], &[3], 1.0, CHUNK, true, 1);
    assert!(nothing.iter().flatten().all(|x| x.is_nan()), "{nothing:?}");
}

fn gradient_of_chunks_and_entropies_equals_the_formula() {
    for (rows, vocab, scale, temperature, columns) in chunked().into_iter().filter(|c| c.1 > 1) {
        let (logits, s) = (normal_numbers(rows * vocab, 1, scale), 1.0 / temperature);
        let (grad, d_entropy) = (normal_numbers(rows, 2, 1.0), normal_numbers(rows, 4, 1.0));
        let targets = targets(&logits, rows, vocab);
        let [_, entropy, lse] = log_prob_in_chunks(&logits, &targets, s, columns, true, 1);
        let (mut with, mut want) = (Vec::new(), Vec::new());
        let mut largest = 0.0f64;
        for r in 0..rows {
            let row: Vec<f64> = logits[r * vocab..][..vocab].iter().map(|&x| x as f64).collect();
            let of = formula::RowStatistics { entropy: entropy[r] as f64, lse: lse[r] as f64 };
            let (grads, s) = ([grad[r] as f64, d_entropy[r] as f64], s as f64);
            want.extend(formula::bwd_with_entropy(&row, targets[r], s, grads, &of));
            with.extend(formula::bwd_with_entropy_rounded(&row, targets[r], s, grads, &of));
            largest = row.iter().fold(largest, |a, l| a.max((l * s).abs()));
        }
        let grads =
            Grads { targets: &targets, lse: &lse, grad: &grad, entropy: Some([&entropy[..], &d_entropy[..]]), s };
        for dtype in [F32, BF16] {
            let got = backward(dtype, &logits, &grads, columns);
            let scaled = grad.iter().chain(&d_entropy).map(|&g| (g * s) as f64);
            let rounding_factor = gradient_tolerance(dtype, largest, scaled, &want);
            assert_rounded(
                &format!("d_logits {rows}x{vocab} by {columns}"),
                dtype,
                &got,
                &with,
                &want,
                rounding_factor,
            );
            // Each logit's gradient is computed on its own: chunking must not change any bit.
            assert_eq!(backward(dtype, &logits, &grads, usize::MAX), got, "{rows}x{vocab} {dtype}");
        }
    }
}

fn a_certain_token_has_no_gradient_and_an_impossible_one_no_probability() {
    let mut logits = vec![-50.0; 40];
    logits[3] = 50.0;
    logits[5] = f32::NEG_INFINITY;
    let (log_prob, lse) = forward(&[logits.clone(), logits.clone()].concat(), &[3, 5], 1.0, 1);
    assert_eq!(log_prob, [0.0, f32::NEG_INFINITY]);
    let grads = Grads { targets: &[3], lse: &lse[..1], grad: &[1.0], entropy: None, s: 1.0 };
    let d = backward(F32, &logits, &grads, usize::MAX);
    assert!(d.iter().all(|d| d.abs() < 1e-30), "{d:?}");
}

fn bad_logits_and_bad_targets_are_nan() {
    for poison in [f32::NAN, f32::INFINITY] {
        let mut logits = normal_numbers(50, 1, 1.0);
        logits[31] = poison;
        assert!(forward(&logits, &[2], 1.0, 1).0[0].is_nan());
    }
    let logits = normal_numbers(50, 1, 1.0);
    assert!(forward(&logits, &[50], 1.0, 1).0[0].is_nan());
    let grads = Grads { targets: &[50], lse: &[1.0], grad: &[1.0], entropy: None, s: 1.0 };
    assert!(backward(F32, &logits, &grads, 20).iter().all(|d| d.is_nan()));
}

fn threads_and_other_rows_change_nothing() {
    let (rows, vocab) = (7, 3001);
    let logits = normal_numbers(rows * vocab, 1, 4.0);
    let targets = targets(&logits, rows, vocab);
    let all = forward(&logits, &targets, 0.9, 1);
    assert_eq!(forward(&logits, &targets, 0.9, 4), all);
    let alone = forward(&logits[4 * vocab..5 * vocab], &targets[4..5], 0.9, 2);
    assert_eq!((alone.0[0], alone.1[0]), (all.0[4], all.1[4]));
}

#[cfg(test)]
mod tests;
