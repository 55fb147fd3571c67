use super::{BwdParams, FwdParams, bwd, formula, fwd, test_cases_rows_vocab_width_spread_temperature, workspace_bytes};
use crate::DType::{BF16, F32};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run, with_one_interleaving};
use crate::compare::assert_rounded;
use crate::log_prob::check::gradient_tolerance;
use crate::{Addr, DType};

checks!(
    equals_the_formula,
    gradient_equals_the_formula,
    bad_targets_and_bad_states_are_nan,
    threads_and_other_rows_change_nothing,
);

struct Given {
    dtype: DType,
    hidden: TestArray,
    weight: TestArray,
    targets: Vec<i32>,
    vocab: usize,
    width: usize,
    s: f32,
}

/// [log_prob, entropy, lse], each with one element per row.
type Answer = [Vec<f32>; 3];

impl Given {
    fn new(dtype: DType, (rows, vocab, width, spread, temperature): (usize, usize, usize, f32, f32)) -> Given {
        let targets = (0..rows).map(|r| if r % 5 == 3 { -1 } else { (r * 7919 % vocab) as i32 }).collect();
        let hidden = TestArray::new(dtype, &normal_numbers(rows * width, 1, spread));
        let weight = TestArray::new(dtype, &normal_numbers(vocab * width, 2, (width as f32).powf(-0.5)));
        Given { dtype, hidden, weight, targets, vocab, width, s: 1.0 / temperature }
    }

    fn rows(&self) -> usize {
        self.targets.len()
    }

    fn logits_by(&self, f: fn(&[f64], &[f64]) -> Vec<f64>, row: usize) -> Vec<f64> {
        f(&self.hidden.to_f64()[row * self.width..][..self.width], &self.weight.to_f64())
    }

    fn logits(&self, row: usize) -> Vec<f64> {
        self.logits_by(formula::logits, row)
    }

    /// Launches the forward kernel on the first `rows` rows.
    fn forward(&self, rows: usize, threads: usize) -> Answer {
        let [mut log_prob, mut entropy, mut lse] = [0, 1, 2].map(|_| vec![f32::NAN; rows]);
        let scratch = TestArray::output(F32, workspace_bytes(rows, self.vocab) / 4);
        let params = FwdParams {
            hidden: self.hidden.addr(),
            weight: self.weight.addr(),
            targets: addr(&self.targets),
            log_prob: addr_mut(&mut log_prob),
            entropy: addr_mut(&mut entropy),
            lse: addr_mut(&mut lse),
            workspace: scratch.addr(),
            rows: rows as u32,
            vocab: self.vocab as u32,
            width: self.width as u32,
            inv_temperature: self.s,
        };
        run(&fwd(self.dtype, &params), threads);
        [log_prob, entropy, lse]
    }

    /// Launches the backward kernel on chunks of `columns` columns of the vocabulary, one after the other, and
    /// returns d_logits of the whole vocabulary.
    fn backward(&self, answer: &Answer, d_log_prob: &[f32], d_entropy: Option<&[f32]>, columns: usize) -> Vec<f32> {
        let mut all = vec![0.0; self.rows() * self.vocab];
        for first in (0..self.vocab).step_by(columns) {
            let columns = columns.min(self.vocab - first);
            let d_logits = TestArray::output(self.dtype, self.rows() * columns);
            let params = BwdParams {
                hidden: self.hidden.addr(),
                weight: self.weight.addr(),
                targets: addr(&self.targets),
                lse: addr(&answer[2]),
                entropy: if d_entropy.is_some() { addr(&answer[1]) } else { Addr::NULL },
                d_log_prob: addr(d_log_prob),
                d_entropy: d_entropy.map_or(Addr::NULL, addr),
                d_logits: d_logits.addr(),
                rows: self.rows() as u32,
                vocab: self.vocab as u32,
                width: self.width as u32,
                first: first as u32,
                columns: columns as u32,
                inv_temperature: self.s,
            };
            run(&bwd(self.dtype, &params), 2);
            for (row, part) in all.chunks_exact_mut(self.vocab).zip(d_logits.values().chunks_exact(columns)) {
                row[first..first + columns].copy_from_slice(part);
            }
        }
        all
    }
}

/// Tolerance in f32 as a multiple of the error of one rounding: logits are sums, and two terms of the entropy cancel.
const ROUNDING_FACTOR_F32: f64 = 8.0;

