//! GELU on the CPU: each task computes a block of elements.
#![allow(unsafe_code)]

use reel_device::cpu::simd::exp;
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::{BwdParams, FwdParams};

/// Number of elements that one task computes.
const BLOCK: usize = 4096;

/// Computes Φ(x), the normal distribution function, and `e^(−x²/2)`, without branches.
///
/// The relative error of Φ is below 1e-6 for x > −4; below −4 it grows like x², as the error of the exponential does.
/// `Φ(−z) = e^(−z²/2) · R(z)`, where R (Mills' ratio over √(2π)) is a polynomial in `1 / (1 + 0.4 z)`: the form of
/// Abramowitz and Stegun 26.2.17, fitted to a relative error of 7e-8 on z ≤ 13.5 by iteratively reweighted least
/// squares.
#[inline(always)]
pub(super) fn normal_cdf_and_exp(x: f32) -> (f32, f32) {
    const R: [f32; 9] = [
        -1.276_458_1e-5,
        1.599_205_4e-1,
        1.556_443_4e-1,
        1.590_852_9e-1,
        -1.424_719_1e-2,
        2.541_248_5e-1,
        -3.768_636_6e-1,
        2.023_57e-1,
        -4.000_845e-2,
    ];
    let t = 1.0 / (1.0 + 0.4 * x.abs());
    let mut r = R[8];
    for k in (0..8).rev() {
        r = r * t + R[k];
    }
    let bell = exp(-0.5 * x * x);
    let tail = bell * r;
    (if x > 0.0 { 1.0 - tail } else { tail }, bell)
}

simd_fn! {
    fn fwd_block<T: Element>(x: &[T], y: &mut [T]) {
        for (x, y) in x.iter().zip(y) {
            let x = x.to_f32();
            *y = T::from_f32(x * normal_cdf_and_exp(x).0);
        }
    }
}

simd_fn! {
    fn bwd_block<T: Element>(x: &[T], dy: &[T], dx: &mut [T]) {
        for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
            let x = x.to_f32();
            let (cdf, bell) = normal_cdf_and_exp(x);
            *dx = T::from_f32(dy.to_f32() * (cdf + x * (0.398_942_3 * bell)));
        }
    }
}

/// Computes `s = 1 / (1 + e^(−2u))`, the factor of x in the tanh form (`mod.rs` defines u).
#[inline(always)]
fn tanh_share(x: f32) -> f32 {
    1.0 / (1.0 + exp(-1.595_769 * (x + 0.044_715 * x * x * x)))
}

simd_fn! {
    fn tanh_fwd_block<T: Element>(x: &[T], y: &mut [T]) {
        for (x, y) in x.iter().zip(y) {
            let x = x.to_f32();
            *y = T::from_f32(x * tanh_share(x));
        }
    }
}

simd_fn! {
    fn tanh_bwd_block<T: Element>(x: &[T], dy: &[T], dx: &mut [T]) {
        for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
            let x = x.to_f32();
            let s = tanh_share(x);
            // For large |x|, `bend` is 0 and the last factor of `slope` may be infinite. `slope` is NaN then and is
            // not used.
            let bend = s * (1.0 - s);
            let slope = x * bend * (1.595_769 * (1.0 + 0.134_145 * x * x));
            *dx = T::from_f32(dy.to_f32() * (s + if bend == 0.0 { 0.0 } else { slope }));
        }
    }
}

/// Computes GELU in its tanh form or in its exact form.
///
/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element, const TANH_FORM: bool>(p: &FwdParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    let (x, y) = unsafe { (slice_at::<T>(p.x, n), OutputArray::<T>::new(p.y, n)) };
    team.run(n.div_ceil(BLOCK), |task| {
        let (start, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        let block = if TANH_FORM { tanh_fwd_block::<T> } else { fwd_block::<T> };
        // SAFETY: blocks do not overlap.
        block(&x[start..start + len], unsafe { y.part(start, len) });
    });
}

/// Computes the gradient of the tanh form or of the exact form.
///
/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype.
pub unsafe fn bwd<T: Element, const TANH_FORM: bool>(p: &BwdParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`BwdParams`] documents.
    let (x, dy, dx) = unsafe { (slice_at::<T>(p.x, n), slice_at::<T>(p.dy, n), OutputArray::<T>::new(p.dx, n)) };
    team.run(n.div_ceil(BLOCK), |task| {
        let (start, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        // SAFETY: blocks do not overlap.
        let dx = unsafe { dx.part(start, len) };
        let block = if TANH_FORM { tanh_bwd_block::<T> } else { bwd_block::<T> };
        block(&x[start..start + len], &dy[start..start + len], dx);
    });
}
