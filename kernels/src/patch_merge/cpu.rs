//! Patch merging on the CPU: calls the row functions of [`crate::rms_norm`] on the rows that `index` names, both for
//! reading x and for writing dx.
#![allow(unsafe_code)]

use reel_device::{Element, Team};

use super::{BwdParams, FwdParams};
use crate::rms_norm::cpu;

/// # Safety
/// Every address in [`FwdParams`] is valid for the documented shape and dtype; the index is a permutation.
pub unsafe fn fwd<T: Element>(p: &FwdParams, team: &Team) {
    // SAFETY: `p`'s addresses cover the documented shapes, and the index is a permutation.
    unsafe { cpu::fwd_gathered::<T>(&p.without_index(), p.index, team) }
}

/// # Safety
/// Every address in [`BwdParams`] is valid for the documented shape and dtype; the index is a permutation.
pub unsafe fn bwd<T: Element>(p: &BwdParams, team: &Team) {
    // SAFETY: `p`'s addresses cover the documented shapes, and the index is a permutation.
    unsafe { cpu::bwd_scattered::<T>(&p.without_index(), p.index, team) }
}