fn equals_the_formula() {
    for dtype in [F32, BF16] {
        // Most cases have so few rows that their error alone says little, so errors are measured over all cases
        // together.
        let mut all: [(Vec<f32>, Vec<f64>, Vec<f64>); 3] = Default::default();
        for case in test_cases_rows_vocab_width_spread_temperature() {
            let given = Given::new(dtype, case);
            let got = given.forward(given.rows(), 2);
            let want: Vec<formula::RowResults> =
                (0..given.rows()).map(|r| formula::fwd(&given.logits(r), given.targets[r], given.s as f64)).collect();
            // The kernel sums logits in f32 for bf16 operands too and never rounds them to bf16, so the tolerance is
            // the same.
            let size = |r: usize| given.logits(r).iter().fold(1.0f64, |a, l| a.max((l * given.s as f64).abs()));
            for (r, want) in want.iter().enumerate() {
                let rounded = given.logits_by(formula::logits_rounded, r);
                let with = formula::fwd_rounded(&rounded, given.targets[r], given.s as f64);
                let answers = |row: &formula::RowResults| [row.log_prob, row.entropy, row.lse];
                for (i, all) in all.iter_mut().enumerate() {
                    all.0.push(got[i][r]);
                    all.1.push(answers(&with)[i]);
                    all.2.push(answers(want)[i]);
                }
                let allowed = 2e-6 * size(r);
                let pairs = [(got[0][r], want.log_prob), (got[1][r], want.entropy), (got[2][r], want.lse)];
                for (i, (got, want)) in pairs.into_iter().enumerate() {
                    let off = (got as f64 - want).abs();
                    assert!(off <= allowed, "{dtype} {case:?} row {r}, answer {i}: {got}, want {want}");
                }
            }
        }
        for (which, (got, with, want)) in ["log_prob", "entropy", "lse"].into_iter().zip(&all) {
            assert_rounded(&format!("{which} {dtype}"), F32, got, with, want, ROUNDING_FACTOR_F32);
        }
    }
}

fn gradient_equals_the_formula() {
    for dtype in [F32, BF16] {
        for case in test_cases_rows_vocab_width_spread_temperature().into_iter().filter(|c| (2..400).contains(&c.1)) {
            let given = Given::new(dtype, case);
            let answer = given.forward(given.rows(), 1);
            let (d_log_prob, d_entropy) = (normal_numbers(given.rows(), 5, 1.0), normal_numbers(given.rows(), 6, 1.0));
            let row = |r: usize| [&answer[0], &answer[1], &answer[2]].map(|x| x[r] as f64);
            for (with_entropy, columns) in [(false, given.vocab), (true, given.vocab), (true, 128)] {
                let got = given.backward(&answer, &d_log_prob, with_entropy.then_some(&d_entropy[..]), columns);
                let (mut with, mut want) = (Vec::new(), Vec::new());
                for r in 0..given.rows() {
                    let grads = [d_log_prob[r] as f64, if with_entropy { d_entropy[r] as f64 } else { 0.0 }];
                    let [log_prob, entropy, lse] = row(r);
                    let (of, target, s) =
                        (formula::RowResults { log_prob, entropy, lse }, given.targets[r], given.s as f64);
                    want.extend(formula::bwd(&given.logits(r), target, s, grads, &of));
                    let rounded = given.logits_by(formula::logits_rounded, r);
                    with.extend(formula::bwd_rounded(&rounded, target, s, grads, &of));
                }
                let name = format!(
                    "d_logits of {case:?} in chunks of {columns} columns (entropy gradient given: {with_entropy})"
                );
                let logits = (0..given.rows()).flat_map(|r| given.logits(r));
                let largest = logits.fold(0.0f64, |a, l| a.max((l * given.s as f64).abs()));
                let scaled = d_log_prob.iter().chain(&d_entropy).map(|&g| g as f64 * given.s as f64);
                let rounding_factor = gradient_tolerance(dtype, largest, scaled, &want);
                assert_rounded(&name, dtype, &got, &with, &want, rounding_factor);
            }
        }
    }
}

fn bad_targets_and_bad_states_are_nan() {
    let mut given = Given::new(F32, (4, 300, 16, 1.0, 1.0));
    given.targets[1] = 300;
    let mut hidden = given.hidden.values();
    hidden[2 * 16 + 3] = f32::NAN;
    given.hidden = TestArray::new(F32, &hidden);
    let answer = given.forward(4, 2);
    assert_eq!(answer[0].iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [false, true, true, false]);
    assert!(!answer[2][1].is_nan() && answer[2][2].is_nan() && answer[1][2].is_nan());
    let d = given.backward(&answer, &normal_numbers(4, 5, 1.0), None, 300);
    assert!(d[300..900].iter().all(|d| d.is_nan()) && d[..300].iter().all(|d| !d.is_nan()));
    assert!(d[900..].iter().all(|d| *d == 0.0), "row 3 is ignored");
}

fn threads_and_other_rows_change_nothing() {
    with_one_interleaving(|| {
        for dtype in [F32, BF16] {
            let given = Given::new(dtype, (131, 2100, 40, 1.0, 0.9));
            let all = given.forward(131, 1);
            assert_eq!(given.forward(131, 3), all);
            let few = given.forward(2, 2);
            for (few, all) in few.iter().zip(&all) {
                assert_eq!(few[..], all[..2]);
            }
        }
    });
}

#[cfg(test)]
mod tests;
