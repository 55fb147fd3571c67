//! RoPE on device `cpu`; each task computes a few tokens.
#![allow(unsafe_code)]

use reel_device::cpu::simd::prefetch;
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::{ApplyParams, RopeTensor, TableParams};

/// Approximate number of elements that one task rotates.
const PER_TASK: usize = 1 << 13;
/// Largest angle whose multiple of pi/2 can be subtracted exactly: the integer factor then has at most 20 bits.
const FAST: f32 = 1_000_000.0;

// pi/2 as a sum of three parts. The first two have 33 bits, so their products with 20-bit integers are exact.
const PIO2_1: f64 = f64::from_bits(0x3ff9_21fb_5440_0000);
const PIO2_2: f64 = f64::from_bits(0x3dd0_b461_1a60_0000);
const PIO2_3: f64 = f64::from_bits(0x3ba3_198a_2e03_7073);

simd_fn! {
    /// Computes cosine and sine of angles up to [`FAST`]. Multiples of pi/2 are subtracted in f64; the Taylor series
    /// up to pi/4 is then exact to far below half a unit in the last place of f32.
    fn cos_sin(angles: &[f32], cos: &mut [f32], sin: &mut [f32]) {
        for ((&a, cos), sin) in angles.iter().zip(cos).zip(sin) {
            let a = a as f64;
            // Adding and subtracting 1.5 * 2^52 rounds to the nearest integer; the low bits of the sum hold that
            // integer.
            let shifted = a * std::f64::consts::FRAC_2_PI + 6_755_399_441_055_744.0;
            let quadrant = shifted.to_bits();
            let n = shifted - 6_755_399_441_055_744.0;
            let r = ((a - n * PIO2_1) - n * PIO2_2) - n * PIO2_3;
            let z = r * r;
            let mut s = -1.0 / 1_307_674_368_000.0; // 15!
            for c in [1.0 / 6_227_020_800.0, -1.0 / 39_916_800.0, 1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0] {
                s = s * z + c;
            }
            let s = s * z * r + r;
            let mut c = -1.0 / 87_178_291_200.0; // 14!
            for k in [1.0 / 479_001_600.0, -1.0 / 3_628_800.0, 1.0 / 40_320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5, 1.0] {
                c = c * z + k;
            }
            let odd = quadrant & 1 == 1;
            let (x, y) = if odd { (s, c) } else { (c, s) };
            let flip_sin = (quadrant & 2) << 62;
            let flip_cos = ((quadrant + 1) & 2) << 62;
            *cos = f64::from_bits(x.to_bits() ^ flip_cos) as f32;
            *sin = f64::from_bits(y.to_bits() ^ flip_sin) as f32;
        }
    }
}

simd_fn! {
    /// Rotates the heads of one token.
    pub(crate) fn rotate<T: Element>(heads: &mut [T], cos: &[f32], sin: &[f32], sign: f32) {
        for head in heads.chunks_exact_mut(2 * cos.len()) {
            let (a, b) = head.split_at_mut(cos.len());
            for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let (x, y, s) = (a.to_f32(), b.to_f32(), s * sign);
                *a = T::from_f32(x * c - y * s);
                *b = T::from_f32(y * c + x * s);
            }
        }
    }
}

/// # Safety
/// Every address in [`TableParams`] is valid for the documented shape and dtype.
pub unsafe fn cos_sin_table(p: &TableParams, team: &Team) {
    let (tokens, half) = (p.tokens as usize, p.half as usize);
    // SAFETY: `p`'s addresses cover the shapes that [`TableParams`] documents.
    let (inv_freq, axis) = unsafe { (slice_at::<f32>(p.inv_freq, half), slice_at::<i32>(p.axis, half)) };
    let axes = axis.iter().max().map_or(0, |&a| a as usize + 1);
    // SAFETY: `positions` covers `[axes, tokens]`, and `axes` is one more than the largest axis that is used.
    let positions = unsafe { slice_at::<i32>(p.positions, axes * tokens) };
    // SAFETY: `p`'s addresses cover the shapes that [`TableParams`] documents.
    let (cos, sin) =
        unsafe { (OutputArray::<f32>::new(p.cos, tokens * half), OutputArray::<f32>::new(p.sin, tokens * half)) };
    let per_task = (PER_TASK / 8 / half.max(1)).max(1);
    team.run(tokens.div_ceil(per_task), |task| {
        let mut angles = vec![0.0; half];
        for t in task * per_task..tokens.min((task + 1) * per_task) {
            for ((angle, &a), &f) in angles.iter_mut().zip(axis).zip(inv_freq) {
                *angle = positions[a as usize * tokens + t] as f32 * f;
            }
            // SAFETY: rows do not overlap.
            let (cos, sin) = unsafe { (cos.part(t * half, half), sin.part(t * half, half)) };
            if angles.iter().all(|a| a.abs() <= FAST) {
                cos_sin(&angles, cos, sin);
            } else {
                for ((&a, cos), sin) in angles.iter().zip(cos).zip(sin) {
                    let (s, c) = (a as f64).sin_cos();
                    (*cos, *sin) = (c as f32, s as f32);
                }
            }
        }
    });
}

