//! AdamW on the CPU: each task updates a chunk of the weights of one parameter. Split weights are joined to f32 on the
//! stack first.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::launch::{ArrayEntry, Chunk};
use reel_device::{Addr, Team, simd_fn};

use super::{ParameterEntry, Params, SplitParams, SplitWeightHighHalf, StepEntry, StepNumbers, WEIGHTS_PER_CHUNK};

/// Number of weights that one task splits.
const BLOCK: usize = 8192;

/// Number of split weights that a task joins to f32 on the stack at a time.
const JOINED: usize = 512;

/// Splits an f32 into the bits of the nearest bf16 (ties away from zero) and the signed 16-bit remainder of the f32's
/// bits.
#[inline(always)]
pub fn to_bf16_and_remainder(x: f32) -> (u16, i16) {
    let bits = x.to_bits();
    let (hi, low) = ((bits.wrapping_add(0x8000) >> 16) as u16, bits as i16);
    if x.is_nan() { (0x7fc0, 0) } else { (hi, low) }
}

/// Joins the two halves of a split f32. This function is the inverse of [`to_bf16_and_remainder`] for every f32 that is
/// not NaN.
#[inline(always)]
pub fn from_bf16_and_remainder(hi: u16, low: i16) -> f32 {
    f32::from_bits(((hi as u32) << 16).wrapping_add(low as i32 as u32))
}

simd_fn! {
    fn split_block(x: &[f32], hi: &mut [SplitWeightHighHalf], low: &mut [i16]) {
        for ((x, hi), low) in x.iter().zip(hi).zip(low) {
            let (h, l) = to_bf16_and_remainder(*x);
            (*hi, *low) = (SplitWeightHighHalf::from_bits(h), l);
        }
    }
}

simd_fn! {
    fn join_block(hi: &[SplitWeightHighHalf], low: &[i16], x: &mut [f32]) {
        for ((hi, low), x) in hi.iter().zip(low).zip(x) {
            *x = from_bf16_and_remainder(hi.to_bits(), *low);
        }
    }
}

simd_fn! {
    fn step_block(p: &StepNumbers, factor: f32, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        // Scalars are computed in f64 and rounded to f32 once, as in torch.
        let decay = (1.0 - p.lr as f64 * p.weight_decay as f64) as f32;
        let step_size = (p.lr as f64 / p.bias1 as f64) as f32;
        let root_bias2 = (p.bias2 as f64).sqrt() as f32;
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * factor;
            *m += p.rest1 * (g - *m);
            *v = p.beta2 * *v + p.rest2 * (g * g);
            *w = *w * decay - step_size * (*m / (v.sqrt() / root_bias2 + p.eps));
        }
    }
}

/// A chunk of a parameter that a task updates.
pub(super) struct ChunkUpdate {
    /// The parameter.
    pub parameter: ParameterEntry,
    /// f32 `[n]`, the gradient.
    pub gradient: Addr,
    /// The scalars of the step, and the stream of random bits.
    pub step: StepEntry,
    /// The clipping factor.
    pub factor: f32,
    /// The first weight of the chunk.
    pub at: usize,
    /// The number of weights in the chunk.
    pub len: usize,
}

/// Calls `update` for each chunk of each parameter that has a gradient. `split` selects the parameters with split
/// weights (true) or with f32 weights (false).
///
/// # Safety
/// Every address in [`Params`] and in its tables is valid for the documented shape and dtype.
pub(super) unsafe fn for_each_chunk(p: &Params, split: bool, team: &Team, update: impl Fn(&ChunkUpdate) + Sync) {
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let chunks = unsafe { slice_at::<Chunk>(p.chunks, p.chunk_count as usize) };
    // The tables may have more than `count` entries: an empty parameter has an entry but no chunk.
    let count = chunks.iter().map(|chunk| chunk.array as usize + 1).max().unwrap_or(0);
    // SAFETY: the tables have an entry for each parameter in a chunk.
    let (parameters, gradients) =
        unsafe { (slice_at::<ParameterEntry>(p.parameters, count), slice_at::<ArrayEntry>(p.gradients, count)) };
    // SAFETY: the steps have an entry for each parameter in a chunk. `clip` is null (then no elements are read) or
    // covers two f32.
    let (steps, clip) = unsafe {
        (slice_at::<StepEntry>(p.steps, count), slice_at::<f32>(p.clip, if p.clip.is_null() { 0 } else { 2 }))
    };
    let factor = clip.get(1).copied().unwrap_or(1.0);
    team.run(chunks.len(), |task| {
        let (array, at) = (chunks[task].array as usize, chunks[task].index as usize * WEIGHTS_PER_CHUNK);
        let (parameter, gradient) = (parameters[array], gradients[array].x);
        if gradient.is_null() || split == parameter.low.is_null() {
            return;
        }
        let len = WEIGHTS_PER_CHUNK.min(parameter.n as usize - at);
        update(&ChunkUpdate { parameter, gradient, step: steps[array], factor, at, len });
    });
}

