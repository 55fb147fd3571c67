//! Rows with adapters on device `cpu`: the rows of each adapter are gathered, multiplied by [`matmul`] together, and
//! scattered.
#![allow(unsafe_code)]

use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::launch::{Matmul, Operand};
use reel_device::{Addr, Element, Team};

use super::Params;
use crate::matmul;
use crate::matmul::plain_product;

/// Computes y for the rows of each adapter: `scale[a] · x · w[a]ᵀ`, added to y if `accumulate`.
///
/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
unsafe fn rows_by_adapter<T: Element>(p: &Params, accumulate: bool, team: &Team) {
    let [m, n, k, adapters] = [p.m, p.n, p.k, p.adapters].map(|size| size as usize);
    // SAFETY: x has `[m, k]` elements, adapter `[m]`.
    let (x, adapter) = unsafe { (slice_at::<T>(p.x, m * k), slice_at::<i32>(p.adapter, m)) };
    // SAFETY: scale has `[adapters]` elements, or is null and read as empty.
    let scale = unsafe { slice_at::<f32>(p.scale, if p.scale.is_null() { 0 } else { adapters }) };
    // SAFETY: y has `[m, n]` elements.
    let y = unsafe { OutputArray::<T>::new(p.y, m * n) };
    // SAFETY: this thread alone writes y, and the product below writes to an array of its own.
    let y = unsafe { y.part(0, m * n) };
    let of = |i: usize| usize::try_from(adapter[i]).ok().filter(|&a| a < adapters);
    if !accumulate {
        (0..m).filter(|&i| of(i).is_none()).for_each(|i| y[i * n..][..n].fill(T::from_f32(0.0)));
    }
    for a in 0..adapters {
        let rows: Vec<usize> = (0..m).filter(|&i| of(i) == Some(a)).collect();
        if rows.is_empty() {
            continue;
        }
        let inputs: Vec<T> = rows.iter().flat_map(|i| &x[i * k..][..k]).copied().collect();
        let mut outputs: Vec<T> = rows.iter().flat_map(|i| &y[i * n..][..n]).copied().collect();
        let operand = |addr| Operand { addr, dtype: T::DTYPE, transposed: false };
        let (x, w) = (operand(Addr(inputs.as_ptr() as u64)), operand(p.w.offset(a * n * k * size_of::<T>())));
        let product = plain_product([rows.len(), n, k], x, w, Addr(outputs.as_mut_ptr() as u64), T::DTYPE);
        let product = Matmul { accumulate, scale: scale.get(a).copied().unwrap_or(1.0), ..product };
        // SAFETY: `inputs` has `[rows, k]` elements, `outputs` `[rows, n]`, and w `[adapters, n, k]`.
        unsafe { matmul::cpu::run(&product, team) }
        for (i, row) in rows.into_iter().zip(outputs.chunks_exact(n)) {
            y[i * n..][..n].copy_from_slice(row);
        }
    }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn down<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the caller promises what the function needs.
    unsafe { rows_by_adapter::<T>(p, false, team) }
}

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn up<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the caller promises what the function needs.
    unsafe { rows_by_adapter::<T>(p, true, team) }
}
