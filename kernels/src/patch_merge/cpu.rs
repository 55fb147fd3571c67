//! Patch merging on the CPU: calls the row functions of [`crate::rms_norm`], which read x and write dx at the rows
//! that the index names.
#![allow(unsafe_code)]

use bytemuck::Zeroable;

use super::{BwdParams, FwdParams};
use crate::rms_norm::{self, cpu};
use crate::{Element, Team};

/// # Safety
/// Every address in [`FwdParams`] is valid for the shape and dtype that its field documents; the index is a
/// permutation.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    let FwdParams { x, index, w, y, rstd, rows, cols, eps, .. } = *p;
    let norm = rms_norm::FwdParams { x, w, y, rstd, rows, cols, eps, ..Zeroable::zeroed() };
    // SAFETY: `p`'s addresses cover the documented shapes, and the index is a permutation.
    unsafe { cpu::fwd_gathered::<T>(&norm, index, team) }
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the shape and dtype that its field documents; the index is a
/// permutation.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    let BwdParams { x, index, w, rstd, dy, dx, dw, partial, rows, cols } = *p;
    let norm = rms_norm::BwdParams { x, w, rstd, dy, dx, dw, partial, rows, cols, ..Zeroable::zeroed() };
    // SAFETY: `p`'s addresses cover the documented shapes, and the index is a permutation.
    unsafe { cpu::bwd_scattered::<T>(&norm, index, team) }
}
