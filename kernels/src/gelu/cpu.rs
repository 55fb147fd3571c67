//! Blocks of elements, one a task.
#![allow(unsafe_code)]

use super::{BwdParams, FwdParams};
use crate::simd::exp;
use crate::view::{Out, slice};
use crate::{Element, Team, simd_fn};

/// Elements of one task.
const BLOCK: usize = 4096;

/// `erf(x)` in f32 as straight-line code: an odd rational function on [−4, 4], where the rest of the curve is below the
/// last place of 1. The coefficients are the f32 minimax fit that Eigen and XLA use.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    const P: [f32; 7] = [
        -1.609_603_3e-2,
        -2.954_599_8e-3,
        -7.349_906_5e-4,
        -5.692_506_5e-5,
        -2.101_024_1e-6,
        2.770_681_4e-8,
        -2.726_142_2e-10,
    ];
    const Q: [f32; 5] = [-1.426_473_9e-2, -7.373_329_3e-3, -1.682_827e-3, -2.133_740_5e-4, -1.456_607_2e-5];
    let c = x.clamp(-4.0, 4.0);
    let z = c * c;
    let mut p = P[6];
    for k in (0..6).rev() {
        p = p * z + P[k];
    }
    let mut q = Q[4];
    for k in (0..4).rev() {
        q = q * z + Q[k];
    }
    c * p / q
}

/// Φ(x), the normal distribution function.
#[inline(always)]
fn cdf(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

simd_fn! {
    fn fwd_block<T: Element>(x: &[T], y: &mut [T]) {
        for (x, y) in x.iter().zip(y) {
            let x = x.to_f32();
            *y = T::from_f32(x * cdf(x));
        }
    }
}

simd_fn! {
    fn bwd_block<T: Element>(x: &[T], dy: &[T], dx: &mut [T]) {
        for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
            let x = x.to_f32();
            let density = 0.398_942_3 * exp(-0.5 * x * x);
            *dx = T::from_f32(dy.to_f32() * (cdf(x) + x * density));
        }
    }
}

/// # Safety
/// The addresses cover what [`FwdParams`] says.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: the caller's promise.
    let (x, y) = unsafe { (slice::<T>(p.x, n), Out::<T>::new(p.y, n)) };
    team.run(n.div_ceil(BLOCK), |task| {
        let (start, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        // SAFETY: blocks do not overlap.
        fwd_block(&x[start..start + len], unsafe { y.part(start, len) });
    });
}

/// # Safety
/// The addresses cover what [`BwdParams`] says.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: the caller's promise.
    let (x, dy, dx) = unsafe { (slice::<T>(p.x, n), slice::<T>(p.dy, n), Out::<T>::new(p.dx, n)) };
    team.run(n.div_ceil(BLOCK), |task| {
        let (start, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        // SAFETY: blocks do not overlap.
        let dx = unsafe { dx.part(start, len) };
        bwd_block(&x[start..start + len], &dy[start..start + len], dx);
    });
}