/// # Safety
/// Every address in [`ApplyParams`] is valid for the documented shape and dtype.
pub unsafe fn apply<T: Element>(p: &ApplyParams, team: &Team) {
    let (tokens, d) = (p.tokens as usize, p.head_dim as usize);
    let h = d / 2;
    // SAFETY: `p`'s addresses cover the shapes that [`ApplyParams`] documents.
    let (cos, sin) = unsafe { (slice_at::<f32>(p.cos, tokens * h), slice_at::<f32>(p.sin, tokens * h)) };
    let sign = if p.inverse == 0 { 1.0 } else { -1.0 };
    let per_token: usize = p.parts().iter().map(|part| part.heads as usize * d).sum();
    if per_token == 0 {
        return;
    }
    let parts = p.parts().map(|part| PartView::<T>::new(&part, tokens, d));
    let per_task = (PER_TASK / per_token).max(1);
    team.run(tokens.div_ceil(per_task), |task| {
        for t in task * per_task..tokens.min((task + 1) * per_task) {
            parts.iter().for_each(|part| part.prefetch_after(t));
            for (i, part) in parts.iter().enumerate().filter(|(_, part)| part.width > 0) {
                // SAFETY: tokens and parts do not overlap.
                let y = unsafe { part.copied_token(t) };
                if i < p.rotated as usize {
                    rotate(y, &cos[t * h..(t + 1) * h], &sin[t * h..(t + 1) * h], sign);
                }
            }
        }
    });
}

/// One of the tensors that a launch rotates or copies, as slices of host memory.
struct PartView<'a, T> {
    /// The elements of x; empty if x and y are the same array.
    x: &'a [T],
    y: OutputArray<T>,
    x_stride: usize,
    y_stride: usize,
    /// Elements of a token.
    width: usize,
}

impl<T: Element> PartView<'_, T> {
    fn new(part: &RopeTensor, tokens: usize, head_dim: usize) -> Self {
        let width = part.heads as usize * head_dim;
        let (x_stride, y_stride) = (part.x_stride as usize, part.y_stride as usize);
        let len = |stride: usize| if tokens * width == 0 { 0 } else { (tokens - 1) * stride + width };
        // SAFETY: `part` covers the rows of all tokens; no slice of x is made if it is the same array as y.
        let x = unsafe { slice_at::<T>(part.x, if part.x == part.y { 0 } else { len(x_stride) }) };
        // SAFETY: `part` covers the rows of all tokens.
        PartView { x, y: unsafe { OutputArray::<T>::new(part.y, len(y_stride)) }, x_stride, y_stride, width }
    }

    /// Prefetches a token after `t`.
    fn prefetch_after(&self, t: usize) {
        prefetch::prefetch_strided_row_read(self.x, t, self.x_stride, self.width);
        prefetch::prefetch_strided_row_write(&self.y, t, self.y_stride, self.width);
    }

    /// Copies token `t` from x to y and returns it.
    ///
    /// # Safety
    /// No other thread accesses this token of y.
    #[allow(clippy::mut_from_ref)]
    unsafe fn copied_token(&self, t: usize) -> &mut [T] {
        // SAFETY: no other thread accesses this token.
        let y = unsafe { self.y.part(t * self.y_stride, self.width) };
        if !self.x.is_empty() {
            y.copy_from_slice(&self.x[t * self.x_stride..][..self.width]);
        }
        y
    }
}
