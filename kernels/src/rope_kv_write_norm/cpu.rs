//! Norms, rotation and writes to the KV cache on the CPU, by the functions of `rms_norm` and `rope_kv_write`.
#![allow(unsafe_code)]

use bytemuck::Zeroable;
use reel_device::launch::view::slice_at;
use reel_device::{Addr, Element, Team};

use super::Params;
use crate::{rms_norm, rope_kv_write};

/// Normalises and rotates all queries in place, and writes the normalised, rotated keys and the values of all tokens to
/// their slots of the caches.
///
/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype, and no two tokens have the same slot,
/// except negative ones.
pub unsafe fn write<T: Element>(p: &Params, team: &Team) {
    let count = |heads: u32| p.tokens as usize * heads as usize * p.head_dim as usize;
    // The norm does not work in place, and k is an input of the launch.
    // SAFETY: `p`'s addresses cover the shapes that [`Params`] documents.
    let q = unsafe { slice_at::<T>(p.q, count(p.heads)) }.to_vec();
    let mut keys = vec![T::zeroed(); count(p.kv_heads)];
    let k = Addr(keys.as_mut_ptr() as u64);
    let heads = [(Addr(q.as_ptr() as u64), p.q_norm, p.q, p.heads), (p.k, p.k_norm, k, p.kv_heads)];
    for (x, w, y, heads) in heads {
        let (rows, cols) = (p.tokens * heads, p.head_dim);
        let params = rms_norm::FwdParams { x, w, y, rows, cols, eps: p.eps, ..Zeroable::zeroed() };
        // SAFETY: x, w and y cover the shapes that `FwdParams` documents; there is neither a residual nor a rstd.
        unsafe { rms_norm::cpu::fwd::<T>(&params, team) }
    }
    // SAFETY: `keys` has the shape of k, and the caller promises the rest.
    unsafe { rope_kv_write::cpu::write::<T>(&rope_kv_write::Params { k, ..p.without_norms() }, team) }
}
