//! Patch embedding on the CPU: cuts the patches of one time step into a buffer, then multiplies them with the code of
//! [`matmul`].
#![allow(unsafe_code)]

use reel_device::cpu::simd::add_to_sums;
use reel_device::launch::view::OutputArray;
use reel_device::launch::{Matmul, Operand, run_on_cpu};
use reel_device::{Addr, DType, Element, Team};

use super::{DwParams, FwdParams, Pixels};
use crate::matmul;
use crate::matmul::plain_product;
use crate::patches;

/// Cuts the patches of each time step into a buffer and calls `f(index of the first patch, number of patches, address
/// of the buffer)`.
///
/// # Safety
/// `frames` covers the frames that `pixels` describes.
unsafe fn each_time<T: Element>(pixels: &Pixels, frames: Addr, team: &Team, mut f: impl FnMut(usize, usize, Addr)) {
    let times = pixels.count.div_ceil(pixels.temporal) as usize;
    let (frame, row) =
        (pixels.height as usize * pixels.width as usize * patches::CHANNELS, pixels.elements_per_patch());
    let one = Pixels { count: pixels.count.min(pixels.temporal), ..*pixels };
    let patches = one.patch_count();
    let mut buffer = vec![T::from_f32(0.0); patches * row];
    let at = Addr(buffer.as_mut_ptr() as u64);
    for time in 0..times {
        let first = time * pixels.temporal as usize;
        let count = pixels.temporal.min(pixels.count - first as u32);
        let cut = Pixels { count, ..*pixels }.patch_params(frames.offset(first * frame), at);
        // SAFETY: `frames` covers the frames of this time step, and the buffer has room for its patches.
        unsafe { run_on_cpu(&patches::cut_patches(T::DTYPE, &cut), team) };
        f(time * patches, patches, at);
    }
}

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let (k, embed) = (p.pixels.elements_per_patch(), p.embed as usize);
    let operand = |addr| Operand { addr, dtype: T::DTYPE, transposed: false };
    let product = |first: usize, count: usize, at: Addr| {
        let c = p.y.offset(first * embed * size_of::<T>());
        let product = plain_product([count, embed, k], operand(at), operand(p.weight), c, T::DTYPE);
        let product = Matmul { bias: p.bias, ..product };
        // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
        unsafe { matmul::cpu::run(&product, team) }
    };
    // SAFETY: `p`'s addresses cover the shapes that [`FwdParams`] documents.
    unsafe { each_time::<T>(&p.pixels, p.frames, team, product) }
}

/// # Safety
/// Every address in [`DwParams`] is valid for the documented shape and dtype.
pub unsafe fn dw<T: Element>(p: &DwParams, team: &Team) {
    let (n, embed) = (p.pixels.elements_per_patch(), p.embed as usize);
    let operand = |addr| Operand { addr, dtype: T::DTYPE, transposed: true };
    // Sums over the time steps first, then adds the old value of dw to the sum.
    let mut sum = vec![0.0f32; if p.accumulate == 1 { embed * n } else { 0 }];
    let c = if p.accumulate == 1 { Addr(sum.as_mut_ptr() as u64) } else { p.dw };
    let product = |first: usize, count: usize, at: Addr| {
        let (a, b) = (operand(p.dy.offset(first * embed * size_of::<T>())), operand(at));
        let product = Matmul { accumulate: first > 0, ..plain_product([embed, n, count], a, b, c, DType::F32) };
        // SAFETY: `p`'s addresses cover the shapes that [`DwParams`] documents.
        unsafe { matmul::cpu::run(&product, team) }
    };
    // SAFETY: `p`'s addresses cover the shapes that [`DwParams`] documents.
    unsafe { each_time::<T>(&p.pixels, p.frames, team, product) }
    // SAFETY: `p`'s addresses cover the shapes that [`DwParams`] documents.
    let dw = unsafe { OutputArray::<f32>::new(p.dw, sum.len()) };
    // SAFETY: no other part of dw is in use.
    add_to_sums(&sum, unsafe { dw.part(0, sum.len()) });
}
