//! One row a task; a working copy of the scores stays with the thread.
#![allow(unsafe_code)]

use super::{Params, STREAM};
use crate::log_prob::{Row, max};
use crate::simd::{LANES, exp, sum_lanes};
use crate::view::{Out, slice};
use crate::{Team, philox, simd_fn};
use std::cell::RefCell;

/// Weights that are summed before the next cumulative sum.
const BLOCK: usize = 512;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { scores: Vec::new(), best: Vec::new(), order: Vec::new() }) };
}

/// Buffers of one thread, grown once to the vocabulary.
struct Scratch {
    scores: Vec<f32>,
    best: Vec<f32>,
    order: Vec<u64>,
}

simd_fn! {
    fn any_nan(x: &[f32]) -> bool {
        let mut lanes = [0u32; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for c in whole {
            for i in 0..LANES {
                lanes[i] |= c[i].is_nan() as u32;
            }
        }
        lanes.iter().any(|&l| l != 0) || rest.iter().any(|x| x.is_nan())
    }
}

simd_fn! {
    /// Scores become weights `e^((score − max) · scale)`, 0 below `least`.
    fn weigh(scores: &mut [f32], max: f32, scale: f32, least: f32) {
        for s in scores {
            let w = exp((*s - max) * scale);
            *s = if *s >= least { w } else { 0.0 };
        }
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

/// The sum of the weights, block by block in f64.
fn total(weights: &[f32]) -> f64 {
    weights.chunks(BLOCK).map(|b| sum(b) as f64).sum()
}

/// The `k`-th largest score, 1 ≤ k ≤ the number of scores.
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
            // Most blocks have nothing above it.
            Some(least) if max(block) <= least => continue,
            Some(least) => best.extend(block.iter().filter(|&&s| s > least)),
        }
        if best.len() >= k + k.max(BLOCK) {
            least = Some(select(best));
        }
    }
    select(best)
}

/// Clears the weights that top-p drops.
fn keep_top_p(weights: &mut [f32], p: f32, order: &mut Vec<u64>) {
    let all = total(weights);
    let bound = p.max(0.0) as f64 * all;
    // Weights below this add up to less than what top-p drops, so that none of them can stay; half of it, to be safe
    // from rounding. What is left to be sorted is short unless the distribution is flat.
    let floor = (0.5 * (all - bound) / weights.len() as f64) as f32;
    order.clear();
    for (id, w) in weights.iter().enumerate() {
        if *w > 0.0 && *w >= floor {
            // Positive floats are ordered like their bits: the largest weight first, then the lowest id.
            order.push(((!w.to_bits()) as u64) << 32 | id as u64);
        }
    }
    order.sort_unstable();
    let mut before = 0.0f64;
    let mut kept = 0;
    for &key in order.iter() {
        if kept > 0 && before >= bound {
            break;
        }
        before += f32::from_bits(!((key >> 32) as u32)) as f64;
        kept += 1;
    }
    weights.fill(0.0);
    for &key in &order[..kept] {
        weights[key as u32 as usize] = f32::from_bits(!((key >> 32) as u32));
    }
}

/// The first id whose cumulative weight exceeds `u` of the total; an id of weight 0 is never taken.
fn draw(weights: &[f32], u: f64) -> Option<usize> {
    let target = u * total(weights);
    let (mut before, mut last) = (0.0f64, None);
    for (b, block) in weights.chunks(BLOCK).enumerate() {
        let here = sum(block) as f64;
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
            // The block's sum was rounded up across the target: its last token.
            return last;
        }
        before += here;
    }
    last
}

/// One row's settings.
struct Settings<'a> {
    temperature: f32,
    top_p: f32,
    top_k: i32,
    penalty: f32,
    seed: u64,
    position: i32,
    history: &'a [i32],
    suppressed: &'a [i32],
}

impl Settings<'_> {
    fn is_greedy(&self) -> bool {
        !(self.temperature > 0.0)
    }
}

fn in_vocab(ids: &[i32], vocab: usize) -> impl Iterator<Item = usize> {
    ids.iter().filter_map(move |&id| usize::try_from(id).ok().filter(|&id| id < vocab))
}

/// The place of the first score that equals `top`, which is the largest.
fn first_equal(scores: &[f32], top: f32) -> Option<usize> {
    let block = scores.chunks(BLOCK).position(|block| max(block) == top)? * BLOCK;
    scores[block..].iter().position(|&x| x == top).map(|i| block + i)
}

/// The token of one row whose logits are not NaN; `None` if none can be taken.
fn choose(logits: &[f32], s: &Settings<'_>, scratch: &mut Scratch) -> Option<usize> {
    let top = weights(logits, s, scratch)?;
    if s.is_greedy() {
        return first_equal(&scratch.scores, top);
    }
    draw(&scratch.scores, philox::uniform_f64(s.seed, STREAM, s.position as u32 as u64))
}

