//! One row a task.
#![allow(unsafe_code)]

use super::{BwdParams, FwdParams};
use crate::simd::{LANES, exp};
use crate::view::{Out, slice};
use crate::{Element, Team, simd_fn};

simd_fn! {
    /// The largest of `x`, NaN aside; −∞ for nothing.
    pub(crate) fn max(x: &[f32]) -> f32 {
        let mut lanes = [[f32::NEG_INFINITY; LANES]; 2];
        let (pairs, rest) = x.as_chunks::<{ 2 * LANES }>();
        for c in pairs {
            for i in 0..LANES {
                lanes[0][i] = if c[i] > lanes[0][i] { c[i] } else { lanes[0][i] };
                lanes[1][i] = if c[LANES + i] > lanes[1][i] { c[LANES + i] } else { lanes[1][i] };
            }
        }
        rest.iter().chain(lanes.as_flattened()).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }
}

simd_fn! {
    /// In f64 lanes: when one token is all but certain, its log-probability is in the places that an f32 sum would drop.
    fn sum_exp(x: &[f32], max: f32, scale: f32) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for c in whole {
            for i in 0..LANES {
                lanes[i] += exp((c[i] - max) * scale) as f64;
            }
        }
        for (i, x) in rest.iter().enumerate() {
            lanes[i] += exp((x - max) * scale) as f64;
        }
        lanes.iter().sum()
    }
}

simd_fn! {
    fn bwd_row<T: Element>(x: &[f32], scale: f32, lse: f32, factor: f32, dx: &mut [T]) {
        for (x, dx) in x.iter().zip(dx) {
            *dx = T::from_f32(factor * exp(x * scale - lse));
        }
    }
}

/// What a row's log-probabilities need: the largest logit and `ln Σ e^((l − max) · scale)`.
pub(crate) struct Row {
    max: f64,
    scale: f64,
    ln_sum: f64,
}

impl Row {
    /// Reads the row twice.
    pub(crate) fn new(logits: &[f32], scale: f32) -> Row {
        let max = max(logits);
        Row { max: max as f64, scale: scale as f64, ln_sum: sum_exp(logits, max, scale).ln() }
    }

    /// The log-probability of an entry with this logit.
    pub(crate) fn log_prob(&self, logit: f32) -> f32 {
        ((logit as f64 - self.max) * self.scale - self.ln_sum) as f32
    }

    /// The logarithm of the sum of exponentials.
    fn lse(&self) -> f32 {
        (self.max * self.scale + self.ln_sum) as f32
    }
}

/// # Safety
/// The addresses cover what [`FwdParams`] says.
pub unsafe fn fwd(p: &FwdParams, team: &Team) {
    let (rows, vocab) = (p.rows as usize, p.vocab as usize);
    // SAFETY: the caller's promise.
    let (logits, targets) = unsafe { (slice::<f32>(p.logits, rows * vocab), slice::<i32>(p.targets, rows)) };
    // SAFETY: the caller's promise.
    let (log_prob, lse) = unsafe { (Out::<f32>::new(p.log_prob, rows), Out::<f32>::new(p.lse, rows)) };
    team.run(rows, |r| {
        let logits = &logits[r * vocab..][..vocab];
        let row = Row::new(logits, p.inv_temperature);
        // SAFETY: each row has elements of its own.
        let (log_prob, lse) = unsafe { (log_prob.part(r, 1), lse.part(r, 1)) };
        lse[0] = row.lse();
        log_prob[0] = match usize::try_from(targets[r]) {
            Err(_) => 0.0,
            Ok(target) => logits.get(target).map_or(f32::NAN, |&l| row.log_prob(l)),
        };
    });
}

/// # Safety
/// The addresses cover what [`BwdParams`] says.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (rows, vocab) = (p.rows as usize, p.vocab as usize);
    // SAFETY: the caller's promise.
    let (logits, targets) = unsafe { (slice::<f32>(p.logits, rows * vocab), slice::<i32>(p.targets, rows)) };
    // SAFETY: the caller's promise.
    let (lse, grad) = unsafe { (slice::<f32>(p.lse, rows), slice::<f32>(p.grad, rows)) };
    // SAFETY: the caller's promise.
    let d_logits = unsafe { Out::<T>::new(p.d_logits, rows * vocab) };
    team.run(rows, |r| {
        let logits = &logits[r * vocab..][..vocab];
        // SAFETY: rows do not overlap.
        let dx = unsafe { d_logits.part(r * vocab, vocab) };
        let Ok(target) = usize::try_from(targets[r]) else {
            dx.fill(T::from_f32(0.0));
            return;
        };
        let factor = grad[r] * p.inv_temperature;
        bwd_row(logits, p.inv_temperature, lse[r], -factor, dx);
        match (logits.get(target), dx.get_mut(target)) {
            (Some(l), Some(dx)) => *dx = T::from_f32(-factor * exp_m1(l * p.inv_temperature - lse[r])),
            _ => dx.fill(T::from_f32(f32::NAN)),
        }
    });
}

/// `e^x − 1` without cancellation: near a probability of 1 the gradient is all that is left.
fn exp_m1(x: f32) -> f32 {
    (x as f64).exp_m1() as f32
}
