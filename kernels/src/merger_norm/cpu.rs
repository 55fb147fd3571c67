//! Rows gathered, then normalised; gradients of rows, then scattered.
#![allow(unsafe_code)]

use super::{BwdParams, FwdParams};
use crate::launch::run_on_cpu;
use crate::{Addr, Element, Launch, Team, rms_norm, rows};
use bytemuck::Zeroable;

fn gather<T: Element>(x: Addr, index: Addr, rows: u32, cols: u32, y: Addr) -> Launch {
    rows::gather(T::DTYPE, &rows::GatherParams { x, index, y, m: rows, cols, n: rows, reserved: 0 })
}

/// A buffer and its address.
fn buffer<T: Element>(rows: u32, cols: u32) -> (Vec<T>, Addr) {
    let mut buffer = vec![T::from_f32(0.0); rows as usize * cols as usize];
    let at = Addr(buffer.as_mut_ptr() as u64);
    (buffer, at)
}

/// # Safety
/// The addresses cover what [`FwdParams`] says.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let FwdParams { w, y, rstd, rows, cols, eps, .. } = *p;
    let (_x, x) = buffer::<T>(rows, cols);
    let norm = rms_norm::fwd(T::DTYPE, &rms_norm::FwdParams { x, w, y, rstd, rows, cols, eps, ..Zeroable::zeroed() });
    for launch in [gather::<T>(p.x, p.index, rows, cols, x), norm] {
        // SAFETY: the caller's promise; the buffer has room for all rows.
        unsafe { run_on_cpu(&launch, team) }
    }
}

/// # Safety
/// The addresses cover what [`BwdParams`] says.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let BwdParams { index, w, rstd, dy, dw, partial, rows, cols, .. } = *p;
    let ((_x, x), (_dx, dx)) = (buffer::<T>(rows, cols), buffer::<T>(rows, cols));
    let norm = rms_norm::bwd(
        T::DTYPE,
        &rms_norm::BwdParams { x, w, rstd, dy, dx, dw, partial, rows, cols, ..Zeroable::zeroed() },
    );
    let scatter = rows::ScatterParams { src: dx, index, dst: p.dx, m: rows, cols, n: rows, reserved: 0 };
    for launch in [gather::<T>(p.x, index, rows, cols, x), norm, rows::scatter(T::DTYPE, &scatter)] {
        // SAFETY: the caller's promise; the buffers have room for all rows.
        unsafe { run_on_cpu(&launch, team) }
    }
}
