//! Log-probabilities on the CPU: each task computes one row.
#![allow(unsafe_code)]

use reel_device::cpu::simd::{LANES, exp, prefetch};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::{BwdParams, FwdParams};

simd_fn! {
    /// Returns the largest element of `x`, ignoring NaN. Returns −∞ for an empty slice.
    pub(crate) fn max_ignoring_nan(x: &[f32]) -> f32 {
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

/// Adds the elements to f64 sums: element i to sum number i modulo the number of sums.
#[inline(always)]
pub(crate) fn add_to_lanes(x: &[f32], lanes: &mut [f64; LANES]) {
    let (whole, rest) = x.as_chunks::<LANES>();
    for c in whole {
        for i in 0..LANES {
            lanes[i] += c[i] as f64;
        }
    }
    for (x, lane) in rest.iter().zip(lanes) {
        *lane += *x as f64;
    }
}

simd_fn! {
    /// Returns `Σ e^((x − max) · scale)`, summed in f64: when one token's probability is near 1, its log-probability
    /// depends on digits that an f32 sum would drop.
    fn sum_exp(x: &[f32], max: f32, scale: f32) -> f64 {
        // Computes exponentials in a separate loop, because the compiler vectorises that loop only without the f64
        // sums.
        let (mut lanes, mut buffer) = ([0.0f64; LANES], [0.0f32; 16 * LANES]);
        for x in x.chunks(buffer.len()) {
            for (e, x) in buffer.iter_mut().zip(x) {
                *e = exp((*x - max) * scale);
            }
            add_to_lanes(&buffer[..x.len()], &mut lanes);
        }
        lanes.iter().sum()
    }
}

simd_fn! {
    /// Returns two sums over the logits: `Σ e^a`, as [`sum_exp`] does, and `Σ a e^a`, with `a = (x − max) · scale`.
    fn sum_exp_and_moment(x: &[f32], max: f32, scale: f32) -> [f64; 2] {
        let mut lanes = [[0.0f64; LANES]; 2];
        let (whole, rest) = x.as_chunks::<LANES>();
        for c in whole {
            for i in 0..LANES {
                let (e, moment) = term(c[i], max, scale);
                lanes[0][i] += e as f64;
                lanes[1][i] += moment as f64;
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let (e, moment) = term(*x, max, scale);
            lanes[0][i] += e as f64;
            lanes[1][i] += moment as f64;
        }
        lanes.map(|lanes| lanes.iter().sum())
    }
}

/// Returns `e^x` and `x e^x` for `x = (logit − max) · scale`. If `e^x` is 0, `x e^x` is 0 too, even if x is −∞: a token
/// of probability 0 adds nothing to the entropy.
#[inline(always)]
fn term(logit: f32, max: f32, scale: f32) -> (f32, f32) {
    let x = (logit - max) * scale;
    let e = exp(x);
    (e, if e == 0.0 { 0.0 } else { x * e })
}

simd_fn! {
    fn bwd_row<T: Element>(x: &[f32], scale: f32, lse: f32, factor: f32, dx: &mut [T]) {
        for (x, dx) in x.iter().zip(dx) {
            *dx = T::from_f32(factor * exp(x * scale - lse));
        }
    }
}

/// Statistics of a row: its largest logit `max`, and `ln Σ e^((logit − max) · scale)`.
pub(crate) struct RowStats {
    max: f64,
    scale: f64,
    ln_sum: f64,
}

impl RowStats {
    /// Computes the statistics of a row in two passes over its logits.
    pub(crate) fn new(logits: &[f32], scale: f32) -> RowStats {
        State::new(logits, scale, false).row(scale)
    }

    /// Makes the statistics of a row from its largest logit `max` and `sum = Σ e^((logit − max) · scale)`.
    pub(crate) fn from_max_and_sum(max: f32, scale: f32, sum: f64) -> RowStats {
        State { largest: max as f64, sum, moment: 0.0, target: 0.0 }.row(scale)
    }

    /// Returns the log-probability of the token with this logit.
    pub(crate) fn log_prob(&self, logit: f32) -> f32 {
        self.log_prob_of(logit as f64)
    }

    fn log_prob_of(&self, logit: f64) -> f32 {
        ((logit - self.max) * self.scale - self.ln_sum) as f32
    }

    /// Returns the log-sum-exp of the row's scaled logits.
    fn lse(&self) -> f32 {
        (self.max * self.scale + self.ln_sum) as f32
    }
}

/// The state of a row after a chunk of the vocabulary. A launch passes it to the launch over the next chunk; `mod.rs`
/// documents it.
#[derive(Clone, Copy)]
#[repr(C)]
struct State {
    largest: f64,
    sum: f64,
    moment: f64,
    target: f64,
}

impl State {
    /// Returns the state of a row after these logits, in two passes over them. The state does not contain the target's
    /// logit yet.
    fn new(logits: &[f32], scale: f32, moment: bool) -> State {
        let largest = max_ignoring_nan(logits);
        // If all logits are −∞, subtracts 0 instead of −∞: −∞ − −∞ would be NaN, but the terms of the sum are 0.
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let [sum, moment] = match moment {
            true => sum_exp_and_moment(logits, base, scale),
            false => [sum_exp(logits, base, scale), 0.0],
        };
        State { largest: largest as f64, sum, moment, target: 0.0 }
    }

    /// Returns this state with its sums relative to `most`. `most` is not less than the state's largest logit.
    fn relative_to(self, most: f64, scale: f64) -> State {
        if self.largest == most {
            return self;
        }
        let change = (self.largest - most) * scale;
        let factor = change.exp();
        // If all logits so far are −∞, `change` is −∞ and must not turn the moment 0 into NaN.
        let moment = if self.sum == 0.0 { 0.0 } else { (self.moment + change * self.sum) * factor };
        State { largest: most, sum: self.sum * factor, moment, target: self.target }
    }

    /// Merges the states of two chunks of a row. At most one of them contains the target; the target logit of the
    /// other is 0.
    fn merge(self, other: State, scale: f64) -> State {
        let largest = if self.largest > other.largest { self.largest } else { other.largest };
        let (a, b) = (self.relative_to(largest, scale), other.relative_to(largest, scale));
        State { largest, sum: a.sum + b.sum, moment: a.moment + b.moment, target: a.target + b.target }
    }

    fn row(&self, scale: f32) -> RowStats {
        // If every logit is −∞, there is no distribution and the result is NaN.
        let ln_sum = if self.largest == f64::NEG_INFINITY { f64::NAN } else { self.sum.ln() };
        RowStats { max: self.largest, scale: scale as f64, ln_sum }
    }
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd(p: &FwdParams, team: &Team) {
    let (rows, columns, first) = (p.rows as usize, p.columns as usize, p.first as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (logits, targets) = unsafe { (slice_at::<f32>(p.logits, rows * columns), slice_at::<i32>(p.targets, rows)) };
    let (begins, ends, with_entropy) = (first == 0, first + columns == p.vocab as usize, !p.entropy.is_null());
    let count = |wanted: bool| if wanted { rows } else { 0 };
    // SAFETY: `p`'s addresses cover the documented shapes; arrays that this launch does not write get no elements.
    let (log_prob, lse, entropy) = unsafe {
        let results = [(p.log_prob, ends), (p.lse, ends), (p.entropy, ends && with_entropy)];
        let [log_prob, lse, entropy] = results.map(|(at, wanted)| OutputArray::<f32>::new(at, count(wanted)));
        (log_prob, lse, entropy)
    };
    // SAFETY: `p.state` covers `rows` states if the row has several launches; else the view has no elements.
    let state = unsafe { OutputArray::<State>::new(p.state, count(!begins || !ends)) };
    let scale = p.inv_temperature;
    team.run(rows, |r| {
        let logits = &logits[r * columns..][..columns];
        let target = usize::try_from(targets[r]).ok();
        let mut sums = State::new(logits, scale, with_entropy);
        let place = target.and_then(|t| t.checked_sub(first)).and_then(|place| logits.get(place));
        sums.target = place.map_or(0.0, |&l| l as f64);
        if !begins {
            // SAFETY: each row has elements of its own.
            let before = unsafe { state.part(r, 1) };
            sums = before[0].merge(sums, scale as f64);
        }
        if !ends {
            // SAFETY: as above; what was read is no longer borrowed.
            let handed_on = unsafe { state.part(r, 1) };
            handed_on[0] = sums;
            return;
        }
        let row = sums.row(scale);
        // SAFETY: as above.
        let (log_prob, lse) = unsafe { (log_prob.part(r, 1), lse.part(r, 1)) };
        lse[0] = row.lse();
        log_prob[0] = match target {
            None => 0.0,
            Some(target) if target < p.vocab as usize => row.log_prob_of(sums.target),
            Some(_) => f32::NAN,
        };
        if with_entropy {
            // SAFETY: as above.
            let entropy = unsafe { entropy.part(r, 1) };
            entropy[0] = target.map_or(0.0, |_| (row.ln_sum - sums.moment / sums.sum) as f32);
        }
    });
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (rows, columns) = (p.rows as usize, p.columns as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (logits, targets) = unsafe { (slice_at::<f32>(p.logits, rows * columns), slice_at::<i32>(p.targets, rows)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (lse, grad) = unsafe { (slice_at::<f32>(p.lse, rows), slice_at::<f32>(p.grad, rows)) };
    let with_entropy = if p.d_entropy.is_null() { 0 } else { rows };
    // SAFETY: without a gradient of the entropy no elements are read; else both arrays cover `rows` elements.
    let (entropy, d_entropy) =
        unsafe { (slice_at::<f32>(p.entropy, with_entropy), slice_at::<f32>(p.d_entropy, with_entropy)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let d_logits = unsafe { OutputArray::<T>::new(p.d_logits, rows * columns) };
    let scale = p.inv_temperature;
    team.run(rows, |r| {
        prefetch::read_row_ahead(logits, r, columns);
        prefetch::write_row_ahead(&d_logits, r, columns);
        let logits = &logits[r * columns..][..columns];
        // SAFETY: rows do not overlap.
        let dx = unsafe { d_logits.part(r * columns, columns) };
        let Ok(target) = usize::try_from(targets[r]) else {
            dx.fill(T::from_f32(0.0));
            return;
        };
        if target >= p.vocab as usize {
            dx.fill(T::from_f32(f32::NAN));
            return;
        }
        let of_log_prob = grad[r] * scale;
        let terms = d_entropy.get(r).zip(entropy.get(r)).map(|(d, &entropy)| GradientTerms {
            scale,
            lse: lse[r],
            of_log_prob,
            of_entropy: d * scale,
            entropy,
        });
        match &terms {
            None => bwd_row(logits, scale, lse[r], -of_log_prob, dx),
            Some(terms) => terms.gradients_of_other_logits(logits, dx),
        }
        if let Some(place) = target.checked_sub(p.first as usize).filter(|&place| place < columns) {
            let d = match &terms {
                None => -of_log_prob * exp_m1(logits[place] * scale - lse[r]),
                Some(terms) => terms.target_gradient(logits[place]),
            };
            dx[place] = T::from_f32(d);
        }
    });
}

/// Computes `e^x − 1` without cancellation. If the target's probability is near 1, this small number is its whole
/// gradient.
fn exp_m1(x: f32) -> f32 {
    (x as f64).exp_m1() as f32
}

/// The terms from which the gradients of a row's logits are computed, if the loss also depends on the entropy.
#[derive(Clone, Copy)]
struct GradientTerms {
    /// 1 / temperature.
    scale: f32,
    /// Log-sum-exp of the row's scaled logits.
    lse: f32,
    /// Gradient of the loss with respect to the log-probability, times `scale`.
    of_log_prob: f32,
    /// Gradient of the loss with respect to the entropy, times `scale`.
    of_entropy: f32,
    /// Entropy of the row.
    entropy: f32,
}

impl GradientTerms {
    /// Returns the gradient of a logit, unless it is the target's logit.
    #[inline(always)]
    fn at(&self, logit: f32) -> f32 {
        let log_prob = logit * self.scale - self.lse;
        let prob = exp(log_prob);
        let of_entropy = if prob > 0.0 { prob * (log_prob + self.entropy) } else { prob };
        -self.of_log_prob * prob - self.of_entropy * of_entropy
    }

    /// Returns the gradient of the target's logit.
    fn target_gradient(&self, logit: f32) -> f32 {
        let entropy = GradientTerms { of_log_prob: 0.0, ..*self };
        entropy.at(logit) - self.of_log_prob * exp_m1(logit * self.scale - self.lse)
    }

    /// Writes the gradients of `logits` to `to`. None of these logits is the target's logit.
    fn gradients_of_other_logits<T: Element>(&self, logits: &[f32], to: &mut [T]) {
        gradient(logits, self, to);
    }
}

simd_fn! {
    fn gradient<T: Element>(logits: &[f32], terms: &GradientTerms, to: &mut [T]) {
        for (to, logit) in to.iter_mut().zip(logits) {
            *to = T::from_f32(terms.at(*logit));
        }
    }
}
