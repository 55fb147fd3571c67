//! SwiGLU on the CPU: each task computes a block of elements, in parts that lie in one row.
#![allow(unsafe_code)]

use reel_device::cpu::simd::{LANES, exp, prefetch};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::{BwdParams, FwdParams};

/// Number of elements that one task computes.
const BLOCK: usize = 4096;

simd_fn! {
    fn fwd_block<T: Element>(gate: &[T], up: &[T], y: &mut [T]) {
        let value = |g: &T, u: &T| {
            let g = g.to_f32();
            T::from_f32(g / (1.0 + exp(-g)) * u.to_f32())
        };
        let ((gate, gate_rest), (up, up_rest)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
        let (y, y_rest) = y.as_chunks_mut::<LANES>();
        for ((g, u), y) in gate.iter().zip(up).zip(y) {
            prefetch::prefetch_read(g);
            prefetch::prefetch_read(u);
            prefetch::prefetch_write(y);
            for i in 0..LANES {
                y[i] = value(&g[i], &u[i]);
            }
        }
        for ((g, u), y) in gate_rest.iter().zip(up_rest).zip(y_rest) {
            *y = value(g, u);
        }
    }
}

simd_fn! {
    fn bwd_block<T: Element>(gate: &[T], up: &[T], dy: &[T], d_gate: &mut [T], d_up: &mut [T]) {
        let gradients = |g: &T, u: &T, dy: &T| {
            let (g, dy) = (g.to_f32(), dy.to_f32());
            let s = 1.0 / (1.0 + exp(-g));
            (T::from_f32(dy * u.to_f32() * s * (1.0 + g * (1.0 - s))), T::from_f32(dy * g * s))
        };
        let ((gate, gate_rest), (up, up_rest)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
        let (dy, dy_rest) = dy.as_chunks::<LANES>();
        let ((d_gate, d_gate_rest), (d_up, d_up_rest)) = (d_gate.as_chunks_mut::<LANES>(), d_up.as_chunks_mut::<LANES>());
        for ((((g, u), dy), d_gate), d_up) in gate.iter().zip(up).zip(dy).zip(d_gate).zip(d_up) {
            prefetch::prefetch_read(g);
            prefetch::prefetch_read(u);
            prefetch::prefetch_read(dy);
            prefetch::prefetch_write(d_gate);
            prefetch::prefetch_write(d_up);
            for i in 0..LANES {
                (d_gate[i], d_up[i]) = gradients(&g[i], &u[i], &dy[i]);
            }
        }
        let rest = gate_rest.iter().zip(up_rest).zip(dy_rest).zip(d_gate_rest).zip(d_up_rest);
        for ((((g, u), dy), d_gate), d_up) in rest {
            (*d_gate, *d_up) = gradients(g, u, dy);
        }
    }
}

/// Divides the elements `start .. start + len` of y into parts that lie in one row each. Returns each part's index in
/// y, its index in an array with `stride` elements from one row of `cols` to the next, and its length.
fn parts(start: usize, len: usize, cols: usize, stride: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let end = start + len;
    std::iter::successors(Some(start), move |at| Some((at / cols + 1) * cols))
        .take_while(move |at| *at < end)
        .map(move |at| (at, at / cols * stride + at % cols, (cols - at % cols).min(end - at)))
}

/// Returns the number of elements of an array, from the first element to the end of the last row.
fn extent(count: usize, cols: usize, stride: usize) -> usize {
    if count == 0 { 0 } else { (count / cols - 1) * stride + cols }
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (n, cols, stride) = (p.count as usize, p.cols as usize, p.stride as usize);
    let rows = extent(n, cols, stride);
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (gate, up) = unsafe { (slice_at::<T>(p.gate, rows), slice_at::<T>(p.up, rows)) };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let y = unsafe { OutputArray::<T>::new(p.y, n) };
    team.run(n.div_ceil(BLOCK), |task| {
        for (at, from, len) in parts(task * BLOCK, BLOCK.min(n - task * BLOCK), cols, stride) {
            // SAFETY: blocks and their parts do not overlap.
            let y = unsafe { y.part(at, len) };
            fwd_block(&gate[from..from + len], &up[from..from + len], y);
        }
    });
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let (n, cols, stride) = (p.count as usize, p.cols as usize, p.stride as usize);
    let rows = extent(n, cols, stride);
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (gate, up, dy) = unsafe { (slice_at::<T>(p.gate, rows), slice_at::<T>(p.up, rows), slice_at::<T>(p.dy, n)) };
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (d_gate, d_up) = unsafe { (OutputArray::<T>::new(p.d_gate, rows), OutputArray::<T>::new(p.d_up, rows)) };
    // SAFETY: y is not null, and it covers the shape that [`BwdParams`] documents.
    let y = (!p.y.is_null()).then(|| unsafe { OutputArray::<T>::new(p.y, n) });
    team.run(n.div_ceil(BLOCK), |task| {
        for (at, from, len) in parts(task * BLOCK, BLOCK.min(n - task * BLOCK), cols, stride) {
            // SAFETY: blocks and their parts do not overlap.
            let (d_gate, d_up) = unsafe { (d_gate.part(from, len), d_up.part(from, len)) };
            let (gate, up) = (&gate[from..from + len], &up[from..from + len]);
            bwd_block(gate, up, &dy[at..at + len], d_gate, d_up);
            if let Some(y) = &y {
                // SAFETY: blocks and their parts do not overlap.
                fwd_block(gate, up, unsafe { y.part(at, len) });
            }
        }
    });
}
