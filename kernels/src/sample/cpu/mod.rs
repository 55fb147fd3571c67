//! Sampling on the CPU. Each task samples one row, in buffers of its thread. Penalties and biases are single f32
//! operations, because their roundings decide the order of tokens. A row without penalties and biases is not copied,
//! and the pass that computes the weights of its tokens also gives the sum for their log-probabilities.
#![allow(unsafe_code)]

mod top_p;

use std::cell::RefCell;

use reel_device::cpu::simd::{LANES, exp, sum_lanes};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Team, simd_fn};

use super::{PHILOX_STREAM_NUMBER, Params};
use crate::log_prob::{RowStats, add_to_lanes, max_ignoring_nan};
use reel_support::philox;
use top_p::keep_top_p;

/// Number of weights per block. A cumulative sum adds f32 sums of blocks in f64.
const BLOCK: usize = 512;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// Buffers of one thread, allocated once for the vocabulary.
struct Scratch {
    /// The scores, if they differ from the logits.
    scores: Vec<f32>,
    weights: Vec<f32>,
    /// The sums of the blocks of weights.
    sums: Vec<f32>,
    best: Vec<f32>,
    order: Vec<u64>,
    history: Vec<usize>,
}

impl Scratch {
    const fn new() -> Scratch {
        Scratch {
            scores: Vec::new(),
            weights: Vec::new(),
            sums: Vec::new(),
            best: Vec::new(),
            order: Vec::new(),
            history: Vec::new(),
        }
    }
}

simd_fn! {
    fn any_nan(x: &[f32]) -> bool {
        // Computes the largest magnitude as an integer: only NaNs have a larger magnitude than infinity. The compiler
        // uses one instruction for 16 elements here, but many for `is_nan`.
        let magnitude = |x: &f32| x.to_bits() & 0x7fff_ffff;
        let mut lanes = [0u32; 4 * LANES];
        let (whole, rest) = x.as_chunks::<{ 4 * LANES }>();
        for c in whole {
            for i in 0..4 * LANES {
                lanes[i] = lanes[i].max(magnitude(&c[i]));
            }
        }
        rest.iter().map(magnitude).chain(lanes).max().is_some_and(|largest| largest > f32::INFINITY.to_bits())
    }
}

simd_fn! {
    /// Computes the weights `e^((score − max) · scale)`, and sets those of scores below `least` to 0. Returns the sum
    /// of all weights, including those set to 0, bit-identical to the sum of [`RowStats::new`].
    fn weigh(scores: &[f32], weights: &mut [f32], max: f32, scale: f32, least: f32) -> f64 {
        let mut lanes = [0.0f64; LANES];
        for (scores, weights) in scores.chunks(BLOCK).zip(weights.chunks_mut(BLOCK)) {
            for (w, s) in weights.iter_mut().zip(scores) {
                *w = exp((*s - max) * scale);
            }
            add_to_lanes(weights, &mut lanes);
            if least > f32::NEG_INFINITY {
                for (w, s) in weights.iter_mut().zip(scores) {
                    *w = if *s >= least { *w } else { 0.0 };
                }
            }
        }
        lanes.iter().sum()
    }
}

simd_fn! {
    fn sum(x: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for c in whole {
            for i in 0..LANES {
                lanes[i] += c[i];
            }
        }
        for (i, x) in rest.iter().enumerate() {
            lanes[i] += x;
        }
        sum_lanes(lanes)
    }
}

/// Returns the sum of the weights: each block is summed in f32, the sums of the blocks in f64.
fn total(weights: &[f32]) -> f64 {
    weights.chunks(BLOCK).map(|b| sum(b) as f64).sum()
}

/// Returns the `k`-th largest score, 1 ≤ k ≤ the number of scores.
fn kth_largest(scores: &[f32], k: usize, best: &mut Vec<f32>) -> f32 {
    let select = |best: &mut Vec<f32>| {
        let kth = *best.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
        best.truncate(k);
        kth
    };
    best.clear();
    let mut least = None; // the k-th largest of what was read up to some block before
    for block in scores.chunks(BLOCK) {
        match least {
            None => best.extend_from_slice(block),
            // Skips blocks without a score above the k-th largest score of the blocks before. Most blocks have none.
            Some(least) if max_ignoring_nan(block) <= least => continue,
            Some(least) => best.extend(block.iter().filter(|&&s| s > least)),
        }
        if best.len() >= k + k.max(BLOCK) {
            least = Some(select(best));
        }
    }
    select(best)
}

