//! Element-wise operations on device `cpu`; each task computes a block of elements.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team, simd_fn};

use super::{AccumulateParams, AddParams, CastParams, CopyParams, FillParams, MulScalarParams};

/// Number of elements that one task computes.
const BLOCK: usize = 16 * 1024;

simd_fn! {
    fn add_block<T: Element>(a: &[T], b: &[T], y: &mut [T]) {
        for ((a, b), y) in a.iter().zip(b).zip(y) {
            *y = T::from_f32(a.to_f32() + b.to_f32());
        }
    }
}

simd_fn! {
    fn accumulate_block<T: Element, U: Element>(src: &[T], dst: &mut [U]) {
        for (src, dst) in src.iter().zip(dst) {
            *dst = U::from_f32(dst.to_f32() + src.to_f32());
        }
    }
}

simd_fn! {
    fn cast_block<S: Element, T: Element>(src: &[S], dst: &mut [T]) {
        for (src, dst) in src.iter().zip(dst) {
            *dst = T::from_f32(src.to_f32());
        }
    }
}

simd_fn! {
    fn mul_scalar_block(x: &[f32], scalar: f32, y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = x * scalar;
        }
    }
}

/// Splits `out` into blocks of [`BLOCK`] elements and calls `block(index of the block's first element, the block)`
/// for each, on the team's threads.
fn blocks<T: Send>(team: &Team, n: usize, out: OutputArray<T>, block: impl Fn(usize, &mut [T]) + Sync) {
    team.run(n.div_ceil(BLOCK), |task| {
        let (start, len) = (task * BLOCK, BLOCK.min(n - task * BLOCK));
        // SAFETY: blocks do not overlap.
        block(start, unsafe { out.part(start, len) });
    });
}

/// # Safety
/// Every address in [`AddParams`] is valid for the documented shape and dtype.
pub unsafe fn add<T: Element>(p: &AddParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`AddParams`] documents.
    let (a, b, y) = unsafe { (slice_at::<T>(p.a, n), slice_at::<T>(p.b, n), OutputArray::<T>::new(p.y, n)) };
    blocks(team, n, y, |start, y| add_block(&a[start..][..y.len()], &b[start..][..y.len()], y));
}

/// # Safety
/// Every address in [`AccumulateParams`] is valid for the documented shape and dtype.
pub unsafe fn accumulate<T: Element, U: Element>(p: &AccumulateParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`AccumulateParams`] documents.
    let (src, dst) = unsafe { (slice_at::<T>(p.src, n), OutputArray::<U>::new(p.dst, n)) };
    blocks(team, n, dst, |start, dst| accumulate_block(&src[start..][..dst.len()], dst));
}

/// # Safety
/// Every address in [`CastParams`] is valid for the documented shape and dtype.
pub unsafe fn cast<S: Element, T: Element>(p: &CastParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`CastParams`] documents.
    let (src, dst) = unsafe { (slice_at::<S>(p.src, n), OutputArray::<T>::new(p.dst, n)) };
    blocks(team, n, dst, |start, dst| cast_block(&src[start..][..dst.len()], dst));
}

/// # Safety
/// Every address in [`FillParams`] is valid for the documented shape and dtype.
pub unsafe fn fill<T: Element>(p: &FillParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`FillParams`] documents.
    let dst = unsafe { OutputArray::<T>::new(p.dst, n) };
    blocks(team, n, dst, |_, dst| dst.fill(T::from_f32(p.value)));
}

/// # Safety
/// Every address in [`MulScalarParams`] is valid for the documented shape and dtype.
pub unsafe fn mul_scalar(p: &MulScalarParams, team: &Team) {
    let n = p.count as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`MulScalarParams`] documents.
    let (x, scalar, y) =
        unsafe { (slice_at::<f32>(p.x, n), slice_at::<f32>(p.scalar, 1)[0], OutputArray::<f32>::new(p.y, n)) };
    blocks(team, n, y, |start, y| mul_scalar_block(&x[start..][..y.len()], scalar, y));
}

/// # Safety
/// Every address in [`CopyParams`] is valid for the documented shape and dtype.
pub unsafe fn copy(p: &CopyParams, team: &Team) {
    let n = p.bytes as usize;
    // SAFETY: `p`'s addresses cover the shapes that [`CopyParams`] documents.
    let (src, dst) = unsafe { (slice_at::<u8>(p.src, n), OutputArray::<u8>::new(p.dst, n)) };
    blocks(team, n, dst, |start, dst| dst.copy_from_slice(&src[start..][..dst.len()]));
}
