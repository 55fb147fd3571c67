//! The output layer with log-probabilities on the CPU. A matrix product computes the logits of up to 1024 rows and
//! 4096 columns at a time; then each task computes the statistics of one row.
#![allow(unsafe_code)]

use super::{BwdParams, FwdParams};
use crate::log_prob::GradientTerms;
use crate::log_prob::max_ignoring_nan;
use crate::matmul::{self, Matmul, Operand};
use crate::simd::{LANES, exp};
use crate::view::{OutputArray, slice_at};
use crate::{Addr, DType, Element, Team, simd_fn};

/// Number of columns of logits that are computed at a time. It must stay the same everywhere: a row's sums are merged
/// chunk by chunk, so another number would change the bits of the results.
const COLUMNS: usize = 4096;
/// Number of rows of logits that are computed at a time. With COLUMNS columns of f32 they take 16 MiB.
const ROWS: usize = 1024;

simd_fn! {
    /// Returns `Σ e^(x − row_max)` and `Σ e^(x − row_max) · (x − row_max)` with `x` the logits times `scale`.
    fn sums(logits: &[f32], row_max: f32, scale: f32) -> [f64; 2] {
        let mut lanes = [[0.0f64; LANES]; 2];
        for chunk in logits.chunks(LANES) {
            for (i, logit) in chunk.iter().enumerate() {
                let x = (logit - row_max) * scale;
                let e = exp(x) as f64;
                lanes[0][i] += e;
                lanes[1][i] += if e > 0.0 { e * x as f64 } else { e };
            }
        }
        lanes.map(|lanes| lanes.iter().sum())
    }
}

/// Softmax statistics of some columns of a row: sums of exponentials relative to the largest scaled logit of these
/// columns.
#[derive(Clone, Copy)]
struct Statistics {
    row_max: f64,
    sum: f64,
    moment: f64,
}

impl Statistics {
    const NONE: Statistics = Statistics { row_max: f64::NEG_INFINITY, sum: 0.0, moment: 0.0 };

    fn new(logits: &[f32], scale: f32) -> Statistics {
        let largest = max_ignoring_nan(logits);
        // If all logits are −∞ or NaN, there is no maximum to subtract; the sums are 0 or NaN then.
        let [sum, moment] = sums(logits, if largest == f32::NEG_INFINITY { 0.0 } else { largest }, scale);
        Statistics { row_max: largest as f64 * scale as f64, sum, moment }
    }

    fn merged(self, other: Statistics) -> Statistics {
        let row_max = self.row_max.max(other.row_max);
        let about = |s: Statistics| match s.row_max == f64::NEG_INFINITY {
            true => [s.sum, s.moment],
            false => {
                let (distance, factor) = (s.row_max - row_max, (s.row_max - row_max).exp());
                [s.sum * factor, (s.moment + distance * s.sum) * factor]
            }
        };
        let ([a, b], [c, d]) = (about(self), about(other));
        Statistics { row_max, sum: a + c, moment: b + d }
    }
}

/// The operands from which a block of logits is computed.
struct Output {
    hidden: Addr,
    weight: Addr,
    width: usize,
}