/// How the weights of a step are stored: as f32, or split into two halves.
pub(super) trait Weights {
    /// Whether the weights are split into halves.
    const SPLIT: bool;

    /// Updates the weights of a chunk, with f32 moments.
    ///
    /// # Safety
    /// The addresses of the task's parameter are valid, and no other thread accesses the chunk.
    unsafe fn update(task: &ChunkUpdate, m: &mut [f32], v: &mut [f32], g: &[f32]);
}

/// Weights in f32.
pub(super) struct PlainWeights;

impl Weights for PlainWeights {
    const SPLIT: bool = false;

    unsafe fn update(task: &ChunkUpdate, m: &mut [f32], v: &mut [f32], g: &[f32]) {
        // SAFETY: `w` covers `n` weights, and no other thread accesses the chunk.
        let w = unsafe { OutputArray::<f32>::new(task.parameter.w, task.parameter.n as usize) };
        // SAFETY: no other thread accesses the chunk.
        step_block(&task.step.numbers, task.factor, unsafe { w.part(task.at, task.len) }, m, v, g);
    }
}

/// Weights whose f32 is split into a bf16 and 16 low bits.
pub(super) struct SplitWeights;

impl Weights for SplitWeights {
    const SPLIT: bool = true;

    unsafe fn update(task: &ChunkUpdate, m: &mut [f32], v: &mut [f32], g: &[f32]) {
        let (n, p) = (task.parameter.n as usize, &task.parameter);
        // SAFETY: `w` and `low` cover `n` weights, and no other thread accesses the chunk.
        let (hi, low) = unsafe { (OutputArray::<SplitWeightHighHalf>::new(p.w, n), OutputArray::<i16>::new(p.low, n)) };
        // SAFETY: no other thread accesses the chunk.
        let (hi, low) = unsafe { (hi.part(task.at, task.len), low.part(task.at, task.len)) };
        let mut joined = [0.0; JOINED];
        for at in (0..task.len).step_by(JOINED) {
            let part = at..task.len.min(at + JOINED);
            let (hi, low, w) = (&mut hi[part.clone()], &mut low[part.clone()], &mut joined[..part.len()]);
            join_block(hi, low, w);
            step_block(
                &task.step.numbers,
                task.factor,
                w,
                &mut m[part.clone()],
                &mut v[part.clone()],
                &g[part.clone()],
            );
            split_block(w, hi, low);
        }
    }
}

/// # Safety
/// Every address in [`Params`] and in its tables is valid for the documented shape and dtype.
pub unsafe fn step<W: Weights>(p: &Params, team: &Team) {
    let update = |task: &ChunkUpdate| {
        let (n, at, len) = (task.parameter.n as usize, task.at, task.len);
        // SAFETY: the addresses of a parameter cover `n` elements.
        let (m, v) =
            unsafe { (OutputArray::<f32>::new(task.parameter.m, n), OutputArray::<f32>::new(task.parameter.v, n)) };
        // SAFETY: chunks do not overlap.
        let (m, v) = unsafe { (m.part(at, len), v.part(at, len)) };
        // SAFETY: the gradient covers `n` elements; chunks do not overlap.
        unsafe { W::update(task, m, v, &slice_at::<f32>(task.gradient, n)[at..at + len]) };
    };
    // SAFETY: the caller's promise.
    unsafe { for_each_chunk(p, W::SPLIT, team, update) };
}

/// # Safety
/// Every address in [`SplitParams`] is valid for the documented shape and dtype.
pub unsafe fn split(p: &SplitParams, team: &Team) {
    let n = p.n as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`SplitParams`] documents.
    let (hi, low) = unsafe { (OutputArray::<SplitWeightHighHalf>::new(p.w, n), OutputArray::<i16>::new(p.low, n)) };
    // SAFETY: `p.src` covers `n` weights; no slice of it is made if it is the same array as `p.w`.
    let src = unsafe { slice_at::<SplitWeightHighHalf>(p.src, if p.src == p.w { 0 } else { n }) };
    team.run(n.div_ceil(BLOCK), |task| {
        let (at, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        // SAFETY: blocks do not overlap.
        let (hi, low) = unsafe { (hi.part(at, len), low.part(at, len)) };
        if !src.is_empty() {
            hi.copy_from_slice(&src[at..at + len]);
        }
        low.fill(0);
    });
}
