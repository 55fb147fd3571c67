//! placeholder
#![allow(unsafe_code)]
use super::{BwdParams, FwdParams};
use crate::view::{Out, slice};
use crate::{Element, Team};

/// One row over the keys at `at(j)`.
#[allow(clippy::too_many_arguments)]
pub fn row<T: Element>(
    q: &[T],
    k: &[T],
    v: &[T],
    at: impl Fn(usize) -> usize,
    keys: usize,
    scale: f32,
    o: &mut [T],
) -> f32 {
    let d = q.len();
    let s: Vec<f32> =
        (0..keys).map(|j| scale * (0..d).map(|c| q[c].to_f32() * k[at(j) + c].to_f32()).sum::<f32>()).collect();
    let top = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = s.iter().map(|s| (s - top).exp()).sum();
    for c in 0..d {
        o[c] = T::from_f32((0..keys).map(|j| (s[j] - top).exp() * v[at(j) + c].to_f32()).sum::<f32>() / sum);
    }
    top + sum.ln()
}

/// # Safety
/// The addresses cover what [`FwdParams`] says.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (tokens, heads, kv_heads, d) = (p.tokens as usize, p.heads as usize, p.kv_heads as usize, p.head_dim as usize);
    // SAFETY: the caller's promise.
    let (q, k, v, cu) = unsafe {
        (
            slice::<T>(p.q, tokens * heads * d),
            slice::<T>(p.k, tokens * kv_heads * d),
            slice::<T>(p.v, tokens * kv_heads * d),
            slice::<i32>(p.cu_seqlens, p.seqs as usize + 1),
        )
    };
    // SAFETY: the caller's promise.
    let (o, lse) = unsafe { (Out::<T>::new(p.o, tokens * heads * d), Out::<f32>::new(p.lse, tokens * heads)) };
    team.run(p.seqs as usize * heads, |task| {
        let (seq, h) = (task / heads, task % heads);
        let (first, end) = (cu[seq] as usize, cu[seq + 1] as usize);
        for i in first..end {
            let r = i * heads + h;
            // SAFETY: rows do not overlap.
            let o = unsafe { o.part(r * d, d) };
            let keys = if p.causal != 0 { i - first + 1 } else { end - first };
            let at = |j| ((first + j) * kv_heads + h / (heads / kv_heads)) * d;
            let l = row(&q[r * d..(r + 1) * d], k, v, at, keys, p.scale, o);
            if !p.lse.is_null() {
                // SAFETY: rows do not overlap.
                unsafe { lse.part(r, 1)[0] = l };
            }
        }
    });
}

/// # Safety
/// The addresses cover what [`BwdParams`] says.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (tokens, heads, kv_heads, d) = (p.tokens as usize, p.heads as usize, p.kv_heads as usize, p.head_dim as usize);
    // SAFETY: the caller's promise.
    let (q, k, v, o, d_o) = unsafe {
        (
            slice::<T>(p.q, tokens * heads * d),
            slice::<T>(p.k, tokens * kv_heads * d),
            slice::<T>(p.v, tokens * kv_heads * d),
            slice::<T>(p.o, tokens * heads * d),
            slice::<T>(p.d_o, tokens * heads * d),
        )
    };
    // SAFETY: the caller's promise.
    let (lse, cu) = unsafe { (slice::<f32>(p.lse, tokens * heads), slice::<i32>(p.cu_seqlens, p.seqs as usize + 1)) };
    // SAFETY: the caller's promise.
    let (dq, dk, dv) = unsafe {
        (
            Out::<T>::new(p.dq, tokens * heads * d),
            Out::<T>::new(p.dk, tokens * kv_heads * d),
            Out::<T>::new(p.dv, tokens * kv_heads * d),
        )
    };
    team.run(p.seqs as usize * kv_heads, |task| {
        let (seq, g) = (task / kv_heads, task % kv_heads);
        let (first, end) = (cu[seq] as usize, cu[seq + 1] as usize);
        let n = end - first;
        let (mut gk, mut gv) = (vec![0f32; n * d], vec![0f32; n * d]);
        for i in 0..n {
            for h in g * heads / kv_heads..(g + 1) * heads / kv_heads {
                let r = (first + i) * heads + h;
                let delta: f32 = (0..d).map(|c| o[r * d + c].to_f32() * d_o[r * d + c].to_f32()).sum();
                let mut gq = vec![0f32; d];
                for j in 0..if p.causal != 0 { i + 1 } else { n } {
                    let at = ((first + j) * kv_heads + g) * d;
                    let dot =
                        |a: &[T], b: &[T]| (0..d).map(|c| a[r * d + c].to_f32() * b[at + c].to_f32()).sum::<f32>();
                    let pr = (p.scale * dot(q, k) - lse[r]).exp();
                    let ds = p.scale * pr * (dot(d_o, v) - delta);
                    for c in 0..d {
                        gq[c] += ds * k[at + c].to_f32();
                        gk[j * d + c] += ds * q[r * d + c].to_f32();
                        gv[j * d + c] += pr * d_o[r * d + c].to_f32();
                    }
                }
                // SAFETY: rows do not overlap.
                unsafe { dq.part(r * d, d) }.iter_mut().zip(gq).for_each(|(y, x)| *y = T::from_f32(x));
            }
        }
        for j in 0..n {
            let at = ((first + j) * kv_heads + g) * d;
            // SAFETY: rows do not overlap.
            unsafe { dk.part(at, d) }.iter_mut().zip(&gk[j * d..]).for_each(|(y, x)| *y = T::from_f32(*x));
            // SAFETY: rows do not overlap.
            unsafe { dv.part(at, d) }.iter_mut().zip(&gv[j * d..]).for_each(|(y, x)| *y = T::from_f32(*x));
        }
    });
}