/// Returns the first id whose cumulative weight exceeds `u` times the total; never an id of weight 0.
fn draw(weights: &[f32], u: f64, sums: &mut Vec<f32>) -> Option<usize> {
    sums.clear();
    sums.extend(weights.chunks(BLOCK).map(sum));
    let target = u * sums.iter().map(|&sum| sum as f64).sum::<f64>();
    let (mut before, mut last) = (0.0f64, None);
    for (b, (block, &here)) in weights.chunks(BLOCK).zip(&*sums).enumerate() {
        let here = here as f64;
        if before + here > target {
            let mut cumulative = before;
            for (i, &w) in block.iter().enumerate() {
                cumulative += w as f64;
                if w > 0.0 {
                    last = Some(b * BLOCK + i);
                    if cumulative > target {
                        return last;
                    }
                }
            }
            // Because of rounding, the sum of a block of tokens may exceed the target although the running sum over
            // its tokens does not. In this case the block's last token of positive weight is taken.
            return last;
        }
        before += here;
    }
    last
}

/// The sampling settings of one row.
struct Settings<'a> {
    temperature: f32,
    top_p: f32,
    top_k: i32,
    min_p: f32,
    penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    seed: u64,
    position: i32,
    history: &'a [i32],
    counted_from: usize,
    bias_ids: &'a [i32],
    bias: &'a [f32],
    suppressed: &'a [i32],
    /// Bit set of allowed tokens; empty: all tokens are allowed.
    allowed: &'a [u32],
}

impl Settings<'_> {
    fn is_greedy(&self) -> bool {
        !(self.temperature > 0.0)
    }

    /// Returns the factor of the logits in the softmax from which the token is sampled: 1 / temperature, or 1 for
    /// greedy sampling.
    fn scale(&self) -> f32 {
        if self.is_greedy() { 1.0 } else { 1.0 / self.temperature }
    }

    /// Whether scores may differ from logits.
    fn changes_scores(&self) -> bool {
        let counts = self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        (self.penalty != 1.0 || counts) && !self.history.is_empty()
            || !(self.bias_ids.is_empty() && self.suppressed.is_empty() && self.allowed.is_empty())
    }
}

fn in_vocab(ids: &[i32], vocab: usize) -> impl Iterator<Item = usize> {
    ids.iter().filter_map(move |&id| usize::try_from(id).ok().filter(|&id| id < vocab))
}

/// Returns the index of the first score that equals `top`, the largest score.
fn first_equal(scores: &[f32], top: f32) -> Option<usize> {
    let block = scores.chunks(BLOCK).position(|block| max_ignoring_nan(block) == top)? * BLOCK;
    scores[block..].iter().position(|&x| x == top).map(|i| block + i)
}

/// The token chosen for a row. `stats` are the row's statistics at the scale of [`Settings::scale`], if they were
/// computed for the choice.
struct Choice {
    token: usize,
    stats: Option<RowStats>,
}

/// Returns the token that is chosen for a row whose logits have no NaN, or `None` if no token can be sampled.
fn choose(logits: &[f32], s: &Settings<'_>, scratch: &mut Scratch) -> Option<Choice> {
    let changed = s.changes_scores();
    let scores = if changed { scores(logits, s, &mut scratch.scores, &mut scratch.history)? } else { logits };
    let top = max_ignoring_nan(scores);
    if top == f32::NEG_INFINITY {
        return None;
    }
    if s.is_greedy() {
        return Some(Choice { token: first_equal(scores, top)?, stats: None });
    }
    let (weights, best, order) = (&mut scratch.weights, &mut scratch.best, &mut scratch.order);
    let sum = weights_of(scores, top, s, weights, best, order);
    let u = philox::uniform_f64(s.seed, PHILOX_STREAM_NUMBER, s.position as u32 as u64);
    let token = draw(weights, u, &mut scratch.sums)?;
    Some(Choice { token, stats: (!changed).then(|| RowStats::from_max_and_sum(top, s.scale(), sum)) })
}

