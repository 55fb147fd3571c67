//! AdamW on the CPU: each task updates a block of weights. A block of split weights is joined to f32 on the stack
//! first.
#![allow(unsafe_code)]

use super::{JoinParams, Params, SplitParams, SplitWeightHighHalf, StepNumbers};
use crate::view::{OutputArray, slice_at};
use crate::{Team, simd_fn};

/// Weights that one task updates.
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

/// Joins the two halves of a split f32. The inverse of [`to_bf16_and_remainder`] for every f32 that is not NaN.
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
        // As in torch, scalars are computed in f64 and rounded to f32 once.
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

/// # Safety
/// The address is null or covers two f32.
unsafe fn clip_factor(p: &Params) -> f32 {
    // SAFETY: `clip` is null (then no elements are read) or covers two f32.
    let clip = unsafe { slice_at::<f32>(p.clip, if p.clip.is_null() { 0 } else { 2 }) };
    clip.get(1).copied().unwrap_or(1.0)
}

/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents.
pub unsafe fn step_f32(p: &Params, team: &Team) {
    let n = p.n as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (g, factor) = unsafe { (slice_at::<f32>(p.g, n), clip_factor(p)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (w, m, v) =
        unsafe { (OutputArray::<f32>::new(p.w, n), OutputArray::<f32>::new(p.m, n), OutputArray::<f32>::new(p.v, n)) };
    team.run(n.div_ceil(BLOCK), |task| {
        let (at, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        // SAFETY: blocks do not overlap.
        let (w, m, v) = unsafe { (w.part(at, len), m.part(at, len), v.part(at, len)) };
        step_block(&p.numbers, factor, w, m, v, &g[at..at + len]);
    });
}

/// # Safety
/// Every address in [`Params`] is valid for the shape and dtype that its field documents.
pub unsafe fn step_bf16(p: &Params, team: &Team) {
    let n = p.n as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (g, factor) = unsafe { (slice_at::<f32>(p.g, n), clip_factor(p)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (hi, low) = unsafe { (OutputArray::<SplitWeightHighHalf>::new(p.w, n), OutputArray::<i16>::new(p.low, n)) };
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let (m, v) = unsafe { (OutputArray::<f32>::new(p.m, n), OutputArray::<f32>::new(p.v, n)) };
    team.run(n.div_ceil(BLOCK), |task| {
        let mut joined = [0.0; JOINED];
        for at in (task * BLOCK..n.min((task + 1) * BLOCK)).step_by(JOINED) {
            let len = JOINED.min(n - at);
            // SAFETY: blocks do not overlap.
            let (hi, low, m, v) = unsafe { (hi.part(at, len), low.part(at, len), m.part(at, len), v.part(at, len)) };
            let w = &mut joined[..len];
            join_block(hi, low, w);
            step_block(&p.numbers, factor, w, m, v, &g[at..at + len]);
            split_block(w, hi, low);
        }
    });
}

/// # Safety
/// Every address in [`SplitParams`] is valid for the shape and dtype that its field documents.
pub unsafe fn split_f32(p: &SplitParams, team: &Team) {
    let n = p.n as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`SplitParams`] documents.
    let (src, hi, low) = unsafe {
        (slice_at::<f32>(p.src, n), OutputArray::<SplitWeightHighHalf>::new(p.w, n), OutputArray::<i16>::new(p.low, n))
    };
    team.run(n.div_ceil(BLOCK), |task| {
        let (at, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        // SAFETY: blocks do not overlap.
        let (hi, low) = unsafe { (hi.part(at, len), low.part(at, len)) };
        split_block(&src[at..at + len], hi, low);
    });
}

/// # Safety
/// Every address in [`SplitParams`] is valid for the shape and dtype that its field documents.
pub unsafe fn split_bf16(p: &SplitParams, team: &Team) {
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

/// # Safety
/// Every address in [`JoinParams`] is valid for the shape and dtype that its field documents.
pub unsafe fn join_to_f32(p: &JoinParams, team: &Team) {
    let n = p.n as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`JoinParams`] documents.
    let (hi, low, dst) = unsafe {
        (slice_at::<SplitWeightHighHalf>(p.w, n), slice_at::<i16>(p.low, n), OutputArray::<f32>::new(p.dst, n))
    };
    team.run(n.div_ceil(BLOCK), |task| {
        let (at, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        // SAFETY: blocks do not overlap.
        join_block(&hi[at..at + len], &low[at..at + len], unsafe { dst.part(at, len) });
    });
}