impl Output {
    /// Computes the logits of `rows` rows, the first of which is `row`, and of `columns` columns, the first of which
    /// is `column`.
    ///
    /// # Safety
    /// The operands cover these rows and columns; `logits` has one element for each pair of them.
    unsafe fn logits<T: Element>(
        &self,
        (row, rows): (usize, usize),
        (column, columns): (usize, usize),
        logits: &mut [f32],
        team: &Team,
    ) {
        let operand = |addr: Addr, first: usize| Operand {
            addr: addr.offset(first * self.width * size_of::<T>()),
            dtype: T::DTYPE,
            transposed: false,
        };
        let product = Matmul {
            m: rows,
            n: columns,
            k: self.width,
            a: operand(self.hidden, row),
            b: operand(self.weight, column),
            b_scale: Addr::NULL,
            b_grouped: false,
            c: Addr(logits.as_mut_ptr() as u64),
            c_dtype: DType::F32,
            bias: Addr::NULL,
            accumulate: false,
            scale: 1.0,
        };
        // SAFETY: the operands cover these rows and columns, and `logits` has one element for each.
        unsafe { matmul::cpu::run(&product, team) }
    }
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the shape and dtype that its field documents.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (rows, vocab) = (p.rows as usize, p.vocab as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let targets = unsafe { slice_at::<i32>(p.targets, rows) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (log_prob, lse) = unsafe { (OutputArray::<f32>::new(p.log_prob, rows), OutputArray::<f32>::new(p.lse, rows)) };
    // SAFETY: `p.entropy` is null (then no elements are written) or covers `rows` elements.
    let entropy = unsafe { OutputArray::<f32>::new(p.entropy, if p.entropy.is_null() { 0 } else { rows }) };
    let output = Output { hidden: p.hidden, weight: p.weight, width: p.width as usize };
    let mut logits = vec![0.0f32; rows.min(ROWS) * vocab.min(COLUMNS)];
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        let mut known = vec![(Statistics::NONE, f64::NAN); count];
        for column in (0..vocab).step_by(COLUMNS) {
            let columns = COLUMNS.min(vocab - column);
            // SAFETY: the operands cover these rows and columns; `logits` has room for ROWS × COLUMNS elements.
            unsafe { output.logits::<T>((first, count), (column, columns), &mut logits, team) };
            // SAFETY: the vector lives until the end of the loop's body and is only touched through this view.
            let known = unsafe { OutputArray::<(Statistics, f64)>::new(Addr(known.as_mut_ptr() as u64), count) };
            team.run(count, |r| {
                let row = &logits[r * columns..][..columns];
                // SAFETY: each row has an element of its own.
                let (statistics, target) = &mut unsafe { known.part(r, 1) }[0];
                *statistics = statistics.merged(Statistics::new(row, p.inv_temperature));
                let place = usize::try_from(targets[first + r]).ok().and_then(|t| t.checked_sub(column));
                if let Some(logit) = place.and_then(|place| row.get(place)) {
                    *target = *logit as f64 * p.inv_temperature as f64;
                }
            });
        }
        for (r, (s, target)) in known.iter().enumerate() {
            let (row, ln_sum) = (first + r, s.sum.ln());
            let ignored = targets[row] < 0;
            // SAFETY: one thread, one row after the other.
            let (log_prob, lse) = unsafe { (log_prob.part(row, 1), lse.part(row, 1)) };
            lse[0] = (s.row_max + ln_sum) as f32;
            log_prob[0] = if ignored { 0.0 } else { (target - s.row_max - ln_sum) as f32 };
            if !p.entropy.is_null() {
                // SAFETY: as above.
                let entropy = unsafe { entropy.part(row, 1) };
                entropy[0] = if ignored { 0.0 } else { (ln_sum - s.moment / s.sum) as f32 };
            }
        }
    }
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the shape and dtype that its field documents.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (rows, all, from) = (p.rows as usize, p.columns as usize, p.first as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (targets, lse) = unsafe { (slice_at::<i32>(p.targets, rows), slice_at::<f32>(p.lse, rows)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let d_log_prob = unsafe { slice_at::<f32>(p.d_log_prob, rows) };
    let with_entropy = if p.d_entropy.is_null() { 0 } else { rows };
    // SAFETY: without a gradient of the entropy no elements are read; else both arrays cover `rows` elements.
    let (entropy, d_entropy) =
        unsafe { (slice_at::<f32>(p.entropy, with_entropy), slice_at::<f32>(p.d_entropy, with_entropy)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let d_logits = unsafe { OutputArray::<T>::new(p.d_logits, rows * all) };
    let output = Output { hidden: p.hidden, weight: p.weight, width: p.width as usize };
    let mut logits = vec![0.0f32; rows.min(ROWS) * all.min(COLUMNS)];
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        for column in (0..all).step_by(COLUMNS) {
            let columns = COLUMNS.min(all - column);
            // SAFETY: the operands cover these rows and columns; `logits` has room for ROWS × COLUMNS elements.
            unsafe { output.logits::<T>((first, count), (from + column, columns), &mut logits, team) };
            team.run(count, |r| {
                let row = first + r;
                // SAFETY: parts of different rows do not overlap.
                let to = unsafe { d_logits.part(row * all + column, columns) };
                let Ok(target) = usize::try_from(targets[row]) else {
                    to.fill(T::from_f32(0.0));
                    return;
                };
                if target >= p.vocab as usize {
                    to.fill(T::from_f32(f32::NAN));
                    return;
                }
                let s = p.inv_temperature;
                let terms = GradientTerms {
                    scale: s,
                    lse: lse[row],
                    of_log_prob: d_log_prob[row] * s,
                    of_entropy: d_entropy.get(row).map_or(0.0, |d| d * s),
                    entropy: entropy.get(row).copied().unwrap_or(0.0),
                };
                let row = &logits[r * columns..][..columns];
                terms.gradients_of_other_logits(row, to);
                if let Some(place) = target.checked_sub(from + column).filter(|&place| place < columns) {
                    to[place] = T::from_f32(terms.target_gradient(row[place]));
                }
            });
        }
    }
}