/// Returns the row's scores, written to `scores`; `None` if one is NaN.
fn scores<'a>(
    logits: &[f32],
    s: &Settings<'_>,
    scores: &'a mut Vec<f32>,
    history: &mut Vec<usize>,
) -> Option<&'a [f32]> {
    scores.clear();
    scores.extend_from_slice(logits);
    penalise(scores, logits, s, history);
    for (&id, &bias) in s.bias_ids.iter().zip(s.bias) {
        if let Some(score) = usize::try_from(id).ok().and_then(|id| scores.get_mut(id)) {
            *score += bias;
        }
    }
    for id in in_vocab(s.suppressed, logits.len()) {
        scores[id] = f32::NEG_INFINITY;
    }
    if !s.allowed.is_empty() {
        for (scores, bits) in scores.chunks_mut(32).zip(s.allowed) {
            for (bit, score) in scores.iter_mut().enumerate() {
                if bits >> bit & 1 == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
    (!any_nan(scores)).then_some(scores)
}

/// Fills `weights` with the tokens' weights after top-k, top-p and min-p, relative to `top`, the largest score. Returns
/// the sum of all weights before these three steps.
fn weights_of(
    scores: &[f32],
    top: f32,
    s: &Settings<'_>,
    weights: &mut Vec<f32>,
    best: &mut Vec<f32>,
    order: &mut Vec<u64>,
) -> f64 {
    let least = match usize::try_from(s.top_k) {
        Ok(k) if k > 0 && k < scores.len() => kth_largest(scores, k, best),
        _ => f32::NEG_INFINITY,
    };
    weights.resize(scores.len(), 0.0);
    let sum = weigh(scores, weights, top, s.scale(), least);
    if s.top_p < 1.0 {
        keep_top_p(weights, s.top_p, order);
    }
    if s.min_p > 0.0 {
        // min-p is relative to the largest weight, which is 1 and is always kept.
        let least = s.min_p.min(1.0);
        for w in weights.iter_mut().filter(|w| **w < least) {
            *w = 0.0;
        }
    }
    sum
}

/// Applies the penalties to tokens of the history, rounding after each step as the formula does.
fn penalise(scores: &mut [f32], logits: &[f32], s: &Settings<'_>, history: &mut Vec<usize>) {
    if s.penalty != 1.0 {
        for id in in_vocab(s.history, logits.len()) {
            let l = logits[id];
            scores[id] = if l < 0.0 { l * s.penalty } else { l / s.penalty };
        }
    }
    if s.frequency_penalty == 0.0 && s.presence_penalty == 0.0 {
        return;
    }
    history.clear();
    history.extend(in_vocab(s.history.get(s.counted_from..).unwrap_or_default(), logits.len()));
    history.sort_unstable();
    for same in history.chunk_by(|a, b| a == b) {
        let score = &mut scores[same[0]];
        *score -= same.len() as f32 * s.frequency_penalty;
        *score -= s.presence_penalty;
    }
}

/// Writes the most likely tokens and their log-probabilities.
fn likeliest(logits: &[f32], row: &RowStats, scratch: &mut Scratch, ids: &mut [i32], log_probs: &mut [f32]) {
    let n = ids.len().min(logits.len());
    if n == 0 {
        return;
    }
    let least = kth_largest(logits, n, &mut scratch.best);
    // Tokens with equal logits are ordered by id; more than n tokens may have a logit of at least `least`.
    let mut best: Vec<usize> = (0..logits.len()).filter(|&id| logits[id] >= least).collect();
    best.sort_by(|&a, &b| (logits[b] + 0.0).total_cmp(&(logits[a] + 0.0)).then(a.cmp(&b)));
    for ((id, value), &token) in ids.iter_mut().zip(log_probs).zip(&best[..n]) {
        (*id, *value) = (token as i32, row.log_prob(logits[token]));
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn sample(p: &Params, team: &Team) {
    let (rows, vocab, cols) = (p.rows as usize, p.vocab as usize, p.history_cols as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (logits, history) =
        unsafe { (slice_at::<f32>(p.logits, rows * vocab), slice_at::<i32>(p.history, rows * cols)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (temperature, top_p) = unsafe { (slice_at::<f32>(p.temperature, rows), slice_at::<f32>(p.top_p, rows)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (top_k, penalty) = unsafe { (slice_at::<i32>(p.top_k, rows), slice_at::<f32>(p.penalty, rows)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (seed, position) = unsafe { (slice_at::<u64>(p.seed, rows), slice_at::<i32>(p.position, rows)) };
    // SAFETY: `history_len` covers `rows` elements if there is a history; else no elements are read.
    let history_len = unsafe { slice_at::<i32>(p.history_len, if cols == 0 { 0 } else { rows }) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let suppressed = unsafe { slice_at::<i32>(p.suppressed, p.suppressed_count as usize) };
    let (bias_cols, words, tops) = (p.bias_cols as usize, vocab.div_ceil(32), p.tops as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (bias_ids, bias) =
        unsafe { (slice_at::<i32>(p.bias_ids, rows * bias_cols), slice_at::<f32>(p.bias, rows * bias_cols)) };
    let each = |addr: reel_device::Addr, len: usize| if addr.is_null() { 0 } else { len };
    // SAFETY: the address is null (then no elements are read) or covers `rows` elements.
    let optional = |addr| unsafe { slice_at::<f32>(addr, each(addr, rows)) };
    let (min_p, frequency, presence) = (optional(p.min_p), optional(p.frequency_penalty), optional(p.presence_penalty));
    // SAFETY: the address is null (then no elements are read) or covers `rows` elements.
    let counted_from = unsafe { slice_at::<i32>(p.counted_from, each(p.counted_from, rows)) };
    // SAFETY: the address is null (then no elements are read) or covers `rows * words` elements.
    let allowed = unsafe { slice_at::<u32>(p.allowed, each(p.allowed, rows * words)) };
    // SAFETY: the address is null (then the view has no elements) or covers `rows` elements.
    let written = |addr| unsafe { OutputArray::<f32>::new(addr, each(addr, rows)) };
    let (log_prob, raw_log_prob) = (written(p.log_prob), written(p.raw_log_prob));
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (top_ids, top_log_probs) = unsafe {
        (OutputArray::<i32>::new(p.top_ids, rows * tops), OutputArray::<f32>::new(p.top_log_probs, rows * tops))
    };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let ids = unsafe { OutputArray::<i32>::new(p.ids, rows) };
    team.run(rows, |r| {
        let logits = &logits[r * vocab..][..vocab];
        let len = history_len.get(r).map_or(0, |&n| (n.max(0) as usize).min(cols));
        let settings = Settings {
            temperature: temperature[r],
            top_p: top_p[r],
            top_k: top_k[r],
            min_p: min_p.get(r).copied().unwrap_or(0.0),
            penalty: penalty[r],
            frequency_penalty: frequency.get(r).copied().unwrap_or(0.0),
            presence_penalty: presence.get(r).copied().unwrap_or(0.0),
            seed: seed[r],
            position: position[r],
            history: &history[r * cols..][..len],
            counted_from: counted_from.get(r).map_or(0, |&n| n.max(0) as usize),
            bias_ids: &bias_ids[r * bias_cols..][..bias_cols],
            bias: &bias[r * bias_cols..][..bias_cols],
            suppressed,
            allowed: allowed.get(r * words..).map_or(&[], |rest| &rest[..words.min(rest.len())]),
        };
        let bad = any_nan(logits);
        let chosen = if bad { None } else { SCRATCH.with_borrow_mut(|scratch| choose(logits, &settings, scratch)) };
        // SAFETY: each row has an element of its own.
        let one = unsafe { ids.part(r, 1) };
        one[0] = chosen.as_ref().map_or(-1, |choice| choice.token as i32);
        let token = chosen.as_ref().map(|choice| choice.token);
        // The row statistics that were computed last, with the scale that they were computed for.
        let mut known = chosen.and_then(|choice| choice.stats).map(|stats| (settings.scale(), stats));
        let mut log_prob_at = |scale: f32| {
            let Some(token) = token else { return f32::NAN };
            if known.as_ref().is_none_or(|(of, _)| *of != scale) {
                known = Some((scale, RowStats::new(logits, scale)));
            }
            known.as_ref().map_or(f32::NAN, |(_, stats)| stats.log_prob(logits[token]))
        };
        if !p.log_prob.is_null() {
            // SAFETY: as above.
            let one = unsafe { log_prob.part(r, 1) };
            one[0] = log_prob_at(settings.scale());
        }
        if !p.raw_log_prob.is_null() {
            // SAFETY: as above.
            let one = unsafe { raw_log_prob.part(r, 1) };
            one[0] = log_prob_at(1.0);
        }
        // SAFETY: each row has elements of its own.
        let (ids, log_probs) = unsafe { (top_ids.part(r * tops, tops), top_log_probs.part(r * tops, tops)) };
        ids.fill(-1);
        log_probs.fill(f32::NAN);
        if tops > 0 && !bad {
            let row = RowStats::new(logits, 1.0);
            SCRATCH.with_borrow_mut(|scratch| likeliest(logits, &row, scratch, ids, log_probs));
        }
    });
}

/// Returns the weights with which the token of a row is sampled, for tests.
#[cfg(test)]
pub(super) fn kept_weights(logits: &[f32], s: &super::formula::SamplingSettings) -> Vec<f32> {
    let settings = Settings {
        temperature: s.temperature as f32,
        top_p: s.top_p as f32,
        top_k: s.top_k as i32,
        min_p: s.min_p as f32,
        penalty: s.penalty as f32,
        frequency_penalty: s.frequency_penalty as f32,
        presence_penalty: s.presence_penalty as f32,
        seed: 0,
        position: 0,
        history: &s.history,
        counted_from: s.counted_from,
        bias_ids: &s.bias_ids,
        bias: &s.bias,
        suppressed: &s.suppressed,
        allowed: &s.allowed,
    };
    let mut scratch = Scratch::new();
    let Some(scores) = scores(logits, &settings, &mut scratch.scores, &mut scratch.history) else { return Vec::new() };
    let top = max_ignoring_nan(scores);
    let mut weights = Vec::new();
    weights_of(scores, top, &settings, &mut weights, &mut scratch.best, &mut scratch.order);
    weights
}