/// Leaves in `scores` what the token is chosen by, the scores after suppression (greedy) or the weights after top-p, and
/// returns the largest score; `None` if no token has a score above −∞.
fn weights(logits: &[f32], s: &Settings<'_>, scratch: &mut Scratch) -> Option<f32> {
    let Scratch { scores, best, order } = scratch;
    scores.clear();
    scores.extend_from_slice(logits);
    if s.penalty != 1.0 {
        for id in in_vocab(s.history, logits.len()) {
            let l = logits[id];
            scores[id] = if l < 0.0 { l * s.penalty } else { l / s.penalty };
        }
    }
    for id in in_vocab(s.suppressed, logits.len()) {
        scores[id] = f32::NEG_INFINITY;
    }
    let top = max(scores);
    if top == f32::NEG_INFINITY {
        return None;
    }
    if s.is_greedy() {
        return Some(top);
    }
    let least = match usize::try_from(s.top_k) {
        Ok(k) if k > 0 && k < scores.len() => kth_largest(scores, k, best),
        _ => f32::NEG_INFINITY,
    };
    weigh(scores, top, 1.0 / s.temperature, least);
    if s.top_p < 1.0 {
        keep_top_p(scores, s.top_p, order);
    }
    Some(top)
}

/// # Safety
/// The addresses cover what [`Params`] says.
pub unsafe fn sample(p: &Params, team: &Team) {
    let (rows, vocab, cols) = (p.rows as usize, p.vocab as usize, p.history_cols as usize);
    // SAFETY: the caller's promise.
    let (logits, history) = unsafe { (slice::<f32>(p.logits, rows * vocab), slice::<i32>(p.history, rows * cols)) };
    // SAFETY: the caller's promise.
    let (temperature, top_p) = unsafe { (slice::<f32>(p.temperature, rows), slice::<f32>(p.top_p, rows)) };
    // SAFETY: the caller's promise.
    let (top_k, penalty) = unsafe { (slice::<i32>(p.top_k, rows), slice::<f32>(p.penalty, rows)) };
    // SAFETY: the caller's promise.
    let (seed, position) = unsafe { (slice::<u64>(p.seed, rows), slice::<i32>(p.position, rows)) };
    // SAFETY: the caller's promise; without a history there need be no lengths.
    let history_len = unsafe { slice::<i32>(p.history_len, if cols == 0 { 0 } else { rows }) };
    // SAFETY: the caller's promise.
    let suppressed = unsafe { slice::<i32>(p.suppressed, p.suppressed_count as usize) };
    // SAFETY: the caller's promise; no elements if there is no address.
    let log_prob = unsafe { Out::<f32>::new(p.log_prob, if p.log_prob.is_null() { 0 } else { rows }) };
    // SAFETY: the caller's promise.
    let ids = unsafe { Out::<i32>::new(p.ids, rows) };
    team.run(rows, |r| {
        let logits = &logits[r * vocab..][..vocab];
        let len = history_len.get(r).map_or(0, |&n| (n.max(0) as usize).min(cols));
        let settings = Settings {
            temperature: temperature[r],
            top_p: top_p[r],
            top_k: top_k[r],
            penalty: penalty[r],
            seed: seed[r],
            position: position[r],
            history: &history[r * cols..][..len],
            suppressed,
        };
        let chosen =
            if any_nan(logits) { None } else { SCRATCH.with_borrow_mut(|scratch| choose(logits, &settings, scratch)) };
        // SAFETY: each row has an element of its own.
        let one = unsafe { ids.part(r, 1) };
        one[0] = chosen.map_or(-1, |id| id as i32);
        if !p.log_prob.is_null() {
            let scale = if temperature[r] > 0.0 { 1.0 / temperature[r] } else { 1.0 };
            let value = chosen.map_or(f32::NAN, |id| Row::new(logits, scale).log_prob(logits[id]));
            // SAFETY: as above.
            let one = unsafe { log_prob.part(r, 1) };
            one[0] = value;
        }
    });
}

/// The weights that a row's token would be drawn by, for tests.
#[cfg(test)]
pub(super) fn kept_weights(logits: &[f32], s: &super::formula::Settings) -> Vec<f32> {
    let settings = Settings {
        temperature: s.temperature as f32,
        top_p: s.top_p as f32,
        top_k: s.top_k as i32,
        penalty: s.penalty as f32,
        seed: 0,
        position: 0,
        history: &s.history,
        suppressed: &s.suppressed,
    };
    let mut scratch = Scratch { scores: Vec::new(), best: Vec::new(), order: Vec::new() };
    weights(logits, &settings, &mut scratch);
    scratch.scores
}
