//! SwiGLU on the CPU: each task computes a block of elements.
#![allow(unsafe_code)]

use super::{BwdParams, FwdParams};
use crate::simd::exp;
use crate::view::{OutputArray, slice_at};
use crate::{Element, Team, simd_fn};

/// Elements of one task.
const BLOCK: usize = 4096;

simd_fn! {
    fn fwd_block<T: Element>(gate: &[T], up: &[T], y: &mut [T]) {
        for ((g, u), y) in gate.iter().zip(up).zip(y) {
            let g = g.to_f32();
            *y = T::from_f32(g / (1.0 + exp(-g)) * u.to_f32());
        }
    }
}

simd_fn! {
    fn bwd_block<T: Element>(gate: &[T], up: &[T], dy: &[T], d_gate: &mut [T], d_up: &mut [T]) {
        for ((((g, u), dy), d_gate), d_up) in gate.iter().zip(up).zip(dy).zip(d_gate).zip(d_up) {
            let (g, dy) = (g.to_f32(), dy.to_f32());
            let s = 1.0 / (1.0 + exp(-g));
            *d_gate = T::from_f32(dy * u.to_f32() * s * (1.0 + g * (1.0 - s)));
            *d_up = T::from_f32(dy * g * s);
        }
    }
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the shape and dtype that its field documents.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (gate, up, y) = unsafe { (slice_at::<T>(p.gate, n), slice_at::<T>(p.up, n), OutputArray::<T>::new(p.y, n)) };
    team.run(n.div_ceil(BLOCK), |task| {
        let (start, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        // SAFETY: blocks do not overlap.
        let y = unsafe { y.part(start, len) };
        fwd_block(&gate[start..start + len], &up[start..start + len], y);
    });
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the shape and dtype that its field documents.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (gate, up, dy) = unsafe { (slice_at::<T>(p.gate, n), slice_at::<T>(p.up, n), slice_at::<T>(p.dy, n)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (d_gate, d_up) = unsafe { (OutputArray::<T>::new(p.d_gate, n), OutputArray::<T>::new(p.d_up, n)) };
    team.run(n.div_ceil(BLOCK), |task| {
        let (start, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        let at = start..start + len;
        // SAFETY: blocks do not overlap.
        let (d_gate, d_up) = unsafe { (d_gate.part(start, len), d_up.part(start, len)) };
        bwd_block(&gate[at.clone()], &up[at.clone()], &dy[at], d_gate, d_up);
    });
}
