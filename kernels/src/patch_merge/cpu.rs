//! The row kernels of [`crate::rms_norm`], which read x and write dx at the rows that the index names.
#![allow(unsafe_code)]

use bytemuck::Zeroable;

use super::{BwdParams, FwdParams};
use crate::rms_norm::{self, cpu};
use crate::{Element, Team};

/// # Safety
/// The addresses cover what [`FwdParams`] says; the index is a permutation.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let FwdParams { x, index, w, y, rstd, rows, cols, eps, .. } = *p;
    let norm = rms_norm::FwdParams { x, w, y, rstd, rows, cols, eps, ..Zeroable::zeroed() };
    // SAFETY: the caller guarantees it (see the function's safety section).
    unsafe { cpu::fwd_gathered::<T>(&norm, index, team) }
}

/// # Safety
/// The addresses cover what [`BwdParams`] says; the index is a permutation.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let BwdParams { x, index, w, rstd, dy, dx, dw, partial, rows, cols } = *p;
    let norm = rms_norm::BwdParams { x, w, rstd, dy, dx, dw, partial, rows, cols, ..Zeroable::zeroed() };
    // SAFETY: the caller guarantees it (see the function's safety section).
    unsafe { cpu::bwd_scattered::<T>(&norm, index, team) }
}
